"""Which connections and calls are allowed, and who is named for it."""

import gc
import weakref
from collections import deque

import pytest

from parsers.contract import ApiCall
from policies import decide as engine
from policies.decide import Action, Pair, PolicySet, Verdict, decide
from policies.heads import HeadTable, prove, run
from policies.model import Acceleration, Direction, Endpoint

from .words import PARTIES, bundle, get, grpc, http_policy, kafka_policy, pair, policy, policy_set, workload
from .words import decide as decided


def without_bodies(rules: str) -> str:
    return http_policy(rules).replace("rules:", "bodilessMethods: refuse\n      rules:", 1)


WEB_TO_8080 = """
endpointSelector: {matchLabels: {app: orders}}
ingress:
- fromEndpoints: [{matchLabels: {app: web}}]
  toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
"""


class TestConnections:
    def test_without_policies_everything_is_native(self) -> None:
        one = pair(policy_set())
        assert one.action is Action.NATIVE
        decision = one.connection()
        assert (decision.verdict, decision.reason, decision.direction) == (Verdict.ALLOWED, "no-policy", None)

    def test_a_selected_workload_is_default_deny_in_the_named_direction_only(self) -> None:
        policies = policy_set(policy(WEB_TO_8080))
        assert pair(policies).action is Action.NATIVE
        assert pair(policies, port=8081).action is Action.REFUSE
        assert pair(policies, subject="batch").action is Action.REFUSE
        assert pair(policies, subject="orders", peer="batch").action is Action.NATIVE

    def test_a_denial_names_its_reason_and_everybody_who_was_asked(self) -> None:
        decision = pair(policy_set(policy(WEB_TO_8080, "b"), policy(WEB_TO_8080, "a")), port=1).connection()
        assert (decision.verdict, decision.reason, decision.policy) == (Verdict.DENIED, "connection-not-allowed", None)
        assert decision.direction is Direction.INGRESS
        assert decision.detail == ("a", "b")
        assert decision.generation == 7

    def test_udp_is_not_tcp_and_no_protocol_is_both(self) -> None:
        policies = policy_set(policy(WEB_TO_8080), policy(WEB_TO_8080.replace('"8080", protocol: TCP', '"53"'), "q"))
        assert pair(policies, transport="UDP").action is Action.REFUSE
        assert {pair(policies, port=53, transport=transport).action for transport in ("TCP", "UDP")} == {Action.NATIVE}

    @pytest.mark.parametrize("port", [8000, 8042, 8100])
    def test_a_port_range_includes_both_ends(self, port: int) -> None:
        policies = policy_set(policy(WEB_TO_8080.replace('port: "8080"', 'port: "8000", endPort: 8100')))
        assert pair(policies, port=port).action is Action.NATIVE
        assert pair(policies, port=7999).action is pair(policies, port=8101).action is Action.REFUSE

    def test_l7_rules_hold_on_a_whole_port_range(self) -> None:
        """CVE-2024-52529: a port range that switched L7 rules off."""
        text = http_policy("[{method: GET}]").replace('port: "8080"', 'port: "8000", endPort: 8100')
        one = pair(policy_set(text), port=8050)
        assert one.action is Action.REDIRECT
        assert not one.decide(get(method="POST")).allowed

    def test_both_sides_must_allow(self) -> None:
        egress = policy(
            "endpointSelector: {matchLabels: {app: web}}\negress: [{toPorts: [{ports: [{port: '443'}]}]}]", "only-443"
        )
        one = pair(policy_set(policy(WEB_TO_8080), egress))
        assert one.action is Action.REFUSE
        assert one.connection().direction is Direction.EGRESS
        assert one.connection().detail == ("only-443", "p")

    def test_an_allowed_connection_is_the_egress_sides_when_that_is_policed(self) -> None:
        egress = policy("endpointSelector: {matchLabels: {app: web}}\negress: [{toEntities: [cluster]}]", "out")
        decision = pair(policy_set(http_policy("[{}]"), egress)).decide(get())
        assert (decision.allowed, decision.direction, decision.policy) == (True, Direction.EGRESS, "out")

    def test_l3_deny_wins_over_any_allow(self) -> None:
        deny = policy(
            "endpointSelector: {}\ningressDeny: [{name: no-batch, fromEndpoints: [{matchLabels: {app: batch}}]}]", "deny"
        )
        policies = policy_set(policy("endpointSelector: {}\ningress: [{fromEntities: [all]}]", "allow"), deny)
        assert pair(policies).action is Action.NATIVE
        decision = pair(policies, subject="batch").connection()
        assert (decision.verdict, decision.policy, decision.rule) == (Verdict.DENIED, "deny", "no-batch")

    def test_without_default_deny_only_deny_rules_count(self) -> None:
        text = policy(
            """
endpointSelector: {matchLabels: {app: orders}}
enableDefaultDeny: {ingress: false}
ingress: [{fromEndpoints: [{matchLabels: {app: web}}]}]
ingressDeny: [{fromEndpoints: [{matchLabels: {app: batch}}]}]
"""
        )
        assert pair(policy_set(text), port=1).action is Action.NATIVE
        assert pair(policy_set(text), subject="batch").action is Action.REFUSE

    def test_an_empty_rule_allows_nothing_as_in_cilium(self) -> None:
        assert pair(policy_set(policy("endpointSelector: {}\ningress: [{}]"))).action is Action.REFUSE

    @pytest.mark.parametrize(
        ("entity", "selected"),
        [("all", {"web", "host", "world"}), ("cluster", {"web", "host"}), ("host", {"host"}), ("world", {"world"})],
    )
    def test_entities(self, entity: str, selected: set[str]) -> None:
        policies = policy_set(policy(f"endpointSelector: {{}}\negress: [{{toEntities: [{entity}]}}]"))
        peers = {"web": policies.endpoint("web"), "host": Endpoint(local=True), "world": Endpoint(address="192.0.2.1")}
        allowed = {
            name for name, peer in peers.items() if policies.pair(policies.endpoint("orders"), peer, 1).action is Action.NATIVE
        }
        assert allowed == selected


