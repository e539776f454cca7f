"""Heads that the kernel may carry without asking: what is proven, what is not, and what never may be."""

import gc
import string
from pathlib import Path

import pytest

from policies import heads
from policies.decide import Action, Pair, PolicySet
from policies.heads import HeadTable, NotProvable, Proof, prove, run
from policies.load import Source, load

from .words import bundle, http_policy, pair, policy, policy_set, workload

HOST = "Host: orders"


def table(*documents: str) -> HeadTable:
    found = prove(pair(policy_set(*documents)))
    assert isinstance(found, HeadTable), found
    return found


def reason(*documents: str, subject: str = "web", port: int = 8080) -> str:
    found = prove(pair(policy_set(*documents), subject=subject, port=port))
    assert isinstance(found, NotProvable)
    return found.reason


def head(start: str = "GET /", *lines: str, host: str = HOST) -> bytes:
    return "\r\n".join([f"{start} HTTP/1.1", *([host] if host else []), *lines, "", ""]).encode("latin-1")


def is_proven(rules: str, start: str = "GET /", *lines: str, host: str = HOST) -> bool:
    return run(table(http_policy(rules)), head(start, *lines, host=host)) is not None


ANY = table(http_policy("[{}]"))


def accepts(*lines: str, start: str = "GET /", host: str = HOST) -> bool:
    return run(ANY, head(start, *lines, host=host)) is not None


class TestProof:
    def test_a_body_that_is_refused_is_not_proven(self) -> None:
        text = http_policy("[{method: POST}, {method: 'GET|DELETE'}]")
        one = table(text.replace("rules:", "bodilessMethods: refuse\n      rules:", 1))
        for method in ("GET", "DELETE"):
            assert run(one, head(f"{method} /")) is not None
            assert run(one, head(f"{method} /", "Content-Length: 5")) is None
        assert run(one, head("POST /", "Content-Length: 5")) is not None

    def test_a_head_ends_where_the_body_begins(self) -> None:
        data = head("POST /", "Content-Length: 17")
        assert run(ANY, data + b"x" * 17) == Proof(len(data), 17, False)

    def test_without_content_length_there_is_no_body(self) -> None:
        assert run(ANY, head("POST /")) == Proof(len(head("POST /")), 0, False)

    def test_a_reply_to_head_has_no_body(self) -> None:
        assert run(ANY, head("HEAD /")) == Proof(len(head("HEAD /")), 0, True)

    def test_a_head_that_is_not_complete_is_not_proven(self) -> None:
        data = head("GET /", "Accept: text/plain")
        assert all(run(ANY, data[:end]) is None for end in range(len(data)))

    def test_only_the_first_head_is_looked_at(self) -> None:
        data = head()
        assert run(ANY, data + b"\x00garbage") == Proof(len(data), 0, False)

    def test_a_head_that_is_too_long_is_not_proven(self) -> None:
        spare = heads.HEAD_PROOF_MAX - len(head("GET /", "X-Padding: "))
        assert accepts("X-Padding: " + "x" * spare)
        assert not accepts("X-Padding: " + "x" * (spare + 1))


