"""``sluice observe``: the calls of this host, from the audit file, live or after the fact."""

import io
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import BinaryIO, TextIO

import click
import msgspec

from proxy.audit import display
from proxy.audit.query import Predicate, Record, query
from proxy.audit.reader import Line, Tail, backwards, follow, forwards
from proxy.audit.record import to_ascii

DEFAULT_FILE = "/var/log/sluice/audit.jsonl"
STDIN = "-"
# A table lines up its columns only when it has all rows.
TABLE_ROWS = 1000
# The width of a table that goes into a pipe or a file.
PIPE_WIDTH = 200

VERDICTS = ("ALLOWED", "DENIED", "PARTIAL", "WOULD_DENY")


@click.command()
@click.option("--file", "path", default=DEFAULT_FILE, show_default=True, help="The audit file; - is standard input.")
@click.option("--follow", "live", is_flag=True, help="Show new calls as they come, also across rotations.")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N calls that match.")
@click.option("--verdict", multiple=True, type=click.Choice(VERDICTS, case_sensitive=False), help="What was decided.")
@click.option("--protocol", multiple=True, metavar="P", help="http/1.1, http/2, grpc, kafka or tcp.")
@click.option("--from", "from_", multiple=True, metavar="NAME", help="The caller: workload or address.")
@click.option("--to", multiple=True, metavar="NAME", help="The called: workload or address, with or without :PORT.")
@click.option("--method", multiple=True, metavar="M", help="GET, Produce, ...")
@click.option("--path", "path_regex", multiple=True, metavar="REGEX", help="RE2, anywhere in the path; anchor with ^ and $.")
@click.option("--topic", multiple=True, metavar="T", help="A topic that the call names, or group:G, transactionalId:T.")
@click.option("--status", multiple=True, metavar="S", help="403, 5xx, grpc:7, kafka:29, reset, unanswered.")
@click.option("--not", "unwanted", multiple=True, metavar="FILTER", help="Leave out, as FIELD=VALUE: verdict=ALLOWED.")
@click.option(
    "-o", "--output", type=click.Choice(["compact", "json", "table"]), default="compact", show_default=True, help="The form."
)
def observe(
    path: str,
    live: bool,
    last: int | None,
    verdict: tuple[str, ...],
    protocol: tuple[str, ...],
    from_: tuple[str, ...],
    to: tuple[str, ...],
    method: tuple[str, ...],
    path_regex: tuple[str, ...],
    topic: tuple[str, ...],
    status: tuple[str, ...],
    unwanted: tuple[str, ...],
    output: str,
) -> None:
    """Show the calls of this host, one line each. Times are UTC.

    One filter given several times means either value; different filters must all match. --not takes the same filters as
    FIELD=VALUE.

    \b
    Examples:
      What was denied lately?
        sluice observe --last 20 --verdict DENIED
      Watch one service, without its health checks:
        sluice observe --follow --to orders --not path=^/health
      Who writes to a topic?
        sluice observe --topic payments --method Produce
      What would an audit-mode policy have stopped?
        sluice observe --verdict WOULD_DENY -o table
      Count denials by caller:
        sluice observe --verdict DENIED -o json | jq -r .subject.workload | sort | uniq -c
      Read a rotated file:
        zcat audit.jsonl.2.gz | sluice observe --file -
    """
    if live and (output == "table" or path == STDIN):
        raise click.UsageError("--follow needs a file, and -o compact or json")
    wanted = {
        "verdict": verdict,
        "protocol": protocol,
        "from": from_,
        "to": to,
        "method": method,
        "path": path_regex,
        "topic": topic,
        "status": status,
    }
    try:
        matches = query(wanted, unwanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if output == "table":
        last = last or TABLE_ROWS
    try:
        _show(_records(path, live, last, matches), output, live)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        pass


def _records(path: str, live: bool, last: int | None, matches: Predicate) -> Iterator[Record]:
    file = _open(path, live)
    if live:
        yield from _live_records(path, file, last, matches)
    elif file is not None and last is not None:
        yield from _last_records(file, last, matches)
    elif file is not None:
        yield from _matching(forwards(file), matches)


def _live_records(path: str, file: BinaryIO | None, last: int | None, matches: Predicate) -> Iterator[Record]:
    tail = None
    if file is None:
        click.echo(f"waiting for {path}", err=True)
    else:
        tail = Tail.at_end(file)
        if last is not None:
            yield from _last_matching(file, tail.position, last, matches)
    yield from _matching(follow(path, tail), matches)


def _last_records(file: BinaryIO, last: int, matches: Predicate) -> Iterable[Record]:
    if not file.seekable():
        return deque(_matching(forwards(file), matches), maxlen=last)
    return _last_matching(file, file.seek(0, os.SEEK_END), last, matches)


def _last_matching(file: BinaryIO, end: int, last: int, matches: Predicate) -> Iterable[Record]:
    found = list(islice(_matching(backwards(file, end), matches), last))
    return reversed(found)


def _open(path: str, live: bool) -> BinaryIO | None:
    if path == STDIN:
        return sys.stdin.buffer
    try:
        return open(path, "rb")
    except FileNotFoundError:
        if live:
            return None
        raise click.ClickException(f"there is no {path}: is the agent running with --audit {path}?") from None
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from None


def _matching(lines: Iterable[Line], matches: Predicate) -> Iterator[Record]:
    for label, line in lines:
        if line is None:
            click.echo(f"{label}: too long for a record", err=True)
            continue
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            record = None
        if not isinstance(record, dict):
            click.echo(f"{label}: not a record", err=True)
        elif matches(record):
            yield record


def _show(records: Iterable[Record], output: str, live: bool) -> None:
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        # A terminal that knows no arrow gets its escape, not a traceback.
        out.reconfigure(errors="backslashreplace")
    if output == "table":
        _show_table(records, out)
        return
    coloured = out.isatty() and "NO_COLOR" not in os.environ
    for record in records:
        out.write(_json_line(record) if output == "json" else _compact_line(record, coloured))
        if live:
            out.flush()
    out.flush()


def _json_line(record: Record) -> str:
    # Encoded anew, because only the audit writer's own lines are sure to be ASCII.
    return to_ascii(msgspec.json.encode(record) + b"\n").decode()


def _compact_line(record: Record, coloured: bool) -> str:
    before, verdict, after = display.compact(record)
    if coloured:
        verdict = click.style(verdict, fg=display.VERDICT_COLOURS.get(verdict.strip()))
    return f"{before}{verdict}{after}\n"


def _show_table(records: Iterable[Record], out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in display.COLUMNS:
        table.add_column(column, overflow="fold")
    for record in records:
        style = display.VERDICT_COLOURS.get(str(record.get("verdict")), "")
        # Text, not str: rich would take square brackets of a path for its markup.
        table.add_row(*(Text(cell, style=style if i == 5 else "") for i, cell in enumerate(display.cells(record))))
    Console(file=out, width=None if out.isatty() else PIPE_WIDTH).print(table)
