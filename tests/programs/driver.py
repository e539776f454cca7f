"""A client of nothing but a socket: it knows every byte that it has sent and received."""

import hashlib
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from time import sleep

from tests.programs.calls import Call
from tests.programs.content import content

PIECE = 256 * 1024
CHUNK = 50_000  # no power of two, so that chunks end in the middle of everything
PAUSE = 0.3  # seconds: how long a slow reader does not read


@dataclass
class Reply:
    """What came of a call."""

    status: int
    length: int
    digest: str
    sent: int  # bytes, with heads and framing
    received: int
    connection: int  # the client's port


class SurpriseError(AssertionError):
    """No reply, or not all of it."""


class Driver:
    """Makes one call after the other on one connection, for as long as the server keeps it.

    ``connect`` makes a connection. ``connections`` counts them.
    """

    def __init__(self, connect: Callable[[], socket.socket], slow: bool = False) -> None:
        self._connect = connect
        self._slow = slow
        self._sock: socket.socket | None = None
        self._data, self._at = b"", 0  # what has been received, and how much of it was read
        self._received = 0
        self.connections = 0

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock, self._data, self._at = None, b"", 0

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make(self, call: Call, together: bool = True) -> Reply:
        """``together``: the head goes in one message with the body, or the body's beginning."""
        if self._sock is None:
            self._sock = self._connect()
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
        port = self._sock.getsockname()[1]
        self._received = 0
        try:
            sent = self._send(call, together)
            if self._slow:
                sleep(PAUSE)
            status, length, digest, stays = self._reply(call)
        except (TimeoutError, ConnectionError) as error:
            raise SurpriseError(
                f"{call.method} {call.target} with {call.body} bytes: {error!r}, after {self._received} bytes"
            ) from None
        if self._at < len(self._data):
            raise SurpriseError(f"bytes behind the reply to {call.target}: {self._data[self._at :][:200]!r}")
        if not stays:
            self.close()
        return Reply(status, length, digest, sent, self._received, port)

    # The request

    def _send(self, call: Call, together: bool) -> int:
        assert self._sock is not None
        framing = ""
        if call.body is not None:
            framing = "Transfer-Encoding: chunked\r\n" if call.chunked else f"Content-Length: {call.body}\r\n"
        head = f"{call.method} {call.target} HTTP/1.1\r\nHost: server\r\n{framing}\r\n".encode()
        pieces: list[bytes | memoryview] = []
        body = content(call.body or 0)
        if call.chunked:
            chunks = (body[at : at + CHUNK] for at in range(0, len(body), CHUNK))
            pieces += [*(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks), b"0\r\n\r\n"]
        else:
            pieces += [body[at : at + PIECE] for at in range(0, len(body), PIECE)]
        if together and pieces:
            pieces[0] = head + bytes(pieces[0])
        else:
            pieces.insert(0, head)
        sent = 0
        for piece in pieces:
            while piece and not self._has_answer(call):
                done = self._sock.send(piece)
                sent += done
                piece = memoryview(piece)[done:]
        return sent

    def _has_answer(self, call: Call) -> bool:
        """Whether a refusal has come before the request has gone: then the rest of it is nobody's."""
        return call.status >= 400 and bool(select.select([self._sock], [], [], 0)[0])

    # The reply

    def _reply(self, call: Call) -> tuple[int, int, str, bool]:
        head = self._until(b"\r\n\r\n")
        status = int(head.split(None, 2)[1])
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:-2])
        }
        stays = fields.get(b"connection", b"keep-alive").lower() != b"close" and head.startswith(b"HTTP/1.1")
        self._hash, self._length = hashlib.sha256(), 0
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            while size := int(self._until(b"\r\n").split(b";")[0], 16):
                self._body(size, call)
                self._until(b"\r\n")
            self._until(b"\r\n")
        elif b"content-length" in fields:
            self._body(int(fields[b"content-length"]), call)
        else:
            self._body(None, call)
            stays = False
        return status, self._length, self._hash.hexdigest(), stays

    def _body(self, size: int | None, call: Call) -> None:
        while size is None or size > 0:
            if self._at == len(self._data) and not self._fill():
                if size is None:
                    return
                raise ConnectionError(f"the connection ended {size} bytes before the reply")
            data = memoryview(self._data)[self._at :][:size]
            self._at += len(data)
            if self._slow and call.length and self._length < call.length // 2 <= self._length + len(data):
                sleep(PAUSE)
            self._hash.update(data)
            self._length += len(data)
            size = None if size is None else size - len(data)

    def _until(self, end: bytes) -> bytes:
        while (at := self._data.find(end, self._at)) < 0:
            if not self._fill():
                raise ConnectionError(f"the connection ended behind {self._data[self._at :][:200]!r}")
        found = self._data[self._at : at + len(end)]
        self._at = at + len(end)
        return found

    def _fill(self) -> bool:
        assert self._sock is not None
        data = self._sock.recv(PIECE)
        self._received += len(data)
        self._data, self._at = self._data[self._at :] + data, 0
        return bool(data)
