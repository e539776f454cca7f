"""YAML in, positioned nodes out: bounded, and every complaint with its line and column.

The nodes are built from libyaml's events instead of by PyYAML's composer, so that the limits hold before memory is spent and
the composer's recursion is never entered. An alias is the very node that its anchor names, and counts as much as that node
written out once more: whoever walks through a document never meets more values than the limits say.
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec
import yaml

from policies.model import Place

# A thousand policies of ten rules are about 2 MiB.
MAX_SOURCE_CHARACTERS = 8 << 20
# The deepest place of the language (a header rule's field) is 11 levels down.
MAX_DEPTH = 32
# A source of the largest size in its densest sensible form; more is a bomb.
MAX_NODES = 1_000_000
# What the aliases of all sources together may repeat, values and characters: as much as one source may say. Each source may be
# small, and there may be thousands.
MAX_REPEATED = MAX_NODES
MAX_REPEATED_CHARACTERS = MAX_SOURCE_CHARACTERS
# More complaints at once help nobody, and a broken file of the largest size would otherwise yield millions.
MAX_FINDINGS = 200


class Source(msgspec.Struct, frozen=True):
    """One file's text. ``name`` is what findings call it."""

    name: str
    text: str


class Finding(msgspec.Struct, frozen=True, order=True):
    """One complaint. ``line`` and ``column`` count from 1; ``code`` is listed in docs/policies.md."""

    file: str
    line: int
    column: int
    code: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column} {self.code} {self.message}{hint}"


class LoadError(Exception):
    """The sources cannot be loaded; ``findings`` has every reason that was found, in the order of the text."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))


class Scalar(msgspec.Struct, frozen=True):
    """``type`` is YAML's own: "str", "int", "bool", "null", "float", "timestamp" or, of the key ``<<``, "merge"."""

    place: Place
    text: str
    type: str


class Items(msgspec.Struct, frozen=True):
    place: Place
    items: list["Node"]


class Fields(msgspec.Struct, frozen=True):
    place: Place
    entries: list[tuple["Node", "Node"]]


Node = Scalar | Items | Fields


class Found(dict[str, Node]):
    """The fields of a mapping by name. ``meant`` are names that a misspelt field probably stands for: they are not missing.
    ``refused`` are the names of fields that are known and not supported."""

    def __init__(self) -> None:
        super().__init__()
        self.meant: set[str] = set()
        self.refused: set[str] = set()


