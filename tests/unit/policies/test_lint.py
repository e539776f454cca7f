"""What lint finds, and that it finds nothing in what is meant."""

from pathlib import Path

import pytest

from policies.lint import lint
from policies.load import Source, load

from .words import PARTIES, bundle, http_policy, policy, workload

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
    assert codes(http_policy("[{}]", extra="failOpen: true")) == ["SL009"]


@pytest.mark.parametrize("name", ["audit-mode", "deny-rule", "egress-cidr", "http-orders"])
def test_the_examples_are_clean(name: str) -> None:
    path = Path(__file__).parents[3] / "policies" / "examples" / f"{name}.yaml"
    assert lint(load([Source(str(path), path.read_text())])) == []
