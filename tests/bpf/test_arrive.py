"""A SYN is judged where it arrives: by the socket that really receives it, whatever the connect hook saw before."""

import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from policies.compile import ANY_PEER, AddressEntry, RuleEntry
from proxy.datapath import HEARTBEAT_LIMIT
from tests.bpf.namespace import CLIENT4, HOST4, Namespace
from tests.bpf.rig import (
    CLIENT,
    HOST,
    NATIVE,
    OTHER,
    REDIRECT,
    REFUSE,
    SERVER,
    UNRESOLVED,
    Cgroup,
    Rig,
    free,
    rule,
)
from tests.harness import eventually, free_port

TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 30, 34
LOOPBACKS = ["127.0.0.1", "::1", "::ffff:127.0.0.1"]
NOBODY = 65534

# An attacker: says when it has connected, sends when it is told to, and ends.
_LATE = f"""
import os, socket, sys
os.setuid({NOBODY})
host, port = sys.argv[1], int(sys.argv[2])
client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
client.setsockopt(socket.IPPROTO_TCP, {TCP_FASTOPEN_CONNECT}, 1)
client.setsockopt(socket.IPPROTO_TCP, {TCP_FASTOPEN_NO_COOKIE}, 1)
client.setblocking(False)
holder = None
if "hold" in sys.argv:
    holder = socket.create_server((host, port), family=client.family)
try:
    client.connect((host, port))
    print("connected", flush=True)
except OSError as error:
    print(error.errno, flush=True)
sys.stdin.readline()
if holder:
    holder.close()
print("ready", flush=True)
sys.stdin.readline()
try:
    client.send(b"DELETE /")
except OSError:
    pass
print("sent", flush=True)
sys.stdin.readline()
"""


class Late:
    """A client, as uid nobody, that connects now and whose SYN leaves when it sends (TCP_FASTOPEN_CONNECT)."""

    def __init__(self, owner: Cgroup, host: str, port: int, *options: str) -> None:
        with owner.inside():
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LATE, host, str(port), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        self.answer = self._read()

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def _tell(self) -> str:
        assert self._process.stdin
        self._process.stdin.write("\n")
        return self._read()

    def get_ready(self) -> None:
        """Whatever it held to be judged well, it lets go of."""
        assert self._tell() == "ready"

    def send(self) -> None:
        assert self._tell() == "sent"

    def __enter__(self) -> "Late":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def late_socket(rig: Rig, owner: Cgroup | None, host: str, port: int) -> socket.socket:
    """The same in this process: a socket whose connect() is done and whose SYN has not left."""
    client = rig.client(owner, socket.AF_INET6 if ":" in host else socket.AF_INET)
    client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    client.setblocking(False)
    with owner.inside() if owner else contextlib.nullcontext():
        client.connect((host, port))
    return client


def send(client: socket.socket) -> None:
    """The SYN leaves, and on loopback arrives at once."""
    with contextlib.suppress(BlockingIOError):
        client.send(b"hello")


def arrives(server: socket.socket) -> bool:
    """Whether somebody is in the queue; asked when what could have brought it there is over."""
    server.settimeout(0.05)
    try:
        server.accept()[0].close()
    except TimeoutError:
        return False
    return True


def refused(rig: Rig, act: Callable[[], object], event: str = "syn_refused") -> None:
    """``act`` sends a SYN that is dropped."""
    before = rig.event(event)
    act()
    eventually(lambda: rig.event(event) > before, f"a SYN is counted as {event}")


@pytest.mark.parametrize("action", [REFUSE, REDIRECT])
@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_socket_that_connects_before_the_server_is_up_and_sends_later_does_not_arrive(
    rig: Rig, host: str, action: int
) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, action))
    port = free_port()
    with Late(web, host, port) as attacker:
        assert attacker.answer == "connected"
        server = rig.server(orders, host.removeprefix("::ffff:"), port=port)
        attacker.get_ready()
        refused(rig, attacker.send)
    assert not arrives(server)


