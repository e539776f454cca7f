"""Whole Kafka connections in memory: random requests, some of them mutated, cut at random, and a broker that answers.

``Played`` is one, with the real flow, parser and policy, which allows the topic ALLOWED and no other. What came of it is
looked at by ``check``, with the oracles: a topic that is not allowed must not be in anything that the broker got.
"""

import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any, cast

from kafka.protocol.metadata import MetadataResponse

from parsers.contract import Direction
from parsers.kafka.connection import SUPPORTED, KafkaParser
from parsers.kafka.request import skim
from policies.decide import Pair, PolicySet
from policies.load import Source, load
from tests.flow_playbook import Dialogue, Policy, Records

from .kafka_reply_words import ReplyWriter
from .kafka_words import Facts, Writer, facts_of_kafka_python, facts_of_kio

ALLOWED, DENIED = "orders", "payments"
ALLOWED_ID, DENIED_ID, LOST_ID = (uuid.UUID(bytes=bytes([number]) * 16) for number in (1, 2, 3))
TOPIC_IDS = {ALLOWED: ALLOWED_ID, DENIED: DENIED_ID}
_METADATA = 3
_OUR_QUESTION = bytes((0, 3, 0, 12, 0, 0, 0, 0))  # Metadata, version, correlation id
DOCUMENTS = f"""apiVersion: sluice.dev/v1
kind: Workload
metadata: {{name: kafka, labels: {{app: kafka}}}}
spec: {{cgroups: ["/sluice/kafka"]}}
---
apiVersion: sluice.dev/v1
kind: Workload
metadata: {{name: client, labels: {{app: client}}}}
spec: {{cgroups: ["/sluice/client"]}}
---
apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: one-topic}}
spec:
  endpointSelector: {{matchLabels: {{app: kafka}}}}
  ingress:
  - toPorts:
    - ports: [{{port: "9092", protocol: TCP}}]
      rules: {{kafka: [{{topic: {ALLOWED}}}]}}
"""


def one_topic() -> Pair:
    loaded = PolicySet(load([Source("one-topic.yaml", DOCUMENTS)]), 1)
    return loaded.pair(loaded.endpoint("client"), loaded.endpoint("kafka"), 9092)


class Asker(Writer):
    """Writes requests of which many are about the allowed topic."""

    def value(self, kind: str, name: str) -> Any:
        if kind == "string" and self.random.random() < 0.6:
            return ALLOWED
        if kind == "uuid" and self.random.random() < 0.8:
            return self.random.choice((ALLOWED_ID, ALLOWED_ID, DENIED_ID, LOST_ID))
        if name == "acks" and self.random.random() < 0.7:
            return self.random.choice((-1, 0, 1))
        return super().value(kind, name)

    def requests(self) -> list[bytes]:
        """The requests of one connection: half of them mutated, some without an end, some with bytes behind them."""
        found = []
        for _ in range(self.random.choice((1, 1, 1, 2, 3, 5))):
            frame = self.any_frame()
            if self.random.random() < 0.6:
                frame = self.mutated(frame)
            if self.random.random() < 0.03:
                frame = frame[: self.random.randrange(len(frame))]
            if self.random.random() < 0.03:
                frame += self.random.randbytes(self.random.randrange(1, 30))
            found.append(frame)
        return found


