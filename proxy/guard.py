"""Keeps the hooks in the kernel when the agent is killed, and lets the next agent take over.

A BPF link lives as long as a process holds it. If only the agent held the hooks, ``kill -9`` would open every policed
connection. So a second process, the *guard*, holds the links too. It does nothing else: it is ``sleep`` with inherited file
descriptors. Without the agent's heartbeat the hooks refuse what is policed. A clean stop ends the guard; a new agent first
attaches its own hooks and then ends the old guard, so that there is no moment without either.

Two locks in the run folder tell who is there: ``agent.lock`` is held by the agent alone, ``guard.lock`` by the guard.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

# How long a guard may take to die after SIGKILL (seconds); the kernel needs milliseconds.
END_PATIENCE = 5.0

AGENT_LOCK, GUARD_LOCK = "agent.lock", "guard.lock"


class HeldError(Exception):
    """Somebody else holds the lock; the text says who."""


def lock(path: Path, owner: int | None = None) -> int:
    """Take a lock file and write our process id into it; returns the descriptor that holds it. `HeldError` if it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise HeldError(holder) from None
    _write_pid(fd, owner or os.getpid())
    return fd


def _write_pid(fd: int, pid: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{pid}\n".encode(), 0)


class Guard:
    """The process that holds ``fds`` beside us."""

    def __init__(self, run_dir: Path, fds: Sequence[int], cgroup: Path) -> None:
        """Start it, in ``cgroup``, so that what kills the agent's own cgroup spares it. Ends an older guard first."""
        end_old(run_dir)
        self._cgroup = cgroup
        lock_fd = lock(run_dir / GUARD_LOCK)
        cgroup.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            ["sluice-guard", "infinity"],
            executable="/bin/sleep",
            pass_fds=[lock_fd, *fds],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the agent's process group is not for the guard
        )
        _write_pid(lock_fd, self._process.pid)
        os.close(lock_fd)  # the guard's copy keeps the lock
        (cgroup / "cgroup.procs").write_text(str(self._process.pid))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        remove_cgroup(self._cgroup)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


def holder(path: Path) -> int | None:
    """The process id in a lock file that somebody holds; None if nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(fd, 32) or 0) or None
    finally:
        os.close(fd)
    return None


def old_guard(run_dir: Path) -> int | None:
    """The process id of a guard that is holding hooks, ours or another agent's."""
    return holder(run_dir / GUARD_LOCK)


def end_old(run_dir: Path) -> None:
    """End the guard that a killed agent left behind. The lock says that its process id is still its own."""
    pid = old_guard(run_dir)
    if pid is None:
        return
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + END_PATIENCE
    while old_guard(run_dir) is not None:
        if time.monotonic() > deadline:
            raise HeldError(f"the old guard (process {pid}) does not end")
        time.sleep(0.01)


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
