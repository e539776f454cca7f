"""Move one large body and print how long it took, as JSON. Runs by itself: it may be started inside a workload.

usage: body_client.py download|upload PORT PATH FILE

`download` reads and discards the reply; `upload` sends FILE with sendfile(2). Nothing is copied that TCP does not copy.
The clock runs from the first byte of the request to the last byte of the reply.
"""

import json
import os
import socket
import sys
import time

STALL = 20  # seconds without progress that end the attempt
CHUNK = 256 * 1024  # fits into the second-level cache


def main() -> None:
    verb, port, path, file = sys.argv[1:]
    with socket.create_connection(("127.0.0.1", int(port)), timeout=STALL) as sock:
        begin = time.perf_counter()
        moved = download(sock, path) if verb == "download" else upload(sock, path, file)
        print(json.dumps({"bytes": moved, "seconds": time.perf_counter() - begin}))


def download(sock: socket.socket, path: str) -> int:
    """GET `path`; returns the length of the body, all of which was received."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    head, body = read_head(sock)
    length, received = content_length(head), len(body)
    buffer = bytearray(CHUNK)
    while received < length:
        received += check(sock.recv_into(buffer))
    return received


def upload(sock: socket.socket, path: str, file: str) -> int:
    """POST the contents of `file` and await the reply; returns the length of the body."""
    with open(file, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {size}\r\n\r\n".encode())
        sent = sock.sendfile(source)
    read_head(sock)
    return sent


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """The head of a reply that must be 200, and the bytes of the body that came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        check(len(piece))
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if head.split(b" ")[1] != b"200":
        sys.exit(f"not 200: {head[:200]!r}")
    return head, body


def content_length(head: bytes) -> int:
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next(int(value) for name, _, value in lines if name == b"content-length")


def check(n: int) -> int:
    if n == 0:
        sys.exit("the peer closed early")
    return n


if __name__ == "__main__":
    main()
