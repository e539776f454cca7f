"""A request without some of what it names, and a reply with the errors, are what a client and a broker would have written."""

from typing import Any

import pytest
from kafka.protocol.consumer import OffsetFetchRequest

from parsers.kafka import denials
from parsers.kafka.frame import MalformedError
from parsers.kafka.messages import MESSAGES
from parsers.kafka.request import Named, Request, skim
from parsers.kafka.splits import may_be_split, merge, merged, place_of, splits_exactly, without
from tests.property.kafka_reply_words import (
    REPLIES,
    ReplyWriter,
    asked_elements,
    asked_trees,
    element_word,
    kafka_python_reply,
    kio_reply,
    reply_trees,
    request_tree,
    told_elements,
    told_trees,
    with_asked,
    with_told,
)
from tests.property.kafka_words import KAFKA_PYTHON, VERSIONS, Writer

FRAMES = 5  # per API and version
PLACE = ("Groups", "Topics")  # of OffsetFetch, since it has groups
SPLIT = [(key, version) for key, version in VERSIONS if splits_exactly(key, version)]


def test_requests_are_taken_apart_where_the_broker_answers_name_by_name() -> None:
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
        "FindCoordinator",
        "DescribeGroups",
        "ConsumerGroupDescribe",
        "ShareGroupDescribe",
        "StreamsGroupDescribe",
        "DeleteGroups",
        "DescribeTransactions",
        "DescribeConfigs",
        "AlterConfigs",
        "IncrementalAlterConfigs",
    }
    assert not any(splits_exactly(10, version) for version in range(4)), "FindCoordinator of one group"
    assert not may_be_split(offset_fetch(("a", ["orders"]), ("b", ["orders"]))), "each group has topics of its own"
    assert not may_be_split(offset_fetch(("a", ["orders"]), ("b", None))), "all topics of one of the groups"
    assert not may_be_split(offset_fetch(("a", []), ("b", None))), "no topics of one of the groups"
    assert may_be_split(offset_fetch(("a", None), ("b", None)))
    assert may_be_split(offset_fetch(("a", ["orders"])))
    assert not any(splits_exactly(24, version) for version in range(6)), "AddPartitionsToTxn is all or nothing"


def offset_fetch(*groups: tuple[str, list[str] | None]) -> Request:
    """A request for the offsets of these groups in these topics."""
    group = OffsetFetchRequest.OffsetFetchRequestGroup
    topic = group.OffsetFetchRequestTopics
    asked = [
        group(group_id=name, topics=None if topics is None else [topic(name=one, partition_indexes=[0]) for one in topics])
        for name, topics in groups
    ]
    message = OffsetFetchRequest(version=8, groups=asked, require_stable=False)
    message.with_header(1, "me")
    return skim(bytes(message.encode(version=8, header=True, framed=True)))


def some(writer: Writer, key: int, version: int) -> tuple[bytes, Request, list[int]]:
    """A request that names several things, and the positions of some of them but not all."""
    while True:
        frame = writer.kafka_python(key, version) if key in KAFKA_PYTHON else writer.kio(key, version)
        request = skim(frame)
        if len(request.elements) > 1 and may_be_split(request) and not (key == 9 and request.named):
            count = writer.random.randrange(1, len(request.elements))
            return frame, request, writer.random.sample(range(len(request.elements)), count)


def words(request: Request) -> list[object]:
    """What the elements of a request's array are called."""
    return [one.resource if isinstance(one, Named) else (one.name, one.topic_id) for one in request.elements]


@pytest.mark.parametrize("key", sorted({key for key, _ in SPLIT}))
def test_a_request_without_some_is_the_one_that_its_client_would_have_written_without_them(key: int) -> None:
    for version in (version for api, version in SPLIT if api == key):
        writer = Writer(f"without {key} {version}")
        for _ in range(FRAMES):
            frame, request, denied = some(writer, key, version)
            rest = [element for position, element in enumerate(asked_elements(frame)) if position not in denied]
            found = without(frame, request, denied)
            assert found == with_asked(frame, rest)
            assert words(skim(found)) == [word for position, word in enumerate(words(request)) if position not in denied]


@pytest.mark.parametrize("version", [version for key, version in SPLIT if key == 3 and version > 0])
def test_metadata_without_any_of_its_topics_asks_for_the_brokers_alone(version: int) -> None:
    """Clients take no notice of Metadata without brokers, so the broker has to say even that all topics are denied."""
    writer = Writer(f"brokers {version}")
    frame, request, _ = some(writer, 3, version)
    found = skim(without(frame, request, range(len(request.topics))))
    assert not found.topics
    assert not found.all_topics


