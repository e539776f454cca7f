"""Which Kafka requests are allowed, in whole or in part, and who is named for it."""

import pytest

from parsers.contract import ApiCall
from parsers.kafka.layouts import REQUESTS
from policies.decide import Action, PolicySet, Verdict
from policies.heads import NotProvable, prove
from policies.kafka import APIS, KEYS_BY_WORD, MAX_PIECES, RETIRED
from policies.kafka_acls import ASKS
from policies.model import Direction

from .words import decide_kafka as decided
from .words import get, kafka, kafka_policy, pair, policy, policy_set

METADATA = frozenset({"Metadata", "DescribeCluster", "DescribeTopicPartitions"})
BOTH = METADATA | {"FindCoordinator"}
HANDSHAKE = frozenset({"SaslHandshake", "SaslAuthenticate", "ApiVersions", "GetTelemetrySubscriptions", "PushTelemetry"})
PRODUCE = frozenset({"Produce", "InitProducerId", "AddPartitionsToTxn", "AddOffsetsToTxn", "EndTxn"})
CONSUME = frozenset(
    {
        "Fetch",
        "ListOffsets",
        "OffsetForLeaderEpoch",
        "JoinGroup",
        "SyncGroup",
        "Heartbeat",
        "LeaveGroup",
        "ConsumerGroupHeartbeat",
        "OffsetCommit",
        "OffsetFetch",
        "TxnOffsetCommit",
    }
)


def allowed(rules: str, call: ApiCall) -> bool:
    return decided(rules, call).verdict is Verdict.ALLOWED


class TestApis:
    @pytest.mark.parametrize(
        ("rules", "apis"),
        [
            ("[{role: produce}]", PRODUCE | BOTH | HANDSHAKE),
            ("[{role: consume}]", CONSUME | BOTH | HANDSHAKE),
            ("[{apiKey: listgroups}]", {"ListGroups"} | HANDSHAKE),
            ("[{apiKey: metadata}]", METADATA | HANDSHAKE),
            ("[{}]", set(APIS)),
            ("[]", set()),
        ],
    )
    def test_what_a_rule_opens(self, rules: str, apis: set[str]) -> None:
        assert {api for api in APIS if allowed(rules, kafka(api))} == apis

    def test_the_names_are_those_of_the_protocols_definitions(self) -> None:
        assert {api.name: key for key, api in REQUESTS.items()} == APIS

    @pytest.mark.parametrize(
        ("word", "api"),
        [
            ("offsets", "ListOffsets"),
            ("ListOffsets", "ListOffsets"),
            ("LISTOFFSETS", "ListOffsets"),
            ("findcoordinator", "FindCoordinator"),
            ("txnoffsetcommit", "TxnOffsetCommit"),
            ("offsetforleaderepoch", "OffsetForLeaderEpoch"),
        ],
    )
    def test_an_api_may_be_spelled_as_cilium_or_as_kafka_does(self, word: str, api: str) -> None:
        assert {other for other in APIS if allowed(f"[{{apiKey: {word}}}]", kafka(other))} == {api} | HANDSHAKE

    def test_what_only_brokers_said_may_be_named_and_allows_nothing_else(self) -> None:
        words = ("leaderandisr", "stopreplica", "updatemetadata", "controlledshutdown")
        assert [KEYS_BY_WORD[word] for word in words] == [{4}, {5}, {6}, {7}]
        assert not set(RETIRED.values()) & set(APIS.values())
        assert {api for api in APIS if allowed("[{apiKey: stopreplica}]", kafka(api))} == HANDSHAKE


# What Kafka authorises on the cluster, on users or tokens, or as a list of what belongs to everybody.
BEYOND_NAMES = {
    *("ListGroups", "ListTransactions", "WriteTxnMarkers", "DescribeAcls", "CreateAcls", "DeleteAcls", "AlterReplicaLogDirs"),
    *("DescribeLogDirs", "CreateDelegationToken", "RenewDelegationToken", "ExpireDelegationToken", "DescribeDelegationToken"),
    *("ElectLeaders", "AlterPartitionReassignments", "ListPartitionReassignments", "DescribeClientQuotas", "AlterClientQuotas"),
    *("DescribeUserScramCredentials", "AlterUserScramCredentials", "DescribeQuorum", "UpdateFeatures", "ListConfigResources"),
}
NARROW = ("topic: a", "topicPrefix: a", "topicPattern: a+", "group: g", "transactionalID: t", "clientID: me", "apiVersion: '3'")


