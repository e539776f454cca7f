"""The kernel path alone: hooks, the programs of verdict.bpf.c, and automata that are made by hand.

``KernelRig`` stands in for the agent. ``Call`` is one connection with its four sockets: the application's client and server,
and the agent's two in between. The test writes to and reads from all of them, and it is the relay.
"""

import asyncio
import contextlib
import select
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from bpf import abi
from parsers.contract import Prefix
from policies.heads import HeadTable
from proxy.audit.writer import AuditWriter
from proxy.flow import Carried
from proxy.injector import Queue, Receiver
from proxy.metrics import Metrics
from proxy.wheel import KernelPath, Ledger, Wheel, Wheels
from proxy.workloads import cgroup2_mount
from tests.bpf.rig import CLIENT, PATIENCE, REDIRECT, SERVER, Rig, free, rule

QUEUE = abi.PathLimit.QUEUE_BYTES
HEAD_BYTES = abi.PathLimit.HEAD_BYTES
# So much, at least, the kernel has in one message; of 1 MiB it makes two.
MESSAGE_BYTES = 500_000
CALL_HEAD = abi.SLUICE_CALL.size - 2 * HEAD_BYTES

# Automata. Each way is a list of parts; ways that begin alike share their states.


@dataclass(frozen=True)
class Stepping:
    """Bytes that each ask for a step."""

    text: bytes
    step: abi.Step


@dataclass(frozen=True)
class Length:
    """The digits of the body's length."""


@dataclass(frozen=True)
class Line:
    """Any bytes but a carriage return."""


Part = bytes | Stepping | Length | Line
_CARRIAGE_RETURN = 0x0D


class _Builder:
    def __init__(self) -> None:
        self._classes = bytearray(256)
        self._used = 0
        self._rows = [[0] * abi.PathLimit.CELLS]

    def _class(self, byte: int) -> int:
        if not self._classes[byte]:
            self._used += 1
            self._classes[byte] = self._used
        return self._classes[byte]

    def state(self) -> int:
        self._rows.append([0] * abi.PathLimit.CELLS)
        return len(self._rows) - 1

    def byte(self, state: int, byte: int, step: int) -> int:
        known = self._rows[state][self._class(byte)]
        if known:
            return known & 0x1FFF
        following = self.state()
        self._rows[state][self._class(byte)] = step << 13 | following
        return following

    def digits(self, state: int) -> int:
        following = self.state()
        for digit in b"0123456789":
            for source in (state, following):
                self._rows[source][self._class(digit)] = abi.Step.STEP_LENGTH << 13 | following
        return following

    def anything(self, state: int) -> int:
        end = self._class(_CARRIAGE_RETURN)
        self._rows[state] = [cell if cls == end else state for cls, cell in enumerate(self._rows[state])]
        return state

    def build(self, *ways: list[Part]) -> HeadTable:
        start = self.state()
        for byte in b"0123456789\r":
            self._class(byte)
        for way in ways:
            state = start
            bare = not any(isinstance(part, Length) for part in way)
            for number, part in enumerate(way):
                match part:
                    case Length():
                        state = self.digits(state)
                    case Line():
                        state = self.anything(state)
                    case Stepping(text, step):
                        for byte in text:
                            state = self.byte(state, byte, step)
                    case _:
                        end = len(part) - 1 if number == len(way) - 1 else -1
                        for at, byte in enumerate(part):
                            accept = abi.Step.STEP_ACCEPT_BARE if bare else abi.Step.STEP_ACCEPT
                            state = self.byte(state, byte, accept if at == end else 0)
        return HeadTable(bytes(self._classes), b"".join(array("H", row).tobytes() for row in self._rows), start)


def automaton(*ways: list[Part]) -> HeadTable:
    return _Builder().build(*ways)


def _status(text: bytes) -> Stepping:
    return Stepping(text, abi.Step.STEP_STATUS)


