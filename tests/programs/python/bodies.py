"""What the Python servers have in common."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

PIECE = 65536
PAUSE = 0.3  # seconds: how long a slow server does not read
ONLY_READ = 1_000_000  # bytes of a body, before it pauses once more


class Told:
    """What is said about a body: its length and its digest."""

    def __init__(self, path: str) -> None:
        self._hash, self._length = hashlib.sha256(), 0
        self._slow = path == "/slow"

    def add(self, data: bytes) -> None:
        self._hash.update(data)
        self._length += len(data)

    def pause(self) -> float:
        """How long to wait now (seconds)."""
        return PAUSE if self._slow and (self._length == 0 or self._pauses()) else 0

    def _pauses(self) -> bool:
        late, self._slow = self._length > ONLY_READ, self._length <= ONLY_READ
        return late

    def text(self) -> bytes:
        return f"{self._length} {self._hash.hexdigest()}\n".encode()


def pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece
