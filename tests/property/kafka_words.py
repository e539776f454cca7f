"""Random Kafka requests of every API and version, and what two other programs read in them: kafka-python and kio.

The table of where an API names topics, groups and transactional ids is written by hand here, from the protocol guide, so that
it does not repeat what the generator of the layouts believes.
"""

import dataclasses
import datetime
import importlib
import inspect
import io
import typing
import uuid
from random import Random
from types import UnionType
from typing import Any, NamedTuple

from kafka.protocol.api_message import ApiMessage
from kio.index import load_request_schema
from kio.schema.index import api_key_map, schema_name_map
from kio.schema.request_header.v1.header import RequestHeader as Header1
from kio.schema.request_header.v2.header import RequestHeader as Header2
from kio.serial import entity_reader, entity_writer

from parsers.kafka.layouts import REQUESTS
from parsers.kafka.request import Request

# API: topics; groups; transactional ids. "a.b" is field b of each element of a, "a*" says that a is a list of names.
_PLACES = {
    "Produce": ("topic_data.name topic_data.topic_id", "", "transactional_id"),
    "Fetch": ("topics.topic topics.topic_id", "", ""),
    "ListOffsets": ("topics.name", "", ""),
    "Metadata": ("topics.name topics.topic_id", "", ""),
    "OffsetCommit": ("topics.name topics.topic_id", "group_id", ""),
    "OffsetFetch": ("topics.name groups.topics.name groups.topics.topic_id", "group_id groups.group_id", ""),
    "JoinGroup": ("", "group_id", ""),
    "Heartbeat": ("", "group_id", ""),
    "LeaveGroup": ("", "group_id", ""),
    "SyncGroup": ("", "group_id", ""),
    "DescribeGroups": ("", "groups*", ""),
    "CreateTopics": ("topics.name", "", ""),
    "DeleteTopics": ("topic_names* topics.name topics.topic_id", "", ""),
    "DeleteRecords": ("topics.name", "", ""),
    "InitProducerId": ("", "", "transactional_id"),
    "OffsetForLeaderEpoch": ("topics.topic", "", ""),
    "AddPartitionsToTxn": (
        "v3_and_below_topics.name transactions.topics.name",
        "",
        "v3_and_below_transactional_id transactions.transactional_id",
    ),
    "AddOffsetsToTxn": ("", "group_id", "transactional_id"),
    "EndTxn": ("", "", "transactional_id"),
    "WriteTxnMarkers": ("markers.topics.name", "", ""),
    "TxnOffsetCommit": ("topics.name", "group_id", "transactional_id"),
    "AlterReplicaLogDirs": ("dirs.topics.name", "", ""),
    "DescribeLogDirs": ("topics.topic", "", ""),
    "CreatePartitions": ("topics.name", "", ""),
    "DeleteGroups": ("", "groups_names*", ""),
    "ElectLeaders": ("topic_partitions.topic", "", ""),
    "AlterPartitionReassignments": ("topics.name", "", ""),
    "ListPartitionReassignments": ("topics.name", "", ""),
    "OffsetDelete": ("topics.name", "group_id", ""),
    "DescribeQuorum": ("topics.topic_name", "", ""),
    "DescribeProducers": ("topics.name", "", ""),
    "DescribeTransactions": ("", "", "transactional_ids*"),
    "DescribeTopicPartitions": ("topics.name cursor.topic_name", "", ""),
    "ConsumerGroupHeartbeat": ("subscribed_topic_names* topic_partitions.topic_id", "group_id", ""),
    "ConsumerGroupDescribe": ("", "group_ids*", ""),
    "ShareGroupHeartbeat": ("subscribed_topic_names*", "group_id", ""),
    "ShareGroupDescribe": ("", "group_ids*", ""),
    "ShareFetch": ("topics.topic_id forgotten_topics_data.topic_id", "group_id", ""),
    "ShareAcknowledge": ("topics.topic_id", "group_id", ""),
    "StreamsGroupHeartbeat": (
        "topology.subtopologies.source_topics* topology.subtopologies.repartition_sink_topics* "
        "topology.subtopologies.state_changelog_topics.name topology.subtopologies.repartition_source_topics.name",
        "group_id",
        "",
    ),
    "StreamsGroupDescribe": ("", "group_ids*", ""),
    "DescribeShareGroupOffsets": ("groups.topics.topic_name", "groups.group_id", ""),
    "AlterShareGroupOffsets": ("topics.topic_name", "group_id", ""),
    "DeleteShareGroupOffsets": ("topics.topic_name", "group_id", ""),
}
_ALL_WHEN_NULL = {
    "Metadata": "topics",
    "OffsetFetch": "topics groups.topics",
    "ElectLeaders": "topic_partitions",
    "DescribeLogDirs": "topics",
    "ListPartitionReassignments": "topics",
    "DescribeShareGroupOffsets": "groups.topics",
}
_CONFIGS = ("DescribeConfigs", "AlterConfigs", "IncrementalAlterConfigs")
_ACLS = ("DescribeAcls", "CreateAcls", "DeleteAcls")


