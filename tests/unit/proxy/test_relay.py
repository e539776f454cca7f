"""A relay between real sockets, on the event loop of the agent, where end-to-end tests could not make buffers small enough."""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import cast

import pytest
import uvloop

from parsers.contract import Direction, Parser
from parsers.http1 import Http1Parser
from parsers.opaque import TunnelParser
from policies.decide import Pair
from proxy.audit.places import PLACE_BYTES
from proxy.audit.record import Party
from proxy.audit.writer import AuditWriter
from proxy.flow import Flow, Scene
from proxy.memory import FLOOR, Memory
from proxy.metrics import Metrics
from proxy.poller import Poller
from proxy.relay import HIGH_WATER, KEEPALIVE_IDLE, Patience, Pipes, Relay, keep_alive
from proxy.shares import Claim
from proxy.wheel import NO_WHEEL
from proxy.worker import Records as AuditRoom
from tests.flow_playbook import Policy, Records

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SMALL = 16384  # bytes of a socket buffer; the kernel doubles it


class CountingRelay(Relay):
    """Counts the turns in which it is told that there is something to read; a test may hold its dial up."""

    readings = 0
    accepting = True  # the server's side of the connection has come about

    def _dial_ready(self) -> None:
        if self.accepting:
            super()._dial_ready()

    def _readable(self, direction: Direction) -> None:
        self.readings += 1
        super()._readable(direction)


class Bench:
    """A client and a server with a relay in between, all in one loop; the ends are used with asyncio's ``sock_`` methods."""

    def __init__(
        self, parser: Parser, *, idle_timeout: float = 1000.0, audit: AuditWriter | None = None, memory: int = 1 << 30
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.records = Records()
        self.moved = [0, 0]
        self.memory = Memory(self.loop, memory)
        self.closed = asyncio.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)  # of the accepted sockets
        self._idle_timeout = idle_timeout
        self.client, down = self._pair()
        scene = Scene(
            connection="c",
            node="n",
            source="127.0.0.1:1",
            destination="127.0.0.1:2",
            subject=Party(),
            peer=Party(),
            pair=lambda: cast(Pair, Policy()),
            sink=AuditRoom(audit) if audit else self.records,
            metrics=Metrics(),
        )
        down.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        down.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.relay = CountingRelay(
            self.loop,
            Poller(self.loop),
            down,
            self._dial,
            Flow(scene, parser),
            NO_WHEEL,
            cast(AuditWriter, audit),
            Pipes(),
            self.moved,
            self.memory,
            self.memory.budget.claim("web"),
            lambda relay: self.closed.set(),
        )
        self.relay.start()

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        near.connect(self._listener.getsockname())
        far, _ = self._listener.accept()
        near.setblocking(False)
        far.setblocking(False)
        return near, far

    def _dial(self) -> socket.socket:
        up = socket.socket()
        up.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        up.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        up.setblocking(False)
        up.connect_ex(self._listener.getsockname())
        return up

    async def server(self) -> socket.socket:
        self._listener.setblocking(False)
        server, _ = await self.loop.sock_accept(self._listener)
        server.setblocking(False)
        return server

    async def until(self, check: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not check():  # noqa: ASYNC110 - nobody tells when a socket's bytes are acknowledged
                await asyncio.sleep(0.005)

    async def read(self, n: int) -> bytes:
        """``n`` bytes at the client, or fewer at the end."""
        data = b""
        async with asyncio.timeout(10):
            while len(data) < n and (piece := await self.loop.sock_recv(self.client, 65536)):
                data += piece
        return data

    def tick(self, later: float) -> None:
        self.relay.tick(self.relay.active_at + later, self._idle_timeout)

    def close(self) -> None:
        self.relay.stop()
        self.client.close()
        self._listener.close()


def acknowledged(sock: socket.socket) -> bool:
    return fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4) == b"\0" * 4


def play(parser: Parser, act: Callable[[Bench], Awaitable[None]], idle_timeout: float = 1000.0) -> Bench:
    async def run() -> Bench:
        bench = Bench(parser, idle_timeout=idle_timeout)
        with contextlib.closing(bench):
            await act(bench)
        return bench

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def reply(size: int, spliced: bool) -> bytes:
    body = os.urandom(size)
    if spliced:
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (size, body)
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(body[at : at + 50_000]), body[at : at + 50_000]) for at in range(0, size, 50_000))
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"