class TestCidrs:
    CIDR = policy("endpointSelector: {}\negress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}]")

    @pytest.mark.parametrize(
        ("address", "action"),
        [
            ("10.0.0.1", Action.NATIVE),
            ("::ffff:10.0.0.1", Action.NATIVE),
            ("10.1.0.1", Action.REFUSE),
            ("11.0.0.1", Action.REFUSE),
            ("fe80::1%eth0", Action.REFUSE),
            ("nonsense", Action.REFUSE),
        ],
    )
    def test_an_address_is_in_the_cidr_and_in_no_exception(self, address: str, action: Action) -> None:
        policies = policy_set(self.CIDR)
        assert policies.pair(policies.endpoint("web"), Endpoint(address=address), 80).action is action

    def test_a_workload_is_no_address(self) -> None:
        policies = policy_set(self.CIDR, workload("far", cgroups=False, addresses="10.0.0.7"))
        owner = policies.workload_of_address("10.0.0.7")
        assert owner is not None
        assert owner.name == "far"
        assert pair(policies, "web", "far").action is Action.REFUSE

    def test_a_process_of_this_host_is_no_address(self) -> None:
        policies = policy_set(self.CIDR)
        assert policies.pair(policies.endpoint("web"), Endpoint(address="10.0.0.1", local=True), 80).action is Action.REFUSE

    def test_an_unknown_address_is_in_every_denied_cidr(self) -> None:
        text = "endpointSelector: {}\negressDeny: [{toCIDR: [10.0.0.0/8]}]\nenableDefaultDeny: {egress: false}"
        policies = policy_set(policy(text))
        assert policies.pair(policies.endpoint("web"), Endpoint(), 80).action is Action.REFUSE

    def test_the_longest_prefix_owns_an_address(self) -> None:
        policies = policy_set(workload("wide", False, "10.0.0.0/8"), workload("narrow", False, "10.2.0.0/16"))
        assert [getattr(policies.workload_of_address(a), "name", None) for a in ("10.2.0.1", "10.3.0.1", "11.0.0.1", "x")] == [
            "narrow",
            "wide",
            None,
            None,
        ]


class TestNamespaces:
    def test_a_policy_means_its_own_namespace(self) -> None:
        documents = [workload("a"), workload("b", namespace="prod"), workload("c", namespace="prod")]
        text = policy("endpointSelector: {}\ningress: [{fromEndpoints: [{}]}]", "p", "CiliumNetworkPolicy", "prod")
        policies = PolicySet(bundle(*documents, text), 1)
        assert pair(policies, "c", "b").action is Action.NATIVE
        assert pair(policies, "a", "b").connection().detail == ("prod/p",)
        assert pair(policies, "a", "b").action is Action.REFUSE
        assert pair(policies, "b", "a").action is Action.NATIVE

    def test_a_selector_that_names_a_namespace_leaves_its_own(self) -> None:
        selector = '{matchLabels: {"k8s:io.kubernetes.pod.namespace": default}}'
        text = policy(f"endpointSelector: {{}}\ningress: [{{fromEndpoints: [{selector}]}}]", "p", "CiliumNetworkPolicy", "prod")
        policies = PolicySet(bundle(workload("a"), workload("b", namespace="prod"), workload("c", namespace="prod"), text), 1)
        assert pair(policies, "a", "b").action is Action.NATIVE
        assert pair(policies, "c", "b").action is Action.REFUSE

    def test_a_clusterwide_policy_means_every_namespace(self) -> None:
        text = policy("endpointSelector: {}\ningress: [{}]", "p", "CiliumClusterwideNetworkPolicy")
        policies = PolicySet(bundle(workload("a"), workload("b", namespace="prod"), text), 1)
        assert pair(policies, "b", "a").action is pair(policies, "a", "b").action is Action.REFUSE