class TestReach:
    """A rule about topics, groups, ids, clients or versions is none about the cluster, until it says so."""

    def test_of_every_api_it_is_said_what_kafka_asks(self) -> None:
        assert set(ASKS) == set(APIS)

    @pytest.mark.parametrize("condition", NARROW)
    def test_conditions_alone_open_nothing_of_the_cluster(self, condition: str) -> None:
        opened = {api for api in APIS if allowed(f"[{{{condition}}}]", kafka(api, client="me"))}
        assert not opened & BEYOND_NAMES
        assert opened >= set(APIS) - BEYOND_NAMES

    @pytest.mark.parametrize("api", sorted(BEYOND_NAMES))
    def test_what_is_the_clusters_needs_a_rule_that_names_it_or_has_no_condition(self, api: str) -> None:
        call = kafka(api, client="me")
        for rule in ("{}", "{name: all, record: summary}", f"{{apiKey: {api}}}", f"{{apiKey: {api}, clientID: me}}"):
            assert allowed(f"[{rule}]", call)
        for rule in ("{role: produce}", "{role: consume}", "{apiKey: produce}", "{clientID: me, apiVersion: '3'}"):
            assert not allowed(f"[{rule}]", call)
        assert decided("[{topic: a}, {clientID: me}]", call).reason == "no-rule-matched"

    def test_named_by_its_api_the_topics_still_count(self) -> None:
        rules = "[{apiKey: electleaders, topic: a}]"
        assert allowed(rules, kafka("ElectLeaders", "a"))
        assert not allowed(rules, kafka("ElectLeaders", "b"))
        assert not allowed("[{topic: a}]", kafka("ElectLeaders", "a"))

    @pytest.mark.parametrize(
        ("api", "rest"),
        [("Fetch", "topic:orders"), ("AddPartitionsToTxn", "topic:orders"), ("FindCoordinator", "group:g")],
    )
    def test_what_only_brokers_ask_is_none_of_a_role_or_of_a_rule_about_topics(self, api: str, rest: str) -> None:
        as_client, as_broker = kafka(api, rest), kafka(api, rest, "cluster:kafka-cluster")
        for rule in ("{role: consume}, {role: produce}", "{topic: orders}", f"{{apiKey: {api}, topic: orders}}"):
            assert allowed(f"[{rule}]", as_client)
            assert not allowed(f"[{rule}]", as_broker)
        assert allowed(f"[{{apiKey: {api}}}]", as_broker)
        assert allowed("[{}]", as_broker)

    @pytest.mark.parametrize("key", [50_000, 64, 80])
    def test_an_api_of_which_nobody_has_said_what_kafka_asks_is_refused(self, key: int) -> None:
        call = ApiCall(protocol="kafka", method=f"ApiKey{key}", attributes={"apiKey": key, "apiVersion": 0})
        assert decided("[{}]", call).reason == "no-rule-matched"

    @pytest.mark.parametrize("condition", NARROW)
    def test_a_deny_rule_reaches_as_far_as_its_conditions(self, condition: str) -> None:
        meant = condition.startswith(("clientID", "apiVersion"))
        assert allowed(f"[{{}}, {{deny: true, {condition}}}]", kafka("AlterClientQuotas", client="me")) is not meant


class TestHandshake:
    """Without these no client can say anything, so whoever may ask for something may ask for them."""

    @pytest.mark.parametrize("api", sorted(HANDSHAKE))
    def test_it_passes_whatever_else_a_rule_asks_for(self, api: str) -> None:
        rule = "{apiKey: fetch, apiVersion: '9', topic: a, group: g, transactionalID: t}"
        assert allowed(f"[{rule}]", kafka(api, version=1))

    def test_it_passes_for_the_named_client_only(self) -> None:
        assert allowed("[{role: produce, clientID: me}]", kafka("ApiVersions", client="me"))
        assert not allowed("[{role: produce, clientID: me}]", kafka("ApiVersions", client="you"))
        assert not allowed("[{role: produce, clientID: me}]", kafka("ApiVersions"))

    def test_a_deny_rule_means_it_only_when_it_says_so(self) -> None:
        assert allowed("[{}, {deny: true, role: consume}]", kafka("ApiVersions"))
        assert allowed("[{}, {deny: true, topic: a}]", kafka("ApiVersions"))
        assert not allowed("[{}, {deny: true, apiKey: apiversions}]", kafka("ApiVersions"))
        assert not allowed("[{}, {deny: true, clientID: me}]", kafka("ApiVersions", client="me"))
        assert not allowed("[{}, {deny: true, apiKey: apiversions, apiVersion: '4'}]", kafka("ApiVersions", version=4))
        assert allowed("[{}, {deny: true, apiKey: apiversions, apiVersion: '4'}]", kafka("ApiVersions", version=3))


