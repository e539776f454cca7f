"""Policy documents on disk: which files there are, and what they say.

What is read is a regular file, a whole one, and no more of it than a limit. A pipe, a device or a folder under a document's
name is an error that names it: nobody may hold the agent up by one. A symbolic link is followed: a ConfigMap's files are links.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fcntl import F_RDLCK, F_SETLEASE, F_SETSIG, F_UNLCK, fcntl
from itertools import islice
from pathlib import Path
from stat import S_ISREG

from policies.load import Finding, LoadError, Source

# The loader's own bound on characters, seen before a file is read into memory. A character has at least one byte.
MAX_FILE_BYTES = 8 << 20
# Of all files together: some 200,000 rules, which take a minute to load.
MAX_BYTES = 64 << 20
# One file per policy of a big cluster. More in one folder is not a folder of policies.
MAX_FILES = 10_000
# Where nobody can tell whether a file is open for writing, it is taken for whole so long (seconds) after its last change.
UNSEEN_WRITER_SECONDS = 5.0

SUFFIXES = (".yaml", ".yml")
STDIN = Path("-")


class UnsettledError(Exception):
    """A file that may not be whole yet; the text names it and says why."""


def read_sources(paths: Iterable[str | Path], *, settled: bool = False, stdin: bool = False) -> list[Source]:
    """The text of all files that ``paths`` name; of a folder, of its ``*.yaml`` and ``*.yml``, sorted, not of its folders.
    With ``stdin`` the path ``-`` is standard input.

    Raises `OSError`, which names the file, for what does not exist or cannot be read, and `LoadError` for what is no regular
    file, too large, not UTF-8, a folder without documents, or only files without any: an agent that enforces nothing because
    a folder is empty, or because a full disk has cut a file off, would be silently open. With ``settled`` also
    `UnsettledError` for a file that somebody has open for writing: half of it may be a valid set that says less.
    """
    sources: list[Source] = []
    findings: list[Finding] = []
    room = MAX_BYTES
    for path in _files(paths):
        content = _standard_input() if stdin and path == STDIN else _content(path, settled)
        room -= len(content) if isinstance(content, bytes) else 0
        if room < 0:
            raise LoadError([_finding(path, "SE002", f"the files are larger than {MAX_BYTES} bytes together")])
        text = _decoded(path, content) if isinstance(content, bytes) else content
        if isinstance(text, Source):
            sources.append(text)
        else:
            findings.append(text)
    if not findings and not any(_says_something(source.text) for source in sources):
        findings = [_finding(Path(source.name), "SE005", "no document in this file") for source in sources]
    if findings:
        raise LoadError(findings)
    return sources


def listed(folder: Path) -> Iterator[Path]:
    """The documents of a folder, at most one more than `MAX_FILES`. Raises `OSError` where there is none.

    A name with a leading dot is an editor's or a ConfigMap volume's own.
    """
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if entry.name.endswith(SUFFIXES) and not entry.name.startswith("."))
        yield from (folder / name for name in islice(names, MAX_FILES + 1))


def _says_something(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    return any(line and not line.startswith("#") and line not in ("---", "...") for line in lines)


def _files(paths: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            found[path] = None
            continue
        inside = sorted(listed(path))
        if not inside:
            raise LoadError([_finding(path, "SE005", "no *.yaml or *.yml file in this folder")])
        found.update(dict.fromkeys(inside))
        if len(found) > MAX_FILES:
            raise LoadError([_finding(path, "SE002", f"more than {MAX_FILES} files")])
    return list(found)


def _standard_input() -> bytes | Finding:
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if sys.stdin is not None else b""
    if len(data) > MAX_FILE_BYTES:
        return _finding(STDIN, "SE002", f"larger than {MAX_FILE_BYTES} bytes", "split the file")
    return data


def _content(path: Path, settled: bool) -> bytes | Finding:
    # Looked at first: to open a device may do something.
    if not S_ISREG(os.stat(path).st_mode):
        return _finding(path, "SE008", "not a regular file", "documents are files, and links to files")
    # Not blocking, should a pipe have taken its place meanwhile.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not S_ISREG(status.st_mode):
            return _finding(path, "SE008", "not a regular file", "documents are files, and links to files")
        if not settled:
            data = file.read(MAX_FILE_BYTES + 1)
        else:
            leased = _lease(fd, path, status.st_mtime)
            try:
                data = file.read(MAX_FILE_BYTES + 1)
            finally:
                if leased:
                    fcntl(fd, F_SETLEASE, F_UNLCK)
    if len(data) > MAX_FILE_BYTES:
        return _finding(path, "SE002", f"larger than {MAX_FILE_BYTES} bytes", "split the file")
    return data


def _lease(fd: int, path: Path, changed: float) -> bool:
    """Keep writers out while a file is read (fcntl(2), F_SETLEASE): there is a lease only while nobody has the file open for
    writing, and who opens it for that meanwhile waits. False where the file system has no leases. Raises `UnsettledError`.
    """
    with suppress(OSError):
        # The kernel tells of who waits by a signal: one that does nothing, for it is over in a moment.
        fcntl(fd, F_SETSIG, signal.SIGURG)
        try:
            fcntl(fd, F_SETLEASE, F_RDLCK)
        except BlockingIOError:
            raise UnsettledError(f"{path} is open for writing") from None
        return True
    if 0 <= time.time() - changed < UNSEEN_WRITER_SECONDS:
        raise UnsettledError(f"{path} was changed a moment ago, and its file system does not tell whether somebody writes it")
    return False


def _decoded(path: Path, data: bytes) -> Source | Finding:
    try:
        return Source(str(path), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _finding(path, "SE001", "not UTF-8", line=line)


def _finding(path: Path, code: str, message: str, hint: str = "", line: int = 1) -> Finding:
    return Finding(str(path), line, 1, code, message, hint)
