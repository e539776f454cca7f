"""One workload takes all that it can get; every call of another one succeeds, and what is refused is recorded.

The neighbour that takes all is an unprivileged process in a cgroup of its own (tests/clients/hog.py).
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parsers.kafka.connection import HELD_REQUEST_MAX
from tests.clients import FOLDER
from tests.e2e.test_kernel_torture import pss
from tests.harness import PATIENCE, Server, Sluice, Workload, eventually, read_reply
from tests.kafka import raw

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]
MakeWorkload = Callable[..., Workload]

GET = b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n"
# So many calls of so long a head are more than there are places, or memory, for one workload.
CONNECTIONS, PIPELINED = 130, 64
SLOW = b"GET /slow HTTP/1.1\r\nhost: orders\r\nx: %s\r\n\r\n" % (b"y" * 3000)
# What most distributions give a process, unless somebody raises it.
DESCRIPTORS = 1024
HOGGING = 1100
HONEST = 30
# The agent's memory budget (MiB), and how much it may take besides (KiB): connections, and what Python has not given back.
BUDGET = 64
OVERHEAD = 24 * 1024


def documents(server: Workload, clients: list[Workload], port: int, rules: str) -> str:
    callers = ", ".join(f"{{matchLabels: {json.dumps(client.labels)}}}" for client in clients)
    return f"""apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: {server.name}-{port}}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(server.labels)}}}
  ingress:
  - fromEndpoints: [{callers}]
    toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules: {rules}
