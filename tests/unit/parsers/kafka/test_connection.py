"""One Kafka connection, bytes in and verbs out: who is asked, what goes by, what we say ourselves, and in which order."""

import os
import random
import struct
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import msgspec
import pytest
from kafka.protocol.admin import DescribeConfigsRequest, DescribeConfigsResponse, DescribeGroupsRequest, DescribeGroupsResponse
from kafka.protocol.consumer import FetchRequest, FetchResponse, OffsetFetchRequest, OffsetFetchResponse
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse
from kafka.protocol.producer import AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, ProduceRequest, ProduceResponse

from parsers.contract import ApiCall, Direction, Fail, Hold, Outage
from parsers.kafka import connection
from parsers.kafka.connection import OWN_ANSWERS_MAX, SUPPORTED, KafkaParser
from parsers.kafka.metadata import _TOPIC, TURN
from parsers.kafka.request import MAX_ELEMENTS
from parsers.kafka.sasl import BARE_MAX
from policies.decide import Decision, Verdict
from proxy.flow import HEAD_TIMEOUT, Close
from proxy.worker import _parser as parser_of
from tests.flow_playbook import Dialogue, Policy, Records
from tests.kafka import raw
from tests.unit.policies.words import kafka_policy, policy_set

SOAK = os.environ.get("SLUICE_SOAK") == "1"
ORDERS, SECRETS = "orders", "secrets"
ORDERS_ID, SECRETS_ID, LOST_ID = (bytes([number]) * 16 for number in (1, 2, 3))


