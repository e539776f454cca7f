"""What the demo prints: a line per step as it happens, one table at the end, and where to look next."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.audit.display import VERDICT_COLOURS, milliseconds
from tests.demo.outcome import Outcome, Told
from tests.demo.story import Answer, Call, Chapter, Event, Talk

# Names and widths (characters) of the columns: 100 with the spaces between them.
COLUMNS = {"CLIENT": 8, "CALL": 24, "EXPECT": 7, "SEEN": 7, "VERDICT": 10, "POLICY / RULE": 18, "REASON": 15, "MS": 4}
# The width where no terminal says how wide it is.
WIDTH = 100

console = Console(highlight=False, width=None if Console().is_terminal else WIDTH)


def chapter(step: Chapter) -> None:
    console.print(f"\n[bold]{step.title}[/]")


def event(step: Event) -> None:
    console.print(Text(f"  ▸ {step.says}", style="cyan"))


def call(outcome: Outcome | Told) -> None:
    says = outcome.call.says if isinstance(outcome, Outcome) else outcome.talk.says
    console.print(Text.assemble("  ", _mark(outcome), f" {says}"))
    for difference in outcome.differences:
        console.print(Text(f"      {difference}", style="red"))


def table(chapters: Sequence[tuple[str, Sequence[Outcome | Told]]]) -> None:
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


def summary(outcomes: Sequence[Outcome | Told]) -> int:
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
            made = outcome.call if isinstance(outcome, Outcome) else outcome.talk
            console.print(Text(f"  {client(made)} {what(made)}: {difference}", style="red"))
    return 1


def trouble(text: str) -> None:
    console.print(Text(f"\ndemo: {text}", style="bold red"))


def _row(outcome: Outcome | Told) -> list[Text]:
    record = outcome.record or {}
    verdict = str(record.get("verdict", "-"))
    rule = [str(record[name]) for name in ("policy", "rule") if name in record]
    reason = str(record.get("reason", "-"))
    if isinstance(outcome, Outcome):
        made, expected, seen = outcome.call, str(outcome.call.expected.status), str(outcome.seen)
        said = "\n".join((what(outcome.call), *outcome.call.headers))
        if not isinstance(outcome.call.expected, Answer):
            reason = outcome.call.expected.why
    else:
        made, expected, seen, said = outcome.talk, answer(outcome.talk.expected), answer(outcome.seen), what(outcome.talk)
    return [
        Text(client(made)),
        Text(said),
        Text(expected),
        Text(seen, style="red bold" if outcome.differences else ""),
        Text(verdict, style=VERDICT_COLOURS.get(verdict, "")),
        Text("\n".join(rule).replace(".toPorts[0].rules.", "…") or "-"),
        Text(reason),
        Text(milliseconds(record.get("durationMs"))),
    ]


def client(made: Call | Talk) -> str:
    return made.who or "(host)"


def what(made: Call | Talk) -> str:
    """The method and the target; the host is told by the chapter. Of Kafka: what is done, to which topics, by which group."""
    if isinstance(made, Call):
        return f"{made.method} {made.target}"
    topics = " ".join(made.step.get("records") or made.step.get("topics", ()))
    return f"{made.step['do']} {topics}" + (f"\nas {made.step['group']}" if "group" in made.step else "")


def answer(told: object) -> str:
    """What a Kafka client was told, in a word."""
    return "denied" if "Authorization" in str(told) else "ok"


def _mark(outcome: Outcome | Told) -> tuple[str, str]:
    return ("✗", "bold red") if outcome.differences else ("✓", "green")
