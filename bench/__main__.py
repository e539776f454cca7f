"""`python -m bench`: run the comparison, print the tables, write bench/results/*.json."""

import fnmatch
import os
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from bench import kafka_run, machine, report, run
from bench.contenders import CONTENDERS, version
from bench.layouts import LAYOUTS
from bench.processes import BenchError
from bench.run import Plan, Result
from bench.scenarios import SCENARIOS

RESULTS = Path(__file__).parent / "results"
CONTENDER_NAMES = [contender.name for contender in CONTENDERS]
LAYOUT_NAMES = [layout.name for layout in LAYOUTS]
KAFKA_NAMES = [scenario.name for scenario in kafka_run.SCENARIOS]
SCENARIO_NAMES = [scenario.name for scenario in SCENARIOS] + KAFKA_NAMES
TOOLS = ("nginx", "wrk", "curl", "taskset")  # without these there is nothing to measure or to measure with
BUSY_WARNING = 10.0  # percent of all CPUs used by others before the start

# (rounds, those of Kafka, seconds of one measurement, MiB of a body, seconds for the whole run)
DEFAULT = (5, 3, 2, 1024, 33 * 60)
QUICK = (2, 1, 1, 256, 5 * 60)


def chosen(known: list[str], text: str) -> list[str]:
    """Those of `known`, in their order, that a name or pattern of `text` means. BadParameter for one that means nothing."""
    patterns = text.split(",")
    if unknown := [pattern for pattern in patterns if not fnmatch.filter(known, pattern)]:
        raise click.BadParameter(f"{', '.join(unknown)}; known: {', '.join(known)}")
    return [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _names(known: list[str]) -> object:
    return lambda _context, _option, value: chosen(known, value)


@click.command()
@click.option("--only", default="*", callback=_names(CONTENDER_NAMES), help=f"Contenders: {', '.join(CONTENDER_NAMES)}.")
@click.option("--layouts", default="*", callback=_names(LAYOUT_NAMES), help=f"Who is on which CPU: {', '.join(LAYOUT_NAMES)}.")
@click.option("--scenarios", default="*", callback=_names(SCENARIO_NAMES), help=f"What: {', '.join(SCENARIO_NAMES)}.")
@click.option("--rounds", type=click.IntRange(1), help=f"Default {DEFAULT[0]}, and {DEFAULT[1]} of Kafka.")
@click.option("--seconds", type=click.IntRange(1), help=f"Length of one measurement, about. Default {DEFAULT[2]}.")
@click.option("--body-mib", type=click.IntRange(1), help=f"Size of a body. Default {DEFAULT[3]}.")
@click.option("--limit", type=click.IntRange(1), help=f"Seconds for the whole run. Default {DEFAULT[4]}.")
@click.option("--quick", is_flag=True, help="A first look in five minutes: too few rounds to quote.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file. Default bench/results/TIME.json.")
def main(
    only: list[str],
    layouts: list[str],
    scenarios: list[str],
    rounds: int | None,
    seconds: int | None,
    body_mib: int | None,
    limit: int | None,
    quick: bool,
    out: Path | None,
) -> None:
    """Compare ways from a client to a server, on this machine, over loopback.

    Directly, through Sluice (its relay, its kernel path), through Envoy and through haproxy; Kafka by the first three.
    Contenders, layouts and scenarios are chosen by names or patterns, with commas between them:

    \b
      python -m bench                                        everything
      python -m bench --scenarios 'kafka-*'                  Kafka alone
      python -m bench --only direct,sluice --scenarios 'keep-alive-*,kafka-java-1000' --layouts unpinned --rounds 7
    """
    preset = QUICK if quick else DEFAULT
    deadline = time.monotonic() + (limit or preset[4])
    possible = [layout for layout in LAYOUTS if layout.name in layouts and layout.cpus <= os.sched_getaffinity(0)]
    http = Plan(
        contenders=[contender for contender in CONTENDERS if contender.name in only],
        layouts=possible,
        scenarios=[scenario for scenario in SCENARIOS if scenario.name in scenarios],
        rounds=rounds or preset[0],
        seconds=seconds or preset[2],
        body_mib=body_mib or preset[3],
        deadline=deadline,
    )
    kafka = kafka_run.KafkaPlan(
        contenders=[contender for contender in kafka_run.CONTENDERS if contender.name in only],
        layouts=possible,
        scenarios=[scenario for scenario in kafka_run.SCENARIOS if scenario.name in scenarios],
        rounds=rounds or preset[1],
        seconds=seconds or preset[2],
        deadline=deadline,
    )
    if missing := [tool for tool in TOOLS if http.scenarios and not shutil.which(tool)]:
        raise click.ClickException(f"please install {', '.join(missing)}")
    result = Result()
    if left_out := set(layouts) - {layout.name for layout in possible}:
        result.problems.append(f"no such CPUs here: layout {', '.join(sorted(left_out))} left out")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)

    started = datetime.now(UTC)
    facts = machine.facts()
    if float(str(facts["busy_before_percent"])) > BUSY_WARNING:
        click.echo(f"!! others use {facts['busy_before_percent']} % of the CPUs: expect a wide spread", err=True)
    try:
        _execute(http, kafka, result)
    except KeyboardInterrupt:
        result.problems.append("interrupted")

    about = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "versions": {c.name: version(c.version) for c in http.contenders} | _versions(http, kafka),
        "settings": {key: getattr(http, key) for key in ("rounds", "seconds", "body_mib")}
        | {"kafka_rounds": kafka.rounds, "limit": limit or preset[4]},
    }
    report.show(Console(width=None if sys.stdout.isatty() else report.WIDTH), result, only)
    path = out or RESULTS / f"{started:%Y%m%dT%H%M%SZ}.json"
    report.write(path, result, about, only)
    click.echo(f"written: {path}")
    sys.exit(1 if result.problems else 0)


def _execute(http: Plan, kafka: kafka_run.KafkaPlan, result: Result) -> None:
    """Both parts, if there is something of theirs to do. What ends one does not end the other."""
    try:
        run.execute(http, result)
    except BenchError as error:
        run.complain(result, str(error))
    try:
        kafka_run.execute(kafka, result)
    except BenchError as error:
        run.complain(result, str(error))


def _versions(http: Plan, kafka: kafka_run.KafkaPlan) -> dict[str, str]:
    tools = {"wrk": version(("wrk", "-v"))} if http.scenarios else {}
    return tools | (kafka_run.versions() if kafka.scenarios else {})


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End the run: everything is stopped, what was measured is reported. A second signal must not disturb the stopping."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