class TestSelectors:
    @pytest.mark.parametrize(
        ("selector", "selects"),
        [
            ("{}", {"orders", "web", "batch"}),
            ("{matchLabels: {'any:app': web}}", {"web"}),
            ("{matchExpressions: [{key: app, operator: In, values: [web, batch]}]}", {"web", "batch"}),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", {"orders", "batch"}),
            ("{matchExpressions: [{key: nope, operator: NotIn, values: [web]}]}", {"orders", "web", "batch"}),
            ("{matchExpressions: [{key: app, operator: Exists}]}", {"orders", "web", "batch"}),
            ("{matchExpressions: [{key: app, operator: DoesNotExist}]}", set()),
            ("{matchLabels: {app: web}, matchExpressions: [{key: app, operator: In, values: [batch]}]}", set()),
        ],
    )
    def test_what_a_selector_selects(self, selector: str, selects: set[str]) -> None:
        policies = policy_set(policy(f"endpointSelector: {selector}\ningress: []"))
        selected = {n for n in ("orders", "web", "batch") if policies.policies_of(policies.endpoint(n), Direction.INGRESS)}
        assert selected == selects

    def test_labels_of_the_documents_go_before_labels_of_the_endpoint(self) -> None:
        """A connection may outlive a reload that changed its workload's labels."""
        policies = policy_set(policy(WEB_TO_8080))
        stale = Endpoint(workload="web", labels={"app": "batch"})
        assert policies.pair(stale, policies.endpoint("orders"), 8080).action is Action.NATIVE

    def test_a_workload_that_the_documents_do_not_know_has_its_own_labels(self) -> None:
        policies = policy_set(policy(WEB_TO_8080))
        for app, action in (("web", Action.NATIVE), ("other", Action.REFUSE)):
            gone = Endpoint(workload="gone", labels={"app": app})
            assert policies.pair(gone, policies.endpoint("orders"), 8080).action is action


class TestUnion:
    def test_several_policies_are_united(self) -> None:
        policies = policy_set(http_policy("[{path: /a}]", "one"), http_policy("[{path: /b}]", "two"))
        decisions = [pair(policies).decide(get(path)) for path in ("/a", "/b", "/c")]
        assert [d.policy for d in decisions] == ["one", "two", None]
        assert decisions[2].detail == ("one", "two")

    def test_beside_a_port_entry_without_l7_rules_l7_rules_deny_nothing(self) -> None:
        one = pair(policy_set(http_policy("[{path: /a}]"), policy(WEB_TO_8080, "open")))
        assert [one.decide(get(path)).allowed for path in ("/a", "/b")] == [True, True]

    def test_but_an_l7_deny_rule_still_denies(self) -> None:
        one = pair(policy_set(http_policy("[{path: /a, deny: true}]"), policy(WEB_TO_8080, "open")))
        assert one.action is Action.REDIRECT
        assert one.decide(get("/a")).reason == "deny-rule"
        assert one.decide(get("/b")).policy == "open"

    def test_l7_on_one_side_needs_only_l4_of_the_other(self) -> None:
        egress = policy("endpointSelector: {matchLabels: {app: web}}\negress: [{toEntities: [cluster]}]", "out")
        one = pair(policy_set(http_policy("[{path: /a}]"), egress))
        assert [one.decide(get(path)).allowed for path in ("/a", "/b")] == [True, False]
        assert one.decide(get("/b")).direction is Direction.INGRESS

    def test_different_l7_kinds_of_two_sides_are_a_conflict(self) -> None:
        """The static check knows labels at load; an endpoint of another generation can still bring two kinds together."""
        egress = policy(
            """
endpointSelector: {matchLabels: {app: gone}}
egress: [{toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {grpc: [{}]}}]}]
""",
            "out",
        )
        policies = policy_set(http_policy("[{}]", peer="gone"), egress)
        one = policies.pair(Endpoint(workload="gone", labels={"app": "gone"}), policies.endpoint("orders"), 8080)
        assert (one.action, one.protocol) == (Action.REFUSE, "tcp")
        assert one.decide(get()).reason == one.connection().reason == "protocol-conflict"

    def test_without_default_deny_other_calls_pass_and_are_seen(self) -> None:
        text = http_policy("[{path: /a, name: a}, {path: /b, deny: true}]", extra="enableDefaultDeny: {ingress: false}")
        one = pair(policy_set(text))
        assert one.action is Action.REDIRECT
        assert [(d.verdict, d.reason) for d in map(one.decide, (get("/a"), get("/b"), get("/c")))] == [
            ("ALLOWED", "rule-matched"),
            ("DENIED", "deny-rule"),
            ("ALLOWED", "default-allow"),
        ]


