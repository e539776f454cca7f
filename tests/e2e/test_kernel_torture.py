"""Mixed torture: whatever travels by the kernel or by the relay, and however it ends, comes out byte for byte, once recorded.

Client and server are processes of their own (tests/clients/torture*.py), which check contents themselves. Here the records are
compared with what the client and the server say of each call, while policy is reloaded and the audit file rotated.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.harness import PATIENCE, Sluice, Workload, eventually, http_policy

CLIENTS = Path(__file__).parent.parent / "clients"
SOAK = os.environ.get("SLUICE_SOAK") == "1"
CONNECTIONS = 64
SEEDS = [int(seed) for seed in os.environ.get("SLUICE_TORTURE_SEEDS", "").split()]
# Of the calls that the kernel can prove, on a connection that it may have, at least so many must be carried by it. The others
# come while an automaton is made for a new generation, or right behind something that was relayed.
KERNEL_SHARE = 0.5
CLOCKS_APART = 0.01  # seconds that the two clocks may drift apart while a test runs
PSS_GROWTH_MAX = 60 * 1024  # KiB, over all processes of the agent: queued records, and 64 connections with 256 KiB each way


# In the second half of a long run, over all processes of the agent (KiB): by then its caches are full and its heap has settled.
PSS_CREEP_MAX = 12 * 1024
LONG = 100_000  # calls


class Run(NamedTuple):
    """One agent, one server and one client, for so many calls."""

    datapath: str | None  # None: that of all tests of this session
    workers: int
    calls: int
    seed: int

    def __str__(self) -> str:
        return f"{self.datapath or 'any'}-{self.workers}-{self.calls}-{self.seed}"


def runs() -> list[Run]:
    """With SLUICE_SOAK=1 more than a million calls, in runs of some 45 s: most by one worker, some by two or by the relay."""
    plan: list[tuple[str | None, int, int]] = [(None, 1, 4000), (None, 2, 4000)]
    if SOAK:
        plan = [*[("kernel", 1, 200_000)] * 5, *[("kernel", 2, 100_000)] * 2, ("relay", 1, 100_000)]
    if "SLUICE_TORTURE_CALLS" in os.environ:
        calls = int(os.environ["SLUICE_TORTURE_CALLS"])
        plan = [(None, 1, calls), (None, 2, calls)]
    first = random.SystemRandom().randrange(1 << 30)
    return [Run(*what, seed) for number, what in enumerate(plan) for seed in SEEDS or [first + number]]


RUNS = runs()


class Outcome(NamedTuple):
    """What the client says of a call."""

    letter: str
    sure: bool  # it has a whole reply
    status: int
    asked: int
    replied: int
    likely: bool
    may: bool
    since: float
    until: float


class Line(msgspec.Struct, rename="camel"):
    """What is looked at of a record."""

    id: str
    verdict: str
    via: str = ""
    path: str = ""
    status: int | str | None = None
    reason: str | None = None
    bytes_request: int = -1
    bytes_reply: int = -1
    generation: int = 0
    time: datetime = datetime.fromtimestamp(0, UTC)


def pss(agent: Sluice) -> int:
    """Memory of the agent's processes, in KiB."""
    assert agent.process is not None
    children = subprocess.run(
        ["pgrep", "-P", str(agent.process.pid), "-f", "proxy.pool"], capture_output=True, text=True
    ).stdout
    total = 0
    for pid in (str(agent.process.pid), *children.split()):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss_Anon:"))
    return total


