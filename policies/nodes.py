"""YAML in, positioned nodes out: bounded, without aliases, and every complaint with its line and column.

The nodes are built from libyaml's events instead of by PyYAML's composer, so that the limits hold before memory is spent and
the composer's recursion is never entered.
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
    """``type`` is YAML's own: "str", "int", "bool", "null", "float" or "timestamp"."""

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

    def error(self, place: Place, code: str, message: str, hint: str = "") -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(place.file, place.line, place.column, code, message, hint))

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

    def fields(
        self, node: Node, what: str, known: Collection[str], refused: Mapping[str, str] | None = None
    ) -> dict[str, Node] | None:
        """The fields of a mapping by name. ``refused`` are names that are not in ``known``, with the reason to give."""
        if not isinstance(node, Fields):
            self.error(node.place, "SE004", f"{what} must be a mapping, not {_type_name(node)}")
            return None
        found: dict[str, Node] = {}
        for name, value in self.pairs(node, what):
            if name in known:
                found[name] = value
            elif refused is not None and name in refused:
                self.error(self._key_place(node, value), "SE008", f"{name} of {what} {refused[name]}")
            else:
                self.error(self._key_place(node, value), "SE003", f"{what} has no field {name!r}", suggestion(name, known))
        return found

    def pairs(self, node: Node, what: str) -> Iterator[tuple[str, Node]]:
        """The entries of a mapping whose keys are any strings. A key that occurs twice is an error."""
        if not isinstance(node, Fields):
            self.error(node.place, "SE004", f"{what} must be a mapping, not {_type_name(node)}")
            return
        seen: set[str] = set()
        for key, value in node.entries:
            # YAML 1.1 reads the plain keys yes, no, on, off as booleans and 1 as a number: none is a name here.
            if not isinstance(key, Scalar) or key.type != "str":
                self.error(key.place, "SE004", f"a field name of {what} must be a string, not {_type_name(key)}")
            elif key.text in seen:
                self.error(key.place, "SE007", f"{what} has the field {key.text!r} twice")
            else:
                seen.add(key.text)
                yield key.text, value

    def required(self, fields: Mapping[str, Node], name: str, place: Place, what: str) -> Node | None:
        node = fields.get(name)
        if node is None:
            self.error(place, "SE005", f"{what} lacks the field {name!r}")
        return node

    @staticmethod
    def _key_place(node: Fields, value: Node) -> Place:
        return next(key.place for key, other in node.entries if other is value)


def suggestion(text: str, choices: Collection[str]) -> str:
    """A hint at what was probably meant, or nothing."""
    folded = {choice.lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(text.lower(), folded, n=1)
    return f"did you mean {folded[close[0]]!r}?" if close else ""


def documents(source: Source, report: Report) -> list[Node]:
    """The documents of a source that are not empty. What cannot be read is reported and ends the source."""
    start = Place(source.name, 1, 1)
    if len(source.text) > MAX_SOURCE_CHARACTERS:
        report.error(start, "SE002", f"larger than {MAX_SOURCE_CHARACTERS} characters", "split the file")
        return []
    try:
        found = list(_Builder(source).documents())
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


class _Builder:
    """Nodes from libyaml's events, with a stack of its own."""

    def __init__(self, source: Source) -> None:
        self._file = source.name
        self._loader = yaml.CSafeLoader(source.text)
        self._count = 0

    def documents(self) -> Iterator[Node]:
        open_: list[list[Node]] = []
        while True:
            event = self._loader.get_event()
            if event is None or isinstance(event, yaml.StreamEndEvent):
                return
            if isinstance(event, yaml.DocumentStartEvent):
                open_ = [[]]
            elif isinstance(event, yaml.DocumentEndEvent):
                yield open_[0][0]
            elif isinstance(event, yaml.NodeEvent):
                self._check(event, len(open_))
                if isinstance(event, yaml.ScalarEvent):
                    open_[-1].append(self._scalar(event))
                else:
                    children: list[Node] = []
                    open_[-1].append(self._collection(event, children))
                    open_.append(children)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close(open_)

    def _check(self, event: yaml.NodeEvent, depth: int) -> None:
        place = self._place(event)
        if event.anchor is not None:
            # Aliases multiply ("billion laughs") and hide what a rule says from its reader.
            raise _TooMuchError(place, "YAML anchors and aliases are refused", "write the value out")
        self._count += 1
        if depth > MAX_DEPTH:
            raise _TooMuchError(place, f"nested deeper than {MAX_DEPTH} levels")
        if self._count > MAX_NODES:
            raise _TooMuchError(place, f"more than {MAX_NODES} values", "split the file")

    def _scalar(self, event: yaml.ScalarEvent) -> Scalar:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        elif not tag.startswith("tag:yaml.org,2002:"):
            raise _TooMuchError(self._place(event), f"the tag {tag} is not known here")
        return Scalar(self._place(event), event.value, tag.rpartition(":")[2])

    def _collection(self, event: yaml.NodeEvent, children: list[Node]) -> Node:
        """A collection whose children will be appended to ``children``; a mapping's are paired when it is closed."""
        if isinstance(event, yaml.MappingStartEvent):
            return Fields(self._place(event), [])
        return Items(self._place(event), children)

    def _close(self, open_: list[list[Node]]) -> None:
        children = open_.pop()
        node = open_[-1][-1]
        if isinstance(node, Fields):
            node.entries.extend(zip(children[::2], children[1::2], strict=True))

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
