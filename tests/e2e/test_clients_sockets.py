"""What applications do with their sockets, besides send and recv, works as it does without Sluice."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Server, Sluice, Workload, http_policy, read_reply
from tests.requirements import require_bpf

BODY = bytes(range(256)) * 4096  # 1 MiB
GET = b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n"


def serve(connection: socket.socket) -> None:
    """The length of a POST's body, else BODY for a GET of /long, else a short reply; goes on until the client's end."""
    buffer = b""
    while data := connection.recv(1 << 20):
        buffer += data
        while b"\r\n\r\n" in buffer:
            head, rest = buffer.split(b"\r\n\r\n", 1)
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            size = int(lengths[0].split(b":")[1]) if lengths else 0
            if len(rest) < size:
                break
            body, buffer = rest[:size], rest[size:]
            answer = BODY if b"/long" in head else b"%d" % len(body)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer))


class Place:
    def __init__(self, web: Workload, port: int) -> None:
        self._web, self._port = web, port

    def connect(self) -> socket.socket:
        return self._web.connect(self._port)


def _place(folder: Path, acceleration: str) -> Iterator[Place]:
    require_bpf()
    with contextlib.ExitStack() as stack:
        web, orders = Workload("web"), Workload("orders")
        stack.callback(web.close)
        stack.callback(orders.close)
        server = Server(orders, serve)
        stack.callback(server.close)
        documents = web.document(acceleration)
        documents += orders.document() + http_policy(orders, web, server.port, '[{path: "/(ok|long)"}]')
        stack.enter_context(Sluice(folder, documents))
        yield Place(web, server.port)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from _place(tmp_path_factory.mktemp("sockets"), "auto")


@pytest.fixture(scope="module")
def unaccelerated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Of a workload that says that it is not for the kernel's map (docs/kernel-path.md, trap 10)."""
    yield from _place(tmp_path_factory.mktemp("unaccelerated"), "off")


def test_splice_from_a_file_and_into_a_pipe(unaccelerated: Place) -> None:
    reader, writer = os.pipe()
    with unaccelerated.connect() as client:
        client.sendall(b"POST /ok HTTP/1.1\r\nhost: orders\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        feeder = threading.Thread(target=_write_all, args=(writer, BODY))
        feeder.start()
        sent = 0
        while sent < len(BODY):
            sent += os.splice(reader, client.fileno(), len(BODY) - sent)
        feeder.join()
        assert read_reply(client)[2] == b"%d" % len(BODY)

        client.sendall(b"GET /long HTTP/1.1\r\nhost: orders\r\n\r\n")
        client.settimeout(None)  # with a timeout the descriptor would not block
        received = b""
        while not received.endswith(BODY):
            moved = os.splice(client.fileno(), writer, 1 << 16)
            assert moved
            while moved:
                piece = os.read(reader, moved)
                received += piece
                moved -= len(piece)
    os.close(reader)
    os.close(writer)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def test_msg_peek_shows_the_same_bytes_twice(place: Place) -> None:
    with place.connect() as client:
        client.sendall(GET)
        peeked = client.recv(17, socket.MSG_PEEK)
        assert peeked == b"HTTP/1.1 200 OK\r\n"[: len(peeked)]
        assert client.recv(len(peeked)) == peeked


def test_msg_waitall_waits_for_all_bytes(unaccelerated: Place) -> None:
    with unaccelerated.connect() as client:
        client.sendall(b"GET /long HTTP/1.1\r\nhost: orders\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY)
        client.settimeout(None)  # on a descriptor that does not block, MSG_WAITALL has no meaning
        assert client.recv(len(head) + len(BODY), socket.MSG_WAITALL) == head + BODY


def test_so_rcvlowat_is_kept(place: Place) -> None:
    with place.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 60_000)
        client.settimeout(None)
        client.sendall(b"GET /long HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert len(client.recv(1 << 20)) >= 60_000


def test_a_client_that_closes_its_half_gets_the_whole_reply(place: Place) -> None:
    with place.connect() as client:
        client.sendall(b"GET /long HTTP/1.1\r\nhost: orders\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert read_reply(client)[2] == BODY
        assert client.recv(1) == b""


def test_a_client_that_resets_harms_nobody_else(place: Place) -> None:
    with place.connect() as other:
        client = place.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /long HTTP/1.1\r\nhost: orders\r\n\r\n")
        client.recv(100)
        client.close()
        other.sendall(GET)
        assert read_reply(other)[0] == 200


def test_a_request_that_comes_byte_by_byte_is_one_call(place: Place) -> None:
    with place.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET:
            client.sendall(bytes([byte]))
        assert read_reply(client)[2] == b"0"


def test_a_client_that_reads_slowly_gets_everything(place: Place) -> None:
    with place.connect() as client:
        client.sendall(b"GET /long HTTP/1.1\r\nhost: orders\r\n\r\n" * 16)
        time.sleep(0.3)  # every buffer on the way fills up
        assert [read_exactly(client) for _ in range(16)] == [BODY] * 16


def read_exactly(client: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    body = bytearray()
    while len(body) < len(BODY):
        body += client.recv(len(BODY) - len(body))
    return bytes(body)
