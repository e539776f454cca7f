"""Prefixes that a route makes this host's own (AnyIP): whoever listens here may be reached at each of their addresses."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from policies.compile import AddressEntry
from proxy import hostnet
from tests.bpf.namespace import ip
from tests.bpf.rig import CLIENT, REDIRECT, REFUSE, SERVER, UDP, UNRESOLVED, Rig, free, rule
from tests.harness import free_port

PREFIXES = {"10.231.9.0/24": "10.231.9.200", "fd00:231:9::/64": "fd00:231:9::bad"}


@pytest.fixture(params=["local", "231"])
def prefixes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both prefixes, in the table of local addresses or in another one that a rule names."""
    table = str(request.param)
    with contextlib.ExitStack() as stack:
        for prefix in PREFIXES:
            family = "-6" if ":" in prefix else "-4"
            route = ("local", prefix, "dev", "lo", "table", table)
            ip(family, "route", "add", *route)
            stack.callback(ip, family, "route", "del", *route)
            if table != "local":
                named = ("to", prefix, "lookup", table)
                ip(family, "rule", "add", *named)
                stack.callback(ip, family, "rule", "del", *named)
        yield


@pytest.mark.parametrize("address", PREFIXES.values())
def test_a_server_is_its_workload_at_every_address_of_a_local_prefix(rig: Rig, prefixes: None, address: str) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    here = [AddressEntry(network, UNRESOLVED, True) for network in hostnet.local_networks()]
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REDIRECT), rule(CLIENT, SERVER, REFUSE, transport=UDP), addresses=here)
    anywhere, family = ("::", socket.AF_INET6) if ":" in address else ("0.0.0.0", socket.AF_INET)
    port = free_port()
    rig.server(orders, anywhere, port=port)
    rig.server(orders, anywhere, socket.SOCK_DGRAM, port=port)
    client, sender = rig.client(web, family), rig.client(web, family, socket.SOCK_DGRAM)
    web.as_nobody(lambda: client.connect((address, port)))
    assert rig.origin().peer == SERVER
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: sender.sendto(b"x", (address, port)))


@pytest.mark.parametrize("address", PREFIXES.values())
def test_a_datagram_to_a_prefix_that_the_agent_has_not_seen_yet_is_not_heard(rig: Rig, prefixes: None, address: str) -> None:
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP))
    anywhere, family = ("::", socket.AF_INET6) if ":" in address else ("0.0.0.0", socket.AF_INET)
    server = rig.server(dns, anywhere, socket.SOCK_DGRAM)
    there = (address, server.getsockname()[1])
    sender = rig.client(web, family, socket.SOCK_DGRAM)
    web.as_nobody(lambda: sender.sendto(b"x", there))
    rig.client(None, family, socket.SOCK_DGRAM).sendto(b"from the host", there)
    assert server.recv(20) == b"from the host"
