"""What a test does to a broker as its administrator, beforehand and afterwards."""

from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests.kafka.broker import ADMIN, INTERNAL, Broker
from tests.kafka.scenario import Case

PATIENCE = 30.0
_TYPES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactionalId": ResourceType.TRANSACTIONAL_ID,
}


class Administrator:
    def __init__(self, broker: Broker) -> None:
        self._access = {
            "bootstrap.servers": broker.address(INTERNAL), "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
            "sasl.username": ADMIN.name, "sasl.password": ADMIN.password, "log_level": 0,
        }  # fmt: skip
        self.client = AdminClient(self._access | {"error_cb": lambda _: None})

    def prepare(self, cases: Sequence[Case]) -> None:
        """Make the topics of all cases, with the records that they start with."""
        topics = [NewTopic(topic, partitions, 1) for case in cases for topic, partitions in case.topics.items()]
        for future in self.client.create_topics(topics).values():
            future.result(PATIENCE)
        producer = Producer(self._access)
        for case in cases:
            for topic, values in case.scenario.seed.items():
                for value in values:
                    producer.produce(case.full(topic), value.encode())
        assert producer.flush(PATIENCE) == 0

    def allow(self, principals: Mapping[Case, str]) -> None:
        """Give the principal of each case ("User:x") the ACLs of the case."""
        bindings = [_binding(case, line, principal) for case, principal in principals.items() for line in case.scenario.acls]
        for future in self.client.create_acls(bindings).values():
            future.result(PATIENCE)

    def commit(self, group: str, topic: str) -> None:
        """Make a group, with offset 0 of the topic's first partition."""
        consumer = Consumer(self._access | {"group.id": group})
        consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
        consumer.close()

    def records(self, topics: Iterable[str]) -> dict[str, list[str]]:
        """The committed records of partition 0 and up of these topics, sorted."""
        found: dict[str, list[str]] = {topic: [] for topic in topics}
        consumer = Consumer(
            self._access | {"group.id": "administrator", "auto.offset.reset": "earliest", "enable.partition.eof": True}
        )
        known = consumer.list_topics(timeout=PATIENCE).topics
        open_ends = [TopicPartition(topic, number, 0) for topic in found for number in known[topic].partitions]
        consumer.assign(open_ends)
        left = len(open_ends)
        while left:
            message = consumer.poll(PATIENCE)
            assert message is not None, f"{left} partitions were not read to their ends"
            if message.error() is None:
                found[message.topic()].append(message.value().decode())
            else:
                left -= 1  # the end of a partition
        consumer.close()
        return {topic: sorted(values) for topic, values in found.items()}


def _binding(case: Case, line: str, principal: str) -> AclBinding:
    operation, kind, name = line.split()
    kind, _, prefix = kind.partition("-")
    return AclBinding(
        _TYPES[kind],
        case.full(name),
        ResourcePatternType.PREFIXED if prefix else ResourcePatternType.LITERAL,
        principal,
        "*",
        AclOperation[operation.upper()],
        AclPermissionType.ALLOW,
    )
