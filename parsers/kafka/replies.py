"""What is read in the broker's replies, and what is taken out of them.

Bytes that stay are never encoded anew: a filtered reply is made of pieces of the broker's own, so that what nobody here knows,
such as new tagged fields, reaches the client as it was sent.
"""

import struct
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache

from parsers.kafka.frame import API_VERSIONS, SIZE, MalformedError
from parsers.kafka.wire import (
    Field,
    Plan,
    Reader,
    TruncatedError,
    Wanted,
    array_count,
    is_flexible,
    message,
    plan,
    plan_errors,
    reply_body,
    sized,
)

METADATA, FETCH = 3, 1
UNSUPPORTED_VERSION = 35
_SESSIONS_SINCE = 7  # the first version of Fetch with sessions (KIP-227)
_RANGE = struct.Struct(">hhh")  # API key, first and last version


def first_error(frame: bytes, api_key: int, version: int) -> int:
    """The first error code in a whole reply that is not 0, that of the reply itself before those inside; else 0.

    Raises MalformedError.
    """
    if api_key == API_VERSIONS and _knows_no_version(frame):
        return UNSUPPORTED_VERSION
    reader = Reader(frame, 0)
    flexible = is_flexible(api_key, version)
    reply_body(reader, api_key, flexible)
    found = reader.first_error(_errors_plan(api_key, version))
    reader.end()
    return found


@lru_cache(512)
def _errors_plan(api_key: int, version: int) -> Plan:
    return plan_errors(reply_fields(api_key, version), version, is_flexible(api_key, version))


def reply_fields(api_key: int, version: int) -> tuple[Field, ...]:
    found = message(api_key)
    if found is None or not found.lowest <= version <= found.highest:
        raise MalformedError("unsupported-version")
    return found.reply


def fetch_start(data: bytes, version: int) -> tuple[int, int] | None:
    """The error and the session id at the beginning of a Fetch reply, 0 where its version has none; None: more must come."""
    if version < _SESSIONS_SINCE:
        return 0, 0
    reader = Reader(data, 0)
    try:
        reply_body(reader, FETCH, is_flexible(FETCH, version))
        reader.integer(4)  # throttle time
        return reader.integer(2), reader.integer(4)
    except TruncatedError:
        return None


# ApiVersions


def filter_api_versions(frame: bytes, version: int, supported: Mapping[int, tuple[int, int]]) -> bytes:
    """A whole ApiVersions reply in which no API and no version is offered but those of ``supported``. Raises MalformedError.

    A broker that does not know the version answers in version 0 (KIP-511), or so it should: others answer in the version that
    was asked for, or with the code alone. Clients look at the code, and what cannot be read offers them nothing.
    """
    if not _knows_no_version(frame):
        return _filtered(frame, version, supported)
    for asked in (0, version):
        with suppress(MalformedError):
            return _filtered(frame, asked, supported)
    return frame


def _filtered(frame: bytes, version: int, supported: Mapping[int, tuple[int, int]]) -> bytes:
    reader = Reader(frame, 0)
    reply_body(reader, API_VERSIONS, is_flexible(API_VERSIONS, version))
    body = reader.read(_versions_plan(version))
    reader.end()
    offers = body.arrays["ApiKeys"]
    kept = []
    end = offers.end
    for offer in offers.items:
        end = offer.end
        key, low, high = _RANGE.unpack_from(frame, offer.start)
        if key not in supported:
            continue
        low, high = max(low, supported[key][0]), min(high, supported[key][1])
        if low <= high:
            kept.append(_RANGE.pack(key, low, high) + frame[offer.start + _RANGE.size : offer.end])
    count = array_count(len(kept), is_flexible(API_VERSIONS, version))
    return sized(b"".join((frame[: offers.start], count, *kept, frame[end:])))


@lru_cache(16)
def _versions_plan(version: int) -> Plan:
    wanted: Wanted = {"ApiKeys": {"ApiKey": None}}
    return plan(reply_fields(API_VERSIONS, version), version, is_flexible(API_VERSIONS, version), wanted)


def _knows_no_version(frame: bytes) -> bool:
    return int.from_bytes(frame[SIZE + 4 : SIZE + 6], "big", signed=True) == UNSUPPORTED_VERSION
