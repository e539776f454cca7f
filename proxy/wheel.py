"""The kernel path as the agent sees it: who has the wheel of a connection, the relay or the kernel.

A relay that holds no byte of its connection, between two calls, lets go of the wheel; from then on the programs of
verdict.bpf.c carry what is proven to be allowed from application to application. They pass everything else on to the relay,
which takes the wheel back before it looks at a single byte, together with what there is of calls that are still open. So the
relay is right by itself, and the kernel only accelerates. See docs/kernel-path.md.

``KernelPath`` is the agent's: it loads and attaches the programs. ``Wheels`` is a worker's, ``Wheel`` a connection's.
"""

import asyncio
import logging
import mmap
import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from socket import SocketType
from time import monotonic, monotonic_ns, time_ns
from typing import NamedTuple, Protocol

import msgspec

from bpf import abi
from bpf.loader import BpfError, Map, Object, Routine, map_from_fd, new_ring
from parsers.contract import Direction, Prefix
from policies.decide import Pair
from policies.heads import HeadTable, prove
from proxy.audit.writer import AuditWriter
from proxy.datapath import Hooks, Origin, object_file
from proxy.flow import Carried, Finished, Flow, Loan, Orphan, UnknownLoanError
from proxy.injector import Injector, Queue, Receiver
from proxy.metrics import Metrics
from proxy.ring import Ring

# How long (seconds) we keep our own bytes behind carried ones of which nobody can tell whether they have arrived. Where nobody
# is in a system call on the sender's socket, it can be told.
COOLING = 0.05
# How long finished calls wait in the ring for others, so that their records are made in one go (seconds).
RING_DELAY = 0.004
# Finished calls that are taken from the ring at once.
RING_BATCH = 32
# How long (seconds) records of finished calls are made in one turn of the event loop, and how long while half of the ring waits
# for them. Between two of these slices calls are relayed, which are to wait for no more than a few of them.
RING_SLICE, RING_SLICE_CROWDED = 0.003, 0.006
# With no more than this in the ring (bytes: some twenty calls), what a connection has there is recorded before its relay goes
# on, so that records are in the order of calls. With more they need not be.
RING_SHORT = 4096
# Who has at least so many calls in the ring, when half of it waits for its records, is one of those that have filled it: what
# the kernel has left of it to the relay waits for others, at most so long (seconds).
CROWD = 8
CROWD_SECONDS = 0.025
# How long /healthz tells of an entry that was nobody's (seconds).
TROUBLE_SECONDS = 60.0
# A program is at the wheel for a microsecond, or for as long as it is kept from running.
TAKE_ATTEMPTS = 1_000_000
# A finished call that is behind another one in the ring, which is just being written, is seen as soon as that is done.
PICK_ATTEMPTS = 10_000

_log = logging.getLogger(__name__)
_PAGE = mmap.PAGESIZE
_WHEEL = struct.Struct("=I")
_COUNTS = struct.Struct("=II")  # begun and answered, in `ends` before its last four words
_COUNTS_AT = abi.SLUICE_ENDS.size - 4 * 4 - _COUNTS.size
_OWED = struct.Struct("=I")  # in `flows`, behind the wheel, three words and the ledger
_OWED_AT = 4 * 4 + 2 * 4
_OWNER = struct.Struct("=I4xQ")  # flow and client of a call, behind its times and numbers of bytes
_OWNER_AT = 5 * 8
# What a worker leaves of a connection to its successor: the length of a `Legacy` as msgpack, and that, some 250 bytes.
LEGACY_BYTES = 512
_LEGACY_LENGTH = struct.Struct("=H")
# The record of a finished call ends with the request's head, and of protocols with frames with the reply's behind it.
_FINISHED = struct.Struct(abi.SLUICE_CALL.format.partition(f"{abi.PathLimit.HEAD_BYTES}s")[0])


class Ledger(NamedTuple):
    """Bytes that the relay has read since the connection began, from the client's socket (down) and the server's (up), and
    whether it still has some for the client."""

    down_read: int
    up_read: int
    owed: bool = False


class Legacy(msgspec.Struct, frozen=True):
    """What is known of a connection that the kernel carries, for records that its worker did not live to make."""

    origin: Origin
    source: str  # "ip:port" of the client


def _open(call: bytes, framed: bool) -> Carried:
    """What the map ``calls`` says of a call that is still open."""
    fields = abi.Call._make(abi.SLUICE_CALL.unpack(call))
    behind = (fields.head + fields.reply_head)[fields.head_length :] if framed else fields.reply_head
    return Carried(
        began=fields.began_ns / 1e9,
        head=fields.head[: fields.head_length],
        request_bytes=fields.request_bytes,
        reply_head=behind[: fields.reply_head_length],
        reply_bytes=fields.reply_bytes,
        status=fields.status,
    )


