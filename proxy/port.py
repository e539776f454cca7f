"""The agent's port: ours alone from before the first hook is attached until after the last one is gone.

Hooks point connections at it, with whatever their clients send first. So nobody else may be able to bind it, not even for the
moment between an agent's death and the next one's start. On every address a socket is bound that never listens, a
*placeholder*; the guard holds a copy. Who connects to a port that is only held is refused at once.

The listening sockets join by SO_REUSEPORT, which the kernel grants to sockets of one user alone, and ours is root. A
placeholder is bound before it permits that, so that it joins nobody itself.
"""

import contextlib
import errno
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

LISTEN_BACKLOG = 4096
# How often one tries to find a port that is free on every address at once.
ATTEMPTS = 50

_IPV6_FREEBIND = 78

Address = tuple[str, int]


class PortError(Exception):
    """There is no port to be had; the text says why."""


class Port:
    """A port number that is free on loopback and on ``gateways``, and the placeholders that keep it."""

    def __init__(self, gateways: Sequence[IPv4Address | IPv6Address] = ()) -> None:
        """Raises ``PortError``."""
        # ::1 also where IPv6 is switched off, as it may be switched on while we run. A kernel without IPv6 has no such socket.
        loopback = ["127.0.0.1", "::1"] if _has_ipv6() else ["127.0.0.1"]
        self._hosts = [*loopback, *map(str, gateways)]
        self._held = _hold_one_port(self._hosts)
        self._foreign: list[socket.socket] = []
        self.number: int = self._held[0].getsockname()[1]

    @property
    def addresses(self) -> list[Address]:
        return [(host, self.number) for host in self._hosts]

    @property
    def fds(self) -> list[int]:
        """Of the placeholders: whoever holds them keeps the port."""
        return [held.fileno() for held in self._held]

    def listen(self, groups: int) -> list[list[socket.socket]]:
        """So many groups of listening sockets, each with one for every address; the kernel shares connections out to them."""
        return [[self._listener(host) for host in self._hosts] for _ in range(groups)]

    def _listener(self, host: str) -> socket.socket:
        listener = _bound(host, self.number, joins=True)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        listener.listen(LISTEN_BACKLOG)
        return listener

    def also_hold(self, addresses: Iterable[Address]) -> None:
        """Keep the port of an agent before us while its guard still does: a SYN may be late, and would meet a stranger."""
        for host, port in addresses:
            with contextlib.suppress(OSError):  # an address that this host does not have any more
                self._foreign.append(_bound(host, port, joins=True))

    def close(self) -> None:
        """Give the port up, as far as we are concerned."""
        for held in (*self._held, *self._foreign):
            held.close()


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise
    return True


def _bound(host: str, port: int, joins: bool) -> socket.socket:
    """A socket bound to an address, alone or beside others of ours; ours may join it."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if ":" in host:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if host == "::1":
            bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, joins)
        bound.bind((host, port))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        bound.close()
        raise
    return bound


def _hold_one_port(hosts: Sequence[str]) -> list[socket.socket]:
    for _ in range(ATTEMPTS):
        held: list[socket.socket] = []
        port = 0
        try:
            for host in hosts:
                held.append(_bound(host, port, joins=False))
                port = held[0].getsockname()[1]
        except OSError as error:
            for placeholder in held:
                placeholder.close()
            if error.errno != errno.EADDRINUSE:
                raise PortError(f"cannot listen on {host}: {error.strerror}") from None
        else:
            return held
    raise PortError(f"found no port that is free on all of {', '.join(hosts)}")
