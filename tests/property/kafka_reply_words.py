"""Random replies of every API and version, and what two other programs read in replies: kafka-python and kio."""

import dataclasses
import importlib
import inspect
import io
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from kafka.protocol.api_message import ApiMessage
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.serial.errors import OutOfBoundValue

from .kafka_words import KAFKA_PYTHON, KIO, Writer

_ERRORS = (0, 0, 0, 3, 5, 16, 29, 35)  # that both packages know


def _classes() -> dict[int, Any]:
    found = {}
    for module in ("admin", "consumer", "producer", "metadata", "sasl"):
        for value in vars(importlib.import_module(f"kafka.protocol.{module}")).values():
            if inspect.isclass(value) and issubclass(value, ApiMessage) and value is not ApiMessage and not value.is_request():
                found[value.API_KEY] = value
    return found


REPLIES: dict[int, Any] = _classes()


class ReplyWriter(Writer):
    """Writes random replies."""

    def value(self, kind: str, name: str) -> Any:
        if kind == "bitfield":  # kafka-python's reading of authorized operations, with its default
            return set(self.random.sample(range(3, 13), 3)) if self.random.random() < 0.5 else None
        if kind == "error_code":
            return ErrorCode(self.random.choice(_ERRORS))
        if kind == "int16" and name.endswith("error_code"):
            return self.random.choice(_ERRORS)
        return super().value(kind, name)

    def one_identity(self, fields: dict[str, Any]) -> dict[str, Any]:
        return fields  # a reply has both

    def reply(self, key: int, version: int) -> bytes:
        if key not in REPLIES or (version in KIO.get(key, ()) and self.random.random() < 0.3):
            return self._kio_reply(key, version)
        reply_class = REPLIES[key]
        reply = reply_class(version=version, **self._kafka_fields(reply_class._struct, version))
        reply.with_header(self.random.randrange(-(2**31), 2**31))
        return bytes(reply.encode(header=True, framed=True))

    def _kio_reply(self, key: int, version: int) -> bytes:
        schema: Any = load_response_schema(key, version)
        header_class: Any = schema.__header_schema__
        out = io.BytesIO()
        entity_writer(header_class)(out, header_class(correlation_id=self.random.randrange(2**31)))
        entity_writer(schema)(out, self._kio_entity(schema))
        return len(out.getvalue()).to_bytes(4, "big") + out.getvalue()


def kafka_python_reply(frame: bytes, key: int, version: int) -> tuple[int, Any] | None:
    """Correlation id and body, or None if it does not know the API. Fails unless it would write the very same bytes."""
    if key not in REPLIES or (key == 18 and version and any(frame[8:10])):  # it takes any error of ApiVersions for version 0
        return None
    reply = REPLIES[key].decode(frame, version=version, header=True, framed=True)
    assert bytes(reply.encode(header=True, framed=True)) == frame
    return reply.header.correlation_id, reply.to_dict(json=False)


def kio_reply(frame: bytes, key: int, version: int) -> tuple[int, Any] | None:
    """The same of kio, or None if it does not know the version, or such times. Fails unless it reads the frame to its end."""
    if version not in KIO.get(key, ()):
        return None
    schema: Any = load_response_schema(key, version)
    header, after = entity_reader(schema.__header_schema__)(frame, 4)
    try:
        body, size = entity_reader(schema)(frame, 4 + after)
    except OutOfBoundValue:  # a timestamp before 1970
        return None
    assert 4 + after + size == len(frame)
    return header.correlation_id, dataclasses.asdict(body)


def reply_trees(frame: bytes, key: int, version: int) -> list[Any]:
    """The body as dictionaries and lists, as each package that knows it reads it."""
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    read = [found for oracle in (kafka_python_reply, kio_reply) if (found := oracle(frame, key, version)) is not None]
    assert read
    assert {correlation_id for correlation_id, _ in read} == {int.from_bytes(frame[4:8], "big", signed=True)}
    return [tree for _, tree in read]


def request_tree(frame: bytes) -> Any:
    """The body of a request as dictionaries and lists."""
    key, version = int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")
    if key in KAFKA_PYTHON:
        return KAFKA_PYTHON[key].decode(frame, version=version, header=True, framed=True).to_dict(json=False)
    schema: Any = load_request_schema(key, version)
    _, after = entity_reader(schema.__header_schema__)(frame, 4)
    return dataclasses.asdict(entity_reader(schema)(frame, 4 + after)[0])


def error_codes(tree: Any) -> Iterator[int]:
    """Every error code in a reply, those of a structure before those inside."""
    if isinstance(tree, dict):
        yield from (int(value) for name, value in tree.items() if name in ("error_code", "partition_error_code"))
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for value in tree:
            yield from error_codes(value)


