"""The bytes of the Kafka protocol, read by layout (KIP-482 for the flexible versions).

A ``Message`` says how an API's request and reply are laid out. ``plan`` compiles one of them for one version and for what a
caller wants to know of it; ``Reader.read`` then walks over the bytes. What is not wanted is skipped and costs no memory.
Values are kept **as encoded**, with their length prefix: what a reply repeats of its request has the same encoding in both,
because an API's request and reply turn flexible in the same version. A null is read wherever it stands, whatever the definition
says: brokers that are not Apache's send it for what is empty, and nobody reads anything else in it. (Of a request that is
answered here, request.py has seen that it is as laid out.)
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from parsers.kafka import bulk
from parsers.kafka.frame import MalformedError

INT16_MAX = 0x7FFF
INT32_MAX = 0x7FFF_FFFF
SIZE_BYTES = 4  # the size field, which does not count itself
ELEMENTS_MAX = 8_000  # array elements that are kept of one frame: some 3 us each
PASSED_MAX = 100_000  # elements of one array that are passed over, at 0.1 us each
UNUSUAL_MAX = 8_000  # those among them that have to be walked one by one: brokers have none
API_VERSIONS = 18
_VARINT_MAX = 5  # bytes


class TruncatedError(MalformedError):
    """The bytes end before what they announce: malformed if that was all of them."""

    def __init__(self) -> None:
        super().__init__("truncated")


class Field(NamedTuple):
    """One field of a message: ``kind`` is the protocol's type, ``[]`` for an array of structures, ``{}`` for a structure."""

    name: str
    kind: str
    since: int
    until: int
    null: tuple[int, int] = (99, -1)  # the versions in which it may be null
    default: str | None = None  # as the definition spells it
    fields: tuple["Field", ...] = ()

    def exists(self, version: int) -> bool:
        return self.since <= version <= self.until

    def nullable(self, version: int) -> bool:
        return self.null[0] <= version <= self.null[1]


class Message(NamedTuple):
    """An API: its name, its first, last and first flexible version, and what its request and its reply consist of.

    ``request`` is empty where nothing of it is repeated in the reply that refuses it.
    """

    api: str
    lowest: int
    highest: int
    flexible: int
    request: tuple[Field, ...]
    reply: tuple[Field, ...]


# What a caller wants: of a field its bytes (None), of an array of structures the same for each of its elements (a mapping),
# or of an array one field of each element (its name, which is empty for an array of plain values).
Wanted = Mapping[str, "Wanted | str | None"]

FIXED = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "int64": 8,
    "float64": 8,
    "uuid": 16,
}
# _PLAIN: an array of values of a fixed size that nobody wants. _ERROR: an error code that is looked for.
_FIXED, _STRING, _BYTES, _COMPACT, _ARRAY, _STRUCT, _TAGS, _PLAIN, _ERROR = range(9)
_MATCHED = frozenset({_FIXED, _STRING, _BYTES, _COMPACT, _TAGS, _PLAIN})
_ERRORS = ("ErrorCode", "PartitionErrorCode")


class Step(NamedTuple):
    """What to do next: ``size`` bytes of a fixed field, an array of ``inner``, and so on. ``keep``: under which name."""

    kind: int
    size: int = 0
    keep: str | None = None
    inner: "Plan" = ()
    leaf: str | None = None
    null: bool = False
    compact: bool = False
    many: re.Pattern[bytes] | None = None  # passes over ``bulk.AT_ONCE`` elements of the usual kind


Plan = tuple[Step, ...]


class Element(NamedTuple):
    """A structure at ``[start, end)``: the wanted fields as encoded, the wanted arrays."""

    start: int
    end: int
    fields: dict[str, bytes]
    arrays: dict[str, "Elements"]


class Elements(NamedTuple):
    """An array: where its count field stands, its structures, or the one wanted field of each of them."""

    start: int
    end: int
    items: list[Element]
    leaves: list[bytes]


def plan_errors(fields: tuple[Field, ...], version: int, flexible: bool) -> Plan:
    """Compile a structure for ``Reader.first_error``."""
    return plan(fields, version, flexible, None)


