"""Runs jobs (see jobs.py) with aiokafka, which has the classic group protocol only. Each job has an event loop of its own."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import jobs
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from jobs import AUTO_COMMIT_MS, PATIENCE, SETTING, TICK, Harvest, first_error, halves, serve

logging.disable()


def error_name(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    return jobs.name(code) if isinstance(code, int) and code > 0 else type(error).__name__


def step(coroutine: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """The step as a plain method: it runs on the job's loop to its end."""
    return lambda client, **arguments: client.loop.run_until_complete(coroutine(client, **arguments))


class Client:
    def __init__(self, job: dict[str, Any]) -> None:
        self._common: dict[str, Any] = {"bootstrap_servers": job["bootstrap"], "client_id": job["client_id"]}
        if job.get("user"):
            self._common |= {
                "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN",
                "sasl_plain_username": job["user"], "sasl_plain_password": job["password"],
            }  # fmt: skip
        self._producers: dict[object, AIOKafkaProducer] = {}
        self._consumers: dict[str, AIOKafkaConsumer] = {}
        self._admin: AIOKafkaAdminClient | None = None
        self.loop = asyncio.new_event_loop()

    @step
    async def _stop(self) -> None:
        for part in (*self._producers.values(), *self._consumers.values()):
            await part.stop()
        if self._admin is not None:
            await self._admin.close()

    def close(self) -> None:
        self._stop()
        self.loop.close()

    @step
    async def produce(self, records: dict[str, list[str]], idempotent: bool = False, acks: str = "all") -> dict[str, str]:
        key = (idempotent, acks)
        if key not in self._producers:
            number = acks if acks == "all" else int(acks)
            producer = AIOKafkaProducer(**self._common, enable_idempotence=idempotent, acks=number, request_timeout_ms=10_000)
            try:
                await producer.start()
            except KafkaError as error:  # an idempotent one asks for its id at once
                await producer.stop()
                return dict.fromkeys(records, error_name(error))
            self._producers[key] = producer
        return await self._send(self._producers[key], records)

    async def _send(self, producer: AIOKafkaProducer, records: dict[str, list[str]]) -> dict[str, str]:
        outcomes, futures = dict.fromkeys(records, "ok"), []
        for topic, values in records.items():
            try:
                futures += [(topic, await producer.send(topic, value.encode())) for value in values]
            except KafkaError as error:
                outcomes[topic] = error_name(error)
        for topic, future in futures:
            try:
                await asyncio.wait_for(future, PATIENCE)
            except KafkaError as error:
                if outcomes[topic] == "ok":
                    outcomes[topic] = error_name(error)
        return outcomes

    @step
    async def transaction(
        self, name: str, records: dict[str, list[str]], offsets: dict[str, Any] | None = None, end: str = "commit"
    ) -> str:
        try:
            if name not in self._producers:
                producer = AIOKafkaProducer(**self._common, transactional_id=name, request_timeout_ms=10_000)
                self._producers[name] = producer
                await producer.start()
            producer = self._producers[name]
            await producer.begin_transaction()
            bad = first_error([(await self._send(producer, {topic: values}))[topic] for topic, values in records.items()])
            if bad == "ok" and offsets:
                read = {TopicPartition(offsets["topic"], 0): offsets["offset"]}
                await producer.send_offsets_to_transaction(read, offsets["group"])
            if bad == "ok" and end == "commit":
                await producer.commit_transaction()
            else:
                await producer.abort_transaction()
        except KafkaError as error:
            try:
                await self._producers[name].abort_transaction()
            except (KafkaError, AssertionError):  # the latter from a producer that got no id
                await self._producers.pop(name).stop()
            return error_name(error)
        return bad

    @step
    async def fetch(self, topics: list[str], count: int = 0, errors: int = 0, wait: float = PATIENCE) -> dict[str, list[str]]:
        if "" not in self._consumers:
            self._consumers[""] = self._consumer(enable_auto_commit=False)
            await self._consumers[""].start()
        consumer, partitions = self._consumers[""], [TopicPartition(topic, 0) for topic in topics]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        return await self._read(consumer, count, errors, wait)

    @step
    async def consume(
        self, topics: list[str], group: str, count: int = 0, errors: int = 0, wait: float = PATIENCE, auto: bool = False
    ) -> dict[str, list[str]]:
        if auto:
            return await self._consume_once(topics, group, Harvest(count, errors, wait))
        harvest = Harvest(count, errors, wait)
        try:
            if group not in self._consumers:
                self._consumers[group] = self._member(group)
                self._consumers[group].subscribe(topics)
                await self._consumers[group].start()
            else:
                self._consumers[group].subscribe(topics)
        except KafkaError as error:  # it looks for its coordinator at once
            await self._consumers.pop(group).stop()
            harvest.errors.add(error_name(error))
            return harvest.outcome()
        seen = await self._read(self._consumers[group], count, errors, wait)
        try:
            await self._consumers[group].commit()
        except KafkaError as error:
            seen["errors"].append(f"commit: {error_name(error)}")
        return seen

    async def _consume_once(self, topics: list[str], group: str, harvest: Harvest) -> dict[str, list[str]]:
        """As a member that commits by itself, and leaves."""
        member = self._consumer(group_id=group, auto_commit_interval_ms=AUTO_COMMIT_MS)
        member.subscribe(topics)
        try:
            await member.start()
            await self._harvest(member, harvest)
        except KafkaError as error:  # it looks for its coordinator at once
            harvest.errors.add(error_name(error))
        await member.stop()
        return harvest.outcome()

    async def _read(self, consumer: AIOKafkaConsumer, count: int, errors: int, wait: float) -> dict[str, list[str]]:
        harvest = Harvest(count, errors, wait)
        await self._harvest(consumer, harvest)
        return harvest.outcome()

    async def _harvest(self, consumer: AIOKafkaConsumer, harvest: Harvest) -> None:
        while not harvest.complete:
            try:
                for records in (await consumer.getmany(timeout_ms=int(TICK * 1000))).values():
                    harvest.values += [record.value.decode() for record in records]
            except KafkaError as error:
                harvest.errors.add(error_name(error))

    @step
    async def rebalance(self, topics: list[str], group: str, partitions: int) -> list[list[int]]:
        async def shares(wanted: list[int]) -> list[int]:
            deadline = time.monotonic() + PATIENCE
            while (seen := [len(member.assignment()) for member in members]) != wanted and time.monotonic() < deadline:
                for member in members:
                    await member.getmany(timeout_ms=int(TICK * 1000))
            return seen

        async def join() -> None:
            members.append(self._member(group))
            members[-1].subscribe(topics)
            await members[-1].start()

        members: list[AIOKafkaConsumer] = []
        await join()
        seen = [await shares([partitions])]
        await join()
        seen.append(await shares(halves(partitions)))
        await members.pop().stop()
        seen.append(await shares([partitions]))
        await members.pop().stop()
        return seen

    def _member(self, group: str) -> AIOKafkaConsumer:
        return self._consumer(group_id=group, enable_auto_commit=False, heartbeat_interval_ms=300)

    def _consumer(self, **more: Any) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._common, auto_offset_reset="earliest", isolation_level="read_committed", fetch_max_wait_ms=100, **more
        )

    @step
    async def list_topics(self) -> list[str]:
        return sorted(await (await self._admin_client()).list_topics())

    @step
    async def describe_topics(self, topics: list[str]) -> dict[str, int | str]:
        return {
            topic["topic"]: jobs.name(topic["error_code"]) if topic["error_code"] else len(topic["partitions"])
            for topic in await (await self._admin_client()).describe_topics(topics)
        }

    @step
    async def create_topics(self, topics: dict[str, int]) -> dict[str, str]:
        wanted = [NewTopic(topic, partitions, 1) for topic, partitions in topics.items()]
        return self._by_topic((await (await self._admin_client()).create_topics(wanted)).to_object()["topic_errors"])

    @step
    async def delete_topics(self, topics: list[str]) -> dict[str, str]:
        reply = (await (await self._admin_client()).delete_topics(topics)).to_object()
        return self._by_topic(reply["topic_error_codes"])

    def _by_topic(self, topics: list[dict[str, Any]]) -> dict[str, str]:
        return {topic["topic"]: jobs.name(topic["error_code"]) for topic in topics}

    @step
    async def alter_configs(self, topics: list[str], whole: bool = True) -> dict[str, str]:
        assert whole, "it has no other request"
        wanted = [ConfigResource(ConfigResourceType.TOPIC, topic, dict([SETTING])) for topic in topics]
        (reply,) = await (await self._admin_client()).alter_configs(wanted)
        return {told["resource_name"]: jobs.name(told["error_code"]) for told in reply.to_object()["resources"]}

    @step
    async def describe_groups(self, groups: list[str]) -> dict[str, str]:
        admin, outcomes = await self._admin_client(), {}
        for group in groups:
            try:
                reply = (await admin.describe_consumer_groups([group]))[0].to_object()
                outcomes[group] = jobs.name(reply["groups"][0]["error_code"])
            except KafkaError as error:
                outcomes[group] = error_name(error)
        return outcomes

    @step
    async def describe_configs(self, topics: list[str]) -> dict[str, str]:
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        [reply] = await (await self._admin_client()).describe_configs(asked)
        return {found["resource_name"]: jobs.name(found["error_code"]) for found in reply.to_object()["resources"]}

    async def _admin_client(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(**self._common, request_timeout_ms=10_000)
            await self._admin.start()
        return self._admin


if __name__ == "__main__":
    serve(Client)