class TestGrammar:
    @pytest.mark.parametrize(
        "target",
        ["/", "/a/b", "/a?x=/../y", "/a?", "/.well-known", "/...", "/a./b.c", "/a=b&c", "/~[x]", "/a?b?c;d", "/?//"],
    )
    def test_targets(self, target: str) -> None:
        assert accepts(start=f"GET {target}")

    @pytest.mark.parametrize(
        "target",
        [
            "*",
            "a",
            "http://orders/",
            "//",
            "/a//b",
            "/.",
            "/..",
            "/./a",
            "/a/../b",
            "/a/..?x",
            "/a/.;x/b",
            "/a;b",
            "/a%20b",
            "/a?b=%20",
            "/a\\b",
            "/a?b\\",
            "/a#b",
            "/caf\xe9",
            "/a b",
            "/a\x00",
            "/a?\x7f",
            "",
        ],
    )
    def test_targets_that_are_for_the_proxy(self, target: str) -> None:
        assert not accepts(start=f"GET {target}")

    @pytest.mark.parametrize(
        "start", ["get /", "CONNECT /", "TRACE /", "PURGE /", "GETX /", " GET /", "GET  /", "GET\t/", "\r\nGET /"]
    )
    def test_starts_that_are_for_the_proxy(self, start: str) -> None:
        assert not accepts(start=start)

    @pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1", b"HTTP/1.1 ", b"HTTP/2.0", b""])
    def test_versions_that_are_for_the_proxy(self, version: bytes) -> None:
        assert run(ANY, head().replace(b"HTTP/1.1", version)) is None

    @pytest.mark.parametrize(
        "host", ["orders", "orders:8080", "a-b_c.d1", "127.0.0.1:1", "1", "x" * heads.HOST_PROOF_MAX + ":65535", "  a  ", "a"]
    )
    def test_hosts(self, host: str) -> None:
        assert accepts(host=f"Host: {host}")
        assert accepts(host=f"host:{host}")

    @pytest.mark.parametrize(
        "host",
        ["", "a.", "a..b", ".a", ".", "a:", "a:0", "a:01", "a:123456", "a:b", "[::1]", "A", "a b", "a,b", "u@a", "a/", "\xe9"],
    )
    def test_hosts_that_are_for_the_proxy(self, host: str) -> None:
        assert not accepts(host=f"Host: {host}")

    def test_a_host_is_shorter_than_the_parser_allows(self) -> None:
        assert accepts(host="Host: " + "x" * heads.HOST_PROOF_MAX)
        assert not accepts(host="Host: " + "x" * (heads.HOST_PROOF_MAX + 1))

    def test_there_is_exactly_one_host(self) -> None:
        assert not accepts(host="")
        assert not accepts("Host: orders")
        assert not accepts("host: other")
        assert not accepts("HOST: orders")

    @pytest.mark.parametrize(
        "lines", [["Content-Length: 5"], ["content-length:5"], ["Content-Length:  0005  "], ["Content-Length: 0"]]
    )
    def test_lengths(self, lines: list[str]) -> None:
        proof = run(ANY, head("PUT /", *lines))
        assert proof is not None
        assert proof.body_length in (0, 5)

    @pytest.mark.parametrize(
        "lines",
        [
            ["Content-Length:"],
            ["Content-Length: "],
            ["Content-Length: +5"],
            ["Content-Length: 5,5"],
            ["Content-Length: 5 5"],
            ["Content-Length: 0x5"],
            ["Content-Length: 5", "Content-Length: 5"],
            ["Content-Length: " + "1" * (heads.LENGTH_DIGITS + 1)],
            ["CONTENT-LENGTH: 5"],
            ["Content-Length : 5"],
        ],
    )
    def test_lengths_that_are_for_the_proxy(self, lines: list[str]) -> None:
        assert not accepts(*lines, start="PUT /")

    @pytest.mark.parametrize(
        "line",
        [
            "Connection: keep-alive",
            "connection:Keep-Alive ",
            "Upgrade-Insecure-Requests: 1",
            "Tenant: abcdef",
            "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "Content-Type: text/plain",
            "Content-Language: en",
            "Cookie: a=b; c=d",
            "X-Obs: caf\xe9 au lait",
            "x!#$%&'*+-.^_`|~9: y",
            "Accept:*/*",
        ],
    )
    def test_fields(self, line: str) -> None:
        assert accepts(line)

    @pytest.mark.parametrize(
        "line",
        [
            "Transfer-Encoding: chunked",
            "transfer-encoding: identity",
            "tRANSFER-eNCODING: chunked",
            "Transfer-Encoding-Not: really-12345",
            "Upgrade: websocket",
            "uPGRADE: websocket",
            "Expect: 100-continue",
            "TE: trailers",
            "te: trailers",
            "Trailer: X-Checksum",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "HTTP2-Settings: AAMAAABkAAQAAP__",
            "Connection: close",
            "Connection: upgrade",
            "Connection: keep-alive, x",
            "Connection:",
            " folded: abcdef",
            "\tfolded: abcdef",
            "No-Colon-Here",
            ": no name at all",
            "Space-Before : x",
            "Bad[Name: abcdef",
            "X-Null: a\x00bcdef",
            "X-Tab: a\tbcdefg",
            "X-Delete: \x7f12345",
            "X-Bare: a\nbcdef",
            "X-Bare: a\rbcdef",
        ],
    )
    def test_fields_that_are_for_the_proxy(self, line: str) -> None:
        assert not accepts(line)

    def test_so_many_lines_that_they_would_have_to_be_counted_are_for_the_proxy(self) -> None:
        assert accepts("X-Ab: 12345678"[: heads.FIELD_LINE_MIN - 2])
        assert not accepts("X-Ab: 12345678"[: heads.FIELD_LINE_MIN - 3])


