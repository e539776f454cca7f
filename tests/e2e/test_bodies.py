"""Long bodies arrive whole in both directions, spliced and copied, and the agent's memory does not grow with them."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stage import Line, Stage, staged
from tests.harness import eventually
from tests.requirements import require_bpf

SIZE = (1024 if os.environ.get("SLUICE_SOAK") == "1" else 64) * 1024 * 1024  # bytes
PIECE = 64 * 1024  # below proxy.flow.CARRY_MIN: chunks of this size are copied
MEMORY = 16 * 1024  # KiB that the agent may grow by: its buffers, not the body
NOISE = os.urandom(1024 * 1024)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    yield from staged(tmp_path_factory.mktemp("bodies"), {"server": "[{}]"})


def peak_memory(stage: Stage) -> int:
    """KiB of resident memory that the agent has had at most."""
    assert stage.agent.process is not None
    status = Path(f"/proc/{stage.agent.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def send_body(line: Line, chunked: bool) -> str:
    """Send SIZE bytes; their digest."""
    digest = hashlib.sha256()
    for at in range(0, SIZE, PIECE):
        piece = NOISE[at % len(NOISE) :][:PIECE]
        digest.update(piece)
        line.sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        line.send(b"0\r\n\r\n")
    return digest.hexdigest()


def receive_body(line: Line, chunked: bool) -> str:
    digest, left = hashlib.sha256(), SIZE
    while left:
        size = int(line.until(b"\r\n"), 16) if chunked else min(left, len(NOISE))
        digest.update(line.exactly(size))
        left -= size
        if chunked:
            line.until(b"\r\n")
    if chunked:
        assert line.until(b"\r\n\r\n") == b"0\r\n\r\n"
    return digest.hexdigest()


def framing(chunked: bool) -> bytes:
    return b"transfer-encoding: chunked\r\n\r\n" if chunked else b"content-length: %d\r\n\r\n" % SIZE


@pytest.mark.parametrize("chunked", [False, True], ids=["spliced", "copied"])
@pytest.mark.parametrize("upload", [False, True], ids=["download", "upload"])
def test_a_long_body_arrives_whole_and_memory_stays_bounded(stage: Stage, upload: bool, chunked: bool) -> None:
    digests: list[str] = []

    def give(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.1 200 OK\r\n" + framing(chunked))
        digests.append(send_body(line, chunked))

    def take(line: Line) -> None:
        line.head()
        digests.append(receive_body(line, chunked))
        line.send(b"HTTP/1.1 204 No Content\r\n\r\n").rest()

    with stage.client("server", lambda line: None) as client:  # what a first call needs is not the body's
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").rest()
    stage.records(1)
    before = peak_memory(stage)
    with stage.client("server", take if upload else give) as client:
        client.seen = stage.seen["server"] = _Nothing()
        if upload:
            client.send(b"PUT / HTTP/1.1\r\nhost: a\r\n" + framing(chunked))
            digests.append(send_body(client, chunked))
            assert client.head().startswith(b"HTTP/1.1 204 ")
        else:
            client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").head()
            digests.append(receive_body(client, chunked))

    (record,) = stage.records(1)
    assert digests[0] == digests[1]
    assert record["bytesRequest" if upload else "bytesReply"] >= SIZE
    assert peak_memory(stage) - before < MEMORY


def test_two_long_bodies_cross_inside_a_tunnel(stage: Stage) -> None:
    switch = b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    sizes = 8 * len(NOISE)

    def cross(line: Line) -> None:
        line.head()
        line.send(switch)
        sending = threading.Thread(target=lambda: [line.send(NOISE) for _ in range(8)])
        sending.start()
        assert line.rest() == NOISE * 8  # the client half-closes
        sending.join()

    with stage.client("server", cross) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert client.head() == switch
        sending = threading.Thread(target=lambda: [client.send(NOISE) for _ in range(8)])
        sending.start()
        received = client.exactly(sizes)
        sending.join()
        assert received == NOISE * 8
        client.end()
        assert client.rest() == b""
    (record,) = stage.records(1)
    assert record["bytesReply"] == len(switch) + sizes


def test_the_last_bytes_of_an_upload_reach_a_server_that_has_said_all_it_will_say(stage: Stage) -> None:
    """Inside a tunnel either side may end first; the other one's bytes are still carried to the last."""
    switch = b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    got: list[int] = []
    ended = threading.Event()

    def listen_slowly(line: Line) -> None:
        line.head()
        line.send(switch).end()
        ended.wait(10)
        got.append(len(line.rest()))

    with stage.client("server", listen_slowly) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert client.rest() == switch
        sent = 0
        client.sock.settimeout(0.3)
        try:
            for _ in range(64):
                sent += client.sock.send(NOISE)
        except TimeoutError:
            pass  # every buffer on the way is full
        client.end()
        ended.set()
        eventually(lambda: got, "the server has read to the end")
    (record,) = stage.records(1)
    assert got == [sent]
    assert record["bytesRequest"] > sent


class _Nothing(bytearray):
    """Keeps none of a long body."""

    def __iadd__(self, other: object) -> "_Nothing":
        return self