class Files(msgspec.Struct, frozen=True):
    """The descriptors that a worker process inherits."""

    control: int
    flows: int
    ends: int
    callers: int
    calls: int
    prefixes: int
    tables: int
    rows: int
    lanes: int
    sockets: int
    injections: int
    take: int
    reach: int
    queued: int
    ring: int
    legacies: int
    worker: int  # its number, of so many
    workers: int

    @property
    def fds(self) -> tuple[int, ...]:
        return (
            self.control, self.flows, self.ends, self.callers, self.calls, self.prefixes,
            self.tables, self.rows, self.lanes, self.sockets, self.injections, self.take, self.reach, self.queued, self.ring,
            self.legacies,
        )  # fmt: skip


class KernelPath:
    """The programs of verdict.bpf.c and their maps. Raises `BpfError` where the kernel does not have what they need."""

    def __init__(self, hooks: Hooks, reply_table: HeadTable, workers: int) -> None:
        if workers > abi.PathLimit.MAX_WORKERS:
            raise BpfError(f"the kernel path has room for {abi.PathLimit.MAX_WORKERS} workers")
        self._object = Object(object_file("verdict"), hooks.config, (*hooks.shared, hooks.pending))
        self._sockets = self._object.map("sockets")
        self._object.attach_to_sockets("sluice_message", self._sockets)
        self._fallbacks = self._object.map("fallbacks")
        self._routines = {name: self._object.routine(f"sluice_{name}") for name in ("take", "reach", "queued")}
        rings = self._object.map("rings")
        self._rings = [new_ring("ring", abi.PathLimit.RING_BYTES) for _ in range(workers)]
        for index, ring in enumerate(self._rings):
            rings.set(_u32(index), _u32(ring.fd))
        # For workers alone; it outlives them because we hold it.
        self._legacies = os.memfd_create("sluice-legacies", os.MFD_CLOEXEC)
        os.ftruncate(self._legacies, LEGACY_BYTES * abi.PathLimit.MAX_FLOWS)
        self.files = [self._files(hooks, index) for index in range(workers)]
        rows = _Rows(self._object.map("rows").fd)
        if reply_table.states > RESERVED_ROWS:
            raise BpfError("the automaton of reply heads has more states than there are rows for it")
        rows.write(0, reply_table)
        self._object.map("tables").set(_u32(abi.PathLimit.REPLY_TABLE), _table(0, reply_table))

    def _files(self, hooks: Hooks, worker: int) -> Files:
        maps = ("flows", "ends", "callers", "calls", "prefixes", "tables", "rows", "lanes", "sockets", "injections")
        named = {name: self._object.map(name).fd for name in maps}
        named |= {name: routine.fd for name, routine in self._routines.items()}
        return Files(
            control=hooks.shared[0].fd,
            ring=self._rings[worker].fd,
            legacies=self._legacies,
            worker=worker,
            workers=len(self._rings),
            **named,
        )

    def attach(self, mount: Path) -> int:
        """Attach to the root of the cgroup tree; the file descriptor of the link."""
        root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return self._object.attach("sluice_enlist", root)
        finally:
            os.close(root)

    @property
    def sockets(self) -> Map:
        """It must outlive the agent as long as an application has unread bytes that the kernel has carried."""
        return self._sockets

    def fallbacks(self) -> dict[str, int]:
        """How many messages went to the relay, by reason."""
        counts = self._fallbacks.per_cpu_sums(abi.Fallback.FB_MAX)
        return {abi.Fallback(number).name.removeprefix("FB_").lower(): count for number, count in enumerate(counts)}

    def close(self) -> None:
        self._object.close()
        os.close(self._legacies)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _u64(number: int) -> bytes:
    return number.to_bytes(8, sys.byteorder)


def _prefix(prefix: Prefix) -> bytes:
    return abi.SLUICE_PREFIX.pack(len(prefix.data), 0, prefix.data, prefix.mask)


def _table(base: int, table: HeadTable) -> bytes:
    return abi.SLUICE_TABLE.pack(base, table.start, table.classes)


