"""``sluice observe`` on real files: what it shows, what it leaves out, and what a hostile record cannot do to its reader."""

import gzip
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from click.testing import CliRunner, Result

from proxy.audit import reader
from proxy.audit.writer import AuditWriter
from proxy.commands.observe import observe

from ..audit.conftest import record

PATIENCE_SECONDS = 20.0
# As from a terminal: a shell lets what it starts in the background ignore SIGINT, these tests among it.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from proxy.commands.observe import observe
observe()
"""
COMMAND = [sys.executable, "-c", PROGRAM]

WEB_TO_ORDERS = {
    "time": "2026-01-02T12:01:02.123456Z",
    "id": "c1.0",
    "node": "node-1",
    "verdict": "DENIED",
    "subject": {"workload": "web", "labels": {"app": "web"}},
    "peer": {"workload": "orders", "address": "10.0.0.7"},
    "direction": "ingress",
    "source": "10.0.0.5:40000",
    "destination": "10.0.0.7:8080",
    "protocol": "http/1.1",
    "method": "GET",
    "path": "/orders/1",
    "policy": "orders-api",
    "reason": "no-rule-matched",
    "status": 403,
    "durationMs": 1.2345,
    "via": "relay",
}
ORDERS_TO_KAFKA = {
    "time": "2026-01-02T12:01:03Z",
    "id": "c2.0",
    "node": "node-1",
    "verdict": "ALLOWED",
    "subject": {"workload": "orders"},
    "peer": {"address": "192.0.2.9"},
    "direction": "egress",
    "source": "10.0.0.7:50000",
    "destination": "192.0.2.9:9092",
    "protocol": "kafka",
    "method": "Produce",
    "resources": ["topic:payments", "topic:refunds"],
    "status": "kafka:0",
    "policy": "orders-kafka",
    "rule": "write",
    "via": "kernel",
}
HEALTH = WEB_TO_ORDERS | {"id": "c3.0", "path": "/health?probe=1", "verdict": "ALLOWED", "status": 204}
ALL = [WEB_TO_ORDERS, ORDERS_TO_KAFKA, HEALTH]


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ALL))
    return path


def run(path: Path | str, *arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(observe, ["--file", str(path), *arguments], input=stdin)


def shown(path: Path, *arguments: str) -> list[str]:
    """The ids of the records that are shown."""
    result = run(path, "-o", "json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["id"] for line in result.stdout.splitlines()]


# Forms


def test_compact_is_one_line_with_the_verdict_in_it(audit: Path) -> None:
    lines = run(audit).stdout.splitlines()
    assert " ".join(lines[0].split()) == (
        "12:01:02.123456 web → orders:8080 http/1.1 GET /orders/1 DENIED 403 orders-api/no-rule-matched 1.2ms relay"
    )
    assert " ".join(lines[1].split()) == (
        "12:01:03.000000 orders → 192.0.2.9:9092 kafka Produce payments,refunds ALLOWED kafka:0 orders-kafka/write - kernel"
    )


def test_what_is_no_topic_is_shown_as_what_it_is(audit: Path) -> None:
    """Nor does a topic whose name is made to look like something else pass for it."""
    resources = ["topic:a", "group:g", "topic:group:h", "transactionalId:t"]
    audit.write_text(json.dumps(ORDERS_TO_KAFKA | {"resources": resources}) + "\n")
    assert "Produce a,group:g,topic:group:h,transactionalId:t ALLOWED" in " ".join(run(audit).stdout.split())
    for topic, found in (("a", 1), ("group:g", 1), ("g", 0), ("h", 0), ("group:h", 1), ("transactionalId:t", 1), ("t", 0)):
        assert len(shown(audit, "--topic", topic)) == found


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"rule": "all", "reason": "rule-matched"}, "orders-api/all "),
        ({"rule": None, "reason": "no-rule-matched"}, "orders-api/no-rule-matched "),
        ({"rule": "all", "reason": "reply-trailing-bytes"}, "orders-api/all (reply-trailing-bytes)"),
    ],
)
def test_why_a_call_that_a_rule_allowed_was_ended_is_shown_beside_the_rule(
    tmp_path: Path, facts: dict[str, Any], text: str
) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text(json.dumps({"time": "2026-01-01T00:00:00Z", "policy": "orders-api", "verdict": "ALLOWED", **facts}) + "\n")
    assert text in run(path).stdout


def test_compact_columns_line_up(audit: Path) -> None:
    lines = run(audit).stdout.splitlines()
    assert len({line.index(verdict) for line, verdict in zip(lines, ["DENIED", "ALLOWED", "ALLOWED"], strict=True)}) == 1


def test_json_is_the_record_itself(audit: Path) -> None:
    assert [json.loads(line) for line in run(audit, "-o", "json").stdout.splitlines()] == ALL


def test_a_table_has_a_header_and_a_row_per_call(audit: Path) -> None:
    lines = run(audit, "-o", "table").stdout.splitlines()
    assert lines[0].split() == ["TIME", "FROM", "TO", "PROTOCOL", "REQUEST", "VERDICT", "STATUS", "RULE", "MS", "VIA"]
    assert "orders-api/no-rule-matched" in lines[1]
    assert len(lines) == 4


def test_a_table_takes_square_brackets_for_what_they_are(audit: Path) -> None:
    audit.write_text(json.dumps(WEB_TO_ORDERS | {"path": "/[red]x[/red]"}) + "\n")
    assert "/[red]x[/red]" in run(audit, "-o", "table").stdout


def test_a_record_without_facts_is_shown(audit: Path) -> None:
    audit.write_text("{}\n")
    assert run(audit).stdout.split() == ["-", "-", "→", "-", "-", "-", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize("wrong", [1, [1], {"a": [1]}, None, True, "x"])
def test_a_record_with_facts_of_wrong_types_is_shown_and_filtered(audit: Path, wrong: Any) -> None:
    audit.write_text(json.dumps(dict.fromkeys(ORDERS_TO_KAFKA | WEB_TO_ORDERS, wrong)) + "\n")
    assert len(run(audit).stdout.splitlines()) == 1
    for option in ("--from", "--to", "--path", "--topic", "--method"):
        assert run(audit, option, "nothing").exit_code == 0
    assert run(audit, "--status", "404").exit_code == 0


# Filters


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--verdict", "DENIED"], ["c1.0"]),
        (["--verdict", "denied"], ["c1.0"]),
        (["--verdict", "DENIED", "--verdict", "ALLOWED"], ["c1.0", "c2.0", "c3.0"]),
        (["--verdict", "ALLOWED", "--protocol", "kafka"], ["c2.0"]),
        (["--from", "web"], ["c1.0", "c3.0"]),
        (["--from", "orders"], ["c2.0"]),
        (["--from", "10.0.0.5"], ["c1.0", "c3.0"]),
        (["--to", "orders"], ["c1.0", "c3.0"]),
        (["--to", "orders:8080"], ["c1.0", "c3.0"]),
        (["--to", "orders:80"], []),
        (["--to", "192.0.2.9:9092"], ["c2.0"]),
        (["--method", "get"], ["c1.0", "c3.0"]),
        (["--path", "^/orders/[0-9]+$"], ["c1.0"]),
        (["--path", "ers"], ["c1.0"]),
        (["--topic", "refunds"], ["c2.0"]),
        (["--topic", "refund"], []),
        (["--topic", "topic:refunds"], ["c2.0"]),
        (["--not", "topic=refunds"], ["c1.0", "c3.0"]),
        (["--status", "403"], ["c1.0"]),
        (["--status", "2xx"], ["c3.0"]),
        (["--status", "kafka:0"], ["c2.0"]),
        (["--not", "verdict=ALLOWED"], ["c1.0"]),
        (["--not", "path=^/health"], ["c1.0", "c2.0"]),
        (["--not", "path=^/health", "--not", "protocol=kafka"], ["c1.0"]),
        (["--to", "orders", "--not", "status=4xx"], ["c3.0"]),
    ],
)
def test_filters(audit: Path, arguments: list[str], ids: list[str]) -> None:
    assert shown(audit, *arguments) == ids


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--path", "("], "bad regular expression"),
        (["--path", r"(a)\1"], "bad regular expression"),
        (["--not", "verdict"], "FIELD=VALUE"),
        (["--not", "colour=red"], "unknown filter 'colour'"),
        (["--verdict", "MAYBE"], "MAYBE"),
        (["--not", "verdict=MAYBE"], "verdict 'MAYBE' is not one of ALLOWED, DENIED"),
        (["--protocol", "http"], "protocol 'http' is not one of http/1.1, http/2, grpc, kafka, tcp"),
        (["--not", "protocol=https"], "protocol 'https' is not one of"),
        (["--status", "nothing"], "status 'nothing' is not a code"),
        (["--status", "40x"], "status '40x' is not a code"),
        (["--status", "grpc:x"], "status 'grpc:x' is not a code"),
        (["--status", "403,404"], "status '403,404' is not a code"),
        (["--not", "status="], "status '' is not a code"),
        (["--method", "GET POST"], "method 'GET POST' is not a method's name"),
        (["--method", "GET,POST"], "give the filter several times for several"),
        (["--from", ""], "from '' is not one workload or address"),
        (["--to", "orders,web"], "give the filter several times for several"),
        (["--topic", ""], "topic '' is not a name"),
        (["--path", ""], "path '' matches every path"),
        (["--last", "0"], "--last"),
        (["--follow", "-o", "table"], "--follow"),
    ],
)
def test_a_filter_that_means_nothing_is_a_usage_error(audit: Path, arguments: list[str], complaint: str) -> None:
    result = run(audit, *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stdout == ""


# --last


def test_last_counts_the_calls_that_match(audit: Path) -> None:
    assert shown(audit, "--last", "2") == ["c2.0", "c3.0"]
    assert shown(audit, "--last", "1", "--verdict", "DENIED") == ["c1.0"]
    assert shown(audit, "--last", "100") == ["c1.0", "c2.0", "c3.0"]


def test_last_reads_only_the_end_of_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        # A sparse terabyte of zeros: only a reader that starts at the end comes back.
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"".join(json.dumps(one).encode() + b"\n" for one in ALL))
    assert shown(path, "--last", "3") == ["c1.0", "c2.0", "c3.0"]


def test_lines_are_whole_wherever_the_reads_from_the_end_cut_them(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(b"x" * length + b"\n" for length in range(1, 12))
    audit.write_bytes(text)
    for chunk in range(1, 30):
        monkeypatch.setattr(reader, "BACKWARD_CHUNK", chunk)
        with audit.open("rb") as file:
            assert [line for _, line in reader.backwards(file, len(text))] == [b"x" * length for length in range(11, 0, -1)]


def test_standard_input_can_be_read(audit: Path) -> None:
    result = run("-", "-o", "json", "--last", "1", stdin=audit.read_text())
    assert json.loads(result.stdout)["id"] == "c3.0"


def compressed(path: Path) -> Path:
    target = path.with_name("rotated.gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


def test_a_compressed_file_is_read_as_it_is(audit: Path) -> None:
    assert shown(compressed(audit)) == ["c1.0", "c2.0", "c3.0"]
    assert shown(compressed(audit), "--last", "1", "--verdict", "ALLOWED") == ["c3.0"]
    assert len(run(compressed(audit), "-o", "table").stdout.splitlines()) == 4


def test_a_compressed_file_is_known_by_its_bytes_also_from_a_pipe(audit: Path) -> None:
    compressed(audit).rename(audit)
    assert shown(audit, "--last", "2") == ["c2.0", "c3.0"]
    with audit.open("rb") as file:
        assert subprocess.run([*COMMAND, "--file", "-", "-o", "json"], stdin=file, capture_output=True).stdout.count(b"\n") == 3


def test_a_compressed_file_that_is_broken_off_is_said_to_be(audit: Path) -> None:
    path = compressed(audit)
    path.write_bytes(path.read_bytes()[:-20])
    result = run(path)
    assert (result.exit_code, "is broken as a compressed file" in result.stderr) == (2, True)
    path.write_bytes(b"\x1fno gzip")
    assert run(path).exit_code == 2


def test_a_compressed_file_cannot_be_followed(audit: Path) -> None:
    result = run(compressed(audit), "--follow")
    assert (result.exit_code, "a compressed file does not grow" in result.stderr) == (2, True)


# Broken and hostile files


@pytest.mark.parametrize(
    "content",
    [b"policies: []\nmore: words\n", b"\x7fELF\0\0\n" * 5000, b'{"kind": "Event", "apiVersion": "v1"}\n', b'["a"]'],
)
@pytest.mark.parametrize("arguments", [[], ["--last", "5"], ["-o", "table"], ["--follow"]])
def test_what_is_no_audit_log_is_a_usage_error_in_one_line(audit: Path, content: bytes, arguments: list[str]) -> None:
    audit.write_bytes(content if "--follow" not in arguments else content.strip() + b"\n")
    result = run(audit, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: {audit} is no audit log: no record is among its lines\n"


def test_a_folder_is_no_audit_log(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.exit_code, "is a folder" in result.stderr) == (2, True)


def test_an_audit_log_without_calls_is_one(audit: Path) -> None:
    audit.write_bytes(b"")
    assert run(audit).exit_code == 0
    audit.write_text(json.dumps(HEALTH) + "\n")
    assert (run(audit, "--verdict", "DENIED").exit_code, run(audit, "--verdict", "DENIED").output) == (0, "")


def test_a_line_that_is_no_record_is_reported_with_its_number_and_skipped(audit: Path) -> None:
    lines = audit.read_text().splitlines()
    audit.write_text("\n".join([lines[0], "{torn", "[]", "[" * 100_000, '"\\ud800"', "", lines[1]]) + "\n")
    result = run(audit, "-o", "json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.splitlines() == [f"line {number}: not a record" for number in (2, 3, 4, 5)]
    backwards = run(audit, "--last", "5")
    assert len(backwards.stdout.splitlines()) == 2
    assert "line 2 from the end: not a record" in backwards.stderr


def test_a_line_too_long_for_a_record_is_skipped_in_both_directions(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LONGEST_LINE_BYTES", 5000)
    monkeypatch.setattr(reader, "BACKWARD_CHUNK", 700)
    first, *others = audit.read_text().splitlines(keepends=True)
    audit.write_text(first + "x" * 20_000 + "\n" + "".join(others))
    for arguments in ([], ["--last", "9"]):
        result = run(audit, "-o", "json", *arguments)
        assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["c1.0", "c2.0", "c3.0"]
        assert "too long for a record" in result.stderr


HOSTILE = "/\x1b]0;owned\x07\x1b[2K\r\n12:00:00 ALLOWED\x7f\x9b31m\x85\u2028\u202e\ud83d\ude00"


@pytest.mark.parametrize("form", ["compact", "json", "table"])
@pytest.mark.parametrize("field", ["path", "method", "status", "time", "verdict", "policy", "via", "protocol", "destination"])
def test_control_characters_never_reach_the_terminal(audit: Path, form: str, field: str) -> None:
    audit.write_text(json.dumps(WEB_TO_ORDERS | {field: HOSTILE}) + "\n")
    output = run(audit, "-o", form).stdout
    if form != "table":
        assert output.count("\n") == 1
    assert all(char.isprintable() for char in output.replace("\n", ""))


@pytest.mark.parametrize("form", ["compact", "json", "table"])
def test_nor_do_those_in_nested_facts_or_in_unescaped_json(audit: Path, form: str) -> None:
    hostile = WEB_TO_ORDERS | {"subject": {"workload": HOSTILE}, "peer": {"address": HOSTILE}, "resources": [HOSTILE]}
    del hostile["path"]
    # DEL and the C1 controls are valid unescaped in JSON: another program may write them so.
    audit.write_text(json.dumps(hostile) + '\n{"path":"\x7f\x9b2J\u202e"}\n', encoding="utf-8")
    output = run(audit, "-o", form).stdout
    assert all(char.isprintable() for char in output.replace("\n", ""))


def test_a_file_that_is_not_there_is_explained(tmp_path: Path) -> None:
    result = run(tmp_path / "absent.jsonl")
    assert result.exit_code == 1
    assert "is the agent running with --audit" in result.stderr


# As a process: pipes, terminals, live files


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text((json.dumps(WEB_TO_ORDERS) + "\n") * 20_000)
    with subprocess.Popen([*COMMAND, "--file", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("form", ["compact", "json", "table"])
def test_a_closed_or_full_standard_output_is_said_to_be(audit: Path, form: str) -> None:
    for redirect, complaint in ((">&-", "standard output is closed"), (">/dev/full", "No space left on device")):
        shell = ["sh", "-c", f'exec "$@" {redirect}', "sh", *COMMAND, "--file", str(audit), "-o", form]
        result = subprocess.run(shell, capture_output=True, text=True)
        assert (result.returncode, result.stderr.count("\n"), complaint in result.stderr) == (1, 1, True), result.stderr


def test_a_closed_standard_input_is_said_to_be() -> None:
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "--file", "-"]
    result = subprocess.run(shell, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "Error: standard input is closed\n")


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_verdicts_are_coloured_on_a_terminal_unless_asked_not_to(audit: Path, no_color: str | None, coloured: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    if no_color is not None:
        environment["NO_COLOR"] = no_color
    master, slave = pty.openpty()
    try:
        subprocess.run([*COMMAND, "--file", str(audit), "--last", "1"], stdout=slave, env=environment, check=True)
        output = os.read(master, 10_000)
    finally:
        os.close(slave)
        os.close(master)
    assert (b"\x1b[32mALLOWED" in output) == coloured


@pytest.fixture
def live(tmp_path: Path) -> Iterator["Live"]:
    watcher = Live(tmp_path / "live.jsonl")
    yield watcher
    watcher.stop()


class Live:
    """``observe --follow`` in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> None:
        command = [*COMMAND, "--file", str(self.path), "--follow", "-o", "json", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ids(self, count: int) -> list[str]:
        stdout = self._stream("stdout")
        return [json.loads(stdout.readline())["id"] for _ in range(count)]

    def stop(self) -> tuple[str, str, int]:
        assert self.process is not None
        self.process.send_signal(2)  # Ctrl-C
        out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        return out, err, self.process.returncode

    def _stream(self, name: str) -> TextIO:
        stream: TextIO = getattr(self.process, name)
        return stream


def add(path: Path, *names: str) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps({"id": name, "padding": "x" * 60}) + "\n" for name in names))


