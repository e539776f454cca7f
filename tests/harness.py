"""Real agents, real workloads and real servers for the end-to-end tests.

``Sluice`` runs ``sluice run`` as a user would; ``Workload`` runs programs inside a cgroup of ours; what a test needs of a
server it writes in Python below ``tests/servers`` or takes from nginx. Every name of a workload is unique to its test, so
that tests cannot meet each other's cgroups.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from proxy.workloads import cgroup2_mount

ROOT = Path(__file__).parent.parent
SLUICE = str(Path(sys.executable).with_name("sluice"))
# How long anything that should happen may take (seconds); only a failure waits for all of it.
PATIENCE = 15.0
# Below it are the ports of services that a machine may run.
FIRST_FREE_PORT = 10_000

_unique = itertools.count(1)


def unique(name: str) -> str:
    """A workload name that no other test of this run, or of another run, uses."""
    return f"t{os.getpid()}-{next(_unique)}-{name}"


def eventually(check: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until ``check`` returns something true, and return it."""
    deadline = time.monotonic() + patience
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {patience} s: {what} (last: {result!r})")
        time.sleep(0.01)


def free_port() -> int:
    """A port on which nobody listens, IPv4 or IPv6. No client's own end takes it either: those come from a range above."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(FIRST_FREE_PORT, ephemeral)
        with contextlib.suppress(OSError), socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True):
            return port


class Workload:
    """A cgroup below /sluice, with a Workload document, in which a test can run code and commands."""

    def __init__(self, role: str, labels: dict[str, str] | None = None) -> None:
        self.name = unique(role)
        self.labels = labels or {"app": self.name}
        self.cgroup = cgroup2_mount() / "sluice" / self.name
        self.cgroup.mkdir(parents=True, exist_ok=True)
        self._processes: list[subprocess.Popen[bytes]] = []

    def document(self, acceleration: str | None = None) -> str:
        labels = json.dumps(self.labels)
        word = f"acceleration: {acceleration}, " if acceleration else ""
        return (
            "apiVersion: sluice.dev/v1\nkind: Workload\n"
            f"metadata: {{name: {self.name}, labels: {labels}}}\n"
            f'spec: {{{word}cgroups: ["/sluice/{self.name}"]}}\n---\n'
        )

    @contextlib.contextmanager
    def inside(self, sub: str = "") -> Iterator[None]:
        """The body's sockets are this workload's: the calling process moves into the cgroup and back."""
        home = cgroup2_mount() / _own_cgroup().lstrip("/") / "cgroup.procs"
        target = self.cgroup / sub
        target.mkdir(exist_ok=True)
        (target / "cgroup.procs").write_text("0")
        try:
            yield
        finally:
            home.write_text("0")

    def start(self, *command: str, **options: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([SLUICE, "exec", self.name, "--", *command], **options)
        self._processes.append(process)
        return process

    def run(self, *command: str, timeout: float = 60, **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [SLUICE, "exec", self.name, "--", *command], capture_output=True, text=True, timeout=timeout, **options
        )

    def python(self, code: str, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return self.run(sys.executable, "-c", code, *arguments, **options)

    def connect(self, port: int, host: str = "127.0.0.1", timeout: float = PATIENCE) -> socket.socket:
        """A connected socket of this workload, for use in the test itself."""
        with self.inside():
            return socket.create_connection((host, port), timeout=timeout)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for pid in (self.cgroup / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for folder in (*(path for path in self.cgroup.glob("*/") if path.is_dir()), self.cgroup):
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.01)


def _own_cgroup() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(line.removeprefix("0::") for line in lines if line.startswith("0::"))


class Sluice:
    """``sluice run`` in a folder of its own. Use as a context manager; ``kill`` it as you like."""

    datapath = "relay"  # of all agents whose options say nothing of it
    prefix: tuple[str, ...] = ()  # a command that starts the next agents, such as prlimit

    def __init__(self, folder: Path, documents: str, *options: str) -> None:
        self.folder = folder
        self.policies = folder / "policies"
        self.policies.mkdir(parents=True, exist_ok=True)
        self.audit = folder / "audit.jsonl"
        self.admin = folder / "run" / "admin.sock"
        self.log = folder / "agent.log"
        self.options = options
        self.write(documents)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, documents: str) -> None:
        """Replace the documents, in one step."""
        fresh = self.folder / "documents.new"
        fresh.write_text(documents)
        fresh.rename(self.policies / "documents.yaml")

    def __enter__(self) -> "Sluice":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.end_guard()

    def start(self, **environment: str) -> None:
        self.launch(**environment)
        eventually(lambda: b"ready" in self.log.read_bytes() or self._must_run(), "the agent's ready line")

    def launch(self, **environment: str) -> None:
        command = [*self.prefix, SLUICE, "run", "-f", str(self.policies), "--audit", str(self.audit)]
        command += ["--run-dir", str(self.folder / "run")]
        if "--datapath" not in self.options:
            command += ["--datapath", self.datapath]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.options], stdout=log, stderr=log, env={**os.environ, **environment}
            )

    def _must_run(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended: {self.log.read_text()}"
        return False

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Send a signal and wait for the end; the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process = None if self.process.poll() is None else self.process

    def kill(self) -> None:
        """As ``kill -9`` would: no word of farewell, the hooks stay."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end_guard(self) -> None:
        """Take away the hooks that a killed agent left behind."""
        from proxy import guard

        guard.end_guards(self.folder / "run")
        if self.process is not None:
            guard.remove_cgroup(cgroup2_mount() / f"sluice-guard-{self.process.pid}")

    def reload(self, documents: str) -> None:
        """Write new documents and wait until they are in force."""
        before = self.generation()
        self.write(documents)
        eventually(lambda: self.generation() > before, "the new generation")

    def get(self, path: str) -> Any:
        """A page of the admin listener, decoded."""
        answer = subprocess.run(
            ["curl", "-s", "--max-time", "10", "--unix-socket", str(self.admin), f"http://localhost{path}"],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        return json.loads(answer) if path != "/metrics" else answer

    def generation(self) -> int:
        return int(self.get("/policy")["generation"])

    def metric(self, line_start: str) -> float:
        """The sum of the metric lines that begin so."""
        lines = self.get("/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(line_start))

    def records(self) -> list[dict[str, Any]]:
        """Every record so far; each line must be whole, but for one that is just being written."""
        if not self.audit.exists():
            return []
        text = self.audit.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_records(self, count: int) -> list[dict[str, Any]]:
        """The records, once there are exactly ``count`` of them and no more follow."""
        eventually(lambda: len(self.records()) >= count, f"{count} records; now: {len(self.records())}")
        time.sleep(0.12)  # twice the writer's flush interval: one too many must show
        records = self.records()
        assert len(records) == count, f"{len(records)} records instead of {count}: {records}"
        return records


class Server:
    """A TCP server in a thread of the test, whose listening socket belongs to a workload.

    ``serve`` gets each accepted connection in a thread of its own. What it received is in ``seen``.
    """

    def __init__(
        self, workload: Workload | None, serve: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        with workload.inside() if workload else contextlib.nullcontext():
            self.listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
            )
        self.port = int(self.listener.getsockname()[1])
        self.accepted = 0
        self._serve = serve
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def http_policy(server: Workload, client: Workload, port: int, rules: str, kind: str = "CiliumNetworkPolicy") -> str:
    """One ingress policy: ``client`` may make the calls of ``rules`` (YAML flow) to ``server`` on ``port``."""
    version = "cilium.io/v2" if kind.startswith("Cilium") else "sluice.dev/v1"
    return f"""apiVersion: {version}
kind: {kind}
metadata: {{name: {server.name}-api}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(server.labels)}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {json.dumps(client.labels)}}}]
    toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules: {{http: {rules}}}
---
"""


def kafka_policy(client: Workload, server: Workload, port: int, rules: Sequence[dict[str, Any]]) -> str:
    """Both workloads, and one egress policy: what ``client`` may ask of the broker ``server`` on ``port``."""
    return f"""{client.document()}{server.document()}apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: kafka}}
spec:
  endpointSelector: {{matchLabels: {json.dumps(client.labels)}}}
  egress:
  - toEndpoints: [{{matchLabels: {json.dumps(server.labels)}}}]
    toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules: {{kafka: {json.dumps(list(rules))}}}
---
"""


def answer_http(connection: socket.socket, body: bytes = b"hello\n") -> None:
    """A minimal keep-alive server for requests without a body: answers each head with 200."""
    buffer = b""
    while True:
        while b"\r\n\r\n" in buffer:
            _, buffer = buffer.split(b"\r\n\r\n", 1)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        data = connection.recv(65536)
        if not data:
            return
        buffer += data


def read_reply(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """One HTTP/1 reply with Content-Length (or to the end): status, head, body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return 0, data, b""
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while not lengths or len(body) < int(lengths[0]):
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return int(head.split()[1]), head, body


def command_exists(name: str) -> bool:
    return any(Path(folder, name).exists() for folder in os.environ["PATH"].split(":"))


__all__: Sequence[str] = (
    "PATIENCE", "Server", "Sluice", "Workload", "answer_http", "command_exists", "eventually", "free_port", "http_policy",
    "read_reply", "unique",
)  # fmt: skip
