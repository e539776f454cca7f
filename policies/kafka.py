"""Kafka rules: which requests they are about, and which of them hold for a call.

A call (``ApiCall``) of Kafka names its API by ``attributes["apiKey"]`` and what it touches by ``resources``, each of them
``topic:NAME``, ``group:NAME`` or ``transactionalId:NAME``. Rules are asked about one topic, one group and one transactional id
at a time (`pieces`), so that what a call asks for is allowed by the union of rules, and refused piece by piece.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import msgspec

from parsers.contract import ApiCall
from policies.match import Match, PatternTable
from policies.model import KafkaRole, KafkaRule, TopicKind

PROTOCOL = "kafka"

# The keys of all APIs (https://kafka.apache.org/protocol#protocol_api_keys), by the names of their definitions.
APIS: dict[str, int] = {
    "Produce": 0, "Fetch": 1, "ListOffsets": 2, "Metadata": 3, "OffsetCommit": 8, "OffsetFetch": 9, "FindCoordinator": 10,
    "JoinGroup": 11, "Heartbeat": 12, "LeaveGroup": 13, "SyncGroup": 14, "DescribeGroups": 15, "ListGroups": 16,
    "SaslHandshake": 17, "ApiVersions": 18, "CreateTopics": 19, "DeleteTopics": 20, "DeleteRecords": 21, "InitProducerId": 22,
    "OffsetForLeaderEpoch": 23, "AddPartitionsToTxn": 24, "AddOffsetsToTxn": 25, "EndTxn": 26, "WriteTxnMarkers": 27,
    "TxnOffsetCommit": 28, "DescribeAcls": 29, "CreateAcls": 30, "DeleteAcls": 31, "DescribeConfigs": 32, "AlterConfigs": 33,
    "AlterReplicaLogDirs": 34, "DescribeLogDirs": 35, "SaslAuthenticate": 36, "CreatePartitions": 37,
    "CreateDelegationToken": 38, "RenewDelegationToken": 39, "ExpireDelegationToken": 40, "DescribeDelegationToken": 41,
    "DeleteGroups": 42, "ElectLeaders": 43, "IncrementalAlterConfigs": 44, "AlterPartitionReassignments": 45,
    "ListPartitionReassignments": 46, "OffsetDelete": 47, "DescribeClientQuotas": 48, "AlterClientQuotas": 49,
    "DescribeUserScramCredentials": 50, "AlterUserScramCredentials": 51, "DescribeQuorum": 55, "UpdateFeatures": 57,
    "DescribeCluster": 60, "DescribeProducers": 61, "DescribeTransactions": 65, "ListTransactions": 66,
    "ConsumerGroupHeartbeat": 68, "ConsumerGroupDescribe": 69, "GetTelemetrySubscriptions": 71, "PushTelemetry": 72,
    "ListConfigResources": 74, "DescribeTopicPartitions": 75, "ShareGroupHeartbeat": 76, "ShareGroupDescribe": 77,
    "ShareFetch": 78, "ShareAcknowledge": 79, "StreamsGroupHeartbeat": 88, "StreamsGroupDescribe": 89,
    "DescribeShareGroupOffsets": 90, "AlterShareGroupOffsets": 91, "DeleteShareGroupOffsets": 92,
}  # fmt: skip
# Clients that say "metadata" ask for a cluster's brokers and topics; today's ask for them by three names.
METADATA = frozenset({APIS["Metadata"], APIS["DescribeCluster"], APIS["DescribeTopicPartitions"]})
# Keys that only brokers ever used among themselves, and controllers do no more: a rule may name them, and never holds.
RETIRED = {"LeaderAndIsr": 4, "StopReplica": 5, "UpdateMetadata": 6, "ControlledShutdown": 7}
# Cilium's spelling, where it is not a name in lower case.
_ALIASES = {"offsets": "ListOffsets"}
KEYS_BY_WORD: dict[str, frozenset[int]] = {
    **{name.lower(): frozenset({key}) for name, key in (APIS | RETIRED).items()},
    **{alias: frozenset({APIS[name]}) for alias, name in _ALIASES.items()},
    "metadata": METADATA,
}
NAMES_BY_KEY = {key: name for name, key in APIS.items()}

# Without these no client can say anything: who it is, and which versions it may use. Who may ask for anything may ask them.
HANDSHAKE = frozenset({APIS["SaslHandshake"], APIS["SaslAuthenticate"], APIS["ApiVersions"]})
# What a client has to ask to do its work, by role. Both look for brokers (Metadata) and for their coordinator.
ROLES: dict[KafkaRole, frozenset[int]] = {
    KafkaRole.PRODUCE: METADATA
    | frozenset(
        APIS[name]
        for name in (
            "Produce",
            "InitProducerId",  # idempotence, which is the default of today's producers
            "FindCoordinator",  # the coordinator of transactions
            "AddPartitionsToTxn",
            "AddOffsetsToTxn",
            "EndTxn",
            "TxnOffsetCommit",
        )
    ),
    KafkaRole.CONSUME: METADATA
    | frozenset(
        APIS[name]
        for name in (
            "Fetch",
            "ListOffsets",
            "OffsetForLeaderEpoch",
            "FindCoordinator",
            "JoinGroup",
            "SyncGroup",
            "Heartbeat",
            "LeaveGroup",
            "ConsumerGroupHeartbeat",  # the group protocol of KIP-848, in place of the four above
            "OffsetCommit",
            "OffsetFetch",
        )
    ),
}
# Pieces of one call that are judged one by one. A call of more is refused as a whole.
MAX_PIECES = 10_000

TOPIC, GROUP, TRANSACTIONAL_ID = "topic:", "group:", "transactionalId:"


def of_kind(resources: Iterable[str], kind: str) -> list[str]:
    """The names of the resources of one kind."""
    return [resource[len(kind) :] for resource in resources if resource.startswith(kind)]


def pieces(call: ApiCall) -> Iterator[ApiCall]:
    """The call, taken apart into calls about at most one topic, one group and one transactional id each.

    A call about all topics has a piece that is about them all. Raises `ValueError` for more than `MAX_PIECES`.
    """
    kinds = [[name for name in call.resources if name.startswith(kind)] for kind in (TOPIC, GROUP, TRANSACTIONAL_ID)]
    if all(len(names) <= 1 for names in kinds) and not (kinds[0] and call.all_topics):
        yield call
        return
    topics, groups, ids = (_each(names) for names in kinds)
    topics_and_all = [*topics, ()] if call.all_topics and kinds[0] else topics
    if len(topics_and_all) * len(groups) * len(ids) > MAX_PIECES:
        raise ValueError("too many combinations of resources in one call")
    for topic, group, id_ in product(topics_and_all, groups, ids):
        yield msgspec.structs.replace(call, resources=topic + group + id_, all_topics=call.all_topics and not topic)


def _each(names: list[str]) -> list[tuple[str, ...]]:
    """Each by itself, or nothing if there is none."""
    found: list[tuple[str, ...]] = [(name,) for name in names]
    return found or [()]


class _Topics(msgspec.Struct):
    """The rules about one API, by their condition on the topic."""

    everything: list[int]  # all of them
    any: list[int]  # those without a condition
    exact: dict[str, list[int]]
    prefixes: dict[int, dict[str, list[int]]]  # by length
    patterns: list[tuple[int, int]]  # id in the table of patterns, rule

    def about(self, topic: str, patterns: Iterable[int]) -> list[int]:
        """The rules whose condition holds for ``topic``, in their order."""
        found = [*self.any, *self.exact.get(topic, ())]
        for length, prefixes in self.prefixes.items():
            found += prefixes.get(topic[:length], ()) if len(topic) >= length else ()
        if self.patterns:
            held = set(patterns)
            found += [order for id_, order in self.patterns if id_ in held]
        found.sort()
        return found


class KafkaIndex:
    """All Kafka rules of one list, ready to be asked; the counterpart of `match.RuleIndex`."""

    changes_headers = False
    lacks_secrets = False

    def __init__(self, rules: Sequence[KafkaRule], deny: bool) -> None:
        self.rules = rules
        self._deny = deny
        self._patterns = PatternTable(dot_nl=deny)
        self._by_api: dict[int, _Topics] = {}
        self._any_api = _new_topics()
        for order, rule in enumerate(rules):
            pattern = None
            if rule.topic is not None and rule.topic.kind is TopicKind.PATTERN:
                pattern = self._patterns.add(rule.topic.text, order + 1)
            if rule.keys is None:
                _add(self._any_api, order, rule, pattern)
                continue
            # An allowed client may always say who it is.
            for key in rule.keys if deny else rule.keys | HANDSHAKE:
                _add(self._by_api.setdefault(key, _new_topics()), order, rule, pattern)
        self._patterns.compile()

    def matches(self, call: ApiCall) -> tuple[list[Match], bool]:
        """The first rule that holds for a call about at most one topic. Raises `match.UndecidedError`."""
        for order in self._candidates(call):
            if self._failing(order, call) is None:
                return [Match(order)], False
        return [], False

    def _candidates(self, call: ApiCall) -> Iterable[int]:
        topics = of_kind(call.resources, TOPIC)
        lists = [self._any_api]
        if (of_api := self._by_api.get(_key(call))) is not None:
            lists.append(of_api)
        found: set[int] = set()
        for rules in lists:
            if _is_handshake(call) and not self._deny:
                found.update(rules.everything)
            elif topics:
                for topic in topics:
                    found.update(rules.about(topic, self._patterns.matching(_latin(topic)) if rules.patterns else ()))
            elif call.all_topics != self._deny:
                # Only a rule about any topic allows all of them; of no topic, a rule that denies some says nothing.
                found.update(rules.any)
            else:
                found.update(rules.everything)
        return sorted(found)

    def mismatch(self, order: int, call: ApiCall) -> str | None:
        """The first condition of a rule that does not hold for ``call``, by the document's name; None when all hold."""
        return self._failing(order, call)

    def _failing(self, order: int, call: ApiCall) -> str | None:
        rule = self.rules[order]
        handshake = _is_handshake(call) and not self._deny
        if rule.keys is not None and _key(call) not in rule.keys and not handshake:
            return "role" if rule.role is not None else "apiKey"
        if rule.client_id is not None and call.attributes.get("clientId") != rule.client_id:
            return "clientID"
        if handshake:
            return None
        if rule.api_version is not None and call.attributes.get("apiVersion") != rule.api_version:
            return "apiVersion"
        if not self._about_topics(order, call):
            assert rule.topic is not None
            return rule.topic.kind.value
        for kind, wanted, field in (
            (GROUP, rule.group, "group"),
            (TRANSACTIONAL_ID, rule.transactional_id, "transactionalID"),
        ):
            names = of_kind(call.resources, kind)
            # As with topics: what has no group passes a rule that allows one, and is not meant by a rule that denies one.
            if wanted is not None and (wanted not in names if self._deny else any(name != wanted for name in names)):
                return field
        return None

    def _about_topics(self, order: int, call: ApiCall) -> bool:
        condition = self.rules[order].topic
        if condition is None:
            return True
        topics = of_kind(call.resources, TOPIC)
        if not topics:
            return call.all_topics == self._deny
        held = (self._is_topic(condition.kind, condition.text, topic) for topic in topics)
        return any(held) if self._deny else all(held)

    def _is_topic(self, kind: TopicKind, text: str, topic: str) -> bool:
        if kind is TopicKind.EXACT:
            return topic == text
        if kind is TopicKind.PREFIX:
            return topic.startswith(text)
        return self._patterns.holds(text, _latin(topic))


def _new_topics() -> _Topics:
    return _Topics([], [], {}, {}, [])


def _add(topics: _Topics, order: int, rule: KafkaRule, pattern: int | None) -> None:
    topics.everything.append(order)
    condition = rule.topic
    if condition is None:
        topics.any.append(order)
    elif condition.kind is TopicKind.EXACT:
        topics.exact.setdefault(condition.text, []).append(order)
    elif condition.kind is TopicKind.PREFIX:
        topics.prefixes.setdefault(len(condition.text), {}).setdefault(condition.text, []).append(order)
    else:
        assert pattern is not None
        topics.patterns.append((pattern, order))


def _key(call: ApiCall) -> int:
    key = call.attributes.get("apiKey")
    return key if isinstance(key, int) else -1


def _is_handshake(call: ApiCall) -> bool:
    return _key(call) in HANDSHAKE


def _latin(topic: str) -> str:
    """The topic's bytes as a pattern sees them."""
    return topic.encode().decode("latin-1")