_NO_BODY = Stepping(b" ", abi.Step.STEP_NO_REPLY_BODY)
REPLIES = automaton(
    [b"HTTP/1.1 ", _status(b"200"), b" OK\r\nContent-Length: ", Length(), b"\r\n\r\n"],
    [b"HTTP/1.1 ", _status(b"200"), b" OK\r\n\r\n"],  # lasts until the server closes
    [b"HTTP/1.1 ", _status(b"404"), b" Not Found\r\nContent-Length: ", Length(), b"\r\n\r\n"],
    [b"HTTP/1.1 ", _status(b"204"), _NO_BODY, b"No Content\r\n\r\n"],
    [b"HTTP/1.1 ", _status(b"304"), _NO_BODY, b"Not Modified\r\n\r\n"],
    [b"HTTP/1.1 ", _status(b"304"), _NO_BODY, b"Not Modified\r\nContent-Length: ", Length(), b"\r\n\r\n"],
)
REQUESTS = automaton(
    [b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"],
    [b"GET /a HTTP/1.1\r\nX-Note: ", Line(), b"\r\n\r\n"],
    [b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: ", Length(), b"\r\n\r\n"],
    [b"HEAD", _NO_BODY, b"/a HTTP/1.1\r\nHost: x\r\n\r\n"],
)

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n"
FORBIDDEN = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"


def noted(note: bytes) -> bytes:
    """A GET whose head says anything."""
    return b"GET /a HTTP/1.1\r\nX-Note: " + note + b"\r\n\r\n"


def post(length: int) -> bytes:
    return b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length


def ok(length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length


HELLO = ok(5) + b"hello"


def receive(sock: socket.socket, length: int) -> bytes:
    """Exactly ``length`` bytes."""
    got = bytearray()
    while len(got) < length:
        data = sock.recv(min(length - len(got), 1 << 20))
        assert data, f"the connection ended after {len(got)} of {length} bytes"
        got += data
    return bytes(got)


def nothing_to_read(sock: socket.socket, patience: float = 0.02) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(patience * 1e3)


def queued(sock: socket.socket) -> int:
    """Memory that waits for the reader of a socket: SO_MEMINFO's first word, which the programs look at, too."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 55, 4), sys.byteorder)


@dataclass
class Call:
    """A connection. The ledger counts what the test reads with `up` and `down`: first the client's bytes, then the server's."""

    rig: "KernelRig"
    client: socket.socket
    agent_down: socket.socket
    agent_up: socket.socket
    server: socket.socket
    cookie: int
    wheel: Wheel
    client_queue: Queue
    server_queue: Queue | None
    ledger: list[int] = field(default_factory=lambda: [0, 0])
    number: int = 1  # of the next call, as far as the kernel is told

    def let_go(
        self, generation: int | None = None, table: int | None = None, prefixes: Sequence[Prefix] = (), owed: bool = False
    ) -> bool:
        """With ``prefixes``, requests are frames."""
        if table is None:
            table = abi.Framing.FRAMES if prefixes else self.rig.table
        generation = self.rig.wheels.generation if generation is None else generation
        self.wheel.give(table, generation, Ledger(*self.ledger, owed), prefixes, self.number)
        return self.wheel.held

    def take(self) -> Carried | None:
        """The wheel, with the one call that may be open."""
        calls = self.wheel.take()
        assert len(calls) <= 1
        return calls[0] if calls else None

    def up(self, length: int) -> bytes:
        """Relay ``length`` bytes from the client to the server's socket, as the agent does."""
        data = receive(self.agent_down, length)
        self.ledger[0] += length
        self.give_server(data)
        return data

    def give_server(self, data: bytes) -> None:
        """By injection, or by TCP where its socket is not in the map."""
        if self.server_queue is None:
            self.agent_up.sendall(data)
        else:
            assert self.server_queue.send(data) == len(data)

    def give_client(self, data: bytes) -> None:
        assert self.client_queue.send(data) == len(data)

    def down(self, length: int) -> bytes:
        """Relay ``length`` bytes from the server to the client's socket."""
        data = receive(self.agent_up, length)
        self.ledger[1] += length
        self.give_client(data)
        return data

    def exchange(self, request: bytes = GET, reply: bytes = HELLO) -> None:
        """One call, both ways by whatever way the kernel chooses; fails unless everything arrives."""
        self.client.sendall(request)
        assert receive(self.server, len(request)) == request
        self.server.sendall(reply)
        assert receive(self.client, len(reply)) == reply

    def relayed_nothing(self) -> bool:
        return nothing_to_read(self.agent_down, 0.01) and nothing_to_read(self.agent_up, 0.01)

    @property
    def state(self) -> abi.Wheel:
        flow = abi.SLUICE_FLOW.unpack_from(self.rig.wheels.flows, self.wheel.index * abi.SLUICE_FLOW.size)
        return abi.Wheel(flow[0])

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return self.client, self.agent_down, self.agent_up, self.server


class RigWheels(Wheels):
    """Finished calls stay in the ring: the test looks at them itself."""

    def catch_up(self, wheel: Wheel, *, must: bool) -> None:
        pass


class KernelRig(Rig):
    """A `Rig` whose stand-in of the agent can let go of the wheel."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.path = KernelPath(self.hooks, REPLIES, 1)
        self._stack.callback(self.path.close)
        self._loop = asyncio.new_event_loop()
        self._stack.callback(self._loop.close)
        self.wheels = RigWheels(self._loop, self.path.files[0], cast(AuditWriter, None), Metrics(), print)
        self._stack.callback(self.wheels.close)
        self.accelerated = {CLIENT}
        self.web, self.orders = self.cgroup("web", CLIENT), self.cgroup("orders", SERVER)
        self.agent = self.cgroup("agent")
        self.hooks.exclude(self.agent.id)

    def start(self) -> "KernelRig":
        self.attach(rule(CLIENT, SERVER, REDIRECT), free(SERVER))
        self.path.attach(cgroup2_mount())
        self.renew_table()
        return self

    def renew_table(self, requests: HeadTable = REQUESTS) -> None:
        table = self.wheels.install(requests)
        assert table is not None
        self.table = table

    def call(
        self,
        host: str = "127.0.0.1",
        listener: socket.socket | None = None,
        connect_to: str | None = None,
        accepting: contextlib.AbstractContextManager[None] | None = None,
    ) -> Call:
        """A connection from end to end, with the wheel still in the agent's hands. ``accepting``: around the server's."""
        listener = listener or self.server(self.orders, host)
        port = listener.getsockname()[1]
        client = self.connect(self.web, connect_to or host, port)
        return self.dial(client, listener, accepting=accepting)

    def dial(
        self,
        client: socket.socket,
        listener: socket.socket,
        to: tuple[str, int] | None = None,
        accepting: contextlib.AbstractContextManager[None] | None = None,
    ) -> Call:
        """The agent's part of a connection whose client has connected."""
        agent_down, origin = self.accepted()
        assert origin is not None
        caller = Receiver(origin.cookie, origin.sock, origin.first)
        wheel = self.wheels.wheel(origin.cookie)
        assert isinstance(wheel, Wheel)
        agent_down.settimeout(PATIENCE)
        to = to or listener.getsockname()[:2]
        agent_up = self.client(self.agent, socket.AF_INET6 if ":" in to[0] else socket.AF_INET)
        wheel.mark(agent_up)
        with self.agent.inside():
            agent_up.connect(to)
        server_queue = wheel.reach()
        with accepting or contextlib.nullcontext():
            server = self._stack.enter_context(listener.accept()[0])
        server.settimeout(PATIENCE)
        for sock in (client, agent_down, agent_up, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        queues = self.wheels.queue(caller), server_queue
        return Call(self, client, agent_down, agent_up, server, origin.cookie, wheel, *queues)

    def carried(self, **options: Any) -> Call:
        """A connection of which the kernel has the wheel."""
        call = self.call(**options)
        assert call.let_go()
        return call

    def fell_back(self, reason: str) -> int:
        return self.path.fallbacks()[reason]

    def records(self) -> list[abi.Call]:
        """The finished calls, oldest first. Their room is given back."""
        ring = self.wheels.ring
        entries = ring.take(1 << 20)
        ring.give_back(ring.at)
        return [abi.Call._make(abi.SLUICE_CALL.unpack(entry.ljust(abi.SLUICE_CALL.size, b"\0"))) for entry in entries]

    def cookies(self) -> set[int]:
        """Of the sockets in the map."""
        return {int.from_bytes(key, sys.byteorder) for key in self.path._sockets.keys()}  # noqa: SIM118


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)


def soon(check: Any, patience: float = PATIENCE) -> bool:
    deadline = time.monotonic() + patience
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
