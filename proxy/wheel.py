"""The kernel path as the agent sees it: who has the wheel of a connection, the relay or the kernel.

A relay that holds no byte of its connection, between two calls, lets go of the wheel; from then on the programs of
verdict.bpf.c carry what is proven to be allowed from application to application. They pass everything else on to the relay,
which takes the wheel back before it looks at a single byte, together with what there is of calls that are still open. So the
relay is right by itself, and the kernel only accelerates. See docs/kernel-path.md.

``KernelPath`` is the agent's: it loads and attaches the programs. ``Wheels`` is a worker's, ``Wheel`` a connection's.
"""

import asyncio
import mmap
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import SocketType
from time import monotonic_ns, time_ns
from typing import NamedTuple, Protocol

import msgspec

from bpf import abi
from bpf.loader import BpfError, Map, Object, Routine, map_from_fd, new_ring
from parsers.contract import Direction, Prefix
from policies.decide import Pair
from policies.heads import HeadTable, prove
from proxy.audit.writer import AuditWriter
from proxy.datapath import Hooks, object_file
from proxy.flow import Carried, Finished, Flow, Loan
from proxy.metrics import Metrics

# How long (seconds) we keep our own bytes behind carried ones of which nobody can tell whether they have arrived. Where nobody
# is in a system call on the sender's socket, it can be told.
COOLING = 0.05
# How long finished calls wait in the ring for others, so that their records are made in one go (seconds).
RING_DELAY = 0.004
# Finished calls that are recorded in one turn of the event loop.
RING_BATCH = 128
# A program is at the wheel for a microsecond, or for as long as it is kept from running.
TAKE_ATTEMPTS = 1_000_000

_PAGE = mmap.PAGESIZE
_RING_BUSY, _RING_DISCARDED = 1 << 31, 1 << 30
_RING_HEADER = 8
_WHEEL = struct.Struct("=I")
_POSITION = struct.Struct("=Q")
_COUNTS = struct.Struct("=II")  # begun and answered, in `ends` before its last two words
_COUNTS_AT = abi.SLUICE_ENDS.size - 2 * _COUNTS.size
# The record of a finished call ends with the request's head, and of protocols with frames with the reply's behind it.
_FINISHED = struct.Struct(abi.SLUICE_CALL.format.partition(f"{abi.PathLimit.HEAD_BYTES}s")[0])


class Ledger(NamedTuple):
    """Bytes that the relay has moved since the connection began, by socket: the client's (down) and the server's (up)."""

    down_read: int
    down_written: int
    up_read: int
    up_written: int


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
    take: int
    ring: int
    worker: int  # its number, of so many
    workers: int

    @property
    def fds(self) -> tuple[int, ...]:
        return (
            self.control, self.flows, self.ends, self.callers, self.calls, self.prefixes,
            self.tables, self.rows, self.lanes, self.take, self.ring,
        )  # fmt: skip