class _Rows:
    """The states of all automata, in the kernel's memory."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, abi.SLUICE_ROWS.size)

    def write(self, base: int, table: HeadTable) -> None:
        at = base * abi.PathLimit.CELLS * 2
        self._memory[at : at + len(table.rows)] = table.rows

    def close(self) -> None:
        self._memory.close()


# Rows in which no worker writes: those of the automaton of reply heads.
RESERVED_ROWS = 512


class Rider(Protocol):
    """A relay, as far as the wheel of its connection is concerned."""

    @property
    def flow(self) -> Flow: ...

    def fault(self, error: Exception) -> None:
        """Something is wrong with the connection, which has to be ended."""
        ...

    def take_wheel(self) -> None: ...


class NoWheel:
    """That of a connection which only the relay may have: it does nothing."""

    able = held = owes = reaches_server = must_wait = False
    carried_at = 0.0
    begun = answered = 0

    def watch(self, rider: Rider) -> None:
        pass

    def mark(self, up: SocketType) -> None:
        pass

    def let_go(self, loan: Loan, ledger: Ledger) -> None:
        raise AssertionError("the kernel cannot have this connection")

    def owe_nothing(self) -> None:
        pass

    def take(self) -> list[Carried]:
        return []

    def settled(self, direction: Direction) -> bool:
        return True

    def reach(self) -> Queue | None:
        return None

    def hold_back(self) -> None:
        pass

    def close(self) -> None:
        pass


NO_WHEEL = NoWheel()


class Wheel:
    """The wheel of one connection."""

    __slots__ = (
        "_finished",
        "_legacy",
        "_places",
        "_prefixes",
        "_waits",
        "_was",
        "_wheels",
        "client",
        "held",
        "index",
        "owes",
        "recorded",
        "rider",
    )

    able = True
    rider: Rider

    def __init__(self, wheels: "Wheels", index: int, client: int, legacy: Legacy | None = None) -> None:
        self._wheels, self.index, self.client, self._legacy = wheels, index, client, legacy
        self._places = 0  # for calls that are open, in the kernel; it knows the connection's name as soon as there are some
        self._prefixes: Sequence[Prefix] = ()  # in the kernel
        self.held = False  # by the kernel, as far as we know
        self.owes = False  # the relay had bytes for the client when it let go, and may still have some
        self._finished = 0  # calls that the kernel had carried when the wheel was taken for the last time
        self.recorded = 0  # of all that it has carried
        self._waits: float | None = None  # since when
        self._was: int = abi.Wheel.WHEEL_OFF  # who had the wheel of an inherited connection

    @classmethod
    def inherited(cls, wheels: "Wheels", index: int, flow: abi.Flow) -> "Wheel":
        """Of a connection that has ended with its worker. Nothing is carried any more."""
        wheel = cls(wheels, index, flow.client)
        wheel._places = abi.PathLimit.PIPELINE if flow.table == abi.Framing.FRAMES else 1
        wheel._was = wheel._take_off()
        return wheel

    def watch(self, rider: Rider) -> None:
        """Whose connection it is: told of finished calls, and when the wheel has to be taken."""
        self.rider = rider
        self._wheels.own[self.index] = self

    def mark(self, up: SocketType) -> None:
        """Before it connects: the kernel will recognise the server's socket at the other end, if it is on this host."""
        lane = abi.Lane(0, 0, abi.Role.ROLE_UPSTREAM, self.index, 0, 0)
        self._wheels.lanes.set(_u32(up.fileno()), abi.SLUICE_LANE.pack(*lane))

    def reach(self) -> Queue | None:
        """The queue of the server, which gets everything by it; None: everything by TCP. When the agent's socket is connected,
        before anything is sent on it."""
        ends = self._ends()
        if not ends.server:
            for _ in range(TAKE_ATTEMPTS):
                access = self._wheels.access(abi.SLUICE_TAKE.pack(self.index, 0))
                if access != abi.Access.ACCESS_OPEN:
                    break
            else:
                raise BpfError("the kernel does not tell whether it has seen the server")
            if access == abi.Access.ACCESS_TCP:
                return None
            ends = self._ends()
        return self._wheels.queue(Receiver(ends.server, ends.server_sock, ends.server_received))

    def let_go(self, loan: Loan, ledger: Ledger) -> None:
        """Give the wheel to the kernel, if it can have this connection: see ``held``."""
        if self._wheels.stuck or not self.reaches_server:  # the automaton of a server elsewhere would be of no use
            return
        table = self._wheels.table(loan.pair) if loan.prefixes is None else abi.Framing.FRAMES
        if table is not None:
            self.give(table, loan.pair.generation, ledger, loan.prefixes or (), loan.number)

    def give(self, table: int, generation: int, ledger: Ledger, prefixes: Sequence[Prefix] = (), number: int = 0) -> None:
        """Let the kernel carry what the automaton proves, or what begins like ``prefixes``, if it knows the server's socket and
        has room: see ``held``. ``number`` is the next call's."""
        wheels = self._wheels
        places = abi.PathLimit.PIPELINE if table == abi.Framing.FRAMES else 1
        if not self.reaches_server or not self._make_room(places, prefixes):
            return
        moved = (number & 0xFFFFFFFF for number in ledger)
        flow = (abi.Wheel.WHEEL_OFF, generation, table, wheels.worker, *moved, number, self.client)
        self.owes = ledger.owed
        abi.SLUICE_FLOW.pack_into(wheels.flows, self.index * abi.SLUICE_FLOW.size, *flow)
        _COUNTS.pack_into(wheels.ends, self.index * abi.SLUICE_ENDS.size + _COUNTS_AT, 0, 0)
        self.held = True
        _WHEEL.pack_into(wheels.flows, self.index * abi.SLUICE_FLOW.size, abi.Wheel.WHEEL_IDLE)

    def owe_nothing(self) -> None:
        """The client has got all that the relay had for it: replies may be carried."""
        self.owes = False
        _OWED.pack_into(self._wheels.flows, self.index * abi.SLUICE_FLOW.size + _OWED_AT, 0)

    def _make_room(self, places: int, prefixes: Sequence[Prefix]) -> bool:
        wheels = self._wheels
        try:
            if prefixes != self._prefixes:
                for number, prefix in enumerate(prefixes):
                    if number >= len(self._prefixes) or prefix != self._prefixes[number]:
                        wheels.prefixes.set(self._prefix_key(number), _prefix(prefix))
                for number in range(len(prefixes), len(self._prefixes)):
                    wheels.prefixes.delete(self._prefix_key(number))
                self._prefixes = prefixes
            if not self._places:
                for number in range(places):
                    wheels.calls.set(self._call_key(number), bytes(abi.SLUICE_CALL.size))
                wheels.callers.set(_u64(self.client), _u32(self.index))
                self._places = places
                if self._legacy:
                    wheels.leave(self.index, self._legacy)
        except BpfError:  # other connections have all the room
            self._give_room_back(abi.PathLimit.PREFIXES, places)
            return False
        return True

    def _give_room_back(self, prefixes: int, places: int) -> None:
        wheels = self._wheels
        for number in range(prefixes):
            wheels.prefixes.delete(self._prefix_key(number))
        for number in range(places):
            wheels.calls.delete(self._call_key(number))
        if places and wheels.callers.get(_u64(self.client)) == _u32(self.index):  # a socket may have connected again
            wheels.callers.delete(_u64(self.client))
        self._prefixes, self._places = (), 0

    def _call_key(self, number: int) -> bytes:
        """Of a call by its number since we let go of the wheel."""
        return _u32(self.index * abi.PathLimit.PIPELINE + number % (self._places or abi.PathLimit.PIPELINE))

    def _prefix_key(self, number: int) -> bytes:
        return _u32(self.index * abi.PathLimit.PREFIXES + number)

    def take(self) -> list[Carried]:
        """Take the wheel from the kernel; what there is of calls that it was carrying, oldest first."""
        self.held = False
        self._waits = None
        before = self._take_off()
        ends = self._ends()
        self._finished += ends.answered
        if self.owed:
            self._wheels.catch_up(self, must=self._framed)
        if before in (abi.Wheel.WHEEL_OFF, abi.Wheel.WHEEL_IDLE):
            return []
        return self._open_calls(ends)

    def _take_off(self) -> int:
        """Who had the wheel. From now on nothing is carried."""
        for _ in range(TAKE_ATTEMPTS):
            before = self._wheels.take(abi.SLUICE_TAKE.pack(self.index, 0))
            if before != abi.Wheel.WHEEL_BUSY:
                return before
        raise BpfError("the kernel does not give the wheel back")

    def open_calls(self, first: int) -> list[tuple[int, Carried]]:
        """What there is of calls that the kernel had not finished when the worker died, with their numbers: it began with
        ``first``. Where the worker had the wheel they were its own, and it may have recorded them."""
        ends = self._ends()
        if self._was == abi.Wheel.WHEEL_OFF:
            return []
        return list(enumerate(self._open_calls(ends), first + ends.answered))

    def _open_calls(self, ends: abi.Ends) -> list[Carried]:
        numbers = range(ends.answered, ends.answered + (ends.begun - ends.answered & 0xFFFFFFFF))
        calls = [self._wheels.calls.get(self._call_key(number)) for number in numbers]
        return [_open(call, self._framed) for call in calls if call]

    @property
    def _framed(self) -> bool:
        return self._places > 1

    @property
    def owed(self) -> int:
        """How many calls the kernel has carried that are not recorded yet."""
        return self._finished + (self.answered if self.held else 0) - self.recorded

    @property
    def must_wait(self) -> bool:
        """Whether what the kernel has left to us is to be looked at later: this connection is one of those whose finished calls
        have filled the ring, and others come first."""
        if not self._wheels.crowded or self.owed < CROWD:
            return False
        now = monotonic()
        self._waits = self._waits or now
        return now - self._waits < CROWD_SECONDS

    @property
    def reaches_server(self) -> bool:
        """Whether the kernel knows the server's socket: it is on this host."""
        return bool(self._ends().server)

    @property
    def begun(self) -> int:
        """How many calls the kernel has begun since it was given the wheel for the last time."""
        return self._ends().begun

    @property
    def answered(self) -> int:
        """How many of these it has carried to their ends."""
        return self._ends().answered

    @property
    def carried_at(self) -> float:
        """When the kernel last carried something, in seconds of the monotonic clock."""
        return self._ends().carried_ns / 1e9

    def settled(self, direction: Direction) -> bool:
        """Whether every byte that was carried in ``direction`` is in its receiver's queue: nothing may be written to the
        receiver before.

        The kernel says that it carries a message just before the message is in that queue; the sender may be kept from running
        in between. To be asked again, after `take`. A sender may also have a thread that waits for bytes to read, which looks
        alike: after COOLING seconds a reply is taken for settled. A request is not, because what comes behind it could then
        be read before it, as something that nobody has judged. What was taken in part never is.
        """
        ends = self._ends()
        if ends.torn:
            return False
        if self.held or not self._under_way(ends, direction):
            return True
        self._wheels.take(abi.SLUICE_TAKE.pack(self.index, 0))
        if not self._under_way(self._ends(), direction):
            return True
        return direction is Direction.REPLY and monotonic_ns() - ends.carried_ns > COOLING * 1e9

    @staticmethod
    def _under_way(ends: abi.Ends, direction: Direction) -> bool:
        return bool(ends.sender if direction is Direction.REQUEST else ends.replying)

    def hold_back(self) -> None:
        """There is no room for records: nobody may be carried until there is."""
        self._wheels.hold_back()

    def _ends(self) -> abi.Ends:
        return abi.Ends._make(abi.SLUICE_ENDS.unpack_from(self._wheels.ends, self.index * abi.SLUICE_ENDS.size))

    def close(self) -> None:
        """The connection is over."""
        try:
            if self.held:
                self.take()
            self._give_room_back(len(self._prefixes), self._places)
        finally:
            self._wheels.release(self)

    def clear(self) -> None:
        """The same of a connection that was inherited: whatever it may have had in the kernel goes."""
        self._give_room_back(abi.PathLimit.PREFIXES, abi.PathLimit.PIPELINE)

    @property
    def has_carried(self) -> bool:
        return self._finished > 0

    def is_owner(self, call: bytes) -> bool:
        """Whether a call from the ring is one of this connection."""
        return _OWNER.unpack_from(call, _OWNER_AT) == (self.index, self.client)