class TestConditions:
    @pytest.mark.parametrize(
        ("rule", "holds", "fails"),
        [
            ("apiVersion: '7'", kafka("Fetch", "a", version=7), kafka("Fetch", "a", version=8)),
            ("apiVersion: '0'", kafka("Fetch", "a", version=0), kafka("Fetch", "a", version=1)),
            ("clientID: me", kafka("Fetch", client="me"), kafka("Fetch", client="Me")),
            ("clientID: me", kafka("Fetch", client="me"), kafka("Fetch")),
            ("topic: orders", kafka("Fetch", "orders"), kafka("Fetch", "orders2")),
            ("topic: orders", kafka("Fetch", "orders"), kafka("Fetch", "Orders")),
            ("topicPrefix: orders-", kafka("Fetch", "orders-eu"), kafka("Fetch", "orders")),
            ("topicPrefix: orders-", kafka("Fetch", "orders-"), kafka("Fetch", "my-orders-eu")),
            ("topicPattern: '[a-c]+'", kafka("Fetch", "abc"), kafka("Fetch", "abcd")),
            ("topicPattern: '[a-c]+'", kafka("Fetch", "abc"), kafka("Fetch", "xabc")),
            ("topicPattern: orders", kafka("Fetch", "orders"), kafka("Fetch", "orders2")),
            ("group: billing", kafka("OffsetCommit", "a", "group:billing"), kafka("OffsetCommit", "a", "group:billing2")),
            ("transactionalID: tx1", kafka("EndTxn", "transactionalId:tx1"), kafka("EndTxn", "transactionalId:tx2")),
            ("groupPrefix: bill", kafka("Heartbeat", "group:billing"), kafka("Heartbeat", "group:my-billing")),
            ("groupPrefix: bill", kafka("Heartbeat", "group:bill"), kafka("Heartbeat", "group:bil")),
            ("transactionalIDPrefix: tx-", kafka("EndTxn", "transactionalId:tx-1"), kafka("EndTxn", "transactionalId:tx")),
        ],
    )
    def test_each_condition_is_exact(self, rule: str, holds: ApiCall, fails: ApiCall) -> None:
        assert allowed(f"[{{{rule}}}]", holds)
        assert decided(f"[{{{rule}}}]", fails).reason == "no-rule-matched"

    def test_conditions_of_one_rule_are_all_to_hold(self) -> None:
        rules = "[{role: consume, topic: a, group: g, clientID: me}]"
        assert allowed(rules, kafka("OffsetFetch", "a", "group:g", client="me"))
        for other in (
            kafka("OffsetFetch", "a", "group:g"),
            kafka("OffsetFetch", "a", "group:h", client="me"),
            kafka("OffsetFetch", "b", "group:g", client="me"),
            kafka("OffsetDelete", "a", "group:g", client="me"),
        ):
            assert not allowed(rules, other)

    @pytest.mark.parametrize("condition", ["topic: a", "topicPrefix: a", "topicPattern: a+", "group: g", "transactionalID: t"])
    def test_a_request_that_names_nothing_of_a_kind_passes_a_rule_about_it(self, condition: str) -> None:
        assert allowed(f"[{{{condition}}}]", kafka("InitProducerId"))

    def test_an_unknown_topic_id_is_no_topics_name(self) -> None:
        """The parser calls a topic whose name nobody knows by a name that no topic can have."""
        assert not allowed("[{topic: a}, {topicPrefix: a}, {topicPattern: '[a-zA-Z0-9._-]+'}]", kafka("Fetch", "?AAAA"))

    def test_a_decision_names_the_rule(self) -> None:
        decision = decided("[{name: one, topic: a}, {name: two, topic: b}]", kafka("Fetch", "b"))
        assert (decision.verdict, decision.reason, decision.direction) == (Verdict.ALLOWED, "rule-matched", Direction.INGRESS)
        assert (decision.policy, decision.rule) == ("p", "two")

    @pytest.mark.parametrize("condition", ["topic: a", "topicPrefix: a", "topicPattern: a+", "role: consume", "group: g"])
    def test_the_first_of_several_that_match_decides(self, condition: str) -> None:
        rules = f"[{{name: other, topic: b}}, {{name: one, {condition}}}, {{name: two, {condition}}}, {{name: three}}]"
        assert decided(rules, kafka("OffsetFetch", "a", "group:g")).rule == "one"


class TestTransactions:
    """Who reads and writes in one transaction commits how far it has read there, too (TxnOffsetCommit)."""

    COMMIT = kafka("TxnOffsetCommit", "in", "group:app", "transactionalId:app-1", divisible=True)
    READS, WRITES = "{role: consume, topic: in, group: app}", "{role: produce, topic: out, transactionalIDPrefix: app-}"

    def test_it_is_reading_and_writing_is_no_right_to_it(self) -> None:
        assert allowed(f"[{self.READS}, {self.WRITES}]", self.COMMIT)
        assert not allowed("[{role: produce}, {apiKey: fetch}]", self.COMMIT)
        assert not allowed(f"[{self.READS}, {self.WRITES}]", kafka("Produce", "in", "transactionalId:app-1"))

    @pytest.mark.parametrize(
        ("others", "verdict"),
        [
            ("", Verdict.DENIED),
            ("{role: produce, topic: out, transactionalID: other}", Verdict.DENIED),
            ("{role: produce, topic: out, clientID: other}", Verdict.DENIED),
            ("{role: produce, topic: out}", Verdict.ALLOWED),
            ("{apiKey: endtxn, transactionalID: app-1}", Verdict.ALLOWED),
            ("{role: produce}, {deny: true, transactionalIDPrefix: app}", Verdict.DENIED),
        ],
    )
    def test_whose_transaction_it_is_some_other_rule_has_to_say(self, others: str, verdict: Verdict) -> None:
        decision = decided(f"[{self.READS}, {others}]", self.COMMIT)
        assert decision.verdict is verdict
        assert decision.grants("transactionalId:app-1") is (verdict is Verdict.ALLOWED)

    @pytest.mark.parametrize(
        "rule", ["topic: in, group: app", "apiKey: txnoffsetcommit", "role: consume, transactionalID: app-1"]
    )
    def test_or_the_rule_itself(self, rule: str) -> None:
        assert allowed(f"[{{{rule}}}]", self.COMMIT)

    @pytest.mark.parametrize(
        "rules",
        [
            "{role: consume, topic: in, mode: audit}, {role: produce, topic: out}",
            "{role: consume, topic: in}, {role: produce, topic: out, mode: audit}",
        ],
    )
    def test_a_rule_in_audit_mode_stops_nothing_of_it(self, rules: str) -> None:
        decision = decided(f"[{rules}]", self.COMMIT)
        assert (decision.verdict, decision.reason) == (Verdict.WOULD_DENY, "audit-rule")

    def test_it_is_divided_by_topics_as_ever(self) -> None:
        call = kafka("TxnOffsetCommit", "in", "out", "group:app", "transactionalId:app-1", divisible=True)
        decision = decided(f"[{self.READS}, {self.WRITES}]", call)
        assert decision.per_resource == {"topic:in": Verdict.ALLOWED, "topic:out": Verdict.DENIED}


