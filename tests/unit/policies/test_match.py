"""What an HTTP or gRPC rule matches."""

import pytest

from policies.match import MAX_MEMBERS, PatternTable, UndecidedError

from .words import decide, get, grpc, http_policy, pair, policy_set


def allows(rule: str, **call: object) -> bool:
    return decide(f"[{rule}]", get(**call)).allowed  # type: ignore[arg-type]


def denies(rule: str, **call: object) -> bool:
    return not decide(f"[{{}}, {{deny: true, {rule}}}]", get(**call)).allowed  # type: ignore[arg-type]


class TestPath:
    @pytest.mark.parametrize(
        ("pattern", "path", "matches"),
        [
            ("/foo", "/foo", True),
            ("/foo", "/foo?x=1", False),  # the query is part of it
            ("/foo", "/foo/", False),
            ("/foo", "/FOO", False),
            ("/foo|/bar", "/foox", False),  # full match of either branch
            ("/foo|/bar", "/x/bar", False),
            ("/foo|/bar", "/bar", True),
            ("/orders(/[0-9]+)?", "/orders/12", True),
            ("/orders(/[0-9]+)?", "/orders/12/x", False),
            ("^/foo$", "/foo", True),
            ("/a.c", "/abc", True),
            (r"/a\\.c", "/abc", False),
            ("(?i)/foo", "/FOO", True),
        ],
    )
    def test_path_is_a_full_match_of_the_target(self, pattern: str, path: str, matches: bool) -> None:
        assert allows(f'{{path: "{pattern}"}}', path=path) is matches

    @pytest.mark.parametrize(
        ("prefix", "path", "matches"),
        [
            ("/api", "/api", True),
            ("/api", "/api/x", True),
            ("/api", "/api?x", True),
            ("/api", "/apis", False),
            ("/api/", "/api/x", True),
            ("/", "/anything", True),
            ("/a.c", "/abc", False),
        ],
    )
    def test_path_prefix_is_of_whole_segments_without_the_query(self, prefix: str, path: str, matches: bool) -> None:
        assert allows(f"{{pathPrefix: {prefix}}}", path=path) is matches

    @pytest.mark.parametrize(
        ("path", "matches"),
        [
            ("/users/7/orders", True),
            ("/users/7/orders?page=2", True),
            ("/users//orders", False),
            ("/users/7/8/orders", False),
            ("/users/7/orders/", False),
        ],
    )
    def test_path_template_variables_are_one_segment(self, path: str, matches: bool) -> None:
        assert allows("{pathTemplate: '/users/{id}/orders'}", path=path) is matches

    def test_a_rule_with_a_path_does_not_match_a_call_without(self) -> None:
        assert not decide("[{path: '.*'}]", get(path=None)).allowed  # type: ignore[arg-type]


class TestMethodAndHost:
    def test_get_does_not_allow_head(self) -> None:
        assert not allows("{method: GET}", method="HEAD")
        assert allows("{method: GET|HEAD}", method="HEAD")

    def test_the_port_is_part_of_the_host(self) -> None:
        assert allows("{host: orders}", host="orders")
        assert not allows("{host: orders}", host="orders:8080")
        assert allows("{host: 'orders(:[0-9]+)?'}", host="orders:8080")

    def test_fields_are_anded_and_rules_are_ored(self) -> None:
        rules = "[{method: GET, path: /a}, {method: POST, path: /b}]"
        verdicts = [decide(rules, get(path, method)).allowed for method in ("GET", "POST") for path in ("/a", "/b")]
        assert verdicts == [True, False, False, True]

    def test_the_empty_rule_matches_everything(self) -> None:
        assert allows("{}", path="/x", method="BREW")


