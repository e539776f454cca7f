"""Ways round the hooks that an unprivileged program might try, each of them closed."""

import ctypes
import mmap
import os
import socket
import struct
import threading

import pytest

from policies.compile import ANY_PEER
from tests.bpf.rig import CLIENT, HOST, NATIVE, REDIRECT, REFUSE, SERVER, UDP, WORLD, Cgroup, Rig, free, rule

IPPROTO_UDPLITE = 136


@pytest.mark.parametrize(
    ("listen", "zero", "named"),
    [
        ("127.0.0.1", "0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("::1", "::", "::1"),
        ("127.0.0.1", "::ffff:0.0.0.0", "::ffff:127.0.0.1"),
    ],
)
def test_the_address_zero_is_loopback(rig: Rig, listen: str, zero: str, named: str) -> None:
    """Linux connects 0.0.0.0 and :: to this host; for a policy they are not the world."""
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REDIRECT))
    port = rig.server(orders, listen).getsockname()[1]
    client = rig.connect(None, zero, port)
    assert client.getpeername()[0] == named
    origin = rig.origin()
    assert (origin.peer, origin.address) == (SERVER, named.removeprefix("::ffff:"))


@pytest.mark.parametrize(
    ("source", "zero"), [("127.0.0.7", "0.0.0.0"), ("::ffff:127.0.0.7", "::"), ("::ffff:127.0.0.7", "::ffff:0.0.0.0")]
)
def test_the_address_zero_is_a_bound_sockets_own_address(rig: Rig, source: str, zero: str) -> None:
    orders = rig.cgroup("orders", SERVER)
    host = "127.0.0.1" if zero == "::" else "127.0.0.7"
    server = rig.server(orders, host)
    # What the kernel itself makes of it, before any hook is there.
    client = rig.client(None, server.family if ":" not in zero else socket.AF_INET6)
    client.bind((source, 0))
    client.connect((zero, server.getsockname()[1]))
    assert client.getpeername()[0].removeprefix("::ffff:") == host

    rig.attach(rule(HOST, SERVER, REDIRECT))
    client = rig.client(None, client.family)
    client.bind((source, 0))
    client.connect((zero, server.getsockname()[1]))
    assert rig.origin().peer == SERVER
    assert client.getpeername()[0].removeprefix("::ffff:") == host


@pytest.mark.parametrize("action", [REFUSE, REDIRECT])
def test_multipath_tcp_to_a_policed_server_is_judged(rig: Rig, action: int) -> None:
    """The kernel judges the first subflow as TCP; the agent speaks plain TCP, to which it falls back."""
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, action))
    server = rig.server(orders)
    client = _client_or_skip(rig, web, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    if action == REFUSE:
        with web.inside(), pytest.raises(PermissionError):
            client.connect(server.getsockname())
    else:
        with web.inside():
            client.connect(server.getsockname())
        assert rig.origin().peer == SERVER


def _client_or_skip(rig: Rig, owner: Cgroup, kind: int, protocol: int) -> socket.socket:
    try:
        return rig.client(owner, socket.AF_INET, kind, protocol)
    except OSError as error:
        pytest.skip(f"this kernel has no protocol {protocol} ({error})")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        (socket.SOCK_STREAM, socket.IPPROTO_MPTCP),  # later subflows are the kernel's own connections
        (socket.SOCK_DGRAM, IPPROTO_UDPLITE),  # its connect() has no hook
        (socket.SOCK_RAW, socket.IPPROTO_UDP),  # as CAP_NET_RAW, which containers often have
        (socket.SOCK_RAW, socket.IPPROTO_RAW),
    ],
)
def test_other_protocols_are_closed_to_a_workload_under_egress_policy(rig: Rig, family: int, kind: int, protocol: int) -> None:
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", SERVER)
    _client_or_skip(rig, web, kind, protocol)
    rig.attach(free(SERVER), rule(CLIENT, WORLD, NATIVE), rule(CLIENT, WORLD, NATIVE, transport=UDP))
    with pytest.raises(OSError, match="Protocol not supported"):
        rig.client(web, family, kind, protocol)
    with web.inside():  # whatever it uses instead still works
        for other_kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            socket.socket(family, other_kind).close()
            socket.socket(family, other_kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC).close()
    rig.client(other, family, kind, protocol)
    rig.client(None, family, kind, protocol)


def test_a_new_cgroup_gets_no_socket_of_another_protocol_before_it_is_known(rig: Rig) -> None:
    place = rig.cgroup("place")
    _client_or_skip(rig, place, socket.SOCK_DGRAM, IPPROTO_UDPLITE)
    rig.attach()
    rig.hooks.set_cgroups({place.id: None}, [place.id])
    with pytest.raises(BlockingIOError):
        rig.client(place.sub("fresh"), socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_UDPLITE)


def test_sending_without_connect_does_not_get_through(rig: Rig) -> None:
    """MSG_FASTOPEN is a connect(); without it TCP needs one."""
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE))
    server = rig.server(orders)
    client = rig.client(web, socket.AF_INET)
    client.settimeout(None)
    with web.inside():
        with pytest.raises(PermissionError):
            client.sendto(b"x", socket.MSG_FASTOPEN, server.getsockname())
        with pytest.raises(BrokenPipeError):
            client.sendto(b"x", 0, server.getsockname())


