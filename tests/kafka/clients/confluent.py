"""Runs jobs (see jobs.py) with confluent-kafka, that is with librdkafka."""

from typing import Any

import jobs
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from jobs import AUTO_COMMIT_MS, PATIENCE, SETTING, TICK, Harvest, halves, serve, shares


def error_name(error: KafkaError) -> str:
    """librdkafka's own errors are negative and keep their names."""
    return jobs.name(error.code()) if error.code() >= 0 else error.name()


def outcome(future: Any) -> str:
    try:
        future.result(PATIENCE)
    except KafkaException as error:
        return error_name(error.args[0])
    return "ok"


class Client:
    def __init__(self, job: dict[str, Any]) -> None:
        self._common: dict[str, Any] = {
            "bootstrap.servers": job["bootstrap"], "client.id": job["client_id"], "log_level": 0,
            "error_cb": lambda _: None, "allow.auto.create.topics": False,
        }  # fmt: skip
        if job.get("user"):
            self._common |= {
                "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
                "sasl.username": job["user"], "sasl.password": job["password"],
            }  # fmt: skip
        self._producers: dict[object, Producer] = {}
        self._consumers: dict[object, Consumer] = {}
        self._admin: AdminClient | None = None

    def close(self) -> None:
        for producer in self._producers.values():
            producer.flush(2)
        for consumer in self._consumers.values():
            consumer.close()

    def produce(self, records: dict[str, list[str]], idempotent: bool = False, acks: str = "all") -> dict[str, str]:
        key = (idempotent, acks)
        if key not in self._producers:
            self._producers[key] = self._producer({"enable.idempotence": idempotent, "acks": acks})
        return self._send(self._producers[key], records)

    def _producer(self, more: dict[str, Any]) -> Producer:
        common = {key: value for key, value in self._common.items() if key != "allow.auto.create.topics"}
        return Producer(common | {"message.timeout.ms": 15000, "linger.ms": 0} | more)

    def _send(self, producer: Producer, records: dict[str, list[str]]) -> dict[str, str]:
        outcomes = dict.fromkeys(records, "ok")

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None and outcomes[message.topic()] == "ok":
                outcomes[message.topic()] = error_name(error)

        for topic, values in records.items():
            try:
                for value in values:
                    producer.produce(topic, value.encode(), on_delivery=delivered)
            except KafkaException as error:  # what it already knows of the topic, or of itself
                outcomes[topic] = error_name(error.args[0])
        try:
            producer.flush(PATIENCE)
        except (KafkaException, SystemError) as error:  # it has failed for good; SystemError: while it told of a record
            cause = error if isinstance(error, KafkaException) else error.__cause__
            if not isinstance(cause, KafkaException):
                raise
            outcomes = dict.fromkeys(outcomes, error_name(cause.args[0]))
        return outcomes

    def transaction(
        self, name: str, records: dict[str, list[str]], offsets: dict[str, Any] | None = None, end: str = "commit"
    ) -> str:
        try:
            if name not in self._producers:
                self._producers[name] = self._producer({"transactional.id": name, "transaction.timeout.ms": 30000})
                self._producers[name].init_transactions(PATIENCE)
            producer = self._producers[name]
            producer.begin_transaction()
            for topic, values in records.items():
                self._send(producer, {topic: values})  # why records were not sent is told by the commit
            if offsets:
                member = self._consumer({"group.id": offsets["group"]})
                read = TopicPartition(offsets["topic"], 0, offsets["offset"])
                producer.send_offsets_to_transaction([read], member.consumer_group_metadata(), PATIENCE)
                member.close()
            if end == "commit":
                producer.commit_transaction(PATIENCE)
            else:
                producer.abort_transaction(PATIENCE)
        except KafkaException as error:
            try:
                self._producers[name].abort_transaction(PATIENCE)
            except KafkaException:
                self._producers.pop(name).purge()
            return error_name(error.args[0])
        return "ok"

    def fetch(self, topics: list[str], count: int = 0, errors: int = 0, wait: float = PATIENCE) -> dict[str, list[str]]:
        if "" not in self._consumers:
            # It must have a group, and looks for its coordinator, although nothing here is done with it.
            self._consumers[""] = self._consumer({"group.id": "unused", "enable.auto.commit": False})
        self._consumers[""].assign([TopicPartition(topic, 0, 0) for topic in topics])
        return self._read(self._consumers[""], count, errors, wait, ignore="GroupAuthorization")

    def consume(
        self,
        topics: list[str],
        group: str,
        protocol: str = "classic",
        count: int = 0,
        errors: int = 0,
        wait: float = PATIENCE,
        auto: bool = False,
    ) -> dict[str, list[str]]:
        if auto:
            member = self._consumer({"group.id": group, "auto.commit.interval.ms": AUTO_COMMIT_MS})
            member.subscribe(topics)
            harvest = self._read(member, count, errors, wait)
            member.close()
            return harvest
        key = (group, protocol)
        if key not in self._consumers:
            self._consumers[key] = self._member(group, protocol)
        consumer = self._consumers[key]
        consumer.subscribe(topics)
        harvest = self._read(consumer, count, errors, wait)
        try:
            consumer.commit(asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._NO_OFFSET:
                harvest["errors"].append(f"commit: {error_name(error.args[0])}")
        return harvest

    def _read(self, consumer: Consumer, count: int, errors: int, wait: float, ignore: str = "") -> dict[str, list[str]]:
        harvest = Harvest(count, errors, wait)
        while not harvest.complete:
            message = consumer.poll(TICK)
            if message is None:
                continue
            if (error := message.error()) is not None:
                harvest.errors |= {error_name(error)} - {ignore}
            else:
                harvest.values.append(message.value().decode())
        return harvest.outcome()

    def rebalance(self, topics: list[str], group: str, partitions: int, protocol: str = "classic") -> list[list[int]]:
        def look() -> list[int]:
            for member in members:
                member.poll(TICK)
            return [len(member.assignment()) for member in members]

        members = [self._member(group, protocol)]
        members[0].subscribe(topics)
        seen = [shares(look, [partitions])]
        members.append(self._member(group, protocol))
        members[1].subscribe(topics)
        seen.append(shares(look, halves(partitions)))
        members.pop().close()
        seen.append(shares(look, [partitions]))
        members.pop().close()
        return seen

    def _member(self, group: str, protocol: str) -> Consumer:
        heartbeat = {"heartbeat.interval.ms": 300} if protocol == "classic" else {}
        return self._consumer({"group.id": group, "group.protocol": protocol, "enable.auto.commit": False} | heartbeat)

    def _consumer(self, more: dict[str, Any]) -> Consumer:
        return Consumer(self._common | {"auto.offset.reset": "earliest", "fetch.wait.max.ms": 100} | more)

    def list_topics(self) -> list[str]:
        return sorted(self.admin.list_topics(timeout=PATIENCE).topics)

    def describe_topics(self, topics: list[str]) -> dict[str, int | str]:
        outcomes: dict[str, int | str] = {}
        for topic, future in self.admin.describe_topics(TopicCollection(topics)).items():
            try:
                outcomes[topic] = len(future.result(PATIENCE).partitions)
            except KafkaException as error:
                outcomes[topic] = error_name(error.args[0])
        return outcomes

    def create_topics(self, topics: dict[str, int]) -> dict[str, str]:
        made = self.admin.create_topics([NewTopic(topic, partitions, 1) for topic, partitions in topics.items()])
        return {topic: outcome(future) for topic, future in made.items()}

    def delete_topics(self, topics: list[str]) -> dict[str, str]:
        return {topic: outcome(future) for topic, future in self.admin.delete_topics(topics).items()}

    def alter_configs(self, topics: list[str], whole: bool = False) -> dict[str, str]:
        setting = ConfigEntry(*SETTING, incremental_operation=AlterConfigOpType.SET)
        if whole:
            made = self.admin.alter_configs([ConfigResource(ResourceType.TOPIC, topic, dict([SETTING])) for topic in topics])
        else:
            made = self.admin.incremental_alter_configs(
                [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[setting]) for topic in topics]
            )
        return {resource.name: outcome(future) for resource, future in made.items()}

    def describe_groups(self, groups: list[str]) -> dict[str, str]:
        return {group: outcome(future) for group, future in self.admin.describe_consumer_groups(groups).items()}

    def describe_configs(self, topics: list[str]) -> dict[str, str]:
        described = self.admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic) for topic in topics])
        return {topic.name: outcome(future) for topic, future in described.items()}

    def list_offsets(self, group: str, topics: list[str]) -> dict[str, int] | str:
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0) for topic in topics])
        [future] = self.admin.list_consumer_group_offsets([asked]).values()
        try:
            found = future.result(PATIENCE).topic_partitions
        except KafkaException as error:
            return error_name(error.args[0])
        return {partition.topic: partition.offset for partition in found if partition.error is None}

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            common = {key: value for key, value in self._common.items() if key != "allow.auto.create.topics"}
            self._admin = AdminClient(common)
        return self._admin


if __name__ == "__main__":
    serve(Client)
