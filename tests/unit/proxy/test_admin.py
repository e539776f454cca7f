"""The admin listener over real sockets: what it serves, to whom, and what it refuses."""

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy import admin
from proxy.admin import MAX_CONNECTIONS, Admin, AdminError, Check, PolicyStatus
from proxy.metrics import Metrics, Snapshot

Reply = tuple[int, dict[str, str], bytes]


class Agent:
    """A ``Status`` with facts that tests set."""

    def __init__(self) -> None:
        self.checks = {"policy": Check(ok=True), "audit": Check(ok=True, detail="0 of 8192 queued")}
        self.open_connections = 2
        self.hang = False
        self.asked = 0  # for metrics

    async def metrics(self) -> Snapshot:
        self.asked += 1
        metrics = Metrics()
        metrics.policy_generation = 4
        return metrics.snapshot()

    async def health(self) -> Mapping[str, Check]:
        if self.hang:
            await asyncio.Event().wait()
        return self.checks

    async def policy(self) -> PolicyStatus:
        return PolicyStatus(
            generation=4,
            files=["/etc/sluice/orders.yaml"],
            documents=["CiliumNetworkPolicy/orders-api"],
            loaded_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            last_reload_error="orders.yaml:3:1 unknown key",
        )

    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]:
        return self.open_connections, [{"id": f"c{number}"} for number in range(self.open_connections)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "admin.sock")


def serve(agent: Agent, address: str, scenario: Callable[[Admin], Awaitable[None]]) -> None:
    async def run() -> None:
        listener = Admin(agent, address)
        listener.listen()
        listener.start()
        try:
            await scenario(listener)
        finally:
            await listener.stop()

    asyncio.run(asyncio.wait_for(run(), 20))