class Unrest(threading.Thread):
    """Reloads policy and rotates the audit file until it is told to stop."""

    def __init__(
        self, agent: Sluice, documents: Callable[[bool], str], pause: float, say: Callable[[str], None] = print
    ) -> None:
        super().__init__(daemon=True)
        self._agent, self._documents, self._pause, self._say = agent, documents, pause, say
        self._over = threading.Event()
        self.files = [agent.audit]
        first = agent.generation()
        self.flips: dict[int, bool] = {first: True}  # generation -> whether the flipping path is allowed
        self.began: dict[int, float] = {first: 0.0}
        self.in_force: dict[int, float] = {first: 0.0}
        self.memory: list[tuple[float, float, int]] = []  # monotonic seconds, finished calls, KiB
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            allowed = True
            for turn in itertools.count():
                if self._over.wait(self._pause):
                    return
                self.look(say=SOAK and turn % 20 == 19)
                if turn % 4 == 3:
                    self._rotate(turn, allowed)
                    continue
                allowed = allowed if turn % 4 == 0 else not allowed  # the same rules under a new number, or others
                self._reload(allowed, turn)
        except BaseException as error:
            self.error = error

    def look(self, say: bool = False) -> None:
        calls, memory = self._agent.metric("sluice_calls_total"), pss(self._agent)
        self.memory.append((time.monotonic(), calls, memory))
        if say:
            self._say(f"  {calls:,.0f} calls, {memory / 1024:.1f} MiB")

    @property
    def growth(self) -> int:
        """The most that the agent has ever had above what it had at first, in KiB."""
        return max(memory for _, _, memory in self.memory) - self.memory[0][2]

    @property
    def creep(self) -> int:
        """By how much it has grown since half of the calls were made, in KiB."""
        half = self.memory[-1][1] / 2
        return self.memory[-1][2] - next(memory for _, calls, memory in self.memory if calls >= half)

    def _rotate(self, turn: int, allowed: bool) -> None:
        assert self._agent.process is not None
        before, since = self._agent.generation(), time.monotonic()
        self.files.append(self._agent.audit.with_suffix(f".{turn}"))
        self._agent.audit.rename(self.files[-1])
        self._agent.process.send_signal(signal.SIGHUP)
        eventually(self._agent.audit.exists, "a new audit file")
        eventually(lambda: self._agent.generation() > before, "the same signal reads the documents again")
        self._note(allowed, since)

    def _reload(self, allowed: bool, turn: int) -> None:
        since = time.monotonic()
        self._agent.reload(f"# {turn}\n{self._documents(allowed)}")
        self._note(allowed, since)

    def _note(self, allowed: bool, since: float) -> None:
        for generation in range(max(self.began) + 1, self._agent.generation() + 1):
            self.flips[generation], self.began[generation], self.in_force[generation] = allowed, since, time.monotonic()

    def stop(self) -> None:
        self._over.set()
        self.join(PATIENCE)
        if self.error:
            raise self.error


class Tally:
    """What came of all runs together."""

    def __init__(self) -> None:
        self.runs = 0
        self.seconds = 0.0
        self.ways: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.growth: list[int] = []
        self.creep: list[int] = []

    def add(self, share: Counter[str], fallbacks: Counter[str], unrest: Unrest, seconds: float) -> None:
        self.runs += 1
        self.seconds += seconds
        self.ways.update(share)
        self.fallbacks.update(fallbacks)
        self.growth.append(unrest.growth)
        self.creep.append(unrest.creep)

    def __str__(self) -> str:
        recorded = self.ways["kernel"] + self.ways["relay"]
        return (
            f"torture: {recorded:,} calls recorded in {self.runs} runs and {self.seconds:.0f} s: {dict(self.ways)}\n"
            f"  messages that the kernel left to the relay: { ({why: n for why, n in self.fallbacks.items() if n}) }\n"
            f"  growth of the agent, KiB: {self.growth}, in the second half: {self.creep}"
        )


@pytest.fixture(scope="module")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line past pytest's capture."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line, flush=True)

    return write


@pytest.fixture(scope="module")
def tally(say: Callable[[str], None]) -> Iterator[Tally]:
    tally = Tally()
    yield tally
    if SOAK:
        say(f"\n{tally}")


