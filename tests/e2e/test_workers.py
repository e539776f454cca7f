"""Several worker processes behave as one agent, and their deaths cost only the connections that they held."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import Witness, hammer_calls, hammering
from tests.harness import Server, Sluice, Workload, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]


def documents(web: Workload, orders: Workload, port: int, allowed: str = "/ok") -> str:
    policy = http_policy(orders, web, port, f'[{{method: GET, path: "{allowed}(/.*)?"}}]')
    return web.document() + orders.document() + policy


def processes(agent: Sluice) -> list[int]:
    assert agent.process is not None
    found = subprocess.run(["pgrep", "-P", str(agent.process.pid), "-f", "proxy.pool"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def sockets(pid: int) -> int:
    return sum(os.readlink(fd).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir())


def call_once(workload: Workload, port: int, path: str) -> int:
    with workload.connect(port) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n".encode())
        return read_reply(client)[0]


def test_connections_are_spread_records_are_complete_and_metrics_are_summed(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port), "--workers", "2")
    first, second = processes(agent)
    before = sockets(first), sockets(second)
    clients = [web.connect(server.port) for _ in range(40)]
    eventually(lambda: agent.get("/connections")["total"] == 40, "all connections are accepted")
    assert sockets(first) > before[0]
    assert sockets(second) > before[1]
    for client in clients:
        client.close()
    result = hammer_calls(web, server.port, 400, "/ok", "/denied", connections=16)
    assert (result["completed"], result["errors"]) == (400, {})
    assert set(result["statuses"]) == {"/ok 200", "/denied 403"}
    records = agent.wait_records(400)
    assert len({record["id"] for record in records}) == 400
    assert (
        agent.metric(f'sluice_calls_total{{peer="{orders.name}",protocol="http/1.1",subject="{web.name}",verdict="ALL')
        == result["statuses"]["/ok 200"]
    )
    assert agent.metric("sluice_policy_generation ") == 1


def test_a_worker_that_is_killed_is_replaced_and_nobody_is_refused(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    """What connects while a worker is replaced waits for its successor, which begins with the newest policy."""
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port, "/old"), "--workers", "2")
    agent.reload(documents(web, orders, server.port))
    workers = processes(agent)
    with hammering(web, server.port, "/ok", "/denied", connections=8, per_connection=3) as hammer:
        eventually(lambda: len(witness.seen) > 50, "calls")
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(processes(agent)) == 2 and agent.get("/healthz")["ok"], "two new workers")
        assert not set(processes(agent)) & set(workers)
        before = len(witness.seen)
        eventually(lambda: len(witness.seen) > before + 100, "calls")
        result = hammer.stop()
    assert "ECONNREFUSED" not in result["errors"]
    assert sum(result["errors"].values()) <= 8, "only the calls that were on the way"
    assert witness.paths("/denied") == []
    assert {call_once(web, server.port, "/ok") for _ in range(20)} == {200}
    assert {call_once(web, server.port, "/denied") for _ in range(20)} == {403}
    assert "died; starting another" in agent.log.read_text()


def test_an_agent_that_is_killed_takes_its_workers_with_it(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    witness = Witness()
    server = serve(orders, witness.serve)
    agent = sluice(documents(web, orders, server.port), "--workers", "2")
    workers = processes(agent)
    with web.connect(server.port) as client:
        client.sendall(b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert read_reply(client)[0] == 200
        agent.kill()
        eventually(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "the workers are gone")
        seen = len(witness.seen)
        try:
            client.sendall(b"GET /denied HTTP/1.1\r\nhost: orders\r\n\r\n")
            assert client.recv(100) == b""
        except ConnectionError:
            pass
    time.sleep(0.1)
    assert len(witness.seen) == seen


def test_a_clean_stop_drains_every_worker_and_leaves_no_process_or_cgroup(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(documents(web, orders, server.port), "--workers", "2")
    assert agent.process is not None
    pid, workers = agent.process.pid, processes(agent)
    clients = [web.connect(server.port) for _ in range(10)]
    eventually(lambda: agent.get("/connections")["total"] == 10, "all connections are accepted")
    agent.process.send_signal(signal.SIGTERM)
    assert [client.recv(100) for client in clients] == [b""] * 10
    for client in clients:
        client.close()
    assert agent.process.wait(20) == 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert list(Path("/sys/fs/cgroup").rglob(f"sluice-*-{pid}")) == []
    assert "Traceback" not in agent.log.read_text()


def test_workers_that_cannot_open_the_audit_file_end_the_start_with_the_reason(
    web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve(orders)
    agent = Sluice(tmp_path, documents(web, orders, server.port), "--workers", "2", "--audit", str(tmp_path))
    agent.launch()
    assert agent.process is not None
    assert agent.process.wait(20) == 1
    assert list(Path("/sys/fs/cgroup").rglob(f"sluice-*-{agent.process.pid}")) == []
    log = agent.log.read_text()
    assert "Is a directory" in log
    assert "Traceback" not in log


def test_a_folder_named_proxy_where_the_agent_is_started_is_not_run(
    web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(orders)
    trap = tmp_path / "trap"
    (trap / "proxy").mkdir(parents=True)
    (trap / "proxy" / "__init__.py").write_text("raise SystemExit('this is not the agent')")
    (trap / "proxy" / "pool.py").write_text("")
    monkeypatch.chdir(trap)
    with Sluice(tmp_path, documents(web, orders, server.port), "--workers", "2") as agent:
        assert len(processes(agent)) == 2
        assert call_once(web, server.port, "/ok") == 200
