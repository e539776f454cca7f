"""Lines that are filled in are the lines that their records would have had."""

import os
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.audit.record import MAX_PATH_CHARS, AuditRecord, Party, Repeated, encode_lines

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
moments = st.floats(1e9, 4e9) | st.integers(10**9, 4 * 10**9).map(float)


@settings(max_examples=5000 if SOAK else 300, deadline=None)
@given(
    facts=st.fixed_dictionaries(
        {"node": hostile, "verdict": hostile},
        optional={
            **dict.fromkeys(("path", "host", "policy", "rule", "reason", "method", "via", "limit"), optional),
            "headers": st.none() | st.dictionaries(hostile, hostile, max_size=2),
            "notes": st.lists(hostile, max_size=2).map(tuple),
            "subject": st.none() | st.builds(Party, workload=optional, labels=st.dictionaries(hostile, hostile, max_size=2)),
            "generation": st.none() | st.integers(0, 1 << 32),
        },
    ),
    at=moments,
    status=st.integers(100, 999),
    sizes=st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 63)),
    seconds=st.floats(0, 1e6),
)
@example({"node": "n", "verdict": "v"}, 1.7e9, 200, (0, 0), 0.0)
@example({"node": "n", "verdict": "v"}, 1.7e9 + 0.9999998, 200, (0, 0), 1.0)
def test_a_line_is_that_of_its_record(
    facts: dict[str, Any], at: float, status: int, sizes: tuple[int, int], seconds: float
) -> None:
    common = AuditRecord(time=datetime.now(UTC), id="c.1", **facts)
    record = AuditRecord(
        time=datetime.fromtimestamp(at, UTC),
        id="c.2",
        status=status,
        bytes_request=sizes[0],
        bytes_reply=sizes[1],
        duration_ms=round(seconds * 1000, 3),
        **facts,
    )
    assert Repeated(common).line(at, "c.2", status, *sizes, seconds) == encode_lines([record])


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (1.7e9, "2023-11-14T22:13:20Z"),
        (1.7e9 + 0.5, "2023-11-14T22:13:20.500000Z"),
        (1.7e9 + 0.9999998, "2023-11-14T22:13:21Z"),
    ],
)
def test_a_whole_second_has_no_fraction_and_every_other_time_six_digits(at: float, shown: str) -> None:
    repeated = Repeated(AuditRecord(time=datetime.now(UTC), id="-", node="n", verdict="v"))
    assert f'"time":"{shown}"'.encode() in repeated.line(at, "c.0", 200, 0, 0, 0.0)
    assert f'"time":"{shown}"'.encode() in encode_lines(
        [AuditRecord(time=datetime.fromtimestamp(at, UTC), id="-", node="n", verdict="v")]
    )
