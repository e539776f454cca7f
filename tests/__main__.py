"""``python -m tests`` (``make test``): every test, in parts that run side by side, each in a room of its own.

As many parts as there are processors run at a time. Where rooms cannot be made, for want of root, the parts run one after
the other on the machine as it is. Arguments are handed on to every pytest.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from tests import room
from tests.harness import ROOT

# How long tests may take to clean up after Ctrl-C before they are killed (seconds).
LAST_ORDERS = 20.0
# How long the last lines of a part that has ended may take (seconds).
LAST_WORDS = 2.0


class Part(NamedTuple):
    """A run of pytest."""

    name: str
    folders: tuple[str, ...]
    options: tuple[str, ...] = ()


E2E, KAFKA, PROGRAMS, BPF = "tests/e2e", "tests/kafka", "tests/programs", "tests/bpf"
# The longest first, so that none is left for the end. What clients met at Kafka itself is found out once in a part that has
# both E2E and KAFKA. "rest" has all that the others do not have, whatever folders there are.
PARTS = (
    Part("kernel", (E2E,), ("--datapath", "kernel")),
    Part("relay", (E2E, KAFKA)),
    Part("rest", ("tests",), tuple(f"--ignore={folder}" for folder in (E2E, KAFKA, PROGRAMS, BPF))),
    Part("programs", (PROGRAMS,)),
    Part("carried programs", (PROGRAMS,), ("--datapath", "kernel")),
    Part("bpf", (BPF,)),
)
WIDTH = max(len(part.name) for part in PARTS)


class Run:
    """A part that is running. Each line that it prints is shown with its name."""

    def __init__(self, part: Part, in_room: bool, options: Sequence[str]) -> None:
        self.part = part
        self._began = time.monotonic()
        self._said = ""
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *part.folders, *part.options, *options]
        with contextlib.ExitStack() as stack:
            if in_room:
                root = stack.enter_context(room.cgroup(f"sluice-tests-{part.name.replace(' ', '-')}"))
                command = room.entrance(root, *command)
            # In a process group of its own: Ctrl-C is ours to hand on, to pytest alone, which ends its agents in order. It is
            # interrupted as well if we are killed.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "INT", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                process_group=0,
            )
            self._stack = stack.pop_all()
        self._showing = threading.Thread(target=self._show, daemon=True)
        self._showing.start()

    def _show(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said = line.rstrip()
            print(f"{self.part.name:{WIDTH}} | {self._said}", flush=True)

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self, patience: float = 0) -> bool:
        """Give it some time to end, and close its room; says whether all was well."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        self._stack.close()
        self._process.wait()
        self._showing.join(LAST_WORDS)  # on the machine as it is, a process that a test has left may hold the output open
        return self._process.returncode == 0

    def summary(self) -> str:
        verdict = "ok" if self._process.returncode == 0 else "FAILED"
        return f"{verdict:6} {self.part.name:{WIDTH}} {time.monotonic() - self._began:4.0f} s  {self._said.strip('= ')}"


def run(parts: Sequence[Part], jobs: int, in_rooms: bool, options: Sequence[str] = ()) -> bool:
    """Run ``parts``, ``jobs`` at a time; says whether all was well."""
    waiting, running = list(parts), list[Run]()
    summaries, good = [], True
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Run(waiting.pop(0), in_rooms, options))
            for one in [one for one in running if one.is_over]:
                running.remove(one)
                good &= one.end()
                summaries.append(one.summary())
            time.sleep(0.1)
    finally:
        for one in running:
            one.interrupt()
        for one in running:
            one.end(LAST_ORDERS)
    print("", *summaries, sep="\n", flush=True)
    return good


def main(options: Sequence[str], parts: Sequence[Part], hindrance: str | None) -> int:
    """Run ``parts``, side by side where there is no ``hindrance`` to it; the exit code."""
    jobs = 1 if hindrance else len(os.sched_getaffinity(0))
    print(f"tests: one part after the other: {hindrance}" if hindrance else f"tests: {jobs} parts at a time", flush=True)
    if sys.stdout.isatty():
        options = ("--color=yes", *options)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return 0 if run(parts, jobs, not hindrance, options) else 1
    except KeyboardInterrupt:
        print("\ntests: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], PARTS, room.missing()))
