"""Kafka rules: which requests they are about, and which of them hold for a call.

A call (``ApiCall``) of Kafka names its API by ``attributes["apiKey"]`` and what it touches by ``resources``, each of them
``topic:NAME``, ``group:NAME`` or ``transactionalId:NAME``. Rules are asked about one topic, one group and one transactional id
at a time (`pieces`), so that what a call asks for is allowed by the union of rules, and refused piece by piece.

What Kafka authorises on something else than these (kafka_acls.py: the cluster, users, delegation tokens, lists of what belongs
to others) is not meant by a rule that has only such conditions: a rule has to say so (`Reach`).
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import product

import msgspec

from parsers.contract import ApiCall
from policies.kafka_acls import ASKS, BEYOND_NAMES, PARTLY_OF_THE_CLUSTER
from policies.match import Match, PatternTable
from policies.model import KafkaRole, KafkaRule, NameMatch, TopicKind

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
    "describegroups": frozenset({APIS["DescribeGroups"], APIS["ConsumerGroupDescribe"]}),  # the latter for groups of KIP-848
}
NAMES_BY_KEY = {key: name for name, key in APIS.items()}

# Without these no client can say anything: who it is, and which versions it may use. Today's clients also ask, beside all else,
# whether the broker wants to know how they are (KIP-714). Who may ask for anything may ask them.
HANDSHAKE = frozenset(
    APIS[name] for name in ("SaslHandshake", "SaslAuthenticate", "ApiVersions", "GetTelemetrySubscriptions", "PushTelemetry")
)
_TXN_OFFSET_COMMIT, _END_TXN = APIS["TxnOffsetCommit"], APIS["EndTxn"]
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
            "TxnOffsetCommit",  # READ of the topic and the group; whose transaction it is, other rules say
        )
    ),
}
_READERS = ROLES[KafkaRole.CONSUME]
# Pieces of one call that are judged one by one. A call of more is refused as a whole.
MAX_PIECES = 4_000

TOPIC, GROUP, TRANSACTIONAL_ID = "topic:", "group:", "transactionalId:"
# What rules have conditions on. Anything else that a call names (a broker's configuration, what only brokers ask) is the
# cluster's.
_CONDITIONED = (TOPIC, GROUP, TRANSACTIONAL_ID)


class Reach(IntEnum):
    """How far calls go, and how far an allow rule does: it allows nothing that goes farther.

    A deny rule means whatever meets its conditions.
    """

    NAMES = 0  # topics, groups and transactional ids
    API = 1  # an API that Kafka authorises on something else: any rule that names it by ``apiKey``, or has no condition
    CLUSTER = 2  # things of the cluster in a request that may as well be about topics: such a rule, if it has none on these
    UNKNOWN = 3  # an API of which nobody has said what Kafka asks: no rule


_REACHES = {key: Reach.API if name in BEYOND_NAMES else Reach.NAMES for name, key in APIS.items() if name in ASKS}


def reach_of_call(call: ApiCall) -> Reach:
    reach = _REACHES.get(_key(call), Reach.UNKNOWN)
    for name in call.resources:
        if not name.startswith(_CONDITIONED):
            return max(reach, Reach.CLUSTER)
    return reach


def asked_of(call: ApiCall) -> tuple[str, ...]:
    """What Kafka's authorizer asks of who makes the call."""
    reach = reach_of_call(call)
    if reach is Reach.UNKNOWN:
        return ("nobody knows what",)
    api = NAMES_BY_KEY[_key(call)]
    return ("CLUSTER",) if reach is Reach.CLUSTER and api in PARTLY_OF_THE_CLUSTER else ASKS[api]


def reach_of_rule(rule: KafkaRule) -> Reach:
    about_names = rule.topic is not None or rule.group is not None or rule.transactional_id is not None
    if rule.role is None and rule.keys is not None:
        return Reach.API if about_names else Reach.CLUSTER
    plain = rule.keys is None and rule.api_version is None and rule.client_id is None and not about_names
    return Reach.CLUSTER if plain else Reach.NAMES


