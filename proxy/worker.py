"""Accepts redirected connections and runs them: everything of the agent that touches traffic, in one process.

An agent with one worker runs it in its own process; with more, each is a process of its own (proxy/pool.py) that inherits
its listening sockets and the kernel's maps.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from socket import SocketType
from time import monotonic, time, time_ns

import msgspec

from parsers.contract import Parser
from parsers.http1 import Http1Parser
from parsers.opaque import DetectingParser, TunnelParser
from policies.decide import Action, Pair, PolicySet
from policies.model import Acceleration, Endpoint
from proxy.admission import Crowd, Descriptors, TurnedAway, descriptors
from proxy.audit.places import PLACE_BYTES, Place
from proxy.audit.record import AuditRecord, Party
from proxy.audit.writer import AuditWriter
from proxy.datapath import Origin, Origins, is_class
from proxy.flow import HOST, Flow, Likenesses, Orphan, Scene
from proxy.injector import Receiver
from proxy.memory import Memory
from proxy.metrics import Metrics, Snapshot
from proxy.poller import Poller
from proxy.relay import Pipes, Relay, keep_alive
from proxy.shares import Claim
from proxy.wheel import NO_WHEEL, Files, Legacy, NoWheel, Wheel, Wheels

# Connections accepted in one turn of the event loop, so that a burst does not starve those that are open: some 2 ms.
ACCEPT_BATCH = 16
# How often timeouts are looked at (seconds). They are all of seconds; nothing depends on this being exact.
SWEEP_INTERVAL = 1.0
# With opaque: allow, a client that is silent for this long (seconds) speaks a protocol in which the server begins.
DETECT_TIMEOUT = 1.0
# After running out of descriptors, wait this long (seconds) before accepting again: the backlog keeps what waits.
ACCEPT_PAUSE = 0.1
# How long the last records may take to reach the sink when the agent ends (seconds).
AUDIT_CLOSE_SECONDS = 5.0

# The part of a worker's memory that is for records; the rest is for bytes that connections keep.
RECORDS_PART = 4
# Ends of connections that are remembered: some 3 MiB.
MAX_ENDS = 4096

_RESET = struct.pack("ii", 1, 0)
_log = logging.getLogger(__name__)


class Settings(msgspec.Struct, frozen=True):
    """What every worker needs to know; the same for the agent's whole life."""

    node: str
    audit: str
    port: int
    idle_timeout: float
    memory: int  # bytes for records and for what connections keep, of one worker
    accelerate_all: bool = False  # also connections between workloads that do not ask for it
    record_headers: tuple[str, ...] = ()


class Records:
    """The audit writer as flows see it. A refusal that finds no room is kept here, and accepting pauses until it is in."""

    def __init__(self, writer: AuditWriter) -> None:
        self._writer = writer
        self._backlog: deque[AuditRecord] = deque()

    def reserve(self, place: Place) -> bool:
        return self._writer.reserve(place)

    def cancel(self, place: Place) -> None:
        self._writer.cancel(place)

    def write_line(self, line: str, reserved: Place) -> None:
        self._writer.write_line(line, reserved)

    def write(self, record: AuditRecord, *, reserved: Place | None) -> None:
        if (self._backlog and reserved is None) or not self._writer.write(record, reserved=reserved):
            self._backlog.append(record)

    @property
    def accepts_refusals(self) -> bool:
        return not self._backlog

    @property
    def waiting(self) -> int:
        return len(self._backlog)

    def retry(self) -> None:
        while self._backlog and self._writer.write(self._backlog[0], reserved=None):
            self._backlog.popleft()


class Ends:
    """The two ends that many connections have in common: who they are to records, and the pair that judges their calls.

    Called, it gives the pair under the policy of now.
    """

    __slots__ = ("_origin", "_pair", "_policies", "_worker", "destination", "peer", "subject")

    def __init__(self, worker: "Worker", origin: Origin) -> None:
        self._worker, self._origin = worker, origin
        self._policies: PolicySet | None = None
        self.subject = worker.party(origin.subject, None)
        self.peer = worker.party(origin.peer, origin.address)
        self.destination = _endpoint_text(origin.address, origin.port)

    def __call__(self) -> Pair:
        policies = self._worker.policies
        if policies is not self._policies:
            self._policies = policies
            subject = self._worker.endpoint(self._origin.subject, None)
            peer = self._worker.endpoint(self._origin.peer, self._origin.address)
            self._pair = policies.pair(subject, peer, self._origin.port)
        return self._pair


