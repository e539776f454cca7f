"""Takes all that it can, as user nobody: many connections that never finish what they say.

hog.py HOST PORT COUNT FILE       opens COUNT connections and sends on each what is in FILE, as far as it is taken; once nothing
                                  has moved for a moment, prints how many are "open", "ended" and "reset", as JSON, and holds
                                  them until standard input is closed; then prints it again
"""

import collections
import json
import os
import selectors
import socket
import sys
import time

HOST, PORT, COUNT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
NOBODY = 65534
QUIET = 0.5  # seconds


class Hog:
    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._waiting = selectors.DefaultSelector()
        self._left: dict[socket.socket, memoryview] = {}
        self.outcomes = collections.Counter(open=0, ended=0, reset=0)

    def open(self) -> None:
        sock = socket.socket()
        try:
            sock.connect((HOST, PORT))
        except OSError:
            self.outcomes["reset"] += 1
            return
        sock.setblocking(False)
        self.outcomes["open"] += 1
        self._left[sock] = memoryview(self._payload)
        self._waiting.register(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._payload else 0))

    def turn(self, seconds: float) -> bool:
        """Whether anything has moved within so many seconds."""
        ready = self._waiting.select(seconds)
        for key, events in ready:
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                if events & selectors.EVENT_READ and not sock.recv(1 << 16):
                    self._lose(sock, "ended")
                    continue
                if events & selectors.EVENT_WRITE:
                    self._left[sock] = self._left[sock][sock.send(self._left[sock][: 1 << 18]) :]
                    if not self._left[sock]:
                        self._waiting.modify(sock, selectors.EVENT_READ)
            except BlockingIOError:
                pass
            except OSError:
                self._lose(sock, "reset")
        return bool(ready)

    def _lose(self, sock: socket.socket, how: str) -> None:
        self.outcomes["open"] -= 1
        self.outcomes[how] += 1
        self._waiting.unregister(sock)
        del self._left[sock]
        sock.close()

    def tell(self) -> None:
        print(json.dumps(self.outcomes), flush=True)


def main() -> None:
    with open(sys.argv[4], "rb") as file:
        hog = Hog(file.read())
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    for _ in range(COUNT):
        hog.open()
        hog.turn(0)
    moved = time.monotonic()
    while time.monotonic() - moved < QUIET:
        if hog.turn(0.05):
            moved = time.monotonic()
    hog.tell()
    os.set_blocking(0, False)
    while os.read(0, 1) if _readable() else True:
        hog.turn(0.05)
    hog.tell()


def _readable() -> bool:
    with selectors.DefaultSelector() as stdin:
        stdin.register(0, selectors.EVENT_READ)
        return bool(stdin.select(0))


main()
