"""How the relay writes to applications whose sockets are in the kernel's map: past TCP, into the queue of carried bytes.

Such a socket must get all of its bytes in one queue: of two, one could overtake the other, and some kernels do not count those
that came over TCP when an application asks how many are unread (tcp(7), FIONREAD). So nothing comes to it over TCP but the end.
A worker has a socket of its own in the map, the injector: what it sends there, a program puts into the queue of the application
that the worker has named right before (bpf/verdict.bpf.c). A worker does one thing at a time, so one injector will do.

Injected bytes know no back-pressure of TCP's: how much waits for a reader is asked for, and a sender stops in time.

What finds no receiver goes TCP's way, to the injector's other end, where it is read and thrown away. The program counts it, so
the sender knows exactly how much of a message was taken. Nobody else ever gets it.
"""

import asyncio
import contextlib
import errno
import mmap
import os
import socket
import struct
import sys
from time import monotonic
from typing import NamedTuple

from bpf import abi
from bpf.loader import Map, Routine

# The injector's buffer (bytes), larger than anything that is sent at once: what finds no receiver must find room there.
BUFFER = 4 * 1024 * 1024
MOST_AT_ONCE = 1024 * 1024
# How long (seconds) until it is looked again whether a reader has read: a quarter of the time in which nothing has moved,
# within these bounds. So it waits for its next bytes for a quarter of the time at most that it made us wait.
SOONEST, LATEST = 0.001, 0.5

_NAME = struct.Struct("=QQI")
_OUTCOME = struct.Struct("=IQ")
_SPLICE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_SO_COOKIE = 57
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33


class Receiver(NamedTuple):
    """An application's socket in the map, in one of its connections."""

    cookie: int
    sock: int  # its address
    first: int  # number of the first byte to it: a socket that connects again has another


class Queue:
    """The queue of a receiver, as a sink."""

    __slots__ = ("_injector", "gone", "moved_at", "receiver", "waiting")

    def __init__(self, injector: "Injector", receiver: Receiver) -> None:
        self._injector = injector
        self.receiver = receiver
        self.waiting = 0  # bytes that its reader has not read, when we last looked, and what we have sent since
        self.gone = False  # it takes nothing any more
        self.moved_at = 0.0  # when its reader was last seen to have read, or it has got something

    def send(self, data: bytes | memoryview) -> int:
        """Like ``socket.send``, of a part of ``data`` at most; ``BrokenPipeError`` if there is nobody who could take it."""
        return self._injector.send(self, data)

    def splice(self, pipe: int, n: int) -> tuple[int, int]:
        """Out of a pipe: how many bytes have left it, and how many of these were taken: if not all, it is ``gone``."""
        return self._injector.splice(self, pipe, n)

    def look(self) -> int:
        """How many bytes wait for its reader now. Nobody waits if it is ``gone``."""
        waiting = self._injector.waiting(self.receiver)
        if waiting < 0:
            self.gone = True
            waiting = 0
        if waiting < self.waiting or not waiting:
            self.moved_at = monotonic()
        self.waiting = waiting
        return waiting

    @property
    def patience(self) -> float:
        """How long (seconds) until it is worth to look again."""
        return min(max((monotonic() - self.moved_at) / 4, SOONEST), LATEST)