---
"""


def answer_but_slow(connection: socket.socket) -> None:
    """Answers at once, but for /slow, which it never does."""
    buffer = b""
    while data := connection.recv(1 << 18):
        buffer += data
        while b"\r\n\r\n" in buffer:
            head, buffer = buffer.split(b"\r\n\r\n", 1)
            if not head.startswith(b"GET /slow"):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n")


class Neighbours:
    """A server, one who takes all and one who is honest."""

    def __init__(self, workload: MakeWorkload, serve: MakeServer, sluice: MakeSluice, folder: Path) -> None:
        self._sluice, self._folder = sluice, folder
        self.greedy, self.honest, self.orders = workload("greedy"), workload("honest"), workload("orders")
        self.server = serve(self.orders, answer_but_slow)
        self.http = documents(self.orders, [self.greedy, self.honest], self.server.port, "{http: [{method: GET}]}")
        self.hogs: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, more: str = "") -> None:
        told = [one.document() for one in (self.greedy, self.honest, self.orders)]
        self.documents = "".join(told) + self.http + more
        self.agent = self._sluice(self.documents, "--drain-timeout", "1", *options)

    def hog(self, count: int, payload: bytes = b"", port: int | None = None) -> dict[str, int]:
        """Take what can be had; what came of the connections."""
        file = self._folder / f"payload{len(self.hogs)}"
        file.write_bytes(payload)
        command = [sys.executable, str(FOLDER / "hog.py"), "127.0.0.1", str(port or self.server.port), str(count), str(file)]
        self.hogs.append(self.greedy.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return self._told()

    def _told(self) -> dict[str, int]:
        assert self.hogs[-1].stdout is not None
        told: dict[str, int] = json.loads(self.hogs[-1].stdout.readline())
        return told

    def let_go(self) -> dict[str, int]:
        """The end of the last hog; what had come of its connections by then."""
        assert self.hogs[-1].stdin is not None
        self.hogs[-1].stdin.close()
        return self._told()

    def all_honest_calls_succeed(self, connections: int = HONEST) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(connections):
                client = stack.enter_context(self.honest.connect(self.server.port))
                for _ in range(3):
                    client.sendall(GET)
                    assert read_reply(client)[0] == 200

    def records(self, **facts: object) -> list[dict[str, Any]]:
        """Those of the greedy one that have these facts."""
        mine = [record for record in self.agent.records() if record["subject"].get("workload") == self.greedy.name]
        return [record for record in mine if all(record.get(name) == value for name, value in facts.items())]

    def pressure(self) -> str:
        health = self.agent.get("/healthz")
        assert health["ok"], "who uses much must not make the agent look ill"
        return str(health["checks"]["pressure"].get("detail", ""))


@pytest.fixture
def neighbours(workload: MakeWorkload, serve: MakeServer, sluice: MakeSluice, tmp_path: Path) -> Iterator[Neighbours]:
    made = Neighbours(workload, serve, sluice, tmp_path)
    yield made
    for hog in made.hogs:
        hog.kill()
        with hog:
            pass


@pytest.fixture
def _few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents have few descriptors, and cannot have more."""
    monkeypatch.setattr(Sluice, "prefix", ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"))


def test_open_calls_of_one_workload_leave_room_for_the_records_of_another(neighbours: Neighbours) -> None:
    neighbours.start()
    told = neighbours.hog(CONNECTIONS, SLOW * PIPELINED)
    assert told["open"] == CONNECTIONS
    neighbours.all_honest_calls_succeed()
    assert f"records: {neighbours.greedy.name} has" in neighbours.pressure()
    over_share = f'sluice_over_share_total{{budget="records",subject="{neighbours.greedy.name}"}}'
    eventually(lambda: neighbours.agent.metric(over_share), "calls are refused for want of a place")
    seen = len(neighbours.agent.records())
    neighbours.all_honest_calls_succeed()
    assert neighbours.agent.metric("sluice_over_share_total") == neighbours.agent.metric(over_share)
    if Sluice.datapath == "kernel":
        fresh = eventually(lambda: neighbours.agent.records()[seen:], "records")
        assert "kernel" in {record["via"] for record in fresh}, "who waits for his share does not stop the kernel path"
    neighbours.let_go()
    neighbours.agent.stop()  # the server never answers: calls behind others are open until now
    refused = neighbours.records(reason="audit-unavailable")
    assert refused
    assert {(record["verdict"], record["limit"]) for record in refused} == {("DENIED", "AUDIT_PATIENCE")}


@pytest.mark.usefixtures("_few_descriptors")
@pytest.mark.parametrize("payload", [b"", b"GET /slow HTTP/1.1\r\nhost: orders\r\n\r\n"], ids=["silent", "with-open-calls"])
def test_connections_of_one_workload_leave_descriptors_for_another_and_for_the_agent(
    neighbours: Neighbours, payload: bytes
) -> None:
    neighbours.start()
    told = neighbours.hog(HOGGING, payload)
    assert 50 < told["open"] < DESCRIPTORS / 2
    neighbours.all_honest_calls_succeed()
    assert f"connections: {neighbours.greedy.name} has" in neighbours.pressure()
    # The agent can still do its own work.
    neighbours.agent.reload(neighbours.documents + "# another one\n")
    neighbours.all_honest_calls_succeed(3)
    told = neighbours.let_go()
    assert sum(told.values()) == HOGGING
    refused = eventually(lambda: neighbours.records(reason="too-many-connections"), "records of those who were turned away")
    eventually(
        lambda: sum(record.get("calls", 1) for record in neighbours.records(reason="too-many-connections")) == told["reset"],
        "each connection that was turned away is recorded",
    )
    assert len(refused) < 10
    assert {(record["verdict"], record["protocol"], record["limit"]) for record in refused} == {
        ("DENIED", "tcp", "CONNECTIONS")
    }
    assert neighbours.agent.metric('sluice_over_share_total{budget="connections"') == told["reset"]


@pytest.mark.usefixtures("_few_descriptors")
def test_idle_connections_go_for_newcomers_of_another_workload_and_keep_alive_clients_reconnect(
    neighbours: Neighbours,
) -> None:
    neighbours.start()
    before = neighbours.hog(HOGGING)
    time.sleep(1.5)  # longer than RESTED
    neighbours.all_honest_calls_succeed(before["open"] * 3 // 5)  # more than were left free, less than half of all
    after = neighbours.let_go()
    assert after["ended"] > before["ended"]
    assert after["reset"] == before["reset"], "an orderly end, not a reset"
    assert after["open"] > 20
    neighbours.all_honest_calls_succeed(3)


def test_what_one_workload_sends_without_an_end_stays_within_the_memory_budget(
    neighbours: Neighbours, serve: MakeServer, workload: MakeWorkload
) -> None:
    broker = workload("broker")
    listener = serve(broker, lambda connection: connection.recv(1))
    rules = "{kafka: [{topic: a}]}"
    more = broker.document() + documents(broker, [neighbours.greedy], listener.port, rules)
    neighbours.start("--memory-budget", str(BUDGET), more=more)
    neighbours.all_honest_calls_succeed(3)
    before = pss(neighbours.agent)
    topics = 32  # the last of them would have to be known for a judgement
    frame = raw.produce(7, 9, ["a"] * topics, value=bytes(HELD_REQUEST_MAX // topics - 2000))
    told = neighbours.hog(60, frame[: len(frame) * 15 // 16], listener.port)
    assert told["open"] == 60
    grown = pss(neighbours.agent) - before
    assert grown < BUDGET * 1024 + OVERHEAD
    assert f"memory: {neighbours.greedy.name} has" in neighbours.pressure()
    neighbours.all_honest_calls_succeed()
    neighbours.let_go()
    eventually(lambda: not neighbours.pressure(), "the memory is free again", PATIENCE)
