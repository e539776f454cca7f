"""Writes parsers/kafka/layouts.py: ``python -m parsers.kafka.generate > parsers/kafka/layouts.py`` (make layouts).

Two packages carry the protocol's own definitions. kafka-python ships Apache Kafka's JSON files, with the fields of versions
that brokers have since dropped. Of APIs that it does not speak, kio has the same definitions as Python classes, from the
version on that a Kafka 4 broker speaks. Nothing is typed by hand but what definitions do not say: which fields *mean* a
topic, a group or a transactional id without being marked as one. Every other field whose name sounds like one must be listed
in UNRELATED with a reason, or generation fails, so that a new API cannot name a topic behind our back.

The language of the layouts is described at the head of the generated file (HEADER).
"""

import dataclasses
import importlib
import json
import re
import sys
import typing
from collections.abc import Iterator
from importlib import resources
from types import UnionType
from typing import Any, NamedTuple

JSON_PACKAGE = "kafka.protocol.schemas.resources"
NOT_FLEXIBLE = 32767  # "flexible from version": never

# Client APIs that kafka-python has no definition of. What brokers and controllers say among themselves (Vote, Envelope,
# AlterPartition, …) is left out on purpose: a client has no business to send it, and what has no layout is refused.
FROM_KIO = (38, 39, 40, 41, 68, 69, 71, 72, 76, 77, 78, 79, 88, 89, 90, 91, 92)

FIXED = {"bool": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "int64": 8, "float64": 8, "uuid": 16}
# kio's readings of the same integers.
KIO_KINDS = {"timedelta_i32": "int32", "timedelta_i64": "int64", "datetime_i64": "int64", "error_code": "int16"}
FIXED |= {kind: FIXED[integer] for kind, integer in KIO_KINDS.items()}
SIZED = {"string": "s", "bytes": "b", "records": "b"}
ENTITIES = {"topicName": "topic", "groupId": "group", "transactionalId": "transactional"}
KIO_ENTITIES = {"TopicName": "topicName", "GroupId": "groupId", "TransactionalId": "transactionalId"}

# What policy needs and no entityType tells. Key: API, then the field's path.
MEANINGS = {
    "Produce Acks": "acks",  # 0: there is no reply
    "Fetch ReplicaId": "replica",  # a broker's number: it fetches as a follower, which Kafka authorises on the cluster
    "Fetch ReplicaState.ReplicaId": "replica",
    "Fetch SessionId": "sessionId",
    "Fetch SessionEpoch": "sessionEpoch",
    "Fetch Topics.Partitions.Partition": "partition",  # what a session consists of (KIP-227)
    "Fetch ForgottenTopicsData.Partitions": "partition",
    "FindCoordinator Key": "key",  # a group or a transactional id, as KeyType says
    "FindCoordinator KeyType": "keyType",
    "FindCoordinator CoordinatorKeys": "key",
    "ConsumerGroupHeartbeat SubscribedTopicRegex": "regex",  # topics by pattern: the broker finds out which
    "StreamsGroupHeartbeat Topology.Subtopologies.SourceTopicRegex": "regex",
} | {
    f"{api} Resources.{field}": meaning
    for api in ("DescribeConfigs", "AlterConfigs", "IncrementalAlterConfigs")
    for field, meaning in (("ResourceType", "kind"), ("ResourceName", "name"))
}
# Arrays of topics that are not what the request asks for.
FORGOTTEN = "Fetch ForgottenTopicsData"
# Null, or an empty list, that stands for every topic there is. Key: API and path, value: the versions in which it does.
NULL_IS_ALL = {
    "Metadata Topics": range(1, NOT_FLEXIBLE),
    "OffsetFetch Topics": range(2, 8),
    "OffsetFetch Groups.Topics": range(8, NOT_FLEXIBLE),
    "ElectLeaders TopicPartitions": range(NOT_FLEXIBLE),
    "DescribeLogDirs Topics": range(NOT_FLEXIBLE),
    "ListPartitionReassignments Topics": range(NOT_FLEXIBLE),
    "DescribeShareGroupOffsets Groups.Topics": range(NOT_FLEXIBLE),
}
EMPTY_IS_ALL = {"Metadata Topics": range(1), "DescribeTopicPartitions Topics": range(NOT_FLEXIBLE)}
# Requests that concern topics which they need not name.
EVERYTHING = {
    "CreateAcls": range(NOT_FLEXIBLE),  # an ACL's resource may be a pattern, a prefix or a wildcard of any kind of resource
    "DeleteAcls": range(NOT_FLEXIBLE),
    "DescribeAcls": range(NOT_FLEXIBLE),
    "ListConfigResources": range(1, NOT_FLEXIBLE),  # KIP-1142: the names of all topics that have a configuration
}
SUSPICIOUS = re.compile(r"topic|group|transactional|resource|pattern", re.IGNORECASE)
UNRELATED = {
    "GroupInstanceId": "names a member of a group, not a group",
    "ListTransactions TransactionalIdPattern": "a filter of a list; the broker shows only what its ACLs allow",
    "CreateAcls Creations.ResourceName": "see EVERYTHING",
    "DeleteAcls Filters.ResourceNameFilter": "see EVERYTHING",
    "DescribeAcls ResourceNameFilter": "see EVERYTHING",
    "CreateTopics Topics.Configs.Name": "names a setting",
}


