"""Which protocol a connection speaks, from its first bytes."""

import re

DETECT_MAX = 24  # bytes: the length of the HTTP/2 preface, the longest sign that is looked for

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
# A standard method, or any token in front of what only a request target can begin with: mail, FTP and Redis sessions
# begin with a word and a space as well. A malformed request is detected too, so that it is answered in its own words.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_HTTP1 = re.compile(
    rb"(?:\r\n)?(?:(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH) |" + _TOKEN + rb"++ (?:[/*]|[Hh][Tt][Tt][Pp]))"
)
_HTTP1_SO_FAR = re.compile(rb"\r?|\r\n|(?:\r\n)?" + _TOKEN + rb"++(?: (?:[Hh][Tt]{0,2})?)?")


def detect(first_bytes: bytes, end: bool) -> str | None:
    """Return ``http/1.1``, ``http/2`` or ``unknown``, or None when more bytes are needed.

    ``first_bytes`` is everything that the client has sent so far, of which at most DETECT_MAX bytes are looked at; ``end``
    says that no more will come. With DETECT_MAX bytes or ``end`` the answer is never None.
    """
    seen = first_bytes[:DETECT_MAX]
    last_look = end or len(seen) == DETECT_MAX
    if _HTTP2_PREFACE.startswith(seen) and seen:
        if len(seen) == DETECT_MAX:
            return "http/2"
        return "unknown" if last_look else None
    if _HTTP1.match(seen):
        return "http/1.1"
    if not last_look and _HTTP1_SO_FAR.fullmatch(seen):
        return None
    return "unknown"
