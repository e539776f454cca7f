"""Hostile clients and brokers on a Kafka port: each is cut off as documented, with one record, and a neighbour feels nothing.

The neighbour is a real client at a real broker, through the same agent: all of its calls succeed while all of this goes on.
What a broker must never say is said by a server that the test plays.
"""

import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from parsers.kafka.connection import OPEN_CALLS_MAX, SUPPORTED
from parsers.kafka.frame import FRAME_MAX
from parsers.kafka.metadata import PIECE_MAX
from parsers.kafka.request import MAX_ELEMENTS
from policies.kafka import APIS
from policies.kafka_acls import BEYOND_NAMES
from proxy.flow import HEAD_TIMEOUT
from tests.e2e.kafka_stage import RealBroker, real_broker
from tests.e2e.stage import Line, Stage, staged
from tests.e2e.test_backpressure import Flood
from tests.e2e.test_kernel_torture import pss
from tests.harness import PATIENCE, eventually
from tests.kafka import raw
from tests.property.kafka_words import Writer

SOAK = os.environ.get("SLUICE_SOAK") == "1"
NEIGHBOUR = Path(__file__).parent.parent / "clients" / "kafka_neighbour.py"
ORDERS, SECRETS = "orders", "secrets"
ROUNDS = 60 if SOAK else 12  # of all cases, for memory
MEMORY = 8 * 1024  # KiB that the agent may have grown by after them
UNREAD_MEMORY = 16 * 1024  # KiB, while a client does not read


class Neighbour:
    """See tests/clients/kafka_neighbour.py."""

    def __init__(self, real: RealBroker, folder: Path) -> None:
        self._said = folder / "neighbour"
        with open(self._said, "wb") as said:
            self._process: subprocess.Popen[bytes] = real.apps.start(
                sys.executable, str(NEIGHBOUR), real.kafka.address(), ORDERS, "billing", stdout=said, stderr=said
            )
        eventually(lambda: self.rounds() > 0, "the neighbour is at work", 30)

    def rounds(self) -> int:
        text = self._said.read_text()
        assert "fault" not in text, text[-1000:]
        assert self._process.poll() is None, text[-1000:]
        return text.count("\n")

    def works_on(self) -> None:
        """Another two rounds, of which one at least has begun by now."""
        before = self.rounds()
        eventually(lambda: self.rounds() >= before + 2, "the neighbour works on")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE) == 0, self._said.read_text()[-1000:]


class KafkaStage:
    """The stage with its fake broker, and the neighbour, whose records are left out."""

    def __init__(self, stage: Stage, real: RealBroker, neighbour: Neighbour) -> None:
        self.stage, self.real, self.neighbour = stage, real, neighbour
        self._at = 0  # bytes of the audit file that have been read
        self._fresh: list[dict[str, Any]] = []

    def client(self, part: Callable[[Line], object] = Line.rest) -> Line:
        return self.stage.client("fake", part)

    @property
    def seen(self) -> bytes:
        return bytes(self.stage.seen["fake"])

    @property
    def accepted(self) -> int:
        return self.stage.listeners["fake"].accepted

    @property
    def memory(self) -> int:
        """Of the agent, in KiB."""
        return pss(self.stage.agent)

    def _read(self) -> int:
        """Read what has been written since; the neighbour writes most of it."""
        with open(self.stage.agent.audit, "rb") as audit:
            audit.seek(self._at)
            lines, _, _ = audit.read().rpartition(b"\n")
        if lines:
            self._at += len(lines) + 1
            self._fresh += [json.loads(line) for line in lines.split(b"\n") if b'"clientId":"neighbour"' not in line]
        return len(self._fresh)

    def records(self, count: int) -> list[dict[str, Any]]:
        """Those since the last call, which must be so many."""
        eventually(lambda: self._read() >= count, f"{count} records")
        fresh, self._fresh = self._fresh, []
        assert len(fresh) == count, [(record["id"], record["reason"], record.get("method")) for record in fresh]
        return fresh

    def untold(self) -> int:
        """How many records there are that nobody asked for, once no more come; they are forgotten."""
        port = f":{self.stage.listeners['fake'].port}"

        def quiet() -> bool:
            told = self.stage.agent.get("/connections")["connections"]
            return not any(connection["destination"].endswith(port) for connection in told)

        eventually(quiet, "no connection to the fake broker is open")
        time.sleep(0.12)  # twice the writer's flush interval
        count, self._fresh = self._read(), []
        return count


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaStage]:
    folder = tmp_path_factory.mktemp("kafka-hostile")
    with real_broker(
        folder, [ORDERS], [{"topic": ORDERS, "group": "billing"}, {"apiKey": "Metadata", "topic": ORDERS}]
    ) as real:
        made = staged(folder / "agent", {"fake": f"[{{topic: {ORDERS}}}]"}, protocol="kafka", documents=real.documents)
        inner = next(made)
        neighbour = Neighbour(real, folder)
        try:
            kafka = KafkaStage(inner, real, neighbour)
            yield kafka
            assert kafka.untold() == 0
            neighbour.stop()
            assert inner.agent.stop() == 0
            assert "fault" not in inner.agent.log.read_text()
        finally:
            inner.close()


