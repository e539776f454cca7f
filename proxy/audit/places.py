"""Room for the record of a call that is not over: how much memory (bytes) it stands for, and whose it is.

A place is as large as what it keeps in memory, first the open call and then its record, so that many small calls may be open
for hours, and a few large ones are as many.
"""

from typing import NamedTuple

from parsers.contract import ApiCall
from proxy.shares import Claim

# An open call with what parser and flow keep of it, or its record: both were measured at 700 to 1,200 bytes, with strings of
# the usual length.
PLACE_BYTES = 2048
# Beyond that: each byte of a head is kept twice, as it came and as strings, and a string of a list costs so much by itself.
ITEM_BYTES = 200


class Place(NamedTuple):
    """Room for the record of one call: ``size`` bytes of what a connection may have; without a claim, of what there is."""

    size: int = PLACE_BYTES
    claim: Claim | None = None


ANYWHERE = Place()


def place_for(call: ApiCall, least: Place) -> Place:
    """What ``call`` takes: ``least``, or a multiple of its size."""
    more = 2 * call.wire_length + ITEM_BYTES * (len(call.headers) + len(call.resources))
    return least if more < PLACE_BYTES else Place(PLACE_BYTES * (1 + more // PLACE_BYTES), least.claim)
