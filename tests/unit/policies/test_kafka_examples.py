"""What Kafka's own programs ask for, under the example policies for them: all of it passes, and nothing beside it."""

from pathlib import Path
from typing import NamedTuple

import pytest

from parsers.contract import ApiCall
from policies.decide import PolicySet, Verdict
from policies.load import Source, load

from .words import kafka

EXAMPLES = Path(__file__).parents[3] / "policies" / "examples-kafka"


class Program(NamedTuple):
    """``asks`` and ``beside``: an API and what the request names, "*" for all topics, each separated by spaces."""

    example: str
    workload: str
    asks: tuple[str, ...]
    beside: tuple[str, ...]


# Sources: Apache Kafka 4.3, the clients' NetworkClient and Sender, StreamsProducer, InternalTopicManager, StoreChangelogReader;
# KafkaBasedLog, TopicAdmin, Worker; MirrorSourceConnector, MirrorCheckpointConnector; the tools' Admin calls.
EVERYBODY = (
    *("ApiVersions", "SaslHandshake", "SaslAuthenticate", "GetTelemetrySubscriptions", "PushTelemetry", "DescribeCluster"),
    "Metadata *",
)
PROGRAMS = (
    Program(
        "streams",
        "streams",
        (
            *("Metadata orders totals shop-agg-changelog", "FindCoordinator group:shop", "JoinGroup group:shop"),
            *("SyncGroup group:shop", "Heartbeat group:shop", "LeaveGroup group:shop", "OffsetFetch orders group:shop"),
            *("ListOffsets orders", "OffsetForLeaderEpoch orders", "Fetch orders", "Fetch shop-agg-repartition"),
            *("Fetch shop-agg-changelog", "ListOffsets shop-agg-changelog", "CreateTopics shop-agg-changelog"),
            *("DescribeTopicPartitions shop-agg-changelog", "DescribeConfigs shop-agg-changelog"),
            *("FindCoordinator transactionalId:shop-5c-1", "InitProducerId transactionalId:shop-5c-1"),
            "AddPartitionsToTxn totals shop-agg-changelog transactionalId:shop-5c-1",
            "Produce totals shop-agg-changelog transactionalId:shop-5c-1",
            "AddOffsetsToTxn group:shop transactionalId:shop-5c-1",
            "TxnOffsetCommit orders shop-agg-repartition group:shop transactionalId:shop-5c-1",
            *("EndTxn transactionalId:shop-5c-1", "DeleteRecords shop-agg-repartition", "OffsetCommit orders group:shop"),
            "StreamsGroupHeartbeat orders shop-agg-repartition group:shop",
        ),
        (
            *("Produce orders", "Produce orders transactionalId:shop-5c-1", "Fetch totals", "CreateTopics totals"),
            *("JoinGroup group:billing", "TxnOffsetCommit orders group:billing transactionalId:shop-5c-1"),
            *("TxnOffsetCommit orders group:shop transactionalId:till", "EndTxn transactionalId:till", "DeleteTopics shop-a"),
            *("AddOffsetsToTxn group:billing transactionalId:shop-5c-1", "ListGroups"),
        ),
    ),
    Program(
        "connect",
        "connect",
        (
            *("FindCoordinator group:connect", "JoinGroup group:connect", "SyncGroup group:connect", "Heartbeat group:connect"),
            *("Metadata connect-configs", "CreateTopics connect-offsets", "DescribeConfigs connect-configs"),
            *("ListOffsets connect-offsets", "Fetch connect-status", "Produce connect-status", "InitProducerId"),
            *("JoinGroup group:connect-sink", "OffsetFetch orders group:connect-sink", "Fetch orders"),
            *("OffsetCommit orders group:connect-sink", "CreateTopics inventory.items", "Produce inventory.items"),
            *("InitProducerId transactionalId:connect-source-0", "EndTxn transactionalId:connect-source-0"),
            "AddPartitionsToTxn inventory.items connect-offsets transactionalId:connect-source-0",
            "Produce inventory.items connect-offsets transactionalId:connect-source-0",
            "DescribeTransactions transactionalId:connect-source-0",
        ),
        (
            *("Produce orders", "JoinGroup group:billing", "OffsetCommit orders group:billing", "DeleteTopics connect-offsets"),
            *("EndTxn transactionalId:till", "IncrementalAlterConfigs connect-configs", "Fetch inventory.items"),
        ),
    ),
    Program(
        "mirrormaker",
        "mirror",
        (
            *("Metadata orders.eu", "Fetch orders.eu", "ListOffsets orders.eu", "DescribeConfigs orders.eu", "DescribeAcls *"),
            *("ListGroups", "DescribeGroups group:billing", "ConsumerGroupDescribe group:billing"),
            *("FindCoordinator group:billing", "OffsetFetch group:billing *", "Produce mm2-offset-syncs.east.internal"),
            *(
                "CreateTopics mm2-offset-syncs.east.internal",
                "Produce heartbeats",
                "CreateTopics heartbeats",
                "Fetch heartbeats",
            ),
        ),
        (
            *("Produce orders.eu", "Fetch payments", "CreateAcls *", "DeleteGroups group:billing", "CreateTopics orders.eu"),
            *("DescribeConfigs broker:1", "IncrementalAlterConfigs orders.eu"),
        ),
    ),
    Program(
        "tools",
        "operator",
        (
            *("DescribeTopicPartitions orders", "DescribeConfigs orders", "DescribeConfigs broker:1", "ListOffsets orders"),
            *(
                "ListGroups",
                "DescribeGroups group:billing",
                "ConsumerGroupDescribe group:billing",
                "OffsetFetch group:billing *",
            ),
            *("FindCoordinator group:billing", "DescribeAcls *", "DescribeLogDirs *", "DescribeClientQuotas"),
            *("DescribeUserScramCredentials", "ListPartitionReassignments *", "ListConfigResources *", "CreateTopics ops.a"),
            *("CreatePartitions ops.a", "DeleteTopics ops.a", "IncrementalAlterConfigs ops.a", "DeleteGroups group:ops.a"),
            *("OffsetCommit orders group:ops.a", "OffsetDelete orders group:ops.a"),
        ),
        (
            *("Produce orders", "Fetch orders", "CreateTopics orders", "DeleteGroups group:billing", "CreateAcls *"),
            *("IncrementalAlterConfigs broker:1", "OffsetCommit orders group:billing", "AlterClientQuotas"),
        ),
    ),
)


def call(words: str) -> ApiCall:
    api, *names = words.split()
    return kafka(api, *(name for name in names if name != "*"), all_topics="*" in names)


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.example for program in PROGRAMS])
def test_what_a_program_asks_for_passes_under_the_example_for_it_and_nothing_else(program: Program) -> None:
    path = EXAMPLES / f"{program.example}.yaml"
    policies = PolicySet(load([Source(str(path), path.read_text())]), 1)
    pair = policies.pair(policies.endpoint(program.workload), policies.endpoint("kafka"), 9092)
    for words in (*EVERYBODY, *program.asks):
        wanted = {Verdict.ALLOWED, Verdict.PARTIAL} if words == "Metadata *" else {Verdict.ALLOWED}
        asked = kafka("Metadata", all_topics=True, divisible=True) if words == "Metadata *" else call(words)
        assert pair.decide(asked).verdict in wanted, words
    for words in program.beside:
        assert pair.decide(call(words)).verdict is Verdict.DENIED, words
