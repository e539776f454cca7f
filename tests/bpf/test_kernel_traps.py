"""What sockmap and sk_msg do badly, and how each of it is kept out: one test or more for every trap of docs/kernel-path.md."""

import contextlib
import ctypes
import mmap
import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from bpf import abi
from parsers.contract import Direction
from proxy import selftest
from proxy.injector import Queue
from proxy.reading import CALLS, try_blocking, try_calls
from tests.bpf.kernel_rig import (
    FORBIDDEN,
    GET,
    HELLO,
    MESSAGE_BYTES,
    QUEUE,
    KernelRig,
    cookie,
    noted,
    nothing_to_read,
    ok,
    post,
    queued,
    receive,
    soon,
)
from tests.bpf.rig import PATIENCE
from tests.harness import ROOT

MSG_ZEROCOPY, SO_ZEROCOPY = 0x4000000, 60
MSG_FASTOPEN = 0x20000000
IPPROTO_MPTCP = 262
TCP_ULP = 31
PIPE_BYTES = 65536  # sendfile hands over so many at a time


def _pattern(length: int) -> bytes:
    """Bytes of which no part looks like another."""
    return b"".join(number.to_bytes(4, "big") for number in range((length + 3) // 4))[:length]


# 1. No back-pressure.


def test_a_server_that_does_not_read_slows_its_client_down(path: KernelRig) -> None:
    """Trap 1: a server answers requests that it does not read. What waits for it is bounded; the next request goes TCP's way,
    and what comes behind it fills TCP's queue and no other. No byte is lost or overtaken.
    """
    call = path.carried()
    size = MESSAGE_BYTES - len(post(MESSAGE_BYTES))
    sent = bytearray()
    number = 0
    while queued(call.server) < QUEUE:
        number += 1
        request = post(size) + bytes([number]) * size
        call.client.sendall(request)
        sent += request
        assert call.state is abi.Wheel.WHEEL_WAIT
        call.server.sendall(HELLO)
        assert receive(call.client, len(HELLO)) == HELLO
    assert call.relayed_nothing()
    assert queued(call.server) < QUEUE + (1 << 20)
    assert number >= QUEUE // MESSAGE_BYTES
    before = path.fell_back("memory")
    total = 24 << 20
    body = _pattern(total)
    call.client.sendall(GET)
    assert path.fell_back("memory") == before + 1
    assert call.take() is None
    full = queued(call.server)
    call.client.sendall(post(total))
    call.client.setblocking(False)
    taken = _send_until_full(call.client, body)
    assert taken < total, "TCP has flow control: it takes some more, and not all"
    assert queued(call.server) == full
    call.client.setblocking(True)
    rest = GET + post(total) + body
    with _in_background(
        lambda: call.client.sendall(memoryview(body)[taken:]),
        lambda: _relay(call.agent_down, call.server_queue, len(rest)),
    ):
        assert receive(call.server, len(sent)) == sent
        assert receive(call.server, len(rest)) == rest
    assert len(path.records()) == number


@contextlib.contextmanager
def _in_background(*works: Callable[[], object]) -> Iterator[None]:
    """Each of ``works`` in a thread of its own; all of them are over at the end."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def _relay(source: socket.socket, into: Queue | None, length: int) -> None:
    """As the agent does: no more than may wait for a reader."""
    assert into
    while length:
        assert soon(lambda: into.look() < QUEUE)
        data = source.recv(min(length, 1 << 20))
        assert data
        assert into.send(data) == len(data)
        length -= len(data)


def test_a_client_that_does_not_read_slows_its_server_down(path: KernelRig) -> None:
    """Trap 1, the other way: what waits for it is bounded, the rest goes TCP's way, and no byte is lost or overtaken."""
    call = path.carried()
    total = 24 << 20
    body = _pattern(total)
    call.client.sendall(GET)
    receive(call.server, len(GET))
    call.server.setblocking(False)
    call.server.send(ok(total))
    sent = _send_until_full(call.server, body)
    assert path.fell_back("memory") > 0
    assert QUEUE <= queued(call.client) < QUEUE + (2 << 20)
    assert sent < total, "TCP has flow control: it takes some more, and not all"
    taken = call.take()
    assert taken
    assert (taken.head, taken.reply_head, taken.status) == (GET, ok(total), 200)
    assert QUEUE <= taken.reply_bytes < sent
    call.server.setblocking(True)
    left = len(ok(total)) + total - taken.reply_bytes
    with _in_background(
        lambda: call.server.sendall(memoryview(body)[sent:]),
        lambda: _relay(call.agent_up, call.client_queue, left),
    ):
        assert receive(call.client, len(ok(total)) + total) == ok(total) + body
    assert queued(call.client) == 0
    assert path.records() == []


def _send_until_full(sock: socket.socket, data: bytes) -> int:
    sent = 0
    view = memoryview(data)
    while sent < len(data) and select.select([], [sock], [], 0.2)[1]:
        sent += sock.send(view[sent : sent + 65536])
    return sent


# 2. Egress redirects lose wake-ups: there are none. What a sender polls is its own socket.


def test_a_sender_that_waits_for_room_is_woken_edge_triggered(path: KernelRig) -> None:
    """Trap 2: after the queue of the receiver is full, and then TCP's, EPOLLOUT comes as the relay reads."""
    call = path.carried()
    total = 24 << 20
    body = _pattern(total)
    call.client.sendall(GET)
    receive(call.server, len(GET))
    call.server.sendall(ok(total))
    call.server.setblocking(False)
    with select.epoll() as poll:
        poll.register(call.server, select.EPOLLOUT | select.EPOLLET)
        sent, stalls = 0, 0
        view = memoryview(body)
        drained = bytearray()
        while sent < total:
            try:
                sent += call.server.send(view[sent : sent + 65536])
                continue
            except BlockingIOError:
                stalls += 1
            poll.poll(0)  # the edge that belongs to the past
            while not nothing_to_read(call.agent_up, 0.01):
                drained += call.agent_up.recv(1 << 20)
            assert poll.poll(PATIENCE), "no edge"
        assert stalls > 0
    call.server.setblocking(True)
    taken = call.take()
    assert taken
    assert taken.reply_bytes >= QUEUE
    got = receive(call.client, taken.reply_bytes)[len(ok(total)) :]
    drained += receive(call.agent_up, total - len(got) - len(drained))
    assert got + bytes(drained) == body


# 3. Two queues.


def test_what_is_carried_comes_behind_what_was_injected_and_is_unread(path: KernelRig) -> None:
    """Trap 3, both ways: unread, or read in part only. There is one queue."""
    call = path.call()
    call.client.sendall(GET)
    call.up(len(GET))
    assert receive(call.server, 5) == GET[:5]
    assert call.let_go()
    call.client.sendall(noted(b"2"))
    assert call.relayed_nothing()
    assert receive(call.server, len(GET) - 5 + len(noted(b"2"))) == GET[5:] + noted(b"2")
    assert call.take()
    for part in (HELLO[:4], HELLO[4:]):
        call.server.sendall(part)
        call.down(len(part))
    assert receive(call.client, 2) == HELLO[:2]
    assert call.let_go()
    call.client.sendall(GET)
    assert receive(call.server, len(GET)) == GET
    call.server.sendall(HELLO)
    assert receive(call.client, 2 * len(HELLO) - 2) == HELLO[2:] + HELLO
    assert call.relayed_nothing()


def test_nothing_is_carried_to_a_socket_that_has_got_bytes_over_tcp(path: KernelRig) -> None:
    """Trap 3: the agent never does that. Should it, they would be in another queue, and nothing else goes to that socket."""
    call = path.carried()
    call.agent_up.sendall(b"x")
    assert receive(call.server, 1) == b"x"
    before = path.fell_back("gone")
    call.client.sendall(GET)
    assert receive(call.agent_down, len(GET)) == GET
    assert path.fell_back("gone") == before + 1
    assert call.server_queue
    with pytest.raises(BrokenPipeError):
        call.server_queue.send(GET)
    assert nothing_to_read(call.server)


def test_nothing_is_carried_past_bytes_that_the_relay_has_not_read(path: KernelRig) -> None:
    call = path.call()
    call.client.sendall(GET)
    assert call.let_go()
    before = path.fell_back("ledger")
    call.client.sendall(GET)
    assert path.fell_back("ledger") > before
    assert receive(call.agent_down, 2 * len(GET)) == 2 * GET


def test_what_the_relay_writes_comes_behind_what_was_carried(path: KernelRig) -> None:
    """Trap 3: an unread carried message, then relayed ones, then carried ones again; the order is that of sending."""
    call = path.carried()
    want = b""
    for number in range(20):
        request = noted(b"%d" % number)
        call.client.sendall(request)
        want += request
        if number % 2:  # pipelined: it passes
            assert call.take()
            call.up(len(request))
            assert receive(call.server, len(want)) == want
            want = b""
            for _ in range(2):
                call.server.sendall(HELLO)
                call.down(len(HELLO))
                receive(call.client, len(HELLO))
            assert call.let_go()
    assert path.fell_back("early") >= 10


# 4 and 14. A target that is gone.


def test_a_server_that_is_gone_makes_requests_pass_for_ever(path: KernelRig) -> None:
    """Trap 4: SK_DROP is sticky, so it is never returned. Trap 14: the application sees no error of ours."""
    for end in ("close", "shutdown", "reset"):
        call = path.carried()
        call.exchange()
        if end == "shutdown":
            call.server.shutdown(socket.SHUT_WR)
        elif end == "reset":
            call.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            call.server.close()
        else:
            call.server.close()
        for _ in range(5):
            call.client.sendall(GET)
            assert receive(call.agent_down, len(GET)) == GET
        assert call.take() is None


def test_a_client_that_is_gone_makes_replies_pass(path: KernelRig) -> None:
    call = path.carried()
    call.client.sendall(GET)
    receive(call.server, len(GET))
    call.client.close()
    call.server.sendall(HELLO[:-1])
    call.server.sendall(HELLO[-1:])
    assert receive(call.agent_up, len(HELLO)) == HELLO
    taken = call.take()
    assert taken
    assert (taken.head, taken.reply_bytes) == (GET, 0)


def test_a_server_that_leaves_the_map_makes_requests_pass(path: KernelRig) -> None:
    """Trap 4: the helper finds no socket and says SK_DROP; the program does not."""
    call = path.carried()
    call.exchange()
    path.path._sockets.delete(cookie(call.server).to_bytes(8, "little"))
    before = path.fell_back("gone")
    for _ in range(3):
        call.client.sendall(GET)
        assert receive(call.agent_down, len(GET)) == GET
        call.ledger[0] += len(GET)
        call.take()
        assert call.let_go()
    assert path.fell_back("gone") == before + 3


def test_the_sources_never_drop(path: KernelRig) -> None:
    """Traps 4 to 8: no SK_DROP, cork, apply_bytes, egress redirect or sk_skb program in the source or the object."""
    source = (ROOT / "bpf/verdict.bpf.c").read_text()
    code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("*", "/*")))
    for word in ("return SK_DROP", "bpf_msg_cork_bytes", "bpf_msg_apply_bytes", "bpf_sk_redirect", 'SEC("sk_skb'):
        assert word not in code
    assert code.count("bpf_msg_redirect_hash(") == code.count("BPF_F_INGRESS)") == 1
    shown = subprocess.run(["llvm-objdump", "-h", ROOT / "bpf/verdict.bpf.o"], capture_output=True, text=True, check=False)
    if shown.returncode == 0:
        assert "sk_msg" in shown.stdout
        assert "sk_skb" not in shown.stdout


