"""What is measured on one running contender. Each scenario is a function to named values.

Units are in the table `METRICS`. Every scenario adds the calls that it made to the visit's tally.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import wrk
from bench.contenders import HERE, Running
from bench.layouts import ONE_CPU, SPLIT, UNPINNED
from bench.processes import BenchError, held_client, run_client

BODY_SECONDS = 60.0  # bound of one transfer: 1 GiB at 18 MiB/s
IDLE_CONNECTIONS = 1000
IDLE_SECONDS = 60  # bound of opening them and of looking at the proxy's memory
DOCUMENT = "document"  # the file of 1 MiB that is asked for again and again
CALLS = 100_000  # the number of calls that CPU time is stated for


@dataclass(frozen=True)
class Metric:
    """How a value is shown. `compared`: its ratio to the other contenders says something."""

    title: str
    digits: int = 0
    compared: bool = True


METRICS = {
    "rate": Metric("requests/s"),
    "p50": Metric("p50, us"),
    "p99": Metric("p99, us"),
    "cpu": Metric("proxy CPU, s per 100k calls", 2),
    "busy": Metric("proxy CPU, % of one core", compared=False),
    "mib_s": Metric("MiB/s"),
    "rss": Metric("RSS, MiB", 1),
    "pss": Metric("PSS, MiB", 1),
    "per_connection": Metric("PSS per connection, KiB", 1),
    "write": Metric("produce, MB/s", 1),
    "write_p99": Metric("produce, p99, ms", 1),
    "read": Metric("consume, MB/s", 1),
    "paced_p99": Metric("produce at 4 MB/s, p99, ms", 1),
    "write_cpu": Metric("proxy CPU, s per GB produced", 2),
    "read_cpu": Metric("proxy CPU, s per GB consumed", 2),
    "write_by_kernel": Metric("Produce by the kernel, %", 1, compared=False),
    "read_by_kernel": Metric("Fetch by the kernel, %", 1, compared=False),
}


@dataclass
class Tally:
    """What the proxy must have logged: every finished call, and perhaps those that wrk broke off at its end."""

    finished: int = 0
    broken_off: int = 0  # at most one per connection of wrk, and the empty one with which it tests the address


@dataclass(frozen=True)
class Settings:
    """What every scenario is run with."""

    seconds: int  # of one run of wrk
    body: Path  # the file that is downloaded and uploaded; nginx serves it as /body/<name>


Values = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    """What is measured, and in which layouts."""

    name: str
    title: str
    measure: Callable[[Settings, Running, Tally], Values]
    layouts: tuple[str, ...]


def memory(_settings: Settings, running: Running, tally: Tally) -> Values:
    """Memory of the fresh proxy (it has answered the two requests of the verification), and of idle connections."""
    if running.proxy is None:
        return {}
    rss, pss = running.proxy.memory()
    client = [sys.executable, str(HERE / "idle_client.py"), str(running.contender.web), "/orders/1"]
    with held_client([*running.client, *client, str(IDLE_CONNECTIONS), str(IDLE_SECONDS)]) as line:
        grown = running.proxy.memory()[1] - pss
    tally.finished += int(line)
    return {"rss": rss / 2**20, "pss": pss / 2**20, "per_connection": grown / IDLE_CONNECTIONS / 1024}


def keep_alive_1(settings: Settings, running: Running, tally: Tally) -> Values:
    return _load(settings, running, tally, connections=1)


def keep_alive_64(settings: Settings, running: Running, tally: Tally) -> Values:
    return _load(settings, running, tally, connections=64)


def varied_paths(settings: Settings, running: Running, tally: Tally) -> Values:
    return _load(settings, running, tally, connections=64, options=("-s", str(HERE / "varied.lua")))


def new_connections(settings: Settings, running: Running, tally: Tally) -> Values:
    return _load(settings, running, tally, connections=16, options=("-H", "Connection: close"))


def download(settings: Settings, running: Running, tally: Tally) -> Values:
    return _move_body("download", running.contender.web, f"/body/{settings.body.name}", settings, running, tally)


def upload(settings: Settings, running: Running, tally: Tally) -> Values:
    return _move_body("upload", running.contender.sink, "/upload", settings, running, tally)


def documents(settings: Settings, running: Running, tally: Tally) -> Values:
    return _load(settings, running, tally, connections=8, path=f"/body/{DOCUMENT}")


def _load(
    settings: Settings,
    running: Running,
    tally: Tally,
    connections: int,
    options: tuple[str, ...] = (),
    path: str = "/orders/1",
) -> Values:
    url = f"http://127.0.0.1:{running.contender.web}{path}"
    before = running.proxy.cpu_seconds() if running.proxy else 0.0
    report = wrk.run(running.client, url, connections, settings.seconds, options)
    tally.finished += report.requests
    tally.broken_off += connections + 1
    values = {"rate": report.rate, "p50": report.p50, "p99": report.p99}
    if running.proxy:
        used = running.proxy.cpu_seconds() - before
        values |= {"cpu": used / report.requests * CALLS, "busy": used / report.seconds * 100}
    return values


def _move_body(verb: str, port: int, path: str, settings: Settings, running: Running, tally: Tally) -> Values:
    client = [sys.executable, str(HERE / "body_client.py"), verb, str(port), path, str(settings.body)]
    answer = json.loads(run_client([*running.client, *client], BODY_SECONDS))
    if answer["bytes"] != settings.body.stat().st_size:
        raise BenchError(f"{verb} moved {answer['bytes']} bytes")
    tally.finished += 1
    return {"mib_s": answer["bytes"] / answer["seconds"] / 2**20}


LOAD = (ONE_CPU.name, SPLIT.name, UNPINNED.name)
# Memory does not depend on the CPU.
MEMORY = Scenario("memory", "memory, fresh and 1,000 idle connections", memory, (ONE_CPU.name,))
KEEP_ALIVE_1 = Scenario("keep-alive-1", "keep-alive, 1 connection", keep_alive_1, LOAD)
KEEP_ALIVE_64 = Scenario("keep-alive-64", "keep-alive, 64 connections", keep_alive_64, LOAD)
VARIED_PATHS = Scenario("varied-paths", "keep-alive, 64 connections, varied paths", varied_paths, LOAD)
NEW_CONNECTIONS = Scenario("new-connections", "new connection per request, 16 at a time", new_connections, LOAD)
DOCUMENTS = Scenario("documents", "keep-alive, 8 connections, replies of 1 MiB", documents, LOAD)
DOWNLOAD = Scenario("download", "body, download", download, LOAD)
UPLOAD = Scenario("upload", "body, upload", upload, LOAD)

# In the order of measuring: memory first, because load changes what an allocator keeps.
SCENARIOS = (MEMORY, KEEP_ALIVE_1, KEEP_ALIVE_64, VARIED_PATHS, NEW_CONNECTIONS, DOCUMENTS, DOWNLOAD, UPLOAD)
