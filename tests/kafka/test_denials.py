"""What we say is what the real broker says when it has no ACL for the same request, in every version that it speaks.

Of all that a request names, of its topics alone, and of one of its two topics. Only how the broker puts its errors in words is
left out: there it is not consistent itself.
"""

import contextlib
import copy
import datetime
import socket
import uuid
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

import pytest
from confluent_kafka import TopicCollection, Uuid
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, NewTopic, ResourcePatternType, ResourceType

from parsers.kafka import denials
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.messages import MESSAGES
from parsers.kafka.replies import first_error
from parsers.kafka.request import Named, skim
from parsers.kafka.splits import merged, place_of, splits_exactly, without
from policies.kafka_acls import ASKS
from tests.harness import eventually
from tests.kafka import broker
from tests.kafka.admin import PATIENCE, Administrator
from tests.kafka.broker import Broker
from tests.kafka.conftest import require
from tests.kafka.raw import filter_metadata
from tests.property.kafka_reply_words import asked_elements, element_word, reply_trees, told_trees, with_asked
from tests.property.kafka_words import KAFKA_PYTHON, Writer

NAME = "secret"  # of the topic, the group and the transactional id
ALLOWED = "orders"  # a topic
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
REFUSALS = {29, 30, 31, 53, 65}  # for want of a right
_NOT_YET = (14, 15, 16, 30)  # the coordinator is loading, not available, somebody else; ACLs have not arrived
_VALUES = {"acks": 1, "resource_type": 2, "replica_id": -1, "session_epoch": -1, "num_partitions": 1, "replication_factor": 1}
_VALUES |= {"response_partition_limit": 10, "count": 1, "endpoint_type": 1, "timeout_ms": 1000}
_VALUES |= dict.fromkeys(("resource_pattern_type", "pattern_type_filter", "pattern_type", "operation", "permission_type"), 3)
# By kind of resource, a setting that it has.
_CONFIGS = {2: ("retention.ms", "100000"), 32: ("consumer.session.timeout.ms", "46000")}
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
        self.values = _VALUES
        self.topic_id = topic_id
        self.key = self.version = -1

    def value(self, kind: str, name: str) -> Any:
        if name == "transactional_id" and self.key == 0:
            return None
        if name == "resource_name" and self.values.get("resource_type") in (4, 8):
            return "1"  # a broker's configuration, and that of its loggers
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
        return self.values.get(name, 0)

    def one_identity(self, fields: dict[str, Any]) -> dict[str, Any]:
        if self.key == 3 and self.version < 12:  # which has ids, and takes none
            return fields | {"topic_id": None} if "topic_id" in fields else fields
        return fields | {"name": None} if fields.get("topic_id") and "name" in fields else fields

    def length(self) -> int:
        return 1

    def client_id(self) -> str:
        return "client"

    def frame(self, key: int, version: int) -> bytes:
        self.key, self.version = key, version
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
        for future in admin.create_topics([NewTopic(topic, 1, 1) for topic in (NAME, ALLOWED)]).values():
            future.result(PATIENCE)
        described = admin.describe_topics(TopicCollection([NAME, ALLOWED]))
        self.ids = {topic: _uuid(future.result(PATIENCE).topic_id) for topic, future in described.items()}
        self.port = kafka.port()
        self.writer = Sane(self.ids[NAME])
        [tree, *_] = reply_trees(ask(self.port, self.writer.frame(18, 0)), 18, 0)
        self.offered = {offer["api_key"]: range(offer["min_version"], offer["max_version"] + 1) for offer in tree["api_keys"]}

    def allow(self, *resources: tuple[ResourceType, str], wait: bool = True) -> None:
        who, literal = "User:ANONYMOUS", ResourcePatternType.LITERAL
        bindings = [
            AclBinding(kind, name, literal, who, "*", AclOperation.ALL, AclPermissionType.ALLOW) for kind, name in resources
        ]
        for future in self._administrator.client.create_acls(bindings).values():
            future.result(PATIENCE)
        topics = {name for kind, name in resources if kind is ResourceType.TOPIC and wait}
        eventually(lambda: topics <= self._shown(), "the ACLs have arrived at the broker", PATIENCE)

    def _shown(self) -> set[str]:
        [tree, *_] = reply_trees(ask(self.port, self.of_all_topics(1)), 3, 1)
        return {topic["name"] for topic in tree["topics"]}

    def allow_all_but_topics(self) -> None:
        self.allow((ResourceType.GROUP, NAME), (ResourceType.TRANSACTIONAL_ID, NAME))
        eventually(self._coordinates, "the group's coordinator has come up", PATIENCE)
        self._administrator.commit(NAME, NAME)

    def allow_a_group_and_a_transactional_id(self) -> None:
        """And wait until somebody answers for them."""
        self.allow((ResourceType.GROUP, ALLOWED), (ResourceType.TRANSACTIONAL_ID, ALLOWED))
        for kind in (0, 1):
            self.writer.values = _VALUES | {"key_type": kind}
            frame = with_asked(self.writer.frame(10, 4), [ALLOWED])
            eventually(partial(self._is_answered, frame), "a coordinator has come up", PATIENCE)
        self.writer.values = _VALUES

    def _is_answered(self, frame: bytes) -> bool:
        return first_error(ask(self.port, frame), 10, 4) == 0

    def _coordinates(self) -> bool:
        """Ask who coordinates the group, which makes somebody do it, and then that one. Transactions need none here."""
        ask(self.port, self.writer.frame(10, 4))
        group = first_error(ask(self.port, self.writer.frame(9, 7)), 9, 7)
        transaction = first_error(ask(self.port, self.writer.frame(65, 0)), 65, 0)
        return group not in _NOT_YET and transaction != denials.TRANSACTIONAL_ID_DENIED

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

    def with_both(self, key: int, version: int) -> bytes:
        """The same request about two things: one that is allowed, and one that is not."""
        frame = self.writer.frame(key, version)
        if key == 75:
            message = KAFKA_PYTHON[key].decode(frame, version=version, header=True, framed=True)
            message.cursor = None
            frame = bytes(message.encode(version=version, header=True, framed=True))
        [element] = asked_elements(frame)
        if isinstance(element, str):
            return with_asked(frame, [ALLOWED, element])
        if hasattr(element, "resource_type"):
            setting, value = _CONFIGS[element.resource_type]
            if hasattr(element, "configuration_keys"):
                element.configuration_keys = [setting]
            for entry in getattr(element, "configs", ()):
                entry.name, entry.value = setting, value
        other = copy.copy(element)
        for field in ("name", "topic", "resource_name"):
            if getattr(element, field, None) == NAME:
                setattr(other, field, ALLOWED)
        if getattr(element, "topic_id", None) == self.ids[NAME]:
            other.topic_id = self.ids[ALLOWED]
        return with_asked(frame, [other, element])

    def commit(self, group: str) -> None:
        self._administrator.commit(group, ALLOWED)

    def of_both_groups(self, version: int) -> bytes:
        """A request for all offsets of a group that is allowed and of one that is not."""
        message = KAFKA_PYTHON[9].decode(self.writer.frame(9, version), version=version, header=True, framed=True)
        [group] = message.groups
        group.topics = None
        other = copy.copy(group)
        other.group_id = ALLOWED
        message.groups = [other, group]
        return bytes(message.encode(version=version, header=True, framed=True))

    def allow_every_topic_group_and_id(self) -> None:
        self.allow(*((kind, "*") for kind in (ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)))
        self.allow((ResourceType.TOPIC, "*"), wait=False)
        eventually(lambda: not self._is_refused(), "the ACLs have arrived at the broker", PATIENCE)
        eventually(self._coordinates, "the group's coordinator has come up", PATIENCE)

    def _is_refused(self) -> bool:
        """Whether a client may not ask for a topic's offsets."""
        return first_error(ask(self.port, self.writer.frame(2, 1)), 2, 1) == denials.TOPIC_DENIED

    def codes_of(self, api: str, *versions: int, **values: int) -> set[int]:
        """The first error of the replies to requests of an API, in these versions or in all. ``values``: of fields."""
        key = next(key for key, known in REQUESTS.items() if known.name == api)
        self.writer.values = _VALUES | values
        found = set()
        for version in versions or self.offered.get(key, ()):
            if (api, version) not in UNSPOKEN:
                with contextlib.suppress(TimeoutError):  # what waits for something has not been refused
                    reply = ask(self.port, self.writer.frame(key, version))
                    error = first_error(reply, key, version) if reply else None
                    found |= {error} if error is not None else set()
        self.writer.values = _VALUES
        return found

    def codes(self) -> dict[str, set[int]]:
        """Of all APIs that the broker offers on this listener. Those that delete come last."""
        known = [REQUESTS[key].name for key in self.offered if key in MESSAGES]
        return {api: self.codes_of(api) for api in sorted(known, key=lambda api: api.startswith("Delete"))}

    def fetch(self, version: int, replica: int) -> bytes:
        """Of a client (-1), or of the broker of this number."""
        frame = self.writer.frame(1, version)
        message = KAFKA_PYTHON[1].decode(frame, version=version, header=True, framed=True)
        if version < 15:
            message.replica_id = replica
        else:
            message.replica_state = type(message).ReplicaState(replica_id=replica)
        return bytes(message.encode(version=version, header=True, framed=True))

    def of_all_topics(self, version: int) -> bytes:
        """A request for metadata."""
        message = KAFKA_PYTHON[3].decode(self.writer.frame(3, version), version=version, header=True, framed=True)
        message.topics = None if version else []
        return bytes(message.encode(version=version, header=True, framed=True))

    def split_differences(self, kind: str, **values: int) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
        """What the broker says of two things of this kind, and what it says of the one with our words for the other.

        Where that differs; and by API what it said, in its last version. ``values``: of fields of the requests.
        """
        found = {}
        said = {}
        self.writer.values = _VALUES | values
        for key, versions in self.offered.items():
            api = REQUESTS[key].name if key in MESSAGES else ""
            for version in versions:
                if not api or not splits_exactly(key, version) or (api, version) in UNSPOKEN or api == "DeleteTopics":
                    continue
                frame = self.with_both(key, version)
                request = skim(frame)
                assert len(request.elements) == 2
                element = request.elements[1]
                denied = element.resource if isinstance(element, Named) else f"topic:{NAME}"
                assert denied is not None
                if denied.partition(":")[0] != kind:
                    continue
                theirs = ask(self.port, frame)
                entries = denials.entries(request, frame, {1: denials.code_of(denied)})
                ours = merged(ask(self.port, without(frame, request, [1])), key, version, place_of(request), entries)
                told = [plain(reply_trees(reply, key, version)[0]) for reply in (theirs, ours)]
                for tree in told:
                    told_trees(tree, key, version).sort(key=element_word)
                if told[0] != told[1]:
                    found[f"{api} {version}"] = (told[0], told[1])
                said[api] = told_trees(told[0], key, version)
        self.writer.values = _VALUES
        return found, said


