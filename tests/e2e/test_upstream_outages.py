"""Servers that are away, silent, or gone in the middle: what the client sees, and what the record says."""

import fcntl
import json
import os
import socket
import termios
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.stage import Line, Stage, staged
from tests.harness import PATIENCE, eventually, free_port
from tests.requirements import require_bpf

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
IDLE = 2.0  # seconds; short, so that silence ends soon


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    yield from staged(tmp_path_factory.mktemp("upstream"), {"server": "[{}]"}, "--idle-timeout", str(IDLE))


def outcome(stage: Stage) -> tuple[object, str]:
    (record,) = stage.records(1)
    assert record["verdict"] == "ALLOWED"
    return record.get("status"), record["reason"]


def everything_is_acknowledged(sock: socket.socket) -> bool:
    return fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4) == b"\0" * 4


def test_a_port_where_nobody_listens_is_closed_and_a_server_that_goes_down_after_the_connect_is_a_502(stage: Stage) -> None:
    caller, port = stage.workload("caller"), free_port()
    stage.agent.reload(
        stage.documents
        + caller.document()
        + f"""apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: caller}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(caller.labels)}}}
  egress:
  - toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules: {{http: [{{}}]}}
"""
    )
    with pytest.raises(ConnectionRefusedError):  # as without an agent: nobody has asked anything of anybody yet
        caller.connect(port)
    with socket.create_server(("127.0.0.1", port)):
        connection = caller.connect(port)
    with Line(connection) as client:
        assert client.send(GET).reply()[0] == 502
    assert outcome(stage) == (502, "upstream-unreachable")


def test_a_server_that_accepts_and_closes_is_a_502(stage: Stage) -> None:
    with stage.client("server", lambda line: None) as client:
        assert client.send(GET).rest().startswith(b"HTTP/1.1 502 ")
    assert outcome(stage) == (502, "upstream-reset")


def test_a_server_that_accepts_and_resets_is_a_502(stage: Stage) -> None:
    with stage.client("server", Line.reset) as client:
        assert client.send(GET).rest().startswith(b"HTTP/1.1 502 ")
    status, reason = outcome(stage)
    assert status == 502
    assert reason in ("upstream-reset", "upstream-unreachable")  # the reset may overtake the news of the connection


@pytest.mark.parametrize("size", [1000, 10_000_000], ids=["copied", "spliced"])
def test_a_server_that_resets_inside_its_reply_cuts_it_for_the_client_too(stage: Stage, size: int) -> None:
    def half(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size // 2))
        eventually(lambda: everything_is_acknowledged(line.sock), "the agent has it")
        line.reset()

    with stage.client("server", half) as client:
        assert len(client.send(GET).rest()) < size
    assert outcome(stage) == (200, "upstream-reset")


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["copied", "spliced"])
def test_a_reply_until_the_close_that_is_cut_by_a_reset_does_not_look_complete(stage: Stage, size: int) -> None:
    def half(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(size))
        eventually(lambda: everything_is_acknowledged(line.sock), "the agent has it")
        line.reset()

    with stage.client("server", half) as client:
        client.send(GET).rest()
        assert client.was_reset
    assert outcome(stage) == (200, "upstream-reset")


def test_a_reply_that_came_before_a_reset_is_delivered_whole(stage: Stage) -> None:
    """A server that closes with unread bytes resets. What it had said before must not be lost behind the error."""
    body, gone = os.urandom(400_000), threading.Event()

    def answer_without_reading(line: Line) -> None:
        line.sock.recv(1)
        line.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        eventually(lambda: everything_is_acknowledged(line.sock), "the agent has it")
        line.sock.close()
        gone.set()

    with stage.client("server", answer_without_reading) as client:
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello")
        assert gone.wait(PATIENCE)
        assert client.head().startswith(b"HTTP/1.1 200 ")
        assert client.exactly(len(body)) == body
    assert outcome(stage)[0] == 200


def test_a_server_that_never_answers_is_a_504(stage: Stage) -> None:
    with stage.client("server", Line.rest) as client:
        assert client.send(GET).reply()[0] == 504
    assert outcome(stage) == (504, "upstream-timeout")


def test_a_client_that_never_sends_its_body_is_a_408(stage: Stage) -> None:
    with stage.client("server", Line.rest) as client:
        client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhe")
        assert client.reply()[0] == 408
    assert outcome(stage) == (408, "client-timeout")


def test_an_idle_connection_is_closed_in_order_and_needs_no_record(stage: Stage) -> None:
    with stage.client("server") as client:
        assert client.send(GET).reply()[0] == 200
        assert client.rest() == b""
        assert not client.was_reset
    assert outcome(stage) == (200, "rule-matched")


@pytest.mark.parametrize("reads", [1, 3_000_000], ids=["at-once", "midway"])
def test_an_early_413_reaches_a_client_that_is_still_uploading(stage: Stage, reads: int) -> None:
    """RFC 9112 section 9.6. The server closes with unread bytes, so its reset follows the reply."""
    size = 64 * 1024 * 1024

    def refuse(line: Line) -> None:
        line.exactly(reads)
        line.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbig\n")

    with stage.client("server", refuse) as client:
        client.sock.setblocking(False)
        pieces = [b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size, *[bytes(65536)] * (size // 65536)]

        def upload_and_look() -> bytes:
            try:
                while pieces:
                    sent = client.sock.send(pieces[0])
                    pieces[0] = pieces[0][sent:]
                    if not pieces[0]:
                        del pieces[0]
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                pieces.clear()
            try:
                return client.sock.recv(65536)
            except BlockingIOError:
                return b""

        answer = eventually(upload_and_look, "an answer")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert outcome(stage)[0] == 413


class TestBlackHole:
    """A server whose queue of new connections is full: the kernel drops further SYNs, as a firewall would."""

    @pytest.fixture
    def hole(self, stage: Stage) -> Iterator[None]:
        listener = stage.listeners["server"]
        listener.close()
        with stage.servers["server"].inside():
            deaf = socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            deaf.bind(("127.0.0.1", listener.port))
            deaf.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        server = stage.servers["server"]
        for sock in waiting:
            sock.setblocking(False)
            with server.inside():  # who is no client of the policy would be refused
                sock.connect_ex(("127.0.0.1", listener.port))
        yield
        for sock in (*waiting, deaf):
            sock.close()
        stage.reopen("server")

    def test_it_is_a_504_and_every_pipelined_call_has_its_record(self, stage: Stage, hole: None) -> None:
        with stage.client("server") as client:
            client.send(GET + GET)
            assert client.rest().startswith(b"HTTP/1.1 504 ")
        first, second = stage.records(2)
        assert (first["status"], first["reason"]) == (504, "upstream-timeout")
        assert (second["status"], second["reason"]) == ("unanswered", "upstream-timeout")

    def test_a_client_that_leaves_meanwhile_is_recorded(self, stage: Stage, hole: None) -> None:
        client = stage.client("server").send(GET)
        client.reset()
        assert outcome(stage) == ("reset", "client-reset")