def plan(fields: tuple[Field, ...], version: int, flexible: bool, wanted: Wanted | None, until: str | None = None) -> Plan:
    """Compile a structure for one version. With ``until`` it ends before the field of that name (and has no tagged fields).

    With None for what is wanted, error codes are.
    """
    steps: list[Step] = []
    for field in fields:
        if field.name == until:
            return _fused(steps)
        if field.exists(version):
            steps.append(_step(field, version, flexible, wanted))
    if flexible:
        steps.append(Step(_TAGS))
    return _fused(steps)


def _step(field: Field, version: int, flexible: bool, wanted: Wanted | None) -> Step:
    keep = field.name if wanted is not None and field.name in wanted else None
    null = field.nullable(version)
    kind = field.kind
    if wanted is None and field.name in _ERRORS:
        return Step(_ERROR, FIXED[kind])
    if kind == "{}":
        return Step(_STRUCT, inner=plan(field.fields, version, flexible, None if wanted is None else {}), null=null)
    if not kind.startswith("[]"):
        return _plain(kind, flexible, keep, null)
    want = None if wanted is None else wanted.get(field.name)
    leaf = want if isinstance(want, str) else None
    if kind == "[]":
        of_each = None if wanted is None else {leaf: None} if leaf is not None else want or {}
        inner = plan(field.fields, version, flexible, of_each)  # type: ignore[arg-type]
    else:
        inner = (_plain(kind[2:], flexible, leaf, False),)
    if keep is None and all(step.kind == _FIXED for step in inner):
        return Step(_PLAIN, sum(step.size for step in inner), null=null, compact=flexible)
    many = None
    if keep is None and all(step.kind in _MATCHED for step in inner):
        many = bulk.compiled([_part(step, flexible) for step in inner])
    return Step(_ARRAY, keep=keep, inner=inner, leaf=leaf, null=null, compact=flexible, many=many)


def _part(step: Step, flexible: bool) -> bulk.Part:
    if step.kind == _FIXED:
        return bulk.Part(step.size)
    if step.kind == _TAGS:
        return bulk.NO_TAGS
    if step.kind == _PLAIN:
        return bulk.array(step.size, 0 if flexible else 4, step.null)
    return bulk.string(0 if flexible else 2 if step.kind == _STRING else 4, step.null)


def _plain(kind: str, flexible: bool, keep: str | None, null: bool) -> Step:
    if kind in FIXED:
        return Step(_FIXED, FIXED[kind], keep)
    if flexible:
        return Step(_COMPACT, keep=keep, null=null or kind == "records")
    return Step(_STRING if kind == "string" else _BYTES, keep=keep, null=null or kind == "records")


def _fused(steps: list[Step]) -> Plan:
    """Make one step of neighbouring fixed fields that nobody wants."""
    fused: list[Step] = []
    for step in steps:
        if fused and step.kind == _FIXED == fused[-1].kind and step.keep is None is fused[-1].keep:
            fused[-1] = Step(_FIXED, fused[-1].size + step.size)
        else:
            fused.append(step)
    return tuple(fused)