def _uuid(found: Uuid) -> uuid.UUID:
    return uuid.UUID(int=(found.get_most_significant_bits() % 2**64) << 64 | found.get_least_significant_bits() % 2**64)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require(broker.missing())
    with Broker(tmp_path_factory.mktemp("kafka"), acls=True) as kafka:
        yield Stage(kafka)


def test_a_denial_is_the_broker_s_own(stage: Stage) -> None:
    assert stage.differences(None) == {}


def test_a_denial_of_one_of_two_groups_or_transactional_ids_is_the_broker_s_own(stage: Stage) -> None:
    stage.allow_a_group_and_a_transactional_id()
    differences, said = stage.split_differences("group")
    assert differences == {}
    describing = {"DescribeGroups", "ConsumerGroupDescribe", "ShareGroupDescribe", "StreamsGroupDescribe"}
    assert said.keys() == describing | {"FindCoordinator", "DeleteGroups"}
    coordinators = {entry["key"]: (entry["error_code"], entry["node_id"]) for entry in said["FindCoordinator"]}
    assert coordinators == {ALLOWED: (0, 1), NAME: (denials.GROUP_DENIED, -1)}
    for values in ({"key_type": 1}, {}):
        differences, said = stage.split_differences("transactionalId", **values)
        assert differences == {}
        assert said.keys() == {"DescribeTransactions"} | ({"FindCoordinator"} if values else set())


