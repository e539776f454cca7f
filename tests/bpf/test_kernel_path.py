"""What the kernel carries, what it leaves to the relay, and what it says of it (docs/kernel-path.md)."""

import contextlib
import ctypes
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest

from bpf import abi
from parsers.contract import Direction
from proxy import wheel as wheel_module
from proxy.datapath import HEARTBEAT_LIMIT
from tests.bpf.kernel_rig import (
    CALL_HEAD,
    FORBIDDEN,
    GET,
    HEAD,
    HEAD_BYTES,
    HELLO,
    MESSAGE_BYTES,
    Call,
    KernelRig,
    automaton,
    cookie,
    noted,
    nothing_to_read,
    ok,
    post,
    receive,
    soon,
)
from tests.bpf.rig import CLIENT, OTHER, PATIENCE, REDIRECT, SERVER, free, rule


def test_calls_go_from_application_to_application_and_each_leaves_a_record(path: KernelRig) -> None:
    call = path.carried()
    before = time.monotonic_ns()
    for _ in range(3):
        call.exchange()
    after = time.monotonic_ns()
    assert call.relayed_nothing()
    records = path.records()
    assert [record.head[: record.head_length] for record in records] == [GET] * 3
    for record in records:
        assert (record.flow, record.client, record.generation) == (call.wheel.index, call.cookie, 1)
        assert (record.request_bytes, record.reply_bytes, record.status) == (len(GET), len(HELLO), 200)
        assert before <= record.began_ns <= record.ended_ns <= after
    assert [record.began_ns for record in records] == sorted(record.began_ns for record in records)


