"""Keeps the hooks in the kernel when the agent is killed, and lets the next agent take over.

A BPF link lives as long as a process holds it. If only the agent held the hooks, ``kill -9`` would open every policed
connection. So a second process, the *guard*, holds the links too, and the agent's port (proxy/port.py), to which they point
connections. It does nothing else: it is ``sleep``, by another name, with inherited file descriptors. Without the agent's
heartbeat the hooks refuse what is policed. A clean stop ends the guard; a new agent first has a guard of its own that holds
its own hooks, and only then ends those before it: whenever it is killed, the old hooks are there, or the new ones, or both.

Locks in the run folder tell who is there: ``agent.lock`` is held by the agent alone, each ``guard*.lock`` by one guard. A
guard's lock file has three lines: its process id; the numbers of those of its maps that the next agent must keep; the
addresses that its hooks point to. The first is written last of what could fail: a guard that is named holds everything.

What the kernel has carried and nobody has read yet lives in a map of sockets, and is lost with it. So that map outlives the
agent and the guard: a new agent takes it over from a dead one's guard, and a clean stop leaves it to a process like the guard
for LEFTOVER_SECONDS, if there is an application that has not closed its end.
"""

import contextlib
import fcntl
import itertools
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from proxy.faults import step
from proxy.port import Address

# How long what was carried may wait for its reader behind the end of the agent (seconds): as long as anybody waits for a reply.
LEFTOVER_SECONDS = 60.0
# How long a guard may take to start, or to die after SIGKILL (seconds); the kernel needs milliseconds.
START_PATIENCE, END_PATIENCE = 5.0, 5.0

AGENT_LOCK, GUARD_LOCKS = "agent.lock", "guard*.lock"
# Cgroups of our own: these, and the process id of the agent that made them.
AGENT_CGROUP, GUARD_CGROUP = "sluice-agent-", "sluice-guard-"


class HeldError(Exception):
    """Somebody else holds the lock; the text says who."""


class GuardError(Exception):
    """A guard cannot be started, or does not end; the text says why."""


class Left(msgspec.Struct, frozen=True):
    """What the lock file of a guard says."""

    pid: int  # 0: not known yet
    maps: Sequence[int] = ()
    addresses: Sequence[Address] = ()


# Its number is in the lock file before anything can end us: nobody else could find a guard without one.
_NAME = "sluice-guard"
_GUARD = "printf '%s\\n' $$ '{maps}' '{addresses}' >&{lock}; exec -a {name} sleep infinity"
_LEFTOVER = "exec -a sluice-leftover sleep {seconds}"


def lock(path: Path) -> int:
    """Take a lock file and write our process id into it; returns the descriptor that holds it. `HeldError` if it is taken."""
    fd = _take(path)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _take(path: Path) -> int:
    """An empty lock file that is ours, by its descriptor."""
    # Not writable to others whatever our umask: whoever can replace a lock file tells us whom to kill.
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise HeldError(holder) from None
    os.ftruncate(fd, 0)
    return fd