class Field(NamedTuple):
    """One field in one version. ``kind`` is a key of FIXED or SIZED, or "struct"."""

    name: str
    kind: str
    array: bool
    nullable: bool
    tag: int | None
    entity: str
    fields: "tuple[Field, ...]"


class Api(NamedTuple):
    key: int
    name: str
    flexible: int
    versions: dict[int, tuple[Field, ...]]


class Unclassified(SystemExit):
    """A definition has something that the generator does not know what to make of."""


def _span(text: str | None) -> range:
    """Versions as the JSON files write them: "3+", "0-2", "5", "none"."""
    if not text or text == "none":
        return range(0)
    first, plus, _ = text.partition("+")
    low, _, high = first.partition("-")
    return range(int(low), NOT_FLEXIBLE if plus else int(high or low) + 1)


# kafka-python's JSON


def _json_fields(entries: list[Any], structs: dict[str, list[Any]], version: int) -> Iterator[Field]:
    for entry in entries:
        if version not in _span(entry["versions"]):
            continue
        if "flexibleVersions" in entry:
            raise Unclassified(f"generate: {entry['name']} has flexible versions of its own")
        kind = entry["type"].removeprefix("[]")
        children = entry.get("fields") or structs.get(kind) or ()
        yield Field(
            entry["name"][0].upper() + entry["name"][1:],
            "struct" if children else kind,
            entry["type"].startswith("[]"),
            version in _span(entry.get("nullableVersions")),
            entry["tag"] if version in _span(entry.get("taggedVersions")) else None,
            entry.get("entityType", ""),
            tuple(_json_fields(children, structs, version)) if children else (),
        )


def _from_json(text: str) -> Api:
    definition = json.loads(re.sub(r"(?m)^\s*//.*$", "", text))
    structs = {struct["name"]: struct["fields"] for struct in definition.get("commonStructs", [])}
    flexible = _span(definition["flexibleVersions"])
    return Api(
        definition["apiKey"],
        definition["name"].removesuffix("Request"),
        flexible.start if flexible else NOT_FLEXIBLE,
        {
            version: tuple(_json_fields(definition["fields"], structs, version))
            for version in range(_span(definition["validVersions"]).stop)
        },
    )


# kio's classes


def _kio_fields(entity: Any) -> Iterator[Field]:
    for field in dataclasses.fields(entity):
        kind: Any = field.type
        nullable = isinstance(kind, UnionType)
        if nullable:
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        array = typing.get_origin(kind) is tuple
        if array:
            kind = typing.get_args(kind)[0]
        children = tuple(_kio_fields(kind)) if dataclasses.is_dataclass(kind) else ()
        name = "".join(part.capitalize() for part in field.name.split("_"))
        wire = field.metadata.get("kafka_type", "struct")
        nullable = nullable and (array or wire in SIZED or wire == "struct")  # a UUID of zeroes is None to kio
        entity_type = KIO_ENTITIES.get(getattr(kind, "__name__", ""), "")
        yield Field(name, wire, array, nullable, field.metadata.get("tag"), entity_type, children)


def _from_kio(key: int) -> Api:
    index: Any = importlib.import_module("kio.schema.index")
    static: Any = importlib.import_module("kio.static.constants")
    load: Any = importlib.import_module("kio.index").load_request_schema
    name = index.api_key_map[key]
    classes = {v: load(key, v) for v, kinds in index.schema_name_map[name].items() if static.EntityType.request in kinds}
    flexible = min((version for version, entity in classes.items() if entity.__flexible__), default=NOT_FLEXIBLE)
    title = classes[max(classes)].__name__.removesuffix("Request")
    return Api(key, title, flexible, {version: tuple(_kio_fields(entity)) for version, entity in sorted(classes.items())})


def definitions() -> list[Api]:
    """Every API that gets a layout, by its key."""
    files = [file for file in resources.files(JSON_PACKAGE).iterdir() if file.name.endswith("Request.json")]
    return sorted([_from_json(file.read_text()) for file in files] + [_from_kio(key) for key in FROM_KIO])


# Layouts