def sized(body: bytes, size: int | None = None) -> bytes:
    return struct.pack(">i", len(body) if size is None else size) + body


def header(api_key: int, version: int, client_id: bytes = b"\xff\xff") -> bytes:
    return struct.pack(">hhi", api_key, version, 7) + client_id


GOOD = raw.produce(7, 9, [ORDERS])
SECRET = raw.produce(7, 9, [SECRETS])
WORDY = raw.produce(7, 9, [f"{SECRETS}-{number:0200}" for number in range(100)])  # its denial names them all


def many_partitions() -> bytes:
    """A Produce request to a topic that is denied and one that is not, which is to more partitions than anybody counts."""
    partition = struct.pack(">ii", 0, -1)
    topics = [
        struct.pack(f">h{len(name)}si", len(name), name.encode(), n) for name, n in ((SECRETS, 1), (ORDERS, MAX_ELEMENTS))
    ]
    body = struct.pack(">hii", -1, 1, 2) + topics[0] + partition + topics[1] + partition * MAX_ELEMENTS
    return sized(header(0, 2) + body)


MANY_PARTITIONS = many_partitions()


@dataclass(frozen=True)
class Hostile:
    """``end``: the client ends its side behind it. What policy has denied before, keeps that reason. ``in_part``: policy would
    have let a part of it through, so the broker is dialled, and gets nothing."""

    name: str
    data: bytes
    reason: str
    limit: str | None = None
    end: bool = False
    in_part: bool = False


REQUESTS = [
    Hostile("http", b"GET / HTTP/1.1\r\nhost: kafka\r\n\r\n", "http-not-kafka"),
    Hostile("tls-hello", bytes.fromhex("16030100c8010000c40303") + bytes(194), "tls-not-opened"),
    Hostile("a-byte-and-the-end", b"\0", "truncated-request", end=True),
    Hostile("truncated-in-the-size", GOOD[:3], "truncated-request", end=True),
    Hostile("truncated-in-the-header", GOOD[:12], "truncated-request", end=True),
    Hostile("truncated-before-it-can-be-judged", GOOD[:20], "truncated-request", end=True),
    Hostile("truncated-in-what-is-to-be-refused", SECRET[:-1], "no-rule-matched", end=True),
    Hostile("size-2^31-1", sized(GOOD[4:], 2**31 - 1), "frame-too-large", "FRAME_MAX"),
    Hostile("size-one-too-large", sized(GOOD[4:], FRAME_MAX + 1), "frame-too-large", "FRAME_MAX"),
    Hostile("size-negative", sized(GOOD[4:], -1), "frame-too-short"),
    Hostile("size-of-nothing", sized(b"", 0) + GOOD, "frame-too-short"),
    Hostile("client-id-negative", sized(header(3, 1, b"\xff\xfe") + bytes(4)), "bad-client-id"),
    Hostile("client-id-beyond-the-frame", sized(header(3, 1, b"\x7f\xff") + bytes(4)), "bad-client-id"),
    Hostile("varint-of-six-bytes", sized(header(3, 12) + b"\0" + b"\x80" * 5 + b"\x01" + bytes(8)), "bad-varint"),
    Hostile("varint-of-more-than-31-bits", sized(header(3, 12) + b"\0" + b"\xff" * 4 + b"\x7f" + bytes(8)), "bad-varint"),
    Hostile("a-name-of-negative-length", sized(header(3, 1) + struct.pack(">ih", 1, -3)), "negative-length"),
    Hostile("a-name-beyond-the-frame", sized(header(3, 1) + struct.pack(">ih", 1, 999) + bytes(9)), "beyond-frame"),
    Hostile("an-array-of-negative-length", sized(header(3, 1) + struct.pack(">i", -2)), "negative-length"),
    Hostile("an-array-beyond-the-frame", sized(header(3, 1) + struct.pack(">i", 2**31 - 1)), "beyond-frame"),
    Hostile("a-name-that-is-no-utf-8", sized(header(3, 1) + struct.pack(">ih", 1, 2) + b"\xff\xfe"), "bad-utf8"),
    Hostile("an-unknown-api", sized(header(999, 0) + bytes(20)), "unsupported-api"),
    Hostile("a-controllers-api", sized(header(4, 1) + bytes(20)), "unsupported-api"),
    Hostile("an-unknown-version", sized(header(0, 99) + bytes(20)), "unsupported-version"),
    Hostile("a-negative-version", sized(header(0, -1) + bytes(20)), "unsupported-version"),
    Hostile("trailing-bytes", sized(SECRET[4:] + b"\0"), "no-rule-matched"),
    Hostile(
        "a-long-request-to-a-denied-topic",
        sized(raw.produce(7, 9, [SECRETS, SECRETS])[4:-60], FRAME_MAX),
        "no-rule-matched",
        "HELD_REQUEST_MAX",
    ),
    Hostile("too-much-of-what-is-allowed-in-part", MANY_PARTITIONS, "too-many-elements", "MAX_ELEMENTS", in_part=True),
    Hostile("half-of-what-is-allowed-in-part", MANY_PARTITIONS[:1000], "truncated-request", end=True, in_part=True),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in REQUESTS])