class Facts(NamedTuple):
    """What policy asks for. Sorted, because one reader goes by position and the other by name."""

    topics: list[str]
    groups: list[str]
    transactional_ids: list[str]
    all_topics: bool
    forgotten: list[tuple[str, tuple[int, ...]]]
    partitions: list[tuple[str, tuple[int, ...]]]
    acks: int | None
    session: tuple[int, int] | None
    correlation_id: int
    client_id: str | None


def _word(value: Any) -> str | None:
    """A topic's name, or its id in hexadecimal digits; None for neither."""
    return (value.hex if value.int else None) if isinstance(value, uuid.UUID) else value


def _find(tree: Any, path: str) -> list[Any]:
    for step in path.rstrip("*").split("."):
        nodes = tree if isinstance(tree, list) else [tree]
        tree = []
        for node in nodes:
            value = node.get(step) if node else None
            tree += value if isinstance(value, list | tuple) else [value]
    return [value for value in (tree if isinstance(tree, list) else [tree]) if value is not None]


def _words(tree: Any, paths: str) -> list[str]:
    return sorted(word for path in paths.split() for word in map(_word, _find(tree, path)) if word is not None)


def _lists(tree: Any, path: str) -> list[Any]:
    """The lists themselves at ``path``, and None where there is none."""
    *parents, last = path.split(".")
    nodes = _find(tree, ".".join(parents)) if parents else [tree]
    return [node[last] for node in nodes if last in node]


def facts_of_tree(api: str, version: int, tree: Any, correlation_id: int, client_id: str | None) -> Facts:
    """``tree``: the body as dictionaries and lists, keys as both packages spell them."""
    topics, groups, transactional_ids = (_words(tree, paths) for paths in _PLACES.get(api, ("", "", "")))
    all_topics = api in _ACLS or (api, version) == ("ListConfigResources", 1)
    if api == "FindCoordinator":
        keys = [tree["key"]] if version < 4 else list(tree["coordinator_keys"])
        groups, transactional_ids = ([], sorted(keys)) if tree.get("key_type") == 1 else (sorted(keys), [])
    if api in _CONFIGS:
        named = [(entry["resource_type"], entry["resource_name"]) for entry in tree["resources"]]
        topics = sorted(name for kind, name in named if kind == 2)
        groups = sorted(name for kind, name in named if kind == 32)
    for path in _ALL_WHEN_NULL.get(api, "").split():
        all_topics |= None in _lists(tree, path)
    if (api, version) == ("Metadata", 0) or api == "DescribeTopicPartitions":
        all_topics |= not tree["topics"]
    if (api, version) == ("ConsumerGroupHeartbeat", 1):
        all_topics |= bool(tree["subscribed_topic_regex"])
    if api == "StreamsGroupHeartbeat":
        all_topics |= any(_find(tree, "topology.subtopologies.source_topic_regex*"))
    forgotten: list[tuple[str, tuple[int, ...]]] = []
    partitions: list[tuple[str, tuple[int, ...]]] = []
    session = None
    if api == "Fetch":
        for topic in tree["topics"]:
            word = _word(topic.get("topic") if version < 13 else topic["topic_id"])
            partitions.append((str(word), tuple(entry["partition"] for entry in topic["partitions"])))
        if version >= 7:
            session = tree["session_id"], tree["session_epoch"]
            for topic in tree["forgotten_topics_data"]:
                word = _word(topic.get("topic") if version < 13 else topic["topic_id"])
                forgotten.append((str(word), tuple(topic["partitions"])))
    acks = tree["acks"] if api == "Produce" else None
    return Facts(topics, groups, transactional_ids, all_topics, forgotten, partitions, acks, session, correlation_id, client_id)


def facts_of(request: Request) -> Facts:
    def word(name: str | None, topic_id: bytes | None) -> str | None:
        return name if name is not None else topic_id and topic_id.hex()

    topics = [word(topic.name, topic.topic_id) for topic in request.topics]
    fetch = request.api == "Fetch"
    return Facts(
        sorted(topic for topic in topics if topic is not None),
        sorted(request.groups),
        sorted(request.transactional_ids),
        request.all_topics,
        [(str(word(topic.name, topic.topic_id)), topic.partitions) for topic in request.forgotten],
        [(str(word(topic.name, topic.topic_id)), topic.partitions) for topic in request.topics] if fetch else [],
        request.acks,
        request.session,
        request.correlation_id,
        request.client_id,
    )


