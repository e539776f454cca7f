"""The head of an HTTP/1 reply: what the framing of the connection needs (RFC 9112), as strictly as a reply deserves.

A reply cannot break policy, only framing. So what servers send and RFC 9112 does not allow goes on unchanged where those who
accept it agree on where the reply ends (Envoy, HAProxy and browsers: docs/http1.md has a table), and is told as *tolerated*.
For reading, a copy is put in order, which has to fit the strict grammar.

Where somebody might see another end, the reply is in *doubt*. Then it must be the last one of its connection: whoever reads
until the connection closes sees the same end, and no next reply can be taken for anything else. What may end at two places
even so (a length and chunks, say) passes only in the one form in which nobody is known to read it differently.
"""

import re

import msgspec

from parsers import http1_answers as faults
from parsers.http1_answers import Fault, Refused
from parsers.http1_head import (
    CHUNKED,
    DIGITS,
    FIELDS,
    FIELDS_MAX,
    FRAMING_FIELDS,
    HEAD_END,
    HEAD_MAX,
    LENGTH_DIGITS_MAX,
    LINE_MAX,
    Fields,
    Memo,
    Special,
    early_fault,
    list_members,
    read_fields,
    special_fields,
    why_no_field,
)

UNTIL_CLOSE = -2  # the body ends with the connection
MAYBE_AN_END = -3  # there is no body, but the end of a chunked one may follow
BLANK_LINES_MAX = 2  # before a status line: what a server has left behind its last reply; Chromium forgives four bytes

# The space behind the status is required by RFC 9112 section 4, but so often left out that clients accept it.
_REPLY = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n" + FIELDS)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?")
_BLANK_LINES = re.compile(rb"(?:\r?\n){0,%d}" % BLANK_LINES_MAX)
_END = re.compile(rb"\n\r?\n")
_SUSPECT = re.compile(rb"\r(?=[^\n])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # as in requests, but for a line feed alone
_BARE_LF = re.compile(rb"(?<!\r)\n")
# How Docker's daemon and Podman begin a raw stream in both directions, where others say 101.
_RAW_STREAMS = frozenset({"application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"})
# Codings below chunked, or of a body that lasts until the close (RFC 9112 section 7). The end does not depend on them.
_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "compress", "x-compress", "identity"})


class ReplyHead(msgspec.Struct, frozen=True, eq=False):
    """A reply head that was accepted. ``body`` is a length in bytes, or one of the names above, unless the request was HEAD.

    ``length``: the head's own bytes, with blank lines in front. ``tolerated`` are the reasons of what is not as it should be.
    ``doubt``: the one for which no other reply may follow. ``hijacked``: it is Docker's way to say 101.
    """

    status: int
    body: int
    http11: bool
    keep_alive: bool
    says_keep_alive: bool
    upgrade: tuple[str, ...]
    length: int
    tolerated: tuple[str, ...] = ()
    doubt: Fault | None = None
    hijacked: bool = False


class _Ordered(msgspec.Struct, frozen=True):
    """A head as it should have been written, with what was wrong. ``spaced``: names that had white space behind them."""

    wire: bytes
    doubts: tuple[Fault, ...] = ()
    spaced: frozenset[str] = frozenset()


def find_head(data: bytes, at: int, searched: int = 0) -> bytes | None:
    """Bytes that begin with the whole head at ``data[at]``, or None. The first ``searched`` of them have no end of it.

    They may be more than the head: where its end is, `read_reply` says.
    """
    end = data.find(HEAD_END, at + searched - 3 if searched > 3 else at, at + HEAD_MAX)
    if end >= 0 and data[at] not in b"\r\n":
        return data[at : end + len(HEAD_END)]
    end = _end(data, at, searched)
    return None if end < 0 else data[at:end]


def early_reply_fault(data: bytes, searched: int = 0) -> Fault | None:
    """Find the first defect of a head that is not complete; the first ``searched`` bytes are known to be clean."""
    begins = _begins(data, 0)
    return early_fault(data[begins:], max(0, searched - begins - 1), _SUSPECT)


def _begins(data: bytes, at: int) -> int:
    blank = _BLANK_LINES.match(data, at)
    assert blank is not None  # it matches nothing, too
    return blank.end()


def _end(data: bytes, at: int, searched: int = 0) -> int:
    begins = _begins(data, at)
    found = _END.search(data, max(begins, at + searched - 2), begins + HEAD_MAX)
    return -1 if found is None else found.end()


