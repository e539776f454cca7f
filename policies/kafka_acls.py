"""What Kafka's own authorizer asks of who makes a request, by API: the operation and the kind of resource.

The source is Apache Kafka 4.3, ``KafkaApis.scala`` and ``AclApis.scala``; for delegation tokens KIP-48 and KIP-373; in words
"Authorization primitives" of https://kafka.apache.org/documentation/#security_authz. Where one of several rights is enough, the
one that is about what the request names stands here: CREATE of the topic for CreateTopics, not CREATE of the cluster.
tests/kafka/test_denials.py asks a real broker, as somebody who may use every topic, group and transactional id and nothing
else: it refuses exactly what is the cluster's here.
"""

NAMED = frozenset({"TOPIC", "GROUP", "TRANSACTIONAL_ID"})  # rules have conditions on these, and requests name them

ASKS: dict[str, tuple[str, ...]] = {
    "Produce": ("WRITE TOPIC", "WRITE TRANSACTIONAL_ID"),
    "Fetch": ("READ TOPIC",),
    "ListOffsets": ("DESCRIBE TOPIC",),
    "Metadata": ("DESCRIBE TOPIC",),
    "OffsetCommit": ("READ GROUP", "READ TOPIC"),
    "OffsetFetch": ("DESCRIBE GROUP", "DESCRIBE TOPIC"),
    "FindCoordinator": ("DESCRIBE GROUP", "DESCRIBE TRANSACTIONAL_ID"),
    "JoinGroup": ("READ GROUP",),
    "Heartbeat": ("READ GROUP",),
    "LeaveGroup": ("READ GROUP",),
    "SyncGroup": ("READ GROUP",),
    "DescribeGroups": ("DESCRIBE GROUP",),
    "ListGroups": ("DESCRIBE CLUSTER",),  # without, the list has only the groups that may be described
    "SaslHandshake": (),
    "ApiVersions": (),
    "CreateTopics": ("CREATE TOPIC",),
    "DeleteTopics": ("DELETE TOPIC",),
    "DeleteRecords": ("DELETE TOPIC",),
    "InitProducerId": ("WRITE TRANSACTIONAL_ID",),  # without an id: WRITE of any topic
    "OffsetForLeaderEpoch": ("DESCRIBE TOPIC",),
    "AddPartitionsToTxn": ("WRITE TRANSACTIONAL_ID", "WRITE TOPIC"),
    "AddOffsetsToTxn": ("WRITE TRANSACTIONAL_ID", "READ GROUP"),
    "EndTxn": ("WRITE TRANSACTIONAL_ID",),
    "WriteTxnMarkers": ("CLUSTER_ACTION CLUSTER",),
    "TxnOffsetCommit": ("WRITE TRANSACTIONAL_ID", "READ GROUP", "READ TOPIC"),
    "DescribeAcls": ("DESCRIBE CLUSTER",),
    "CreateAcls": ("ALTER CLUSTER",),
    "DeleteAcls": ("ALTER CLUSTER",),
    "DescribeConfigs": ("DESCRIBE_CONFIGS TOPIC", "DESCRIBE_CONFIGS GROUP"),  # of anything else: CLUSTER
    "AlterConfigs": ("ALTER_CONFIGS TOPIC", "ALTER_CONFIGS GROUP"),
    "AlterReplicaLogDirs": ("ALTER CLUSTER",),
    "DescribeLogDirs": ("DESCRIBE CLUSTER",),
    "SaslAuthenticate": (),
    "CreatePartitions": ("ALTER TOPIC",),
    "CreateDelegationToken": ("CREATE_TOKENS USER",),  # for oneself: nothing
    "RenewDelegationToken": ("RENEW DELEGATION_TOKEN",),  # no operation of ACLs: who owns it or is named as its renewer
    "ExpireDelegationToken": ("EXPIRE DELEGATION_TOKEN",),
    "DescribeDelegationToken": ("DESCRIBE DELEGATION_TOKEN", "DESCRIBE_TOKENS USER"),
    "DeleteGroups": ("DELETE GROUP",),
    "ElectLeaders": ("ALTER CLUSTER",),
    "IncrementalAlterConfigs": ("ALTER_CONFIGS TOPIC", "ALTER_CONFIGS GROUP"),
    "AlterPartitionReassignments": ("ALTER CLUSTER",),
    "ListPartitionReassignments": ("DESCRIBE CLUSTER",),
    "OffsetDelete": ("DELETE GROUP", "READ TOPIC"),
    "DescribeClientQuotas": ("DESCRIBE_CONFIGS CLUSTER",),
    "AlterClientQuotas": ("ALTER_CONFIGS CLUSTER",),
    "DescribeUserScramCredentials": ("DESCRIBE CLUSTER",),
    "AlterUserScramCredentials": ("ALTER CLUSTER",),
    "DescribeQuorum": ("DESCRIBE CLUSTER",),
    "UpdateFeatures": ("ALTER CLUSTER",),
    "DescribeCluster": (),
    "DescribeProducers": ("READ TOPIC",),
    "DescribeTransactions": ("DESCRIBE TRANSACTIONAL_ID",),
    "ListTransactions": ("DESCRIBE EVERY_TRANSACTIONAL_ID",),  # it names none: the list has those that may be described
    "ConsumerGroupHeartbeat": ("READ GROUP", "DESCRIBE TOPIC"),
    "ConsumerGroupDescribe": ("DESCRIBE GROUP",),
    "GetTelemetrySubscriptions": (),
    "PushTelemetry": (),
    "ListConfigResources": ("DESCRIBE_CONFIGS CLUSTER",),
    "DescribeTopicPartitions": ("DESCRIBE TOPIC",),
    "ShareGroupHeartbeat": ("READ GROUP", "DESCRIBE TOPIC"),
    "ShareGroupDescribe": ("DESCRIBE GROUP",),
    "ShareFetch": ("READ GROUP", "READ TOPIC"),
    "ShareAcknowledge": ("READ GROUP", "READ TOPIC"),
    "StreamsGroupHeartbeat": ("READ GROUP", "DESCRIBE TOPIC", "CREATE TOPIC"),
    "StreamsGroupDescribe": ("DESCRIBE GROUP",),
    "DescribeShareGroupOffsets": ("DESCRIBE GROUP", "DESCRIBE TOPIC"),
    "AlterShareGroupOffsets": ("READ GROUP", "READ TOPIC"),
    "DeleteShareGroupOffsets": ("DELETE GROUP", "READ TOPIC"),
}

# APIs of which some requests, or some of what one request names, ask for CLUSTER instead: the configurations of brokers, of
# their loggers and of client metrics; what only brokers ask of each other (a follower's Fetch, AddPartitionsToTxn from version
# 4 on, coordinators of share groups). Such a call has resources of other kinds than `NAMED`.
PARTLY_OF_THE_CLUSTER = frozenset(
    {"DescribeConfigs", "AlterConfigs", "IncrementalAlterConfigs", "Fetch", "AddPartitionsToTxn", "FindCoordinator"}
)

# APIs that ask for more than what they name: of these a rule has to speak by name.
BEYOND_NAMES = frozenset(api for api, asks in ASKS.items() if any(ask.rpartition(" ")[2] not in NAMED for ask in asks))
