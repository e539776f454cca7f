"""Notices that the files of policy have changed, and when they have come to rest."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from proxy.documents import listed

# A change is read once nothing has changed any more for so long (seconds): editors and copies write in steps.
SETTLE = 0.5
# What does not come to rest for so long (seconds) is told in /healthz. It is never read as it is: half of a set of documents
# may be a valid one that allows more.
RESTLESS = 5.0

Fingerprint = frozenset[tuple[str, int, int, int]]


def fingerprint(paths: Sequence[str]) -> Fingerprint:
    """What tells one state of the documents from another: every file with its inode, size and time of change.

    Symbolic links are followed, so that a ConfigMap's switch of folders is seen; one that leads nowhere stands for itself.
    Files that vanish meanwhile are left out. Of a folder only the files that are documents count: what an editor keeps beside
    them changes nothing.
    """
    found = set()
    for file in _files(paths):
        status = _status(file)
        if status is not None:
            found.add((str(file), status.st_ino, status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _status(file: Path) -> os.stat_result | None:
    for look in (os.stat, os.lstat):
        with suppress(OSError):
            return look(file)
    return None


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        try:
            yield from listed(path)
        except OSError:  # no folder, or gone
            yield path


class Rest:
    """Which states of the documents are to be read. ``now`` is monotonic time in seconds."""

    def __init__(self) -> None:
        self._read: Fingerprint | None = None  # the state that was read last, whatever came of it
        self._seen: Fingerprint | None = None
        self._seen_at = 0.0
        self._since: float | None = None  # something has changed that was not read yet
        self._why = ""

    def look(self, seen: Fingerprint, now: float) -> bool:
        """Whether this state is a new one and has come to rest."""
        if seen == self._read:
            self._since = None
            return False
        if self._since is None:
            self._since, self._why = now, "they go on changing"
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at >= SETTLE

    def read(self, state: Fingerprint) -> None:
        """This state has been read as a whole."""
        self._read, self._since = state, None

    def unsettled(self, why: str, now: float) -> None:
        """It could not be read as a whole: it is tried again, also if nothing seems to change."""
        self._read = None
        self._since, self._why = self._since or now, why

    @property
    def restless(self) -> bool:
        return self._since is not None

    def trouble(self, now: float) -> str | None:
        """What to tell of documents that do not come to rest."""
        if self._since is None or now - self._since < RESTLESS:
            return None
        return f"the documents have changed and are not read until they rest: {self._why}"