def with_entries(frame: bytes, request: Request, key: int, version: int, writer: Writer) -> tuple[list[bytes], list[Any]]:
    """Entries for some elements of a request, and what others read in them."""
    number = len(request.elements)
    codes = dict.fromkeys(writer.random.sample(range(number), max(1, number // 2)), 29)
    denial = denials.denial(request, frame, 29, codes)
    assert denial is not None
    told = told_elements(denial, key, version)
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
            reply = sound(replies, key, version)
            theirs = told_elements(reply, key, version)
            beginning = merge(reply, key, version, place_of(request), entries)
            assert beginning is not None
            assert beginning[0] + reply[beginning[1] :] == with_told(reply, key, version, told + theirs)
            assert merged(reply, key, version, place_of(request), entries) == with_told(reply, key, version, theirs + told)


@pytest.mark.parametrize("key", sorted({key for key, _ in SPLIT}))
def test_a_reply_is_merged_as_soon_as_its_count_is_there(key: int) -> None:
    for version in (version for api, version in SPLIT if api == key):
        reply = sound(ReplyWriter(f"beginning {key} {version}"), key, version)
        place = place_of(some(Writer(f"beginning {key} {version}"), key, version)[1])
        whole = merge(reply, key, version, place, [b"entry"])
        assert whole is not None
        for length in range(len(reply)):
            assert merge(reply[:length], key, version, place, [b"entry"]) == (None if length < whole[1] else whole)


def sound(writer: ReplyWriter, key: int, version: int) -> bytes:
    """A reply that a broker would give to a request of one group, without an error of the whole, and that others can read."""
    while True:
        reply = writer.reply(key, version)
        oracle = kafka_python_reply if key in REPLIES else kio_reply  # which refuses times before 1970
        found = oracle(reply, key, version)
        if found is None or (key == 9 and version >= 8 and len(found[1]["groups"]) != 1):
            continue
        holder = found[1]["groups"][0] if key == 9 and version >= 8 else found[1]
        if not holder.get("error_code"):
            return reply


def test_a_group_that_has_an_error_has_no_topics_beside_it() -> None:
    for version in (version for key, version in SPLIT if key == 9 and version >= 2):
        writer = ReplyWriter(f"errors {version}")
        reply = REPLIES[9].decode(sound(writer, 9, version), version=version, header=True, framed=True)
        (reply.groups[0] if version >= 8 else reply).error_code = 16
        frame = bytes(reply.encode(header=True, framed=True))
        assert merged(frame, 9, version, PLACE if version >= 8 else PLACE[1:], [b"entry"]) == frame


def test_a_reply_about_another_number_of_groups_is_malformed() -> None:
    writer = ReplyWriter("groups")
    for version in (version for key, version in SPLIT if key == 9 and version >= 8):
        for number in (0, 2):
            reply = REPLIES[9].decode(sound(writer, 9, version), version=version, header=True, framed=True)
            reply.groups = [reply.groups[0]] * number
            frame = bytes(reply.encode(header=True, framed=True))
            for put in (merge, merged):
                with pytest.raises(MalformedError, match="not-one-group"):
                    put(frame, 9, version, PLACE, [b"entry"])


def test_the_client_gets_each_of_its_names_once() -> None:
    """What was denied and what the broker answers are, together, what was asked."""
    for key, version in SPLIT:
        writer = Writer(f"together {key} {version}")
        frame, request, denied = some(writer, key, version)
        if request.acks == 0:
            continue
        rest = without(frame, request, denied)
        answered = denials.denial(skim(rest), rest, denials.UNKNOWN_TOPIC_ID)  # as if by the broker
        assert answered is not None
        whole = merged(answered, key, version, place_of(request), denials.entries(request, frame, dict.fromkeys(denied, 29)))
        for tree in reply_trees(whole, key, version):
            told = sorted(element_word(element) for element in told_trees(tree, key, version))
            assert told == sorted(map(element_word, asked_trees(request_tree(frame), key, version)))


def test_a_mutated_reply_is_merged_or_malformed_and_nothing_else() -> None:
    writer, asking = ReplyWriter("mutated merges"), Writer("mutated merges")
    outcomes = {"malformed": 0, "merged": 0, "more": 0}
    for _ in range(3_000):
        key, version = writer.random.choice(SPLIT)
        frame = writer.mutated(writer.reply(key, version))
        place = place_of(some(asking, key, version)[1])
        frame = (len(frame) - 4).to_bytes(4, "big") + frame[4:]
        try:
            beginning = merge(frame, key, version, place, [b"entry"])
            if beginning is None:
                outcomes["more"] += 1
                continue
            told = beginning[0] + frame[beginning[1] :]
            assert int.from_bytes(told[:4], "big") == len(told) - 4
            told = merged(frame, key, version, place, [b"entry"])
            assert int.from_bytes(told[:4], "big") == len(told) - 4
            outcomes["merged"] += 1
        except MalformedError:
            outcomes["malformed"] += 1
    assert outcomes["merged"] > 300, outcomes
    assert outcomes["malformed"] > 300, outcomes
