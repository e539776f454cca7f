"""An honest client beside each attacker: all of its calls succeed, and no connect of it is refused.

The attackers run as uid nobody in a workload of their own, against a server of their own. How long the honest client had to
wait is printed; `make soak SOAK="tests/e2e/test_attackers.py tests/e2e/test_greedy_neighbours.py"` attacks for longer.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FOLDER
from tests.clients.attackers import KINDS
from tests.harness import Server, Sluice, Workload, answer_http, eventually, free_port, http_policy

SOAK = os.environ.get("SLUICE_SOAK") == "1"
SECONDS = 60.0 if SOAK else 1.5
# For the attack to begin (seconds).
HEAD_START = 0.5
# No call takes longer: with SLUICE_SOAK=1 on a machine of its own, else where anything runs beside it. What the honest client
# really met is printed.
LONGEST_MS = 5_000.0 if SOAK else 20_000.0
# Calls of which none is like another, and very many connections at once, as fast as wrk makes them.
WRK = {"fresh-heads": ["-c", "64", "-s", str(FOLDER / "fresh.lua")], "a-thousand-connections": ["-c", "1000"]}
AS_NOBODY = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]


def command(kind: str, port: int) -> list[str]:
    """What the attacker runs."""
    if kind not in WRK:
        return [sys.executable, str(FOLDER / "attackers.py"), kind, str(port)]
    return ["nice", "wrk", "-t", "1", *WRK[kind], "-d", f"{SECONDS + 600:.0f}s", f"http://127.0.0.1:{port}/"]


class Scene:
    """One agent, an honest client and its server, and an attacker with another."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.honest, self.orders, self.attacker, self.target = map(self._workload, ("honest", "orders", "attacker", "target"))
        server = Server(self.orders, answer_http)
        self._stack.callback(server.close)
        self.port, self.target_port = server.port, free_port()
        self.target.start(sys.executable, str(FOLDER / "patient_server.py"), str(self.target_port))
        eventually(lambda: f":{self.target_port:04X} " in Path("/proc/net/tcp").read_text(), "the attackers' server listens")
        workloads = (self.honest, self.orders, self.attacker, self.target)
        documents = "".join(workload.document() for workload in workloads)
        documents += http_policy(self.orders, self.honest, self.port, "[{method: GET}]")
        documents += http_policy(self.target, self.attacker, self.target_port, "[{method: GET}]")
        self.agent = self._stack.enter_context(Sluice(folder, documents))

    def _workload(self, role: str) -> Workload:
        made = Workload(role)
        self._stack.callback(made.close)
        return made

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("attackers"))
    yield made
    made.close()


@pytest.mark.parametrize("kind", [*KINDS, *WRK])
def test_an_honest_client_does_not_suffer_from(kind: str, scene: Scene) -> None:
    attack = scene.attacker.start(*AS_NOBODY, *command(kind, scene.target_port), stdout=subprocess.DEVNULL)
    try:
        time.sleep(HEAD_START)
        done = scene.honest.run(sys.executable, str(FOLDER / "honest.py"), str(scene.port), str(SECONDS), timeout=SECONDS + 120)
        assert attack.poll() is None, "the attacker gave up"
    finally:
        attack.kill()
        attack.wait()
    told = json.loads(done.stdout)
    for name, one in told.items():
        print(f"{kind}, {name} connections: {one['calls']} calls, p50, p99 and longest {one['milliseconds']} ms")
    for one in told.values():
        assert one["failures"] == {}
        assert one["milliseconds"][-1] < LONGEST_MS
