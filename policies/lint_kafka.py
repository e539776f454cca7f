"""What Kafka rules are allowed to say and probably do not mean; a part of `policies.lint`."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import product

from policies.kafka import APIS, RETIRED, Reach, reach_of_rule
from policies.kafka_acls import BEYOND_NAMES, PARTLY_OF_THE_CLUSTER
from policies.match import PatternTable, UndecidedError, is_literal
from policies.model import KafkaRole, KafkaRule, NameMatch, TopicKind, TopicMatch
from policies.nodes import Finding
from policies.rules import MAX_TOPIC, is_topic

_ANY_TOPIC = (".*", ".+", "^.*$", "^.+$")
_BEYOND_NAMES = frozenset(APIS[name] for name in BEYOND_NAMES)
_PARTLY_OF_THE_CLUSTER = frozenset(APIS[name] for name in PARTLY_OF_THE_CLUSTER)
_RETIRED_NAMES = {key: name for name, key in RETIRED.items()}

# The APIs whose requests name things of each kind, in some version. Of the others, no condition on that kind says anything.
NAMES_TOPICS = frozenset(
    {
        *("Produce", "Fetch", "ListOffsets", "Metadata", "OffsetCommit", "OffsetFetch", "CreateTopics", "DeleteTopics"),
        *("DeleteRecords", "OffsetForLeaderEpoch", "AddPartitionsToTxn", "WriteTxnMarkers", "TxnOffsetCommit"),
        *("DescribeAcls", "CreateAcls", "DeleteAcls", "DescribeConfigs", "AlterConfigs", "AlterReplicaLogDirs"),
        *("DescribeLogDirs", "CreatePartitions", "ElectLeaders", "IncrementalAlterConfigs", "AlterPartitionReassignments"),
        *("ListPartitionReassignments", "OffsetDelete", "DescribeQuorum", "DescribeProducers", "ConsumerGroupHeartbeat"),
        *("ListConfigResources", "DescribeTopicPartitions", "ShareGroupHeartbeat", "ShareFetch", "ShareAcknowledge"),
        *("StreamsGroupHeartbeat", "DescribeShareGroupOffsets", "AlterShareGroupOffsets", "DeleteShareGroupOffsets"),
    }
)
NAMES_GROUPS = frozenset(
    {
        *("OffsetCommit", "OffsetFetch", "FindCoordinator", "JoinGroup", "Heartbeat", "LeaveGroup", "SyncGroup"),
        *("DescribeGroups", "AddOffsetsToTxn", "TxnOffsetCommit", "DescribeConfigs", "AlterConfigs", "DeleteGroups"),
        *("IncrementalAlterConfigs", "OffsetDelete", "ConsumerGroupHeartbeat", "ConsumerGroupDescribe"),
        *("ShareGroupHeartbeat", "ShareGroupDescribe", "ShareFetch", "ShareAcknowledge", "StreamsGroupHeartbeat"),
        *("StreamsGroupDescribe", "DescribeShareGroupOffsets", "AlterShareGroupOffsets", "DeleteShareGroupOffsets"),
    }
)
NAMES_TRANSACTIONAL_IDS = frozenset(
    {
        *("Produce", "FindCoordinator", "InitProducerId", "AddPartitionsToTxn", "AddOffsetsToTxn", "EndTxn"),
        *("TxnOffsetCommit", "DescribeTransactions"),
    }
)
_KINDS = (
    ("topics", frozenset(APIS[name] for name in NAMES_TOPICS)),
    ("groups", frozenset(APIS[name] for name in NAMES_GROUPS)),
    ("transactional ids", frozenset(APIS[name] for name in NAMES_TRANSACTIONAL_IDS)),
)


def of_rules(rules: Sequence[KafkaRule]) -> Iterator[Finding]:
    """Findings about the rules of one list."""
    for rule in rules:
        yield from _of_rule(rule)
    yield from _pointless(rules)


def without_metadata(rules: Iterable[KafkaRule]) -> Iterator[Finding]:
    """Findings about all rules of one direction: who may write or read, but not ask where."""
    allowing = [rule for rule in rules if not rule.deny]
    if any(rule.keys is None or APIS["Metadata"] in rule.keys for rule in allowing):
        return
    for rule in allowing:
        if rule.keys is not None and rule.keys & {APIS["Produce"], APIS["Fetch"]}:
            what = "no rule allows Metadata: clients cannot find out where to send this"
            yield _at(rule, "SL016", what, "role: produce or consume, or one more rule with apiKey: metadata")


def without_commits(rules: Iterable[KafkaRule]) -> Iterator[Finding]:
    """Findings about all rules of one direction: who writes in transactions what he has read, and may not commit how far."""
    allowing = [rule for rule in rules if not rule.deny]
    if any(_commits(rule) for rule in allowing) or not any(rule.keys and APIS["Fetch"] in rule.keys for rule in allowing):
        return
    for rule in allowing:
        if rule.role is KafkaRole.PRODUCE:
            what = "no rule allows TxnOffsetCommit: who reads and writes in one transaction cannot commit how far it has read"
            yield _at(rule, "SL019", what, "role: consume for the topics and the group that are read; it belongs to that role")


def _of_rule(rule: KafkaRule) -> Iterator[Finding]:
    if rule.keys is not None and rule.keys <= _RETIRED_NAMES.keys():
        names = ", ".join(_RETIRED_NAMES[key] for key in sorted(rule.keys))
        yield _at(rule, "SL015", f"no client asks for {names}: brokers did, among themselves, and their requests are refused")
        return
    given = (rule.topic, rule.group, rule.transactional_id)
    for condition, (kind, keys) in zip(given, _KINDS, strict=True):
        if condition is not None and rule.keys is not None and rule.keys.isdisjoint(keys):
            what = "matches no request" if rule.deny else f"allows them whatever its condition on {kind} says"
            yield _at(rule, "SL015", f"requests of this API name no {kind}: the rule {what}", "leave the condition out")
    if _means_everything(rule):
        what = "does not allow what Kafka authorises on the cluster, on users or on tokens, such as AlterClientQuotas"
        yield _at(rule, "SL017", what, "name these by apiKey, or leave all conditions out")
    if rule.topic is not None and rule.topic.kind is not TopicKind.PATTERN and len(rule.topic.text) > MAX_TOPIC:
        what = f"{rule.topic.kind.value} of {len(rule.topic.text)} characters: no broker has a topic with more than {MAX_TOPIC}"
        yield _at(rule, "SL007", what)
    if rule.topic is None or rule.topic.kind is not TopicKind.PATTERN:
        return
    text = rule.topic.text
    if text in _ANY_TOPIC:
        hint = "leave the field out; then also requests about all topics are meant, and without any condition all of them"
        yield _at(rule, "SL006", f"topicPattern: {text!r} matches every topic", hint)
    elif is_literal(text) and (not is_topic(text) or len(text) > MAX_TOPIC):
        yield _at(
            rule, "SL007", f"topicPattern: {text!r} never matches: no topic has such a name", "a-z, A-Z, 0-9, '.', '_', '-'"
        )


def _means_everything(rule: KafkaRule) -> bool:
    """Whether a rule's conditions look as if nothing was to be left out, and it leaves out what has to be said by name."""
    conditions = (rule.keys, rule.topic, rule.group, rule.transactional_id)
    return not rule.deny and all(one is None for one in conditions) and reach_of_rule(rule) is Reach.NAMES


