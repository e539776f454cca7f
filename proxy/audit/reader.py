"""Reading audit files: forwards, backwards from the end, and as they grow.

Lines come with a label that says where they are, for complaints. A line that is longer than any record has ``None`` for its
text: no file, however broken, grows the reader's memory.
"""

import os
import time
from collections.abc import Iterator
from typing import BinaryIO

from proxy.audit.sink import LONGEST_LINE_BYTES

# One read when looking for the last lines of a huge file: some hundred records.
BACKWARD_CHUNK = 1 << 16
# How soon a new record is seen. Ten times a second a stat and an empty read are no load.
POLL_SECONDS = 0.1
# After a rotation the agent writes into the old file until it is told (SIGHUP): both are read for that long.
ROTATION_GRACE_SECONDS = 5.0
# Enough of a file's beginning to tell it from another: a record starts with its time in microseconds.
HEAD_BYTES = 64

Line = tuple[str, bytes | None]


def forwards(file: BinaryIO) -> Iterator[Line]:
    """Every line from where ``file`` stands."""
    number = 0
    while piece := file.readline(LONGEST_LINE_BYTES):
        number += 1
        text: bytes | None = piece
        while len(piece) == LONGEST_LINE_BYTES and not piece.endswith(b"\n"):
            text, piece = None, file.readline(LONGEST_LINE_BYTES)
        yield f"line {number}", text


def backwards(file: BinaryIO, end: int) -> Iterator[Line]:
    """The lines before offset ``end``, last one first. No more of the file is read than is asked for."""
    number = 0
    rest = b""  # the end of a line whose beginning is not read yet
    too_long = False
    position = end
    while position > 0:
        start = max(0, position - BACKWARD_CHUNK)
        file.seek(start)
        rest, *lines = (file.read(position - start) + rest).split(b"\n")
        position = start
        for text in reversed(lines):
            if text or too_long:
                number += 1
                yield f"line {number} from the end", None if too_long else text
            too_long = False
        if len(rest) > LONGEST_LINE_BYTES:
            rest, too_long = b"", True
    if rest or too_long:
        yield f"line {number + 1} from the end", None if too_long else rest


def follow(path: str, tail: "Tail | None") -> Iterator[Line]:
    """Every line that is added to ``path``, for ever: of ``tail``'s file, from its position.

    A file that appears under the path later (a rotation, or the first one) is read from its beginning.
    """
    tails = [tail] if tail is not None else []
    while True:
        for each in tails:
            yield from each.new_lines()
        tails = [each for each in tails if not each.retired]
        newest = _file_at(path, tails[-1] if tails else None)
        if newest is not None:
            for each in tails:
                each.retire()
            tails.append(Tail(newest, position=0))
        else:
            time.sleep(POLL_SECONDS)


class Tail:
    """A growing file. Only whole lines are taken: the rest is read again when there is more of it.

    Make it before anything else is read of the file: its beginning, kept here, tells later whether it is still the same.
    """

    def __init__(self, file: BinaryIO, position: int) -> None:
        self.file = file
        self.position = position
        self._head = os.pread(file.fileno(), HEAD_BYTES, 0)
        self._number = 0
        self._too_long = False
        self._deadline: float | None = None

    @classmethod
    def at_end(cls, file: BinaryIO) -> "Tail":
        """From behind the last whole line: what comes after it is being written."""
        tail = cls(file, position=os.fstat(file.fileno()).st_size)
        if tail.position > 0 and os.pread(file.fileno(), 1, tail.position - 1) != b"\n":
            _, unfinished = next(backwards(file, tail.position))
            tail.position -= len(unfinished or b"")
        return tail

    @property
    def retired(self) -> bool:
        if self._deadline is None or time.monotonic() < self._deadline:
            return False
        self.file.close()
        return True

    def retire(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + ROTATION_GRACE_SECONDS

    def new_lines(self) -> Iterator[Line]:
        self._notice_truncation()
        while data := os.pread(self.file.fileno(), LONGEST_LINE_BYTES, self.position):
            whole, newline, _ = data.rpartition(b"\n")
            if not newline and len(data) < LONGEST_LINE_BYTES:
                return
            self.position += len(whole) + 1 if newline else len(data)
            if newline:
                yield from self._split(whole)
            else:
                self._too_long = True

    def _split(self, whole: bytes) -> Iterator[Line]:
        for text in whole.split(b"\n"):
            self._number += 1
            yield f"line {self._number} since --follow began", None if self._too_long else text
            self._too_long = False

    def _notice_truncation(self) -> None:
        head = os.pread(self.file.fileno(), HEAD_BYTES, 0)
        if not head.startswith(self._head):
            # Another beginning: the file was emptied (logrotate's copytruncate) and written anew.
            self.position = 0
        else:
            # The same file, but shorter: the writer took back a batch for which the disk had no room.
            self.position = min(self.position, os.fstat(self.file.fileno()).st_size)
        self._head = head


def _file_at(path: str, current: Tail | None) -> BinaryIO | None:
    """The file at ``path``, opened, unless it is the ``current`` one or there is none."""
    try:
        found = os.stat(path)
        if current is not None and os.path.samestat(found, os.fstat(current.file.fileno())):
            return None
        return open(path, "rb")
    except FileNotFoundError:
        return None
