"""Replies that say no in the broker's place, for every API and version.

A denial looks as if the broker itself had refused the request for want of an ACL, so that clients raise the very exceptions
that they raise there. What each API repeats of its request is in ``echoes``; here the reply is made of it: its layout is
compiled once per API, version and code into a ``Template``, in which everything that does not depend on the request is one
constant. A denial's size and time are linear in the request's size.
"""

import struct
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from parsers.kafka.echoes import ECHOES, VALUES, Each, When
from parsers.kafka.frame import MalformedError
from parsers.kafka.request import Request
from parsers.kafka.wire import (
    API_VERSIONS,
    FIXED,
    Element,
    Field,
    Reader,
    Wanted,
    array_count,
    framed,
    message,
    plan,
    request_body,
    string,
    varint,
)

UNSUPPORTED_VERSION = 35
TOPIC_DENIED = 29
GROUP_DENIED = 30
CLUSTER_DENIED = 31
TRANSACTIONAL_ID_DENIED = 53
NOT_ATTEMPTED = 55
SASL_FAILED = 58
SESSION_NOT_FOUND = 70
UNKNOWN_TOPIC_ID = 100

# As brokers say it: some clients show the sentence, and people search for it.
_TEXTS = {
    TOPIC_DENIED: "Topic authorization failed.",
    GROUP_DENIED: "Group authorization failed.",
    CLUSTER_DENIED: "Cluster authorization failed.",
    TRANSACTIONAL_ID_DENIED: "Transactional Id authorization failed.",
    NOT_ATTEMPTED: "The server did not attempt to execute this operation.",
    UNKNOWN_TOPIC_ID: "This server does not host this topic ID.",
}
_OTHER_TEXT = "Access denied"
# In the order in which a broker asks for them.
_KINDS = {"transactionalId": TRANSACTIONAL_ID_DENIED, "group": GROUP_DENIED, "topic": TOPIC_DENIED}
_ABOUT_TOPICS = frozenset({TOPIC_DENIED, UNKNOWN_TOPIC_ID})
_RESOURCE_CODES = {
    2: TOPIC_DENIED,
    32: GROUP_DENIED,
}  # of a configuration: a topic's, a group's; anything else is the cluster's
PRODUCE, FETCH, ADD_PARTITIONS = 0, 1, 24
_SASL = (17, 36)
# WriteTxnMarkers, AlterReplicaLogDirs, DescribeLogDirs, ElectLeaders, AlterPartitionReassignments, ListPartitionReassignments,
# DescribeQuorum: they name topics, but to a broker it is the cluster that they are about.
_CLUSTER_APIS = frozenset({27, 34, 35, 43, 45, 46, 55})


def denial(request: Request, frame: bytes, code: int, codes: Mapping[int, int] | None = None) -> bytes | None:
    """The whole reply frame that refuses ``request``, or None where the client waits for none (Produce with ``acks`` 0).

    ``code`` is what is denied: a topic (29), a group (30), a transactional id (53) or anything else (31). The elements whose
    positions in ``request.elements`` are in ``codes`` have those codes instead. Raises ``MalformedError`` for an API or a
    version without a layout, for a frame that is not as laid out, and for more than ``wire.ELEMENTS_MAX`` partitions.
    """
    api_key, version = request.api_key, request.version
    if api_key == PRODUCE and request.acks == 0:
        return None
    code = told_code(request, code)
    shape = _shape(api_key, version)
    body = _Writer(shape, code, codes or {}, bool(request.named)).whole(shape.read(frame))
    return framed(request.correlation_id, body, tags=shape.tags)


def told_code(request: Request, code: int) -> int:
    """The code that a denial of ``request`` has where ``code`` is what is denied."""
    if request.api_key in _SASL:
        return SASL_FAILED
    if request.api_key in _CLUSTER_APIS or (request.of_brokers and request.api_key != FETCH):
        return CLUSTER_DENIED
    if request.of_brokers and code == CLUSTER_DENIED:
        return TOPIC_DENIED  # so a broker answers who fetches as a follower and is none
    return code