class TestProtocols:
    def test_http_rules_judge_every_http(self) -> None:
        for protocol in ("http/1.1", "http/2", "grpc"):
            assert decided("[{path: /a}]", get("/a", protocol=protocol)).allowed

    @pytest.mark.parametrize("protocol", ["tcp", "kafka", "", "HTTP/1.1"])
    def test_other_protocols_are_denied_on_an_http_port(self, protocol: str) -> None:
        assert decided("[{}]", ApiCall(protocol=protocol)).reason == "protocol-not-allowed"

    def test_grpc_rules_judge_grpc_only(self) -> None:
        text = http_policy("[{}]").replace("http:", "grpc:")
        one = pair(policy_set(text))
        assert one.protocol == "grpc"
        assert one.decide(grpc("/pkg.Svc/Get")).allowed
        assert not one.decide(get("/pkg.Svc/Get", protocol="http/2")).allowed

    def test_opaque_allow_lets_an_unrecognised_protocol_through(self) -> None:
        text = http_policy("[{path: /a}]").replace("rules:", "opaque: allow\n      rules:", 1)
        one = pair(policy_set(text))
        assert one.opaque_allowed
        assert one.decide(ApiCall(protocol="tcp")).reason == "opaque-allowed"
        assert not one.decide(get("/b")).allowed
        assert not one.decide(ApiCall(protocol="kafka")).allowed

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
    @pytest.mark.parametrize("framing", [("content-length", "5"), ("transfer-encoding", "chunked")])
    def test_bodies_without_meaning_can_be_refused(self, method: str, framing: tuple[str, str]) -> None:
        one = pair(policy_set(without_bodies("[{}]")))
        decision = one.decide(get("/", method=method, headers=(("host", "a"), framing)))
        assert (decision.verdict, decision.reason, decision.rule) == (Verdict.DENIED, "body-refused", "ingress[0]")
        assert one.decide(get("/", method=method)).allowed
        assert one.decide(get("/", method=method, headers=(("content-length", "00"),))).allowed
        assert one.decide(get("/", method="POST", headers=(framing,))).allowed

    def test_another_entry_that_opens_the_port_opens_it_for_other_bodies_only(self) -> None:
        opened = http_policy("[{}]", "open").replace("    rules: {http: [{}]}", "")
        one = pair(policy_set(without_bodies("[{path: /a}]"), opened))
        assert one.decide(get("/b")).allowed
        assert one.decide(get("/b", headers=(("content-length", "5"),))).reason == "body-refused"

    def test_in_audit_mode_bodies_only_would_be_refused(self) -> None:
        one = pair(policy_set(without_bodies("[{}]").replace("spec:", "spec:\n  mode: audit", 1)))
        decision = one.decide(get("/", headers=(("content-length", "5"),)))
        assert (decision.verdict, decision.reason) == (Verdict.WOULD_DENY, "body-refused")

    @pytest.mark.parametrize(
        ("rules", "trailers"),
        [
            ("[{path: /a}]", True),
            ('[{path: /a}, {headers: ["X-User: a"]}]', False),
            ("[{}, {headers: [X-User], deny: true}]", False),
            ("[{headerMatches: [{name: X-A, value: a, mismatch: ADD}]}]", False),
        ],
    )
    def test_where_rules_look_at_headers_there_are_no_trailers(self, rules: str, trailers: bool) -> None:
        assert pair(policy_set(http_policy(rules))).decide(get("/a")).trailers == trailers

    def test_what_is_only_watched_may_have_trailers(self) -> None:
        text = http_policy('[{headers: ["X-User: a"]}]').replace("spec:", "spec:\n  mode: audit", 1)
        assert pair(policy_set(text)).decide(get("/a")).trailers

    def test_opaque_is_denied_by_default(self) -> None:
        assert not pair(policy_set(http_policy("[{}]"))).opaque_allowed


class TestAuditMode:
    def test_an_audit_policy_denies_nothing_and_says_what_it_would_deny(self) -> None:
        one = pair(policy_set(http_policy("[{path: /a}]", extra="mode: audit")))
        assert one.action is Action.REDIRECT
        allowed, would = one.decide(get("/a")), one.decide(get("/b"))
        assert (allowed.verdict, allowed.would) == (Verdict.ALLOWED, None)
        assert (would.verdict, would.would, would.allowed, would.reason) == (
            Verdict.WOULD_DENY,
            "DENY",
            True,
            "no-rule-matched",
        )

    def test_a_connection_that_only_audit_would_refuse_is_redirected_to_be_recorded(self) -> None:
        one = pair(policy_set(policy(f"{WEB_TO_8080}mode: audit")), port=1)
        assert (one.action, one.protocol) == (Action.REDIRECT, "tcp")
        assert one.connection().verdict is one.decide(get()).verdict is Verdict.WOULD_DENY

    def test_an_audit_policy_opens_nothing(self) -> None:
        policies = policy_set(
            http_policy("[{path: /a}]", "enforced"), http_policy("[{path: /b}]", "tried", extra="mode: audit")
        )
        assert pair(policies).decide(get("/b")).verdict is Verdict.DENIED

    def test_an_audit_deny_rule_lets_the_call_pass(self) -> None:
        decision = decided("[{}, {name: no-b, path: /b, deny: true, mode: audit}]", get("/b"))
        assert (decision.verdict, decision.rule) == (Verdict.WOULD_DENY, "no-b")

    def test_an_audit_deny_rule_does_not_make_up_for_a_missing_allow(self) -> None:
        assert decided("[{path: /b, deny: true, mode: audit}]", get("/b")).verdict is Verdict.DENIED

    def test_an_audit_allow_rule_lets_its_calls_pass_and_records_them(self) -> None:
        rules = "[{path: /a}, {path: /old, name: old, mode: audit}]"
        assert decided(rules, get("/a")).verdict is Verdict.ALLOWED
        assert decided(rules, get("/old")).verdict is Verdict.WOULD_DENY
        assert decided(rules, get("/x")).verdict is Verdict.DENIED

    def test_a_rule_in_audit_mode_lets_the_calls_of_its_peers_pass(self) -> None:
        text = http_policy("[{path: /a}]").replace("- fromEndpoints", "- mode: audit\n    fromEndpoints")
        one = pair(policy_set(text))
        assert [one.decide(get(path)).verdict for path in ("/a", "/b")] == [Verdict.ALLOWED, Verdict.WOULD_DENY]
        assert pair(policy_set(text), subject="batch").action is Action.REFUSE

    @pytest.mark.parametrize("protocol", ["tcp", "http/2"])
    def test_what_is_only_in_audit_mode_lets_every_protocol_pass(self, protocol: str) -> None:
        rule = http_policy("[{path: /a}]").replace("- fromEndpoints", "- mode: audit\n    fromEndpoints")
        for text in (rule, http_policy("[{path: /a}]", extra="mode: audit")):
            one = pair(policy_set(text))
            assert (one.only_watches, one.opaque_allowed) == (True, True)
            assert one.decide(ApiCall(protocol=protocol)).verdict is Verdict.WOULD_DENY

    def test_a_deny_rule_that_is_enforced_beside_a_rule_in_audit_mode_is_not_escaped_by_another_protocol(self) -> None:
        rule = http_policy("[{path: /a}, {path: /b, deny: true}]").replace(
            "- fromEndpoints", "- mode: audit\n    fromEndpoints"
        )
        one = pair(policy_set(rule, http_policy("[{path: /c, deny: true}]", "q")))
        assert (one.only_watches, one.opaque_allowed) == (False, False)

    def test_an_audit_policys_header_changes_are_not_made(self) -> None:
        rules = "[{headerMatches: [{name: X-A, value: '1', mismatch: ADD}]}]"
        assert decided(rules, get()).edits
        assert not decided(rules, get(), extra="mode: audit").edits


