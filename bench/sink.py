"""A server that reads uploads and throws them away, then answers 200. Runs by itself.

usage: sink.py PORT

nginx will not do: `return` answers before it has read the body (Envoy then resets the client, and the end of an upload could
not be timed), and its other ways store the body, which would be the bottleneck.
"""

import contextlib
import socket
import sys

CHUNK = 256 * 1024  # fits into the second-level cache
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
STALL = 20  # seconds without progress that end a connection


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
        while True:
            sock, _ = server.accept()
            with sock, contextlib.suppress(OSError):
                sock.settimeout(STALL)
                swallow(sock)


def swallow(sock: socket.socket) -> None:
    """One request and its reply; returns silently when the client leaves early."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(65536)
        if not piece:
            return
        head += piece
    head, _, body = head.partition(b"\r\n\r\n")
    fields = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    missing = next(int(value) for name, _, value in fields if name == b"content-length") - len(body)
    buffer = bytearray(CHUNK)
    while missing > 0:
        n = sock.recv_into(buffer)
        if not n:
            return
        missing -= n
    sock.sendall(REPLY)


if __name__ == "__main__":
    main()
