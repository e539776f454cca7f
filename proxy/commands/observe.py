"""``sluice observe``: the calls of this host, from the audit file, live or after the fact."""

import gzip
import io
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import BinaryIO, TextIO, cast

import click
import msgspec

from proxy.audit import display
from proxy.audit.query import VERDICTS, Predicate, Record, query
from proxy.audit.reader import Line, Tail, backwards, follow, forwards
from proxy.audit.record import to_ascii

DEFAULT_FILE = "/var/log/sluice/audit.jsonl"
STDIN = "-"
# A table lines up its columns only when it has all rows.
TABLE_ROWS = 1000
# The width of a table that goes into a pipe or a file.
PIPE_WIDTH = 200
# Every gzip member begins so (RFC 1952 section 2.3.1), and no line of JSON does.
GZIP_START = b"\x1f"
# So many lines without one record among them are no audit log: a torn line or two are.
MOST_STRANGERS = 100
# An object with none of these is no record, of whatever version. (``{}`` is one without facts.)
FACTS = frozenset({"id", "verdict", "subject", "peer", "protocol", "path"})


class NoAuditLogError(click.ClickException):
    """What was given to read has no records: a usage error, not an empty answer."""

    exit_code = 2


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
      Read a rotated file, compressed or not:
        sluice observe --file audit.jsonl.2.gz

    Exit: 0, also if no call matched; 1 if the file cannot be read; 2 for bad usage, or if it is no audit log.
    """
    if live and (output == "table" or path == STDIN):
        raise click.UsageError("--follow needs a file, and -o compact or json")
    if sys.stdout is None:  # the shell's >&-
        raise click.ClickException("standard output is closed")
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
        # The reader (head, less) has seen enough.
        _give_up_output()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise NoAuditLogError(f"{path} is broken as a compressed file: {error}") from None
    except OSError as error:
        _give_up_output()
        raise click.ClickException(f"{error.filename or path}: {error.strerror or error}") from None
    except KeyboardInterrupt:
        pass


def _give_up_output() -> None:
    """Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _records(path: str, live: bool, last: int | None, matches: Predicate) -> Iterator[Record]:
    file = _open(path, live)
    if live:
        yield from _live_records(path, file, last, matches)
    elif file is not None and last is not None:
        yield from _last_records(path, file, last, matches)
    elif file is not None:
        yield from filter(matches, _known(path, forwards(file)))


def _live_records(path: str, file: BinaryIO | None, last: int | None, matches: Predicate) -> Iterator[Record]:
    tail = None
    if file is None:
        click.echo(f"waiting for {path}", err=True)
    elif _is_compressed(file):
        raise click.UsageError("--follow: a compressed file does not grow")
    else:
        tail = Tail.at_end(file)
        end = tail.position
        file.seek(0)
        next(_known(path, takewhile(lambda _: file.tell() <= end, forwards(file))), None)  # raises if this is no audit log
        if last is not None:
            yield from _last_matching(path, file, end, last, matches)
    for record in map(_read, follow(path, tail)):
        if isinstance(record, str):
            click.echo(record, err=True)
        elif record is not None and matches(record):
            yield record


def _last_records(path: str, file: BinaryIO, last: int, matches: Predicate) -> Iterable[Record]:
    if not file.seekable() or isinstance(file, gzip.GzipFile):
        return deque(filter(matches, _known(path, forwards(file))), maxlen=last)
    return _last_matching(path, file, file.seek(0, os.SEEK_END), last, matches)


def _last_matching(path: str, file: BinaryIO, end: int, last: int, matches: Predicate) -> Iterable[Record]:
    return reversed(list(islice(filter(matches, _known(path, backwards(file, end))), last)))


def _open(path: str, live: bool) -> BinaryIO | None:
    if path == STDIN:
        return _decompressed(_standard_input())
    try:
        file = open(path, "rb")  # noqa: SIM115 - open as long as the program runs
        return file if live else _decompressed(file)
    except FileNotFoundError:
        if live:
            return None
        raise click.ClickException(f"there is no {path}: is the agent running with --audit {path}?") from None
    except IsADirectoryError:
        raise NoAuditLogError(f"{path} is a folder: name a file in it") from None
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}") from None


def _decompressed(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if _is_compressed(file) else file


def _standard_input() -> BinaryIO:
    if sys.stdin is None:  # the shell's <&-
        raise click.ClickException("standard input is closed")
    return sys.stdin.buffer


def _is_compressed(file: BinaryIO) -> bool:
    return isinstance(file, io.BufferedReader) and file.peek(1)[:1] == GZIP_START


def _known(path: str, lines: Iterable[Line]) -> Iterator[Record]:
    """The records of an audit file. Raises `NoAuditLogError` when there are lines and no record is among the first of them:
    complaints about every line of some other file would bury what is wrong."""
    held: list[str] | None = []  # complaints, until there is a record
    for record in map(_read, lines):
        if isinstance(record, str):
            if held is None:
                click.echo(record, err=True)
                continue
            held.append(record)
            if len(held) >= MOST_STRANGERS:
                break
        elif record is not None:
            for complaint in held or ():
                click.echo(complaint, err=True)
            held = None
            yield record
    if held:
        raise NoAuditLogError(f"{path} is no audit log: no record is among its lines")


def _read(line: Line) -> Record | str | None:
    """A line's record, or what is wrong with it; None for a blank one."""
    label, text = line
    if text is None:
        return f"{label}: too long for a record"
    if not text.strip():
        return None
    try:
        record = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        record = None
    if isinstance(record, dict) and (not record or not record.keys().isdisjoint(FACTS)):
        return record
    return f"{label}: not a record"


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
