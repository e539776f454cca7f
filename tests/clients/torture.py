"""What the client and the server of the torture agree on: the bytes of every body, and how a request asks for its reply.

A request carries its id in the path and, with what the server is to do, in the header ``x-order``:
``<id> <kind> <size> <pieces>``.
The server needs to know nothing else. Kinds of replies are below. ``pieces`` 1 means one send; more of them come with pauses
now and then. Only what starts fast is imported.
"""

import asyncio
import contextlib
import hashlib
import random
import socket
import struct
import zlib
from typing import NamedTuple

# Bodies are pieces of this: which piece, the id says. So a byte at a wrong place shows.
_SEA = random.Random(20).randbytes(12 << 20)
RESET = struct.pack("ii", 1, 0)

COUNTED, EMPTY, SAME = "counted", "empty", "same"  # Content-Length, 204, 304: the kernel may carry these
CHUNKED, HINTED, CHATTY, GREEDY = "chunked", "hinted", "chatty", "greedy"
EARLY = "early"  # before the request's body is read
# Behind these the connection is over.
LASTING, LAST, GONE, SILENT, RESETTING, CUT = "lasting", "last", "gone", "silent", "resetting", "cut"
PROVABLE = (COUNTED, EMPTY, SAME)
ENDING = (LASTING, LAST, GONE, SILENT, RESETTING, CUT)


def body(name: str, size: int, side: str) -> bytes:
    """The body of the request or reply (``side``) of a call."""
    at = int.from_bytes(hashlib.blake2b(f"{name}{side}".encode(), digest_size=4).digest()) % (len(_SEA) - size)
    return _SEA[at : at + size]


def chunks(data: bytes, size: int = 7001) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


class Order(NamedTuple):
    name: str
    kind: str
    size: int
    pieces: int

    def words(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def read(cls, words: str) -> "Order":
        name, kind, size, pieces = words.split()
        return cls(name, kind, int(size), int(pieces))


def reply(order: Order, method: str, got: bytes) -> bytes:
    """The bytes of a whole reply to ``order``, whose request had the body ``got``."""
    content = body(order.name, order.size, "reply")
    told = f"x-id: {order.name}\r\nx-got: {len(got)} {zlib.crc32(got)}\r\n".encode()
    counted = b"content-length: %d\r\n\r\n" % order.size
    bodiless = method == "HEAD"
    match order.kind:
        case "empty":
            return b"HTTP/1.1 204 No Content\r\n" + told + b"\r\n"
        case "same":
            return b"HTTP/1.1 304 Not Modified\r\n" + told + b"\r\n"
        case "chunked":
            return (
                b"HTTP/1.1 200 OK\r\n" + told + b"transfer-encoding: chunked\r\n\r\n" + (b"" if bodiless else chunks(content))
            )
        case "lasting":
            return b"HTTP/1.1 200 OK\r\n" + told + b"\r\n" + (b"" if bodiless else content)
        case "last":
            return b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + told + counted + (b"" if bodiless else content)
        case "hinted":
            told = told + b"x-hinted: yes\r\n"
            return (
                b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n"
                + told
                + counted
                + (b"" if bodiless else content)
            )
        case _:
            return b"HTTP/1.1 200 OK\r\n" + told + counted + (b"" if bodiless else content)


class EndedError(Exception):
    """The other end has closed, or reset, in the middle of something."""


class Wire:
    """A socket on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop, self.sock = loop, sock
        self.buffer = bytearray()
        self.step = 1 << 18  # bytes of one read
        self.pause = 0.0  # between reads
        self.slow = 0  # reads with a pause
        self.sent = self.received = 0
        self.heard = loop.time()

    async def fill(self) -> bool:
        if self.pause:
            await asyncio.sleep(self.pause)
            self.slow += 1
            if self.slow % 500 == 0:  # megabytes in such pieces would take minutes
                self.step, self.pause = 1 << 18, 0.0
        try:
            data = await self.loop.sock_recv(self.sock, self.step)
        except OSError:
            raise EndedError("reset") from None
        self.buffer += data
        self.received += len(data)
        self.heard = self.loop.time()
        return bool(data)

    def state(self) -> str:
        return (
            f"sent {self.sent} bytes, received {self.received}, the last of them {self.loop.time() - self.heard:.3f} s ago; "
            f"{len(self.buffer)} not used yet; reads of {self.step} bytes every {self.pause} s, {self.slow} of them"
        )

    async def until(self, marker: bytes) -> bytes:
        """Up to and with ``marker``; empty at an orderly end in front of it."""
        searched = 0
        while (at := self.buffer.find(marker, searched)) < 0:
            searched = max(0, len(self.buffer) - len(marker))
            if not await self.fill():
                if self.buffer:
                    raise EndedError("cut")
                return b""
        return self.take(at + len(marker))

    async def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            if not await self.fill():
                raise EndedError("cut")
        return self.take(size)

    def take(self, size: int) -> bytes:
        taken = bytes(memoryview(self.buffer)[:size])
        del self.buffer[:size]
        return taken

    async def chunked(self) -> tuple[bytes, bytes]:
        """A chunked body: its content, and its bytes on the wire."""
        content, wire = [], []
        while True:
            line = await self.until(b"\r\n")
            if not line:
                raise EndedError("cut")
            piece = await self.exactly(int(line, 16) + 2)
            content.append(piece[:-2])
            wire += [line, piece]
            if len(piece) == 2:
                return b"".join(content), b"".join(wire)

    async def send(self, data: bytes, pieces: int, chance: random.Random) -> None:
        cuts = sorted(chance.randrange(len(data)) for _ in range(pieces - 1)) if data else []
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start:
                await asyncio.sleep(chance.choice((0, 0, 0.0005, 0.004)))
            try:
                await self.loop.sock_sendall(self.sock, memoryview(data)[start:stop])
                self.sent += stop - start
            except OSError:
                raise EndedError("reset") from None

    def end(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            raise EndedError("reset") from None

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()
