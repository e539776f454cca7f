"""Client programs of the end-to-end tests. They know nothing of Sluice."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness import Workload

FOLDER = Path(__file__).parent


class Witness:
    """An HTTP server's memory: every request that it has seen, with the time. Use ``serve`` as a server's handler."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str]] = []

    def serve(self, connection: socket.socket) -> None:
        buffer = b""
        while data := connection.recv(65536):
            buffer += data
            while b"\r\n\r\n" in buffer:
                head, buffer = buffer.split(b"\r\n\r\n", 1)
                self.seen.append((time.monotonic(), head.split(b" ", 2)[1].decode()))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n")

    def paths(self, start: str) -> list[str]:
        return [path for _, path in list(self.seen) if path.startswith(start)]


class Hammer:
    """``hammer.py`` as a workload's process (None: a process of the host), until ``stop``, whose answer is what it printed."""

    def __init__(
        self, workload: Workload | None, port: int, *paths: str, connections: int = 4, per_connection: int = 0
    ) -> None:
        command = [sys.executable, str(FOLDER / "hammer.py"), *map(str, (port, connections, 0, per_connection)), *paths]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = workload.start(*command, **pipes) if workload else subprocess.Popen(command, **pipes)
        self.result: dict[str, Any] = {}

    def stop(self) -> dict[str, Any]:
        output, _ = self._process.communicate(timeout=60)
        self.result = json.loads(output)
        return self.result


@contextlib.contextmanager
def hammering(
    workload: Workload | None, port: int, *paths: str, connections: int = 4, per_connection: int = 0
) -> Iterator[Hammer]:
    hammer = Hammer(workload, port, *paths, connections=connections, per_connection=per_connection)
    try:
        yield hammer
    finally:
        if not hammer.result:
            hammer.stop()


def hammer_calls(workload: Workload, port: int, calls: int, *paths: str, connections: int = 4) -> dict[str, Any]:
    """Make exactly ``calls`` calls and return what came of them."""
    done = workload.run(
        sys.executable, str(FOLDER / "hammer.py"), *map(str, (port, connections, calls, 0)), *paths, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