# 9. Deleting loses what is queued.


def test_taking_the_wheel_deletes_nothing(path: KernelRig) -> None:
    """Trap 9: what is queued stays readable, and sockets are in the map until they close."""
    call = path.carried()
    call.client.sendall(post(1000) + b"x" * 1000)
    ours = {cookie(call.client), cookie(call.server)}
    assert call.take()
    call.wheel.close()
    assert ours <= path.cookies()
    assert receive(call.server, len(post(1000)) + 1000) == post(1000) + b"x" * 1000
    call.client.close()
    call.server.close()
    assert soon(lambda: not ours & path.cookies())


def test_what_is_queued_stays_readable_as_long_as_somebody_holds_the_map() -> None:
    """Trap 9: the agent's end closes its maps; the guard holds those of `KernelPath.sockets`."""
    rig = KernelRig()
    try:
        rig.start()
        call = rig.carried()
        call.client.sendall(GET)
        held = [os.dup(rig.path.sockets.fd)]
        client, server = call.client.dup(), call.server.dup()
    finally:
        rig.close()
    server.settimeout(PATIENCE)
    assert receive(server, len(GET)) == GET
    assert server.recv(1) == b"", "then the end that the agent's socket has sent"
    for fd in held:
        os.close(fd)
    client.close()
    server.close()


