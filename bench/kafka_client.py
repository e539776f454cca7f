"""Measures confluent-kafka (librdkafka) by itself: kafka_client.py produce|consume BOOTSTRAP TOPIC RECORDS SIZE [RATE].

Prints one line of JSON: bytes of values per second, and for `produce` the 99th percentile of the time from `produce()` to
its acknowledgement, in seconds. RATE is in records per second; 0 or nothing: as fast as it goes.
"""

import json
import sys
import time

from confluent_kafka import Consumer, Producer, TopicPartition

PATIENCE = 60.0  # seconds without any record or acknowledgement
SAMPLE = 16  # one record of so many is timed
BATCH = 10_000  # records asked for at once
PAUSE = 0.005  # seconds between two looks at the clock when a rate is given


def produce(bootstrap: str, topic: str, records: int, size: int, rate: int) -> dict[str, float]:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 5, "acks": "all", "queue.buffering.max.messages": 100_000, "log_level": 0}
    )
    value, latencies, failed = b"x" * size, [], []

    def timed(began: float) -> object:
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
    return {"bytes_per_second": records * size / seconds, "p99": latencies[int(len(latencies) * 0.99)]}


def consume(bootstrap: str, topic: str, records: int, size: int) -> dict[str, float]:
    """The clock starts at the first record: what comes before is connecting."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False, "log_level": 0}
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
    consumer.close()
    return {"bytes_per_second": (got - 1) * size / seconds}


if __name__ == "__main__":
    what, bootstrap, topic, *numbers = sys.argv[1:]
    records, size, rate = map(int, (*numbers, "0")[:3])
    print(
        json.dumps(
            produce(bootstrap, topic, records, size, rate) if what == "produce" else consume(bootstrap, topic, records, size)
        )
    )
