"""Keeps the hooks in the kernel when the agent is killed, and lets the next agent take over.

A BPF link lives as long as a process holds it. If only the agent held the hooks, ``kill -9`` would open every policed
connection. So a second process, the *guard*, holds the links too. It does nothing else: it is ``sleep``, by another name, with
inherited file descriptors. Without the agent's heartbeat the hooks refuse what is policed. A clean stop ends the guard; a
new agent first attaches its own hooks and then ends the old guard, so that there is no moment without either.

Two locks in the run folder tell who is there: ``agent.lock`` is held by the agent alone, ``guard.lock`` by the guard.

What the kernel has carried and nobody has read yet lives in a map of sockets, and is lost with it. So that map outlives the
agent and the guard: a new agent takes it over from a dead one's guard, and a clean stop leaves it to a process like the guard
for LEFTOVER_SECONDS, if there is an application that has not closed its end.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

# How long what was carried may wait for its reader behind the end of the agent (seconds): as long as anybody waits for a reply.
LEFTOVER_SECONDS = 60.0
# How long a guard may take to die after SIGKILL (seconds); the kernel needs milliseconds.
END_PATIENCE = 5.0

AGENT_LOCK, GUARD_LOCK = "agent.lock", "guard.lock"
# Cgroups of our own: these, and the process id of the agent that made them.
AGENT_CGROUP, GUARD_CGROUP = "sluice-agent-", "sluice-guard-"


class HeldError(Exception):
    """Somebody else holds the lock; the text says who."""


# Its number is in the lock file before anything can end us: nobody else could find a guard without one.
_GUARD = "echo $$ {maps} >&{lock}; exec -a sluice-guard sleep infinity"
_LEFTOVER = "exec -a sluice-leftover sleep {seconds}"


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

    def __init__(self, run_dir: Path, fds: Sequence[int], cgroup: Path, maps: Sequence[int] = ()) -> None:
        """Start it, in ``cgroup``, so that what kills the agent's own cgroup spares it. Ends an older guard first.

        ``maps`` are the numbers of those maps among ``fds`` that the next agent must keep.
        """
        end_old(run_dir)
        remove_abandoned(cgroup.parent, GUARD_CGROUP)
        self._cgroup = cgroup
        lock_fd = lock(run_dir / GUARD_LOCK)
        os.ftruncate(lock_fd, 0)
        cgroup.mkdir(parents=True, exist_ok=True)
        self._process = _start(_GUARD.format(lock=lock_fd, maps=" ".join(map(str, maps))), [lock_fd, *fds])
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
    return said if said is None else int(said.partition(" ")[0] or 0)


def left_maps(run_dir: Path) -> list[int]:
    """The numbers of the maps that an old guard holds and the next agent must keep."""
    return [int(number) for number in (_said(run_dir / GUARD_LOCK) or "").split()[1:]]


def _said(path: Path) -> str | None:
    """What the holder of a lock file has written into it; None if nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(fd, 256).decode(errors="replace").strip()
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
