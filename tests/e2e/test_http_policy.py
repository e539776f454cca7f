"""What each kind of rule does to real calls: who is answered what, what the server sees, and what the record says."""

from collections.abc import Iterator

import pytest

from tests.corpus_loader import TargetCase, target_cases
from tests.e2e.stage import Line, Stage, staged
from tests.requirements import require_bpf

RULES = {
    "edited": "[{headerMatches: [{name: x-added, value: new, mismatch: ADD}, {name: x-swapped, value: good, mismatch: REPLACE},"
    " {name: x-dropped, value: only-this, mismatch: DELETE}, {name: x-noted, value: known, mismatch: LOG}]}]",
    "audited": 'audit [{name: reading, path: "/reports/.*"}]',
    "recorded": 'wide [{path: "/reports/.*"}]',
    "denying": '[{name: all, method: "GET|POST"}, {name: no-admin, deny: true, pathPrefix: /admin}]',
    "hosts": '[{host: "api[.]example"}]',
    "headers": '[{headers: ["x-team: core", "x-trace"]}]',
    "queries": "[{query: [{name: page}]}]",
    "paths": '[{path: "/.*"}]',
    "prefixes": "[{pathPrefix: /a}]",
    # Behind the rules of the entry stands one more of its fields.
    "slashes": "[{pathTemplate: '/projects/{id}'}, {pathPrefix: /admin, deny: true}]}\n      normalise: {encodedSlash: keep",
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    yield from staged(tmp_path_factory.mktemp("policy"), RULES)


def ask(stage: Stage, server: str, target: str, *fields: str, host: str = "a") -> tuple[int, bytes, dict[str, object]]:
    """Status, what the server saw, and the record."""
    lines = "".join(f"{field}\r\n" for field in (f"host: {host}", *fields))
    with stage.client(server) as client:
        status, _ = client.send(f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")).reply()
    return status, bytes(stage.seen[server]), stage.records(1)[0]


def test_header_edits_reach_the_server_and_nothing_else_changes(stage: Stage) -> None:
    status, seen, record = ask(stage, "edited", "/", "X-Swapped: bad", "x-dropped: other", "x-noted: odd", "Kept:  as it is")
    assert status == 200
    lines = seen.split(b"\r\n")
    assert lines[:2] == [b"GET / HTTP/1.1", b"host: a"]
    assert b"Kept:  as it is" in lines
    fields = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in lines[1:] if line}
    assert fields == {b"host": b"a", b"kept": b"as it is", b"x-added": b"new", b"x-swapped": b"good", b"x-noted": b"odd"}
    assert record["verdict"] == "ALLOWED"
    assert "x-noted" in str(record["notes"])


def test_what_needs_no_edit_passes_as_it_is(stage: Stage) -> None:
    fields = ("x-added: new", "x-swapped: good", "x-dropped: only-this", "x-noted: known")
    _, seen, _ = ask(stage, "edited", "/", *fields)
    assert seen == f"GET / HTTP/1.1\r\nhost: a\r\n{''.join(field + chr(13) + chr(10) for field in fields)}\r\n".encode()


def test_pipelined_requests_are_each_edited(stage: Stage) -> None:
    with stage.client("edited") as client:
        client.send(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
        first, second = client.reply(), client.reply()
    assert b"x-added: new" in first[1]
    assert b"x-added: new" in second[1]
    assert bytes(stage.seen["edited"]).endswith(b"\r\n\r\nbody")
    stage.records(2)


def test_in_audit_mode_the_call_passes_and_the_record_says_what_would_be_denied(stage: Stage) -> None:
    status, seen, record = ask(stage, "audited", "/secrets")
    assert (status, record["verdict"]) == (200, "WOULD_DENY")
    assert seen.startswith(b"GET /secrets ")
    assert ask(stage, "audited", "/reports/1")[2]["verdict"] == "ALLOWED"


def test_beside_a_wider_rule_every_call_passes_and_is_recorded(stage: Stage) -> None:
    """Cilium's idiom for seeing calls without denying any."""
    for target in ("/reports/1", "/secrets", "/a%2Fb"):
        status, seen, record = ask(stage, "recorded", target)
        assert (status, record["verdict"], record["reason"]) == (200, "ALLOWED", "connection-allowed")
        assert seen.startswith(f"GET {target} ".encode())


def test_beside_a_wider_rule_what_is_no_http_passes_too(stage: Stage) -> None:
    def echo(connection: Line) -> None:
        connection.send(connection.exactly(5))

    with stage.client("recorded", echo) as client:
        assert client.send(b"\x00\x01\x02\x03\x04").exactly(5) == b"\x00\x01\x02\x03\x04"
    (record,) = stage.records(1)
    assert (record["protocol"], record["verdict"]) == ("tcp", "ALLOWED")


def test_a_deny_rule_wins_and_is_named(stage: Stage) -> None:
    status, seen, record = ask(stage, "denying", "/admin/users")
    assert (status, seen) == (403, b"")
    assert (record["verdict"], record["rule"], record["reason"]) == ("DENIED", "no-admin", "deny-rule")
    assert ask(stage, "denying", "/other")[0] == 200


@pytest.mark.parametrize(
    ("server", "target", "fields", "host", "allowed"),
    [
        ("hosts", "/", (), "api.example", True),
        ("hosts", "/", (), "API.example.", True),
        ("hosts", "/", (), "api.example:81", False),
        ("hosts", "/", (), "other.example", False),
        ("headers", "/", ("X-Team: core", "X-Trace: 1"), "a", True),
        ("headers", "/", ("x-team: core",), "a", False),
        ("headers", "/", ("x-team: corex", "x-trace: 1"), "a", False),
        ("headers", "/", ("x-team: core", "x-team: other", "x-trace: 1"), "a", False),
        ("queries", "/?page=2", (), "a", True),
        ("queries", "/?pages=2", (), "a", False),
        ("queries", "/", (), "a", False),
    ],
)
def test_host_header_and_query_rules(
    stage: Stage, server: str, target: str, fields: tuple[str, ...], host: str, allowed: bool
) -> None:
    status, seen, record = ask(stage, server, target, *fields, host=host)
    assert (status, bool(seen), record["verdict"]) == ((200, True, "ALLOWED") if allowed else (403, False, "DENIED"))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.target) for case in target_cases()])
