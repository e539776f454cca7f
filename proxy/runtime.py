"""How every process of the agent runs its event loop."""

import asyncio
import gc
import resource
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop

# How long another thread may keep the interpreter while the event loop has something to do.
SWITCH_SECONDS = 0.0005


def run_loop(main: Coroutine[Any, Any, int | None]) -> int:
    """Run ``main`` on uvloop with as many descriptors as the system allows; its result, or 0."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What exists now lives as long as the process. Nothing on the way of a byte makes reference cycles, so a collection
    # would only look for garbage that is not there; it still runs, but rarely.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    # An automaton is made in a thread beside the event loop: Python's 5 ms would hold every call up meanwhile.
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main) or 0
