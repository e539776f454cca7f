"""What lint finds, and that it finds nothing in what is meant."""

from pathlib import Path

import pytest

from parsers.kafka.layouts import REQUESTS
from policies.lint import lint
from policies.lint_kafka import NAMES_GROUPS, NAMES_TOPICS, NAMES_TRANSACTIONAL_IDS
from policies.load import Source, load

from .words import PARTIES, bundle, http_policy, kafka_policy, policy, workload

OPEN = http_policy("[{}]", "open").replace("    rules: {http: [{}]}", "")


def codes(*documents: str) -> list[str]:
    return [finding.code for finding in lint(bundle(*PARTIES, *documents))]


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("{path: '.*'}", "SL006"),
        ("{path: '/.*'}", "SL006"),
        ("{method: '.*'}", "SL006"),
        ("{path: orders/.*}", "SL007"),
        ("{path: '^orders'}", "SL007"),
        ("{path: /orders/}", "SL010"),
        ("{path: '^/orders'}", "SL010"),
        ("{method: get}", "SL011"),
        ("{host: Orders}", "SL011"),
        ("{path: '/a%2fb'}", "SL012"),
        ("{path: '/a%2Fb'}", "SL012"),
        ("{pathPrefix: '/%7Euser'}", "SL012"),
        ("{path: /a}, {path: /a, name: again}", "SL002"),
        ("{path: /a}, {}", "SL002"),
        ("{path: /a}, {path: /a, deny: true}", "SL002"),
        ("{path: /a, deny: true}", "SL014"),
        ("{headerMatches: [{name: X-A, secret: {name: nope}}]}", "SL013"),
        ("{headers: ['X-A: v[0-9]+']}", "SL022"),
        ("{headers: ['X-A: .*']}", "SL022"),
        ("{headers: ['X-A: ^v1$']}", "SL022"),
        ("{headers: ['X-A: (a|b)']}", "SL022"),
        ("{headers: ['X-A: v1*']}", "SL022"),
        (r"{headers: ['X-A: a\.b', 'X-A: \d']}", "SL022"),
        ("{headers: [{name: X-A, value: 'v.*'}]}", "SL022"),
        ("{headerMatches: [{name: X-A, value: 'v.*'}]}", "SL022"),
    ],
)
def test_a_suspicious_rule_is_found(rule: str, code: str) -> None:
    assert codes(http_policy(f"[{rule}]")) == [code]


@pytest.mark.parametrize(
    "rule",
    [
        "{}",
        "{method: GET}",
        "{method: GET, path: '/orders(/[0-9]+)?'}",
        "{path: '(/a|b/.*)'}",
        "{path: 'a?/x'}",
        "{path: '^/orders$'}",
        "{path: '/caf%C3%A9'}",
        "{path: /}",
        "{}, {path: /a, deny: true}",
        "{}, {path: /a, headerMatches: [{name: X-A, value: '1', mismatch: ADD}]}",
        "{host: '(?i)Orders'}",
        "{headers: ['Accept: */*', 'X-A: *', 'X-B: v1.2 (a+b) [c] $1?', 'Accept-Encoding: text/*']}",
        "{headers: [{name: X-A, regex: 'v.*'}, {name: X-B, prefix: 'v.*'}]}",
    ],
)
def test_a_sound_rule_is_not(rule: str) -> None:
    assert codes(http_policy(f"[{rule}]")) == []


def test_l7_rules_beside_an_open_rule_have_no_effect() -> None:
    assert codes(http_policy("[{path: /a}]"), OPEN) == ["SL001"]
    assert codes(http_policy("[{path: /a}]"), policy("endpointSelector: {}\ningress: [{fromEntities: [all]}]", "o")) == [
        "SL001"
    ]


def test_an_open_rule_for_others_is_fine() -> None:
    assert codes(http_policy("[{path: /a}]"), OPEN.replace("app: web", "app: batch")) == []
    assert codes(http_policy("[{path: /a}]"), OPEN.replace("8080", "8081")) == []
    assert codes(http_policy("[{path: /a}, {path: /b, deny: true}]"), OPEN) == []