@pytest.mark.parametrize(("listen", "connect"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")])
def test_every_kind_of_address_is_carried(path: KernelRig, listen: str, connect: str) -> None:
    call = path.carried(host=listen, connect_to=connect)
    call.exchange()
    assert call.relayed_nothing()
    assert len(path.records()) == 1


def test_a_server_with_ipv4_mapped_addresses_is_carried(path: KernelRig) -> None:
    """It listens with one IPv6 socket for both; the agent dials it by IPv4 or by the mapped address."""
    with path.orders.inside():
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener:
        listener.settimeout(10)
        for to in ("127.0.0.1", "::ffff:127.0.0.1"):
            client = path.connect(path.web, to, listener.getsockname()[1])
            call = path.dial(client, listener, (to, listener.getsockname()[1]))
            assert call.let_go()
            call.exchange()
            assert call.relayed_nothing()


def test_a_server_of_several_listeners_on_one_port_is_carried(path: KernelRig) -> None:
    """SO_REUSEPORT: whichever socket accepts."""
    listeners = []
    for _ in range(2):
        with path.orders.inside():
            listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", listeners[0].getsockname()[1] if listeners else 0))
        listener.listen()
        listener.settimeout(10)
        listeners.append(listener)
    for _ in range(6):
        client = path.connect(path.web, *listeners[0].getsockname())
        agent_down, origin = path.accepted()
        assert origin
        wheel = path.wheels.wheel(origin.cookie)
        assert wheel
        up = path.client(path.agent, socket.AF_INET)
        wheel.mark(up)
        with path.agent.inside():
            up.connect(listeners[0].getsockname())
        ready = select.select(listeners, [], [], 10)[0]
        server = ready[0].accept()[0]
        wheel.give(path.table, path.wheels.generation, wheel_module.Ledger(0, 0))
        assert wheel.held
        client.sendall(GET)
        assert receive(server, len(GET)) == GET
        server.sendall(HELLO)
        assert receive(client, len(HELLO)) == HELLO
        assert nothing_to_read(agent_down)
        server.close()
    for listener in listeners:
        listener.close()
    assert len(path.records()) == 6


# Heads.


@pytest.mark.parametrize(
    ("sends", "reason"),
    [
        pytest.param([FORBIDDEN], "request", id="not allowed"),
        pytest.param([GET[:10], GET[10:]], "request", id="head in two sends"),
        pytest.param([GET + GET], "request", id="two heads in one send"),
        pytest.param([GET + b"x"], "request", id="more than the head"),
        pytest.param([post(5) + b"hellox"], "request", id="more than the body"),
        pytest.param([noted(b"x" * HEAD_BYTES)], "request", id="a head too long"),
        pytest.param([post(5)[:-2]], "request", id="all but the last line"),
    ],
)
def test_a_head_that_is_not_proven_is_the_relays(path: KernelRig, sends: list[bytes], reason: str) -> None:
    """Traps 5 and 6: no cork, no apply_bytes. A message is carried whole or passed whole."""
    call = path.carried()
    before = path.fell_back(reason)
    for data in sends:
        call.client.sendall(data)
    assert receive(call.agent_down, sum(map(len, sends))) == b"".join(sends)
    assert path.fell_back(reason) > before
    assert nothing_to_read(call.server)
    assert call.take() is None
    assert path.records() == []


def test_the_longest_head_is_carried(path: KernelRig) -> None:
    call = path.carried()
    longest = noted(b"x" * (HEAD_BYTES - len(noted(b""))))
    assert len(longest) == HEAD_BYTES
    call.exchange(longest)
    assert call.relayed_nothing()
    assert [record.head[: record.head_length] for record in path.records()] == [longest]


@pytest.mark.parametrize("body", [1, 1000, MESSAGE_BYTES - len(post(MESSAGE_BYTES))])
def test_a_request_with_all_of_its_body_in_one_send_is_carried(path: KernelRig, body: int) -> None:
    call = path.carried()
    request = post(body) + os.urandom(body)
    for _ in range(3):
        call.exchange(request)
    assert call.relayed_nothing()
    assert [(record.head[: record.head_length], record.request_bytes) for record in path.records()] == [
        (post(body), len(request))
    ] * 3


@pytest.mark.parametrize("body", [600_000, 1 << 20, 3 << 20])
def test_a_request_that_the_kernel_has_in_several_messages_is_the_relays(path: KernelRig, body: int) -> None:
    call = path.carried()
    request = post(body) + os.urandom(body)
    before = path.fell_back("request")
    with _sending(call.client, request):
        assert receive(call.agent_down, len(request)) == request
    assert path.fell_back("request") == before + 1, "what comes behind it is not even looked at"
    assert call.state is abi.Wheel.WHEEL_IDLE
    assert nothing_to_read(call.server)
    assert call.take() is None
    assert path.records() == []


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([len(post(1000))], id="the head and the body"),
        pytest.param([len(post(1000)) + 999], id="all but the last byte"),
        pytest.param([len(post(1000)) + 300, len(post(1000)) + 600], id="a part of the body with the head"),
        pytest.param(range(100, len(post(1000)) + 1000, 100), id="many sends"),
    ],
)
def test_a_request_in_several_sends_is_the_relays(path: KernelRig, cuts: Iterable[int]) -> None:
    call = path.carried()
    request = post(1000) + os.urandom(1000)
    edges = [0, *cuts, len(request)]
    before = path.fell_back("request")
    for start, end in pairwise(edges):
        call.client.sendall(request[start:end])
        assert call.state is abi.Wheel.WHEEL_IDLE
    assert path.fell_back("request") == before + 1
    assert nothing_to_read(call.server)
    assert call.up(len(request)) == request
    assert receive(call.server, len(request)) == request
    assert call.take() is None
    assert path.records() == []
    call.server.sendall(HELLO)
    assert call.down(len(HELLO)) == HELLO
    assert receive(call.client, len(HELLO)) == HELLO
    assert call.let_go()
    call.exchange(request)
    assert len(path.records()) == 1


@pytest.mark.parametrize("taken", [False, True])
def test_a_body_that_looks_like_a_request_is_never_taken_for_one(path: KernelRig, taken: bool) -> None:
    """It comes alone, behind a head that went to the relay, whether the relay has read that head yet or not."""
    call = path.carried()
    call.client.sendall(post(len(GET)))
    if taken:
        assert call.up(len(post(len(GET)))) == post(len(GET))
        assert call.take() is None
    before = path.fell_back("off" if taken else "ledger")
    call.client.sendall(GET)
    assert path.fell_back("off" if taken else "ledger") == before + 1
    rest = GET if taken else post(len(GET)) + GET
    assert call.up(len(rest)) == rest
    assert receive(call.server, len(post(len(GET)) + GET)) == post(len(GET)) + GET
    assert call.take() is None
    assert path.records() == []


