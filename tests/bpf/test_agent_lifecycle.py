"""Agents that start, stop, die and follow one another: at no moment does a policed connection get through unjudged."""

import contextlib
import errno
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import guard
from proxy.datapath import HEARTBEAT_LIMIT
from proxy.workloads import cgroup2_mount
from tests.bpf.rig import Cgroup
from tests.harness import SLUICE, Server, Sluice, Workload, answer_http, eventually, http_policy, read_reply, unique

GET = b"GET /orders/1 HTTP/1.1\r\nhost: orders\r\n\r\n"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


class Scene:
    """A client, a server under an HTTP policy, and the documents for an agent."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.web, self.orders = Workload("web"), Workload("orders")
        stack.callback(self.web.close)
        stack.callback(self.orders.close)
        self.sources: set[tuple[str, int]] = set()  # whoever connected to the server
        self.server = Server(self.orders, self._serve)
        stack.callback(self.server.close)
        policy = http_policy(self.orders, self.web, self.server.port, '[{method: GET, path: "/orders/[0-9]+"}]')
        self.documents = self.web.document() + self.orders.document() + policy

    def _serve(self, connection: socket.socket) -> None:
        self.sources.add(connection.getpeername())
        answer_http(connection)

    def call(self) -> int:
        """One allowed call of the client; the status."""
        with self.web.connect(self.server.port) as client:
            client.sendall(GET)
            return read_reply(client)[0]

    def attempt(self) -> int:
        """errno of one connect() of the client."""
        with self.web.inside(), socket.socket() as client:
            client.settimeout(5)
            return client.connect_ex(("127.0.0.1", self.server.port))


@pytest.fixture
def scene(stack: contextlib.ExitStack) -> Scene:
    return Scene(stack)


def _held(pid: int) -> set[tuple[str, int]]:
    """What of the kernel's BPF a process holds: kinds ("link", "prog", "map") and ids."""
    held = set()
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for line in info.read_text().splitlines():
                key, _, value = line.partition(":")
                if key in ("link_id", "prog_id", "map_id"):
                    held.add((key.removesuffix("_id"), int(value)))
    return held


def _exists(kind: str, number: int) -> bool:
    return subprocess.run(["bpftool", kind, "show", "id", str(number)], capture_output=True).returncode == 0


# Connects from an address of its own all the time, until its input ends; then tells how that went.
CALLER = """
import json, select, socket, sys
outcomes = {}
while not select.select([sys.stdin], [], [], 0)[0]:
    with socket.socket() as client:
        client.settimeout(5)
        client.bind(("127.0.0.99", 0))
        outcome = client.connect_ex(("127.0.0.1", int(sys.argv[1])))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
print(json.dumps(outcomes))
"""


def test_a_killed_agent_leaves_its_hooks_with_the_guard_and_what_is_policed_is_refused(
    stack: contextlib.ExitStack, scene: Scene, tmp_path: Path
) -> None:
    agent = stack.enter_context(Sluice(tmp_path, scene.documents))
    assert scene.call() == 200
    calls = scene.server.accepted
    agent.kill()
    assert len(guard.guards(tmp_path / "run")) == 1
    deadline = time.monotonic() + HEARTBEAT_LIMIT + 0.5
    while time.monotonic() < deadline:
        assert scene.attempt() == errno.ECONNREFUSED
    assert scene.server.accepted == calls
    with socket.create_server(("127.0.0.1", 0)) as free, scene.web.connect(free.getsockname()[1]):
        pass  # what no policy concerns goes on


def test_a_new_agent_takes_over_from_the_guard_without_a_gap(stack: contextlib.ExitStack, scene: Scene, tmp_path: Path) -> None:
    """Someone who connects all the time is refused or judged; the server never sees them directly."""
    agent = stack.enter_context(Sluice(tmp_path, scene.documents))
    caller = scene.web.start(
        sys.executable, "-c", CALLER, str(scene.server.port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    time.sleep(0.3)
    agent.kill()
    (old,) = guard.guards(tmp_path / "run")
    time.sleep(0.2)
    agent.start()
    assert scene.call() == 200
    (new,) = guard.guards(tmp_path / "run")
    assert new.pid != old.pid
    told, _ = caller.communicate(timeout=30)
    outcomes = {int(outcome): count for outcome, count in json.loads(told).items()}
    assert outcomes.pop(errno.ECONNRESET, 0) <= 1  # a handshake that the kill interrupted
    assert outcomes.keys() == {0, errno.ECONNREFUSED}
    assert sum(outcomes.values()) > 100
    assert not [host for host, _ in scene.sources if host == "127.0.0.99"]


def test_a_clean_stop_leaves_nothing_behind(stack: contextlib.ExitStack, scene: Scene, tmp_path: Path) -> None:
    agent = stack.enter_context(Sluice(tmp_path, scene.documents))
    assert agent.process is not None
    pid, (guarding,) = agent.process.pid, guard.guards(tmp_path / "run")
    held = _held(pid)
    assert {"link", "prog", "map"} <= {kind for kind, _ in held}
    assert agent.stop() == 0
    eventually(lambda: not any(_exists(*each) for each in held), "links, programs and maps are gone")
    assert not Path(f"/proc/{guarding.pid}").exists()
    assert not [path for path in cgroup2_mount().rglob(f"sluice-*-{pid}") if path.is_dir()]
    client = scene.web.connect(scene.server.port)
    eventually(lambda: client.getsockname() in scene.sources, "a direct connection")
    client.close()


def test_a_second_agent_with_the_same_run_folder_is_refused_by_name(
    stack: contextlib.ExitStack, scene: Scene, tmp_path: Path
) -> None:
    agent = stack.enter_context(Sluice(tmp_path, scene.documents))
    assert agent.process is not None
    command = [SLUICE, "run", "-f", str(agent.policies), "--audit", "-", "--run-dir", str(tmp_path / "run")]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert f"another agent (process {agent.process.pid}) is running" in second.stderr
    assert scene.call() == 200


def test_a_cgroup_made_while_the_agent_runs_is_policed_and_refused_while_the_agent_cannot_look(
    stack: contextlib.ExitStack, scene: Scene, tmp_path: Path
) -> None:
    place = Cgroup(cgroup2_mount() / "sluice" / unique("place"))
    stack.callback(place.remove)
    late = f"""apiVersion: sluice.dev/v1
kind: Workload
metadata: {{name: late, labels: {{app: {scene.web.name}}}}}
spec: {{cgroups: ["/sluice/{place.path.name}/x-*"]}}
---
"""
    agent = stack.enter_context(Sluice(tmp_path, late + scene.documents))
    assert agent.process is not None

    def call(owner: Cgroup) -> int:
        with owner.inside(), socket.socket() as client:
            client.settimeout(10)
            outcome = client.connect_ex(("127.0.0.1", scene.server.port))
            if outcome:
                return outcome
            client.sendall(GET)
            return read_reply(client)[0]

    first = place.sub("x-1")
    eventually(lambda: call(first) == 200, "the new workload is known")
    agent.process.send_signal(signal.SIGSTOP)
    second, other = place.sub("x-2"), place.sub("y")
    assert call(second) == errno.EAGAIN
    assert call(other) == errno.EAGAIN
    agent.process.send_signal(signal.SIGCONT)
    eventually(lambda: call(second) == 200, "the second workload is known")
    eventually(lambda: agent.records() and agent.records()[-1]["subject"]["workload"] == "late", "its record")
    eventually(lambda: call(other) == errno.EPERM, "what is no workload is the host, whom the policy does not name")
