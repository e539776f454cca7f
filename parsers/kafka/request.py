"""Reads from a request what policy needs (topics, groups, transactional ids) and steps over the rest, records above all.

Two readers that share one walk: ``skim`` takes a whole frame and refuses whatever is not exactly as laid out. ``look`` takes
as much of a frame as has arrived and answers as soon as nothing behind can change what policy asks, so a Produce request
to one topic can be judged before its records are there.

Every length is checked against the frame before it is used, every element takes at least a byte, and their number is
bounded, so a walk takes time in proportion to the bytes and never more than some 10 ms; what many elements are usually like is
passed over many at a time. Where two programs might read different things, the request is refused: a broker must never see a
topic that was not judged.
"""

from collections.abc import Sequence
from struct import Struct, unpack_from
from typing import Never

import msgspec

from parsers.kafka.bulk import AT_ONCE
from parsers.kafka.frame import SIZE, Header, MalformedError, UnsupportedError, read_header
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.shapes import (
    ACKS,
    ARRAY,
    BYTES,
    EMPTY_IS_ALL,
    EVERYTHING,
    FORGOTTEN,
    GROUP,
    GROUPS,
    KEY,
    KEY_TYPE,
    KIND,
    NAME,
    NAMES,
    NULL_IS_ALL,
    NUMBERS,
    PARTITION,
    PARTITIONS,
    PLAIN,
    REGEX,
    REPLICA,
    SESSION_EPOCH,
    SESSION_ID,
    SKIP,
    STRUCT,
    TAGS,
    TOPIC_ID,
    TOPIC_STRUCT,
    TOPICS,
    TRANSACTIONAL,
    Block,
    shape,
)

# Topics, groups and transactional ids of one request. A client that asks for every single one of a large cluster has some
# thousands; each takes 3 us to be read, and as much again to be judged.
MAX_RESOURCES = 4_000
# Bytes of all their names together: so many of the longest that topics can have (249), and then some.
MAX_NAME_BYTES = 4 * 1024 * 1024
# Elements of arrays of one request. Apache Kafka advises against more than 4,000 partitions per broker and 200,000 per cluster.
MAX_ELEMENTS = 100_000
# Fields of elements, and tagged fields, that have to be walked one by one, at up to 0.5 us each: those of elements that are not
# as clients make them, with a string of hundreds of bytes or with tagged fields, or that name something.
MAX_STEPS = 24_000

_INT16, _INT32 = Struct(">h"), Struct(">i")
_NO_ID = bytes(16)
_STRING_MAX = 0x7FFF  # bytes; Kafka refuses longer ones where the length is a varint, too
_VARINT_MAX = 0x7FFFFFFF  # a length beyond that would be a negative number to Kafka, which could mean null
_EPOCHS_ALIKE = 1 << 24  # session epochs whose first byte is zero
# Kinds of resources that have a configuration (ConfigResource.Type), as policy calls them; any other is the cluster's, too.
_TOPIC, _GROUP = 2, 32
_CONFIGURED = {_TOPIC: "topic", 4: "broker", 8: "brokerLogger", 16: "clientMetrics", _GROUP: "group"}
# What only brokers ask, and Kafka authorises on the cluster, in APIs that clients have as well.
CLUSTER = "cluster:kafka-cluster"
_KEY_GROUP, _KEY_TRANSACTION, _KEY_SHARE = 0, 1, 2  # FindCoordinatorRequest.CoordinatorType
# APIs of clients that only brokers have in newer versions: AddPartitionsToTxn from 4 on (KIP-890).
OF_BROKERS_FROM = {24: 4}
# Share coordinators are asked for by brokers alone, and refused as a whole.
_KEYS = {_KEY_GROUP: "group", _KEY_TRANSACTION: "transactionalId"}
# Where a walk keeps the numbers that it finds.
_NUMBERS = {
    REPLICA: "replica",
    ACKS: "acks",
    SESSION_ID: "session_id",
    SESSION_EPOCH: "session_epoch",
    KIND: "kind",
    KEY_TYPE: "key_type",
}


