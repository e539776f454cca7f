"""Records as people read them on a terminal.

What a client wrote must not steer the reader's terminal or pass for another record: every character that is not printable
(control and format characters, line separators, writing-direction marks) is shown as its escape.
"""

from typing import Any

from proxy.audit.query import Record, client_of, server_of

# Columns are padded to these widths, in characters: the usual content lines up, longer content moves the rest along.
PARTIES_WIDTH = 28
REQUEST_WIDTH = 32
VERDICT_WIDTH = 10
RULE_WIDTH = 28
# Longer texts are cut in lines for people; -o json has them whole.
LONGEST_TEXT = 200

# Reasons that say no more than that the rule has decided.
RULE_DECIDED = frozenset({"rule-matched", "deny-rule", "audit-rule", "connection-allowed", "opaque-allowed"})

VERDICT_COLOURS = {"ALLOWED": "green", "DENIED": "red", "PARTIAL": "yellow", "WOULD_DENY": "yellow"}

COLUMNS = ("TIME", "FROM", "TO", "PROTOCOL", "REQUEST", "VERDICT", "STATUS", "RULE", "MS", "VIA")


def cells(record: Record) -> list[str]:
    """The texts of ``COLUMNS``, safe to print; an absent fact is ``-``."""
    return [
        clock(record),
        party(*client_of(record), with_port=False),
        party(*server_of(record), with_port=True),
        text(record.get("protocol")),
        request(record),
        text(record.get("verdict")),
        text(record.get("status")),
        rule(record),
        milliseconds(record.get("durationMs")),
        text(record.get("via")),
    ]


def compact(record: Record) -> tuple[str, str, str]:
    """One line in three parts: before the verdict, the verdict (padded), and after it."""
    time, source, target, protocol, call, verdict, status, why, duration, via = cells(record)
    parties = f"{source} → {target}"
    took = f"{duration}ms" if duration != "-" else duration
    return (
        f"{time} {parties:<{PARTIES_WIDTH}} {protocol:<8} {call:<{REQUEST_WIDTH}} ",
        f"{verdict:<{VERDICT_WIDTH}}",
        f" {status:<4} {why:<{RULE_WIDTH}} {took} {via}",
    )


def clock(record: Record) -> str:
    """The time of day in UTC with microseconds."""
    time = text(record.get("time"))
    _, is_timestamp, clock_time = time.partition("T")
    seconds, _, fraction = clock_time.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<6}" if is_timestamp else time


def party(who: Any, endpoint: Any, *, with_port: bool) -> str:
    address, _, port = text(endpoint).rpartition(":")
    name = who.get("workload") or who.get("address") if isinstance(who, dict) else None
    shown = text(name or address or None)
    return f"{shown}:{port}" if with_port and address else shown


def request(record: Record) -> str:
    resources = record.get("resources")
    what = record.get("path") or (",".join(map(resource, resources)) if isinstance(resources, list) else None)
    return " ".join(text(part) for part in (record.get("method"), what) if part is not None) or "-"


def resource(name: Any) -> str:
    """A topic by its name alone, unless that looks like another kind of thing; anything else as it is."""
    bare = str(name).removeprefix("topic:")
    return str(name) if ":" in bare else bare


def rule(record: Record) -> str:
    """``policy/rule``, or ``policy/reason`` when no rule decided; the reason is behind the rule when it was not the rule."""
    name, reason = record.get("rule"), record.get("reason")
    parts = (record.get("policy"), name or reason)
    shown = "/".join(text(part) for part in parts if part is not None) or "-"
    return f"{shown} ({text(reason)})" if name and reason is not None and str(reason) not in RULE_DECIDED else shown


def milliseconds(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else text(value)


def text(value: Any) -> str:
    """``value`` as printable text."""
    if value is None:
        return "-"
    shown = str(value)
    if len(shown) > LONGEST_TEXT:
        shown = shown[:LONGEST_TEXT] + "…"
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