class TestUnion:
    """Everything that a request touches must be covered by the rules together."""

    def test_every_topic_must_be_allowed_by_some_rule(self) -> None:
        rules = "[{topic: a}, {topicPrefix: b-}, {topicPattern: 'c[0-9]'}]"
        assert allowed(rules, kafka("Fetch", "a", "b-1", "c1"))
        assert not allowed(rules, kafka("Fetch", "a", "b-1", "c1", "d"))

    def test_so_must_every_group_and_every_transactional_id(self) -> None:
        assert allowed("[{group: g}, {group: h}]", kafka("DescribeGroups", "group:g", "group:h"))
        assert not allowed("[{group: g}, {group: h}]", kafka("DescribeGroups", "group:g", "group:i"))
        ids = [f"transactionalId:{name}" for name in "tuv"]
        assert allowed("[{transactionalID: t}, {transactionalID: u}]", kafka("DescribeTransactions", *ids[:2]))
        assert not allowed("[{transactionalID: t}, {transactionalID: u}]", kafka("DescribeTransactions", *ids))

    def test_a_rule_allows_a_topic_for_its_own_group_only(self) -> None:
        rules = "[{topic: a, group: g}, {topic: b, group: h}]"
        assert allowed(rules, kafka("OffsetFetch", "a", "group:g"))
        assert not allowed(rules, kafka("OffsetFetch", "a", "group:h"))
        assert not allowed(rules, kafka("OffsetFetch", "a", "b", "group:g", "group:h"))

    def test_rules_of_several_policies_are_united(self) -> None:
        call = kafka("Fetch", "a", "b")
        assert not allowed("[{topic: a}]", call)
        decision = decided("[{topic: a}]", call, kafka_policy("[{topic: b}]", "q"))
        assert (decision.verdict, decision.detail) == (Verdict.ALLOWED, ("p", "q"))

    def test_both_sides_must_allow_every_topic(self) -> None:
        egress = kafka_policy("[{topic: a}, {topic: b}]", "out", owner="web", direction="egress")
        rules = "[{topic: b}, {topic: c}]"
        assert decided(rules, kafka("Fetch", "b"), egress).verdict is Verdict.ALLOWED
        for topic, side in (("a", Direction.INGRESS), ("c", Direction.EGRESS)):
            decision = decided(rules, kafka("Fetch", topic, "b"), egress)
            assert (decision.verdict, decision.direction) == (Verdict.DENIED, side)