class Rules(Policy):
    """Everything is allowed but topics, groups and transactional ids that begin with "secret", and what ``refused`` names."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    def decide(self, call: ApiCall) -> Decision:  # type: ignore[override]
        self.asked.append(call)

        def granting(resource: str) -> bool:
            return not resource.partition(":")[2].startswith("secret")

        denied = [resource for resource in call.resources if not granting(resource)]
        apart = [resource for resource in call.resources if call.separate or resource.startswith("topic:")]
        some = call.divisible and set(denied) < set(apart)
        if call.method in self.refused:
            verdict = Verdict.DENIED
        elif not denied and not call.all_topics:
            return Decision(verdict=Verdict.ALLOWED, reason="rule-matched", generation=1)
        elif some or call.all_topics or call.remainder:
            verdict = Verdict.PARTIAL
        else:
            verdict = Verdict.DENIED
        per_resource = {one: Verdict.DENIED if one in denied else Verdict.ALLOWED for one in call.resources}
        return Decision(
            verdict=verdict,
            reason="no-rule-matched",
            generation=1,
            granting=granting,
            per_resource=per_resource if verdict is Verdict.PARTIAL else None,
        )


class AllTopics(Rules):
    """The same, but who asks for all topics may have them."""

    def decide(self, call: ApiCall) -> Decision:  # type: ignore[override]
        return super().decide(msgspec.structs.replace(call, all_topics=False))


def talk() -> Dialogue:
    return Dialogue(KafkaParser(), policy=Rules(), sink=Records(10_000))


def encoded(message: Any, correlation_id: int, client_id: str | None = "me") -> bytes:
    return raw.encoded(message, correlation_id, client_id)


def produce(correlation_id: int, *topics: str, acks: int = -1, records: bytes = b"r" * 20) -> bytes:
    topic, partition = ProduceRequest.TopicProduceData, ProduceRequest.TopicProduceData.PartitionProduceData
    data = [topic(name=name, partition_data=[partition(index=0, records=records)]) for name in topics]
    return encoded(ProduceRequest(version=9, transactional_id=None, acks=acks, timeout_ms=1, topic_data=data), correlation_id)


def produced(correlation_id: int, *topics: str) -> bytes:
    topic = ProduceResponse.TopicProduceResponse
    partition = topic.PartitionProduceResponse
    done = [
        topic(
            name=name,
            partition_responses=[
                partition(
                    index=0,
                    error_code=0,
                    base_offset=7,
                    log_append_time_ms=-1,
                    log_start_offset=0,
                    record_errors=[],
                    error_message=None,
                )
            ],
        )
        for name in topics
    ]
    return encoded(ProduceResponse(version=9, responses=done, throttle_time_ms=0), correlation_id)


def results(frame: bytes) -> tuple[int, dict[str, int]]:
    """The correlation id of a Produce reply, and the errors by topic."""
    reply = ProduceResponse.decode(frame, version=9, header=True, framed=True)
    errors = {topic.name: topic.partition_responses[0].error_code for topic in reply.responses}
    return reply.header.correlation_id, errors


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        assert len(data) >= size
        found.append(data[:size])
        data = data[size:]
    return found


class TestPassing:
    def test_an_allowed_request_and_its_reply_go_by_unchanged(self) -> None:
        play = talk().client(produce(1, ORDERS))
        assert play.to_server == produce(1, ORDERS)
        play.server(produced(1, ORDERS))
        assert play.to_client == produced(1, ORDERS)
        record = play.records[0]
        assert (record.method, record.resources, record.status) == ("Produce", ("topic:orders",), "kafka:0")
        assert (record.api_version, record.client_id, record.principal) == (9, "me", None)
        assert (record.bytes_request, record.bytes_reply) == (len(produce(1, ORDERS)), len(produced(1, ORDERS)))

    def test_records_are_forwarded_before_all_of_them_are_here(self) -> None:
        frame = produce(1, ORDERS, records=bytes(1_000_000))
        play = talk().client(frame[:200])
        assert play.to_server == frame[:200]

    def test_without_acks_there_is_no_reply_to_wait_for(self) -> None:
        play = talk().client(produce(1, ORDERS, acks=0)).client(produce(2, ORDERS)).server(produced(2, ORDERS))
        assert [(record.status, record.verdict) for record in play.records] == [(None, "ALLOWED"), ("kafka:0", "ALLOWED")]

    def test_a_reply_that_nobody_asked_for_ends_the_connection(self) -> None:
        play = talk().client(produce(1, ORDERS)).server(produced(1, ORDERS)).server(produced(1, ORDERS))
        assert isinstance(play.commands[-1], Close)
        assert play.records[-1].reason == "reply-unasked"

    @pytest.mark.parametrize("records", [1000, 1_000_000])
    def test_a_reply_to_a_request_that_is_not_there_as_a_whole_ends_the_connection(self, records: int) -> None:
        frame = produce(1, ORDERS, records=bytes(records))
        play = talk().client(frame[:200])
        if play.carry[Direction.REQUEST]:
            play.carried(Direction.REQUEST, len(frame) - 201)  # all but the last byte
        play.server(produced(1, ORDERS))
        assert (play.to_client, play.faults) == (b"", [])
        assert isinstance(play.commands[-1], Close)
        assert [(record.reason, record.status) for record in play.records] == [("reply-too-early", "unanswered")]

    def test_a_sound_reply_reaches_the_client_also_when_a_bad_one_comes_with_it(self) -> None:
        play = talk().client(produce(1, ORDERS)).client(produce(2, SECRETS)).client(produce(3, ORDERS))
        play.server(produced(1, ORDERS) + produced(9, ORDERS))
        assert [results(frame) for frame in frames(play.to_client)] == [(1, {ORDERS: 0}), (2, {SECRETS: 29})]
        assert [(record.status, record.reason) for record in play.records] == [
            ("kafka:0", "rule-matched"),
            ("kafka:29", "no-rule-matched"),
            ("unanswered", "reply-out-of-order"),
        ]

    def test_a_reply_out_of_order_ends_the_connection(self) -> None:
        play = talk().client(produce(1, ORDERS)).client(produce(2, ORDERS)).server(produced(2, ORDERS))
        assert play.to_client == b""
        assert play.records[0].reason == "reply-out-of-order"


class TestDenials:
    def test_a_denied_topic_gets_its_own_error_and_the_connection_lives_on(self) -> None:
        play = talk().client(produce(1, SECRETS))
        assert play.to_server == b""
        assert results(play.to_client) == (1, {SECRETS: 29})
        assert (play.records[0].verdict, play.records[0].status) == ("DENIED", "kafka:29")
        play.client(produce(2, ORDERS))
        assert play.to_server == produce(2, ORDERS)

    def test_a_denial_waits_for_the_replies_before_it(self) -> None:
        play = talk().client(produce(1, ORDERS)).client(produce(2, SECRETS)).client(produce(3, ORDERS))
        assert play.to_client == b""
        play.server(produced(1, ORDERS))
        assert [results(frame) for frame in frames(play.to_client)] == [(1, {ORDERS: 0}), (2, {SECRETS: 29})]
        play.server(produced(3, ORDERS))
        assert [results(frame)[0] for frame in frames(play.to_client)] == [1, 2, 3]

    def test_a_denial_waits_for_the_last_byte_of_a_long_reply(self) -> None:
        long = fetched(1, 0, {ORDERS: bytes(connection.READ_WHOLE_MAX)})
        play = talk().client(fetch(1, (0, -1), ORDERS)).client(produce(2, SECRETS)).server(long[:-1])
        assert play.to_client == long[:-1]
        play.server(long[-1:])
        assert play.to_client[: len(long)] == long
        assert results(play.to_client[len(long) :]) == (2, {SECRETS: 29})

    @pytest.mark.parametrize("size", [connection.READ_WHOLE_MAX - 200, connection.READ_WHOLE_MAX + 1, 100_000])
    def test_replies_that_arrive_together_are_told_apart_however_long_they_are(self, size: int) -> None:
        answers = fetched(1, 0, {ORDERS: bytes(size)}) + produced(2, ORDERS) + fetched(3, 0, {ORDERS: bytes(size)})
        play = talk().client(fetch(1, (0, -1), ORDERS) + produce(2, ORDERS) + fetch(3, (0, -1), ORDERS)).server(answers)
        assert play.to_client == answers
        assert [record.status for record in play.records] == ["kafka:0"] * 3

    def test_a_denied_request_without_acks_is_dropped_without_a_word(self) -> None:
        play = talk().client(produce(1, SECRETS, acks=0)).client(produce(2, ORDERS))
        assert (play.to_client, play.to_server) == (b"", produce(2, ORDERS))
        assert play.records[0].verdict == "DENIED"

    def test_of_several_topics_only_the_allowed_ones_reach_the_broker(self) -> None:
        play = talk().client(produce(1, ORDERS, SECRETS, "bills"))
        assert play.to_server == produce(1, ORDERS, "bills")
        play.server(produced(1, ORDERS, "bills"))
        assert results(play.to_client) == (1, {ORDERS: 0, "bills": 0, SECRETS: 29})
        record = play.records[0]
        assert (record.verdict, record.status) == ("PARTIAL", "kafka:29")
        assert record.per_resource == {"topic:orders": "ALLOWED", "topic:secrets": "DENIED", "topic:bills": "ALLOWED"}

    @pytest.mark.parametrize("seed", range(3))
    def test_however_many_are_under_way_replies_come_in_the_order_of_requests(self, seed: int) -> None:
        chance = random.Random(seed)
        count = 10_000 if SOAK else 2000
        play = Dialogue(KafkaParser(), policy=Rules(), sink=Records(count))
        waiting: deque[int] = deque()
        answered = []
        depth = deepest = 0

        def answer() -> None:
            number = waiting.popleft()
            play.server(produced(number, ORDERS))

        for number in range(count):
            topic = ORDERS if chance.random() < 0.5 else SECRETS
            acks = chance.choice((-1, 1, 0))
            play.client(produce(number, topic, acks=acks))
            if acks:
                answered.append((number, {topic: 0 if topic == ORDERS else 29}))
                waiting.extend([number] if topic == ORDERS else ())
            depth = chance.choice((0, 10, 400)) if number % 500 == 0 else depth
            while waiting and (len(waiting) > depth or chance.random() < 0.02):
                answer()
            deepest = max(deepest, len(waiting))
        while waiting:
            answer()
        assert deepest > 100
        assert [results(frame) for frame in frames(play.to_client)] == answered
        assert [record.verdict for record in play.records].count("DENIED") + len(frames(play.to_server)) == count
        assert len(play.records) == count

    def test_a_client_that_does_not_wait_is_held_back(self) -> None:
        play = talk()
        for number in range(connection.OPEN_CALLS_MAX + 5):
            play.client(produce(number, ORDERS))
        assert len(frames(play.to_server)) == connection.OPEN_CALLS_MAX
        assert not play.flow.wants(Direction.REQUEST)
        play.server(produced(0, ORDERS))
        assert len(frames(play.to_server)) == connection.OPEN_CALLS_MAX + 1

    @pytest.mark.parametrize(
        ("transaction", "codes"),
        [("tx", {ORDERS: 55, SECRETS: 29}), ("secret-tx", {ORDERS: 53, SECRETS: 53})],
        ids=["a topic is denied", "the transaction is denied"],
    )
    def test_partitions_of_a_transaction_are_added_all_or_not_at_all(self, transaction: str, codes: dict[str, int]) -> None:
        topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic
        asked = AddPartitionsToTxnRequest(
            version=3,
            v3_and_below_transactional_id=transaction,
            v3_and_below_producer_id=1,
            v3_and_below_producer_epoch=0,
            v3_and_below_topics=[topic(name=name, partitions=[0]) for name in (ORDERS, SECRETS)],
        )
        play = talk().client(encoded(asked, 1))
        assert play.to_server == b""
        told = AddPartitionsToTxnResponse.decode(play.to_client, version=3, header=True, framed=True)
        found = {each.name: each.results_by_partition[0].partition_error_code for each in told.results_by_topic_v3_and_below}
        assert found == codes

    def test_a_connection_on_which_nothing_may_be_said_is_told_so(self) -> None:
        play = talk()
        assert isinstance(play.policy, Rules)
        play.policy.refused = {"Produce"}
        play.client(produce(1, ORDERS))
        assert results(play.to_client)[1] == {ORDERS: 31}


# Groups, transactional ids, configurations


def described_groups(correlation_id: int, *groups: str) -> bytes:
    group = DescribeGroupsResponse.DescribedGroup
    told = [
        group(
            error_code=0,
            group_id=name,
            group_state="Stable",
            protocol_type="consumer",
            protocol_data="",
            members=[],
            authorized_operations=None,
        )
        for name in groups
    ]
    return encoded(DescribeGroupsResponse(version=5, throttle_time_ms=0, groups=told), correlation_id)


def describe_groups(correlation_id: int, *groups: str) -> bytes:
    request = DescribeGroupsRequest(version=5, groups=list(groups), include_authorized_operations=False)
    return encoded(request, correlation_id)


def groups_of(frame: bytes) -> dict[str, int]:
    reply = DescribeGroupsResponse.decode(frame, version=5, header=True, framed=True)
    return {group.group_id: group.error_code for group in reply.groups}


def describe_configs(correlation_id: int, *resources: tuple[int, str]) -> bytes:
    resource = DescribeConfigsRequest.DescribeConfigsResource
    asked = [resource(resource_type=kind, resource_name=name, configuration_keys=None) for kind, name in resources]
    request = DescribeConfigsRequest(version=4, resources=asked, include_synonyms=False, include_documentation=False)
    return encoded(request, correlation_id)


def described_configs(correlation_id: int, *resources: tuple[int, str]) -> bytes:
    result = DescribeConfigsResponse.DescribeConfigsResult
    told = [
        result(error_code=0, error_message=None, resource_type=kind, resource_name=name, configs=[]) for kind, name in resources
    ]
    return encoded(DescribeConfigsResponse(version=4, throttle_time_ms=0, results=told), correlation_id)


def configs_of(frame: bytes) -> dict[tuple[int, str], int]:
    reply = DescribeConfigsResponse.decode(frame, version=4, header=True, framed=True)
    return {(result.resource_type, result.resource_name): result.error_code for result in reply.results}


class TestNames:
    def test_of_several_groups_only_the_allowed_ones_reach_the_broker(self) -> None:
        play = talk().client(describe_groups(1, "secret-a", "billing", "secret-b"))
        assert play.to_server == describe_groups(1, "billing")
        play.server(described_groups(1, "billing"))
        assert groups_of(play.to_client) == {"billing": 0, "secret-a": 30, "secret-b": 30}
        [record] = play.records
        assert (record.verdict, record.status) == ("PARTIAL", "kafka:30")
        assert record.resources == ("group:secret-a", "group:billing", "group:secret-b")
        assert record.per_resource == {"group:secret-a": "DENIED", "group:billing": "ALLOWED", "group:secret-b": "DENIED"}

    def test_a_long_reply_has_the_denied_groups_as_well(self) -> None:
        allowed = [f"billing-{number}" for number in range(1000)]
        play = talk().client(describe_groups(1, *allowed, "secret"))
        reply = described_groups(1, *allowed)
        assert len(reply) > connection.READ_WHOLE_MAX
        for at in range(0, len(reply), 1000):
            play.server(reply[at : at + 1000])
        assert groups_of(play.to_client) == dict.fromkeys(allowed, 0) | {"secret": 30}

    def test_nothing_reaches_the_broker_when_every_group_is_denied(self) -> None:
        play = talk().client(describe_groups(1, "secret-a", "secret-b"))
        assert (play.to_server, groups_of(play.to_client)) == (b"", {"secret-a": 30, "secret-b": 30})

    def test_a_name_that_occurs_twice_is_denied_twice(self) -> None:
        play = talk().client(describe_groups(1, "secret", "billing", "secret")).server(described_groups(1, "billing"))
        reply = DescribeGroupsResponse.decode(play.to_client, version=5, header=True, framed=True)
        assert sorted((group.group_id, group.error_code) for group in reply.groups) == [
            ("billing", 0),
            ("secret", 30),
            ("secret", 30),
        ]

    def test_configurations_are_told_apart_by_what_they_are_of(self) -> None:
        asked = [(2, SECRETS), (2, ORDERS), (32, "secret"), (32, "billing"), (4, "1")]
        play = talk().client(describe_configs(1, *asked))
        left = [(2, ORDERS), (32, "billing"), (4, "1")]
        assert play.to_server == describe_configs(1, *left)
        play.server(described_configs(1, *left))
        assert configs_of(play.to_client) == dict.fromkeys(left, 0) | {(2, SECRETS): 29, (32, "secret"): 30}

    def test_a_broker_s_configuration_is_told_beside_that_of_a_denied_topic(self) -> None:
        play = talk().client(describe_configs(1, (2, SECRETS), (4, "1")))
        assert play.to_server == describe_configs(1, (4, "1"))
        play.server(described_configs(1, (4, "1")))
        assert configs_of(play.to_client) == {(4, "1"): 0, (2, SECRETS): 29}


def fetch_offsets(correlation_id: int, *groups: tuple[str, list[str] | None]) -> bytes:
    group = OffsetFetchRequest.OffsetFetchRequestGroup
    topic = group.OffsetFetchRequestTopics
    asked = [
        group(group_id=name, topics=None if topics is None else [topic(name=one, partition_indexes=[0]) for one in topics])
        for name, topics in groups
    ]
    return encoded(OffsetFetchRequest(version=8, groups=asked, require_stable=False), correlation_id)


def fetched_offsets(correlation_id: int, name: str, *topics: str, error: int = 0) -> bytes:
    group = OffsetFetchResponse.OffsetFetchResponseGroup
    topic = group.OffsetFetchResponseTopics
    partition = topic.OffsetFetchResponsePartitions
    at_seven = partition(partition_index=0, committed_offset=7, committed_leader_epoch=-1, metadata="", error_code=0)
    told = [topic(name=each, partitions=[at_seven]) for each in topics]
    answer = group(group_id=name, topics=told, error_code=error)
    return encoded(OffsetFetchResponse(version=8, throttle_time_ms=0, groups=[answer]), correlation_id)


def offsets_of(frame: bytes) -> list[tuple[str, int, dict[str, int]]]:
    """Of each group its error, and the errors by topic."""
    reply = OffsetFetchResponse.decode(frame, version=8, header=True, framed=True)
    return [
        (group.group_id, group.error_code, {topic.name: topic.partitions[0].error_code for topic in group.topics})
        for group in reply.groups
    ]


class TestOffsets:
    """Since version 8 of OffsetFetch a request may name several groups, each with topics of its own."""

    def test_of_one_group_the_topics_are_told_apart(self) -> None:
        play = talk().client(fetch_offsets(1, ("billing", [SECRETS, ORDERS])))
        assert play.to_server == fetch_offsets(1, ("billing", [ORDERS]))
        play.server(fetched_offsets(1, "billing", ORDERS))
        assert offsets_of(play.to_client) == [("billing", 0, {ORDERS: 0, SECRETS: 29})]

    def test_a_group_s_own_error_is_told_without_topics(self) -> None:
        play = talk().client(fetch_offsets(1, ("billing", [SECRETS, ORDERS])))
        play.server(fetched_offsets(1, "billing", error=16))
        assert play.to_client == fetched_offsets(1, "billing", error=16)

    def test_a_denied_group_denies_the_whole(self) -> None:
        play = talk().client(fetch_offsets(1, ("secret", [ORDERS])))
        assert (play.to_server, offsets_of(play.to_client)) == (b"", [("secret", 30, {})])

    def test_groups_with_all_of_their_topics_are_told_apart(self) -> None:
        groups = [("secret", None), ("billing", None)]
        play = Dialogue(KafkaParser(), policy=AllTopics(), sink=Records(10)).client(fetch_offsets(1, *groups))
        assert play.to_server == fetch_offsets(1, ("billing", None))
        play.server(fetched_offsets(1, "billing", ORDERS))
        assert offsets_of(play.to_client) == [("billing", 0, {ORDERS: 0}), ("secret", 30, {})]
        assert play.records[0].per_resource == {"group:secret": "DENIED", "group:billing": "ALLOWED"}

    def test_of_several_groups_with_topics_of_their_own_one_denies_all(self) -> None:
        play = talk().client(fetch_offsets(1, ("billing", [ORDERS]), ("secret", [ORDERS])))
        assert (play.to_server, offsets_of(play.to_client)) == (b"", [("billing", 30, {}), ("secret", 30, {})])
        play = talk().client(fetch_offsets(1, ("billing", [ORDERS]), ("audit", [SECRETS])))
        assert (play.to_server, len(offsets_of(play.to_client))) == (b"", 2)


# Metadata and topic ids


def metadata(correlation_id: int, topics: Iterable[str] | None) -> bytes:
    named = None if topics is None else [MetadataRequest.MetadataRequestTopic(name=name) for name in topics]
    request = MetadataRequest(
        version=12, topics=named, allow_auto_topic_creation=False, include_topic_authorized_operations=False
    )
    return encoded(request, correlation_id)


def described(correlation_id: int, *topics: tuple[str | None, bytes, int]) -> bytes:
    topic = MetadataResponse.MetadataResponseTopic
    told = [
        topic(error_code=error, name=name, topic_id=_uuid(topic_id), is_internal=False, partitions=[])
        for name, topic_id, error in topics
    ]
    broker = MetadataResponse.MetadataResponseBroker(node_id=1, host="b", port=9092, rack=None)
    reply = MetadataResponse(version=12, throttle_time_ms=0, brokers=[broker], cluster_id="c", controller_id=1, topics=told)
    return encoded(reply, correlation_id)


def _uuid(raw: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=raw)


def topics_of(frame: bytes) -> tuple[int, dict[str, int]]:
    reply = MetadataResponse.decode(frame, version=12, header=True, framed=True)
    assert [broker.host for broker in reply.brokers] == ["b"]
    return reply.header.correlation_id, {topic.name: topic.error_code for topic in reply.topics}


class TestMetadata:
    def test_a_list_of_all_topics_has_those_that_may_be_seen(self) -> None:
        play = talk().client(metadata(1, None))
        assert play.to_server == metadata(1, None)
        play.server(described(1, (ORDERS, ORDERS_ID, 0), (SECRETS, SECRETS_ID, 0), ("secrets2", LOST_ID, 0)))
        assert topics_of(play.to_client) == (1, {ORDERS: 0})

    def test_of_a_topic_that_may_not_be_seen_nothing_is_asked(self) -> None:
        play = talk().client(metadata(1, [ORDERS, SECRETS])).server(described(1, (ORDERS, ORDERS_ID, 0)))
        assert play.to_server == metadata(1, [ORDERS])
        assert topics_of(play.to_client) == (1, {ORDERS: 0, SECRETS: 29})

    def test_who_the_brokers_are_is_told_to_who_asks_for_forbidden_topics_alone(self) -> None:
        play = talk().client(metadata(1, [SECRETS])).server(described(1))
        assert play.to_server == metadata(1, [])
        assert topics_of(play.to_client) == (1, {SECRETS: 29})


def fetch(correlation_id: int, session: tuple[int, int], *topics: str | bytes, forgotten: Iterable[str] = ()) -> bytes:
    topic = FetchRequest.FetchTopic
    partition = topic.FetchPartition
    by_id = any(isinstance(name, bytes) for name in topics)

    def one(name: str | bytes) -> Any:
        partitions = [
            partition(
                partition=0,
                current_leader_epoch=-1,
                fetch_offset=0,
                last_fetched_epoch=-1,
                log_start_offset=-1,
                partition_max_bytes=9,
            )
        ]
        if isinstance(name, bytes):
            return topic(topic_id=_uuid(name), partitions=partitions)
        return topic(topic=name, partitions=partitions)

    request = FetchRequest(
        version=13 if by_id else 12,
        replica_id=-1,
        max_wait_ms=1,
        min_bytes=1,
        max_bytes=9,
        isolation_level=0,
        session_id=session[0],
        session_epoch=session[1],
        topics=[one(name) for name in topics],
        forgotten_topics_data=[FetchRequest.ForgottenTopic(topic=name, partitions=[0]) for name in forgotten],
        rack_id="",
    )
    return encoded(request, correlation_id)


def fetched(correlation_id: int, session_id: int, topics: dict[Any, bytes], error: int = 0) -> bytes:
    topic = FetchResponse.FetchableTopicResponse
    partition = topic.PartitionData
    by_id = any(isinstance(name, bytes) for name in topics)

    def one(name: Any, records: bytes) -> Any:
        partitions = [
            partition(
                partition_index=0, error_code=0, high_watermark=1, last_stable_offset=1, log_start_offset=0,
                aborted_transactions=None, preferred_read_replica=-1, records=records,
            )
        ]  # fmt: skip
        return topic(topic_id=_uuid(name), partitions=partitions) if by_id else topic(topic=name, partitions=partitions)

    reply = FetchResponse(
        version=13 if by_id else 12,
        throttle_time_ms=0,
        error_code=error,
        session_id=session_id,
        responses=[one(name, records) for name, records in topics.items()],
    )
    return encoded(reply, correlation_id)


def got(frame: bytes, version: int = 12) -> tuple[int, int, dict[Any, int]]:
    """Top-level error, session id, and the errors by topic of a Fetch reply."""
    reply = FetchResponse.decode(frame, version=version, header=True, framed=True)
    return (
        reply.error_code,
        reply.session_id,
        {(topic.topic_id.bytes if version > 12 else topic.topic): topic.partitions[0].error_code for topic in reply.responses},
    )


class TestTopicIds:
    def test_ids_go_by_the_names_of_metadata_replies(self) -> None:
        play = talk().client(metadata(1, None)).server(described(1, (ORDERS, ORDERS_ID, 0), (SECRETS, SECRETS_ID, 0)))
        play.client(fetch(2, (0, -1), ORDERS_ID, SECRETS_ID))
        assert play.policy.asked[-1].resources == ("topic:orders", "topic:secrets")
        play.server(fetched(2, 0, {ORDERS_ID: b""}))
        assert got(frames(play.to_client)[-1], 13) == (0, 0, {ORDERS_ID: 0, SECRETS_ID: 29})

    def test_of_an_id_that_is_not_known_the_broker_is_asked_first(self) -> None:
        play = talk().client(fetch(1, (0, -1), ORDERS_ID))
        probe = MetadataRequest.decode(play.to_server, version=12, header=True, framed=True)
        assert [topic.topic_id.bytes for topic in probe.topics] == [ORDERS_ID]
        assert not probe.allow_auto_topic_creation
        play.server(described(probe.header.correlation_id, (ORDERS, ORDERS_ID, 0)))
        assert play.to_client == b"", "that was our question"
        assert frames(play.to_server)[-1] == fetch(1, (0, -1), ORDERS_ID)
        play.server(fetched(1, 0, {ORDERS_ID: b""}))
        assert play.to_client == fetched(1, 0, {ORDERS_ID: b""})
        assert [record.method for record in play.records] == ["Metadata", "Fetch"]

    def test_an_id_that_nobody_knows_is_answered_so_that_the_client_refreshes(self) -> None:
        play = talk().client(fetch(1, (0, -1), LOST_ID))
        play.server(described(0, (None, LOST_ID, 100)))
        assert got(play.to_client, 13) == (0, 0, {LOST_ID: 100})
        assert len(frames(play.to_server)) == 1

    def test_an_id_that_nobody_knows_takes_nothing_from_the_others(self) -> None:
        play = talk().client(metadata(1, None)).server(described(1, (ORDERS, ORDERS_ID, 0)))
        play.client(fetch(2, (0, -1), ORDERS_ID, LOST_ID)).server(described(0, (None, LOST_ID, 100)))
        assert frames(play.to_server)[-1] == fetch(2, (0, -1), ORDERS_ID)
        play.server(fetched(2, 0, {ORDERS_ID: b""}))
        assert got(frames(play.to_client)[-1], 13) == (0, 0, {ORDERS_ID: 0, LOST_ID: 100})
        assert play.records[-1].status == "kafka:100"

    def test_who_may_not_ask_is_told_that_the_id_is_unknown(self) -> None:
        play = talk()
        assert isinstance(play.policy, Rules)
        play.policy.refused = {"Metadata"}
        play.client(fetch(1, (0, -1), ORDERS_ID))
        assert play.to_server == b""
        assert got(play.to_client, 13) == (0, 0, {ORDERS_ID: 100})


class TestFetchSessions:
    """KIP-227."""

    def begun(self, *topics: str) -> Dialogue:
        play = talk().client(fetch(1, (0, 0), *topics))
        allowed = [name for name in topics if not name.startswith("secret")]
        return play.server(fetched(1, 77, dict.fromkeys(allowed, b"")))

    def test_an_incremental_fetch_is_judged_by_the_topics_of_its_session(self) -> None:
        play = self.begun(ORDERS).client(fetch(2, (77, 1)))
        assert play.policy.asked[-1].resources == ("topic:orders",)
        play.server(fetched(2, 77, {})).client(fetch(3, (77, 2), "bills"))
        assert play.policy.asked[-1].resources == ("topic:orders", "topic:bills")

    def test_a_session_of_another_connection_is_as_good_as_none(self) -> None:
        play = talk().client(fetch(1, (77, 1)))
        assert play.to_server == b""
        assert got(play.to_client) == (70, 0, {})

    def test_denied_topics_stay_denied_in_every_reply(self) -> None:
        play = self.begun(ORDERS, SECRETS)
        assert frames(play.to_server)[0] == fetch(1, (0, 0), ORDERS)
        assert got(play.to_client) == (0, 77, {ORDERS: 0, SECRETS: 29})
        play.client(fetch(2, (77, 1))).server(fetched(2, 77, {}))
        assert got(frames(play.to_client)[-1]) == (0, 77, {SECRETS: 29})

    def test_denied_topics_of_a_session_are_bounded(self) -> None:
        play = self.begun(ORDERS)
        for epoch in range(1, 400):
            play.client(fetch(epoch + 1, (77, epoch), ORDERS, *(f"secret-{epoch}-{i:0200}" for i in range(20))))
            if play.flow.over:
                break
            play.server(fetched(epoch + 1, 77, {}))
        assert play.records[-1].limit == "MAX_DENIED_BYTES"
        assert len(frames(play.to_client)[-1]) < 300 * 1024

    def test_further_partitions_of_a_denied_topic_take_nothing_from_the_earlier_ones(self) -> None:
        play = self.begun(ORDERS, SECRETS)
        play.client(fetch(2, (77, 1), ORDERS, SECRETS)).server(fetched(2, 77, {}))
        told = FetchResponse.decode(frames(play.to_client)[-1], version=12, header=True, framed=True)
        assert [topic.topic for topic in told.responses] == [SECRETS, SECRETS]

    def test_a_denied_topic_that_is_forgotten_is_not_told_of_again(self) -> None:
        play = self.begun(ORDERS, SECRETS).client(fetch(2, (77, 1), forgotten=[SECRETS])).server(fetched(2, 77, {}))
        assert got(frames(play.to_client)[-1]) == (0, 77, {})

    def test_what_is_forgotten_is_forgotten_only_when_the_broker_agrees(self) -> None:
        play = self.begun(ORDERS, "bills").client(fetch(2, (77, 9), forgotten=["bills"])).server(fetched(2, 0, {}, error=71))
        play.client(fetch(3, (77, 1)))
        assert play.policy.asked[-1].resources == ("topic:orders", "topic:bills")
        play.server(fetched(3, 77, {})).client(fetch(4, (77, 2), forgotten=["bills"])).server(fetched(4, 77, {}))
        play.client(fetch(5, (77, 3)))
        assert play.policy.asked[-1].resources == ("topic:orders",)

    def test_a_session_that_is_not_allowed_any_more_has_to_begin_anew(self) -> None:
        play = self.begun(ORDERS, "bills")
        play.policy.decide = lambda call: Decision(  # type: ignore[method-assign]
            verdict=Verdict.PARTIAL,
            reason="no-rule-matched",
            generation=2,
            per_resource={},
            granting=lambda resource: resource != "topic:bills",
        )
        play.client(fetch(2, (77, 1)))
        assert got(frames(play.to_client)[-1]) == (70, 0, {})
        assert len(frames(play.to_server)) == 1


class TestVersions:
    def test_only_what_can_be_judged_is_offered(self) -> None:
        offer = ApiVersionsResponse.ApiVersion
        ranges = ((0, 0, 99), (3, 5, 7), (78, 0, 1), (999, 0, 1))
        offers = [offer(api_key=key, min_version=low, max_version=high) for key, low, high in ranges]
        reply = encoded(ApiVersionsResponse(version=3, error_code=0, api_keys=offers, throttle_time_ms=0), 1)
        asked = encoded(ApiVersionsRequest(version=3, client_software_name="x", client_software_version="1"), 1)
        play = talk().client(asked).server(reply)
        told = ApiVersionsResponse.decode(play.to_client, version=3, header=True, framed=True)
        assert [(one.api_key, one.min_version, one.max_version) for one in told.api_keys] == [
            (0, 0, SUPPORTED[0][1]),
            (3, 5, 7),
        ]

    def test_a_newer_client_is_told_which_versions_there_are(self) -> None:
        play = talk().client(struct.pack(">ihhih", 30, 18, 99, 5, -1) + bytes(20))
        assert play.to_server == b""
        size, correlation_id, error, count, key, low, high = struct.unpack(">iihihhh", play.to_client)
        assert (size, correlation_id, error, count, key, (low, high)) == (len(play.to_client) - 4, 5, 35, 1, 18, SUPPORTED[18])

    @pytest.mark.parametrize(("key", "version", "reason"), [(0, 99, "unsupported-version"), (4, 1, "unsupported-api")])
    def test_what_cannot_be_judged_ends_the_connection_with_a_record(self, key: int, version: int, reason: str) -> None:
        play = talk().client(struct.pack(">ihhih", 30, key, version, 5, -1) + bytes(20))
        assert play.to_server == b""
        assert isinstance(play.commands[-1], Close)
        assert [(record.verdict, record.reason) for record in play.records] == [("DENIED", reason)]


def longer(frame: bytes, more: bytes) -> bytes:
    """A frame with bytes behind what its layout says."""
    return struct.pack(">i", len(frame) - 4 + len(more)) + frame[4:] + more


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


class TestRepliesThatCannotBeRead:
    """Where nothing of a reply is changed, its frame is all that must hold: what it says is between broker and client."""

    @pytest.mark.parametrize(
        ("asked", "reply"),
        [
            (produce(1, ORDERS), longer(produced(1, ORDERS), b"!")),
            (produce(1, ORDERS), framed(b"\0\0\0\1\0\x7f")),
            (metadata(1, [ORDERS]), longer(described(1, (ORDERS, ORDERS_ID, 0)), b"!")),
            (describe_groups(1, "billing"), framed(b"\0\0\0\1")),
            (fetch(1, (0, 0), ORDERS), longer(fetched(1, 7, {ORDERS: b""}), b"!")),
            (fetch(1, (0, 0), ORDERS), framed(b"\0\0\0\1")),
            (fetch(1, (0, 0), ORDERS), framed(b"\0\0\0\1" + b"\xff" * 2_000)),
        ],
        ids=["trailing", "cut short", "metadata", "nothing", "fetch", "short fetch", "long fetch"],
    )
    def test_it_costs_the_status_and_never_the_connection(self, asked: bytes, reply: bytes) -> None:
        play = Dialogue(KafkaParser(), policy=AllTopics(), sink=Records(10)).client(asked).server(reply)
        assert play.to_client == reply
        assert [(record.verdict, record.status) for record in play.records] == [("ALLOWED", "unknown")]
        play.client(produce(2, ORDERS)).server(produced(2, ORDERS))
        assert play.to_client == reply + produced(2, ORDERS)

    def test_where_topics_are_taken_out_every_byte_has_to_be_understood(self) -> None:
        for asked in (metadata(1, None), metadata(1, [ORDERS, SECRETS])):
            play = talk().client(asked).server(longer(described(1, (ORDERS, ORDERS_ID, 0)), b"!"))
            assert (play.to_client, play.records[0].reason) == (b"", "reply-trailing-bytes")
        play = talk().client(produce(1, ORDERS, SECRETS)).server(longer(produced(1, ORDERS), b"!"))
        assert (play.to_client, play.records[0].reason) == (b"", "reply-trailing-bytes")

    def test_a_question_of_ours_without_a_sound_answer_leaves_the_ids_unknown(self) -> None:
        play = talk().client(fetch(1, (0, -1), ORDERS_ID)).server(framed(bytes(4)))
        assert got(play.to_client, 13) == (0, 0, {ORDERS_ID: 100})

    def test_of_a_session_whose_reply_cannot_be_read_nothing_is_forgotten(self) -> None:
        play = talk().client(fetch(1, (0, 0), ORDERS, "bills")).server(fetched(1, 77, {ORDERS: b"", "bills": b""}))
        play.client(fetch(2, (77, 1), forgotten=["bills"])).server(framed(b"\0\0\0\2")).client(fetch(3, (77, 2)))
        assert play.policy.asked[-1].resources == ("topic:orders", "topic:bills")

    @pytest.mark.parametrize(
        ("asked", "reply"),
        [
            (struct.pack(">hhih", 16, 0, 1, -1), b"\0\0\0\1" + b"\0\0" + b"\xff" * 4),  # ListGroups: no groups
            (struct.pack(">hhih", 3, 1, 1, -1) + b"\0\0\0\1\0\1x", b"\0\0\0\1" + b"\xff" * 4 + bytes(4) + b"\xff" * 4),
            (  # JoinGroup: no protocol, no leader
                struct.pack(">hhih", 11, 0, 1, -1) + b"\0\1g" + bytes(4) + b"\0\0" + b"\0\0" + bytes(4),
                b"\0\0\0\1" + b"\0\x19" + b"\xff" * 4 + b"\xff\xff" * 3 + b"\xff" * 4,
            ),
        ],
        ids=["ListGroups", "Metadata", "JoinGroup"],
    )
    def test_a_null_for_what_is_empty_is_read(self, asked: bytes, reply: bytes) -> None:
        play = Dialogue(KafkaParser(), policy=AllTopics(), sink=Records(10)).client(framed(asked)).server(framed(reply))
        assert play.to_client == framed(reply)
        assert [record.status for record in play.records] == ["kafka:25" if asked[1] == 11 else "kafka:0"]

    def test_a_null_for_no_brokers_is_read_where_topics_are_taken_out(self) -> None:
        def told(*topics: bytes) -> bytes:
            each = b"".join(b"\0\0" + struct.pack(">h", len(name)) + name + b"\0" + b"\xff" * 4 for name in topics)
            return framed(b"\0\0\0\1" + b"\xff" * 4 + bytes(4) + struct.pack(">i", len(topics)) + each)

        play = talk().client(framed(struct.pack(">hhihi", 3, 1, 1, -1, -1))).server(told(b"orders", b"secrets"))
        assert play.to_client == told(b"orders")

    @pytest.mark.parametrize(
        "body",
        [
            b"\0\x23" + bytes(4),  # as KIP-511 has it, offering nothing
            b"\0\x23" + b"\1" + bytes(4) + b"\0",  # in the version that was asked for
            b"\0\x23",
            b"\0\x23" + b"whatever",
        ],
        ids=["version 0", "version 3", "code alone", "anything"],
    )
    def test_a_version_that_is_not_known_is_told_in_whatever_words(self, body: bytes) -> None:
        asked = encoded(ApiVersionsRequest(version=3, client_software_name="x", client_software_version="1"), 1)
        reply = framed(b"\0\0\0\1" + body)
        play = talk().client(asked).server(reply)
        assert (play.to_client, play.records[0].status) == (reply, "kafka:35")
        play.client(produce(2, ORDERS))
        assert play.to_server == asked + produce(2, ORDERS)


CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)


def policed(*rules: str, mode: str = "enforce") -> Dialogue:
    """With the decisions of a real policy, and the parser that the agent has for it."""
    policies = policy_set(kafka_policy(f"[{', '.join(rules)}]", extra=f"mode: {mode}"))
    pair = policies.pair(policies.endpoint("web"), policies.endpoint("orders"), 9092)
    return Dialogue(parser_of(pair), policy=cast(Policy, pair), sink=Records(10))


class TestRecordsThatName:
    @pytest.mark.parametrize(
        ("data", "reason"), [(CLIENT_HELLO, "tls-not-opened"), (b"GET / HTTP/1.1\r\n\r\n", "http-not-kafka")]
    )
    def test_another_protocol_is_named_with_the_policies_and_the_direction(self, data: bytes, reason: str) -> None:
        play = policed("{role: produce}").client(data)
        [record] = play.records
        assert (record.verdict, record.reason, record.limit) == ("DENIED", reason, None)
        assert (record.policy, record.direction) == ("p", "ingress")

    @pytest.mark.parametrize("alert", [b"\x15\x03\x03\0\2\2\x50", b"\x15\x03\x01\0\2"])
    def test_a_broker_that_speaks_tls_is_named(self, alert: bytes) -> None:
        play = talk().client(produce(1, ORDERS)).server(alert)
        assert [record.reason for record in play.records] == ["reply-tls-not-opened"]

    def test_a_reply_of_hundreds_of_megabytes_is_not_taken_for_tls(self) -> None:
        play = talk().client(fetch(1, (0, -1), ORDERS)).server(struct.pack(">i", 0x15030000))
        play.server(struct.pack(">i", 1) + bytes(20))
        assert (play.flow.over, play.records) == (False, [])

    def test_a_client_that_sees_less_than_all_topics_is_allowed_with_a_note(self) -> None:
        play = policed(f"{{role: consume, topic: {ORDERS}}}").client(metadata(1, None))
        play.server(described(1, (ORDERS, ORDERS_ID, 0), (SECRETS, SECRETS_ID, 0)))
        assert topics_of(play.to_client) == (1, {ORDERS: 0})
        [record] = play.records
        assert (record.verdict, record.reason, record.notes) == ("ALLOWED", "rule-matched", ("reply-filtered",))
        assert (record.resources, record.per_resource) == (("topic:*",), None)

    @pytest.mark.parametrize("ending", [lambda play: play.client_ends().server_ends(), Dialogue.client_resets])
    def test_of_a_connection_without_a_byte_nothing_would_have_been_denied(self, ending: Callable[[Dialogue], Any]) -> None:
        play = policed("{role: consume}", mode="audit")
        ending(play)
        assert (play.flow.over, play.records, play.sink.reserved) == (True, [], 0)

    def test_of_one_with_something_else_on_it_it_is_told(self) -> None:
        play = policed("{role: consume}", mode="audit").client(CLIENT_HELLO).client_ends().server_ends()
        assert [(record.protocol, record.verdict) for record in play.records] == [("tcp", "WOULD_DENY")]


class TestLoginWithoutHeaders:
    """Behind SaslHandshake version 0 come messages that have a size and nothing else."""

    def begun(self, mechanism: bytes, error: int = 0) -> Dialogue:
        self.asked = framed(struct.pack(">hhih2sh", 17, 0, 1, 2, b"me", len(mechanism)) + mechanism)
        self.agreed = framed(struct.pack(">ihi", 1, error, 0))
        return talk().client(self.asked)

    def test_a_login_passes_and_its_user_is_in_the_records_behind_it(self) -> None:
        token = framed(b"\0alice\0secret")
        play = self.begun(b"PLAIN").server(self.agreed).client(token).server(framed(b"")).client(produce(2, ORDERS))
        assert play.to_server == self.asked + token + produce(2, ORDERS)
        assert play.to_client == self.agreed + framed(b"")
        play.server(produced(2, ORDERS))
        told = [(record.method, record.api_version, record.status, record.principal) for record in play.records]
        assert told == [
            ("SaslHandshake", 0, "kafka:0", None),
            ("SaslAuthenticate", 0, "kafka:0", None),
            ("Produce", 9, "kafka:0", "alice"),
        ]

    def test_a_login_of_two_rounds(self) -> None:
        first, second = framed(b"n,,n=bob,r=1"), framed(b"c=biws,r=12,p=x")
        play = self.begun(b"SCRAM-SHA-256").server(self.agreed)
        play.client(first).server(framed(b"r=12")).client(second).server(framed(b"v=y")).client(produce(2, SECRETS))
        assert play.to_server == self.asked + first + second
        assert (play.policy.asked[-1].method, play.policy.asked[-1].attributes["principal"]) == ("Produce", "bob")

    def test_a_login_with_a_token(self) -> None:
        token = framed(b"n,,\1auth=Bearer abc\1\1")
        play = self.begun(b"OAUTHBEARER").server(self.agreed).client(token).server(framed(b"")).client(produce(2, ORDERS))
        assert play.to_server == self.asked + token + produce(2, ORDERS)

    def test_what_comes_before_the_broker_has_agreed_waits(self) -> None:
        play = self.begun(b"PLAIN").client(framed(b"\0alice\0secret"))
        assert play.to_server == self.asked
        play.server(self.agreed)
        assert play.to_server == self.asked + framed(b"\0alice\0secret")

    def test_no_request_passes_for_a_message_of_a_login(self) -> None:
        """Neither behind its last one, nor where the broker wants none."""
        play = self.begun(b"PLAIN").server(self.agreed).client(framed(b"\0alice\0secret") + produce(2, SECRETS))
        assert play.to_server == self.asked + framed(b"\0alice\0secret")
        for error in (33, 34):
            play = self.begun(b"PLAIN", error).client(produce(2, SECRETS)).server(self.agreed)
            assert play.to_server == self.asked
            assert results(frames(play.to_client)[1]) == (2, {SECRETS: 29})
        play = self.begun(b"PLAIN").server(framed(b"\0\0\0\1!")).client(produce(2, SECRETS))
        assert play.to_server == self.asked

    @pytest.mark.parametrize("mechanism", [b"PLAIN", b"SCRAM-SHA-512", b"OAUTHBEARER"])
    @pytest.mark.parametrize("api", [0, 1, 3, 18, 32, 37])
    def test_even_of_a_broker_that_does_not_mean_what_it_says_no_request_passes(self, mechanism: bytes, api: int) -> None:
        """It has agreed to a login, and takes what comes for a request all the same."""
        for version in (0, 1, 9, 13):
            for rest in (b"", b"\0\2me", b"aaaaaaaa", bytes(20)):
                play = self.begun(mechanism).server(self.agreed)
                play.client(framed(struct.pack(">hhi", api, version, 0x41414141) + rest))
                assert play.to_server == self.asked
                assert isinstance(play.commands[-1], Close)
                assert (play.records[-1].method, play.records[-1].reason) == ("SaslAuthenticate", "not-a-login")

    @pytest.mark.parametrize("mechanism", [b"GSSAPI", b"", b"OWN"])
    def test_a_login_of_nobody_knows_how_many_messages_ends_the_connection(self, mechanism: bytes) -> None:
        play = self.begun(mechanism).server(self.agreed).client(framed(b"token"))
        assert play.to_server == self.asked
        assert play.records[-1].reason == "unsupported-mechanism"

    @pytest.mark.parametrize(("size", "reason"), [(-1, "reply-negative-length"), (BARE_MAX + 1, "reply-frame-too-large")])
    def test_a_word_of_the_brokers_without_a_size_ends_the_connection(self, size: int, reason: str) -> None:
        play = self.begun(b"PLAIN").server(self.agreed).client(framed(b"\0a\0b")).server(struct.pack(">i", size))
        assert play.records[-1].reason == reason

    def test_who_may_not_log_in_is_cut_off(self) -> None:
        play = self.begun(b"PLAIN").server(self.agreed)
        assert isinstance(play.policy, Rules)
        play.policy.refused = {"SaslAuthenticate"}
        play.client(framed(b"\0alice\0secret"))
        assert play.to_server == self.asked
        assert isinstance(play.commands[-1], Close)
        assert (play.records[-1].method, play.records[-1].verdict) == ("SaslAuthenticate", "DENIED")

    def test_between_its_messages_the_kernel_has_nothing_to_carry(self) -> None:
        play = talk().client(produce(1, ORDERS)).server(produced(1, ORDERS))
        assert play.flow.lend() is not None
        play.client(framed(struct.pack(">hhihh5s", 17, 0, 2, -1, 5, b"PLAIN"))).server(framed(struct.pack(">ihi", 2, 0, 0)))
        assert play.flow.lend() is None
        play.client(framed(b"\0a\0b")).server(framed(b""))
        assert play.flow.lend() is not None


class TestHostile:
    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\xff\xff\xff\xff" + bytes(20),
            bytes(20),
        ],
    )
    def test_what_is_not_kafka_ends_the_connection_with_a_record(self, data: bytes) -> None:
        play = talk().client(data)
        assert isinstance(play.commands[-1], Close)
        assert [record.verdict for record in play.records] == ["DENIED"]

    def test_a_request_that_is_cut_off_leaves_a_record(self) -> None:
        play = talk().client(metadata(1, [ORDERS])[:-5]).client_ends()
        assert [record.reason for record in play.records] == ["truncated-request"]

    @pytest.mark.parametrize("last", ["ends", "is malformed", "does not come"])
    def test_a_denied_request_that_comes_to_a_bad_end_has_one_record(self, last: str) -> None:
        frame = produce(1, SECRETS)
        longer = struct.pack(">i", len(frame) - 3) + frame[4:]
        play = talk().client(longer)
        assert not play.flow.over
        if last == "ends":
            play.client_ends()
        elif last == "is malformed":
            play.client(b"\0")
        else:
            play.wait(HEAD_TIMEOUT).wait(1)
        assert (play.to_client, play.to_server) == (b"", b"")
        assert [(record.method, record.verdict, record.status) for record in play.records] == [
            ("Produce", "DENIED", "unanswered")
        ]

    def test_a_request_to_several_topics_is_kept_no_longer_than_its_bound(self) -> None:
        frame = produce(1, ORDERS, SECRETS, records=bytes(connection.HELD_REQUEST_MAX))
        play = talk()
        for at in range(0, len(frame), 1 << 20):
            play.client(frame[at : at + (1 << 20)])
            if play.flow.over:
                break
        assert play.to_server == b""
        assert play.records[0].limit == "HELD_REQUEST_MAX"

    def test_when_the_broker_goes_away_everything_open_has_its_record(self) -> None:
        play = talk().client(produce(1, ORDERS)).client(produce(2, SECRETS)).server_ends()
        assert [(record.verdict, record.status) for record in play.records] == [
            ("ALLOWED", "unanswered"),
            ("DENIED", "unanswered"),
        ]
        assert isinstance(play.commands[-1], Close)

    def test_an_unreachable_broker_leaves_a_record(self) -> None:
        play = talk().client(produce(1, ORDERS)).outage(Outage.UNREACHABLE)
        assert [record.reason for record in play.records] == ["upstream-unreachable"]


Event = tuple[str, bytes]


def conversation() -> list[Event]:
    return [
        ("client", metadata(1, None)),
        ("server", described(1, (ORDERS, ORDERS_ID, 0), (SECRETS, SECRETS_ID, 0))),
        ("client", produce(2, ORDERS, SECRETS) + produce(3, SECRETS) + produce(4, ORDERS, records=bytes(40_000))),
        ("client", fetch(5, (0, 0), ORDERS_ID, SECRETS_ID)),
        ("server", produced(2, ORDERS) + produced(4, ORDERS)),
        ("server", fetched(5, 9, {ORDERS_ID: bytes(30_000)})),
        ("client", produce(6, SECRETS, acks=0) + produce(7, ORDERS)),
        ("server", produced(7, ORDERS)),
        ("client", describe_groups(8, "secret", "billing") + fetch_offsets(9, ("billing", [ORDERS, SECRETS]))),
        ("client", describe_configs(10, (2, SECRETS), (32, "billing"), (4, "1"))),
        ("server", described_groups(8, "billing") + fetched_offsets(9, "billing", ORDERS)),
        ("server", described_configs(10, (32, "billing"), (4, "1"))),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_any_split_of_the_same_bytes_gives_the_same_calls_and_the_same_output(seed: int) -> None:
    def played(cut: Callable[[bytes], list[bytes]]) -> tuple[bytes, bytes, list[Any]]:
        play = talk()
        for who, data in conversation():
            for piece in cut(data):
                while piece:
                    way = Direction.REQUEST if who == "client" else Direction.REPLY
                    carry = play.carry[way]
                    n = min(len(piece), carry) if carry else len(piece)
                    if carry:  # so much may go by without being looked at
                        play.carried(way, n)
                    elif who == "client":
                        play.client(piece[:n])
                    else:
                        play.server(piece[:n])
                    piece = piece[n:]
        told = [
            (record.method, record.verdict, record.status, record.bytes_request, record.bytes_reply) for record in play.records
        ]
        return play.to_server, play.to_client, told

    chance = random.Random(seed)

    def pieces(data: bytes) -> list[bytes]:
        cuts = sorted({0, len(data), *(chance.randrange(len(data) + 1) for _ in range(chance.choice((1, 5, 40))))})
        return [data[a:b] for a, b in pairwise(cuts)]

    assert played(pieces) == played(lambda data: [data])


def test_a_hold_is_the_only_verb_while_names_are_asked_for() -> None:
    parser = KafkaParser()
    verbs = parser.on_data(Direction.REQUEST, fetch(1, (0, -1), ORDERS_ID), False)
    parser.on_ruling(0, Rules().decide(verbs[0].call))  # type: ignore[union-attr]
    assert parser.on_data(Direction.REQUEST, fetch(1, (0, -1), ORDERS_ID), False) == [Hold()]


def test_a_ruling_that_nobody_asked_for_ends_the_connection() -> None:
    verbs = KafkaParser().on_ruling(3, Rules().decide(ApiCall(protocol="kafka", method="Produce")))
    assert [type(verb) for verb in verbs] == [Fail]


class TestVerdicts:
    """A record says PARTIAL of what was let through in part, and of nothing else."""

    def half_allowed(self) -> tuple[Dialogue, bytes]:
        play = talk()
        frame = produce(1, SECRETS, ORDERS)
        assert play.client(frame[:-1]).to_server == b"", "it is kept until it is there as a whole"
        return play, frame

    def record(self, play: Dialogue) -> Any:
        (record,) = play.records
        return record

    def test_a_request_that_is_refused_behind_its_last_name_is_denied_with_the_limit(self) -> None:
        play = talk()
        partition = struct.pack(">ii", 0, -1)
        topics = [(SECRETS, 1), (ORDERS, MAX_ELEMENTS)]
        body = struct.pack(">hii", -1, 1, len(topics)) + b"".join(
            struct.pack(f">h{len(name)}si", len(name), name.encode(), count) + partition * count for name, count in topics
        )
        header = struct.pack(">hhih2s", 0, 0, 1, 2, b"me")
        play.client(struct.pack(">i", len(header + body)) + header + body)
        record = self.record(play)
        assert (record.verdict, record.reason, record.limit) == ("DENIED", "too-many-elements", "MAX_ELEMENTS")
        assert (record.policy, record.rule, record.per_resource, record.status) == (None, None, None, "unanswered")
        assert set(record.resources) == {f"topic:{SECRETS}", f"topic:{ORDERS}"}
        assert play.to_server == b""

    @pytest.mark.parametrize(
        ("ending", "reason"),
        [
            (Dialogue.client_ends, "truncated-request"),
            (Dialogue.client_resets, "client-reset"),
            (lambda play: play.wait(0).wait(HEAD_TIMEOUT + 1), "client-timeout"),
            (lambda play: play.stop(), "agent-stopped"),
        ],
    )
    def test_a_request_that_does_not_come_to_its_end_is_none_of_it(
        self, ending: Callable[[Dialogue], Any], reason: str
    ) -> None:
        play, _ = self.half_allowed()
        ending(play)
        record = self.record(play)
        assert (record.verdict, record.reason, record.per_resource) == ("DENIED", reason, None)
        assert play.to_server == b""

    def test_what_was_meant_for_a_server_that_cannot_be_reached_keeps_its_verdict_unless_that_is_partial(self) -> None:
        for topics, verdict in (((ORDERS,), "ALLOWED"), ((SECRETS, ORDERS), "DENIED")):
            play = talk()
            play.client(produce(1, *topics))
            play.flow.dialling = True
            play.outage(Outage.UNREACHABLE)
            record = self.record(play)
            assert (record.verdict, record.reason, record.status) == (verdict, "upstream-unreachable", "unanswered")
            assert record.per_resource is None

    def test_what_was_let_through_in_part_is_partial_also_if_it_is_cut_off(self) -> None:
        play, frame = self.half_allowed()
        play.client(frame[-1:]).server_resets()
        record = self.record(play)
        assert (record.verdict, record.reason) == ("PARTIAL", "upstream-reset")
        assert record.per_resource == {f"topic:{SECRETS}": "DENIED", f"topic:{ORDERS}": "ALLOWED"}

    def test_of_what_we_answer_alone_nothing_was_let_through(self) -> None:
        """One topic is denied, and of the other nobody knows the name."""
        play = talk()
        play.client(fetch(1, (0, -1), SECRETS_ID, LOST_ID))
        play.server(described(0, (SECRETS, SECRETS_ID, 0), (None, LOST_ID, 100)))
        answered = play.records[-1]
        assert (answered.method, answered.verdict, answered.reason) == ("Fetch", "DENIED", "no-rule-matched")


class TestTurns:
    @pytest.mark.parametrize("allowed", [0, 1])
    def test_a_request_for_thousands_of_topics_is_refused_over_several_turns(self, allowed: int) -> None:
        secrets = [f"secret-{number}" for number in range(2_000)]
        play = talk().client(produce(1, ORDERS)).server(produced(1, ORDERS))
        play.client(produce(2, *[ORDERS] * allowed, *secrets) + produce(3, ORDERS))
        assert play.turns >= 3
        if allowed:
            play.server(produced(2, ORDERS))
        play.server(produced(3, ORDERS))
        first, second, third = frames(play.to_client)
        assert results(second) == (2, {**dict.fromkeys([ORDERS] * allowed, 0), **dict.fromkeys(secrets, 29)})
        assert [results(first)[0], results(third)[0]] == [1, 3]
        assert [record.verdict for record in play.records] == ["ALLOWED", "PARTIAL" if allowed else "DENIED", "ALLOWED"]

    def test_a_connection_that_ends_while_its_call_is_judged_leaves_a_record(self) -> None:
        play = talk()
        play.flow.data(Direction.REQUEST, produce(1, *[f"secret-{number}" for number in range(2_000)]), 0.0)
        play.client_resets()
        assert [(record.verdict, record.reason, record.status) for record in play.records] == [
            ("DENIED", "ended-unjudged", "reset")
        ]

    def test_a_metadata_reply_of_a_large_cluster_is_read_over_several_turns(self) -> None:
        topic = MetadataResponse.MetadataResponseTopic
        topics = [
            topic(error_code=0, name=f"{kind}-{number}", topic_id=uuid.uuid4(), is_internal=False, partitions=[])
            for number in range(1_000)
            for kind in (ORDERS, "secret")
        ]
        reply = MetadataResponse(
            version=12, throttle_time_ms=0, brokers=[], cluster_id="c", controller_id=1, topics=topics, error_code=0
        )
        play = talk().client(encoded(MetadataRequest(version=12, topics=None), 1))
        before = play.turns
        play.server(encoded(reply, 1))
        assert play.turns - before >= len(topics) * _TOPIC // TURN - 1
        seen = MetadataResponse.decode(play.to_client, version=12, header=True, framed=True)
        assert [topic.name for topic in seen.topics] == [f"{ORDERS}-{number}" for number in range(1_000)]

    def test_answers_of_ours_that_wait_are_not_very_many(self) -> None:
        """They are given all at once, when the reply before them has come."""
        play = talk().client(produce(1, ORDERS)).client(b"".join(produce(number, SECRETS) for number in range(2, 200)))
        assert len(play.records) == 0
        assert play.flow.open_calls == 1 + OWN_ANSWERS_MAX
        play.server(produced(1, ORDERS))
        assert [results(frame)[0] for frame in frames(play.to_client)] == list(range(1, 200))
