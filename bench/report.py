"""A run as a table for people and as JSON for machines."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from rich.console import Console
from rich.table import Table

from bench import kafka_run
from bench.layouts import LAYOUTS, ONE_CPU, SPLIT, UNPINNED
from bench.run import HTTP, KAFKA, Result, Visit
from bench.scenarios import (
    DOCUMENTS,
    DOWNLOAD,
    KEEP_ALIVE_1,
    KEEP_ALIVE_64,
    MEMORY,
    METRICS,
    NEW_CONNECTIONS,
    SCENARIOS,
    UPLOAD,
    Scenario,
)
from bench.summary import Figure, Key, Target, Verdict, judge, ratio, summarise

RELAY, KERNEL, FLOOR, PEER = "sluice", "kernel", "direct", "envoy"
WIDTH = 150  # columns when the output is not a terminal
KAFKA_CONTENDERS = {contender.name for contender in kafka_run.CONTENDERS}
KAFKA_TITLE = "Kafka: median (lowest to highest), x direct"


class Titled(Protocol):
    """A scenario of any part, as far as tables go."""

    @property
    def title(self) -> str: ...


def _target(
    contender: str, text: str, scenario: Scenario, metric: str, peer: str, limit: float, layouts: tuple[str, ...]
) -> Target:
    at_least = not text.startswith("latency")
    return Target(contender, text, scenario.title, metric, peer, limit, at_least, layouts)


PINNED = (ONE_CPU.name, SPLIT.name)  # "on one core" may be read in both ways
FAIR = (ONE_CPU.name, UNPINNED.name)  # in split a direct transfer has half the CPU of a proxied one: no floor to compare with
APART = (SPLIT.name,)  # client and server share a CPU, as for direct; whoever makes the records has another
FREE = (UNPINNED.name,)
TARGETS = (
    _target(RELAY, "64 keep-alive connections: at least 1.0 x Envoy", KEEP_ALIVE_64, "rate", PEER, 1.0, PINNED),
    _target(RELAY, "new connections: at least 0.7 x Envoy", NEW_CONNECTIONS, "rate", PEER, 0.7, PINNED),
    _target(RELAY, "download: at least 0.8 x direct", DOWNLOAD, "mib_s", FLOOR, 0.8, FAIR),
    _target(RELAY, "upload: at least 0.8 x direct", UPLOAD, "mib_s", FLOOR, 0.8, FAIR),
    Target(RELAY, "idle: at most 64 MiB of memory", MEMORY.title, "pss", None, 64.0, False, MEMORY.layouts),
    _target(KERNEL, "latency, 1 connection: p50 at most 0.75 x direct", KEEP_ALIVE_1, "p50", FLOOR, 0.75, APART),
    _target(KERNEL, "64 keep-alive connections: at least 1.4 x direct", KEEP_ALIVE_64, "rate", FLOOR, 1.4, APART),
    _target(KERNEL, "latency, 1 connection: p50 at most 0.95 x direct", KEEP_ALIVE_1, "p50", FLOOR, 0.95, FREE),
    _target(KERNEL, "64 keep-alive connections: at least 0.95 x direct", KEEP_ALIVE_64, "rate", FLOOR, 0.95, FREE),
    _target(KERNEL, "64 keep-alive connections: at least 6 x Envoy", KEEP_ALIVE_64, "rate", PEER, 6.0, FREE),
    _target(KERNEL, "replies of 1 MiB: at least 0.95 x direct", DOCUMENTS, "rate", FLOOR, 0.95, FAIR),
    _target(KERNEL, "download: at least 0.95 x direct", DOWNLOAD, "mib_s", FLOOR, 0.95, FAIR),
    _target(KERNEL, "upload: at least 0.95 x direct", UPLOAD, "mib_s", FLOOR, 0.95, FAIR),
)


def show(console: Console, result: Result, contenders: Sequence[str]) -> None:
    """Print the tables, the targets and, last, every problem."""
    figures = summarise(result.samples)
    kafka = [name for name in contenders if name in KAFKA_CONTENDERS]
    parts = (
        ("median (lowest to highest), x direct, x Envoy", SCENARIOS, contenders),
        (KAFKA_TITLE, kafka_run.SCENARIOS, kafka),
    )
    for layout in [layout.name for layout in LAYOUTS]:
        for what, scenarios, columns in parts:
            if any(key[:2] == (layout, scenario.title) for key in figures for scenario in scenarios):
                console.print(_table(figures, layout, what, scenarios, columns))
    if verdicts := judge(figures, _targets_of(result, contenders)):
        console.print(_targets(verdicts))
    for name in contenders:
        for part in (HTTP, KAFKA):
            if visits := [visit for visit in result.visits if (visit.contender, visit.part) == (name, part)]:
                console.print(_visits_line(f"{name}, {part}", visits), highlight=False)
    for problem in result.problems:
        console.print(f"PROBLEM: {problem}", style="bold red", markup=False, highlight=False)


def write(path: Path, result: Result, about: Mapping[str, object], contenders: Sequence[str]) -> None:
    """Write every raw sample, the figures made of them, and the facts in `about`."""
    figures = summarise(result.samples)
    document = {
        **about,
        "problems": result.problems,
        "targets": judge(figures, _targets_of(result, contenders)),
        "figures": [
            {
                **dict(zip(("layout", "scenario", "metric", "contender"), key, strict=True)),
                **dataclasses.asdict(figure),
                "x_direct": ratio(figures, key, FLOOR),
                "x_envoy": ratio(figures, key, PEER),
            }
            for key, figure in figures.items()
        ],
        "visits": result.visits,
        "samples": result.samples,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def _table(
    figures: Mapping[Key, Figure], layout: str, what: str, scenarios: Sequence[Titled], contenders: Sequence[str]
) -> Table:
    """One row for each metric of each scenario, one column for each contender."""
    table = Table(title=f"\n{layout}: {what}", title_justify="left")
    table.add_column("scenario", max_width=22)
    table.add_column("metric")
    for name in contenders:
        table.add_column(name, justify="right")
    for scenario in scenarios:
        title = scenario.title  # once, above all of its metrics
        for metric in METRICS:
            cells = [_cell(figures, (layout, scenario.title, metric, name)) for name in contenders]
            if any(cells):
                table.add_row(title, METRICS[metric].title, *cells)
                title = ""
        table.add_section()
    return table


def _cell(figures: Mapping[Key, Figure], key: Key) -> str:
    figure = figures.get(key)
    if figure is None:
        return ""
    digits = METRICS[key[2]].digits
    spread = f"({figure.low:,.{digits}f} to {figure.high:,.{digits}f})"
    if not METRICS[key[2]].compared:
        return f"{figure.median:,.{digits}f} [dim]{spread}[/dim]"
    ratios = [_times(ratio(figures, key, peer), peer) for peer in (FLOOR, PEER) if peer != key[3]]
    return f"{figure.median:,.{digits}f} [dim]{spread}[/dim]\n{'  '.join(filter(None, ratios))}"


def _times(value: float | None, peer: str) -> str:
    return "" if value is None else f"x{value:.2f} {peer}"


def _targets_of(result: Result, contenders: Sequence[str]) -> list[Target]:
    """The targets of these contenders in scenarios that somebody was measured in."""
    measured = {sample.scenario for sample in result.samples}
    return [target for target in TARGETS if target.contender in contenders and target.scenario in measured]


def _targets(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="\nTargets", title_justify="left")
    for column in ("target", "layout", "measured", ""):
        table.add_column(column)
    for verdict in verdicts:
        measured = "not measured" if verdict.measured is None else f"{verdict.measured:.2f}"
        outcome = {None: "?", True: "[green]met[/green]", False: "[yellow]not met[/yellow]"}[verdict.met]
        table.add_row(verdict.target, verdict.layout, measured, outcome)
    return table


def _visits_line(name: str, visits: Sequence[Visit]) -> str:
    """How far the figures of one contender can be trusted."""
    disturbed = f"others took at most {max(visit.others_percent for visit in visits):.0f} % of the CPUs"
    if visits[0].contender == FLOOR:
        return f"{name}: {disturbed}"
    lines, finished = sum(visit.lines for visit in visits), sum(visit.finished for visit in visits)
    whole = "one per call" if all(visit.complete for visit in visits) else "NOT ONE PER CALL"
    return f"{name}: {disturbed}; recorded / finished calls = {lines:,} / {finished:,} = {lines / finished:.4f}, {whole}"