class _Writer:
    """Writes the layout of one version of one API."""

    def __init__(self, api: Api, version: int) -> None:
        self._api, self._version = api, version

    def meaning(self, field: Field, path: str) -> str:
        """What policy calls this field, or ""."""
        key = f"{self._api.name} {path}"
        if key in MEANINGS:
            return MEANINGS[key]
        if field.entity in ENTITIES:
            return ENTITIES[field.entity]
        if field.kind == "uuid" and field.name == "TopicId":
            return "topicId"
        telling = field.kind in SIZED or field.kind == "uuid"
        if telling and SUSPICIOUS.search(field.name) and not {key, field.name} & UNRELATED.keys():
            raise Unclassified(f"generate: is {key!r} (version {self._version}) something that policy must know?")
        return ""

    def block(self, fields: tuple[Field, ...], path: str = "") -> str:
        """The layout of a structure, with neighbouring skips in one."""
        words: list[str] = []
        for field in fields:
            if field.tag is None:
                word = self.word(field, f"{path}{field.name}")
                if word.isdigit() and words and words[-1].isdigit():
                    word = str(int(words.pop()) + int(word))
                words.append(word)
        tagged = {field.tag: self.word(field, f"{path}{field.name}") for field in fields if field.tag is not None}
        if any("=" in word.replace("replica=", "") for word in tagged.values()):  # the walk looks for that one alone
            raise Unclassified(f"generate: {self._api.name} {path}: a tagged field that policy must know")
        words += [f"<{tag}: {word}>" for tag, word in sorted(tagged.items())]
        return " ".join(words)

    def word(self, field: Field, path: str) -> str:
        if field.kind == "struct":
            return self.structure(field, path)
        meaning = self.meaning(field, path)
        null = "?" if field.nullable else ""
        unit = SIZED.get(field.kind) or str(FIXED[field.kind])
        if not field.array:
            return f"{meaning}={unit}{null}" if meaning else f"{unit}{null}"
        if meaning == "topic":
            return f"topics=[topic={unit};]{null}{self.all_mark(path)}"
        return f"{meaning}=[{unit};]{null}" if meaning == "partition" else f"[{meaning}{'=' * bool(meaning)}{unit};]{null}"

    def structure(self, field: Field, path: str) -> str:
        """``;`` ends the elements of plain arrays: they have no tagged fields of their own."""
        inner = self.block(field.fields, f"{path}.")
        own = {
            self.meaning(child, f"{path}.{child.name}") for child in field.fields if child.kind != "struct" and not child.array
        }
        is_topic = bool(own & {"topic", "topicId", "name"})
        label = ("forgotten=" if f"{self._api.name} {path}" == FORGOTTEN else "topics=") if is_topic else ""
        opening, closing = "[]" if field.array else "()"
        return f"{label}{opening}{inner}{closing}{'?' * field.nullable}{self.all_mark(path)}"

    def all_mark(self, path: str) -> str:
        key = f"{self._api.name} {path}"
        null_is_all = self._version in NULL_IS_ALL.get(key, ())
        return "~" * null_is_all + "!" * (self._version in EMPTY_IS_ALL.get(key, ()))

    def layout(self) -> str:
        everything = self._version in EVERYTHING.get(self._api.name, ())
        return ("everything " * everything + self.block(self._api.versions[self._version])).strip()


def layouts(api: Api) -> list[tuple[int, int, str]]:
    """Runs of versions with the same layout, whether flexible or not: Api.flexible tells."""
    runs: list[tuple[int, int, str]] = []
    for version in sorted(api.versions):
        text = _Writer(api, version).layout()
        if runs and runs[-1][1:] == (version - 1, text):
            runs[-1] = (runs[-1][0], version, text)
        else:
            runs.append((version, version, text))
    return runs


HEADER = '''"""How Kafka requests are laid out, by version. Generated by parsers/kafka/generate.py (make layouts): do not edit.

A layout is a list of words, each of which is a field, or several that are skipped together:

* ``12``: so many bytes. ``s``: a string. ``b``: bytes or records, which are skipped by their size.
* ``[…]``: an array of structures. ``[…;]``: an array of plain values. ``(…)``: a structure.
* ``?`` behind a word: it may be null. ``~``: null means all topics. ``!``: empty means all topics.
* ``name=``: what policy calls it: ``topic``, ``topicId``, ``group``, ``transactional``, ``partition`` (with numbers kept),
  ``acks``, ``replica`` (a broker that follows), ``sessionId``, ``sessionEpoch``; ``key`` and ``keyType`` (FindCoordinator),
  ``kind`` and ``name`` (resources that have a configuration), ``regex`` (topics by pattern); ``topics=`` and ``forgotten=``
  (arrays whose elements are topics).
* ``<7: …>``: the tagged field 7. It has to be as long as it says: Kafka's own reader does not look at the length of those
  that it knows, and must not be led to bytes that we have skipped.
* ``everything`` at the front: the request concerns topics that it need not name.

From the flexible version on (KIP-482), lengths are unsigned varints plus one and each structure ends with tagged fields.
"""

from typing import NamedTuple


class Api(NamedTuple):
    """One API: its name, its first flexible version (32767: none), and (first version, last version, layout) in order."""

    name: str
    flexible: int
    layouts: tuple[tuple[int, int, str], ...]


REQUESTS: dict[int, Api] = {
'''


def generate() -> str:
    parts = [HEADER]
    for api in definitions():
        runs = "".join(f"({low}, {high}, {json.dumps(text)})," for low, high, text in layouts(api))
        parts.append(f'{api.key}: Api("{api.name}", {api.flexible}, ({runs})),\n')
    return "".join([*parts, "}\n"])


if __name__ == "__main__":
    sys.stdout.write(generate())
