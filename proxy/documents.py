"""Policy documents on disk: which files there are, and what they say."""

from collections.abc import Iterable
from pathlib import Path

from policies.load import Finding, LoadError, Source

# The loader's own bound on characters, seen before a file is read into memory. A character has at least one byte.
MAX_FILE_BYTES = 8 << 20
# One file per policy of a big cluster. More in one folder is not a folder of policies.
MAX_FILES = 10_000

SUFFIXES = (".yaml", ".yml")


def read_sources(paths: Iterable[str | Path]) -> list[Source]:
    """The text of all files that ``paths`` name; of a folder, of its ``*.yaml`` and ``*.yml``, sorted, not of its folders.

    Raises `OSError` for what does not exist or cannot be read, and `LoadError` for what is too large, not UTF-8, a folder
    without documents, or only files without any: an agent that enforces nothing because a folder is empty, or because a full
    disk has cut a file off, would be silently open.
    """
    sources: list[Source] = []
    findings: list[Finding] = []
    for path in _files(paths):
        text = _text(path)
        if isinstance(text, Source):
            sources.append(text)
        else:
            findings.append(text)
    if not findings and not any(_says_something(source.text) for source in sources):
        findings = [_finding(Path(source.name), "SE005", "no document in this file") for source in sources]
    if findings:
        raise LoadError(findings)
    return sources


def _says_something(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    return any(line and not line.startswith("#") and line not in ("---", "...") for line in lines)


def _files(paths: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            found[path] = None
            continue
        # A name with a leading dot is an editor's or a ConfigMap volume's own.
        inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
        if not inside:
            raise LoadError([_finding(path, "SE005", "no *.yaml or *.yml file in this folder")])
        found.update(dict.fromkeys(inside))
        if len(found) > MAX_FILES:
            raise LoadError([_finding(path, "SE002", f"more than {MAX_FILES} files")])
    return list(found)


def _text(path: Path) -> Source | Finding:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        return _finding(path, "SE002", f"larger than {MAX_FILE_BYTES} bytes", "split the file")
    try:
        return Source(str(path), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return _finding(path, "SE001", "not UTF-8", line=line)


def _finding(path: Path, code: str, message: str, hint: str = "", line: int = 1) -> Finding:
    return Finding(str(path), line, 1, code, message, hint)