class TestRules:
    def test_method_and_path(self) -> None:
        rules = "[{method: 'GET|HEAD', path: '/orders(/[0-9]+)?'}, {method: POST, path: /orders}]"
        for start in ("GET /orders", "GET /orders/7", "HEAD /orders/7", "POST /orders"):
            assert is_proven(rules, start), start
        for start in ("GET /orders/", "GET /orders?x=1", "POST /orders/7", "PUT /orders", "GET /"):
            assert not is_proven(rules, start), start

    def test_a_method_that_only_a_rule_knows(self) -> None:
        assert is_proven("[{method: PURGE}]", "PURGE /")
        assert reason(http_policy("[{method: CONNECT}]")) == "nothing-to-prove"

    def test_path_conditions_without_the_query(self) -> None:
        for target, yes in (("/api", True), ("/api/x", True), ("/api?x", True), ("/apis", False), ("/x?/api", False)):
            assert is_proven("[{pathPrefix: /api}]", f"GET {target}") is yes, target
        for target, yes in (("/users/7", True), ("/users/7?x=/y", True), ("/users/", False), ("/users?/7", False)):
            assert is_proven("[{pathTemplate: '/users/{id}'}]", f"GET {target}") is yes, target
        # A template's segment has no query in it, although "?" is no slash.
        assert not is_proven("[{pathTemplate: '/users/{id}/orders'}]", "GET /users/7?x/orders")

    def test_hosts_are_compared_with_their_port(self) -> None:
        rules = "[{host: 'orders|orders:8080'}]"
        assert is_proven(rules)
        assert is_proven(rules, host="Host: orders:8080")
        assert not is_proven(rules, host="Host: orders:80")
        assert not is_proven(rules, host="Host: orders2")

    def test_headers(self) -> None:
        rules = "[{headers: ['X-Role: big admin', X-Token]}]"
        assert is_proven(rules, "GET /", "X-Role: big admin", "x-token:1")
        assert is_proven(rules, "GET /", "X-TOKEN:", "x-role:   big admin  ")
        assert not is_proven(rules, "GET /", "X-Role: big  admin", "X-Token: 1")
        assert not is_proven(rules, "GET /", "X-Role: BIG ADMIN", "X-Token: 1")
        assert not is_proven(rules, "GET /", "X-Role: big admin")
        assert not is_proven(rules)

    def test_header_prefixes_and_patterns(self) -> None:
        rules = "[{headers: [{name: X-Role, prefix: adm}, {name: X-Team, regex: '[a-z]+( [a-z]+)?'}]}]"
        assert is_proven(rules, "GET /", "X-Role: admin", "X-Team: a b ")
        assert not is_proven(rules, "GET /", "X-Role: ad min", "X-Team: a b")
        assert not is_proven(rules, "GET /", "X-Role: admin", "X-Team: a b c")

    def test_a_header_that_rules_name_is_never_one_of_several(self) -> None:
        rules = "[{headers: ['X-Role: admin']}]"
        assert is_proven(rules, "GET /", "X-Role: admin")
        for second in ("X-Role: user", "x-role: admin", "X-ROLE:"):
            assert not is_proven(rules, "GET /", "X-Role: admin", second)
            assert not is_proven(rules, "GET /", second, "X-Role: admin")

    def test_a_header_that_does_not_matter_any_more_may_be_anything(self) -> None:
        rules = "[{path: /a, headers: ['X-Role: admin']}, {path: /b}]"
        assert is_proven(rules, "GET /b", "X-Role: x1234", "X-Role: y1234")
        assert not is_proven(rules, "GET /a", "X-Role: x1234", "X-Role: admin")

    def test_one_of_several_rules_must_hold_as_a_whole(self) -> None:
        rules = "[{headers: ['X-A: 1'], host: orders}, {headers: ['X-B: 1'], host: other}]"
        assert is_proven(rules, "GET /", "X-A: 1")
        assert not is_proven(rules, "GET /", "X-B: 1")
        assert not is_proven(rules, "GET /", "X-A: 1", host="Host: other")
        assert is_proven(rules, "GET /", "X-B: 1", host="Host: other")

    def test_conditions_on_the_query_are_for_the_proxy(self) -> None:
        rules = "[{path: '/a.*', query: [{name: x}]}, {path: /b}]"
        assert is_proven(rules, "GET /b")
        assert not is_proven(rules, "GET /a?x=1")
        assert table(http_policy(rules)).left_out == (("p", "ingress[0].toPorts[0].rules.http[0]", "query"),)

    def test_both_sides_must_allow(self) -> None:
        egress = """
endpointSelector: {matchLabels: {app: web}}
egress:
- toPorts:
  - ports: [{port: "8080", protocol: TCP}]
    rules: {http: [{method: GET, headers: [X-Trace-Id]}]}
"""
        both = table(http_policy("[{path: '/a.*'}]"), policy(egress, "out"))
        assert run(both, head("GET /a", "X-Trace-Id: 1")) is not None
        assert run(both, head("POST /a", "X-Trace-Id: 1")) is None
        assert run(both, head("GET /b", "X-Trace-Id: 1")) is None
        assert run(both, head("GET /a")) is None

    def test_several_policies_are_united(self) -> None:
        both = table(http_policy("[{path: /a}]"), http_policy("[{path: /b}]", "q"))
        assert [run(both, head(f"GET /{name}")) is not None for name in "abc"] == [True, True, False]