def _pointless(rules: Sequence[KafkaRule]) -> Iterator[Finding]:
    """Rules that another one of the list makes pointless. Twins are told at the later one."""
    finder = _Finder(rules)
    for order, rule in enumerate(rules):
        told = next((one for other in finder.about(rule) if (one := _says_more(rules, other, order)) is not None), None)
        if told is not None:
            yield _at(rule, "SL002", told)


class _Finder:
    """Finds rules whose conditions may hold for all that another rule's hold for, among thousands in a moment."""

    def __init__(self, rules: Sequence[KafkaRule]) -> None:
        self._by_conditions: dict[tuple[object, ...], list[int]] = {}
        names = (name for rule in rules for name in (rule.group, rule.transactional_id) if name is not None and name.prefix)
        self._prefix_lengths = sorted({len(name.text) for name in names})
        patterns: dict[tuple[object, ...], tuple[PatternTable, dict[int, list[int]]]] = {}
        for order, rule in enumerate(rules):
            self._by_conditions.setdefault((rule.topic, *_others(rule)), []).append(order)
            if rule.topic is not None and rule.topic.kind is TopicKind.PATTERN:
                table, orders = patterns.setdefault(_others(rule), (PatternTable(dot_nl=False), {}))
                orders.setdefault(table.add(rule.topic.text, order + 1), []).append(order)
        self._patterns: dict[tuple[object, ...], tuple[PatternTable, dict[int, list[int]]]] = {}
        for others, (table, orders) in patterns.items():
            with suppress(UndecidedError):
                table.compile()
                self._patterns[others] = table, orders

    def about(self, rule: KafkaRule) -> Iterator[int]:
        """The rules' positions; the rule itself may be among them."""
        topics = list(_wider(rule.topic))
        values = ((None,) if one is None else (None, one) for one in (rule.api_version, rule.client_id))
        names = (self._wider_names(one) for one in (rule.group, rule.transactional_id))
        for others in product(*values, *names):
            for topic in topics:
                yield from self._by_conditions.get((topic, *others), ())
            if rule.topic is not None and rule.topic.kind is TopicKind.EXACT and others in self._patterns:
                table, orders = self._patterns[others]
                with suppress(UndecidedError):
                    for held in table.matching(rule.topic.text):
                        yield from orders[held]

    def _wider_names(self, name: NameMatch | None) -> tuple[NameMatch | None, ...]:
        """The conditions on a name, of those that there are, that hold for all that a condition holds for."""
        if name is None:
            return (None,)
        lengths = (length for length in self._prefix_lengths if length < len(name.text) + (not name.prefix))
        return None, name, *(NameMatch(name.text[:length], prefix=True) for length in lengths)