# 10. What the applications' system calls do.


def test_reading_calls_of_an_accelerated_socket(path: KernelRig) -> None:
    """Trap 10: MSG_WAITALL and SO_RCVLOWAT are ignored for carried bytes; peeking and polling are right.

    A workload that relies on them is not accelerated (and then not in the map: see test_kernel_path).
    """
    call = path.carried()
    call.client.sendall(post(5) + b"12345")
    assert call.server.recv(1000, socket.MSG_PEEK) == post(5) + b"12345"
    assert receive(call.server, len(post(5))) == post(5)
    assert select.select([call.server], [], [], 0)[0]
    assert call.server.recv(10, socket.MSG_WAITALL) == b"12345", "MSG_WAITALL does not wait"
    assert nothing_to_read(call.server)
    call.server.sendall(ok(10) + b"12345")
    assert call.client.recv(1000, socket.MSG_PEEK) == ok(10) + b"12345"
    assert receive(call.client, len(ok(10))) == ok(10)
    assert select.select([call.client], [], [], 0)[0]
    assert call.client.recv(10, socket.MSG_WAITALL) == b"12345", "MSG_WAITALL does not wait"
    assert nothing_to_read(call.client)
    call.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 5)
    call.server.sendall(b"6")
    assert select.select([call.client], [], [], 1)[0], "SO_RCVLOWAT does not wait"
    assert call.client.recv(10) == b"6"
    call.server.sendall(b"7890")
    assert call.client.recv(10) == b"7890"
    assert call.relayed_nothing()
    assert len(path.records()) == 1


