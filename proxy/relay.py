"""Carries out a flow's commands on two sockets: the only module that moves the bytes of connections.

Sockets are raw and non-blocking, watched by a `Poller`, for three reasons: the moment when ``send`` returned is known
(the kernel path's ledger needs it), a half-close is an event of its own, and long bodies can be spliced from socket to
socket without a copy. See docs/adr/0004.

Back-pressure: a direction is read only while the flow can use its bytes and less than ``HIGH_WATER`` waits to be sent on.

A socket that was reset may still hold bytes that came before the reset: they are read until the error itself is met.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from socket import SocketType  # what ``socket.socket`` wraps: connections need no more
from time import monotonic  # loop.time() is cached per turn and counts in milliseconds

from parsers.contract import Direction, Outage
from proxy.audit.writer import AuditWriter
from proxy.flow import Abort, Again, Answer, AwaitRoom, Carry, Close, Command, Dial, Discard, Flow, Forward, Shut
from proxy.injector import Queue
from proxy.memory import FLOOR, PIECE, Memory
from proxy.poller import Poller
from proxy.shares import Claim
from proxy.wheel import COOLING, Ledger, NoWheel, Wheel

REQUEST, REPLY = Direction.REQUEST, Direction.REPLY

READ_SIZE = PIECE  # one read
# Bytes that may wait for a receiver before its sender is no longer read, and the level at which it is read again.
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
# Pieces that wait are joined up to this size: a sender of single bytes must not leave us a hundred thousand of them, each with
# its own memory and its own system call, to send in one turn.
JOIN_MAX = 16 * 1024
# The size of a splice pipe. The kernel's limit for unprivileged users is 1 MiB, and no gain was measured beyond it.
PIPE_SIZE = 1024 * 1024
# What may wait in an application's queue (bytes) before its sender is no longer read, about as much as two sockets' buffers
# hold; and what may whatever others keep. With more, all of it counts as the agent's memory, until it is seen to be read.
QUEUE_MOST = 4 * 1024 * 1024
QUEUE_CALM = 64 * 1024
# Splice rounds before other connections get their turn.
CARRY_ROUNDS = 4
# After the last words the client may still be sending; closing with unread bytes would reset the connection and destroy
# what we said (RFC 9112 section 9.6). So it is read and discarded, up to this many bytes. Then it is no longer read: it has
# to wait, and has time to read what we said, until these seconds are over.
LINGER_BYTES = 1024 * 1024
LINGER_SECONDS = 2.0
# How often (seconds) it is looked whether what the kernel has carried is where it belongs.
SETTLING = 0.001
# The kernel gets a connection between any two calls, unless it has had it in vain: then after some more calls, at most so many.
VAIN_MOST = 64
# A client that never rests has requests under way whenever replies come, so there is no moment between two calls in which the
# kernel could have its connection. After so many turns like that, replies are kept back until all that is asked is answered:
# a client with a window of requests then waits for us. One without a window does not; it is left alone after this time
# (seconds), and every time for twice as long.
LULL_AFTER = 8
LULL_AFTER_MOST = 65_536
LULL_SECONDS = 0.02
# The client has to be silent for so long (seconds), or it may be saying something just now.
LULL_QUIET = 0.001
# A lull was worth it if the kernel has carried at least so many calls.
LULL_WORTH = 64
# The server must accept within this time (seconds): long enough for two lost SYNs (1 s + 2 s) and a slow network.
DIAL_TIMEOUT = 10.0
# TCP's keepalive on both legs of a connection: after so many seconds of silence the other end is asked, again after so many,
# and is gone after so many questions in vain: two minutes in all. Bytes that nobody acknowledges have the kernel's own limit
# (net.ipv4.tcp_retries2, a quarter of an hour): TCP_USER_TIMEOUT would also end those who answer and do not read for a while.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 15, 4

_ESTABLISHED = 1  # TCP_ESTABLISHED of the kernel's tcp_states.h
_RESET = struct.pack("ii", 1, 0)


class Pipes:
    """Spare pipes for splicing: making one costs three system calls, and at most this many are kept."""

    KEEP = 16

    def __init__(self, most: int = KEEP) -> None:
        """At most so many exist at once."""
        self._spare: list[tuple[int, int]] = []
        self._left = most

    def take(self) -> tuple[int, int]:
        """Raises ``OSError`` when there are no descriptors for one."""
        if self._spare:
            return self._spare.pop()
        if not self._left:
            raise OSError(errno.EMFILE, "all pipes are in use")
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._left -= 1
        with contextlib.suppress(OSError):  # a smaller pipe is slower, not wrong
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return reader, writer

    def give(self, pipe: tuple[int, int], empty: bool) -> None:
        if empty and len(self._spare) < self.KEEP:
            self._spare.append(pipe)
        else:
            os.close(pipe[0])
            os.close(pipe[1])
            self._left += 1


class Lane:
    """One direction of a connection: from a source socket, through what waits, into a sink socket.

    The server's socket is in its lanes only while it is connected.
    """

    __slots__ = (
        "broken",
        "carry",
        "held",
        "in_pipe",
        "look",
        "out",
        "parked",
        "pipe",
        "queue",
        "read",
        "reading",
        "shut",
        "shut_sent",
        "sink",
        "size",
        "source",
        "writing",
    )

    def __init__(self, source: SocketType | None, sink: SocketType | None) -> None:
        self.source = source
        self.sink = sink
        self.queue: Queue | None = None  # of the application behind the sink, which gets everything by it but the end
        self.look: asyncio.TimerHandle | None = None  # whether the queue's reader has read
        self.out: deque[bytes | memoryview] = deque()  # waits for the sink
        self.size = 0
        self.carry = 0  # bytes that may still be spliced
        self.pipe: tuple[int, int] | None = None
        self.in_pipe = 0
        self.reading = False
        self.writing = False
        self.shut = False
        self.shut_sent = False
        self.broken = False  # the sink takes no more: what is meant for it is discarded, and the source is not read
        self.read = 0  # bytes from the source since the connection began
        self.parked = False  # the source is not read until there is memory for more
        self.held = False  # what is meant for the sink waits: what the kernel has carried may not be there yet

    def wait(self, data: bytes) -> None:
        """Let ``data`` wait for the sink, behind what waits already."""
        last = self.out[-1] if self.out else None
        if isinstance(last, bytes) and len(last) + len(data) <= JOIN_MAX:
            self.out[-1] = last + data
        else:
            self.out.append(data)
        self.size += len(data)


class Patience:
    """How long to wait with what may be in vain: for twice as long after each vain attempt."""

    __slots__ = ("_least", "_left", "_most", "_turns")

    def __init__(self, least: int, most: int) -> None:
        """In turns."""
        self._least, self._most = least, most
        self._turns = self._left = least

    def is_over(self) -> bool:
        """Whether to try it now. Asking is a turn."""
        if not self._left:
            return True
        self._left -= 1
        return False

    def tried(self, *, worth: bool) -> None:
        self._turns = self._least if worth else min(2 * self._turns or 1, self._most)
        self._left = self._turns


class Relay:
    """One redirected connection: ``down`` is the client's socket, the server's is dialled when the first call is allowed."""

    __slots__ = (
        "_audit",
        "_closed",
        "_closing",
        "_dial",
        "_dialled_at",
        "_down",
        "_gave_in_lull",
        "_gifts",
        "_kept_alive",
        "_lanes",
        "_linger_until",
        "_lingered",
        "_loop",
        "_lull",
        "_lulls",
        "_memory",
        "_moved",
        "_on_close",
        "_pipes",
        "_poller",
        "_server_reset",
        "_ticket",
        "_unread_answers",
        "_up",
        "active_at",
        "flow",
        "memory",
        "wheel",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        down: SocketType,
        dial: Callable[[], SocketType],
        flow: Flow,
        wheel: Wheel | NoWheel,
        audit: AuditWriter,
        pipes: Pipes,
        moved: list[int],
        memory: Memory,
        claim: Claim,
        on_close: Callable[["Relay"], None],
        queue: Queue | None = None,
    ) -> None:
        """``dial`` returns a non-blocking socket whose connect has been started; ``moved`` counts bytes per direction, and
        ``claim`` those that are kept in ``memory``. ``queue`` is the client's, if it has one."""
        self._loop = loop
        self._poller = poller
        self._down = down
        self._up: SocketType | None = None
        self._dial = dial
        self.flow = flow
        self.wheel = wheel
        wheel.watch(self)
        self._audit = audit
        self._ticket: object | None = None  # our place in the line for room in the audit queue
        self._pipes = pipes
        self._moved = moved
        self._memory = memory
        self.memory = claim
        self._on_close = on_close
        self._lanes = (Lane(down, None), Lane(None, down))
        self._lanes[REPLY].queue = queue
        self._server_reset = False
        self._unread_answers = False  # our own words wait for the client
        self._dialled_at = 0.0
        self._kept_alive = False  # the server's socket; the client's has that from its listener
        self._closing = False
        self._linger_until = 0.0
        self._lingered = 0
        self._closed = False
        self._gifts = Patience(0, VAIN_MOST)
        self._lulls = Patience(LULL_AFTER, LULL_AFTER_MOST)
        self._lull: asyncio.TimerHandle | None = None  # replies are kept back, at most until then
        self._gave_in_lull = False  # the kernel has got the connection so
        self.active_at = monotonic()

    def start(self) -> None:
        self._perform(self.flow.begin(self.active_at))

    # The clock, driven by the listener's sweep.

    def tick(self, now: float, idle_timeout: float) -> None:
        if self._closed:
            return
        if self.wheel.held:
            self.active_at = max(self.active_at, self.wheel.carried_at)
        if self._up is not None and not self._kept_alive:
            self._kept_alive = True  # not earlier: a connection of one call is over by now
            keep_alive(self._up)
        if self._linger_until:
            if now > self._linger_until:
                self._close()
        elif self._up is not None and self._lanes[REQUEST].sink is None and now - self._dialled_at > DIAL_TIMEOUT:
            self._drop_upstream()
            self._perform(self.flow.outage(Outage.TIMEOUT, now))
        elif now - self.active_at <= idle_timeout:
            self._perform(self.flow.tick(now, self._lanes[REQUEST].reading))
        elif self._closing:
            self._abort()  # the client does not take what it is owed
        else:
            self._later(self._idled, idle_timeout)

    def _idled(self, idle_timeout: float) -> None:
        if not self._closed and monotonic() - self.active_at > idle_timeout:
            self.take_wheel()
            self._perform(self.flow.idled(self._unread(), monotonic()))

    @property
    def idle(self) -> bool:
        """No call is open, and nobody is owed anything."""
        return self.flow.idle and not (self._closing or self._closed or self._unread())

    def dismiss(self, since: float) -> bool:
        """Another connection needs our place: end this one in good order, if it is idle and nothing has happened ``since``."""
        if self._closed:
            return False
        if self.wheel.held:
            self.active_at = max(self.active_at, self.wheel.carried_at)
        if self.active_at > since or not self.idle:
            return False
        self.take_wheel()
        if not self.idle or not _silent(self._down):
            return False
        self._perform(self.flow.dismiss(monotonic()))
        self._close()
        return True

    def _unread(self) -> Direction | None:
        """The direction whose receiver does not read what waits for it."""
        return next((way for way in (REPLY, REQUEST) if self._lanes[way].size or self._lanes[way].in_pipe), None)

    def _room(self) -> None:
        self._ticket = None
        self._perform(self.flow.room(monotonic()))

    def drain(self) -> None:
        self.take_wheel()
        self._perform(self.flow.drain(monotonic()))

    def stop(self) -> None:
        if not self._closed:
            self.take_wheel()
            self._perform(self.flow.stop(monotonic()))
            self._close()

    # Commands.

    def _perform(self, commands: list[Command]) -> None:
        # Before a reply is sent, not behind it: its receiver may go on at once.
        early = self.wheel.able and all(isinstance(command, Forward) and command.direction is REPLY for command in commands)
        if early:
            self._let_go(sum(len(command.data) for command in commands if isinstance(command, Forward)))
        for command in commands:
            if isinstance(command, Forward):
                self._send(command.direction, command.data)
            elif isinstance(command, Answer):
                self._keep_behind(REPLY)
                self._send(REPLY, command.data)
                self._unread_answers = bool(self._lanes[REPLY].out)
            elif isinstance(command, Carry):
                self._lanes[command.direction].carry = command.n
            elif isinstance(command, Discard):
                self._discard(command.direction)
            elif isinstance(command, Dial):
                self._start_dial()
            elif isinstance(command, Shut):
                self._lanes[command.direction].shut = True
                self._flush(command.direction)
            elif isinstance(command, Again):
                self._later(self._go_on)
            elif isinstance(command, Close):
                self._closing = True
            elif isinstance(command, AwaitRoom):
                self._ticket = self._audit.on_room(self._room, self.flow.awaited)
                if not self._audit.room:  # for anybody: not only this subject has more open than its share
                    self.wheel.hold_back()
            else:
                assert isinstance(command, Abort)
                self._abort()
            if self._closed:
                return
        if self.wheel.owes:
            self._pay()
        if self._ticket is not None and not self.flow.waits_for_audit:
            self._audit.forget(self._ticket)
            self._ticket = None
        request, reply = self._lanes
        kept = self.flow.kept + request.size + reply.size + request.in_pipe + reply.in_pipe
        for lane in self._lanes:
            if lane.queue and lane.queue.waiting > QUEUE_CALM:
                kept += lane.queue.waiting
        if kept != self.memory.held:
            self._memory.keeps(self, kept)
        if self._closing:
            self._finish()
        elif not self._closed:
            self._watch(REQUEST)
            self._watch(REPLY)
            if self.wheel.able and not early:
                self._let_go(0)

    # The kernel path.

    def _let_go(self, more: int) -> None:
        """Let the kernel carry what follows, if not a byte of the connection is in our hands but those of replies: what is kept
        back, and ``more`` that will be sent at once. Until they are in the client's queue, nothing is carried to it."""
        request, reply = self._lanes
        if request.out or request.queue is None or reply.queue is None or self._server_reset or self.wheel.held:
            return
        if reply.out and not self._lull:
            return
        loan = self.flow.lend()
        if loan is None:
            if self._lull:
                self._acknowledge()
            elif not self.flow.idle:
                self._wait_for_lull(reply)
            return
        if self._lull and monotonic() - self.active_at < LULL_QUIET:
            self._loop.call_later(LULL_QUIET, self._guard, self._perform, [])
            return
        if not self._lull and not self._gifts.is_over():
            return
        self.wheel.let_go(loan, Ledger(request.read, reply.read, owed=bool(reply.size + more)))
        if self._lull:
            self._gave_in_lull = self.wheel.held
            self._end_lull()

    def _pay(self) -> None:
        """Tell the kernel when the client's queue has all that we had for it."""
        if not self._lanes[REPLY].size:
            self.wheel.owe_nothing()

    def _wait_for_lull(self, reply: Lane) -> None:
        if reply.held or self.flow.open_calls < 2 or not self._lulls.is_over():
            return
        if self.flow.pipelines and self.wheel.reaches_server and self.wheel.settled(REPLY):
            reply.held = True
            self._lull = self._loop.call_later(LULL_SECONDS, self._guard, self._give_up_lull)
            self._acknowledge()

    def _acknowledge(self) -> None:
        """At once: either end may keep what it says next until the last is acknowledged (RFC 1122, Nagle's algorithm)."""
        for sock in (self._down, self._up):
            if sock is not None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _give_up_lull(self) -> None:
        self._lulls.tried(worth=False)
        self._end_lull()
        self._perform([])

    def _end_lull(self) -> None:
        if self._lull:
            self._lull.cancel()
            self._lull = None
            self._lanes[REPLY].held = False
            self._flush(REPLY)

    def take_wheel(self) -> None:
        """Before anything of the connection is looked at: it is ours again, with what the kernel has begun."""
        if self.wheel.held and not self._closed:
            carried = self.wheel.take()
            self.flow.skip(self.wheel.answered)
            if self._gave_in_lull:
                self._gave_in_lull = False
                self._lulls.tried(worth=self.wheel.begun >= LULL_WORTH)
            else:
                self._gifts.tried(worth=self.wheel.begun > 0)
            if carried:
                self._perform(self.flow.adopt(carried, monotonic()))

    def fault(self, error: Exception) -> None:
        """Something is wrong with this connection, which is ended, with the records of what the kernel has begun."""
        if self._closed:
            return
        try:
            self.take_wheel()
        except Exception as another:
            self.flow.fault(another, monotonic())
        self.flow.fault(error, monotonic())
        self._abort()

    def _keep_behind(self, direction: Direction) -> bool:
        """Whether what we have for a receiver must wait, so that it does not overtake what the kernel has carried."""
        lane = self._lanes[direction]
        if not lane.held and not self.wheel.settled(direction):
            lane.held = True
            self._loop.call_later(SETTLING, self._guard, self._release, direction, monotonic() + COOLING)
        return lane.held

    def _must_wait(self, direction: Direction) -> bool:
        """The same for what passes by. What the server says needs no question: it says one thing after another."""
        return self._keep_behind(REQUEST) if direction is REQUEST else self._lanes[REPLY].held

    def _release(self, direction: Direction, deadline: float) -> None:
        lane = self._lanes[direction]
        if self._closed:
            return
        if self.wheel.settled(direction):
            lane.held = False
            self._flush(direction)
            self._perform([])
        elif monotonic() > deadline and (lane.out or lane.carry):
            # Several threads of the client send on one socket while another reads: nobody can tell what came first.
            self._perform(self.flow.disordered(monotonic()))
        else:
            self._loop.call_later(SETTLING, self._guard, self._release, direction, deadline)

    # Bytes.

    def _send(self, direction: Direction, data: bytes) -> None:
        lane = self._lanes[direction]
        if lane.broken:
            return
        if lane.out or lane.sink is None or self._must_wait(direction):
            lane.wait(data)
            return
        sent = self._give(direction, lane.sink, data)
        if sent is not None and sent < len(data):
            lane.out.append(memoryview(data)[sent:])
            lane.size = len(data) - sent
            self._want_write(direction, True)

    def _give(self, direction: Direction, sink: SocketType, data: bytes | memoryview) -> int | None:
        """How many bytes the sink took; None when it is lost."""
        queue = self._lanes[direction].queue
        try:
            sent = sink.send(data) if queue is None else self._inject(direction, queue, data)
        except BlockingIOError:
            return 0
        except OSError:
            self._lost_sink(direction)
            return None
        self._moved[direction] += sent
        return sent

    # Applications' queues.

    def _inject(self, direction: Direction, queue: Queue, data: bytes | memoryview) -> int:
        """How many bytes went into a queue that has room."""
        if queue.waiting + len(data) > QUEUE_CALM:
            data = memoryview(data)[: self._room_in(queue)]
        sent = queue.send(data) if data else 0
        if queue.waiting > QUEUE_CALM:
            self._look_later(direction)
        return sent

    def _room_in(self, queue: Queue) -> int:
        """How many bytes a queue may be given."""
        most = QUEUE_MOST if self._memory.fits(self) else QUEUE_CALM
        return max(most - queue.look(), 0)

    def _look_later(self, direction: Direction) -> None:
        """Look whether the reader of a full queue has read, as long as it matters. Nobody tells us."""
        lane = self._lanes[direction]
        if lane.look is None and lane.queue is not None:
            lane.look = self._loop.call_later(lane.queue.patience, self._later, self._look, direction)

    def _look(self, direction: Direction) -> None:
        lane = self._lanes[direction]
        queue, lane.look = lane.queue, None
        if queue is None or self._closed:
            return
        before = queue.waiting
        if queue.look() < before:
            self.active_at = monotonic()
        if lane.writing:
            self._write_on(direction)
        else:
            self._perform([])
        if not self._closed and (lane.writing or queue.waiting > QUEUE_CALM):
            self._look_later(direction)

    def _flush(self, direction: Direction) -> None:
        """Send what waits; then hand on a half-close that was asked for."""
        lane = self._lanes[direction]
        sink = lane.sink
        if sink is None or lane.held:
            return
        while lane.out:
            data = lane.out[0]
            sent = self._give(direction, sink, data)
            if sent is None:
                return
            lane.size -= sent
            if sent < len(data):
                lane.out[0] = memoryview(data)[sent:]
                self._want_write(direction, True)
                return
            lane.out.popleft()
        if direction is REPLY:
            self._unread_answers = False
            if self.wheel.owes:
                self._pay()
        self._want_write(direction, lane.in_pipe > 0)
        if lane.shut and not lane.shut_sent and not lane.in_pipe:
            lane.shut_sent = True
            try:
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                self._lost_sink(direction)

    # Readiness.

    def _watch(self, direction: Direction) -> None:
        """Read a direction only while its bytes can be used."""
        lane = self._lanes[direction]
        if lane.source is None:
            return
        waiting = lane.size
        wanted = waiting < (HIGH_WATER if lane.reading else LOW_WATER) and not lane.broken and self.flow.wants(direction)
        if lane.carry and (lane.in_pipe or waiting or lane.held):
            wanted = False  # what is behind those bytes stays where it is until they are gone
        if lane.parked:
            wanted = False
        if direction is REQUEST and self._unread_answers:
            wanted = False  # a client that asks and does not listen must not fill our memory with answers
        if wanted == lane.reading:
            return
        lane.reading = wanted
        if wanted:
            self._poller.add_reader(lane.source.fileno(), self._guard, self._readable, direction)
        else:
            self._poller.remove_reader(lane.source.fileno())

    def _piece(self, direction: Direction, lane: Lane) -> int:
        """How many bytes may be read now; none, if this direction has to wait until there is memory for more."""
        if self._memory.fits(self):
            return READ_SIZE
        if self.flow.unsettled(direction) + lane.size < FLOOR:
            return FLOOR
        lane.parked = True
        self._memory.wait(self)
        self._watch(direction)
        return 0

    def read_on(self) -> None:
        """There may be memory for what was left in the sockets."""
        for lane in self._lanes:
            lane.parked = False
        if not self._closed:
            self._guard(self._perform, [])

    def _want_write(self, direction: Direction, wanted: bool) -> None:
        lane = self._lanes[direction]
        if wanted != lane.writing and lane.sink is not None:
            lane.writing = wanted
            if lane.queue is not None:
                if wanted:
                    self._look_later(direction)
            elif wanted:
                self._poller.add_writer(lane.sink.fileno(), self._guard, self._writable, direction)
            else:
                self._poller.remove_writer(lane.sink.fileno())

    def _guard(self, act: Callable[..., None], *facts: object) -> None:
        """Every readiness comes through here: what goes wrong with one connection ends that one."""
        try:
            act(*facts)
        except Exception as error:
            self.fault(error)

    def _later(self, act: Callable[..., None], *facts: object) -> None:
        """In its turn: whatever ends or goes on on many connections at once is done piece by piece."""
        if not self._closed:
            self._poller.call(self._down.fileno(), self._guard, act, *facts)

    def _go_on(self) -> None:
        self._perform(self.flow.go_on(monotonic()))

    def _readable(self, direction: Direction) -> None:
        if self.wheel.held:
            if self.wheel.must_wait:
                return  # we are told again
            self.take_wheel()
            if self._closed:
                return
        lane = self._lanes[direction]
        if lane.carry:
            self._carry(direction, lane)
            return
        assert lane.source is not None
        memory = self._memory.budget
        size = READ_SIZE if memory.used < memory.calm else self._piece(direction, lane)
        if not size:
            return
        self.active_at = now = monotonic()
        try:
            data = lane.source.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self._lost(direction)
            return
        if not data:
            self._ended(direction)
            return
        lane.read += len(data)
        self._perform(self.flow.data(direction, data, now))

    def _ended(self, direction: Direction) -> None:
        if direction is REPLY and self._server_reset:
            self._lost(REPLY)  # a send has taken the error away, so this looks like an end
            return
        if direction is REPLY:
            self._hear_client()
        if not self._closed:
            self._perform(self.flow.eof(direction, monotonic()))

    def _hear_client(self) -> None:
        """Before a server's end ends an idle connection: what the client has said until then is a call, and has a record."""
        if self.flow.idle and self._lanes[REQUEST].reading:
            self._readable(REQUEST)

    def _writable(self, direction: Direction) -> None:
        self.active_at = monotonic()
        self._write_on(direction)

    def _write_on(self, direction: Direction) -> None:
        lane = self._lanes[direction]
        self._flush(direction)
        if self._closed:
            return
        if lane.in_pipe and not lane.out:
            self._carry(direction, lane)
            return
        self._perform([])

    # Long bodies.

    def _carry(self, direction: Direction, lane: Lane) -> None:
        """Splice from source to sink, at most as many bytes as the flow has allowed."""
        source, sink = lane.source, lane.sink
        assert source is not None
        if sink is None or lane.out or self._must_wait(direction):
            self._perform([])  # earlier bytes first: reading stops until they are gone
            return
        if lane.pipe is None:
            try:
                lane.pipe = self._pipes.take()
            except OSError:  # no descriptors left: copy instead
                self._copy(direction, lane)
                return
        before, read = lane.carry, lane.read
        size = PIPE_SIZE if self._memory.fits(self, PIPE_SIZE) else READ_SIZE
        for _ in range(CARRY_ROUNDS):
            left = lane.carry
            trouble = self._splice(direction, lane, lane.pipe, source, sink, size)
            if trouble or lane.in_pipe or lane.carry in (0, left):
                break
        if not lane.in_pipe:  # idle tunnels hold no pipe
            self._pipes.give(lane.pipe, True)
            lane.pipe = None
        delivered = before - lane.carry
        self._moved[direction] += delivered
        now = monotonic()
        if delivered or lane.read != read:
            self.active_at = now
        self._want_write(direction, lane.in_pipe > 0)
        self._perform(self.flow.carried(direction, delivered, now) if delivered else [])
        if trouble and not self._closing and not self._closed:
            lane.carry = 0
            trouble(direction)
            if not self._closed:
                self._perform([])

    def _splice(
        self, direction: Direction, lane: Lane, pipe: tuple[int, int], source: SocketType, sink: SocketType, size: int
    ) -> Callable[[Direction], None] | None:
        """One round through the pipe; what has to be done about an end or a loss, after what was delivered is reported."""
        if not lane.in_pipe:
            try:
                lane.in_pipe = os.splice(source.fileno(), pipe[1], min(lane.carry, size), flags=_SPLICE)
            except BlockingIOError:
                return None
            except OSError:
                return self._lost
            if not lane.in_pipe:
                return self._ended
            lane.read += lane.in_pipe
        queue = lane.queue
        try:
            if queue is None:
                given = taken = os.splice(pipe[0], sink.fileno(), lane.in_pipe, flags=_SPLICE)
            else:
                room = min(self._room_in(queue), lane.in_pipe)
                given, taken = queue.splice(pipe[0], room) if room else (0, 0)
                if queue.waiting > QUEUE_CALM:
                    self._look_later(direction)
        except BlockingIOError:
            return None
        except OSError:
            return self._lost_sink
        lane.in_pipe -= given
        lane.carry -= taken
        return self._lost_sink if queue and queue.gone else None

    def _discard(self, direction: Direction) -> None:
        lane = self._lanes[direction]
        lane.out.clear()
        lane.size = lane.carry = 0
        if lane.pipe:
            self._pipes.give(lane.pipe, lane.in_pipe == 0)
            lane.pipe, lane.in_pipe = None, 0
        self._want_write(direction, False)

    def _copy(self, direction: Direction, lane: Lane) -> None:
        lane.carry = 0  # the flow offers it again with the next piece
        self._readable(direction)

    # The server.

    def _start_dial(self) -> None:
        self._dialled_at = monotonic()
        self.flow.dialling = True
        try:
            self._up = self._dial()
        except OSError as error:
            self._dial_failed(error.errno or errno.ECONNREFUSED)
            return
        self._poller.goes_with(self._up.fileno(), self._down.fileno())
        # Within one host the handshake is over when connect() returns, although that says EINPROGRESS.
        if self._up.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED:
            self._connected(self._up)
        else:
            self._poller.add_writer(self._up.fileno(), self._guard, self._dial_ready)

    def _connected(self, up: SocketType) -> None:
        self._lanes[REQUEST].sink = self._lanes[REPLY].source = up
        self._lanes[REQUEST].queue = self.wheel.reach()
        self.flow.dialling = False

    def _dial_ready(self) -> None:
        assert self._up is not None
        error = self._up.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._drop_upstream()
            self._dial_failed(error)
            return
        self._connected(self._up)
        self.active_at = monotonic()
        if self._lanes[REQUEST].queue is None:
            self._lanes[REQUEST].writing = True  # as _dial_ready was; what is left to send decides whether it stays so
            self._poller.add_writer(self._up.fileno(), self._guard, self._writable, REQUEST)
        else:
            self._poller.remove_writer(self._up.fileno())
        self._watch(REPLY)
        self._writable(REQUEST)

    def _dial_failed(self, error: int) -> None:
        outage = Outage.TIMEOUT if error == errno.ETIMEDOUT else Outage.UNREACHABLE
        # Not from within the command that dialled: the flow is not ready for events while its commands are carried out.
        self._later(self._outage, outage)

    def _outage(self, outage: Outage) -> None:
        if not self._closed:
            self._perform(self.flow.outage(outage, monotonic()))

    def _drop_upstream(self) -> None:
        if self._up is not None:
            self._poller.forget(self._up.fileno())
            self._up.close()
            self._up = self._lanes[REQUEST].sink = self._lanes[REPLY].source = None
            self._lanes[REPLY].reading = self._lanes[REQUEST].writing = False
            self._forget_queue(REQUEST)

    def _forget_queue(self, direction: Direction) -> None:
        lane = self._lanes[direction]
        lane.queue = None
        if lane.look is not None:
            lane.look.cancel()
            lane.look = None

    # Ends.

    def _lost_sink(self, direction: Direction) -> None:
        """Sending failed."""
        if direction is REPLY:
            self._lost(REQUEST)
        else:
            self._server_gone()

    def _server_gone(self) -> None:
        """The server takes nothing more. It may have answered before: its reply is still to be read."""
        self._server_reset = True
        request = self._lanes[REQUEST]
        if request.queue is not None and self._up is not None:  # over TCP it would know that nobody takes what comes
            with contextlib.suppress(OSError):
                self._up.shutdown(socket.SHUT_WR)
        request.broken = True
        request.out.clear()
        request.size = 0
        self._want_write(REQUEST, False)

    def _lost(self, direction: Direction) -> None:
        if direction is REPLY:
            self._drop_upstream()
        self._later(self._tell_lost, direction)

    def _tell_lost(self, direction: Direction) -> None:
        if not self._closed and not self._closing:
            if direction is REPLY:
                self._hear_client()
            if not self._closed:
                self._perform(self.flow.lost(direction, monotonic()))
        elif not self._closed and direction is REQUEST:
            self._close()

    def _finish(self) -> None:
        """Close, once the client has all that it is owed; then linger until it has read it."""
        # Nothing can be left for the server: the end of a tunnel is not read before all in front of it is sent (_watch).
        self._drop_upstream()
        if self._keep_behind(REPLY) or self._lanes[REPLY].out:
            self._stop_reading()
            return  # _writable or _release comes back here
        if self._linger_until:
            return
        if self.flow.client_ended:
            self._close()  # nothing of the client's is unread, so nothing destroys what it is owed
            return
        try:
            self._down.shutdown(socket.SHUT_WR)
        except OSError:
            self._close()
            return
        self._linger_until = monotonic() + LINGER_SECONDS
        self._poller.add_reader(self._down.fileno(), self._guard, self._linger)
        self._linger()

    def _stop_reading(self) -> None:
        if self._lanes[REQUEST].reading:
            self._lanes[REQUEST].reading = False
            self._poller.remove_reader(self._down.fileno())

    def _linger(self) -> None:
        try:
            data = self._down.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and not self._lingered:
            self.flow.late(data, monotonic())
        self._lingered += len(data)
        if not data:
            self._close()
        elif self._lingered > LINGER_BYTES:
            self._poller.remove_reader(self._down.fileno())  # until `tick` closes it

    def _abort(self) -> None:
        for sock in (self._down, self._up):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._lull:
            self._lull.cancel()
        try:
            self.wheel.close()
        finally:
            self._end_sockets()

    def _end_sockets(self) -> None:
        if self._ticket is not None:
            self._audit.forget(self._ticket)
        self._drop_upstream()
        self._forget_queue(REPLY)
        self._poller.forget(self._down.fileno())
        self._down.close()
        for lane in self._lanes:
            if lane.pipe:
                self._pipes.give(lane.pipe, lane.in_pipe == 0)
                lane.pipe = None
        self._memory.forget(self)
        self._on_close(self)


def keep_alive(sock: SocketType | socket.socket) -> None:
    """Ask now and then whether the other end is still there, and take silence for a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def _silent(sock: SocketType) -> bool:
    """Whether there is nothing to be read, an end or an error included."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


_SPLICE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