def of_kind(resources: Iterable[str], kind: str) -> list[str]:
    """The names of the resources of one kind."""
    return [resource[len(kind) :] for resource in resources if resource.startswith(kind)]


def pieces(call: ApiCall) -> Iterator[ApiCall]:
    """The call, taken apart into calls about at most one topic, one group and one transactional id each.

    A call about all topics has a piece that is about them all. Raises `ValueError` for more than `MAX_PIECES`.
    """
    if call.separate and len(call.resources) > 1:
        if len(call.resources) > MAX_PIECES:
            raise ValueError("too many resources in one call")
        for name in call.resources:
            yield msgspec.structs.replace(call, resources=(name,))
        return
    kinds = [[name for name in call.resources if name.startswith(kind)] for kind in _CONDITIONED]
    others = tuple(name for name in call.resources if not name.startswith(_CONDITIONED))
    if all(len(names) <= 1 for names in kinds) and not (kinds[0] and call.all_topics):
        yield call
        return
    topics, groups, ids = (_each(names) for names in kinds)
    topics_and_all = [*topics, ()] if call.all_topics and kinds[0] else topics
    if len(topics_and_all) * len(groups) * len(ids) > MAX_PIECES:
        raise ValueError("too many combinations of resources in one call")
    for topic, group, id_ in product(topics_and_all, groups, ids):
        yield msgspec.structs.replace(call, resources=topic + group + id_ + others, all_topics=call.all_topics and not topic)


def _each(names: list[str]) -> list[tuple[str, ...]]:
    """Each by itself, or nothing if there is none."""
    found: list[tuple[str, ...]] = [(name,) for name in names]
    return found or [()]


class _Bucket(msgspec.Struct):
    """Rules with the same conditions but for that on the topic. Of those with the same one, the first: it decides."""

    everything: int  # the first of all
    any: int  # of those without a condition
    exact: dict[str, int]
    prefixes: dict[int, dict[str, int]]  # by length
    patterns: dict[int, int]  # by id in the table of patterns

    def about(self, topic: str, held: Sequence[int]) -> int:
        """The first rule whose condition holds for ``topic``. ``held``: the ids of the patterns that do."""
        found = min(self.any, self.exact.get(topic, _NOBODY))
        for length, prefixes in self.prefixes.items():
            found = min(found, prefixes.get(topic[:length], _NOBODY))
        for id_ in held if self.patterns else ():
            found = min(found, self.patterns.get(id_, _NOBODY))
        return found


# The position of no rule, and what stands in an index for whatever group or transactional id a rule is about.
_NOBODY = sys.maxsize
_WHATEVER = object()


class KafkaIndex:
    """All Kafka rules of one list, ready to be asked; the counterpart of `match.RuleIndex`.

    A question takes some look-ups, however many rules there are: a client may ask thousands with one request.
    """

    changes_headers = False
    lacks_secrets = False

    def __init__(self, rules: Sequence[KafkaRule], deny: bool) -> None:
        self.rules = rules
        self._deny = deny
        self._patterns = PatternTable(dot_nl=deny)
        # By reach, APIs, version, client, group and transactional id.
        self._buckets: dict[tuple[object, ...], _Bucket] = {}
        self._of_client: dict[str | None, int] = {}  # the first rule about each client: who may do anything may say who he is
        for order, rule in enumerate(rules):
            self._of_client.setdefault(rule.client_id, order)
            # What has no group passes a rule that allows one, and is not meant by a rule that denies one.
            groups = (rule.group,) if deny else (rule.group, _WHATEVER)
            ids = (rule.transactional_id,) if deny else (rule.transactional_id, _WHATEVER)
            reaches = (Reach.NAMES,) if deny else tuple(reach for reach in Reach if reach <= reach_of_rule(rule))
            for names in product(reaches, (rule.keys,), (rule.api_version,), (rule.client_id,), groups, ids):
                self._add(self._buckets.setdefault(names, _Bucket(_NOBODY, _NOBODY, {}, {}, {})), order, rule)
        self._patterns.compile()
        # Which conditions there are at all, so that no others are looked up.
        keys = dict.fromkeys(rule.keys for rule in rules)
        self._any_api = tuple(one for one in keys if one is None)
        self._of_api = {api: tuple(one for one in keys if one is None or api in one) for held in keys for api in held or ()}
        self._versions = frozenset[object](rule.api_version for rule in rules)
        self._clients = frozenset[object](rule.client_id for rule in rules)
        self._groups, self._ids = _Names(rule.group for rule in rules), _Names(rule.transactional_id for rule in rules)

    def _add(self, bucket: _Bucket, order: int, rule: KafkaRule) -> None:
        bucket.everything = min(bucket.everything, order)
        condition = rule.topic
        if condition is None:
            bucket.any = min(bucket.any, order)
        elif condition.kind is TopicKind.EXACT:
            bucket.exact.setdefault(condition.text, order)
        elif condition.kind is TopicKind.PREFIX:
            bucket.prefixes.setdefault(len(condition.text), {}).setdefault(condition.text, order)
        else:
            bucket.patterns.setdefault(self._patterns.add(condition.text, order + 1), order)

    def matches(self, call: ApiCall) -> tuple[list[Match], bool]:
        """The first rule that holds for a call about at most one topic, one group and one transactional id.

        Raises `match.UndecidedError`, and `ValueError` for a call about more.
        """
        client = call.attributes.get("clientId")
        if _is_handshake(call) and not self._deny:
            first = min(self._of_client.get(who, _NOBODY) for who in (None, client))  # type: ignore[arg-type]
        else:
            first = self._first(call, client)
        return ([], False) if first == _NOBODY else ([Match(first)], False)

    def finder(self, call: ApiCall) -> Callable[[str], bool]:
        """Whether some rule holds for a call about one topic, for a call like ``call`` and a topic by its name: what `matches`
        says, for whoever asks about very many. Raises `ValueError`, and when it is asked `match.UndecidedError`."""
        if _is_handshake(call) and not self._deny:
            held = bool(self.matches(call)[0])
            return lambda topic: held
        buckets = list(self._asked(call, call.attributes.get("clientId")))
        patterns = any(bucket.patterns for bucket in buckets)

        def holds(topic: str) -> bool:
            held = self._patterns.matching(_latin(topic)) if patterns else ()
            return any(bucket.about(topic, held) != _NOBODY for bucket in buckets)

        return holds

    def _first(self, call: ApiCall, client: object) -> int:
        topic = _only(of_kind(call.resources, TOPIC))
        held = self._patterns.matching(_latin(topic)) if topic is not None else ()
        found = _NOBODY
        for bucket in self._asked(call, client):
            if topic is not None:
                found = min(found, bucket.about(topic, held))
            elif call.all_topics != self._deny:
                # Only a rule about any topic allows all of them; of no topic, a rule that denies some says nothing.
                found = min(found, bucket.any)
            else:
                found = min(found, bucket.everything)
        return found

    def _asked(self, call: ApiCall, client: object) -> Iterator[_Bucket]:
        """The rules whose conditions hold for a call, but for those on the topic."""
        group, id_ = (_only(of_kind(call.resources, kind)) for kind in (GROUP, TRANSACTIONAL_ID))
        without = None if self._deny else _WHATEVER
        conditions = product(
            (Reach.NAMES if self._deny else reach_of_call(call),),
            self._of_api.get(_key(call), self._any_api),
            _present(call.attributes.get("apiVersion"), self._versions),
            _present(client, self._clients),
            (without,) if group is None else self._groups.meeting(group),
            (without,) if id_ is None else self._ids.meeting(id_),
        )
        nobody_writes = not self._deny and id_ is not None and self._lacks_writer(call)
        for names in conditions:
            if nobody_writes and names[1] == _READERS and names[5] is None:
                continue
            bucket = self._buckets.get(names)
            if bucket is not None:
                yield bucket

    def mismatch(self, order: int, call: ApiCall) -> str | None:
        """The first condition of a rule that does not hold for ``call``, by the document's name; None when all hold."""
        rule = self.rules[order]
        handshake = _is_handshake(call) and not self._deny
        if rule.keys is not None and _key(call) not in rule.keys and not handshake:
            return "role" if rule.role is not None else "apiKey"
        if rule.client_id is not None and call.attributes.get("clientId") != rule.client_id:
            return "clientID"
        if handshake:
            return None
        if self.goes_too_far(order, call):
            return self._what_is_too_much(rule)
        if rule.api_version is not None and call.attributes.get("apiVersion") != rule.api_version:
            return "apiVersion"
        if not self._deny and rule.keys == _READERS and rule.transactional_id is None and self._lacks_writer(call):
            return "transactionalID"
        if not self._about_topics(order, call):
            assert rule.topic is not None
            return rule.topic.kind.value
        for kind, wanted, field in (
            (GROUP, rule.group, "group"),
            (TRANSACTIONAL_ID, rule.transactional_id, "transactionalID"),
        ):
            if wanted is None:
                continue
            names = of_kind(call.resources, kind)
            # As with topics: what has no group passes a rule that allows one, and is not meant by a rule that denies one.
            held = [wanted.holds(name) for name in names]
            if not any(held) if self._deny else not all(held):
                return f"{field}Prefix" if wanted.prefix else field
        return None

    def _lacks_writer(self, call: ApiCall) -> bool:
        """Whether a call commits what was read in a transaction that nobody's rule is about: reading says nothing of that."""
        ids = tuple(one for one in call.resources if one.startswith(TRANSACTIONAL_ID))
        if _key(call) != _TXN_OFFSET_COMMIT or not ids:
            return False
        client = call.attributes.get("clientId")
        attributes = {"apiKey": _END_TXN} if client is None else {"apiKey": _END_TXN, "clientId": client}
        ending = [ApiCall(protocol=PROTOCOL, resources=(one,), attributes=attributes) for one in ids]
        return any(self._first(one, client) == _NOBODY for one in ending)

    def goes_too_far(self, order: int, call: ApiCall) -> bool:
        """Whether a call is of a rule's APIs and needs one of farther reach, whatever the conditions say."""
        rule = self.rules[order]
        asked = rule.keys is None or _key(call) in rule.keys
        return asked and not (self._deny or _is_handshake(call)) and reach_of_call(call) > reach_of_rule(rule)

    @staticmethod
    def _what_is_too_much(rule: KafkaRule) -> str:
        """The condition that keeps a rule from reaching farther."""
        if rule.keys is None or rule.role is not None:
            return "apiKey"
        if rule.topic is not None:
            return rule.topic.kind.value
        name, field = (rule.transactional_id, "transactionalID") if rule.group is None else (rule.group, "group")
        return f"{field}Prefix" if name is not None and name.prefix else field

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


