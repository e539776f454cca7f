"""The limit of open files: raised at the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import preflight
from proxy.runtime import DESCRIPTORS

PROGRAM = """
import asyncio, os, resource, sys
from proxy.runtime import run_loop
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))
if sys.argv[1] == "nobody":
    os.setgid(65534), os.setuid(65534)
async def main():
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
run_loop(main())
"""


def limits(who: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, who], capture_output=True, text=True, timeout=30, check=True)
    return list(map(int, done.stdout.split()))


def test_the_soft_limit_becomes_the_hard_one_and_both_are_raised_with_the_capability_for_it() -> None:
    may = preflight._held(Path("/proc/self/status").read_text()) >> preflight.CAP_SYS_RESOURCE & 1
    assert limits("us") == [DESCRIPTORS if may else 1024] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_the_capability_the_hard_limit_is_all_there_is() -> None:
    assert limits("nobody") == [1024, 1024]
