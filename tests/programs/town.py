"""One agent for all programs: a workload for the clients, one for the servers and proxies, one for those of them that splice
from sockets and so must not be accelerated, and one for the origin.

Ports are known before anything is started, so one set of policies does for all. Programs are started when they are needed.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import PATIENCE, Sluice, Workload, eventually, free_port
from tests.programs.calls import RULES, Call
from tests.programs.content import write_content
from tests.programs.driver import Reply
from tests.programs.servers import PROGRAMS, Place, Program

# Without an agent: what a program does by itself.
DIRECT = os.environ.get("SLUICE_PROGRAMS_DIRECT") == "1"
_LISTEN = "0A"  # a state in /proc/net/tcp


@dataclass(frozen=True)
class Made:
    """A call that was answered as it should, so it must have a record. ``reply`` is the driver's, which counts bytes."""

    call: Call
    reply: Reply | None = None


class Town:
    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.folder, self.content = folder, folder / "content"
        write_content(self.content)
        roles = ("web", "programs", "splicers", "origin")
        self.web, self.programs, self.splicers, self.origin = (self._workload(stack, role) for role in roles)
        self.ports = {program.name: _new_port() for program in PROGRAMS}
        self.origin_port, self.origin_socket = _new_port(), folder / "origin.sock"
        policies = self._policy(self.origin, [self.web, self.programs, self.splicers], [self.origin_port])
        for home in (self.programs, self.splicers):
            ports = [self.ports[program.name] for program in PROGRAMS if self._home(program) is home]
            policies += self._policy(home, [self.web], ports)
        workloads = "".join(workload.document("on") for workload in (self.web, self.programs, self.origin))
        workloads += self.splicers.document("off")
        self.agent = None if DIRECT else stack.enter_context(Sluice(folder, workloads + policies))
        self._start_origin(stack)
        self._moving = threading.Lock()
        self._records: dict[str, list[dict[str, Any]]] = {}  # by path
        self._read = 0  # bytes of the audit file

    def _workload(self, stack: contextlib.ExitStack, role: str) -> Workload:
        workload = Workload(role)
        stack.callback(workload.close)
        return workload

    def _home(self, program: Program) -> Workload:
        return self.splicers if program.splices else self.programs

    def _policy(self, server: Workload, clients: list[Workload], ports: list[int]) -> str:
        entry = {"ports": [{"port": str(port), "protocol": "TCP"} for port in ports]}
        return f"""apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: {server.name}}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(server.labels)}}}
  ingress:
  - fromEndpoints: {json.dumps([{"matchLabels": client.labels} for client in clients])}
    toPorts:
    - ports: {json.dumps(entry["ports"])}
      rules: {{http: {RULES}}}
---
"""

    def _start_origin(self, stack: contextlib.ExitStack) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.programs.origin",
            str(self.content),
            str(self.origin_port),
            str(self.origin_socket),
        ]
        process = self.origin.start(*command)
        stack.callback(end, process)
        eventually(lambda: listens(self.origin_port), "the origin listens")

    @contextlib.contextmanager
    def running(self, program: Program) -> Iterator[Place]:
        folder = self.folder / program.name
        folder.mkdir()
        place = Place(folder, self.content, self.ports[program.name], self.origin_port, self.origin_socket)
        with (folder / "output").open("wb") as output:
            process = self._home(program).start(*program.command(place), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            eventually(lambda: listens(place.port) or _has_not_ended(process, folder), f"{program.name} listens", 60)
            yield place
        finally:
            end(process)

    def connect(self, port: int) -> socket.socket:
        """A connection of the clients' workload, which this process has to be in for a moment: one thread at a time."""
        with self._moving:
            return self.web.connect(port, timeout=PATIENCE)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command of the clients' workload, to its end."""
        with self._moving, self.web.inside():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    # Records

    def records(self, path: str) -> list[dict[str, Any]]:
        """The records of all calls to this path so far."""
        assert self.agent is not None
        with self.agent.audit.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        lines = data[: data.rfind(b"\n") + 1]
        self._read += len(lines)
        for line in lines.splitlines():
            record = json.loads(line)
            self._records.setdefault(record.get("path", ""), []).append(record)
        return self._records.get(path, [])

    def surprises(self, port: int) -> list[str]:
        """What was recorded of connections to ``port`` that is no call: such as a reply that nobody has asked for."""
        if self.agent is None:
            return []
        return [record["reason"] for record in self.records("") if _port(record["destination"]) == port]

    def check_records(
        self, made: list[Made], port: int, asks: Callable[[Call], bool] = lambda call: False
    ) -> list[dict[str, Any]]:
        """Each call that was made has one record of its way to ``port``, and if ``asks`` says so, one of that to the origin.

        All facts in it are right. Returns those of the ways to ``port``.
        """
        found: list[dict[str, Any]] = []
        for one in made if self.agent else ():
            ports = [port, self.origin_port] if asks(one.call) else [port]
            eventually(lambda one=one, ports=ports: len(self.records(one.call.target)) >= len(ports), f"a record of {one.call}")
            records = self.records(one.call.target)
            assert sorted(_port(record["destination"]) for record in records) == sorted(ports), (one.call, records)
            for record in records:
                assert (record["method"], record["verdict"]) == (one.call.method, one.call.verdict), record
                assert record["status"] == one.call.status, record
            first = next(record for record in records if _port(record["destination"]) == port)
            if one.reply is not None and one.call.status == 200:
                assert (first["bytesRequest"], first["bytesReply"]) == (one.reply.sent, one.reply.received), first
                assert _port(first["source"]) == one.reply.connection, first
            found.append(first)
        return found


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


_ports: set[int] = set()


def _new_port() -> int:
    while (port := free_port()) in _ports:
        pass
    _ports.add(port)
    return port


def listens(port: int) -> bool:
    """Without connecting to it: a connection would be policed."""
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]
    sockets = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return any(local.endswith(f":{port:04X}") and state == _LISTEN for _, local, _, state, *_ in sockets)


def _has_not_ended(process: "subprocess.Popen[bytes]", folder: Path) -> bool:
    assert process.poll() is None, (folder / "output").read_text(errors="replace")
    return False


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