async def get(address: str, target: str, host: str | None = "localhost", method: str = "GET") -> Reply:
    """One request, written by hand so that its Host is what the test says."""
    if address.isdecimal():
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address))
    else:
        reader, writer = await asyncio.open_unix_connection(address)
    host_line = f"Host: {host}\r\n" if host is not None else ""
    writer.write(f"{method} {target} HTTP/1.1\r\n{host_line}Connection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
    return int(status_line.split()[1]), headers, body


def loaded(reply: Reply) -> Any:
    return msgspec.json.decode(reply[2])


def test_metrics_are_prometheus_text(path: str) -> None:
    async def scenario(_: Admin) -> None:
        status, headers, body = await get(path, "/metrics")
        assert status == 200
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b"\nsluice_policy_generation 4.0\n" in body

    serve(Agent(), path, scenario)


def test_health_is_200_while_every_check_holds(path: str) -> None:
    async def scenario(_: Admin) -> None:
        reply = await get(path, "/healthz")
        assert reply[0] == 200
        assert loaded(reply) == {
            "ok": True,
            "checks": {"policy": {"ok": True}, "audit": {"ok": True, "detail": "0 of 8192 queued"}},
        }

    serve(Agent(), path, scenario)


def test_health_is_503_as_soon_as_one_check_fails_and_says_which(path: str) -> None:
    agent = Agent()
    agent.checks["audit"] = Check(ok=False, detail="No space left on device")

    async def scenario(_: Admin) -> None:
        reply = await get(path, "/healthz")
        assert reply[0] == 503
        assert loaded(reply)["checks"]["audit"] == {"ok": False, "detail": "No space left on device"}

    serve(agent, path, scenario)


def test_an_agent_that_does_not_answer_is_not_healthy(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "STATUS_TIMEOUT_SECONDS", 0.05)
    agent = Agent()
    agent.hang = True

    async def scenario(_: Admin) -> None:
        assert (await get(path, "/healthz"))[0] == 503

    serve(agent, path, scenario)


def test_policy_tells_what_is_enforced_and_why_newer_files_are_not(path: str) -> None:
    async def scenario(_: Admin) -> None:
        assert loaded(await get(path, "/policy")) == {
            "generation": 4,
            "files": ["/etc/sluice/orders.yaml"],
            "documents": ["CiliumNetworkPolicy/orders-api"],
            "loadedAt": "2026-01-02T03:04:05Z",
            "lastReloadError": "orders.yaml:3:1 unknown key",
        }

    serve(Agent(), path, scenario)


def test_connections_are_listed_up_to_a_bound_and_counted_all(path: str) -> None:
    agent = Agent()
    agent.open_connections = MAX_CONNECTIONS + 5

    async def scenario(_: Admin) -> None:
        reply = loaded(await get(path, "/connections"))
        assert reply["total"] == MAX_CONNECTIONS + 5
        assert len(reply["connections"]) == MAX_CONNECTIONS
        assert reply["connections"][0] == {"id": "c0"}

    serve(agent, path, scenario)


def test_nothing_can_be_changed_and_nothing_else_is_served(path: str) -> None:
    async def scenario(_: Admin) -> None:
        assert (await get(path, "/policy", method="POST"))[0] == 405
        assert (await get(path, "/"))[0] == 404

    serve(Agent(), path, scenario)


def test_only_the_owner_may_open_the_socket_and_it_is_gone_afterwards(path: str) -> None:
    async def scenario(_: Admin) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    serve(Agent(), path, scenario)
    assert not os.path.exists(path)


def test_the_socket_of_a_dead_agent_is_replaced(path: str) -> None:
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()

    async def scenario(_: Admin) -> None:
        assert (await get(path, "/healthz"))[0] == 200

    serve(Agent(), path, scenario)


def test_the_socket_of_a_live_agent_is_refused_and_left_alone(path: str) -> None:
    async def scenario(_: Admin) -> None:
        with pytest.raises(AdminError, match="another agent answers here"):
            Admin(Agent(), path).listen()
        assert (await get(path, "/healthz"))[0] == 200

    serve(Agent(), path, scenario)


def test_a_live_agent_that_is_too_busy_to_accept_is_refused_too(path: str) -> None:
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as client:
        live.bind(path)
        live.listen(0)
        client.connect(path)
        with pytest.raises(AdminError, match="another agent answers here"):
            Admin(Agent(), path).listen()


def test_a_file_that_is_no_socket_is_refused_and_left_alone(path: str) -> None:
    os.mkdir(os.path.dirname(path))
    Path(path).write_text("precious")
    with pytest.raises(AdminError, match="not a socket"):
        Admin(Agent(), path).listen()
    assert Path(path).read_text() == "precious"


def test_an_agent_that_ends_leaves_the_socket_of_its_successor(path: str) -> None:
    async def scenario(first: Admin) -> None:
        os.unlink(path)
        second = Admin(Agent(), path)
        second.listen()
        second.start()
        await first.stop()
        assert (await get(path, "/healthz"))[0] == 200
        await second.stop()

    serve(Agent(), path, scenario)


def test_a_port_is_opened_on_the_loopback_address_only() -> None:
    async def scenario(listener: Admin) -> None:
        assert (await get(listener.address, "/healthz"))[0] == 200
        with pytest.raises(OSError, match="111"):
            await asyncio.open_connection("127.0.0.2", int(listener.address))

    serve(Agent(), "0", scenario)


def test_a_port_in_use_is_a_clear_error() -> None:
    async def scenario(listener: Admin) -> None:
        with pytest.raises(AdminError, match=f"admin listener at {listener.address}: .*in use"):
            Admin(Agent(), listener.address).listen()

    serve(Agent(), "0", scenario)


def test_a_port_out_of_range_is_a_clear_error() -> None:
    with pytest.raises(AdminError, match="admin listener at 70000"):
        Admin(Agent(), "70000").listen()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9090", "[::1]", "[::1]:9090", "LocalHost:1"])
def test_a_loopback_name_in_host_is_served_on_tcp(host: str) -> None:
    async def scenario(listener: Admin) -> None:
        assert (await get(listener.address, "/healthz", host))[0] == 200

    serve(Agent(), "0", scenario)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.", "", "::1", "[::1]x:1"]
)
def test_dns_rebinding_is_refused_on_tcp(host: str) -> None:
    """A web page's script can reach a loopback port under its own name (DNS rebinding); the Host header tells."""

    async def scenario(listener: Admin) -> None:
        for target in ("/policy", "/connections", "/metrics", "/healthz"):
            status, _, body = await get(listener.address, target, host)
            assert status in (400, 403)
            assert b"orders" not in body

    serve(Agent(), "0", scenario)