def test_the_self_test_tells_the_truth_about_an_agents_connections(path: KernelRig) -> None:
    """Trap 10, and FIONREAD: each way to read is as right about injected bytes as about carried ones."""
    found = selftest.kernel_path().reading
    assert found is not None
    carried, relayed = path.carried(), path.call()
    open_calls: list[bytes] = []

    def carry() -> bytes:
        if open_calls:  # is answered, so that the next one can be carried
            carried.server.sendall(HELLO)
            assert receive(carried.client, len(HELLO)) == HELLO
        open_calls.append(post(1000) + bytes(1000))
        carried.client.sendall(open_calls[-1])
        return open_calls[-1]

    def relay() -> bytes:
        length = len(post(1000)) + 1000
        relayed.client.sendall(post(1000) + bytes(1000))
        data = relayed.up(length)
        relayed.server.recv(1, socket.MSG_PEEK)  # until it is there
        time.sleep(0.001)
        return data

    def reset() -> None:
        relayed.agent_up.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        relayed.agent_up.close()

    told = {name: getattr(found, name).carried for name in CALLS if name != "blocking"}
    assert try_calls(carried.server, carry) == told
    assert carried.relayed_nothing()
    assert try_calls(relayed.server, relay) == told
    assert try_blocking(relayed.server, reset) == found.blocking.carried


def test_a_blocking_read_may_give_up_and_loses_nothing(path: KernelRig) -> None:
    """What wakes it without bringing anything ends it on kernels so far: here room for what another thread sends."""
    call = path.carried()
    call.server.settimeout(None)
    got: list[bytes | None] = []

    def read() -> None:
        while not got or got[-1] is None:
            try:
                got.append(call.server.recv(1000))
            except BlockingIOError:
                got.append(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    sender = call.server.dup()
    sender.setblocking(False)
    with sender, contextlib.suppress(BlockingIOError):
        while True:
            sender.send(bytes(1 << 20))  # no reply: it goes to the agent, until its socket and ours are full
    assert not nothing_to_read(call.agent_up, PATIENCE)
    call.agent_up.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while call.agent_up.recv(1 << 20):
            pass
    call.agent_up.sendall(GET)
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert got[-1] == GET
    assert set(got[:-1]) <= {None}


def test_a_reader_that_waits_for_all_misses_carried_bytes(path: KernelRig) -> None:
    """Trap 10, a limit: having got relayed bytes it waits for TCP ones only. Once those or the end come, it loses nothing."""
    call = path.call()
    call.server.settimeout(None)  # recv waits in the kernel
    call.client.sendall(GET)
    call.up(len(GET))
    assert not nothing_to_read(call.server, PATIENCE)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(call.server.recv(2 * len(GET), socket.MSG_WAITALL)), daemon=True)
    reader.start()
    assert soon(lambda: nothing_to_read(call.server))
    assert call.let_go()
    call.client.sendall(GET)
    reader.join(0.2)
    assert call.relayed_nothing(), [why for why, n in path.path.fallbacks().items() if n]
    call.agent_up.shutdown(socket.SHUT_WR)
    reader.join(PATIENCE)
    assert not reader.is_alive()
    rest = b"" if len(got[0]) == 2 * len(GET) else receive(call.server, len(GET))
    assert got[0] + rest == 2 * GET