@pytest.mark.timeout(1200 if SOAK else 240)
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_mixed_calls_come_out_right_and_leave_one_record_each(
    run: Run,
    web: Workload,
    orders: Workload,
    sluice: Callable[..., Sluice],
    tmp_path: Path,
    say: Callable[[str], None],
    tally: Tally,
) -> None:
    began, seed = time.monotonic(), run.seed
    told, seen = tmp_path / "client.journal", tmp_path / "server.journal"
    server = orders.start(
        sys.executable, str(CLIENTS / "torture_server.py"), str(seed), str(seen), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    port = int(server.stdout.readline())

    def documents(allowed: bool) -> str:
        letters = "[af]" if allowed else "a"
        return web.document() + orders.document() + http_policy(orders, web, port, f'[{{path: "/{letters}/.*"}}]')

    agent = sluice(documents(True), "--workers", str(run.workers), "--datapath", run.datapath or Sluice.datapath)
    unrest = Unrest(agent, documents, 0.5, say)
    unrest.look()
    if SOAK:
        say(f"\n{run}")
    unrest.start()
    client = web.run(
        sys.executable,
        str(CLIENTS / "torture_client.py"),
        *map(str, (port, seed, run.calls, CONNECTIONS, told, agent.admin)),
        timeout=1000 if SOAK else 200,
    )
    unrest.stop()
    facts = f"seed {seed}: {client.stdout}{client.stderr[-3000:]}{agent.log.read_text()[-3000:]}"
    assert client.returncode == 0, facts
    eventually(lambda: agent.get("/connections")["total"] == 0, f"every connection ends; {facts}")
    eventually(lambda: agent.metric("sluice_audit_queue") == 0, "every record is written")
    unrest.look()
    fallbacks = fallen_back(agent)
    assert agent.stop() == 0
    server.stdin.close()
    assert server.stdout.readline() == b"0\n", f"connections of the server that have not ended; {facts}"
    outcomes = {name: Outcome(**fields) for name, fields in map(parse, told.read_text().splitlines())}
    lines = [msgspec.json.decode(line, type=Line) for file in set(unrest.files) for line in file.read_bytes().splitlines()]
    faults, share = compare(outcomes, Counter(line.split()[0] for line in seen.read_text().splitlines()), lines, unrest)
    assert not faults, f"{len(faults)} faults: " + "\n".join(map(str, faults[:10])) + facts
    tally.add(share, fallbacks, unrest, time.monotonic() - began)
    figures = f"{share}; growth {unrest.growth} KiB, in the second half {unrest.creep} KiB; {fallbacks}; {client.stdout}"
    (say if SOAK else print)(f"  {figures}")
    log = agent.log.read_text()
    assert "Traceback" not in log, log
    assert "fault" not in log, log
    assert unrest.growth < PSS_GROWTH_MAX, f"{figures} {unrest.memory}"
    if run.calls >= LONG:
        assert unrest.creep < PSS_CREEP_MAX, f"{figures} {unrest.memory}"
    if (run.datapath or Sluice.datapath) == "kernel":
        assert share["likely by kernel"] > KERNEL_SHARE * share["likely"], f"{figures} {facts}"
        assert share["relay"] > len(outcomes) / 10, f"{figures} {facts}"
    else:
        assert share["kernel"] == 0


def fallen_back(agent: Sluice) -> Counter[str]:
    """How many messages the kernel left to the relay, by reason."""
    lines = (line for line in agent.get("/metrics").splitlines() if line.startswith("sluice_kernel_fallbacks_total{"))
    return Counter({line.split('"')[1]: int(float(line.rsplit(" ", 1)[1])) for line in lines})


def parse(line: str) -> tuple[str, dict[str, Any]]:
    name, letter, sure, status, asked, replied, likely, may, since, until = line.split()
    return name, {
        "letter": letter, "sure": sure == "1", "status": int(status), "asked": int(asked), "replied": int(replied),
        "likely": likely == "1", "may": may == "1", "since": float(since), "until": float(until),
    }  # fmt: skip


def compare(
    outcomes: dict[str, Outcome], seen: Counter[str], lines: list[Line], unrest: Unrest
) -> tuple[list[str], Counter[str]]:
    """What is wrong with the records, and how the calls travelled."""
    faults: list[str] = []
    share: Counter[str] = Counter()
    by_name: dict[str, list[Line]] = defaultdict(list)
    by_connection: dict[str, list[tuple[int, int, Line]]] = defaultdict(list)
    for line in lines:
        name = line.path.partition("?")[0].rpartition("/")[2]
        connection, _, number = line.id.rpartition(".")
        if number.isdigit():
            by_name[name].append(line)
            by_connection[connection].append((int(number), int(name.strip("cz").partition("n")[2] or 0), line))
        elif line.verdict != "DENIED":
            faults.append(f"a refusal that is none: {line}")
        else:
            share[f"refused: {line.reason}"] += 1
    for name, times in seen.items():
        if times > 1:
            faults.append(f"the server has seen {name} {times} times")
        if outcomes[name].letter == "d":
            faults.append(f"the server has seen {name}, which is denied")
    for name, outcome in outcomes.items():
        records = by_name.pop(name, [])
        if len(records) > 1 or (not records and (outcome.sure or name in seen)):
            faults.append(f"{len(records)} records of {name}: {outcome} {records}")
            continue
        if not records:
            share["not made"] += 1
            continue
        record = records[0]
        share[record.via] += 1
        share["likely"] += outcome.likely
        share["likely by kernel"] += outcome.likely and record.via == "kernel"
        faults += (f"{why}: {name} {outcome} {record}" for why in complaints(outcome, record, name in seen, unrest))
    faults += (f"records of nobody's calls: {name} {records}" for name, records in by_name.items())
    for connection, numbered in by_connection.items():
        numbered.sort(key=lambda entry: entry[:2])
        if [entry[0] for entry in numbered] != list(range(len(numbered))):
            faults.append(f"numbers of {connection}: {[entry[:2] for entry in numbered]}")
        if [entry[1] for entry in numbered] != sorted(entry[1] for entry in numbered):
            faults.append(f"order of {connection}: {[entry[:2] for entry in numbered]}")
    return faults, share


def monotonic(wall: datetime) -> float:
    """The same moment by the clock of outcomes."""
    return wall.timestamp() - time.time() + time.monotonic()


def complaints(outcome: Outcome, record: Line, seen: bool, unrest: Unrest) -> list[str]:
    found = []
    # A call that was cut off while it waited for its verdict is denied for want of one.
    generation = record.generation
    if generation:
        allowed = outcome.letter == "a" or (outcome.letter == "f" and unrest.flips[generation])
        if (record.verdict == "ALLOWED") != allowed:
            found.append("verdict")
        replaced = unrest.in_force.get(generation + 1, float("inf"))
        # Of a call whose client has left without a reply, only the record can say when it was judged at the latest.
        until = outcome.until if outcome.sure else max(outcome.until, monotonic(record.time) + CLOCKS_APART)
        if not (unrest.began[generation] <= until and replaced >= outcome.since):
            found.append(f"generation, in force from {unrest.began[generation]} to {replaced}")
    elif outcome.sure:
        found.append("no generation")
    if seen and record.verdict != "ALLOWED":
        found.append("the server has seen it")
    if record.via == "kernel" and not outcome.may:
        found.append("via")
    if outcome.sure:
        if record.status != outcome.status:
            found.append("status")
        whole = record.bytes_request == outcome.asked
        if record.bytes_reply != outcome.replied or not (whole or record.reason == "early-reply"):
            found.append("bytes")
        if (outcome.status == 403) != (record.verdict == "DENIED"):
            found.append("verdict and status")
    return found


def test_the_comparison_finds_what_is_wrong() -> None:
    """A test that cannot fail is a defect: so of the comparison itself."""

    class Calm:
        flips, began, in_force = {1: True, 2: False}, {1: 0.0, 2: 5.0}, {1: 0.0, 2: 6.0}

    outcome = Outcome("a", True, 200, 10, 20, True, True, 1.0, 2.0)
    good = Line("c.0", "ALLOWED", "kernel", "/a/c0n1z", 200, "rule-matched", 10, 20, 1)
    wrong = [
        [], [good, good], [msgspec.structs.replace(good, status=204)], [msgspec.structs.replace(good, bytes_reply=21)],
        [msgspec.structs.replace(good, verdict="DENIED")], [msgspec.structs.replace(good, generation=2)],
        [msgspec.structs.replace(good, id="c.1")], [good, msgspec.structs.replace(good, id="c.1", path="/a/c0n2z")],
    ]  # fmt: skip

    def judge(lines: list[Line]) -> list[str]:
        return compare({"c0n1z": outcome}, Counter({"c0n1z": 1}), lines, Calm())[0]  # type: ignore[arg-type]

    assert judge([good]) == []
    assert all(judge(lines) for lines in wrong)
    left, wall = outcome._replace(sure=False), datetime.now(UTC)
    Calm.began = {1: 0.0, 2: time.monotonic() - 5}
    late = msgspec.structs.replace(good, verdict="DENIED", generation=2, time=wall)
    flipping = left._replace(letter="f")
    judged = [
        complaints(flipping, msgspec.structs.replace(late, time=wall - timedelta(seconds=ago)), False, Calm())  # type: ignore[arg-type]
        for ago in (4, 6)
    ]
    assert judged[0] == []
    assert judged[1]
    assert json.dumps(compare({"c0n1z": outcome}, Counter(), [good], Calm())[1]) != "{}"  # type: ignore[arg-type]
