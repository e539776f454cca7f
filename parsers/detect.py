"""Which protocol a connection speaks, from its first bytes.

A wrong "unknown" leads every call of the connection around the rules of its port, so this goes by what some server takes for
HTTP and not by what is HTTP: tests/clients/odd_beginnings.py has what real ones were seen to execute. What is detected and
malformed is refused by the parser, in HTTP's own words.

There are two steps. `detect` keeps a beginning of text back until it is known what it is, because it may be a sound request
that has to be parsed as a whole. Nothing else can be one, and it may pass; but servers also execute requests that begin with
control bytes, or have any bytes for a method. So a `Watch` reads along until no server could still see a request line in what
has passed, and tells the byte with which there would be one: it is not passed.
"""

import re

DETECT_MAX = 1024  # bytes; a first line of text that is longer than this is taken for HTTP, because it could be
# Bytes that a Watch reads. Of the servers that were tried Java's has no limit to its first line; others' are below 512 KiB.
WATCH_MAX = 1024 * 1024
# Bytes that it keeps, for what is told by whole lines: WEBrick reads lines of at most 2083.
KEPT_MAX = 2200

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
# The PROXY protocol, versions 1 and 2: servers that are told of their clients by a proxy read requests behind it.
_PROXY1 = b"PROXY "
_PROXY2 = b"\r\n\r\n\0\r\nQUIT\n"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_BLANK = rb"[\t\x0b\x0c ]"
_SPACE = rb"[\t\n\x0b\x0c\r ]"
_SKIPPED = _SPACE + rb"*+"
# A word that is enough, with the byte behind it. That may be anything that is no line's end: Python splits at \x1c, \x85, \xa0.
_METHOD = rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)(?:[^!#$%&'*+\-.^_`|~0-9A-Za-z\r\n]|\r[^\n])"
_URI = rb"[A-Za-z][A-Za-z0-9+.\-]*+:/"
_TARGET = rb"(?:[/*%]|" + _URI + rb")"
# A standard method, or any token in front of what only a request target can begin with: mail, FTP and Redis sessions
# begin with a word and a space as well.
_HTTP1 = re.compile(_SKIPPED + rb"(?:" + _METHOD + rb"|" + _TOKEN + rb"++" + _BLANK + rb"++" + _TARGET + rb")")
_FIRST_LINE = re.compile(_SKIPPED + rb"(?:" + _TOKEN + rb"++(?:" + _BLANK + rb"[\t\x0b\x0c\x20-\x7e\x80-\xff]*+)?)?")
_VERSION = re.compile(rb"HTTP/", re.IGNORECASE)

# Beginnings that some server executes and `detect` lets go. Each ends with the byte that makes it one.
_BEGINNINGS = (
    _HTTP1,
    # WEBrick: any bytes for a method, and no version (HTTP/0.9).
    re.compile(_SKIPPED + rb"[^\t-\r ]++[\t\x0b\x0c\r ]++(?:/|" + _URI + rb")[\x21-\x7e]*+\r?\n"),
    # waitress: any target, and no version, in front of field lines. A name that is as long as this may become one.
    re.compile(_SKIPPED + rb"[^\x00-\x20a-z\x7f-\xff]++ ++[^\r\n ]++ ?\r\n(?:" + _TOKEN + rb"++:|\r\n|" + _TOKEN + rb"{256})"),
)
_GRAPHIC = re.compile(rb"[\x21-\x7e]")
_METHOD_FIRST = re.compile(_METHOD)
_METHOD_MAX = 9  # bytes of the longest of them, with what is behind it
# Java (com.sun.net.httpserver): any bytes up to a space, a target, a space, any bytes up to CRLF. What its URIs may have:
_TARGET_BEGINS = re.compile(rb"/|%2[Ff]|" + _URI)
_TARGET_GOES_ON = re.compile(rb"[\x21-\x7e\xa1-\xff]*+")
_MAY_BE_TARGET = re.compile(rb"(?:%2?|[A-Za-z][A-Za-z0-9+.\-]*+:?)?")
_SCHEME_MAX = 64  # bytes; no scheme is as long


def detect(first_bytes: bytes, end: bool) -> str | None:
    """Return ``http/1.1``, ``http/2``, ``proxy`` (a proxy's header in front of either) or ``unknown``, or None when more bytes
    are needed.

    ``first_bytes`` is everything that the client has sent so far, of which at most DETECT_MAX bytes are looked at; ``end``
    says that no more will come. With DETECT_MAX bytes or ``end`` the answer is never None, and more bytes never change one.
    """
    seen = first_bytes[:DETECT_MAX]
    if seen.startswith(_HTTP2_PREFACE):
        return "http/2"
    if seen.startswith((_PROXY1, _PROXY2)):
        return "proxy"
    if not end and any(beginning.startswith(seen) for beginning in (_HTTP2_PREFACE, _PROXY1, _PROXY2)):
        return None
    if _HTTP1.match(seen):
        return "http/1.1"
    line = _FIRST_LINE.match(seen)
    assert line is not None  # it matches nothing, too
    behind = seen[line.end() : line.end() + 2]
    goes_on = behind in (b"", b"\r")
    if goes_on and len(seen) == DETECT_MAX:
        return "http/1.1"
    if goes_on and not end:
        return None
    ends = goes_on or behind == b"\r\n" or behind[:1] == b"\n"
    return "http/1.1" if ends and _VERSION.search(line[0]) else "unknown"


class Watch:
    """Reads along with a connection that did not begin as HTTP/1, until no server could find a request in its beginning.

    Its memory is bounded, and its time per byte; it tells the same byte however the bytes are split.
    """

    __slots__ = ("_begun", "_graphic", "_kept", "_last", "_line_over", "_tail", "_target", "_total", "_word", "_words")

    def __init__(self) -> None:
        self._total = 0
        self._word = b""  # from the first visible character on
        # The first line with a visible character, which ends with LF: the version in it makes it a request line.
        self._graphic = False
        self._line_over = False
        self._tail = b""
        self._kept = b""
        # Java's line, which ends with CRLF: the spaces that have been read, None when it can be no request line.
        self._words: int | None = 0
        self._begun = False
        self._target = b""  # the target's beginning, until it is known to be one
        self._last = b""

    @property
    def over(self) -> bool:
        """Whether nothing need be read any more."""
        if self._total >= WATCH_MAX:
            return True
        if not self._line_over or self._words is not None:
            return False
        return len(self._kept) >= KEPT_MAX or self._kept.lstrip(b"\t\n\x0b\x0c\r ").count(b"\n") > 1

    def read(self, data: bytes) -> int | None:
        """Return the place in ``data`` of the byte with which there is a request for somebody, if it is there."""
        found = (self._method(data), self._version(data), self._beginning(data), self._three_words(data))
        self._total += len(data)
        return min((at for at in found if at is not None), default=None)

    def _method(self, data: bytes) -> int | None:
        """A standard method, behind any bytes that somebody may strip."""
        known = len(self._word)
        if known == _METHOD_MAX:
            return None
        first = _GRAPHIC.search(data)
        at = 0 if known or first is None else first.start()
        if known or first is not None:
            self._word += data[at : at + _METHOD_MAX - known]
        found = _METHOD_FIRST.match(self._word)
        return None if found is None else at + found.end() - 1 - known

    def _version(self, data: bytes) -> int | None:
        if self._line_over:
            return None
        joined = self._tail + data
        start = 0
        if not self._graphic:
            first = _GRAPHIC.search(joined)
            if first is None:
                return None
            self._graphic = True
            start = first.start()
        end = joined.find(b"\n", start)
        at = joined.find(b"HTTP/", start, len(joined) if end < 0 else end)
        if at >= 0:
            return at + len(b"HTTP") - len(self._tail)
        self._line_over = end >= 0
        self._tail = joined[start:][-len(b"HTTP") :]
        return None

    def _beginning(self, data: bytes) -> int | None:
        before = len(self._kept)
        if before >= KEPT_MAX:
            return None
        self._kept += data[: KEPT_MAX - before]
        ends = [match.end() for match in (pattern.match(self._kept) for pattern in _BEGINNINGS) if match is not None]
        return min(ends) - 1 - before if ends else None

    def _three_words(self, data: bytes) -> int | None:
        if self._words is None:
            return None
        line = data if self._begun else data.lstrip(b"\r\n")
        if not line:
            return None
        self._begun = True
        place = len(data) - len(line)
        end = (self._last + line).find(b"\r\n")
        ends_at = end + 1 - len(self._last)
        if end >= 0:
            line = line[:ends_at]
        self._last = line[-1:]
        self._count_words(line)
        if end < 0:
            return None
        whole = self._words == 2
        self._words = None
        return place + ends_at if whole else None

    def _count_words(self, line: bytes) -> None:
        """Go on with these bytes of Java's line."""
        at = 0
        if self._words == 0:
            at = line.find(b" ") + 1
            if not at:
                return
            self._words = 1
        if self._words == 1 and _TARGET_BEGINS.match(self._target) is None:
            known = len(self._target)
            self._target += line[at : at + _SCHEME_MAX - known]
            begins = _TARGET_BEGINS.match(self._target)
            if begins is None:
                if len(self._target) == _SCHEME_MAX or _MAY_BE_TARGET.fullmatch(self._target) is None:
                    self._words = None
                return
            at += begins.end() - known
        if self._words == 1:
            goes_on = _TARGET_GOES_ON.match(line, at)
            assert goes_on is not None  # it matches nothing, too
            if goes_on.end() < len(line):
                self._words = 2 if line[goes_on.end()] == 0x20 else None