class TestPartial:
    """Where the protocol can refuse some topics and grant the rest, it does."""

    def test_a_divisible_request_is_allowed_in_part(self) -> None:
        decision = decided("[{name: a, topic: a}]", kafka("Produce", "a", "b", divisible=True))
        assert (decision.verdict, decision.reason, decision.allowed) == (Verdict.PARTIAL, "no-rule-matched", True)
        assert decision.per_resource == {"topic:a": Verdict.ALLOWED, "topic:b": Verdict.DENIED}
        assert [decision.grants(f"topic:{name}") for name in "abc"] == [True, False, False]

    def test_another_request_is_denied_as_a_whole_and_its_denial_tells_topics_apart(self) -> None:
        decision = decided("[{topic: a}]", kafka("AddPartitionsToTxn", "a", "b"))
        assert (decision.verdict, decision.per_resource) == (Verdict.DENIED, None)
        assert [decision.grants(f"topic:{name}") for name in "ab"] == [True, False]

    def test_nothing_is_left_of_a_request_none_of_whose_topics_is_allowed(self) -> None:
        decision = decided("[{topic: a}]", kafka("Produce", "b", "c", divisible=True))
        assert (decision.verdict, decision.per_resource) == (Verdict.DENIED, None)

    def test_what_makes_sense_without_its_topics_passes_without_them(self) -> None:
        """Metadata also tells who the brokers are: a client whose topics are all denied still has to find them."""
        decision = decided("[{role: produce, topic: a}]", kafka("Metadata", "b", "c", divisible=True, remainder=True))
        assert decision.verdict is Verdict.PARTIAL
        assert decision.per_resource == {"topic:b": Verdict.DENIED, "topic:c": Verdict.DENIED}
        for rules in ("[{apiKey: fetch}]", "[{}, {deny: true, apiKey: metadata}]", "[]"):
            assert decided(rules, kafka("Metadata", "b", divisible=True, remainder=True)).verdict is Verdict.DENIED

    def test_topics_of_a_group_that_is_denied_are_denied(self) -> None:
        rules = "[{topic: a, group: g}]"
        decision = decided(rules, kafka("OffsetCommit", "a", "b", "group:h", divisible=True))
        assert decision.verdict is Verdict.DENIED
        assert not decision.grants("group:h")
        assert not decision.grants("topic:a")
        assert decision.grants("group:g")
        assert decided(rules, kafka("OffsetCommit", "a", "b", "group:g", divisible=True)).per_resource == {
            "topic:a": Verdict.ALLOWED,
            "topic:b": Verdict.DENIED,
        }

    def test_a_topic_is_allowed_when_it_is_for_all_groups_of_the_request(self) -> None:
        call = kafka("OffsetFetch", "a", "b", "group:g", "group:h", divisible=True)
        rules = "[{topic: a}, {topic: b, group: g}]"
        assert decided(rules, call).per_resource == {"topic:a": Verdict.ALLOWED, "topic:b": Verdict.DENIED}

    def test_groups_are_told_apart_where_they_have_nothing_to_do_with_each_other(self) -> None:
        rules = "[{apiKey: describegroups, group: g}]"
        call = kafka("DescribeGroups", "group:g", "group:h", divisible=True, separate=True)
        decision = decided(rules, call)
        assert (decision.verdict, decision.reason) == (Verdict.PARTIAL, "no-rule-matched")
        assert decision.per_resource == {"group:g": Verdict.ALLOWED, "group:h": Verdict.DENIED}
        assert [decision.grants(f"group:{name}") for name in "ghi"] == [True, False, False]
        assert decided(rules, kafka("DescribeGroups", "group:h", divisible=True, separate=True)).verdict is Verdict.DENIED
        rules = "[{transactionalID: t}]"
        call = kafka("DescribeTransactions", "transactionalId:t", "transactionalId:u", divisible=True, separate=True)
        assert decided(rules, call).per_resource == {
            "transactionalId:t": Verdict.ALLOWED,
            "transactionalId:u": Verdict.DENIED,
        }

    def test_what_is_separate_is_judged_as_if_it_were_asked_for_alone(self) -> None:
        """A topic's configuration is not asked for on behalf of a group whose configuration is asked for as well."""
        names = ("a", "b", "group:g", "group:h")
        decision = decided("[{topic: a, group: g}]", kafka("DescribeConfigs", *names, divisible=True, separate=True))
        verdicts = {name.removeprefix("topic:"): verdict for name, verdict in (decision.per_resource or {}).items()}
        assert [verdicts[name] for name in names] == [Verdict.ALLOWED, Verdict.DENIED, Verdict.ALLOWED, Verdict.DENIED]
        for name, verdict in zip(names, verdicts.values(), strict=True):
            alone = decided("[{topic: a, group: g}]", kafka("DescribeConfigs", name, divisible=True, separate=True))
            assert alone.verdict is verdict

    def test_groups_are_told_apart_that_are_asked_about_with_all_topics(self) -> None:
        call = kafka("OffsetFetch", "group:g", "group:h", "group:i", divisible=True, separate=True, all_topics=True)
        decision = decided("[{apiKey: offsetfetch, group: g}, {apiKey: offsetfetch, group: h, topic: a}]", call)
        assert decision.verdict is Verdict.PARTIAL
        assert decision.per_resource == {
            "group:g": Verdict.ALLOWED,
            "group:h": Verdict.DENIED,
            "group:i": Verdict.DENIED,
        }
        nothing = decided("[{apiKey: offsetfetch, group: h, topic: a}]", call)
        assert nothing.verdict is Verdict.DENIED
        assert not any(nothing.grants(f"group:{name}") for name in "ghi")

    def test_a_brokers_configuration_is_told_apart_from_those_of_topics(self) -> None:
        call = kafka("DescribeConfigs", "a", "broker:1", divisible=True, separate=True)
        one, other = Verdict.ALLOWED, Verdict.DENIED
        for topics_rule in ("{apiKey: describeconfigs, topic: a}", "{topic: a}", "{clientID: me}, {topicPrefix: a}"):
            assert decided(f"[{topics_rule}]", call).per_resource == {"topic:a": one, "broker:1": other}
        no_topics = decided("[{apiKey: describeconfigs}, {deny: true, topic: a}]", call)
        assert no_topics.per_resource == {"topic:a": other, "broker:1": one}
        assert allowed("[{apiKey: describeconfigs}]", call)
        assert decided("[{apiKey: metadata}]", call).verdict is Verdict.DENIED
        assert decided("[{}, {deny: true, apiKey: describeconfigs}]", call).verdict is Verdict.DENIED

    def test_what_is_allowed_whole_has_no_parts(self) -> None:
        decision = decided("[{topic: a}, {topic: b}]", kafka("Produce", "a", "b", divisible=True))
        assert (decision.verdict, decision.per_resource) == (Verdict.ALLOWED, None)
        assert decision.grants("topic:a")

    def test_it_names_what_denied_the_first_topic_that_is_denied(self) -> None:
        rules = "[{name: any}, {name: no-b, deny: true, topic: b}, {name: no-c, deny: true, topic: c}]"
        decision = decided(rules, kafka("Fetch", "a", "b", "c", divisible=True))
        assert (decision.verdict, decision.reason, decision.rule) == (Verdict.PARTIAL, "deny-rule", "no-b")