@pytest.mark.parametrize("spliced", [False, True], ids=["copied", "spliced"])
def test_what_a_server_said_before_it_reset_is_delivered_to_a_slow_client(spliced: bool) -> None:
    """libuv reports an error on a socket once and watches it no more, whatever is still to be read from it."""
    whole = reply(HIGH_WATER + 200_000, spliced)

    async def act(bench: Bench) -> None:
        await bench.loop.sock_sendall(bench.client, b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello")
        server = await bench.server()
        await bench.loop.sock_recv(server, 1)
        await bench.loop.sock_sendall(server, whole)
        await bench.until(lambda: acknowledged(server))
        server.close()  # with unread bytes: a reset
        await asyncio.sleep(0.05)
        assert await bench.read(len(whole)) == whole
        await bench.until(lambda: bench.records.written)

    bench = play(Http1Parser(), act)
    assert [record.status for record, _ in bench.records.written] == [200]
    assert bench.records.written[0][0].bytes_reply == len(whole)


def test_a_reply_until_the_close_is_not_complete_when_a_slow_client_hides_its_reset() -> None:
    """RFC 9112 section 8. Looking for the error takes it away, so that the end of what was left looks like an orderly one."""

    async def act(bench: Bench) -> None:
        await bench.loop.sock_sendall(bench.client, b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello")
        server = await bench.server()
        await bench.loop.sock_recv(server, 1)
        await bench.loop.sock_sendall(server, b"HTTP/1.1 200 OK\r\n\r\n" + bytes(HIGH_WATER + 200_000))
        await bench.until(lambda: acknowledged(server))
        server.close()  # with unread bytes: a reset
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionResetError):
            await bench.read(1 << 30)

    bench = play(Http1Parser(), act)
    assert [record.reason for record, _ in bench.records.written] == ["upstream-reset"]


@pytest.mark.parametrize("spliced", [False, True], ids=["copied", "spliced"])
def test_a_server_that_takes_no_more_is_not_offered_more_again_and_again(spliced: bool) -> None:
    """The client goes on sending to a server that has reset: what nobody takes stays in its socket, and costs no turns."""
    piece = bytes(50_000)
    head = b"content-length: 50000000\r\n\r\n" if spliced else b"transfer-encoding: chunked\r\n\r\n"

    async def act(bench: Bench) -> None:
        await bench.loop.sock_sendall(bench.client, b"PUT / HTTP/1.1\r\nhost: a\r\n" + head)
        server = await bench.server()
        # A reply that the client does not read keeps the connection open beyond the server's end.
        await bench.loop.sock_sendall(server, reply(HIGH_WATER + 200_000, False))
        await bench.until(lambda: acknowledged(server))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await bench.loop.sock_sendall(bench.client, (piece if spliced else b"c350\r\n%s\r\n" % piece) * 1000)
        server.close()
        await asyncio.sleep(0.1)
        before = bench.relay.readings
        await asyncio.sleep(0.1)
        assert bench.relay.readings == before
        assert not bench.relay.flow.over
        assert not acknowledged(bench.client)

    play(Http1Parser(), act)


def test_each_direction_of_a_tunnel_is_carried_to_its_own_end() -> None:
    whole = os.urandom(300_000)

    async def act(bench: Bench) -> None:
        server = await bench.server()
        server.shutdown(socket.SHUT_WR)
        assert await bench.read(1) == b""
        sending = asyncio.ensure_future(bench.loop.sock_sendall(bench.client, whole))
        sending.add_done_callback(lambda _: bench.client.shutdown(socket.SHUT_WR))
        received = b""
        async with asyncio.timeout(10):
            while piece := await bench.loop.sock_recv(server, 5000):
                received += piece
        assert received == whole
        server.close()

    play(TunnelParser(), act)


def test_a_client_that_does_not_read_its_last_words_is_not_kept_for_ever() -> None:
    async def act(bench: Bench) -> None:
        await bench.loop.sock_sendall(bench.client, GET)
        server = await bench.server()
        await bench.loop.sock_sendall(server, reply(200_000, False))
        server.shutdown(socket.SHUT_WR)
        await bench.until(lambda: bench.relay.flow.over)
        bench.tick(5.0)
        assert not bench.closed.is_set()
        bench.tick(11.0)
        assert bench.closed.is_set()
        server.close()

    bench = play(Http1Parser(), act, idle_timeout=10.0)
    assert [record.status for record, _ in bench.records.written] == [200]


def test_who_is_dismissed_sees_an_orderly_end() -> None:
    async def act(bench: Bench) -> None:
        await bench.loop.sock_sendall(bench.client, GET)
        server = await bench.server()
        assert not bench.relay.dismiss(monotonic()), "a call is open"
        await bench.loop.sock_sendall(server, OK)
        assert await bench.read(len(OK)) == OK
        assert not bench.relay.dismiss(bench.relay.active_at - 1), "something has happened since"
        assert bench.relay.dismiss(monotonic())
        assert bench.closed.is_set()
        assert await bench.loop.sock_recv(bench.client, 1) == b""
        assert await bench.loop.sock_recv(server, 1000) == GET
        assert await bench.loop.sock_recv(server, 1) == b""
        assert not bench.relay.dismiss(monotonic())
        server.close()

    play(Http1Parser(), act)


def test_a_call_that_has_arrived_keeps_its_connection() -> None:
    async def act(bench: Bench) -> None:
        bench.client.send(GET)  # and nobody has read it yet
        assert not bench.relay.dismiss(monotonic())
        (await bench.server()).close()

    play(Http1Parser(), act)


def test_what_one_keeps_beyond_its_share_stays_in_its_socket_until_there_is_memory() -> None:
    head = b"GET / HTTP/1.1\r\nhost: a\r\nx: %s\r\n\r\n" % (b"y" * 60_000)

    async def act(bench: Bench) -> None:
        memory, other = bench.memory, Other(bench.memory.budget.claim("another"))
        memory.keeps(other, memory.budget.limit)
        memory.wait(other)  # it is the one that may finish
        await asyncio.sleep(0.01)
        await bench.loop.sock_sendall(bench.client, head)
        await bench.until(lambda: memory.waiting)
        assert FLOOR <= bench.relay.flow.unsettled(Direction.REQUEST) < 2 * FLOOR
        assert bench.relay.memory.held == bench.relay.flow.kept
        readings = bench.relay.readings
        await asyncio.sleep(0.05)
        assert bench.relay.readings == readings
        memory.forget(other)
        server = await bench.server()
        received = b""
        while len(received) < len(head):
            received += await bench.loop.sock_recv(server, 65536)
        assert received == head
        assert bench.relay.memory.held == 0
        server.close()

    play(Http1Parser(), act)


class Other:
    """A connection that keeps what it has."""

    def __init__(self, claim: Claim) -> None:
        self.memory = claim

    def read_on(self) -> None:
        pass


def test_small_calls_pass_whatever_others_keep() -> None:
    async def act(bench: Bench) -> None:
        bench.memory.keeps(Other(bench.memory.budget.claim("another")), 2 * bench.memory.budget.limit)
        await bench.loop.sock_sendall(bench.client, GET)
        server = await bench.server()
        for _ in range(3):
            assert await bench.loop.sock_recv(server, 1000) == GET
            await bench.loop.sock_sendall(server, OK)
            assert await bench.read(len(OK)) == OK
            await bench.loop.sock_sendall(bench.client, GET)
        server.close()

    play(Http1Parser(), act)


def test_there_are_no_more_pipes_than_descriptors_for_them() -> None:
    pipes = Pipes(1)
    pipe = pipes.take()
    with pytest.raises(OSError, match="in use"):
        pipes.take()
    pipes.give(pipe, empty=False)
    pipes.give(pipes.take(), empty=True)


def test_single_bytes_that_wait_are_joined() -> None:
    """Or a client that drips bytes at a server that is slow would make the agent send each of them alone, in one turn."""

    async def act(bench: Bench) -> None:
        bench.relay.accepting = False
        pieces = [b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n", *[b"x"] * 1000]
        for piece in pieces:
            before = bench.relay.readings
            await bench.loop.sock_sendall(bench.client, piece)
            while bench.relay.readings == before:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        assert len(bench.relay._lanes[Direction.REQUEST].out) <= 2
        bench.relay.accepting = True
        server = await bench.server()
        received = b""
        while len(received) < sum(map(len, pieces)):
            received += await bench.loop.sock_recv(server, 65536)
        assert received == b"".join(pieces)

    play(Http1Parser(), act)


def test_an_idle_tunnel_holds_no_pipe() -> None:
    async def act(bench: Bench) -> None:
        server = await bench.server()
        await bench.loop.sock_sendall(bench.client, b"x" * 1000)
        assert await bench.loop.sock_recv(server, 2000) == b"x" * 1000
        assert [lane.pipe for lane in bench.relay._lanes] == [None, None]
        server.close()

    play(TunnelParser(), act)


class TestAuditRoom:
    """One place in the queue: it belongs to the first connection's open call, and the second one's call waits for it."""

    def run(self, path: Path, act: Callable[[Bench, Bench, AuditWriter], Awaitable[None]]) -> list[str]:
        """The reasons of the records that were written."""

        async def both() -> None:
            audit = AuditWriter(path, capacity=1 * PLACE_BYTES)
            first, second = Bench(Http1Parser(), audit=audit), Bench(Http1Parser(), audit=audit)
            with contextlib.closing(first), contextlib.closing(second):
                for bench in (first, second):
                    await bench.loop.sock_sendall(bench.client, GET)
                    if bench is first:
                        self.server = await first.server()
                await second.until(lambda: second.relay.flow.waits_for_audit)
                await act(first, second, audit)
            self.server.close()
            assert audit.close(5.0)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(both())
        return [json.loads(line)["reason"] for line in path.read_text().splitlines()]

    async def answer(self, bench: Bench) -> None:
        await bench.loop.sock_sendall(self.server, OK)
        assert await bench.read(len(OK)) == OK

    def test_a_call_that_waits_goes_on_as_soon_as_there_is_room(self, tmp_path: Path) -> None:
        async def act(first: Bench, second: Bench, audit: AuditWriter) -> None:
            await self.answer(first)
            self.server.close()
            self.server = await second.server()
            await self.answer(second)

        assert self.run(tmp_path / "audit", act) == ["rule-matched", "rule-matched"]

    def test_a_connection_that_ends_while_it_waits_leaves_the_line(self, tmp_path: Path) -> None:
        async def act(first: Bench, second: Bench, audit: AuditWriter) -> None:
            second.relay.stop()
            await self.answer(first)
            await first.until(lambda: audit.depth == 0)
            assert audit.reserve()
            audit.cancel()

        assert sorted(self.run(tmp_path / "audit", act)) == ["audit-unavailable", "rule-matched"]


def test_patience_doubles_with_every_vain_attempt_up_to_a_bound_and_ends_with_one_that_was_worth_it() -> None:
    def turns(patience: Patience) -> int:
        return next(number for number in range(100) if patience.is_over())

    patience = Patience(0, 5)
    waited = [turns(patience)]
    for worth in (False, False, False, False, False, True, False):
        patience.tried(worth=worth)
        waited.append(turns(patience))
    assert waited == [0, 1, 2, 4, 5, 5, 0, 1]


def test_both_legs_of_a_connection_are_kept_alive_from_its_first_second_on() -> None:
    def is_kept_alive(sock: socket.SocketType) -> bool:
        asked = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        return asked and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE

    async def act(bench: Bench) -> None:
        await bench.loop.sock_sendall(bench.client, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        with await bench.server():
            assert bench.relay._up is not None
            bench.tick(1.0)
            assert is_kept_alive(bench.relay._up)

    play(Http1Parser(), act)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        keep_alive(listener)
        with socket.create_connection(listener.getsockname()):
            down, _ = listener.accept()
            with down:
                assert is_kept_alive(down), "as all that our listeners accept"