def code_of(resource: str) -> int:
    """The code of a topic, a group, a transactional id or something of the cluster that is denied."""
    return _KINDS.get(resource.partition(":")[0], CLUSTER_DENIED)


def denied_code(resources: Collection[str], grants: Callable[[str], bool]) -> int:
    """The code that the broker would answer, which asks for the transactional id first, then for the group, then for topics."""
    for kind, code in _KINDS.items():
        if any(not grants(resource) for resource in resources if resource.startswith(f"{kind}:")):
            return code
    return CLUSTER_DENIED


def not_attempted(request: Request, denied: Collection[int]) -> dict[int, int]:
    """The codes of AddPartitionsToTxn, which is all or nothing: what is not denied has not been attempted (55)."""
    return {position: NOT_ATTEMPTED for position in range(len(request.topics)) if position not in denied}


def fetch_session_error(request: Request, code: int) -> bytes:
    """A Fetch reply (version 7 and later) that ends the client's session: it fetches anew and names all its topics.

    ``code`` is FETCH_SESSION_ID_NOT_FOUND (70) or INVALID_FETCH_SESSION_EPOCH (71); KIP-227.
    """
    shape = _shape(FETCH, request.version)
    parts = shape.compile(shape.message.reply, {}, (), When.ALWAYS, code, False)
    return framed(request.correlation_id, b"".join(part for part in parts if isinstance(part, bytes)), tags=shape.tags)


def unsupported_version(correlation_id: int, lowest: int, highest: int) -> bytes:
    """The reply to ApiVersions of a version that is not known: version 0, whatever was asked, with what is known (KIP-511)."""
    body = struct.pack(">hihhh", UNSUPPORTED_VERSION, 1, API_VERSIONS, lowest, highest)
    return framed(correlation_id, body, tags=False)


def entries(request: Request, frame: bytes, codes: Mapping[int, int]) -> list[bytes]:
    """The elements of the reply's array for the request's elements at these positions, with these codes, in its order."""
    shape = _shape(request.api_key, request.version)
    writer = _Writer(shape, next(iter(codes.values()), TOPIC_DENIED), codes, bool(request.named), chosen=[])
    writer.whole(shape.read(frame))
    return writer.chosen or []


# Templates


class _Value(NamedTuple):
    """A field that repeats the request's field ``source``, or has ``default`` where the request has none (or ``null``)."""

    source: str
    default: bytes
    null: bytes | None


class _Many(NamedTuple):
    """A reply array of structures of ``fields``, which repeats the request arrays at ``paths``."""

    each: Each
    paths: tuple[tuple[str, ...], ...]
    fields: tuple[Field, ...]


_Part = bytes | _Value | _Many
_Template = tuple[_Part, ...]


