"""What connect() does: native, refused or redirected; and what the application sees of it."""

import errno
import select
import socket
import struct
from collections.abc import Callable

import pytest

from tests.bpf.rig import CLIENT, HOST, NATIVE, REDIRECT, REFUSE, SERVER, WORLD, Rig, address, free, rule

MSG_FASTOPEN = 0x20000000

# Nobody is at these addresses (RFC 5737, RFC 3849): a connection that answers was redirected.
NOWHERE = ["192.0.2.77", "2001:db8::77", "::ffff:192.0.2.77"]


def blocking(client: socket.socket, host: str, port: int) -> None:
    client.connect((host, port))


def non_blocking(client: socket.socket, host: str, port: int) -> None:
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.connect((host, port))
    assert select.select([], [client], [], 10)[1]
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def epolled(client: socket.socket, host: str, port: int) -> None:
    client.setblocking(False)
    assert client.connect_ex((host, port)) == errno.EINPROGRESS
    with select.epoll() as poll:
        poll.register(client, select.EPOLLOUT | select.EPOLLET)
        assert poll.poll(10) == [(client.fileno(), select.EPOLLOUT)]


def fast_open(client: socket.socket, host: str, port: int) -> None:
    client.settimeout(None)
    assert client.sendto(b"hello", MSG_FASTOPEN, (host, port)) == 5


def fast_open_connect(client: socket.socket, host: str, port: int) -> None:
    """TCP_FASTOPEN_CONNECT (30): with a cookie, the SYN leaves only at the first send."""
    client.setsockopt(socket.IPPROTO_TCP, 30, 1)
    client.connect((host, port))
    assert client.send(b"hello") == 5


@pytest.mark.parametrize("how", [blocking, non_blocking, epolled, fast_open, fast_open_connect])
@pytest.mark.parametrize("host", NOWHERE)
def test_a_redirected_client_sees_the_server_that_it_asked_for(
    rig: Rig, host: str, how: Callable[[socket.socket, str, int], None]
) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    client = rig.client(web, socket.AF_INET6 if ":" in host else socket.AF_INET)
    with web.inside():
        how(client, host, 8080)
    assert client.getpeername()[:2] == (host, 8080)
    origin = rig.origin()
    assert (origin.address, origin.port, origin.subject, origin.peer) == (host.removeprefix("::ffff:"), 8080, CLIENT, WORLD)
    assert origin.cgroup == web.id


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_native_traffic_is_untouched(rig: Rig, host: str) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT))
    server = rig.server(orders, host)
    before = rig.event("native")
    client = rig.connect(web, host, server.getsockname()[1])
    accepted, source = server.accept()
    with accepted:
        assert client.getpeername() == server.getsockname()
        assert source == client.getsockname()
    assert rig.nobody_came()
    assert rig.event("native") > before


def test_what_policy_refuses_is_an_eperm_for_the_caller(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REFUSE))
    before = rig.event("refused")
    for host in NOWHERE:
        with pytest.raises(PermissionError):
            rig.connect(web, host, 8080)
    assert rig.event("refused") >= before + 3
    assert rig.nobody_came()


def test_a_workload_that_no_rule_names_is_refused_and_the_host_is_native(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach()
    server = rig.server()
    with pytest.raises(PermissionError):
        rig.connect(web, *server.getsockname())
    rig.connect(None, *server.getsockname())


@pytest.mark.parametrize("action", [NATIVE, REFUSE, REDIRECT])
def test_the_host_meets_the_policy_of_a_local_server(rig: Rig, action: int) -> None:
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, action))
    server = rig.server(orders)
    if action == REFUSE:
        with pytest.raises(PermissionError):
            rig.connect(None, *server.getsockname())
        return
    client = rig.connect(None, *server.getsockname())
    assert client.getpeername() == server.getsockname()
    if action == REDIRECT:
        origin = rig.origin()
        assert origin.from_host
        assert origin.peer == SERVER
    else:
        server.accept()[0].close()
        assert rig.nobody_came()


