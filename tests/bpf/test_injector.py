"""How the relay's bytes get into the queue of an application that is in the map: whole, in order, to nobody else."""

import array
import contextlib
import fcntl
import os
import select
import socket
import termios
import threading
from collections.abc import Iterator

import pytest

from proxy import injector as injector_module
from proxy.injector import Injector, Queue
from proxy.wheel import Wheel
from tests.bpf.kernel_rig import GET, HELLO, QUEUE, Call, KernelRig, cookie, noted, nothing_to_read, receive, soon
from tests.bpf.rig import CLIENT, PATIENCE, REDIRECT, SERVER, free, rule
from tests.bpf.test_kernel_frames import little_memory
from tests.bpf.test_kernel_path import disconnect

RESET = b"\1\0\0\0\0\0\0\0"  # struct linger


@pytest.fixture
def call(path: KernelRig) -> Call:
    return path.call()


@pytest.fixture
def injector(path: KernelRig) -> Injector:
    return path.wheels.injector


def of_server(call: Call) -> Queue:
    assert call.server_queue is not None
    return call.server_queue


def both_ends(call: Call) -> tuple[tuple[Queue, socket.socket, socket.socket], ...]:
    return (of_server(call), call.server, call.agent_up), (call.client_queue, call.client, call.agent_down)


def reached(path: KernelRig, listener: socket.socket) -> tuple[socket.socket, socket.socket, Wheel, socket.socket]:
    """A connection on which nothing was said: the client, the agent's end of it, its wheel, and the agent's other socket."""
    client = path.connect(path.web, *listener.getsockname())
    agent_down, origin = path.accepted()
    assert origin
    wheel = path.wheels.wheel(origin.cookie)
    assert isinstance(wheel, Wheel)
    up = path.client(path.agent, socket.AF_INET)
    wheel.mark(up)
    with path.agent.inside():
        up.connect(listener.getsockname())
    return client, agent_down, wheel, up


def astray(injector: Injector) -> int:
    """Bytes that have come out at the injector's other end and that nobody has read, or that are still to come."""
    return injector._astray + (0 if nothing_to_read(injector._end, 0) else 1)


@contextlib.contextmanager
def pipe_with(data: bytes) -> Iterator[int]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    assert os.write(writing, data) == len(data)
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def unread(sock: socket.socket) -> int:
    told = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, told)
    return told[0]


# Whole and in order.


@pytest.mark.parametrize("size", [1, 200, 65536, 1 << 20])
def test_both_ends_read_what_was_injected_and_nothing_came_over_tcp(call: Call, size: int) -> None:
    for queue, sock in ((of_server(call), call.server), (call.client_queue, call.client)):
        data = os.urandom(size)
        assert queue.send(data) == size
        assert receive(sock, size) == data
        assert nothing_to_read(sock, 0)


def test_what_is_too_much_at_once_is_taken_in_part(call: Call) -> None:
    data = os.urandom(3 << 20)
    sent = of_server(call).send(data)
    assert 0 < sent < len(data)
    assert sent + of_server(call).send(memoryview(data)[sent:]) == 2 << 20
    assert receive(call.server, 2 << 20) == data[: 2 << 20]


def test_a_body_is_spliced(call: Call) -> None:
    data = os.urandom(700_000)
    with pipe_with(data) as pipe:
        assert of_server(call).splice(pipe, 300_000) == (300_000, 300_000)
        assert of_server(call).splice(pipe, 400_000) == (400_000, 400_000)
    assert receive(call.server, len(data)) == data


def test_messages_to_one_and_the_other_back_to_back(path: KernelRig) -> None:
    calls = [path.call() for _ in range(3)]
    sinks = [(of_server(one), one.server) for one in calls] + [(one.client_queue, one.client) for one in calls]
    for number in range(50):
        for which, (queue, _) in enumerate(sinks):
            assert queue.send(b"%d:%d;" % (which, number)) > 0
    for which, (_, sock) in enumerate(sinks):
        want = b"".join(b"%d:%d;" % (which, number) for number in range(50))
        assert receive(sock, len(want)) == want