class TestPolicyFlags:
    def test_fail_open_needs_every_policy_concerned(self) -> None:
        agreed = [http_policy("[{}]", name, extra="failOpen: true") for name in ("one", "two")]
        assert pair(policy_set(*agreed)).fail_open
        assert not pair(policy_set(*agreed, http_policy("[{}]", "three"))).fail_open
        assert not pair(policy_set()).fail_open

    def test_redact_query_of_any_policy_concerned(self) -> None:
        policies = policy_set(http_policy("[{}]", "one"), http_policy("[{}]", "two", extra="redactQuery: true"))
        assert pair(policies).redact_query
        assert pair(policies).decide(get()).redact_query

    def test_acceleration_is_refused_by_either_workload(self) -> None:
        assert pair(policy_set()).acceleration is Acceleration.AUTO
        for word in ("off", "false"):
            slow = workload("slow", extra=f", acceleration: {word}")
            assert pair(policy_set(slow), "slow", "orders").acceleration is Acceleration.OFF
            assert pair(policy_set(slow), "orders", "slow").acceleration is Acceleration.OFF

    def test_acceleration_is_asked_for_by_both_workloads(self) -> None:
        for word, meant in (("on", Acceleration.ON), ("true", Acceleration.ON), ("auto", Acceleration.AUTO)):
            fast = [workload(name, extra=f", acceleration: {word}") for name in ("fast", "faster")]
            assert pair(policy_set(*fast), "fast", "faster").acceleration is meant
            assert pair(policy_set(*fast), "fast", "orders").acceleration is Acceleration.AUTO


class TestPathFaults:
    FAULTY = get("/a/%2F", path_fault="encoded-slash")

    def test_with_a_path_rule_the_request_is_bad(self) -> None:
        for rule in ("path: /a/.*", "pathPrefix: /a", "pathTemplate: '/a/{x}'", "query: [{name: q}]", "path: /z, deny: true"):
            decision = decided(f"[{{}}, {{{rule}}}]", self.FAULTY)
            assert (decision.allowed, decision.bad_request, decision.reason) == (False, True, "encoded-slash"), rule

    def test_without_a_path_rule_it_is_judged_by_the_others(self) -> None:
        assert decided("[{method: GET}]", self.FAULTY).allowed
        decision = decided("[{method: POST}]", self.FAULTY)
        assert (decision.allowed, decision.bad_request) == (False, False)

    def test_in_audit_mode_it_passes_and_is_recorded(self) -> None:
        decision = decided("[{path: /a}]", self.FAULTY, extra="mode: audit")
        assert (decision.verdict, decision.reason, decision.bad_request) == (Verdict.WOULD_DENY, "encoded-slash", False)

    def test_a_grpc_rule_is_a_path_rule(self) -> None:
        text = http_policy("[{service: pkg.Svc}]").replace("http:", "grpc:")
        call = ApiCall(protocol="grpc", method="POST", path="/pkg.Svc//Get", path_fault="empty-segment")
        assert pair(policy_set(text)).decide(call).bad_request


class TestQueryFaults:
    """What is wrong with a query concerns the rules that look at it."""

    FAULTY = get("/a/b?discount=100%", query_fault="broken-percent-encoding")

    @pytest.mark.parametrize("rule", ["pathPrefix: /a", "pathTemplate: '/a/{x}'", "method: GET"])
    def test_rules_that_look_at_the_path_alone_judge_as_ever(self, rule: str) -> None:
        assert decided(f"[{{{rule}}}]", self.FAULTY).allowed
        assert not decided("[{pathPrefix: /b}]", self.FAULTY).bad_request
        denied = decided("[{}, {pathPrefix: /a, deny: true}]", self.FAULTY)
        assert (denied.allowed, denied.bad_request, denied.reason) == (False, False, "deny-rule")

    @pytest.mark.parametrize(
        "rules",
        ["{path: /a/.*}", "{query: [{name: q}]}", "{}, {path: /z, deny: true}", "{pathPrefix: /a}, {path: /z}"],
    )
    def test_with_a_rule_that_looks_at_the_query_the_request_is_bad(self, rules: str) -> None:
        decision = decided(f"[{rules}]", self.FAULTY)
        assert (decision.allowed, decision.bad_request, decision.reason) == (False, True, "broken-percent-encoding")

    def test_in_audit_mode_it_passes_and_is_recorded(self) -> None:
        decision = decided("[{path: /a}]", self.FAULTY, extra="mode: audit")
        assert (decision.verdict, decision.reason) == (Verdict.WOULD_DENY, "broken-percent-encoding")

    def test_a_fault_of_the_path_counts_whatever_the_query_is(self) -> None:
        call = get("/a/..?100%", path_fault="dot-segment", query_fault="broken-percent-encoding")
        assert decided("[{pathPrefix: /a}]", call).reason == "dot-segment"


