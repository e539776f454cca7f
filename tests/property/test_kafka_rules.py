"""Kafka rules against an evaluator that knows nothing of indexes: it asks every rule about every combination of names.

The evaluator is written from the words of docs/policies.md ("Kafka rules"), in the plainest way, and has its own list of what
each role may ask. Rules and requests are random over few names, so that they meet often.
"""

import json
import os
import re
from collections.abc import Iterator
from itertools import product
from random import Random
from typing import Any

import pytest

from parsers.contract import ApiCall
from policies.decide import Decision, Pair, PolicySet, Verdict
from policies.kafka import APIS, pieces
from policies.load import Source, load

SOAK = os.environ.get("SLUICE_SOAK") == "1"
ROUNDS = 5_000 if SOAK else 400  # sets of rules
CALLS_PER_ROUND = 20

Rule = dict[str, Any]

HANDSHAKE = {"SaslHandshake", "SaslAuthenticate", "ApiVersions", "GetTelemetrySubscriptions", "PushTelemetry"}
METADATA = {"Metadata", "DescribeCluster", "DescribeTopicPartitions"}
_BOTH = METADATA | {"FindCoordinator"}
ROLES = {
    "produce": _BOTH | {"Produce", "InitProducerId", "AddPartitionsToTxn", "AddOffsetsToTxn", "EndTxn"},
    "consume": _BOTH
    | {"Fetch", "ListOffsets", "OffsetForLeaderEpoch", "OffsetCommit", "OffsetFetch", "TxnOffsetCommit"}
    | {"JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup", "ConsumerGroupHeartbeat"},
}
# One of each kind: what brokers are asked for by topic, by group, by transactional id, by several of these and by none.
CALLED = [
    *(
        "Produce",
        "Fetch",
        "Metadata",
        "OffsetCommit",
        "OffsetFetch",
        "TxnOffsetCommit",
        "AddPartitionsToTxn",
        "FindCoordinator",
    ),
    *(
        "PushTelemetry",
        "Heartbeat",
        "EndTxn",
        "DescribeGroups",
        "DescribeConfigs",
        "ListGroups",
        "ApiVersions",
        "SaslHandshake",
    ),
    *("DescribeCluster", "DescribeTopicPartitions", "AlterUserScramCredentials", "ListTransactions", "ElectLeaders"),
]
# Kafka asks for rights to something else for these than to the topics, groups and transactional ids that they name.
BEYOND_NAMES = {"ListGroups", "AlterUserScramCredentials", "ListTransactions", "ElectLeaders"}
OTHERS = ["broker:1", "clientMetrics:m", "cluster:kafka-cluster"]
NAMES_OF_GROUPS, NAMES_OF_IDS = {"group", "groupPrefix"}, {"transactionalID", "transactionalIDPrefix"}
NAMES = NAMES_OF_GROUPS | NAMES_OF_IDS
TOPICS = ["a", "a-1", "a-2", "ab", "b", "b-1", "A", "a.1", "?AAAA"]
GROUPS, IDS, CLIENTS, VERSIONS = ["g", "h", "gg"], ["t", "tt", "u"], ["me", "you", None], [0, 3, 7]
WORKLOADS = "---\n".join(
    json.dumps(
        {
            "apiVersion": "sluice.dev/v1",
            "kind": "Workload",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"cgroups": [f"/sluice/{name}"]},
        }
    )
    + "\n"
    for name in ("kafka", "client", "other")
)


# The evaluator. A piece is (api, version, client, topic or None, all topics?, group or None, transactional id or None, anything
# else?).