class TestAllTopics:
    """Metadata of whatever there is."""

    ALL = kafka("Metadata", divisible=True, all_topics=True)

    def test_a_rule_about_any_topic_allows_it_whole(self) -> None:
        assert decided("[{role: consume}]", self.ALL).verdict is Verdict.ALLOWED

    @pytest.mark.parametrize("condition", ["topic: a", "topicPrefix: a", "topicPattern: a.*"])
    def test_with_a_rule_about_some_topics_only_these_are_to_be_seen(self, condition: str) -> None:
        decision = decided(f"[{{role: consume, {condition}}}]", self.ALL)
        assert (decision.verdict, decision.reason, decision.notes) == (Verdict.ALLOWED, "rule-matched", ("reply-filtered",))
        assert decision.per_resource == {}
        assert decision.grants("topic:a")
        assert not decision.grants("topic:b")

    def test_in_audit_mode_it_is_told_that_the_reply_would_be_cut(self) -> None:
        decision = decided("[{name: only, role: consume, topic: a}]", self.ALL, extra="mode: audit")
        assert (decision.verdict, decision.notes) == (Verdict.ALLOWED, ("reply-would-be-filtered",))
        assert (decision.per_resource, decision.grants("topic:b")) == (None, True)
        assert decided("[{apiKey: fetch, topic: a}]", self.ALL, extra="mode: audit").verdict is Verdict.WOULD_DENY

    def test_what_is_to_be_seen_is_asked_for_this_very_request(self) -> None:
        rules = "[{role: consume, topic: a}, {apiKey: metadata, apiVersion: '9', topic: b}, {apiKey: produce, topic: c}]"
        for version, seen in ((3, "a"), (9, "ab")):
            decision = decided(rules, kafka("Metadata", version=version, divisible=True, all_topics=True))
            assert "".join(topic for topic in "abc" if decision.grants(f"topic:{topic}")) == seen

    def test_without_any_rule_for_it_it_is_denied(self) -> None:
        assert decided("[{apiKey: fetch, topic: a}]", self.ALL).verdict is Verdict.DENIED

    def test_a_request_whose_reply_cannot_be_cut_down_needs_a_rule_about_any_topic(self) -> None:
        call = kafka("OffsetFetch", "group:g", all_topics=True)
        assert allowed("[{group: g}]", call)
        assert not allowed("[{group: g, topic: a}]", call)
        assert not allowed("[{group: g, topicPattern: '.*'}]", call)

    def test_topics_that_it_names_besides_do_not_make_up_for_the_others(self) -> None:
        assert not allowed("[{topic: a}]", kafka("ConsumerGroupHeartbeat", "a", all_topics=True))
        assert allowed("[{role: consume}]", kafka("ConsumerGroupHeartbeat", "a", all_topics=True))

    @pytest.mark.parametrize("condition", ["topic: secret", "topicPrefix: sec", "topicPattern: s.*"])
    def test_a_topic_that_is_denied_is_not_to_be_seen(self, condition: str) -> None:
        decision = decided(f"[{{}}, {{name: hide, deny: true, {condition}}}]", self.ALL)
        assert (decision.verdict, decision.notes) == (Verdict.ALLOWED, ("reply-filtered",))
        assert decision.grants("topic:a")
        assert not decision.grants("topic:secret")

    def test_a_request_about_all_topics_is_denied_by_a_rule_that_denies_one(self) -> None:
        assert not allowed("[{}, {deny: true, topic: secret}]", kafka("DeleteAcls", all_topics=True))


class TestDeny:
    def test_deny_wins_topic_by_topic(self) -> None:
        rules = "[{}, {deny: true, topic: b}]"
        assert allowed(rules, kafka("Fetch", "a"))
        assert not allowed(rules, kafka("Fetch", "a", "b"))
        decision = decided(rules, kafka("Fetch", "a", "b", divisible=True))
        assert decision.per_resource == {"topic:a": Verdict.ALLOWED, "topic:b": Verdict.DENIED}

    def test_without_a_topic_it_denies_the_request(self) -> None:
        decision = decided("[{}, {deny: true, apiKey: produce}]", kafka("Produce", "a", "b", divisible=True))
        assert (decision.verdict, decision.reason) == (Verdict.DENIED, "deny-rule")

    @pytest.mark.parametrize("condition", ["topic: a", "group: g", "transactionalID: t"])
    def test_a_request_without_such_things_is_not_meant(self, condition: str) -> None:
        assert allowed(f"[{{}}, {{deny: true, {condition}}}]", kafka("ListGroups"))
        assert not allowed(f"[{{deny: true, {condition}}}]", kafka("ListGroups"))

    def test_one_group_of_several_is_enough(self) -> None:
        assert not allowed("[{}, {deny: true, group: g}]", kafka("DescribeGroups", "group:f", "group:g"))
        assert allowed("[{}, {deny: true, group: g}]", kafka("DescribeGroups", "group:f", "group:h"))

    def test_all_its_conditions_must_hold(self) -> None:
        rules = "[{}, {deny: true, topic: a, clientID: me, apiVersion: '3', role: consume}]"
        assert not allowed(rules, kafka("Fetch", "a", client="me"))
        for other in (kafka("Fetch", "a"), kafka("Fetch", "a", client="me", version=4), kafka("Produce", "a", client="me")):
            assert allowed(rules, other)

    def test_it_wins_over_an_entry_without_l7_rules(self) -> None:
        opener = kafka_policy("[]", "open").replace("    rules: {kafka: []}\n", "")
        decision = decided("[{deny: true, topic: b}]", kafka("Fetch", "a", "b", divisible=True), opener)
        assert (decision.verdict, decision.grants("topic:a"), decision.grants("topic:b")) == (Verdict.PARTIAL, True, False)


