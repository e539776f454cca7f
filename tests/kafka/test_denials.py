"""A denial is what the real broker says when it has no ACL for the same request, in every version that it speaks.

Only how it puts its errors in words is left out: there the broker itself is not consistent.
"""

import datetime
import socket
import uuid
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, NewTopic, ResourcePatternType, ResourceType

from parsers.kafka import denials
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.messages import MESSAGES
from parsers.kafka.request import skim
from tests.harness import eventually
from tests.kafka import broker
from tests.kafka.admin import PATIENCE, Administrator
from tests.kafka.broker import Broker
from tests.kafka.conftest import require
from tests.property.kafka_reply_words import reply_trees
from tests.property.kafka_words import KAFKA_PYTHON, Writer

NAME = "secret"  # of the topic, the group and the transactional id
ANSWERED_IN_PART = {  # what the broker does not refuse, or refuses for another reason first
    "Metadata": "has the brokers as well",
    "ListGroups": "lists those that may be seen: none",
    "ListTransactions": "lists those that may be seen: none",
    "DescribeCluster": "may be asked by everybody",
    "ApiVersions": "may be asked by everybody",
    "GetTelemetrySubscriptions": "may be asked by everybody",
    "PushTelemetry": "may be asked by everybody",
    "SaslHandshake": "not on this listener",
    "SaslAuthenticate": "not on this listener",
    "CreateDelegationToken": "not on this listener",
    "RenewDelegationToken": "not on this listener",
    "ExpireDelegationToken": "not on this listener",
    "DescribeDelegationToken": "not on this listener",
}
SHARE_GROUPS = {
    "AlterShareGroupOffsets": "tells the topic's id, which nobody here knows",
    "DeleteShareGroupOffsets": "wants such a group to exist first",
}
UNSPOKEN = {("Produce", 0), ("Produce", 1), ("Produce", 2)}  # offered for the sake of an old client, and then refused
_NO_COORDINATOR = (14, 15, 16)  # loading, not available, somebody else
_VALUES = {"acks": 1, "resource_type": 2, "replica_id": -1, "session_epoch": -1, "num_partitions": 1, "replication_factor": 1}
_VALUES |= {"response_partition_limit": 10, "count": 2, "endpoint_type": 1, "timeout_ms": 1000}
_VALUES |= dict.fromkeys(("resource_pattern_type", "pattern_type_filter", "pattern_type", "operation", "permission_type"), 3)
_VALUES |= {"resource_type_filter": 2, "permission_type_filter": 3}


class Steady(Random):
    """So that nothing that may be null is, and no tagged fields are written."""

    def random(self) -> float:
        return 0.9


class Sane(Writer):
    """Requests that make sense to the broker: of each array one element, and everything in it is called NAME."""

    def __init__(self, topic_id: uuid.UUID) -> None:
        super().__init__("sane")
        self.random = Steady()
        self.topic_id = topic_id
        self.key = -1

    def value(self, kind: str, name: str) -> Any:
        if name == "transactional_id" and self.key == 0:
            return None
        match kind:
            case "bool":
                return False
            case "string":
                return NAME
            case "bytes" | "records":
                return b""
            case "uuid":
                return self.topic_id
            case "timedelta_i32" | "timedelta_i64":
                return datetime.timedelta(seconds=1)
        return _VALUES.get(name, 0)

    def one_identity(self, fields: dict[str, Any]) -> dict[str, Any]:
        return fields | {"name": None} if fields.get("topic_id") and "name" in fields else fields

    def length(self) -> int:
        return 1

    def client_id(self) -> str:
        return "client"

    def frame(self, key: int, version: int) -> bytes:
        self.key = key
        return self.kafka_python(key, version) if key in KAFKA_PYTHON else self.kio(key, version)


