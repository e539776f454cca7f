"""A real broker as a workload, whose clients are another one, for conversations with it through the agent."""

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import TopicCollection
from confluent_kafka.admin import NewTopic

from tests.harness import SLUICE, Workload, kafka_policy
from tests.kafka import broker
from tests.kafka.admin import PATIENCE, Administrator
from tests.kafka.broker import Broker
from tests.kafka.conftest import require
from tests.requirements import require_bpf


@dataclass(frozen=True)
class RealBroker:
    """``apps`` are its clients, under the rules that are in ``documents``."""

    kafka: Broker
    apps: Workload
    administrator: Administrator
    documents: str

    @property
    def port(self) -> int:
        return self.kafka.port()

    def topic_ids(self, topics: Sequence[str]) -> dict[str, bytes]:
        """Of these topics, 16 bytes each."""
        told = self.administrator.client.describe_topics(TopicCollection(list(topics)))
        ids = {topic: future.result(PATIENCE).topic_id for topic, future in told.items()}
        return {
            topic: struct.pack(">qq", topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits())
            for topic, topic_id in ids.items()
        }


@contextlib.contextmanager
def real_broker(folder: Path, topics: Sequence[str], rules: Sequence[dict[str, Any]]) -> Iterator[RealBroker]:
    """Starts a broker that allows everything, with these topics."""
    require_bpf()
    require(broker.missing())
    with contextlib.ExitStack() as stack:
        apps, place = Workload("apps"), Workload("kafka")
        for workload in (apps, place):
            stack.callback(workload.close)
        kafka = stack.enter_context(Broker(folder, prefix=(SLUICE, "exec", place.name, "--")))
        administrator = Administrator(kafka)
        for future in administrator.client.create_topics([NewTopic(topic, 1, 1) for topic in topics]).values():
            future.result(PATIENCE)
        documents = kafka_policy(apps, place, kafka.port(), rules)
        yield RealBroker(kafka, apps, administrator, documents)
