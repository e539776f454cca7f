"""What ``sluice check`` makes of what it finds. What it finds on this machine is in tests/bpf/test_check.py."""

import dataclasses
from pathlib import Path

import pytest

from proxy import guard, preflight
from proxy.reading import CALLS, ReadingCalls, Right
from proxy.selftest import Findings


@pytest.mark.parametrize(
    ("release", "fit"),
    [
        ("6.1.0-28-amd64", True),
        ("6.18.44", True),
        ("10.0", True),
        ("5.15.0-91-generic", False),
        ("6.0.9", False),
        ("odd", False),
    ],
)
def test_the_kernel_must_be_new_enough(release: str, fit: bool) -> None:
    result = preflight.kernel(release)
    assert result.ok is fit
    assert release in result.detail
    assert (result.hint is None) is fit


def test_missing_btf_and_objects_are_named_with_what_to_do(tmp_path: Path) -> None:
    for result, hint in (
        (preflight.btf(tmp_path / "vmlinux"), "CONFIG_DEBUG_INFO_BTF"),
        (preflight.objects(tmp_path / "redirect.bpf.o"), "make bpf"),
    ):
        assert not result.ok
        assert str(tmp_path) in result.detail
        assert result.hint is not None
        assert hint in result.hint


def test_missing_capabilities_are_named() -> None:
    result = preflight.privileges("Name:\tpython\nCapEff:\t0000008000001000\n")  # CAP_BPF and CAP_NET_ADMIN
    assert not result.ok
    assert "without CAP_PERFMON" in result.detail
    assert "CAP_BPF" not in result.detail


def test_neighbours_that_share_are_named_and_those_that_do_not_are_a_failure() -> None:
    shared = {"id": 7, "attach_type": "cgroup_inet4_connect", "attach_flags": "multi", "name": "cil_sock4_connect"}
    alone = {"id": 8, "attach_type": "cgroup_inet6_connect", "attach_flags": "", "name": "old_thing"}
    ours = {"id": 9, "attach_type": "cgroup_sock_ops", "attach_flags": "multi", "name": "sluice_sock_ops"}
    assert preflight.judge_neighbours([]) == preflight.Result("neighbours", True, "none")
    beside = preflight.judge_neighbours([shared, ours])
    assert beside.ok
    assert beside.detail == "cil_sock4_connect (cgroup_inet4_connect); 1 programs of Sluice"
    against = preflight.judge_neighbours([shared, alone])
    assert not against.ok
    assert against.hint is not None
    assert against.hint.endswith("old_thing, id 8")


@pytest.mark.parametrize(
    ("hard", "ok", "advice"), [(-1, True, False), (65536, True, False), (4096, True, True), (64, False, True)]
)
def test_the_limit_of_open_files_is_told_in_connections(hard: int, ok: bool, advice: bool) -> None:
    result = preflight.descriptors(hard, may_raise=False)
    assert (result.ok, result.hint is not None) == (ok, advice)
    if hard > 0:
        assert f"about {hard // 6} connections" in result.detail


def test_an_agent_that_may_raise_the_limit_of_open_files_is_not_held_up_by_it() -> None:
    result = preflight.descriptors(64, may_raise=True)
    assert (result.ok, result.hint) == (True, None)
    assert result.detail == "1048576: about 174762 connections at once (the agent raises the limit of 64)"


RIGHT = ReadingCalls(**dict.fromkeys(CALLS, Right(True, True)))


def test_a_kernel_that_reads_right_needs_no_hint() -> None:
    result = preflight.judge_kernel_path(Findings(None, RIGHT), "1 ms")
    assert (result.ok, result.detail, result.hint) == (True, "a call carried in 1 ms", None)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("fionread", "FIONREAD is wrong of accelerated sockets: nginx, Java's available() may wait for ever. Cure: "),
        ("splice", "splice is wrong of accelerated sockets: haproxy"),
        ("wait_all", "MSG_WAITALL is wrong of accelerated sockets: programs that read records of"),
    ],
)
def test_what_a_kernel_reads_wrong_is_told_with_who_suffers_and_the_cure(call: str, says: str) -> None:
    """It is left to the workload's word then whether its calls are carried."""
    result = preflight.judge_kernel_path(Findings(None, dataclasses.replace(RIGHT, **{call: Right(False, True)})), "1 ms")
    assert result.ok, "Sluice does the same without it"
    assert result.hint is not None
    assert result.hint.startswith(says)
    assert "acceleration: off" in result.hint
    assert "only for workloads that ask for it" in result.detail


def test_what_is_wrong_about_bytes_of_tcp_harms_nobody() -> None:
    """TCP brings an accelerated socket nothing but the end."""
    found = Findings(None, dataclasses.replace(RIGHT, fionread=Right(True, False)))
    assert preflight.judge_kernel_path(found, "1 ms").hint is None


def test_a_kernel_without_the_kernel_path_is_told_why() -> None:
    result = preflight.judge_kernel_path(Findings("a reply does not arrive"), "1 ms")
    assert (result.ok, result.detail) == (True, "not on this kernel, calls are relayed: a reply does not arrive")


def test_guards_that_agents_have_left_are_all_told(tmp_path: Path) -> None:
    with guard_lock(tmp_path / "guard.lock") as pid, guard_lock(tmp_path / "guard-2.lock"):
        left = preflight.agents(tmp_path)
        assert left.detail.endswith(f"guard {pid} {pid}")
        assert left.hint is not None
        assert left.hint.endswith(f"kill {pid} {pid}")


def test_an_agent_and_a_guard_are_told_by_process_id(tmp_path: Path) -> None:
    assert preflight.agents(tmp_path).detail == f"none with {tmp_path}"
    with guard_lock(tmp_path / "guard.lock") as pid:
        left = preflight.agents(tmp_path)
        assert left.ok
        assert f"guard {pid}" in left.detail
        assert left.hint is not None
        assert f"kill {pid}" in left.hint
        with guard_lock(tmp_path / guard.AGENT_LOCK):
            assert preflight.agents(tmp_path).detail.startswith(f"process {pid} runs")


class guard_lock:  # noqa: N801 - reads as a function
    """Holds a lock file, as another process would."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        import os

        self._fd = guard.lock(self._path)
        return os.getpid()

    def __exit__(self, *_: object) -> None:
        import os

        os.close(self._fd)


def test_a_hint_stands_with_every_failure_and_checks_wait_for_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "privileges", lambda _: preflight.Result("privileges", False, "user id 1", "run as root"))
    results = {result.name: result for result in preflight.preflight(tmp_path)}
    waiting = ("programs", "self-test", "kernel path")
    assert [results[name].detail for name in waiting] == ["not tried"] * 3
    assert all(result.hint for result in results.values() if not result.ok)
