"""Makes steps of the layouts: text such as ``4 topics=[topic=s [4 b?]]`` becomes nested tuples that request.py walks.

The language is described in layouts.py. A step is a plain tuple, because some twenty of them are walked per request.
"""

import re
import struct
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from parsers.kafka import bulk
from parsers.kafka.layouts import REQUESTS

# What a step does. The walk depends on the order: up to BYTES are the most frequent ones, from NUMBERS on are numbers.
(
    SKIP,  # n bytes
    STRING,  # skip
    BYTES,  # skip
    TAGS,  # the tagged fields at the end of a structure
    ARRAY,  # of what ``inner`` describes
    PLAIN,  # an array of n bytes each, without tagged fields: skipped in one go
    STRUCT,  # a structure, with a byte before it that says whether it is there if it may be null
    TOPICS,  # an array whose elements are topics (n: see the marks)
    TOPIC_STRUCT,  # a structure that is a topic
    PARTITION,
    PARTITIONS,  # an array of partition numbers
    NAME,  # the name of a topic, or of another resource if a KIND precedes it
    TOPIC_ID,
    GROUP,
    TRANSACTIONAL,
    KEY,
    REGEX,
    NAMES,  # an array of nothing but groups, transactional ids or keys (n: which of them)
    GROUPS,  # an array of groups, each with an array of topics
    EVERYTHING,
    KEY_TYPE,
    KIND,
    REPLICA,
    ACKS,
    SESSION_ID,
    SESSION_EPOCH,
) = range(26)
NUMBERS = KEY_TYPE

# Marks of TOPICS.
NULL_IS_ALL, EMPTY_IS_ALL, FORGOTTEN = 1, 2, 4

_MEANINGS = {
    "topic": NAME,
    "name": NAME,
    "topicId": TOPIC_ID,
    "group": GROUP,
    "transactional": TRANSACTIONAL,
    "partition": PARTITION,
    "key": KEY,
    "keyType": KEY_TYPE,
    "kind": KIND,
    "regex": REGEX,
    "replica": REPLICA,
    "acks": ACKS,
    "sessionId": SESSION_ID,
    "sessionEpoch": SESSION_EPOCH,
}
_SKIPS = frozenset({SKIP, STRING, BYTES, TAGS, PLAIN})
_WORD = re.compile(r"(?:(\w+)=)?(\d+|[sb]|[\[(<])(?:(?<=<)(\d+):)?|([\])>;])|(everything)| ")
_END = re.compile(r"[?~!]*")


class Step(NamedTuple):
    """``final``: no later step of the same block finds anything that policy needs, but this one may."""

    code: int
    n: int = 0
    null: bool = False
    inner: "Block | None" = None
    final: bool = False


class Block(NamedTuple):
    """The steps of a structure. ``least``: the fewest bytes that it can take. ``tagged``: blocks by tag.

    ``many`` passes over ``bulk.AT_ONCE`` structures of the usual kind of which nothing is wanted. ``partitions`` takes the
    partition of a structure that has nothing else of interest, and fits ``least`` bytes where it has no tagged fields.
    """

    steps: tuple[Step, ...] = ()
    least: int = 0
    tagged: Mapping[int, "Block"] = {}
    wanted: bool = False
    many: re.Pattern[bytes] | None = None
    partitions: struct.Struct | None = None


