"""Requests that begin alike are judged alike; and what the kernel carries of a Kafka connection, whole calls or parts of
them, is as if forwarded by us: the same records, the same order, the same sessions."""

import os
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.contract import KEPT_BYTES, Prefix
from parsers.kafka.frame import MalformedError
from parsers.kafka.prefixes import CARRIED, is_carriable, masked, prefix_of
from parsers.kafka.request import Request, look
from proxy.flow import Carried, Finished
from tests.flow_playbook import Dialogue
from tests.property.kafka_words import VERSIONS, Writer, facts_of, facts_of_kafka_python
from tests.unit.parsers.kafka.test_connection import (
    ORDERS,
    ORDERS_ID,
    SECRETS,
    described,
    fetch,
    fetched,
    frames,
    metadata,
    produce,
    produced,
    talk,
)

SOAK = os.environ.get("SLUICE_SOAK") == "1"
ROUNDS = 400 if SOAK else 12
CARRIABLE = [(key, version) for key, version in VERSIONS if key in CARRIED]


def alike(prefix: Prefix, frame: bytes) -> bool:
    """What the kernel (sluice_alike) does with a message that is one frame."""
    n = len(prefix.data)
    whole = len(frame) >= 12 and len(frame) == 4 + int.from_bytes(frame[:4], "big")
    return whole and n <= len(frame) and masked(frame[:n], prefix.mask) == prefix.data


def made(frame: bytes) -> tuple[Request, Prefix] | None:
    request = look(frame)
    if isinstance(request, int) or not is_carriable(request):
        return None
    return request, prefix_of(frame[: request.determined], request)


def asks(request: Request) -> object:
    """What a request asks for: all that policy, and what we know of sessions, can depend on."""
    facts = facts_of(request)
    epoch = None if request.session is None else (request.session[0], request.session[1] > 0)
    return facts._replace(correlation_id=0, session=None), epoch, request.api_key, request.version, request.of_brokers


def outcome(frame: bytes) -> object:
    try:
        request = look(frame)
    except MalformedError:
        return "malformed"
    return "unfinished" if isinstance(request, int) else asks(request)


def freed(frame: bytes, prefix: Prefix, chance: random.Random) -> bytes:
    """Another frame that begins alike: other bits where the mask leaves them open, and anything behind."""
    noise = chance.choice((bytes(len(prefix.mask)), b"\xff" * len(prefix.mask), chance.randbytes(len(prefix.mask))))
    start = int.from_bytes(prefix.data, "big") | int.from_bytes(
        masked(noise, bytes(~byte & 0xFF for byte in prefix.mask)), "big"
    )
    tail = chance.choice((frame[len(prefix.mask) :], b"", chance.randbytes(chance.randrange(300))))
    data = start.to_bytes(len(prefix.mask), "big") + tail
    return (len(data) - 4).to_bytes(4, "big") + data[4:]


@pytest.mark.parametrize(("key", "version"), CARRIABLE)
def test_frames_that_begin_alike_ask_for_the_same(key: int, version: int) -> None:
    writer = Writer(f"alike {key} {version}")
    compared = 0
    for _ in range(ROUNDS):
        frame = writer.frame(key, version)
        found = made(frame)
        if found is None:
            continue
        request, prefix = found
        assert alike(prefix, frame)
        for _ in range(10):
            other = freed(frame, prefix, writer.random)
            assert alike(prefix, other)
            told = outcome(other)
            if told == "malformed":
                continue  # too short for what it announces: nothing was carried that means anything else
            if told != asks(request):
                # The epoch of 0 makes a session of its own, and names what it is about.
                assert isinstance(told, tuple)
                assert (told[0], told[2:]) == (asks(request)[0], asks(request)[2:])  # type: ignore[index]
            compared += 1
    assert compared > ROUNDS


@pytest.mark.parametrize(("key", "version"), CARRIABLE)
def test_a_frame_that_asks_for_anything_else_does_not_begin_alike(key: int, version: int) -> None:
    """Changes anywhere: what still begins alike is read by kafka-python as the same topics, too."""
    writer = Writer(f"other {key} {version}")
    matched = unlike = 0
    for _ in range(ROUNDS):
        frame = writer.frame(key, version)
        found = made(frame)
        if found is None:
            continue
        request, prefix = found
        for _ in range(10):
            other = writer.mutated(frame)
            if not alike(prefix, other):
                unlike += 1
                continue
            matched += 1
            assert outcome(other) in ("malformed", asks(request)) or other[:12] != frame[:12] or request.session is not None
            try:
                oracle = facts_of_kafka_python(other)
            except Exception:
                continue
            assert oracle is not None
            assert oracle.topics == facts_of(request).topics
    assert matched
    assert unlike


# Whole connections.


@dataclass(frozen=True)
class Exchange:
    request: bytes
    reply: bytes


