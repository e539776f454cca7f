"""What is read in replies is what kafka-python and kio read; what is taken out leaves the other bytes as they were sent."""

import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from parsers.kafka import denials
from parsers.kafka.frame import MalformedError
from parsers.kafka.messages import MESSAGES
from parsers.kafka.metadata import KEPT_MAX, PIECE_MAX, TURN, Metadata
from parsers.kafka.replies import fetch_start, filter_api_versions, first_error
from tests.kafka.raw import filter_metadata, read_metadata
from tests.property.kafka_reply_words import REPLIES, ReplyWriter, error_codes, kafka_python_reply, reply_trees
from tests.property.kafka_words import VERSIONS

REPLIES_EACH = 5  # per API and version
ANSWERABLE = [(key, version) for key, version in VERSIONS if key in MESSAGES]
METADATA = [version for key, version in VERSIONS if key == 3]


@pytest.mark.parametrize("key", MESSAGES)
def test_the_first_error_is_the_one_that_both_packages_find(key: int) -> None:
    for version in (version for api, version in ANSWERABLE if api == key):
        writer = ReplyWriter(f"errors {key} {version}")
        for _ in range(REPLIES_EACH):
            frame = writer.reply(key, version)
            if key == 18 and any(frame[8:10]):
                continue  # kafka-python takes any error for version 0
            for tree in reply_trees(frame, key, version):
                assert first_error(frame, key, version) == next((code for code in error_codes(tree) if code), 0)


def test_an_error_of_the_whole_comes_before_those_inside_wherever_it_stands() -> None:
    """OffsetFetch has it behind its topics."""
    topics = b"\0\0\0\1\0\1t\0\0\0\1" + bytes(4) + b"\xff" * 8 + b"\0\0" + b"\0\x1d"
    for error in (0, 16):
        body = (7).to_bytes(4, "big") + topics + error.to_bytes(2, "big")
        assert first_error(len(body).to_bytes(4, "big") + body, 9, 2) == error or 29


def test_a_broker_that_does_not_know_the_version_answers_in_version_0() -> None:
    frame = denials.unsupported_version(5, 0, 3)
    for version in range(5):
        assert first_error(frame, 18, version) == 35
        told = filter_api_versions(frame, version, {18: (0, 1)})
        [tree] = reply_trees(told, 18, 0)[:1]
        assert [tuple(entry.values()) for entry in tree["api_keys"]] == [(18, 0, 1)]


@pytest.mark.parametrize("version", [version for key, version in VERSIONS if key == 1])
def test_a_fetch_reply_tells_its_session_as_soon_as_that_is_there(version: int) -> None:
    writer = ReplyWriter(f"fetch {version}")
    for _ in range(REPLIES_EACH):
        frame = writer.reply(1, version)
        for tree in reply_trees(frame, 1, version):
            known = version >= 7
            expected = (int(tree["error_code"]), tree["session_id"]) if known else (0, 0)
            length = 4 + 4 + (version >= 12) + 4 + 2 + 4 if known else 0
            assert fetch_start(frame[:length], version) == fetch_start(frame, version) == expected
            assert all(fetch_start(frame[:shorter], version) is None for shorter in range(length))


@pytest.mark.parametrize("version", METADATA)
def test_the_error_of_metadata_is_its_own_or_a_topic_s(version: int) -> None:
    writer = ReplyWriter(f"error of metadata {version}")
    for _ in range(REPLIES_EACH * 4):
        frame = writer.reply(3, version)
        for tree in reply_trees(frame, 3, version):
            codes = [int(node["error_code"]) for node in (tree, *tree["topics"]) if "error_code" in node]
            assert read_metadata(frame, version)[0].error == next((code for code in codes if code), 0)


@pytest.mark.parametrize("version", METADATA)
def test_names_of_topics_are_found_by_their_ids(version: int) -> None:
    writer = ReplyWriter(f"ids {version}")
    for _ in range(REPLIES_EACH * 4):
        frame = writer.reply(3, version)
        for tree in reply_trees(frame, 3, version):
            named = [
                topic
                for topic in tree["topics"]
                if topic.get("topic_id") and topic["topic_id"].int and topic["name"] is not None
            ]
            assert read_metadata(frame, version)[1] == {topic["topic_id"].bytes: topic["name"] for topic in named}


