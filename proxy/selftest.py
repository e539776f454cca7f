"""Does this kernel do what the kernel path builds on? Four sockets on loopback, the real programs, some milliseconds.

Versions do not tell: what sockmap does has changed in every long-term branch (docs/kernel-path.md). So each property is tried,
at the agent's start and by ``sluice check``. The programs are attached to our own cgroup for that time. There they look at
nothing but sockets that carry our mark, and other agents have other maps, so nobody is disturbed.
"""

import contextlib
import mmap
import os
import platform
import socket
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from bpf import abi
from bpf.loader import BpfError, Object, new_ring
from policies.heads import HeadTable
from proxy.datapath import Hooks, object_file
from proxy.reading import ReadingCalls, reading_calls, try_blocking, try_calls
from proxy.ring import Ring
from proxy.workloads import WorkloadError, cgroup2_mount

# How long anything over loopback may take (seconds).
PATIENCE = 2.0

_FLOW, _WORKER, _REQUESTS = 1, 0, 1
_BODY = 1000
_REQUEST = b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % _BODY
_OTHER = _REQUEST.replace(b"/a", b"/b")
_MESSAGE = _REQUEST + bytes(_BODY)
_REPLY = b"HTTP/1.1 204 No Content\r\n\r\n"
_SO_COOKIE, _SO_MEMINFO = 57, 55
_BYTES_RECEIVED = slice(128, 136)  # tcpi_bytes_received of struct tcp_info


class _SurpriseError(Exception):
    """The kernel did something else than the programs build on."""


@dataclass(frozen=True)
class Findings:
    """What this kernel does.

    ``missing`` says in one line what it does not do that the kernel path needs; None: it does everything. ``reading`` are the
    ways to read a socket in the map; None: that could not be tried.
    """

    missing: str | None
    reading: ReadingCalls | None = None


def kernel_path() -> Findings:
    """Try it."""
    # Plain stores from Python publish the wheel (Wheel.give). Elsewhere than on x86-64 that takes barriers.
    if platform.machine() != "x86_64":
        return Findings("the kernel path has been tried on x86-64 only")
    try:
        with _Bench() as bench:
            return Findings(None, bench.run())
    except (BpfError, OSError, WorkloadError, _SurpriseError) as error:
        return Findings((str(error) or type(error).__name__).splitlines()[0])


