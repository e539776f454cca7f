"""Whoever keeps the agent busy waits for himself: all calls and connects of others succeed meanwhile, and soon.

The greedy are processes of the user nobody in a cgroup of their own, with a server of their own; each says, or has said by its
server, what takes a parser the most time. With SLUICE_SOAK=1 it lasts longer, and the time that others wait is bounded.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import FOLDER
from tests.clients.greedy import KINDS
from tests.harness import PATIENCE, Server, Sluice, Workload, answer_http, free_port, http_policy, read_reply
from tests.requirements import require_bpf

SOAK = os.environ.get("SLUICE_SOAK") == "1"
SECONDS = 10.0 if SOAK else 0.7
CONNECTIONS = 100
# With SLUICE_SOAK=1, on a machine of its own, each call of others takes less than this (seconds); without bounds, some took 10.
# Else less than a client's patience.
ENOUGH = 3.0 if SOAK else PATIENCE
# Without SLUICE_SOAK, of the others that differ only in what is read the worst ones.
QUICK = ("chunks", "denied", "hints", "tagged", "topics", "metadata")
GREEDY = [sys.executable, str(FOLDER / "greedy.py")]
# What the greedy may do, by kinds of calls that they make.
RULES = {
    **dict.fromkeys(("partitions", "tagged", "metadata"), 'kafka: [{apiKey: metadata}, {topic: "t"}]'),
    **dict.fromkeys(("versions", "topics", "refused"), "kafka: [{apiKey: apiversions}]"),
}
CHOSEN = tuple(KINDS) if SOAK else QUICK
HTTP_RULES = 'http: [{path: "/ok"}]'
GET = b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n"


class Street:
    """An honest client and server, and greedy ones with a server for each kind, under one agent."""

    def __init__(self, folder: Path) -> None:
        self.honest, self.shop = Workload("honest"), Workload("shop")
        self.greedy, self.sink = Workload("greedy"), Workload("sink")
        self.workloads = [self.honest, self.shop, self.greedy, self.sink]
        self.server = Server(self.shop, answer_http)
        self.ports = {kind: free_port() for kind in CHOSEN}
        self.agent = Sluice(folder, self._documents())
        ports = self.ports.items()
        for process in [self.sink.start(*GREEDY, "serve", kind, str(port), stdout=subprocess.PIPE) for kind, port in ports]:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.stdout.close()
        self.agent.start()

    def _documents(self) -> str:
        documents = self.honest.document() + self.shop.document()
        documents += http_policy(self.shop, self.honest, self.server.port, "[{method: GET}]")
        documents += self.greedy.document() + self.sink.document()
        return documents + "".join(map(self._policy, CHOSEN))

    def _policy(self, kind: str) -> str:
        return f"""apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: {kind}}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(self.sink.labels)}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {json.dumps(self.greedy.labels)}}}]
    toPorts:
    - ports: [{{port: "{self.ports[kind]}", protocol: TCP}}]
      rules: {{{RULES.get(kind, HTTP_RULES)}}}
---
"""

    def busy(self, kind: str) -> "subprocess.Popen[bytes]":
        return self.greedy.start(
            *GREEDY, "call", kind, str(self.ports[kind]), str(CONNECTIONS), str(SECONDS), stdout=subprocess.PIPE
        )

    def call(self, calls: int) -> list[float]:
        """A new connection and its calls: the time of each (seconds), with the connect in the first."""
        times = []
        began = time.monotonic()
        with self.honest.connect(self.server.port) as sock:
            for _ in range(calls):
                sock.sendall(GET)
                status, _, body = read_reply(sock)
                assert (status, body) == (200, b"hello\n")
                times.append(time.monotonic() - began)
                began = time.monotonic()
        return times

    def close(self) -> None:
        self.agent.kill()  # told to stop, it would first read all that the greedy ones' servers have said
        self.agent.__exit__(None, None, None)
        self.server.close()
        for workload in self.workloads:
            workload.close()


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    require_bpf()
    street = Street(tmp_path_factory.mktemp("street"))
    try:
        yield street
    finally:
        street.close()


@pytest.mark.parametrize("kind", CHOSEN)
def test_others_are_served_while_somebody_keeps_us_busy(street: Street, kind: str) -> None:
    refused = street.agent.metric('sluice_connects_total{outcome="stale_refused"}')
    times: list[float] = []
    process = street.busy(kind)
    while process.poll() is None:
        times += street.call(4)
    assert process.stdout is not None
    sent = int(process.stdout.read())
    process.stdout.close()
    times.sort()
    late = times[round(0.99 * (len(times) - 1))]
    median, most = times[len(times) // 2], times[-1]
    print(
        f"{kind}: {sent / 1e6:.1f} MB in; {len(times)} calls of others: median {median * 1e3:.1f} ms, "
        f"p99 {late * 1e3:.1f} ms, most {most * 1e3:.1f} ms"
    )
    assert sent > 0
    assert most < ENOUGH
    assert street.agent.metric('sluice_connects_total{outcome="stale_refused"}') == refused
