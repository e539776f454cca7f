"""Requests that are frames: carried if they begin like one that was judged, many at a time, answered in their order.

The protocol here is made up: a length, four bytes of what is asked, a number, a name, and anything. Replies are a length, the
number of the request, and anything.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import abi
from parsers.contract import KEPT_BYTES, Direction, Prefix
from proxy import wheel as wheel_module
from tests.bpf.kernel_rig import HEAD_BYTES, Call, KernelRig, nothing_to_read, receive
from tests.bpf.rig import CLIENT, REDIRECT, SERVER, free, rule

ASKED = b"\0\0\0\7"
PIPELINE, PREFIXES = abi.PathLimit.PIPELINE, abi.PathLimit.PREFIXES
TCP_MEMORY = Path("/sys/fs/cgroup/memory")  # cgroup v1, whose groups have a limit for the memory of TCP


def request(number: int, name: bytes = b"orders", more: bytes = b"") -> bytes:
    rest = ASKED + number.to_bytes(4, "big") + name + more
    return len(rest).to_bytes(4, "big") + rest


def reply(number: int, more: bytes = b"done") -> bytes:
    return (4 + len(more)).to_bytes(4, "big") + number.to_bytes(4, "big") + more


def prefix(name: bytes = b"orders") -> Prefix:
    same = b"\xff" * 4
    return Prefix(bytes(4) + ASKED + bytes(4) + name, bytes(4) + same + bytes(4) + b"\xff" * len(name))


ORDERS = prefix()
SIZE = len(request(0))


def said(record: abi.Call) -> bytes:
    """The beginning of the reply, which stands behind that of the request."""
    return (record.head + record.reply_head)[record.head_length :][: record.reply_head_length]


@pytest.fixture
def call(path: KernelRig) -> Call:
    """A connection of which the kernel has the wheel."""
    made = path.call()
    assert made.let_go(prefixes=[ORDERS])
    return made


def pass_one(call: Call, number: int, more: bytes = b"") -> None:
    call.exchange(request(number, more=more), reply(number))


def is_the_relays(call: Call, data: bytes) -> bool:
    call.client.sendall(data)
    return receive(call.agent_down, len(data)) == data and nothing_to_read(call.server)


def test_a_frame_that_begins_like_a_judged_one_is_carried_whatever_follows(path: KernelRig, call: Call) -> None:
    for number, more in enumerate((b"", b"x", os.urandom(1000), os.urandom(100_000), os.urandom(500_000))):
        pass_one(call, number, more)
    assert call.relayed_nothing()
    assert [record.request_bytes for record in path.records()] == [SIZE + n for n in (0, 1, 1000, 100_000, 500_000)]


def test_the_record_of_a_frame_has_what_was_judged_and_the_beginning_of_the_reply(path: KernelRig, call: Call) -> None:
    long = reply(8, os.urandom(5000))
    call.exchange(request(7, more=b"abc"), reply(7, b"fine"))
    call.exchange(request(8), long)
    short_record, long_record = path.records()
    assert short_record.head[: short_record.head_length] == request(7, more=b"abc")[:SIZE]
    assert said(short_record) == reply(7, b"fine")
    assert said(long_record) == long[:KEPT_BYTES]
    assert long_record.reply_bytes == len(long)


@pytest.mark.parametrize(
    "data",
    [
        request(1, b"others"),
        request(1, b"order"),
        request(1)[:12],
        request(1, more=b"abc")[:-1],
        request(1, more=b"abc") + b"d",
        request(1) + request(2),
        request(1).replace(ASKED, b"\0\0\0\x08"),
        b"\xff" * 4 + request(1)[4:],
        b"\0" * 4 + request(1)[4:],
        b"x",
    ],
    ids=["another name", "shorter", "no name", "cut", "too long", "two", "asks else", "negative", "empty", "one byte"],
)
def test_whatever_else_is_sent_is_the_relays(call: Call, data: bytes) -> None:
    assert is_the_relays(call, data)
    assert call.take() is None


def test_bits_that_the_mask_leaves_out_do_not_matter(path: KernelRig) -> None:
    call = path.call()
    mask = bytearray(ORDERS.mask)
    mask[-1] = 0xF0
    data = bytearray(ORDERS.data)
    data[-1] &= 0xF0
    assert call.let_go(prefixes=[Prefix(bytes(data), bytes(mask))])
    call.exchange(request(1, b"order\x70"), reply(1))
    call.exchange(request(2, b"order\x7f"), reply(2))
    assert is_the_relays(call, request(3, b"order\x80"))


def test_any_of_several_prefixes_will_do_and_the_longest_has_all_the_bytes_that_are_kept(path: KernelRig) -> None:
    names = [b"n%d" % number + b"x" * (HEAD_BYTES - 14) for number in range(PREFIXES)]
    call = path.call()
    assert call.let_go(prefixes=[prefix(name) for name in names])
    for number, name in enumerate(names):
        call.exchange(request(number, name, b"rest"), reply(number))
    assert call.relayed_nothing()
    assert is_the_relays(call, request(9, names[0][:-1] + b"y"))


def test_prefixes_are_exchanged_when_the_agent_lets_go_again(path: KernelRig, call: Call) -> None:
    assert call.take() is None
    assert call.let_go(prefixes=[prefix(b"a"), prefix(b"bb")])
    call.exchange(request(1, b"bb"), reply(1))
    assert call.take() is None
    assert call.let_go(prefixes=[prefix(b"a")])
    call.exchange(request(2, b"a"), reply(2))
    assert is_the_relays(call, request(3, b"bb"))


def test_frames_of_a_connection_that_is_over_mean_nothing_to_the_next_one(path: KernelRig, call: Call) -> None:
    index = call.wheel.index
    call.wheel.close()
    following = path.call()
    assert following.wheel.index == index
    assert following.let_go(prefixes=[prefix(b"a")])
    assert is_the_relays(following, request(1))
    following.wheel.close()
    for table, size in ((path.wheels.prefixes, PREFIXES), (path.wheels.calls, PIPELINE)):
        assert all(table.get((index * size + number).to_bytes(4, "little")) is None for number in range(size))


def test_without_room_for_its_calls_a_connection_stays_with_the_relay(path: KernelRig, monkeypatch: pytest.MonkeyPatch) -> None:
    call = path.call()

    def full(*_: object) -> None:
        raise wheel_module.BpfError("the map is full")

    with monkeypatch.context() as patch:
        patch.setattr(path.wheels.callers, "set", full)
        assert not call.let_go(prefixes=[ORDERS])
    assert path.wheels.prefixes.get((call.wheel.index * PREFIXES).to_bytes(4, "little")) is None
    assert is_the_relays(call, request(1))


# Several at a time.


def test_requests_may_come_before_replies_and_are_answered_in_order(path: KernelRig, call: Call) -> None:
    for number in range(PIPELINE):
        call.client.sendall(request(number))
    for number in range(PIPELINE):
        assert receive(call.server, SIZE) == request(number)
        call.server.sendall(reply(number))
        assert receive(call.client, 12) == reply(number)
    assert call.relayed_nothing()
    assert [int.from_bytes(record.head[8:12], "big") for record in path.records()] == list(range(PIPELINE))
    assert call.state is abi.Wheel.WHEEL_IDLE


def test_one_more_than_there_is_room_for_is_the_relays_with_all_that_are_open(path: KernelRig, call: Call) -> None:
    for number in range(3):  # so that the places are not in the order of the calls
        pass_one(call, 100 + number)
    for number in range(PIPELINE):
        call.client.sendall(request(number, more=b"x" * number))
    before = path.fell_back("pipeline")
    call.client.sendall(request(PIPELINE))
    assert path.fell_back("pipeline") == before + 1
    assert receive(call.agent_down, SIZE) == request(PIPELINE)
    taken = call.wheel.take()
    assert [(one.head, one.request_bytes) for one in taken] == [
        (request(number, more=b"x" * number)[:SIZE], SIZE + number) for number in range(PIPELINE)
    ]
    assert all((one.reply_head, one.reply_bytes) == (b"", 0) for one in taken)


def test_with_the_wheel_goes_the_reply_that_has_begun_and_what_waits_behind_it(call: Call) -> None:
    answer = reply(1, os.urandom(3000))
    for number in (1, 2, 3):
        call.client.sendall(request(number))
    call.server.sendall(answer[:2000])
    assert receive(call.client, 2000) == answer[:2000]
    first, *others = call.wheel.take()
    assert (first.reply_head, first.reply_bytes) == (answer[:KEPT_BYTES], 2000)
    assert [(one.head, one.reply_head) for one in others] == [(request(2), b""), (request(3), b"")]


def test_a_reply_may_come_in_any_number_of_sends_while_requests_go_on(path: KernelRig, call: Call) -> None:
    answer = reply(1, os.urandom(3000))
    call.client.sendall(request(1))
    for at in range(0, len(answer), 500):
        call.server.sendall(answer[at : at + 500])
        call.client.sendall(request(2 + at))
    assert receive(call.client, len(answer)) == answer
    assert call.relayed_nothing()
    assert call.state is abi.Wheel.WHEEL_WAIT
    assert [record.reply_bytes for record in path.records()] == [len(answer)]


@pytest.mark.parametrize(
    "said",
    [
        reply(2),
        reply(1)[:7],
        reply(1) + reply(2),
        reply(1, b"x" * 1000)[:500],
        reply(1, b"x" * 5000)[:23],
        b"\xff\xff\xff\xff" + reply(1)[4:],
        b"\xff\xff\xff\xff" + reply(1, bytes(1000))[4:],
        b"\0\0\0\0" + reply(1)[4:],
    ],
    ids=["another number", "cut", "two", "short and cut", "too little", "negative", "negative and long", "empty"],
)
def test_a_reply_that_the_record_could_not_tell_is_the_relays(path: KernelRig, call: Call, said: bytes) -> None:
    call.client.sendall(request(1))
    call.client.sendall(request(2))
    before = path.fell_back("reply") + path.fell_back("overrun")
    call.server.sendall(said)
    assert path.fell_back("reply") + path.fell_back("overrun") == before + 1
    assert receive(call.agent_up, len(said)) == said
    assert [(one.head, one.reply_head, one.reply_bytes) for one in call.wheel.take()] == [
        (request(1), b"", 0),
        (request(2), b"", 0),
    ]
    assert path.records() == []


def test_a_reply_that_nobody_asked_for_is_the_relays(call: Call) -> None:
    pass_one(call, 1)
    call.server.sendall(reply(1))
    assert receive(call.agent_up, 12) == reply(1)


def test_a_new_policy_is_asked_about_the_next_frame_while_replies_to_judged_ones_are_carried(
    path: KernelRig, call: Call
) -> None:
    call.client.sendall(request(1))
    call.client.sendall(request(2))
    path.install(rule(CLIENT, SERVER, REDIRECT), free(SERVER))
    before = path.fell_back("stale")
    call.client.sendall(request(3))
    assert receive(call.agent_down, SIZE) == request(3)
    assert path.fell_back("stale") == before + 1
    for number in (1, 2):
        assert receive(call.server, SIZE) == request(number)
        call.server.sendall(reply(number))
        assert receive(call.client, 12) == reply(number)
    assert nothing_to_read(call.server)
    assert len(path.records()) == 2


# What ends a connection.


@contextlib.contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Sockets that are made or accepted here may hold so many bytes."""
    group = TCP_MEMORY / f"sluice-test-{os.getpid()}"
    if not (TCP_MEMORY / "memory.kmem.tcp.limit_in_bytes").exists():
        pytest.skip("no cgroup here limits the memory of TCP (memory.kmem.tcp.limit_in_bytes)")
    group.mkdir()
    try:
        (group / "memory.kmem.tcp.limit_in_bytes").write_text(str(limit))
        home = TCP_MEMORY / _memory_group() / "cgroup.procs"
        (group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            home.write_text(str(os.getpid()))
    finally:
        with contextlib.suppress(OSError):  # while its sockets are open
            group.rmdir()


def _memory_group() -> str:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return next(line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory").lstrip("/")


def test_a_request_that_is_taken_in_part_ends_all_carrying_and_relaying(path: KernelRig) -> None:
    """Out of memory, the receiver's kernel takes some pieces of a message. The sender goes on behind them, with what would be
    taken for a request of its own: here it looks like one.
    """
    call = path.call(accepting=little_memory(200_000))
    assert call.let_go(prefixes=[ORDERS])
    inner = request(2)
    data = request(1, more=inner * (400_000 // len(inner)))
    before = path.fell_back("torn")
    taken = call.client.send(data)
    assert 0 < taken < len(data)
    assert path.fell_back("torn") == before + 1
    assert receive(call.server, taken) == data[:taken]
    for _ in range(2):
        assert is_the_relays(call, inner)
        call.ledger[0] += len(inner)
        call.wheel.take()
        assert not call.wheel.settled(Direction.REQUEST), "the relay may send nothing any more"
        call.let_go(prefixes=[ORDERS])


def test_a_reply_that_is_taken_in_part_ends_all_carrying(path: KernelRig) -> None:
    with little_memory(200_000):
        listener = path.server(path.orders, "127.0.0.1")
        client = path.connect(path.web, "127.0.0.1", listener.getsockname()[1])
    call = path.dial(client, listener)
    assert call.let_go(prefixes=[ORDERS])
    call.client.sendall(request(1))
    taken = call.server.send(reply(1, bytes(400_000)))
    assert 0 < taken < 400_000
    call.wheel.take()
    assert not call.wheel.settled(Direction.REPLY)


def test_a_request_that_is_refused_whole_has_never_been_sent(path: KernelRig) -> None:
    """The client is told (ENOMEM), and the server has nothing of it. Sent again it has the same number, and one reply."""
    call = path.call(accepting=little_memory(8_192))
    assert call.let_go(prefixes=[ORDERS])
    with pytest.raises(OSError, match="Cannot allocate memory"):
        call.client.send(request(1, more=bytes(400_000)))
    assert nothing_to_read(call.server)
    call.exchange(request(1), reply(1))
    assert call.relayed_nothing()
    assert [record.request_bytes for record in path.records()] == [len(request(1, more=bytes(400_000)))]
    assert [one.request_bytes for one in call.wheel.take()] == [SIZE], "which the relay finds to be without a reply"
