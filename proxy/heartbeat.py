"""Says that the agent lives, from a thread of its own.

The event loop may be late for a second, with a large policy or on a machine with too much to do, and nobody must be refused for
that; so it is not the loop that beats. But a loop that never turns again judges nothing any more: the thread falls silent when
the loop has not turned for ``HANG_SECONDS``, and then connects are refused as behind a dead agent.
"""

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from time import monotonic

# How often the thread beats and the loop shows that it turns (seconds).
INTERVAL = 0.1
# A loop that has not turned for so long (seconds) hangs. No work of the agent takes a tenth of it; longer, and clients whose
# connections nobody accepts would wait for nothing.
HANG_SECONDS = 5.0
# The longest pause of the loop is told for this long (seconds).
REMEMBERED = 60.0


class Heartbeat:
    """``beat`` is called ten times a second from the thread while the loop turns; ``hang`` once if it does not any more, and is
    told what the loop's thread is doing. To be made in that."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, beat: Callable[[], None], hang: Callable[[str], None] = lambda where: None
    ) -> None:
        self._loop = loop
        self._beat = beat
        self._hang = hang
        self._watched = threading.get_ident()
        self._missed = 0  # beats since the loop has turned; counted, because a process that was stopped has missed none
        self._turned_at = monotonic()
        self._pauses: deque[tuple[float, float]] = deque()  # (when, seconds): each longer than those behind it
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sluice-heartbeat", daemon=True)

    def start(self) -> None:
        self._turned_at = monotonic()
        self._beat()
        self._turn()
        self._thread.start()

    def end(self) -> None:
        """When this returns, there is no beat any more."""
        if self._timer:
            self._timer.cancel()
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def age(self) -> float:
        """Seconds since the loop has turned."""
        return monotonic() - self._turned_at

    @property
    def longest_pause(self) -> float:
        """For how long the loop did not turn, at most, in the last ``REMEMBERED`` seconds; 0 if it was never late."""
        self._forget(monotonic())
        return self._pauses[0][1] if self._pauses else 0.0

    def _turn(self) -> None:
        now = monotonic()
        late = now - self._turned_at - INTERVAL
        self._turned_at, self._missed = now, 0
        if late > INTERVAL:
            while self._pauses and self._pauses[-1][1] <= late:
                self._pauses.pop()
            self._pauses.append((now, late))
        self._forget(now)
        self._timer = self._loop.call_later(INTERVAL, self._turn)

    def _forget(self, now: float) -> None:
        while self._pauses and now - self._pauses[0][0] > REMEMBERED:
            self._pauses.popleft()

    def _run(self) -> None:
        most = round(HANG_SECONDS / INTERVAL)
        while not self._ended.wait(INTERVAL):
            self._missed += 1
            if self._missed < most:
                self._beat()
            elif self._missed == most:
                self._hang(self._where())

    def _where(self) -> str:
        frame = sys._current_frames().get(self._watched)
        return "".join(traceback.format_stack(frame)) if frame else ""