def slashes(rules: str, said: str, name: str = "p") -> str:
    return http_policy(rules, name).replace("rules:", f"normalise: {{{said}}}\n      rules:", 1)


class TestSlashes:
    """``normalise``: what the server of a port does with encoded slashes and empty segments."""

    @staticmethod
    def call(path: str) -> ApiCall:
        return get(path, path_fault="encoded-slash" if "%2F" in path else "empty-segment", slashes=True)

    def allows(self, text: str, path: str) -> bool:
        return pair(policy_set(text)).decide(self.call(path)).allowed

    @pytest.mark.parametrize(
        ("said", "rule", "path", "allowed"),
        [
            ("encodedSlash: keep", "pathTemplate: '/projects/{id}'", "/projects/group%2Fproject", True),
            ("encodedSlash: keep", "path: /projects/group/project", "/projects/group%2Fproject", False),
            ("encodedSlash: keep", "path: /projects/group%2Fproject", "/projects/group%2Fproject", True),
            ("encodedSlash: decode", "path: /projects/group/project", "/projects/group%2Fproject", True),
            ("encodedSlash: decode", "pathTemplate: '/projects/{id}'", "/projects/group%2Fproject", False),
            ("emptySegments: keep", "path: /a//b", "/a//b", True),
            ("emptySegments: keep", "path: /a/b", "/a//b", False),
            ("emptySegments: merge", "path: /a/b", "/a///b", True),
            ("encodedSlash: decode, emptySegments: merge", "path: /a/b", "/a%2F%2Fb", True),
            ("encodedSlash: decode, emptySegments: keep", "path: /a//b", "/a/%2Fb", True),
            ("encodedSlash: keep, emptySegments: merge", "path: /a%2F/b", "/a%2F//b", True),
            ("encodedSlash: keep", "path: '/a%2Fb[?]q=//%2F'", "/a%2Fb?q=//%2F", True),
        ],
    )
    def test_rules_that_allow_look_at_what_the_server_reads(self, said: str, rule: str, path: str, allowed: bool) -> None:
        assert self.allows(slashes(f"[{{{rule}}}]", said), path) is allowed

    @pytest.mark.parametrize(
        ("said", "path"),
        [
            ("encodedSlash: keep", "/a//b"),
            ("emptySegments: keep", "/a%2Fb"),
            ("encodedSlash: decode", "/a%2F%2Fb"),  # decoding makes an empty segment
            ("encodedSlash: decode, emptySegments: refuse", "/a/%2Fb"),
            ("encodedSlash: refuse, emptySegments: refuse", "/a%2Fb"),
        ],
    )
    def test_what_the_port_does_not_speak_of_stays_a_bad_request(self, said: str, path: str) -> None:
        decision = pair(policy_set(slashes("[{path: /.*}]", said))).decide(self.call(path))
        assert (decision.allowed, decision.bad_request) == (False, True)

    @pytest.mark.parametrize("said", ["encodedSlash: keep, emptySegments: keep", "encodedSlash: decode, emptySegments: merge"])
    @pytest.mark.parametrize(
        "path", ["/public%2Fadmin/x", "//admin/x", "/public//admin/x", "//evil/admin/x", "/public/%2Fadmin/x"]
    )
    def test_no_reading_escapes_a_rule_that_denies(self, said: str, path: str) -> None:
        rules = "[{pathPrefix: /}, {pathPrefix: /admin, deny: true}, {pathPrefix: /public/admin, deny: true}]"
        decision = pair(policy_set(slashes(rules, said))).decide(self.call(path))
        assert (decision.allowed, decision.reason) == (False, "deny-rule")

    def test_other_faults_stay_bad_requests(self) -> None:
        call = get("/a%2F..%2Fb", path_fault="encoded-slash")  # the parser says that slashes are not all
        decision = pair(policy_set(slashes("[{path: /.*}]", "encodedSlash: keep"))).decide(call)
        assert decision.bad_request

    def test_a_rule_elsewhere_that_says_nothing_keeps_slashes_refused(self) -> None:
        """Adding a rule never opens what another one refuses."""
        said = slashes("[{path: /a/.*}]", "encodedSlash: keep", "q")
        assert self.allows(said, "/a/%2F")
        for other in (http_policy("[{path: /b/.*}]"), slashes("[{path: /b/.*}]", "encodedSlash: decode")):
            assert not pair(policy_set(said, other)).decide(self.call("/a/%2F")).allowed
        for other in (http_policy("[{method: POST}]"), http_policy("[{path: /b, deny: true}]")):
            assert pair(policy_set(said, other)).decide(self.call("/a/%2F")).allowed, "it needs to know nothing of slashes"

    def test_each_side_decides_for_itself(self) -> None:
        said = slashes("[{path: /a/.*}]", "encodedSlash: keep")
        egress = http_policy("[{path: /a/.*}]", "out").replace("ingress:", "egress:").replace("fromEndpoints", "toEndpoints")
        egress = (
            egress.replace("app: orders", "app: ORDERS").replace("app: web", "app: orders").replace("app: ORDERS", "app: web")
        )
        assert pair(policy_set(egress)).decide(get("/a/b")).allowed
        decision = pair(policy_set(said, egress)).decide(self.call("/a/%2F"))
        assert (decision.bad_request, decision.direction) == (True, Direction.EGRESS)


