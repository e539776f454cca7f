"""``sluice explain`` on the examples: the proxy's parser reads the request, the proxy's engine decides."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.commands.explain import explain

EXAMPLES = Path(__file__).parents[4] / "policies" / "examples"


def run(example: str, from_: str, to: str, request: str, *more: str) -> Result:
    return CliRunner().invoke(explain, ["-f", str(EXAMPLES / example), "--from", from_, "--to", to, request, *more])


@pytest.mark.parametrize(
    ("from_", "request_", "more", "exit_code", "says"),
    [
        ("web", "GET /orders/1", (), 0, "ALLOWED"),
        ("web", "GET /orders/1?x=1", (), 1, "no-rule-matched"),
        ("web", "GET /ord%65rs/1", (), 0, "ALLOWED"),
        ("web", "GET /orders/../orders", (), 1, "dot-segment"),
        ("web", "POST /orders", (), 1, "no match: header x-request-source"),
        ("web", "POST /orders", ("--header", "X-Request-Source: web"), 0, "ALLOWED"),
        ("batch", "GET /orders/export", (), 0, "ALLOWED"),
        ("batch", "GET /orders", (), 1, "no match: peer"),
        ("host", "GET /orders", (), 1, "connection is refused when it is made"),
        ("192.0.2.1", "GET /orders", (), 1, "connection-not-allowed"),
        ("web", "get /orders", (), 1, "no match: method"),
        ("web", "g@t /orders", (), 1, "refuses this request before policy is asked: bad-method"),
        ("web", "GET /orders", ("--host", "a b"), 1, "before policy is asked"),
        ("web", "GET /orders", ("--header", "X-A: 1\r\n\r\nGET /x HTTP/1.1"), 0, "ALLOWED"),
        ("web", "grpc pkg.Svc/Get", (), 1, "no match: path"),
    ],
)
def test_the_verdict_is_the_exit_code(from_: str, request_: str, more: tuple[str, ...], exit_code: int, says: str) -> None:
    result = run("http-orders.yaml", from_, "orders:8080", request_, *more)
    assert (result.exit_code, says in result.output) == (exit_code, True), result.output


@pytest.mark.parametrize(
    ("rules", "exit_code", "says"),
    [
        ("rules: {http: [{}]}", 1, "DENIED  the proxy refuses this request before policy is asked: http2-not-supported"),
        ("opaque: allow\n      rules: {http: [{}]}", 1, "http2-not-supported"),
        ("rules: {grpc: [{service: pkg.Svc}]}", 1, "http2-not-supported"),
        ("rules: {grpc: [{service: pkg.Other}]}", 1, "no match: service"),
        ("# no rules", 0, "ALLOWED"),
    ],
)
def test_a_protocol_that_the_proxy_refuses_is_not_allowed(tmp_path: Path, rules: str, exit_code: int, says: str) -> None:
    text = (EXAMPLES / "http-orders.yaml").read_text()
    workloads = text[: text.index("apiVersion: cilium.io/v2")]
    (tmp_path / "a.yaml").write_text(
        workloads
        + f"""apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: p}}
spec:
  endpointSelector: {{matchLabels: {{app: orders}}}}
  ingress:
  - toPorts:
    - ports: [{{port: "8080", protocol: TCP}}]
      {rules}