class Reference:
    """The rules of one side."""

    def __init__(self, rules: list[Rule]) -> None:
        self.denying = [rule for rule in rules if rule.get("deny")]
        self.allowing = [rule for rule in rules if not rule.get("deny")]

    def allows(self, piece: tuple[Any, ...]) -> bool:
        return not any(self.denies(rule, *piece) for rule in self.denying) and any(
            self.permits(rule, *piece) for rule in self.allowing
        )

    @staticmethod
    def _is_of(rule: Rule, api: str, version: int, client: str | None) -> bool:
        if "role" in rule and api not in ROLES[rule["role"]]:
            return False
        if "apiKey" in rule and api.lower() != rule["apiKey"] and not (rule["apiKey"] == "metadata" and api in METADATA):
            return False
        if "apiVersion" in rule and str(version) != rule["apiVersion"]:
            return False
        return "clientID" not in rule or rule["clientID"] == client

    @staticmethod
    def _is_about(rule: Rule, topic: str) -> bool:
        if "topic" in rule:
            return bool(topic == rule["topic"])
        if "topicPrefix" in rule:
            return topic.startswith(rule["topicPrefix"])
        return re.fullmatch(rule["topicPattern"], topic) is not None

    @staticmethod
    def _holds(rule: Rule, field: str, name: str) -> bool:
        return rule.get(field, name) == name and name.startswith(rule.get(f"{field}Prefix", ""))

    @staticmethod
    def _has_topic_condition(rule: Rule) -> bool:
        return bool({"topic", "topicPrefix", "topicPattern"} & set(rule))

    def permits(
        self,
        rule: Rule,
        api: str,
        version: int,
        client: str | None,
        topic: str | None,
        all_topics: bool,
        group: str | None,
        id_: str | None,
        others: bool,
    ) -> bool:
        if api in HANDSHAKE:
            return "clientID" not in rule or rule["clientID"] == client
        about_names = self._has_topic_condition(rule) or bool(NAMES & set(rule))
        says_so = "apiKey" in rule or not rule
        if (api in BEYOND_NAMES and not says_so) or (others and (not says_so or about_names)):
            return False
        if not self._is_of(rule, api, version, client):
            return False
        if self._has_topic_condition(rule) and (all_topics if topic is None else not self._is_about(rule, topic)):
            return False
        if api == "TxnOffsetCommit" and rule.get("role") == "consume" and id_ is not None and not NAMES_OF_IDS & set(rule):
            ends = ("EndTxn", -1, client, None, False, None, id_, False)
            if not any(self.permits(other, *ends) for other in self.allowing):
                return False
        if group is not None and not self._holds(rule, "group", group):
            return False
        return id_ is None or self._holds(rule, "transactionalID", id_)

    def denies(
        self,
        rule: Rule,
        api: str,
        version: int,
        client: str | None,
        topic: str | None,
        all_topics: bool,
        group: str | None,
        id_: str | None,
        others: bool,
    ) -> bool:
        if not self._is_of(rule, api, version, client):
            return False
        if self._has_topic_condition(rule) and (not all_topics if topic is None else not self._is_about(rule, topic)):
            return False
        if (group is None and NAMES_OF_GROUPS & set(rule)) or (id_ is None and NAMES_OF_IDS & set(rule)):
            return False
        return self._holds(rule, "group", group or "") and self._holds(rule, "transactionalID", id_ or "")


def expected(sides: list[list[Rule]], call: ApiCall) -> tuple[str, dict[str, str] | None]:
    """The verdict, and where it is PARTIAL that of each topic, or of each thing that is judged by itself."""
    references = [Reference(rules) for rules in sides]
    topics, groups, ids = (names(call, kind) for kind in ("topic", "group", "transactionalId"))
    others = any(one in OTHERS for one in call.resources)
    if call.separate:
        alone = {one: expected(sides, about(call, (one,), call.all_topics))[0] for one in call.resources}
        whole = alone or {"": expected(sides, about(call, (), call.all_topics))[0]}
        if all(verdict == "ALLOWED" for verdict in whole.values()):
            return "ALLOWED", None
        some = "ALLOWED" in alone.values() or (call.remainder and expected(sides, about(call, ()))[0] == "ALLOWED")
        return ("PARTIAL", alone) if call.divisible and some else ("DENIED", None)

    def allowed(topic: str | None, all_topics: bool) -> bool:
        return all(
            side.allows(
                (
                    *(call.method, call.attributes["apiVersion"], call.attributes.get("clientId")),
                    *(topic, all_topics, group, id_, others),
                )
            )
            for side in references
            for group, id_ in product(groups or [None], ids or [None])
        )

    by_topic = {topic: allowed(topic, False) for topic in topics}
    # Without topics there is one thing to ask: about all of them, or about none.
    whole = allowed(None, call.all_topics) if call.all_topics or not topics else True
    if whole and all(by_topic.values()):
        return "ALLOWED", None
    rest = (call.all_topics or call.remainder) and allowed(None, False)
    if call.divisible and call.all_topics and not topics:
        return ("ALLOWED", {}) if rest else ("DENIED", None)  # the reply is cut, and nothing that was named is denied
    if call.divisible and (rest or any(by_topic.values())):
        return "PARTIAL", {f"topic:{topic}": "ALLOWED" if ok else "DENIED" for topic, ok in by_topic.items()}
    return "DENIED", None


