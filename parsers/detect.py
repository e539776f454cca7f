"""Which protocol a connection speaks, from its first bytes.

A wrong "unknown" leads every call of the connection around the rules of its port, so this goes by what some server takes for
HTTP and not by what is HTTP: blank lines and spaces that are skipped, methods of any length, targets of any scheme. What is
detected and malformed is refused by the parser, in HTTP's own words.
"""

import re

DETECT_MAX = 1024  # bytes; a first line of text that is longer than this is taken for HTTP, because it could be

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_BLANK = rb"[\t\x0b\x0c ]"
_SKIPPED = rb"[\t\n\x0b\x0c\r ]*+"
# A standard method, or any token in front of what only a request target can begin with: mail, FTP and Redis sessions
# begin with a word and a space as well.
_HTTP1 = re.compile(
    _SKIPPED + rb"(?:(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)" + _BLANK + rb"|"
    + _TOKEN + rb"++" + _BLANK + rb"++(?:[/*]|[Hh][Tt][Tt][Pp]))"
)  # fmt: skip
_FIRST_LINE = re.compile(_SKIPPED + rb"(?:" + _TOKEN + rb"++(?:" + _BLANK + rb"[\t\x0b\x0c\x20-\x7e\x80-\xff]*+)?)?")
_VERSION = re.compile(rb"HTTP/", re.IGNORECASE)


def detect(first_bytes: bytes, end: bool) -> str | None:
    """Return ``http/1.1``, ``http/2`` or ``unknown``, or None when more bytes are needed.

    ``first_bytes`` is everything that the client has sent so far, of which at most DETECT_MAX bytes are looked at; ``end``
    says that no more will come. With DETECT_MAX bytes or ``end`` the answer is never None.
    """
    seen = first_bytes[:DETECT_MAX]
    if seen.startswith(_HTTP2_PREFACE):
        return "http/2"
    if seen and _HTTP2_PREFACE.startswith(seen):
        return "unknown" if end else None
    if _HTTP1.match(seen):
        return "http/1.1"
    line = _FIRST_LINE.match(seen)
    assert line is not None  # it matches nothing, too
    behind = seen[line.end() : line.end() + 2]
    if behind in (b"", b"\r"):  # the first line goes on
        if end:
            return "unknown"
        return "http/1.1" if len(seen) == DETECT_MAX else None
    ends = behind == b"\r\n" or behind[:1] == b"\n"
    return "http/1.1" if ends and _VERSION.search(line[0]) else "unknown"
