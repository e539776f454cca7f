"""A server of nothing but sockets, as ``calls.py`` describes it: what stands behind proxies, and what client programs ask.

``python -m tests.programs.origin FOLDER PORT [UNIX-SOCKET]``; FOLDER has the bodies, as files.
"""

import contextlib
import hashlib
import socket
import sys
import threading
from pathlib import Path
from time import sleep

PIECE = 256 * 1024
CHUNK = 50_000
PAUSE = 0.3  # seconds: how long a slow server does not read
ONLY_READ = 1_000_000  # bytes of a body, before it pauses once more


class Request:
    """One request, and the connection that it came by."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data, self._at = b"", 0  # what has been received, and how much of it was read

    def read_head(self) -> bool:
        """False: the connection has ended."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return False
        line, *fields = head.split(b"\r\n")
        method, target, _ = line.split(b" ")
        self.method, self.path = method.decode(), target.split(b"?")[0].decode()
        named = {name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        self.chunked = named.get(b"transfer-encoding", b"").lower() == b"chunked"
        self.length = int(named.get(b"content-length", 0))
        self.expects = named.get(b"expect", b"").lower() == b"100-continue"
        return True

    def read_body(self, pause: float) -> tuple[int, str]:
        if self.expects:
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        sleep(pause)
        self._paused, self._pause = pause == 0, pause
        self._hash, self._read = hashlib.sha256(), 0
        if self.chunked:
            while size := int(self._line(), 16):
                self._take(size)
                self._line()
            self._line()
        else:
            self._take(self.length)
        return self._read, self._hash.hexdigest()

    def _take(self, size: int) -> None:
        while size > 0:
            if self._at == len(self._data) and not self._fill():
                raise ConnectionError("the body ended early")
            data = memoryview(self._data)[self._at :][:size]
            self._at += len(data)
            self._hash.update(data)
            self._read += len(data)
            size -= len(data)
            if not self._paused and self._read > ONLY_READ:
                self._paused = True
                sleep(self._pause)

    def _until(self, end: bytes) -> bytes | None:
        """None: the connection has ended."""
        while (at := self._data.find(end, self._at)) < 0:
            if not self._fill():
                return None
        found = self._data[self._at : at]
        self._at = at + len(end)
        return found

    def _line(self) -> bytes:
        line = self._until(b"\r\n")
        if line is None:
            raise ConnectionError("the body ended early")
        return line

    def _fill(self) -> bool:
        data = self._connection.recv(PIECE)
        self._data, self._at = self._data[self._at :] + data, 0
        return bool(data)


def serve(connection: socket.socket, folder: Path) -> None:
    request = Request(connection)
    while request.read_head():
        if request.path == "/early":
            connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(PIECE):
                pass
            return
        if request.method == "POST":
            length, digest = request.read_body(PAUSE if request.path == "/slow" else 0)
            told = f"{length} {digest}\n".encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(told), told))
            continue
        _, kind, size = request.path.split("/")
        body = memoryview((folder / size).read_bytes())
        if kind == "down":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:1000]))
            connection.sendall(body[1000:])
            continue
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), CHUNK):
            connection.sendall(b"%x\r\n%b\r\n" % (len(body[at : at + CHUNK]), body[at : at + CHUNK]))
        connection.sendall(b"0\r\n\r\n")


def _connection(connection: socket.socket, folder: Path) -> None:
    with connection, contextlib.suppress(ConnectionError):
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        serve(connection, folder)


def _accept(listener: socket.socket, folder: Path) -> None:
    while True:
        threading.Thread(target=_connection, args=(listener.accept()[0], folder), daemon=True).start()


def main() -> None:
    folder = Path(sys.argv[1])
    listeners = [socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=256)]
    if len(sys.argv) > 3:
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(sys.argv[3])
        listeners[-1].listen(256)
    for listener in listeners[1:]:
        threading.Thread(target=_accept, args=(listener, folder), daemon=True).start()
    _accept(listeners[0], folder)


if __name__ == "__main__":
    main()