def test_a_hostile_request_ends_its_connection_with_a_record(stage: KafkaStage, case: Hostile) -> None:
    accepted = stage.accepted
    with stage.client() as client:
        client.send(case.data)
        if case.end:
            client.end()
        assert client.rest() == b""
    (record,) = stage.records(1)
    assert (record["verdict"], record["reason"], record.get("limit")) == ("DENIED", case.reason, case.limit)
    assert stage.seen == b""
    assert stage.accepted - accepted in ((0, 1) if case.in_part else (0,))
    stage.neighbour.works_on()


@pytest.mark.parametrize("api", sorted(BEYOND_NAMES))
def test_who_may_use_a_topic_may_not_ask_for_what_kafka_authorises_on_the_cluster(stage: KafkaStage, api: str) -> None:
    """The port's only rule is about a topic. The broker, which here enforces nothing itself, never hears of it."""
    key = APIS[api]
    accepted = stage.accepted
    frame = Writer(f"e2e {api}").frame(key, SUPPORTED[key][1])
    with stage.client() as client:
        client.send(frame)
        assert len(raw.frame(client.exactly)) > 8
        assert client.end().rest() == b""
    (record,) = stage.records(1)
    assert (record["method"], record["verdict"], record["reason"]) == (api, "DENIED", "no-rule-matched")
    assert (stage.seen, stage.accepted) == (b"", accepted)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_never_reach_the_broker(stage: KafkaStage, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(20):
        with stage.client() as client:
            client.send(chance.randbytes(chance.choice((8, 20, 100, 5000)))).end()
            assert client.rest() == b""
        (record,) = stage.records(1)
        assert record["verdict"] == "DENIED"
        assert stage.seen == b""
    stage.neighbour.works_on()


def test_who_says_nothing_leaves_no_trace(stage: KafkaStage) -> None:
    with stage.client() as client:
        client.end()
        assert client.rest() == b""
    stage.client().reset()
    stage.neighbour.works_on()
    assert stage.untold() == 0


@pytest.mark.skipif(not SOAK, reason="takes HEAD_TIMEOUT; unit tests cover it: SLUICE_SOAK=1")
@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\0", "client-timeout"), (GOOD[:20], "client-timeout"), (SECRET[:-1], "no-rule-matched")],
    ids=["one byte", "half a head", "all but the last byte"],
)
def test_an_unfinished_request_has_its_time(stage: KafkaStage, data: bytes, reason: str) -> None:
    with stage.client() as client:
        client.sock.settimeout(HEAD_TIMEOUT + PATIENCE)
        assert client.send(data).rest() == b""
    (record,) = stage.records(1)
    assert (record["verdict"], record["reason"]) == ("DENIED", reason)
    stage.neighbour.works_on()


