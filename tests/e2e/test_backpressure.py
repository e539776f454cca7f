"""Whoever does not read stops whoever sends, through the agent as without it, and nothing piles up in between."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.stage import Line, Stage, staged
from tests.e2e.test_bodies import peak_memory
from tests.harness import eventually
from tests.requirements import require_bpf


def _most(buffer: str) -> int:
    """Bytes to which the kernel lets a socket's buffer grow."""
    return int(Path("/proc/sys/net/ipv4", buffer).read_text().split()[2])


# What the buffers of two connections and the agent may hold (bytes).
BUFFERS = 2 * (_most("tcp_wmem") + _most("tcp_rmem")) + 8 * 1024 * 1024
ENDLESS = 10**12  # bytes
PIECE = os.urandom(64 * 1024)
STALLED = 0.4  # seconds without a byte
MEMORY = 16 * 1024  # KiB


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    yield from staged(tmp_path_factory.mktemp("pressure"), {"server": '[{path: "/yes"}]'})


class Flood:
    """Sends pieces for as long as they are taken."""

    def __init__(self, piece: bytes) -> None:
        self._piece = piece
        self.sent = 0
        self.error: OSError | None = None
        self.stopped = False

    def run(self, line: Line) -> None:
        line.sock.settimeout(0.1)
        while not self.stopped and self.error is None:
            try:
                self.sent += line.sock.send(self._piece)
            except TimeoutError:
                continue
            except OSError as error:
                self.error = error

    def stalls(self) -> int:
        """Wait until nothing more is taken; the bytes that were."""
        last, since = -1, 0.0

        def stalled() -> bool:
            nonlocal last, since
            if self.sent != last:
                last, since = self.sent, time.monotonic()
            return self.sent > 0 and time.monotonic() - since > STALLED

        eventually(stalled, "the flood stalls")
        return self.sent


@contextlib.contextmanager
def running(flood: Flood, line: Line) -> Iterator[None]:
    """The flood runs beside the body."""
    thread = threading.Thread(target=flood.run, args=(line,), daemon=True)
    thread.start()
    yield
    flood.stopped = True
    thread.join(30)
    assert not thread.is_alive()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LENGTH = b"content-length: %d\r\n\r\n" % ENDLESS
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("framing", "piece"), [(LENGTH, PIECE), (CHUNKED, chunk(PIECE[:5000]))], ids=["spliced", "copied"])
def test_a_client_that_does_not_read_stops_the_server_and_may_leave(stage: Stage, framing: bytes, piece: bytes) -> None:
    flood = Flood(piece)

    def pour(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.1 200 OK\r\n" + framing)
        flood.run(line)

    before = peak_memory(stage)
    client = stage.client("server", pour).send(b"GET /yes HTTP/1.1\r\nhost: a\r\n\r\n")
    assert flood.stalls() < BUFFERS
    assert peak_memory(stage) - before < MEMORY
    stuck_at = flood.sent
    for _ in range(64):
        client.sock.recv(1 << 18)
    eventually(lambda: flood.sent > stuck_at, "it goes on when the client reads")
    client.reset()
    eventually(lambda: flood.error is not None, "the server is told")
    (record,) = stage.records(1)
    assert (record["status"], record["reason"]) == (200, "client-reset")


@pytest.mark.parametrize(("framing", "piece"), [(LENGTH, PIECE), (CHUNKED, chunk(PIECE[:5000]))], ids=["spliced", "copied"])
def test_a_server_that_does_not_read_stops_the_client(stage: Stage, framing: bytes, piece: bytes) -> None:
    flood = Flood(piece)
    stop: list[Callable[[], object]] = []

    def ignore(line: Line) -> None:
        line.head()
        stop.append(line.reset)
        eventually(lambda: flood.error is not None, "the client has been stopped", 30)

    before = peak_memory(stage)
    client = stage.client("server", ignore).send(b"PUT /yes HTTP/1.1\r\nhost: a\r\n" + framing)
    with client, running(flood, client):
        assert flood.stalls() < BUFFERS
        assert peak_memory(stage) - before < MEMORY
        stop[0]()
        eventually(lambda: flood.error is not None, "the client is told")
    (record,) = stage.records(1)
    assert (record["status"], record["reason"]) == (502, "upstream-reset")


def test_a_client_that_asks_and_never_listens_is_read_no_further(stage: Stage) -> None:
    """Answers of ours are longer than what they answer: they must not fill the agent's memory."""
    request = b"GET /no HTTP/1.1\r\nhost: a\r\n\r\n"
    flood = Flood(request * 1000)
    before = peak_memory(stage)
    client = stage.client("server")
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # fewer answers until nothing more fits
    with running(flood, client):
        assert flood.stalls() < BUFFERS
        assert peak_memory(stage) - before < MEMORY
    client.reset()
    assert stage.untold() > 1000
    assert not stage.seen["server"]