class Guard:
    """The process that holds ``fds`` beside us."""

    def __init__(
        self, run_dir: Path, fds: Sequence[int], cgroup: Path, maps: Sequence[int] = (), addresses: Sequence[Address] = ()
    ) -> None:
        """Start it, in ``cgroup``, so that what kills the agent's own cgroup spares it. Older guards stay.

        ``maps`` are the numbers of those maps among ``fds`` that the next agent must keep, ``addresses`` those that hooks
        among ``fds`` point to. When this returns the guard holds all of them. Raises ``GuardError`` or ``OSError``, and then
        there is no new guard.
        """
        self._cgroup = cgroup
        lock_fd = _free_lock(run_dir)
        try:
            step("guard-locked")
            places = " ".join(f"{host},{port}" for host, port in addresses)
            script = _GUARD.format(lock=lock_fd, maps=" ".join(map(str, maps)), addresses=places, name=_NAME)
            self._process = _start(script, [lock_fd, *fds])
        finally:
            os.close(lock_fd)  # the guard's copy keeps the lock
        self.pid = self._process.pid
        try:
            step("guard-started")
            self._wait()
            step("guard-ready")
            cgroup.mkdir(parents=True, exist_ok=True)
            (cgroup / "cgroup.procs").write_text(str(self.pid))
        except BaseException:
            self.end()
            raise

    def _wait(self) -> None:
        """Until it sleeps: then its lock file is written, and nothing that it does can fail any more."""
        deadline = time.monotonic() + START_PATIENCE
        while not _command(self.pid).startswith(_NAME.encode()):
            if not self.alive or time.monotonic() > deadline:
                raise GuardError("the guard process does not start (it needs bash and sleep)")
            time.sleep(0.001)  # it takes a shell two or three of these

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        remove_cgroup(self._cgroup)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def _free_lock(run_dir: Path) -> int:
    """A lock for one more guard."""
    for number in itertools.count(1):
        with contextlib.suppress(HeldError):
            return _take(run_dir / ("guard.lock" if number == 1 else f"guard-{number}.lock"))
    raise AssertionError


def leave(fds: Sequence[int], cgroup: Path) -> None:
    """Keep ``fds`` open for LEFTOVER_SECONDS, by a process in ``cgroup`` that ends by itself."""
    process = _start(_LEFTOVER.format(seconds=LEFTOVER_SECONDS), fds)
    (cgroup / "cgroup.procs").write_text(str(process.pid))


def _start(script: str, fds: Sequence[int]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ["bash", "-c", script],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the agent's process group is not for it
    )


def holder(path: Path) -> int | None:
    """The process id in a lock file that somebody holds, 0 while it is not written yet; None if nobody holds it."""
    said = _said(path)
    return said if said is None else _read(said).pid


def guards(run_dir: Path) -> list[Left]:
    """The guards that hold hooks: our own, and those that agents before us have left."""
    said = (_said(path) for path in sorted(run_dir.glob(GUARD_LOCKS)))
    return [_read(text) for text in said if text is not None]


def _read(text: str) -> Left:
    """A lock file's text; what is not written yet, or cannot be understood, is not there."""
    pid, maps, addresses, *_ = [*text.split("\n"), "", ""]
    places = (place.rpartition(",") for place in addresses.split())
    try:
        return Left(int(pid or 0), list(map(int, maps.split())), [(host, int(port)) for host, _, port in places])
    except ValueError:
        return Left(0)


def _said(path: Path) -> str | None:
    """What the holder of a lock file has written into it; None if nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(fd, 4096).decode(errors="replace")
    finally:
        os.close(fd)
    return None


def end_guards(run_dir: Path, spare: int | None = None) -> None:
    """End the guards that agents before us have left; not the process ``spare``. Raises ``GuardError`` if one does not end."""
    deadline = time.monotonic() + END_PATIENCE
    while left := [each for each in guards(run_dir) if each.pid != spare]:
        if time.monotonic() > deadline:
            raise GuardError(f"an old guard (process {left[0].pid or 'not known yet'}) does not end")
        for each in left:
            if each.pid:
                _end(each.pid)
        time.sleep(0.001)


def _end(pid: int) -> None:
    """Kill a process whose lock has just said that its process id is still its own, and wait until it has left its cgroup."""
    with contextlib.suppress(ProcessLookupError):  # it ended between that look and now
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            ended = select.poll()
            ended.register(process, select.POLLIN)
            ended.poll(END_PATIENCE * 1e3)
        finally:
            os.close(process)


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the cgroups ``prefix`` + process id below ``folder`` in which nobody lives and whose maker is dead."""
    for cgroup in folder.glob(f"{prefix}*"):
        if Path("/proc", cgroup.name.removeprefix(prefix)).exists():
            continue  # another agent has made it and may be about to move in
        with contextlib.suppress(OSError):
            if not (cgroup / "cgroup.procs").read_text():
                remove_cgroup(cgroup)


def remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup of ours; its processes need a moment to leave it."""
    for _ in range(50):
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return