def test_a_denial_of_one_of_two_groups_whose_configurations_are_asked_for_is_the_broker_s_own(stage: Stage) -> None:
    stage.allow_a_group_and_a_transactional_id()
    differences, said = stage.split_differences("group", resource_type=32)
    assert differences == {}
    for api in ("DescribeConfigs", "IncrementalAlterConfigs"):
        assert [(entry["resource_name"], entry["error_code"]) for entry in said[api]] == [(ALLOWED, 0), (NAME, 30)]


def test_a_denial_of_one_of_two_groups_with_all_topics_is_the_broker_s_own(stage: Stage) -> None:
    """Of OffsetFetch. Who may have all offsets may see all topics."""
    stage.allow_a_group_and_a_transactional_id()
    stage.commit(ALLOWED)
    stage.allow((ResourceType.TOPIC, ALLOWED))
    for version in (version for version in stage.offered[9] if version >= 8):
        frame = stage.of_both_groups(version)
        request = skim(frame)
        theirs = ask(stage.port, frame)
        entries = denials.entries(request, frame, {1: denials.GROUP_DENIED})
        ours = merged(ask(stage.port, without(frame, request, [1])), 9, version, place_of(request), entries)
        told = [plain(reply_trees(reply, 9, version)[0])["groups"] for reply in (theirs, ours)]
        for groups in told:
            groups.sort(key=element_word)
        assert told[0] == told[1]
        assert [(group["group_id"], group["error_code"], len(group["topics"])) for group in told[0]] == [
            (ALLOWED, 0, 1),
            (NAME, denials.GROUP_DENIED, 0),
        ]


