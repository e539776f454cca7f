"""The reading end of a BPF ring buffer (linux/Documentation/bpf/ringbuf.rst)."""

import contextlib
import mmap
import struct
from collections.abc import Callable

_PAGE = mmap.PAGESIZE
_POSITION = struct.Struct("=Q")
_HEADER = struct.Struct("=I")
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER_BYTES = 8


class Ring:
    """What programs have put into it, oldest first.

    What was taken keeps its room until it is given back: whoever reads the ring behind us begins there.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._mask = size - 1
        self._consumer = mmap.mmap(fd, _PAGE)
        self._producer = mmap.mmap(fd, _PAGE + 2 * size, prot=mmap.PROT_READ, offset=_PAGE)
        self.at: int = _POSITION.unpack_from(self._consumer)[0]  # all before was taken
        self._picked: set[int] = set()  # positions behind it that were taken as well
        # Written in one step: `struct` writes zeros first, and to a program that looks just then the ring is full.
        self._position = memoryview(self._consumer).cast("Q")

    def take(self, most: int) -> list[bytes]:
        """The oldest ones, at most so many."""
        taken: list[bytes] = []
        memory, at, end = self._producer, self.at, self.end
        while at < end and len(taken) < most:
            start = _PAGE + (at & self._mask)
            length = header = _HEADER.unpack_from(memory, start)[0]
            if header & _BUSY:
                break
            if header & _DISCARDED:
                length = header & ~_DISCARDED
            elif at in self._picked:
                self._picked.remove(at)
            else:
                start += _HEADER_BYTES
                taken.append(memory[start : start + length])
            at += (length + _HEADER_BYTES + 7) & ~7
        self.at = at
        return taken

    def pick(self, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """Those that are ``wanted``, oldest first, from among others, which stay."""
        picked: list[bytes] = []
        memory, at, end = self._producer, self.at, self.end
        while at < end:
            start = _PAGE + (at & self._mask)
            length = header = _HEADER.unpack_from(memory, start)[0]
            if header & _BUSY:
                break
            if header & _DISCARDED:
                length = header & ~_DISCARDED
            elif at not in self._picked:
                start += _HEADER_BYTES
                entry = memory[start : start + length]
                if wanted(entry):
                    self._picked.add(at)
                    picked.append(entry)
            at += (length + _HEADER_BYTES + 7) & ~7
        return picked

    def give_back(self, to: int) -> None:
        """The room of all that was taken before position ``to``: nobody will need it again. May be called by another thread,
        and when the ring is closed."""
        with contextlib.suppress(ValueError):
            self._position[0] = to

    @property
    def end(self) -> int:
        """The position behind all that is there."""
        return int(_POSITION.unpack_from(self._producer)[0])

    @property
    def kept_from(self) -> int:
        """The position before which all room has been given back."""
        return int(self._position[0])

    @property
    def waiting(self) -> int:
        """Bytes that are there and were not taken."""
        return self.end - self.at

    @property
    def held(self) -> int:
        """Bytes whose room was not given back."""
        return self.end - self.kept_from

    def close(self) -> None:
        self._position.release()
        self._consumer.close()
        self._producer.close()