def test_a_socket_that_connects_to_a_listener_of_its_own_and_sends_when_that_is_gone_does_not_arrive(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REDIRECT))
    port = free_port()
    with Late(web, "127.0.0.1", port, "hold") as attacker:
        assert attacker.answer == "connected"
        attacker.get_ready()
        server = rig.server(orders, port=port)
        refused(rig, attacker.send)
    assert not arrives(server)


def test_a_late_syn_that_may_pass_arrives(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(OTHER, SERVER, REFUSE))
    port = free_port()
    client = late_socket(rig, web, "127.0.0.1", port)
    server = rig.server(orders, port=port)
    send(client)
    assert server.accept()[0].recv(5) == b"hello"


def test_a_redirected_socket_may_send_late(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REDIRECT))
    server = rig.server(orders)
    client = late_socket(rig, web, *server.getsockname())
    send(client)
    assert rig.origin().peer == SERVER
    assert client.getpeername() == server.getsockname()


def test_a_late_syn_is_judged_by_the_policy_of_its_arrival(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT))
    server = rig.server(orders)
    client = late_socket(rig, web, *server.getsockname())
    rig.install(free(CLIENT), rule(CLIENT, SERVER, REDIRECT))
    refused(rig, lambda: send(client))
    assert not arrives(server)


@pytest.mark.parametrize(("fail_open", "arrived"), [(True, True), (False, False)])
def test_without_a_heartbeat_a_late_syn_arrives_only_if_every_policy_fails_open(
    rig: Rig, fail_open: bool, arrived: bool
) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REDIRECT, fail_open=fail_open))
    port = free_port()
    client = late_socket(rig, web, "127.0.0.1", port)
    server = rig.server(orders, port=port)
    rig.stop_heart()
    time.sleep(HEARTBEAT_LIMIT + 0.2)
    send(client)
    assert arrives(server) == arrived


def test_who_called_connect_is_the_subject_whoever_sends_later(rig: Rig) -> None:
    """Sockets are handed over (SCM_RIGHTS, a fork into another cgroup): they stay those of who connected them."""
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE))
    port = free_port()
    mine = late_socket(rig, None, "127.0.0.1", port)
    made_by_host = rig.client(None, socket.AF_INET)
    made_by_host.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    made_by_host.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    made_by_host.setblocking(False)
    with web.inside():
        made_by_host.connect(("127.0.0.1", port))
    server = rig.server(orders, port=port)
    refused(rig, lambda: send(made_by_host))
    assert not arrives(server)
    with web.inside():
        send(mine)
    assert arrives(server)


def test_a_socket_that_connected_before_the_hooks_were_there_is_its_makers(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    port = free_port()
    clients = [late_socket(rig, owner, "127.0.0.1", port) for owner in (web, None)]
    server = rig.server(orders, port=port)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE))
    refused(rig, lambda: send(clients[0]))
    assert not arrives(server)
    send(clients[1])
    assert arrives(server)


@pytest.mark.parametrize("device", [b"lo", None])
def test_a_server_that_is_bound_to_a_device_takes_nothing_that_its_policy_would_not_pass(
    rig: Rig, device: bytes | None
) -> None:
    """The connect hook does not find it; its SYNs do."""
    web, orders, other = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER), rig.cgroup("other", OTHER)
    rig.attach(free(CLIENT), free(OTHER), rule(CLIENT, SERVER, REFUSE))
    server = rig.client(orders, socket.AF_INET)
    if device:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    server.bind(("127.0.0.1", 0))
    server.listen()
    client = rig.client(web, socket.AF_INET)
    client.setblocking(False)
    with web.inside():
        if device:
            refused(rig, lambda: client.connect_ex(server.getsockname()))
        else:
            with pytest.raises(PermissionError):
                client.connect(server.getsockname())
    assert not arrives(server)
    rig.connect(other, *server.getsockname())
    assert arrives(server)


def test_whoever_takes_the_agents_port_gets_nothing_that_was_redirected(rig: Rig) -> None:
    web, thief = rig.cgroup("web", CLIENT), rig.cgroup("thief", OTHER)
    rig.attach(rule(CLIENT, ANY_PEER, REDIRECT))
    for listener in rig.listeners:
        listener.close()
    stolen = rig.server(thief, port=rig.port)
    client = rig.client(web, socket.AF_INET)
    client.setblocking(False)
    with web.inside():
        refused(rig, lambda: client.connect_ex(("192.0.2.1", 80)))
    assert not arrives(stolen)


