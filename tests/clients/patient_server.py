"""A server that takes whatever comes. patient_server.py PORT

Requests without a body are answered with 200. Those for ``/never``, with a body, or of another protocol are read and left
without an answer.
"""

import selectors
import socket
import sys

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
END = b"\r\n\r\n"

ready = selectors.DefaultSelector()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
listener.setblocking(False)
ready.register(listener, selectors.EVENT_READ)
tails: dict[socket.socket, bytes] = {}  # what may be the beginning of an end of a head; absent: answers nothing


def read(sock: socket.socket) -> None:
    data = sock.recv(1 << 18)
    if not data:
        raise ConnectionResetError
    if sock not in tails:
        return
    data = tails[sock] + data
    if b"POST /" in data or b"/never" in data or not data.isascii():
        del tails[sock]
        return
    sock.send(OK * data.count(END))
    tails[sock] = data[-3:] if not data.endswith(END) else b""


while True:
    for key, _ in ready.select():
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        if sock is listener:
            connection, _ = listener.accept()
            connection.setblocking(False)
            tails[connection] = b""
            ready.register(connection, selectors.EVENT_READ)
            continue
        try:
            read(sock)
        except BlockingIOError:
            pass  # a reply that finds no room is not waited for: its client does not read
        except OSError:
            ready.unregister(sock)
            tails.pop(sock, None)
            sock.close()