class _Text:
    """A layout that is being read."""

    def __init__(self, text: str, flexible: bool) -> None:
        self._text, self._at, self._flexible = text, 0, flexible

    def block(self, closing: str = "") -> tuple[Block, bool]:
        """Everything up to ``closing``, and whether the elements are plain values."""
        steps: list[Step] = []
        tagged: dict[int, Block] = {}
        plain = False
        while self._at < len(self._text):
            word = _WORD.match(self._text, self._at)
            if word is None:
                raise ValueError(f"layout {self._text!r} at {self._at}")
            self._at = word.end()
            name, unit, tag, end, everything = word.groups()
            if tag:
                tagged[int(tag)] = self.block(">")[0]
            elif everything:
                steps.append(Step(EVERYTHING))
            elif end == ";":
                plain = True
            elif end:
                break
            elif unit:
                steps.append(self._step(name, unit))
        if self._flexible and not plain and closing != ">":
            steps.append(Step(TAGS, inner=Block(tagged=tagged) if tagged else None))
        last = max((number for number, step in enumerate(steps) if _wanted(step)), default=-1)
        final = tuple(step._replace(final=number == last) for number, step in enumerate(steps))
        least = sum(map(self._least, steps))
        return Block(final, least, tagged, last >= 0, *self._shortcuts(steps, least)), plain

    def _shortcuts(self, steps: list[Step], least: int) -> tuple[re.Pattern[bytes] | None, struct.Struct | None]:
        codes = [step.code for step in steps]
        if PARTITION in codes and set(codes) <= {PARTITION, SKIP, TAGS}:
            before = sum(step.n for step in steps[: codes.index(PARTITION)])
            return None, struct.Struct(f">{before}xi{least - before - 4}x")
        if not steps or not set(codes) <= _SKIPS:
            return None, None
        return bulk.compiled([self._part(step) for step in steps]), None

    def _part(self, step: Step) -> bulk.Part:
        if step.code == SKIP:
            return bulk.Part(step.n)
        if step.code == TAGS:
            return bulk.NO_TAGS
        if step.code == PLAIN:
            return bulk.array(step.n, 0 if self._flexible else 4, step.null)
        return bulk.string(0 if self._flexible else 2 if step.code == STRING else 4, step.null)

    def _step(self, name: str | None, unit: str) -> Step:
        if unit in "[(":
            inner, _ = self.block("]" if unit == "[" else ")")
            return self._compound(name, unit, inner)
        null = "?" in self._marks()
        if name:
            return Step(_MEANINGS[name], int(unit) if unit.isdigit() else 0, null)
        if unit.isdigit():
            return Step(SKIP, int(unit))
        return Step(STRING if unit == "s" else BYTES, 0, null)

    def _compound(self, name: str | None, unit: str, inner: Block) -> Step:
        marks = self._marks()
        null = "?" in marks
        n = NULL_IS_ALL * ("~" in marks) | EMPTY_IS_ALL * ("!" in marks) | FORGOTTEN * (name == "forgotten")
        if name == "partition":
            return Step(PARTITIONS, 0, null)
        if name:
            return Step(TOPICS if unit == "[" else TOPIC_STRUCT, n, null, inner)
        if unit == "(":
            return Step(STRUCT, 0, null, inner)
        if all(step.code == SKIP for step in inner.steps):
            return Step(PLAIN, inner.least, null)
        if len(inner.steps) == 1 and inner.steps[0].code in (GROUP, TRANSACTIONAL, KEY):
            return Step(NAMES, inner.steps[0].code, null, inner)
        if {GROUP, TOPICS} <= {step.code for step in inner.steps}:
            return Step(GROUPS, 0, null, inner)
        return Step(ARRAY, 0, null, inner)

    def _marks(self) -> str:
        found = _END.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        return found[0]

    def _least(self, step: Step) -> int:
        match step.code:
            case c if c in (SKIP, PARTITION, TOPIC_ID, KEY_TYPE, KIND, REPLICA, ACKS, SESSION_ID, SESSION_EPOCH):
                return step.n
            case c if c in (STRUCT, TOPIC_STRUCT):
                return 1 if step.null or step.inner is None else step.inner.least
            case c if c == EVERYTHING:
                return 0
            case c if c == TAGS or self._flexible:
                return 1
            case c if c in (STRING, NAME, GROUP, TRANSACTIONAL, KEY, REGEX):
                return 2
        return 4


def _wanted(step: Step) -> bool:
    if step.code in (ARRAY, STRUCT):
        return step.inner is not None and step.inner.wanted
    if step.code == TAGS:
        return step.inner is not None and any(block.wanted for block in step.inner.tagged.values())
    return step.code not in _SKIPS


@cache  # one entry per API and version that is known, so some four hundred
def shape(api_key: int, version: int) -> Block | None:
    """How the body of such a request is laid out, or None when that is not known."""
    api = REQUESTS[api_key]
    for first, last, text in api.layouts:
        if first <= version <= last:
            return _Text(text, version >= api.flexible).block()[0]
    return None
