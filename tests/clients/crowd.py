"""A crowd of connections in one process, and a server for it.

crowd.py serve HOST PORT          answers every HTTP request with 200; prints "ready"
crowd.py call HOST PORT COUNT     opens COUNT connections at once, makes one call on each, prints the statuses as JSON,
                                  and holds the connections open until standard input is closed
"""

import collections
import errno
import json
import os
import selectors
import socket
import sys

MODE, HOST, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
REQUEST = b"GET /ok HTTP/1.1\r\nhost: orders\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n"


def serve() -> None:
    waiting = selectors.DefaultSelector()
    listener = socket.create_server((HOST, PORT), backlog=4096)
    listener.setblocking(False)
    waiting.register(listener, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listener:
                connection, _ = listener.accept()
                waiting.register(connection, selectors.EVENT_READ)
                continue
            data = sock.recv(4096)
            if data:
                sock.send(REPLY * data.count(b"\r\n\r\n"))
            else:
                waiting.unregister(sock)
                sock.close()


def call(count: int) -> None:
    waiting = selectors.DefaultSelector()
    outcomes: collections.Counter[str] = collections.Counter()
    crowd = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        crowd.append(sock)
        error = sock.connect_ex((HOST, PORT))
        if error not in (0, errno.EINPROGRESS):
            outcomes[errno.errorcode[error]] += 1
            continue
        waiting.register(sock, selectors.EVENT_WRITE)
    while waiting.get_map():
        for key, _ in waiting.select(30) or sys.exit("nothing happened for 30 s"):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                if key.events & selectors.EVENT_WRITE:
                    sock.send(REQUEST)
                    waiting.modify(sock, selectors.EVENT_READ)
                    continue
                data = sock.recv(4096)
                outcomes[data[9:12].decode() if data == REPLY else f"not the whole reply: {data!r}"] += 1
            except OSError as problem:
                outcomes[errno.errorcode.get(problem.errno or 0, "?")] += 1
            waiting.unregister(sock)
    print(json.dumps(outcomes), flush=True)
    while os.read(0, 1):
        pass


if MODE == "serve":
    serve()
else:
    call(int(sys.argv[4]))