def test_carried_and_injected_bytes_are_read_in_the_order_in_which_they_were_sent(call: Call) -> None:
    want = b""
    for number in range(20):
        assert call.let_go()
        request = noted(b"%d" % number)
        call.client.sendall(request)
        assert call.take()
        call.give_server(b"%d" % number)
        want += request + b"%d" % number
    assert call.relayed_nothing()
    assert receive(call.server, len(want)) == want


# Readers.


def test_unread_bytes_are_counted(call: Call) -> None:
    """nginx, Java's available(): a program that hears 0 never reads."""
    assert of_server(call).send(bytes(2000)) == 2000
    assert unread(call.server) == 2000
    receive(call.server, 1024)
    assert unread(call.server) == 976
    assert call.let_go()
    call.client.sendall(GET)
    assert unread(call.server) == 976 + len(GET)
    receive(call.server, 976 + len(GET))
    assert unread(call.server) == 0


@pytest.mark.parametrize("mode", [0, select.EPOLLET], ids=["level", "edge"])
def test_a_reader_that_polls_is_woken_for_every_message(call: Call, mode: int) -> None:
    call.server.setblocking(False)
    with select.epoll() as poll:
        poll.register(call.server, select.EPOLLIN | select.EPOLLRDHUP | mode)
        assert poll.poll(0) == []
        for number in range(20):
            assert of_server(call).send(b"%d" % number) > 0
            assert [events for _, events in poll.poll(PATIENCE)] == [select.EPOLLIN]
            assert call.server.recv(1000) == b"%d" % number
            with pytest.raises(BlockingIOError):
                call.server.recv(1000)
            assert poll.poll(0) == []
        call.agent_up.shutdown(socket.SHUT_WR)
        assert [events for _, events in poll.poll(PATIENCE)] == [select.EPOLLIN | select.EPOLLRDHUP]
        assert call.server.recv(1000) == b""


