"""Lines that are filled in are the lines that their records would have had."""

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.audit.forms import Form
from proxy.audit.record import MAX_PATH_CHARS, AuditRecord, Party, encode_lines

SOAK = os.environ.get("SLUICE_SOAK") == "1"
MARKS = [
    '{"time":"0001-01-01T00:00:00Z","id":"-"',
    '"status":-1,"bytesRequest":-1,"bytesReply":-1,"durationMs":-1.0',
    '"',
    "\\",
    '\\"',
    "\udc80",
    "\x7f\x85\n",
    "caf\xe9\U0001f600",
    "x" * (MAX_PATH_CHARS + 1),
]
hostile = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=20),
    st.lists(st.sampled_from(MARKS), max_size=3).map("".join),
)
optional = st.none() | hostile
moments = st.integers(10**15, 4 * 10**15) | st.integers(10**9, 4 * 10**9).map(lambda second: second * 10**6)  # microseconds


def moment(at: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)


@settings(max_examples=5000 if SOAK else 300, deadline=None)
@given(
    facts=st.fixed_dictionaries(
        {"node": hostile, "verdict": hostile},
        optional={
            **dict.fromkeys(("destination", "host", "policy", "rule", "reason", "method", "via", "limit"), optional),
            "headers": st.none() | st.dictionaries(hostile, hostile, max_size=2),
            "notes": st.lists(hostile, max_size=2).map(tuple),
            "subject": st.none() | st.builds(Party, workload=optional, labels=st.dictionaries(hostile, hostile, max_size=2)),
            "generation": st.none() | st.integers(0, 1 << 32),
        },
    ),
    at=moments,
    status=st.integers(100, 999),
    sizes=st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 63)),
    took=st.integers(0, 10**12),
)
@example({"node": "n", "verdict": "v"}, 17 * 10**14, 200, (0, 0), 0)
@example({"node": "n", "verdict": "v"}, 17 * 10**14 + 999_999, 200, (0, 0), 1_000_000)
def test_a_line_is_that_of_its_record(facts: dict[str, Any], at: int, status: int, sizes: tuple[int, int], took: int) -> None:
    common = AuditRecord(time=datetime.now(UTC), id="c.1", source="[::1]:1", **facts)
    record = AuditRecord(
        time=moment(at),
        id="c.2",
        source="127.0.0.1:2",
        status=status,
        bytes_request=sizes[0],
        bytes_reply=sizes[1],
        duration_ms=took / 1000,
        **facts,
    )
    lines = Form(common).of(None).of("c", "127.0.0.1:2")
    assert lines.line(at, 2, status, *sizes, took).encode("ascii") == encode_lines([record])


@settings(max_examples=2000 if SOAK else 200, deadline=None)
@given(
    facts=st.fixed_dictionaries(
        {"node": hostile, "verdict": hostile},
        optional={
            **dict.fromkeys(("host", "policy", "rule", "reason", "method", "via"), optional),
            "subject": st.builds(
                Party, labels=st.dictionaries(hostile | st.sampled_from(["path", "source"]), hostile | st.just("-"), max_size=2)
            ),
        },
    ),
    path=st.text(st.characters(max_codepoint=127), max_size=MAX_PATH_CHARS) | st.sampled_from(["-", '"path":"-"', '"', "\\"]),
)
def test_a_line_of_another_path_is_that_of_its_record(facts: dict[str, Any], path: str) -> None:
    fixed = {"time": moment(17 * 10**14), "id": "c.2", "status": 200, "bytes_request": 1, "bytes_reply": 2, "duration_ms": 0.0}
    form = Form(AuditRecord(source="-", path="-", **facts, **fixed))
    line = form.of(path).of("c", "127.0.0.1:1").line(17 * 10**14, 2, 200, 1, 2, 0)
    assert line.encode("ascii") == encode_lines([AuditRecord(source="127.0.0.1:1", path=path, **facts, **fixed)])


@pytest.mark.parametrize(
    ("at", "shown"), [(17 * 10**14, "2023-11-14T22:13:20Z"), (17 * 10**14 + 500_000, "2023-11-14T22:13:20.500000Z")]
)
def test_a_whole_second_has_no_fraction_and_every_other_time_six_digits(at: int, shown: str) -> None:
    common = AuditRecord(time=moment(at), id="c.0", source="s", node="n", verdict="v")
    assert f'"time":"{shown}"' in Form(common).of(None).of("c", "s").line(at, 0, 200, 0, 0, 0)
    assert f'"time":"{shown}"'.encode() in encode_lines([common])


def test_lines_of_calls_that_alternate_have_each_its_own_outcome() -> None:
    lines = Form(AuditRecord(time=moment(0), id="c.0", source="s", node="n", verdict="v")).of(None).of("c", "s")
    outcomes = [(200, 40, 2), (404, 40, 2), (200, 41, 2), (200, 40, 3), (200, 40, 2)]
    told = [json.loads(lines.line(0, number, *outcome, number)) for number, outcome in enumerate(outcomes)]
    assert [(line["status"], line["bytesRequest"], line["bytesReply"]) for line in told] == outcomes
    assert [line["id"] for line in told] == [f"c.{number}" for number in range(5)]