def sees(sides: list[list[Rule]], call: ApiCall, topic: str) -> bool:
    """Whether this very request may name this topic."""
    others = () if call.separate else tuple(one for one in call.resources if not one.startswith("topic:"))
    return expected(sides, about(call, (f"topic:{topic}", *others)))[0] == "ALLOWED"


def about(call: ApiCall, resources: tuple[str, ...], all_topics: bool = False) -> ApiCall:
    """The same request about these things and no others."""
    more = {"attributes": call.attributes, "all_topics": all_topics}
    return ApiCall(protocol="kafka", method=call.method, resources=resources, **more)  # type: ignore[arg-type]


def names(call: ApiCall, kind: str) -> list[str]:
    return [one.partition(":")[2] for one in call.resources if one.startswith(f"{kind}:")]


# Random rules and requests


def some_rule(random: Random, deny: float = 0.2) -> Rule:
    rule: Rule = {}
    what = random.random()
    if what < 0.4:
        rule["role"] = random.choice(list(ROLES))
    elif what < 0.7:
        rule["apiKey"] = random.choice(CALLED).lower()
    where = random.random()
    if where < 0.4:
        rule["topic"] = random.choice(TOPICS[:-1])
    elif where < 0.55:
        rule["topicPrefix"] = random.choice(["a", "a-", "ab", "b-"])
    elif where < 0.7:
        rule["topicPattern"] = random.choice(["a.*", "[ab]", "a|b", "a-[0-9]", "b", "(?i)A", ".*[0-9]"])
    for field, values, chance in (
        ("apiVersion", [str(version) for version in VERSIONS], 0.1),
        ("clientID", ["me", "you"], 0.15),
        ("group", GROUPS, 0.25),
        ("transactionalID", IDS, 0.15),
    ):
        if random.random() < chance:
            rule[field] = random.choice(values)
    for field in ("group", "transactionalID"):
        if field in rule and random.random() < 0.4:
            rule[f"{field}Prefix"] = rule.pop(field)
    if random.random() < deny:
        rule["deny"] = True
    return rule


def some_rules(random: Random) -> list[Rule]:
    return [some_rule(random) for _ in range(random.choice([0, 1, 2, 3, 5, 8]))]


def some_call(random: Random) -> ApiCall:
    """Any mixture of names, whether or not Kafka has such a request: the decision must be right for all."""
    api = random.choice(CALLED)
    resources = [
        f"{kind}:{name}"
        for kind, known, most in (("topic", TOPICS, 4), ("group", GROUPS, 2), ("transactionalId", IDS, 2))
        for name in random.sample(known, random.choice([0, 1, 1, most]))
    ]
    if random.random() < 0.15:
        resources.append(random.choice(OTHERS))
    client = random.choice(CLIENTS)
    all_topics = random.random() < 0.2
    return ApiCall(
        protocol="kafka",
        method=api,
        resources=tuple(resources),
        attributes={
            "apiKey": APIS[api],
            "apiVersion": random.choice(VERSIONS),
            **({"clientId": client} if client is not None else {}),
        },
        divisible=random.random() < 0.5,
        separate=random.random() < 0.3 and not (all_topics and any(one.startswith("topic:") for one in resources)),
        all_topics=all_topics,
        remainder=random.random() < 0.2,
    )