def test_fast_open_to_no_address_is_no_connection(rig: Rig) -> None:
    """AF_UNSPEC with MSG_FASTOPEN dissolves a connection; it must not make one."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REFUSE))
    client = rig.client(web, socket.AF_INET)
    libc = ctypes.CDLL(None, use_errno=True)
    unspecified = struct.pack("HH4s8x", socket.AF_UNSPEC, socket.htons(80), socket.inet_aton("192.0.2.1"))
    with web.inside():
        libc.sendto(client.fileno(), b"x", 1, socket.MSG_FASTOPEN | socket.MSG_DONTWAIT, unspecified, 16)
    with pytest.raises(OSError, match="not connected"):
        client.getpeername()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["inline", "by a kernel worker"])
def test_connecting_through_io_uring_is_judged(rig: Rig, asynchronous: bool) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), rule(CLIENT, HOST, REFUSE))
    server = rig.server()
    with web.inside():
        try:
            ring = Ring()
        except OSError as error:
            pytest.skip(f"no io_uring here ({error})")
        with ring:
            client = socket.socket()
            assert ring.connect(client, server.getsockname(), asynchronous) == -1  # EPERM
            assert ring.connect(client, ("192.0.2.1", 80), asynchronous) == 0
            assert client.getpeername() == ("192.0.2.1", 80)
            client.close()
    assert rig.origin().subject == CLIENT


class Ring:
    """As much of io_uring(7) as one connect() needs, by system call."""

    _SETUP, _ENTER = 425, 426

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        parameters = ctypes.create_string_buffer(120)
        self._fd = self._libc.syscall(self._SETUP, 2, parameters)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._sq = struct.unpack_from("10I", parameters, 40)  # offsets: head, tail, mask, entries, flags, dropped, array
        self._cq = struct.unpack_from("10I", parameters, 80)  # offsets: head, tail, mask, entries, overflow, cqes
        self._rings = mmap.mmap(self._fd, 4096, offset=0)  # one mapping for both (IORING_FEAT_SINGLE_MMAP)
        self._entries = mmap.mmap(self._fd, 4096, offset=0x10000000)

    def __enter__(self) -> "Ring":
        return self

    def __exit__(self, *_: object) -> None:
        self._rings.close()
        self._entries.close()
        os.close(self._fd)

    def _word(self, offset: int) -> int:
        return int(struct.unpack_from("I", self._rings, offset)[0])

    def connect(self, sock: socket.socket, address: tuple[str, int], asynchronous: bool) -> int:
        """0 or minus errno."""
        name = ctypes.create_string_buffer(
            struct.pack("HH4s8x", socket.AF_INET, socket.htons(address[1]), socket.inet_aton(address[0]))
        )
        flags = 0x10 if asynchronous else 0  # IOSQE_ASYNC
        # opcode IORING_OP_CONNECT, flags, ioprio, fd, length of the address (off), addr
        struct.pack_into("BBHiQQ40x", self._entries, 0, 16, flags, 0, sock.fileno(), 16, ctypes.addressof(name))
        tail = self._word(self._sq[1])
        struct.pack_into("I", self._rings, self._sq[6] + 4 * (tail & self._word(self._sq[2])), 0)
        struct.pack_into("I", self._rings, self._sq[1], tail + 1)
        assert self._libc.syscall(self._ENTER, self._fd, 1, 1, 1, None, 0) == 1
        head = self._word(self._cq[0])
        result = struct.unpack_from("Qi", self._rings, self._cq[5] + 16 * (head & self._word(self._cq[2])))[1]
        struct.pack_into("I", self._rings, self._cq[0], head + 1)
        return int(result)


def test_two_processes_that_call_each_other_at_once_are_judged(rig: Rig) -> None:
    """TCP's simultaneous open needs no listener, but two connects."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, HOST, REFUSE))
    ends = [rig.client(web, socket.AF_INET) for _ in range(2)]
    for end in ends:
        end.bind(("127.0.0.1", 0))
    with web.inside():
        for end, other in (ends, reversed(ends)):
            with pytest.raises(PermissionError):
                end.connect(other.getsockname())


def test_a_socket_that_repairs_itself_into_a_connection_is_judged(rig: Rig) -> None:
    """TCP_REPAIR (CAP_NET_ADMIN) connects without a handshake, but through connect()."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REFUSE))
    client = rig.client(web, socket.AF_INET)
    client.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR
    with web.inside(), pytest.raises(PermissionError):
        client.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("host", ["fe80::1%lo", "64:ff9b::7f00:1", "::127.0.0.1", "255.255.255.255", "0.0.0.1"])
def test_unusual_forms_of_addresses_are_not_native_for_a_workload_under_policy(rig: Rig, host: str) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REFUSE), rule(CLIENT, HOST, NATIVE))
    with pytest.raises(PermissionError):
        rig.connect(web, host, 80)


def test_a_thread_is_judged_as_its_process(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REFUSE))
    refused: list[int | None] = []

    def call() -> None:
        with socket.socket() as client:
            refused.append(client.connect_ex(("192.0.2.1", 80)))

    with web.inside():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert refused == [1]


def test_any_peer_means_also_the_peer_that_nobody_could_tell(rig: Rig) -> None:
    web, place = rig.cgroup("web", CLIENT), rig.cgroup("place")
    rig.attach(rule(CLIENT, ANY_PEER, REDIRECT))
    rig.hooks.set_cgroups({web.id: CLIENT, place.id: None}, [place.id])
    server = rig.server(place.sub("fresh"))
    rig.connect(web, *server.getsockname())
    assert rig.origin().unresolved
