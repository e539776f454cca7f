"""Where a chunked body ends (RFC 9112 section 7.1): chunks are counted, never read."""

import re

from parsers import http1_answers as faults
from parsers.http1_answers import Fault, Refused
from parsers.http1_head import FIELDS, FRAMING_FIELDS, HEAD_END, find_suspect, why_no_field

CHUNK_LINE_MAX = 256  # bytes of a chunk-size line with its extensions and CRLF; extensions are all but unused
CHUNK_SIZE_MAX = (1 << 60) - 1  # bytes; far below 2**63, where servers' signed counters turn negative
TRAILERS_MAX = 8 * 1024  # bytes of a trailer section; checksums and timings need some hundred
# Chunks that are looked at one by one before others have their turn: some 60 us. Tiny ones, as they are usual, take a tenth.
CHUNKS_AT_ONCE = 32

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"'
_WORD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# No white space around the semicolon: RFC 9112 has it for bad senders only, and parsers differ about it.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:;" + _WORD + rb"(?:=(?:" + _WORD + rb"|" + _QUOTED + rb"))?)*+\r\n")
# What servers that pad sizes send: everybody who takes it sees the same size.
_PADDED_SIZE_LINE = re.compile(_SIZE_LINE.pattern.replace(rb"{1,16}+)(", rb"{1,16}+)[\t ]*+("))
# Whole chunks of less than 16 bytes as everybody writes them, many at once: what costs is the number of chunks, not of bytes.
_TINY_CHUNKS = re.compile(rb"(?s:" + b"|".join(rb"[%x%X]\r\n.{%d}\r\n" % (size, size, size) for size in range(1, 16)) + rb")++")
_NOT_IN_SIZE_LINE = re.compile(rb"[^\t\r\x20-\x7e\x80-\xff]|\r(?=[^\n])")
_TRAILERS = re.compile(FIELDS)
# Fields that a server which merges trailers into the head would take for judged ones (RFC 9110 section 6.5.1).
_FORBIDDEN_TRAILERS = FRAMING_FIELDS | {
    "authorization",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "proxy-authorization",
    "range",
    "set-cookie",
}


class ChunkedBody:
    """Finds the end of one chunked body. It keeps no bytes, only what comes next."""

    __slots__ = (
        *("_in_reply", "_in_trailers", "_inside_chunk", "_may_have_trailers"),
        *("fault", "finished", "starved", "tolerated"),
    )

    def __init__(self, trailers: bool = True, in_reply: bool = False) -> None:
        """Without ``trailers`` it is a fault if the body has some.

        ``in_reply``: what cannot move its end is none, and is found in ``tolerated``, by its reason.
        """
        self._in_reply = in_reply
        self.tolerated: set[str] = set()
        self._may_have_trailers = trailers
        self._inside_chunk = False  # a chunk's data has been settled, its CRLF has not
        self._in_trailers = False
        self.finished = False
        self.starved = False  # more must arrive before anything can be said
        self.fault: Fault | None = None

    def scan(self, data: bytes, at: int) -> int:
        """Return up to where the bytes from ``data[at]`` on are settled, which may lie behind the end of ``data``.

        Less than all of ``data`` is settled when more is needed (``starved``), when the body is ``finished``, when what follows
        is no chunked body, for the reason in ``fault``, or when there are very many chunks.
        """
        self.starved = False
        left = 2 * CHUNKS_AT_ONCE  # steps: each chunk has a beginning and an end
        try:
            while at < len(data) and not self.finished:
                left -= 1
                if left < 0:
                    return at
                step = self._trailers if self._in_trailers else self._chunk_end if self._inside_chunk else self._chunk
                behind = step(data, at)
                if behind == at:
                    self.starved = True
                    break
                at = behind
        except Refused as refused:
            self.fault = refused.fault
        return at

    def _chunk(self, data: bytes, at: int) -> int:
        tiny = _TINY_CHUNKS.match(data, at)
        if tiny is not None:
            return tiny.end()
        line_end = data.find(b"\r\n", at, at + CHUNK_LINE_MAX)
        if line_end < 0:
            if _NOT_IN_SIZE_LINE.search(data, at, at + CHUNK_LINE_MAX):
                raise Refused(faults.BAD_CHUNK_LINE)
            if len(data) - at > CHUNK_LINE_MAX:
                raise Refused(faults.CHUNK_LINE_TOO_LONG)
            return at
        match = _SIZE_LINE.fullmatch(data, at, line_end + 2)
        if match is None and self._in_reply:
            match = _PADDED_SIZE_LINE.fullmatch(data, at, line_end + 2)
            self.tolerated.add(faults.PADDED_CHUNK_SIZE.reason)
        if match is None:
            raise Refused(faults.BAD_CHUNK_LINE)
        size = int(match[1], 16)
        if size > CHUNK_SIZE_MAX:
            raise Refused(faults.CHUNK_TOO_LARGE)
        if size:
            self._inside_chunk = True
        else:
            self._in_trailers = True
        return line_end + 2 + size

    def _chunk_end(self, data: bytes, at: int) -> int:
        if len(data) - at < 2:
            return at
        if not data.startswith(b"\r\n", at):
            raise Refused(faults.BAD_CHUNK_END)
        self._inside_chunk = False
        return at + 2

    def _trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.finished = True
            return at + 2
        if not self._may_have_trailers and data[at : at + 2] not in (b"", b"\r"):
            raise Refused(faults.UNJUDGED_TRAILER)
        end = data.find(HEAD_END, at, at + TRAILERS_MAX)
        if end < 0:
            fault = find_suspect(data, at, at + TRAILERS_MAX)
            if fault is None and len(data) - at > TRAILERS_MAX:
                fault = faults.TRAILERS_TOO_LARGE
            if fault is not None:
                raise Refused(fault)
            return at
        end += len(HEAD_END)
        lines = data[at : end - len(HEAD_END)].split(b"\r\n")
        if _TRAILERS.fullmatch(data, at, end) is None:
            raise Refused(find_suspect(data, at, end) or why_no_field(lines))
        if any(line.partition(b":")[0].decode("ascii").lower() in _FORBIDDEN_TRAILERS for line in lines):
            if not self._in_reply:
                raise Refused(faults.FORBIDDEN_TRAILER)
            self.tolerated.add(faults.FORBIDDEN_TRAILER.reason)
        self.finished = True
        return end
