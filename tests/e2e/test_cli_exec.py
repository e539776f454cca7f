"""``sluice exec``: the command's own exit code, or the shell's for a command that cannot be run."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import SLUICE, Workload

pytestmark = pytest.mark.only("relay", "there is no agent")


def test_the_exit_code_is_the_commands(web: Workload) -> None:
    assert web.run("sh", "-c", "exit 7").returncode == 7


def test_the_command_runs_in_the_workloads_cgroup_and_with_its_arguments_untouched(web: Workload) -> None:
    code = "import sys; print(open('/proc/self/cgroup').read().split('0::')[1].strip(), sys.argv[1:])"
    done = web.python(code, "-f", "--", "--help")
    assert done.stdout.strip() == f"/sluice/{web.name} ['-f', '--', '--help']"


def test_the_command_has_our_limit_of_open_files_and_not_the_agents(web: Workload) -> None:
    ours = subprocess.run(["sh", "-c", "ulimit -Sn; ulimit -Hn"], capture_output=True, text=True).stdout
    assert web.run("sh", "-c", "ulimit -Sn; ulimit -Hn").stdout == ours


def test_a_command_that_is_not_there_is_127(web: Workload) -> None:
    done = web.run("no-such-command-anywhere")
    assert done.returncode == 127
    assert "no-such-command-anywhere: command not found" in done.stderr


def test_a_file_that_cannot_be_executed_is_126(web: Workload, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no program\n")
    done = web.run(str(file))
    assert done.returncode == 126
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("web",), ("web", "--"), ("../escape", "--", "true"), ("a/b", "--", "true")])
def test_bad_usage_exits_2(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([SLUICE, "exec", *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_signal_reaches_the_command_and_its_death_is_seen(web: Workload) -> None:
    process = web.start("sh", "-c", "echo up; exec sleep 60", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    process.stdout.close()


def test_a_command_that_writes_into_a_closed_pipe_is_ended_by_sigpipe(web: Workload) -> None:
    """Python ignores SIGPIPE; a command that inherited that would complain, or write for ever."""
    process = web.start("yes", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(10) == -signal.SIGPIPE
    process.stderr.close()


def test_without_root_the_text_says_so() -> None:
    drop = "import os, proxy.commands.exec; from proxy.cli import main; os.setgid(65534); os.setuid(65534); "
    done = subprocess.run(
        [sys.executable, "-c", drop + "main(['exec', 'web', '--', 'true'])"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 126
    assert "are you root?" in done.stderr


def test_every_verb_shows_its_help(workload: Callable[..., Workload]) -> None:
    done = subprocess.run([SLUICE, "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    for verb in ("run", "exec"):
        assert verb in done.stdout
        assert subprocess.run([SLUICE, verb, "--help"], capture_output=True, timeout=30).returncode == 0