def test_splice_from_an_accelerated_socket_finds_nothing_or_everything(path: KernelRig) -> None:
    """Trap 10: on kernels so far splice(2) says EAGAIN though bytes are queued. They are not lost: read(2) has them."""
    call = path.carried()
    call.client.sendall(GET)
    reading, writing = os.pipe()
    call.server.setblocking(False)
    try:
        try:
            moved = os.splice(call.server.fileno(), writing, 1000, flags=2)
        except BlockingIOError:
            moved = 0
        got = os.read(reading, moved) if moved else b""
        assert got + (call.server.recv(1000) if not moved else b"") == GET
    finally:
        os.close(reading)
        os.close(writing)


# 11. Sockets that do not go with the map.


def test_an_mptcp_server_is_never_broken(path: KernelRig) -> None:
    """Trap 11: its connections with the agent are plain TCP. Carried or not, they work."""
    try:
        listener = path.server(path.orders, protocol=IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP in this kernel: {error}")
    call = path.call(listener=listener)
    if call.let_go():
        call.exchange()
    else:
        call.client.sendall(GET)
        call.up(len(GET))
        assert receive(call.server, len(GET)) == GET


def test_mptcp_sockets_are_never_enlisted(path: KernelRig) -> None:
    """Trap 11: a subflow between two MPTCP sockets, dialled as the agent would, stays out of the map."""
    try:
        listener = path.server(path.orders, protocol=IPPROTO_MPTCP)
        with path.agent.inside():
            up = path.client(path.agent, socket.AF_INET, protocol=IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP in this kernel: {error}")
    before = path.cookies()
    with path.agent.inside():
        up.connect(listener.getsockname())
    with listener.accept()[0] as server:
        up.sendall(GET)
        assert receive(server, len(GET)) == GET
        assert path.cookies() == before


def test_tls_in_the_kernel_does_not_break_a_socket(path: KernelRig) -> None:
    """Trap 11: whether the kernel lets an accelerated socket have it or not, what was carried stays right."""
    call = path.carried()
    call.exchange()
    with contextlib.suppress(OSError):  # no such module, or not with this kind of socket
        call.client.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    call.exchange()


# 13. Messages in pieces, and memory that changes.


@pytest.mark.parametrize("size", [100, 65536, 545_260, 545_261, 1 << 20, 3 << 20])
def test_large_replies_are_carried_whole(path: KernelRig, size: int) -> None:
    """Trap 13: a large send runs the program more than once, each time with a part."""
    call = path.carried()
    body = _pattern(size)
    call.client.sendall(GET)
    assert receive(call.server, len(GET)) == GET
    with _in_background(lambda: call.server.sendall(ok(size) + body)):
        assert receive(call.client, len(ok(size)) + size) == ok(size) + body
    assert call.relayed_nothing()
    assert [record.reply_bytes for record in path.records()] == [len(ok(size)) + size]


def _in_one_send(sock: socket.socket, request: bytes) -> int:
    return sock.send(request)


def _in_iovecs(sock: socket.socket, request: bytes) -> int:
    """As many as sendmsg(2) takes, the head in some of one byte."""
    edges = [*range(500), *range(500, len(request), len(request) // 500), len(request)]
    return sock.sendmsg([request[start:end] for start, end in pairwise(edges)])


def _from_a_file(sock: socket.socket, request: bytes) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(request)
        file.flush()
        return os.sendfile(sock.fileno(), file.fileno(), 0, len(request))


@pytest.mark.parametrize("how", [_in_one_send, _in_iovecs, _from_a_file])
@pytest.mark.parametrize("shorter", [0, 1, 30_000])
def test_a_request_in_many_pieces_of_memory_is_carried_whole(path: KernelRig, how, shorter: int) -> None:  # type: ignore[no-untyped-def]
    """Trap 13: the kernel has it in many pieces, of which the program sees the first."""
    call = path.carried()
    whole = PIPE_BYTES if how is _from_a_file else MESSAGE_BYTES
    size = whole - len(post(whole)) - shorter
    request = post(size) + _pattern(size)
    for _ in range(2):
        assert how(call.client, request) == len(request)
        assert call.state is abi.Wheel.WHEEL_WAIT
        assert receive(call.server, len(request)) == request
        call.server.sendall(HELLO)
        assert receive(call.client, len(HELLO)) == HELLO
    assert call.relayed_nothing()
    assert [record.request_bytes for record in path.records()] == [len(request)] * 2


@pytest.mark.parametrize("how", [_in_one_send, _in_iovecs])
@pytest.mark.parametrize("size", [557_056, 1 << 20])
def test_a_request_that_does_not_fit_goes_to_the_relay_whole(path: KernelRig, how, size: int) -> None:  # type: ignore[no-untyped-def]
    """Trap 13: the last part of a large send is as small as a request that is carried, and it may look like one."""
    call = path.carried()
    body = (GET * (size // len(GET) + 1))[:size]
    request = post(size) + body
    call.client.settimeout(None)  # it sends all of it
    with _in_background(lambda: how(call.client, request)):
        assert receive(call.agent_down, len(request)) == request
    assert nothing_to_read(call.server)
    assert call.take() is None
    assert path.records() == []


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_a_head_in_many_pieces_of_memory_is_judged_whole(path: KernelRig, piece: int) -> None:
    """Trap 13: sendmsg with an iovec for every few bytes."""
    call = path.carried()
    for head in (GET, noted(b"n" * 900)):
        for parts in (head, FORBIDDEN):
            pieces = [parts[at : at + piece] for at in range(0, len(parts), piece)][:1000]
            whole = b"".join(pieces)
            assert call.client.sendmsg(pieces) == len(whole)
            if whole != head:
                assert receive(call.agent_down, len(whole)) == whole
                call.ledger[0] += len(whole)
                call.take()
                call.let_go()
            else:
                assert receive(call.server, len(whole)) == whole
                call.server.sendall(HELLO)
                receive(call.client, len(HELLO))


def _memory(text: bytes) -> tuple[int, mmap.mmap]:
    fd = os.memfd_create("head")
    os.truncate(fd, mmap.PAGESIZE)
    memory = mmap.mmap(fd, mmap.PAGESIZE)
    memory[: len(text)] = text
    return fd, memory


def _by_sendfile(sock: socket.socket, fd: int, memory: mmap.mmap, length: int) -> None:
    assert os.sendfile(sock.fileno(), fd, 0, length) == length


def _by_splice(sock: socket.socket, fd: int, memory: mmap.mmap, length: int) -> None:
    reading, writing = os.pipe()
    assert os.splice(fd, writing, length, offset_src=0) == length
    assert os.splice(reading, sock.fileno(), length) == length
    os.close(reading)
    os.close(writing)


def _by_vmsplice(sock: socket.socket, fd: int, memory: mmap.mmap, length: int) -> None:
    class IoVec(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    reading, writing = os.pipe()
    view = (ctypes.c_char * length).from_buffer(memory)
    vector = IoVec(ctypes.addressof(view), length)
    assert ctypes.CDLL(None, use_errno=True).vmsplice(writing, ctypes.byref(vector), ctypes.c_size_t(1), 0) == length
    assert os.splice(reading, sock.fileno(), length) == length
    del view
    os.close(reading)
    os.close(writing)


def _by_zero_copy(sock: socket.socket, fd: int, memory: mmap.mmap, length: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    with memoryview(memory) as view:
        assert sock.send(view[:length], MSG_ZEROCOPY) == length


@pytest.mark.parametrize("how", [_by_sendfile, _by_splice, _by_vmsplice, _by_zero_copy])
@pytest.mark.parametrize("body", [0, 2000])
def test_what_was_judged_is_what_is_read_though_its_memory_changes(path: KernelRig, how, body: int) -> None:  # type: ignore[no-untyped-def]
    """Trap 13: a head that is sent from memory that the sender changes right after. The server must read what was judged."""
    call = path.carried()
    request = post(body) + b"b" * body
    fd, memory = _memory(request)
    other = request.replace(b"/a", b"/b")
    before = path.path.fallbacks()
    how(call.client, fd, memory, len(request))
    memory[: len(other)] = other
    assert path.path.fallbacks() == before, "it was carried"
    assert receive(call.server, len(request)) == request
    call.server.sendall(HELLO)
    receive(call.client, len(HELLO))
    assert [record.head[: record.head_length] for record in path.records()] == [post(body)]
    os.close(fd)


@pytest.mark.parametrize("how", [_by_sendfile, _by_splice, _by_vmsplice, _by_zero_copy])
def test_memory_that_changes_while_it_is_sent_is_judged_as_it_is_read(path: KernelRig, how) -> None:  # type: ignore[no-untyped-def]
    """Trap 13: a second thread flips one byte of the path all the time. Whatever reaches the server without the relay is /a."""
    call = path.carried()
    request = post(0)
    at = request.index(b"/a") + 1
    fd, memory = _memory(request)
    over = threading.Event()

    def flip() -> None:
        while not over.is_set():
            for _ in range(200):
                memory[at] = 0x62
                memory[at] = 0x61
            time.sleep(0.0001)

    flipper = threading.Thread(target=flip, daemon=True)
    flipper.start()
    try:
        for _ in range(300):
            how(call.client, fd, memory, len(request))
            ready = select.select([call.server, call.agent_down], [], [], PATIENCE)[0]
            if ready == [call.server]:
                assert receive(call.server, len(request)) == request
                call.server.sendall(HELLO)
                receive(call.client, len(HELLO))
            else:
                receive(call.agent_down, len(request))
                call.ledger[0] += len(request)
                call.take()
                call.let_go()
    finally:
        over.set()
        flipper.join()
    assert {record.head[: record.head_length] for record in path.records()} == {request}
    os.close(fd)


# 15. Bytes before a socket is in the map.


def test_fast_open_is_relayed(path: KernelRig) -> None:
    """Trap 15: with bytes in the SYN (or sent by sendto) the ledger never agrees."""
    listener = path.server(path.orders)
    client = path.client(path.web, socket.AF_INET)
    client.settimeout(None)
    with path.web.inside():
        assert client.sendto(GET, MSG_FASTOPEN, listener.getsockname()) == len(GET)
    call = path.dial(client, listener)
    assert call.let_go()
    client.sendall(GET)
    assert receive(call.agent_down, 2 * len(GET)) == 2 * GET
    assert nothing_to_read(call.server)


def test_sockets_are_in_the_map_before_their_first_byte(path: KernelRig) -> None:
    """Trap 15. A client that has just connected, a server that has just accepted."""
    listener = path.server(path.orders)
    client = path.connect(path.web, *listener.getsockname())
    assert cookie(client) in path.cookies()
    call = path.dial(client, listener)
    assert cookie(call.server) in path.cookies()


# 16. Half-closes.


def test_what_was_carried_is_read_before_the_end(path: KernelRig) -> None:
    """Trap 16: FIN goes by way of the relay; at the receiver it comes behind what is queued."""
    call = path.carried()
    call.client.sendall(GET)
    call.client.shutdown(socket.SHUT_WR)
    assert call.agent_down.recv(1) == b""
    taken = call.take()
    assert taken
    assert taken.head == GET
    call.agent_up.shutdown(socket.SHUT_WR)
    assert receive(call.server, len(GET)) == GET
    assert call.server.recv(1) == b""
    call.server.sendall(HELLO)
    call.down(len(HELLO))
    call.server.close()
    assert call.agent_up.recv(1) == b""
    call.agent_down.close()
    assert receive(call.client, len(HELLO)) == HELLO
    assert call.client.recv(1) == b""


def test_a_reply_that_was_carried_is_read_before_the_end(path: KernelRig) -> None:
    call = path.carried()
    call.client.sendall(GET)
    receive(call.server, len(GET))
    call.server.sendall(HELLO)
    call.server.close()
    assert call.agent_up.recv(1) == b""
    assert call.take() is None
    call.agent_down.shutdown(socket.SHUT_WR)
    with select.epoll() as poll:
        poll.register(call.client, select.EPOLLIN | select.EPOLLRDHUP)
        assert poll.poll(PATIENCE)[0][1] & select.EPOLLRDHUP
    assert receive(call.client, len(HELLO)) == HELLO
    assert call.client.recv(1) == b""


def test_a_reset_after_a_carried_reply_does_not_take_it_away(path: KernelRig) -> None:
    """As with TCP: what is in the receiver's queue can be read, then the reset is told."""
    call = path.carried()
    call.client.sendall(GET)
    receive(call.server, len(GET))
    call.server.sendall(HELLO)
    call.take()
    call.agent_down.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    call.agent_down.close()
    time.sleep(0.01)
    assert receive(call.client, len(HELLO)) == HELLO
    with pytest.raises(ConnectionResetError):
        call.client.recv(1)


# Between the verdict and the queue: what kernel-facts.md did not know.


def test_another_thread_is_carried_when_nobody_else_is_at_the_socket(path: KernelRig) -> None:
    call = path.carried()
    for _ in range(3):
        thread = threading.Thread(target=call.client.sendall, args=(GET,), daemon=True)
        thread.start()
        thread.join()
        assert receive(call.server, len(GET)) == GET
        call.server.sendall(HELLO)
        assert receive(call.client, len(HELLO)) == HELLO
    assert call.relayed_nothing()
    assert call.take() is None
    assert call.wheel.settled(Direction.REQUEST)


def test_another_thread_passes_while_a_system_call_on_the_socket_may_be_a_send(path: KernelRig) -> None:
    """The kernel lets go of a sender's socket between our verdict and the receiver's queue, so another thread's message could
    come first. Who waits for bytes to read looks like who sends: then only the same thread is carried on.
    """
    call = path.carried()
    call.client.settimeout(None)  # recv waits in the kernel
    got = bytearray()

    def read() -> None:
        while len(got) < 3 * len(HELLO):
            got.extend(call.client.recv(1000))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for _ in range(2):
        time.sleep(0.02)  # the reader is waiting again
        call.client.sendall(GET)
        assert receive(call.server, len(GET)) == GET
        call.server.sendall(HELLO)
    time.sleep(0.02)
    before = path.fell_back("senders")
    other = threading.Thread(target=call.client.sendall, args=(GET,), daemon=True)
    other.start()
    other.join()
    assert path.fell_back("senders") == before + 1
    assert call.take() is None
    assert not call.wheel.settled(Direction.REQUEST)
    call.up(len(GET))
    assert receive(call.server, len(GET)) == GET
    call.server.sendall(HELLO)
    call.down(len(HELLO))
    reader.join()
    assert call.wheel.settled(Direction.REQUEST)
    assert bytes(got) == HELLO * 3


def test_what_the_relay_writes_never_overtakes_what_another_thread_has_had_carried(path: KernelRig) -> None:
    """Two threads send a request each at the same time. One of them is carried, the other one is the relay's: it comes behind,
    and neither is torn.

    Python is too slow to provoke the race reliably; the test above is the one that fails without the guard.
    """
    call = path.carried()
    rounds = 400
    start = threading.Barrier(2, timeout=PATIENCE)
    requests = noted(b"a" * 50), noted(b"b" * 50)
    total = sum(map(len, requests))

    def send() -> None:
        for number in range(rounds):
            start.wait()
            for _ in range(number % 40):
                pass
            call.client.sendall(requests[1])
            start.wait()

    carried = 0
    with _in_background(send):
        for _ in range(rounds):
            start.wait()
            call.client.sendall(requests[0])
            start.wait()
            taken = call.take()
            first = taken.head if taken else b""
            carried += bool(taken)
            assert soon(lambda: call.wheel.settled(Direction.REQUEST))
            passed = call.up(total - len(first))
            assert first + passed in (b"".join(requests), b"".join(reversed(requests)))
            assert receive(call.server, total) == first + passed
            for _ in requests:
                call.server.sendall(HELLO)
                call.down(len(HELLO))
                assert receive(call.client, len(HELLO)) == HELLO
            assert call.let_go()
    assert carried > rounds // 2
