"""A client in a network namespace of its own (a pod on this node) reaches the agent by a gateway address."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.harness import Server, Sluice, Workload, answer_http, command_exists, eventually, http_policy, unique
from tests.requirements import REQUIRE

MakeSluice = Callable[..., Sluice]

# Each run of the tests takes a network of its own: several may run on one machine.
NET = os.getpid() % 250
HOST4, POD4 = f"10.213.{NET}.1", f"10.213.{NET}.2"
HOST6, POD6 = f"fd13:{NET:x}::1", f"fd13:{NET:x}::2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace that is joined to ours by a pair of interfaces."""
    if not command_exists("ip"):
        (pytest.fail if REQUIRE else pytest.skip)("ip is not installed")
    name, outer, inner = unique("net"), f"sl{os.getpid()}o", f"sl{os.getpid()}i"
    with contextlib.ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        # With its namespace it would go as well, but some time later, when the next test wants the name.
        stack.callback(ip, "link", "del", outer)
        ip("addr", "add", f"{HOST4}/30", "dev", outer)
        ip("addr", "add", f"{HOST6}/64", "dev", outer, "nodad")
        ip("link", "set", outer, "up")
        ip("-n", name, "addr", "add", f"{POD4}/30", "dev", inner)
        ip("-n", name, "addr", "add", f"{POD6}/64", "dev", inner, "nodad")
        ip("-n", name, "link", "set", inner, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name


def curl(client: Workload, namespace: str, place: str) -> list[str]:
    """Status, and the peer as the client sees it; or the exit code of a curl that failed."""
    form = "%{http_code} %{remote_ip} %{remote_port}"
    command = ["curl", "-s", "-g", "--max-time", "10", "-o", "/dev/null", "-w", form, f"http://{place}"]
    done = client.run("ip", "netns", "exec", namespace, *command)
    return done.stdout.split() if done.returncode == 0 else [f"curl {done.returncode}"]


@pytest.mark.parametrize(("host", "shown"), [(HOST4, HOST4), (HOST6, f"[{HOST6}]")], ids=["IPv4", "IPv6"])
def test_a_client_in_its_own_namespace_is_judged_and_sees_its_peer(
    host: str, shown: str, namespace: str, web: Workload, orders: Workload, serve: Callable[..., Server], sluice: MakeSluice
) -> None:
    server = serve(orders, answer_http, host)
    policy = http_policy(orders, web, server.port, '[{method: GET, path: "/ok"}]')
    agent = sluice(web.document() + orders.document() + policy, "--gateway", HOST4, "--gateway", HOST6)
    assert curl(web, namespace, f"{shown}:{server.port}/ok") == ["200", host, str(server.port)]
    assert curl(web, namespace, f"{shown}:{server.port}/denied") == ["403", host, str(server.port)]
    allowed, denied = agent.wait_records(2)
    assert (allowed["verdict"], denied["verdict"]) == ("ALLOWED", "DENIED")
    assert {(record["subject"]["workload"], record["peer"]["workload"]) for record in (allowed, denied)} == {
        (web.name, orders.name)
    }


def test_without_a_gateway_such_a_client_is_refused_and_counted(
    namespace: str, web: Workload, orders: Workload, serve: Callable[..., Server], sluice: MakeSluice
) -> None:
    server = serve(orders, answer_http, HOST4)
    agent = sluice(web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]"))
    assert curl(web, namespace, f"{HOST4}:{server.port}/ok") == ["curl 7"]
    assert server.accepted == 0
    assert agent.metric('sluice_connects_total{outcome="no_gateway"}') == 1


def test_a_server_that_is_not_there_costs_a_reset_and_nothing_else(
    namespace: str, web: Workload, orders: Workload, serve: Callable[..., Server], sluice: MakeSluice
) -> None:
    """In the client's namespace nobody can tell who listens at the host's address, so the agent has to find out."""
    server = serve(orders, answer_http, HOST4)
    policy = http_policy(orders, web, server.port, '[{method: GET, path: "/ok"}]')
    agent = sluice(web.document() + orders.document() + policy, "--gateway", HOST4)
    server.close()
    assert curl(web, namespace, f"{HOST4}:{server.port}/ok")[0] in ("curl 7", "curl 52", "curl 56", "502")
    assert agent.metric('sluice_connects_total{outcome="redirected"}') == 1
    eventually(lambda: agent.get("/connections")["total"] == 0, "nothing is left of it")
    assert agent.get("/healthz")["ok"] is True
    assert "Traceback" not in agent.log.read_text()


def test_the_agents_port_is_of_no_use_to_who_was_not_redirected(
    namespace: str, web: Workload, orders: Workload, serve: Callable[..., Server], sluice: MakeSluice
) -> None:
    server = serve(orders, answer_http, HOST4)
    policy = http_policy(orders, web, server.port, '[{method: GET, path: "/ok"}]')
    agent = sluice(web.document() + orders.document() + policy, "--gateway", HOST4)
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    assert agent.process is not None
    line = next(line for line in listening.splitlines() if f"pid={agent.process.pid}," in line and HOST4 in line)
    port = line.split()[3].rpartition(":")[2]
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, "curl", "-s", "--max-time", "10", f"http://{HOST4}:{port}/ok"], capture_output=True
    )
    assert done.returncode in (7, 52, 56), "reset: curl may notice it at the connect, the write or the read"
    assert agent.metric('sluice_limits_total{limit="NOT_REDIRECTED"}') >= 1
    assert agent.records() == []
