"""Runs jobs (see jobs.py) with kafka-python, which has the classic group protocol only."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jobs
from jobs import AUTO_COMMIT_MS, PATIENCE, SETTING, TICK, Harvest, first_error, halves, serve, shares
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition


def error_name(error: BaseException) -> str:
    """A producer that has failed for good says with which code in its text alone."""
    code = getattr(error, "errno", None)
    told = re.search(r"\[Error (\d+)\]", str(error))
    return jobs.name(code) if isinstance(code, int) and code > 0 else jobs.name(int(told[1])) if told else type(error).__name__


class Client:
    def __init__(self, job: dict[str, Any]) -> None:
        self._common: dict[str, Any] = {"bootstrap_servers": job["bootstrap"], "client_id": job["client_id"]}
        if job.get("user"):
            self._common |= {
                "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN",
                "sasl_plain_username": job["user"], "sasl_plain_password": job["password"],
            }  # fmt: skip
        self._producers: dict[object, KafkaProducer] = {}
        self._consumers: dict[str, KafkaConsumer] = {}
        self._admin: KafkaAdminClient | None = None

    def close(self) -> None:
        for producer in self._producers.values():
            producer.close(2)
        for consumer in self._consumers.values():
            consumer.close()
        if self._admin is not None:
            self._admin.close()

    def produce(self, records: dict[str, list[str]], idempotent: bool = False, acks: str = "all") -> dict[str, str]:
        key = (idempotent, acks)
        if key not in self._producers:
            number = acks if acks == "all" else int(acks)
            self._producers[key] = self._producer(enable_idempotence=idempotent, acks=number)
        return self._send(self._producers[key], records)

    def _producer(self, **more: Any) -> KafkaProducer:
        return KafkaProducer(**self._common, max_block_ms=15_000, delivery_timeout_ms=15_000, request_timeout_ms=10_000, **more)

    def _send(self, producer: KafkaProducer, records: dict[str, list[str]]) -> dict[str, str]:
        outcomes, futures = dict.fromkeys(records, "ok"), []
        for topic, values in records.items():
            try:
                futures += [(topic, producer.send(topic, value.encode())) for value in values]
            except KafkaError as error:
                outcomes[topic] = error_name(error)
        for topic, future in futures:
            try:
                future.get(PATIENCE)
            except KafkaError as error:
                if outcomes[topic] == "ok":
                    outcomes[topic] = error_name(error)
        return outcomes

    def transaction(
        self, name: str, records: dict[str, list[str]], offsets: dict[str, Any] | None = None, end: str = "commit"
    ) -> str:
        try:
            if name not in self._producers:
                self._producers[name] = self._producer(transactional_id=name)
                self._producers[name].init_transactions()
            producer = self._producers[name]
            producer.begin_transaction()
            bad = first_error(self._send(producer, {topic: values})[topic] for topic, values in records.items())
            if bad == "ok" and offsets:
                read = {TopicPartition(offsets["topic"], 0): OffsetAndMetadata(offsets["offset"], "", -1)}
                producer.send_offsets_to_transaction(read, offsets["group"])
            if bad == "ok" and end == "commit":
                producer.commit_transaction()
            else:
                producer.abort_transaction()
        except KafkaError as error:
            try:
                self._producers[name].abort_transaction()
            except KafkaError:
                self._producers.pop(name).close(0)
            return error_name(error)
        return bad

    def fetch(self, topics: list[str], count: int = 0, errors: int = 0, wait: float = PATIENCE) -> dict[str, list[str]]:
        if "" not in self._consumers:
            self._consumers[""] = self._consumer(enable_auto_commit=False)
        consumer, partitions = self._consumers[""], [TopicPartition(topic, 0) for topic in topics]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        return self._read(consumer, count, errors, wait)

    def consume(
        self, topics: list[str], group: str, count: int = 0, errors: int = 0, wait: float = PATIENCE, auto: bool = False
    ) -> dict[str, list[str]]:
        if auto:
            member = self._consumer(group_id=group, auto_commit_interval_ms=AUTO_COMMIT_MS)
            member.subscribe(topics)
            seen = self._read(member, count, errors, wait)
            member.close()
            return seen
        if group not in self._consumers:
            self._consumers[group] = self._member(group)
        consumer = self._consumers[group]
        consumer.subscribe(topics)
        harvest = self._read(consumer, count, errors, wait)
        try:
            consumer.commit()
        except KafkaError as error:
            harvest["errors"].append(f"commit: {error_name(error)}")
        return harvest

    def _read(self, consumer: KafkaConsumer, count: int, errors: int, wait: float) -> dict[str, list[str]]:
        harvest = Harvest(count, errors, wait)
        while not harvest.complete:
            try:
                for records in consumer.poll(TICK * 1000).values():
                    harvest.values += [record.value.decode() for record in records]
            except KafkaError as error:
                harvest.errors.add(error_name(error))
        return harvest.outcome()

    def rebalance(self, topics: list[str], group: str, partitions: int) -> list[list[int]]:
        def look() -> list[int]:
            # At the same time, as members are: one that waits for the others to join holds everything up.
            with ThreadPoolExecutor(len(members)) as pool:
                list(pool.map(lambda member: member.poll(TICK * 1000), members))
            return [len(member.assignment()) for member in members]

        members = [self._member(group)]
        members[0].subscribe(topics)
        seen = [shares(look, [partitions])]
        members.append(self._member(group))
        members[1].subscribe(topics)
        seen.append(shares(look, halves(partitions)))
        members.pop().close()
        seen.append(shares(look, [partitions]))
        members.pop().close()
        return seen

    def _member(self, group: str) -> KafkaConsumer:
        return self._consumer(group_id=group, enable_auto_commit=False, heartbeat_interval_ms=300)

    def _consumer(self, **more: Any) -> KafkaConsumer:
        return KafkaConsumer(
            **self._common, auto_offset_reset="earliest", isolation_level="read_committed", allow_auto_create_topics=False,
            fetch_max_wait_ms=100, **more,
        )  # fmt: skip

    def list_topics(self) -> list[str]:
        return sorted(self.admin.list_topics())

    def describe_topics(self, topics: list[str]) -> dict[str, int | str]:
        return {
            topic["name"]: jobs.name(topic["error_code"]) if topic["error_code"] else len(topic["partitions"])
            for topic in self.admin.describe_topics(topics)
        }

    def create_topics(self, topics: dict[str, int]) -> dict[str, str]:
        wanted = {topic: {"num_partitions": partitions, "replication_factor": 1} for topic, partitions in topics.items()}
        return self._by_topic(self.admin.create_topics(wanted, raise_errors=False))

    def delete_topics(self, topics: list[str]) -> dict[str, str]:
        return self._by_topic(self.admin.delete_topics(topics, raise_errors=False))

    def _by_topic(self, reply: dict[str, Any]) -> dict[str, str]:
        return {topic["name"]: jobs.name(topic["error_code"]) for topic in reply["topics"]}

    def alter_configs(self, topics: list[str]) -> dict[str, str]:
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic, dict([SETTING])) for topic in topics]
        (told,) = self.admin.alter_configs(wanted, raise_on_unknown=False, incremental=True).values()
        return {topic: "ok" if text == "OK" else error_name(KafkaError(text)) for topic, text in told.items()}

    def describe_groups(self, groups: list[str]) -> dict[str, str]:
        outcomes = {}
        for group in groups:
            try:
                described = self.admin.describe_groups([group])[group]
                outcomes[group] = jobs.name(described.get("error_code") or 0)
            except KafkaError as error:
                outcomes[group] = error_name(error)
        return outcomes

    @property
    def admin(self) -> KafkaAdminClient:
        if self._admin is None:
            self._admin = KafkaAdminClient(**self._common, request_timeout_ms=10_000)
        return self._admin


if __name__ == "__main__":
    serve(Client)