class _Shape:
    """How one version of one API is refused."""

    def __init__(self, api_key: int, version: int) -> None:
        found = message(api_key)
        if found is None or not found.lowest <= version <= found.highest or found.api not in ECHOES:
            raise MalformedError("unsupported-version")
        self.message = found
        self.version = version
        self.compact = version >= found.flexible
        self.tags = self.compact and api_key != API_VERSIONS
        echo = ECHOES[found.api]
        asked = {field.name for field in found.request if field.exists(version)}
        self._error = echo.error
        self._arrays = tuple(each for each in echo.arrays if any(path.partition(".")[0] in asked for path in each.sources))
        self._values = VALUES.get(found.api, {})
        self._plan = plan(found.request, version, self.compact, _wanted(self._arrays))
        self._templates: dict[tuple[int, int, bool], _Template] = {}

    def read(self, frame: bytes) -> Element:
        """What the reply repeats of the request, whose frame is sound (request.skim)."""
        if not self._arrays:
            return Element(0, 0, {}, {})
        reader = Reader(frame, 0)
        request_body(reader, self.compact)
        body = reader.read(self._plan)
        reader.end()
        return body

    def body(self, code: int, about_topics: bool) -> _Template:
        """The whole reply with ``code``."""
        return self._cached(self.message.reply, {}, self._arrays, self._error, code, about_topics)

    def element(self, many: _Many, code: int, about_topics: bool) -> _Template:
        """One element of an array with ``code``."""
        each = many.each
        inner = () if each.inner is None else (each.inner,)
        return self._cached(many.fields, each.echo, inner, each.error, code, about_topics)

    def _cached(
        self,
        fields: tuple[Field, ...],
        echo: Mapping[str, str],
        arrays: tuple[Each, ...],
        error: When,
        code: int,
        about_topics: bool,
    ) -> _Template:
        key = (id(fields), code, about_topics)  # a structure's fields are one object for ever
        found = self._templates.get(key)
        if found is None:
            found = self._templates[key] = self.compile(fields, echo, arrays, error, code, about_topics)
        return found

    def compile(
        self,
        fields: tuple[Field, ...],
        echo: Mapping[str, str],
        arrays: tuple[Each, ...],
        error: When,
        code: int,
        about_topics: bool,
    ) -> _Template:
        """A structure whose error field has ``code`` if ``error`` says so."""
        code = code if _applies(error, about_topics) else 0
        parts: list[_Part] = []
        for field in fields:
            if not field.exists(self.version):
                continue
            name = field.name
            default = _default(field, self._values.get(name, field.default), self.version, self.compact)
            each = next((each for each in arrays if each.reply == name and self._present(each, about_topics)), None)
            if each is not None:
                parts.append(_Many(each, tuple(tuple(path.split(".")) for path in each.sources), field.fields))
            elif name in echo:
                null = None if field.nullable(self.version) or field.kind != "string" else string(None, self.compact)
                parts.append(_Value(echo[name], default, null))
            elif name in ("ErrorCode", "PartitionErrorCode"):
                parts.append(code.to_bytes(2, "big"))
            elif name == "ErrorMessage" and code:
                parts.append(string(_TEXTS.get(code, _OTHER_TEXT), self.compact))
            else:
                parts.append(default)
        if self.compact:
            parts.append(b"\0")  # no tagged fields
        return _fused(parts)

    def _present(self, each: Each, about_topics: bool) -> bool:
        return self.version <= each.always_until or _applies(each.present, about_topics)


_shape = lru_cache(maxsize=512)(_Shape)


class _Writer:
    """Writes one denial. With ``chosen`` only the elements that have a code of their own, each for itself, are of interest.

    ``named``: where elements that are told apart have others inside, it is the outer ones that ``codes`` is about.
    """

    def __init__(
        self, shape: _Shape, code: int, codes: Mapping[int, int], named: bool, chosen: list[bytes] | None = None
    ) -> None:
        self.chosen = chosen
        self._shape = shape
        self._code = code
        self._about_topics = code in _ABOUT_TOPICS
        self._codes = codes
        self._named = named
        self._position = 0  # of the next element that is told apart

    def whole(self, asked: Element) -> bytes:
        out: list[bytes] = []
        self._structure(out, self._shape.body(self._code, self._about_topics), asked)
        return b"".join(out)

    def _structure(self, out: list[bytes], template: _Template, asked: Element) -> None:
        for part in template:
            if isinstance(part, bytes):
                out.append(part)
            elif isinstance(part, _Value):
                value = asked.fields.get(part.source, part.default)
                out.append(part.default if value == part.null else value)
            else:
                self._array(out, part, asked)

    def _array(self, out: list[bytes], many: _Many, asked: Element) -> None:
        items, leaves = _gathered(asked, many.paths)
        each = many.each
        if each.distinct:
            leaves = list(dict.fromkeys(leaves))
        out.append(array_count(len(items) + len(leaves), self._shape.compact))
        for item in items:
            self._element(out, many, item, None)
        if each.apart and self._codes:
            for leaf in leaves:
                self._element(out, many, None, leaf)
        elif leaves:  # there may be very many of them
            template = self._shape.element(many, self._code, self._about_topics)
            for leaf in leaves:
                out += [part if isinstance(part, bytes) else leaf for part in template]

    def _is_apart(self, each: Each) -> bool:
        return each.apart and (self._named or each.inner is None or not each.inner.apart)

    def _element(self, out: list[bytes], many: _Many, item: Element | None, leaf: bytes | None) -> None:
        code = self._code
        if many.each.by_resource and item is not None:
            code = _RESOURCE_CODES.get(item.fields["ResourceType"][0], CLUSTER_DENIED)
        apart = self._is_apart(many.each)
        if apart:
            chosen = self._position in self._codes
            code = self._codes.get(self._position, code)
            self._position += 1
            if self.chosen is not None:
                if not chosen:
                    return
                out = []
        outer, self._code = self._code, code
        template = self._shape.element(many, code, self._about_topics)
        if item is None:
            out += [part if isinstance(part, bytes) else _leaf(part, leaf) for part in template]
        else:
            self._structure(out, template, item)
        self._code = outer
        if apart and self.chosen is not None:
            self.chosen.append(b"".join(out))


