"""The guard: a process that holds what it was given, and two locks that tell who is there."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import guard
from tests.harness import eventually


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    guard.end_old(tmp_path / "run")


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
    assert guard.old_guard(run_dir) == int((cgroup / "cgroup.procs").read_text())
    held.end()
    assert os.read(reader, 1) == b""
    assert not held.alive
    assert guard.old_guard(run_dir) is None
    os.close(reader)


def test_a_signal_to_the_agents_process_group_is_not_for_the_guard(run_dir: Path, cgroup: Path) -> None:
    held = guard.Guard(run_dir, [], cgroup)
    pid = guard.old_guard(run_dir)
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    assert os.getsid(pid) == pid
    held.end()


def test_the_guard_of_a_killed_agent_stays_until_the_next_guard_ends_it(run_dir: Path, cgroup: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from proxy import guard\n"
        "guard.Guard(Path(sys.argv[1]), [], Path(sys.argv[2])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(run_dir), str(cgroup)])
    old = guard.old_guard(run_dir)
    assert old is not None
    eventually(lambda: b"sluice-guard" in Path(f"/proc/{old}/cmdline").read_bytes(), "the guard's own name")
    held = guard.Guard(run_dir, [], cgroup)
    assert guard.old_guard(run_dir) not in (None, old)
    assert not _runs(old)
    held.end()


def _runs(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_ending_a_guard_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    guard.end_old(tmp_path)


def test_a_cgroup_that_somebody_lives_in_is_left(tmp_path: Path) -> None:
    (tmp_path / "lived/in").mkdir(parents=True)
    began = time.monotonic()
    guard.remove_cgroup(tmp_path / "lived")
    assert (tmp_path / "lived/in").exists()
    assert time.monotonic() - began < 10
    guard.remove_cgroup(tmp_path / "lived/in")
    assert not (tmp_path / "lived/in").exists()
    guard.remove_cgroup(tmp_path / "never")