@contextlib.contextmanager
def _sending(sock: socket.socket, data: bytes) -> Iterator[None]:
    """Send ``data`` in one call of a thread, which is over at the end."""
    thread = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_more_behind_a_whole_request_is_the_relays_and_the_open_call_with_it(path: KernelRig) -> None:
    call = path.carried()
    call.client.sendall(post(5) + b"hello")
    before = path.fell_back("early")
    call.client.sendall(b"more" + GET)
    assert path.fell_back("early") == before + 1
    assert receive(call.agent_down, 4 + len(GET)) == b"more" + GET
    taken = call.take()
    assert taken is not None
    assert (taken.head, taken.request_bytes, taken.reply_head, taken.reply_bytes) == (post(5), len(post(5)) + 5, b"", 0)
    assert receive(call.server, len(post(5)) + 5) == post(5) + b"hello"
    assert nothing_to_read(call.server)
    assert path.records() == []


# Replies.


@pytest.mark.parametrize("pieces", [1, 2, 7, 100])
def test_a_reply_may_come_in_any_number_of_sends(path: KernelRig, pieces: int) -> None:
    call = path.carried()
    body = os.urandom(100_000)
    size = len(body) // pieces + 1
    for _ in range(2):
        call.client.sendall(GET)
        assert receive(call.server, len(GET)) == GET
        call.server.sendall(ok(len(body)))
        assert call.state is abi.Wheel.WHEEL_REPLY
        for at in range(0, len(body), size):
            call.server.sendall(body[at : at + size])
        assert call.state is abi.Wheel.WHEEL_IDLE
        assert receive(call.client, len(ok(len(body))) + len(body)) == ok(len(body)) + body
    assert call.relayed_nothing()
    assert [record.reply_bytes for record in path.records()] == [len(ok(len(body))) + len(body)] * 2


@pytest.mark.parametrize(
    ("request_head", "reply", "status"),
    [
        pytest.param(HEAD, ok(1000), 200, id="HEAD"),
        pytest.param(GET, b"HTTP/1.1 204 No Content\r\n\r\n", 204, id="204"),
        pytest.param(GET, b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, id="304"),
        pytest.param(GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, id="304 with a length"),
        pytest.param(GET, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, id="404"),
    ],
)
def test_a_reply_without_a_body_ends_with_its_head(path: KernelRig, request_head: bytes, reply: bytes, status: int) -> None:
    call = path.carried()
    for _ in range(2):
        call.exchange(request_head, reply)
    assert call.relayed_nothing()
    assert [(record.status, record.reply_bytes) for record in path.records()] == [(status, len(reply))] * 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", "reply", id="until close"),
        pytest.param(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "reply", id="unknown head"),
        pytest.param(HELLO[:9], "reply", id="part of a head"),
        pytest.param(HELLO + b"x", "overrun", id="more than its body"),
        pytest.param(HELLO + HELLO, "overrun", id="two replies"),
    ],
)
def test_a_reply_that_is_not_proven_is_the_relays_with_the_open_call(path: KernelRig, reply: bytes, reason: str) -> None:
    call = path.carried()
    call.client.sendall(GET)
    assert receive(call.server, len(GET)) == GET
    before = path.fell_back(reason)
    call.server.sendall(reply)
    assert receive(call.agent_up, len(reply)) == reply
    assert path.fell_back(reason) > before
    taken = call.take()
    assert taken is not None
    assert (taken.head, taken.request_bytes) == (GET, len(GET))
    assert (taken.reply_head, taken.reply_bytes, taken.status) == (b"", 0, 0)
    assert path.records() == []
    assert nothing_to_read(call.client)


def test_more_than_the_reply_in_a_later_send_is_the_relays_with_the_open_call(path: KernelRig) -> None:
    call = path.carried()
    call.client.sendall(GET)
    receive(call.server, len(GET))
    call.server.sendall(HELLO[:-2])
    call.server.sendall(HELLO[-2:] + b"more")
    assert receive(call.agent_up, 6) == HELLO[-2:] + b"more"
    taken = call.take()
    assert taken is not None
    assert (taken.reply_head, taken.reply_bytes, taken.status) == (ok(5), len(HELLO) - 2, 200)
    assert receive(call.client, len(HELLO) - 2) == HELLO[:-2]