class TestAuditMode:
    def test_a_policy_lets_pass_what_it_would_deny(self) -> None:
        decision = decided("[{topic: a}]", kafka("Produce", "a", "b", divisible=True), extra="mode: audit")
        assert (decision.verdict, decision.would, decision.per_resource) == (Verdict.WOULD_DENY, "DENY", None)
        assert decision.grants("topic:b")
        assert decided("[{topic: a}]", kafka("Produce", "a"), extra="mode: audit").verdict is Verdict.ALLOWED

    def test_a_deny_rule_lets_pass_what_another_allows(self) -> None:
        rules = "[{name: any}, {name: soon, deny: true, mode: audit, topic: b}]"
        decision = decided(rules, kafka("Fetch", "a", "b", divisible=True))
        assert (decision.verdict, decision.rule) == (Verdict.WOULD_DENY, "soon")
        assert decided(rules, kafka("Fetch", "a")).verdict is Verdict.ALLOWED

    def test_an_allow_rule_lets_pass_what_only_it_allows(self) -> None:
        rules = "[{topic: a}, {name: old, mode: audit, topic: b}]"
        decision = decided(rules, kafka("Fetch", "a", "b"))
        assert (decision.verdict, decision.reason, decision.rule) == (Verdict.WOULD_DENY, "audit-rule", "old")

    def test_what_is_enforced_denies_in_part_beside_it(self) -> None:
        rules = "[{topic: a}, {topic: b}, {deny: true, mode: audit, topic: b}]"
        decision = decided(rules, kafka("Fetch", "a", "b", "c", divisible=True))
        assert decision.verdict is Verdict.PARTIAL
        assert [decision.grants(f"topic:{name}") for name in "abc"] == [True, True, False]

    def test_metadata_of_all_topics_passes_whole(self) -> None:
        call = kafka("Metadata", divisible=True, all_topics=True)
        decision = decided("[{role: consume, topic: a}]", call, extra="mode: audit")
        assert (decision.verdict, decision.grants("topic:b")) == (Verdict.ALLOWED, True)


class TestConnections:
    def test_it_is_read_as_kafka(self) -> None:
        one = pair(policy_set(kafka_policy("[{}]")), port=9092)
        assert (one.action, one.protocol) == (Action.REDIRECT, "kafka")

    @pytest.mark.parametrize("call", [get(), get(protocol="grpc"), ApiCall(protocol="tcp")])
    def test_nothing_else_passes_on_its_port(self, call: ApiCall) -> None:
        assert decided("[{}]", call).reason == "protocol-not-allowed"

    def test_an_empty_list_denies_every_request(self) -> None:
        assert decided("[]", kafka("ApiVersions")).reason == "no-rule-matched"
        assert pair(policy_set(kafka_policy("[]")), port=9092).action is Action.REDIRECT

    def test_without_default_deny_a_request_that_no_rule_means_passes(self) -> None:
        extra = "enableDefaultDeny: {ingress: false}"
        assert decided("[{topic: a}]", kafka("Fetch", "b"), extra=extra).reason == "default-allow"
        assert decided("[{deny: true, topic: b}]", kafka("Fetch", "b"), extra=extra).reason == "deny-rule"

    def test_the_kernel_proves_none_of_it(self) -> None:
        table = prove(pair(policy_set(kafka_policy("[{}]")), port=9092))
        assert isinstance(table, NotProvable)
        assert table.reason == "protocol"


class TestSummary:
    def test_a_rule_may_ask_for_one_record_of_many_requests(self) -> None:
        assert decided("[{record: summary}]", kafka("Fetch", "a")).summary
        assert not decided("[{record: full}]", kafka("Fetch", "a")).summary
        assert not decided("[{}]", kafka("Fetch", "a")).summary

    def test_every_topic_must_be_allowed_by_such_a_rule(self) -> None:
        rules = "[{topic: a, record: summary}, {topic: b, record: summary}, {topic: c}]"
        assert decided(rules, kafka("Fetch", "a", "b")).summary
        assert not decided(rules, kafka("Fetch", "a", "c")).summary
        assert not decided(rules, kafka("Fetch", "c", "a")).summary

    def test_both_sides_have_to_agree(self) -> None:
        summary, full = "[{topic: a, record: summary}]", "[{topic: a}]"

        def both(ingress: str, egress: str) -> bool:
            other = kafka_policy(egress, "out", owner="web", direction="egress")
            return decided(ingress, kafka("Fetch", "a"), other).summary

        assert both(summary, summary)
        assert not both(summary, full)
        assert not both(full, summary)

    def test_a_side_without_kafka_rules_has_no_say(self) -> None:
        other = policy("endpointSelector: {matchLabels: {app: web}}\negress: [{toEntities: [all]}]", "out")
        assert decided("[{topic: a, record: summary}]", kafka("Fetch", "a"), other).summary

    def test_what_is_not_simply_allowed_has_a_record_of_its_own(self) -> None:
        rules = "[{topic: a, record: summary}]"
        assert not decided(rules, kafka("Fetch", "b")).summary
        assert not decided(rules, kafka("Fetch", "a", "b", divisible=True)).summary
        audited = "[{topic: a, record: summary}, {deny: true, mode: audit, topic: a}]"
        assert not decided(audited, kafka("Fetch", "a")).summary
        assert not decided("[{mode: audit, record: summary, topic: a}]", kafka("Fetch", "a")).summary


