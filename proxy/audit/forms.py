"""Lines of records that are like others: filled in, not made.

Making a record and encoding it takes ten times as long as filling in such a line, and most calls are like others: the same two
ends, method, host and rule.
"""

import secrets
from collections.abc import Hashable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec

from proxy.audit.record import MAX_PATH_CHARS, AuditRecord, call_id, encode_lines, encode_text

# How many are kept, of some 2 KiB each. Hosts, methods and paths are a client's to choose, so there may be any number.
FORMS_MAX = 1024

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_MILLISECONDS = tuple(str(took / 1000) for took in range(1000))
# What nobody can have put into a record.
_BLANK = secrets.token_hex(16)


@lru_cache(1)
def _whole_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Form:
    """What records have in common that differ only in time, id, source, path, status, sizes and duration."""

    # A string holds no quotation mark that is not escaped: these can be found nowhere but where they belong.
    _BEGIN = '{"time":"0001-01-01T00:00:00Z","id":"-"'
    _OUTCOME = '"status":-1,"bytesRequest":-1,"bytesReply":-1,"durationMs":-1.0'

    __slots__ = ("_before_path", "_end", "_middle", "_source")

    def __init__(self, record: AuditRecord) -> None:
        """``record`` has all that does not change, and a source; a path, if the others have one."""
        blank = msgspec.structs.replace(
            record,
            time=_LONG_AGO,
            id="-",
            source=_BLANK,
            path=None if record.path is None else _BLANK,
            status=-1,
            bytes_request=-1,
            bytes_reply=-1,
            duration_ms=-1.0,
        )
        _, _, rest = encode_lines([blank]).decode("ascii").partition(self._BEGIN)
        middle, found, self._end = rest.partition(self._OUTCOME)
        assert found, "a record whose fields are in another order"
        self._source, middle = middle.split(f'"{_BLANK}"', 1)
        before, found, behind = middle.partition(f'"{_BLANK}"')
        self._before_path: str | None = before if found else None
        self._middle = behind if found else middle

    def of(self, path: str | None) -> "PathForm":
        """The same of calls for one ``path``, in ASCII and no longer than `MAX_PATH_CHARS`."""
        if self._before_path is None:
            assert path is None
            return PathForm(self._source, self._middle, self._end)
        assert path is not None
        assert len(path) <= MAX_PATH_CHARS
        return PathForm(self._source, f"{self._before_path}{encode_text(path)}{self._middle}", self._end)


class PathForm:
    """What records have in common that differ only in time, id, source, status, sizes and duration."""

    __slots__ = ("_before_source", "_behind_source", "_end")

    def __init__(self, before_source: str, behind_source: str, end: str) -> None:
        """What stands before the source, between that and the status, and behind the duration."""
        self._before_source, self._behind_source, self._end = before_source, behind_source, end

    def of(self, connection: str, source: str) -> "Repeated":
        """The lines of one connection's calls."""
        middle = f'{self._before_source}"{source}"{self._behind_source}'
        return Repeated(f'"id":"{call_id(connection, "")}', middle, self._end)


class Repeated:
    """The lines of one client's calls that differ only in time, number, status, sizes and duration."""

    __slots__ = ("_end", "_id", "_last", "_middle", "_outcome")

    def __init__(self, before_number: str, middle: str, end: str) -> None:
        """What stands before the number of a call, between that and its status, and behind its duration."""
        self._id, self._middle, self._end = before_number, middle, end
        self._last: tuple[int | str, int, int] | None = None
        self._outcome = ""

    def line(self, at: int, number: int | str, status: int | str, bytes_request: int, bytes_reply: int, took: int) -> str:
        """The line of call ``number``, in ASCII. ``at`` is the time in microseconds of the epoch, ``took`` the duration in
        microseconds. A ``status`` that is a token is in plain ASCII."""
        outcome = (status, bytes_request, bytes_reply)
        if outcome != self._last:
            self._last = outcome
            told = status if isinstance(status, int) else f'"{status}"'
            self._outcome = (
                f'{self._middle}"status":{told},"bytesRequest":{bytes_request},"bytesReply":{bytes_reply},"durationMs":'
            )
        second, fraction = divmod(at, 1_000_000)
        # As msgspec writes it: with six digits of the second's fraction, or none at all.
        digits = f".{str(1_000_000 + fraction)[1:]}" if fraction else ""
        duration = _MILLISECONDS[took] if took < 1000 else took / 1000
        return f'{{"time":"{_whole_second(second)}{digits}Z",{self._id}{number}"{self._outcome}{duration}{self._end}'


Kept = TypeVar("Kept")


class Forms(Generic[Kept]):
    """What is kept of records that are alike, by all that they have in common."""

    __slots__ = ("_kept", "_met")

    def __init__(self) -> None:
        self._kept: dict[Hashable, Kept] = {}
        self._met: set[Hashable] = set()

    def get(self, key: Hashable) -> Kept | None:
        return self._kept.get(key)

    def put(self, key: Hashable, kept: Kept) -> None:
        if len(self._kept) >= FORMS_MAX:
            self._kept.clear()
        self._kept[key] = kept

    def clear(self) -> None:
        self._kept.clear()
        self._met.clear()

    def met(self, key: Hashable) -> bool:
        """Whether there was one like this before: of what comes once, a form is not worth its making."""
        if key in self._met:
            return True
        if len(self._met) >= FORMS_MAX:
            self._met.clear()
        self._met.add(key)
        return False