def element_word(node: Any) -> str:
    """The name of a topic, a group and so on, or else a topic's id in hexadecimal digits, or else nothing."""
    if isinstance(node, str):
        return node
    if "resource_name" in node:
        return f"{node['resource_type']} {node['resource_name']}"
    for key in ("name", "topic", "topic_name", "group_id", "key", "transactional_id"):
        if node.get(key):
            return str(node[key])
    topic_id = node.get("topic_id")
    return topic_id.hex if isinstance(topic_id, uuid.UUID) and topic_id.int else ""


# The arrays of requests whose elements are told apart, and those of replies that repeat them, as both packages call them.
ARRAYS = {
    0: ("topic_data", "responses"),
    1: ("topics", "responses"),
    10: ("coordinator_keys", "coordinators"),
    15: ("groups", "groups"),
    20: ("topics", "responses"),
    32: ("resources", "results"),
    33: ("resources", "responses"),
    37: ("topics", "results"),
    42: ("groups_names", "results"),
    44: ("resources", "responses"),
    65: ("transactional_ids", "transaction_states"),
    69: ("group_ids", "groups"),
    77: ("group_ids", "groups"),
    89: ("group_ids", "groups"),
}


def asked_array(key: int, version: int) -> str:
    return "topic_names" if key == 20 and version < 6 else ARRAYS.get(key, ("topics", ""))[0]


def told_array(key: int) -> str:
    return ARRAYS.get(key, ("", "topics"))[1]


def asked_elements(frame: bytes) -> list[Any]:
    """What the array of a request consists of, as the package that knows it reads it."""
    return list(getattr(_holder(_request(frame)[1], *_api_of(frame)), asked_array(*_api_of(frame))))


def with_asked(frame: bytes, elements: Sequence[Any]) -> bytes:
    """The request as the same package writes it with these elements in its array."""
    (key, version), array = _api_of(frame), asked_array(*_api_of(frame))
    header, message = _request(frame)
    if key in KAFKA_PYTHON:
        setattr(_holder(message, key, version), array, list(elements))
        return bytes(message.encode(version=version, header=True, framed=True))
    return _written(header, dataclasses.replace(message, **{array: tuple(elements)}))


def told_elements(frame: bytes, key: int, version: int) -> list[Any]:
    """The same of a reply."""
    return list(getattr(_holder(_reply(frame, key, version)[1], key, version), told_array(key)) or ())


def with_told(frame: bytes, key: int, version: int, elements: Sequence[Any]) -> bytes:
    header, message = _reply(frame, key, version)
    if key in REPLIES:
        setattr(_holder(message, key, version), told_array(key), list(elements))
        return bytes(message.encode(header=True, framed=True))
    return _written(header, dataclasses.replace(message, **{told_array(key): tuple(elements)}))


def told_trees(tree: Any, key: int, version: int) -> Any:
    """The array itself of a reply as `reply_trees` has it."""
    return _holder(tree, key, version)[told_array(key)]


def asked_trees(tree: Any, key: int, version: int) -> list[Any]:
    """The same of a request."""
    return list(_holder(tree, key, version)[asked_array(key, version)])


def _holder(message: Any, key: int, version: int) -> Any:
    """What has the array: since version 8 of OffsetFetch its only group."""
    if key != 9 or version < 8:
        return message
    [group] = message["groups"] if isinstance(message, dict) else message.groups
    return group


def _api_of(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[4:6], "big"), int.from_bytes(frame[6:8], "big")


def _request(frame: bytes) -> tuple[Any, Any]:
    """Header and body; kafka-python keeps the header to itself."""
    key, version = _api_of(frame)
    if key in KAFKA_PYTHON:
        return None, KAFKA_PYTHON[key].decode(frame, version=version, header=True, framed=True)
    return _read(load_request_schema(key, version), frame)


def _reply(frame: bytes, key: int, version: int) -> tuple[Any, Any]:
    if key in REPLIES:
        return None, REPLIES[key].decode(frame, version=version, header=True, framed=True)
    return _read(load_response_schema(key, version), frame)


def _read(schema: Any, frame: bytes) -> tuple[Any, Any]:
    header, after = entity_reader(schema.__header_schema__)(frame, 4)
    return header, entity_reader(schema)(frame, 4 + after)[0]


def _written(header: Any, body: Any) -> bytes:
    out = io.BytesIO()
    entity_writer(type(header))(out, header)
    entity_writer(type(body))(out, body)
    return len(out.getvalue()).to_bytes(4, "big") + out.getvalue()
