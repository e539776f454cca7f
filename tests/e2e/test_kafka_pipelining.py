"""Allowed and denied requests mixed in flight, at a real broker: replies come in the order of requests, each the right one.

A client in the test writes them by the hundred without waiting, cut at random; the errors of each reply are read, and each
request must have its record, in the same order.
"""

import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.kafka_stage import RealBroker, real_broker
from tests.harness import PATIENCE, Sluice, eventually
from tests.kafka import raw

SOAK = os.environ.get("SLUICE_SOAK") == "1"
SEEDS = [int(seed) for seed in os.environ.get("SLUICE_KAFKA_SEEDS", "").split()] or list(range(5 if SOAK else 2))
REQUESTS = 10_000 if SOAK else 500  # of each seed
CONNECTIONS = 2  # at the same time, with the requests shared out
DEPTHS = (1, 3, 20, 100, 400)  # in flight; more than OPEN_CALLS_MAX would only wait
BURST = 400 if SOAK else 40  # requests for which a depth holds
DEEP = 100 if SOAK else 10  # so many at least must have been in flight at once

ORDERS, BILLS, SECRETS, ABSENT = "orders", "bills", "secrets", "secrets-absent"
BILLING, FOREIGN = "billing", "foreign"
ALLOWED, DENIED, PARTIAL = "ALLOWED", "DENIED", "PARTIAL"
TOPIC, GROUP = 29, 30  # codes of denials
PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT = 0, 1, 2, 3, 8
VERSIONS = {PRODUCE: (3, 12), FETCH: (4, 17), LIST_OFFSETS: (1, 8), METADATA: (1, 13), OFFSET_COMMIT: (2, 9)}


@dataclass(frozen=True)
class Asked:
    """One request: its bytes, what each topic must be told (None: there is no reply), and what its record must say."""

    frame: bytes
    api_key: int
    version: int
    told: raw.Errors | None
    method: str
    verdict: str


class Asker:
    """Random requests, numbered from 0, about topics of which some are denied."""

    def __init__(self, seed: object, topic_ids: dict[str, bytes]) -> None:
        self.random = random.Random(str(seed))
        self._ids = topic_ids
        self._made = 0

    def next(self) -> Asked:
        make = self.random.choice((self._produce, self._produce, self._fetch, self._list_offsets, self._metadata, self._commit))
        if not self._made:  # the ids of topics are learned from its reply
            make = self._all_topics
        number, self._made = self._made, self._made + 1
        return make(number)

    def _version(self, api_key: int) -> int:
        low, high = VERSIONS[api_key]
        return self.random.randint(low, high)

    def _topics(self) -> list[str]:
        return self.random.choice(([ORDERS], [BILLS], [SECRETS], [ORDERS], [SECRETS], [ORDERS, SECRETS], [SECRETS, ABSENT]))

    @staticmethod
    def _verdict(topics: Sequence[str]) -> tuple[str, raw.Errors]:
        codes: raw.Errors = {topic: 0 if topic in (ORDERS, BILLS) else TOPIC for topic in topics}
        verdict = ALLOWED if not any(codes.values()) else PARTIAL if not all(codes.values()) else DENIED
        return verdict, codes

    def _produce(self, number: int) -> Asked:
        version, acks = self._version(PRODUCE), self.random.choice((-1, -1, 1, 0))
        verdict, codes = self._verdict(topics := self._topics())
        value = self.random.randbytes(self.random.choice((1, 100, 100, 3000)))
        frame = raw.produce(number, version, topics, acks, value)
        return Asked(frame, PRODUCE, version, codes if acks else None, "Produce", verdict)

    def _fetch(self, number: int) -> Asked:
        version = self._version(FETCH)
        topics = self._topics()
        if version >= 13:  # by their ids
            topics = [topic for topic in topics if topic in self._ids]
        verdict, codes = self._verdict(topics)
        names: list[raw.Topic] = [self._ids[topic] if version >= 13 else topic for topic in topics]
        told = dict(zip(names, codes.values(), strict=True))
        return Asked(raw.fetch(number, version, names), FETCH, version, told, "Fetch", verdict)

    def _list_offsets(self, number: int) -> Asked:
        version = self._version(LIST_OFFSETS)
        verdict, codes = self._verdict(topics := self._topics())
        return Asked(raw.list_offsets(number, version, topics), LIST_OFFSETS, version, codes, "ListOffsets", verdict)

    def _metadata(self, number: int) -> Asked:
        if self.random.random() < 0.3:
            return self._all_topics(number)
        version = self._version(METADATA)
        verdict, codes = self._verdict(topics := self._topics())
        # The brokers are told also to who may see none of the topics.
        verdict = PARTIAL if verdict == DENIED else verdict
        return Asked(raw.metadata(number, version, topics), METADATA, version, codes, "Metadata", verdict)

    def _all_topics(self, number: int) -> Asked:
        version = max(self._version(METADATA), 10)
        return Asked(raw.metadata(number, version, None), METADATA, version, {ORDERS: 0, BILLS: 0}, "Metadata", ALLOWED)

    def _commit(self, number: int) -> Asked:
        version, group = self._version(OFFSET_COMMIT), self.random.choice((BILLING, BILLING, FOREIGN))
        verdict, codes = self._verdict(topics := self._topics())
        if group == FOREIGN:
            verdict, codes = DENIED, dict.fromkeys(topics, GROUP)
        frame = raw.offset_commit(number, version, group, topics)
        return Asked(frame, OFFSET_COMMIT, version, codes, "OffsetCommit", verdict)


