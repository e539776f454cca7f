"""Programs that want all of the agent for themselves, without any privilege. They run until they are killed.

attackers.py KIND PORT

What takes a parser the most time is in greedy.py, who hoards connections and memory in hog.py.
"""

import contextlib
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable

# Descriptors that every process is given at least.
MOST = 1000
_RESET = struct.pack("ii", 1, 0)


port = 0  # of the server


def connect() -> socket.socket | None:
    with contextlib.suppress(OSError):
        sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        sock.setblocking(False)
        return sock
    return None


def pump(count: int, data: bytes) -> None:
    """``count`` connections that send ``data`` again and again, as fast as it is taken, and read all that comes. One that ends
    is made anew."""
    ready = selectors.DefaultSelector()

    while True:
        while len(ready.get_map()) < count and (sock := connect()):
            ready.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, [memoryview(data)])
        for key, mask in ready.select(0.1):
            sock, left = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            try:
                if mask & selectors.EVENT_READ and not sock.recv(1 << 18):
                    raise ConnectionResetError
                if mask & selectors.EVENT_WRITE:
                    left[0] = left[0][sock.send(left[0]) :] or memoryview(data)
            except BlockingIOError:
                pass
            except OSError:
                ready.unregister(sock)
                sock.close()


def hold(count: int, data: bytes) -> None:
    """``count`` connections that send ``data``, read nothing and never end. One that is ended is made anew."""
    held: list[socket.socket] = []
    while True:
        while len(held) < count and (sock := connect()):
            with contextlib.suppress(OSError):
                sock.send(data)
            held.append(sock)
        time.sleep(0.2)
        for sock in list(held):
            with contextlib.suppress(BlockingIOError):
                try:
                    alive = bool(sock.recv(1 << 16))
                except ConnectionError:
                    alive = False
                if not alive:
                    held.remove(sock)
                    sock.close()


def request(path: str, fields: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: orders\r\n{fields}\r\n".encode()


def come_and_go() -> None:
    """Connections that are reset as soon as they are there."""
    while True:
        sock = connect()
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()


def knock() -> None:
    """Connects that are not waited for."""
    while True:
        socks = [socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(MOST // 2)]
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.connect(("127.0.0.1", port))
        for sock in socks:
            sock.close()


HEAD_60K = b"GET / HTTP/1.1\r\n" + b"".join(b"x-%04d: %s\r\n" % (number, b"y" * 1000) for number in range(59))

KINDS: dict[str, Callable[[], None]] = {
    "pipelined-calls": lambda: pump(50, request("/") * 2000),
    "unfinished-heads": lambda: hold(MOST, HEAD_60K),
    "come-and-go": come_and_go,
    "knock": knock,
}

if __name__ == "__main__":
    port = int(sys.argv[2])
    os.setpriority(os.PRIO_PROCESS, 0, 10)  # what is tried is the agent's time, not the machine's
    KINDS[sys.argv[1]]()