def test_a_request_without_host_is_refused_on_tcp() -> None:
    async def scenario(listener: Admin) -> None:
        assert (await get(listener.address, "/policy", host=None))[0] in (400, 403)

    serve(Agent(), "0", scenario)


def test_a_port_does_not_tell_who_talks_to_whom_nor_what_documents_say() -> None:
    """Every user of the host can connect to it."""
    agent = Agent()
    agent.checks["policy"] = Check(ok=False, detail="orders.yaml:3:1 unknown key")

    async def scenario(listener: Admin) -> None:
        for target in ("/policy", "/connections"):
            status, _, body = await get(listener.address, target)
            assert (status, b"orders" in body, b"c0" in body) == (403, False, False)
        reply = await get(listener.address, "/healthz")
        assert (reply[0], loaded(reply)["checks"]["policy"]) == (503, {"ok": False})

    serve(agent, "0", scenario)


def test_a_port_has_the_socket_beside_it(path: str) -> None:
    async def run() -> None:
        listener = Admin(Agent(), path, "0")
        listener.listen()
        listener.start()
        at, port = listener.address.split(" and ")
        assert (at, (await get(path, "/connections"))[0], (await get(port, "/connections"))[0]) == (path, 200, 403)
        await listener.stop()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_port_that_cannot_be_had_leaves_no_socket_behind(path: str) -> None:
    with pytest.raises(AdminError, match="70000"):
        Admin(Agent(), path, "70000").listen()
    assert not os.path.exists(path)


def test_a_flood_at_a_port_asks_the_agent_once_a_second_and_others_are_answered() -> None:
    agent = Agent()

    async def scenario(listener: Admin) -> None:
        began = asyncio.get_running_loop().time()
        replies = await asyncio.gather(*(get(listener.address, "/metrics") for _ in range(30)))
        assert {status for status, _, _ in replies} == {200}
        assert agent.asked <= 1 + asyncio.get_running_loop().time() - began

    serve(agent, "0", scenario)


def test_clients_that_say_nothing_do_not_keep_others_out() -> None:
    async def scenario(listener: Admin) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", int(listener.address)) for _ in range(admin.MAX_OPEN + 10)]
        for _, writer in silent:
            writer.write(b"GET /healthz HTT")
        assert (await get(listener.address, "/healthz"))[0] == 200
        assert listener.cut_off > 10
        for _, writer in silent:
            writer.close()

    serve(Agent(), "0", scenario)


def test_a_client_has_so_long_to_say_what_it_wants_and_no_longer(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "CLIENT_TIMEOUT_SECONDS", 0.05)

    async def scenario(_: Admin) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        assert await reader.read() == b""
        writer.close()

    serve(Agent(), path, scenario)


@pytest.mark.parametrize(
    "head", [b"\r\n\r\n", b"GET /healthz\r\n\r\n", b"GET /".ljust(admin.MAX_HEAD, b"x"), b"\x16\x03\x01\r\n\r\n"]
)
def test_what_is_no_request_is_answered_400(path: str, head: bytes) -> None:
    async def scenario(_: Admin) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(head)
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        writer.close()

    serve(Agent(), path, scenario)


def test_head_is_answered_without_a_body(path: str) -> None:
    async def scenario(_: Admin) -> None:
        status, headers, body = await get(path, "/healthz?verbose", method="HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["content-length"]) > 0

    serve(Agent(), path, scenario)


def test_an_agent_whose_event_loop_stands_still_is_not_healthy(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener does not share it."""
    monkeypatch.setattr(admin, "STATUS_TIMEOUT_SECONDS", 0.05)

    async def scenario(_: Admin) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(path)
            client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 503 ")  # without giving the event loop a turn

    serve(Agent(), path, scenario)


def test_a_fault_of_the_agent_is_answered_and_does_not_end_the_listener(path: str) -> None:
    agent = Agent()

    async def scenario(_: Admin) -> None:
        del agent.checks
        assert (await get(path, "/healthz"))[0] == 500
        assert (await get(path, "/policy"))[0] == 200

    serve(agent, path, scenario)
