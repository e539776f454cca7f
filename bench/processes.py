"""Start, weigh and stop processes. The only module that starts any, and the only one that reads /proc/PID."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 15.0  # seconds that a process may take to be ready: Envoy needs about one on a busy machine
FAREWELL = 10.0  # seconds between SIGTERM and SIGKILL: longer than any drain of idle connections
TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A measurement that cannot be taken or trusted; the text says why."""


class StartError(BenchError):
    """A contender or server that did not become ready, or does not enforce."""


@dataclass(frozen=True)
class Service:
    """A running background process, with everything it forked."""

    process: subprocess.Popen[bytes]
    stderr: Path

    def said(self) -> str:
        """Everything on stderr so far."""
        return self.stderr.read_text(errors="replace")

    def obituary(self) -> str:
        """Whether it lives, and its last words: the end of every error message about it."""
        code = self.process.poll()
        state = "still running" if code is None else f"ended with {code}"
        return f"[{state}; stderr: {self.said()[-600:].strip() or 'empty'}]"

    def cpu_seconds(self) -> float:
        """CPU time used so far, user and system: of the living descendants and of those already waited for."""
        return sum(_cpu_ticks(pid) for pid in tree(self.process.pid)) / TICKS

    def memory(self) -> tuple[int, int]:
        """(RSS, PSS) in bytes, summed over the process and its descendants. PSS counts a page that they share once."""
        sizes = [_memory(pid) for pid in tree(self.process.pid)]
        return sum(rss for rss, _ in sizes), sum(pss for _, pss in sizes)


@contextlib.contextmanager
def service(command: Sequence[str], stderr: Path, stdout: Path | None = None) -> Iterator[Service]:
    """Run `command` in a process group of its own for the length of the block, and leave nothing of it behind."""
    with stderr.open("wb") as err, (stdout or stderr).open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
    try:
        yield Service(process, stderr)
    finally:
        _stop(process)


def wait_for_port(server: Service, port: int) -> None:
    """Return when `port` of loopback accepts; StartError when the process ends or PATIENCE does."""
    _wait(server, lambda: port_is_open(port), f"port {port} does not accept")


def wait_for_word(server: Service, word: str) -> None:
    """Return when stderr contains `word` as a word of its own; StartError when the process ends or PATIENCE does."""
    _wait(server, lambda: re.search(rf"\b{re.escape(word)}\b", server.said()) is not None, f"no '{word}' on stderr")


def port_is_open(port: int) -> bool:
    """Whether anybody accepts on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run_client(command: Sequence[str], seconds: float) -> str:
    """Run a client to its end and return its stdout. BenchError when it fails or takes longer than `seconds`."""
    with _client(command) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise BenchError(f"no end after {seconds:.0f} s: {' '.join(command)}") from None
        if process.returncode != 0:
            raise BenchError(f"exit code {process.returncode}: {' '.join(command)}: {err.strip()[-300:]}")
    return out


@contextlib.contextmanager
def held_client(command: Sequence[str]) -> Iterator[str]:
    """Run a client that prints one line and then holds on until the block ends; yields that line.

    The client must bound its own life: reading its line waits for as long as it lives.
    """
    with _client(command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"no answer: {' '.join(command)}: {process.communicate()[1].strip()[-300:]}")
        yield line


def place(service: Service, cpus: Iterable[int]) -> None:
    """Move all threads of a running service to these CPUs; those that it starts later follow the ones that start them."""
    cpus = set(cpus)
    for pid in tree(service.process.pid):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(task.name), cpus)


def tree(root: int) -> list[int]:
    """`root` and all its living descendants, whichever of its threads forked them."""
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        try:
            children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        except OSError:  # gone since it was listed
            continue
        found.append(pid)
        queue += [int(child) for line in children for child in line.split()]
    return found


@contextlib.contextmanager
def _client(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End the whole process group: the leader gets FAREWELL to flush its log and to take its children along."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(FAREWELL)
    with contextlib.suppress(ProcessLookupError):  # the usual case: nobody of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(server: Service, ready: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise StartError(f"{complaint} {server.obituary()}")
        time.sleep(0.02)


def _cpu_ticks(pid: int) -> int:
    """utime, stime, cutime and cstime of proc(5); 0 for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def _memory(pid: int) -> tuple[int, int]:
    """(RSS, PSS) of one process in bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    return kib["Rss"] * 1024, kib["Pss"] * 1024
