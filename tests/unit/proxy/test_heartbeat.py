"""The heartbeat goes on while the event loop is busy, and ends when it hangs."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from proxy import heartbeat
from proxy.heartbeat import Heartbeat


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    monkeypatch.setattr(heartbeat, "HANG_SECONDS", 0.5)


class Pulse:
    def __init__(self) -> None:
        self.beats = 0
        self.hangs = threading.Event()
        self.where = ""

    def beat(self) -> None:
        self.beats += 1

    def hang(self, where: str) -> None:
        self.where = where
        self.hangs.set()


def with_heartbeat(act: Callable[[Pulse, Heartbeat], None]) -> None:
    async def run() -> None:
        pulse = Pulse()
        beating = Heartbeat(asyncio.get_running_loop(), pulse.beat, pulse.hang)
        beating.start()
        try:
            act(pulse, beating)
            await asyncio.sleep(0.03)
        finally:
            beating.end()

    asyncio.run(run())


def test_it_beats_while_the_loop_is_busy() -> None:
    def keep_busy(pulse: Pulse, beating: Heartbeat) -> None:
        until = time.monotonic() + 10
        while pulse.beats < 10:
            assert time.monotonic() < until

    with_heartbeat(keep_busy)


def test_it_ends_when_the_loop_hangs_and_says_so_once() -> None:
    def hang(pulse: Pulse, beating: Heartbeat) -> None:
        assert pulse.hangs.wait(10)
        beats = pulse.beats
        time.sleep(0.1)
        assert pulse.beats == beats
        assert beating.age >= 0.4
        assert "in hang\n" in pulse.where, "it is told what keeps the loop"

    with_heartbeat(hang)


def test_it_goes_on_when_the_loop_turns_again() -> None:
    async def run() -> None:
        pulse = Pulse()
        beating = Heartbeat(asyncio.get_running_loop(), pulse.beat, pulse.hang)
        beating.start()
        await asyncio.to_thread(lambda: None)
        assert pulse.hangs.wait(10)
        beats = pulse.beats
        async with asyncio.timeout(10):
            while pulse.beats == beats:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        assert beating.longest_pause > 0.3
        beating.end()

    asyncio.run(run())


def test_there_is_no_beat_behind_its_end() -> None:
    async def run() -> None:
        pulse = Pulse()
        beating = Heartbeat(asyncio.get_running_loop(), pulse.beat)
        beating.start()
        beating.end()
        beats = pulse.beats
        await asyncio.sleep(0.05)
        assert pulse.beats == beats

    asyncio.run(run())