def test_follow_shows_the_last_calls_and_then_new_ones(live: Live) -> None:
    add(live.path, "a", "b", "c")
    live.start("--last", "2")
    assert live.ids(2) == ["b", "c"]
    add(live.path, "d", "e")
    assert live.ids(2) == ["d", "e"]


def test_follow_takes_a_line_when_it_is_whole(live: Live) -> None:
    add(live.path, "a")
    live.start("--last", "1")
    assert live.ids(1) == ["a"]
    with live.path.open("a") as file:
        for piece in ('{"id"', ':"b"', "}\n"):
            file.write(piece)
            file.flush()
            time.sleep(reader.POLL_SECONDS * 1.5)
    assert live.ids(1) == ["b"]


def test_follow_waits_for_a_file_that_is_not_there_yet(live: Live) -> None:
    live.start()
    assert "waiting for" in live._stream("stderr").readline()
    add(live.path, "a")
    assert live.ids(1) == ["a"]


def test_follow_goes_on_in_the_new_file_and_misses_nothing_of_the_old_one(live: Live) -> None:
    add(live.path, "a")
    live.start("--last", "1")
    assert live.ids(1) == ["a"]
    old = live.path.with_suffix(".1")
    live.path.rename(old)
    add(live.path, "c")
    assert live.ids(1) == ["c"]
    # The agent writes here until it is told of the rotation.
    add(old, "b")
    assert live.ids(1) == ["b"]
    add(live.path, "d")
    assert live.ids(1) == ["d"]


