"""Which tests can run here. A missing capability is a skip with its reason, or, where CI demands it, a failure."""

import os
from functools import cache
from pathlib import Path

import pytest

REQUIRE = os.environ.get("SLUICE_REQUIRE_BPF") == "1"


@cache
def missing_for_bpf() -> str | None:
    """Why programs cannot be loaded and attached here; None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "this kernel has no BTF"
    if not any(" cgroup2 " in line for line in Path("/proc/self/mounts").read_text().splitlines()):
        return "cgroup v2 is not mounted"
    if not Path(__file__).parent.parent.joinpath("bpf/redirect.bpf.o").exists():
        return "the BPF objects are not built (make bpf)"
    return None


def require_bpf() -> None:
    """Skip the calling test with the reason, or fail it where BPF is demanded."""
    reason = missing_for_bpf()
    if reason is None:
        return
    if REQUIRE:
        pytest.fail(f"SLUICE_REQUIRE_BPF=1, but {reason}")
    pytest.skip(reason)
