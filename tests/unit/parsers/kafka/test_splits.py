"""A request without some of its topics, and a reply with their errors, are what a client and a broker would have written."""

from typing import Any

import pytest

from parsers.kafka import denials
from parsers.kafka.frame import MalformedError
from parsers.kafka.messages import MESSAGES
from parsers.kafka.request import Request, skim
from parsers.kafka.splits import merge, merged, splits_exactly, without
from tests.property.kafka_reply_words import (
    REPLIES,
    ReplyWriter,
    asked_array,
    kafka_python_reply,
    reply_trees,
    request_tree,
    told_array,
    topic_word,
)
from tests.property.kafka_words import KAFKA_PYTHON, VERSIONS, Writer

FRAMES = 5  # per API and version
SPLIT = [(key, version) for key, version in VERSIONS if splits_exactly(key, version)]


def test_requests_are_taken_apart_where_the_broker_answers_topic_by_topic() -> None:
    assert {MESSAGES[key].api for key, _ in SPLIT} == {
        "Produce",
        "Fetch",
        "ListOffsets",
        "Metadata",
        "OffsetCommit",
        "OffsetFetch",
        "CreateTopics",
        "DeleteTopics",
        "DeleteRecords",
        "OffsetForLeaderEpoch",
        "TxnOffsetCommit",
        "CreatePartitions",
        "DescribeTopicPartitions",
    }
    assert not splits_exactly(9, 8), "OffsetFetch of several groups"
    assert not any(splits_exactly(24, version) for version in range(6)), "AddPartitionsToTxn is all or nothing"


def some(writer: Writer, key: int, version: int) -> tuple[bytes, Request, list[int]]:
    """A request to several topics, and the positions of some of them but not all."""
    while True:
        frame = writer.kafka_python(key, version)
        request = skim(frame)
        if len(request.topics) > 1 and request.topic_array is not None:
            count = writer.random.randrange(1, len(request.topics))
            return frame, request, writer.random.sample(range(len(request.topics)), count)


@pytest.mark.parametrize("key", sorted({key for key, _ in SPLIT}))
def test_a_request_without_topics_is_the_one_that_its_client_would_have_written_without_them(key: int) -> None:
    for version in (version for api, version in SPLIT if api == key):
        writer = Writer(f"without {key} {version}")
        for _ in range(FRAMES):
            frame, request, denied = some(writer, key, version)
            message = KAFKA_PYTHON[key].decode(frame, version=version, header=True, framed=True)
            array = asked_array(key, version)
            rest = [topic for position, topic in enumerate(getattr(message, array)) if position not in denied]
            setattr(message, array, rest)
            found = without(frame, request, denied)
            assert found == message.encode(version=version, header=True, framed=True)
            left = [topic for position, topic in enumerate(request.topics) if position not in denied]
            assert [(topic.name, topic.topic_id) for topic in skim(found).topics] == [
                (topic.name, topic.topic_id) for topic in left
            ]


@pytest.mark.parametrize("version", [version for key, version in SPLIT if key == 3 and version > 0])
def test_metadata_without_any_of_its_topics_asks_for_the_brokers_alone(version: int) -> None:
    """Clients take no notice of Metadata without brokers, so the broker has to say even that all topics are denied."""
    writer = Writer(f"brokers {version}")
    frame, request, _ = some(writer, 3, version)
    found = skim(without(frame, request, range(len(request.topics))))
    assert not found.topics
    assert not found.all_topics


def with_entries(frame: bytes, request: Request, key: int, version: int, writer: Writer) -> tuple[list[bytes], list[Any]]:
    """Entries for some topics of a request, and what kafka-python reads in them."""
    codes = dict.fromkeys(writer.random.sample(range(len(request.topics)), max(1, len(request.topics) // 2)), 29)
    denial = denials.denial(request, frame, 29)
    assert denial is not None
    told = getattr(REPLIES[key].decode(denial, version=version, header=True, framed=True), told_array(key))
    return denials.entries(request, frame, codes), [told[position] for position in sorted(codes)]


@pytest.mark.parametrize("key", sorted({key for key, _ in SPLIT}))
def test_a_merged_reply_is_the_one_that_a_broker_would_have_written(key: int) -> None:
    for version in (version for api, version in SPLIT if api == key):
        writer, replies = Writer(f"merge {key} {version}"), ReplyWriter(f"merge {key} {version}")
        for _ in range(FRAMES):
            frame, request, _ = some(writer, key, version)
            if request.acks == 0:
                continue
            entries, told = with_entries(frame, request, key, version, writer)
            reply = replies.reply(key, version)
            if kafka_python_reply(reply, key, version) is None:
                continue
            message = REPLIES[key].decode(reply, version=version, header=True, framed=True)
            theirs = list(getattr(message, told_array(key)) or ())
            setattr(message, told_array(key), told + theirs)
            expected = bytes(message.encode(header=True, framed=True))
            beginning = merge(reply, key, version, entries)
            assert beginning is not None
            assert beginning[0] + reply[beginning[1] :] == expected
            setattr(message, told_array(key), theirs + told)
            assert merged(reply, key, version, entries) == bytes(message.encode(header=True, framed=True))


@pytest.mark.parametrize("key", sorted({key for key, _ in SPLIT}))
def test_a_reply_is_merged_as_soon_as_its_count_is_there(key: int) -> None:
    for version in (version for api, version in SPLIT if api == key):
        reply = ReplyWriter(f"beginning {key} {version}").reply(key, version)
        whole = merge(reply, key, version, [b"entry"])
        assert whole is not None
        for length in range(len(reply)):
            assert merge(reply[:length], key, version, [b"entry"]) == (None if length < whole[1] else whole)


def test_the_client_gets_each_of_its_topics_once() -> None:
    """What was denied and what the broker answers are, together, what was asked."""
    for key, version in SPLIT:
        writer = Writer(f"together {key} {version}")
        frame, request, denied = some(writer, key, version)
        if request.acks == 0:
            continue
        rest = without(frame, request, denied)
        answered = denials.denial(skim(rest), rest, denials.UNKNOWN_TOPIC_ID)  # as if by the broker
        assert answered is not None
        whole = merged(answered, key, version, denials.entries(request, frame, dict.fromkeys(denied, 29)))
        for tree in reply_trees(whole, key, version):
            told = sorted(topic_word(topic) for topic in tree[told_array(key)])
            assert told == sorted(topic_word(topic) for topic in request_tree(frame)[asked_array(key, version)])


def test_a_mutated_reply_is_merged_or_malformed_and_nothing_else() -> None:
    writer = ReplyWriter("mutated merges")
    outcomes = {"malformed": 0, "merged": 0, "more": 0}
    for _ in range(3_000):
        key, version = writer.random.choice(SPLIT)
        frame = writer.mutated(writer.reply(key, version))
        frame = (len(frame) - 4).to_bytes(4, "big") + frame[4:]
        try:
            beginning = merge(frame, key, version, [b"entry"])
            if beginning is None:
                outcomes["more"] += 1
                continue
            told = beginning[0] + frame[beginning[1] :]
            assert int.from_bytes(told[:4], "big") == len(told) - 4
            told = merged(frame, key, version, [b"entry"])
            assert int.from_bytes(told[:4], "big") == len(told) - 4
            outcomes["merged"] += 1
        except MalformedError:
            outcomes["malformed"] += 1
    assert outcomes["merged"] > 300, outcomes
    assert outcomes["malformed"] > 300, outcomes
