"""Replies that RFC 9112 does not allow and that reach the client unchanged."""

import msgspec

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED_OK = b"2\r\nok\r\n0\r\n\r\n"


class Odd(msgspec.Struct, frozen=True):
    """A reply, the reasons under which it is counted, and whether the connection goes on behind it."""

    name: str
    reply: bytes
    reasons: list[str]
    goes_on: bool = False
    until_close: bool = False


def head(*lines: bytes, version: bytes = b"1.1", status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join((b"HTTP/" + version + b" " + status, *lines, b"", b""))


ODD = [
    Odd(
        "204-chunked",
        head(b"Transfer-Encoding: chunked", status=b"204 No Content") + b"0\r\n\r\n",
        ["body-forbidden"],
    ),
    Odd(
        "204-chunked-without-an-end",
        head(b"Transfer-Encoding: chunked", status=b"204 No Content"),
        ["body-forbidden"],
        until_close=True,
    ),
    Odd("chunked-twice", head(b"Transfer-Encoding: chunked, chunked") + CHUNKED_OK, ["repeated-transfer-encoding"]),
    Odd(
        "chunked-in-two-lines",
        head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + CHUNKED_OK,
        ["repeated-transfer-encoding"],
    ),
    Odd(
        "length-and-chunked",
        head(b"Content-Length: 99", b"Transfer-Encoding: chunked") + CHUNKED_OK,
        ["length-and-transfer-encoding"],
    ),
    Odd("equal-lengths", head(b"Content-Length: 2", b"Content-Length: 2") + b"ok", ["repeated-content-length"]),
    Odd("list-of-equal-lengths", head(b"Content-Length: 2, 2") + b"ok", ["repeated-content-length"]),
    Odd("http10-chunked", head(b"Transfer-Encoding: chunked", version=b"1.0") + CHUNKED_OK, ["transfer-encoding-in-http10"]),
    Odd("identity", head(b"Transfer-Encoding: identity") + b"ok", ["unknown-transfer-encoding"], until_close=True),
    Odd(
        "identity-with-length",
        head(b"Transfer-Encoding: identity", b"Content-Length: 2") + b"ok",
        ["unknown-transfer-encoding"],
    ),
    Odd("gzip", head(b"Transfer-Encoding: gzip") + b"\x1f\x8b", ["unknown-transfer-encoding"], until_close=True),
    Odd("gzip-chunked", head(b"Transfer-Encoding: gzip, chunked") + CHUNKED_OK, ["unknown-transfer-encoding"]),
    Odd("bare-lf", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", ["bare-lf"]),
    Odd("some-bare-lf", b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 2\r\n\nok", ["bare-lf"]),
    Odd("bare-lf-and-an-end-in-the-body", b"HTTP/1.1 200 OK\nContent-Length: 6\n\nok\r\n\r\n", ["bare-lf"]),
    Odd("folded", head(b"X-A: b", b"\tc d", b"  e", b"Content-Length: 2") + b"ok", ["obs-fold"]),
    Odd("space-before-colon", head(b"X-A : b", b"Content-Length: 2") + b"ok", ["space-before-colon"]),
    Odd("space-before-the-colon-of-the-length", head(b"Content-Length : 2") + b"ok", ["space-before-colon"]),
    Odd(
        "padded-chunk-sizes",
        head(b"Transfer-Encoding: chunked") + b"2  \r\nok\r\n1 ;a=b\r\n!\r\n0\t\r\n\r\n",
        ["padded-chunk-size"],
        goes_on=True,
    ),
    Odd(
        "forbidden-trailer",
        head(b"Transfer-Encoding: chunked") + b"2\r\nok\r\n0\r\nContent-Type: x\r\nSet-Cookie: a=b\r\n\r\n",
        ["forbidden-trailer"],
        goes_on=True,
    ),
    Odd("150-cookies", head(*[b"Set-Cookie: a=%d" % n for n in range(150)], b"Content-Length: 2") + b"ok", [], goes_on=True),
    Odd("blank-line-first", b"\r\n" + OK, ["blank-line"]),
    Odd("two-blank-lines-first", b"\n\r\n" + OK, ["blank-line"]),
    Odd("204-with-length", head(b"Content-Length: 2", status=b"204 No Content"), ["body-forbidden"]),
]


def odd(name: str) -> Odd:
    return next(case for case in ODD if case.name == name)
