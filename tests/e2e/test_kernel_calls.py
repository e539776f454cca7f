"""Single calls by the kernel path, with real clients: when it carries, when not, and what it leaves behind."""

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients import Witness, hammering
from tests.harness import Server, Sluice, Workload, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]

pytestmark = pytest.mark.only("kernel", "about the kernel path alone")


def documents(web: Workload, orders: Workload, port: int, path: str = "/ok.*") -> str:
    return web.document() + orders.document() + http_policy(orders, web, port, f'[{{method: "GET|POST", path: "{path}"}}]')


def call(client: Any, path: str, fields: str = "") -> int:
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n{fields}\r\n".encode())
    return read_reply(client)[0]


def until_carried(agent: Sluice, client: Any, path: str = "/ok/warm") -> int:
    """Make calls until the kernel has the connection; how many there were."""
    made = 0
    while True:
        assert call(client, path) == 200
        made += 1
        assert made < 200, "the kernel never has the connection"
        if agent.get("/connections")["connections"][0]["via"] == "kernel":
            return made


def test_the_calls_of_a_curl_session_travel_by_the_kernel(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    with web.connect(server.port) as first:
        until_carried(agent, first)  # the automaton is there from now on
    done = web.run("curl", "-sS", "--rate", "20/s", f"http://127.0.0.1:{server.port}/ok/[1-6]")
    assert done.stdout == "hello\n" * 6
    eventually(
        lambda: sum(record["path"].startswith("/ok/") and record["path"][4:].isdigit() for record in agent.records()) == 6,
        "six",
    )
    ways = {int(record["path"][4:]): record["via"] for record in agent.records() if record["path"][4:].isdigit()}
    assert ways == {1: "relay"} | dict.fromkeys(range(2, 7), "kernel")


def test_a_denied_call_on_an_accelerated_connection_gets_its_403_in_its_turn(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port))
    with web.connect(server.port) as client:
        made = until_carried(agent, client)
        for _ in range(20):
            assert [call(client, "/ok/1"), call(client, "/no"), call(client, "/ok/2"), call(client, "/ok/3")] == [
                200,
                403,
                200,
                200,
            ]
        # The relay lets go again behind what it has relayed; a client that is faster finds it at the wheel once more.
        more = until_carried(agent, client)
    records = agent.wait_records(made + 80 + more)[: made + 80]
    assert [record["path"] for record in records[made:]] == ["/ok/1", "/no", "/ok/2", "/ok/3"] * 20
    assert {record["via"] for record in records if record["path"] == "/no"} == {"relay"}
    assert witness.paths("/no") == []


def test_a_change_of_policy_reaches_an_accelerated_connection_at_its_next_call(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port))
    with web.connect(server.port) as client:
        for _ in range(3):
            until_carried(agent, client)
            agent.reload(documents(web, orders, server.port, "/other.*"))
            before = len(witness.seen)
            assert call(client, "/ok/warm") == 403
            assert len(witness.seen) == before
            agent.reload(documents(web, orders, server.port))
            assert call(client, "/ok/warm") == 200


@pytest.mark.parametrize("whose", ["web", "orders"])
def test_acceleration_off_keeps_a_workloads_calls_on_the_relay(
    whose: str, web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    off = (web if whose == "web" else orders).document()
    text = documents(web, orders, server.port).replace(off, off.replace("spec: {", "spec: {acceleration: false, "))
    assert "acceleration: false" in text
    agent = sluice(text)
    with web.connect(server.port) as client:
        assert [call(client, "/ok/1") for _ in range(100)] == [200] * 100
    assert {record["via"] for record in agent.wait_records(100)} == {"relay"}


def test_records_of_the_kernel_have_the_fields_of_the_relays(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    text = (
        documents(web, orders, server.port).replace("cilium.io/v2", "sluice.dev/v1").replace("CiliumNetworkPolicy", "ApiPolicy")
    )
    agent = sluice(text.replace("  ingress:", "  redactQuery: true\n  ingress:"), "--record-header", "x-who")
    with web.connect(server.port) as client:
        made = until_carried(agent, client, "/ok/1?secret=1")
        for _ in range(3):
            assert call(client, "/ok/1?secret=1", "x-who: me-and-nobody-else\r\n") == 200
    records = agent.wait_records(made + 3)
    relayed, carried = records[0], records[-1]
    assert (relayed["via"], carried["via"]) == ("relay", "kernel")
    assert carried.keys() == relayed.keys() | {"headers"}
    assert carried["headers"] == {"x-who": "me-and-nobody-else"}
    assert "secret=1" not in json.dumps(records)
    changing = {"id", "time", "durationMs", "via", "bytesRequest", "headers"}
    assert {k: v for k, v in carried.items() if k not in changing} == {k: v for k, v in relayed.items() if k not in changing}
    assert [record["id"].rpartition(".")[2] for record in records] == [str(number) for number in range(made + 3)]
    assert carried["bytesRequest"] == relayed["bytesRequest"] + len("x-who: me-and-nobody-else\r\n")


def test_kernel_traffic_keeps_a_connection_from_being_idle(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port), "--idle-timeout", "2")
    with web.connect(server.port) as client:
        until_carried(agent, client)
        for _ in range(12):
            time.sleep(0.5)
            assert call(client, "/ok/1") == 200
        assert client.recv(1) == b"", "then it is closed for being idle"


def test_sigterm_drains_accelerated_connections_with_all_their_records(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port))
    with hammering(web, server.port, "/ok", connections=8) as hammer:
        eventually(lambda: len(witness.seen) > 3000, "calls")
        assert agent.process is not None
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(20) == 0
        direct = len(witness.seen)
        hammer.stop()
    records = agent.records()
    assert sum(record["via"] == "kernel" for record in records) > 1000
    assert len({record["id"] for record in records}) == len(records)
    paths = {record["path"] for record in records}
    missing = [path for _, path in witness.seen[:2500] if path not in paths]
    assert missing == [], f"{len(missing)} of {direct}"
    assert "Traceback" not in agent.log.read_text()


def test_kill_minus_9_under_accelerated_load_lets_nothing_pass_unjudged(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port))
    with hammering(web, server.port, "/ok", "/ok", "/ok", "/denied", connections=8) as hammer:
        eventually(lambda: len(witness.seen) > 2000, "calls")
        assert agent.metric('sluice_calls_total{peer="') > 0
        agent.kill()
        time.sleep(1.0)
        at_death = len(witness.seen)
        time.sleep(1.0)
        assert len(witness.seen) == at_death, "within a second nothing passes any more"
        agent.start()
        eventually(lambda: len(witness.seen) > at_death + 2000, "calls after the restart")
        hammer.stop()
    assert witness.paths("/denied") == []
    assert sum(record["via"] == "kernel" for record in agent.records()) > 1000


@pytest.mark.parametrize(("host", "target"), [("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")], ids=["IPv6", "mapped"])
def test_both_families_are_carried(
    host: str, target: str, web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders, host=host)
    agent = sluice(documents(web, orders, server.port))
    with web.connect(server.port, target) as client:
        made = until_carried(agent, client)
        assert [call(client, "/ok/1") for _ in range(10)] == [200] * 10
    assert {record["via"] for record in agent.wait_records(made + 10)[made:]} == {"kernel"}
