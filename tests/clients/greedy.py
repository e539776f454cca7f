"""A client, and its server, that keep whoever reads what they say as busy as they can.

greedy.py serve KIND PORT                       says "ready"; sends what KIND's server sends, or nothing, and reads all
greedy.py call KIND PORT CONNECTIONS SECONDS    as the user nobody; prints the bytes that it has sent

KIND is a key of KINDS: for each there is what a client says first, what it says again and again, and what a server does.
"""

import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

NOBODY = 65534
PIECE = 256 * 1024


def _many(unit: bytes, size: int = PIECE) -> bytes:
    return unit * (size // len(unit) + 1)


def _frame(api_key: int, version: int, body: bytes, tags: bytes = b"") -> bytes:
    head = struct.pack(">hhih", api_key, version, 7, 1) + b"c" + tags
    return struct.pack(">i", len(head) + len(body)) + head + body


def _partitions(count: int) -> bytes:
    """A Fetch of so many partitions of one topic, of which all are read."""
    head = struct.pack(">iiiib", -1, 1, 1, 1, 0) + struct.pack(">ih", 1, 1) + b"t" + struct.pack(">i", count)
    return _frame(1, 4, head + b"".join(struct.pack(">iqi", n, 0, 1) for n in range(count)))


def _notes(count: int) -> bytes:
    """An OffsetCommit of so many partitions, which is refused partition by partition."""
    one = struct.pack(">iqh", 0, 0, 0)
    head = b"\0\1g" + bytes(4) + b"\0\0" + bytes(8) + struct.pack(">ih", 1, 1) + b"t" + struct.pack(">i", count)
    return _frame(8, 2, head + one * count)


def _tagged(count: int) -> bytes:
    """A Fetch whose partitions have a tagged field each, as nobody sends them."""
    body = bytes(17) + struct.pack(">ii", 0, -1) + b"\2\2t" + _varint(count + 1)
    one = bytes(32) + b"\1\7\0"
    return _frame(1, 12, body + one * count + b"\0\1\1\0", b"\0")


def _topics(count: int) -> bytes:
    """A Metadata request for so many topics."""
    names = b"".join(struct.pack(">h", 6) + b"t%05d" % n for n in range(count))
    return _frame(3, 1, struct.pack(">i", count) + names)


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + _varint(value >> 7) if value > 0x7F else bytes([value])


def _metadata(topics: int, partitions: int) -> bytes:
    """The reply to a Metadata request of version 1."""
    partition = bytes(10) + struct.pack(">ii", 1, 0) + struct.pack(">ii", 1, 0)
    topic = b"\0\0\0\1t\0" + struct.pack(">i", partitions) + partition * partitions
    body = struct.pack(">i", 7) + struct.pack(">i", 0) + bytes(4) + struct.pack(">i", topics) + topic * topics
    return struct.pack(">i", len(body)) + body


class Kind(NamedTuple):
    first: bytes = b""
    then: bytes = b""  # again and again; nothing: reads only
    first_reply: bytes = b""
    then_reply: bytes = b""  # again and again


_POST = b"POST /ok HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
_GET = b"GET /ok HTTP/1.1\r\nhost: a\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
KINDS: dict[str, Callable[[], Kind]] = {
    "chunks": lambda: Kind(_POST, _many(b"1\r\nx\r\n")),
    "extensions": lambda: Kind(_POST, _many(b"1;a\r\nx\r\n")),
    "denied": lambda: Kind(b"", _many(b"GET /no HTTP/1.1\r\nhost:a\r\n\r\n")),
    "targets": lambda: Kind(b"", _many(b"GET /no" + b"/%2e%61" * 2000 + b" HTTP/1.1\r\nhost:a\r\n\r\n")),
    "reply-chunks": lambda: Kind(_GET, b"", _CHUNKED, _many(b"1;a\r\nx\r\n")),
    "hints": lambda: Kind(_GET, b"", b"", _many(b"HTTP/1.1 103 \r\n\r\n")),
    "partitions": lambda: Kind(b"", _partitions(90_000)),
    "tagged": lambda: Kind(b"", _tagged(7_000)),
    "topics": lambda: Kind(b"", _topics(3_900)),
    "refused": lambda: Kind(b"", _notes(7_900)),
    "versions": lambda: Kind(b"", _many(_frame(18, 0, b""), 65_536)),
    "metadata": lambda: Kind(_frame(3, 1, struct.pack(">i", -1)) * 50, b"", b"", _metadata(200, 700)),
}


class Line:
    """One connection: sends ``first``, then ``then`` for ever, and reads whatever comes."""

    def __init__(self, sock: socket.socket, first: bytes, then: bytes) -> None:
        self.sock, self.then = sock, then
        self.left = memoryview(first or then)
        self.sent = 0

    def write(self) -> bool:
        """False when there is nothing more to be sent."""
        if not self.left:
            self.left = memoryview(self.then)
        sent = self.sock.send(self.left[:PIECE])
        self.left = self.left[sent:]
        self.sent += sent
        return bool(self.left or self.then)


def turn(waiting: selectors.BaseSelector, line: Line, mask: int) -> None:
    try:
        if mask & selectors.EVENT_READ and not line.sock.recv(PIECE):
            raise ConnectionResetError
        if mask & selectors.EVENT_WRITE and not line.write():
            waiting.modify(line.sock, selectors.EVENT_READ, line)
    except BlockingIOError:
        pass
    except OSError:
        waiting.unregister(line.sock)
        line.sock.close()


def call(kind: Kind, port: int, connections: int, seconds: float) -> None:
    if not os.getuid():
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    waiting = selectors.DefaultSelector()
    sent = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        while len(waiting.get_map()) < connections:  # those that were ended begin anew
            sock = socket.socket()
            sock.connect(("127.0.0.1", port))
            sock.setblocking(False)
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            waiting.register(sock, events, Line(sock, kind.first, kind.then))
        for key, mask in waiting.select(0.1):
            before = key.data.sent
            turn(waiting, key.data, mask)
            sent += key.data.sent - before
    print(sent, flush=True)


def serve(kind: Kind, port: int) -> None:
    waiting = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    waiting.register(listener, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, mask in waiting.select():
            if key.fileobj is listener:
                sock, _ = listener.accept()
                sock.setblocking(False)
                waiting.register(sock, selectors.EVENT_READ)
            elif key.data is None:  # it begins when it is asked
                line = Line(key.fileobj, kind.first_reply, kind.then_reply)  # type: ignore[arg-type]
                answers = selectors.EVENT_WRITE if kind.then_reply else 0
                waiting.modify(key.fileobj, selectors.EVENT_READ | answers, line)
            else:
                turn(waiting, key.data, mask)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(KINDS[sys.argv[2]](), int(sys.argv[3]))
    else:
        call(KINDS[sys.argv[2]](), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