class TestNominatedFields:
    """``Connection: X-Role`` lets a server ignore X-Role."""

    @pytest.mark.parametrize(
        "rule",
        [
            "headers: ['X-Role: user']",
            "headers: [x-role], deny: true",
            "headerMatches: [{name: X-Role, value: user, mismatch: ADD}]",
        ],
    )
    def test_a_field_that_a_rule_looks_at_may_not_be_among_them(self, rule: str) -> None:
        rules = f"[{{}}, {{{rule}}}]"
        call = get(headers=(("x-role", "user"),), nominated=("x-foo", "x-role"))
        decision = decided(rules, call)
        assert (decision.allowed, decision.bad_request, decision.reason) == (False, False, "connection-nominates-field")
        assert decided(rules, get(headers=(("x-role", "user"),), nominated=("x-foo",))).reason != "connection-nominates-field"
        audited = decided(rules, call, extra="mode: audit")
        assert (audited.verdict, audited.reason) == (Verdict.WOULD_DENY, "connection-nominates-field")

    def test_other_fields_may(self) -> None:
        assert decided("[{path: /.*, headers: [X-Role]}]", get(headers=(("x-role", ""),), nominated=("x-foo",))).allowed


class TestMethodsInLowerCase:
    def test_a_rule_that_allows_means_its_own_spelling(self) -> None:
        assert not decided("[{method: GET}]", get(method="get")).allowed
        assert decided("[{method: get}]", get(method="get")).allowed

    def test_a_rule_that_denies_means_any(self) -> None:
        """Some servers ignore the case of methods."""
        assert not decided("[{}, {method: DELETE, deny: true}]", get(method="delete")).allowed
        assert not decided("[{}, {method: delete, deny: true}]", get(method="delete")).allowed

    def test_bodies_that_are_refused_are_refused_in_any_spelling(self) -> None:
        call = get(method="get", headers=(("content-length", "5"),))
        assert pair(policy_set(without_bodies("[{}]"))).decide(call).reason == "body-refused"


class Watched(ApiCall, frozen=True, eq=False, weakref=True):
    """A call whose end can be seen."""


class TestTotality:
    def test_an_exception_inside_is_a_denial(self) -> None:
        decision = decided("[{path: /a+}, {}]", get("/\u20ac"))
        assert (decision.verdict, decision.reason) == (Verdict.DENIED, "internal-error")

    def test_patterns_that_need_too_much_memory_deny(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """RE2 reports no match when it is out of memory, which must not let a call past a deny rule."""
        monkeypatch.setattr("policies.match.MAX_SET_MEMORY", 12_000)
        rules = ", ".join(f"{{deny: true, path: '/.*[a-f]{{{n}}}x'}}" for n in range(1, 12))
        one = pair(policy_set(http_policy(f"[{{}}, {rules}]")))
        decision = one.decide(get("/nothing-that-is-denied"))
        assert (decision.allowed, decision.reason) == (False, "pattern-undecided")

    def test_decisions_are_kept_by_the_calls_identity_and_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "MAX_DECISIONS", 2)
        one = pair(policy_set(http_policy("[{}]")))
        first, second, third = get(), get(), get()
        decision = one.decide(first)
        assert one.decide(first) is decision
        assert one.decide(second) is not decision
        one.decide(third)
        assert one.decide(first) is not decision

    def test_the_bound_is_for_all_pairs_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Otherwise a workload that may call many addresses makes the agent keep its calls as often as there are pairs."""
        monkeypatch.setattr(engine, "MAX_DECISIONS", 2)
        policies = policy_set(http_policy("[{}]"))
        calls: list[weakref.ref[ApiCall]] = []
        for port in range(8080, 8084):
            call = Watched(protocol="http/1.1")
            calls.append(weakref.ref(call))
            pair(policies, port=port).decide(call)
        del call
        assert sum(kept() is not None for kept in calls) == 2

    def test_a_call_with_a_long_head_is_not_kept(self) -> None:
        one = pair(policy_set(http_policy("[{}]")))
        call = get(wire_length=engine.MAX_REMEMBERED_LENGTH + 1)
        assert one.decide(call) is not one.decide(call)

    def test_pairs_are_kept_and_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "MAX_PAIRS", 2)
        policies = policy_set()
        one = pair(policies)
        assert pair(policies) is one
        pair(policies, port=1)
        pair(policies, port=2)
        assert pair(policies) is not one

    def test_the_function_decides_as_the_pair_does(self) -> None:
        policies = policy_set(http_policy("[{path: /a}]"))
        web, orders = policies.endpoint("web"), policies.endpoint("orders")
        assert decide(policies, web, orders, 8080, get("/a")).allowed
        assert not decide(policies, web, orders, 8080, get("/b")).allowed

    def test_an_unknown_workload_has_no_endpoint(self) -> None:
        with pytest.raises(KeyError):
            PolicySet(bundle(*PARTIES), 1).endpoint("nobody")


def test_a_generation_that_nobody_uses_any_more_is_gone_with_its_calls() -> None:
    """At once: the agent's garbage collector hardly ever looks for circles of references."""
    replaced = policy_set(http_policy("[{path: /a}]"))
    call = get("/a")
    assert pair(replaced).decide(call).allowed
    generation = weakref.ref(replaced)
    remembers = weakref.ref(pair(replaced))
    gc.disable()
    try:
        del replaced
        assert generation() is None
        assert remembers() is None
    finally:
        gc.enable()


