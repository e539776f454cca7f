"""The Kafka part of a run: one broker for all, rounds, contenders, scenarios; and the check that every call was recorded.

The broker runs from beginning to end, because a JVM that has just begun is slow. A visit starts the proxy alone, pins the
broker where the layout wants it, and measures. Direct clients dial a listener of the same broker that no policy is about.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from confluent_kafka import KafkaException, libversion
from confluent_kafka.admin import AdminClient, NewTopic

from bench.contenders import CLIENT_PREFIX, SERVER_PREFIX, sluice_command, version
from bench.kafka import MB, Address, consume, probe, produce
from bench.layouts import SERVER_APART, UNPINNED, Layout
from bench.machine import Others
from bench.processes import BenchError, Service, StartError, place, port_is_open, service, wait_for_word
from bench.run import KAFKA, Result, Visit, complain
from bench.scenarios import Values
from bench.summary import Sample, rotated
from tests.kafka import broker as kafka
from tests.kafka.broker import Broker, Listener

UNPOLICED, POLICED = 18092, 18093  # the same as in kafka_policy.yaml
# As Kafka's own start script has it.
BROKER_JVM = ("-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35")
GB = 1000 * MB
PACE = 4 * MB  # bytes per second when latency is measured: less than any way can do
ALLOWED, DENIED = "bench-probe", "others"  # topics; policed clients may use bench-* only
PROBE = "bench-probe"  # what the client of the verification calls itself
REFUSED = "TOPIC_AUTHORIZATION_FAILED"
WARM_UPS = 2  # how often every scenario is played before anything counts
SPACE = 6 * 2**30  # bytes of /dev/shm: topics to read, one that is written, one that is being deleted
ADMIN_SECONDS = 30.0
# Requests that a client sends while it ends, after it has counted: LeaveGroup, fetches under way, of each of its connections.
AT_THE_END = 8


@dataclass(frozen=True)
class KafkaContender:
    """A way to the broker. `datapath` None: nobody polices."""

    name: str
    datapath: str | None = None


@dataclass(frozen=True)
class KafkaScenario:
    """One client with records of one size. Rates are what direct clients reach, about, and set how much is moved."""

    client: str
    size: int  # bytes of a record
    write_rate: int  # MB/s
    read_rate: int
    layouts: tuple[str, ...] = (UNPINNED.name,)
    paced: tuple[str, ...] = ()  # layouts in which latency at PACE is measured, too

    @property
    def name(self) -> str:
        return f"kafka-{self.client}-{self.size}"

    @property
    def title(self) -> str:
        return f"Kafka, {self.client}, records of {self.size:,} B"

    @property
    def topic(self) -> str:
        """What is read: filled once."""
        return f"bench-read-{self.size}"


@dataclass(frozen=True)
class KafkaPlan:
    """What to do. `seconds` is how long a direct client takes for one measurement, about; `deadline` is of
    time.monotonic().
    """

    contenders: Sequence[KafkaContender]
    layouts: Sequence[Layout]
    scenarios: Sequence[KafkaScenario]
    rounds: int
    seconds: int
    deadline: float


CONTENDERS = (KafkaContender("direct"), KafkaContender("sluice", "relay"), KafkaContender("kernel", "kernel"))
FREE = (UNPINNED.name,)
PINNED_TOO = (SERVER_APART.name, *FREE)
SCENARIOS = (
    KafkaScenario("java", 100, 20, 50),
    KafkaScenario("java", 1000, 100, 200, PINNED_TOO, FREE),
    KafkaScenario("java", 10_000, 160, 350),
    KafkaScenario("confluent", 100, 50, 100),
    KafkaScenario("confluent", 1000, 300, 400, PINNED_TOO, FREE),
    KafkaScenario("confluent", 10_000, 350, 500),
)


class Stage:
    """The broker, warm, and its topics."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        assert broker.process is not None
        self.folder = folder
        self.server = Service(broker.process, broker.log)
        self._admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{UNPOLICED}", "log_level": 0})
        self._written = 0

    @contextlib.contextmanager
    def fresh_topic(self) -> Iterator[str]:
        self._written += 1
        topic = f"bench-write-{self._written}"
        self.create(topic)
        try:
            yield topic
        finally:
            self._admin.delete_topics([topic])[topic].result(ADMIN_SECONDS)

    def create(self, topic: str) -> None:
        try:
            self._admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(ADMIN_SECONDS)
        except KafkaException as error:
            raise BenchError(f"topic {topic} could not be made: {error}") from None


