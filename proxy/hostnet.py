"""Which addresses are this host's own: a process of this host may be the one who hears what is sent there."""

from ipaddress import IPv6Address, ip_network
from pathlib import Path

from policies.model import Network

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
BROADCAST = ip_network("255.255.255.255/32")

_FIB_TRIE = Path("/proc/net/fib_trie")
_IF_INET6 = Path("/proc/net/if_inet6")


def has_ipv6() -> bool:
    """Whether ::1 is an address of this host; where it is none, packets to it would leave the host."""
    loopback = IPv6Address(1).packed.hex()
    return _IF_INET6.exists() and any(line.startswith(loopback) for line in _IF_INET6.read_text().splitlines())


def local_networks() -> tuple[Network, ...]:
    """Loopback, and every address and broadcast address of an interface in our network namespace, in a stable order."""
    found = {*LOOPBACK, BROADCAST}
    address = ""
    for line in _FIB_TRIE.read_text().splitlines():
        # The trie names an address ("|-- 10.0.0.1") and then, indented, what it is ("/32 host LOCAL").
        if "|-- " in line:
            address = line.rpartition("|-- ")[2]
        elif "/32 host LOCAL" in line or "/32 link BROADCAST" in line:
            found.add(ip_network(address))
    if _IF_INET6.exists():
        for line in _IF_INET6.read_text().splitlines():
            found.add(ip_network(IPv6Address(bytes.fromhex(line.split()[0]))))
    return tuple(sorted(found, key=lambda network: (network.version, network)))
