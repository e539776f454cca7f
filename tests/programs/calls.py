"""The conversations of the matrix: what is asked of every server and by every client, and what must come of it.

All servers answer the same five paths, as the one in ``origin.py`` does:

| request | answer |
|---|---|
| ``GET /down/SIZE`` | the body of this size, with its length |
| ``GET /chunked/SIZE`` | the same, chunked |
| ``POST /up`` | how many bytes the body had, and their digest |
| ``POST /slow`` | the same, but the server takes its time before and while it reads the body |
| ``POST /early`` | 413 before the body has been read |

Policy allows these, and nothing else: ``POST /denied`` is answered by the agent. Every call has a query of its own, so
that its record is found by its path.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from tests.programs.content import SIZES, digest

RULES = '[{path: "/(down|chunked|up|slow|early).*"}]'
# The size of what the other calls of a connection ask for.
FILLER = 500

_unique = itertools.count(1)


@dataclass(frozen=True)
class Call:
    """One call. ``body`` is the size of the request's body; None: it has none."""

    method: str
    target: str
    body: int | None = None
    chunked: bool = False  # the request's body
    status: int = 200
    length: int | None = None  # of the reply's body; None: whatever it is
    digest: str | None = None
    verdict: str = "ALLOWED"


def download(size: int, chunked: bool) -> Call:
    return Call("GET", f"/{'chunked' if chunked else 'down'}/{size}{_query()}", length=size, digest=digest(size))


def upload(size: int, chunked: bool, path: str = "/up") -> Call:
    told = f"{size} {digest(size)}\n".encode()
    return Call("POST", path + _query(), size, chunked, length=len(told), digest=hashlib.sha256(told).hexdigest())


def refused_early(size: int, chunked: bool) -> Call:
    return Call("POST", "/early" + _query(), size, chunked, status=413)


def denied(size: int, chunked: bool) -> Call:
    return Call("POST", "/denied" + _query(), size, chunked, status=403, verdict="DENIED")


def _query() -> str:
    return f"?n={next(_unique)}"


@dataclass(frozen=True)
class Kind:
    """One way in which a body travels."""

    name: str
    up: bool
    chunked: bool

    def call(self, size: int) -> Call:
        return upload(size, self.chunked) if self.up else download(size, self.chunked)

    def calls(self, size: int, *numbers: int) -> Iterator[Call]:
        """As many calls as the last of ``numbers``; those that it names have a body of ``size``, the others a small one."""
        for number in range(1, max(numbers) + 1):
            yield self.call(size) if number in numbers else download(FILLER, False)


KINDS = tuple(
    Kind(f"{'upload' if up else 'download'}-{'chunked' if chunked else 'length'}", up, chunked)
    for up in (False, True)
    for chunked in (False, True)
)
# Each way of a body with each size.
BODIES = [(kind, size) for kind in KINDS for size in SIZES]
# Bodies that are refused while some, or most, of them is on its way.
REFUSED = [(size, chunked) for chunked in (False, True) for size in (500, 2_000, 200_000, 2_000_000)]