def _others(rule: KafkaRule) -> tuple[object, ...]:
    """The conditions that are not on topics."""
    return rule.api_version, rule.client_id, rule.group, rule.transactional_id


def _wider(topic: TopicMatch | None) -> Iterator[TopicMatch | None]:
    """The conditions that hold for all that a condition holds for, but for patterns that are not its own."""
    yield from (topic, None) if topic is not None else (None,)
    if topic is None:
        return
    yield from (TopicMatch(TopicKind.PATTERN, text) for text in _ANY_TOPIC if text != topic.text)
    if topic.kind is not TopicKind.PATTERN:
        lengths = range(1, len(topic.text) + (topic.kind is TopicKind.EXACT))
        yield from (TopicMatch(TopicKind.PREFIX, topic.text[:length]) for length in lengths)


def _says_more(rules: Sequence[KafkaRule], wide_order: int, order: int) -> str | None:
    """What makes a rule pointless beside another one, if that does."""
    wide, rule = rules[wide_order], rules[order]
    covers = wide_order != order and _covers(wide, rule)
    if not covers or (wide.audit and not rule.audit):
        return None
    if wide.deny != rule.deny:
        return f"{wide.name!r} denies all of that, and deny wins" if wide.deny and not wide.audit else None
    if wide.summary != rule.summary:
        return None  # the first one that matches says how it is recorded
    if wide.audit == rule.audit and (wide.keys, wide.topic, *_others(wide)) == (rule.keys, rule.topic, *_others(rule)):
        return f"says the same as {wide.name!r}" if wide_order < order else None
    return f"{wide.name!r} {'denies' if rule.deny else 'allows'} all of that already"


def _covers(wide: KafkaRule, narrow: KafkaRule) -> bool:
    """Whether ``wide``, which the finder has found for ``narrow``, matches whatever ``narrow`` matches."""
    if not (wide.deny or narrow.deny) and _reach_used(narrow) > reach_of_rule(wide):
        return False
    if not wide.deny and _asks_for_a_writer(wide) and _commits(narrow) and not _asks_for_a_writer(narrow):
        return False
    return wide.keys is None or (narrow.keys is not None and narrow.keys <= wide.keys)


def _commits(rule: KafkaRule) -> bool:
    """Whether it is about offsets that are committed in a transaction."""
    return rule.keys is None or APIS["TxnOffsetCommit"] in rule.keys


def _asks_for_a_writer(rule: KafkaRule) -> bool:
    """Whether it leaves it to other rules whose transactions those are (`policies.kafka.KafkaIndex`)."""
    return rule.role is KafkaRole.CONSUME and rule.transactional_id is None


def _reach_used(rule: KafkaRule) -> Reach:
    """How far the requests go that an allow rule allows."""
    reach = reach_of_rule(rule)
    if rule.keys is None or (reach is Reach.CLUSTER and rule.keys & _PARTLY_OF_THE_CLUSTER):
        return reach
    return min(reach, Reach.API if rule.keys & _BEYOND_NAMES else Reach.NAMES)


def _at(rule: KafkaRule, code: str, message: str, hint: str = "") -> Finding:
    return Finding(rule.place.file, rule.place.line, rule.place.column, code, message, hint)