"""
    )
    words = ["-f", str(tmp_path), "--from", "web", "--to", "orders:8080", "grpc pkg.Svc/Get"]
    result = CliRunner().invoke(explain, words)
    assert (result.exit_code, says in result.output) == (exit_code, True), result.output


@pytest.mark.parametrize(
    ("from_", "to", "exit_code", "says"),
    [
        ("controller", "api-server:6443", 0, "ALLOWED"),
        ("controller", "192.0.2.11:6443", 0, "ALLOWED"),
        ("controller", "192.0.2.12:6443", 1, "connection-not-allowed"),
        ("controller", "203.0.113.7:443", 0, "ALLOWED"),
        ("controller", "198.51.100.7:443", 1, "connection-not-allowed"),
        ("metrics", "controller:9100", 0, "has no effect but that calls are recorded: controller ingress[1] allows everything"),
    ],
)
def test_what_other_documents_say_is_known(from_: str, to: str, exit_code: int, says: str) -> None:
    result = run("as-in-a-cluster.yaml", from_, to, "GET /")
    assert (result.exit_code, says in result.output) == (exit_code, True), result.output


def test_a_policy_of_another_namespace_is_told(tmp_path: Path) -> None:
    text = (EXAMPLES / "http-orders.yaml").read_text()
    (tmp_path / "a.yaml").write_text(
        text.replace("kind: CiliumNetworkPolicy\nmetadata: {", "kind: CiliumNetworkPolicy\nmetadata: {namespace: shop, ")
    )
    result = CliRunner().invoke(explain, ["-f", str(tmp_path), "--from", "web", "--to", "orders:8080", "GET /"])
    assert "does not select orders for ingress: its labels match, but its namespace is default, not shop" in result.output


def test_the_kernel_path_is_told() -> None:
    said = {request: run("http-orders.yaml", "web", "orders", request).output for request in ("GET /orders", "GET /ord%65rs")}
    assert "kernel   proven" in said["GET /orders"]
    assert "kernel   asks the proxy (head-form)" in said["GET /ord%65rs"]
    told = run("http-orders.yaml", "web", "orders", "grpc pkg.Svc/Get").output
    assert not [line for line in told.splitlines() if line.startswith("kernel")]
    found = json.loads(run("http-orders.yaml", "web", "orders", "GET /orders", "-o", "json").output)
    assert found["kernel"] == "proven"


@pytest.mark.parametrize("name", ["web", "orders"])
def test_a_workload_on_either_side_that_is_not_to_be_accelerated_is_the_reason(tmp_path: Path, name: str) -> None:
    text = (EXAMPLES / "http-orders.yaml").read_text()
    changed = text.replace(f'  cgroups: ["/sluice/{name}"', f'  acceleration: false\n  cgroups: ["/sluice/{name}"')
    assert changed != text
    (tmp_path / "a.yaml").write_text(changed)
    words = ["-f", str(tmp_path), "--from", "web", "--to", "orders", "GET /orders"]
    result = CliRunner().invoke(explain, words)
    assert (result.exit_code, "kernel   asks the proxy (acceleration-off)" in result.output) == (0, True), result.output


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ((), "web and orders would have to say"),
        (("web",), "a way to read wrong: orders would have"),
        (("orders",), "a way to read wrong: web would have"),
        (("web", "orders"), None),
    ],
)
def test_who_has_not_asked_for_acceleration_is_told(tmp_path: Path, on: tuple[str, ...], said: str | None) -> None:
    """By default, where the kernel is not right for every program, only calls between those are carried that ask for it."""
    text = (EXAMPLES / "http-orders.yaml").read_text()
    for name in on:
        text = text.replace(f'  cgroups: ["/sluice/{name}"', f'  acceleration: on\n  cgroups: ["/sluice/{name}"')
    (tmp_path / "a.yaml").write_text(text)
    result = CliRunner().invoke(explain, ["-f", str(tmp_path), "--from", "web", "--to", "orders", "GET /orders"])
    output = " ".join(result.output.split())
    assert "kernel proven" in output
    assert ("acceleration: on" in output) is (said is not None)
    assert said is None or said in output


def test_the_only_port_of_a_workload_need_not_be_said() -> None:
    assert run("http-orders.yaml", "web", "orders", "GET /orders").exit_code == 0
    assert "say which port" in run("egress-cidr.yaml", "crawler", "resolver", "GET /").output


def test_an_address_is_its_workload() -> None:
    assert "no-admin" in run("deny-rule.yaml", "10.20.0.9", "wiki:80", "GET /admin").output


def test_addresses_with_ports() -> None:
    assert run("egress-cidr.yaml", "crawler", "192.0.2.1:80", "GET /").exit_code == 0
    assert run("egress-cidr.yaml", "crawler", "[2001:db8::1]:80", "GET /").exit_code == 1


def test_audit_mode_would_deny() -> None:
    result = run("audit-mode.yaml", "checkout", "payments", "DELETE /payments/1", "-o", "json")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert (found["decision"]["verdict"], found["action"]) == ("WOULD_DENY", "REDIRECT")
    assert [(one["rule"], one["mismatch"]) for one in found["candidates"]] == [("pay", "pathTemplate"), ("look", "method")]


@pytest.mark.parametrize(
    ("from_", "to", "request_"),
    [
        ("nobody", "orders", "GET /"),
        ("web", "orders:99999", "GET /"),
        ("web", "orders:" + "9" * 5000, "GET /"),
        ("web", "orders", "GET"),
        ("web", "orders", "kafka"),
        ("web", "orders", "kafka prodce t"),
    ],
)
def test_what_cannot_be_asked_is_an_error(from_: str, to: str, request_: str) -> None:
    assert run("http-orders.yaml", from_, to, request_).exit_code == 2


class TestKafka:
    @pytest.mark.parametrize(
        ("from_", "request_", "more", "exit_code", "says"),
        [
            ("shop", "kafka produce orders", (), 0, "ALLOWED  kafka produce orders"),
            ("shop", "kafka Produce orders returns", ("--transactional-id", "t"), 0, "ALLOWED"),
            ("shop", "kafka produce payments", (), 1, "no match: topic"),
            ("shop", "kafka fetch orders", (), 1, "no match: role"),
            ("shop", "kafka apiversions", (), 0, "ALLOWED"),
            ("shop", "kafka metadata", (), 0, "its reply is cut down to the topics that the rules allow"),
            ("billing", "kafka consume orders", (), 0, "rule     orders"),
            ("billing", "kafka joingroup", ("--group", "billing"), 0, "ALLOWED"),
            ("billing", "kafka joingroup", ("--group", "other"), 1, "no match: group"),
            ("billing", "kafka consume payments.cards", (), 1, "rule     no-cards"),
            ("billing", "kafka alterclientquotas", (), 1, "no match: role"),
            ("operators", "kafka alterclientquotas", (), 0, "ALLOWED"),
            ("operators", "kafka alterconfigs", (), 0, "ALLOWED"),
            ("operators", "kafka deletetopics orders", (), 0, "rule     "),
            ("operators", "kafka metadata", (), 0, "ALLOWED"),
            ("operators", "kafka findcoordinator", ("--transactional-id", "t"), 0, "ALLOWED"),
            ("operators", "kafka describeconfigs", ("--group", "g"), 0, "ALLOWED"),
            ("operators", "kafka sharefetch orders", (), 1, "before policy is asked: unsupported-version"),
            ("operators", "kafka controlledshutdown", (), 1, "before policy is asked: unsupported-api"),
            ("operators", "kafka produce orders", ("--api-version", "99"), 1, "before policy is asked: unsupported-version"),
        ],
    )
    def test_the_verdict_is_the_exit_code(
        self, from_: str, request_: str, more: tuple[str, ...], exit_code: int, says: str
    ) -> None:
        result = run("kafka.yaml", from_, "kafka", request_, *more)
        assert (result.exit_code, says in result.output) == (exit_code, True), result.output

    def test_what_becomes_of_each_topic_is_told(self) -> None:
        words = ("kafka.yaml", "billing", "kafka", "kafka offsetcommit orders payments.cards", "--group", "billing")
        result = run(*words)
        assert result.exit_code == 0
        lines = [line.strip() for line in result.output.splitlines()]
        assert lines[0].startswith("PARTIAL  kafka offsetcommit orders payments.cards")
        assert {"ALLOWED  topic:orders", "DENIED   topic:payments.cards"} <= set(lines)
        found = json.loads(run(*words, "-o", "json").output)["decision"]
        assert found["per_resource"] == {"topic:orders": "ALLOWED", "topic:payments.cards": "DENIED"}
        assert "granting" not in found

    def test_what_becomes_of_each_group_is_told(self, tmp_path: Path) -> None:
        text = (EXAMPLES / "kafka.yaml").read_text()
        one = "- {name: no-cards,"
        text = text.replace(one, "- {apiKey: describegroups, group: billing}\n        " + one)
        (tmp_path / "a.yaml").write_text(text)
        words = ["-f", str(tmp_path), "--from", "billing", "--to", "kafka", "kafka describegroups"]
        result = CliRunner().invoke(explain, [*words, "--group", "billing", "--group", "shop"])
        assert result.exit_code == 0
        lines = [line.strip() for line in result.output.splitlines()]
        assert lines[0].startswith("PARTIAL  kafka describegroups")
        assert {"ALLOWED  group:billing", "DENIED   group:shop"} <= set(lines)

    @pytest.mark.parametrize(
        ("rule", "request_", "says"),
        [
            (
                "{topic: orders}",
                "alterclientquotas",
                "apiKey (Kafka asks for ALTER_CONFIGS CLUSTER: a rule has to name the API",
            ),
            ("{clientID: me}", "listtransactions", "apiKey (Kafka asks for DESCRIBE EVERY_TRANSACTIONAL_ID: a rule has to"),
            (
                "{apiKey: alterconfigs, topic: orders}",
                "alterconfigs",
                "topic (Kafka asks for CLUSTER: a rule has to name the API",
            ),
            ("{topic: orders}", "alterconfigs bills", "no match: topic\n"),
            ("{apiKey: fetch}", "alterclientquotas", "no match: apiKey\n"),
        ],
    )
    def test_of_what_is_the_clusters_it_says_which_right_is_asked_for(
        self, rule: str, request_: str, says: str, tmp_path: Path
    ) -> None:
        text = (EXAMPLES / "kafka.yaml").read_text()
        (tmp_path / "a.yaml").write_text(text.replace("{kafka: [{}]}", f"{{kafka: [{rule}]}}"))
        result = CliRunner().invoke(
            explain, ["-f", str(tmp_path), "--from", "operators", "--to", "kafka", "--client-id", "me", f"kafka {request_}"]
        )
        assert result.exit_code == 1
        assert says in result.output

    def test_version_and_client_are_what_rules_compare(self, tmp_path: Path) -> None:
        text = (EXAMPLES / "kafka.yaml").read_text()
        (tmp_path / "a.yaml").write_text(text.replace("topic: returns}", "topic: returns, apiVersion: '9', clientID: me}"))

        def exit_code(*more: str) -> int:
            words = ["-f", str(tmp_path), "--from", "shop", "--to", "kafka", "kafka produce returns", *more]
            return CliRunner().invoke(explain, words).exit_code

        assert exit_code("--api-version", "9", "--client-id", "me") == 0
        assert exit_code("--api-version", "8", "--client-id", "me") == 1
        assert exit_code("--api-version", "9") == 1

    @pytest.mark.parametrize(
        ("request_", "more", "says"),
        [
            ("kafka produce", (), "Produce needs a topic"),
            ("kafka heartbeat", (), "Heartbeat needs --group"),
            ("kafka endtxn", (), "EndTxn needs --transactional-id"),
            ("kafka findcoordinator", (), "FindCoordinator needs --group"),
            ("kafka heartbeat orders", ("--group", "g"), "Heartbeat takes no topic in version"),
            ("kafka fetch orders", ("--group", "g"), "Fetch takes no --group in version"),
            ("kafka fetch orders", ("--transactional-id", "t"), "Fetch takes no --transactional-id in version"),
            ("kafka fetch orders", ("--header", "A: b"), "Kafka has no headers"),
            ("kafka nothing", (), "'nothing' is no API of Kafka"),
            ("kafka", (), "'' is no API of Kafka"),
            ("GET /", ("--group", "g"), "are for 'kafka API [TOPIC ...]'"),
        ],
    )
    def test_what_says_nothing_of_real_requests_is_an_error(self, request_: str, more: tuple[str, ...], says: str) -> None:
        result = run("kafka.yaml", "operators", "kafka", request_, *more)
        assert (result.exit_code, says in result.output) == (2, True), result.output


SECRET_EDIT = """
apiVersion: sluice.dev/v1
kind: Workload
metadata: {name: orders, labels: {app: orders}}
spec: {cgroups: [/sluice/orders]}
---
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {value: s3cret}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api}
spec:
  endpointSelector: {}
  ingress:
  - toPorts:
    - ports: [{port: "8000", endPort: 8001, protocol: TCP}]
      rules: {http: [{headerMatches: [{name: X-Token, mismatch: REPLACE, secret: {name: token}}]}]}
"""


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_secret_that_a_rule_puts_into_a_header_is_not_shown(tmp_path: Path, output: str) -> None:
    (tmp_path / "a.yaml").write_text(SECRET_EDIT)
    words = ["-f", str(tmp_path), "--from", "host", "--to", "orders:8000", "GET /", "-o", output]
    result = CliRunner().invoke(explain, words)
    assert (result.exit_code, "x-token" in result.output, "s3cret" in result.output) == (0, True, False)


def test_the_only_port_of_a_range_must_be_said(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SECRET_EDIT)
    result = CliRunner().invoke(explain, ["-f", str(tmp_path), "--from", "host", "--to", "orders", "GET /"])
    assert (result.exit_code, "say which port" in result.output) == (2, True)


def test_documents_that_cannot_be_loaded_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: Nope\n")
    for path in (tmp_path / "a.yaml", tmp_path / "missing.yaml"):
        result = CliRunner().invoke(explain, ["-f", str(path), "--from", "a", "--to", "b:1", "GET /"])
        assert result.exit_code == 2
        assert str(path) in result.output