class KernelPath:
    """The programs of verdict.bpf.c and their maps. Raises `BpfError` where the kernel does not have what they need."""

    def __init__(self, hooks: Hooks, reply_table: HeadTable, workers: int) -> None:
        if workers > abi.PathLimit.MAX_WORKERS:
            raise BpfError(f"the kernel path has room for {abi.PathLimit.MAX_WORKERS} workers")
        self._object = Object(object_file("verdict"), hooks.config, hooks.shared)
        self._sockets = self._object.map("sockets")
        self._object.attach_to_sockets("sluice_message", self._sockets)
        self._fallbacks = self._object.map("fallbacks")
        self._take = self._object.routine("sluice_take")
        rings = self._object.map("rings")
        self._rings = [new_ring("ring", abi.PathLimit.RING_BYTES) for _ in range(workers)]
        for index, ring in enumerate(self._rings):
            rings.set(_u32(index), _u32(ring.fd))
        self.files = [self._files(hooks, index) for index in range(workers)]
        rows = _Rows(self._object.map("rows").fd)
        if reply_table.states > RESERVED_ROWS:
            raise BpfError("the automaton of reply heads has more states than there are rows for it")
        rows.write(0, reply_table)
        self._object.map("tables").set(_u32(abi.PathLimit.REPLY_TABLE), _table(0, reply_table))

    def _files(self, hooks: Hooks, worker: int) -> Files:
        maps = ("flows", "ends", "callers", "calls", "prefixes", "tables", "rows", "lanes")
        named = {name: self._object.map(name).fd for name in maps}
        return Files(
            control=hooks.shared[0].fd,
            take=self._take.fd,
            ring=self._rings[worker].fd,
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


class Ring:
    """Finished calls, oldest first: the reading end of a BPF ring buffer (linux/Documentation/bpf/ringbuf.rst)."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._mask = size - 1
        self._consumer = mmap.mmap(fd, _PAGE)
        self._producer = mmap.mmap(fd, _PAGE + 2 * size, prot=mmap.PROT_READ, offset=_PAGE)
        self._at = _POSITION.unpack_from(self._consumer)[0]
        # Written in one step: `struct` writes zeros first, and to a program that looks just then the ring is full.
        self._position = memoryview(self._consumer).cast("Q")

    def take(self, most: int) -> list[bytes]:
        """The oldest ones, at most so many; their room is given back."""
        taken: list[bytes] = []
        memory, at, end = self._producer, self._at, _POSITION.unpack_from(self._producer)[0]
        while at < end and len(taken) < most:
            start = _PAGE + (at & self._mask)
            length = header = _WHEEL.unpack_from(memory, start)[0]
            if header & _RING_BUSY:
                break
            if header & _RING_DISCARDED:
                length = header & ~_RING_DISCARDED
            else:
                start += _RING_HEADER
                taken.append(memory[start : start + length])
            at += (length + _RING_HEADER + 7) & ~7
        if at != self._at:
            self._at = at
            self._position[0] = at
        return taken

    @property
    def empty(self) -> bool:
        """Whether nothing is there, finished or not."""
        return bool(self._at == _POSITION.unpack_from(self._producer)[0])

    def close(self) -> None:
        self._position.release()
        self._consumer.close()
        self._producer.close()


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

    able = held = reaches_server = False
    carried_at = 0.0
    begun = 0

    def watch(self, rider: Rider) -> None:
        pass

    def mark(self, up: SocketType) -> None:
        pass

    def let_go(self, loan: Loan, ledger: Ledger) -> None:
        raise AssertionError("the kernel cannot have this connection")

    def take(self) -> list[Carried]:
        return []

    def settled(self, direction: Direction) -> bool:
        return True

    def hold_back(self) -> None:
        pass

    def close(self) -> None:
        pass


NO_WHEEL = NoWheel()


class Wheel:
    """The wheel of one connection."""

    __slots__ = ("_client", "_places", "_prefixes", "_wheels", "held", "index")

    able = True

    def __init__(self, wheels: "Wheels", index: int, client: int) -> None:
        self._wheels, self.index, self._client = wheels, index, client
        self._places = 0  # for calls that are open, in the kernel; it knows the connection's name as soon as there are some
        self._prefixes: Sequence[Prefix] = ()  # in the kernel
        self.held = False  # by the kernel, as far as we know
        for memory, size in ((wheels.flows, abi.SLUICE_FLOW.size), (wheels.ends, abi.SLUICE_ENDS.size)):
            memory[index * size : (index + 1) * size] = bytes(size)

    def watch(self, rider: Rider) -> None:
        """Whose connection it is: told of finished calls, and when the wheel has to be taken."""
        self._wheels.riders[self.index] = rider

    def mark(self, up: SocketType) -> None:
        """Before it connects: the kernel will recognise the server's socket at the other end, if it is on this host."""
        lane = abi.Lane(0, 0, abi.Role.ROLE_UPSTREAM, self.index, 0, 0)
        self._wheels.lanes.set(_u32(up.fileno()), abi.SLUICE_LANE.pack(*lane))

    def let_go(self, loan: Loan, ledger: Ledger) -> None:
        """Give the wheel to the kernel, if it can have this connection: see ``held``."""
        if self._wheels.stuck or not self.reaches_server:  # the automaton of a server elsewhere would be of no use
            return
        table = self._wheels.table(loan.pair) if loan.prefixes is None else abi.Framing.FRAMES
        if table is not None:
            self.give(table, loan.pair.generation, ledger, loan.prefixes or ())

    def give(self, table: int, generation: int, ledger: Ledger, prefixes: Sequence[Prefix] = ()) -> None:
        """Let the kernel carry what the automaton proves, or what begins like ``prefixes``, if it knows the server's socket and
        has room: see ``held``."""
        wheels = self._wheels
        places = abi.PathLimit.PIPELINE if table == abi.Framing.FRAMES else 1
        if not self.reaches_server or not self._make_room(places, prefixes):
            return
        moved = (number & 0xFFFFFFFF for number in ledger)
        flow = (abi.Wheel.WHEEL_OFF, generation, table, wheels.worker, *moved, self._client)
        abi.SLUICE_FLOW.pack_into(wheels.flows, self.index * abi.SLUICE_FLOW.size, *flow)
        _COUNTS.pack_into(wheels.ends, self.index * abi.SLUICE_ENDS.size + _COUNTS_AT, 0, 0)
        self.held = True
        _WHEEL.pack_into(wheels.flows, self.index * abi.SLUICE_FLOW.size, abi.Wheel.WHEEL_IDLE)

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
                wheels.callers.set(_u64(self._client), _u32(self.index))
                self._places = places
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
        if places:
            wheels.callers.delete(_u64(self._client))
        self._prefixes, self._places = (), 0

    def _call_key(self, number: int) -> bytes:
        """Of a call by its number since we let go of the wheel."""
        return _u32(self.index * abi.PathLimit.PIPELINE + number % (self._places or abi.PathLimit.PIPELINE))

    def _prefix_key(self, number: int) -> bytes:
        return _u32(self.index * abi.PathLimit.PREFIXES + number)

    def take(self) -> list[Carried]:
        """Take the wheel from the kernel; what there is of calls that it was carrying, oldest first."""
        self.held = False
        for _ in range(TAKE_ATTEMPTS):
            before = self._wheels.take(abi.SLUICE_TAKE.pack(self.index, 0))
            if before != abi.Wheel.WHEEL_BUSY:
                break
        else:
            raise BpfError("the kernel does not give the wheel back")
        self._wheels.collect()  # what was finished comes before what was not
        if before in (abi.Wheel.WHEEL_OFF, abi.Wheel.WHEEL_IDLE):
            return []
        ends = self._ends()
        numbers = range(ends.answered, ends.answered + (ends.begun - ends.answered & 0xFFFFFFFF))
        calls = [self._wheels.calls.get(self._call_key(number)) for number in numbers]
        return [_open(call, self._places > 1) for call in calls if call]

    @property
    def reaches_server(self) -> bool:
        """Whether the kernel knows the server's socket: it is on this host."""
        return bool(self._ends().server)

    @property
    def begun(self) -> int:
        """How many calls the kernel has begun since it was given the wheel for the last time."""
        return self._ends().begun

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
        if self.held:
            self.take()
        elif self._places:
            self._wheels.collect()  # it may be one of its finished calls that ends it, and others may be behind that
        self._give_room_back(len(self._prefixes), self._places)
        self._wheels.release(self)


class Wheels:
    """The wheels of one worker's connections, and the automata that its policies need."""

    def __init__(self, loop: asyncio.AbstractEventLoop, files: Files, audit: AuditWriter, metrics: Metrics) -> None:
        self._loop = loop
        self._audit = audit
        self._metrics = metrics
        self._making: set[asyncio.Task[None]] = set()
        self._prover = ThreadPoolExecutor(1, "sluice-prover")  # one at a time: a policy may need many
        worker, workers = self.worker, _ = files.worker, files.workers
        self.flows = mmap.mmap(files.flows, _pages(abi.SLUICE_FLOW.size * abi.PathLimit.MAX_FLOWS))
        self.ends = mmap.mmap(files.ends, _pages(abi.SLUICE_ENDS.size * abi.PathLimit.MAX_FLOWS))
        self._control = mmap.mmap(files.control, _PAGE)
        self.callers = map_from_fd(files.callers, "callers", 8, 4)
        self.calls = map_from_fd(files.calls, "calls", 4, abi.SLUICE_CALL.size)
        self.prefixes = map_from_fd(files.prefixes, "prefixes", 4, abi.SLUICE_PREFIX.size)
        self.lanes = map_from_fd(files.lanes, "lanes", 4, abi.SLUICE_LANE.size)
        self._tables = map_from_fd(files.tables, "tables", 4, abi.SLUICE_TABLE.size)
        self._rows = _Rows(files.rows)
        self.take = Routine(files.take)
        self.ring = Ring(files.ring, abi.PathLimit.RING_BYTES)
        # Every worker has its share of what there is. Number 0 means none, and the first rows are those of replies.
        flows, tables = abi.PathLimit.MAX_FLOWS // workers, abi.PathLimit.MAX_TABLES // workers
        rows = abi.PathLimit.MAX_ROWS // workers
        self._free = list(range((worker + 1) * flows - 1, max(worker * flows, 1) - 1, -1))
        self.riders: dict[int, Rider] = {}  # by flow
        self.stuck = False  # there is no room for records: the kernel gets nothing
        self._timer: asyncio.Handle | None = None  # the next turn
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

    def wheel(self, client: int) -> Wheel | NoWheel:
        """The wheel for the connection of the application's socket ``client`` (its cookie)."""
        if not self._free:
            return NO_WHEEL
        return Wheel(self, self._free.pop(), client)

    def release(self, wheel: Wheel) -> None:
        self.riders.pop(wheel.index, None)
        self._free.append(wheel.index)

    # Finished calls.

    def start(self) -> None:
        self._loop.add_reader(self.ring.fd, self._ready)

    def _ready(self) -> None:
        """Something is there: more will come, and one turn is enough for all of it."""
        self._loop.remove_reader(self.ring.fd)
        self._later()

    def _later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(RING_DELAY, self._turn)

    def _turn(self) -> None:
        self._timer = None
        room = self._audit.room
        calls = self.ring.take(min(room, RING_BATCH))
        self._tell(calls)
        if len(calls) == RING_BATCH:
            self._timer = self._loop.call_later(0, self._turn)
        elif len(calls) == room and not self.ring.empty:
            self.hold_back()
        else:
            self.stuck = self.stuck and not self._audit.room
            if self.stuck:
                self._later()
            else:
                self.start()

    def hold_back(self) -> None:
        """No record can be written: let the relay have all calls, where they wait for room, or are denied."""
        self._later()
        if not self.stuck:
            self.stuck = True
            for rider in list(self.riders.values()):
                rider.take_wheel()

    def collect(self) -> None:
        """Take all that is there, room or not: it is no more than a ring holds, and with no room the ring stays empty."""
        while calls := self.ring.take(RING_BATCH):
            self._tell(calls)

    def _tell(self, calls: Iterable[bytes]) -> None:
        lines: list[str] = []
        faults: list[tuple[Rider, Exception]] = []
        carried = [0, 0]
        since_epoch = time_ns() - monotonic_ns()
        for call in calls:
            # What the fields are: struct sluice_call.
            began, ended, request_bytes, reply_bytes, _, index, _, _, length, _, status, _, _ = _FINISHED.unpack_from(call)
            end = _FINISHED.size + length
            head, reply_head = call[_FINISHED.size : end], call[end:]
            at, took = (since_epoch + began) // 1000, (ended - began) // 1000
            carried[0] += request_bytes
            carried[1] += reply_bytes
            rider = self.riders[index]
            try:
                rider.flow.carried_call(Finished(at, took, head, request_bytes, reply_head, reply_bytes, status), lines)
            except Exception as error:
                faults.append((rider, error))
        self._audit.write_lines(lines)
        self._metrics.kernel_bytes.add(("request",), carried[0])
        self._metrics.kernel_bytes.add(("reply",), carried[1])
        for rider, fault in faults:  # what was before comes before its end, and so does what whoever asks us is about to adopt
            self._loop.call_soon(rider.fault, fault)

    def close(self) -> None:
        self._loop.remove_reader(self.ring.fd)
        if self._timer:
            self._timer.cancel()
        for task in self._making:
            task.cancel()
        self._prover.shutdown(wait=False, cancel_futures=True)
        for memory in (self.flows, self.ends, self._control, self._rows, self.ring):
            memory.close()


def _pages(size: int) -> int:
    return (size + _PAGE - 1) // _PAGE * _PAGE