def side(name: str, owner: str, direction: str, peers: str | None, rules: list[Rule], **more: object) -> str:
    """A policy with these rules on one direction of ``owner``, for anybody or for one workload."""
    rule: dict[str, Any] = {"toPorts": [{"ports": [{"port": "9092", "protocol": "TCP"}], "rules": {"kafka": rules}}]}
    if peers is not None:
        rule["fromEndpoints" if direction == "ingress" else "toEndpoints"] = [{"matchLabels": {"app": peers}}]
    spec = {"endpointSelector": {"matchLabels": {"app": owner}}, direction: [rule], **more}
    return json.dumps({"apiVersion": "sluice.dev/v1", "kind": "ApiPolicy", "metadata": {"name": name}, "spec": spec}) + "\n"


def pair_of(*policies: str, subject: str = "client") -> Pair:
    loaded = PolicySet(load([Source("test.yaml", "---\n".join((WORKLOADS, *policies)))]), 1)
    return loaded.pair(loaded.endpoint(subject), loaded.endpoint("kafka"), 9092)


def rounds(seed: str) -> Iterator[Random]:
    for number in range(ROUNDS):
        yield Random(f"{seed} {number}")


def calls(random: Random) -> list[ApiCall]:
    return [some_call(random) for _ in range(CALLS_PER_ROUND)]


def facts(decision: Decision) -> tuple[str, dict[str, str] | None]:
    parts = decision.per_resource
    return str(decision.verdict), None if parts is None else {name: str(verdict) for name, verdict in parts.items()}


# The laws


def test_a_decision_is_what_asking_every_rule_about_every_combination_says() -> None:
    verdicts: set[str] = set()
    for random in rounds("reference"):
        rules = some_rules(random)
        one = pair_of(side("p", "kafka", "ingress", None, rules))
        for call in calls(random):
            found = facts(one.decide(call))
            assert found == expected([rules], call), (rules, call)
            verdicts.add(found[0])
    assert verdicts == {"ALLOWED", "DENIED", "PARTIAL"}


def test_so_it_is_with_rules_of_both_sides_and_of_several_policies() -> None:
    for random in rounds("sides"):
        egress, first, second = some_rules(random), some_rules(random), some_rules(random)
        one = pair_of(
            side("out", "client", "egress", "kafka", egress),
            side("in-1", "kafka", "ingress", "client", first),
            side("in-2", "kafka", "ingress", None, second),
        )
        for call in calls(random):
            sides, decision = [egress, first + second], one.decide(call)
            assert facts(decision) == expected(sides, call), (sides, call)
            if decision.granting is not None:
                assert all(decision.grants(f"topic:{topic}") == sees(sides, call, topic) for topic in TOPICS), (sides, call)


def test_of_a_reply_exactly_those_topics_may_be_seen_that_the_request_might_have_named() -> None:
    for random in rounds("grants"):
        rules = some_rules(random)
        one = pair_of(side("p", "kafka", "ingress", None, rules))
        for call in calls(random):
            decision = one.decide(call)
            if decision.granting is None and decision.verdict is Verdict.ALLOWED:
                continue  # nothing is cut from its reply
            for topic in TOPICS:
                assert decision.grants(f"topic:{topic}") == sees([rules], call, topic), (rules, call, topic)


def test_all_that_an_allowed_request_about_all_topics_shows_may_be_seen() -> None:
    """A reply that goes by unread must not have a topic in it that would have been refused by its name."""
    for random in rounds("whole"):
        rules = some_rules(random)
        one = pair_of(side("p", "kafka", "ingress", None, rules))
        for call in calls(random):
            if call.all_topics and call.method not in HANDSHAKE and facts(one.decide(call)) == ("ALLOWED", None):
                assert all(sees([rules], call, topic) for topic in TOPICS), (rules, call)


def test_a_rule_for_one_client_never_widens_what_another_may() -> None:
    for random in rounds("widen"):
        rules = some_rules(random)
        present = side("p", "kafka", "ingress", "other", rules)
        added = side("added", "kafka", "ingress", "client", [some_rule(random, deny=0), some_rule(random)])
        before, after = pair_of(present, subject="other"), pair_of(present, added, subject="other")
        for call in calls(random):
            assert facts(before.decide(call)) == facts(after.decide(call))


