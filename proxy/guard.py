"""Keeps the hooks in the kernel when the agent is killed, and lets the next agent take over.

A BPF link lives as long as a process holds it. If only the agent held the hooks, ``kill -9`` would open every policed
connection. So a second process, the *guard*, holds the links too. It does nothing else: it is ``sleep``, by another name, with
inherited file descriptors. Without the agent's heartbeat the hooks refuse what is policed. A clean stop ends the guard; a
new agent first attaches its own hooks and then ends the old guard, so that there is no moment without either.

Two locks in the run folder tell who is there: ``agent.lock`` is held by the agent alone, ``guard.lock`` by the guard.
"""

import contextlib
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
# Cgroups of our own: these, and the process id of the agent that made them.
AGENT_CGROUP, GUARD_CGROUP = "sluice-agent-", "sluice-guard-"


class HeldError(Exception):
    """Somebody else holds the lock; the text says who."""


# Its number is in the lock file before anything can end us: nobody else could find a guard without one.
_GUARD = "echo $$ >&{lock}; exec -a sluice-guard sleep infinity"


def lock(path: Path) -> int:
    """Take a lock file and write our process id into it; returns the descriptor that holds it. `HeldError` if it is taken."""
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
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


class Guard:
    """The process that holds ``fds`` beside us."""

    def __init__(self, run_dir: Path, fds: Sequence[int], cgroup: Path) -> None:
        """Start it, in ``cgroup``, so that what kills the agent's own cgroup spares it. Ends an older guard first."""
        end_old(run_dir)
        remove_abandoned(cgroup.parent, GUARD_CGROUP)
        self._cgroup = cgroup
        lock_fd = lock(run_dir / GUARD_LOCK)
        os.ftruncate(lock_fd, 0)
        cgroup.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            ["bash", "-c", _GUARD.format(lock=lock_fd)],
            pass_fds=[lock_fd, *fds],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the agent's process group is not for the guard
        )
        os.close(lock_fd)  # the guard's copy keeps the lock
        while self.alive and not old_guard(run_dir):
            time.sleep(0.001)  # it takes a shell two or three of these to say its number
        (cgroup / "cgroup.procs").write_text(str(self._process.pid))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        remove_cgroup(self._cgroup)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None


def holder(path: Path) -> int | None:
    """The process id in a lock file that somebody holds, 0 while it is not written yet; None if nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(fd, 32).strip() or 0)
    finally:
        os.close(fd)
    return None


def old_guard(run_dir: Path) -> int | None:
    """The process id of a guard that is holding hooks, ours or another agent's."""
    return holder(run_dir / GUARD_LOCK)


def end_old(run_dir: Path) -> None:
    """End the guard that a killed agent left behind. The lock says that its process id is still its own."""
    deadline = time.monotonic() + END_PATIENCE
    while (pid := old_guard(run_dir)) is not None:
        if time.monotonic() > deadline:
            raise HeldError(f"the old guard (process {pid or 'not known yet'}) does not end")
        if pid:
            with contextlib.suppress(ProcessLookupError):  # it ended between our look and now
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


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
