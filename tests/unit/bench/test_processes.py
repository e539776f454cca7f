"""Running processes are moved between CPUs, and do not count as a disturbance."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import Others
from bench.processes import Service, place, service

THREADS = """import threading, time
for _ in range(3):
    threading.Thread(target=time.sleep, args=(30,)).start()
print("up", flush=True)
"""
BUSY = "import time; end = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


@pytest.fixture
def threads(tmp_path: Path) -> Iterator[Service]:
    with service([sys.executable, "-c", THREADS], tmp_path / "err", tmp_path / "out") as running:
        deadline = time.monotonic() + 20
        while "up" not in (tmp_path / "out").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield running


def test_every_thread_moves_to_the_cpus_that_a_layout_gives(threads: Service) -> None:
    cpu = min(os.sched_getaffinity(0))
    place(threads, {cpu})
    tasks = [int(task.name) for task in Path(f"/proc/{threads.process.pid}/task").iterdir()]
    assert len(tasks) == 4
    assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset({cpu})}


def test_what_is_ours_does_not_disturb(tmp_path: Path) -> None:
    with service([sys.executable, "-c", BUSY], tmp_path / "err") as ours:
        before = Others(), Others(ours)
        time.sleep(0.5)
        with_it, without_it = before[0].percent(), before[1].percent()
    assert without_it < with_it
