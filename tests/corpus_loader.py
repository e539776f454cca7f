"""Loads the hostile inputs of tests/corpus, for the unit tests and for whoever replays them over sockets.

A text in a corpus file stands for its latin-1 bytes. A list stands for its parts one behind the other, where a pair
``[text, times]`` is a repetition.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml

_HTTP1 = Path(__file__).parent / "corpus" / "http1"


class HostileRequest(msgspec.Struct, frozen=True):
    """What a client sends. The agent answers ``status`` and closes; ``judged`` calls were forwarded before that.

    ``end``: the client half-closes behind its bytes, and only then can the fault be seen.
    """

    name: str
    why: str
    request: bytes
    status: int
    reason: str
    judged: int = 0
    end: bool = False


class HostileReply(msgspec.Struct, frozen=True):
    """What a server answers to a good ``request``. The client gets ``status`` 502, or only a close if it is None."""

    name: str
    why: str
    request: bytes
    reply: bytes
    status: int | None
    reason: str
    end: bool = False


class TargetCase(msgspec.Struct, frozen=True):
    """A request target, what policy judges for it, and the faults that keep rules about path or query from matching."""

    target: str
    path: str
    fault: str | None = None
    query_fault: str | None = None
    slashes: bool = False


def hostile_requests() -> list[HostileRequest]:
    return [HostileRequest(**_with_bytes(case)) for case in _load("requests.yaml")]


def hostile_replies() -> list[HostileReply]:
    return [HostileReply(**{"request": _GET, **_with_bytes(case)}) for case in _load("replies.yaml")]


def target_cases() -> list[TargetCase]:
    return [TargetCase(**{"path": case["target"], **case}) for case in _load("targets.yaml")]


_GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


def _load(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = yaml.safe_load((_HTTP1 / name).read_text(encoding="utf-8"))
    return cases


def _with_bytes(case: dict[str, Any]) -> dict[str, Any]:
    return {key: _bytes(value) if key in ("request", "reply") else value for key, value in case.items()}


def _bytes(value: str | list[Any]) -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1")
    return b"".join(_bytes(part) if isinstance(part, str) else _bytes(part[0]) * part[1] for part in value)