class Record(msgspec.Struct, rename="camel"):
    """Of an audit record, what is looked at here."""

    method: str = ""
    client_id: str = ""
    verdict: str = ""
    via: str = ""
    calls: int = 1


@dataclass
class Recorded:
    """What the audit log has of one client id."""

    calls: int = 0
    denied: int = 0
    writing: int = 0  # Produce
    written_by_kernel: int = 0  # of those
    reading: int = 0  # Fetch
    read_by_kernel: int = 0


def execute(plan: KafkaPlan, result: Result) -> None:
    """Fill in `result`. Problems are noted there; a contender that does not start is not tried again."""
    if not plan.scenarios or not plan.contenders:
        return
    lost: set[str] = set()
    with _stage(plan) as stage:
        for number in range(plan.rounds):
            for layout in plan.layouts:
                scenarios = [scenario for scenario in plan.scenarios if layout.name in scenario.layouts]
                for contender in rotated(plan.contenders, number):
                    where = f"{contender.name}, Kafka, round {number + 1}, {layout.name}"
                    if contender.name in lost or not scenarios:
                        continue
                    if time.monotonic() > plan.deadline:
                        complain(result, f"the time is over: stopped before {where}")
                        return
                    try:
                        _visit(stage, contender, number, layout, scenarios, plan.seconds, result)
                    except StartError as error:
                        lost.add(contender.name)
                        complain(result, f"CANNOT RUN: {where}: {error}")
                    except BenchError as error:
                        complain(result, f"{where}: {error}")


@contextlib.contextmanager
def _stage(plan: KafkaPlan) -> Iterator[Stage]:
    """The broker in memory, so that no disk is measured, with its topics filled and its JVM warm."""
    if reason := kafka.missing():
        raise BenchError(f"CANNOT RUN: Kafka: {reason}")
    if shutil.disk_usage("/dev/shm").free < SPACE:
        raise BenchError(f"/dev/shm needs {SPACE // 2**20} MiB of free space for Kafka's topics")
    if taken := [port for port in (UNPOLICED, POLICED) if port_is_open(port)]:
        raise BenchError(f"somebody else listens on ports {taken}")
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-", dir="/dev/shm"))
    listeners = (Listener("UNPOLICED", port=UNPOLICED), Listener("POLICED", port=POLICED))
    settings = {"log.segment.delete.delay.ms": "100"}  # a minute by default, in which memory fills up
    broker = Broker(folder / "broker", listeners, settings=settings, prefix=SERVER_PREFIX, jvm=BROKER_JVM)
    try:
        try:
            broker.start()
        except AssertionError as error:
            raise BenchError(f"CANNOT RUN: Kafka: {error}") from None
        stage = Stage(folder, broker)
        _warm_up(stage, plan)
        yield stage
    finally:
        broker.stop()
        shutil.rmtree(folder)