class TestHeaders:
    """CVE-2026-26308 (only the first value was compared) is the class that these belong to."""

    def test_a_line_is_an_exact_value_or_only_presence(self) -> None:
        assert allows("{headers: ['X-A: 1']}", headers=(("x-a", "1"),))
        assert not allows("{headers: ['X-A: 1']}", headers=(("x-a", "11"),))
        assert allows("{headers: ['X-A']}", headers=(("x-a", "anything"),))
        assert not allows("{headers: ['X-A']}")

    def test_several_lines_are_compared_as_one_list(self) -> None:
        lines = (("x-a", "1"), ("x-a", "2"))
        assert not allows("{headers: ['X-A: 1']}", headers=lines)
        assert not allows("{headers: ['X-A: 2']}", headers=lines)
        assert allows("{headers: ['X-A: 1,2']}", headers=lines)

    @pytest.mark.parametrize("wanted", ["regex: 'admin.*'", "prefix: admin", "value: admin"])
    def test_a_rule_is_never_satisfied_by_one_value_of_many(self, wanted: str) -> None:
        rule = f"{{headers: [{{name: X-Role, {wanted}}}]}}"
        assert allows(rule, headers=(("x-role", "admin"),))
        assert not allows(rule, headers=(("x-role", "admin"), ("x-role", "guest")))
        assert not allows(rule, headers=(("x-role", "guest"), ("x-role", "admin")))

    @pytest.mark.parametrize("wanted", ["regex: 'evil.*'", "prefix: evil", "value: evil"])
    def test_a_deny_rule_is_satisfied_by_any_value(self, wanted: str) -> None:
        rule = f"headers: [{{name: X-Role, {wanted}}}]"
        assert denies(rule, headers=(("x-role", "good"), ("x-role", "evil")))
        assert denies(rule, headers=(("x-role", "good,\tevil , better"),))
        assert denies(rule, headers=(("x-role", "good," * (MAX_MEMBERS + 1)),))
        assert not denies(rule, headers=(("x-role", "good"),))

    def test_obs_text_neither_opens_nor_breaks_a_pattern(self) -> None:
        """RFC 9110 section 5.5. A regex engine that gives up on bytes that are not UTF-8 must not let them pass."""
        odd = (("x-a", "caf\xe9\xff"),)
        assert denies("headers: [{name: X-A, regex: 'caf.*'}]", headers=odd)
        assert allows(r"{headers: [{name: X-A, regex: 'caf\xe9\xff'}]}", headers=odd)
        assert not allows("{headers: [{name: X-A, regex: '[a-z]+'}]}", headers=odd)

    def test_a_header_of_another_name_is_not_it(self) -> None:
        assert not allows("{headers: ['X-A: 1']}", headers=(("x-ab", "1"),))


class TestQuery:
    @pytest.mark.parametrize(
        ("target", "matches"),
        [
            ("/a?page=1", True),
            ("/a?x=2&page=1", True),
            ("/a?p%61ge=%31", True),
            ("/a?page=1&page=2", False),
            ("/a?page=12", False),
            ("/a?Page=1", False),
            ("/a?x=1;page=1", False),  # whether ";" separates depends on the server
            ("/a", False),
        ],
    )
    def test_an_allow_rule_needs_every_reading(self, target: str, matches: bool) -> None:
        assert allows("{query: [{name: page, value: '1'}]}", path=target) is matches

    @pytest.mark.parametrize("target", ["/a?debug", "/a?x=1&debug=", "/a?x=1;debug=1", "/a?d%65bug=1", "/a?debug=1&debug=2"])
    def test_a_deny_rule_needs_one_reading(self, target: str) -> None:
        assert denies("query: [{name: debug}]", path=target)

    def test_a_plus_is_itself_and_a_space(self) -> None:
        assert not allows("{query: [{name: q, value: 'a b'}]}", path="/?q=a+b")
        assert allows("{query: [{name: q, value: 'a b'}]}", path="/?q=a%20b")
        assert denies("query: [{name: q, value: 'a b'}]", path="/?q=a+b")
        assert denies("query: [{name: q, value: 'a+b'}]", path="/?q=a+b")


class TestDenyRules:
    @pytest.mark.parametrize("host", ["admin", "admin:80", "admin:8080"])
    def test_no_port_in_the_host_escapes(self, host: str) -> None:
        assert denies("host: admin", host=host)
        assert denies("host: '[a-z]+'", host=host)

    def test_a_denied_host_with_a_port_is_that_port_only(self) -> None:
        assert denies("host: 'admin:8080'", host="admin:8080")
        assert not denies("host: 'admin:8080'", host="admin")
        assert not denies("host: '::1'", host="[::1]:80")

    @pytest.mark.parametrize("path", ["/admin", "/admin?x=1", "/admin;v=1", "/admin;v=1?x"])
    def test_a_path_cannot_be_dressed_up_to_escape(self, path: str) -> None:
        assert denies("path: /admin", path=path)
        assert denies("pathPrefix: /admin", path=path)
        assert denies("pathTemplate: '/{any}'", path=path)

    @pytest.mark.parametrize("path", ["/a:admin", "/a%3Aadmin", "/a%3Aadmin;v=1", "/a%3Aadmin%3Bv=1", "/a%3Aadmin?x"])
    def test_no_spelling_of_a_reserved_character_escapes(self, path: str) -> None:
        """RFC 3986 section 2.2 keeps "%3A" apart from ":"; a server may not."""
        assert denies("path: '/a:admin'", path=path)

    def test_the_rule_that_denies_is_named(self) -> None:
        decision = decide("[{}, {deny: true, name: no-admin, pathPrefix: /admin}]", get("/admin/x"))
        assert (decision.policy, decision.rule, decision.reason) == ("p", "no-admin", "deny-rule")

    def test_deny_wins_over_the_allow_rule_of_another_policy(self) -> None:
        policies = policy_set(http_policy("[{}]", "open"), http_policy("[{deny: true, path: /x}]", "closed"))
        assert pair(policies).decide(get("/x")).policy == "closed"
        assert pair(policies).decide(get("/y")).policy == "open"

    def test_a_newline_does_not_escape_a_dot(self) -> None:
        assert denies("path: '/admin.*'", path="/admin\n")


