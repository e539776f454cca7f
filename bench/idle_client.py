"""Hold idle keep-alive connections, each of which has made one request, until stdin closes. Runs by itself.

usage: idle_client.py PORT PATH CONNECTIONS SECONDS

Prints the number of connections that are open and were answered 200. Ends after SECONDS, come what may.
"""

import signal
import socket
import sys


def main() -> None:
    port, path, connections, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    signal.alarm(seconds)
    request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    held = []
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        sock.sendall(request)
        if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
            sys.exit("not 200")
        held.append(sock)
    print(len(held), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
