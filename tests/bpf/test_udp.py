"""UDP is judged by address and port, at connect() and at every sendto() of a socket that is not connected."""

import socket
from collections.abc import Callable

import pytest

from policies.compile import ANY_PEER
from tests.bpf.rig import CLIENT, HOST, NATIVE, REDIRECT, REFUSE, SERVER, UDP, WORLD, Cgroup, Rig, address, free, rule

DGRAM = socket.SOCK_DGRAM
GROUP = "224.0.0.1"  # all systems on this network: everyone has joined it

V4, V6, MAPPED = ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")
FORMS = pytest.mark.parametrize(("listen", "dial"), [V4, V6, MAPPED], ids=["v4", "v6", "mapped"])


def connected(rig: Rig, owner: Cgroup | None, host: str, port: int) -> None:
    rig.connect(owner, host, port, DGRAM).send(b"hello")


def unconnected(rig: Rig, owner: Cgroup | None, host: str, port: int) -> None:
    client = rig.client(owner, socket.AF_INET6 if ":" in host else socket.AF_INET, DGRAM)
    with owner.inside() if owner else rig.base.inside():
        client.sendto(b"hello", (host, port))


HOW = pytest.mark.parametrize("how", [connected, unconnected])
Send = Callable[[Rig, Cgroup | None, str, int], None]


@FORMS
@HOW
def test_an_allowed_datagram_arrives(rig: Rig, listen: str, dial: str, how: Send) -> None:
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    rig.attach(rule(CLIENT, SERVER, NATIVE, transport=UDP))
    server = rig.server(dns, listen, DGRAM)
    how(rig, web, dial, server.getsockname()[1])
    assert server.recv(10) == b"hello"


@FORMS
@HOW
@pytest.mark.parametrize("action", [REFUSE, REDIRECT])
def test_a_datagram_that_is_not_allowed_is_an_eperm(rig: Rig, listen: str, dial: str, how: Send, action: int) -> None:
    """A datagram cannot be redirected: what the agent would have to read is refused."""
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, action, transport=UDP))
    server = rig.server(dns, listen, DGRAM)
    with pytest.raises(PermissionError):
        how(rig, web, dial, server.getsockname()[1])


@HOW
def test_the_rules_of_tcp_are_not_those_of_udp(rig: Rig, how: Send) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, ANY_PEER, NATIVE))
    with pytest.raises(PermissionError):
        how(rig, web, "127.0.0.1", rig.server(None, "127.0.0.1", DGRAM).getsockname()[1])


@HOW
@pytest.mark.parametrize(("listen", "zero"), [("127.0.0.1", "0.0.0.0"), ("::1", "::"), ("127.0.0.1", "::ffff:0.0.0.0")])
def test_the_address_zero_is_loopback(rig: Rig, how: Send, listen: str, zero: str) -> None:
    dns = rig.cgroup("dns", SERVER)
    rig.attach(rule(HOST, SERVER, REFUSE, transport=UDP))
    with pytest.raises(PermissionError):
        how(rig, None, zero, rig.server(dns, listen, DGRAM).getsockname()[1])


def test_the_address_zero_with_a_source_in_the_message_is_that_source(rig: Rig) -> None:
    """IP_PKTINFO names the source of one datagram, and with it what the address zero means."""
    dns = rig.cgroup("dns", SERVER)
    rig.attach(rule(HOST, SERVER, REFUSE, transport=UDP))
    server = rig.server(dns, "127.0.0.8", DGRAM)
    info = b"\0\0\0\0" + socket.inet_aton("127.0.0.8") + b"\0\0\0\0"
    client = rig.client(None, socket.AF_INET, DGRAM)
    with pytest.raises(PermissionError):
        client.sendmsg([b"x"], [(socket.IPPROTO_IP, 8, info)], 0, ("0.0.0.0", server.getsockname()[1]))


@HOW
def test_a_group_does_not_lead_round_the_policy_of_who_listens_here(rig: Rig, how: Send) -> None:
    """What is sent to a multicast group is heard on this host too."""
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP))
    server = rig.server(dns, "0.0.0.0", DGRAM)
    with pytest.raises(PermissionError):
        how(rig, web, GROUP, server.getsockname()[1])


@HOW
def test_a_group_that_policy_names_may_be_written_to(rig: Rig, how: Send) -> None:
    web = rig.cgroup("web", CLIENT)
    group = WORLD + 1
    rig.attach(rule(CLIENT, group, NATIVE, transport=UDP), addresses=[address("224.0.0.0/4", group)])
    how(rig, web, GROUP, 5353)
    with pytest.raises(PermissionError):
        how(rig, web, "192.0.2.1", 5353)


@FORMS
def test_who_is_written_to_may_answer(rig: Rig, listen: str, dial: str) -> None:
    """A server under egress policy answers whoever wrote to it, and nobody else."""
    dns = rig.cgroup("dns", SERVER)
    rig.attach(rule(SERVER, WORLD, REFUSE))
    server = rig.server(dns, "::" if dial != listen else listen, DGRAM)
    client = rig.client(None, socket.AF_INET6 if ":" in dial else socket.AF_INET, DGRAM)
    client.bind((dial, 0))
    stranger = rig.server(None, dial, DGRAM)
    client.sendto(b"question", (dial, server.getsockname()[1]))
    with dns.inside():
        _, source = server.recvfrom(100)
        server.sendto(b"answer", source)
        with pytest.raises(PermissionError):
            server.sendto(b"answer", stranger.getsockname())
    assert client.recv(100) == b"answer"


def test_a_resolver_of_the_host_may_answer_a_workload_under_ingress_policy(rig: Rig) -> None:
    """musl asks from a socket that is not connected, so that the answer looks like a datagram from outside."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(free(CLIENT), rule(HOST, CLIENT, REFUSE, transport=UDP))
    resolver = rig.server(None, "127.0.0.1", DGRAM)
    client = rig.client(web, socket.AF_INET, DGRAM)
    with web.inside():
        client.sendto(b"question", resolver.getsockname())
    source = ("127.0.0.1", client.getsockname()[1])
    other = rig.client(None, socket.AF_INET, DGRAM)
    with pytest.raises(PermissionError):
        other.sendto(b"not an answer", source)
    resolver.sendto(b"answer", source)
    assert client.recv(100) == b"answer"
