"""Arrays of which nobody wants anything, passed over many elements at a time.

An element of fixed fields, short strings and short arrays fits a regular expression: in each place one alternative for each
length, told apart by its first bytes, so that nothing is tried twice. What does not fit (a string of hundreds of bytes, a
tagged field) is left to whoever walks element by element, and may be as many as that allows.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

# Elements that are matched at once: fewer are not worth it, and one that does not fit spoils so many.
AT_ONCE = 32
# The longest string (bytes) and the longest array of plain values that fit.
_STRING_MOST = 127
_ARRAY_MOST = 32


class Part(NamedTuple):
    """``size`` bytes; or at most ``most`` times ``size``, counted by an integer of ``width`` bytes (0: a varint, plus one)."""

    size: int
    width: int | None = None
    null: bool = False
    most: int = 0


NO_TAGS = Part(0, 0)


def string(width: int, null: bool) -> Part:
    return Part(1, width, null, _STRING_MOST)


def array(size: int, width: int, null: bool) -> Part:
    return Part(size, width, null, _ARRAY_MOST)


def compiled(parts: Sequence[Part], number: int = AT_ONCE) -> re.Pattern[bytes]:
    """Matches so many elements that consist of these parts."""
    element = b"".join(map(_pattern, parts))
    return re.compile(rb"(?s:%s){%d}+" % (element, number))


def _pattern(part: Part) -> bytes:
    if part.width is None:
        return b".{%d}" % part.size
    if part is NO_TAGS:
        return _count(-1, 0)
    counts = [(_count(n, part.width), n * part.size) for n in range(part.most + 1)]
    if part.null:
        counts.insert(0, (_count(-1, part.width), 0))
    return b"(?>%s)" % b"|".join(count + (b".{%d}" % size if size else b"") for count, size in counts)


def _count(n: int, width: int) -> bytes:
    encoded = n.to_bytes(width, "big", signed=True) if width else bytes([n + 1])
    return b"".join(rb"\x%02x" % byte for byte in encoded)
