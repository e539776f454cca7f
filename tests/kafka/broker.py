"""A real Apache Kafka: one process, broker and controller at once (KRaft), from the jars that ``make kafka`` fetches.

``Broker`` is a context manager. It has the listeners that a test asks for, each on a free port below the ephemeral range,
and two of its own: the controller's and INTERNAL, both with SASL/PLAIN. The user ``ADMIN`` may do everything there, so that
with ``acls=True`` nobody else may do anything that no ACL allows, anonymous clients included. The broker dials both itself: a
policy for its workload has to let ``own_ports`` alone.
"""

import base64
import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import ROOT, command_exists, eventually, free_port

KAFKA = ROOT / ".build" / "kafka"
CLASSPATH = f"{KAFKA}/classes:{KAFKA}/lib/*"
# For programs that live a minute: little memory, and the compiler that starts fast. Not for measuring.
SMALL_JVM = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
# How long a start may take (seconds). It takes 3 when nobody else uses the processor.
START_PATIENCE = 90.0
STOP_PATIENCE = 20.0
READY = "Kafka Server started"
LOG_LINES_SHOWN = 40

INTERNAL, CONTROLLER = "INTERNAL", "CONTROLLER"


@dataclass(frozen=True)
class User:
    """Who logs in with SASL/PLAIN. Kafka calls its principal ``User:name``."""

    name: str
    password: str


ADMIN = User("admin", "admin-secret")


@dataclass(frozen=True)
class Listener:
    """A way in: where the broker listens, and what it tells clients to dial."""

    name: str = "PLAIN"
    sasl: bool = False  # SASL/PLAIN; else everybody is User:ANONYMOUS
    host: str = "127.0.0.1"  # an IPv6 address in brackets
    port: int = 0  # 0: a free one
    advertised: str = ""  # host:port; "": the listener's own


def missing() -> str | None:
    """Why no broker can run here; None if one can."""
    if not command_exists("java"):
        return "java is not installed"
    if not any(KAFKA.glob("lib/kafka_2.13-*.jar")):
        return "the jars of Kafka are not there (make kafka)"
    return None


def java(*arguments: str, jvm: Sequence[str] = SMALL_JVM) -> list[str]:
    """The command that runs a class of Kafka, or of our Java client. It dies with the thread that starts it."""
    return ["setpriv", "--pdeathsig", "KILL", "java", *jvm, "-cp", CLASSPATH, *arguments]


class Broker:
    """See the module. ``prefix`` comes before the command and places the process: ``("sluice", "exec", NAME, "--")``."""

    def __init__(
        self,
        folder: Path,
        listeners: Sequence[Listener] = (Listener(),),
        *,
        acls: bool = False,
        users: Sequence[User] = (),
        settings: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        jvm: Sequence[str] = SMALL_JVM,
    ) -> None:
        self.folder = folder
        self.log = folder / "broker.log"
        self._prefix, self._jvm = prefix, jvm
        self._users = (ADMIN, *users)
        own = (Listener(INTERNAL, sasl=True), Listener(CONTROLLER, sasl=True))
        self._listeners = {listener.name: listener for listener in (*listeners, *own)}
        taken: set[int] = set()
        self._ports = {name: listener.port or _fresh_port(taken) for name, listener in self._listeners.items()}
        self._settings = self._defaults() | (self._acl_settings() if acls else {}) | dict(settings or {})
        self.process: subprocess.Popen[bytes] | None = None

    def address(self, listener: str = "PLAIN") -> str:
        """host:port on which this listener listens."""
        return f"{self._listeners[listener].host}:{self._ports[listener]}"

    def port(self, listener: str = "PLAIN") -> int:
        return self._ports[listener]

    @property
    def own_ports(self) -> tuple[int, int]:
        return self._ports[INTERNAL], self._ports[CONTROLLER]

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it serves. A second start finds the data of the first."""
        config = self._write_config()
        if not (self.folder / "data").exists():
            self._format(config)
        with open(self.log, "ab") as log:
            start = log.tell()
            command = [*self._prefix, *java("kafka.Kafka", str(config), jvm=self._jvm)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(lambda: READY in self._said(start) or self._must_run(), "Kafka has started", START_PATIENCE)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order; nothing of it stays, whatever happens."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_PATIENCE)
        self.kill()

    def kill(self) -> None:
        """As ``kill -9`` would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def last_words(self) -> str:
        """The end of its log, for messages about failures."""
        return "\n".join(self._said().splitlines()[-LOG_LINES_SHOWN:])

    def _said(self, start: int = 0) -> str:
        return self.log.read_bytes()[start:].decode(errors="replace") if self.log.exists() else ""

    def _must_run(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"Kafka ended with {self.process.returncode}:\n{self.last_words()}"
        return False

    def _format(self, config: Path) -> None:
        # Kafka's own form of a UUID: it may not begin with a dash.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        command = java("kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(config))
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_PATIENCE)
        if done.returncode != 0:
            shutil.rmtree(self.folder / "data", ignore_errors=True)
            raise AssertionError(f"Kafka's storage was not formatted: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def _write_config(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "server.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in self._settings.items()))
        return path

    def _defaults(self) -> dict[str, str]:
        """One node, one replica, no waiting for others, no topic that nobody made."""
        protocols = {name: "SASL_PLAINTEXT" if item.sasl else "PLAINTEXT" for name, item in self._listeners.items()}
        advertised = {name: item.advertised or self.address(name) for name, item in self._listeners.items()}
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{self.address(CONTROLLER)}",
            "listeners": ",".join(f"{name}://{self.address(name)}" for name in self._listeners),
            "advertised.listeners": ",".join(f"{name}://{place}" for name, place in advertised.items() if name != CONTROLLER),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "controller.listener.names": CONTROLLER,
            "inter.broker.listener.name": INTERNAL,
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            # A member of the new protocol learns at its next heartbeat that another has come.
            "group.consumer.min.heartbeat.interval.ms": "300",
            "group.consumer.heartbeat.interval.ms": "300",
            "log.cleaner.enable": "false",  # it takes 128 MiB of heap at once
            "controlled.shutdown.enable": "false",  # there is nobody to hand over to
        }
        module = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        login = f'username="{ADMIN.name}" password="{ADMIN.password}"'
        known = " ".join(f'user_{user.name}="{user.password}"' for user in self._users)
        for name, item in self._listeners.items():
            if item.sasl:
                settings[f"listener.name.{name.lower()}.plain.sasl.jaas.config"] = f"{module} {login} {known};"
        return settings

    def _acl_settings(self) -> dict[str, str]:
        return {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{ADMIN.name}",
        }


def _fresh_port(taken: set[int]) -> int:
    while (port := free_port()) in taken:
        pass
    taken.add(port)
    return port
