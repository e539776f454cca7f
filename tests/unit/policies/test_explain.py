"""An explanation is the decision itself, with the first thing that spoke against every rule."""

from parsers.contract import ApiCall
from policies.decide import Action, PolicySet, Verdict
from policies.explain import PROVEN, explain

from .words import get, http_policy, kafka, kafka_policy, pair, policy, policy_set, workload


def parts(
    policies: PolicySet, path: str, subject: str = "web", port: int = 8080, **more: object
) -> list[tuple[str, str | None]]:
    call = get(path, **more)  # type: ignore[arg-type]
    found = explain(policies, policies.endpoint(subject), policies.endpoint("orders"), port, call)
    return [(candidate.rule, candidate.mismatch) for candidate in found.candidates]


def test_every_rule_says_what_did_not_match_first() -> None:
    rules = (
        "[{name: by-path, path: /b}, {name: by-method, method: POST}, {name: by-host, host: other}, "
        "{name: by-header, headers: ['X-A: 1']}, {name: by-query, query: [{name: q}]}, "
        "{name: by-match, headerMatches: [{name: X-B, value: '1'}]}, {name: by-prefix, pathPrefix: /z}, {name: all, path: /a}]"
    )
    assert parts(policy_set(http_policy(rules)), "/a") == [
        ("by-path", "path"),
        ("by-method", "method"),
        ("by-host", "host"),
        ("by-header", "header x-a"),
        ("by-query", "query q"),
        ("by-match", "headerMatches x-b"),
        ("by-prefix", "pathPrefix"),
        ("all", None),
    ]


def test_the_decision_is_the_one_that_is_enforced() -> None:
    policies = policy_set(http_policy("[{path: /a}]"))
    call = get("/a")
    found = explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 8080, call)
    assert found.decision is pair(policies).decide(call)
    assert (found.action, found.protocol) == (Action.REDIRECT, "http")


def test_a_path_is_explained_as_the_port_reads_it() -> None:
    text = http_policy("[{name: two, path: /a/b}, {name: one, pathTemplate: '/{x}'}]")
    call = {"path_fault": "encoded-slash", "slashes": True}
    for said, found in (("decode", [("two", None), ("one", "pathTemplate")]), ("keep", [("two", "path"), ("one", None)])):
        policies = policy_set(text.replace("rules:", f"normalise: {{encodedSlash: {said}}}\n      rules:", 1))
        assert parts(policies, "/a%2Fb", **call) == found


def test_rules_for_other_peers_and_ports_say_so() -> None:
    policies = policy_set(http_policy("[{}]"))
    assert parts(policies, "/", subject="batch") == [("ingress[0]", "peer")]
    assert parts(policies, "/", port=1) == [("ingress[0]", "toPorts")]


def test_a_connection_that_is_refused_is_not_judged_by_its_calls() -> None:
    policies = policy_set(http_policy("[{}]"))
    found = explain(policies, policies.endpoint("batch"), policies.endpoint("orders"), 8080, get())
    assert (found.action, found.decision.verdict) == (Action.REFUSE, Verdict.DENIED)
    assert found.decision.reason == "connection-not-allowed"


def test_an_l7_rule_without_effect_says_so() -> None:
    policies = policy_set(http_policy("[{path: /a}]"), policy("endpointSelector: {}\ningress: [{fromEntities: [all]}]", "open"))
    found = explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 8080, get("/b"))
    assert found.decision.allowed
    assert (found.decision.policy, found.decision.rule) == ("open", "ingress[0]")
    assert [(c.policy, c.note) for c in found.candidates] == [
        ("open", ""),
        ("p", "has no effect but that calls are recorded: open ingress[0] allows everything on this port"),
    ]


def test_labels_that_match_in_another_namespace_are_told() -> None:
    """The usual mistake: a peer's selector means its policy's own namespace."""
    policies = policy_set(http_policy("[{}]"), workload("web2", namespace="shop").replace("app: web2", "app: web"))
    found = explain(policies, policies.endpoint("web2"), policies.endpoint("orders"), 8080, get())
    assert [(c.mismatch, c.note) for c in found.candidates] == [
        ("peer", "no match: peer (its labels match, but its namespace is shop, not default)")
    ]
    found = explain(policies, policies.endpoint("batch"), policies.endpoint("orders"), 8080, get())
    assert [(c.mismatch, c.note) for c in found.candidates] == [("peer", "")]


def test_a_policy_of_another_namespace_is_told() -> None:
    text = policy("endpointSelector: {matchLabels: {app: orders}}\ningress: []", namespace="shop")
    policies = policy_set(text)
    found = explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 8080, get())
    assert found.decision.reason == "no-policy"
    assert found.elsewhere == (
        "shop/p does not select orders for ingress: its labels match, but its namespace is default, not shop",
    )