class TestDoubt:
    """Whatever is asked, the answer is a decision, and doubt is a denial."""

    @pytest.mark.parametrize(
        "call",
        [
            ApiCall(protocol="kafka"),
            ApiCall(protocol="kafka", attributes={"apiKey": "0"}),
            ApiCall(protocol="kafka", attributes={"apiKey": 4}),
            ApiCall(protocol="kafka", attributes={"apiKey": -1}, resources=("topic:a",)),
        ],
    )
    def test_an_unknown_api_is_in_no_role(self, call: ApiCall) -> None:
        assert not allowed("[{role: produce}, {role: consume}]", call)

    @pytest.mark.parametrize("topic", ["a\n", "", "a\x00", "é", "a" * 30_000])
    def test_a_strange_name_is_just_another_name(self, topic: str) -> None:
        call = kafka("Fetch", f"topic:{topic}")
        assert decided("[{topic: a}, {topicPattern: '[a-z]'}, {topicPrefix: b}]", call).reason == "no-rule-matched"
        assert not allowed("[{}, {deny: true, topicPattern: '.*'}]", call)

    def test_a_name_that_is_no_text_is_a_denial(self) -> None:
        assert decided("[{topicPattern: '.+'}]", kafka("Fetch", "topic:\ud800")).reason == "internal-error"

    def test_of_what_is_separate_there_is_one_question_each(self) -> None:
        groups = [f"group:g{number}" for number in range(MAX_PIECES)]
        decision = decided("[{}, {deny: true, group: g7}]", kafka("DeleteGroups", *groups, divisible=True, separate=True))
        assert decision.per_resource is not None
        assert [name for name, verdict in decision.per_resource.items() if verdict is Verdict.DENIED] == ["group:g7"]
        many = decided("[{}]", kafka("DeleteGroups", *groups, "group:one-more", divisible=True, separate=True))
        assert (many.verdict, many.reason) == (Verdict.DENIED, "internal-error")

    def test_a_denial_without_a_judgement_grants_nothing(self) -> None:
        undecided = decided("[{topicPattern: '.+'}, {}]", kafka("Fetch", "topic:\ud800", "a", divisible=True))
        assert (undecided.reason, undecided.grants("topic:a")) == ("internal-error", False)
        assert not decided("[{}]", get()).grants("topic:a")

    def test_more_combinations_than_can_be_judged_are_a_denial(self) -> None:
        topics = [f"topic:t{number}" for number in range(MAX_PIECES // 2 + 1)]
        decision = decided("[{}]", kafka("OffsetFetch", *topics, "group:g", "group:h", divisible=True))
        assert (decision.verdict, decision.reason) == (Verdict.DENIED, "internal-error")

    def test_so_many_topics_are_judged_one_by_one(self) -> None:
        topics = [f"topic:t{number}" for number in range(MAX_PIECES)]
        decision = decided("[{topicPattern: 't[0-9]+'}, {deny: true, topic: t7}]", kafka("Fetch", *topics, divisible=True))
        assert decision.per_resource is not None
        denied = [name for name, verdict in decision.per_resource.items() if verdict is Verdict.DENIED]
        assert (len(decision.per_resource), denied) == (MAX_PIECES, ["topic:t7"])

    def test_a_decision_is_kept_for_the_same_request(self) -> None:
        policies: PolicySet = policy_set(kafka_policy("[{topic: a}]"))
        call = kafka("Fetch", "a", "b", divisible=True)
        assert pair(policies, port=9092).decide(call) is pair(policies, port=9092).decide(call)


def test_rules_of_a_port_hold_for_every_port_of_a_range() -> None:
    text = kafka_policy("[{topic: a}]").replace('port: "9092"', 'port: "9092", endPort: 9094')
    one = pair(policy_set(text), port=9094)
    assert not one.decide(kafka("Fetch", "b")).allowed


def test_a_rule_for_one_peer_is_not_for_another() -> None:
    text = kafka_policy("[{}]").replace("- toPorts:", "- fromEndpoints: [{matchLabels: {app: web}}]\n    toPorts:")
    policies = policy_set(text, policy("endpointSelector: {}\negress: [{toEntities: [all]}]", "out"))
    assert pair(policies, "web", port=9092).decide(kafka("Fetch", "a")).allowed
    assert pair(policies, "batch", port=9092).action is Action.REFUSE
