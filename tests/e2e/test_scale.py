"""Many connections at once, and many that do nothing: all are answered, and an idle one costs little memory."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import FOLDER
from tests.harness import Sluice, Workload, eventually, free_port, http_policy

MakeSluice = Callable[..., Sluice]

AT_ONCE = 1000
IDLE = 10_000 if os.environ.get("SLUICE_SOAK") == "1" else 2000
# What an idle connection may cost the agent (bytes), with both of its sockets connected and one call behind it.
PER_CONNECTION = 64 * 1024
CROWD = [sys.executable, str(FOLDER / "crowd.py")]


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """The clients and the server, which inherit our limit, need a descriptor for a connection. Of the agent's, which needs two,
    a single workload gets something more than half."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4 * max(AT_ONCE, IDLE) + 1000
    hard = max(before[1], needed)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pytest.skip(f"needs {needed} descriptors in a process, and the hard limit is {before[1]}")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def crowded(web: Workload, orders: Workload, sluice: MakeSluice) -> tuple[Sluice, Workload, int]:
    port = free_port()
    server = orders.start(*CROWD, "serve", "127.0.0.1", str(port), stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    server.stdout.close()
    policy = http_policy(orders, web, port, '[{method: GET, path: "/ok"}]')
    return sluice(web.document() + orders.document() + policy), web, port


def crowd(web: Workload, port: int, count: int) -> "tuple[subprocess.Popen[bytes], dict[str, int]]":
    """A crowd that has made its calls and holds its connections, and what came of the calls."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = web.start(*CROWD, "call", "127.0.0.1", str(port), str(count), **pipes)
    assert process.stdout is not None
    outcomes: dict[str, int] = json.loads(process.stdout.readline())
    return process, outcomes


def resident(pid: int) -> int:
    """Memory of a process in RAM (bytes)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_thousand_connections_at_once_are_all_answered(crowded: tuple[Sluice, Workload, int]) -> None:
    agent, web, port = crowded
    process, outcomes = crowd(web, port, AT_ONCE)
    assert outcomes == {"200": AT_ONCE}
    process.communicate()
    assert len({record["id"] for record in agent.wait_records(AT_ONCE)}) == AT_ONCE
    eventually(lambda: agent.get("/connections")["total"] == 0, "all connections are gone")


@pytest.mark.timeout(600)
def test_an_idle_connection_costs_little_memory(crowded: tuple[Sluice, Workload, int]) -> None:
    agent, web, port = crowded
    assert agent.process is not None
    agent.get("/connections")  # what the admin listener needs is not counted
    before = resident(agent.process.pid)
    process, outcomes = crowd(web, port, IDLE)
    assert outcomes == {"200": IDLE}
    assert agent.get("/connections")["total"] == IDLE
    each = (resident(agent.process.pid) - before) / IDLE
    print(f"{IDLE} idle connections: {each / 1024:.1f} KiB each; idle agent: {before / 1024:.0f} KiB")
    assert each < PER_CONNECTION
    process.communicate()
    eventually(lambda: agent.get("/connections")["total"] == 0, "all connections are gone")
