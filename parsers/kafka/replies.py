"""What is read in the broker's replies, and what is taken out of them.

Bytes that stay are never encoded anew: a filtered reply is made of pieces of the broker's own, so that what nobody here knows,
such as new tagged fields, reaches the client as it was sent.
"""

import struct
from collections.abc import Callable, Mapping
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
    text,
)

METADATA, FETCH = 3, 1
UNSUPPORTED_VERSION = 35
# Of a Metadata reply, so many topics, or bytes, are read before others have their turn: some 3 ms.
METADATA_TOPICS = 256
METADATA_BYTES = 256 * 1024
# Topics of a Metadata reply that is read: each takes 5 us and some hundred bytes.
METADATA_TOPICS_MAX = 100_000
_NO_ID = bytes(16)
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
    """A whole Metadata reply, read once, and piece by piece, because it may be of very many topics and partitions.

    ``grants`` says which topics ("topic:NAME") are to stay; None: all. Raises MalformedError, as its methods do.
    """

    def __init__(self, frame: bytes, version: int, grants: Callable[[str], bool] | None = None) -> None:
        self.frame = frame
        self._flexible = is_flexible(METADATA, version)
        self._grants = grants
        before, self._topic, self._behind = _metadata_plans(version)
        reader = self._reader = Reader(frame, 0)
        reply_body(reader, METADATA, self._flexible)
        reader.read(before)
        self._start = reader.at
        number = max(reader.count(self._flexible), 0)
        if number > len(frame) - reader.at:  # each topic has a byte at least
            raise MalformedError("truncated")
        if number > METADATA_TOPICS_MAX:
            raise MalformedError("too-many-elements", "METADATA_TOPICS_MAX")
        self._number = self._left = number
        self._kept: list[bytes] = []
        self._end = reader.at
        self._topic_error = self._own_error = 0
        self.topic_ids: dict[bytes, str] = {}  # of what was read last, names by ids (16 bytes); none below version 10

    def read_some(self) -> bool:
        """Read on for some milliseconds; whether that was all of it."""
        reader, until = self._reader, self._reader.at + METADATA_BYTES
        self.topic_ids = {}
        for _ in range(min(self._left, METADATA_TOPICS)):
            self._read_topic(reader)
            if reader.at > until:
                break
        if self._left:
            return False
        self._end = reader.at
        self._own_error = _number(reader.read(self._behind).fields.get("ErrorCode", b""))
        reader.end()
        return True

    def _read_topic(self, reader: Reader) -> None:
        self._left -= 1
        topic = reader.read(self._topic)
        name = text(topic.fields["Name"], self._flexible)
        self._topic_error = self._topic_error or _number(topic.fields["ErrorCode"])
        topic_id = topic.fields.get("TopicId", _NO_ID)
        if name is not None and topic_id != _NO_ID:
            self.topic_ids[topic_id] = name
        if self._grants is not None and name is not None and self._grants(f"topic:{name}"):
            self._kept.append(self.frame[topic.start : topic.end])

    @property
    def error(self) -> int:
        """The first error that is not 0, of the reply or of a topic. That a partition has no leader is nobody's error."""
        return self._own_error or self._topic_error

    @property
    def told(self) -> bytes:
        """The reply with those topics only that are granted; those that have no name are not."""
        if self._grants is None or len(self._kept) == self._number:
            return self.frame
        count = array_count(len(self._kept), self._flexible)
        return sized(b"".join((self.frame[: self._start], count, *self._kept, self.frame[self._end :])))


def filter_metadata(frame: bytes, version: int, grants: Callable[[str], bool]) -> bytes:
    """See ``Metadata.told``."""
    metadata = Metadata(frame, version, grants)
    while not metadata.read_some():
        pass
    return metadata.told


def _number(encoded: bytes) -> int:
    return int.from_bytes(encoded, "big", signed=True)


@lru_cache(32)
def _metadata_plans(version: int) -> tuple[Plan, Plan, Plan]:
    """What is before the topics, one of them, and what is behind them."""
    flexible, fields = is_flexible(METADATA, version), _reply_fields(METADATA, version)
    topics = next(number for number, field in enumerate(fields) if field.name == "Topics")
    wanted: Wanted = {"ErrorCode": None, "Name": None, "TopicId": None}
    before = plan(fields, version, flexible, {}, until="Topics")
    return before, plan(fields[topics].fields, version, flexible, wanted), plan(fields[topics + 1 :], version, flexible, wanted)


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
    return plan(_reply_fields(API_VERSIONS, version), version, is_flexible(API_VERSIONS, version), wanted)


def _knows_no_version(frame: bytes) -> bool:
    return int.from_bytes(frame[SIZE + 4 : SIZE + 6], "big", signed=True) == UNSUPPORTED_VERSION
