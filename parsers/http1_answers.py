"""What can be wrong on an HTTP/1.1 connection, and the replies that are written in the server's place.

Each fault is one constant: its stable reason token (records, metrics), its status (RFC 9110 section 15) and the sentence
that the client reads. docs/http1.md lists them all.
"""

import msgspec

_PHRASES = {
    400: "Bad Request",
    403: "Forbidden",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

DENIED_TEXT = "Access denied"  # the very words of Cilium's Envoy, which its users' tests look for
BAD_PATH_TEXT = "Bad request: the path has no certain meaning"


PREFACE = b"PRI * HTTP/2.0\r\n\r\n"  # of HTTP/2, as far as it is a head (RFC 9113 section 3.4)


class Fault(msgspec.Struct, frozen=True):
    """Why a message is refused. ``limit`` names the constant that was reached, if it was one."""

    reason: str
    status: int
    text: str
    limit: str | None = None


class Refused(Exception):  # noqa: N818 - it is an outcome of reading, not an error of ours
    """Carries the fault of the message that is being read to the one place that answers it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


def answer(status: int, text: str, *, close: bool, with_body: bool = True) -> bytes:
    """Write a complete reply with a one-line text body, which a reply to HEAD announces but does not have."""
    body = text.encode("ascii") + b"\r\n"
    connection = "connection: close\r\n" if close else ""
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n{connection}\r\n"
    )
    return head.encode("ascii") + (body if with_body else b"")


def goaway(text: str) -> bytes:
    """Write the end of an HTTP/2 connection that never was one: SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED (RFC 9113)."""
    payload = (0).to_bytes(4) + (0xD).to_bytes(4) + text.encode("ascii")
    return _h2_frame(4, b"") + _h2_frame(7, payload)


def _h2_frame(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + (0).to_bytes(4) + payload


# Request line (RFC 9112 section 3)
EMPTY_LINE = Fault("empty-line", 400, "more than one empty line before a request")
BAD_REQUEST_LINE = Fault("bad-request-line", 400, "the request line is not METHOD SP TARGET SP VERSION")
BAD_METHOD = Fault("bad-method", 400, "the method is no short token, or HEAD or CONNECT with lower-case letters")
BAD_TARGET = Fault("bad-target", 400, "the target is none of the forms that its method may have")
AUTHORITY_DIFFERS = Fault("authority-differs", 400, "the host of the target and the Host field differ")
CONNECT_REFUSED = Fault("connect-not-supported", 501, "CONNECT is not supported")
HTTP09 = Fault("http09-not-supported", 505, "HTTP/0.9 is not supported")
HTTP2 = Fault("http2-not-supported", 505, "HTTP/2 is not supported on this port")
BAD_VERSION = Fault("bad-version", 505, "the version is neither HTTP/1.0 nor HTTP/1.1")
LINE_TOO_LONG = Fault("line-too-long", 414, "the first line is too long", "LINE_MAX")

# Bytes and field lines (RFC 9110 section 5, RFC 9112 sections 2.2 and 5)
BARE_LF = Fault("bare-lf", 400, "a line feed without carriage return")
BARE_CR = Fault("bare-cr", 400, "a carriage return without line feed")
CONTROL_BYTE = Fault("control-byte", 400, "a control byte")
OBS_FOLD = Fault("obs-fold", 400, "a field line that continues the one before it")
SPACE_BEFORE_COLON = Fault("space-before-colon", 400, "white space before the colon of a field line")
EMPTY_NAME = Fault("empty-field-name", 400, "a field line without name")
BAD_NAME = Fault("bad-field-name", 400, "a field name with a byte that no name may have")
NO_COLON = Fault("no-colon", 400, "a field line without colon")
HEAD_TOO_LARGE = Fault("head-too-large", 431, "the head is too large", "HEAD_MAX")
TOO_MANY_FIELDS = Fault("too-many-fields", 431, "too many field lines", "FIELDS_MAX")

# Host and Connection (RFC 9110 sections 7.2 and 7.6.1)
NO_HOST = Fault("no-host", 400, "HTTP/1.1 requires a Host field")
SEVERAL_HOSTS = Fault("several-hosts", 400, "more than one Host field")
BAD_HOST = Fault("bad-host", 400, "the Host field is not a host")
CONNECTION_NOMINATES = Fault("connection-nominates-field", 400, "Connection names a field that frames the message, or none")

# Framing (RFC 9112 sections 6 and 7)
REPEATED_LENGTH = Fault("repeated-content-length", 400, "more than one Content-Length field")
BAD_LENGTH = Fault("bad-content-length", 400, "Content-Length is not a plain decimal number")
LENGTH_TOO_LONG = Fault("content-length-too-long", 413, "Content-Length has too many digits", "LENGTH_DIGITS_MAX")
LENGTH_AND_CODING = Fault("length-and-transfer-encoding", 400, "Content-Length and Transfer-Encoding in one message")
REPEATED_CODING = Fault("repeated-transfer-encoding", 400, "more than one Transfer-Encoding field")
UNKNOWN_CODING = Fault("unknown-transfer-encoding", 501, "a Transfer-Encoding other than chunked")
CODING_IN_HTTP10 = Fault("transfer-encoding-in-http10", 400, "Transfer-Encoding in an HTTP/1.0 message")
BODY_FORBIDDEN = Fault("body-forbidden", 400, "a message that can have no body announces one")
BAD_CHUNK_LINE = Fault("bad-chunk-line", 400, "a chunk does not begin with its size in hexadecimal digits")
CHUNK_LINE_TOO_LONG = Fault("chunk-line-too-long", 400, "a chunk-size line is too long", "CHUNK_LINE_MAX")
CHUNK_TOO_LARGE = Fault("chunk-too-large", 413, "a chunk is too large", "CHUNK_SIZE_MAX")
BAD_CHUNK_END = Fault("bad-chunk-end", 400, "a chunk is longer than its size says")
FORBIDDEN_TRAILER = Fault("forbidden-trailer", 400, "a trailer field that belongs into the head")
UNJUDGED_TRAILER = Fault("unjudged-trailer", 400, "trailer fields, on a port whose rules look at header fields")
TRAILERS_TOO_LARGE = Fault("trailers-too-large", 431, "the trailer section is too large", "TRAILERS_MAX")

# Replies (RFC 9112 sections 4 and 6)
BLANK_LINE = Fault("blank-line", 400, "an empty line before the status line")
REQUEST_TIMEOUT = Fault("late-408", 400, "a reply that says that no request came")
PADDED_CHUNK_SIZE = Fault("padded-chunk-size", 400, "white space behind the size of a chunk")
BAD_STATUS_LINE = Fault("bad-status-line", 400, "the status line is not VERSION SP STATUS")

# The connection (RFC 9112 section 9)
TRUNCATED_HEAD = Fault("truncated-head", 400, "the connection ended inside a head")
TRUNCATED_BODY = Fault("truncated-body", 400, "the connection ended inside a body")
CLIENT_TIMEOUT = Fault("client-timeout", 408, "the request was not completed in time")
DATA_AFTER_CLOSE = Fault("data-after-close", 400, "data after the last message of the connection")
WITHOUT_REQUEST = Fault("without-request", 400, "a reply without a request")
UNEXPECTED_SWITCH = Fault("unexpected-101", 400, "a switch of protocols that was not asked for")
