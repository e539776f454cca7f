"""Which ways to read a socket are right when it is in a sockmap: each is tried on one, with bytes of both kinds.

A socket in the map has two queues, one of carried and injected bytes and TCP's own (docs/kernel-path.md). Kernels differ in
which of the two a system call knows of, and a program that is told too little waits for ever for what is there. TCP brings
such a socket nothing but the end, so what is wrong about bytes of TCP's alone harms nobody: it is told to know the kernel.
Nothing here knows how a socket comes into the map: `try_calls` gets one, and a function that puts bytes into one of its
queues.
"""

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

# Puts one message into the socket's queue, always of the same kind, and returns it.
Give = Callable[[], bytes]

# How long MSG_WAITALL may wait in vain (microseconds); the kernel rounds it up to one of its ticks.
_WAIT = 1000
_PATIENCE = 0.1  # seconds, for a thread to come to where it waits
_RECVFROM = "45"  # the system call's number on x86-64
_PART = 100  # bytes, fewer than a message has
_NOW = socket.MSG_DONTWAIT


@dataclass(frozen=True)
class Right:
    """Of one call: whether it is right about carried bytes, and about those that came by TCP."""

    carried: bool
    tcp: bool


@dataclass(frozen=True)
class ReadingCalls:
    """What this kernel does right on a socket that is in the map, call by call."""

    fionread: Right  # ioctl(FIONREAD) tells how many bytes are unread
    peek: Right  # MSG_PEEK shows bytes and leaves them
    poll: Right  # poll(2) and select(2) tell whether there is something
    epoll_level: Right
    epoll_edge: Right  # EPOLLET tells of everything that comes
    low_water: Right  # SO_RCVLOWAT keeps poll(2) silent until there is so much
    wait_all: Right  # MSG_WAITALL waits for all that was asked for
    splice: Right  # splice(2) moves bytes into a pipe
    blocking: Right  # a blocking read waits until there is something, an end or an error (whatever bytes there are)

    def wrong(self) -> tuple[str, ...]:
        """The names of the calls that are not right about carried bytes, the only ones that come to a socket in the map."""
        return tuple(name for name in CALLS if not getattr(self, name).carried)


@dataclass(frozen=True)
class Call:
    """A way to read, and who depends on it. ``cure`` is what can be done where it is wrong."""

    name: str
    programs: str
    may: str  # what such a program may have to do
    cure: str = "acceleration: off in the Workload of such a program"


_STALL, _LESS, _EAGAIN = "wait for ever", "get less than they ask for", "get EAGAIN"

CALLS = {
    "fionread": Call(
        "FIONREAD",
        "nginx, Java's available()",
        _STALL,
        "Linux 6.12.114 or a later line; or acceleration: off in their Workloads",
    ),
    "peek": Call("MSG_PEEK", "every program that looks before it reads", _STALL),
    "poll": Call("poll", "nearly every program", _STALL),
    "epoll_level": Call("epoll", "nearly every program", _STALL),
    "epoll_edge": Call("epoll with EPOLLET", "nginx, Go, Envoy", _STALL),
    "low_water": Call("SO_RCVLOWAT", "programs that set it", _LESS),
    "wait_all": Call("MSG_WAITALL", "programs that read records of a fixed size", _LESS),
    "splice": Call("splice", "haproxy with option splice-*, Go's io.Copy between connections", _STALL),
    "blocking": Call(
        "a blocking read", "programs that wait in recv while another thread sends, or behind a long body of their own", _EAGAIN
    ),
}


def try_calls(sock: socket.socket, give: Give) -> dict[str, bool]:
    """By the names of `ReadingCalls`: is each call right about what ``give`` puts into the queue? Leaves the queue empty."""
    tries = (_fionread, _peek, _poll, _epoll_level, _epoll_edge, _low_water, _wait_all, _splice)
    return dict(zip(CALLS, (_try(one, sock, give) for one in tries), strict=False))  # the last one takes more than bytes


def try_blocking(sock: socket.socket, reset: Callable[[], None]) -> bool:
    """Does a blocking read of ``sock`` tell of the ``reset`` that wakes it? Nothing can be done with the socket afterwards.

    In a sockmap it says EAGAIN on kernels so far, as it does whatever wakes it without bytes: room to send, too.
    """
    told: list[str] = []

    def read() -> None:
        try:
            told.append(str(sock.recv(1)))
        except OSError as error:
            told.append(type(error).__name__)

    sock.settimeout(None)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    until = monotonic() + _PATIENCE
    while not _is_in_recv(reader) and monotonic() < until:
        sleep(0.0001)
    reset()
    reader.join(_PATIENCE)
    return told == ["ConnectionResetError"]


def _is_in_recv(thread: threading.Thread) -> bool:
    try:
        number = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0]
    except OSError:
        return False
    return number == _RECVFROM


def reading_calls(carried: dict[str, bool], tcp: dict[str, bool], blocking: bool) -> ReadingCalls:
    rights = {name: Right(carried[name], tcp[name]) for name in carried}
    return ReadingCalls(**rights, blocking=Right(blocking, blocking))


def _try(one: Callable[[socket.socket, Give], bool], sock: socket.socket, give: Give) -> bool:
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        return one(sock, give)
    except OSError:
        return False
    finally:
        _drain(sock)
        sock.settimeout(timeout)


def _fionread(sock: socket.socket, give: Give) -> bool:
    length = len(give())
    before = _unread(sock)
    sock.recv(_PART)
    return (before, _unread(sock)) == (length, length - _PART)


def _peek(sock: socket.socket, give: Give) -> bool:
    message = give()
    return all(sock.recv(2 * len(message), socket.MSG_PEEK) == message for _ in range(2))


def _poll(sock: socket.socket, give: Give) -> bool:
    silent = _is_silent(sock)
    give()
    told = not _is_silent(sock)
    _drain(sock)
    return silent and told and _is_silent(sock)


def _epoll_level(sock: socket.socket, give: Give) -> bool:
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN)
        silent = not epoll.poll(0)
        give()
        told = epoll.poll(0) and epoll.poll(0)
        _drain(sock)
        return silent and bool(told) and not epoll.poll(0)


def _epoll_edge(sock: socket.socket, give: Give) -> bool:
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        silent = not epoll.poll(0)
        told = []
        for _ in range(2):  # nothing is read in between
            give()
            told.append(bool(epoll.poll(0)))
        return silent and all(told)


def _low_water(sock: socket.socket, give: Give) -> bool:
    length = len(give())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, length + 1)
    try:
        silent = _is_silent(sock)
        give()
        return silent and not _is_silent(sock)
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def _wait_all(sock: socket.socket, give: Give) -> bool:
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, _WAIT))
    try:
        message = give()
        began = monotonic()
        sock.recv(len(message) + 1, socket.MSG_WAITALL)
        waited = monotonic() - began >= _WAIT * 1e-6
        whole = give() + give()
        return waited and sock.recv(len(whole), socket.MSG_WAITALL) == whole
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, before)
        sock.setblocking(False)


def _splice(sock: socket.socket, give: Give) -> bool:
    reading, writing = os.pipe()
    try:
        message, moved = give(), b""
        while len(moved) < len(message):
            length = os.splice(sock.fileno(), writing, len(message), flags=os.SPLICE_F_NONBLOCK)
            moved += os.read(reading, length)
        return moved == message
    finally:
        os.close(reading)
        os.close(writing)


def _unread(sock: socket.socket) -> int:
    told = array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, told)
    return told[0]


def _is_silent(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while sock.recv(1 << 16, _NOW):
            pass
