"""Which addresses are this host's own: a process of this host may be the one who hears what is sent there."""

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_network
from pathlib import Path

from policies.model import Network

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
BROADCAST = ip_network("255.255.255.255/32")

# Routes of all tables, as the kernel shows them.
_FIB_TRIE = Path("/proc/net/fib_trie")
_IPV6_ROUTE = Path("/proc/net/ipv6_route")
_IF_INET6 = Path("/proc/net/if_inet6")

# What a prefix in the trie is: "/24 host LOCAL", "/32 link BROADCAST".
_OWN4 = re.compile(r"/(\d+) \w+ (?:LOCAL|BROADCAST)")
_RTF_LOCAL, _RTF_ANYCAST = 0x80000000, 0x00100000  # linux/ipv6_route.h


def has_ipv6() -> bool:
    """Whether ::1 is an address of this host; where it is none, packets to it would leave the host."""
    loopback = IPv6Address(1).packed.hex()
    return _IF_INET6.exists() and any(line.startswith(loopback) for line in _IF_INET6.read_text().splitlines())


def local_networks() -> tuple[Network, ...]:
    """Loopback, and what leads to this host in our network namespace, in a stable order: addresses and broadcast addresses of
    interfaces, and whole prefixes that a route of type ``local`` makes this host's (AnyIP), whatever table it is in.

    A default route of that type is left out. It is there for transparent proxies, behind a rule that picks the packets, and
    does not make the world this host's.
    """
    found = {*LOOPBACK, BROADCAST, *_routes4(), *_addresses6(), *_routes6()}
    return tuple(sorted((network for network in found if network.prefixlen), key=lambda network: (network.version, network)))


def _routes4() -> Iterator[Network]:
    prefix = ""
    for line in _FIB_TRIE.read_text().splitlines():
        # The trie names a prefix ("|-- 10.0.0.1") and then, indented, what it is ("/32 host LOCAL").
        if "|-- " in line:
            prefix = line.rpartition("|-- ")[2]
        elif own := _OWN4.search(line):
            yield ip_network(f"{prefix}/{own[1]}")


def _addresses6() -> Iterator[Network]:
    """Also those that have no route yet."""
    if _IF_INET6.exists():
        for line in _IF_INET6.read_text().splitlines():
            yield ip_network(bytes.fromhex(line.split()[0]))


def _routes6() -> Iterator[Network]:
    if not _IPV6_ROUTE.exists():
        return
    for line in _IPV6_ROUTE.read_text().splitlines():
        # Destination, its length, source, its length, next hop, metric, two counters, flags, device: numbers in hexadecimal.
        fields = line.split()
        if int(fields[8], 16) & (_RTF_LOCAL | _RTF_ANYCAST):
            yield ip_network((bytes.fromhex(fields[0]), int(fields[1], 16)))
