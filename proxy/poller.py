"""Readiness of many sockets, through one epoll instance that the event loop watches.

``loop.add_reader`` makes a handle per descriptor, and making or ending one costs a handful of system calls: a short
connection, whose sockets change between reading and writing a few times, spent more of them on that than on its bytes. Here a
change of interest is one ``epoll_ctl``. Level-triggered: what was not consumed is told again.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Any

# Events taken in one turn of the loop. More of them wait for the next turn, behind the loop's other work.
BATCH = 256

_READ, _WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
_TROUBLE = select.EPOLLERR | select.EPOLLHUP  # always told, to whoever waits for anything

_Callback = tuple[Callable[..., None], tuple[Any, ...]]


class Poller:
    """Callbacks by descriptor, with the methods of an event loop. Remove both kinds before the descriptor is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, _Callback] = {}
        self._writers: dict[int, _Callback] = {}
        self._interests: dict[int, int] = {}  # what epoll was told
        self._taken: dict[int, int] = {}  # events of this turn that are still to be told
        loop.add_reader(self._epoll.fileno(), self._turn)

    def add_reader(self, fd: int, callback: Callable[..., None], *arguments: object) -> None:
        self._readers[fd] = callback, arguments
        self._update(fd, self._interests.get(fd, 0) | _READ)

    def add_writer(self, fd: int, callback: Callable[..., None], *arguments: object) -> None:
        self._writers[fd] = callback, arguments
        self._update(fd, self._interests.get(fd, 0) | _WRITE)

    def remove_reader(self, fd: int) -> None:
        self._readers.pop(fd, None)
        self._update(fd, self._interests.get(fd, 0) & ~_READ)

    def remove_writer(self, fd: int) -> None:
        self._writers.pop(fd, None)
        self._update(fd, self._interests.get(fd, 0) & ~_WRITE)

    def forget(self, fd: int) -> None:
        """Before ``fd`` is closed: no callback will be called for it any more, nor, by mistake, for its successor."""
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)
        self._taken.pop(fd, None)
        self._update(fd, 0)

    def _update(self, fd: int, now: int) -> None:
        before = self._interests.get(fd, 0)
        if now == before:
            return
        if not now:
            del self._interests[fd]
            self._epoll.unregister(fd)  # with no interest at all, an error would be told for ever
            return
        self._interests[fd] = now
        if before:
            self._epoll.modify(fd, now)
        else:
            self._epoll.register(fd, now)

    def _turn(self) -> None:
        taken = self._taken = dict(self._epoll.poll(0, BATCH))
        while taken:
            fd, events = taken.popitem()
            if events & (_READ | _TROUBLE) and (reader := self._readers.get(fd)):
                reader[0](*reader[1])
            if events & (_WRITE | _TROUBLE) and (writer := self._writers.get(fd)):
                writer[0](*writer[1])