def ask(port: int, frame: bytes) -> bytes:
    """The broker's reply; empty if it closes the connection instead."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(frame)
        reply = b""
        while len(reply) < 4 or len(reply) < 4 + int.from_bytes(reply[:4], "big"):
            received = connection.recv(65536)
            if not received:
                return b""
            reply += received
        return reply


def plain(tree: Any) -> Any:
    """Without what may differ: sentences and times."""
    if isinstance(tree, dict):
        left_out = ("throttle_time_ms", "throttle_time", "error_message")
        return {name: plain(value) for name, value in tree.items() if name not in left_out}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    return int(tree) if hasattr(tree, "value") else tree


class Stage:
    def __init__(self, kafka: Broker) -> None:
        self._administrator = Administrator(kafka)
        admin = self._administrator.client
        admin.create_topics([NewTopic(NAME, 1, 1)])[NAME].result(PATIENCE)
        described = admin.describe_topics(TopicCollection([NAME]))[NAME].result(PATIENCE)
        found = described.topic_id
        bits = (found.get_most_significant_bits() % 2**64) << 64 | found.get_least_significant_bits() % 2**64
        self.port = kafka.port()
        self.writer = Sane(uuid.UUID(int=bits))
        [tree, *_] = reply_trees(ask(self.port, self.writer.frame(18, 0)), 18, 0)
        self.offered = {offer["api_key"]: range(offer["min_version"], offer["max_version"] + 1) for offer in tree["api_keys"]}

    def allow_all_but_topics(self) -> None:
        kinds = (ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)
        operation, permission = AclOperation.ALL, AclPermissionType.ALLOW
        bindings = [
            AclBinding(kind, NAME, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, permission) for kind in kinds
        ]
        for future in self._administrator.client.create_acls(bindings).values():
            future.result(PATIENCE)
        eventually(self._coordinates, "the group's coordinator has come up", PATIENCE)
        self._administrator.commit(NAME, NAME)

    def _coordinates(self) -> bool:
        """Ask who coordinates the group, which makes somebody do it, and then that one."""
        ask(self.port, self.writer.frame(10, 4))
        [tree, *_] = reply_trees(ask(self.port, self.writer.frame(9, 7)), 9, 7)
        return int(tree["error_code"]) not in _NO_COORDINATOR

    def differences(self, code: int | None) -> dict[str, tuple[Any, Any]]:
        """What the broker says and what we say, where that differs. ``code``: of what is denied, None for all."""
        found = {}
        for key, versions in self.offered.items():
            api = REQUESTS[key].name if key in MESSAGES else ""
            if not api or api in ANSWERED_IN_PART:
                continue
            for version in versions:
                frame = self.writer.frame(key, version)
                request = skim(frame)
                resources = [f"topic:{NAME}"] * bool(request.topics)
                resources += [f"group:{group}" for group in request.groups]
                resources += [f"transactionalId:{name}" for name in request.transactional_ids]
                if (api, version) in UNSPOKEN or (code and (not request.topics or len(set(resources)) < 2)):
                    continue
                ours = denials.denial(request, frame, code or denials.denied_code(resources, lambda _: False))
                try:
                    theirs = ask(self.port, frame)
                except TimeoutError:
                    found[f"{api} {version}"] = ("silence", None)
                    continue
                assert ours is not None
                told = [plain(reply_trees(reply, key, version)[0]) if reply else "closed" for reply in (theirs, ours)]
                if told[0] != told[1]:
                    found[f"{api} {version}"] = (told[0], told[1])
        return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require(broker.missing())
    with Broker(tmp_path_factory.mktemp("kafka"), acls=True) as kafka:
        yield Stage(kafka)


def test_a_denial_is_the_broker_s_own(stage: Stage) -> None:
    assert stage.differences(None) == {}


def test_a_denial_of_topics_alone_is_the_broker_s_own(stage: Stage) -> None:
    """Of requests that name a group or a transactional id as well, which are allowed."""
    stage.allow_all_but_topics()
    found = stage.differences(denials.TOPIC_DENIED)
    assert {name: both for name, both in found.items() if name.split()[0] not in SHARE_GROUPS} == {}
