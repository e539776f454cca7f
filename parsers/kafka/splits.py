"""Requests of which the broker gets to see only what is allowed, and replies that say so of the rest.

A request has one array whose elements are told apart: topics, groups, transactional ids, or resources that have a
configuration. An element is cut out of the request as it stands, and an entry with its error is put into the broker's reply.
That is exact only where an element's part of the reply does not depend on the others. Elsewhere a request is denied as a
whole: AddPartitionsToTxn, which the broker itself refuses as a whole; what names several groups with their topics; what
changes a cluster's layout.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache

from parsers.kafka.frame import SIZE, MalformedError
from parsers.kafka.request import Request
from parsers.kafka.wire import Plan, Reader, TruncatedError, array_count, is_flexible, message, plan, reply_body, sized

# By API key: the reply's array, and the first and the last version in which it repeats one of the request.
_ANY = 1 << 15
_REPLY_ARRAYS = {
    0: ("Responses", 0, _ANY),  # Produce: every partition has its own result
    1: ("Responses", 0, _ANY),  # Fetch: every partition has its own result
    2: ("Topics", 0, _ANY),  # ListOffsets
    3: ("Topics", 0, _ANY),  # Metadata of named topics
    8: ("Topics", 0, _ANY),  # OffsetCommit
    9: ("Topics", 0, 7),  # OffsetFetch: later versions ask for several groups
    10: ("Coordinators", 4, _ANY),  # FindCoordinator: earlier versions ask for one
    15: ("Groups", 0, _ANY),  # DescribeGroups
    19: ("Topics", 0, _ANY),  # CreateTopics: every topic is made, or not, by itself
    20: ("Responses", 0, _ANY),  # DeleteTopics
    21: ("Topics", 0, _ANY),  # DeleteRecords
    23: ("Topics", 0, _ANY),  # OffsetForLeaderEpoch
    28: ("Topics", 0, _ANY),  # TxnOffsetCommit
    32: ("Results", 0, _ANY),  # DescribeConfigs
    33: ("Responses", 0, _ANY),  # AlterConfigs: every resource is changed, or not, by itself
    37: ("Results", 0, _ANY),  # CreatePartitions
    42: ("Results", 0, _ANY),  # DeleteGroups
    44: ("Responses", 0, _ANY),  # IncrementalAlterConfigs
    65: ("TransactionStates", 0, _ANY),  # DescribeTransactions
    69: ("Groups", 0, _ANY),  # ConsumerGroupDescribe
    75: ("Topics", 0, _ANY),  # DescribeTopicPartitions
    77: ("Groups", 0, _ANY),  # ShareGroupDescribe
    89: ("Groups", 0, _ANY),  # StreamsGroupDescribe
}


def splits_exactly(api_key: int, version: int) -> bool:
    """Whether a request of this API and version can be taken apart by the elements of its array."""
    known = _REPLY_ARRAYS.get(api_key)
    return known is not None and known[1] <= version <= known[2]


def without(frame: bytes, request: Request, denied: Collection[int]) -> bytes:
    """The request's frame without the elements at these positions: not all, unless none means nothing to its API."""
    assert request.array is not None
    start, end, number = request.array
    elements = request.elements
    assert len(denied) <= number == len(elements)
    parts = [frame[:start], array_count(number - len(denied), is_flexible(request.api_key, request.version))]
    at = end
    for position in sorted(denied):
        element = elements[position]
        parts.append(frame[at : element.start])
        at = element.end
    parts.append(frame[at:])
    return sized(b"".join(parts))


def merge(data: bytes, api_key: int, version: int, elements: Sequence[bytes]) -> tuple[bytes, int] | None:
    """Put entries in front of those of a reply's array.

    ``data`` is the reply's beginning. The new beginning, with the size that the reply has now, and how many bytes of
    ``data`` it takes the place of; None when more must have come. Raises MalformedError.
    """
    compact = is_flexible(api_key, version)
    reader = Reader(data, 0)
    try:
        reply_body(reader, api_key, compact)
        reader.read(_until_array(api_key, version))
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
    """A whole reply with entries behind those of its array. Raises MalformedError."""
    compact = is_flexible(api_key, version)
    reader = Reader(frame, 0)
    reply_body(reader, api_key, compact)
    body = reader.read(_with_array(api_key, version))
    reader.end()
    told = body.arrays[_REPLY_ARRAYS[api_key][0]]
    end = told.items[-1].end if told.items else told.end
    count = array_count(len(told.items) + len(elements), compact)
    return sized(b"".join((frame[: told.start], count, frame[told.end : end], *elements, frame[end:])))


@lru_cache(128)
def _with_array(api_key: int, version: int) -> Plan:
    found = message(api_key)
    if found is None or not found.lowest <= version <= found.highest:
        raise MalformedError("unsupported-version")
    return plan(found.reply, version, version >= found.flexible, {_REPLY_ARRAYS[api_key][0]: {"ErrorCode": None}})


@lru_cache(128)
def _until_array(api_key: int, version: int) -> Plan:
    found = message(api_key)
    if found is None or not found.lowest <= version <= found.highest:
        raise MalformedError("unsupported-version")
    return plan(found.reply, version, version >= found.flexible, {}, until=_REPLY_ARRAYS[api_key][0])
