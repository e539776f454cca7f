"""Beginnings of requests that are judged alike, for the kernel path (docs/kafka.md).

What policy asks of a request is determined by its beginning, but for numbers in between that do not matter: those of a Fetch,
which say from where and how much, or the timeout of a Produce. A later request that has the same bytes but for these is
the same call. The sizes of the frame and its correlation id do not matter either.
"""

from parsers.contract import KEPT_BYTES, Prefix
from parsers.kafka.frame import SIZE
from parsers.kafka.request import Request, free_ranges

_PRODUCE, _FETCH = 0, 1
# What clients ask for again and again. Others are few, and are answered in more ways.
CARRIED = frozenset({_PRODUCE, _FETCH})
_CORRELATION_ID = (8, 4)  # place and length


def is_carriable(request: Request) -> bool:
    """Whether requests like it may go by unseen: they have a reply, and name no more than is kept of them."""
    return request.api_key in CARRIED and request.acks != 0 and 0 < request.determined <= KEPT_BYTES


def prefix_of(data: bytes, request: Request) -> Prefix:
    """How requests begin that ask for the same as ``request``. ``data``: its frame up to ``request.determined``."""
    mask = bytearray(b"\xff" * len(data))
    for at, length in ((0, SIZE), _CORRELATION_ID, *free_ranges(data, request)):
        mask[at : at + length] = bytes(length)
    bits = bytes(mask)
    return Prefix(masked(data, bits), bits)


def masked(data: bytes, mask: bytes) -> bytes:
    """``data`` with zeroes where ``mask`` has none of its bits; both of one length."""
    return (int.from_bytes(data, "big") & int.from_bytes(mask, "big")).to_bytes(len(data), "big")
