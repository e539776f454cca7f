"""What a record says, and what it can never be made to say."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.audit.record import (
    MAX_ITEMS,
    MAX_ITEMS_CHARS,
    MAX_PATH_CHARS,
    MAX_TEXT_CHARS,
    AuditRecord,
    Party,
    call_id,
    encode_lines,
    listed_headers,
    redact_query,
)
from proxy.audit.sink import LONGEST_LINE_BYTES

from .conftest import record

TEXT_FIELDS = [
    *("id", "node", "verdict", "direction", "source", "destination", "protocol", "method", "path", "host"),
    *("policy", "rule", "reason", "limit", "status", "via"),
]
# Every code point, lone surrogates included: hypothesis leaves those out unless told.
ANY_TEXT = st.text(st.characters(exclude_categories=()))


def written(one: AuditRecord) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(encode_lines([one]))
    return loaded


def test_keys_are_spelled_as_the_public_interface_says() -> None:
    line = written(
        record(
            time=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
            id=call_id("c7", 2),
            verdict="PARTIAL",
            resources=("a", "b"),
            per_resource={"a": "ALLOWED", "b": "DENIED"},
            bytes_request=0,
            bytes_reply=7,
            duration_ms=1.5,
            generation=3,
        )
    )
    assert line == {
        "time": "2026-01-02T03:04:05.678901Z",
        "id": "c7.2",
        "node": "node-1",
        "verdict": "PARTIAL",
        "subject": {"workload": "orders", "labels": {"app": "orders"}},
        "peer": {"workload": "web", "labels": {"app": "web"}, "address": "10.0.0.5"},
        "direction": "ingress",
        "source": "10.0.0.5:40000",
        "destination": "10.0.0.7:8080",
        "protocol": "http/1.1",
        "method": "GET",
        "path": "/orders/1",
        "resources": ["a", "b"],
        "perResource": {"a": "ALLOWED", "b": "DENIED"},
        "status": 200,
        "bytesRequest": 0,
        "bytesReply": 7,
        "durationMs": 1.5,
        "via": "relay",
        "generation": 3,
    }


def test_an_absent_fact_is_an_absent_key() -> None:
    line = written(AuditRecord(time=datetime.now(UTC), id="1.0", node="n", verdict="DENIED"))
    assert set(line) == {"time", "id", "node", "verdict"}


@pytest.mark.parametrize("field", ["method", "path", "host", "reason", "policy", "status"])
@pytest.mark.parametrize(
    "hostile",
    [
        '/a\n{"verdict":"ALLOWED"}\n',
        "/a\r\n",
        '/a"},{"x":"',
        "/\x00\x1b[2J\x7f",
        "/\x85\x9b31m",  # NEL ends a line and CSI starts a terminal sequence, each in one latin-1 byte
        "/\u2028\u2029",  # what JavaScript and str.splitlines take for line ends
        "/\u202egnp.exe",  # right-to-left override
        "/\U0001f600\u00e9",
    ],
)
def test_a_hostile_string_stays_inside_its_line_and_is_kept_exactly(field: str, hostile: str) -> None:
    data = encode_lines([record(0, **{field: hostile})])
    assert data.count(b"\n") == 1
    assert data.endswith(b"}\n")
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    assert json.loads(data)[field] == hostile


def test_a_lone_surrogate_becomes_its_visible_escape() -> None:
    line = written(record(path="/\udc80", resources=["\ud800"], headers={"x-id": "\udfff"}))
    assert (line["path"], line["resources"], line["headers"]) == ("/\\udc80", ["\\ud800"], {"x-id": "\\udfff"})
    assert line["truncated"] == ["path", "resources", "headers"]


@given(path=ANY_TEXT, topic=ANY_TEXT, label=ANY_TEXT)
def test_any_text_gives_exactly_one_line_of_printable_ascii(path: str, topic: str, label: str) -> None:
    one = record(path=path, resources=[topic], per_resource={topic: label}, subject=Party(labels={topic: label}))
    data = encode_lines([one])
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    assert data.endswith(b"\n")
    json.loads(data)


@pytest.mark.parametrize(("field", "limit"), [("path", MAX_PATH_CHARS), ("method", MAX_TEXT_CHARS), ("host", MAX_TEXT_CHARS)])
def test_a_string_over_its_limit_is_cut_and_the_record_says_so(field: str, limit: int) -> None:
    exact, over = (written(record(0, **{field: "x" * length})) for length in (limit, limit + 1))
    assert "truncated" not in exact
    assert over[field] == "x" * limit
    assert over["truncated"] == [field]


def test_resources_are_bounded_in_number_and_in_size_together() -> None:
    many = written(record(resources=["t"] * (MAX_ITEMS + 1)))
    assert len(many["resources"]) == MAX_ITEMS
    large = written(record(resources=["t" * 249] * 200))
    assert sum(map(len, large["resources"])) <= MAX_ITEMS_CHARS
    assert many["truncated"] == large["truncated"] == ["resources"]


def test_what_is_kept_per_resource_belongs_to_its_resource() -> None:
    verdicts = {f"topic-{n}": "DENIED" if n % 2 else "ALLOWED" for n in range(MAX_ITEMS * 2)}
    line = written(record(per_resource=verdicts))
    assert line["perResource"].items() <= verdicts.items()
    assert line["truncated"] == ["perResource"]


def test_no_record_is_longer_than_readers_take_a_line_to_be() -> None:
    wide = "\U0001f600"  # twelve bytes as an escape, the most that one character can take
    everything = {wide * 50 + str(number): wide * 12 for number in range(1000)}
    party = Party(workload=wide * 5000, address=wide * 5000, labels=everything)
    facts: dict[str, Any] = dict.fromkeys(TEXT_FIELDS, wide * 5000)
    lists: dict[str, Any] = {"resources": list(everything), "per_resource": everything, "headers": everything}
    line = encode_lines([record(0, subject=party, peer=party, **facts, **lists)])
    assert LONGEST_LINE_BYTES // 2 < len(line) < LONGEST_LINE_BYTES


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/orders/1", "/orders/1"),
        ("/a?user=bob&page=2", "/a?user=***&page=***"),
        ("/a?secret-without-name", "/a?***"),
        ("/a?x=1?y=2=3", "/a?x=***"),
        ("/a?x=1;token=abc", "/a?x=***"),
        ("/a?", "/a?"),
        ("/a?&&x=", "/a?&&x=***"),
    ],
)
def test_query_values_are_redacted_and_names_are_kept(path: str, shown: str) -> None:
    assert redact_query(path) == shown


def test_only_listed_headers_are_recorded() -> None:
    headers = [("authorization", "Bearer x"), ("x-request-id", "7"), ("cookie", "s=1"), ("x-request-id", "8")]
    assert listed_headers(headers, {"x-request-id", "x-absent"}) == {"x-request-id": "7, 8"}
    assert listed_headers(headers, frozenset()) is None