def test_bytes_behind_an_allowed_request_are_the_brokers_to_judge(stage: KafkaStage) -> None:
    """It was judged by its beginning, and nothing behind that can name a topic."""
    data = sized(raw.metadata(7, 9, [ORDERS])[4:] + b"\0") + raw.metadata(8, 9, [ORDERS])

    def told(connection: socket.socket) -> bytes:
        with Line(connection) as line:
            line.send(data)
            return raw.frame(line.exactly) + raw.frame(line.exactly)

    direct = told(socket.create_connection(("127.0.0.1", stage.real.port), PATIENCE))
    assert told(stage.real.apps.connect(stage.real.port)) == direct
    assert [(record["method"], record["verdict"]) for record in stage.records(2)] == [("Metadata", "ALLOWED")] * 2
    stage.neighbour.works_on()


def test_an_unknown_version_of_api_versions_is_answered_in_version_0(stage: KafkaStage) -> None:
    """KIP-511: a newer client asks first of all."""
    with stage.client() as client:
        client.send(sized(header(18, 99) + bytes(20)) + SECRET)
        assert struct.unpack_from(">ih", raw.frame(client.exactly), 4) == (7, 35)
        assert raw.errors(raw.frame(client.exactly), 0, 9) == {SECRETS: 29}
    assert [(record["method"], record["status"]) for record in stage.records(2)] == [
        ("ApiVersions", "kafka:35"),
        ("Produce", "kafka:29"),
    ]


# Brokers


@dataclass(frozen=True)
class BadBroker:
    """What it says to ``asked``. ``good`` comes before it and is sound; ``ends``: the broker ends the connection behind it."""

    name: str
    says: bytes
    reason: str
    limit: str | None = None
    asked: bytes = GOOD
    ends: bool = False
    good: bytes = b""


RIGHT = raw.produced(7, 9, [ORDERS])
ASKED_OF_ALL = raw.metadata(7, 9, None)
# Correlation id, no tagged fields, throttle time, no brokers, no cluster id, controller; next is the number of topics.
METADATA_START = struct.pack(">i", 7) + bytes(5) + b"\1\0" + bytes(4)

REPLIES = [
    BadBroker("another-correlation-id", raw.produced(8, 9, [ORDERS]), "reply-out-of-order"),
    BadBroker("text", b"HTTP/1.1 400 Bad Request\r\n\r\n", "reply-out-of-order"),
    BadBroker("cut-off", RIGHT[:-3], "reply-truncated", ends=True),
    BadBroker("cut-off-in-its-size", RIGHT[:2], "reply-truncated", ends=True),
    BadBroker("no-reply", b"", "upstream-reset", ends=True),
    BadBroker("unasked", RIGHT, "reply-unasked", good=RIGHT),
    BadBroker("of-negative-size", struct.pack(">ii", -1, 7) + bytes(20), "reply-frame-too-short"),
    BadBroker("too-short", struct.pack(">ii", 3, 7) + bytes(20), "reply-frame-too-short"),
    BadBroker("tls", bytes.fromhex("15030300020250"), "reply-tls-not-opened"),
    BadBroker(
        "bytes-behind-its-end", sized(METADATA_START + b"\1" + bytes(5) + b"!"), "reply-trailing-bytes", asked=ASKED_OF_ALL
    ),
    BadBroker("shorter-than-its-fields", sized(METADATA_START + b"\1" + bytes(4)), "reply-truncated", asked=ASKED_OF_ALL),
    BadBroker(
        "of-brokers-without-end",
        sized(struct.pack(">i", 7) + bytes(5) + b"\xff\xff\xff\x07" + bytes(2 * PIECE_MAX), 100_000_000),
        "reply-too-large",
        "PIECE_MAX",
        asked=ASKED_OF_ALL,
    ),
    BadBroker(
        "of-endless-topics", sized(METADATA_START + b"\xff\xff\xff\xff\x07" + bytes(100)), "reply-truncated", asked=ASKED_OF_ALL
    ),
    BadBroker("of-a-varint-that-ends-nowhere", sized(METADATA_START + b"\xff" * 50), "reply-bad-varint", asked=ASKED_OF_ALL),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in REPLIES])
def test_a_bad_reply_is_kept_from_the_client(stage: KafkaStage, case: BadBroker) -> None:
    def answer(line: Line) -> None:
        line.exactly(len(case.asked))
        line.send(case.good)
        line.send(case.says)
        if not case.ends:
            line.rest()  # until the agent ends it

    with stage.client(answer) as client:
        assert client.send(case.asked).rest() == case.good
    records = stage.records(2 if case.good else 1)
    assert (records[-1]["reason"], records[-1].get("limit")) == (case.reason, case.limit)
    if case.good:
        assert records[0]["status"] == "kafka:0"
    else:
        assert records[0]["status"] == "unanswered"
    stage.neighbour.works_on()


