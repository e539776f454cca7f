"""Records that stand for several calls: what a rule's ``record: summary`` asks for.

Calls of one connection that differ in nothing but their sizes and times, and begin in the same second, become one record with
their number, the sum of their bytes and the longest duration.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

# Different calls of one connection in one second that are counted; of others each has its own record. A consumer of many
# partitions asks for the same list of topics again and again, a producer names one topic at a time.
MAX_SUMMARIES = 64

Item = TypeVar("Item")


class Summary(msgspec.Struct, Generic[Item]):
    """``first`` is the first of ``calls`` calls; bytes of all requests and replies, the longest duration in seconds."""

    first: Item
    calls: int = 0
    bytes_request: int = 0
    bytes_reply: int = 0
    longest: float = 0.0

    def add(self, bytes_request: int, bytes_reply: int, seconds: float) -> None:
        self.calls += 1
        self.bytes_request += bytes_request
        self.bytes_reply += bytes_reply
        self.longest = max(self.longest, seconds)


class Summaries(Generic[Item]):
    """Those of one connection in the second that is not over yet."""

    def __init__(self) -> None:
        self._second = 0
        self._open: dict[tuple[object, ...], Summary[Item]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def find(self, second: int, key: tuple[object, ...], first: Item) -> tuple[Summary[Item] | None, bool]:
        """The summary for calls like this one, and whether it was there before; None: there is no room for one.

        Take ``ended`` first, when ``second`` is another one than that of the last call.
        """
        self._second = second
        known = self._open.get(key)
        if known is not None:
            return known, True
        if len(self._open) >= MAX_SUMMARIES:
            return None, False
        made = self._open[key] = Summary(first)
        return made, False

    def get(self, second: int, key: tuple[object, ...]) -> Summary[Item] | None:
        """The summary for calls like this one, if there is one of this second."""
        return self._open.get(key) if second == self._second else None

    def ended(self, second: int | None = None) -> Iterator[Summary[Item]]:
        """Take the summaries of seconds before ``second``, or all of them, in the order in which they were begun."""
        if self._open and second != self._second:
            ended, self._open = self._open, {}
            yield from ended.values()