def test_a_reply_before_the_end_of_the_request_is_the_relays(path: KernelRig) -> None:
    """The request has gone to the relay, in part: the reply goes there, too, and so does the rest."""
    call = path.carried()
    call.client.sendall(post(10) + b"12345")
    call.up(len(post(10)) + 5)
    assert receive(call.server, len(post(10)) + 5) == post(10) + b"12345"
    before = path.fell_back("early")
    call.server.sendall(HELLO)
    assert path.fell_back("early") == before + 1
    assert receive(call.agent_up, len(HELLO)) == HELLO
    assert nothing_to_read(call.client)
    call.client.sendall(b"67890")
    assert receive(call.agent_down, 5) == b"67890"
    assert nothing_to_read(call.server)
    assert call.take() is None
    assert path.records() == []


def test_words_of_a_server_that_nobody_asked_are_the_relays(path: KernelRig) -> None:
    call = path.carried()
    call.exchange()
    call.server.sendall(b"by the way")
    assert receive(call.agent_up, 10) == b"by the way"
    assert call.take() is None
    assert len(path.records()) == 1


def test_a_pipelined_request_is_the_relays_and_the_open_call_with_it(path: KernelRig) -> None:
    call = path.carried()
    call.client.sendall(GET)
    call.client.sendall(noted(b"second"))
    assert receive(call.agent_down, len(noted(b"second"))) == noted(b"second")
    taken = call.take()
    assert taken is not None
    assert taken.head == GET
    call.give_server(noted(b"second"))
    assert receive(call.server, len(GET) + len(noted(b"second"))) == GET + noted(b"second")


# The wheel.


def test_what_the_relay_takes_goes_its_way_until_it_lets_go_again(path: KernelRig) -> None:
    call = path.call()
    for _ in range(3):
        call.client.sendall(GET)
        call.up(len(GET))
        assert receive(call.server, len(GET)) == GET
        call.server.sendall(HELLO)
        call.down(len(HELLO))
        assert receive(call.client, len(HELLO)) == HELLO
        assert call.let_go()
        call.exchange()
        assert call.relayed_nothing()
        assert call.take() is None
    assert len(path.records()) == 3


def test_an_open_call_is_taken_with_the_wheel_at_every_stage(path: KernelRig) -> None:
    call = path.carried()
    call.client.sendall(post(4) + b"ab")
    assert call.take() is None, "of a request in part there is nothing but what the relay reads"
    assert call.state is abi.Wheel.WHEEL_OFF
    call.client.sendall(b"cd")
    call.up(len(post(4)) + 4)
    assert receive(call.server, len(post(4)) + 4) == post(4) + b"abcd"
    call.server.sendall(HELLO)
    call.down(len(HELLO))
    receive(call.client, len(HELLO))
    assert call.let_go()
    call.client.sendall(post(4) + b"abcd")
    assert call.state is abi.Wheel.WHEEL_WAIT
    taken = call.take()
    assert taken
    assert (taken.head, taken.request_bytes) == (post(4), len(post(4)) + 4)
    assert (taken.reply_head, taken.reply_bytes, taken.status) == (b"", 0, 0)
    assert call.state is abi.Wheel.WHEEL_OFF
    assert receive(call.server, len(post(4)) + 4) == post(4) + b"abcd"
    call.server.sendall(HELLO)
    call.down(len(HELLO))
    receive(call.client, len(HELLO))
    assert call.let_go()
    call.client.sendall(GET)
    receive(call.server, len(GET))
    call.server.sendall(HELLO[:-1])
    taken = call.take()
    assert taken
    assert (taken.head, taken.reply_head, taken.reply_bytes, taken.status) == (GET, ok(5), len(HELLO) - 1, 200)
    assert call.take() is None