def test_selectors_that_select_nothing() -> None:
    assert codes(http_policy("[{}]", peer="nobody")) == ["SL004"]
    assert codes(policy("endpointSelector: {matchLabels: {app: nobody}}\ningress: []")) == ["SL003"]


def test_what_cannot_be_enforced_here() -> None:
    found = codes(
        workload("far", False, "10.0.0.1"), policy("endpointSelector: {matchLabels: {app: far}}\ningress: []\negress: []")
    )
    assert found == ["SL005", "SL005"]


def test_openings_on_purpose_are_still_told() -> None:
    assert codes(http_policy("[{}]").replace("rules:", "opaque: allow\n      rules:", 1)) == ["SL008"]


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ("[{}]", []),
        ("[{method: 'GET|POST'}]", []),
        ("[{method: POST}, {method: DELETE}]", []),
        ("[{method: POST}]", ["SL018"]),
        ("[{method: POST}, {method: GET, path: /a, deny: true}]", ["SL018"]),
    ],
)
def test_refusing_bodies_that_no_rule_lets_through_has_no_effect(rules: str, found: list[str]) -> None:
    assert codes(http_policy(rules).replace("rules:", "bodilessMethods: refuse\n      rules:", 1)) == found
    assert codes(http_policy("[{}]", extra="failOpen: true")) == ["SL009"]


@pytest.mark.parametrize(
    ("rules", "said", "found"),
    [
        ("[{path: /a%2Fb}]", "encodedSlash: keep", []),
        ("[{path: /a%2Fb}]", "emptySegments: merge", ["SL012"]),
        ("[{path: /a%5Cb}]", "encodedSlash: keep", ["SL012"]),
        ("[{method: GET}]", "encodedSlash: keep", ["SL020"]),
    ],
)
def test_slashes_that_a_port_speaks_of(rules: str, said: str, found: list[str]) -> None:
    text = http_policy(rules).replace("rules:", f"normalise: {{{said}}}\n      rules:", 1)
    assert codes(text) == found
    if not found:
        assert codes(text, http_policy("[{pathPrefix: /b}]", "other")) == ["SL020"], "only what all say holds"
        assert codes(text, http_policy("[{method: POST}]", "other")) == []