class TestGrpc:
    RULES = "[{service: pkg.Svc, method: Get}, {service: pkg.Open}, {method: Ping}, {service: a.B, metadata: ['x-a: 1']}]"

    @pytest.mark.parametrize(
        ("path", "allowed"),
        [
            ("/pkg.Svc/Get", True),
            ("/pkg.Svc/Put", False),
            ("/pkgxSvc/Get", False),
            ("/pkg.Open/Anything", True),
            ("/any.Thing/Ping", True),
            ("/pkg.Open/a/b", False),
            ("/a.B/C", False),
        ],
    )
    def test_service_and_method_are_exact(self, path: str, allowed: bool) -> None:
        one = pair(policy_set(http_policy(self.RULES).replace("http:", "grpc:")))
        assert one.decide(grpc(path)).allowed is allowed

    def test_metadata_are_headers(self) -> None:
        one = pair(policy_set(http_policy(self.RULES).replace("http:", "grpc:")))
        assert one.decide(grpc("/a.B/C", ("x-a", "1"))).allowed


SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {value: s3cret}
"""


class TestHeaderMatches:
    def test_without_mismatch_the_rule_does_not_match(self) -> None:
        rule = "{headerMatches: [{name: X-A, value: '1'}]}"
        assert allows(rule, headers=(("x-a", "1"),))
        assert not allows(rule, headers=(("x-a", "2"),))
        assert not allows(rule)

    def test_without_value_it_is_presence(self) -> None:
        assert allows("{headerMatches: [{name: X-A}]}", headers=(("x-a", "2"),))
        assert not allows("{headerMatches: [{name: X-A}]}")

    def test_log_allows_and_notes(self) -> None:
        decision = decide("[{headerMatches: [{name: X-A, value: '1', mismatch: LOG}]}]", get())
        assert (decision.allowed, decision.notes, decision.edits) == (True, ("header-mismatch:x-a",), ())

    @pytest.mark.parametrize(
        ("mismatch", "edits"),
        [("ADD", [("add", "x-a", "1")]), ("REPLACE", [("replace", "x-a", "1")]), ("DELETE", [("delete", "x-a", None)])],
    )
    def test_changes_are_made_on_mismatch_only(self, mismatch: str, edits: list[tuple[str, str, str | None]]) -> None:
        rules = f"[{{headerMatches: [{{name: X-A, value: '1', mismatch: {mismatch}}}]}}]"
        changed = decide(rules, get(headers=(("x-a", "2"),)))
        assert [(edit.action, edit.name, edit.value) for edit in changed.edits] == edits
        assert decide(rules, get(headers=(("x-a", "1"),))).edits == ()

    def test_one_value_of_many_is_a_mismatch(self) -> None:
        rules = "[{headerMatches: [{name: X-A, value: '1', mismatch: REPLACE}]}]"
        assert decide(rules, get(headers=(("x-a", "1"), ("x-a", "2")))).edits

    def test_every_matching_rule_runs_its_actions(self) -> None:
        rules = (
            "[{name: first, method: GET}, {path: /a, headerMatches: [{name: X-A, value: '1', mismatch: ADD}]}, "
            "{path: /b, headerMatches: [{name: X-B, value: '1', mismatch: ADD}]}]"
        )
        decision = decide(rules, get("/a"))
        assert decision.rule == "first"
        assert [edit.name for edit in decision.edits] == ["x-a"]

    def test_a_secret_is_the_value(self) -> None:
        rules = "[{headerMatches: [{name: X-Token, secret: {name: token}}]}]"
        assert decide(rules, get(headers=(("x-token", "s3cret"),)), SECRET).allowed
        assert decide(rules, get(headers=(("x-token", "other"),)), SECRET).reason == "no-rule-matched"

    def test_a_missing_secret_denies(self) -> None:
        rules = "[{headerMatches: [{name: X-Token, mismatch: ADD, secret: {name: token}}]}]"
        decision = decide(rules, get())
        assert (decision.allowed, decision.reason) == (False, "secret-missing")

    def test_a_missing_secret_with_a_value_uses_the_value(self) -> None:
        rules = "[{headerMatches: [{name: X-Token, value: fallback, secret: {name: token}}]}]"
        assert decide(rules, get(headers=(("x-token", "fallback"),))).allowed


class TestPatternTable:
    def test_the_first_of_equal_patterns_gives_the_id(self) -> None:
        table = PatternTable(dot_nl=False)
        assert [table.add("/a", 1), table.add("/a", 2), table.add("/b.*", 3)] == [1, 1, 3]
        table.compile()
        assert (table.matching("/a"), table.matching("/bc"), table.matching("/c")) == ([1], [3], [])

    def test_an_answer_without_the_pattern_that_matches_everything_is_no_answer(self) -> None:
        """This is what RE2 answers when its automaton runs out of memory in the middle of a text."""

        class Exhausted:
            def Match(self, _: bytes) -> None:
                return None

        table = PatternTable(dot_nl=False)
        table.add("/b.*", 3)
        table.compile()
        table._set = Exhausted()
        with pytest.raises(UndecidedError):
            table.matching("/bc")