class TestDenyRules:
    def test_deny_wins(self) -> None:
        rules = "[{}, {deny: true, pathPrefix: /admin}, {deny: true, method: DELETE}]"
        assert is_proven(rules, "GET /x")
        for start in ("GET /admin", "GET /admin/x", "GET /admin?x", "DELETE /x"):
            assert not is_proven(rules, start), start

    def test_a_path_is_denied_with_and_without_its_query(self) -> None:
        rules = "[{}, {deny: true, path: /admin}, {deny: true, path: '/x[?]y'}]"
        assert is_proven(rules, "GET /adm")
        for target in ("/admin", "/admin?x=1", "/admin?", "/x?y"):
            assert not is_proven(rules, f"GET {target}"), target

    def test_a_query_with_a_denied_parameter_is_for_the_proxy(self) -> None:
        rules = "[{}, {deny: true, query: [{name: debug, value: '1'}]}]"
        for query in ("debug=1", "debug", "a=b&debug=2", "a;debug", "debug;a"):
            assert not is_proven(rules, f"GET /?{query}"), query
        for query in ("", "a=debug", "debugger=1", "xdebug", "a=b&c"):
            assert is_proven(rules, f"GET /?{query}"), query

    def test_any_query_is_for_the_proxy_when_the_name_can_be_written_in_several_ways(self) -> None:
        rules = "[{}, {deny: true, query: [{name: 'a b'}]}]"
        assert is_proven(rules, "GET /")
        assert not is_proven(rules, "GET /?x")

    def test_headers_and_hosts(self) -> None:
        rules = "[{}, {deny: true, headers: ['X-Role: admin']}, {deny: true, host: '.*[.]internal'}]"
        assert is_proven(rules)
        assert is_proven(rules, "GET /", "X-Role: user")
        assert not is_proven(rules, "GET /", "X-Role: admin")
        assert not is_proven(rules, "GET /", "X-Role: user", "X-Role: admin")
        assert not is_proven(rules, host="Host: a.internal")

    def test_a_condition_that_is_not_understood_is_taken_to_hold(self) -> None:
        rules = r"[{}, {deny: true, path: '/a\b.*', method: POST}]"
        assert is_proven(rules, "GET /a")
        assert not is_proven(rules, "POST /x")

    def test_a_port_and_a_list_of_values_escape_no_deny_rule(self) -> None:
        rules = "[{}, {deny: true, headers: ['X-Role: admin']}, {deny: true, host: 'vault'}]"
        assert is_proven(rules, "GET /", "X-Role: user", host="Host: orders:80")
        assert not is_proven(rules, "GET /", host="Host: vault:80")
        assert not is_proven(rules, "GET /", "X-Role: user, admin")
        assert not is_proven(rules, "GET /", "X-Role: admin ,user")

    def test_deny_rules_in_audit_mode_count(self) -> None:
        assert not is_proven("[{}, {deny: true, mode: audit, pathPrefix: /a}]", "GET /a")

    def test_deny_rules_beside_an_open_entry(self) -> None:
        opened = policy("endpointSelector: {}\ningress: [{fromEntities: [all]}]", "open")
        both = table(http_policy("[{path: /a, deny: true}, {path: /c}]"), opened)
        assert [run(both, head(f"GET /{name}")) is not None for name in "abc"] == [False, True, True]

    def test_default_allow(self) -> None:
        default = table(http_policy("[{deny: true, path: /a}]", extra="enableDefaultDeny: {ingress: false}"))
        assert [run(default, head(f"GET /{name}")) is not None for name in "ab"] == [False, True]