class Reader:
    """Walks over ``data``; ``at`` is where it stands. Time is linear in the bytes passed over."""

    __slots__ = ("_left", "at", "data")

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at
        self._left = ELEMENTS_MAX

    def read(self, plan: Plan) -> Element:
        """One structure. Raises ``TruncatedError`` behind the end of the data, ``MalformedError`` at what cannot be."""
        start = self.at
        fields: dict[str, bytes] = {}
        arrays: dict[str, Elements] = {}
        self._walk(plan, fields, arrays)
        return Element(start, self.at, fields, arrays)

    def first_error(self, plan: Plan) -> int:
        """The first error code of one structure that is not 0, its own before those inside; else 0. Raises as ``read`` does."""
        found: list[int] = []
        self._pass(plan, found)
        return found[0] if found else 0

    def _pass(self, plan: Plan, found: list[int]) -> None:
        try:
            self.at = _passed(self.data, self.at, plan, found)
        except IndexError:
            raise TruncatedError from None

    def end(self) -> None:
        """Nothing may follow."""
        if self.at != len(self.data):
            raise MalformedError("trailing-bytes")

    def integer(self, size: int) -> int:
        """A signed, big-endian integer of ``size`` bytes."""
        at = self.at
        self._forward(size)
        return int.from_bytes(self.data[at : self.at], "big", signed=True)

    def varint(self) -> int:
        """An unsigned varint of at most 31 bits."""
        value = 0
        data, at = self.data, self.at
        for shift in range(0, 7 * _VARINT_MAX, 7):
            if at >= len(data):
                raise TruncatedError
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > INT32_MAX:
                    break
                self.at = at
                return value
        raise MalformedError("bad-varint")

    def count(self, compact: bool) -> int:
        """The number of elements of an array, -1 for null."""
        found = self.varint() - 1 if compact else self.integer(4)
        if found < -1:
            raise MalformedError("negative-length")
        return found

    def tags(self) -> None:
        """Skip a block of tagged fields."""
        for _ in range(self.varint()):
            self.varint()
            self._forward(self.varint())

    def _forward(self, size: int) -> None:
        at = self.at + size
        if at > len(self.data):
            raise TruncatedError
        self.at = at

    def _walk(self, plan: Plan, fields: dict[str, bytes], arrays: dict[str, Elements]) -> None:
        for step in plan:
            start = self.at
            kind = step.kind
            if kind == _FIXED:
                self._forward(step.size)
            elif kind == _COMPACT:
                self._sized(self.varint() - 1)
            elif kind == _STRING:
                self._sized(self.integer(2))
            elif kind == _BYTES:
                self._sized(self.integer(4))
            elif kind == _TAGS:
                self.tags()
            elif kind == _ARRAY and step.keep is not None:
                self._array(step, arrays)
                continue
            else:
                self._pass((step,), [])
            if step.keep is not None:
                fields[step.keep] = self.data[start : self.at]

    def _sized(self, length: int) -> None:
        if length > 0:
            self._forward(length)
        elif length < -1:
            raise MalformedError("negative-length")

    def _array(self, step: Step, arrays: dict[str, Elements]) -> None:
        start = self.at
        count = self.count(step.compact)
        end = self.at
        inner = step.inner
        assert step.keep is not None
        self._left -= max(count, 0)
        if self._left < 0:
            if count > len(self.data) - self.at:  # each element has a byte at least
                raise TruncatedError
            raise MalformedError("too-many-elements", "ELEMENTS_MAX")
        if step.leaf is None:
            arrays[step.keep] = Elements(start, end, [self.read(inner) for _ in range(count)], [])
            return
        leaves: list[bytes] = []
        kept: dict[str, bytes] = {}
        for _ in range(count):
            self._walk(inner, kept, {})
            leaves.append(kept[step.leaf])
        arrays[step.keep] = Elements(start, end, [], leaves)


def _passed(data: bytes, at: int, plan: Plan, found: list[int]) -> int:
    """Where the structure at ``at`` ends. Puts into ``found`` its first error code, unless there is one already.

    Most of a large reply is only passed over, so this is written for speed: what lies behind the end of the data is noticed at
    the end of the structure, or raises IndexError. Every element of an array has a byte at least, so the time is linear.
    """
    before = bool(found)
    own = False
    for kind, size, _, inner, _, null, compact, many in plan:
        if kind == _FIXED:
            at += size
        elif kind == _TAGS:
            if data[at]:
                reader = Reader(data, at)
                reader.tags()
                at = reader.at
            else:
                at += 1
        elif kind == _ERROR:
            code = int.from_bytes(data[at : at + size], "big", signed=True)
            at += size
            if code and not before and not own:
                found[:] = [code]
                own = True
        elif kind == _STRUCT:
            if null:
                flag = data[at]
                at += 1
                if flag == 0xFF:
                    continue
                if flag != 1:
                    raise MalformedError("bad-presence")
            at = _passed(data, at, inner, found)
        else:
            if compact or kind == _COMPACT:
                length = data[at] - 1
                at += 1
                if length >= 0x7F:
                    reader = Reader(data, at - 1)
                    length = reader.varint() - 1
                    at = reader.at
            else:
                width = 2 if kind == _STRING else 4
                length = int.from_bytes(data[at : at + width], "big", signed=True)
                at += width
            if length < 0:
                if length < -1:
                    raise MalformedError("negative-length")
            elif kind == _ARRAY:
                at = _passed_elements(data, at, inner, length, many, found)
            else:
                at += length * size if kind == _PLAIN else length
    if at > len(data):
        raise TruncatedError
    return at