# kafka-python


def _classes() -> dict[int, Any]:
    found = {}
    for module in ("admin", "consumer", "producer", "metadata", "sasl"):
        for value in vars(importlib.import_module(f"kafka.protocol.{module}")).values():
            if inspect.isclass(value) and issubclass(value, ApiMessage) and value is not ApiMessage and value.is_request():
                found[value.API_KEY] = value
    return found


KAFKA_PYTHON: dict[int, Any] = _classes()
KIO = {key: sorted(schema_name_map[name]) for key, name in api_key_map.items()}
# Those with the most to hide: many ways to name a topic, known tagged fields, null that means everything.
INTRICATE = (0, 1, 1, 1, 3, 9, 20, 24, 68, 75)
VERSIONS = [(key, version) for key, api in REQUESTS.items() for low, high, _ in api.layouts for version in range(low, high + 1)]


def facts_of_kafka_python(frame: bytes) -> Facts | None:
    """None if it does not know the version. Raises anything for what it does not accept."""
    key, version = int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")
    if key not in KAFKA_PYTHON:
        return None
    message = KAFKA_PYTHON[key].decode(bytes(frame), version=version, header=True, framed=True)
    header = message.header
    tree = message.to_dict(json=False)
    return facts_of_tree(REQUESTS[key].name, version, tree, header.correlation_id, header.client_id)


def facts_of_kio(frame: bytes) -> Facts | None:
    key, version = int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")
    if version not in KIO.get(key, ()):
        return None
    schema = load_request_schema(key, version)
    header, after = entity_reader(schema.__header_schema__)(frame, 4)
    body, _ = entity_reader(schema)(frame, 4 + after)
    tree = dataclasses.asdict(body)  # type: ignore[call-overload]
    return facts_of_tree(REQUESTS[key].name, version, tree, header.correlation_id, header.client_id)


# Random requests

_NAMES = ("orders", "payments", "a", "x.y_z-1", "größe", "", "t" * 249)