def _applies(when: When, about_topics: bool) -> bool:
    return when is When.ALWAYS or when is (When.TOPIC if about_topics else When.CALL)


def _wanted(arrays: tuple[Each, ...]) -> Wanted:
    """What has to be read of a request for these arrays of its reply."""
    wanted: dict[str, Wanted | str | None] = {}
    for each in arrays:
        for source in each.sources:
            *outer, name = source.split(".")
            place = wanted
            for step in outer:
                place = place.setdefault(step, {})  # type: ignore[assignment]
            place[name] = _wanted_element(each)
    return wanted


def _wanted_element(each: Each) -> Wanted | str:
    fields = set(each.echo.values())
    if "" in fields:
        return ""
    if each.inner is None and not each.by_resource and len(fields) == 1:
        return fields.pop()
    return {**dict.fromkeys(fields), **({} if each.inner is None else _wanted((each.inner,)))}


def _gathered(asked: Element, paths: tuple[tuple[str, ...], ...]) -> tuple[list[Element], list[bytes]]:
    """The elements of the request arrays at ``paths``, one array after the other."""
    items: list[Element] = []
    leaves: list[bytes] = []
    for path in paths:
        level = [asked]
        for name in path[:-1]:
            level = [item for outer in level if name in outer.arrays for item in outer.arrays[name].items]
        for outer in level:
            if path[-1] in outer.arrays:
                items += outer.arrays[path[-1]].items
                leaves += outer.arrays[path[-1]].leaves
    return items, leaves


def _leaf(part: "_Value | _Many", leaf: bytes | None) -> bytes:
    """A field of an element that is made of a plain value: that value, or the default of what a plain value does not have."""
    if isinstance(part, _Value) and (leaf is None or part.source):
        return part.default
    return leaf or b""


def _default(field: Field, value: str | None, version: int, compact: bool) -> bytes:
    """The encoding of ``value``, spelt as in a definition, or of the protocol's default of the field's type."""
    kind = field.kind
    if value == "null" and field.nullable(version):
        if kind == "{}":
            return b"\xff"
        return b"\0" if compact else b"\xff\xff\xff\xff"[: 2 if kind == "string" else 4]
    if kind == "bool":
        return b"\1" if value == "true" else b"\0"
    if kind in FIXED:
        size = FIXED[kind]
        return bytes(size) if kind in ("uuid", "float64") else int(value or "0", 0).to_bytes(size, "big", signed=True)
    if kind == "string":
        return string("", compact)
    if kind == "{}":
        raise ValueError(f"{field.name} has no default")
    return varint(1) if compact else bytes(4)  # no bytes, no records, no elements


def _fused(parts: list[_Part]) -> _Template:
    """Make one constant of neighbouring constants."""
    fused: list[_Part] = []
    for part in parts:
        if isinstance(part, bytes) and fused and isinstance(fused[-1], bytes):
            fused[-1] += part
        else:
            fused.append(part)
    return tuple(fused)