class TestWhatIsMoreThanAllowed:
    def test_a_call_that_would_be_recorded_as_would_deny_is_for_the_proxy(self) -> None:
        rules = "[{path: /a}, {path: /b, mode: audit}]"
        assert is_proven(rules, "GET /a")
        assert not is_proven(rules, "GET /b")
        audit = table(http_policy("[{path: '/[ab]'}]"), http_policy("[{path: '/[bc]'}]", "q", extra="mode: audit"))
        # The audit policy would allow the union.
        assert [run(audit, head(f"GET /{name}")) is not None for name in "abc"] == [True, True, False]

    def test_an_audit_policy_that_would_refuse_the_connection(self) -> None:
        refusing = policy("endpointSelector: {matchLabels: {app: web}}\nmode: audit\negress: []", "none")
        assert reason(http_policy("[{}]"), refusing) == "connection-not-allowed"

    def test_a_rule_that_changes_headers_or_takes_notes(self) -> None:
        for mismatch in ("ADD", "REPLACE", "DELETE", "LOG"):
            action = f"headerMatches: [{{name: X-A, value: '1', mismatch: {mismatch}}}]"
            rules = f"[{{}}, {{path: /a, {action}}}]"
            assert is_proven(rules, "GET /b")
            assert not is_proven(rules, "GET /a")
            assert not is_proven(rules, "GET /a", "X-A: 1")
            assert reason(http_policy(f"[{{{action}}}]")) == "header-actions"

    def test_header_matches_that_change_nothing_are_conditions(self) -> None:
        rules = "[{headerMatches: [{name: X-A, value: '1'}, {name: X-B}]}]"
        assert is_proven(rules, "GET /", "X-A: 1", "X-B: 2")
        assert not is_proven(rules, "GET /", "X-A: 2", "X-B: 2")
        assert not is_proven(rules, "GET /", "X-A: 1")

    def test_secrets(self) -> None:
        secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: token}\nstringData: {value: s3cret}\n"
        rules = "[{headerMatches: [{name: X-A, secret: {name: token}}]}]"
        assert reason(http_policy(rules), secret) == "secret"


