"""A stage for raw conversations: one agent, one client workload, and a server for each set of rules.

The server of a conversation is a function that the test hands over: it plays one accepted connection, as a ``Line``. What
any server received adds up in ``seen``, so that a test can say what must never have arrived.
"""

import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.harness import PATIENCE, Server, Sluice, Workload, eventually

_RESET = struct.pack("ii", 1, 0)


class Line:
    """One end of a TCP connection, for conversations byte by byte."""

    def __init__(self, sock: socket.socket, seen: bytearray | None = None) -> None:
        self.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.seen = bytearray() if seen is None else seen
        self.was_reset = False
        self._buffer = b""

    def send(self, data: bytes) -> "Line":
        self.sock.sendall(data)
        return self

    def until(self, marker: bytes) -> bytes:
        """Read up to and with ``marker``; less than that if the other side ends first."""
        while marker not in self._buffer and self._fill():
            pass
        at = self._buffer.find(marker)
        return self._take(len(self._buffer) if at < 0 else at + len(marker))

    def exactly(self, n: int) -> bytes:
        while len(self._buffer) < n and self._fill():
            pass
        return self._take(n)

    def rest(self) -> bytes:
        """Read until the other side ends, or resets (``was_reset``)."""
        while self._fill():
            pass
        return self._take(len(self._buffer))

    def head(self) -> bytes:
        return self.until(b"\r\n\r\n")

    def reply(self) -> tuple[int, bytes]:
        """One reply with Content-Length: its status and its body."""
        head = self.head()
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return int(head.split()[1]), self.exactly(int(lengths[0].split(b":")[1])) if lengths else b""

    def end(self) -> "Line":
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def _fill(self) -> bool:
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            self.was_reset = True
            return False
        self.seen += data
        self._buffer += data
        return bool(data)

    def _take(self, n: int) -> bytes:
        taken, self._buffer = self._buffer[:n], self._buffer[n:]
        return taken

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


Part = Callable[[Line], object]


def answer_ok(line: Line) -> None:
    """Answers every request without a body with 200 and the request's own head."""
    while (head := line.head()).endswith(b"\r\n\r\n"):
        line.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(head), head))


class Stage:
    """``rules`` gives the rules (YAML flow) of each server by its name, for ``protocol``; see ``client`` and ``records``. With
    "audit " before them their policy is in audit mode, with "wide " another rule allows everything on the port.

    ``documents`` are further ones for the agent.
    """

    def __init__(
        self, folder: Path, rules: Mapping[str, str], *options: str, protocol: str = "http", documents: str = ""
    ) -> None:
        self._protocol = protocol
        self._stack = contextlib.ExitStack()
        self.web = self.workload("web")
        self.servers = {name: self.workload(name) for name in rules}
        self.seen = {name: bytearray() for name in rules}
        self._failures: list[AssertionError] = []  # of the servers' parts
        self.parts: dict[str, Part] = dict.fromkeys(rules, answer_ok)
        self.listeners = {name: self._listen(name) for name in rules}
        self.documents = documents + self.web.document() + "".join(self._documents(name, text) for name, text in rules.items())
        self.agent = self._stack.enter_context(Sluice(folder, self.documents, *options))
        self._told = 0

    def workload(self, role: str) -> Workload:
        return self._keep(Workload(role))

    def _keep(self, workload: Workload) -> Workload:
        self._stack.callback(workload.close)
        return workload

    def reopen(self, name: str) -> None:
        """Listen again where a test has closed the listener."""
        self.listeners[name] = self._listen(name, self.listeners[name].port)

    def _listen(self, name: str, port: int = 0) -> Server:
        def play(connection: socket.socket) -> None:
            connection.settimeout(PATIENCE)
            try:
                self.parts[name](Line(connection, self.seen[name]))
            except AssertionError as error:
                self._failures.append(error)

        server = Server(self.servers[name], play, port=port)
        self._stack.callback(server.close)
        return server

    def _documents(self, name: str, rules: str) -> str:
        server, audit = self.servers[name], rules.startswith("audit ")
        ports = f'[{{port: "{self.listeners[name].port}", protocol: TCP}}]'
        wide = f"  - toPorts: [{{ports: {ports}}}]\n" if rules.startswith("wide ") else ""
        return f"""{server.document()}apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: {name}}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(server.labels)}}}
  mode: {"audit" if audit else "enforce"}
  ingress:
  - fromEndpoints: [{{matchLabels: {json.dumps(self.web.labels)}}}]
    toPorts:
    - ports: {ports}
      rules: {{{self._protocol}: {rules.removeprefix("audit ").removeprefix("wide ")}}}
{wide}---
"""

    def client(self, name: str, part: Part = answer_ok) -> Line:
        """A connection of the client workload to the server ``name``, which plays ``part`` from now on."""
        self.parts[name] = part
        self.seen[name].clear()
        return Line(self.web.connect(self.listeners[name].port))

    def records(self, count: int) -> list[dict[str, Any]]:
        """The records since the last call, which must be ``count``. One too many shows at the next call, or at the end."""
        if self._failures:
            raise self._failures.pop()
        try:
            eventually(lambda: len(self.agent.records()) >= self._told + count, f"{count} records")
        finally:
            fresh = self.agent.records()[self._told :]
            self._told += len(fresh)
        assert len(fresh) == count, [(record["id"], record["reason"], record.get("path")) for record in fresh]
        return fresh

    def untold(self) -> int:
        """How many records there are that nobody asked for, once no more come; they are forgotten."""
        eventually(lambda: self.agent.metric("sluice_connections") == 0, "no connection is open")
        eventually(lambda: self.agent.metric("sluice_audit_queue") == 0, "every record is written")
        count = len(self.agent.records()) - self._told
        self._told += count
        return count

    def check_end(self) -> None:
        """The agent stops, and has nothing to record that no test has asked for."""
        assert self.agent.stop() == 0, self.agent.log.read_text()
        assert len(self.agent.records()) == self._told
        assert "fault" not in self.agent.log.read_text()

    def close(self) -> None:
        self._stack.close()


def staged(
    folder: Path, rules: Mapping[str, str], *options: str, protocol: str = "http", documents: str = ""
) -> Iterator[Stage]:
    """For fixtures: ``yield from staged(...)``."""
    stage = Stage(folder, rules, *options, protocol=protocol, documents=documents)
    try:
        yield stage
        stage.check_end()
    finally:
        stage.close()