def test_a_socket_that_connects_again_is_judged_again(rig: Rig) -> None:
    """connect(2) to AF_UNSPEC dissolves a connection; the socket may then go elsewhere."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), rule(CLIENT, HOST, NATIVE), rule(CLIENT, WORLD, REFUSE, 9, 16))
    server = rig.server()
    client = rig.connect(web, "192.0.2.1", 80)
    assert rig.origin().port == 80
    with web.inside():
        _disconnect(client)
        client.connect(("192.0.2.2", 81))
        assert client.getpeername() == ("192.0.2.2", 81)
        assert rig.origin().port == 81
        _disconnect(client)
        client.connect(server.getsockname())
        assert client.getpeername() == server.getsockname()
        assert rig.nobody_came()
        _disconnect(client)
        with pytest.raises(PermissionError):
            client.connect(("192.0.2.2", 9))


def _disconnect(client: socket.socket) -> None:
    import ctypes

    assert ctypes.CDLL(None).connect(client.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) == 0


@pytest.mark.parametrize(
    ("source", "host"), [("127.0.0.9", "192.0.2.1"), ("::1", "2001:db8::1"), ("::ffff:127.0.0.9", "::ffff:192.0.2.1")]
)
def test_a_client_bound_to_a_source_address_keeps_it(rig: Rig, source: str, host: str) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    client = rig.client(web, socket.AF_INET6 if ":" in host else socket.AF_INET)
    client.bind((source, 0))
    with web.inside():
        client.connect((host, 80))
    assert client.getsockname()[0] == source
    assert rig.origin().address == host.removeprefix("::ffff:")


def test_a_client_bound_to_a_device_reaches_the_agent(rig: Rig) -> None:
    """SO_BINDTODEVICE would keep it from loopback, where the agent is."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    client = rig.client(web, socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    client.settimeout(2)
    with web.inside():
        client.connect(("192.0.2.1", 80))
    assert rig.origin().address == "192.0.2.1"


@pytest.mark.parametrize(
    ("port", "action"), [(79, REFUSE), (80, NATIVE), (8000, REDIRECT), (8063, REDIRECT), (8064, REFUSE), (65535, REFUSE)]
)
def test_the_longest_prefix_of_the_port_decides(rig: Rig, port: int, action: int) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, HOST, REFUSE), rule(CLIENT, HOST, NATIVE, 80, 16), rule(CLIENT, HOST, REDIRECT, 8000, 10))
    if action == REFUSE:
        with pytest.raises(PermissionError):
            rig.connect(web, "127.0.0.77", port)
    elif action == REDIRECT:
        rig.server(None, "127.0.0.77", port=port)
        rig.connect(web, "127.0.0.77", port)
        assert rig.origin().port == port
    else:
        with pytest.raises(ConnectionRefusedError):  # nobody listens: the kernel's own answer
            rig.connect(web, "127.0.0.77", port)


def test_the_longest_prefix_of_the_address_decides(rig: Rig) -> None:
    """What `except` takes out of a CIDR is a longer prefix of another class."""
    web = rig.cgroup("web", CLIENT)
    inner, outer = WORLD + 1, WORLD + 2
    addresses = [
        *(address("198.51.100.0/24", outer), address("198.51.100.128/25", inner), address("198.51.100.129/32", SERVER)),
        *(address("2001:db8::/32", outer), address("2001:db8:1::/48", inner)),
    ]
    rig.attach(*(rule(CLIENT, peer, REDIRECT) for peer in (outer, SERVER)), rule(CLIENT, inner, REFUSE), addresses=addresses)
    for host, peer in (
        *(("198.51.100.127", outer), ("198.51.100.129", SERVER), ("2001:db8:2::1", outer), ("2001:db8:ffff::", outer)),
        *(("198.51.100.128", inner), ("198.51.100.255", inner), ("2001:db8:1::1", inner)),
    ):
        if peer == inner:
            with pytest.raises(PermissionError):
                rig.connect(web, host, 80)
        else:
            rig.connect(web, host, 80)
            assert rig.origin().peer == peer


def test_who_calls_the_agents_port_by_itself_is_nobody(rig: Rig) -> None:
    rig.attach()
    rig.connect(None, "127.0.0.1", rig.port)
    assert rig.accepted()[1] is None


def test_who_calls_the_agents_port_from_the_place_of_one_never_accepted_is_nobody(rig: Rig) -> None:
    """A client was redirected, and reset before it was accepted. What it asked for is noted with its own connection alone."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    client = rig.client(web, socket.AF_INET)
    client.bind(("127.0.0.55", 0))  # an address at which nobody else takes ports
    with web.inside():
        client.connect(("192.0.2.1", 80))
    place = client.getsockname()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    intruder = rig.client(None, socket.AF_INET)
    intruder.bind(place)
    intruder.connect(("127.0.0.1", rig.port))
    first, second = (rig.accepted()[1] for _ in range(2))
    assert first is not None
    assert (first.address, first.port) == ("192.0.2.1", 80)
    assert second is None
