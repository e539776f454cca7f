"""The small system of the demo: nginx servers, clients and the agent, each where the example policies expect it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.demo import room
from tests.harness import ROOT, SLUICE, Sluice, eventually
from tests.kafka import broker
from tests.kafka.broker import Broker, Listener

EXAMPLES = ROOT / "policies" / "examples"
# The file that changes while the agent runs; the others lie beside it.
CHANGING = "http-orders.yaml"

SERVERS = {"orders": 8080, "payments": 8443, "wiki": 80}
# A server elsewhere, at an address for documentation (RFC 5737).
WORLD, WORLD_GATEWAY = "203.0.113.10", "203.0.113.1"

NGINX = """daemon off;
master_process off;
pid {folder}/{name}.pid;
error_log {folder}/{name}.log;
events {{}}
http {{
  log_format call "$request_method $request_uri";
  access_log {folder}/{name}.calls call;
  client_body_temp_path {folder}/{name}.body;
  proxy_temp_path {folder}/{name}.proxy;
  fastcgi_temp_path {folder}/{name}.fastcgi;
  uwsgi_temp_path {folder}/{name}.uwsgi;
  scgi_temp_path {folder}/{name}.scgi;
  server {{
    listen {port};
    location / {{ return 200 "{name}: $request_method $request_uri\\n"; }}
  }}
}}
"""

# Where kafka.yaml expects the broker, and the topics that it has.
KAFKA_PORT = 9092
TOPICS = {"orders": 1, "payments.cards": 1}
KAFKA_CLIENT = ROOT / "tests" / "kafka" / "clients" / "confluent.py"

# What a client saw when it got no HTTP answer but could not connect.
REFUSED = "refused"
CURL_CANNOT_CONNECT = 7


class System(contextlib.ExitStack):
    """Everything that runs. Leaving the context stops it, in reverse order."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.agent = Sluice(folder, (EXAMPLES / CHANGING).read_text())
        for example in EXAMPLES.glob("*.yaml"):
            if example.name != CHANGING:
                shutil.copy(example, self.agent.policies)
        self._batch: subprocess.Popen[str] | None = None

    # What the story's events do.

    def start_servers(self) -> None:
        for name, port in SERVERS.items():
            self._nginx(name, port, SLUICE, "exec", name, "--")
            eventually(partial(_listens, port), f"nginx of {name} on port {port}")
        world = self._nginx("world", 80, "unshare", "--net")
        eventually(lambda: _netns(world.pid) != _netns(os.getpid()), "the network namespace of the world")
        room.wire(world.pid, WORLD_GATEWAY, WORLD)
        eventually(lambda: _listens(80, WORLD), f"nginx of the world on {WORLD}")

    def start_kafka(self) -> None:
        reason = broker.missing()
        assert reason is None, f"Kafka cannot run here: {reason}"
        folder = self.folder / "kafka"
        folder.mkdir()
        self.enter_context(Broker(folder, (Listener(port=KAFKA_PORT),), prefix=(SLUICE, "exec", "kafka", "--")))
        made = self.kafka(None, {"do": "create_topics", "topics": TOPICS})
        assert made == dict.fromkeys(TOPICS, "ok"), made

    def start_agent(self) -> None:
        self.enter_context(self.agent)

    def change_policy(self) -> None:
        before = (EXAMPLES / CHANGING).read_text()
        after = before.replace("path: /orders/export", "path: /orders/archive")
        assert after != before, f"{CHANGING} has no rule for /orders/export any more"
        self.agent.reload(after)

    def kill_agent(self) -> None:
        self.agent.kill()

    def restart_agent(self) -> None:
        self.agent.start()

    def stop_agent(self) -> None:
        code = self.agent.stop()
        assert code == 0, f"the agent ended with {code} after SIGTERM"

    # What the story's calls do.

    def curl(self, workload: str | None, method: str, url: str, headers: tuple[str, ...]) -> int | str:
        """The status that curl shows, or ``REFUSED``. No ``workload``: as any other process of the host."""
        command = ["curl", "--silent", "--show-error", "--max-time", "10", "--output", os.devnull]
        command += ["--write-out", "%{http_code}", "--request", method, url]
        for header in headers:
            command += ["--header", header]
        done = subprocess.run([*_as(workload), *command], capture_output=True, text=True)
        if done.returncode == CURL_CANNOT_CONNECT:
            return REFUSED
        return int(done.stdout) if done.returncode == 0 else f"curl: exit {done.returncode}: {done.stderr.strip()}"

    def python(self, workload: str | None, method: str, url: str, headers: tuple[str, ...]) -> int | str:
        """The same by the Python program, which keeps its connection from call to call."""
        assert not headers, "the program has no words for headers"
        if self._batch is None:
            program = [sys.executable, str(Path(__file__).with_name("batch_client.py"))]
            self._batch = subprocess.Popen([*_as(workload), *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.callback(self._batch.wait)
            self.callback(self._batch.kill)
        assert self._batch.stdin is not None
        assert self._batch.stdout is not None
        self._batch.stdin.write(f"{method} {url}\n")
        self._batch.stdin.flush()
        answer = self._batch.stdout.readline().strip()
        return int(answer) if answer.isdigit() else answer

    def kafka(self, workload: str | None, step: Mapping[str, Any]) -> Any:
        """What comes of one step of a Kafka client (librdkafka), a program of its own."""
        job = {"job": "demo", "bootstrap": f"127.0.0.1:{KAFKA_PORT}", "client_id": workload or "demo", "steps": [step]}
        command = [*_as(workload), sys.executable, str(KAFKA_CLIENT)]
        done = subprocess.run(command, input=json.dumps(job) + "\n", capture_output=True, text=True, timeout=60)
        said = [json.loads(line) for line in done.stdout.splitlines()]
        return said[0].get("outcome", said[0].get("fault")) if said else done.stderr

    def wait_for_records_of(self, workload: str) -> None:
        """Until the agent has no connection of ``workload``, and all of its records are written."""
        eventually(
            lambda: all(one["subject"] != workload for one in self.agent.get("/connections")["connections"]),
            f"the end of {workload}'s connections",
        )
        eventually(lambda: self.agent.metric("sluice_audit_queue") == 0, "the records")

    def record(self, index: int) -> dict[str, Any]:
        """Record number ``index`` of all, once it is written."""
        eventually(lambda: len(self.agent.records()) > index, f"record number {index + 1}")
        return self.agent.records()[index]

    def refusals(self) -> float:
        """How many connections the hooks have refused since the agent started."""
        return self.agent.metric('sluice_connects_total{outcome="refused"}')

    def reached(self) -> list[str]:
        """Every call that a server has received, as "METHOD TARGET", in no particular order of servers."""
        return [call for log in self.folder.glob("*.calls") for call in log.read_text().splitlines()]

    def _nginx(self, name: str, port: int, *before: str) -> "subprocess.Popen[bytes]":
        config = self.folder / f"{name}.conf"
        config.write_text(NGINX.format(folder=self.folder, name=name, port=port))
        log = self.folder / f"{name}.log"
        process = subprocess.Popen([*before, "nginx", "-e", str(log), "-c", str(config)])
        self.callback(process.wait)
        self.callback(process.kill)
        return process


def _as(workload: str | None) -> list[str]:
    return [SLUICE, "exec", workload, "--"] if workload else []


def _listens(port: int, host: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _netns(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")
