"""What real servers read otherwise than the proxy: behind a reply that came early, and where unknown protocols may pass.

The servers are those that are installed; Python's is everywhere.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from parsers.detect import Watch, detect
from tests.clients.beginnings import beginnings
from tests.harness import PATIENCE, Server, Sluice, Workload, eventually
from tests.requirements import require_bpf
from tests.servers import NAMES, RealServer, is_installed

SOAK = os.environ.get("SLUICE_SOAK") == "1"
SMUGGLED = b"POST /admin HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
EXPECT = b"expect: 100-continue\r\n"


def post(path: str, body: bytes, chunked: bool = False, expect: bool = False) -> tuple[bytes, bytes]:
    """A request's head and its body."""
    framing = b"transfer-encoding: chunked\r\n" if chunked else b"content-length: %d\r\n" % len(body)
    head = b"POST %s HTTP/1.1\r\nhost: a\r\n" % path.encode() + framing + (EXPECT if expect else b"") + b"\r\n"
    # The first chunk's line and the rest of the body behind it, so that a server which reads no body begins with a request.
    return head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body


def real_policy(web: Workload, orders: Workload, port: int, option: str) -> str:
    return f"""apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: real}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(orders.labels)}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {json.dumps(web.labels)}}}]
    toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules: {{http: [{{path: /early}}, {{path: /echo}}]}}
      {option}
"""


class House:
    """One agent and a client's workload in front of one real server."""

    def __init__(self, stack: ExitStack, folder: Path, name: str, option: str = "opaque: deny") -> None:
        self.web, self.orders = Workload("web"), Workload("orders")
        stack.callback(self.web.close)
        stack.callback(self.orders.close)
        self.server = RealServer(name, folder, self.orders)
        stack.callback(self.server.close)
        policy = real_policy(self.web, self.orders, self.server.port, option)
        self.agent = stack.enter_context(Sluice(folder, self.web.document() + self.orders.document() + policy))
        self.name = name
        self._told = 0

    def connect(self) -> socket.socket:
        return self.web.connect(self.server.port)

    def records(self) -> list[dict[str, object]]:
        """Those since the last call, once no connection is open."""
        eventually(lambda: self.agent.metric("sluice_connections") == 0, "no connection is open")
        eventually(lambda: self.agent.metric("sluice_audit_queue") == 0, "every record is written")
        fresh = self.agent.records()[self._told :]
        self._told += len(fresh)
        return fresh


@pytest.fixture(scope="module", params=NAMES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    require_bpf()
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    with ExitStack() as stack:
        yield House(stack, tmp_path_factory.mktemp("real"), request.param)


def until(sock: socket.socket, end: bytes) -> bytes:
    """What comes up to ``end``, or to the end of the connection."""
    got = b""
    while end not in got:
        piece = sock.recv(65536)
        if not piece:
            break
        got += piece
    return got


def rest(sock: socket.socket) -> bytes:
    got = b""
    while piece := sock.recv(65536):
        got += piece
    return got


def send(client: socket.socket, data: bytes) -> None:
    """Send and end; the other side may have ended before."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.sendall(data)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)


def check_early(house: House, answer: bytes) -> None:
    """The server has refused what it was asked, has never heard of what came behind, and each has its record."""
    assert b"HTTP/1.1 401 " in answer
    assert b"EXECUTED" not in answer
    early, *others = house.records()
    assert (early["verdict"], early["path"], early["status"]) == ("ALLOWED", "/early", 401)
    if house.name == "python":
        assert (early["reason"], others) == ("early-reply", [])
    # Where the server has read the body, the connection stays, and what comes next is judged.
    assert [(record["verdict"], record["path"], record["status"]) for record in others] in ([], [("DENIED", "/admin", 403)])
    assert [line for line in house.server.executed if "admin" in line] == []


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("expect", [False, True], ids=["plain", "expect"])
@pytest.mark.parametrize("whole", [False, True], ids=["head", "whole"])
def test_what_a_client_sends_behind_an_early_reply_is_never_served(
    house: House, expect: bool, chunked: bool, whole: bool
) -> None:
    """The client goes on when it has the reply's head, or all of the reply. Some servers say 100, or read the body first."""
    head, body = post("/early", SMUGGLED, chunked, expect)
    with house.connect() as client:
        client.sendall(head)
        client.settimeout(0.3)
        answer = b""
        with contextlib.suppress(TimeoutError):
            answer = until(client, b"\r\n\r\nno" if whole else b"\r\n\r\n")
        client.settimeout(PATIENCE)
        send(client, body + SMUGGLED)
        answer += rest(client)
    check_early(house, answer)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_with_expect_waits_for_the_servers_answer_also_if_the_client_does_not(house: House, chunked: bool) -> None:
    head, body = post("/early", SMUGGLED, chunked, expect=True)
    with house.connect() as client:
        send(client, head + body)
        answer = rest(client)
    check_early(house, answer)


@pytest.mark.parametrize("expect", [False, True], ids=["plain", "expect"])
def test_a_body_that_is_read_goes_through_and_the_connection_stays(house: House, expect: bool) -> None:
    if house.name == "nginx":
        pytest.skip("its answers are all early here")
    head, body = post("/echo", b"x" * 1000, expect=expect)
    with house.connect() as client:
        for _ in range(2):
            client.sendall(head)
            if expect:
                assert until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
            client.sendall(body)
            assert b"EXECUTED" in until(client, b"EXECUTED")
    assert [(record["path"], record["status"], record["reason"]) for record in house.records()] == [
        ("/echo", 200, "rule-matched")
    ] * 2


def test_bodies_that_no_server_needs_to_read_can_be_refused(tmp_path: Path) -> None:
    """A server that reads no body of a GET executes it, also if it comes together with the head: that cannot be foreseen."""
    require_bpf()
    head, body = post("/early", SMUGGLED)
    request = head.replace(b"POST", b"GET", 1) + body
    with ExitStack() as stack:
        house = House(stack, tmp_path, "python", "bodilessMethods: refuse")
        with house.connect() as client:
            send(client, request)
            assert rest(client).startswith(b"HTTP/1.1 403 ")
        assert [(record["verdict"], record["reason"]) for record in house.records()] == [("DENIED", "body-refused")]
        assert house.server.executed == []


def test_pythons_own_server_executes_it_if_nobody_is_in_between(tmp_path: Path) -> None:
    """What these tests are about."""
    server = RealServer("python", tmp_path)
    head, body = post("/early", SMUGGLED, expect=True)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head)
        assert until(client, b"\r\n\r\nno").startswith(b"HTTP/1.1 401 ")
        client.sendall(body)
        assert b"EXECUTED" in until(client, b"EXECUTED")
    server.close()
    assert server.executed == ["POST /admin"]