class Worker:
    """Give it policy with ``apply`` before ``start``."""

    policies: PolicySet

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        listeners: Sequence[socket.socket],
        origins: Origins,
        kernel: Files | None,
    ) -> None:
        """``kernel``: what there is of the kernel path, or None: everything is relayed."""
        self._loop = loop
        self._settings = settings
        self._listeners = listeners
        self._origins = origins
        self._audit = AuditWriter(settings.audit, capacity=settings.memory // RECORDS_PART)
        self._memory = Memory(loop, settings.memory - settings.memory // RECORDS_PART)
        self._records = Records(self._audit)
        self._record_headers = frozenset(name.lower() for name in settings.record_headers)
        self._metrics = Metrics()
        self._likenesses = Likenesses()
        self._wheels = Wheels(loop, kernel, self._audit, self._metrics, self._complain) if kernel else None
        self._names: Mapping[int, str] = {}
        self._elsewhere: set[int] = set()  # identities of workloads that have, or had at last, addresses only
        self._ends: dict[tuple[int, int, str, int], Ends] = {}
        self._relays: dict[Relay, tuple[Scene, Claim]] = {}
        self._turned_away: TurnedAway[tuple[Scene, int]] = TurnedAway(self._tell_turned_away)
        self._admit_as_many(Descriptors(1, 1))
        self._poller = Poller(loop)
        self._moved = [0, 0]
        self._moved_before = [0, 0]
        self._accepted = 0
        self._accepting = False
        self._complained: set[type[Exception]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    # Life.

    def apply(self, policies: PolicySet, names: Mapping[int, str]) -> None:
        """A new generation: the next call of every connection is judged by it. ``names`` of workloads by identity."""
        self.policies, self._names = policies, names
        self._ends.clear()
        self._likenesses.clear()
        has_cgroups = {workload.name: bool(workload.cgroups) for workload in policies.bundle.workloads}
        known = {number for number, name in names.items() if name in has_cgroups}
        self._elsewhere -= known
        self._elsewhere |= {number for number in known if not has_cgroups[names[number]]}
        self._metrics.policy_generation = policies.generation
        self._expect_subjects()

    def start(self) -> None:
        self._admit_as_many(descriptors())
        self._expect_subjects()
        for listener in self._listeners:
            listener.setblocking(False)
            keep_alive(listener)  # accepted sockets inherit it
        if self._wheels:
            self._wheels.inherit(self._orphan)
        self._resume()
        self._sweep()
        if self._wheels:
            self._wheels.start()

    def _admit_as_many(self, there: Descriptors) -> None:
        self._crowd: Crowd[Relay] = Crowd(there.connections)
        self._pipes = Pipes(there.pipes)
        self._budgets = {"connections": self._crowd.budget, "memory": self._memory.budget, "records": self._audit.budget}

    def _expect_subjects(self) -> None:
        """Every workload may be one, and the rest of the host together."""
        for budget in self._budgets.values():
            budget.expect(len(self.policies.bundle.workloads) + 1)

    async def drain(self, seconds: float) -> int:
        """Take no new connection, let open calls finish for at most ``seconds``, then end what is left.

        How many records could not be written.
        """
        self._drained = self._loop.create_future()
        self._pause()
        for listener in self._listeners:
            listener.close()
        for relay in list(self._relays):
            relay.drain()
        if self._relays:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained, seconds)
        for relay in list(self._relays):
            try:
                relay.stop()
            except Exception as error:  # the others still have to end with their records
                self._complain(error)
        if self._sweeping:
            self._sweeping.cancel()
        if self._wheels:
            self._wheels.finish()
        self._turned_away.tell(None)
        self._records.retry()
        await self._loop.run_in_executor(None, self._audit.close, AUDIT_CLOSE_SECONDS)
        if self._wheels:
            self._wheels.close()
        return self._audit.depth + self._records.waiting

    # What the agent asks.

    def reopen(self) -> None:
        self._audit.reopen()

    def snapshot(self) -> Snapshot:
        for index, name in enumerate(("request", "reply")):
            self._metrics.relayed_bytes.add((name,), self._moved[index] - self._moved_before[index])
        self._moved_before[:] = self._moved
        self._metrics.audit_queue = self._audit.depth
        self._metrics.audit_moved = self._audit.moved
        self._audit.reclaim()
        for name, budget in self._budgets.items():
            self._metrics.budget_used.set((name,), budget.used)
            self._metrics.budget_limit.set((name,), budget.limit)
        return self._metrics.snapshot()

    def connections(self, limit: int) -> tuple[int, list[dict[str, object]]]:
        now = monotonic()
        shown: list[dict[str, object]] = [
            {
                "id": scene.connection,
                "subject": scene.subject.workload,
                "peer": scene.peer.workload,
                "source": scene.source,
                "destination": scene.destination,
                "protocol": relay.flow.protocol,
                "via": "kernel" if relay.wheel.held else "relay",
                "openCalls": relay.flow.open_calls,
                "idleSeconds": round(now - relay.active_at, 3),
            }
            for relay, (scene, _) in list(self._relays.items())[:limit]
        ]
        return len(self._relays), shown

    def audit_trouble(self) -> str | None:
        """Why records cannot be written at the moment."""
        if self._audit.healthy and self._records.accepts_refusals:
            return None
        return self._audit.last_error or "the audit queue is full"

    def pressure(self) -> list[str]:
        """Which budgets are short, and who has most of each."""
        self._audit.reclaim()
        told = []
        for name, budget in self._budgets.items():
            share = budget.short()
            if share is not None:
                told.append(f"{name}: {share.subject} has {share.held} of {budget.limit}, {budget.used} are in use")
        return told

    def kernel_trouble(self) -> str | None:
        """What has gone wrong lately with records of calls that the kernel has carried."""
        return self._wheels.trouble if self._wheels else None

    # Who is who.

    def endpoint(self, identity: int, address: str | None) -> Endpoint:
        """One end as policy sees it: of a workload the address does not matter.

        The kernel may have named the identity under older documents.
        """
        name = self._names.get(identity)
        if name is not None:
            with contextlib.suppress(KeyError):  # a workload that the newest documents no longer have is what is left of it
                return self.policies.endpoint(name)
        if address is not None and (identity in self._elsewhere or is_class(identity)):
            owner = self.policies.workload_of_address(address)
            return self.policies.endpoint(owner.name) if owner is not None else Endpoint(address=address)
        return Endpoint(address=address, local=not is_class(identity))

    def party(self, identity: int, address: str | None) -> Party:
        """One end as records name it."""
        name = self._names.get(identity)
        if name is None:
            return Party(address=address)
        try:
            labels = self.policies.endpoint(name).labels
        except KeyError:
            labels = {}
        return Party(workload=name, labels=labels or None, address=address)

    def _ends_of(self, origin: Origin) -> Ends:
        """Remembered: connections come from few workloads and go to few."""
        key = (origin.subject, origin.peer, origin.address, origin.port)
        ends = self._ends.get(key)
        if ends is None:
            if len(self._ends) >= MAX_ENDS:
                self._ends.clear()
            ends = self._ends[key] = Ends(self, origin)
        return ends

    # Connections.

    def _resume(self) -> None:
        if not self._accepting and self._drained is None:
            self._accepting = True
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener, int(listener.family))

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket, family: int) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                # ``accept`` without the wrapping that makes a ``socket.socket`` of the descriptor, which takes 3 us.
                fd, client = listener._accept()  # type: ignore[attr-defined]
                down = SocketType(family, socket.SOCK_STREAM, 0, fd)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._limit("DESCRIPTORS")
                    self._pause()
                    self._loop.call_later(ACCEPT_PAUSE, self._resume)
                    return
                continue  # the client was gone before we came
            try:
                self._admit(down, client)
            except Exception as error:
                if not isinstance(error, OSError):  # an OSError: nobody listens where it wants to go
                    self._complain(error)
                self._limit("ACCEPT_FAILED")
                _reset(down)

    def _admit(self, down: SocketType, client: tuple[str, int]) -> None:
        down.setblocking(False)
        origin = self._origins.asked(down)
        if origin is None or origin.to_agent:
            # Nobody was redirected here: somebody found our port. Never trust the client's words for where it wants to go.
            self._limit("NOT_REDIRECTED")
            _reset(down)
            return
        subject = self._names.get(origin.subject) or HOST
        place = self._crowd.admit(subject)
        if place is None:
            self._turn_away(subject, origin, client)
            _reset(down)
            return
        try:
            self._take_in(down, client, origin, place)
        except BaseException:
            self._crowd.give_back(place)
            raise

    def _take_in(self, down: SocketType, client: tuple[str, int], origin: Origin, place: Claim) -> None:
        dialled = None
        if origin.unresolved:
            # In the client's namespace nobody could tell who listens there. In ours, the hook can.
            dialled = self._connect(origin)
            reached = self._origins.reached(dialled)
            if reached is None:
                raise OSError(errno.ECONNREFUSED, "nobody can tell who listens there")
            origin = msgspec.structs.replace(origin, peer=reached)
            if origin.to_agent:
                self._limit("NOT_REDIRECTED")
                dialled.close()
                raise OSError(errno.ECONNREFUSED, "our own port")
        ends = self._ends_of(origin)
        pair = ends()
        source = _endpoint_text(client[0], client[1])
        detect_within = DETECT_TIMEOUT if pair.protocol != "tcp" and pair.opaque_allowed else None
        scene = self._scene(origin, source, ends, detect_within)
        parser = _parser(pair)
        # Of HTTP alone it is certain that the client's first bytes are here when the server is dialled.
        request_waits = isinstance(parser, Http1Parser)
        wheel = self._wheel(origin, pair, source) if dialled is None else NO_WHEEL

        def dial() -> SocketType:
            return dialled or self._connect(origin, origin.peer, request_waits, wheel)

        self._poller.belongs(down.fileno(), origin.subject)
        flow = Flow(scene, parser)
        memory = self._memory, self._memory.budget.claim(place.share.subject)
        # Whoever is in the map gets everything by its queue, whether the kernel may carry its calls or not.
        queue = None
        if self._wheels and origin.sock:
            queue = self._wheels.queue(Receiver(origin.cookie, origin.sock, origin.first))
        relay = Relay(
            self._loop, self._poller, down, dial, flow, wheel, self._audit, self._pipes, self._moved, *memory, self._gone, queue
        )
        self._relays[relay] = scene, place
        self._crowd.enter(relay, place)
        self._metrics.connections.add(("open",))
        relay.start()

    def _scene(self, origin: Origin, source: str, ends: Ends, detect_within: float | None) -> Scene:
        self._accepted += 1
        return Scene(
            connection=f"{self._settings.port}-{self._accepted}" if not origin.cookie else f"{origin.cookie:x}",
            node=self._settings.node,
            source=source,
            destination=ends.destination,
            subject=ends.subject,
            peer=ends.peer,
            pair=ends,
            sink=self._records,
            metrics=self._metrics,
            likenesses=self._likenesses,
            place=Place(PLACE_BYTES, self._audit.budget.claim(ends.subject.workload or HOST)),
            record_headers=self._record_headers,
            detect_within=detect_within,
            complain=self._complain,
        )

    def _turn_away(self, subject: str, origin: Origin, client: tuple[str, int]) -> None:
        """There is no place for another connection of this subject: many of them make one record in a second."""
        self._limit("CONNECTIONS")
        self._metrics.over_share.add(("connections", subject))
        ends = self._ends_of(origin)
        key = subject, ends.peer.workload or ends.peer.address, origin.port

        def first() -> tuple[Scene, int]:
            return self._scene(origin, _endpoint_text(client[0], client[1]), ends, None), time_ns() // 1000

        self._turned_away.add(int(time()), key, first)

    def _tell_turned_away(self, first: tuple[Scene, int], count: int) -> None:
        scene, since = first
        Flow(scene, TunnelParser()).turned_away(count, since, monotonic())

    def _orphan(self, legacy: Legacy) -> Orphan:
        """A connection of the worker that died before us."""
        ends = self._ends_of(legacy.origin)
        return Orphan(self._scene(legacy.origin, legacy.source, ends, None), _carried_parser(ends()))

    def _wheel(self, origin: Origin, pair: Pair, source: str) -> Wheel | NoWheel:
        least = Acceleration.AUTO if self._settings.accelerate_all else Acceleration.ON
        if self._wheels is None or not origin.sock or pair.acceleration < least or not pair.may_be_carried:
            return NO_WHEEL
        return self._wheels.wheel(origin.cookie, Legacy(origin, source))

    def _connect(
        self, origin: Origin, expected: int | None = None, request_waits: bool = False, wheel: Wheel | NoWheel = NO_WHEEL
    ) -> SocketType:
        """Start to connect to the server; ``expected`` is whom the policy was asked about."""
        family = socket.AF_INET6 if ":" in origin.address else socket.AF_INET
        up = SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            up.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Not where the server's socket may be put into the map: it has to be there before the first byte.
            if request_waits and (is_class(origin.peer) or not wheel.able):
                # The handshake's last ACK travels with the request (tcp(7); haproxy's tcp-smart-connect): a packet less, and a
                # server that wakes once, not twice.
                up.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            wheel.mark(up)
            error = up.connect_ex((origin.address, origin.port))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, "connect")
            if expected is not None:
                reached = self._origins.reached(up)
                if reached is None or (reached != expected and not (is_class(reached) and is_class(expected))):
                    self._limit("PEER_CHANGED")
                    raise OSError(errno.ECONNREFUSED, "another process listens there now")
        except BaseException:
            up.close()
            raise
        return up

    def _gone(self, relay: Relay) -> None:
        known = self._relays.pop(relay, None)
        if known is not None:
            self._crowd.leave(relay, known[1])
            self._metrics.connections.add(("open",), -1)
        if self._drained and not self._relays and not self._drained.done():
            self._drained.set_result(None)

    def _sweep(self) -> None:
        # First the next one: timeouts, and accepting after a pause, depend on it, whatever goes wrong with one connection.
        self._sweeping = self._loop.call_later(SWEEP_INTERVAL, self._sweep)
        now = monotonic()
        self._turned_away.tell(int(time()))
        self._memory.look(now)
        self._records.retry()
        if self._records.accepts_refusals:
            self._resume()
        else:
            self._pause()
        for relay in list(self._relays):
            try:
                relay.tick(now, self._settings.idle_timeout)
            except Exception as error:
                self._complain(error)

    def _limit(self, name: str) -> None:
        self._metrics.limits.add((name,))

    def _complain(self, error: Exception) -> None:
        """A fault of ours, which ends a connection: said once of each kind, so that no traffic can fill the log with it."""
        self._limit("INTERNAL_ERROR")
        if type(error) not in self._complained:
            self._complained.add(type(error))
            _log.error("a connection failed by a fault of the agent", exc_info=error)


