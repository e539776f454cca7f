"""Notices that the files of policy have changed."""

import os
from collections.abc import Sequence
from pathlib import Path

Fingerprint = frozenset[tuple[str, int, int, int]]


def fingerprint(paths: Sequence[str]) -> Fingerprint:
    """What tells one state of the documents from another: every file with its inode, size and time of change.

    Symbolic links are followed, so that a ConfigMap's switch of folders is seen. Files that vanish meanwhile are left out.
    """
    found = set()
    for path in map(Path, paths):
        for file in [path, *(path.glob("*.y*ml") if path.is_dir() else [])]:
            try:
                status = os.stat(file)
            except OSError:
                continue
            found.add((str(file), status.st_ino, status.st_size, status.st_mtime_ns))
    return frozenset(found)
