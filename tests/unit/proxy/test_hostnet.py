"""Which addresses are this host's own."""

import socket
from ipaddress import ip_network
from pathlib import Path

import pytest

from proxy import hostnet

FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
        |-- 10.0.0.7
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
Local:
  +-- 0.0.0.0/0 3 0 5
        |-- 10.0.0.7
           /32 host LOCAL
Id 100:
  +-- 0.0.0.0/0 2 0 2
     |-- 0.0.0.0
        /0 host LOCAL
     |-- 10.9.0.0
        /24 universe LOCAL
     |-- 10.10.0.0
        /24 universe UNICAST
"""
IF_INET6 = """00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000000000000000001 02 40 20 80     eth0
20010db8000000000000000000000007 02 40 00 80     eth0
"""
NOWHERE = "0" * 32
IPV6_ROUTE = f"""20010db8000000000000000000000000 40 {NOWHERE} 00 {NOWHERE} 00000100 00000001 00000000 00000001     eth0
20010db8000000000000000000000000 80 {NOWHERE} 00 {NOWHERE} 00000000 00000001 00000000 80300001     eth0
20010db8000000000000000000000007 80 {NOWHERE} 00 {NOWHERE} 00000000 00000003 00000000 80200001     eth0
20010db8000900000000000000000000 30 {NOWHERE} 00 {NOWHERE} 00000400 00000001 00000000 80000001       lo
{NOWHERE} 00 {NOWHERE} 00 {NOWHERE} 00000400 00000001 00000000 80000001       lo
{NOWHERE} 00 {NOWHERE} 00 {NOWHERE} ffffffff 00000001 00000000 00200200       lo
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("fib_trie", FIB_TRIE), ("if_inet6", IF_INET6), ("ipv6_route", IPV6_ROUTE)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hostnet, "_FIB_TRIE", tmp_path / "fib_trie")
    monkeypatch.setattr(hostnet, "_IF_INET6", tmp_path / "if_inet6")
    monkeypatch.setattr(hostnet, "_IPV6_ROUTE", tmp_path / "ipv6_route")
    return tmp_path


def test_loopback_every_own_address_every_broadcast_address_and_every_local_prefix_are_local(proc: Path) -> None:
    """A datagram to a broadcast address is heard on this host too; a whole prefix is if a route of type local says so."""
    assert hostnet.local_networks() == tuple(
        ip_network(text)
        for text in (
            *("10.0.0.7/32", "10.0.0.255/32", "10.9.0.0/24"),
            *("127.0.0.0/8", "127.0.0.1/32", "127.255.255.255/32", "255.255.255.255/32"),
            *("::1/128", "2001:db8::/128", "2001:db8::7/128", "2001:db8:9::/48", "fe80::1/128"),
        )
    )


def test_a_local_default_route_does_not_make_the_world_ours(proc: Path) -> None:
    """Transparent proxies have one, for packets that a rule picks."""
    assert all(network.prefixlen for network in hostnet.local_networks())


def test_other_addresses_of_our_networks_are_not_local(proc: Path) -> None:
    assert not any(ip_network("10.0.0.8/32").subnet_of(own) for own in hostnet.local_networks() if own.version == 4)


def test_without_ipv6_there_is_still_its_loopback_in_the_table(proc: Path) -> None:
    (proc / "ipv6_route").unlink()
    (proc / "if_inet6").unlink()
    assert not hostnet.has_ipv6()
    assert ip_network("::1/128") in hostnet.local_networks()
    (proc / "if_inet6").write_text("")
    assert not hostnet.has_ipv6()
    (proc / "if_inet6").write_text("20010db8000000000000000000000007 02 40 00 80     eth0\n")
    assert not hostnet.has_ipv6(), "not on loopback, where the agent is"


def test_on_this_machine_the_address_that_a_socket_gets_is_local() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("127.0.0.1", 9))
        own = ip_network(probe.getsockname()[0])
    assert any(own.subnet_of(network) for network in hostnet.local_networks() if network.version == 4)