class Wheels:
    """The wheels of one worker's connections, the automata that its policies need, and the records of what was carried."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        files: Files,
        audit: AuditWriter,
        metrics: Metrics,
        complain: Callable[[Exception], None],
    ) -> None:
        self._loop = loop
        self._audit = audit
        self._metrics = metrics
        self._complain = complain
        self._making: set[asyncio.Task[None]] = set()
        self._prover = ThreadPoolExecutor(1, "sluice-prover")  # one at a time: a policy may need many
        worker, workers = self.worker, _ = files.worker, files.workers
        self.flows = mmap.mmap(files.flows, _pages(abi.SLUICE_FLOW.size * abi.PathLimit.MAX_FLOWS))
        self.ends = mmap.mmap(files.ends, _pages(abi.SLUICE_ENDS.size * abi.PathLimit.MAX_FLOWS))
        self._legacies = mmap.mmap(files.legacies, LEGACY_BYTES * abi.PathLimit.MAX_FLOWS)
        self._control = mmap.mmap(files.control, _PAGE)
        self.callers = map_from_fd(files.callers, "callers", 8, 4)
        self.calls = map_from_fd(files.calls, "calls", 4, abi.SLUICE_CALL.size)
        self.prefixes = map_from_fd(files.prefixes, "prefixes", 4, abi.SLUICE_PREFIX.size)
        self.lanes = map_from_fd(files.lanes, "lanes", 4, abi.SLUICE_LANE.size)
        self._tables = map_from_fd(files.tables, "tables", 4, abi.SLUICE_TABLE.size)
        self._rows = _Rows(files.rows)
        self.take = Routine(files.take)
        self.access = Routine(files.reach)
        sockets = map_from_fd(files.sockets, "sockets", 8, 8)
        self.injector = Injector(loop, files.worker, files.injections, sockets, self.lanes, Routine(files.queued))
        self.ring = Ring(files.ring, abi.PathLimit.RING_BYTES)
        # Every worker has its share of what there is. Number 0 means none, and the first rows are those of replies.
        flows, tables = abi.PathLimit.MAX_FLOWS // workers, abi.PathLimit.MAX_TABLES // workers
        rows = abi.PathLimit.MAX_ROWS // workers
        self._flow_range = range(max(worker * flows, 1), (worker + 1) * flows)
        self._free = list(reversed(self._flow_range))
        self.own: dict[int, Wheel] = {}  # by flow: of open connections, and of those whose calls may still be in the ring
        self._leaving: deque[tuple[int, Wheel]] = deque()  # the latter, with the position in the ring behind their last call
        self.stuck = False  # there is no room for records: the kernel gets nothing
        self._timer: asyncio.Handle | None = None  # the next turn
        self._trouble = 0.0, ""  # when, and what, went wrong with the records of finished calls
        self._table_range = range(max(worker * tables, 1), (worker + 1) * tables)
        self._row_range = range(max(worker * rows, RESERVED_ROWS), (worker + 1) * rows)
        self._generation = 0
        self._start_anew()

    def _start_anew(self) -> None:
        self._next_table = self._table_range.start
        self._next_row = self._row_range.start
        self._numbers: dict[Pair, int | None] = {}

    @property
    def generation(self) -> int:
        """The generation of policy that the kernel's programs go by."""
        return abi.Control._make(abi.SLUICE_CONTROL.unpack_from(self._control)).generation

    def table(self, pair: Pair) -> int | None:
        """The number of the automaton of ``pair``; None while there is none: it is being made, or there cannot be one."""
        self._look_at_generation()
        if pair.generation != self._generation:
            return None
        if pair not in self._numbers:
            self._numbers[pair] = None
            task = self._loop.create_task(self._make(pair))
            self._making.add(task)
            task.add_done_callback(self._making.discard)
        return self._numbers[pair]

    async def _make(self, pair: Pair) -> None:
        automaton = await self._loop.run_in_executor(self._prover, prove, pair)
        if isinstance(automaton, HeadTable) and pair in self._numbers:
            self._numbers[pair] = self.install(automaton)

    def _look_at_generation(self) -> None:
        generation = self.generation
        if generation != self._generation:
            # The room of an older generation is used again: programs that still run look at the generation at their end.
            self._generation = generation
            self._start_anew()

    def install(self, automaton: HeadTable) -> int | None:
        """Write an automaton for the generation in force; its number, or None when there is no room for it."""
        self._look_at_generation()
        base, number = self._next_row, self._next_table
        if base + automaton.states > self._row_range.stop or number == self._table_range.stop:
            return None
        self._rows.write(base, automaton)
        self._tables.set(_u32(number), _table(base, automaton))
        self._next_row += automaton.states
        self._next_table += 1
        return number

    def wheel(self, client: int, legacy: Legacy | None = None) -> Wheel | NoWheel:
        """The wheel for the connection of the application's socket ``client`` (its cookie); ``legacy`` is for our successor."""
        if not self._free:
            return NO_WHEEL
        return Wheel(self, self._free.pop(), client, legacy)

    def queue(self, receiver: Receiver) -> Queue:
        """The queue of a socket that the kernel has put into the map: it must get everything by it."""
        return Queue(self.injector, receiver)

    def release(self, wheel: Wheel) -> None:
        """A connection is over. Its number is used again when the records of its calls are written."""
        if wheel.has_carried:
            self._leaving.append((self.ring.end, wheel))
            self._let_leave()
        else:
            self._give_back(wheel.index)

    def _let_leave(self) -> None:
        while self._leaving and self._leaving[0][0] <= self.ring.kept_from:
            self._give_back(self._leaving.popleft()[1].index)

    def _give_back(self, index: int) -> None:
        """Whoever looks for the last connection of this number must not find the next one."""
        wheel = self.own.pop(index, None)
        if wheel is not None:
            del wheel.rider  # which has the wheel: in a circle, both would wait for a garbage collection
        for memory, size in ((self.flows, abi.SLUICE_FLOW.size), (self.ends, abi.SLUICE_ENDS.size)):
            memory[index * size : (index + 1) * size] = bytes(size)
        self._free.append(index)

    # What a worker leaves behind when it dies.

    def leave(self, index: int, legacy: Legacy) -> None:
        """Note what is known of a connection, for our successor."""
        data = msgspec.msgpack.encode(legacy)
        assert len(data) <= LEGACY_BYTES - _LEGACY_LENGTH.size
        start = index * LEGACY_BYTES + _LEGACY_LENGTH.size
        _LEGACY_LENGTH.pack_into(self._legacies, index * LEGACY_BYTES, len(data))
        self._legacies[start : start + len(data)] = data

    def _legacy(self, index: int) -> Legacy:
        start = index * LEGACY_BYTES + _LEGACY_LENGTH.size
        (length,) = _LEGACY_LENGTH.unpack_from(self._legacies, index * LEGACY_BYTES)
        return msgspec.msgpack.decode(self._legacies[start : start + length], type=Legacy)

    def inherit(self, orphan: Callable[[Legacy], Orphan]) -> None:
        """Record what the worker before us has left, if there was one, and clear its places in the kernel. Its connections have
        ended with it. To be called before we have any of our own. ``orphan`` makes the flow of one of them."""
        left = [(index, flow) for index in self._flow_range if (flow := self._flow(index)).client]
        heirs: list[tuple[Wheel, abi.Flow, Orphan | None]] = []
        for index, flow in left:
            wheel = Wheel.inherited(self, index, flow)
            heirs.append((wheel, flow, self._orphan(wheel, orphan)))
        while calls := self.ring.take(RING_BATCH):
            self._record(calls)
        for wheel, flow, its in heirs:
            if its is not None:
                try:
                    its.cut_off(wheel.open_calls(flow.first), flow.generation, monotonic())
                except Exception as error:
                    self._complain(error)
            wheel.clear()
            self._leaving.append((self.ring.end, wheel))
        kept = dict(left)
        self._free = [index for index in self._free if index not in kept]
        for index in self._free:  # the kernel may have seen their servers
            self.ends[index * abi.SLUICE_ENDS.size : (index + 1) * abi.SLUICE_ENDS.size] = bytes(abi.SLUICE_ENDS.size)
        if self._leaving:
            self._later()

    def _flow(self, index: int) -> abi.Flow:
        return abi.Flow._make(abi.SLUICE_FLOW.unpack_from(self.flows, index * abi.SLUICE_FLOW.size))

    def _orphan(self, wheel: Wheel, orphan: Callable[[Legacy], Orphan]) -> Orphan | None:
        """The flow of an inherited connection, or None: its calls are nobody's then, and those of others are recorded."""
        try:
            legacy = self._legacy(wheel.index)
            if legacy.origin.cookie != wheel.client:
                return None
            flow = orphan(legacy)
        except Exception as error:
            self._complain(error)
            return None
        wheel.watch(_Heir(flow))
        return flow

    # Finished calls.

    def start(self) -> None:
        if self._timer is None:
            self._loop.add_reader(self.ring.fd, self._ready)

    def _ready(self) -> None:
        """Something is there: more will come, and one turn is enough for all of it."""
        self._loop.remove_reader(self.ring.fd)
        self._later()

    def _later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(RING_DELAY, self._turn)

    def _turn(self) -> None:
        """Make records for a while. Whatever goes wrong, there is a next turn."""
        self._timer = None
        pause: float | None = RING_DELAY
        try:
            pause = self._read_on(monotonic() + (RING_SLICE_CROWDED if self.crowded else RING_SLICE))
        except Exception as error:
            self._complain(error)
            self._tell_trouble(f"the ring of finished calls cannot be read: {type(error).__name__}: {error}")
        if pause is None:
            self.start()
        elif self._timer is None:
            self._timer = self._loop.call_later(pause, self._turn)

    def _read_on(self, until: float) -> float | None:
        """Make records of what is there as long as there are room and time; when to go on, None: when the kernel says so."""
        room = self._audit.room
        while room > 0 and (calls := self.ring.take(min(room, RING_BATCH))):
            self._record(calls)
            room -= len(calls)
            if monotonic() > until:
                return 0.0
        self._let_leave()
        if room > 0:
            self.stuck = False
        elif self.ring.waiting:
            self._hold_back()
        # The kernel wakes us only when all that was there before has been given back.
        return RING_DELAY if self.stuck or self.ring.held else None

    def hold_back(self) -> None:
        """No record can be written: let the relay have all calls, where they wait for room, or are denied."""
        self._later()
        self._hold_back()

    def _hold_back(self) -> None:
        if self.stuck:
            return
        self.stuck = True
        for wheel in list(self.own.values()):
            try:
                wheel.rider.take_wheel()
            except Exception as error:
                self._loop.call_soon(wheel.rider.fault, error)

    @property
    def crowded(self) -> bool:
        """Whether finished calls come faster than their records are made."""
        return not self.stuck and self.ring.waiting > self.ring.size // 2

    def catch_up(self, wheel: Wheel, *, must: bool) -> None:
        """Record what the kernel has carried on a connection before the relay goes on with it, if it ``must`` be so or if there
        is little else. Room or not: it is no more than a ring holds, and no more comes while that is full."""
        if self.ring.waiting <= RING_SHORT:
            self._record(self.ring.take(RING_BATCH))
        if not must:
            return
        for _ in range(PICK_ATTEMPTS):
            if not wheel.owed:
                return
            self._record(self.ring.pick(wheel.is_owner), given=False)
            os.sched_yield()  # what is before them may be half written, on another processor
        raise BpfError("finished calls are missing from the ring")

    def _record(self, calls: Iterable[bytes], *, given: bool = True) -> None:
        """Make the records of finished calls. If they are ``given``, all before the ring's position is recorded with them, and
        gives its room back when that is written: what has not been, when this worker dies, is its successor's."""
        lines: list[str] = []
        carried = [0, 0]
        since_epoch = time_ns() - monotonic_ns()
        for call in calls:
            # What the fields are: struct sluice_call.
            (began, ended, request_bytes, reply_bytes, _, index, generation, client, length, _, status, _, _, number, _) = (
                _FINISHED.unpack_from(call)
            )
            wheel = self.own.get(index)
            if wheel is None or wheel.client != client:
                self._astray(f"call {number} of the socket {client:x}")
                continue
            wheel.recorded += 1
            end = _FINISHED.size + length
            at, took = (since_epoch + began) // 1000, (ended - began) // 1000
            carried[0] += request_bytes
            carried[1] += reply_bytes
            finished = Finished(
                at, took, call[_FINISHED.size : end], request_bytes, call[end:], reply_bytes, status, number, generation
            )
            try:
                wheel.rider.flow.carried_call(finished, lines)
            except UnknownLoanError:
                self._astray(f"call {number} of the socket {client:x}, under generation {generation}")
            except Exception as error:
                # What was before comes before its end, and so does what whoever asks us is about to adopt.
                self._loop.call_soon(wheel.rider.fault, error)
        self._audit.write_lines(lines, partial(self.ring.give_back, self.ring.at) if given else None)
        self._metrics.kernel_bytes.add(("request",), carried[0])
        self._metrics.kernel_bytes.add(("reply",), carried[1])

    def _astray(self, what: str) -> None:
        """A finished call of which nobody can tell whose it was: it is not recorded, and costs no other its record."""
        self._metrics.limits.add(("RING_ENTRY",))
        self._tell_trouble(f"a finished call could not be recorded: {what} is nobody's")

    def _tell_trouble(self, text: str) -> None:
        if self.trouble is None:
            _log.error("%s", text)
        self._trouble = monotonic(), text

    @property
    def trouble(self) -> str | None:
        """What has gone wrong with records of finished calls lately."""
        at, text = self._trouble
        return text if text and monotonic() - at < TROUBLE_SECONDS else None

    def finish(self) -> None:
        """Record all that is left, when no connection is."""
        self._loop.remove_reader(self.ring.fd)
        if self._timer:
            self._timer.cancel()
        while calls := self.ring.take(RING_BATCH):
            self._record(calls)

    def close(self) -> None:
        """Behind the end of the audit writer, which gives room back in the ring."""
        self._loop.remove_reader(self.ring.fd)
        if self._timer:
            self._timer.cancel()
        for task in self._making:
            task.cancel()
        self._prover.shutdown(wait=False, cancel_futures=True)
        for memory in (self.flows, self.ends, self._legacies, self._control, self._rows, self.ring, self.injector):
            memory.close()


class _Heir:
    """In a dead worker's place: what is left to do for one of its connections."""

    def __init__(self, flow: Orphan) -> None:
        self.flow = flow

    def fault(self, error: Exception) -> None:
        raise error  # the event loop says it; there is nothing left to end

    def take_wheel(self) -> None:
        pass


def _pages(size: int) -> int:
    return (size + _PAGE - 1) // _PAGE * _PAGE