@pytest.mark.parametrize(
    "says", [sized(RIGHT[4:] + b"!"), sized(RIGHT[4:-1]), sized(RIGHT[4:8])], ids=["more", "less", "nothing"]
)
def test_a_reply_in_which_nothing_is_changed_need_not_be_understood(stage: KafkaStage, says: bytes) -> None:
    def answer(line: Line) -> None:
        line.exactly(len(GOOD))
        line.send(says)
        line.exactly(len(GOOD))
        line.send(RIGHT)
        line.rest()

    with stage.client(answer) as client:
        client.send(GOOD)
        assert client.exactly(len(says)) == says
        client.send(GOOD)
        assert client.exactly(len(RIGHT)) == RIGHT
        client.end()
    assert [(record["verdict"], record["status"]) for record in stage.records(2)] == [
        ("ALLOWED", "unknown"),
        ("ALLOWED", "kafka:0"),
    ]


def test_a_reply_before_its_request_is_there_is_no_brokers(stage: KafkaStage) -> None:
    def answer(line: Line) -> None:
        line.exactly(60)
        line.send(RIGHT)
        line.rest()

    frame = raw.produce(7, 9, [ORDERS], value=bytes(1_000_000))
    with stage.client(answer) as client:
        assert client.send(frame[:100]).rest() == b""
    (record,) = stage.records(1)
    assert (record["reason"], record["status"]) == ("reply-too-early", "unanswered")
    stage.neighbour.works_on()


# Memory


def test_a_client_that_reads_no_replies_is_not_read(stage: KafkaStage) -> None:
    """Denials pile up in its own socket, and then it waits."""
    before = stage.memory
    with stage.client() as client:
        flood = Flood(WORDY)
        thread = threading.Thread(target=flood.run, args=(client,), daemon=True)
        thread.start()
        flood.stalls()
        assert stage.memory - before < UNREAD_MEMORY
        stage.neighbour.works_on()
        flood.stopped = True
        thread.join()
        client.reset()
    assert 0 < stage.untold() <= flood.sent // len(WORDY) + 1


def test_a_broker_that_does_not_answer_holds_its_client_back(stage: KafkaStage) -> None:
    over = threading.Event()

    def never_answer(line: Line) -> None:
        line.sock.settimeout(0.1)
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                line.exactly(2**30)

    before = stage.memory
    with stage.client(never_answer) as client:
        flood = Flood(GOOD * 100)
        thread = threading.Thread(target=flood.run, args=(client,), daemon=True)
        thread.start()
        flood.stalls()
        assert len(stage.seen) == OPEN_CALLS_MAX * len(GOOD)
        assert stage.memory - before < UNREAD_MEMORY
        stage.neighbour.works_on()
        flood.stopped = True
        thread.join()
        over.set()
        client.sock.settimeout(PATIENCE)
        assert client.rest() == b""
    records = stage.records(OPEN_CALLS_MAX)
    assert {(record["verdict"], record["status"], record["reason"]) for record in records} == {
        ("ALLOWED", "unanswered", "upstream-reset")
    }


def test_hundreds_of_them_leave_nothing_behind(stage: KafkaStage) -> None:
    def all_of_them() -> None:
        for case in REQUESTS:
            with stage.client() as client:
                client.send(case.data)
                if case.end:
                    client.end()
                client.rest()
        for bad in REPLIES:

            def answer(line: Line, bad: BadBroker = bad) -> None:
                line.exactly(len(bad.asked))
                line.send(bad.good + bad.says)
                if not bad.ends:
                    line.rest()

            with stage.client(answer) as client:
                client.send(bad.asked).rest()

    all_of_them()
    before = stage.memory
    for _ in range(ROUNDS):
        all_of_them()
    expected = (ROUNDS + 1) * (len(REQUESTS) + sum(2 if bad.good else 1 for bad in REPLIES))
    assert stage.untold() == expected
    grown = stage.memory - before
    print(
        f"{expected} refusals; {before} KiB, {grown} more behind them; the neighbour has done {stage.neighbour.rounds()} rounds"
    )
    assert grown < MEMORY
    stage.neighbour.works_on()