def refiltered(frame: bytes, key: int, version: int, change: Callable[[Any], None]) -> bytes:
    """What kafka-python makes of the reply once ``change`` has had its way with it."""
    reply = REPLIES[key].decode(frame, version=version, header=True, framed=True)
    change(reply)
    return bytes(reply.encode(header=True, framed=True))


def of_kafka_python(writer: ReplyWriter, key: int, version: int) -> bytes:
    """A reply that kafka-python would write as it stands: one of kio has the defaults of tagged fields left out, too."""
    while True:
        frame = writer.reply(key, version)
        if not (key == 18 and any(frame[8:10])) and kafka_python_reply(frame, key, version):
            return frame


@pytest.mark.parametrize("version", METADATA)
def test_a_filtered_metadata_reply_is_the_one_without_the_topics_that_may_not_be_seen(version: int) -> None:
    writer = ReplyWriter(f"metadata {version}")
    for _ in range(REPLIES_EACH * 4):
        frame = of_kafka_python(writer, 3, version)

        def grants(resource: str) -> bool:
            return resource in ("topic:orders", "topic:größe", "topic:")

        def keep(reply: Any) -> None:
            reply.topics = [topic for topic in reply.topics if topic.name is not None and grants(f"topic:{topic.name}")]

        assert filter_metadata(frame, version, grants) == refiltered(frame, 3, version, keep)
        everything = filter_metadata(frame, version, lambda _: True)
        assert everything == refiltered(
            frame,
            3,
            version,
            lambda reply: setattr(reply, "topics", [topic for topic in reply.topics if topic.name is not None]),
        )


@pytest.mark.parametrize("version", range(5))
def test_filtered_api_versions_offer_what_is_both_spoken_and_understood(version: int) -> None:
    writer = ReplyWriter(f"versions {version}")
    supported = {key: (key % 3, key % 3 + 4) for key in range(0, 100, 2)}
    for _ in range(REPLIES_EACH * 4):
        frame = of_kafka_python(writer, 18, version)

        def keep(reply: Any) -> None:
            kept = []
            for offer in reply.api_keys:
                low, high = supported.get(offer.api_key, (1, 0))
                offer.min_version, offer.max_version = max(low, offer.min_version), min(high, offer.max_version)
                if offer.min_version <= offer.max_version:
                    kept.append(offer)
            reply.api_keys = kept

        assert filter_api_versions(frame, version, supported) == refiltered(frame, 18, version, keep)


def test_what_nobody_knows_stays_as_it_was() -> None:
    """Tagged fields of a newer broker, in the reply, in a topic that stays, and in the header."""
    unknown = b"\1\x63\3new"  # one tagged field, number 99
    topic = b"\0\0" + b"\7orders" + bytes(16) + b"\0" + b"\1" + bytes(4) + unknown
    secret = b"\0\0" + b"\7secret" + bytes(16) + b"\0" + b"\1" + bytes(4) + b"\0"

    def reply(*topics: bytes) -> bytes:
        count = bytes([len(topics) + 1])
        body = bytes(4) + unknown + bytes(4) + b"\1" + b"\0" + bytes(4) + count + b"".join(topics) + unknown
        return len(body).to_bytes(4, "big") + body

    assert filter_metadata(reply(topic, secret, topic), 12, lambda name: name != "topic:secret") == reply(topic, topic)
    offer = b"\0\0\0\0\0\x09" + unknown
    versions = bytes(4) + b"\0\0" + b"\2%b" + bytes(4) + unknown

    def offered(each: bytes) -> bytes:
        body = versions % each
        return len(body).to_bytes(4, "big") + body

    assert filter_api_versions(offered(offer), 3, {0: (3, 7)}) == offered(b"\0\0\0\3\0\7" + unknown)


