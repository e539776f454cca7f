"""Readiness of many sockets, through one epoll instance that the event loop watches.

``loop.add_reader`` makes a handle per descriptor, and making or ending one costs a handful of system calls: a short
connection, whose sockets change between reading and writing a few times, spent more of them on that than on its bytes. Here a
change of interest is one ``epoll_ctl``. Level-triggered: what was not consumed is told again.

A turn ends when its time is used up, so that accepting, timers and whoever asks for metrics have theirs. Who was not served
waits for the next turn. There the one that has waited longest comes first, and then those of the owners that have used the
least time of late; of one owner those that have used the least. So who costs much waits for himself, however many connections
he has, and who costs little hardly ever waits.

The kernel is asked for news in every second turn while somebody waits: asking tells again of all who wait already.
"""

import asyncio
import select
from collections import defaultdict
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, TypeVar

# Events taken at once from the kernel.
BATCH = 256
# How long a turn may take (seconds); it is looked at behind each callback. Far below the 50 ms within which others are to be
# served, which a call meets several times, and long enough that the loop's own work between two turns does not count.
TURN_SECONDS = 0.004
# What descriptors have used counts half after this time (seconds): long enough for a hundred of them to be told from one that
# is new. Below so many seconds it is forgotten.
HALF_LIFE = 1.0
FORGOTTEN = 1e-6

_READ, _WRITE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
_TROUBLE = select.EPOLLERR | select.EPOLLHUP  # always told, to whoever waits for anything
_FOR_READERS, _FOR_WRITERS = _READ | _TROUBLE, _WRITE | _TROUBLE

_Key = TypeVar("_Key", bound=Hashable)
_Callback = tuple[Callable[..., None], tuple[Any, ...]]


class Poller:
    """Callbacks by descriptor, with the methods of an event loop. Before a descriptor is closed it must be forgotten."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._epoll = select.epoll()
        self._readers: dict[int, _Callback] = {}
        self._writers: dict[int, _Callback] = {}
        self._interests: dict[int, int] = {}  # what epoll was told
        self._asked: dict[int, list[_Callback]] = {}  # by whom a place in the line was asked for
        self._waiting: dict[int, int] = {}  # events that are still to be told, in the order in which they came
        self._owners: dict[int, Hashable] = {}
        self._used: defaultdict[int, float] = defaultdict(float)  # seconds, of late
        self._used_by_owners: defaultdict[Hashable, float] = defaultdict(float)
        self._rest = False  # those are served whom the last turn had no time for
        self._serving = -1  # whose callbacks are running, unless it was forgotten by them
        self._halved_at = clock()
        self._next: asyncio.Handle | None = None  # a turn that was asked for
        loop.add_reader(self._epoll.fileno(), self._turn)

    def belongs(self, fd: int, owner: Hashable) -> None:
        """What ``fd`` costs, its owner has used. Those without one are one owner's."""
        self._owners[fd] = owner

    def goes_with(self, fd: int, other: int) -> None:
        """``fd`` has the owner of another descriptor."""
        self._owners[fd] = self._owners.get(other)

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

    def call(self, fd: int, callback: Callable[..., None], *arguments: object) -> None:
        """Call back once, in a later turn, as if ``fd`` had become ready; before any event of ``fd`` that comes from now on."""
        self._asked.setdefault(fd, []).append((callback, arguments))
        self._call_soon()

    def forget(self, fd: int) -> None:
        """``fd`` is closed next: no callback will be called for it any more, nor, by mistake, for its successor."""
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)
        self._asked.pop(fd, None)
        self._waiting.pop(fd, None)
        self._used.pop(fd, None)
        self._owners.pop(fd, None)
        self._interests.pop(fd, None)  # epoll forgets what is closed by itself, without another system call
        if self._serving == fd:
            self._serving = -1

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

    def _call_soon(self) -> None:
        if self._next is None:
            self._next = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._waiting and not self._rest:
            self._rest = True
        else:
            self._rest = False
            self._look()
        waiting = self._waiting
        for fd in self._asked:
            waiting.setdefault(fd, 0)
        clock, used, used_by_owners, owner_of = self._clock, self._used, self._used_by_owners, self._owners.get
        readers, writers, asked = self._readers.get, self._writers.get, self._asked
        now = clock()
        until = now + TURN_SECONDS
        for fd in list(waiting):
            events = waiting.pop(fd, None)
            if events is None:
                continue  # forgotten meanwhile
            self._serving, owner = fd, owner_of(fd)
            if asked:
                for callback, arguments in asked.pop(fd, ()):
                    callback(*arguments)
            if events & _FOR_READERS and (reader := readers(fd)):
                reader[0](*reader[1])
            if events & _FOR_WRITERS and (writer := writers(fd)):
                writer[0](*writer[1])
            began, now = now, clock()
            took = now - began
            used_by_owners[owner] += took
            if self._serving == fd:
                used[fd] += took
            if now >= until:
                break
        if now - self._halved_at > HALF_LIFE:
            self._halve(now)
        if waiting or asked:
            self._call_soon()

    def _look(self) -> None:
        """Ask for news, and put all who wait in the order in which they are served."""
        waiting = self._waiting
        late = bool(waiting)
        waiting.update(self._epoll.poll(0, BATCH))
        if not late:
            return
        first, *others = waiting
        # All of this runs in C: with many connections it is done for each of them several times until it is served.
        by_owners = map(self._used_by_owners.__getitem__, map(self._owners.get, others))
        by_themselves = map(self._used.__getitem__, others)
        in_order = sorted(zip(by_owners, by_themselves, others, strict=True))
        self._waiting = {first: waiting[first]} | {fd: waiting[fd] for _, _, fd in in_order}

    def _halve(self, now: float) -> None:
        share = 0.5 ** ((now - self._halved_at) / HALF_LIFE)
        self._halved_at = now
        self._used = _shrunk(self._used, share)
        self._used_by_owners = _shrunk(self._used_by_owners, share)


def _shrunk(used: dict[_Key, float], share: float) -> defaultdict[_Key, float]:
    left = ((key, seconds * share) for key, seconds in used.items())
    return defaultdict(float, ((key, seconds) for key, seconds in left if seconds > FORGOTTEN))