class _Names:
    """The conditions on a name that there are in a list of rules."""

    def __init__(self, conditions: Iterable[NameMatch | None]) -> None:
        known = {one for one in conditions if one is not None}
        self._exact = {one.text: one for one in known if not one.prefix}
        self._prefixes: dict[int, dict[str, NameMatch]] = {}  # by length
        for one in known:
            if one.prefix:
                self._prefixes.setdefault(len(one.text), {})[one.text] = one

    def meeting(self, name: str) -> list[NameMatch | None]:
        """Those that hold for ``name``, and that there is none."""
        found: list[NameMatch | None] = [None]
        if name in self._exact:
            found.append(self._exact[name])
        for length, prefixes in self._prefixes.items():
            one = prefixes.get(name[:length])
            if one is not None:
                found.append(one)
        return found


def _only(names: Sequence[str]) -> str | None:
    """The only name, if there is one. Raises `ValueError` for more."""
    if len(names) > 1:
        raise ValueError("a question about several things at once")
    return names[0] if names else None


def _present(value: object, known: frozenset[object]) -> tuple[object, ...]:
    """The conditions that ``value`` meets, of those that there are."""
    return (None, value) if value is not None and value in known else (None,)


def _key(call: ApiCall) -> int:
    key = call.attributes.get("apiKey")
    return key if isinstance(key, int) else -1


def _is_handshake(call: ApiCall) -> bool:
    return _key(call) in HANDSHAKE


def _latin(topic: str) -> str:
    """The topic's bytes as a pattern sees them."""
    return topic.encode().decode("latin-1")
