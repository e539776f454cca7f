"""Producers and consumers that never rest: every byte, its order and its record, by the kernel as by the relay.

The broker here is a small one that checks what reaches it, because a real one does not tell; the real one has its turn in
test_kafka_clients.py and test_kafka_pipelining.py. What every request and reply says follows from its number.
"""

import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Server, Sluice, Workload, eventually, kafka_policy
from tests.requirements import require_bpf

SOAK = os.environ.get("SLUICE_SOAK") == "1"
CALLS = 20_000 if SOAK else 1_500  # of each connection
CONNECTIONS = 6
SEEDS = range(5 if SOAK else 1)
RELOAD_EVERY = 0.7  # seconds
PRODUCE, FETCH = 0, 1
PRODUCE_VERSION, FETCH_VERSION = 7, 4  # neither has tagged fields, nor sessions
TOPIC_DENIED = 29
WINDOWS = (1, 2, 5, 5, 12, 40)  # requests that a connection has under way
SIZES = (0, 10, 1000, 1000, 20_000, 20_000, 200_000)  # of records; now and then there are more than one message has
HUGE = 700_000
# Of the calls that are allowed, so many at least are carried: every denial, every reload, every request in pieces goes to the
# relay with all that are under way, and the widest of the windows is more than the kernel has room for.
KERNEL_SHARE = 0.1


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def framed(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def pattern(number: int, size: int) -> bytes:
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


def produce(number: int, topic: str, size: int) -> bytes:
    head = struct.pack(">hhi", PRODUCE, PRODUCE_VERSION, number) + text("torture") + struct.pack(">hhi", -1, 1, 1000)
    return framed(head + struct.pack(">i", 1) + text(topic) + struct.pack(">iii", 1, 0, size) + pattern(number, size))


def produced(number: int, topic: str, error: int = 0) -> bytes:
    told = -1 if error else number
    partition = struct.pack(">ihqqq", 0, error, told, -1, -1)
    return framed(struct.pack(">ii", number, 1) + text(topic) + struct.pack(">i", 1) + partition + struct.pack(">i", 0))


def fetch(number: int, topic: str, size: int) -> bytes:
    """``size`` is what the broker is to send: it is told as the most bytes of the partition."""
    head = struct.pack(">hhi", FETCH, FETCH_VERSION, number) + text("torture") + struct.pack(">iiiib", -1, 500, 1, size, 0)
    return framed(head + struct.pack(">i", 1) + text(topic) + struct.pack(">iiqi", 1, 0, number, size))


def fetched(number: int, topic: str, size: int) -> bytes:
    partition = struct.pack(">ihqqii", 0, 0, number, number, -1, size) + pattern(number, size)
    return framed(struct.pack(">iii", number, 0, 1) + text(topic) + struct.pack(">i", 1) + partition)


def read_frame(sock: socket.socket) -> bytes | None:
    start = read_exactly(sock, 4)
    return None if start is None else read_exactly(sock, int.from_bytes(start, "big"))


def read_exactly(sock: socket.socket, size: int) -> bytes | None:
    """None at the end of the connection."""
    got = bytearray()
    while len(got) < size:
        data = sock.recv(min(size - len(got), 1 << 18))
        if not data:
            assert not got, "the connection ended inside a frame"
            return None
        got += data
    return bytes(got)


class Broker:
    """Answers requests in their order, and notes what they should not be. ``pieces``: how many replies of a hundred are sent in
    two, where real brokers send no short one so."""

    def __init__(self, pieces: int = 0) -> None:
        self.pieces = pieces
        self.wrong: list[str] = []

    def serve(self, sock: socket.socket) -> None:
        chance = random.Random()
        while (request := read_frame(sock)) is not None:
            key, _, number = struct.unpack_from(">hhi", request)
            if key == PRODUCE:
                topic, size = "orders", len(request) - len(produce(0, "orders", 0)) + 4
                expected, reply = produce(number, topic, size), produced(number, topic)
            else:
                size = struct.unpack_from(">i", request, len(request) - 4)[0]
                expected, reply = fetch(number, "orders", size), fetched(number, "orders", size)
            if expected != framed(request):
                self.wrong.append(f"request {number} of {len(request)} bytes: {request[:80]!r}")
                return
            if chance.random() < self.pieces / 100:
                cut = chance.randrange(1, len(reply))
                sock.sendall(reply[:cut])
                time.sleep(chance.choice((0, 0.0005)))
                reply = reply[cut:]
            sock.sendall(reply)


@dataclass(frozen=True)
class Asked:
    """A request with its reply, and what its record must say."""

    request: bytes
    reply: bytes
    method: str
    denied: bool


def requests(seed: object) -> Iterator[Asked]:
    chance = random.Random(str(seed))
    for number in range(CALLS):
        size = HUGE if chance.random() < 0.005 else chance.choice(SIZES)
        kind = chance.random()
        if kind < 0.02:
            yield Asked(produce(number, "secrets", size), produced(number, "secrets", TOPIC_DENIED), "Produce", True)
        elif kind < 0.7:
            yield Asked(produce(number, "orders", size), produced(number, "orders"), "Produce", False)
        else:
            yield Asked(fetch(number, "orders", size), fetched(number, "orders", size), "Fetch", False)


class Client:
    """One connection with a window of requests."""

    def __init__(self, sock: socket.socket, seed: object, window: int) -> None:
        self.sock, self.seed, self.window = sock, seed, window
        self.error: BaseException | None = None
        self._room = threading.Semaphore(window)
        self._threads = [threading.Thread(target=self._guard, args=(act,), daemon=True) for act in (self._send, self._read)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, patience: float) -> None:
        for thread in self._threads:
            thread.join(patience)
            assert not thread.is_alive(), f"{self.seed} is stuck ({self.error})"
        assert self.error is None, (self.seed, self.error)

    def _guard(self, act) -> None:  # type: ignore[no-untyped-def]
        try:
            act()
        except BaseException as error:
            self.error = self.error or error
            self.sock.close()

    def _send(self) -> None:
        chance = random.Random(f"sender {self.seed}")
        for asked in requests(self.seed):
            assert self._room.acquire(timeout=60), "no reply for a minute"
            data = asked.request
            if chance.random() < 0.01:
                cut = chance.randrange(1, len(data))
                self.sock.sendall(data[:cut])
                time.sleep(chance.choice((0, 0.001)))
                data = data[cut:]
            self.sock.sendall(data)

    def _read(self) -> None:
        for number, asked in enumerate(requests(self.seed)):
            reply = read_exactly(self.sock, len(asked.reply))
            if asked.denied:  # our own words may say more than a test wants to know
                assert reply is not None
                assert reply[4:8] == number.to_bytes(4, "big")
                assert reply[-4 - 30 : -4] == asked.reply[-4 - 30 : -4]
            else:
                assert reply == asked.reply, f"reply {number}"
            self._room.release()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.timeout(1200 if SOAK else 120)
def test_every_byte_arrives_in_order_and_every_call_has_its_record(tmp_path: Path, seed: int) -> None:
    require_bpf()
    run = f"{seed} {time.time_ns() if SOAK else 0}"
    print("seed", run)
    apps, kafka = Workload("apps"), Workload("kafka")
    broker = Broker(pieces=3)
    server = Server(kafka, broker.serve)
    try:
        with Sluice(tmp_path / "agent", documents(apps, kafka, server.port)) as agent:
            clients = [
                Client(apps.connect(server.port, timeout=60), f"{run} {number}", WINDOWS[number % len(WINDOWS)])
                for number in range(CONNECTIONS)
            ]
            for client in clients:
                client.start()
            stop = threading.Event()
            unrest = threading.Thread(target=reload, args=(agent, stop, documents(apps, kafka, server.port)), daemon=True)
            unrest.start()
            try:
                for client in clients:
                    client.join(600 if SOAK else 90)
            finally:
                stop.set()
                unrest.join(PATIENCE)
            for client in clients:
                client.sock.close()
            eventually(lambda: agent.get("/connections")["total"] == 0, "every connection ends")
            records = agent.wait_records(CALLS * CONNECTIONS)
            assert "fault" not in agent.log.read_text(), agent.log.read_text()
    finally:
        server.close()
        apps.close()
        kafka.close()
    assert broker.wrong == []
    expected = Counter(
        (
            asked.method,
            "DENIED" if asked.denied else "ALLOWED",
            f"kafka:{TOPIC_DENIED if asked.denied else 0}",
            len(asked.request),
        )
        + ((0,) if asked.denied else (len(asked.reply),))
        for client in clients
        for asked in requests(client.seed)
    )
    found = Counter(
        (record["method"], record["verdict"], record["status"], record["bytesRequest"])
        + ((0,) if record["verdict"] == "DENIED" else (record["bytesReply"],))
        for record in records
    )
    assert found == expected
    for connection in {record["id"].partition(".")[0] for record in records}:
        numbers = sorted(int(record["id"].partition(".")[2]) for record in records if record["id"].startswith(f"{connection}."))
        assert numbers == list(range(CALLS))
    ways = Counter(record["via"] for record in records if record["verdict"] == "ALLOWED")
    print(ways)
    assert (ways["kernel"] > KERNEL_SHARE * ways.total()) is (Sluice.datapath == "kernel")


def reload(agent: Sluice, stop: threading.Event, text: str) -> None:
    while not stop.wait(RELOAD_EVERY):
        agent.reload(text)


def documents(apps: Workload, kafka: Workload, port: int) -> str:
    return kafka_policy(apps, kafka, port, [{"role": "produce", "topic": "orders"}, {"role": "consume", "topic": "orders"}])
