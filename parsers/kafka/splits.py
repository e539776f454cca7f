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
from parsers.kafka.wire import (
    Message,
    Plan,
    Reader,
    TruncatedError,
    Wanted,
    array_count,
    is_flexible,
    message,
    plan,
    reply_body,
    sized,
)

# By API key: the reply's array, and the first and the last version in which it repeats one of the request.
_ANY = 1 << 15
_REPLY_ARRAYS = {
    0: ("Responses", 0, _ANY),  # Produce: every partition has its own result
    1: ("Responses", 0, _ANY),  # Fetch: every partition has its own result
    2: ("Topics", 0, _ANY),  # ListOffsets
    3: ("Topics", 0, _ANY),  # Metadata of named topics
    8: ("Topics", 0, _ANY),  # OffsetCommit
    9: ("Topics", 0, _ANY),  # OffsetFetch of one group
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


# From this version on OffsetFetch may ask for several groups. They are told apart themselves when all of their topics are
# asked for; of one group, its topics are.
_OFFSET_FETCH, _OF_GROUPS = 9, 8
Place = tuple[str, ...]


def may_be_split(request: Request) -> bool:
    """Whether this request can be taken apart by the elements of its array."""
    if request.array is None or not splits_exactly(request.api_key, request.version):
        return False
    return request.api_key != _OFFSET_FETCH or bool(request.named) or len(request.groups) == 1


def place_of(request: Request) -> Place:
    """The reply's array that repeats the request's; in an element of another one, which then has only that, behind that one."""
    name = _REPLY_ARRAYS[request.api_key][0]
    if request.api_key == _OFFSET_FETCH and request.version >= _OF_GROUPS:
        return ("Groups",) if request.named else ("Groups", name)
    return (name,)


def splits_exactly(api_key: int, version: int) -> bool:
    """Whether requests of this API and version can be taken apart by the elements of their array."""
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


def merge(data: bytes, api_key: int, version: int, place: Place, elements: Sequence[bytes]) -> tuple[bytes, int] | None:
    """Put entries in front of those of the reply's array at ``place``.

    ``data`` is the reply's beginning. The new beginning, with the size that the reply has now, and how many bytes of
    ``data`` it takes the place of; None when more must have come. Raises MalformedError.
    """
    compact = is_flexible(api_key, version)
    reader = Reader(data, 0)
    try:
        reply_body(reader, api_key, compact)
        first, *inside = _until_array(api_key, version, place)
        reader.read(first)
        for fields in inside:
            _expect_one(reader.count(compact))
            reader.read(fields)
        start = reader.at
        count = reader.count(compact)
    except TruncatedError:
        return None
    added = array_count(max(count, 0) + len(elements), compact) + b"".join(elements)
    size = int.from_bytes(data[:SIZE], "big") + start + len(added) - reader.at
    if size > 0x7FFFFFFF:
        raise MalformedError("frame-too-large")
    return size.to_bytes(SIZE, "big") + data[SIZE:start] + added, reader.at


def merged(frame: bytes, api_key: int, version: int, place: Place, elements: Sequence[bytes]) -> bytes:
    """A whole reply with entries behind those of its array at ``place``. Raises MalformedError.

    It stays as it is when what has the array has an error of its own, as a group that is somewhere else now.
    """
    compact = is_flexible(api_key, version)
    reader = Reader(frame, 0)
    reply_body(reader, api_key, compact)
    body = reader.read(_with_array(api_key, version, place))
    reader.end()
    for outer in place[:-1]:
        _expect_one(len(body.arrays[outer].items))
        [body] = body.arrays[outer].items
    if any(body.fields.get("ErrorCode", b"")):
        return frame
    told = body.arrays[place[-1]]
    end = told.items[-1].end if told.items else told.end
    count = array_count(len(told.items) + len(elements), compact)
    return sized(b"".join((frame[: told.start], count, frame[told.end : end], *elements, frame[end:])))


def _expect_one(number: int) -> None:
    if number != 1:
        raise MalformedError("not-one-group")


@lru_cache(128)
def _with_array(api_key: int, version: int, place: Place) -> Plan:
    wanted: Wanted = {"ErrorCode": None}
    for name in reversed(place):
        wanted = {"ErrorCode": None, name: wanted}
    found = _message(api_key, version)
    return plan(found.reply, version, version >= found.flexible, wanted)


@lru_cache(128)
def _until_array(api_key: int, version: int, place: Place) -> tuple[Plan, ...]:
    """What stands before the count of the array; where it is inside of another, what stands before the counts of both."""
    found = _message(api_key, version)
    fields, plans = found.reply, []
    for name in place:
        plans.append(plan(fields, version, version >= found.flexible, {}, until=name))
        fields = next(field.fields for field in fields if field.name == name)
    return tuple(plans)


def _message(api_key: int, version: int) -> Message:
    found = message(api_key)
    if found is None or not found.lowest <= version <= found.highest:
        raise MalformedError("unsupported-version")
    return found
