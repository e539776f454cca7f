"""A client that does honest work at a broker until it is told to stop (SIGTERM): it writes a record, reads it, commits.

    kafka_neighbour.py BOOTSTRAP TOPIC GROUP

It prints one line per round, and ends with exit code 1 and a reason at the first thing that goes wrong; a lost connection is
one, although librdkafka would get over it.
"""

import signal
import sys
import time
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

PATIENCE = 15.0  # seconds
PAUSE = 0.02  # seconds between rounds, so that others have their turn
_stopped = False


def _stop(*_: object) -> None:
    global _stopped
    _stopped = True


def _fail(reason: object) -> None:
    print(f"fault: {reason}", flush=True)
    sys.exit(1)


def main(bootstrap: str, topic: str, group: str) -> None:
    signal.signal(signal.SIGTERM, _stop)
    wrong: list[object] = []
    common: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "error_cb": wrong.append,
        "log_level": 0,
        "client.id": "neighbour",
        "topic.metadata.refresh.interval.ms": 500,
    }
    producer = Producer(common | {"linger.ms": 0, "message.timeout.ms": 10_000})
    consumer = Consumer(
        common | {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False, "fetch.wait.max.ms": 50}
    )
    consumer.subscribe([topic])
    number = 0
    while not _stopped and not wrong:
        value = str(number).encode()
        producer.produce(topic, value, on_delivery=lambda error, _: wrong.append(error) if error else None)
        if producer.flush(PATIENCE):
            wrong.append("a record was not delivered")
        message = consumer.poll(PATIENCE)
        if message is None or message.error() or message.value() != value:
            wrong.append(f"not what was written: {message and (message.error() or message.value())}")
            break
        consumer.commit(offsets=[TopicPartition(topic, 0, message.offset() + 1)], asynchronous=False)
        number += 1
        print(number, flush=True)
        time.sleep(PAUSE)
    if wrong:
        _fail(wrong)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
