"""`python -m bench.kafka`: what Kafka clients get through one address, with Kafka's own performance tools and confluent-kafka.

The load of each measurement is a number of records of one size into, or out of, a topic of its own with one partition. Rates
are of the records' values in MB/s (10**6 bytes). Latency is measured at a pace that any way can keep. Without --bootstrap a
broker is started, with the JVM as it is by default.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from confluent_kafka.admin import AdminClient, NewTopic

from bench.processes import BenchError, run_client
from tests.kafka.broker import Broker, java

SIZES = (100, 1000, 10_000)  # bytes of a record's value
CLIENTS = ("java", "confluent")
MB, MIB = 10**6, 2**20
JVM = ("-Xmx512m",)
PACE, PACED_SECONDS = 4 * MB, 5  # bytes per second, and for how long, when latency is measured
START_UP = 60.0  # seconds that a measurement may take beyond its load at SLOWEST
SLOWEST = 1.0  # MB/s
PROGRAM = Path(__file__).with_name("kafka_client.py")


@dataclass(frozen=True)
class Figure:
    """One measurement: MB/s, and for producing the 99th percentile of the time to the acknowledgement in milliseconds."""

    client: str
    what: str  # produce, consume, or paced: producing at PACE
    size: int
    rate: float
    p99: float | None


def produce(client: str, prefix: Sequence[str], bootstrap: str, topic: str, records: int, size: int, rate: int = 0) -> Figure:
    """Send `records` of `size` bytes, at most `rate` of them a second (0: no limit)."""
    what = "paced" if rate else "produce"
    if client == "confluent":
        said = _confluent("produce", prefix, bootstrap, topic, records, size, rate)
        return Figure(client, what, size, said["bytes_per_second"] / MB, said["p99"] * 1000)
    with tempfile.NamedTemporaryFile("w", prefix="sluice-bench-") as payload:
        payload.write("x" * size)  # told a size alone, the tool makes each record of random letters, and measures that
        payload.flush()
        command = java(
            "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(records),
            "--payload-file", payload.name, "--throughput", str(rate or -1),
            "--command-property", f"bootstrap.servers={bootstrap}", "acks=all", "linger.ms=5", "batch.size=131072",
            jvm=JVM,
        )  # fmt: skip
        sent, p99 = parse_producer(run_client([*prefix, *command], _limit(records, size)))
    return Figure(client, what, size, sent * MIB / MB, p99)


def consume(client: str, prefix: Sequence[str], bootstrap: str, topic: str, records: int, size: int) -> Figure:
    """Read `records` of `size` bytes from the beginning of the topic."""
    if client == "confluent":
        said = _confluent("consume", prefix, bootstrap, topic, records, size)
        return Figure(client, "consume", size, said["bytes_per_second"] / MB, None)
    command = java(
        "org.apache.kafka.tools.ConsumerPerformance", "--topic", topic, "--num-records", str(records),
        "--bootstrap-server", bootstrap, "--timeout", "30000", jvm=JVM,
    )  # fmt: skip
    read = parse_consumer(run_client([*prefix, *command], _limit(records, size)), records)
    return Figure(client, "consume", size, read * MIB / MB, None)


def parse_producer(text: str) -> tuple[float, float]:
    """(MiB/s, p99 in ms) from the last line of Kafka's ProducerPerformance. BenchError when it does not end as it should."""
    line = (text.strip().splitlines() or [""])[-1]
    try:
        rate = line.partition("(")[2].partition(" MB/sec)")[0]
        p99 = line[: line.index(" ms 99th")].rpartition(", ")[2]
        return float(rate), float(p99)
    except ValueError:
        raise BenchError(f"ProducerPerformance printed no result: {text.strip()[-300:]}") from None


def parse_consumer(text: str, records: int) -> float:
    """MiB/s of fetching alone, from Kafka's ConsumerPerformance. BenchError unless it has read all records."""
    names, values = ([part.strip() for part in line.split(",")] for line in _last_two(text))
    said = dict(zip(names, values, strict=False))
    try:
        if int(said["data.consumed.in.nMsg"]) < records:
            raise BenchError(f"ConsumerPerformance read {said['data.consumed.in.nMsg']} of {records} records")
        return float(said["fetch.MB.sec"])
    except (KeyError, ValueError):
        raise BenchError(f"ConsumerPerformance printed no result: {text.strip()[-300:]}") from None


def _last_two(text: str) -> list[str]:
    return (["", ""] + [line for line in text.splitlines() if "," in line])[-2:]


def _confluent(what: str, prefix: Sequence[str], *arguments: object) -> dict[str, float]:
    records, size = int(str(arguments[2])), int(str(arguments[3]))
    command = [*prefix, sys.executable, str(PROGRAM), what, *map(str, arguments)]
    said: dict[str, float] = json.loads(run_client(command, _limit(records, size)))
    return said


def _limit(records: int, size: int) -> float:
    return START_UP + records * size / (SLOWEST * MB)


def measure(admin: AdminClient, bootstrap: str, prefix: Sequence[str], sizes: Sequence[int], load: int) -> Iterator[Figure]:
    """Every client and size: produce `load` bytes, read them again, produce at PACE, and take the topic away."""
    for size in sizes:
        for client in CLIENTS:
            topic, records = f"bench-{client}-{size}", max(1, load // size)
            admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
            yield produce(client, prefix, bootstrap, topic, records, size)
            yield consume(client, prefix, bootstrap, topic, records, size)
            yield produce(client, prefix, bootstrap, topic, PACE * PACED_SECONDS // size, size, PACE // size)
            admin.delete_topics([topic])[topic].result(30)


@click.command()
@click.option("--bootstrap", help="host:port that the clients dial. Default: a broker of its own.")
@click.option("--admin", help="host:port where topics are made. Default: --bootstrap.")
@click.option("--prefix", default="", help='What comes before each client, such as "sluice exec web --".')
@click.option("--sizes", default=",".join(map(str, SIZES)), help="Bytes of a record, by comma.")
@click.option("--mb", default=200, type=click.IntRange(1), help="Load of one measurement.")
def main(bootstrap: str | None, admin: str | None, prefix: str, sizes: str, mb: int) -> None:
    """Print one line of JSON for each measurement."""
    with ExitStack() as stack:
        if not bootstrap:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-")))
            bootstrap = stack.enter_context(Broker(folder, jvm=("-Xmx1g",))).address()
        administrator = AdminClient({"bootstrap.servers": admin or bootstrap, "log_level": 0})
        for figure in measure(administrator, bootstrap, prefix.split(), [int(size) for size in sizes.split(",")], mb * MB):
            print(json.dumps(asdict(figure)), flush=True)


if __name__ == "__main__":
    main()
