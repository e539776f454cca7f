"""A server that starts again and again, and those who call it meanwhile: ``starts.py serve|deny|late|call HOST PORT ...``.

``serve`` binds and listens ROUNDS times, each time for a few milliseconds, then stays up until it is told to end. It prints
"ready" at the last start, and at the end what it was asked for. ``deny`` and ``late`` (whose SYN leaves when it sends) call
until they are killed, as uid nobody. ``call`` calls until it is told to end, and prints what it got and how long the longest
try took.
"""

import collections
import contextlib
import json
import os
import select
import socket
import sys
import time

NOBODY = 65534
FASTOPEN_CONNECT, FASTOPEN_NO_COOKIE = 30, 34
ROUND = 0.003  # seconds that a server is up
TRY = 10.0  # seconds after which a try is given up

host, port = sys.argv[2], int(sys.argv[3])


def serve(rounds: int) -> None:
    asked: collections.Counter[str] = collections.Counter()
    for left in reversed(range(rounds)):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(64)
            if not left:
                print("ready", flush=True)
            end = time.monotonic() + ROUND
            while time.monotonic() < end or not left:
                readable = select.select([listener] if left else [listener, sys.stdin], [], [], ROUND / 2)[0]
                if sys.stdin in readable:
                    break
                if listener in readable:
                    with contextlib.suppress(OSError):
                        answer(listener.accept()[0], asked)
    print(json.dumps(asked), flush=True)


def answer(connection: socket.socket, asked: collections.Counter[str]) -> None:
    with connection:
        connection.settimeout(1)
        asked[connection.recv(65536).split(b"\r\n")[0].decode() or "nothing"] += 1
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")


def deny(late: bool) -> None:
    os.setuid(NOBODY)
    while True:
        clients = []
        for _ in range(8):
            client = socket.socket()
            client.setblocking(False)
            if late:
                client.setsockopt(socket.IPPROTO_TCP, FASTOPEN_CONNECT, 1)
                client.setsockopt(socket.IPPROTO_TCP, FASTOPEN_NO_COOKIE, 1)
            client.connect_ex((host, port))
            clients.append(client)
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(b"DELETE /late HTTP/1.1\r\nhost: a\r\n\r\n" if late else b"DELETE / HTTP/1.1\r\nhost: a\r\n\r\n")
            client.close()


def call() -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    longest = 0.0
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        began = time.monotonic()
        outcomes[once()] += 1
        longest = max(longest, time.monotonic() - began)
    outcomes["last: " + once()] += 1
    print(json.dumps({"outcomes": outcomes, "longest": longest}), flush=True)


def once() -> str:
    try:
        with socket.create_connection((host, port), timeout=TRY) as client:
            client.sendall(b"GET /ok HTTP/1.1\r\nhost: a\r\n\r\n")
            return client.recv(65536).split(b"\r\n")[0].decode()
    except OSError as error:
        return type(error).__name__


match sys.argv[1]:
    case "serve":
        serve(int(sys.argv[4]))
    case "deny" | "late":
        deny(sys.argv[1] == "late")
    case "call":
        call()
