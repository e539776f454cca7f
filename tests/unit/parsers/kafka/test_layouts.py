"""The committed layouts are what the protocol's definitions say, and the generator takes nothing for granted."""

import importlib
import pkgutil
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from kafka.protocol import old
from kafka.protocol.old import types

from parsers.kafka import generate, layouts
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.shapes import shape


def test_the_committed_file_is_what_the_generator_writes() -> None:
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "layouts.py", "-"]
    made = subprocess.run(ruff, input=generate.generate(), capture_output=True, text=True, check=True).stdout
    assert made == Path(layouts.__file__).read_text(), "make layouts"


def test_layouts_read_as_the_protocol_guide_does() -> None:
    assert REQUESTS[0].layouts[-2:] == (
        (3, 12, "transactional=s? acks=2 4 topics=[topic=s [4 b?]]"),
        (13, 13, "transactional=s? acks=2 4 topics=[topicId=16 [4 b?]]"),
    )
    assert REQUESTS[0].flexible == 9
    assert REQUESTS[3].layouts[0] == (0, 0, "topics=[topic=s]!")
    assert REQUESTS[10].layouts[-1] == (4, 6, "keyType=1 [key=s;]")


def test_every_version_of_an_api_is_known_from_the_first_to_the_last() -> None:
    for api in REQUESTS.values():
        ranges = [(low, high) for low, high, _ in api.layouts]
        assert all(high + 1 == low for (_, high), (low, _) in pairwise(ranges)), api.name


def test_every_layout_can_be_walked() -> None:
    for key, api in REQUESTS.items():
        for low, high, _ in api.layouts:
            for version in range(low, high + 1):
                assert shape(key, version) is not None
        assert shape(key, api.layouts[-1][1] + 1) is None
        assert shape(key, -1) is None


def test_what_brokers_say_to_each_other_has_no_layout() -> None:
    """Envelope would carry a request of any kind past policy; the others are the controller's business."""
    assert not {4, 5, 6, 7, 52, 53, 54, 56, 58, 59, 62, 63, 64, 67, 70, 73} & REQUESTS.keys()


def field(name: str, kind: str = "string", **more: object) -> generate.Field:
    return generate.Field(
        **{"name": name, "kind": kind, "array": False, "nullable": False, "tag": None, "entity": "", "fields": ()} | more
    )  # type: ignore[arg-type]


def layout(*fields: generate.Field, name: str = "Novel") -> str:
    return generate.layouts(generate.Api(999, name, 0, {0: fields}))[0][2]


@pytest.mark.parametrize(
    "name", ["Topic", "SourceTopics", "TopicNamePattern", "OtherGroupId", "TransactionalIds", "ResourceName"]
)
def test_a_new_field_that_sounds_like_a_resource_must_be_classified(name: str) -> None:
    with pytest.raises(generate.Unclassified, match=name):
        layout(field(name))


def test_a_field_that_is_marked_or_does_not_sound_like_one_passes() -> None:
    assert layout(field("Anything", entity="topicName"), field("Rack"), field("TopicCount", "int32")) == "topic=s s 4"


def test_a_resource_in_a_tagged_field_fails_the_generator() -> None:
    with pytest.raises(generate.Unclassified, match="tagged"):
        layout(field("Anything", entity="topicName", tag=0))


def test_structures_arrays_and_neighbours_are_written_together() -> None:
    inner = (field("A", "int32"), field("B", "int16"), field("Id", entity="groupId"))
    assert layout(field("List", "struct", array=True, nullable=True, fields=inner)) == "[6 group=s]?"
    assert (
        layout(field("One", "struct", nullable=True, fields=(field("A", "bool"),)), field("T", "int8", tag=3)) == "(1)? <3: 1>"
    )


# Before it had definitions, kafka-python had its layouts typed by hand. They are the only other word on versions that brokers
# have dropped since, and they stop before the flexible ones for the most part.

_SIZES = {"Boolean": 1, "Int8": 1, "Int16": 2, "Int32": 4, "Int64": 8, "Float64": 8, "String": "s", "Bytes": "b"}


def hand_kept() -> dict[tuple[int, int], str]:
    def words(kind: Any) -> str:
        if isinstance(kind, types.Schema):
            return " ".join(map(words, kind.fields))
        if isinstance(kind, types.Array):
            return f"[{words(kind.array_of)}]"
        return str(_SIZES[getattr(kind, "__name__", type(kind).__name__)])

    found = {}
    for module in pkgutil.iter_modules(old.__path__):
        for name, entity in vars(importlib.import_module(f"{old.__name__}.{module.name}")).items():
            if re.search(r"Request_v\d+$", name) and REQUESTS[entity.API_KEY].flexible > entity.API_VERSION:
                found[entity.API_KEY, entity.API_VERSION] = joined(words(entity.SCHEMA))
    return found


def joined(text: str) -> str:
    """Only what takes room: no names, no marks, and neighbouring bytes in one word."""
    text = re.sub(r"\w+=|everything ?|[?~!;]", "", text)
    while (shorter := re.sub(r"(\d+) (\d+)", lambda both: str(int(both[1]) + int(both[2])), text)) != text:
        text = shorter
    return text


def test_versions_before_the_flexible_ones_are_as_they_were_once_typed_by_hand() -> None:
    hand = hand_kept()
    ours = {
        (key, version): joined(text)
        for key, api in REQUESTS.items()
        for low, high, text in api.layouts
        for version in range(low, high + 1)
    }
    assert hand.pop((35, 0)) == "[s 4]", "DescribeLogDirs: typed wrong there; partitions are an array"
    assert {entry: ours[entry] for entry in hand} == hand
    dropped = {
        (0, 0),
        (0, 2),
        (1, 0),
        (1, 3),
        (2, 0),
        (8, 0),
        (8, 1),
        (9, 0),
        (19, 0),
        (20, 0),
        (23, 0),
        (29, 0),
        (30, 0),
        (31, 0),
    }
    assert dropped <= hand.keys()
    assert len(hand) > 120