class Topic(msgspec.Struct, frozen=True):
    """One topic as the request names it, by its name or by its id (16 bytes), never by both.

    Both are None when the request gives an id of zeroes, which names nothing. ``start`` and ``end``: where this element of
    its array stands in the frame, in bytes from the first of the size field. ``partitions``: only of Fetch.
    """

    name: str | None
    topic_id: bytes | None
    start: int
    end: int
    partitions: tuple[int, ...] = ()


class Named(msgspec.Struct, frozen=True):
    """One element of an array of groups, of transactional ids, or of resources that have a configuration.

    ``resource`` is what policy calls it ("group:g", "broker:1"). ``start`` and ``end`` as of a topic.
    """

    resource: str
    start: int
    end: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for, as far as policy looks at it.

    ``size``: bytes of the frame with its size field. ``array``: (start, end of the count, number) of the one array whose
    ``elements`` can be told apart, when it is one. ``named``: these elements where they are not just topics; they are among
    the topics, groups and transactional ids as well, if they are such. ``of_brokers``: only brokers ask such a thing of each
    other: a Fetch of a follower, AddPartitionsToTxn from version 4 on, a coordinator of share groups. ``determined``: length
    in bytes of the prefix of the frame behind which nothing can change any field but the ends of ranges.
    """

    api_key: int
    api: str
    version: int
    correlation_id: int
    client_id: str | None
    size: int
    topics: tuple[Topic, ...] = ()
    groups: tuple[str, ...] = ()
    transactional_ids: tuple[str, ...] = ()
    all_topics: bool = False
    array: tuple[int, int, int] | None = None
    named: tuple[Named, ...] = ()
    forgotten: tuple[Topic, ...] = ()
    acks: int | None = None
    session: tuple[int, int] | None = None
    of_brokers: bool = False
    determined: int = 0

    @property
    def elements(self) -> Sequence[Topic | Named]:
        """What its array consists of, in its order."""
        return self.named or self.topics


class _IncompleteError(Exception):
    """What the walk needs next has not arrived."""


class _DeterminedError(Exception):
    """The walk need not go on."""


class _Walk:
    """One walk over the body of one frame. ``end``: bytes of the frame that are there; ``stop``: its size."""

    # What most requests do not have is not set for each.
    key_type = _KEY_GROUP
    replica = -1  # the broker that fetches, as it calls itself; negative: a client
    all_topics = False
    array: tuple[int, int, int] | None = None
    topic_arrays = 0
    group_array: tuple[int, int, int] | None = None
    group_starts: list[int]  # where each element of it begins, as soon as there is one
    acks: int | None = None
    session_id: int | None = None
    session_epoch = 0
    determined = 0
    elements = MAX_ELEMENTS
    steps = MAX_STEPS
    resources = MAX_RESOURCES
    name_bytes = MAX_NAME_BYTES
    # The topic that is being read: where it goes and begins, and what is known of it.
    pending: tuple[list[Topic], int] | None = None
    name: str | None = None
    topic_id: bytes | None = None
    kind: int | None = None  # of a resource that has a configuration
    # Where somebody asks for it: the numbers that are stepped over, as places and lengths.
    free: list[tuple[int, int]] | None = None
    named: tuple[Named, ...] | list[Named] = ()

    def __init__(self, data: bytes, end: int, header: Header, whole: bool) -> None:
        self.data, self.end, self.header, self.whole = data, end, header, whole
        self.stop = header.size
        self.flexible = header.version >= REQUESTS[header.api_key].flexible
        self.topics: list[Topic] = []
        self.forgotten: list[Topic] = []
        self.groups: list[str] = []
        self.transactional_ids: list[str] = []
        self.keys: list[str] = []
        self.partitions: list[int] = []

    # Lengths. Each gives the length or -1 for null, and where what it measures begins.

    def short(self, need: int) -> Never:
        if need > self.stop:
            raise MalformedError("beyond-frame")
        raise _IncompleteError

    def varint(self, pos: int) -> tuple[int, int]:
        data, end = self.data, self.end
        if pos >= end:
            self.short(pos + 1)
        value = data[pos]
        if value < 0x80:
            return value, pos + 1
        value &= 0x7F
        for shift in (7, 14, 21, 28):
            pos += 1
            if pos >= end:
                self.short(pos + 1)
            byte = data[pos]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > _VARINT_MAX:
                    break
                return value, pos + 1
        raise MalformedError("bad-varint")

    def length(self, pos: int, null: bool, wide: bool) -> tuple[int, int]:
        """The length of a string, or ``wide`` of bytes or the number of elements of an array."""
        if self.flexible:
            if pos < self.end and self.data[pos] < 0x80:
                n = self.data[pos] - 1
                pos += 1
            else:
                n, pos = self.varint(pos)
                n -= 1
        elif wide:
            if pos + 4 > self.end:
                self.short(pos + 4)
            n = _INT32.unpack_from(self.data, pos)[0]
            pos += 4
        else:
            if pos + 2 > self.end:
                self.short(pos + 2)
            n = _INT16.unpack_from(self.data, pos)[0]
            pos += 2
        if n < 0 and (n < -1 or not null):
            raise MalformedError("null-not-allowed" if n == -1 else "negative-length")
        if pos + n > self.stop:
            raise MalformedError("beyond-frame")
        return n, pos

    def count(self, pos: int, null: bool, least: int) -> tuple[int, int]:
        """The number of elements of at least ``least`` bytes."""
        n, pos = self.length(pos, null, True)
        if n > 0:
            if n * least > self.stop - pos:
                raise MalformedError("count-beyond-frame")
            self.spend(n)
        return n, pos

    def walk(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise MalformedError("too-many-elements", "MAX_STEPS")

    def spend(self, elements: int) -> None:
        self.elements -= elements
        if self.elements < 0:
            raise MalformedError("too-many-elements", "MAX_ELEMENTS")

    def number(self, pos: int, size: int) -> tuple[int, int]:
        if pos + size > self.end:
            self.short(pos + size)
        return int.from_bytes(self.data[pos : pos + size], "big", signed=True), pos + size

    def text(self, pos: int, null: bool) -> tuple[str | None, int]:
        n, pos = self.length(pos, null, False)
        if n < 0:
            return None, pos
        if n > _STRING_MAX:
            raise MalformedError("string-too-long")
        self.name_bytes -= n
        if self.name_bytes < 0:
            raise MalformedError("names-too-long", "MAX_NAME_BYTES")
        if pos + n > self.end:
            self.short(pos + n)
        try:
            return str(self.data[pos : pos + n], "utf-8"), pos + n
        except UnicodeDecodeError:
            raise MalformedError("bad-utf8") from None

    def resource(self, into: list[str], text: str | None) -> None:
        if text is not None:
            self.claim(1)
            into.append(text)

    def claim(self, resources: int) -> None:
        self.resources -= resources
        if self.resources < 0:
            raise MalformedError("too-many-resources", "MAX_RESOURCES")

    # Structures

    def block(self, block: Block, pos: int, last: bool) -> int:
        """Walks one structure and returns where it ends. ``last``: nothing that policy needs comes behind it."""
        end = self.end
        for code, n, null, inner, final in block.steps:
            if code == SKIP:
                if self.free is not None:
                    self.free.append((pos, n))
                pos += n
                if pos > end:
                    self.short(pos)
            elif code <= BYTES:
                size, pos = self.length(pos, null, code == BYTES)
                if size > 0:
                    pos += size
                    if pos > end:
                        self.short(pos)
            elif code == TAGS:
                # Nearly always there are none.
                pos = pos + 1 if pos < end and not self.data[pos] else self.tags(inner, pos)
            elif code == PARTITION:
                if pos + 4 > end:
                    self.short(pos + 4)
                self.partitions.append(_INT32.unpack_from(self.data, pos)[0])
                pos += 4
            elif code == ARRAY:
                assert inner is not None
                size, pos = self.count(pos, null, inner.least)
                if size > AT_ONCE and self.free is None:
                    pos = self.many(inner, pos, size - 1)
                    size = 1
                else:
                    self.walk(size * len(inner.steps))
                for element in range(size):
                    pos = self.block(inner, pos, last and final and element == size - 1)
            elif code == NAME:
                self.name, pos = self.text(pos, null)
            elif code == TOPICS:
                assert inner is not None
                pos = self.topics_of(inner, pos, n, null, last and final)
            else:
                pos = self.rare(code, n, null, inner, pos, last and final)
            if final and last:
                self.settle(pos)
        return pos

    def many(self, inner: Block, pos: int, number: int) -> int:
        """So many elements, of which none is the last."""
        if inner.partitions is not None:
            after = pos + number * inner.least
            if after > self.end:
                self.short(after)
            tags = self.data[pos + inner.least - 1 : after : inner.least] if self.flexible else b""
            if not any(tags):
                self.partitions += [partition for (partition,) in inner.partitions.iter_unpack(self.data[pos:after])]
                return after
        while number:
            some = min(number, AT_ONCE)
            usual = inner.many.match(self.data, pos, self.end) if inner.many and some == AT_ONCE else None
            if usual:
                pos = usual.end()
            else:
                self.walk(some * len(inner.steps))
                for _ in range(some):
                    pos = self.block(inner, pos, False)
            number -= some
        return pos

    def rare(self, code: int, n: int, null: bool, inner: Block | None, pos: int, last: bool) -> int:
        """The steps that occur at most a few times in a request."""
        if code == TOPIC_ID:
            if pos + n > self.end:
                self.short(pos + n)
            topic_id = bytes(self.data[pos : pos + n])
            self.topic_id = None if topic_id == _NO_ID else topic_id
            return pos + n
        if code in (GROUP, TRANSACTIONAL, KEY, REGEX):
            text, pos = self.text(pos, null)
            if code == REGEX:
                self.all_topics |= bool(text)
            else:
                self.resource(self.groups if code == GROUP else self.keys if code == KEY else self.transactional_ids, text)
            return pos
        if code >= NUMBERS:
            number, after = self.number(pos, n)
            setattr(self, _NUMBERS[code], number)
            # An incremental Fetch counts up (KIP-227); what makes a session or ends it is something else.
            if self.free is not None and code == SESSION_EPOCH and 0 < number < _EPOCHS_ALIKE:
                self.free.append((pos + 1, n - 1))
            return after
        if code == PLAIN:
            return self.plain(pos, null, n)[1]
        if code == PARTITIONS:
            start, pos = self.plain(pos, null, 4)
            if pos > start:
                number = (pos - start) // 4
                self.spend(number)
                self.partitions.extend(unpack_from(f">{number}i", self.data, start))
            return pos
        if code in (STRUCT, TOPIC_STRUCT):
            assert inner is not None
            return self.structure(inner, pos, null, code == TOPIC_STRUCT, last)
        if code == NAMES:
            assert inner is not None
            return self.names_of(inner, pos, n, null)
        if code == GROUPS:
            assert inner is not None
            return self.groups_of(inner, pos, null, last)
        assert code == EVERYTHING
        self.all_topics = True
        return pos

    def plain(self, pos: int, null: bool, size: int) -> tuple[int, int]:
        """Where the elements of an array begin and end that have ``size`` bytes each."""
        n, pos = self.length(pos, null, True)
        after = pos + max(n, 0) * size
        if after > self.end:
            self.short(after)
        return pos, after

    def structure(self, inner: Block, pos: int, null: bool, topic: bool, last: bool) -> int:
        if null:
            start = pos
            present, pos = self.number(pos, 1)
            if present not in (-1, 1):  # KIP-893
                raise MalformedError("bad-presence")
            if present < 0:
                return pos
        else:
            start = pos
        if not topic:
            return self.block(inner, pos, last)
        self.claim(1)
        self.topic_arrays += 2  # what this topic belongs to is no array
        return self.topic(self.topics, inner, start, pos, last)

    def topics_of(self, inner: Block, start: int, marks: int, null: bool, last: bool) -> int:
        n, pos = self.count(start, null, inner.least)
        if n < 0 or (n == 0 and marks & EMPTY_IS_ALL):
            self.all_topics |= bool(marks & (NULL_IS_ALL | EMPTY_IS_ALL))
            return pos
        self.claim(n)
        self.walk(n * len(inner.steps))
        if marks & FORGOTTEN:
            into = self.forgotten
        else:
            into = self.topics
            self.array = (start, pos, n)
            self.topic_arrays += 1
        for element in range(n):
            pos = self.topic(into, inner, pos, pos, last and element == n - 1)
        return pos

    def topic(self, into: list[Topic], inner: Block, start: int, pos: int, last: bool) -> int:
        self.name = self.topic_id = self.kind = None
        self.partitions = []
        self.pending = into, start
        pos = self.block(inner, pos, last)
        self.finish_topic(pos)
        return pos

    def finish_topic(self, end: int) -> None:
        if self.pending is None:
            return
        into, start = self.pending
        self.pending = None
        if self.kind is not None:
            if self.kind == _GROUP:
                self.groups.append(self.name or "")
            elif self.kind == _TOPIC:
                into.append(Topic(self.name, None, start, end))
            self.add_named(f"{_CONFIGURED.get(self.kind, 'cluster')}:{self.name or ''}", start, end)
            return
        if self.name is not None and self.topic_id is not None:
            # A broker takes one and forgets the other, and which one is nothing to rely on.
            raise MalformedError("topic-name-and-id")
        into.append(Topic(self.name, self.topic_id, start, end, tuple(self.partitions)))

    def names_of(self, inner: Block, start: int, code: int, null: bool) -> int:
        n, pos = self.count(start, null, inner.least)
        into = self.groups if code == GROUP else self.keys if code == KEY else self.transactional_ids
        # Where there are several keys, their type stands before them.
        kind = "group" if code == GROUP else "transactionalId" if code == TRANSACTIONAL else _KEYS.get(self.key_type)
        if kind is not None:
            self.array = (start, pos, max(n, 0))
        for _ in range(n):
            begin = pos
            text, pos = self.text(pos, False)
            self.resource(into, text)
            if kind is not None:
                self.add_named(f"{kind}:{text}", begin, pos)
        return pos

    def groups_of(self, inner: Block, start: int, null: bool, last: bool) -> int:
        n, pos = self.count(start, null, inner.least)
        self.walk(max(n, 0) * len(inner.steps))
        self.group_array, self.group_starts = (start, pos, max(n, 0)), []
        for element in range(n):
            self.group_starts.append(pos)
            pos = self.block(inner, pos, last and element == n - 1)
        self.group_starts.append(pos)
        return pos

    def whole_groups(self) -> None:
        """Groups that are asked about with all of their topics are told apart themselves."""
        if not self.groups:
            return
        self.array = self.group_array
        ends = [*self.group_starts[1:], self.group_starts[-1]]  # the last one, if it has not been read to its end
        for group, start, end in zip(self.groups, self.group_starts, ends, strict=False):
            self.add_named(f"group:{group}", start, end)

    def add_named(self, resource: str, start: int, end: int) -> None:
        if isinstance(self.named, tuple):
            self.named = []
        self.named.append(Named(resource, start, end))

    def tags(self, inner: Block | None, pos: int) -> int:
        """Tagged fields (KIP-482): in ascending order, each of the length that it says."""
        n, pos = self.varint(pos)
        self.walk(n)
        previous = -1
        for _ in range(n):
            tag, pos = self.varint(pos)
            if tag <= previous:
                raise MalformedError("tags-out-of-order")
            previous = tag
            size, pos = self.varint(pos)
            after = pos + size
            if after > self.end:
                self.short(after)
            known = inner and inner.tagged.get(tag)
            if known and self.block(known, pos, False) != after:
                raise MalformedError("bad-tagged-field")
            pos = after
        return pos

    def settle(self, pos: int) -> None:
        if not self.determined:
            self.determined = pos
            if not self.whole:
                self.finish_topic(pos)
                raise _DeterminedError

    def run(self, body: Block) -> Request:
        header, pos = self.header, self.header.end
        try:
            if self.flexible:
                pos = self.tags(None, pos)
            if not body.wanted:
                self.settle(pos)
            pos = self.block(body, pos, True)
            if pos != self.stop:
                raise MalformedError("trailing-bytes")
        except _DeterminedError:
            pass
        if self.keys:
            if self.key_type not in (_KEY_GROUP, _KEY_TRANSACTION, _KEY_SHARE):
                raise MalformedError("unknown-key-type")
            into = self.transactional_ids if self.key_type == _KEY_TRANSACTION else self.groups
            into.extend(self.keys)
        if self.group_array is not None and not self.topic_arrays:
            self.whole_groups()
        named = self.named
        one_array = self.topic_arrays <= 1 and self.array is not None and self.array[2] == len(named or self.topics)
        request = Request(
            api_key=header.api_key,
            api=REQUESTS[header.api_key].name,
            version=header.version,
            correlation_id=header.correlation_id,
            client_id=header.client_id,
            size=header.size,
            topics=tuple(self.topics),
            groups=tuple(self.groups),
            transactional_ids=tuple(self.transactional_ids),
            all_topics=self.all_topics,
            array=self.array if one_array else None,
            forgotten=tuple(self.forgotten),
            acks=self.acks,
            session=None if self.session_id is None else (self.session_id, self.session_epoch),
            determined=self.determined,
        )
        # Most requests have none of these, and a field less is set faster.
        if self.is_of_brokers():
            request = msgspec.structs.replace(request, of_brokers=True)
        return msgspec.structs.replace(request, named=tuple(named)) if named else request

    def is_of_brokers(self) -> bool:
        if self.replica >= 0 or self.key_type == _KEY_SHARE:
            return True
        first = OF_BROKERS_FROM.get(self.header.api_key)
        return first is not None and self.header.version >= first


def _walk(data: bytes, header: Header, whole: bool) -> Request:
    body = shape(header.api_key, header.version)
    if body is None:
        raise UnsupportedError(header)
    return _Walk(data, min(len(data), header.size), header, whole).run(body)


def free_ranges(data: bytes, request: Request) -> list[tuple[int, int]]:
    """The bytes in front of ``request.determined`` that change neither a field of ``request``, but for a session's epoch that
    counts up, nor how the others are laid out: (place, length) each. ``data`` begins with the frame that it was read from."""
    header = read_header(data)
    assert header is not None, "what was read has a header"
    body = shape(header.api_key, header.version)
    assert body is not None, "what was read has a layout"
    walk = _Walk(data, min(len(data), header.size), header, False)
    walk.free = []
    walk.run(body)
    return [(at, n) for at, n in walk.free if at + n <= request.determined]


def skim(frame: bytes) -> Request:
    """Reads a whole frame, from its size field to its last byte.

    Raises MalformedError for anything that is not exactly as laid out, UnsupportedError for an unknown API or version.
    """
    header = read_header(frame)
    if header is None or header.size != len(frame):
        raise MalformedError("not-one-frame")
    return _walk(frame, header, True)


def look(data: bytes) -> Request | int:
    """Reads as much of the first frame of ``data`` as is there.

    A Request as soon as all of its fields are determined; what stands behind has not been read, so ends of ranges that lie
    behind are those of what has. Otherwise a number: ask again when ``data`` has so many bytes. That is about twice of what
    is there, or all of the frame, so asking is linear in time however the bytes arrive.
    Raises MalformedError and UnsupportedError as soon as they are certain.
    """
    header = read_header(data)
    if header is not None:
        try:
            return _walk(data, header, False)
        except _IncompleteError:
            return min(header.size, 2 * len(data))
    wanted = max(2 * len(data), SIZE)
    return wanted if len(data) < SIZE else min(SIZE + int.from_bytes(data[:SIZE], "big"), wanted)


def skim_prefix(data: bytes) -> Request | None:
    """What ``look`` says, or None for "not yet", when somebody else sees to it that this is not asked too often."""
    found = look(data)
    return None if isinstance(found, int) else found
