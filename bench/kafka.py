"""One Kafka client at one address: Kafka's own performance tools (`java`) and librdkafka (`confluent`).

Every measurement is a process of its own that moves a number of records of one size into, or out of, a topic with one
partition. Rates are of the records' values in MB/s (10**6 bytes).
"""

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, run_client
from tests.kafka.broker import java

CLIENTS = ("java", "confluent")
MB, MIB = 10**6, 2**20
JVM = ("-Xmx512m",)
START_UP = 60.0  # seconds that a measurement may take beyond its load at SLOWEST
SLOWEST = 1.0  # MB/s
PROGRAM = Path(__file__).with_name("kafka_client.py")


@dataclass(frozen=True)
class Address:
    """Where a client goes: `prefix` comes before its command, `client_id` is what it calls itself there."""

    bootstrap: str
    client_id: str
    prefix: Sequence[str] = ()


@dataclass(frozen=True)
class Moved:
    """One measurement: MB/s; of producing the p99 from sending to acknowledgement in ms; requests that were answered."""

    rate: float
    p99: float  # 0 for consuming
    calls: int


def produce(client: str, address: Address, topic: str, records: int, size: int, rate: int = 0) -> Moved:
    """Send `records` of `size` bytes, at most `rate` of them a second (0: no limit)."""
    if client == "confluent":
        said = _confluent("produce", address, topic, records, size, rate)
        return Moved(said["bytes_per_second"] / MB, said["p99"] * 1000, int(said["calls"]))
    with tempfile.NamedTemporaryFile("w", prefix="sluice-bench-") as payload:
        payload.write("x" * size)  # told a size alone, the tool makes each record of random letters, and measures that
        payload.flush()
        command = java(
            "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(records),
            "--payload-file", payload.name, "--throughput", str(rate or -1), "--print-metrics",
            "--command-property", f"bootstrap.servers={address.bootstrap}", f"client.id={address.client_id}",
            "acks=all", "linger.ms=5", "batch.size=131072",
            jvm=JVM,
        )  # fmt: skip
        text = run_client([*address.prefix, *command], _limit(records, size))
    sent, p99 = parse_producer(text)
    return Moved(sent * MIB / MB, p99, parse_calls(text))


def consume(client: str, address: Address, topic: str, records: int, size: int) -> Moved:
    """Read `records` of `size` bytes from the beginning of the topic."""
    if client == "confluent":
        said = _confluent("consume", address, topic, records, size)
        return Moved(said["bytes_per_second"] / MB, 0.0, int(said["calls"]))
    command = java(
        "org.apache.kafka.tools.ConsumerPerformance", "--topic", topic, "--num-records", str(records),
        "--bootstrap-server", address.bootstrap, "--timeout", "30000", "--print-metrics",
        "--command-property", f"client.id={address.client_id}",
        jvm=JVM,
    )  # fmt: skip
    text = run_client([*address.prefix, *command], _limit(records, size))
    return Moved(parse_consumer(text, records) * MIB / MB, 0.0, parse_calls(text))


def probe(address: Address, topic: str) -> tuple[str, str]:
    """Names of the errors with which writing one record and reading one ended; "" where it worked."""
    command = [*address.prefix, sys.executable, str(PROGRAM), "probe", address.bootstrap, address.client_id, topic]
    said = json.loads(run_client(command, START_UP))
    return said["produce"], said["consume"]


def parse_producer(text: str) -> tuple[float, float]:
    """(MiB/s, p99 in ms) of Kafka's ProducerPerformance. BenchError when it does not end as it should."""
    found = re.search(r"\(([0-9.]+) MB/sec\),.*?, ([0-9.]+) ms 99th", text)
    if not found:
        raise BenchError(f"ProducerPerformance printed no result: {text.strip()[-300:]}")
    return float(found[1]), float(found[2])


def parse_consumer(text: str, records: int) -> float:
    """MiB/s of fetching alone, from Kafka's ConsumerPerformance. BenchError unless it has read all records."""
    names, values = ([part.strip() for part in line.split(",")] for line in _table(text))
    said = dict(zip(names, values, strict=False))
    try:
        if int(said["data.consumed.in.nMsg"]) < records:
            raise BenchError(f"ConsumerPerformance read {said['data.consumed.in.nMsg']} of {records} records")
        return float(said["fetch.MB.sec"])
    except (KeyError, ValueError):
        raise BenchError(f"ConsumerPerformance printed no result: {text.strip()[-300:]}") from None


def parse_calls(text: str) -> int:
    """How many requests a Java client has seen answered, from the metrics that the tools print."""
    found = re.search(r"^(?:producer|consumer)-metrics:response-total:\S+\s*:\s*([0-9]+)\.", text, re.MULTILINE)
    if not found:
        raise BenchError(f"no response-total: {text.strip()[-300:]}")
    return int(found[1])


def _table(text: str) -> list[str]:
    """The line of ConsumerPerformance that names its columns, and the one behind it."""
    lines = text.splitlines()
    at = next((number for number, line in enumerate(lines) if line.startswith("start.time,")), len(lines))
    return [*lines[at : at + 2], "", ""][:2]


def _confluent(what: str, address: Address, *arguments: object) -> dict[str, float]:
    records, size = int(str(arguments[1])), int(str(arguments[2]))
    command = [*address.prefix, sys.executable, str(PROGRAM), what, address.bootstrap, address.client_id, *map(str, arguments)]
    said: dict[str, float] = json.loads(run_client(command, _limit(records, size)))
    return said


def _limit(records: int, size: int) -> float:
    return START_UP + records * size / (SLOWEST * MB)
