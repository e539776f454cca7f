"""Reads policy documents from files and folders."""

from collections.abc import Iterable
from pathlib import Path

from policies.load import Source


def read_sources(paths: Iterable[str]) -> list[Source]:
    files = []
    for path in map(Path, paths):
        files += sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
    return [Source(str(f), f.read_text()) for f in files]