def test_a_path_without_a_certain_meaning_is_a_bad_request_and_every_other_passes_unchanged(
    stage: Stage, case: TargetCase
) -> None:
    status, seen, record = ask(stage, "paths", case.target)
    fault = case.fault or case.query_fault
    if fault is None:
        assert status == 200
        assert seen.startswith(f"GET {case.target} HTTP/1.1\r\n".encode("latin-1"))
        assert record["path"] == case.path
    else:
        assert (status, seen) == (400, b"")
        assert (record["verdict"], record["reason"]) == ("DENIED", fault)


def test_what_is_wrong_with_a_query_does_not_concern_rules_about_the_path_alone(stage: Stage) -> None:
    for query in ("100%", "word=%u6d4b", "a\\b", "caf\xc3\xa9"):
        status, seen, record = ask(stage, "prefixes", f"/a?{query}")
        assert (status, record["verdict"]) == (200, "ALLOWED")
        assert seen.startswith(f"GET /a?{query} HTTP/1.1\r\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("/projects/group%2Fname", 200, "rule-matched"),
        ("/projects/group/name", 403, "no-rule-matched"),
        ("/projects/group%2F..%2Fname", 400, "encoded-slash"),
        ("/projects//name", 400, "empty-segment"),
        ("/admin%2Fusers", 403, "deny-rule"),
    ],
)
def test_a_port_that_says_what_an_encoded_slash_is(stage: Stage, target: str, status: int, reason: str) -> None:
    got, seen, record = ask(stage, "slashes", target)
    assert (got, record["reason"]) == (status, reason)
    assert seen.startswith(f"GET {target} ".encode()) if status == 200 else not seen


def test_a_field_that_connection_names_passes_where_no_rule_looks_at_it(stage: Stage) -> None:
    status, _, _ = ask(stage, "prefixes", "/a", "Connection: x-team", "x-team: core")
    assert status == 200
    status, seen, record = ask(stage, "headers", "/", "Connection: x-team", "x-team: core", "x-trace: 1")
    assert (status, seen, record["reason"]) == (403, b"", "connection-nominates-field")