class Client:
    """Makes requests, as a producer and a consumer on one connection would."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._number = 100
        self._epoch = 0

    def some(self) -> list[Exchange]:
        """One fetch, or some records on their way at the same time: a client fetches again when it has been answered."""
        chance = self._chance
        return [self.next()] if chance.random() < 0.5 else [self.next(chance.randrange(2)) for _ in range(chance.randint(2, 6))]

    def next(self, kind: int | None = None) -> Exchange:
        chance, number = self._chance, self._number
        self._number += 1
        records = bytes(chance.choice((0, 20, 500, KEPT_BYTES, 3000)))
        kind = chance.randrange(6) if kind is None else kind
        if kind < 2:
            topic = chance.choice((ORDERS, "bills"))
            return Exchange(produce(number, topic, records=b"r" + records), produced(number, topic))
        if kind == 2:
            return Exchange(fetch(number, (0, -1), ORDERS_ID), fetched(number, 0, {ORDERS_ID: records}))
        self._epoch += 1
        if self._epoch == 1:
            return Exchange(fetch(number, (0, 0), ORDERS), fetched(number, 77, {ORDERS: records}))
        topics = chance.choice(((), (ORDERS,), (ORDERS, "bills")))
        answered = dict.fromkeys(topics, records)
        return Exchange(fetch(number, (77, self._epoch - 1), *topics), fetched(number, 77, answered))


class Wire:
    """One connection, by the relay or with the kernel's help."""

    def __init__(self) -> None:
        self.play = talk().client(metadata(1, None)).server(described(1, (ORDERS, ORDERS_ID, 0)))
        self.carried = 0

    def relay(self, *exchanges: Exchange) -> None:
        for exchange in exchanges:
            self.play.client(exchange.request)
        for exchange in exchanges:
            self.play.server(exchange.reply)

    def _judged(self, exchanges: list[Exchange]) -> list[bytes] | None:
        """The beginnings of requests as the kernel keeps them, if it would carry them all."""
        loan = self.play.flow.lend()
        if loan is None:
            return None
        assert loan.prefixes
        found = []
        for exchange in exchanges:
            length = next((len(prefix.data) for prefix in loan.prefixes if alike(prefix, exchange.request)), None)
            if length is None:
                return None
            found.append(exchange.request[:length])
        return found

    def carry(self, exchanges: list[Exchange]) -> None:
        heads = self._judged(exchanges)
        if heads is None:
            self.relay(*exchanges)
            return
        self.carried += len(exchanges)
        for head, exchange in zip(heads, exchanges, strict=True):
            self._finished(head, exchange)

    def _finished(self, head: bytes, exchange: Exchange) -> None:
        size, reply = len(exchange.request), exchange.reply
        number, lent = self.play.next_number, self.play.lent
        self.play.finish(Finished(int(1.7e15), 0, head, size, reply[:KEPT_BYTES], len(reply), 0, number, lent))

    def adopt(self, exchanges: list[Exchange], chance: random.Random) -> None:
        """The kernel has the requests, perhaps some of the replies, and a part of the next."""
        heads = self._judged(exchanges)
        if heads is None:
            self.relay(*exchanges)
            return
        waiting = deque(zip(heads, exchanges, strict=True))
        for _ in range(chance.randrange(len(exchanges))):
            self._finished(*waiting.popleft())
        begun = 0
        first = waiting[0][1].reply
        if len(first) > KEPT_BYTES and chance.random() < 0.7:
            begun = chance.choice((24, KEPT_BYTES, len(first) - 1, len(first)))
        calls = []
        for position, (head, exchange) in enumerate(waiting):
            said = 0 if position else begun
            calls.append(Carried(self.play.now, head, len(exchange.request), exchange.reply[: min(said, KEPT_BYTES)], said, 0))
        self.play.adopt(*calls)
        self.carried += len(exchanges)
        for position, (_, exchange) in enumerate(waiting):
            rest = exchange.reply[0 if position else begun :]
            if rest:
                self.play.server(rest)


def told(play: Dialogue) -> list[dict[str, Any]]:
    """The records, without what may differ."""
    found = []
    for record, _ in play.sink.written:
        fields = msgspec.json.decode(record if isinstance(record, str) else msgspec.json.encode(record))
        found.append({name: value for name, value in fields.items() if name not in ("via", "time")})
    return found


@settings(max_examples=3000 if SOAK else 200, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_calls_that_the_kernel_carries_or_begins_are_as_if_forwarded_by_us(seed: int) -> None:
    chance = random.Random(seed)
    client = Client(chance)
    ours, shared = Wire(), Wire()
    for _ in range(chance.randrange(3, 12)):
        several = client.some()
        ours.relay(*several)
        chance.choice((shared.carry, lambda calls: shared.adopt(calls, chance), lambda calls: shared.relay(*calls)))(several)
        assert shared.play.flow.idle
    assert told(shared.play) == told(ours.play)
    assert shared.play.faults == ours.play.faults == []
    for play in (ours.play, shared.play):
        play.client(fetch(9999, (77, 50), SECRETS)).client(produce(10_000, SECRETS))
    assert told(shared.play) == told(ours.play), "and so are the sessions"
    assert shared.play.to_client.endswith(frames(ours.play.to_client)[-1])


def test_most_of_what_such_a_client_does_is_carried() -> None:
    chance = random.Random(1)
    client, wire = Client(chance), Wire()
    total = 400
    for _ in range(total):
        wire.carry([client.next()])
    assert wire.carried > total * 0.9