class TestKafka:
    @pytest.mark.parametrize(
        ("rules", "found"),
        [
            ("{topicPattern: '.*'}", ["SL006"]),
            ("{topicPattern: '^.+$'}", ["SL006"]),
            ("{topicPattern: orders/eu}", ["SL007"]),
            ("{topic: a}, {topic: a, name: again}", ["SL002"]),
            ("{topicPattern: a.*}, {topicPattern: a.*, name: again}", ["SL002"]),
            ("{topic: a}, {}", ["SL002"]),
            ("{apiVersion: '0'}, {}", ["SL002", "SL017"]),
            ("{clientID: tool}", ["SL017"]),
            ("{clientID: tool, apiVersion: '0'}", ["SL017"]),
            ("{topic: a}, {apiKey: deletetopics, topic: a}", ["SL002"]),
            ("{topic: a}, {apiKey: fetch, topic: a}", ["SL002"]),
            ("{role: produce, topic: a, group: g}, {role: produce, topic: a}", ["SL002"]),
            ("{role: produce}, {apiKey: produce, topic: a}", ["SL002"]),
            ("{apiKey: metadata}, {role: produce}", ["SL002"]),
            ("{topicPrefix: a-}, {topic: a-1}, {topicPrefix: a-b-}", ["SL002", "SL002"]),
            ("{topicPattern: 'a-[0-9]'}, {topic: a-1}", ["SL002"]),
            ("{topic: a, mode: audit}, {topic: a}", ["SL002"]),
            ("{role: consume, topic: a}, {topicPrefix: a, deny: true}", ["SL002"]),
            ("{}, {topic: a, deny: true}, {topicPrefix: a, deny: true, name: wide}", ["SL002"]),
            ("{topic: a, deny: true}", ["SL014"]),
            ("{apiKey: stopreplica}, {role: produce}", ["SL015"]),
            ("{apiKey: listgroups, topic: a}, {role: produce}", ["SL015"]),
            ("{}, {apiKey: listgroups, topic: a, deny: true}", ["SL015"]),
            ("{apiKey: fetch, group: g}, {apiKey: metadata}", ["SL015"]),
            ("{apiKey: fetch, transactionalID: g}, {apiKey: metadata}", ["SL015"]),
            ("{apiKey: heartbeat, topic: a, transactionalID: t, group: g}", ["SL015", "SL015"]),
            ("{apiKey: produce, topic: a}", ["SL016"]),
            ("{apiKey: fetch}, {apiKey: metadata, deny: true}", ["SL016"]),
            ("{apiKey: fetch}, {role: produce}", ["SL019"]),
            ("{role: consume, groupPrefix: ab}, {role: consume, group: abc}, {role: consume, groupPrefix: abd}", ["SL002"] * 2),
            ("{role: produce, transactionalIDPrefix: ab}, {apiKey: endtxn, transactionalID: ab}", ["SL002"]),
            ("{apiKey: fetch, groupPrefix: g}, {apiKey: metadata}", ["SL015"]),
        ],
    )
    def test_a_suspicious_rule_is_found(self, rules: str, found: list[str]) -> None:
        assert codes(kafka_policy(f"[{rules}]")) == found

    @pytest.mark.parametrize(
        "rules",
        [
            "{}",
            "{role: produce, topic: a}, {role: consume, topic: a}",
            "{role: produce, topic: a, clientID: me}, {role: produce, topic: a, clientID: you}",
            "{topic: a}, {topic: b}, {topicPrefix: aa}, {topicPattern: 'b.+'}",
            "{topicPrefix: a}, {topicPattern: 'a.*'}",
            "{topicPattern: 'a.*'}, {topicPrefix: a}",
            "{topic: a, mode: audit}, {role: consume, topic: a}",
            "{role: consume, topic: a, record: summary}, {role: consume}",
            "{}, {topic: a, deny: true}, {topic: b, deny: true, mode: audit}",
            "{role: consume, topicPrefix: a}, {topic: a, deny: true}",
            "{role: consume, topic: a}, {topic: a, deny: true, mode: audit}",
            "{apiKey: produce, topic: a}, {apiKey: metadata, topic: a}",
            "{apiKey: describeacls, topic: a}",
            "{apiKey: findcoordinator, group: g}, {apiKey: findcoordinator, transactionalID: t}",
            "{apiVersion: '0', role: consume}, {topic: a}",
            "{}, {clientID: tool, deny: true}",
            "{role: produce}, {apiKey: fetch}, {apiKey: txnoffsetcommit}",
            "{role: consume}, {apiKey: txnoffsetcommit}",  # which says more: whoever's transaction it is
            "{role: consume}, {role: consume, transactionalID: t}",
            "{topic: a}, {apiKey: electleaders, topic: a}",  # which the other does not reach
            "{topic: a}, {apiKey: alterconfigs}, {apiKey: alterconfigs, topic: a, deny: true}",
            "{role: consume, clientID: me}, {apiKey: fetch, clientID: me}",  # a follower's
        ],
    )
    def test_a_sound_rule_is_not(self, rules: str) -> None:
        assert codes(kafka_policy(f"[{rules}]")) == []

    def test_a_condition_on_one_value_covers_no_other(self) -> None:
        fields = [("apiVersion", "'1'", "'2'"), ("clientID", "a", "b"), ("group", "a", "b"), ("transactionalID", "a", "b")]
        for field, one, other in fields:
            assert codes(kafka_policy(f"[{{role: consume, {field}: {one}}}, {{role: consume, {field}: {other}}}]")) == []
            assert codes(kafka_policy(f"[{{{field}: {one}, topicPattern: 'x+'}}, {{{field}: {other}, topic: x}}]")) == []
            assert codes(kafka_policy(f"[{{{field}: {one}, topicPattern: 'x+'}}, {{{field}: {one}, topic: x}}]")) == ["SL002"]

    def test_metadata_may_be_allowed_by_another_policy(self) -> None:
        writes = kafka_policy("[{apiKey: produce, topic: a}]")
        assert codes(writes, kafka_policy("[{apiKey: metadata, topic: a}]", "q")) == []
        assert codes(writes, kafka_policy("[{role: consume}]", "q", owner="web", direction="egress")) == ["SL016"]
        assert codes(kafka_policy("[{apiKey: produce, topic: a}]", extra="enableDefaultDeny: {ingress: false}")) == []

    def test_beside_an_open_rule_they_have_no_effect(self) -> None:
        opener = kafka_policy("[]", "open").replace("    rules: {kafka: []}\n", "")
        assert codes(kafka_policy("[{role: produce, topic: a}]"), opener) == ["SL001"]

    def test_thousands_of_rules_are_no_matter(self) -> None:
        """A comparison of each with each would take a minute."""
        rules = ", ".join(f"{{role: produce, group: g{n}, topicPattern: 't{n}x?'}}, {{topic: t{n}}}" for n in range(3000))
        assert codes(kafka_policy(f"[{rules}]")) == []

    @pytest.mark.parametrize(
        ("apis", "words"),
        [
            (NAMES_TOPICS, ("topic=", "topicId=", "name=", "everything", "~", "!")),
            (NAMES_GROUPS, ("group=", "key=", "kind=")),
            (NAMES_TRANSACTIONAL_IDS, ("transactional=", "key=")),
        ],
    )
    def test_what_an_api_names_is_what_its_layouts_say(self, apis: frozenset[str], words: tuple[str, ...]) -> None:
        layouts = {api.name: " ".join(layout for *_, layout in api.layouts) for api in REQUESTS.values()}
        assert {name for name, layout in layouts.items() if any(word in layout for word in words)} == apis


