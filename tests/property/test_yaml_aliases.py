"""Documents with anchors, aliases and merge keys say what PyYAML, which expands them without a bound, says they do."""

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.nodes import Fields, Items, Node, Report, Scalar, Source, documents

_NAMES = st.sampled_from("abcdef")


class _Writer:
    """Writes a random document in flow style; an alias stands only for what is written before it as a whole."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._anchors: list[tuple[str, bool]] = []  # names, and whether it is a mapping
        self._left = 40

    def value(self, depth: int = 0, mapping: bool = False) -> str:
        self._left -= 1
        usable = [name for name, is_mapping in self._anchors if is_mapping or not mapping]
        if usable and self._draw(st.booleans()):
            return f"*{self._draw(st.sampled_from(usable))} "
        kinds = ["mapping"] if mapping else ["scalar", "mapping", "list"]
        kind = self._draw(st.sampled_from(kinds)) if depth < 5 and self._left > 0 else kinds[0]
        name = f"x{len(self._anchors)}_{self._left}" if self._draw(st.booleans()) else ""
        if kind == "scalar":
            text = f"'{self._draw(_NAMES)}'"
        elif kind == "list":
            text = f"[{', '.join(self.value(depth + 1) for _ in range(self._draw(st.integers(0, 3))))}]"
        else:
            text = self._mapping(depth)
        if name:
            self._anchors.append((name, kind == "mapping"))
        return f"&{name} {text}" if name else text

    def _mapping(self, depth: int) -> str:
        if depth >= 5 or self._left <= 0:
            return "{}"
        keys = self._draw(st.lists(_NAMES, unique=True, max_size=3))
        if self._draw(st.booleans()):
            keys.insert(self._draw(st.integers(0, len(keys))), "<<")
        entries = [f"{key}: {self._merged(depth) if key == '<<' else self.value(depth + 1)}" for key in keys]
        return f"{{{', '.join(entries)}}}"

    def _merged(self, depth: int) -> str:
        sources = [self.value(depth + 1, mapping=True) for _ in range(self._draw(st.integers(1, 2)))]
        return sources[0] if len(sources) == 1 else f"[{', '.join(sources)}]"


@st.composite
def _texts(draw: st.DrawFn) -> str:
    return _Writer(draw).value()


def _plain(node: Node) -> Any:
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Items):
        return [_plain(item) for item in node.items]
    assert isinstance(node, Fields)
    found = {}
    for key, value in node.entries:
        assert isinstance(key, Scalar)
        assert key.text not in found
        found[key.text] = _plain(value)
    return found


@given(_texts())
def test_aliases_and_merge_keys_mean_what_they_mean_elsewhere(text: str) -> None:
    report = Report()
    found = documents(Source("x", text), report)
    assert report.findings == []
    assert [_plain(node) for node in found] == [yaml.safe_load(text)]