def _carried_parser(pair: Pair) -> Parser:
    """What reads the calls that the kernel has carried under ``pair``: nothing else is carried there."""
    if pair.protocol == "kafka":
        from parsers.kafka.connection import KafkaParser

        return KafkaParser()
    return Http1Parser()


def _parser(pair: Pair) -> Parser:
    """What reads a connection under ``pair``. A gRPC port speaks HTTP/2, which Http1Parser refuses by name."""
    if pair.protocol == "tcp" or pair.action is Action.REFUSE:
        return TunnelParser()
    if pair.protocol == "kafka":
        # Large: only who polices Kafka pays for it.
        from parsers.kafka.connection import KafkaParser
        from parsers.kafka.detect import Watch, detect, detect_surely

        if pair.opaque_allowed:
            detecting = (detect_surely, None) if pair.only_watches else (detect, Watch)
            return DetectingParser(lambda found: KafkaParser() if found == "kafka" else None, *detecting)
        return KafkaParser()
    if pair.opaque_allowed:
        if pair.only_watches:
            return DetectingParser(lambda found: Http1Parser() if found == "http/1.1" else None, watch=None)
        return DetectingParser(lambda found: Http1Parser() if found != "unknown" else None)
    return Http1Parser()


def _endpoint_text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _reset(sock: SocketType) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