class Writer:
    """Writes random requests."""

    def __init__(self, seed: object) -> None:
        self.random = Random(str(seed))

    def value(self, kind: str, name: str) -> Any:
        random = self.random
        if name == "key_type":
            return random.choice((0, 1, 2))
        if name == "resource_type":
            return random.choice((2, 2, 4, 8, 16, 32))
        match kind:
            case "bool":
                return random.random() < 0.5
            case "string":
                return random.choice(_NAMES) if random.random() < 0.9 else "n" * random.randrange(300)
            case "bytes" | "records":
                return random.randbytes(random.choice((0, 1, 20, 126, 127, 128, 300)))
            case "uuid":
                return uuid.UUID(bytes=random.randbytes(16)) if random.random() < 0.95 else None
            case "float64":
                return random.choice((0.0, 1.5, -2.25))
            case "timedelta_i32" | "timedelta_i64":
                return datetime.timedelta(milliseconds=random.randrange(-1, 100_000))
            case "datetime_i64":
                return datetime.datetime.fromtimestamp(random.randrange(1, 10**9), datetime.UTC)
        # int64: kio makes time spans of some, and cannot express long ones.
        sizes = {"int8": 7, "int16": 15, "int32": 31, "int64": 40}
        low, high = (0, 65535) if kind == "uint16" else (-(2 ** sizes[kind]), 2 ** sizes[kind] - 1)
        return random.choice((0, 1, 2, -1 if low else 0, random.randrange(low, high + 1)))

    def one_identity(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Where a topic may be named or given by its id, not both: that would be refused."""
        if fields.get("topic_id") and fields.get("name") is not None:
            fields["topic_id" if self.random.random() < 0.5 else "name"] = None
        return fields

    def length(self) -> int:
        return self.random.choice((0, 1, 1, 1, 2, 3, 5))

    def client_id(self) -> str | None:
        return self.random.choice((None, "", "client", "ü" * 40))

    # kafka-python

    def _kafka_value(self, field: Any, version: int) -> Any:
        nullable = field.nullable_for_version_q(version)
        if nullable and self.random.random() < 0.25:
            return None
        if field.is_struct_array():
            return [self._kafka_struct(field, version) for _ in range(self.length())]
        if field.is_struct():
            return self._kafka_struct(field, version)
        if field.is_array():
            return [self.value(field.type_str.removeprefix("[]"), field.name) for _ in range(self.length())]
        return self.value(field.type_str, field.name)

    def _kafka_fields(self, struct: Any, version: int) -> dict[str, Any]:
        fields = [field for field in struct.fields.values() if field.for_version_q(version)]
        chosen = [field for field in fields if not field.tagged_field_q(version) or self.random.random() < 0.5]
        return self.one_identity({field.name: self._kafka_value(field, version) for field in chosen})

    def _kafka_struct(self, field: Any, version: int) -> Any:
        return field.data_class(version=version, **self._kafka_fields(field, version))

    def kafka_python(self, key: int, version: int) -> bytes:
        """Written by kafka-python."""
        message_class = KAFKA_PYTHON[key]
        message = message_class(version=version, **self._kafka_fields(message_class._struct, version))
        message.with_header(self.random.randrange(-(2**31), 2**31), self.client_id())
        return bytes(message.encode(version=version, header=True, framed=True))

    # kio

    def _kio_value(self, field: Any) -> Any:
        kind = field.type
        wire = field.metadata.get("kafka_type", "")
        if isinstance(kind, UnionType):
            if wire != "uuid" and self.random.random() < 0.25:
                return None
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            nested = dataclasses.is_dataclass(item)
            return tuple(self._kio_entity(item) if nested else self.value(wire, field.name) for _ in range(self.length()))
        return self._kio_entity(kind) if dataclasses.is_dataclass(kind) else self.value(wire, field.name)

    def _kio_entity(self, entity: Any) -> Any:
        values = self.one_identity({field.name: self._kio_value(field) for field in dataclasses.fields(entity)})
        return entity(**values)

    def kio(self, key: int, version: int) -> bytes:
        """Written by kio."""
        schema: Any = load_request_schema(key, version)
        header_class: Any = schema.__header_schema__
        assert header_class in (Header1, Header2)
        out = io.BytesIO()
        header = header_class(
            request_api_key=key,
            request_api_version=version,
            correlation_id=self.random.randrange(-(2**31), 2**31),
            client_id=self.client_id(),
        )
        entity_writer(header_class)(out, header)
        entity_writer(schema)(out, self._kio_entity(schema))
        return len(out.getvalue()).to_bytes(4, "big") + out.getvalue()

    def frame(self, key: int, version: int) -> bytes:
        """Written by one of them."""
        kio = version in KIO.get(key, ())
        if key not in KAFKA_PYTHON or (kio and self.random.random() < 0.3):
            return self.kio(key, version)
        return self.kafka_python(key, version)

    def any_frame(self) -> bytes:
        """Of any API and version, every other time of an intricate one."""
        key = self.random.choice(INTRICATE)
        versions = VERSIONS if self.random.random() < 0.5 else [entry for entry in VERSIONS if entry[0] == key]
        return self.frame(*self.random.choice(versions))

    def mutated(self, frame: bytes) -> bytes:
        """The frame with one to three changes; mostly the size field is mended, so that more than the size is tried."""
        random = self.random
        data = bytearray(frame)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            at = random.randrange(4, len(data)) if random.random() < 0.95 else random.randrange(len(data))
            match random.randrange(11):
                case 0:
                    data[at] ^= 1 << random.randrange(8)
                case 1:
                    data[at] = random.choice((0, 1, 2, 127, 128, 129, 255))
                case 2:
                    del data[at : at + random.choice((1, 1, 2, 4, 16))]
                case 3:
                    data[at:at] = random.choice((b"\0", b"\1", b"\xff\xff", b"\0\0", b"\xff\xff\xff\xff", b"\x80\x80\0"))
                case 4:
                    data[at:at] = data[at : at + random.randrange(1, 40)]
                case 5:
                    data[at : at + 4] = random.choice((b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\xff\xff\xff\xfe"))
                case 6 | 9 | 10:
                    zeros = [place for place in range(4, len(data)) if not data[place]]
                    if zeros:  # perhaps the number of tagged fields: now one or two, known or not, of true or false length
                        tag, size = random.choice((0, 1, 2, 99)), random.choice((0, 1, 5, 8, 12, 16))
                        body = random.choice((bytes(size), b"\x02a" + bytes(max(size - 2, 0)), random.randbytes(size)))
                        false = size if random.random() < 0.7 else random.randrange(40)
                        place = random.choice(zeros)
                        data[place : place + 1] = bytes([1, tag, false]) + body
                case 7:
                    at = random.choice((5, 7, 7, 13))  # API key, version, length of the client id
                    if at < len(data):
                        data[at] = random.randrange(20) if at == 7 else random.randrange(256)
                case 8:
                    other = random.randrange(4, len(data))
                    data[at : at + 8] = data[other : other + 8]
            if len(data) < 6:
                data += b"\0" * 6
        if random.random() < 0.9:
            data[:4] = (len(data) - 4).to_bytes(4, "big")
        return bytes(data)