def test_without_room_for_its_record_a_call_is_the_relays(path: KernelRig) -> None:
    """A full ring: the end of the reply passes, and the call is taken with the wheel."""
    call = path.carried()
    big = noted(b"x" * (HEAD_BYTES - len(noted(b""))))
    room = abi.PathLimit.RING_BYTES // (CALL_HEAD + HEAD_BYTES + 8)
    for _ in range(room):
        call.exchange(big)
    before = path.fell_back("records")
    call.client.sendall(big)
    receive(call.server, len(big))
    call.server.sendall(HELLO)
    assert receive(call.agent_up, len(HELLO)) == HELLO
    assert path.fell_back("records") > before
    taken = call.take()
    assert taken
    assert (taken.head, taken.reply_bytes, taken.reply_head) == (big, 0, b"")
    assert nothing_to_read(call.client)
    assert len(path.records()) == room
    call.give_client(HELLO)
    receive(call.client, len(HELLO))
    call.ledger = [0, len(HELLO)]
    assert call.let_go()
    call.exchange()
    assert len(path.records()) == 1


def test_the_last_part_of_a_reply_without_room_for_the_record_is_the_relays(path: KernelRig) -> None:
    call = path.carried()
    big = noted(b"x" * (HEAD_BYTES - len(noted(b""))))
    for _ in range(abi.PathLimit.RING_BYTES // (CALL_HEAD + HEAD_BYTES + 8)):
        call.exchange(big)
    call.client.sendall(big)
    receive(call.server, len(big))
    call.server.sendall(HELLO[:-1])
    call.server.sendall(HELLO[-1:])
    assert receive(call.agent_up, 1) == HELLO[-1:]
    taken = call.take()
    assert taken
    assert (taken.reply_head, taken.reply_bytes, taken.status) == (ok(5), len(HELLO) - 1, 200)
    assert receive(call.client, len(HELLO) - 1) == HELLO[:-1]


def test_a_flows_number_is_used_again_while_the_old_client_is_still_there(path: KernelRig) -> None:
    """The old socket remembers the number; the cookie tells that it is no longer its own."""
    old = path.carried()
    old.exchange()
    assert old.take() is None
    assert len(path.records()) == 1  # before, the number stays its own
    old.wheel.close()
    new = path.carried()
    assert new.wheel.index == old.wheel.index
    old.client.sendall(GET)
    assert receive(old.agent_down, len(GET)) == GET
    old.server.sendall(HELLO)
    assert receive(old.agent_up, len(HELLO)) == HELLO
    new.exchange()
    old.client.sendall(GET)
    assert receive(old.agent_down, len(GET)) == GET
    assert nothing_to_read(new.server)
    assert len(path.records()) == 1


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_client_that_connects_anew_is_nobodys_until_the_agent_names_it(path: KernelRig, accelerated: bool) -> None:
    """The same socket, and so the same cookie, with another connection: the old one's flow is none of its business."""
    old = path.carried()
    old.exchange()
    client = old.client
    if not accelerated:
        path.install(free(CLIENT), free(SERVER))
        path.renew_table()
        old.take()
        assert old.let_go()
    other = path.server(path.orders)
    with path.web.inside():
        disconnect(client)
        client.connect(other.getsockname())
    client.sendall(GET)
    if accelerated:
        peer, origin = path.accepted()
        assert origin
        assert origin.cookie == old.cookie
    else:
        peer = other.accept()[0]
    peer.settimeout(10)
    with peer:
        assert receive(peer, len(GET)) == GET
    assert nothing_to_read(old.server)
    assert (old.cookie in path.cookies()) is accelerated, "without, it is a socket like any other"


def disconnect(sock: socket.socket) -> None:
    unspecified = (ctypes.c_char * 16)()  # AF_UNSPEC
    assert ctypes.CDLL(None, use_errno=True).connect(sock.fileno(), unspecified, 16) == 0, os.strerror(ctypes.get_errno())


def test_who_is_not_to_be_accelerated_is_not_in_the_map(path: KernelRig) -> None:
    """Trap 10's way out: splice and its relatives work as ever for a workload without the flag."""
    plain = path.cgroup("plain", OTHER)
    path.install(rule(CLIENT, SERVER, REDIRECT), rule(OTHER, SERVER, REDIRECT), free(SERVER))
    listener = path.server(path.orders)
    client = path.connect(plain, *listener.getsockname())
    path.accepted()
    assert cookie(client) not in path.cookies()
    accelerated = path.call()
    assert {cookie(accelerated.client), cookie(accelerated.server)} <= path.cookies()
    assert not {cookie(accelerated.agent_down), cookie(accelerated.agent_up)} & path.cookies()


def test_a_server_that_the_agent_did_not_dial_is_not_in_the_map(path: KernelRig) -> None:
    before = path.cookies()
    listener = path.server(path.orders)
    with path.agent.inside():
        up = path.client(path.agent, socket.AF_INET)
        up.connect(listener.getsockname())
    server = listener.accept()[0]
    with server:
        assert path.cookies() == before
        with path.web.inside():
            pass


# Heartbeat and generation (trap 18).


def test_without_a_heartbeat_requests_pass_and_replies_to_judged_ones_are_carried(path: KernelRig) -> None:
    call = path.carried()
    call.client.sendall(GET)
    receive(call.server, len(GET))
    path.stop_heart()
    time.sleep(HEARTBEAT_LIMIT + 0.2)
    call.server.sendall(HELLO)
    assert receive(call.client, len(HELLO)) == HELLO
    before = path.fell_back("stale")
    call.client.sendall(GET)
    assert receive(call.agent_down, len(GET)) == GET
    assert path.fell_back("stale") > before
    path.start_heart()
    assert call.take() is None
    call.ledger[0] += len(GET)
    assert call.let_go()
    call.exchange()


def test_a_new_policy_is_asked_about_the_next_message(path: KernelRig) -> None:
    """Trap 18. The reply to what was judged still comes, whether it has begun or not; the next request is not carried."""
    call, asked, answering = path.carried(), path.carried(), path.carried()
    call.exchange()
    for one in (asked, answering):
        one.client.sendall(post(4) + b"abcd")
        assert receive(one.server, len(post(4)) + 4) == post(4) + b"abcd"
    answering.server.sendall(HELLO[:-2])
    path.install(rule(CLIENT, SERVER, REDIRECT), free(SERVER))
    asked.server.sendall(HELLO)
    answering.server.sendall(HELLO[-2:])
    for one in (asked, answering):
        assert receive(one.client, len(HELLO)) == HELLO
        assert one.relayed_nothing()
    assert len(path.records()) == 3
    before = path.fell_back("stale")
    for one in (call, asked, answering):
        one.client.sendall(post(4) + b"abcd")
        assert receive(one.agent_down, len(post(4)) + 4) == post(4) + b"abcd"
        assert nothing_to_read(one.server)
        assert one.take() is None
    assert path.fell_back("stale") == before + 3
    assert path.records() == []


def test_rows_that_are_written_anew_never_prove_anything_of_an_older_generation(path: KernelRig) -> None:
    """The automaton of a flow changes under it, again and again, while it sends: the new one would allow it."""
    lenient = automaton([b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"])
    call = path.carried()
    for _ in range(20):
        path.install(rule(CLIENT, SERVER, REDIRECT), free(SERVER))
        path.renew_table(lenient)
        call.client.sendall(FORBIDDEN)
        assert receive(call.agent_down, len(FORBIDDEN)) == FORBIDDEN
        assert nothing_to_read(call.server, 0.001)
        call.ledger[0] += len(FORBIDDEN)
        assert call.take() is None
        assert call.let_go(generation=path.wheels.generation - 1)
    assert path.records() == []
    assert call.take() is None
    assert call.let_go()
    call.exchange(FORBIDDEN)


# The ledger.


@pytest.mark.parametrize("off", [0, 1])
@pytest.mark.parametrize("by", [1, -1, 1 << 16])
def test_a_ledger_that_does_not_agree_carries_nothing(path: KernelRig, off: int, by: int) -> None:
    call = path.call()
    call.client.sendall(GET)
    call.up(len(GET))
    receive(call.server, len(GET))
    call.server.sendall(HELLO)
    call.down(len(HELLO))
    receive(call.client, len(HELLO))
    call.ledger[off] += by
    assert call.let_go()
    call.client.sendall(GET)
    if off == 0:  # what is said of the client's bytes
        assert receive(call.agent_down, len(GET)) == GET
        return
    assert receive(call.server, len(GET)) == GET
    call.server.sendall(HELLO)
    assert receive(call.agent_up, len(HELLO)) == HELLO


def test_the_ledger_wraps_with_the_sequence_numbers(path: KernelRig) -> None:
    """It counts modulo 2^32, as TCP does: a ledger a whole turn further on says the same."""
    call = path.call()
    call.ledger = [1 << 32, 1 << 40]
    assert call.let_go()
    call.exchange()
    assert call.relayed_nothing()
    call.take()
    call.ledger = [(1 << 32) - 1, 0]
    assert call.let_go()
    call.client.sendall(GET)
    assert receive(call.agent_down, len(GET)) == GET


def test_while_the_relay_owes_a_reply_requests_are_carried_and_replies_are_not(path: KernelRig) -> None:
    """The client may go on as soon as it has a reply, which the relay sends when the kernel has the wheel already."""
    call = path.call()
    for _ in range(2):
        call.client.sendall(GET)
        call.up(len(GET))
        receive(call.server, len(GET))
        call.server.sendall(HELLO)
        reply = receive(call.agent_up, len(HELLO))
        call.ledger[1] += len(HELLO)
        assert call.let_go(owed=True)
        call.client.sendall(GET)
        assert receive(call.server, len(GET)) == GET
        before = path.fell_back("owed")
        call.server.sendall(HELLO)
        assert path.fell_back("owed") == before + 1
        call.give_client(reply)
        assert call.take()
        assert call.down(len(HELLO)) == HELLO
        assert receive(call.client, 2 * len(HELLO)) == 2 * HELLO
    assert call.let_go(owed=True)
    call.wheel.owe_nothing()
    call.exchange()
    assert call.relayed_nothing()


# Who wins when both want the wheel.


def test_taking_the_wheel_in_the_middle_of_traffic_loses_nothing(path: KernelRig) -> None:
    """A ping-pong in another process, which checks every byte; here the wheel is let go and taken at any moment, and what
    passes is relayed.
    """
    call = path.call()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _ping_pong(call.client, call.server, 10_000)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    turns = taken = opened = relayed = carried = 0
    deadline = time.monotonic() + 60
    ended, status = 0, 0
    try:
        while not ended:
            assert time.monotonic() < deadline
            turns += 1
            if turns % 16 == 0:
                ended, status = os.waitpid(child, os.WNOHANG)
            readable = select.select([call.agent_down, call.agent_up], [], [], 0)[0]
            carried += len(path.records())
            if not readable and not call.wheel.held:
                assert call.let_go()
            elif call.wheel.held and (readable or turns % 7 == 0):
                taken += 1
                opened += call.take() is not None
            if readable:
                assert soon(lambda: all(map(call.wheel.settled, Direction)))
                relayed += _relay(call, readable)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "what arrived was not what was sent"
    print(
        f"{turns} turns, taken {taken} times, {opened} of them with an open call; {carried} calls carried, {relayed} bytes not"
    )
    assert min(carried, opened, relayed) > 0, "each of it has happened, however little this process ran"


def _relay(call: Call, readable: list[socket.socket]) -> int:
    relayed = 0
    for source, give, read in ((call.agent_down, call.give_server, 0), (call.agent_up, call.give_client, 1)):
        if source in readable and (data := source.recv(65536)):
            call.ledger[read] += len(data)
            give(data)
            relayed += len(data)
    return relayed


def _ping_pong(client: socket.socket, server: socket.socket, rounds: int) -> None:
    for number in range(rounds):
        request = noted(b"%d" % number) if number % 3 else post(number % 50) + b"x" * (number % 50)
        client.sendall(request)
        assert receive(server, len(request)) == request
        reply = ok(number % 100) + b"y" * (number % 100)
        for at in range(0, len(reply), 60):
            server.sendall(reply[at : at + 60])
        assert receive(client, len(reply)) == reply


def test_two_threads_on_one_socket_lose_nothing_and_mix_no_messages(path: KernelRig) -> None:
    call = path.carried()
    messages = 400

    def send(letter: bytes) -> None:
        for _ in range(messages):
            call.client.sendall(noted(letter * 50))

    threads = [threading.Thread(target=send, args=(letter,), daemon=True) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    size = len(noted(b"a" * 50))
    got = 0
    ways = [call.server, call.agent_down]
    while got < 2 * messages:
        for sock in select.select(ways, [], [], 10)[0]:
            assert receive(sock, size) in (noted(b"a" * 50), noted(b"b" * 50))
            got += 1
            if sock is call.server:
                call.server.sendall(HELLO)
    for thread in threads:
        thread.join()
    assert soon(call.relayed_nothing)