def test_another_allow_rule_takes_nothing_away_and_another_deny_rule_gives_nothing() -> None:
    order = {"DENIED": 0, "PARTIAL": 1, "ALLOWED": 2}
    for random in rounds("monotone"):
        rules, more = some_rules(random), some_rule(random, deny=0.5)
        before = pair_of(side("p", "kafka", "ingress", None, rules))
        after = pair_of(side("p", "kafka", "ingress", None, [*rules, more]))
        for call in calls(random):
            was, is_ = before.decide(call), after.decide(call)
            less, greater = (is_, was) if more.get("deny") else (was, is_)
            assert order[less.verdict] <= order[greater.verdict], (rules, more, call)
            for one in call.resources:
                assert greater.grants(one) or not less.grants(one), (rules, more, call)


def test_the_order_of_rules_and_of_names_has_no_meaning() -> None:
    for random in rounds("order"):
        rules = some_rules(random)
        one = pair_of(side("p", "kafka", "ingress", None, rules))
        other = pair_of(side("p", "kafka", "ingress", None, random.sample(rules, len(rules))))
        for call in calls(random):
            turned = ApiCall(
                protocol="kafka",
                method=call.method,
                resources=tuple(random.sample(call.resources, len(call.resources))),
                attributes=call.attributes,
                divisible=call.divisible,
                separate=call.separate,
                all_topics=call.all_topics,
                remainder=call.remainder,
            )
            assert facts(one.decide(call)) == facts(other.decide(turned)), (rules, call)


def test_of_every_rule_it_can_be_told_whether_it_matches_and_the_first_that_does_decides() -> None:
    """What `sluice explain` shows, by another way than the index's."""
    for random in rounds("mismatch"):
        rules = some_rules(random)
        plan = pair_of(side("p", "kafka", "ingress", None, rules)).sides[0].enforced.l7
        assert plan is not None
        reference = Reference(rules)
        for listed, asked, holds in (
            (plan.deny, reference.denying, reference.denies),
            (plan.allow, reference.allowing, reference.permits),
        ):
            for call in calls(random) if asked else ():
                for piece in pieces(call):
                    topic, group, id_ = ((names(piece, kind) or [None])[0] for kind in ("topic", "group", "transactionalId"))
                    about = (piece.method, piece.attributes["apiVersion"], piece.attributes.get("clientId"))
                    others = any(one in OTHERS for one in piece.resources)
                    things = (topic, piece.all_topics, group, id_, others)
                    matching = [i for i, rule in enumerate(asked) if holds(rule, *about, *things)]
                    told = [i for i in range(len(asked)) if listed.index.mismatch(i, piece) is None]
                    first = [match.order for match in listed.index.matches(piece)[0]]
                    assert (told, first) == (matching, matching[:1]), (rules, piece)


def test_in_audit_mode_the_same_rules_stop_nothing_and_tell_what_they_would_have_stopped() -> None:
    for random in rounds("audit"):
        rules = some_rules(random)
        one = pair_of(side("p", "kafka", "ingress", None, rules, mode="audit"))
        for call in calls(random):
            decision = one.decide(call)
            would = expected([rules], call)[0] != "ALLOWED"
            assert decision.verdict is (Verdict.WOULD_DENY if would else Verdict.ALLOWED), (rules, call)
            assert all(decision.grants(one_of) for one_of in (*call.resources, "topic:elsewhere"))


@pytest.mark.parametrize("number", [1, 50, 1000])
def test_however_many_rules_there_are_the_right_ones_are_found(number: int) -> None:
    random = Random(number)
    kinds = ["topic", "topicPrefix", "topicPattern"]
    rules: list[Rule] = [{kinds[i % 3]: f"t{i}", "role": "produce"} for i in range(number)]
    one = pair_of(side("p", "kafka", "ingress", None, rules))
    for _ in range(200):
        topics = random.sample([f"t{random.randrange(2 * number)}{random.choice(['', 'x'])}" for _ in range(5)], 2)
        call = ApiCall(
            protocol="kafka",
            method="Produce",
            resources=tuple(f"topic:{topic}" for topic in dict.fromkeys(topics)),
            attributes={"apiKey": 0, "apiVersion": 9},
            divisible=True,
        )
        assert facts(one.decide(call)) == expected([rules], call), call
