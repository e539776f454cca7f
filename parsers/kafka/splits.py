"""Requests of which the broker gets to see only the topics that are allowed, and replies that say so of the others.

A topic is cut out of the request as it stands, and an entry with its error is put into the broker's reply. That is exact
only where a topic's part of the reply does not depend on the other topics. Elsewhere a request is denied as a whole:
AddPartitionsToTxn, which the broker itself refuses as a whole; what names several groups with their topics; what changes
a cluster's layout.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache

from parsers.kafka.frame import SIZE, MalformedError
from parsers.kafka.request import Request
from parsers.kafka.wire import Plan, Reader, TruncatedError, array_count, is_flexible, message, plan, reply_body, sized

# By API key: the reply's array of topics, and the last version in which it is one.
_ANY = 1 << 15
_REPLY_TOPICS = {
    0: ("Responses", _ANY),  # Produce: every partition has its own result
    1: ("Responses", _ANY),  # Fetch: every partition has its own result
    2: ("Topics", _ANY),  # ListOffsets
    3: ("Topics", _ANY),  # Metadata of named topics
    8: ("Topics", _ANY),  # OffsetCommit
    9: ("Topics", 7),  # OffsetFetch: later versions ask for several groups
    19: ("Topics", _ANY),  # CreateTopics: every topic is made, or not, by itself
    20: ("Responses", _ANY),  # DeleteTopics
    21: ("Topics", _ANY),  # DeleteRecords
    23: ("Topics", _ANY),  # OffsetForLeaderEpoch
    28: ("Topics", _ANY),  # TxnOffsetCommit
    37: ("Results", _ANY),  # CreatePartitions
    75: ("Topics", _ANY),  # DescribeTopicPartitions
}


def splits_exactly(api_key: int, version: int) -> bool:
    """Whether a request of this API and version can be taken apart by topics."""
    known = _REPLY_TOPICS.get(api_key)
    return known is not None and version <= known[1]


def without(frame: bytes, request: Request, denied: Collection[int]) -> bytes:
    """The request's frame without the topics at these positions: not all, unless no topics are not all topics to its API."""
    assert request.topic_array is not None
    start, end, number = request.topic_array
    assert len(denied) <= number == len(request.topics)
    parts = [frame[:start], array_count(number - len(denied), is_flexible(request.api_key, request.version))]
    at = end
    for position in sorted(denied):
        topic = request.topics[position]
        parts.append(frame[at : topic.start])
        at = topic.end
    parts.append(frame[at:])
    return sized(b"".join(parts))


def merge(data: bytes, api_key: int, version: int, elements: Sequence[bytes]) -> tuple[bytes, int] | None:
    """Put entries in front of those that a reply has of its topics.

    ``data`` is the reply's beginning. The new beginning, with the size that the reply has now, and how many bytes of
    ``data`` it takes the place of; None when more must have come. Raises MalformedError.
    """
    compact = is_flexible(api_key, version)
    reader = Reader(data, 0)
    try:
        reply_body(reader, api_key, compact)
        reader.read(_until_topics(api_key, version))
        start = reader.at
        count = reader.count(compact)
    except TruncatedError:
        return None
    added = array_count(max(count, 0) + len(elements), compact) + b"".join(elements)
    size = int.from_bytes(data[:SIZE], "big") + start + len(added) - reader.at
    if size > 0x7FFFFFFF:
        raise MalformedError("frame-too-large")
    return size.to_bytes(SIZE, "big") + data[SIZE:start] + added, reader.at


def merged(frame: bytes, api_key: int, version: int, elements: Sequence[bytes]) -> bytes:
    """A whole reply with entries behind those that it has of its topics. Raises MalformedError."""
    compact = is_flexible(api_key, version)
    reader = Reader(frame, 0)
    reply_body(reader, api_key, compact)
    body = reader.read(_with_topics(api_key, version))
    reader.end()
    topics = body.arrays[_REPLY_TOPICS[api_key][0]]
    end = topics.items[-1].end if topics.items else topics.end
    count = array_count(len(topics.items) + len(elements), compact)
    return sized(b"".join((frame[: topics.start], count, frame[topics.end : end], *elements, frame[end:])))


@lru_cache(128)
def _with_topics(api_key: int, version: int) -> Plan:
    found = message(api_key)
    if found is None or not found.lowest <= version <= found.highest:
        raise MalformedError("unsupported-version")
    return plan(found.reply, version, version >= found.flexible, {_REPLY_TOPICS[api_key][0]: {"ErrorCode": None}})


@lru_cache(128)
def _until_topics(api_key: int, version: int) -> Plan:
    found = message(api_key)
    if found is None or not found.lowest <= version <= found.highest:
        raise MalformedError("unsupported-version")
    return plan(found.reply, version, version >= found.flexible, {}, until=_REPLY_TOPICS[api_key][0])