def test_the_agents_dial_reaches_only_whom_the_hook_has_told_it(rig: Rig) -> None:
    orders, other = rig.cgroup("orders", SERVER), rig.cgroup("other", OTHER)
    rig.attach()
    server = rig.server(orders)
    address = server.getsockname()
    dialled = late_socket(rig, rig.agent, *address)
    assert rig.hooks.origins.reached(dialled) == SERVER
    server.close()
    successor = rig.server(other, port=address[1])
    refused(rig, lambda: send(dialled))
    assert not arrives(successor)


def test_a_syn_behind_ipv6_extension_headers_is_judged(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE))
    port = free_port()
    clients = [late_socket(rig, owner, "::1", port) for owner in (web, None)]
    for client in clients:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, b"\0\0\1\4\0\0\0\0")  # padding
    server = rig.server(orders, "::1", port=port)
    refused(rig, lambda: send(clients[0]))
    assert not arrives(server)
    send(clients[1])
    assert arrives(server)


def test_multipath_tcp_that_may_pass_arrives(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), free(SERVER), rule(HOST, SERVER, REFUSE))
    try:
        client = rig.client(web, socket.AF_INET, protocol=socket.IPPROTO_MPTCP)
        server = rig.server(orders, protocol=socket.IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP ({error})")
    with web.inside():
        client.connect(server.getsockname())
    assert arrives(server)


# SYNs of which no sender is known.


def _forged_syn(port: int, source: str = "127.0.0.1") -> None:
    """A SYN that no socket has sent, over loopback (needs CAP_NET_RAW)."""
    addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1")
    tcp = struct.pack("!HHIIBBHHH", 1025, port, 1, 0, 5 << 4, 0x02, 65535, 0, 0)
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp)) + tcp
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(head + tcp[:16] + struct.pack("!H", checksum) + tcp[18:], ("127.0.0.1", 0))


ANYBODY = rule(UNRESOLVED, ANY_PEER, NATIVE)


def test_a_syn_over_loopback_that_no_socket_has_sent_does_not_reach_a_policed_server(rig: Rig) -> None:
    orders = rig.cgroup("orders", SERVER)
    rig.attach(ANYBODY, rule(UNRESOLVED, SERVER, REDIRECT))
    server = rig.server(orders)
    refused(rig, lambda: _forged_syn(server.getsockname()[1]), "syn_unknown")
    before = rig.event("syn_unknown")
    _forged_syn(rig.server().getsockname()[1])
    assert rig.event("syn_unknown") == before


def test_a_syn_of_another_namespace_arrives(rig: Rig, namespace: Namespace) -> None:
    """As those of other hosts: only who connects from here is judged."""
    orders = rig.cgroup("orders", SERVER)
    rig.attach(ANYBODY, rule(UNRESOLVED, SERVER, REFUSE), rule(HOST, SERVER, REFUSE))
    server = rig.server(orders, HOST4)
    namespace.run(lambda: rig.connect(None, *server.getsockname()))
    assert arrives(server)


@pytest.mark.parametrize("host", ["127.0.0.1", CLIENT4])
def test_loopback_of_another_namespace_has_the_same_law(rig: Rig, namespace: Namespace, host: str) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    local = [AddressEntry(ip_network(CLIENT4), UNRESOLVED, True)]
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE), addresses=local)
    port = free_port()
    client = namespace.run(lambda: late_socket(rig, web, host, port))
    server = namespace.run(lambda: rig.server(orders, host, port=port))
    refused(rig, lambda: send(client))
    assert not arrives(server)


def test_a_native_connection_to_a_server_of_no_workload_is_left_alone(rig: Rig) -> None:
    web, rules = rig.cgroup("web", CLIENT), list[RuleEntry](free(CLIENT))
    rig.attach(rules, rule(CLIENT, SERVER, REDIRECT), ANYBODY)
    for host in ("127.0.0.1", "::1"):
        server = rig.server(None, host)
        assert rig.connect(web, *server.getsockname()[:2]).getpeername() == server.getsockname()
        assert arrives(server)