def of_orders(*rules: str) -> str:
    """A policy of orders' ingress with these rules, in this order."""
    return policy("endpointSelector: {matchLabels: {app: orders}}\ningress:\n" + "\n".join(rules))


class TestCallsThatAreOnlyRecorded:
    """L7 rules beside a wider L3/L4 rule deny nothing, and have the calls recorded: Cilium's idiom for seeing them. The cases
    are those of its own tests of merging (pkg/policy/l4_filter_test.go)."""

    L7 = http_policy("[{method: GET, path: /}]")
    WIDE = policy(
        """
endpointSelector: {matchLabels: {app: orders}}
ingress:
- fromEndpoints: [{}]
  toPorts: [{ports: [{port: "8080", protocol: TCP}]}]
""",
        "wide",
    )

    L4_OF_ALL = '- fromEndpoints: [{}]\n  toPorts: [{ports: [{port: "8080", protocol: TCP}]}]'
    L7_OF_ALL = L4_OF_ALL.replace("TCP}]}", "TCP}], rules: {http: [{method: GET, path: /}]}}")
    L7_OF_WEB = L7_OF_ALL.replace("[{}]", "[{matchLabels: {app: web}}]")

    @pytest.mark.parametrize(
        "documents",
        [
            pytest.param([of_orders(L4_OF_ALL, L7_OF_ALL)], id="2A"),
            pytest.param([of_orders(L7_OF_ALL, L4_OF_ALL)], id="2B"),
            pytest.param([of_orders(L7_OF_WEB, L4_OF_ALL)], id="7A"),
            pytest.param([of_orders(L4_OF_ALL, L7_OF_WEB)], id="7B"),
            pytest.param([L7, WIDE], id="two policies"),
            pytest.param([http_policy("[{}]"), WIDE], id="match all"),
            pytest.param([http_policy("[]"), WIDE], id="no rules"),
        ],
    )
    def test_all_calls_are_allowed_and_the_proxy_reads_them(self, documents: list[str]) -> None:
        judged = pair(policy_set(*documents))
        assert (judged.action, judged.protocol, judged.only_watches) == (Action.REDIRECT, "http", True)
        for call in (get("/"), get("/other", method="POST"), get("/%2F", path_fault="encoded-slash"), ApiCall(protocol="tcp")):
            decision = judged.decide(call)
            assert (decision.verdict, decision.reason) == (Verdict.ALLOWED, "connection-allowed")

    def test_who_has_no_l7_rule_is_not_read(self) -> None:
        policies = policy_set(self.L7, self.WIDE)
        assert pair(policies, "batch").action is Action.NATIVE
        assert pair(policies, "web", port=8081).action is Action.REFUSE

    def test_the_decision_names_the_rule_that_opens(self) -> None:
        decision = pair(policy_set(self.L7, self.WIDE)).decide(get("/"))
        assert (decision.policy, decision.rule) == ("wide", "ingress[0]")
        assert pair(policy_set(self.L7, self.WIDE)).connection().policy == "wide"

    def test_rules_that_deny_still_do(self) -> None:
        judged = pair(policy_set(http_policy("[{}, {deny: true, path: /secret}]"), self.WIDE))
        assert judged.decide(get("/secret")).verdict is Verdict.DENIED
        assert judged.decide(get("/")).verdict is Verdict.ALLOWED
        assert not judged.only_watches

    def test_what_is_only_recorded_gives_way_to_what_is_enforced(self) -> None:
        """Kafka rules that record beside HTTP rules that deny would be a conflict, were they both enforced."""
        policies = policy_set(self.L7)
        side = pair(policies).sides[0]
        wide = pair(policy_set(self.WIDE, kafka_policy("[{}]", "k").replace("9092", "8080"))).sides[0]
        both = Pair([side, wide], 7, Acceleration.AUTO, deque())
        assert (both.protocol, both.action, both.only_watches) == ("http", Action.REDIRECT, False)
        assert both.decide(get("/")).verdict is Verdict.ALLOWED
        assert both.decide(get("/other")).verdict is Verdict.DENIED

    def test_two_kinds_that_are_only_recorded_are_not_read_and_not_refused(self) -> None:
        http, kafka_rules = (
            pair(policy_set(one, self.WIDE)).sides[0] for one in (self.L7, kafka_policy("[{}]").replace("9092", "8080"))
        )
        both = Pair([http, kafka_rules], 7, Acceleration.AUTO, deque())
        assert (both.protocol, both.decide(ApiCall(protocol="tcp")).verdict) == ("tcp", Verdict.ALLOWED)

    def test_without_the_agent_they_go_on_unread(self) -> None:
        assert pair(policy_set(self.L7, self.WIDE)).fail_open
        assert not pair(policy_set(self.L7)).fail_open
        assert not pair(policy_set(http_policy("[{deny: true}]"), self.WIDE)).fail_open

    def test_the_kernel_may_carry_them(self) -> None:
        table = prove(pair(policy_set(self.L7, self.WIDE)))
        assert isinstance(table, HeadTable)
        assert run(table, b"POST /other HTTP/1.1\r\nHost: orders\r\n\r\n") is not None
