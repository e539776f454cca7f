"""``sluice check`` on this machine, which can run all the other tests, so it must find it fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bpf.loader import BpfError
from proxy import preflight
from proxy.datapath import Hooks
from proxy.workloads import cgroup2_mount
from tests.harness import ROOT, SLUICE


def _check(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SLUICE, "check", *options], capture_output=True, text=True, timeout=60)


def test_a_fit_machine_is_told_so_after_a_real_redirect(tmp_path: Path) -> None:
    done = _check("--run-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    assert "a connection redirected in" in done.stdout
    assert done.stdout.endswith("This machine is fit.\n")


def test_scripts_get_the_same_as_json(tmp_path: Path) -> None:
    told = json.loads(_check("--run-dir", str(tmp_path), "-o", "json").stdout)
    assert told["fit"] is True
    checks = {each["name"]: each for each in told["checks"]}
    assert checks["self-test"]["ok"] is True
    assert checks["kernel path"]["detail"].startswith("a call carried in")


def test_a_kernel_that_cannot_end_connections_is_told_so_and_is_fit_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight.old_connections().detail.startswith("ended")

    def refuse(hooks: Hooks) -> None:
        raise BpfError("extern (func ksym) 'bpf_sock_destroy': not found")

    monkeypatch.setattr(preflight, "Existing", refuse)
    told = preflight.old_connections()
    assert told.ok
    assert told.detail == "not ended when policy comes: this kernel cannot"


def test_without_root_the_exit_code_is_one_and_the_hint_says_what_is_missing(tmp_path: Path) -> None:
    # The interpreter may lie where nobody else can read, so rights are given up only after the imports.
    code = "import os, sys, proxy.preflight; from proxy.cli import main; os.setgid(65534); os.setuid(65534); main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "check", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "FAIL  privileges" in done.stdout
    assert "run as root" in done.stdout


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    _check("--run-dir", str(tmp_path))
    assert not list((cgroup2_mount() / "sluice").glob("check-*"))
    assert not list(tmp_path.iterdir())
