"""Denials are replies as the broker would give them: for exactly what was asked, with the codes that clients understand.

Where a reply repeats its request is written here by hand, from the protocol guide and from what the broker does; kafka-python
and kio read the replies.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from parsers.kafka import denials
from parsers.kafka.frame import MalformedError
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.messages import MESSAGES
from parsers.kafka.request import Named, Request, Topic, skim
from parsers.kafka.splits import splits_exactly
from parsers.kafka.wire import ELEMENTS_MAX
from tests.property.kafka_reply_words import element_word, error_codes, reply_trees, request_tree, told_array
from tests.property.kafka_words import VERSIONS, Writer

FRAMES = 3  # per API, version and code
CODES = (29, 30, 31, 53, 100)
ANSWERABLE = [(key, version) for key, version in VERSIONS if key in MESSAGES]
SASL = (17, 36)


class Place(NamedTuple):
    """Paths: of the topics (or groups, ...) of a request, and of their partitions; and of the same in the reply."""

    asked: str
    asked_partitions: str
    told: str
    told_partitions: str


_INDEXED = Place("topics", "partitions.partition_index", "topics", "partitions.partition_index")
_LISTED = Place("topics", "partition_indexes", "topics", "partitions.partition_index")
_BARE = Place("topics", "", "topics", "")
TOPICS: dict[str, Place] = {
    "Produce": Place("topic_data", "partition_data.index", "responses", "partition_responses.index"),
    "Fetch": Place("topics", "partitions.partition", "responses", "partitions.partition_index"),
    "ListOffsets": _INDEXED,
    "Metadata": _BARE,
    "OffsetCommit": _INDEXED,
    "OffsetFetch": _LISTED,
    "CreateTopics": _BARE,
    "DeleteTopics": _BARE._replace(told="responses"),
    "DeleteRecords": _INDEXED,
    "OffsetForLeaderEpoch": Place("topics", "partitions.partition", "topics", "partitions.partition"),
    "AddPartitionsToTxn": Place(
        "v3_and_below_topics", "partitions", "results_by_topic_v3_and_below", "results_by_partition.partition_index"
    ),
    "WriteTxnMarkers": Place("markers.topics", "partition_indexes", "markers.topics", "partitions.partition_index"),
    "TxnOffsetCommit": _INDEXED,
    "AlterReplicaLogDirs": Place("dirs.topics", "partitions", "results", "partitions.partition_index"),
    "CreatePartitions": _BARE._replace(told="results"),
    "ElectLeaders": Place("topic_partitions", "partitions", "replica_election_results", "partition_result.partition_id"),
    "AlterPartitionReassignments": _INDEXED._replace(told="responses"),
    "OffsetDelete": _INDEXED,
    "DescribeProducers": _LISTED,
    "ListPartitionReassignments": _LISTED,
    "DescribeTopicPartitions": _BARE,
    "DescribeShareGroupOffsets": Place("groups.topics", "partitions", "groups.topics", "partitions.partition_index"),
    "AlterShareGroupOffsets": _INDEXED._replace(told="responses"),
    "DeleteShareGroupOffsets": _BARE._replace(told="responses"),
}
OTHERS: dict[str, tuple[str, str]] = {  # the names that are asked for, and those that the reply is about
    "DescribeGroups": ("groups", "groups.group_id"),
    "ConsumerGroupDescribe": ("group_ids", "groups.group_id"),
    "ShareGroupDescribe": ("group_ids", "groups.group_id"),
    "StreamsGroupDescribe": ("group_ids", "groups.group_id"),
    "DescribeShareGroupOffsets": ("groups.group_id", "groups.group_id"),
    "DeleteGroups": ("groups_names", "results.group_id"),
    "FindCoordinator": ("coordinator_keys", "coordinators.key"),
    "OffsetFetch": ("groups.group_id", "groups.group_id"),
    "DescribeTransactions": ("transactional_ids", "transaction_states.transactional_id"),
    "DescribeConfigs": ("resources.resource_name", "results.resource_name"),
    "AlterConfigs": ("resources.resource_name", "responses.resource_name"),
    "IncrementalAlterConfigs": ("resources.resource_name", "responses.resource_name"),
    "AlterClientQuotas": ("entries.entity.entity_name", "entries.entity.entity_name"),
}
# The group's, or the call's, own error makes the list of topics unnecessary.
EITHER = {"OffsetFetch", "OffsetDelete", "DescribeShareGroupOffsets", "AlterShareGroupOffsets", "DeleteShareGroupOffsets"}
NEVER_AT_THE_TOP = {"Fetch", "Metadata"}
# They name topics, but the broker wants a right to the cluster.
CLUSTER = {
    "WriteTxnMarkers",
    "AlterReplicaLogDirs",
    "DescribeLogDirs",
    "ElectLeaders",
    "AlterPartitionReassignments",
    "ListPartitionReassignments",
    "DescribeQuorum",
}


def nodes(tree: Any, path: str) -> list[Any]:
    """What stands at ``path``, through all arrays."""
    found = [tree]
    for step in path.split("."):
        inner = [node[step] for node in found if step in node]
        found = [item for value in inner for item in (value if isinstance(value, list | tuple) else [value])]
    return [node for node in found if node is not None]


class Told(NamedTuple):
    topic: str
    partitions: tuple[int, ...]
    codes: tuple[int, ...]  # of the partitions, or the one of the topic where it has none; 31 where neither has one


def topics_asked(tree: Any, place: Place) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (element_word(node), tuple(nodes(node, place.asked_partitions)) if place.asked_partitions else ())
        for node in nodes(tree, place.asked)
    ]


def topics_told(tree: Any, place: Place) -> list[Told]:
    found = []
    for node in nodes(tree, place.told):
        partitions: Sequence[int] = ()
        inner = [node]
        if place.told_partitions:
            array, index = place.told_partitions.split(".")
            inner = node[array]
            partitions = [partition[index] for partition in inner]
        found.append(Told(element_word(node), tuple(partitions), tuple(next(error_codes(item), 31) for item in inner)))
    return found


def place_of(request: Request) -> Place | None:
    api, version = request.api, request.version
    place = TOPICS.get(api)
    if place is None or (api == "AddPartitionsToTxn" and version >= 4):  # the brokers' own, refused as a whole
        return None
    if api == "OffsetFetch" and version >= 8:
        return place._replace(asked="groups.topics", told="groups.topics")
    if api == "DeleteTopics" and version < 6:
        return place._replace(asked="topic_names")
    return place


def expected_topics(request: Request, tree: Any, code: int, by_position: Mapping[int, int]) -> list[Told]:
    place = place_of(request)
    assert place is not None
    found = []
    for position, (topic, partitions) in enumerate(topics_asked(tree, place)):
        mine = by_position.get(position, code)
        found.append(Told(topic, partitions, (mine,) * len(partitions) if place.told_partitions else (mine,)))
    return found


def without_topics(request: Request, code: int) -> bool:
    if request.api not in EITHER or code in (29, 100):
        return False
    return not (request.api == "OffsetFetch" and request.version < 2)  # which has no error but that of a partition


@pytest.mark.parametrize("key", MESSAGES)
def test_a_denial_is_about_exactly_what_was_asked(key: int) -> None:
    for version in (version for api, version in ANSWERABLE if api == key):
        writer = Writer(f"denial {key} {version}")
        for code in CODES * FRAMES:
            frame = writer.frame(key, version)
            request, asked = skim(frame), request_tree(frame)
            chosen = (
                [i for i in range(len(request.elements)) if writer.random.random() < 0.3]
                if code == 29 and splits_exactly(key, version)
                else []
            )
            by_position = dict.fromkeys(chosen, 100)
            reply = denials.denial(request, frame, code, by_position)
            if key == 0 and request.acks == 0:
                assert reply is None
                continue
            assert reply is not None
            for told in reply_trees(reply, key, version):
                check(request, asked, told, code, by_position)


def check(request: Request, asked: Any, told: Any, code: int, by_position: Mapping[int, int]) -> None:
    api, version = request.api, request.version
    if api in CLUSTER or (request.of_brokers and api != "Fetch"):
        code = 31
    elif request.of_brokers and code == 31:
        code = 29  # so a broker answers who fetches as a follower and may not
    seen = set(error_codes(told)) - {0}
    if request.api_key in SASL:
        assert seen == {58}
        return
    if "resources" in asked:
        check_resources(asked, told, by_position)
        return
    if api == "AddPartitionsToTxn" and request.of_brokers:
        assert seen == {31}
        return
    assert seen <= {code, *by_position.values()}
    if "error_code" in told:
        at_the_top = api not in NEVER_AT_THE_TOP and (api not in EITHER or code not in (29, 100))
        assert int(told["error_code"]) == (code if at_the_top else 0)
    place = place_of(request)
    if place is not None:
        assert topics_told(told, place) == (
            [] if without_topics(request, code) else expected_topics(request, asked, code, by_position)
        )
    if api in OTHERS:
        names, told_names = (nodes(tree, path) for tree, path in zip((asked, told), OTHERS[api], strict=True))
        assert told_names == names
        if splits_exactly(request.api_key, version) and api not in EITHER:
            codes = [int(node["error_code"]) for node in told[told_array(request.api_key)]]
            assert codes == [by_position.get(position, code) for position in range(len(names))]
        assert bool(names) <= bool(seen) or api in EITHER
    if (api, version) in (("DescribeLogDirs", 0), ("DescribeLogDirs", 1), ("DescribeLogDirs", 2)):
        assert not told["results"]  # which clients take for a denial: there is no room for an error
    elif place is None and api not in OTHERS:
        count = {"CreateAcls": "creations", "DeleteAcls": "filters"}.get(api)
        assert seen == {code} or (count and not asked[count]) or (api == "AlterUserScramCredentials" and not told["results"])


def check_resources(asked: Any, told: Any, by_position: Mapping[int, int]) -> None:
    """Of configurations: each with its own code, or with that of its kind of resource."""
    results = told.get("results", told.get("responses"))
    kinds = {2: 29, 32: 30}
    assert [(result["resource_type"], result["resource_name"], int(result["error_code"])) for result in results] == [
        (
            resource["resource_type"],
            resource["resource_name"],
            by_position.get(position, kinds.get(resource["resource_type"], 31)),
        )
        for position, resource in enumerate(asked["resources"])
    ]


def code_of(element: Topic | Named) -> int:
    """Of one that is denied."""
    return 29 if isinstance(element, Topic) else denials.code_of(element.resource)


@pytest.mark.parametrize("key", MESSAGES)
def test_entries_are_the_elements_of_a_denial_and_no_others(key: int) -> None:
    """They are those of its bytes that are about these topics, groups and so on."""
    for version in (version for api, version in ANSWERABLE if api == key):
        writer = Writer(f"entries {key} {version}")
        for _ in range(FRAMES):
            frame = writer.frame(key, version)
            request = skim(frame)
            if not splits_exactly(key, version) or request.array is None or not request.elements or request.acks == 0:
                continue
            known = {i: code_of(element) for i, element in enumerate(request.elements)}
            codes = {i: code for i, code in known.items() if code is not None and writer.random.random() < 0.5}
            found = denials.entries(request, frame, codes)
            assert len(found) == len(codes)
            whole = denials.denial(request, frame, next(iter(codes.values()), 29))
            assert whole is not None
            at = 0
            for element in found:
                at = whole.index(element, at) + len(element)


def frame_of(body: bytes, key: int, version: int, flexible: bool) -> bytes:
    head = key.to_bytes(2, "big") + version.to_bytes(2, "big") + (7).to_bytes(4, "big") + b"\xff\xff" + b"\0" * flexible
    return (len(head) + len(body)).to_bytes(4, "big") + head + body


def test_a_denied_group_is_told_to_the_oldest_versions_of_offset_fetch_with_each_partition() -> None:
    """They have no other place for an error, and an empty reply would say that there is no offset to go on from."""
    for version in (0, 1):
        body = b"\0\1g" + b"\0\0\0\1" + b"\0\1t" + b"\0\0\0\2" + (5).to_bytes(4, "big") + (6).to_bytes(4, "big")
        frame = frame_of(body, 9, version, False)
        reply = denials.denial(skim(frame), frame, 30)
        assert reply is not None
        for tree in reply_trees(reply, 9, version):
            [topic] = tree["topics"]
            told = [(p["partition_index"], int(p["error_code"]), p["committed_offset"]) for p in topic["partitions"]]
            assert told == [(5, 30, -1), (6, 30, -1)]


def test_the_code_is_that_of_what_the_broker_asks_for_first() -> None:
    resources = ("topic:a", "group:g", "transactionalId:t")
    assert denials.denied_code(resources, lambda _: False) == 53
    assert denials.denied_code(resources, lambda resource: resource.startswith("trans")) == 30
    assert denials.denied_code(resources, lambda resource: resource != "topic:a") == 29
    assert denials.denied_code(resources, lambda _: True) == 31
    assert denials.denied_code((), lambda _: False) == 31


def test_partitions_that_were_not_denied_have_not_been_attempted() -> None:
    """AddPartitionsToTxn is all or nothing."""
    names = b"".join(b"\0\1" + name + b"\0\0\0\1\0\0\0\0" for name in (b"a", b"b", b"c"))
    frame = frame_of(b"\0\1x" + bytes(8) + bytes(2) + b"\0\0\0\3" + names, 24, 0, False)
    request = skim(frame)
    reply = denials.denial(request, frame, 29, denials.not_attempted(request, [1]))
    assert reply is not None
    tree = reply_trees(reply, 24, 0)[0]
    assert list(error_codes(tree)) == [55, 29, 55]


def test_a_fetch_session_ends_with_its_error_alone() -> None:
    for version in (version for key, version in ANSWERABLE if key == 1 and version >= 7):
        frame = Writer(f"session {version}").frame(1, version)
        for code in (70, 71):
            for tree in reply_trees(denials.fetch_session_error(skim(frame), code), 1, version):
                assert (int(tree["error_code"]), tree["session_id"], list(tree["responses"])) == (code, 0, [])


def test_a_newer_client_is_told_in_version_0_what_versions_there_are() -> None:
    for tree in reply_trees(denials.unsupported_version(-5, 0, 4), 18, 0):
        assert int(tree["error_code"]) == 35
        assert [tuple(entry.values()) for entry in tree["api_keys"]] == [(18, 0, 4)]


@pytest.mark.parametrize("key", REQUESTS.keys() - MESSAGES.keys())
def test_what_cannot_be_answered_says_so(key: int) -> None:
    frame = Writer("unanswerable").frame(key, REQUESTS[key].layouts[-1][1])
    with pytest.raises(MalformedError, match="unsupported-version"):
        denials.denial(skim(frame), frame, 29)


def test_whatever_can_be_skimmed_can_be_refused() -> None:
    """Mutated requests: a sound reply, or MalformedError, and nothing else."""
    writer = Writer("mutated denials")
    answered = 0
    for _ in range(2_000):
        frame = writer.mutated(writer.any_frame())
        try:
            request = skim(frame)
        except Exception:
            continue
        if request.api_key not in MESSAGES:
            continue
        reply = denials.denial(request, frame, 29)
        if reply is not None:
            assert reply_trees(reply, request.api_key, request.version)
            answered += 1
    assert answered > 200


def test_the_largest_denial_takes_time_and_room_in_proportion() -> None:
    def refused(partitions: int) -> tuple[float, int]:
        body = b"\xff\xff" + b"\0\1" + bytes(4) + b"\0\0\0\1" + b"\0\1t" + partitions.to_bytes(4, "big")
        body += b"".join(index.to_bytes(4, "big") + b"\xff\xff\xff\xff" for index in range(partitions))
        frame = frame_of(body, 0, 8, False)
        request = skim(frame)
        begun = time.thread_time()
        reply = denials.denial(request, frame, 29)
        assert reply is not None
        return time.thread_time() - begun, len(reply)

    assert refused(ELEMENTS_MAX - 1)[1] < 80 * ELEMENTS_MAX
    with pytest.raises(MalformedError, match="too-many-elements") as caught:
        refused(ELEMENTS_MAX)
    assert caught.value.limit == "ELEMENTS_MAX"
