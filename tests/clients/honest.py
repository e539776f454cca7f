"""An honest client, which makes calls at an even pace and tells how long each took. Prints what came of them, as JSON.

honest.py PORT SECONDS

One thread keeps its connection, another makes a new one for each call: ``kept`` and ``fresh`` in what is printed, each with
``calls``, ``failures`` (by name of the error, or status) and ``milliseconds`` (the 50th and 99th percentile, and the longest).
"""

import collections
import errno
import json
import socket
import sys
import threading
import time

PORT, SECONDS = int(sys.argv[1]), float(sys.argv[2])
# Between two calls of a thread (seconds).
PACE = 0.01
# Longer than this (seconds) nobody waits for a reply.
PATIENCE = 20.0
REQUEST = b"GET /honest HTTP/1.1\r\nhost: orders\r\n\r\n"

Outcome = dict[str, object]


def connect() -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", PORT), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def call(sock: socket.socket) -> int:
    sock.sendall(REQUEST)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "the server closed")
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += sock.recv(65536)
    return int(head[9:12])


def calls(keep: bool, told: Outcome) -> None:
    took: list[float] = []
    failures: collections.Counter[str] = collections.Counter()
    sock: socket.socket | None = None
    end = time.monotonic() + SECONDS
    due = time.monotonic()
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.monotonic()
        try:
            sock = sock or connect()
            status = call(sock)
            if status != 200:
                failures[str(status)] += 1
        except OSError as error:
            failures[errno.errorcode.get(error.errno or 0, type(error).__name__)] += 1
            keep_this = False
        else:
            keep_this = keep
        took.append((time.monotonic() - began) * 1e3)
        if sock and not keep_this:
            sock.close()
            sock = None
        due = max(due + PACE, time.monotonic())
    took.sort()
    told.update(
        calls=len(took),
        failures=failures,
        milliseconds=[round(took[min(int(len(took) * share), len(took) - 1)], 1) for share in (0.5, 0.99, 1.0)],
    )


results: dict[str, Outcome] = {"kept": {}, "fresh": {}}
threads = [threading.Thread(target=calls, args=(name == "kept", told)) for name, told in results.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(results))
