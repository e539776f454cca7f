"""Beginnings of connections that are no sound HTTP, and that some server executes nevertheless.

They were sent to http.server, wsgiref, werkzeug, aiohttp, gunicorn, uvicorn, hypercorn, waitress, tornado and cheroot (Python),
Node.js, Go, Java's com.sun.net.httpserver, PHP's built-in server, WEBrick and puma (Ruby), nginx, Apache, lighttpd and busybox.
docs/http1.md says which of them took what. A beginning that one of them executes must never pass as "unknown".
"""

from collections.abc import Iterator

PATH = b"/admin"
_END = b"\r\nHost: a\r\nConnection: close\r\n\r\n"
_METHODS = (b"GET", b"get", b"FOO", b"foo", b"PRI", b"SOURCE", b"DESCRIBE", b'"GET"', b"X" * 1500, b"\x16\x03\x01\x02\x00\x01")
_VERSIONS = (
    b" HTTP/1.1", b" http/1.1", b" HTTP/1.0", b" HTTP/0.9", b" HTTP/2.0", b" HTTP/3.7", b" HTTP/1", b" HTTP/01.01",
    b" HTTP/1.1 x", b" HTTP", b" FOO/1.1", b" RTSP/1.0", b" ICE/1.0", b" SIP/2.0", b" 1.1", b" x", b" ", b"",
)  # fmt: skip
_TARGETS = (b"/admin", b"admin", b"http://a/admin", b"foo://a/admin", b"?admin", b"\xa0/admin", b"%2fadmin", b"//a/admin")
_BLANKS = (b"\r\n", b"\n", b" ", b"\t", b"\r", b"\x0b", b"\x00", b"\x1c", b"\x85", b"\xa0", b"\xff")
_PROXY1 = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"
_PROXY2 = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def beginnings() -> dict[str, bytes]:
    """Every beginning by its name."""
    return dict(_beginnings())


def _beginnings() -> Iterator[tuple[str, bytes]]:
    for number in range(256):
        byte = bytes([number])
        yield f"{byte!r} in front", byte + b"GET /admin HTTP/1.1" + _END
        yield f"{byte!r} in front of HTTP/0.9", byte + b"GET /admin\r\n\r\n"
        yield f"a line of {byte!r} in front", byte + b"\nGET /admin HTTP/1.1" + _END
        yield f"{byte!r} between words", b"GET" + byte + b"/admin" + byte + b"HTTP/1.1" + _END
        yield f"{byte!r} between words of HTTP/0.9", b"GET" + byte + b"/admin\r\n\r\n"
        yield f"{byte!r} in the method", b"G" + byte + b"T /admin HTTP/1.1" + _END
        yield f"{byte!r} in the method of HTTP/0.9", b"G" + byte + b"T /admin\r\n\r\n"
        yield f"{byte!r} in the version", b"GET /admin HTTP" + byte + b"1.1" + _END
    for method in _METHODS:
        for version in _VERSIONS:
            for target in _TARGETS:
                yield f"{method[:9]!r} {target!r} {version!r}", method + b" " + target + version + _END
    for blank in _BLANKS:
        for count in (2, 24, 600, 1100, 9000):
            yield f"{count} times {blank!r} in front", blank * count + b"GET /admin HTTP/1.1" + _END
            yield f"{count} times {blank!r} in front of HTTP/0.9", blank * count + b"GET /admin\r\n\r\n"
            yield f"{count} times {blank!r} between", b"GET" + blank * count + b"/admin HTTP/1.1" + _END
    for length in (1100, 9000, 60_000):
        yield f"a method of {length} bytes", b"\x16\x03\x01" + b"a" * length + b" /admin HTTP/1.1" + _END
        yield f"a method of {length} bytes in front of \\x1c", b"\x16" + b"a" * length + b"\x1c/admin\x1cHTTP/1.1" + _END
    for line in (b"X", b":", b"a b c d", b"EHLO x", b"\0x", b"\xff", b"SSH-2.0-x", b"GET", b"\x16\x03\x01"):
        for end in (b"\r\n", b"\n", b"\r\n\r\n", b"\n\n", b"\r"):
            yield f"the line {line!r} {end!r} in front", line + end + b"GET /admin HTTP/1.1" + _END
    yield "a byte order mark", b"\xef\xbb\xbfGET /admin HTTP/1.1" + _END
    yield "spaces of Unicode", b"GET\xe2\x80\x83/admin\xe2\x80\x83HTTP/1.1" + _END
    yield "an ideographic space in front", b"\xe3\x80\x80GET /admin HTTP/1.1" + _END
    yield "the PROXY protocol, version 1", _PROXY1 + b"GET /admin HTTP/1.1" + _END
    yield "the PROXY protocol, version 2", _PROXY2 + b"GET /admin HTTP/1.1" + _END
    yield "no end of the line", b"GET /admin HTTP/1.1"
    yield "no end of the line of HTTP/0.9", b"GET\x1c/admin"


# What other protocols begin with. It must go on passing where policy allows what is unknown.
OTHERS = {
    "TLS": b"\x16\x03\x01\x00\x31\x01\x00\x00\x2d\x03\x03" + bytes(range(32)) + b"\x00\x00\x02\x13\x01\x01\x00\x00\x00",
    "TLS with ALPN": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xd1" * 32 + b"\x20" + b"\x7f" * 32 + b"\x08http/1.1",
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" + bytes(range(256)),
    "SMTP": b"EHLO mail.example\r\nMAIL FROM:<a@example>\r\n",
    "FTP": b"USER anonymous\r\nPASS a@example\r\nRETR /pub/x\r\n",
    "IRC": b"NICK a\r\nUSER a 0 * :A B\r\nJOIN #http\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "Redis inline": b"SET a b\r\nSET b /c\r\n",
    "memcached": b"get a\r\nset a 0 0 1\r\nb\r\n",
    "AMQP": b"AMQP\x00\x00\x09\x01" + bytes(100),
    "STOMP": b"CONNECT\naccept-version:1.2\nhost:a\n\n\0",
    "PostgreSQL": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "MySQL": b"\x3a\x00\x00\x01\x85\xa6\x03\x00" + bytes(24) + b"root\0\x14" + bytes(range(200, 220)),
    "MongoDB": b"\x3f\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xd4\x07\x00\x00admin.$cmd\0",
    "MQTT": b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd",
    "XMPP": b"<?xml version='1.0'?><stream:stream to='a' xmlns='jabber:client'>",
    "Kafka": b"\x00\x00\x00\x1a\x00\x12\x00\x03\x00\x00\x00\x01\x00\x01a\x00\x02a\x020\x00",
}