def test_a_denial_of_topics_alone_is_the_broker_s_own(stage: Stage) -> None:
    """Of requests that name a group or a transactional id as well, which are allowed."""
    stage.allow_all_but_topics()
    found = stage.differences(denials.TOPIC_DENIED)
    assert {name: both for name, both in found.items() if name.split()[0] not in SHARE_GROUPS} == {}


def test_a_denial_of_one_of_two_topics_is_the_broker_s_own(stage: Stage) -> None:
    """All that can be asked twice with the same answer: topics are not deleted."""
    stage.allow_all_but_topics()
    stage.allow((ResourceType.TOPIC, ALLOWED))
    differences, said = stage.split_differences("topic")
    assert differences == {}
    for api in ("DescribeConfigs", "AlterConfigs", "IncrementalAlterConfigs"):
        assert [(entry["resource_name"], entry["error_code"]) for entry in said[api]] == [(ALLOWED, 0), (NAME, 29)]


def test_metadata_of_all_topics_is_what_the_broker_shows_to_who_may_see_some(stage: Stage) -> None:
    stage.allow((ResourceType.TOPIC, ALLOWED))
    frames = {version: stage.of_all_topics(version) for version in stage.offered[3]}
    seen = {version: ask(stage.port, frame) for version, frame in frames.items()}
    stage.allow((ResourceType.TOPIC, NAME))
    for version, frame in frames.items():
        shown = ask(stage.port, frame)
        assert len(shown) > len(seen[version])
        assert filter_metadata(shown, version, lambda resource: resource != f"topic:{NAME}") == seen[version]


def test_what_a_broker_refuses_to_who_may_use_every_topic_group_and_id_is_what_the_table_calls_the_clusters(
    stage: Stage,
) -> None:
    """policies/kafka_acls.py. This test is the last one: it makes and deletes what the others need."""
    stage.allow_every_topic_group_and_id()
    refused = {api: codes for api, codes in stage.codes().items() if REFUSALS & codes}
    of_the_cluster = {api for api, asks in ASKS.items() if any(ask.endswith(" CLUSTER") for ask in asks)}
    of_the_cluster -= {"ListGroups"}  # of which the list is what may be described
    assert refused.keys() == of_the_cluster | {"AddPartitionsToTxn"}  # of brokers, from version 4 on
    assert all(refused[api] - {0} == {denials.CLUSTER_DENIED} for api in of_the_cluster)
    assert [denials.CLUSTER_DENIED in stage.codes_of("AddPartitionsToTxn", version) for version in range(6)] == [
        *[False] * 4,
        *[True] * 2,
    ]


@pytest.mark.parametrize(("kind", "refusal"), [(2, 0), (32, 0), (4, 31), (8, 31), (16, 31)])
def test_of_configurations_topics_and_groups_have_rights_of_their_own_and_the_rest_is_the_clusters(
    stage: Stage, kind: int, refusal: int
) -> None:
    stage.allow_every_topic_group_and_id()
    # The older way to change them knows no loggers.
    for api in ("DescribeConfigs", "IncrementalAlterConfigs", *(("AlterConfigs",) if kind != 8 else ())):
        codes = stage.codes_of(api, resource_type=kind)
        assert codes & REFUSALS == ({refusal} if refusal else set()), api


def test_who_fetches_as_a_follower_or_asks_for_a_coordinator_of_share_groups_needs_rights_to_the_cluster(stage: Stage) -> None:
    stage.allow_every_topic_group_and_id()
    for version in stage.offered[1]:
        for replica, refused in ((-1, False), (7, True)):
            answer = ask(stage.port, stage.fetch(version, replica))
            assert (first_error(answer, 1, version) == denials.TOPIC_DENIED) is refused, (version, replica)
    assert stage.codes_of("FindCoordinator", 6, key_type=2) == {denials.CLUSTER_DENIED}
    assert not stage.codes_of("FindCoordinator", 6, key_type=1) & REFUSALS