class Answerer:
    """A broker of two topics. It tells no lies about their ids; the rest of what it says is random, at times damaged."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._writer = ReplyWriter("replies")
        self._writer.random = random

    def reply(self, frame: bytes) -> bytes | None:
        """The reply to a whole request, or None if the broker would rather hang up; empty if there is none to give."""
        key, version = int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")
        found = facts(frame)
        low, high = SUPPORTED.get(key, (1, 0))
        if not found or not low <= version <= high:
            return None
        if found[0].acks == 0:
            return b""
        if key == _METADATA:
            return self._metadata(found[0], version)
        told = bytearray(self._writer.reply(key, version))
        told[4:8] = frame[8:12]
        if self.random.random() < 0.05:
            told[self.random.randrange(len(told))] ^= 1 << self.random.randrange(8)
        return bytes(told)

    def _metadata(self, asked: Facts, version: int) -> bytes:
        of_all = asked.all_topics
        names = list(TOPIC_IDS) if of_all else asked.topics
        topics = []
        for word in names:
            by_id = {topic_id.hex: name for name, topic_id in TOPIC_IDS.items()}
            name = word if word in TOPIC_IDS else by_id.get(word)
            one: dict[str, Any] = {"error_code": 0 if name else 3, "name": name or word, "is_internal": False, "partitions": []}
            if version >= 10:
                one["topic_id"] = TOPIC_IDS.get(name or "")
            topics.append(MetadataResponse.MetadataResponseTopic(version=version, **one))
        reply = MetadataResponse(
            version=version, brokers=[], controller_id=1, cluster_id=None, throttle_time_ms=0, topics=topics
        )
        reply.with_header(asked.correlation_id)
        return bytes(reply.encode(header=True, framed=True))


def facts(frame: bytes) -> list[Facts]:
    """What the oracles read in a request, of those that can read it."""
    found = []
    for oracle in (facts_of_kafka_python, facts_of_kio):
        try:
            if oracle is facts_of_kio:
                skim(frame)  # kio takes memory for whatever number of elements is announced, and the process ends
            read = oracle(frame)
        except Exception:  # each has its own ways to refuse
            continue
        if read is not None:
            found.append(read)
    return found


def split_frames(data: bytes) -> Iterator[bytes]:
    """Whole frames from the beginning of ``data``; what is not one ends them."""
    while len(data) >= 12:
        size = 4 + int.from_bytes(data[:4], "big", signed=True)
        if not 12 <= size <= len(data):
            return
        yield data[:size]
        data = data[size:]


class Played:
    """One connection: ``sent`` are the requests, ``spent`` the seconds of processor time of all steps, ``slowest`` of one."""

    def __init__(self, pair: Pair, seed: object) -> None:
        asker = Asker(seed)
        self._random = asker.random
        self._answerer = Answerer(asker.random)
        self.sent = b"".join(asker.requests())
        self.slowest = self.spent = 0.0
        self.dialogue = Dialogue(KafkaParser(), policy=cast(Policy, pair), sink=Records(10_000))
        self._answered = 0  # bytes of what the broker got
        self._play()

    def _play(self) -> None:
        for piece in self._pieces(self.sent):
            self._feed(Direction.REQUEST, piece)
            if self._random.random() < 0.5:
                self._answer()
        self._answer()
        if not self.dialogue.flow.over:
            self._step(self.dialogue.client_ends)
        if not self.dialogue.flow.over:
            self._step(self.dialogue.server_ends)

    def _answer(self) -> None:
        """Let the broker answer what has come to it, until nothing new does."""
        while not self.dialogue.flow.over:
            for frame in split_frames(self.dialogue.to_server[self._answered :]):
                self._answered += len(frame)
                reply = self._answerer.reply(frame)
                if reply is None:
                    self._step(self.dialogue.server_ends)
                    return
                for piece in self._pieces(reply):
                    self._feed(Direction.REPLY, piece)
                break
            else:
                return

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        cuts = sorted(
            {0, len(data), *(self._random.randrange(len(data) + 1) for _ in range(self._random.choice((0, 1, 5, 40))))}
        )
        return (data[start:end] for start, end in pairwise(cuts))

    def _feed(self, direction: Direction, piece: bytes) -> None:
        play = self.dialogue
        while piece and not play.flow.over:
            n = min(len(piece), play.carry[direction] or len(piece))
            if play.carry[direction]:  # so much goes by unseen
                if direction is Direction.REQUEST:
                    play.to_server += piece[:n]
                self._step(play.carried, direction, n)
            else:
                self._step(play.client if direction is Direction.REQUEST else play.server, piece[:n])
            piece = piece[n:]

    def _step(self, step: Any, *arguments: Any) -> None:
        begun = time.thread_time()
        step(*arguments)
        took = time.thread_time() - begun
        self.slowest, self.spent = max(self.slowest, took), self.spent + took


def check(played: Played) -> dict[str, int]:
    """Fails unless all that must hold for any connection does; how often what was seen, for a test to know that it tests."""
    play = played.dialogue
    seen = {"connections": 1, "frames passed": 0, "judged by an oracle": 0, "topics passed": 0, "records": len(play.records)}
    assert play.faults == []
    assert play.flow.over
    for frame in split_frames(play.to_server):
        seen["frames passed"] += 1
        for read in facts(frame):
            seen["judged by an oracle"] += 1
            named = {*read.topics, *(word for word, _ in read.partitions)}
            assert named <= {ALLOWED, ALLOWED_ID.hex} or _is_probe(played, read, frame), "a denied topic reached the broker"
            assert not read.all_topics or int.from_bytes(frame[4:6], "big") == _METADATA  # of which the reply is filtered
            seen["topics passed"] += len(read.topics)
    # Also of one without an end: what goes on with a session that nobody knows is answered at once.
    asked = iter([frame[8:12] for frame in _begun(played.sent)])
    for told in split_frames(play.to_client):
        assert told[4:8] in asked, "a reply out of order, or to nobody"
        seen["replies"] = seen.get("replies", 0) + 1
    for record in play.records:
        seen[f"{record.verdict}"] = seen.get(f"{record.verdict}", 0) + 1
    ours = sum(frame[4:12] == _OUR_QUESTION and frame not in played.sent for frame in split_frames(play.to_server))
    of_requests = [record for record in play.records if record.reason != "reply-unasked"]
    assert len(of_requests) <= ours + sum(1 for _ in _begun(played.sent)), "a request has more than one record"
    return seen


def _begun(sent: bytes) -> Iterator[bytes]:
    """All requests, also one without an end. What is no request has no next one, because the connection is closed."""
    while sent:
        size = 4 + int.from_bytes(sent[:4], "big", signed=True)
        yield sent[:size] if size >= 12 else sent
        sent = sent[size:] if size >= 12 else b""


def _is_probe(played: Played, read: Facts, frame: bytes) -> bool:
    """A question of ours for the names of topic ids, which the client has not written, and whose reply it does not get."""
    ours = frame[4:12] == _OUR_QUESTION and frame not in played.sent
    return ours and not set(read.topics) & {*TOPIC_IDS}