def read_reply(head: bytes) -> ReplyHead:
    """Read the reply head with which the bytes begin; raise Refused. There is the end of one among them."""
    match = _REPLY.fullmatch(head)
    length = len(head)
    begins = 0
    ordered = _Ordered(head)
    if match is None:
        begins, length = _begins(head, 0), _end(head, 0)
        ordered = _in_order(head[begins:length])
        match = _REPLY.fullmatch(ordered.wire)
        if match is None:
            raise Refused(_why_no_reply(ordered.wire))
    line_end = ordered.wire.index(b"\r\n") + 2
    if line_end > LINE_MAX:
        raise Refused(faults.LINE_TOO_LONG)
    http11 = match[1] == b"1"
    status = int(match[2])
    fields = read_fields(ordered.wire[line_end:])
    special = special_fields(fields)
    options = list_members(special, "connection")
    tolerated: list[str] = []
    body, doubts = _framing(special, http11, ordered)
    if begins:  # HTTP/0.9 to some, which lasts until the close
        doubts.insert(0, faults.BLANK_LINE)
    if status == 204:
        # RFC 9112 section 6.3 rule 1: no body, whatever is announced. RFC 9110 section 8.6 forbids even "Content-Length: 0",
        # but that is common and cannot mislead.
        if body:
            doubts.append(faults.BODY_FORBIDDEN)
        body = MAYBE_AN_END if body == CHUNKED else 0  # Python's http.client looks for one
    elif status < 200:
        if "transfer-encoding" in special and status == 101:
            tolerated.append(faults.BODY_FORBIDDEN.reason)  # behind it is the other protocol, whatever it says
        elif body:
            raise Refused(faults.BODY_FORBIDDEN)
        body = 0
        if doubts:
            raise Refused(doubts[0])  # another reply has to follow
    elif status == 304:
        body = 0
    return ReplyHead(
        status=status,
        body=UNTIL_CLOSE if body is None else body,
        http11=http11,
        keep_alive="close" not in options and (http11 or "keep-alive" in options),
        says_keep_alive="keep-alive" in options,
        upgrade=list_members(special, "upgrade"),
        length=length,
        tolerated=(*tolerated, *dict.fromkeys(doubt.reason for doubt in doubts)),
        doubt=doubts[0] if doubts else None,
        hijacked=status == 200 and http11 and body is None and not (doubts or options) and _is_raw_stream(fields),
    )


REPLY_HEADS: Memo[ReplyHead] = Memo(read_reply)


def _is_raw_stream(fields: Fields) -> bool:
    types = [value.lower() for name, value in fields if name == "content-type"]
    return len(types) == 1 and types[0] in _RAW_STREAMS


def _in_order(head: bytes) -> _Ordered:
    """Write a head as RFC 9112 has it, from its status line to its empty line; raise Refused where readers differ."""
    fault = early_fault(head, 0, _SUSPECT)
    if fault is not None:
        raise Refused(fault)
    doubts = [faults.BARE_LF] if _BARE_LF.search(head) else []
    status_line, *lines = [line.removesuffix(b"\r") for line in head.split(b"\n")[:-2]]
    if len(lines) > FIELDS_MAX:
        raise Refused(faults.TOO_MANY_FIELDS)
    fields: list[bytes] = []
    spaced: set[str] = set()
    for line in lines:
        name, colon, value = line.partition(b":")
        bare = name.strip(b" \t")
        if line[:1] in (b" ", b"\t"):
            # Some join it to the line before, some drop it, some take it for a line of its own.
            if not fields or not line.strip(b" \t") or _frames(bare) or _frames(fields[-1].partition(b":")[0]):
                raise Refused(faults.OBS_FOLD)
            doubts.append(faults.OBS_FOLD)
            fields[-1] += b" " + line.strip(b" \t")
        elif colon and bare and bare != name:
            doubts.append(faults.SPACE_BEFORE_COLON)
            spaced.add(bare.decode("latin-1").lower())
            fields.append(bare + colon + value)
        else:
            fields.append(line)
    return _Ordered(b"\r\n".join((status_line, *fields)) + HEAD_END, tuple(dict.fromkeys(doubts)), frozenset(spaced))


def _frames(name: bytes) -> bool:
    return name.decode("latin-1").lower() in FRAMING_FIELDS


def _framing(special: Special, http11: bool, ordered: _Ordered) -> tuple[int | None, list[Fault]]:
    """Return the length that a head announces, CHUNKED, or None if it announces none, with what is doubtful about it."""
    doubts = list(ordered.doubts)
    length = _length(special, doubts)
    if "transfer-encoding" not in special:
        return length, doubts
    codings = list_members(special, "transfer-encoding")
    *below, last = codings or ("",)
    if last == "chunked":
        if not _CODINGS.issuperset(coding for coding in below if coding != "chunked"):
            raise Refused(faults.UNKNOWN_CODING)
        if below:
            doubts.append(faults.REPEATED_CODING if "chunked" in below else faults.UNKNOWN_CODING)
        if not http11:
            doubts.append(faults.CODING_IN_HTTP10)
        if length is not None:
            # RFC 9112 section 6.3: the chunks count. Only where nobody may miss that there are some.
            if below or not http11 or "transfer-encoding" in ordered.spaced:
                raise Refused(faults.LENGTH_AND_CODING)
            doubts.append(faults.LENGTH_AND_CODING)
        return CHUNKED, doubts
    if not codings or not _CODINGS.issuperset(codings):  # with chunked not at the end, too
        raise Refused(faults.UNKNOWN_CODING)
    doubts.append(faults.UNKNOWN_CODING)
    if length is not None and set(codings) != {"identity"}:
        raise Refused(faults.LENGTH_AND_CODING)
    return length, doubts


def _length(special: Special, doubts: list[Fault]) -> int | None:
    if "content-length" not in special:
        return None
    lengths = [member.strip(" \t") for value in special["content-length"] for member in value.split(",")]
    for length in lengths:
        if DIGITS.fullmatch(length) is None:
            raise Refused(faults.BAD_LENGTH)
        if len(length) > LENGTH_DIGITS_MAX:
            raise Refused(faults.LENGTH_TOO_LONG)
    if len(lengths) > 1:
        if len(set(lengths)) > 1:
            raise Refused(faults.REPEATED_LENGTH)
        doubts.append(faults.REPEATED_LENGTH)
    return int(lengths[0])


def _why_no_reply(head: bytes) -> Fault:
    line, *fields = head[: -len(HEAD_END)].split(b"\r\n")
    return faults.BAD_STATUS_LINE if _STATUS_LINE.fullmatch(line) is None else why_no_field(fields)
