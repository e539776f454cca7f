"""What is read in the broker's replies, and what is taken out of them.

Bytes that stay are never encoded anew: a filtered reply is made of pieces of the broker's own, so that what nobody here knows,
such as new tagged fields, reaches the client as it was sent.
"""

import struct
from collections.abc import Callable, Mapping
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
    text,
)

METADATA, FETCH = 3, 1
UNSUPPORTED_VERSION = 35
_NO_ID = bytes(16)
_SESSIONS_SINCE = 7  # the first version of Fetch with sessions (KIP-227)
_RANGE = struct.Struct(">hhh")  # API key, first and last version


def first_error(frame: bytes, api_key: int, version: int) -> int:
    """The first error code in a whole reply that is not 0, that of the reply itself before those inside; else 0.

    Raises MalformedError.
    """
    reader = Reader(frame, 0)
    if api_key == API_VERSIONS:
        version = _version_of_versions(frame, version)
    flexible = is_flexible(api_key, version)
    reply_body(reader, api_key, flexible)
    found = reader.first_error(_errors_plan(api_key, version))
    reader.end()
    return found


@lru_cache(512)
def _errors_plan(api_key: int, version: int) -> Plan:
    return plan_errors(_reply_fields(api_key, version), version, is_flexible(api_key, version))


def _reply_fields(api_key: int, version: int) -> tuple[Field, ...]:
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


# Metadata


class Metadata:
    """A whole Metadata reply, read once, because it may be of very many partitions. Raises MalformedError."""

    def __init__(self, frame: bytes, version: int) -> None:
        self._frame = frame
        self._flexible = is_flexible(METADATA, version)
        reader = Reader(frame, 0)
        reply_body(reader, METADATA, self._flexible)
        body = reader.read(_metadata_plan(version))
        reader.end()
        self._topics = body.arrays["Topics"]
        self._names = [text(topic.fields["Name"], self._flexible) for topic in self._topics.items]
        self._errors = [topic.fields["ErrorCode"] for topic in (body, *self._topics.items) if "ErrorCode" in topic.fields]

    @property
    def error(self) -> int:
        """The first error that is not 0, of the reply or of a topic. That a partition has no leader is nobody's error."""
        return next((int.from_bytes(code, "big", signed=True) for code in self._errors if any(code)), 0)

    @property
    def topic_ids(self) -> dict[bytes, str]:
        """The names of topics by their ids (16 bytes); none below version 10."""
        named = zip(self._names, self._topics.items, strict=True)
        ids = ((name, topic.fields.get("TopicId", _NO_ID)) for name, topic in named)
        return {topic_id: name for name, topic_id in ids if name is not None and topic_id != _NO_ID}

    def filtered(self, grants: Callable[[str], bool]) -> bytes:
        """The reply without the topics that ``grants`` says no to ("topic:NAME"), and without those that have no name."""
        frame, topics = self._frame, self._topics
        named = zip(self._names, topics.items, strict=True)
        kept = [frame[topic.start : topic.end] for name, topic in named if name is not None and grants(f"topic:{name}")]
        if len(kept) == len(topics.items):
            return frame
        count = array_count(len(kept), self._flexible)
        return sized(b"".join((frame[: topics.start], count, *kept, frame[topics.items[-1].end :])))


def filter_metadata(frame: bytes, version: int, grants: Callable[[str], bool]) -> bytes:
    """See ``Metadata.filtered``."""
    return Metadata(frame, version).filtered(grants)


@lru_cache(32)
def _metadata_plan(version: int) -> Plan:
    wanted: Wanted = {"ErrorCode": None, "Topics": {"ErrorCode": None, "Name": None, "TopicId": None}}
    return plan(_reply_fields(METADATA, version), version, is_flexible(METADATA, version), wanted)


# ApiVersions


def filter_api_versions(frame: bytes, version: int, supported: Mapping[int, tuple[int, int]]) -> bytes:
    """A whole ApiVersions reply in which no API and no version is offered but those of ``supported``. Raises MalformedError."""
    version = _version_of_versions(frame, version)
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
    return plan(_reply_fields(API_VERSIONS, version), version, is_flexible(API_VERSIONS, version), wanted)


def _version_of_versions(frame: bytes, version: int) -> int:
    """A broker that does not know the version answers in version 0 (KIP-511)."""
    error = int.from_bytes(frame[SIZE + 4 : SIZE + 6], "big", signed=True)
    return 0 if error == UNSUPPORTED_VERSION else version
