"""How each API's reply repeats its request when the broker refuses it, and where the error code goes.

The broker's own behaviour is followed: KafkaApis and ControllerApis, and the error reply of each request class. In a reply
that is made here every field has its default, except that

* a field named ``ErrorCode`` or ``PartitionErrorCode`` has the code, if ``when`` says so,
* a field named ``ErrorMessage`` has the sentence wherever the code beside it is not 0,
* an ``Each`` makes one element of a reply array of each element of a request array, repeating what ``echo`` names,
* ``VALUES`` has the defaults that the broker sets by hand.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple


class When(Enum):
    """When an error field has the code, or an array its elements."""

    ALWAYS = "always"
    NEVER = "never"
    TOPIC = "the denial is about topics"
    CALL = "the denial is about the call as a whole: its group, its transactional id, the cluster"


class Each(NamedTuple):
    """``reply``: the array that is made. ``sources``: dotted paths of the request arrays that it is made of, one after the
    other; those that the version does not have are left out. ``echo``: reply field to request field (empty: the plain value).
    ``error``: when its elements have the code. ``present``: when it has elements at all; always up to version ``always_until``.
    """

    reply: str
    sources: tuple[str, ...]
    echo: Mapping[str, str]
    inner: "Each | None" = None
    error: When = When.ALWAYS
    present: When = When.ALWAYS
    always_until: int = -1
    apart: bool = False  # its elements are those of the request that are told apart, in the request's order
    by_resource: bool = False  # the code follows from the element's resource type
    distinct: bool = False


class Echo(NamedTuple):
    """The arrays of an API's reply, and when its own error field has the code."""

    arrays: tuple[Each, ...] = ()
    error: When = When.ALWAYS


def _topics(reply: str, source: str, partitions: Each | None, name: str = "Name", asked: str = "Name") -> Each:
    return Each(reply, (source,), {name: asked, "TopicId": "TopicId"}, partitions, apart=True)


def _partitions(source: str, index: str = "PartitionIndex", reply: str = "Partitions", asked: str = "PartitionIndex") -> Each:
    return Each(reply, (source,), {index: asked})


def _names(reply: str, source: str, name: str) -> Each:
    return Each(reply, (source,), {name: ""}, apart=True)


def _resources(reply: str) -> Each:
    echo = {"ResourceType": "ResourceType", "ResourceName": "ResourceName"}
    return Each(reply, ("Resources",), echo, apart=True, by_resource=True)


# OffsetFetch: a topic's error comes with each partition, a group's with the group. Before version 2 there was no such place.
_OFFSETS = _topics("Topics", "Topics", _partitions("PartitionIndexes", asked=""))._replace(present=When.TOPIC, always_until=1)
_TXN_TOPICS = _topics(
    "ResultsByTopicV3AndBelow", "V3AndBelowTopics", _partitions("Partitions", reply="ResultsByPartition", asked="")
)

_GROUPS_BY_ID = Echo((_names("Groups", "GroupIds", "GroupId"),))
# Share groups: as OffsetFetch, its error is the group's or that of each of its topics or partitions.
_SHARE_OFFSETS = _topics("Topics", "Topics", _partitions("Partitions", asked=""), "TopicName", "TopicName")
_SHARE_TOPICS = _topics("Responses", "Topics", None, "TopicName", "TopicName")

