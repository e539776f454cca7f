"""A relay between real sockets, on the event loop of the agent, where end-to-end tests could not make buffers small enough."""

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import uvloop

from parsers.contract import Direction, Parser
from parsers.http1 import Http1Parser
from parsers.opaque import TunnelParser
from policies.decide import Pair
from proxy.audit.record import Party
from proxy.audit.writer import AuditWriter
from proxy.flow import Flow, Scene
from proxy.metrics import Metrics
from proxy.relay import HIGH_WATER, Pipes, Relay
from tests.flow_playbook import Policy, Records

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
SMALL = 16384  # bytes of a socket buffer; the kernel doubles it
RESET = struct.pack("ii", 1, 0)


class CountingRelay(Relay):
    """Counts the turns in which it is told that there is something to read."""

    readings = 0

    def _readable(self, direction: Direction) -> None:
        self.readings += 1
        super()._readable(direction)


class Bench:
    """A client and a server with a relay in between, all in one loop; the ends are used with asyncio's ``sock_`` methods."""

    def __init__(self, parser: Parser, *, idle_timeout: float = 1000.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.records = Records()
        self.moved = [0, 0]
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
            sink=self.records,
            metrics=Metrics(),
        )
        down.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        down.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.relay = CountingRelay(
            self.loop,
            down,
            self._dial,
            Flow(scene, parser),
            cast(AuditWriter, None),
            Pipes(),
            self.moved,
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


def play(parser: Parser, act: Callable[[Bench], Awaitable[None]], **options: float) -> Bench:
    async def run() -> Bench:
        bench = Bench(parser, **options)
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


async def slowly(bench: Bench, server: socket.socket) -> bytes:
    """All that the server gets, in small pieces."""
    received = b""
    async with asyncio.timeout(10):
        while piece := await bench.loop.sock_recv(server, 5000):
            received += piece
    return received


def test_each_direction_of_a_tunnel_is_carried_to_its_own_end() -> None:
    whole = os.urandom(300_000)

    async def act(bench: Bench) -> None:
        server = await bench.server()
        server.shutdown(socket.SHUT_WR)
        assert await bench.read(1) == b""
        receiving = asyncio.ensure_future(slowly(bench, server))
        await bench.loop.sock_sendall(bench.client, whole)
        bench.client.shutdown(socket.SHUT_WR)
        assert await receiving == whole
        server.close()

    play(TunnelParser(), act)


def test_what_waits_for_a_slow_server_is_sent_after_both_sides_have_ended() -> None:
    upgrade = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    switch = b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    early = os.urandom(60_000)  # the relay has all of it in hand when the tunnel opens

    async def act(bench: Bench) -> None:
        bench.client.send(upgrade + early)
        bench.client.shutdown(socket.SHUT_WR)
        server = await bench.server()
        assert await bench.loop.sock_recv(server, len(upgrade)) == upgrade
        await bench.loop.sock_sendall(server, switch)
        server.shutdown(socket.SHUT_WR)
        await bench.until(lambda: bench.relay.flow.over)
        assert await slowly(bench, server) == early
        server.close()

    play(Http1Parser(), act)


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


def test_an_idle_tunnel_holds_no_pipe() -> None:
    async def act(bench: Bench) -> None:
        server = await bench.server()
        await bench.loop.sock_sendall(bench.client, b"x" * 1000)
        assert await bench.loop.sock_recv(server, 2000) == b"x" * 1000
        assert [lane.pipe for lane in bench.relay._lanes] == [None, None]
        server.close()

    play(TunnelParser(), act)
