"""The agent dies, starts, stops and is replaced: nothing passes unjudged, nothing is left behind (Cilium CVE-2023-27595)."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy import guard
from proxy.workloads import cgroup2_mount
from tests.clients import Witness, hammering
from tests.harness import SLUICE, Server, Sluice, Workload, eventually, http_policy, read_reply

ALLOW_OK = '[{method: GET, path: "/ok(/.*)?"}]'

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]


def documents(web: Workload, orders: Workload, port: int) -> str:
    return web.document() + orders.document() + http_policy(orders, web, port, ALLOW_OK)


def call(client: socket.socket, path: str) -> int:
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n".encode())
    return read_reply(client)[0]


def refused(workload: Workload, port: int) -> bool:
    try:
        workload.connect(port).close()
    except ConnectionRefusedError:
        return True
    return False


def left_behind(agent: Sluice, pid: int) -> list[str]:
    """Cgroups, guards and processes that are still there of the agent that had this process id."""
    found = [str(path) for path in cgroup2_mount().rglob(f"sluice-*-{pid}")]
    return found + [f"guard {left.pid}" for left in guard.guards(agent.folder / "run")]


def test_kill_minus_9_under_load_lets_nothing_pass_unjudged_and_a_restart_heals(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port))
    with hammering(web, server.port, "/ok", "/denied", per_connection=50) as hammer:
        eventually(lambda: len(witness.seen) > 200, "calls")
        agent.kill()
        assert refused(web, server.port), "at once, while the last heartbeat is fresh"
        time.sleep(0.2)  # what the relay had handed to the kernel before it died
        at_death = len(witness.seen)
        time.sleep(1.0)  # past the heartbeat's limit
        assert refused(web, server.port), "and when it is stale"
        assert len(witness.seen) == at_death
        agent.start()
        eventually(lambda: len(witness.seen) > at_death + 200, "calls after the restart")
        result = hammer.stop()
    assert witness.paths("/denied") == []
    assert set(result["statuses"]) <= {"/ok 200", "/denied 403", "/ok 0", "/denied 0"}
    assert set(result["errors"]) <= {"ECONNREFUSED", "ECONNRESET", "EPIPE"}, result
    assert {record["verdict"] for record in agent.records()} == {"ALLOWED", "DENIED"}


def test_a_guard_that_is_killed_is_replaced(web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    run = agent.folder / "run"
    (first,) = guard.guards(run)
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: any(left.pid not in (0, first.pid) for left in guard.guards(run)), "another guard")
    agent.kill()
    assert refused(web, server.port)


def test_an_agent_that_cannot_start_leaves_refused_what_a_killed_one_left_refused(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port))
    agent.kill()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [
            SLUICE,
            "run",
            "-f",
            str(agent.policies),
            "--audit",
            str(agent.audit),
            "--run-dir",
            str(agent.folder / "run"),
        ]
        done = subprocess.run([*command, "--admin", str(taken.getsockname()[1])], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "admin listener" in done.stderr
    assert refused(web, server.port)
    assert witness.seen == []


def test_sigterm_lets_an_open_reply_finish_and_closes_idle_connections(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    """Two signals: the second changes nothing."""
    half, rest = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst")
            half.set()
            rest.wait(30)
            connection.sendall(b"secnd")

    server = serve(orders, slow)
    agent = sluice(documents(web, orders, server.port))
    assert agent.process is not None
    pid = agent.process.pid
    with web.connect(server.port) as idle, web.connect(server.port) as busy:
        busy.sendall(b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert half.wait(15)
        agent.process.send_signal(signal.SIGTERM)
        assert idle.recv(100) == b"", "an idle connection is closed"
        assert refused(web, server.port), "nothing new is taken"
        agent.process.send_signal(signal.SIGTERM)
        rest.set()
        assert read_reply(busy)[2] == b"firstsecnd"
        assert agent.process.wait(20) == 0
    assert left_behind(agent, pid) == []
    (record,) = agent.records()
    assert (record["verdict"], record["status"], record["bytesReply"]) == ("ALLOWED", 200, 49)
    with web.connect(server.port) as direct:
        direct.sendall(b"GET /denied HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert read_reply(direct)[0] == 200, "without an agent, after a clean stop, nothing is policed"
    assert "Traceback" not in agent.log.read_text()


@pytest.mark.parametrize("after", [0.0, 0.3, 0.5])
def test_sigterm_during_the_start_leaves_nothing_behind(
    after: float, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve(orders)
    agent = Sluice(tmp_path, documents(web, orders, server.port))
    agent.launch()
    assert agent.process is not None
    time.sleep(after)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(20) in (0, -signal.SIGTERM)
    assert left_behind(agent, agent.process.pid) == []
    with web.connect(server.port) as direct:
        assert call(direct, "/denied") == 200


def test_a_second_agent_in_the_same_run_folder_refuses_to_start(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port))
    assert agent.process is not None
    command = [SLUICE, "run", "-f", str(agent.policies), "--audit", "/dev/null", "--run-dir", str(agent.folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"another agent (process {agent.process.pid}) is running" in done.stderr
    with web.connect(server.port) as client:
        assert (call(client, "/ok"), call(client, "/denied")) == (200, 403)


def test_agents_with_folders_of_their_own_coexist(workload: Callable[..., Workload], serve: MakeServer, tmp_path: Path) -> None:
    with contextlib.ExitStack() as agents:
        pairs = []
        for name in ("one", "two"):
            web, orders = workload("web"), workload("orders")
            server = serve(orders)
            agent = agents.enter_context(Sluice(tmp_path / name, documents(web, orders, server.port)))
            pairs.append((web, server, agent))
        for web, server, agent in pairs:
            with web.connect(server.port) as client:
                assert (call(client, "/ok"), call(client, "/denied")) == (200, 403)
            agent.wait_records(2)


def test_a_restart_with_hold_on_exit_has_no_unpoliced_moment(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port), "--hold-on-exit")
    with hammering(web, server.port, "/ok", "/denied", per_connection=2) as of_web:
        with hammering(None, server.port, "/host", connections=2, per_connection=1) as of_host:
            for _ in range(2):
                before = len(witness.seen)
                eventually(lambda before=before: len(witness.seen) > before + 50, "calls")
                assert agent.stop() == 0
                assert refused(web, server.port)
                agent.start()
            host = of_host.stop()
        result = of_web.stop()
    assert witness.paths("/denied") == []
    assert witness.paths("/host") == [], "who is not a workload may not call, at any moment"
    assert host["completed"] == 0
    assert result["statuses"]["/denied 403"] > 0
