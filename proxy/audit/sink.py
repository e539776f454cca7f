"""The file below the audit writer: whole batches of lines or nothing, also when several processes share it.

A regular file is opened with O_APPEND and locked around each batch. When a batch does not fit (a full disk, a quota), the
file is cut back to the length that it had before, so that half a line is never left behind. A pipe cannot be cut back:
there a begun batch is finished before anything else. What a crash of the machine left of a last line is cut off as well.

A file that was removed takes nothing: its records would be nobody's. A batch that has gone into one that was removed in that
very moment is written once more, where the path leads by then.

Everything here blocks and raises ``OSError``: it runs on the audit writer's thread.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

STDOUT = "-"
FILE_MODE = 0o600  # records tell who talks to whom about what
# No record is longer: with every string and every list at its limit, and 12 bytes of escapes for each character (a pair
# of surrogates), it has 1.2 MB.
LONGEST_LINE_BYTES = 1 << 21
# How the rest of a torn record begins: as one, or as the zeros that some file systems leave after a power failure.
_TORN_BEGINNINGS = (b"{", b"\0")


class _Handle(NamedTuple):
    fd: int
    identity: tuple[int, int] | None  # device and inode of a regular file
    lock: Callable[[int, int], None]

    @property
    def is_file(self) -> bool:
        return self.identity is not None


class Sink:
    """An append-only file, a FIFO, or standard output (``-``)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = _open(path)
        self._batch = memoryview(b"")
        self._done = 0  # bytes of the batch that are written
        self._start = 0  # length of the file before the batch

    @property
    def partial(self) -> bool:
        """A batch is begun and could not be taken back: nothing but its rest may be written now."""
        return 0 < self._done < len(self._batch)

    @property
    def moved(self) -> bool:
        """The path leads to another file by now, or to none: somebody has renamed, replaced or removed ours."""
        if not self._handle.is_file:
            return False
        try:
            return _identity(os.stat(self._path)) != self._handle.identity
        except OSError:
            return True

    def put(self, batch: bytes) -> None:
        """Take the next batch. The one before it must be flushed."""
        self._batch = memoryview(batch)
        self._done = 0

    def flush(self) -> None:
        """Write the batch. After an ``OSError`` call it again: no byte is lost or written twice."""
        handle = self._handle
        handle.lock(handle.fd, fcntl.LOCK_EX)
        try:
            if handle.is_file and not self.partial:
                _must_have_a_name(handle.fd)
                self._start = _cut_torn_line(handle.fd)
            while self._done < len(self._batch):
                self._done += os.write(handle.fd, self._batch[self._done :])
            if handle.is_file:
                _must_have_a_name(handle.fd)
        except _RemovedError:
            self._done = 0  # what was written of it is gone
            raise
        except OSError:
            self._take_back()
            raise
        finally:
            # The rest of a half-written batch belongs directly behind it, so the lock is kept until it is there.
            if not self.partial:
                handle.lock(handle.fd, fcntl.LOCK_UN)

    def reopen(self) -> None:
        """Go on in the file that the path names now. On an ``OSError`` the old one stays in use. Not while ``partial``."""
        if self._path == STDOUT:
            return
        old, self._handle = self._handle, _open(self._path)
        _sync_and_close(old)

    def close(self) -> None:
        """Sync and close."""
        _sync_and_close(self._handle)

    def _take_back(self) -> None:
        if self._handle.is_file:
            # Where this fails too (a dying disk, an append-only attribute), ``partial`` says so.
            with contextlib.suppress(OSError):
                # Somebody else may have cut it already (logrotate's copytruncate): no hole is to be left.
                os.ftruncate(self._handle.fd, min(self._start, os.fstat(self._handle.fd).st_size))
                self._done = 0


class _RemovedError(OSError):
    """The file that is open has no name any more."""


def _must_have_a_name(fd: int) -> None:
    if not os.fstat(fd).st_nlink:
        raise _RemovedError(errno.ENOENT, "the audit file was removed, and cannot be made anew")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open(path: str) -> _Handle:
    if path == STDOUT:
        # Workers inherit one standard output, with one ``flock`` between them. A POSIX lock tells processes apart. It is
        # written like a pipe whatever it is: a file there was opened by others, and is not ours to cut.
        return _Handle(os.dup(1), None, fcntl.lockf)
    return _open_path(path)


def _open_path(path: str) -> _Handle:
    # Not blocking, because opening a FIFO would otherwise wait for a reader; without one it is an error (ENXIO).
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    # A regular file is read as well, to see how it ends; a FIFO opened for both would be its own reader.
    flags |= os.O_RDWR if _is_file_or_absent(path) else os.O_WRONLY
    fd = os.open(path, flags, FILE_MODE)
    try:
        os.set_blocking(fd, True)
        status = os.fstat(fd)
        identity = _identity(status) if stat.S_ISREG(status.st_mode) else None
        fcntl.flock(fd, fcntl.LOCK_EX)
        if identity is not None:
            _cut_torn_line(fd)
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError:
        os.close(fd)
        raise
    return _Handle(fd, identity, fcntl.flock)


def _is_file_or_absent(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True


def _cut_torn_line(fd: int) -> int:
    """Cut an unfinished last line off; the length of the file in bytes. The caller holds the lock."""
    size = os.fstat(fd).st_size
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return size
    tail_at = max(0, size - LONGEST_LINE_BYTES)
    tail = os.pread(fd, size - tail_at, tail_at)
    line_at = tail.rfind(b"\n") + 1
    # A mistyped path must not cost anybody the end of a file that holds something else.
    if (line_at == 0 and tail_at > 0) or not tail.startswith(_TORN_BEGINNINGS, line_at):
        raise OSError(errno.EINVAL, "this file does not end like an audit file; it is left as it is")
    os.ftruncate(fd, tail_at + line_at)
    return tail_at + line_at


def _sync_and_close(handle: _Handle) -> None:
    try:
        if handle.is_file:
            os.fsync(handle.fd)
    finally:
        os.close(handle.fd)