def test_a_reader_that_waits_in_the_kernel_is_woken(call: Call) -> None:
    call.server.settimeout(None)
    got: list[bytes] = []

    def read() -> None:
        while data := call.server.recv(1000):
            got.append(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for number in range(20):
        assert of_server(call).send(b"%d" % number) > 0
        assert soon(lambda number=number: len(got) == number + 1)  # type: ignore[misc]
    call.agent_up.shutdown(socket.SHUT_WR)
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert got == [b"%d" % number for number in range(20)]


def test_a_server_gets_its_first_bytes_before_it_accepts(path: KernelRig) -> None:
    listener = path.server(path.orders)
    client, agent_down, wheel, _ = reached(path, listener)
    queue = wheel.reach()
    assert queue is not None
    assert queue.send(GET) == len(GET)
    server = listener.accept()[0]
    with server, agent_down, client:
        server.settimeout(PATIENCE)
        assert receive(server, len(GET)) == GET


# Ends.


@pytest.mark.parametrize("unread_bytes", [0, 100_000, 4 << 20], ids=["nothing", "some", "more than a receive buffer"])
def test_the_end_is_read_behind_all_injected_bytes(call: Call, unread_bytes: int) -> None:
    for queue, sock, agents in (
        (of_server(call), call.server, call.agent_up),
        (call.client_queue, call.client, call.agent_down),
    ):
        data = os.urandom(unread_bytes)
        sent = 0
        while sent < len(data):
            sent += queue.send(memoryview(data)[sent:])
        agents.shutdown(socket.SHUT_WR)
        assert receive(sock, len(data)) == data
        assert sock.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            queue.send(b"behind the end")
        assert nothing_to_read(sock, 0) or sock.recv(1) == b""


def test_a_reset_does_not_take_injected_bytes_away(call: Call) -> None:
    assert call.client_queue.send(HELLO) == len(HELLO)
    call.agent_down.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    call.agent_down.close()
    assert receive(call.client, len(HELLO)) == HELLO
    with pytest.raises(ConnectionResetError):
        call.client.recv(1)


def test_an_application_that_has_ended_its_side_still_reads(call: Call) -> None:
    for queue, sock, agents in (
        (call.client_queue, call.client, call.agent_down),
        (of_server(call), call.server, call.agent_up),
    ):
        sock.shutdown(socket.SHUT_WR)
        assert agents.recv(1) == b""
        assert queue.send(HELLO) == len(HELLO)
        assert receive(sock, len(HELLO)) == HELLO
        agents.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_an_application_that_does_not_want_to_read_any_more_takes_what_comes_as_with_tcp(call: Call) -> None:
    call.client.shutdown(socket.SHUT_RD)
    assert call.client_queue.send(HELLO) == len(HELLO)
    assert call.client.recv(100) == HELLO
    assert call.client.recv(100) == b""


# Nobody else.


@pytest.mark.parametrize("how", ["close", "close with unread bytes", "reset"])
def test_what_finds_nobody_is_lost_to_nobody_else_and_told(path: KernelRig, injector: Injector, how: str) -> None:
    call, other = path.call(), path.call()
    queue = call.client_queue
    if how != "close":
        assert queue.send(bytes(1000)) == 1000
    if how == "reset":
        call.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    call.client.close()
    with pytest.raises(BrokenPipeError):
        queue.send(HELLO)
    assert queue.gone
    assert soon(lambda: not astray(injector))
    with pytest.raises(BrokenPipeError):
        queue.send(HELLO)
    assert other.client_queue.send(GET) == len(GET)
    assert receive(other.client, len(GET)) == GET
    assert nothing_to_read(other.client, 0)
    assert nothing_to_read(other.server, 0)


def test_a_pipe_that_finds_nobody_is_emptied_and_told(path: KernelRig, injector: Injector) -> None:
    call, other = path.call(), path.call()
    call.server.close()
    with pipe_with(bytes(700_000)) as pipe:
        given, taken = of_server(call).splice(pipe, 700_000)
        assert given > 0
        assert taken == 0
        assert of_server(call).gone
    assert soon(lambda: not astray(injector))
    assert of_server(other).send(GET) == len(GET)
    assert receive(other.server, len(GET)) == GET


def test_while_strayed_bytes_are_under_way_nothing_else_is_sent(path: KernelRig, injector: Injector) -> None:
    """They have a buffer of their own, which must not fill: then nobody could tell how much has strayed."""
    call, other = path.call(), path.call()
    call.client.close()
    injector._name(call.client_queue)
    injector._sock.send(b"12345")
    injector._strayed += 5
    injector._astray = 5
    assert other.client_queue.send(HELLO) == 0
    injector._drain()
    assert injector._astray == 0
    assert other.client_queue.send(HELLO) == len(HELLO)


def test_a_socket_that_connects_anew_gets_nothing_of_its_old_connection(path: KernelRig, injector: Injector) -> None:
    """It keeps its cookie and its address. What it had not read is gone with its old connection, as with TCP."""
    call = path.call()
    client, old = call.client, call.client_queue
    assert old.send(b"unread") == 6
    disconnect(client)
    with pytest.raises(BrokenPipeError):
        old.send(HELLO)
    old.gone = False
    listener = path.server(path.orders)
    with path.web.inside():
        client.connect(listener.getsockname())
    agent_down, origin = path.accepted()
    assert origin
    assert (origin.cookie, origin.sock) == (old.receiver.cookie, old.receiver.sock)
    assert origin.first != old.receiver.first
    with pytest.raises(BrokenPipeError):
        old.send(b"old")
    new = path.wheels.queue(injector_module.Receiver(origin.cookie, origin.sock, origin.first))
    assert new.send(b"new") == 3
    assert client.recv(100) == b"new"
    with pytest.raises(BrokenPipeError):
        old.send(b"old")
    assert nothing_to_read(client, 0)
    agent_down.close()


def test_a_receiver_that_leaves_the_map_gets_nothing(path: KernelRig, call: Call) -> None:
    path.path._sockets.delete(cookie(call.server).to_bytes(8, "little"))
    with pytest.raises(BrokenPipeError):
        of_server(call).send(GET)


def test_an_injector_that_somebody_has_ended_is_made_anew(call: Call, injector: Injector) -> None:
    assert call.client_queue.send(HELLO) == len(HELLO)
    disconnect(injector._sock)
    assert call.client_queue.send(HELLO) == 0, "it is to be sent again"
    assert call.client_queue.send(HELLO) == len(HELLO)
    assert receive(call.client, 2 * len(HELLO)) == 2 * HELLO
    assert not call.client_queue.gone


# How much waits.


def test_what_waits_for_a_reader_is_told(call: Call) -> None:
    queue = of_server(call)
    assert queue.look() == 0
    for number in range(1, 4):
        assert queue.send(bytes(1000)) == 1000
        assert queue.waiting == number * 1000
    receive(call.server, 2500)
    assert queue.look() == 500
    assert call.let_go()
    call.client.sendall(GET)
    assert queue.look() == 500 + len(GET), "carried bytes wait in the same queue"
    call.server.close()
    assert queue.look() == 0
    assert queue.gone


def test_the_longer_a_reader_has_not_read_the_more_rarely_it_is_looked(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(injector_module, "monotonic", lambda: now)
    queue = of_server(call)
    queue.look()
    assert queue.send(bytes(5000)) == 5000
    waited = []
    for _ in range(6):
        waited.append(queue.patience)
        now += 0.4
        queue.look()
    assert waited == pytest.approx([0.001, 0.1, 0.2, 0.3, 0.4, 0.5])
    receive(call.server, 1)
    queue.look()
    assert queue.patience == 0.001


def test_whoever_has_just_got_something_may_read_it_at_once(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first time, and after a long silence: a long body does not begin with a pause."""
    now = 1000.0
    monkeypatch.setattr(injector_module, "monotonic", lambda: now)
    queue = of_server(call)
    for _ in range(2):
        assert queue.send(bytes(5000)) == 5000
        assert queue.patience == 0.001
        now += 1000.0


# Out of memory.


def test_what_is_taken_in_part_out_of_memory_is_told_and_goes_on_later(path: KernelRig) -> None:
    call = path.call(accepting=little_memory(200_000))
    queue = of_server(call)
    data = os.urandom(400_000)
    sent = queue.send(data)
    assert 0 < sent < len(data)
    assert not queue.gone
    assert queue.send(memoryview(data)[sent:]) == 0
    got = bytearray()
    while len(got) < len(data):
        got += call.server.recv(1 << 20)
        if sent < len(data):
            sent += queue.send(memoryview(data)[sent:])
    assert bytes(got) == data
    assert path.fell_back("torn") == 0


# By one way only.


def test_a_server_that_was_not_there_before_the_first_bytes_is_never_in_the_map(path: KernelRig) -> None:
    """TCP_DEFER_ACCEPT, or a handshake whose last ACK travels with the request: everything comes over TCP."""
    listener = path.server(path.orders)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    before = path.cookies()
    client, agent_down, wheel, up = reached(path, listener)
    assert wheel.reach() is None
    up.sendall(GET)
    server = listener.accept()[0]
    with server, agent_down:
        server.settimeout(PATIENCE)
        assert receive(server, len(GET)) == GET
        assert cookie(server) not in path.cookies()
        assert path.cookies() - before == {cookie(client)}
        assert not wheel.reaches_server
        assert wheel.reach() is None


def test_a_queue_holds_what_the_relay_gives_it(call: Call) -> None:
    """The limit is the sender's: the kernel has none."""
    queue = of_server(call)
    sent = 0
    while queue.look() < QUEUE:
        sent += queue.send(bytes(1 << 20))
    assert sent == QUEUE
    assert receive(call.server, sent) == bytes(sent)
    assert queue.look() == 0


def test_a_client_whose_calls_are_never_carried_is_not_in_the_map(path: KernelRig) -> None:
    """Of another protocol, of a server on another host: its bytes come over TCP, and it may splice them."""
    path.install(rule(CLIENT, SERVER, REDIRECT, carried=False), free(SERVER))
    client = path.connect(path.web, *path.server(path.orders).getsockname())
    agent_down, origin = path.accepted()
    assert origin
    assert (origin.accelerated, origin.sock) == (False, 0)
    assert cookie(client) not in path.cookies()
    with agent_down, client:
        agent_down.sendall(HELLO)
        reading, writing = os.pipe()
        client.settimeout(None)
        assert os.splice(client.fileno(), writing, 1000) == len(HELLO)
        assert os.read(reading, 1000) == HELLO
        os.close(reading)
        os.close(writing)