# Beginnings of connections.


def is_executed(port: int, data: bytes, sock: socket.socket | None = None) -> bool:
    """Whether a server says so, within a short time."""
    answer = b""
    try:
        with sock or socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(0.3)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while b"EXECUTED" not in answer and (piece := connection.recv(65536)):
                answer += piece
    except OSError:
        pass
    return b"EXECUTED" in answer


def passes(data: bytes) -> bool:
    """Whether all of it would pass as an unknown protocol."""
    return detect(data, True) == "unknown" and Watch().read(data) is None


@pytest.mark.parametrize("name", NAMES)
def test_no_beginning_that_a_server_executes_passes_as_unknown(name: str, tmp_path: Path) -> None:
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    passing = {about: data for about, data in beginnings().items() if passes(data)}
    server = RealServer(name, tmp_path)
    with ThreadPoolExecutor(32) as threads:
        executed = list(threads.map(lambda data: is_executed(server.port, data), passing.values()))
    ours = is_executed(server.port, b"GET /admin HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    server.close()
    assert ours
    assert len(passing) > 200
    assert [about for about, yes in zip(passing, executed, strict=True) if yes] == []


def test_nothing_of_the_sort_is_executed_where_unknown_protocols_may_pass(tmp_path: Path) -> None:
    """What Python's server executes, sent by a client whose policy allows other paths, and protocols that nobody knows."""
    require_bpf()
    known = beginnings()
    direct = RealServer("python", tmp_path)
    with ThreadPoolExecutor(32) as threads:
        executed = list(threads.map(lambda data: is_executed(direct.port, data), known.values()))
    direct.close()
    odd = [data for data, yes in zip(known.values(), executed, strict=True) if yes]
    assert len(odd) > 150
    odd = odd[:: 1 if SOAK else 3]
    with ExitStack() as stack:
        house = House(stack, tmp_path, "python", "opaque: allow")
        for data in odd:
            assert not is_executed(0, data, house.connect()), data[:100]
        assert len(house.records()) == len(odd)
        assert house.server.executed == []


def test_a_client_that_waits_for_the_server_to_begin_gets_no_request_through(tmp_path: Path) -> None:
    """The server says something first, as an SSH server would; what the client says then is looked at as ever."""
    require_bpf()
    requests = [b"GET /admin HTTP/1.1\r\nhost: a\r\n\r\n", b"\xa0GET\x1c/admin\x1cHTTP/1.1\r\n\r\n"]
    with ExitStack() as stack:
        web, orders = Workload("web"), Workload("orders")
        stack.callback(web.close)
        stack.callback(orders.close)
        got: list[bytes] = []

        def greet(connection: socket.socket) -> None:
            connection.sendall(b"220 hello\r\n")
            while piece := connection.recv(65536):
                got.append(piece)

        server = Server(orders, greet)
        stack.callback(server.close)
        policy = real_policy(web, orders, server.port, "opaque: allow")
        agent = stack.enter_context(Sluice(tmp_path, web.document() + orders.document() + policy))
        clients = [stack.enter_context(web.connect(server.port)) for _ in range(3)]
        assert [until(client, b"\r\n") for client in clients] == [b"220 hello\r\n"] * 3
        for client, request in zip(clients, requests, strict=False):
            client.sendall(request)
            with contextlib.suppress(ConnectionResetError):
                assert rest(client) == b""
        assert [(record["protocol"], record["reason"]) for record in agent.wait_records(2)] == [("tcp", "policed-protocol")] * 2
        assert not b"".join(got).strip(b"\xa0GET")
        clients[-1].sendall(b"EHLO a\r\n")
        eventually(lambda: b"".join(got).endswith(b"EHLO a\r\n"), "other protocols pass")
