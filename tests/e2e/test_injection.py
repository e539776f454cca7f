"""What the relay has for applications whose sockets are in the kernel's map goes into their queues, past TCP's flow control.

So the agent keeps the limits itself, and whoever goes away in the middle is met as over TCP.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.relay import PIPE_SIZE, QUEUE_CALM, QUEUE_MOST
from tests.bpf.kernel_rig import queued
from tests.harness import Server, Sluice, Workload, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]
MIB = 1 << 20
PIECE = bytes(range(256)) * 64
CHUNK = b"%x\r\n%s\r\n" % (len(PIECE), PIECE)
CROWD, BUDGET = 1000, 64  # connections, and MiB for them

BODIES = {
    "spliced": (b"content-length: 1000000000\r\n\r\n", PIECE),
    "copied": (b"transfer-encoding: chunked\r\n\r\n", CHUNK),
}


def agent(folder: Path, web: Workload, orders: Workload, server: Server, datapath: str, *options: str) -> Sluice:
    documents = web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]")
    return Sluice(folder, documents, "--datapath", datapath, *options)


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        if not data:
            break
        head += data
    return head


def settled(measure: Callable[[], int]) -> int:
    """A number that grows, once it does not any more."""
    seen = [0]

    def stands_still() -> bool:
        seen.append(measure())
        return len(seen) > 50 and len(set(seen[-50:])) == 1

    eventually(stands_still, "nothing more comes", 60)
    return seen[-1]


def pour(framing: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    """A server whose replies have no end."""

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while read_head(connection).startswith(b"GET /small"):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + framing)
            connection.settimeout(None)
            while True:
                connection.sendall(piece)

    return answer


@pytest.mark.parametrize("how", BODIES)
def test_a_client_that_never_reads_holds_no_more_than_the_limit(
    how: str, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    framing, piece = BODIES[how]
    server = serve(orders, pour(framing, piece))
    with agent(tmp_path, web, orders, server, "kernel") as sluice, web.connect(server.port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        eventually(lambda: queued(client) > QUEUE_MOST // 2, "it is in the queue, past TCP", 60)
        assert settled(lambda: queued(client)) <= QUEUE_MOST
        read_head(client)
        got = bytearray()
        while len(got) < 16 * MIB:
            got += client.recv(MIB)
        assert bytes(got) == (piece * (len(got) // len(piece) + 1))[: len(got)]
        client.close()
        (record,) = sluice.wait_records(1)
        assert record["status"] == 200


@pytest.mark.parametrize("how", BODIES)
def test_a_client_that_never_reads_is_idle_in_the_end(
    how: str, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    """That the agent looks again and again whether it reads is nothing that moves."""
    server = serve(orders, pour(*BODIES[how]))
    with (
        agent(tmp_path, web, orders, server, "kernel", "--idle-timeout", "1") as sluice,
        web.connect(server.port) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        (record,) = sluice.wait_records(1)
        assert (record["status"], record["reason"]) == (200, "client-timeout")


@pytest.mark.parametrize("how", BODIES)
def test_a_server_that_never_reads_holds_no_more_than_the_limit(
    how: str, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    framing, piece = BODIES[how]
    accepted: list[socket.socket] = []
    over = threading.Event()

    def ignore(connection: socket.socket) -> None:
        accepted.append(connection)
        over.wait()

    server = serve(orders, ignore)
    with agent(tmp_path, web, orders, server, "kernel"), web.connect(server.port) as client:
        client.sendall(b"PUT / HTTP/1.1\r\nhost: a\r\n" + framing)
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                client.sendall(piece)
        eventually(lambda: queued(accepted[0]) > QUEUE_MOST // 2, "it is in the queue, past TCP", 60)
        assert settled(lambda: queued(accepted[0])) <= QUEUE_MOST
        over.set()


def test_a_thousand_clients_that_never_read_do_not_pass_the_budget(
    web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve(orders, pour(*BODIES["copied"]))
    with contextlib.ExitStack() as stack:
        sluice = stack.enter_context(agent(tmp_path, web, orders, server, "kernel", "--memory-budget", str(BUDGET)))
        clients = []
        for _ in range(CROWD):
            client = stack.enter_context(web.connect(server.port))
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            clients.append(client)
        held = settled(lambda: sum(map(queued, clients)))
        assert all(map(queued, clients)), "everybody gets something"
        assert held <= BUDGET * MIB + CROWD * QUEUE_CALM, held / MIB
        for _ in range(3):  # small calls go on, whatever others hold
            with web.connect(server.port) as client:
                for _ in range(20):
                    client.sendall(b"GET /small HTTP/1.1\r\nhost: a\r\n\r\n")
                    assert read_reply(client)[2] == b"ok"
        assert sum(record["bytesReply"] < 100 for record in sluice.wait_records(60)) == 60


def ask_and_leave(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    client.recv(100)
    client.close()


def ask_and_end(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    client.recv(100)
    client.close()


def ask_and_reset(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    client.recv(100)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@pytest.mark.parametrize("how", BODIES)
@pytest.mark.parametrize("leave", [ask_and_leave, ask_and_end, ask_and_reset])
def test_a_client_that_leaves_in_the_middle_has_the_record_that_it_has_over_tcp(
    how: str, leave: Callable[[socket.socket], None], web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve(orders, pour(*BODIES[how]))
    told = []
    for datapath in ("relay", "kernel"):
        folder = tmp_path / datapath
        folder.mkdir()
        with agent(folder, web, orders, server, datapath) as sluice:
            leave(web.connect(server.port))
            (record,) = sluice.wait_records(1)
            told.append((record["verdict"], record["status"], record["reason"]))
    assert told[0] == told[1]


def early(status: bytes, close: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """A server that answers before the body and goes away with unread bytes."""

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.recv(1000)
        if status:
            connection.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        close(connection)

    return answer


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.parametrize("how", BODIES)
@pytest.mark.parametrize("status", [b"", b"413 Too Large"], ids=["silent", "answers"])
@pytest.mark.parametrize("close", [socket.socket.close, reset], ids=["close", "reset"])
def test_a_server_that_leaves_in_the_middle_has_the_record_that_it_has_over_tcp(
    how: str, status: bytes, close: Callable[[socket.socket], None], web: Workload, orders: Workload, serve: MakeServer,
    tmp_path: Path
) -> None:  # fmt: skip
    framing, piece = BODIES[how]
    server = serve(orders, early(status, close))
    told = []
    for datapath in ("relay", "kernel"):
        folder = tmp_path / datapath
        folder.mkdir()
        with agent(folder, web, orders, server, datapath) as sluice, web.connect(server.port) as client:
            client.sendall(b"PUT / HTTP/1.1\r\nhost: a\r\n" + framing)
            client.settimeout(10)
            with contextlib.suppress(OSError):
                while True:
                    client.sendall(piece)
            (record,) = sluice.wait_records(1)
            told.append((record["verdict"], record["status"], record["reason"]))
    assert told[0] == told[1]


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["at once", "slowly"])
def test_a_long_reply_arrives_whole_however_it_is_read(
    pause: float, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    body = b"".join(number.to_bytes(4, "big") for number in range(6 * MIB))
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.settimeout(None)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        connection.sendall(body)

    server = serve(orders, answer)
    with agent(tmp_path, web, orders, server, "kernel") as sluice, web.connect(server.port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        read_head(client)
        got = bytearray()
        while data := client.recv(MIB):
            got += data
            over.wait(pause)
        assert bytes(got) == body
        (record,) = sluice.wait_records(1)
        assert record["bytesReply"] > len(body)


def test_the_pipe_and_the_queue_are_all_that_waits() -> None:
    """What `docs/kernel-path.md` says."""
    assert (QUEUE_MOST, QUEUE_CALM, PIPE_SIZE) == (4 * MIB, 64 * 1024, MIB)
