"""Who is read on when connections keep more than there is memory for."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy import memory as module
from proxy.memory import FINISH_SECONDS, PIECE, RESERVE, Memory

ALL = RESERVE // PIECE  # pieces: of the budget, and of the reserve beside it
LIMIT = 2 * RESERVE


class Reader:
    """A connection that reads one piece after the other for as long as it may, until it has its whole message."""

    def __init__(self, memory: Memory, subject: str, pieces: int) -> None:
        self._memory, self._pieces = memory, pieces
        self.memory = memory.budget.claim(subject)
        self.kept = self.turns = 0
        self.finished = False

    def read_on(self) -> None:
        self.turns += 1
        while not self.finished and self.read():
            pass

    def read(self) -> bool:
        if not self._memory.fits(self):
            self._memory.wait(self)
            return False
        self.kept += PIECE
        if self.kept == self._pieces * PIECE:
            self.finished, self.kept = True, 0
        self._memory.keeps(self, self.kept)
        return True


def run(act: Callable[[Memory], Awaitable[None]], subjects: int = 2) -> None:
    async def main() -> None:
        memory = Memory(asyncio.get_running_loop(), LIMIT)
        memory.budget.expect(subjects)
        await act(memory)

    asyncio.run(main())


async def turns(number: int = 200) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_messages_that_do_not_fit_together_are_finished_one_after_the_other() -> None:
    async def act(memory: Memory) -> None:
        readers = [Reader(memory, "web", ALL // 4) for _ in range(20)]
        for _ in range(ALL // 8):  # half of each
            for reader in readers:
                reader.read()
        assert memory.waiting == len(readers)
        assert memory.budget.used <= memory.budget.limit
        await turns()
        assert all(reader.finished for reader in readers)
        assert memory.budget.used == 0

    run(act)


def test_who_holds_much_does_not_hold_up_another_subject() -> None:
    async def act(memory: Memory) -> None:
        hogs = [Reader(memory, "greedy", 2 * ALL) for _ in range(20)]
        for hog in hogs:
            hog.read_on()
        memory.wait(hogs[0])
        honest = [Reader(memory, "honest", 5) for _ in range(3)]
        for reader in honest:
            reader.read_on()
        assert all(reader.finished for reader in honest)

    run(act)


class Stalled(Reader):
    """It says nothing more, and keeps what it has."""

    def read_on(self) -> None:
        self.turns += 1


def test_one_that_does_not_finish_loses_its_turn_and_one_of_who_has_least_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(memory: Memory) -> None:
        now = 1000.0
        monkeypatch.setattr(module, "monotonic", lambda: now)
        slow, large = Stalled(memory, "greedy", 0), Reader(memory, "honest", ALL - 10)
        memory.keeps(slow, ALL * 3 // 4 * PIECE)
        memory.wait(slow)
        await turns(5)
        assert memory.fits(slow)
        large.read_on()
        await turns(5)
        assert not large.finished
        memory.look(now + FINISH_SECONDS + 1)
        await turns(5)
        assert large.finished
        assert not memory.fits(slow)

    run(act)


def test_who_waits_costs_no_turn_until_there_is_room() -> None:
    async def act(memory: Memory) -> None:
        slow, waiting = Stalled(memory, "greedy", 0), Stalled(memory, "greedy", 0)
        memory.keeps(slow, ALL * 3 // 4 * PIECE)
        memory.wait(slow)
        await turns(5)
        memory.wait(waiting)
        await turns(50)
        assert waiting.turns == 0
        memory.forget(slow)
        await turns(5)
        assert waiting.turns == 1
        assert not memory.waiting

    run(act)