def test_a_mutated_reply_is_malformed_or_filtered_and_nothing_else() -> None:
    writer = ReplyWriter("mutated replies")
    outcomes = {"malformed": 0, "read": 0}
    functions: list[tuple[int, Callable[[bytes, int], object]]] = [
        (3, lambda frame, version: filter_metadata(frame, version, lambda name: len(name) % 2 == 0)),
        (3, read_metadata),
        (18, lambda frame, version: filter_api_versions(frame, version, {0: (0, 5), 3: (1, 9)})),
        (1, fetch_start),
    ]
    for _ in range(3_000):
        key, function = writer.random.choice(functions)
        _, version = writer.random.choice([entry for entry in ANSWERABLE if entry[0] == key])
        frame = writer.mutated(writer.reply(key, version))
        frame = (len(frame) - 4).to_bytes(4, "big") + frame[4:]  # the size has been looked at before
        try:
            told = function(frame, version)
            if isinstance(told, bytes):
                assert int.from_bytes(told[:4], "big") == len(told) - 4
                first_error(told, key, version)
            outcomes["read"] += 1
        except MalformedError:
            outcomes["malformed"] += 1
    assert min(outcomes.values()) > 300, outcomes


def test_whatever_the_bytes_the_first_error_is_an_error_or_the_reply_is_malformed() -> None:
    writer = ReplyWriter("mutated errors")
    outcomes = {"malformed": 0, "read": 0}
    for _ in range(3_000):
        key, version = writer.random.choice(ANSWERABLE)
        frame = writer.mutated(writer.reply(key, version))
        try:
            assert -0x8000 <= first_error(frame, key, version) <= 0x7FFF
            outcomes["read"] += 1
        except MalformedError:
            outcomes["malformed"] += 1
    assert min(outcomes.values()) > 300, outcomes


@pytest.mark.parametrize("key", MESSAGES)
def test_no_count_is_believed_before_the_bytes_are_there(key: int) -> None:
    """Huge counts, of whatever is behind them, are found out in no time."""
    for version in (version for api, version in ANSWERABLE if api == key):
        for rest in (b"\x7f\xff\xff\xff" * 20, b"\xff\xff\xff\xff\x07" * 20, bytes(4) + b"\x7f\xff\xff\xff" * 20, b"\0" * 30):
            begun = time.thread_time()
            with contextlib.suppress(MalformedError):
                first_error(len(rest).to_bytes(4, "big") + bytes(4) + rest, key, version)
            assert time.thread_time() - begun < 0.1


def test_a_reply_of_a_large_cluster_is_read_in_time() -> None:
    """10,000 topics, 50,000 partitions. Bounds are wide, because this may run on anything: it takes 0.1 s where it was made."""
    frame = large_metadata(10_000, 5)
    begun = time.thread_time()
    assert read_metadata(frame, 12)[0].error == 0
    assert first_error(filter_metadata(frame, 12, lambda _: False), 3, 12) == 0
    assert filter_metadata(frame, 12, lambda _: True) == frame
    assert time.thread_time() - begun < 3


