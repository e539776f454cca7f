"""Makes HTTP calls without pause, connects again when it must, and at the end prints what came of them, as JSON.

hammer.py PORT CONNECTIONS CALLS PER_CONNECTION PATH...

CALLS 0 means: until standard input is closed. Each connection makes the calls of every PATH in turn, `PATH/<connection>-<n>`,
and is replaced after PER_CONNECTION calls (0: never). Only the standard library, so that it starts fast.
"""

import collections
import errno
import json
import os
import socket
import sys
import threading
import time

PORT, CONNECTIONS, CALLS, PER_CONNECTION = map(int, sys.argv[1:5])
PATHS = sys.argv[5:]

statuses: collections.Counter[str] = collections.Counter()  # "PATH STATUS" -> calls
errors: collections.Counter[str] = collections.Counter()  # name of the error -> how often
lock = threading.Lock()
ended = threading.Event()
budget = iter(range(CALLS)) if CALLS else iter(int, 1)


def call(sock: socket.socket, path: str) -> int:
    """One call; its status, or 0 when the server closed before the reply."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return 0
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += sock.recv(65536)
    return int(head[9:12])


def connection(number: int) -> None:
    made = 0
    while not ended.is_set():
        try:
            with socket.create_connection(("127.0.0.1", PORT), timeout=20) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for _ in range(PER_CONNECTION or sys.maxsize):
                    with lock:
                        if ended.is_set() or next(budget, None) is None:
                            return
                    path = PATHS[made % len(PATHS)]
                    status = call(sock, f"{path}/{number}-{made}")
                    with lock:
                        statuses[f"{path} {status}"] += 1
                    made += 1
                    if not status:
                        break
        except OSError as error:
            with lock:
                errors[errno.errorcode.get(error.errno or 0, type(error).__name__)] += 1
            time.sleep(0.01)


threads = [threading.Thread(target=connection, args=(number,), daemon=True) for number in range(CONNECTIONS)]
for thread in threads:
    thread.start()
if CALLS:
    for thread in threads:
        thread.join()
else:
    while os.read(0, 4096):
        pass
    ended.set()
    for thread in threads:
        thread.join()
print(json.dumps({"statuses": statuses, "errors": errors, "completed": sum(statuses.values())}))