class TestPairs:
    def test_what_is_not_for_the_proxy_has_no_table(self) -> None:
        assert reason(http_policy("[{}]"), subject="batch") == "not-redirected"

    def test_a_workload_may_keep_out(self) -> None:
        documents = workload("orders"), workload("web", extra=", acceleration: false"), http_policy("[{}]")
        policies = PolicySet(bundle(*documents), 1)
        assert prove(pair(policies)) == NotProvable("acceleration-off")

    def test_other_protocols(self) -> None:
        grpc = http_policy("[{}]").replace("http: [{}]", "grpc: [{}]")
        assert reason(grpc) == "protocol"

    def test_nothing_is_allowed(self) -> None:
        assert reason(http_policy("[]")) == "nothing-to-prove"
        assert reason(http_policy("[{}, {deny: true}]")) == "nothing-to-prove"

    @pytest.mark.parametrize(
        ("rule", "why"),
        [
            (r"{path: '/a\b.*'}", "unsupported-pattern"),
            ("{query: [{name: a}]}", "query"),
            ("{headers: ['Connection: close']}", "framing-header"),
            ("{headers: [Transfer-Encoding]}", "framing-header"),
            ("{path: '/.*a.{14}'}", "too-many-states"),
            ("{path: '/(a|b|c){1000}(d|e|f){1000}(a|b|c){1000}'}", "too-many-states"),
        ],
    )
    def test_the_reason_is_told(self, rule: str, why: str) -> None:
        assert reason(http_policy(f"[{rule}]")) == why

    def test_too_many_rules_are_given_up_at_once(self) -> None:
        assert reason(http_policy("[" + ", ".join(f"{{path: /{n}}}" for n in range(1001)) + "]")) == "too-many-rules"

    def test_too_many_bytes_that_mean_something_different(self) -> None:
        twice = "|".join(2 * character for character in string.ascii_letters + string.digits)
        assert reason(http_policy(f"[{{path: '/({twice})'}}]")) == "too-many-classes"
        assert is_proven(f"[{{path: '/({twice.lower()})'}}]", "GET /zz")

    def test_rules_with_many_headers_go_first_when_a_table_is_too_large(self) -> None:
        many = ", ".join(f"X-{n}" for n in range(8))
        found = table(http_policy(f"[{{path: /a, headers: [{many}]}}, {{path: /b, headers: [X-0]}}, {{path: /c}}]"))
        assert [why for _, _, why in found.left_out] == ["too-many-states"]
        assert run(found, head("GET /a", *(f"X-{n}: 1" for n in range(8)))) is None
        assert run(found, head("GET /b", "X-0: 1")) is not None
        assert run(found, head("GET /c")) is not None

    def test_the_format_is_the_kernels(self) -> None:
        found = table(http_policy("[{method: GET}]"))
        assert len(found.classes) == 256
        assert max(found.classes) < heads.CLASSES == 64
        assert len(found.rows) == found.states * 128
        assert found.rows[:128] == bytes(128)
        assert 0 < found.start < found.states <= heads.MAX_STATES
        cells = memoryview(found.rows).cast("H")
        assert all(cell & 8191 < found.states for cell in cells)
        assert {cell >> 13 for cell in cells} <= {0, heads.DIGIT, heads.NO_REPLY_BODY, heads.ACCEPT}

    def test_equal_policies_have_equal_tables(self) -> None:
        assert table(http_policy("[{path: /a}, {path: /b}]")) == table(http_policy("[{path: '/[ab]'}]"))


@pytest.mark.parametrize(
    ("file", "from_", "to", "port", "start"),
    [
        ("bench/policy.yaml", "bench-client", "bench-server", 18090, "GET /orders/7"),
        ("bench/policy.yaml", "bench-client", "bench-server", 18091, "POST /upload"),
        ("policies/examples/http-orders.yaml", "web", "orders", 8080, "GET /orders"),
        ("policies/examples/http-orders.yaml", "batch", "orders", 8080, "GET /orders/export"),
        ("policies/examples/deny-rule.yaml", "intranet", "wiki", 80, "GET /page?x=1"),
        ("policies/examples/audit-mode.yaml", "checkout", "payments", 8443, "POST /payments/7/capture"),
    ],
)
def test_the_examples_are_provable(file: str, from_: str, to: str, port: int, start: str) -> None:
    path = Path(__file__).parents[3] / file
    policies = PolicySet(load([Source(file, path.read_text())]), 1)
    asked: Pair = policies.pair(policies.endpoint(from_), policies.endpoint(to), port)
    assert asked.action is Action.REDIRECT
    found = prove(asked)
    assert isinstance(found, HeadTable)
    assert run(found, head(start)) is not None
    assert run(found, head("DELETE /")) is None


def test_a_proof_leaves_nothing_for_the_garbage_collector() -> None:
    """Every reload proves anew, and the agent's collector hardly ever looks for circles."""
    policies = policy_set(http_policy('[{method: GET, path: "/a(/[0-9]+)?", host: orders, headers: ["X-A: 1"]}]'))
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(3):
            assert isinstance(prove(pair(policies)), HeadTable)
        assert len(gc.get_objects()) - before < 100
    finally:
        gc.enable()
