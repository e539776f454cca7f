"""An agent is killed at every step of its start, its stop and the replacement of its guard (proxy/faults.py).

Whatever the step, its predecessor's hooks are there afterwards, or its own, or both, and refuse; and the next agent starts and
leaves nothing behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy import faults, guard
from proxy.workloads import cgroup2_mount
from tests.clients import Witness
from tests.harness import Server, Sluice, Workload, http_policy, read_reply

MakeServer = Callable[..., Server]


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def server(orders: Workload, serve: MakeServer, witness: Witness) -> Server:
    return serve(orders, witness.serve)


@pytest.fixture
def agent(web: Workload, orders: Workload, server: Server, tmp_path: Path) -> Iterator[Sluice]:
    """Not started yet."""
    agent = Sluice(tmp_path, web.document() + orders.document() + http_policy(orders, web, server.port, '[{path: "/ok"}]'))
    yield agent
    agent.stop()
    agent.end_guard()


# Becomes user nobody, who may not call, and calls ``/nobody`` all the time until its input ends.
CALLER = """
import contextlib, os, select, socket, sys
os.setgid(65534), os.setuid(65534)
while not select.select([sys.stdin], [], [], 0.001)[0]:
    with contextlib.suppress(OSError), socket.socket() as client:
        client.settimeout(1)
        client.connect(("127.0.0.1", int(sys.argv[1])))
        client.sendall(b"GET /nobody HTTP/1.1\\r\\nhost: orders\\r\\n\\r\\n")
        client.recv(100)
"""


@contextlib.contextmanager
def nobody_calls(port: int) -> Iterator[None]:
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(port)], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        caller.communicate(timeout=60)
        assert caller.returncode == 0


def status(web: Workload, port: int, path: str) -> int:
    """What the workload that may call gets; 0: its connection is refused."""
    try:
        with web.connect(port) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n".encode())
            return read_reply(client)[0]
    except ConnectionRefusedError:
        return 0


def is_killed(agent: Sluice) -> bool:
    assert agent.process is not None
    return agent.process.wait(30) == -signal.SIGKILL


def what_is_left(agent: Sluice) -> list[str]:
    """Guards, cgroups and programs of any agent."""
    found = [f"guard {left.pid}" for left in guard.guards(agent.folder / "run")]
    found += [str(path) for path in cgroup2_mount().rglob("sluice-*-*") if path.is_dir()]
    shown = subprocess.run(["bpftool", "cgroup", "show", str(cgroup2_mount())], capture_output=True, text=True, check=True)
    return found + [line for line in shown.stdout.splitlines() if "sluice_" in line]


def test_an_agent_that_is_killed_at_any_step_of_its_start_leaves_refused_what_was_refused(
    agent: Sluice, web: Workload, server: Server, witness: Witness
) -> None:
    agent.start()
    agent.kill()
    with nobody_calls(server.port):
        for step in faults.START:
            agent.launch(SLUICE_DIE_AT=step)
            assert is_killed(agent), step
            assert status(web, server.port, "/ok") == 0, step
        agent.start()
        assert (status(web, server.port, "/ok"), status(web, server.port, "/denied")) == (200, 403)
        assert len(guard.guards(agent.folder / "run")) == 1
    assert agent.stop() == 0
    assert what_is_left(agent) == []
    assert {path.partition("/")[2] for _, path in witness.seen} == {"ok"}


def test_an_agent_that_is_killed_at_any_step_of_a_clean_stop_refuses_until_the_last(
    agent: Sluice, web: Workload, server: Server, witness: Witness
) -> None:
    for step in faults.STOP:
        agent.start(SLUICE_DIE_AT=step)
        assert (status(web, server.port, "/ok"), status(web, server.port, "/denied")) == (200, 403), step
        assert agent.process is not None
        agent.process.send_signal(signal.SIGTERM)
        assert is_killed(agent), step
        # Behind the last step is what a clean stop is for.
        assert status(web, server.port, "/denied") == (200 if step == "let-go" else 0), step
    agent.start()
    assert agent.stop() == 0
    assert what_is_left(agent) == []


def test_an_agent_that_is_killed_while_it_replaces_its_guard_leaves_the_new_one(
    agent: Sluice, web: Workload, server: Server
) -> None:
    for step in ("guard-started", "guard-ready"):
        agent.start(SLUICE_DIE_AT=f"{step}:2")
        assert status(web, server.port, "/ok") == 200, step
        (first,) = guard.guards(agent.folder / "run")
        os.kill(first.pid, signal.SIGKILL)
        assert is_killed(agent), step
        assert status(web, server.port, "/denied") == 0, step
    agent.start()
    assert agent.stop() == 0
    assert what_is_left(agent) == []


def test_an_agent_that_cannot_end_an_old_guard_does_not_start_and_leaves_refused_what_was_refused(
    agent: Sluice, web: Workload, server: Server, tmp_path: Path
) -> None:
    """The last thing that can fail, with one of two old guards gone. Somebody holds the other's lock and does not say who."""
    agent.start()
    agent.kill()
    fd = guard.lock(tmp_path / "run" / "guard-9.lock")
    os.ftruncate(fd, 0)
    try:
        hurried = "from proxy import guard, cli; guard.END_PATIENCE = 0.2; cli.main()"
        command = [sys.executable, "-c", hurried, "run", "-f", str(agent.policies), "--audit", str(agent.audit)]
        done = subprocess.run([*command, "--run-dir", str(tmp_path / "run")], capture_output=True, text=True, timeout=30)
        assert (done.returncode, "does not end" in done.stderr) == (1, True), done.stderr
    finally:
        os.close(fd)
    assert status(web, server.port, "/denied") == 0