def _warm_up(stage: Stage, plan: KafkaPlan) -> None:
    """Fill the topics that are read, and play all scenarios directly, so that the broker's JVM has compiled what is hot."""
    print("Kafka     warming up", end="", file=sys.stderr, flush=True)
    for topic in (ALLOWED, DENIED):
        stage.create(topic)
    for size in {scenario.size for scenario in plan.scenarios}:
        alike = [scenario for scenario in plan.scenarios if scenario.size == size]
        topic, most = alike[0].topic, max(scenario.read_rate for scenario in alike)
        stage.create(topic)
        produce("confluent", _direct(PROBE, ()), topic, _records(most, plan.seconds, size), size)
    for _ in range(WARM_UPS):
        for scenario in plan.scenarios:
            records = _records(scenario.write_rate, plan.seconds, scenario.size)
            with stage.fresh_topic() as topic:
                for act in (produce, consume):
                    act(scenario.client, _direct(PROBE, ()), topic, records, scenario.size)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _visit(
    stage: Stage,
    contender: KafkaContender,
    number: int,
    layout: Layout,
    scenarios: Sequence[KafkaScenario],
    seconds: int,
    result: Result,
) -> None:
    """One contender: start it, prove that it enforces, measure, stop it, count its records."""
    print(f"round {number + 1}  {layout.name:12} Kafka {contender.name:8}", end="", file=sys.stderr, flush=True)
    log, pins = stage.folder / "audit.log", layout.pins()
    place(stage.server, {layout.server} if layout.server is not None else os.sched_getaffinity(0))
    others, measured, answered = Others(stage.server), dict[str, Values](), 0
    try:
        with contextlib.ExitStack() as stack:
            proxy = _enter_proxy(stack, contender, stage.folder, log, pins["proxy"]) if contender.datapath else None
            try:
                _verify(contender, pins["client"])
                for scenario in scenarios:
                    address = _address(contender, scenario.name, pins["client"])
                    paced = layout.name in scenario.paced
                    measured[scenario.name], calls = _measure(stage, scenario, paced, address, proxy, seconds)
                    answered += calls
                    print(".", end="", file=sys.stderr, flush=True)
            except BenchError as error:
                raise type(error)(f"{error} {(proxy or stage.server).obituary()}") from None
        recorded = read_log(log)
        for scenario in scenarios:
            if contender.datapath == "kernel":
                measured[scenario.name] |= kernel_share(recorded.get(scenario.name, Recorded()))
            result.samples.append(Sample(number, layout.name, contender.name, scenario.title, measured[scenario.name]))
        _count(contender, number, layout, scenarios, recorded, answered, others, result)
    finally:
        print(file=sys.stderr)
        log.unlink(missing_ok=True)


def _enter_proxy(
    stack: contextlib.ExitStack, contender: KafkaContender, folder: Path, log: Path, prefix: Sequence[str]
) -> Service:
    command = sluice_command(folder, log, str(contender.datapath), "kafka_policy.yaml")
    proxy = stack.enter_context(service([*prefix, *command], folder / "sluice.err"))
    wait_for_word(proxy, "ready")
    return proxy


def _direct(client_id: str, pin: Sequence[str]) -> Address:
    return Address(f"127.0.0.1:{UNPOLICED}", client_id, tuple(pin))


def _address(contender: KafkaContender, client_id: str, pin: Sequence[str]) -> Address:
    if contender.datapath is None:
        return _direct(client_id, pin)
    return Address(f"127.0.0.1:{POLICED}", client_id, (*pin, *CLIENT_PREFIX))


def _verify(contender: KafkaContender, pin: Sequence[str]) -> None:
    """StartError unless an allowed topic can be written and read and, through a proxy, another one cannot."""
    expected = {ALLOWED: ("", "")} | ({DENIED: (REFUSED, REFUSED)} if contender.datapath else {})
    for topic, errors in expected.items():
        if (met := probe(_address(contender, PROBE, pin), topic)) != errors:
            raise StartError(f"writing and reading topic {topic} ended with {met}, not with {errors}")


