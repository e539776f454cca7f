"""What the demo prints: a line per step as it happens, one table at the end, and where to look next."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.audit.display import VERDICT_COLOURS, milliseconds
from tests.demo.outcome import Outcome
from tests.demo.story import Answer, Call, Chapter, Event

# Names and widths (characters) of the columns: 100 with the spaces between them.
COLUMNS = {"CLIENT": 8, "CALL": 24, "EXPECT": 7, "SEEN": 7, "VERDICT": 10, "POLICY / RULE": 18, "REASON": 15, "MS": 4}
# The width where no terminal says how wide it is.
WIDTH = 100

console = Console(highlight=False, width=None if Console().is_terminal else WIDTH)


def chapter(step: Chapter) -> None:
    console.print(f"\n[bold]{step.title}[/]")


def event(step: Event) -> None:
    console.print(Text(f"  ▸ {step.says}", style="cyan"))


def call(outcome: Outcome) -> None:
    console.print(Text.assemble("  ", _mark(outcome), f" {outcome.call.says}"))
    for difference in outcome.differences:
        console.print(Text(f"      {difference}", style="red"))


def table(chapters: Sequence[tuple[str, Sequence[Outcome]]]) -> None:
    """One row per call, below the title of its chapter. A policy and its rule stand on two lines."""
    console.print()
    console.print(_table([Text(name, style="bold") for name in COLUMNS]))
    for title, outcomes in chapters:
        if outcomes:
            console.print(Text(title, style="italic cyan"))
            console.print(_table(*map(_row, outcomes)))


def _table(*rows: Sequence[Text]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for name, width in COLUMNS.items():
        shown.add_column(width=width, overflow="fold", justify="right" if name == "MS" else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


def summary(outcomes: Sequence[Outcome]) -> int:
    """Whether all came as expected, in a line; the exit code."""
    failed = [outcome for outcome in outcomes if outcome.differences]
    if not failed:
        records = sum(outcome.record is not None for outcome in outcomes)
        text = f"\nAll {len(outcomes)} calls came out as the policies say, with {records} records."
        console.print(Text(f"{text}\nNo call that was denied reached a server.", style="bold green"))
        return 0
    trouble(f"{len(failed)} of {len(outcomes)} calls came out otherwise:")
    for outcome in failed:
        for difference in outcome.differences:
            console.print(Text(f"  {client(outcome.call)} {what(outcome.call)}: {difference}", style="red"))
    return 1


def trouble(text: str) -> None:
    console.print(Text(f"\ndemo: {text}", style="bold red"))


def _row(outcome: Outcome) -> list[Text]:
    expected, record = outcome.call.expected, outcome.record or {}
    verdict = str(record.get("verdict", "-"))
    rule = [str(record[name]) for name in ("policy", "rule") if name in record]
    return [
        Text(client(outcome.call)),
        Text("\n".join((what(outcome.call), *outcome.call.headers))),
        Text(str(expected.status)),
        Text(str(outcome.seen), style="red bold" if outcome.differences else ""),
        Text(verdict, style=VERDICT_COLOURS.get(verdict, "")),
        Text("\n".join(rule).replace(".toPorts[0].rules.", "…") or "-"),
        Text(str(record.get("reason", "-")) if isinstance(expected, Answer) else expected.why),
        Text(milliseconds(record.get("durationMs"))),
    ]


def client(made: Call) -> str:
    return made.who or "(host)"


def what(made: Call) -> str:
    """The method and the target; the host is told by the chapter."""
    return f"{made.method} {made.target}"


def _mark(outcome: Outcome) -> tuple[str, str]:
    return ("✗", "bold red") if outcome.differences else ("✓", "green")