class _TooMuchError(Exception):
    def __init__(self, place: Place, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.place = place
        self.hint = hint


class Report:
    """Collects findings, and reads nodes as the types that they should have.

    Every reading method returns None (or nothing) after it has complained, so that reading goes on and finds more.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.repeated = Size()  # what aliases have repeated so far

    def error(self, place: Place, code: str, message: str, hint: str = "") -> None:
        if "${" in message:
            hint = "variables have to be filled in first, as by envsubst or flux build"
        finding = Finding(place.file, place.line, place.column, code, message, hint)
        # An alias is read as often as it is used, and is wrong in one place only.
        if len(self.findings) < MAX_FINDINGS and finding not in self.findings:
            self.findings.append(finding)

    def repeat(self, place: Place, values: int) -> None:
        """Count what a reference repeats, as aliases are counted."""
        self.repeated.nodes += values
        if self.repeated.nodes > MAX_REPEATED:
            self.error(place, "SE002", f"references repeat more than {MAX_REPEATED} values")

    def string(self, node: Node, what: str, empty: bool = False) -> str | None:
        if isinstance(node, Scalar) and node.type == "str":
            if node.text or empty:
                return node.text
            self.error(node.place, "SE006", f"{what} is empty", "leave the field out if nothing is meant")
            return None
        hint = f'quote it: "{node.text}"' if isinstance(node, Scalar) and node.type != "null" else ""
        self.error(node.place, "SE004", f"{what} must be a string, not {_type_name(node)}", hint)
        return None

    def boolean(self, node: Node, what: str, yes: str = "true", no: str = "false") -> bool:
        """``yes`` and ``no`` are what else it may be called than true and false."""
        if isinstance(node, Scalar) and node.type == "bool" and node.text.lower() in ("true", "false", yes, no):
            return node.text.lower() in ("true", yes)
        self.error(node.place, "SE004", f"{what} must be {yes} or {no}, not {_type_name(node)}")
        return False

    def choice(self, node: Node, what: str, choices: Collection[str]) -> str | None:
        text = self.string(node, what)
        if text is None or text in choices:
            return text
        self.error(node.place, "SE006", f"{what} is {text!r}", suggestion(text, choices) or f"one of {', '.join(choices)}")
        return None

    def items(self, node: Node, what: str) -> list[Node]:
        if isinstance(node, Items):
            return node.items
        hint = ""
        if isinstance(node, Scalar) and node.type == "null":
            hint = "write [] for nothing, or leave the field out for anything"
        self.error(node.place, "SE004", f"{what} must be a list, not {_type_name(node)}", hint)
        return []

    def strings(self, node: Node, what: str) -> list[tuple[str, Place]]:
        texts = ((self.string(item, f"an entry of {what}"), item.place) for item in self.items(node, what))
        return [(text, place) for text, place in texts if text is not None]

    def fields(self, node: Node, what: str, known: Collection[str], refused: Mapping[str, str] | None = None) -> Found | None:
        """The fields of a mapping by name. ``refused`` are names that are not in ``known``, with the reason to give; behind
        ``; `` it may have a hint."""
        if not isinstance(node, Fields):
            self.error(node.place, "SE004", f"{what} must be a mapping, not {_type_name(node)}")
            return None
        found = Found()
        for key, value in self._entries(node, what):
            name = key.text
            if name in known:
                found[name] = value
            elif refused is not None and name in refused:
                found.refused.add(name)
                reason, _, hint = refused[name].partition("; ")
                self.error(key.place, "SE008", f"{name} of {what} {reason}", hint)
            else:
                meant = _closest(name, known)
                found.meant.update(meant)
                self.error(key.place, "SE003", f"{what} has no field {name!r}", _FOREIGN.get(name) or _did_you_mean(meant))
        return found

    def pairs(self, node: Node, what: str) -> Iterator[tuple[str, Node]]:
        """The entries of a mapping whose keys are any strings. A key that occurs twice is an error."""
        if isinstance(node, Fields):
            yield from ((key.text, value) for key, value in self._entries(node, what))
        else:
            self.error(node.place, "SE004", f"{what} must be a mapping, not {_type_name(node)}")

    def _entries(self, node: Fields, what: str) -> Iterator[tuple[Scalar, Node]]:
        seen: set[str] = set()
        for key, value in node.entries:
            # YAML 1.1 reads the plain keys yes, no, on, off as booleans and 1 as a number: none is a name here.
            if not isinstance(key, Scalar) or key.type != "str":
                self.error(key.place, "SE004", f"a field name of {what} must be a string, not {_type_name(key)}")
            elif key.text in seen:
                self.error(key.place, "SE007", f"{what} has the field {key.text!r} twice")
            else:
                seen.add(key.text)
                yield key, value

    def required(self, fields: Found | None, name: str, place: Place, what: str, hint: str = "") -> Node | None:
        """``fields`` None: the mapping itself could not be read, which has been told."""
        node = fields.get(name) if fields is not None else None
        if node is None and fields is not None and name not in fields.meant:
            self.error(place, "SE005", f"{what} lacks the field {name!r}", hint)
        return node


# What other languages of the field call it.
_FOREIGN = {
    "from": "fromEndpoints, with matchLabels; from is Kubernetes' NetworkPolicy's",
    "to": "toEndpoints, with matchLabels; to is Kubernetes' NetworkPolicy's",
    "ports": "toPorts: [{ports: [...]}]",
    "podSelector": "endpointSelector; podSelector is Kubernetes' NetworkPolicy's",
    "namespaceSelector": "the label io.kubernetes.pod.namespace in matchLabels",
    "ipBlock": "fromCIDRSet or toCIDRSet: [{cidr, except}]",
    "policyTypes": "ingress: [] or egress: [] is default deny",
}


def suggestion(text: str, choices: Collection[str]) -> str:
    """A hint at what was probably meant, or nothing."""
    return _did_you_mean(_closest(text, choices))


def _did_you_mean(meant: Collection[str]) -> str:
    return f"did you mean {next(iter(meant))!r}?" if meant else ""


def _closest(text: str, choices: Collection[str]) -> list[str]:
    folded = {choice.lower(): str(choice) for choice in choices}
    return [folded[close] for close in difflib.get_close_matches(text.lower(), folded, n=1)]


def documents(source: Source, report: Report) -> list[Node]:
    """The documents of a source that are not empty. What cannot be read is reported and ends the source."""
    start = Place(source.name, 1, 1)
    if len(source.text) > MAX_SOURCE_CHARACTERS:
        report.error(start, "SE002", f"larger than {MAX_SOURCE_CHARACTERS} characters", "split the file")
        return []
    try:
        found = list(_Builder(source, report.repeated).documents())
    except _TooMuchError as error:
        report.error(error.place, "SE002", str(error), error.hint)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source.name, mark.line + 1, mark.column + 1) if mark is not None else start
        report.error(place, "SE001", f"not YAML: {error.problem or error.context}")
    except (yaml.YAMLError, UnicodeError) as error:
        report.error(start, "SE001", f"not YAML: {' '.join(str(error).split())}")
    else:
        return [node for node in found if not (isinstance(node, Scalar) and node.type == "null")]
    return []


class Size(msgspec.Struct):
    """How much there is of something: values, and the characters of their texts."""

    nodes: int = 0
    characters: int = 0

    def add(self, other: "Size") -> None:
        self.nodes += other.nodes
        self.characters += other.characters


class _Anchor(msgspec.Struct):
    """What an alias may stand for. ``node`` is None until all of it has been read."""

    node: Node | None
    size: Size
    height: int  # levels of collections in it


class _Open(msgspec.Struct):
    """A collection that is being read, or (``node`` None) the document around the first value."""

    children: list[Node]
    node: Node | None
    anchor: str | None
    before: Size  # how much there was before it
    deepest: int  # the deepest level in it so far


class _Builder:
    """Nodes from libyaml's events, with a stack of its own. ``repeated`` counts what aliases repeat, in all sources."""

    def __init__(self, source: Source, repeated: Size) -> None:
        self._file = source.name
        self._loader = yaml.CSafeLoader(source.text)
        self._size = Size()
        self._repeated = repeated
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchor] = {}

    def documents(self) -> Iterator[Node]:
        while True:
            event = self._loader.get_event()
            if event is None or isinstance(event, yaml.StreamEndEvent):
                return
            if isinstance(event, yaml.DocumentStartEvent):
                self._open = [_Open([], None, None, Size(), 0)]
                self._anchors = {}
            elif isinstance(event, yaml.DocumentEndEvent):
                yield self._open[0].children[0]
            elif isinstance(event, yaml.AliasEvent):
                self._open[-1].children.append(self._alias(event))
            elif isinstance(event, yaml.NodeEvent):
                self._node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()

    def _node(self, event: yaml.NodeEvent) -> None:
        place = self._place(event)
        if isinstance(event, yaml.ScalarEvent):
            self._count(place, 1, len(event.value), len(self._open))
            scalar = self._scalar(event, place)
            self._open[-1].children.append(scalar)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchor(scalar, Size(1, len(event.value)), 0)
            return
        before = Size(self._size.nodes, self._size.characters)
        self._count(place, 1, 0, len(self._open))
        children: list[Node] = []
        node = Fields(place, []) if isinstance(event, yaml.MappingStartEvent) else Items(place, children)
        self._open[-1].children.append(node)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchor(None, Size(), 0)
        self._open.append(_Open(children, node, event.anchor, before, len(self._open)))

    def _alias(self, event: yaml.AliasEvent) -> Node:
        place = self._place(event)
        anchor = self._anchors.get(event.anchor or "")
        if anchor is None:
            raise _TooMuchError(place, f"the alias *{event.anchor} has no anchor before it in this document")
        if anchor.node is None:
            raise _TooMuchError(place, f"the alias *{event.anchor} is part of what it repeats")
        self._count(place, anchor.size.nodes, anchor.size.characters, len(self._open) + anchor.height)
        self._repeated.add(anchor.size)
        if self._repeated.nodes > MAX_REPEATED or self._repeated.characters > MAX_REPEATED_CHARACTERS:
            raise _TooMuchError(place, f"aliases repeat more than {MAX_REPEATED} values", "write the values out")
        return anchor.node

    def _count(self, place: Place, nodes: int, characters: int, depth: int) -> None:
        self._size.nodes += nodes
        self._size.characters += characters
        inside = self._open[-1]
        if depth > inside.deepest:
            inside.deepest = depth
        if depth > MAX_DEPTH:
            raise _TooMuchError(place, f"nested deeper than {MAX_DEPTH} levels")
        if self._size.nodes > MAX_NODES:
            raise _TooMuchError(place, f"more than {MAX_NODES} values", "split the file")
        if self._size.characters > MAX_SOURCE_CHARACTERS:
            raise _TooMuchError(place, f"larger than {MAX_SOURCE_CHARACTERS} characters", "split the file")

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> Scalar:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        elif not tag.startswith("tag:yaml.org,2002:"):
            raise _TooMuchError(place, f"the tag {tag} is not known here")
        return Scalar(place, event.value, tag.rpartition(":")[2])

    def _close(self) -> None:
        closed = self._open.pop()
        outer = self._open[-1]
        outer.deepest = max(outer.deepest, closed.deepest)
        if isinstance(closed.node, Fields):
            pairs = zip(closed.children[::2], closed.children[1::2], strict=True)
            closed.node.entries.extend(self._merged(list(pairs)))
        anchor = self._anchors.get(closed.anchor or "")
        if anchor is not None and anchor.node is None:
            size = Size(self._size.nodes - closed.before.nodes, self._size.characters - closed.before.characters)
            self._anchors[closed.anchor or ""] = _Anchor(closed.node, size, closed.deepest - len(self._open))

    def _merged(self, entries: list[tuple[Node, Node]]) -> Iterator[tuple[Node, Node]]:
        """The entries of a mapping with those that its merge key brings (https://yaml.org/type/merge.html): a mapping's own
        win, and of several mappings those of the earlier one."""
        merging = [(key, value) for key, value in entries if isinstance(key, Scalar) and key.type == "merge"]
        if not merging:
            yield from entries
            return
        if len(merging) > 1:
            raise _TooMuchError(merging[1][0].place, "the key << occurs twice in a mapping", "<<: [*one, *other]")
        value = merging[0][1]
        sources = value.items if isinstance(value, Items) else [value]
        taken: set[str] = set()
        for key, own in entries:
            if key is not merging[0][0]:
                taken.add(key.text if isinstance(key, Scalar) else "")
                yield key, own
        for source in sources:
            if not isinstance(source, Fields):
                raise _TooMuchError(source.place, f"<< takes mappings, not {_type_name(source)}")
            for key, merged in source.entries:
                if not isinstance(key, Scalar) or key.text not in taken:
                    taken.add(key.text if isinstance(key, Scalar) else "")
                    yield key, merged

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        assert mark is not None  # the C parser marks every event
        return Place(self._file, mark.line + 1, mark.column + 1)


def _type_name(node: Node) -> str:
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Fields):
        return "a mapping"
    names = {"null": "nothing", "int": "the number ", "bool": "the boolean "}
    return names.get(node.type, "") + (node.text[:40] if node.type != "null" else "")
