"""``sluice run``: what it says and how it exits when it is used wrongly, and what the admin listener tells when it runs."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import SLUICE, Server, Sluice, Workload, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]

NOTHING = "apiVersion: sluice.dev/v1\nkind: Workload\nmetadata: {name: nobody}\nspec: {cgroups: [/nobody]}\n"


def run(folder: Path, *options: str, prefix: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """``sluice run`` with a sound document, which is expected to end by itself."""
    (folder / "nothing.yaml").write_text(NOTHING)
    command = [*prefix, SLUICE, "run", "-f", str(folder / "nothing.yaml"), "--audit", str(folder / "audit.jsonl")]
    done = subprocess.run([*command, "--run-dir", str(folder / "run"), *options], capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("-f", "/does/not/exist"), "does not exist"),
        (("--workers", "0"), "--workers"),
        (("--workers", "65"), "--workers"),
        (("--datapath", "warp"), "--datapath"),
        (("--gateway", "gateway.example"), "--gateway"),
        (("--gateway", "10.0.0.0/24"), "--gateway"),
        (("--gateway", "10.0.0.1", "--gateway", "10.0.0.2"), "--gateway"),
        (("--idle-timeout", "0"), "--idle-timeout"),
        (("--drain-timeout", "-1"), "--drain-timeout"),
        (("--memory-budget", "63"), "--memory-budget"),
        (("--memory-budget", "64", "--workers", "2"), "2 workers need at least 128 MiB"),
        (("--unknown",), "--unknown"),
        (("argument",), "argument"),
    ],
)
def test_bad_usage_exits_2_and_names_the_option(options: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_no_documents_at_all_is_bad_usage() -> None:
    done = subprocess.run([SLUICE, "run"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--file" in done.stderr


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    """An agent that enforces nothing because of a mistyped folder would be silently open."""
    (tmp_path / "empty").mkdir()
    done = subprocess.run([SLUICE, "run", "-f", str(tmp_path / "empty")], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "no *.yaml" in done.stderr


def test_without_root_the_text_says_what_is_needed() -> None:
    # The interpreter may live where nobody may read, so everything is imported while we are still root.
    drop = "import os, proxy.agent, proxy.commands.run; from proxy.cli import main; os.setgid(65534); os.setuid(65534); "
    done = subprocess.run([sys.executable, "-c", drop + "main(['run', '-f', '/'])"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "needs root" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--gateway", "192.0.2.1"), "cannot listen on 192.0.2.1"),
        (("--audit", "/proc/nothing/audit.jsonl"), "/proc/nothing"),
        (("--audit", "/"), "directory"),
        (("--admin", "/etc/hostname"), "admin listener at /etc/hostname"),
        (("--admin", "70000"), "admin listener at 70000"),
    ],
)
def test_what_the_machine_refuses_exits_1_with_the_reason(options: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 1
    assert complaint in done.stderr


# interfaces.md, and sluice_connects_total: what the hooks did.
FAMILIES = {
    "sluice_calls_total": "counter",
    "sluice_call_duration_seconds": "histogram",
    "sluice_connections": "gauge",
    "sluice_relayed_bytes_total": "counter",
    "sluice_kernel_bytes_total": "counter",
    "sluice_kernel_fallbacks_total": "counter",
    "sluice_audit_queue": "gauge",
    "sluice_policy_generation": "gauge",
    "sluice_limits_total": "counter",
    "sluice_connects_total": "counter",
}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_admin_listener_tells_metrics_health_policy_and_connections(
    workers: str, web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    policy = http_policy(orders, web, server.port, '[{method: GET, path: "/ok"}]')
    agent = sluice(web.document() + orders.document() + policy, "--workers", workers)
    with web.connect(server.port) as client:
        for path, status in (("/ok", 200), ("/denied", 403)):
            client.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n".encode())
            assert read_reply(client)[0] == status
        agent.wait_records(2)
        metrics = agent.get("/metrics")
        shown: dict[str, Any] = agent.get("/connections")

    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics, re.MULTILINE))
    assert {name: types.get(name) for name in FAMILIES} == FAMILIES
    labels = f'peer="{orders.name}",protocol="http/1.1",subject="{web.name}",verdict='
    assert f'sluice_calls_total{{{labels}"ALLOWED",via="relay"}} 1.0' in metrics
    assert f'sluice_calls_total{{{labels}"DENIED",via="relay"}} 1.0' in metrics
    assert 'sluice_connects_total{outcome="redirected"} 1.0' in metrics
    assert 'sluice_connections{state="open"} 1.0' in metrics
    assert "sluice_policy_generation 1.0" in metrics

    (connection,) = shown["connections"]
    assert shown["total"] == 1
    assert (connection["subject"], connection["peer"]) == (web.name, orders.name)
    assert connection["destination"] == f"127.0.0.1:{server.port}"
    assert (connection["protocol"], connection["openCalls"]) == ("http/1.1", 0)
    eventually(lambda: agent.get("/connections")["total"] == 0, "the closed connection is gone")

    health = agent.get("/healthz")
    assert health["ok"] is True
    assert set(health["checks"]) >= {"heartbeat", "hooks", "workers", "audit", "policy"}
    assert agent.get("/policy")["documents"] == [
        f"Workload/{web.name}", f"Workload/{orders.name}", f"CiliumNetworkPolicy/{orders.name}-api"
    ]  # fmt: skip


def test_the_ready_line_says_what_is_in_force(web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice) -> None:
    server = serve(orders)
    agent = sluice(web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]"))
    (line,) = agent.log.read_text().splitlines()
    assert line.startswith(f"sluice: ready: 1 policies for 2 workloads, generation 1, datapath {agent.datapath}, 1 worker(s)")
    assert str(agent.audit) in line
    assert str(agent.admin) in line


def test_a_port_for_the_admin_listener_answers_on_loopback(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]"), "--admin", "0")
    port = re.search(r"admin at \S+/admin.sock and (\d+)", agent.log.read_text())
    assert port
    answer = subprocess.run(["curl", "-s", f"http://127.0.0.1:{port[1]}/healthz"], capture_output=True, check=True)
    assert json.loads(answer.stdout)["ok"] is True