class Conversation:
    """One connection with its requests: a thread writes, the calling one reads."""

    def __init__(self, connection: socket.socket, seed: object, count: int, topic_ids: dict[str, bytes]) -> None:
        self._connection = connection
        self.source = "{}:{}".format(*connection.getsockname()[:2])
        self._random = random.Random(f"pieces {seed}")
        asker = Asker(seed, topic_ids)
        self.asked = [asker.next() for _ in range(count)]
        self.deepest = 0
        self._answered = 0  # requests that have had their reply, or have none and were followed by one that had
        self._moved = threading.Condition()
        self._wrong: list[BaseException] = []

    def run(self) -> None:
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        self._read()
        writer.join(2 * PATIENCE)  # the last requests may be those that have no reply
        assert not self._wrong, self._wrong
        self._connection.shutdown(socket.SHUT_WR)
        assert self._connection.recv(1) == b"", "a reply to nothing"

    def _write(self) -> None:
        depths = self._random.sample(DEPTHS, len(DEPTHS))
        try:
            depth, waiting = 1, b""
            for number, asked in enumerate(self.asked):
                if number and number % BURST == 0:
                    depth = depths[number // BURST % len(depths)]
                waiting += asked.frame
                full = number + 1 == len(self.asked) or number - self._answered + 1 >= depth
                if full or self._random.random() < 0.5:  # else together with the next
                    waiting = self._send(waiting, full)
                    self._wait_until_open(number, depth)
        except BaseException as error:
            self._wrong.append(error)

    def _send(self, data: bytes, whole: bool) -> bytes:
        """Send in pieces, mostly not to the end of a request; what is left is sent with the next."""
        end = len(data) if whole or self._random.random() < 0.5 else self._random.randrange(len(data))
        at = 0
        while at < end:
            n = self._random.choice((1, 7, 100, 5000, 100_000))
            self._connection.sendall(data[at : min(at + n, end)])
            at += n
            if self._random.random() < 0.02:
                time.sleep(self._random.random() * 0.01)
        return data[end:]

    def _wait_until_open(self, number: int, depth: int) -> None:
        """Until fewer than ``depth`` are in flight, those without a reply not counted."""
        with self._moved:
            self.deepest = max(self.deepest, number - self._answered + 1)
            open_ = lambda: sum(one.told is not None for one in self.asked[self._answered : number + 1]) < depth  # noqa: E731
            if not self._moved.wait_for(open_, PATIENCE):
                raise AssertionError(f"no reply to {self._answered} while {number - self._answered} are in flight")

    def _read(self) -> None:
        stream = self._connection.makefile("rb")
        for number, asked in enumerate(self.asked):
            if asked.told is None:
                continue
            try:
                frame = raw.frame(stream.read)
            except TimeoutError:
                raise AssertionError(f"no reply to {number}, a {asked.method} {asked.version}: {self._wrong}") from None
            assert len(frame) > 8, f"the connection was closed before reply {number}: {self._wrong}"
            assert int.from_bytes(frame[4:8], "big") == number
            assert raw.errors(frame, asked.api_key, asked.version) == asked.told, (number, asked.method, asked.version)
            with self._moved:
                self._answered = number + 1
                self._moved.notify()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBroker]:
    rules = [{"topic": topic, "group": BILLING} for topic in (ORDERS, BILLS)]
    with real_broker(tmp_path_factory.mktemp("kafka"), [ORDERS, BILLS, SECRETS], rules) as real:
        real.administrator.commit(BILLING, ORDERS)
        yield real


@pytest.fixture(scope="module")
def agent(real: RealBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sluice]:
    with Sluice(tmp_path_factory.mktemp("agent"), real.documents) as agent:
        yield agent
        assert agent.stop() == 0
        assert "fault" not in agent.log.read_text()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_replies_come_in_the_order_of_requests_whoever_gives_them(real: RealBroker, agent: Sluice, seed: int) -> None:
    before = len(agent.records())
    topic_ids = real.topic_ids([ORDERS, BILLS, SECRETS])
    conversations = [
        Conversation(real.apps.connect(real.port), f"{seed} {number}", REQUESTS // CONNECTIONS, topic_ids)
        for number in range(CONNECTIONS)
    ]
    wrong: list[BaseException] = []
    began = time.monotonic()
    threads = [threading.Thread(target=_guarded, args=(one.run, wrong), daemon=True) for one in conversations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    if wrong:
        raise wrong[0]
    eventually(lambda: len(agent.records()) >= before + REQUESTS, "a record of each request")
    records = agent.records()[before:]
    assert len(records) == REQUESTS
    for one in conversations:
        assert told(records, one.source) == [(asked.method, asked.verdict) for asked in one.asked]
    kinds = Counter((asked.method, asked.verdict) for one in conversations for asked in one.asked)
    print(f"{REQUESTS} requests in {took:.1f} s, {max(one.deepest for one in conversations)} in flight: {dict(kinds)}")
    assert max(one.deepest for one in conversations) > DEEP


def _guarded(run: Callable[[], None], wrong: list[BaseException]) -> None:
    try:
        run()
    except BaseException as error:
        wrong.append(error)


def told(records: list[dict[str, Any]], source: str) -> list[tuple[str, str]]:
    """Method and verdict of each call of one connection, in the order of the calls."""
    own = sorted((int(record["id"].rpartition(".")[2]), record) for record in records if record["source"] == source)
    return [(record["method"], record["verdict"]) for _, record in own]