def passed(data: bytes, at: int, plan: Plan) -> int:
    """Where the structure at ``at`` ends, of which nothing is wanted."""
    try:
        return _passed(data, at, plan, [])
    except IndexError:
        raise TruncatedError from None


def usual_elements(plan: Plan, flexible: bool, number: int) -> re.Pattern[bytes]:
    """Matches so many structures of the usual kind, of which nothing is wanted (see bulk.py)."""
    return bulk.compiled([_part(step, flexible) for step in plan], number)


def _passed_elements(data: bytes, at: int, inner: Plan, number: int, many: re.Pattern[bytes] | None, found: list[int]) -> int:
    if number > PASSED_MAX:
        if number > len(data) - at:  # each element has a byte at least
            raise TruncatedError
        raise MalformedError("too-many-elements", "PASSED_MAX")
    unusual = 0
    while number:
        some = min(number, bulk.AT_ONCE)
        usual = many.match(data, at) if many is not None and some == bulk.AT_ONCE else None
        if usual is not None:
            at = usual.end()
        else:
            unusual += some
            if unusual > UNUSUAL_MAX:
                raise MalformedError("too-many-elements", "UNUSUAL_MAX")
            for _ in range(some):
                at = _passed(data, at, inner, found)
        number -= some
    return at


def message(api_key: int) -> Message | None:
    """The layouts of an API, or None for one that is not known."""
    from parsers.kafka.messages import MESSAGES  # large, and of no use to an agent without Kafka rules

    return MESSAGES.get(api_key)


def is_flexible(api_key: int, version: int) -> bool:
    found = message(api_key)
    return found is not None and version >= found.flexible


def request_body(reader: Reader, flexible: bool) -> None:
    """Go from the size field of a request behind its header (version 1, or 2 with tagged fields)."""
    reader.read((Step(_FIXED, SIZE_BYTES + 2 + 2 + 4), Step(_STRING, null=True), *((Step(_TAGS),) if flexible else ())))


def reply_body(reader: Reader, api_key: int, flexible: bool) -> None:
    """Go from the size field of a reply behind its header (version 0, or 1 with tagged fields)."""
    tags = (Step(_TAGS),) if flexible and api_key != API_VERSIONS else ()  # KIP-511: a client must understand it blindly
    reader.read((Step(_FIXED, SIZE_BYTES + 4), *tags))


def varint(value: int) -> bytes:
    """Encode an unsigned varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def array_count(number: int, compact: bool) -> bytes:
    """Encode the count field of an array."""
    return varint(number + 1) if compact else number.to_bytes(4, "big")


def string(text: str | None, compact: bool) -> bytes:
    """Encode a string of at most 32,767 bytes, or null."""
    if text is None:
        return b"\0" if compact else b"\xff\xff"
    encoded = text.encode()
    return (varint(len(encoded) + 1) if compact else len(encoded).to_bytes(2, "big")) + encoded


def text(encoded: bytes, compact: bool) -> str | None:
    """Decode a string that was kept as encoded; raises ``MalformedError`` when it is not UTF-8."""
    reader = Reader(encoded, 0)
    length = reader.varint() - 1 if compact else reader.integer(2)
    if length < 0:
        return None
    try:
        return encoded[reader.at :].decode()
    except UnicodeDecodeError:
        raise MalformedError("bad-utf8") from None


def framed(correlation_id: int, body: bytes, *, tags: bool) -> bytes:
    """A whole reply frame: size, correlation id, an empty block of tagged fields in header version 1, body."""
    payload = correlation_id.to_bytes(4, "big", signed=True) + (b"\0" if tags else b"") + body
    return len(payload).to_bytes(SIZE_BYTES, "big") + payload


def sized(frame: bytes) -> bytes:
    """The frame with its size field set to what it is."""
    return (len(frame) - SIZE_BYTES).to_bytes(SIZE_BYTES, "big") + frame[SIZE_BYTES:]