class Injector:
    """A worker's."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, worker: int, injections: int, sockets: Map, lanes: Map, queued: Routine
    ) -> None:
        """``injections`` is the map's descriptor; ``sockets`` and ``lanes`` are told of the injector; ``queued`` tells how much
        waits."""
        self._loop = loop
        self._worker, self._sockets, self._lanes, self._queued = worker, sockets, lanes, queued
        self._memory = mmap.mmap(injections, _pages(abi.SLUICE_INJECTION.size * abi.PathLimit.MAX_WORKERS))
        self._name_at = worker * abi.SLUICE_INJECTION.size
        self._outcome_at = self._name_at + _NAME.size
        self._strayed: int = _OUTCOME.unpack_from(self._memory, self._outcome_at)[1]
        self._named: Receiver | None = None
        self._astray = 0  # bytes that have not come out at the other end yet
        self._open()

    def _open(self) -> None:
        self._sock, self._end = _pair()
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER)
        self._end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
        for sock in (self._sock, self._end):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        self._fd = self._sock.fileno()
        lane = abi.Lane(0, 0, abi.Role.ROLE_INJECTOR, self._worker, 0, 0)
        self._lanes.set(self._fd.to_bytes(4, sys.byteorder), abi.SLUICE_LANE.pack(*lane))
        self._sockets.set(self._sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), self._fd.to_bytes(8, sys.byteorder))

    def send(self, queue: Queue, data: bytes | memoryview) -> int:
        """What is too much at once is taken in part."""
        self._name(queue)
        if self._astray:
            return 0
        if len(data) > MOST_AT_ONCE:
            data = memoryview(data)[:MOST_AT_ONCE]
        try:
            sent = self._sock.send(data)
        except OSError as error:
            sent = self._failed(queue, error)
        waiting, strayed = _OUTCOME.unpack_from(self._memory, self._outcome_at)
        if strayed == self._strayed:
            if sent:
                queue.waiting, queue.moved_at = waiting, monotonic()
            return sent
        taken = self._stray(queue, sent, strayed)
        if not taken:
            raise _gone()
        return taken

    def splice(self, queue: Queue, pipe: int, n: int) -> tuple[int, int]:
        self._name(queue)
        if self._astray:
            return 0, 0
        try:
            given = os.splice(pipe, self._fd, min(n, MOST_AT_ONCE), flags=_SPLICE)
        except OSError as error:
            given = self._failed(queue, error)
        waiting, strayed = _OUTCOME.unpack_from(self._memory, self._outcome_at)
        if strayed == self._strayed:
            if given:
                queue.waiting, queue.moved_at = waiting, monotonic()
            return given, given
        return given, self._stray(queue, given, strayed)

    def _name(self, queue: Queue) -> None:
        """Say for whom the next bytes are."""
        if queue.gone:
            raise _gone()
        if queue.receiver is not self._named:
            self._named = queue.receiver
            _NAME.pack_into(self._memory, self._name_at, *queue.receiver)

    def _failed(self, queue: Queue, error: OSError) -> int:
        """Nothing was sent: because there is no room now, or because nobody is there."""
        # Without memory for the receiver (its cgroup's, or the system's), TCP would wait as well.
        if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS):
            return 0
        if not self._works():
            self._renew()
            return 0
        queue.gone = True  # between the program's look and the queue
        raise _gone() from error

    def _stray(self, queue: Queue, sent: int, strayed: int) -> int:
        """Some of what was sent has found nobody, by the program's word; how much was taken."""
        # Whoever is gone stays gone: what has strayed is the end of what was sent.
        lost = min(strayed - self._strayed, sent)
        self._strayed = strayed
        queue.gone = True
        self._astray += lost
        self._drain()
        return sent - lost

    def waiting(self, receiver: Receiver) -> int:
        """How many bytes wait for its reader; negative if it takes nothing any more."""
        answer = self._queued(abi.SLUICE_QUEUE.pack(*receiver, 0))
        return answer - (1 << 32) if answer >> 31 else answer

    def _drain(self) -> None:
        """Read what has found nobody. Until all of it is here, nothing else is sent."""
        with contextlib.suppress(BlockingIOError):
            while self._astray and (data := self._end.recv(self._astray)):
                self._astray -= len(data)
        if self._astray:
            self._loop.add_reader(self._end, self._drain)
        else:
            self._loop.remove_reader(self._end)

    def _works(self) -> bool:
        return all(
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED for sock in (self._sock, self._end)
        )

    def _renew(self) -> None:
        """Somebody has ended our connection with ourselves (ss -K)."""
        self._close_pair()
        self._astray = 0
        self._strayed = _OUTCOME.unpack_from(self._memory, self._outcome_at)[1]
        self._open()

    def _close_pair(self) -> None:
        self._loop.remove_reader(self._end)
        self._sock.close()
        self._end.close()

    def close(self) -> None:
        self._close_pair()
        self._memory.close()


def _gone() -> BrokenPipeError:
    return BrokenPipeError(errno.EPIPE, "the application's socket is gone")


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets of ours that are connected with each other, by TCP: others have no program."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        try:
            while True:
                end, address = listener.accept()
                if address == sock.getsockname():
                    return sock, end
                end.close()  # somebody has found our port
        except BaseException:
            sock.close()
            raise


def _pages(size: int) -> int:
    return (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE


_ESTABLISHED = 1  # TCP_ESTABLISHED of the kernel's tcp_states.h