def _measure(
    stage: Stage, scenario: KafkaScenario, paced: bool, address: Address, proxy: Service | None, seconds: int
) -> tuple[Values, int]:
    """The values of one scenario, and how many requests the clients have seen answered."""
    client, size = scenario.client, scenario.size
    to_write, to_read = (_records(rate, seconds, size) for rate in (scenario.write_rate, scenario.read_rate))
    cpu = [_cpu(proxy)]
    with stage.fresh_topic() as topic:
        written = produce(client, address, topic, to_write, size)
    cpu.append(_cpu(proxy))
    read = consume(client, address, scenario.topic, to_read, size)
    cpu.append(_cpu(proxy))
    values, calls = {"write": written.rate, "write_p99": written.p99, "read": read.rate}, written.calls + read.calls
    if proxy:
        values["write_cpu"] = (cpu[1] - cpu[0]) / (to_write * size) * GB
        values["read_cpu"] = (cpu[2] - cpu[1]) / (to_read * size) * GB
    if paced:
        with stage.fresh_topic() as topic:
            slow = produce(client, address, topic, PACE * seconds // size, size, PACE // size)
        values["paced_p99"] = slow.p99
        calls += slow.calls
    return values, calls


def _cpu(proxy: Service | None) -> float:
    return proxy.cpu_seconds() if proxy else 0.0


def versions() -> dict[str, str]:
    """Of what is measured, and of what it is measured with."""
    jar = next(kafka.KAFKA.glob("lib/kafka-clients-*.jar"), Path("unknown"))
    return {"kafka": jar.stem.rpartition("-")[2], "java": version(("java", "-version")), "librdkafka": libversion()[0]}


def _records(rate: int, seconds: int, size: int) -> int:
    return rate * MB * seconds // size


def _count(
    contender: KafkaContender,
    number: int,
    layout: Layout,
    scenarios: Sequence[KafkaScenario],
    recorded: dict[str, Recorded],
    answered: int,
    others: Others,
    result: Result,
) -> None:
    """Note the visit. BenchError when a call is not in the audit log, as far as that can be told."""
    clients = sum(3 if layout.name in scenario.paced else 2 for scenario in scenarios)
    lines = sum(recorded[scenario.name].calls for scenario in scenarios if scenario.name in recorded)
    place_ = (number, layout.name, contender.name)
    visit = Visit(*place_, lines, answered, clients * AT_THE_END, round(others.percent(), 1), KAFKA)
    result.visits.append(visit)
    if contender.datapath is None:
        return
    found = [(scenario.name, recorded.get(scenario.name, Recorded())) for scenario in scenarios]
    if silent := [name for name, entry in found if not (entry.writing and entry.reading)]:
        raise BenchError(f"no Produce or Fetch was recorded of {', '.join(silent)}")
    if not recorded.get(PROBE, Recorded()).denied:
        raise BenchError(f"the denial of topic {DENIED} was not recorded")
    if not visit.complete:
        raise BenchError(f"{lines} recorded calls for {answered} to {answered + visit.broken_off} of the clients")


def read_log(log: Path) -> dict[str, Recorded]:
    """By client id, what an audit log has; empty when there is none."""
    if not log.exists():
        return {}
    decoder = msgspec.json.Decoder(Record)
    with log.open("rb") as lines:
        return tally(decoder.decode(line) for line in lines)


def tally(records: Iterable[Record]) -> dict[str, Recorded]:
    """Add up records, each of which may stand for several calls, by client id."""
    found: dict[str, Recorded] = {}
    for record in records:
        entry = found.setdefault(record.client_id, Recorded())
        entry.calls += record.calls
        entry.denied += record.calls if record.verdict in ("DENIED", "PARTIAL") else 0
        carried = record.calls if record.via == "kernel" else 0
        if record.method == "Produce":
            entry.writing += record.calls
            entry.written_by_kernel += carried
        elif record.method == "Fetch":
            entry.reading += record.calls
            entry.read_by_kernel += carried
    return found


def kernel_share(recorded: Recorded) -> Values:
    """How many of the Produce and of the Fetch requests the kernel has carried, in percent; nothing where there was none."""
    shares = {
        "write_by_kernel": (recorded.written_by_kernel, recorded.writing),
        "read_by_kernel": (recorded.read_by_kernel, recorded.reading),
    }
    return {name: 100 * carried / calls for name, (carried, calls) in shares.items() if calls}