def own_cgroup() -> Path:
    """The cgroup that this process is in."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return cgroup2_mount() / next(line.removeprefix("0::/") for line in lines if line.startswith("0::"))


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _SurpriseError(otherwise)


def _exactly(text: bytes, steps: dict[int, abi.Step]) -> HeadTable:
    """An automaton that accepts ``text`` alone; ``steps`` by position."""
    known = sorted(set(text))
    classes = bytes(known.index(byte) + 1 if byte in known else 0 for byte in range(256))
    rows = array("H", bytes(2 * abi.PathLimit.CELLS * (len(text) + 2)))
    for at, byte in enumerate(text):
        step = abi.Step.STEP_ACCEPT if at == len(text) - 1 else steps.get(at, abi.Step.STEP_PLAIN)
        rows[(at + 1) * abi.PathLimit.CELLS + classes[byte]] = step << 13 | at + 2
    return HeadTable(classes, rows.tobytes(), 1)


def _digits(text: bytes, number: bytes, step: abi.Step) -> dict[int, abi.Step]:
    return dict.fromkeys(range(text.index(number), text.index(number) + len(number)), step)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


class _Bench:
    """The programs, and C and S with D and U between them (docs/kernel-path.md has the picture)."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Bench":
        with contextlib.ExitStack() as stack:
            self._load(stack)
            self._connect(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _load(self, stack: contextlib.ExitStack) -> None:
        self._hooks = stack.enter_context(contextlib.closing(Hooks(0, None, None, only_maps=True)))
        control, self._origins = self._hooks.shared
        verdict = Object(object_file("verdict"), self._hooks.config, (control, self._origins))
        self._object = stack.enter_context(contextlib.closing(verdict))
        self._sockets = self._object.map("sockets")
        self._object.attach_to_sockets("sluice_message", self._sockets)
        self._take = self._object.routine("sluice_take")
        stack.callback(os.close, self._take.fd)
        ring = new_ring("selftest", mmap.PAGESIZE)
        stack.callback(os.close, ring.fd)
        self._object.map("rings").set(_u32(_WORKER), _u32(ring.fd))
        self._ring = stack.enter_context(contextlib.closing(Ring(ring.fd, mmap.PAGESIZE)))
        self._flows = stack.enter_context(self._object.map("flows").memory((_FLOW + 1) * abi.SLUICE_FLOW.size))
        self._ends = stack.enter_context(self._object.map("ends").memory((_FLOW + 1) * abi.SLUICE_ENDS.size))
        rows = stack.enter_context(self._object.map("rows").memory(abi.SLUICE_ROWS.size))
        status = _digits(_REPLY, b"204", abi.Step.STEP_STATUS) | {_REPLY.index(b" No"): abi.Step.STEP_NO_REPLY_BODY}
        replies = _exactly(_REPLY, status)
        requests = _exactly(_REQUEST, _digits(_REQUEST, b"%d" % _BODY, abi.Step.STEP_LENGTH))
        base = 0
        for number, automaton in ((abi.PathLimit.REPLY_TABLE, replies), (_REQUESTS, requests)):
            at = base * abi.PathLimit.CELLS * 2
            rows[at : at + len(automaton.rows)] = automaton.rows
            self._object.map("tables").set(_u32(number), abi.SLUICE_TABLE.pack(base, automaton.start, automaton.classes))
            base += automaton.states
        home = os.open(own_cgroup(), os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, home)
        self._object.attach("sluice_enlist", home)

    def _connect(self, stack: contextlib.ExitStack) -> None:
        client, up = (stack.enter_context(socket.socket()) for _ in range(2))
        marked = abi.Origin._make(abi.SLUICE_ORIGIN.unpack(bytes(abi.SLUICE_ORIGIN.size)))
        marked = marked._replace(flags=abi.Flag.ORIGIN_ACCELERATE)
        self._origins.set(_u32(client.fileno()), abi.SLUICE_ORIGIN.pack(*marked))
        lane = abi.Lane(0, 0, abi.Role.ROLE_UPSTREAM, _FLOW, 0, 0)
        self._object.map("lanes").set(_u32(up.fileno()), abi.SLUICE_LANE.pack(*lane))
        self._down, self._server = (stack.enter_context(_connected(sock)) for sock in (client, up))
        self._client, self._up = client, up
        for sock in (client, up, self._down, self._server):
            sock.settimeout(PATIENCE)
        cookie = client.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
        self._object.map("calls").set(_u32(_FLOW * abi.PathLimit.PIPELINE), bytes(abi.SLUICE_CALL.size))
        self._object.map("callers").set(cookie, _u32(_FLOW))
        self._cookie = int.from_bytes(cookie, sys.byteorder)

    def _let_go(self) -> None:
        self._hooks.beat()
        flow = abi.Flow(abi.Wheel.WHEEL_IDLE, 0, _REQUESTS, _WORKER, 0, 0, 0, 0, self._cookie)
        abi.SLUICE_FLOW.pack_into(self._flows, _FLOW * abi.SLUICE_FLOW.size, *flow)

    def run(self) -> ReadingCalls:
        ends = abi.Ends._make(abi.SLUICE_ENDS.unpack_from(self._ends, _FLOW * abi.SLUICE_ENDS.size))
        _expect(ends.server != 0, "sockets are not put into the map as they connect")
        self._let_go()
        body = os.urandom(_BODY)
        self._send(body)
        _expect(self._waiting() > _BODY, "what waits for a receiver is not counted, so nothing would slow its sender down")
        got = _receive(self._server, len(_REQUEST) + _BODY)
        _expect(got[: len(_REQUEST)] == _REQUEST, "the receiver reads other bytes than those that were judged")
        _expect(got[len(_REQUEST) :] == body, "bytes arrive in another order than they were sent")
        self._server.sendall(_REPLY)
        _expect(_receive(self._client, len(_REPLY)) == _REPLY, "a reply does not arrive")
        _expect(_quiet(self._down) and _quiet(self._up), "bytes that could be carried are not")
        self._check_record()
        carried = try_calls(self._server, self._carry)
        self._let_go()
        self._client.sendall(_REQUEST + body)
        self._up.shutdown(socket.SHUT_WR)
        _expect(_receive(self._server, len(got)) == _REQUEST + body, "what is queued is lost when the connection ends")
        _expect(self._server.recv(1) == b"", "the end of a connection is not told")
        self._client.sendall(b"x")
        _expect(_receive(self._down, 1) == b"x", "what is not carried does not go TCP's way")
        taken = self._take(abi.SLUICE_TAKE.pack(_FLOW, 0))
        _expect(taken == abi.Wheel.WHEEL_WAIT, "the wheel is not given back")
        tcp = try_calls(self._client, self._relay)
        return reading_calls(carried, tcp, try_blocking(self._client, self._reset))

    def _reset(self) -> None:
        self._down.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._down.close()

    def _carry(self) -> bytes:
        """One more message into the server's queue."""
        self._let_go()
        self._client.sendall(_MESSAGE)
        return _MESSAGE

    def _relay(self) -> bytes:
        """One more message to the client, over TCP, as the relay would send it. It is there when this returns."""
        until = monotonic() + PATIENCE
        there = _received(self._client) + len(_MESSAGE)
        self._down.sendall(_MESSAGE)
        while _received(self._client) < there:
            _expect(monotonic() < until, "what the relay sends does not arrive")
        return _MESSAGE

    def _send(self, body: bytes) -> None:
        """From memory that is another request a moment later."""
        fd = os.memfd_create("request")
        try:
            length = os.write(fd, _REQUEST + body)
            _expect(os.sendfile(self._client.fileno(), fd, 0, length) == length, "sendfile sends in part")
            os.pwrite(fd, _OTHER, 0)
        finally:
            os.close(fd)

    def _waiting(self) -> int:
        """Memory that waits for the server to read it, as the programs see it."""
        return int.from_bytes(self._server.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4), sys.byteorder)

    def _check_record(self) -> None:
        entries = self._ring.take(1)
        _expect(bool(entries), "a call leaves no record")
        record = abi.Call._make(abi.SLUICE_CALL.unpack(entries[0].ljust(abi.SLUICE_CALL.size, b"\0")))
        right = (_REQUEST, 204, len(_REQUEST) + _BODY, len(_REPLY))
        told = (record.head[: record.head_length], record.status, record.request_bytes, record.reply_bytes)
        _expect(told == right, "the record of a call is wrong")


@contextlib.contextmanager
def _connected(sock: socket.socket) -> Iterator[socket.socket]:
    """The other end of ``sock``, connected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        sock.settimeout(PATIENCE)
        sock.connect(listener.getsockname())
        accepted = listener.accept()[0]
    with accepted:
        yield accepted


def _received(sock: socket.socket) -> int:
    """How many bytes have come to this socket over TCP, read or not."""
    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.stop)
    return int.from_bytes(told[_BYTES_RECEIVED], sys.byteorder)


def _receive(sock: socket.socket, length: int) -> bytes:
    got = b""
    while len(got) < length and (data := sock.recv(length - len(got))):
        got += data
    return got


def _quiet(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(PATIENCE)