def test_an_empty_list_of_rules_says_that_it_allows_nothing() -> None:
    policies = policy_set(http_policy("[]"))
    found = explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 8080, get())
    assert not found.decision.allowed
    assert found.candidates[0].note == "an empty list of rules allows no call"


def kernel(rules: str, request: str = "GET /a", extra: str = "") -> str | None:
    """What the kernel does with a request for /a."""
    policies = policy_set(http_policy(rules, extra=extra))
    head = f"{request} HTTP/1.1\r\nHost: orders\r\n\r\n".encode()
    return explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 8080, get("/a"), head).kernel


def test_a_call_that_the_kernel_may_carry_is_told() -> None:
    assert kernel("[{path: /a}]") == PROVEN


def test_why_the_kernel_asks_the_proxy_is_told() -> None:
    assert kernel("[{path: /b}]") == "not-allowed"
    assert kernel("[{path: /a}]", "GET /%61") == "head-form"
    assert kernel("[{path: '/a\\b'}, {path: /c}]") == "unsupported-pattern"
    assert kernel("[{headerMatches: [{name: X-A, value: '1', mismatch: LOG}]}, {path: /c}]") == "header-actions"
    assert kernel("[{path: '/.*a.{14}'}, {path: /a}]") == "too-many-states"


def test_the_kernel_is_asked_only_about_heads_on_connections_that_the_proxy_reads() -> None:
    policies = policy_set(http_policy("[{}]"))
    head = b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n"
    assert explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 8080, get()).kernel is None
    assert explain(policies, policies.endpoint("batch"), policies.endpoint("orders"), 8080, get(), head).kernel is None


class TestKafka:
    RULES = (
        "[{name: by-role, role: produce}, {name: by-api, apiKey: metadata}, {name: by-version, apiVersion: '9'}, "
        "{name: by-client, clientID: you}, {name: by-topic, topic: b}, {name: by-prefix, topicPrefix: b}, "
        "{name: by-pattern, topicPattern: b+}, {name: by-group, group: h}, {name: by-id, transactionalID: u}, "
        "{name: denied, deny: true, topic: b}, {name: all, role: consume, topic: a, group: g}]"
    )

    @staticmethod
    def parts(rules: str, call: ApiCall) -> list[tuple[str, str | None, str]]:
        policies = policy_set(kafka_policy(rules))
        found = explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 9092, call)
        assert (found.action, found.protocol, found.kernel) == (Action.REDIRECT, "kafka", None)
        return [(candidate.rule, candidate.mismatch, candidate.note) for candidate in found.candidates]

    def test_every_rule_says_what_did_not_match_first(self) -> None:
        call = kafka("OffsetFetch", "a", "group:g", "transactionalId:t", client="me")
        assert [(rule, mismatch) for rule, mismatch, _ in self.parts(self.RULES, call)] == [
            ("by-role", "role"),
            ("by-api", "apiKey"),
            ("by-version", "apiVersion"),
            ("by-client", "clientID"),
            ("by-topic", "topic"),
            ("by-prefix", "topicPrefix"),
            ("by-pattern", "topicPattern"),
            ("by-group", "group"),
            ("by-id", "transactionalID"),
            ("denied", "topic"),
            ("all", None),
        ]

    def test_rules_that_match_for_some_topics_say_for_which(self) -> None:
        rules = (
            "{name: a, topic: a}, {name: b, topicPrefix: b}, {name: c, topic: c}, {name: any}, {name: x, deny: true, topic: b}"
        )
        assert self.parts(f"[{rules}]", kafka("Fetch", "a", "b", "b2", divisible=True)) == [
            ("a", None, "matches for topic:a"),
            ("b", None, "matches for topic:b, topic:b2"),
            ("c", "topic", ""),
            ("any", None, ""),
            ("x", None, "matches for topic:b"),
        ]

    def test_topics_are_told_apart_by_group(self) -> None:
        call = kafka("OffsetFetch", "a", "group:g", "group:h")
        assert self.parts("[{group: g}]", call) == [
            ("ingress[0].toPorts[0].rules.kafka[0]", None, "matches for topic:a group:g")
        ]

    def test_a_reply_that_is_cut_down_is_told(self) -> None:
        policies = policy_set(kafka_policy("[{role: consume, topic: a}]"))

        def cut_down(call: ApiCall) -> bool:
            return explain(policies, policies.endpoint("web"), policies.endpoint("orders"), 9092, call).cut_down

        assert cut_down(kafka("Metadata", divisible=True, all_topics=True))
        assert not cut_down(kafka("Metadata", "a", "b", divisible=True))
        assert not cut_down(kafka("ListGroups"))
