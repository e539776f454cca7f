"""HTTP/1.1 reply heads whose end the kernel can find by itself, as one table: framing only, policy has nothing to say here.

Whatever the table accepts is a head that `parsers.http1_head.read_reply` accepts, of a final reply (no 1xx) to a request of
a connection that stays open, with a body of the same length. Left to the proxy on purpose: chunked bodies, bodies that last
until the close, ``Connection`` with anything but keep-alive, short field lines, HTTP/1.0. The format is that of
`policies.heads`; the status is summed up by a step of its own.
"""

from array import array
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from policies.heads import (
    ACCEPT,
    ACCEPT_BARE,
    CLASSES,
    DEAD,
    DIGIT,
    LENGTH_DIGITS,
    NO_REPLY_BODY,
    STATE_BITS,
    STATUS,
    HeadTable,
)

# With so many bytes in a field line (CRLF included) and a status line of at least 14, a head within HEAD_PROOF_MAX has no more
# than 100 lines, which is within the parser's FIELDS_MAX: 14 + 101 * 11 + 2 = 1127. "Server: x" is the shortest that servers
# commonly send.
FIELD_LINE_MIN = 11

_DIGITS = frozenset(b"0123456789")
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_TEXT = frozenset([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_VERSION = b"HTTP/1.1 "
_LENGTH, _CONNECTION = b"content-length", b"connection"
# Names that frame the message, or may: these are looked at, all others are not.
_LOOKED_AT = (_LENGTH, _CONNECTION, b"transfer-encoding", b"upgrade")
_KEEP_ALIVE = b"keep-alive"


class _Body(Enum):
    """What is known of the body, by the status and the field lines so far."""

    UNKNOWN = 0
    COUNTED = 1
    NONE = 2  # 204, which may not announce one
    NOT_SENT = 3  # 304, which may announce the one that it does not have


class _State(NamedTuple):
    """A place in the grammar. ``read``: what of a name or value that matters; ``size``: bytes of the line, to a bound."""

    place: str
    body: _Body = _Body.UNKNOWN
    read: bytes = b""
    size: int = 0


class _Move(NamedTuple):
    """With any of ``on``; a later one for the same byte is the one that holds."""

    on: Iterable[int]
    to: _State | None
    step: int = 0


_ENOUGH = FIELD_LINE_MIN - 2  # bytes of a line before its CRLF
_NAMES = frozenset(name[:end] for name in _LOOKED_AT for end in range(len(name) + 1))


def reply_table() -> HeadTable:
    """The table of reply heads, the same for every connection."""
    numbers: dict[_State | None, int] = {None: DEAD, _State("version"): 1}
    places = [_State("version")]
    rows = [[0] * 256]
    for place in places:  # grows meanwhile
        row = [0] * 256
        for move in _moves(place):
            if move.to not in numbers and move.to is not None:
                numbers[move.to] = len(numbers)
                places.append(move.to)
            cell = numbers[move.to] | move.step << STATE_BITS
            for byte in move.on:
                row[byte] = cell
        rows.append(row)
    columns: dict[tuple[int, ...], int] = {}
    classes = bytes(columns.setdefault(column, len(columns)) for column in zip(*rows, strict=True))
    cells = array("H")
    for row in rows:
        merged = [0] * CLASSES
        for byte, cell in enumerate(row):
            merged[classes[byte]] = cell
        cells.extend(merged)
    return HeadTable(classes, cells.tobytes(), 1)


def _moves(at: _State) -> Iterator[_Move]:
    yield from _MOVES[at.place](at)


def _version(at: _State) -> Iterator[_Move]:
    read = at.read + _VERSION[len(at.read) : len(at.read) + 1]
    yield _Move(read[-1:], _State("status") if read == _VERSION else at._replace(read=read))


def _status(at: _State) -> Iterator[_Move]:
    for digit in _DIGITS - (frozenset(b"01") if not at.read else frozenset()):
        read = at.read + bytes([digit])
        to = _State("status end", read=_told_apart(read)) if len(read) == 3 else at._replace(read=read)
        yield _Move((digit,), to, STATUS)


def _told_apart(status: bytes) -> bytes:
    return status if status in (b"204", b"304") else b""


def _status_end(at: _State) -> Iterator[_Move]:
    body = {b"204": _Body.NONE, b"304": _Body.NOT_SENT}.get(at.read, _Body.UNKNOWN)
    step = 0 if body is _Body.UNKNOWN else NO_REPLY_BODY
    yield _Move(b" ", _State("reason", body), step)
    yield _Move(b"\r", _State("line feed", body), step)


def _reason(at: _State) -> Iterator[_Move]:
    yield _Move(_TEXT, at)
    yield _Move(b"\r", _State("line feed", at.body))


def _line_feed(at: _State) -> Iterator[_Move]:
    yield _Move(b"\n", _State("name", at.body))


def _name(at: _State) -> Iterator[_Move]:
    yield _Move(_TOKEN, _State("name", at.body, b"", _counted(at.size)))
    if len(at.read) == at.size:  # all of it so far
        for read in _NAMES:
            if len(read) == at.size + 1 and read.startswith(at.read):
                letter = read[-1:]
                yield _Move(letter + letter.upper(), at._replace(read=read, size=len(read)))
    if not at.size:
        yield _Move(b"\r", _State("end", at.body))
    elif at.read not in _LOOKED_AT:
        yield _Move(b":", _State("value", at.body, size=_counted(at.size)))
    elif at.read == _LENGTH and at.body in (_Body.UNKNOWN, _Body.NOT_SENT):
        yield _Move(b":", _State("length", at.body))
    elif at.read == _CONNECTION:
        yield _Move(b":", _State("connection", at.body))


def _counted(size: int) -> int:
    return min(size + 1, _ENOUGH)


def _value(at: _State) -> Iterator[_Move]:
    yield _Move(_TEXT, at._replace(size=_counted(at.size)))
    if at.size == _ENOUGH:
        yield _Move(b"\r", _State("line feed", at.body))


def _length(at: _State) -> Iterator[_Move]:
    if not at.size:
        yield _Move(b" ", at)
    if at.size < LENGTH_DIGITS:
        step = DIGIT if at.body is _Body.UNKNOWN else 0
        yield _Move(_DIGITS, at._replace(size=at.size + 1), step)
    if at.size:
        # A second one is refused by the parser, equal or not: it must come to no good here as well.
        yield _Move(b"\r", _State("line feed", _Body.COUNTED if at.body is _Body.UNKNOWN else _Body.NONE))


def _connection(at: _State) -> Iterator[_Move]:
    if not at.read:
        yield _Move(b" ", at)
    if at.read == _KEEP_ALIVE:
        yield _Move(b"\r", _State("line feed", at.body))
    else:
        letter = _KEEP_ALIVE[len(at.read) : len(at.read) + 1]
        yield _Move(letter.lower() + letter.upper(), at._replace(read=at.read + letter))


def _end(at: _State) -> Iterator[_Move]:
    yield _Move(b"\n", None, ACCEPT_BARE if at.body is _Body.UNKNOWN else ACCEPT)


_MOVES = {
    "version": _version,
    "status": _status,
    "status end": _status_end,
    "reason": _reason,
    "line feed": _line_feed,
    "name": _name,
    "value": _value,
    "length": _length,
    "connection": _connection,
    "end": _end,
}