class TestMetadataInPieces:
    """However much a broker has, no turn takes long and little of it is in memory."""

    @pytest.mark.parametrize(("topics", "partitions"), [(5_000, 3), (20, 20_000), (1, 100_000)])
    def test_a_turn_reads_so_much_and_no_more(self, topics: int, partitions: int) -> None:
        frame = large_metadata(topics, partitions)
        reading = Metadata(12, len(frame), lambda _: False)
        at = turns = 0
        while not reading.over:
            n = reading.read(frame[at:])
            at, turns = at + n, turns + 1
        assert turns > (topics * 10 + topics * partitions / 8) / TURN
        assert at == len(frame)

    @pytest.mark.parametrize("version", METADATA)
    @pytest.mark.parametrize("seed", range(5))
    def test_however_it_arrives_it_is_read_as_if_it_had_come_at_once(self, version: int, seed: int) -> None:
        writer = ReplyWriter(f"pieces {version} {seed}")
        chance = random.Random(seed)
        for _ in range(REPLIES_EACH):
            frame = of_kafka_python(writer, 3, version)

            def grants(resource: str) -> bool:
                return len(resource) % 2 == 0

            reading, at, ids, there = Metadata(version, len(frame), grants), 0, {}, 0
            while not reading.over:
                at += reading.read(frame[at:there])
                ids |= reading.topic_ids
                if reading.waits:
                    there = min(there + chance.choice((1, 1, 7, 100)), len(frame))
            assert b"".join(reading.told()) == filter_metadata(frame, version, grants)
            assert ids == read_metadata(frame, version)[1]

    @pytest.mark.parametrize("topics", range(1, 200))
    def test_with_its_last_byte_it_is_over(self, topics: int) -> None:
        """In version 3 nothing is behind the topics, and a turn may end with any of them."""
        topic = b"\0\0" + b"\0\6orders" + b"\0" + bytes(4)
        body = bytes(8) + bytes(4) + b"\xff\xff" + bytes(4) + topics.to_bytes(4, "big") + topic * topics
        frame = len(body).to_bytes(4, "big") + body
        reading, at = Metadata(3, len(frame)), 0
        while at < len(frame):
            at += reading.read(frame[at:])
        assert reading.over

    def test_of_topics_that_may_not_be_seen_nothing_is_kept(self) -> None:
        frame = large_metadata(3, 400_000)
        assert len(frame) > KEPT_MAX
        reading, at = Metadata(12, len(frame), lambda _: False), 0
        while not reading.over:
            at += reading.read(frame[at : at + 100_000])
            assert reading.kept == 0
        assert first_error(b"".join(reading.told()), 3, 12) == 0

    def test_of_what_may_be_seen_as_much_is_kept_as_there_is_room_for(self) -> None:
        frame = large_metadata(3, 400_000)
        with pytest.raises(MalformedError) as caught:
            read_metadata(frame, 12, lambda _: True)
        assert caught.value.limit == "KEPT_MAX"
        assert read_metadata(frame, 12)[0].kept == 0, "what is not cut goes by"

    def test_what_was_told_is_not_kept(self) -> None:
        frame = large_metadata(100, 1_000)
        reading, _ = read_metadata(frame, 12, lambda _: True)
        told = b""
        for piece in reading.told():
            told += piece
            assert len(told) + reading.kept <= len(frame)
        assert told == frame

    def test_partitions_as_no_broker_describes_them_are_read(self) -> None:
        tagged = b"\0\0" + bytes(12) + b"\1\1\1" + b"\1\0\0"
        assert read_metadata(large_metadata(1, 9_000, tagged), 12)[0].error == 0

    def test_a_piece_that_does_not_end_is_refused(self) -> None:
        frame = large_metadata(1, 1)[:8] + b"\0" + bytes(4) + b"\2" + bytes(4) + b"\xff\xff\xff\x07"
        reading = Metadata(12, 100_000_000)
        assert reading.read(frame + bytes(PIECE_MAX // 2)) == 0
        assert reading.waits
        with pytest.raises(MalformedError, match="too-large"):
            reading.read(frame + bytes(2 * PIECE_MAX))

    def test_no_count_is_believed_before_the_bytes_are_there(self) -> None:
        frame = bytearray(large_metadata(1, 1))
        at = frame.index(b"\7secret") - 3
        frame[at : at + 1] = b"\xff\xff\xff\xff\7"
        with pytest.raises(MalformedError, match="truncated"):
            read_metadata(bytes(frame), 12)


PARTITION = b"\0\0" + bytes(12) + b"\2" + bytes(4) + b"\2" + bytes(4) + b"\1" + b"\0"


def large_metadata(topics: int, partitions: int, partition: bytes = PARTITION) -> bytes:
    one = b"\0\0" + b"\7secret" + bytes(16) + b"\0" + varint(partitions + 1) + partition * partitions + bytes(4) + b"\0"
    body = bytes(4) + b"\0" + bytes(4) + b"\1" + b"\0" + bytes(4) + varint(topics + 1) + one * topics + b"\0"
    return len(body).to_bytes(4, "big") + body


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])
