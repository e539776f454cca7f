"""Clients in a network namespace of their own, as containers are: the agent must have an address that leads there."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

from policies.compile import AddressEntry
from proxy.wheel import Ledger
from tests.bpf.kernel_rig import GET, KernelRig, receive
from tests.bpf.namespace import CLIENT4, CLIENT6, HOST4, HOST6, Namespace
from tests.bpf.rig import CLIENT, HOST, NATIVE, REDIRECT, REFUSE, SERVER, UNRESOLVED, WORLD, Cgroup, Rig, free, rule
from tests.harness import free_port


def call(rig: Rig, namespace: Namespace, owner: Cgroup | None, host: str, port: int) -> socket.socket:
    return namespace.run(lambda: rig.connect(owner, host, port))


def test_without_a_gateway_a_client_elsewhere_is_refused(rig: Rig, namespace: Namespace) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    before = rig.event("no_gateway")
    for host in ("192.0.2.1", "2001:db8::1"):
        with pytest.raises(ConnectionRefusedError):
            call(rig, namespace, web, host, 80)
    assert rig.event("no_gateway") == before + 2
    assert rig.nobody_came()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_with_a_gateway_a_client_elsewhere_is_redirected_there(
    make_rig: Callable[..., Rig], namespace: Namespace, host: str
) -> None:
    rig = make_rig(HOST4, HOST6)
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    client = call(rig, namespace, web, host, 80)
    assert client.getpeername()[:2] == (host, 80)
    assert client.getsockname()[0].removeprefix("::ffff:") in (CLIENT4, CLIENT6)
    origin = rig.origin()
    assert (origin.address, origin.subject, origin.cgroup) == (host.removeprefix("::ffff:"), CLIENT, web.id)


def test_a_gateway_of_one_family_does_not_serve_the_other(make_rig: Callable[..., Rig], namespace: Namespace) -> None:
    rig = make_rig(HOST4)
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    call(rig, namespace, web, "192.0.2.1", 80)
    rig.origin()
    with pytest.raises(ConnectionRefusedError):
        call(rig, namespace, web, "2001:db8::1", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_loopback_of_another_namespace_is_not_ours(make_rig: Callable[..., Rig], namespace: Namespace, host: str) -> None:
    """The agent cannot dial there, so what it would have to read is refused; what is native stays native."""
    rig = make_rig(HOST4, HOST6)
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", 2)
    rig.attach(
        *(rule(CLIENT, peer, REDIRECT) for peer in (UNRESOLVED, HOST)), *(rule(2, peer, NATIVE) for peer in (UNRESOLVED, HOST))
    )
    inside = namespace.run(lambda: rig.server(None, "::1" if ":" in host else "127.0.0.1"))
    port = inside.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        call(rig, namespace, web, host, port)
    client = call(rig, namespace, other, host, port)
    assert inside.accept()[1] == client.getsockname()


def test_who_listens_at_our_address_is_unresolved_from_elsewhere(make_rig: Callable[..., Rig], namespace: Namespace) -> None:
    """The client's namespace knows none of our sockets. The agent finds out when it dials."""
    rig = make_rig(HOST4)
    web, orders, agent = rig.cgroup("web", CLIENT), rig.cgroup("orders", 2), rig.cgroup("agent")
    local = [AddressEntry(ip_network(HOST4), UNRESOLVED, True)]
    rig.attach(rule(CLIENT, UNRESOLVED, REDIRECT), rule(CLIENT, HOST, REFUSE), addresses=local)
    rig.hooks.exclude(agent.id)
    server = rig.server(orders, HOST4)
    call(rig, namespace, web, *server.getsockname())
    origin = rig.origin()
    assert origin.unresolved
    dialled = rig.connect(agent, origin.address, origin.port)
    assert rig.hooks.origins.reached(dialled) == 2


def test_the_same_address_and_port_in_two_namespaces_are_two_clients(
    make_rig: Callable[..., Rig], namespace: Namespace
) -> None:
    """Tuples repeat across namespaces; the address that the agent was reached at tells them apart."""
    rig = make_rig(HOST4)
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", 2)
    rig.attach(*(rule(subject, WORLD, REDIRECT) for subject in (CLIENT, 2)))
    port = 41999

    def bound(owner: Cgroup, source: str) -> socket.socket:
        client = rig.client(owner, socket.AF_INET)
        client.bind((source, port))
        with owner.inside():
            client.connect(("192.0.2.1", 80))
        return client

    namespace.run(lambda: bound(web, CLIENT4))
    bound(other, "127.0.0.1")
    assert {rig.origin().subject for _ in range(2)} == {CLIENT, 2}


# The kernel path (trap 17 of docs/kernel-path.md): sockets are redirected to sockets, wherever they are.


@pytest.fixture
def path(namespace: Namespace) -> Iterator[KernelRig]:
    with contextlib.closing(KernelRig(HOST4)) as made:
        made.start()
        made.install(rule(CLIENT, WORLD, REDIRECT), rule(CLIENT, SERVER, REDIRECT), free(SERVER))
        made.renew_table()
        yield made


def test_a_client_in_another_namespace_is_carried(path: KernelRig, namespace: Namespace) -> None:
    listener = path.server(path.orders)
    client = namespace.run(lambda: path.connect(path.web, "192.0.2.1", 80))
    carried = path.dial(client, listener)
    assert carried.let_go()
    carried.exchange()
    assert carried.relayed_nothing()


def test_a_server_in_another_namespace_is_carried(path: KernelRig, namespace: Namespace) -> None:
    listener = namespace.run(lambda: path.server(path.orders, CLIENT4))
    carried = path.dial(path.connect(path.web, "192.0.2.1", 80), listener)
    assert carried.let_go()
    carried.exchange()
    assert carried.relayed_nothing()


def test_the_same_addresses_in_another_namespace_are_not_taken_for_the_server(path: KernelRig, namespace: Namespace) -> None:
    """The agent dials, and nobody answers; elsewhere a connection of the same four numbers comes about."""
    client = path.connect(path.web, "192.0.2.1", 80)
    down, origin = path.accepted()
    assert origin
    wheel = path.wheels.wheel(origin.cookie)
    assert wheel
    up = path.client(path.agent, socket.AF_INET)
    wheel.mark(up)
    up.bind(("127.0.0.1", 0))
    port, there = up.getsockname()[1], free_port()
    with path.agent.inside(), pytest.raises(ConnectionRefusedError):
        up.connect(("127.0.0.1", there))
    before = path.cookies()

    def meet() -> tuple[socket.socket, socket.socket]:
        listener = path.server(path.orders, "127.0.0.1", port=there)
        same = path.client(None, socket.AF_INET)
        same.bind(("127.0.0.1", port))
        same.connect(listener.getsockname())
        return same, listener.accept()[0]

    same, server = namespace.run(meet)
    with same, server:
        assert path.cookies() == before
        wheel.give(path.table, path.wheels.generation, Ledger(0, 0))
        assert not wheel.held
        client.sendall(GET)
        assert receive(down, len(GET)) == GET