_NOTHING = Echo()
ECHOES: dict[str, Echo] = {
    "Produce": Echo((_topics("Responses", "TopicData", _partitions("PartitionData", "Index", "PartitionResponses", "Index")),)),
    # An error of the session, the only kind that has the top-level code, is written by fetch_session_error.
    "Fetch": Echo(
        (_topics("Responses", "Topics", _partitions("Partitions", asked="Partition"), "Topic", "Topic"),), When.NEVER
    ),
    "ListOffsets": Echo((_topics("Topics", "Topics", _partitions("Partitions")),)),
    "Metadata": Echo((_topics("Topics", "Topics", None),), When.NEVER),
    "OffsetCommit": Echo((_topics("Topics", "Topics", _partitions("Partitions")),)),
    "OffsetFetch": Echo(
        (
            _OFFSETS,
            # Each group with all of its topics is told apart, or the topics of one.
            Each("Groups", ("Groups",), {"GroupId": "GroupId"}, _OFFSETS, error=When.CALL, apart=True),
        ),
        When.CALL,
    ),
    "FindCoordinator": Echo((_names("Coordinators", "CoordinatorKeys", "Key"),)),
    "DescribeGroups": Echo((_names("Groups", "Groups", "GroupId"),)),
    "CreateTopics": Echo((_topics("Topics", "Topics", None),)),
    "DeleteTopics": Echo(
        (
            _topics("Responses", "Topics", None),
            _topics("Responses", "TopicNames", None, asked=""),
        )
    ),
    "DeleteRecords": Echo((_topics("Topics", "Topics", _partitions("Partitions")),)),
    "OffsetForLeaderEpoch": Echo(
        (_topics("Topics", "Topics", _partitions("Partitions", "Partition", asked="Partition"), "Topic", "Topic"),)
    ),
    # From version 4 on it is the brokers' own, and refused as a whole.
    "AddPartitionsToTxn": Echo((_TXN_TOPICS,)),
    "WriteTxnMarkers": Echo(
        (
            Each(
                "Markers",
                ("Markers",),
                {"ProducerId": "ProducerId"},
                _topics("Topics", "Topics", _partitions("PartitionIndexes", asked="")),
            ),
        )
    ),
    "TxnOffsetCommit": Echo((_topics("Topics", "Topics", _partitions("Partitions")),)),
    "CreateAcls": Echo((Each("Results", ("Creations",), {}),)),
    "DeleteAcls": Echo((Each("FilterResults", ("Filters",), {}),)),
    "DescribeConfigs": Echo((_resources("Results"),)),
    "AlterConfigs": Echo((_resources("Responses"),)),
    "IncrementalAlterConfigs": Echo((_resources("Responses"),)),
    "AlterReplicaLogDirs": Echo(
        (Each("Results", ("Dirs.Topics",), {"TopicName": "Name"}, _partitions("Partitions", asked=""), apart=True),)
    ),
    "CreatePartitions": Echo((_topics("Results", "Topics", None),)),
    "DeleteGroups": Echo((_names("Results", "GroupsNames", "GroupId"),)),
    "ElectLeaders": Echo(
        (
            Each(
                "ReplicaElectionResults",
                ("TopicPartitions",),
                {"Topic": "Topic"},
                _partitions("Partitions", "PartitionId", "PartitionResult", ""),
                apart=True,
            ),
        )
    ),
    "AlterPartitionReassignments": Echo((_topics("Responses", "Topics", _partitions("Partitions")),)),
    # Its partitions have no errors of their own.
    "ListPartitionReassignments": Echo((_topics("Topics", "Topics", _partitions("PartitionIndexes", asked="")),)),
    "OffsetDelete": Echo((_topics("Topics", "Topics", _partitions("Partitions"))._replace(present=When.TOPIC),), When.CALL),
    "AlterClientQuotas": Echo(
        (
            Each(
                "Entries",
                ("Entries",),
                {},
                Each("Entity", ("Entity",), {"EntityType": "EntityType", "EntityName": "EntityName"}),
            ),
        )
    ),
    "DescribeUserScramCredentials": Echo((Each("Results", ("Users",), {}),)),  # without their names, as the broker does it
    "AlterUserScramCredentials": Echo(
        (Each("Results", ("Deletions", "Upsertions"), {"User": "Name"}, distinct=True),),
    ),
    "DescribeProducers": Echo((_topics("Topics", "Topics", _partitions("PartitionIndexes", asked="")),)),
    "DescribeTransactions": Echo((_names("TransactionStates", "TransactionalIds", "TransactionalId"),)),
    "DescribeTopicPartitions": Echo((_topics("Topics", "Topics", None),)),
    "ConsumerGroupDescribe": _GROUPS_BY_ID,
    "ShareGroupDescribe": _GROUPS_BY_ID,
    "StreamsGroupDescribe": _GROUPS_BY_ID,
    "DescribeShareGroupOffsets": Echo(
        (Each("Groups", ("Groups",), {"GroupId": "GroupId"}, _SHARE_OFFSETS._replace(present=When.TOPIC), error=When.CALL),)
    ),
    "AlterShareGroupOffsets": Echo(
        (_SHARE_TOPICS._replace(inner=_partitions("Partitions"), present=When.TOPIC),),
        When.CALL,
    ),
    "DeleteShareGroupOffsets": Echo((_SHARE_TOPICS._replace(present=When.TOPIC),), When.CALL),
    # The reply has one error for the whole, or nothing but that error.
    "JoinGroup": _NOTHING,
    "Heartbeat": _NOTHING,
    "LeaveGroup": _NOTHING,
    "SyncGroup": _NOTHING,
    "ListGroups": _NOTHING,
    "SaslHandshake": _NOTHING,
    "SaslAuthenticate": _NOTHING,
    "ApiVersions": _NOTHING,
    "InitProducerId": _NOTHING,
    "AddOffsetsToTxn": _NOTHING,
    "EndTxn": _NOTHING,
    "DescribeAcls": _NOTHING,
    "DescribeLogDirs": _NOTHING,
    "DescribeClientQuotas": _NOTHING,
    "DescribeQuorum": _NOTHING,
    "UpdateFeatures": _NOTHING,
    "DescribeCluster": _NOTHING,
    "ListTransactions": _NOTHING,
    "CreateDelegationToken": _NOTHING,
    "RenewDelegationToken": _NOTHING,
    "ExpireDelegationToken": _NOTHING,
    "DescribeDelegationToken": _NOTHING,
    "ConsumerGroupHeartbeat": _NOTHING,
    "ShareGroupHeartbeat": _NOTHING,
    "StreamsGroupHeartbeat": _NOTHING,
    "GetTelemetrySubscriptions": _NOTHING,
    "PushTelemetry": _NOTHING,
    "ListConfigResources": _NOTHING,
}

# What the broker sets where the protocol's default is another: field, then its value as a definition spells it.
VALUES: dict[str, dict[str, str]] = {
    "Produce": {"BaseOffset": "-1"},
    "Fetch": {"HighWatermark": "-1"},
    "OffsetFetch": {"CommittedOffset": "-1"},
    "FindCoordinator": {"NodeId": "-1", "Port": "-1"},
    "JoinGroup": {"ProtocolName": "null"},
    "DeleteRecords": {"LowWatermark": "-1"},
    "InitProducerId": {"ProducerEpoch": "-1"},
    "DescribeClientQuotas": {"Entries": "null"},
    "DescribeShareGroupOffsets": {"StartOffset": "-1"},
    "StreamsGroupHeartbeat": dict.fromkeys(("ActiveTasks", "StandbyTasks", "WarmupTasks", "PartitionsByUserEndpoint"), "null"),
}
