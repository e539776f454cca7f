"""Measures confluent-kafka (librdkafka) by itself, and asks what it may do. Prints one line of JSON.

    kafka_client.py produce|consume BOOTSTRAP CLIENT_ID TOPIC RECORDS SIZE [RATE]
    kafka_client.py probe BOOTSTRAP CLIENT_ID TOPIC

`produce` and `consume` print the bytes of values per second and, in `calls`, how many requests librdkafka has sent and seen
answered; `produce` also the 99th percentile of the time from `produce()` to its acknowledgement, in seconds. RATE is in records
per second; 0 or nothing: as fast as it goes. `probe` writes a record and reads one, and prints the name of the error that each
met, or "".
"""

import json
import sys
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

PATIENCE = 60.0  # seconds without any record or acknowledgement
PROBE_PATIENCE = 10.0
SAMPLE = 16  # one record of so many is timed
BATCH = 10_000  # records asked for at once
PAUSE = 0.005  # seconds between two looks at the clock when a rate is given
STATISTICS = 200  # ms between two reports of librdkafka about itself
LAST_REPORT = 2 * STATISTICS / 1000  # seconds after which a report has been made that has everything in it
Printed = dict[str, float | str]


class Calls:
    """The requests that this client has seen answered, as librdkafka counts them."""

    def __init__(self, bootstrap: str, client_id: str) -> None:
        self.config = {
            "bootstrap.servers": bootstrap,
            "client.id": client_id,
            "log_level": 0,
            "statistics.interval.ms": STATISTICS,
            "stats_cb": self._report,
        }
        self._answered = 0

    def _report(self, text: str) -> None:
        self._answered = sum(broker["rx"] for broker in json.loads(text)["brokers"].values())

    def count(self, serve: Callable[[float], object]) -> int:
        """`serve(seconds)` has to let callbacks run for as long."""
        until = time.monotonic() + LAST_REPORT
        while (left := until - time.monotonic()) > 0:
            serve(left)
        return self._answered


def produce(bootstrap: str, client_id: str, topic: str, records: int, size: int, rate: int = 0) -> Printed:
    calls = Calls(bootstrap, client_id)
    producer = Producer(calls.config | {"linger.ms": 5, "acks": "all", "queue.buffering.max.messages": 100_000})
    value, latencies, failed = b"x" * size, [], []

    def timed(began: float) -> Callable[[KafkaError | None, object], None]:
        return lambda error, _: failed.append(error) if error else latencies.append(time.monotonic() - began)

    start = time.monotonic()
    for number in range(records):
        while rate and number > (time.monotonic() - start) * rate:
            producer.poll(PAUSE)
        report = timed(time.monotonic()) if number % SAMPLE == 0 else None
        while True:
            try:
                producer.produce(topic, value, on_delivery=report)
                break
            except BufferError:  # it holds as many as it may: give it time to send them
                producer.poll(PAUSE)
        producer.poll(0)
    left = producer.flush(PATIENCE)
    seconds = time.monotonic() - start
    if left or failed:
        sys.exit(f"{left} records were not acknowledged, {len(failed)} of those timed failed: {failed[:1]}")
    latencies.sort()
    p99 = latencies[int(len(latencies) * 0.99)]
    return {"bytes_per_second": records * size / seconds, "p99": p99, "calls": calls.count(producer.poll)}


def consume(bootstrap: str, client_id: str, topic: str, records: int, size: int) -> Printed:
    """The clock starts at the first record: what comes before is connecting."""
    calls = Calls(bootstrap, client_id)
    consumer = Consumer(
        calls.config
        | {"group.id": "bench", "enable.auto.commit": False}
        | {"fetch.queue.backoff.ms": 1}  # by default it stops for a second whenever 64 MiB wait for the application
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    got, start = 0, 0.0
    while got < records:
        messages = consumer.consume(min(BATCH, records - got) if got else 1, PATIENCE)
        if not messages or any(message.error() for message in messages):
            sys.exit(f"no more came after {got} of {records} records")
        start = start or time.monotonic()
        got += len(messages)
    seconds = time.monotonic() - start
    consumer.pause([TopicPartition(topic, 0)])
    answered = calls.count(lambda seconds: consumer.consume(1, seconds))
    consumer.close()
    return {"bytes_per_second": (got - 1) * size / seconds, "calls": answered}


def probe(bootstrap: str, client_id: str, topic: str) -> Printed:
    config = {"bootstrap.servers": bootstrap, "client.id": client_id, "log_level": 0}
    errors: list[KafkaError | None] = []
    producer = Producer(config | {"message.timeout.ms": int(PROBE_PATIENCE * 1000)})
    producer.produce(topic, b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(PROBE_PATIENCE)
    consumer = Consumer(config | {"group.id": client_id, "auto.offset.reset": "earliest", "enable.auto.commit": False})
    consumer.subscribe([topic])  # a partition that is assigned by hand would wait for a better time, without an error
    message = consumer.poll(PROBE_PATIENCE)
    read = message.error() if message else KafkaError(KafkaError._TIMED_OUT)
    consumer.close()
    return {"produce": _name(errors[0] if errors else KafkaError(KafkaError._TIMED_OUT)), "consume": _name(read)}


def _name(error: KafkaError | None) -> str:
    return error.name() if error else ""


if __name__ == "__main__":
    what, bootstrap, client_id, topic, *numbers = sys.argv[1:]
    print(
        json.dumps(
            {"produce": produce, "consume": consume, "probe": probe}[what](bootstrap, client_id, topic, *map(int, numbers))
        )
    )