def test_follow_notices_a_file_that_was_emptied(live: Live) -> None:
    add(live.path, "a", "b")
    live.start("--last", "1")
    assert live.ids(1) == ["b"]
    live.path.write_text("")
    add(live.path, "c", "d", "e")
    assert live.ids(3) == ["c", "d", "e"]


def test_follow_does_not_start_over_when_the_writer_takes_a_batch_back(live: Live) -> None:
    add(live.path, "a", "b")
    length = live.path.stat().st_size
    add(live.path, "c")
    live.start("--last", "1")
    assert live.ids(1) == ["c"]
    os.truncate(live.path, length)
    time.sleep(reader.POLL_SECONDS * 3)
    add(live.path, "d")
    assert live.ids(1) == ["d"]


def test_follow_reads_what_the_audit_writer_writes_across_a_rotation(live: Live) -> None:
    writer = AuditWriter(live.path)
    add(live.path, "first")
    live.start("--last", "1")
    assert live.ids(1) == ["first"]
    names = [f"w.{number}" for number in range(200)]
    for number, name in enumerate(names):
        if number == 100:
            live.path.rename(live.path.with_suffix(".1"))
            writer.reopen()
        assert writer.reserve()
        assert writer.write(record(id=name))
    assert writer.close(PATIENCE_SECONDS)
    assert sorted(live.ids(200)) == sorted(names)


def test_follow_ends_quietly_with_control_c(live: Live) -> None:
    add(live.path, "a")
    live.start("--last", "1")
    assert live.ids(1) == ["a"]
    assert live.stop() == ("", "", 0)


def test_help_teaches_by_examples() -> None:
    result = CliRunner().invoke(observe, ["--help"])
    assert "sluice observe --last 20 --verdict DENIED" in result.output
