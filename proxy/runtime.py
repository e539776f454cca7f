"""How every process of the agent runs its event loop, and with how many descriptors."""

import asyncio
import contextlib
import gc
import resource
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop

# How long another thread may keep the interpreter while the event loop has something to do.
SWITCH_SECONDS = 0.0005
# Descriptors that we ask for (what Linux gives a process at most, unless fs.nr_open is changed): the usual soft limit of 1,024
# is 170 connections.
DESCRIPTORS = 1 << 20


def run_loop(main: Coroutine[Any, Any, int | None]) -> int:
    """Run ``main`` on uvloop with as many descriptors as the system allows; its result, or 0."""
    _raise_descriptors()
    # What exists now lives as long as the process. Nothing on the way of a byte makes reference cycles, so a collection
    # would only look for garbage that is not there; it still runs, but rarely.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    # An automaton is made in a thread beside the event loop: Python's 5 ms would hold every call up meanwhile.
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main) or 0


def _raise_descriptors() -> None:
    """Raise the soft limit to the hard one, and with CAP_SYS_RESOURCE the hard one too. Our child processes inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < DESCRIPTORS:
        with contextlib.suppress(ValueError, OSError):  # not without the capability, and not above fs.nr_open
            resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
