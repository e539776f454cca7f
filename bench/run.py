"""The order of a run: rounds, layouts, contenders, scenarios; and the check that every call was logged."""

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.contenders import Contender, requests_of_verify, running
from bench.layouts import Layout
from bench.machine import Others
from bench.processes import BenchError, StartError
from bench.scenarios import DOCUMENT, Scenario, Settings, Tally
from bench.summary import Sample, rotated

SPACE_BESIDE_BODY = 3 * 2**30  # bytes: the log of one visit of a fast proxy at 15 runs of a second each, and some air
PIECE = bytes(range(256)) * 4096  # 1 MiB, not all zeros


HTTP, KAFKA = "http", "kafka"  # the parts of a run


@dataclass(frozen=True)
class Visit:
    """How one visit went: what was logged of the calls, and how much of the machine went to others meanwhile.

    One line per call is: `finished` <= `lines` <= `finished` + `broken_off`, as wrk leaves the last request of each connection.
    """

    round: int
    layout: str
    contender: str
    lines: int
    finished: int
    broken_off: int
    others_percent: float
    part: str = HTTP

    @property
    def complete(self) -> bool:
        return self.finished <= self.lines <= self.finished + self.broken_off


@dataclass
class Result:
    """Everything that a run found out."""

    samples: list[Sample] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What to do. `deadline` is of time.monotonic(): no visit begins behind it."""

    contenders: Sequence[Contender]
    layouts: Sequence[Layout]
    scenarios: Sequence[Scenario]
    rounds: int
    seconds: int
    body_mib: int
    deadline: float


def execute(plan: Plan, result: Result) -> None:
    """Fill in `result`, visit by visit. Problems are noted there; a contender that does not start is not tried again."""
    if not plan.scenarios:
        return
    lost: set[str] = set()
    with _folder(plan.body_mib) as folder:
        settings = Settings(plan.seconds, folder / "payload")
        for number, layout, contender in _order(plan):
            place = f"{contender.name}, round {number + 1}, {layout.name}"
            if contender.name in lost:
                continue
            if time.monotonic() > plan.deadline:
                complain(result, f"the time is over: stopped before {place}")
                return
            try:
                _visit(contender, number, layout, plan.scenarios, settings, folder, result)
            except StartError as error:
                lost.add(contender.name)
                complain(result, f"CANNOT RUN: {place}: {error}")
            except BenchError as error:
                complain(result, f"{place}: {error}")


def _order(plan: Plan) -> Iterator[tuple[int, Layout, Contender]]:
    """Every contender once in each layout of each round, one place later each round."""
    for number in range(plan.rounds):
        for layout in [layout for layout in plan.layouts if any(layout.name in s.layouts for s in plan.scenarios)]:
            for contender in rotated(plan.contenders, number):
                yield number, layout, contender


def _visit(
    contender: Contender,
    number: int,
    layout: Layout,
    scenarios: Sequence[Scenario],
    settings: Settings,
    folder: Path,
    result: Result,
) -> None:
    """One contender, alone on the machine: start, measure all scenarios, stop, count its log."""
    print(f"round {number + 1}  {layout.name:9} {contender.name:8}", end="", file=sys.stderr, flush=True)
    tally = Tally(finished=requests_of_verify(contender))
    others = Others()
    try:
        with running(contender, folder, layout.pins()) as up:
            for scenario in [scenario for scenario in scenarios if layout.name in scenario.layouts]:
                if values := scenario.measure(settings, up, tally):
                    result.samples.append(Sample(number, layout.name, contender.name, scenario.title, values))
                print(".", end="", file=sys.stderr, flush=True)
        place = (number, layout.name, contender.name)
        visit = Visit(*place, _lines(up.log), tally.finished, tally.broken_off, round(others.percent(), 1))
        result.visits.append(visit)
        if contender.command and not visit.complete:
            raise BenchError(f"{visit.lines} log lines for {visit.finished} to {visit.finished + visit.broken_off} calls")
    finally:
        print(file=sys.stderr)
        for log in folder.glob("*.log"):
            log.unlink()


def complain(result: Result, text: str) -> None:
    """Note a problem, and say it at once."""
    result.problems.append(text)
    print(f"!! {text}", file=sys.stderr, flush=True)


def _lines(log: Path) -> int:
    """Number of complete lines of a file that may be a gigabyte large."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(2**20), b""))


@contextlib.contextmanager
def _folder(body_mib: int) -> Iterator[Path]:
    """A folder in memory, so that no disk is measured, with the body to transfer in it."""
    needed = body_mib * 2**20 + SPACE_BESIDE_BODY
    if shutil.disk_usage("/dev/shm").free < needed:
        raise BenchError(f"/dev/shm needs {needed // 2**20} MiB of free space for the body and the logs")
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-", dir="/dev/shm"))
    try:
        folder.chmod(0o755)  # the nginx worker is another user
        with (folder / "payload").open("wb") as body:
            for _ in range(body_mib):
                body.write(PIECE)
        (folder / DOCUMENT).write_bytes(PIECE)
        yield folder
    finally:
        shutil.rmtree(folder)