EXAMPLES = sorted((Path(__file__).parents[3] / "policies").glob("examples*/*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_examples_are_clean(path: Path) -> None:
    assert lint(load([Source(str(path), path.read_text())])) == []


def test_the_value_of_a_header_is_not_shown() -> None:
    """It may be a secret."""
    assert "s3cret" not in str(lint(bundle(*PARTIES, http_policy("[{headers: ['Authorization: s3cret.*']}]"))))


def test_metadata_of_grpc_calls_are_headers() -> None:
    assert codes(http_policy("[{metadata: ['x-a: v.*']}]").replace("http:", "grpc:")) == ["SL022"]


@pytest.mark.parametrize("field", ["topic", "topicPrefix", "topicPattern"])
def test_a_topic_that_no_broker_can_have(field: str) -> None:
    assert codes(kafka_policy(f"[{{role: produce, {field}: {'a' * 250}}}]")) == ["SL007"]
    assert codes(kafka_policy(f"[{{role: produce, {field}: {'a' * 249}}}]")) == []


@pytest.mark.parametrize(
    "peer", ["fromEntities: [kube-apiserver]", "fromEndpoints: [{matchLabels: {'reserved:kube-apiserver': ''}}]"]
)
def test_an_entity_that_nobody_is(peer: str) -> None:
    text = policy(f"endpointSelector: {{}}\ningress: [{{{peer}}}]")
    found = lint(bundle(*PARTIES, text))
    assert [(one.code, one.hint) for one in found] == [
        ("SL004", 'a Workload with the label "reserved:kube-apiserver": "" and the addresses')
    ]
    server = workload("api", False, "192.0.2.1").replace("{app: api}", '{"reserved:kube-apiserver": ""}')
    assert codes(text, server) == []
    assert codes(policy("endpointSelector: {}\ningress: [{fromEntities: [none]}]")) == []


def test_what_kustomize_would_change() -> None:
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n"
    assert codes(head) == []
    found = lint(bundle(*PARTIES, head + "patches: []\nnamespace: a\n"))
    assert [(one.code, "(patches, namespace)" in one.message) for one in found] == [("SL021", True)]


def test_a_rule_that_allows_every_call_beside_a_wider_one_is_how_calls_are_seen() -> None:
    """Cilium's idiom."""
    assert codes(http_policy("[{}]"), OPEN) == []
    opener = kafka_policy("[]", "open").replace("    rules: {kafka: []}\n", "")
    assert codes(kafka_policy("[{}]"), opener) == []
    assert codes(http_policy("[]"), OPEN) == ["SL001"]
