"""What travels: bodies of eight sizes, the same for every program, as files that programs serve and send.

The sizes are where something changes: nothing; with the head in one packet; more than the 930 bytes behind which nginx asks the
kernel for more; more than a packet, a window, a pipe, the kernel's limits for one message and for what may wait.
"""

import hashlib
import random
from functools import cache
from pathlib import Path

SIZES = (0, 500, 930, 2_000, 20_000, 200_000, 2_000_000, 50_000_000)


@cache
def noise() -> bytes:
    return random.Random(SIZES[-1]).randbytes(SIZES[-1])


def content(size: int) -> memoryview:
    return memoryview(noise())[:size]


@cache
def digest(size: int) -> str:
    return hashlib.sha256(content(size)).hexdigest()


def write_content(folder: Path) -> None:
    """One file for each size, under its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        (folder / str(size)).write_bytes(content(size))
