"""The guard: a process that holds what it was given, and two locks that tell who is there."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import guard


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    guard.end_guards(tmp_path / "run")


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """A plain folder stands in for the guard's cgroup: what would be moved there is only written down."""
    return tmp_path / "cgroup"


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.lock"
    assert guard.holder(path) is None
    fd = guard.lock(path)
    assert guard.holder(path) == os.getpid()
    with pytest.raises(guard.HeldError, match=str(os.getpid())):
        guard.lock(path)
    os.close(fd)
    assert guard.holder(path) is None
    os.close(guard.lock(path))


def test_the_run_folder_is_writable_to_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    """Whoever can replace a lock file says which process the next agent kills."""
    before = os.umask(0)
    try:
        os.close(guard.lock(tmp_path / "run" / "agent.lock"))
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "agent.lock"
    code = (
        "import sys, time; from pathlib import Path; from proxy import guard\n"
        "guard.lock(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert guard.holder(path) == process.pid
        process.kill()
    assert guard.holder(path) is None


def test_the_guard_holds_descriptors_after_we_have_closed_ours(run_dir: Path, cgroup: Path) -> None:
    """A pipe stands in for a link: its reader sees the end only when nobody holds the writing end."""
    reader, writer = os.pipe()
    held = guard.Guard(run_dir, [writer], cgroup)
    os.close(writer)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    assert held.alive
    assert [left.pid for left in guard.guards(run_dir)] == [int((cgroup / "cgroup.procs").read_text())]
    held.end()
    assert os.read(reader, 1) == b""
    assert not held.alive
    assert guard.guards(run_dir) == []
    os.close(reader)


def test_a_signal_to_the_agents_process_group_is_not_for_the_guard(run_dir: Path, cgroup: Path) -> None:
    held = guard.Guard(run_dir, [], cgroup)
    assert os.getpgid(held.pid) != os.getpgid(0)
    assert os.getsid(held.pid) == held.pid
    held.end()


# A process that starts a guard and is killed: "python -c MADE_AND_KILLED RUN_DIR CGROUP".
MADE_AND_KILLED = (
    "import os, signal, sys; from pathlib import Path; from proxy import guard\n"
    "guard.Guard(Path(sys.argv[1]), [], Path(sys.argv[2]), [7], [('::1', 80)]); os.kill(os.getpid(), signal.SIGKILL)"
)


def test_guards_of_killed_agents_stay_until_there_is_another_and_they_are_told_to_end(run_dir: Path, cgroup: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, "-c", MADE_AND_KILLED, str(run_dir), str(cgroup)])
    old = guard.guards(run_dir)
    assert [(left.maps, left.addresses) for left in old] == [([7], [("::1", 80)])] * 2
    assert all(Path(f"/proc/{left.pid}/cmdline").read_bytes().startswith(b"sluice-guard") for left in old)
    held = guard.Guard(run_dir, [], cgroup)
    assert {left.pid for left in guard.guards(run_dir)} == {held.pid, *(left.pid for left in old)}
    guard.end_guards(run_dir, spare=held.pid)
    assert [left.pid for left in guard.guards(run_dir)] == [held.pid]
    assert not any(_runs(left.pid) for left in old)
    held.end()


@pytest.mark.parametrize("step", ["guard-locked", "guard-started", "guard-ready"])
def test_an_agent_that_is_killed_while_it_makes_a_guard_leaves_the_old_one(step: str, run_dir: Path, cgroup: Path) -> None:
    held = guard.Guard(run_dir, [], cgroup)
    command = [sys.executable, "-c", MADE_AND_KILLED, str(run_dir), str(cgroup)]
    assert subprocess.run(command, env={**os.environ, "SLUICE_DIE_AT": step}).returncode == -signal.SIGKILL
    assert held.alive
    assert held.pid in [left.pid for left in guard.guards(run_dir)]
    guard.end_guards(run_dir, spare=held.pid)  # a half-made one can be found
    assert [left.pid for left in guard.guards(run_dir)] == [held.pid]
    held.end()


def test_a_guard_that_cannot_start_leaves_nothing(run_dir: Path, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_GUARD", "exec -a {name} no-such-command {lock} {maps} {addresses}")
    with pytest.raises(guard.GuardError, match="does not start"):
        guard.Guard(run_dir, [], cgroup)
    assert guard.guards(run_dir) == []


def test_a_lock_file_that_nobody_understands_is_a_guard_of_unknown_number(run_dir: Path) -> None:
    fd = guard.lock(run_dir / "guard.lock")
    os.pwrite(fd, b"what\n", 0)
    assert guard.guards(run_dir) == [guard.Left(0)]
    os.close(fd)


def _runs(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_ending_a_guard_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    guard.end_guards(tmp_path)


def test_a_cgroup_that_somebody_lives_in_is_left(tmp_path: Path) -> None:
    (tmp_path / "lived/in").mkdir(parents=True)
    began = time.monotonic()
    guard.remove_cgroup(tmp_path / "lived")
    assert (tmp_path / "lived/in").exists()
    assert time.monotonic() - began < 10
    guard.remove_cgroup(tmp_path / "lived/in")
    assert not (tmp_path / "lived/in").exists()
    guard.remove_cgroup(tmp_path / "never")
