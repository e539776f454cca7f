"""The bytes that connections keep in the agent's memory, by one budget for all of them.

What is counted: bytes that are not settled yet, what waits for a receiver, what is in pipes, what parsers keep. A connection
that has no room for a whole read is read in small pieces, as long as it keeps no more than one of them in that direction: small
calls are never held up by those who keep much. Beyond that, it is not read until others have given something back: the sender
feels it, by TCP's own flow control.

So that connections which all keep a part of a message do not wait for each other for ever, one of them at a time may read on,
out of a reserve that has room for the longest message, for a limited time.
"""

import asyncio
from collections import OrderedDict
from time import monotonic
from typing import Protocol

from proxy.shares import Budget, Claim

# What a connection may have in each direction whatever others have (bytes): a usual head, a short request.
FLOOR = 4 * 1024
# Room for the connection that may finish (bytes): the longest request that is held (parsers/kafka/connection.py:
# HELD_REQUEST_MAX) or what is kept of the longest reply (metadata.py: KEPT_MAX), and something besides.
RESERVE = 24 * 1024 * 1024
# How long it may take (seconds): longer than an unfinished message may (flow.HEAD_TIMEOUT), so that one which is slow on
# purpose ends with a record.
FINISH_SECONDS = 60.0
# One read, where there is room (bytes). Larger reads cost more in allocation than they save in system calls; long bodies are
# spliced anyway.
PIECE = 64 * 1024
# Connections that are read again in one turn, when there is room.
WOKEN = 32


class Reader(Protocol):
    """A connection that waits to be read."""

    @property
    def memory(self) -> Claim:
        """What it keeps (bytes)."""
        ...

    def read_on(self) -> None: ...


class Memory:
    """Who keeps how many bytes, and who waits until there is room."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        """``limit`` in bytes; the reserve is a part of it."""
        self._loop = loop
        self.reserve = min(RESERVE, limit // 2)
        self.budget = Budget(limit - self.reserve)
        self._waiting: dict[str, OrderedDict[Reader, None]] = {}  # by subject
        self._finishing: Reader | None = None
        self._had = 0  # bytes, when it began to
        self._until = 0.0
        self._waking = False

    def fits(self, reader: Reader, n: int = PIECE) -> bool:
        """Whether a connection may read ``n`` more bytes."""
        budget = self.budget
        if budget.used + n <= budget.calm:
            return True
        if reader is self._finishing and reader.memory.held + n <= self._had + self.reserve:
            return True
        return budget.fits(reader.memory, n)

    def wait(self, reader: Reader) -> None:
        """``read_on`` will be called when there may be room."""
        self._waiting.setdefault(reader.memory.share.subject, OrderedDict())[reader] = None
        self._wake()

    def keeps(self, reader: Reader, size: int) -> None:
        """How many bytes a connection keeps now."""
        claim = reader.memory
        more = size - claim.held
        self.budget.charge(claim, more)
        if more < 0:
            if reader is self._finishing and size < self._had:
                self._finishing = None  # what it had a part of is gone
            if self._waiting:
                self._wake()

    def forget(self, reader: Reader) -> None:
        """The connection is over."""
        if self._waiting:
            self._drop(reader)
        if reader.memory.held:
            self.keeps(reader, 0)
        if reader is self._finishing:
            self._finishing = None

    def look(self, now: float) -> None:
        """Once in a while: whoever may finish must."""
        if self._finishing is not None and now > self._until:
            self._finishing = None
        if self._waiting:
            self._wake()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _wake(self) -> None:
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        """Let those be read again for whom there is room: subject by subject, those with the least first."""
        self._waking = False
        subjects = sorted(self._waiting, key=lambda subject: self.budget.share(subject).held)
        woken: list[Reader] = []
        for subject in subjects:
            for reader in list(self._waiting[subject])[:WOKEN]:
                if len(woken) < WOKEN and self.budget.fits(reader.memory, PIECE):
                    woken.append(reader)
                elif subject in self._waiting:
                    self._waiting[subject].move_to_end(reader)
        if not woken and self._finishing is None and subjects:
            self._finishing = next(iter(self._waiting[subjects[0]]))
            self._had, self._until = self._finishing.memory.held, monotonic() + FINISH_SECONDS
            woken.append(self._finishing)
        for reader in woken:
            self._drop(reader)
            reader.read_on()

    def _drop(self, reader: Reader) -> None:
        subject = reader.memory.share.subject
        line = self._waiting.get(subject)
        if line is not None:
            line.pop(reader, None)
            if not line:
                del self._waiting[subject]
