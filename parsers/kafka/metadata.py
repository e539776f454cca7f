"""A Metadata reply, read and cut as it arrives: one may be of a hundred thousand topics, and others want their turn.

    what is before the topics | topic: its head, its partitions, its tail | topic ... | what is behind them

What is read goes by, or is dropped and kept only if it may be seen; so memory does not depend on how much a broker has, and a
turn takes as long for a topic of many partitions as for many topics. Bytes that stay are never encoded anew (see replies.py).
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from parsers.kafka import bulk
from parsers.kafka.frame import SIZE, MalformedError
from parsers.kafka.replies import METADATA, reply_fields
from parsers.kafka.wire import (
    Plan,
    Reader,
    TruncatedError,
    Wanted,
    array_count,
    is_flexible,
    passed,
    plan,
    reply_body,
    text,
    usual_elements,
)

# Bytes of what may be seen of a reply that is cut: its size stands in front, so all of it has to be known. 10,000 topics of 40
# partitions take 17 MB; more would not fit what is kept free for a connection that has to finish (proxy/memory.py).
KEPT_MAX = 20 * 1024 * 1024
# Bytes of one piece that has to be there as a whole: all brokers of a cluster, a partition with its replicas.
PIECE_MAX = 1024 * 1024
# What is read in one turn, in microseconds as they were measured: on a busy machine they are several times longer.
TURN = 1_000
_TOPIC, _UNUSUAL = 12, 3
# So many partitions of the usual kind are passed over at once, if there are so many.
_AT_ONCE = ((bulk.AT_ONCE, 4), (1, 1))
# Bytes of a reply that is told in pieces.
TOLD_AT_ONCE = 128 * 1024
_NO_ID = bytes(16)


class _Plans(NamedTuple):
    before: Plan
    head: Plan
    partition: Plan
    usual: tuple[tuple[re.Pattern[bytes], int, int], ...]  # patterns of several partitions, how many, and what they cost
    tail: Plan
    behind: Plan


class Metadata:
    """``grants`` says which topics ("topic:NAME") are to stay; None: all. ``added`` are entries of ours behind them.

    ``size``: bytes of the whole frame. ``topic_ids``: of what was read last, names by ids (16 bytes); none below version 10.
    ``waits``: nothing more can be read before more bytes have come. ``over``: all of it was read.
    """

    def __init__(
        self, version: int, size: int, grants: Callable[[str], bool] | None = None, added: Sequence[bytes] = ()
    ) -> None:
        self.topic_ids: dict[bytes, str] = {}
        self.over = self.waits = False
        self.left = size  # bytes that were not read yet
        self._grants, self._added = grants, added
        self._cut = grants is not None or bool(added)
        self._plans = _plans(version)
        self._flexible = is_flexible(METADATA, version)
        self._wanted = 0  # bytes that must be there before another attempt is worth it
        self._begun = False
        self._topics = self._partitions = 0  # that are still to come
        self._inside = False  # of a topic
        self._seen = True  # the topic that is being read is to stay
        self._passed_to = 0  # up to where its partitions were read
        self._topic_error = self._own_error = 0
        # Of a reply that is cut:
        self._start = self._count = self._end = b""
        self._number = self._number_kept = 0
        self._kept: deque[bytes] = deque()
        self._kept_last = bytearray()  # what comes behind those, until it is a piece
        self.kept = 0  # bytes of both

    @property
    def error(self) -> int:
        """The first error that is not 0, of the reply or of a topic. That a partition has no leader is nobody's error."""
        return self._own_error or self._topic_error

    def read(self, data: bytes) -> int:
        """Read some of ``data``, which begins where the last reading ended, and return how many bytes: they are done with.

        Raises MalformedError; nothing of ``data`` is done with then.
        """
        self.topic_ids = {}
        self.waits = False
        if len(data) > self.left:
            data = data[: self.left]
        whole = len(data) == self.left
        if len(data) < self._wanted and not whole:
            self.waits = True
            return 0
        self._wanted = 0
        at = self._read(Reader(data, 0), whole)
        if self.waits:
            self._wanted = 2 * (len(data) - at)
            if self._wanted > 2 * PIECE_MAX:
                raise MalformedError("too-large", "PIECE_MAX")
        self.left -= at
        return at

    def _read(self, reader: Reader, whole: bool) -> int:
        """Where it has come to."""
        budget = TURN
        at = 0
        kept = 0 if self._inside and self._seen and self._cut else None  # where what stays begins
        try:
            while not self.over and (budget > 0 or at == self.left):  # behind the last byte nobody would ask again
                if self._partitions:
                    budget -= self._pass_partitions(reader, budget)
                elif self._inside:
                    reader.at = passed(reader.data, reader.at, self._plans.tail)
                    self._inside = False
                elif not self._begun:
                    self._read_start(reader)
                elif self._topics:
                    self._read_head(reader)
                    budget -= _TOPIC
                    if self._cut and not self._seen and kept is not None:
                        self._keep(reader.data[kept:at])
                        kept = None
                    elif self._cut and self._seen and kept is None:
                        kept = at
                else:
                    if kept is not None:
                        self._keep(reader.data[kept:at])
                        kept = None
                    self._read_end(reader)
                at = reader.at
        except TruncatedError:
            if whole:
                raise
            self.waits = True
            if self._partitions and self._inside:
                at = max(at, self._passed_to)
        if kept is not None:
            self._keep(reader.data[kept:at])
        return at

    def _keep(self, data: bytes) -> None:
        self.kept += len(data)
        if self.kept > KEPT_MAX:
            raise MalformedError("too-large", "KEPT_MAX")
        self._kept_last += data
        if len(self._kept_last) >= TOLD_AT_ONCE:
            self._kept.append(bytes(self._kept_last))
            self._kept_last.clear()

    def _read_start(self, reader: Reader) -> None:
        start = reader.at
        reply_body(reader, METADATA, self._flexible)
        reader.read(self._plans.before)
        count = reader.at
        number = max(reader.count(self._flexible), 0)
        self._expect(number, reader)
        self._start, self._count = reader.data[start + SIZE : count], reader.data[count : reader.at]
        self._topics = self._number = number
        self._begun = True

    def _expect(self, number: int, reader: Reader) -> None:
        """Each element has a byte at least."""
        if number > self.left - reader.at:
            raise MalformedError("truncated")

    def _read_head(self, reader: Reader) -> None:
        head = reader.read(self._plans.head)
        partitions = max(reader.count(self._flexible), 0)
        self._expect(partitions, reader)
        fields = head.fields
        name = text(fields["Name"], self._flexible)
        self._topics -= 1
        self._partitions, self._inside, self._passed_to = partitions, True, 0
        self._topic_error = self._topic_error or _number(fields["ErrorCode"])
        topic_id = fields.get("TopicId", _NO_ID)
        if name is not None and topic_id != _NO_ID:
            self.topic_ids[topic_id] = name
        self._seen = self._grants is None or (name is not None and self._grants(f"topic:{name}"))
        self._number_kept += self._seen

    def _pass_partitions(self, reader: Reader, budget: int) -> int:
        """Pass over some partitions of a topic; what that cost."""
        data, at, left = reader.data, reader.at, self._partitions
        cost = 0
        try:
            while left and cost < budget:
                for pattern, number, price in self._plans.usual:
                    usual = pattern.match(data, at) if number <= left else None
                    if usual is not None:
                        at, left, cost = usual.end(), left - number, cost + price
                        break
                else:
                    cost += _UNUSUAL
                    at, left = passed(data, at, self._plans.partition), left - 1
        finally:
            self._partitions = left
            reader.at = self._passed_to = at
        return cost

    def _read_end(self, reader: Reader) -> None:
        start = reader.at
        self._own_error = _number(reader.read(self._plans.behind).fields.get("ErrorCode", b""))
        if reader.at != self.left:
            raise MalformedError("trailing-bytes")
        self._end = reader.data[start : reader.at]
        self.over = True

    def told(self) -> Iterator[bytes]:
        """The reply as it is to be told, in pieces: with those topics only that are granted (what has no name is not).

        What was told is not kept any more.
        """
        added = () if self._own_error else self._added
        whole = self._number_kept == self._number and not added
        count = self._count if whole else array_count(self._number_kept + len(added), self._flexible)
        size = self.kept + sum(map(len, (self._start, count, *added, self._end)))
        yield b"".join((size.to_bytes(SIZE, "big"), self._start, count))
        while self._kept:
            self.kept -= len(self._kept[0])
            yield self._kept.popleft()
        last, self._kept_last, self.kept = b"".join((self._kept_last, *added, self._end)), bytearray(), 0
        yield last


def _number(encoded: bytes) -> int:
    return int.from_bytes(encoded, "big", signed=True)


@lru_cache(32)
def _plans(version: int) -> _Plans:
    flexible, fields = is_flexible(METADATA, version), reply_fields(METADATA, version)
    topics = next(number for number, field in enumerate(fields) if field.name == "Topics")
    of_topic = fields[topics].fields
    partitions = next(number for number, field in enumerate(of_topic) if field.name == "Partitions")
    wanted: Wanted = {"ErrorCode": None, "Name": None, "TopicId": None}
    partition = plan(of_topic[partitions].fields, version, flexible, {})
    return _Plans(
        plan(fields, version, flexible, {}, until="Topics"),
        plan(of_topic, version, flexible, wanted, until="Partitions"),
        partition,
        tuple((usual_elements(partition, flexible, number), number, price) for number, price in _AT_ONCE),
        plan(of_topic[partitions + 1 :], version, flexible, {}),
        plan(fields[topics + 1 :], version, flexible, wanted),
    )
