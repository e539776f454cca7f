"""`python -m bench`: run the comparison, print the tables, write bench/results/*.json."""

import os
import shutil
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from bench import machine, report
from bench.contenders import CONTENDERS, version
from bench.layouts import LAYOUTS
from bench.processes import BenchError
from bench.run import Plan, Result, execute
from bench.scenarios import SCENARIOS

RESULTS = Path(__file__).parent / "results"
CONTENDER_NAMES = [contender.name for contender in CONTENDERS]
LAYOUT_NAMES = [layout.name for layout in LAYOUTS]
SCENARIO_NAMES = [scenario.name for scenario in SCENARIOS]
TOOLS = ("nginx", "wrk", "curl", "taskset")  # without these there is nothing to measure or to measure with
BUSY_WARNING = 10.0  # percent of all CPUs used by others before the start

# (rounds, seconds of one run of wrk, MiB of a body, seconds for the whole run)
DEFAULT = (5, 2, 1024, 25 * 60)
QUICK = (2, 1, 256, 3 * 60)


def _names(known: list[str]) -> object:
    def check(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
        names = value.split(",")
        if unknown := [name for name in names if name not in known]:
            raise click.BadParameter(f"{', '.join(unknown)}; known: {', '.join(known)}")
        return [name for name in known if name in names]

    return check


@click.command()
@click.option("--only", default=",".join(CONTENDER_NAMES), callback=_names(CONTENDER_NAMES), help="Contenders, by comma.")
@click.option("--layouts", default=",".join(LAYOUT_NAMES), callback=_names(LAYOUT_NAMES), help="CPU layouts, by comma.")
@click.option(
    "--scenarios", default=",".join(SCENARIO_NAMES), callback=_names(SCENARIO_NAMES), help="What is measured, by comma."
)
@click.option("--rounds", type=click.IntRange(1), help=f"Default {DEFAULT[0]}.")
@click.option("--seconds", type=click.IntRange(1), help=f"Length of one run of wrk. Default {DEFAULT[1]}.")
@click.option("--body-mib", type=click.IntRange(1), help=f"Size of a body. Default {DEFAULT[2]}.")
@click.option("--limit", type=click.IntRange(1), help=f"Seconds for the whole run. Default {DEFAULT[3]}.")
@click.option("--quick", is_flag=True, help="A first look in three minutes: too few rounds to quote.")
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
    """Compare nginx directly, through Sluice, through Envoy and through haproxy, on this machine, over loopback."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise click.ClickException(f"please install {', '.join(missing)}")
    preset = QUICK if quick else DEFAULT
    result = Result()
    plan = Plan(
        contenders=[contender for contender in CONTENDERS if contender.name in only],
        layouts=[layout for layout in LAYOUTS if layout.name in layouts and layout.cpus <= os.sched_getaffinity(0)],
        scenarios=[scenario for scenario in SCENARIOS if scenario.name in scenarios],
        rounds=rounds or preset[0],
        seconds=seconds or preset[1],
        body_mib=body_mib or preset[2],
        limit=limit or preset[3],
    )
    if left_out := set(layouts) - {layout.name for layout in plan.layouts}:
        result.problems.append(f"no such CPUs here: layout {', '.join(sorted(left_out))} left out")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)

    started = datetime.now(UTC)
    facts = machine.facts()
    if float(str(facts["busy_before_percent"])) > BUSY_WARNING:
        click.echo(f"!! others use {facts['busy_before_percent']} % of the CPUs: expect a wide spread", err=True)
    try:
        execute(plan, result)
    except KeyboardInterrupt:
        result.problems.append("interrupted")
    except BenchError as error:
        result.problems.append(str(error))

    about = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "versions": {c.name: version(c.version) for c in plan.contenders} | {"wrk": version(("wrk", "-v"))},
        "settings": {key: getattr(plan, key) for key in ("rounds", "seconds", "body_mib", "limit")},
    }
    report.show(Console(width=None if sys.stdout.isatty() else report.WIDTH), result, only)
    path = out or RESULTS / f"{started:%Y%m%dT%H%M%SZ}.json"
    report.write(path, result, about, only)
    click.echo(f"written: {path}")
    sys.exit(1 if result.problems else 0)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End the run: everything is stopped, what was measured is reported. A second signal must not disturb the stopping."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
