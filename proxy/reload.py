"""Notices that the files of policy have changed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from proxy.documents import SUFFIXES

Fingerprint = frozenset[tuple[str, int, int, int]]


def fingerprint(paths: Sequence[str]) -> Fingerprint:
    """What tells one state of the documents from another: every file with its inode, size and time of change.

    Symbolic links are followed, so that a ConfigMap's switch of folders is seen. Files that vanish meanwhile are left out.
    Of a folder only the files that are documents count: what an editor keeps beside them changes nothing.
    """
    found = set()
    for file in _files(paths):
        try:
            status = os.stat(file)
        except OSError:
            continue
        found.add((str(file), status.st_ino, status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        try:
            inside = list(path.iterdir())
        except OSError:  # no folder, or gone
            yield path
        else:
            yield from (file for file in inside if file.suffix in SUFFIXES and not file.name.startswith("."))
