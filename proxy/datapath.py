"""The kernel side as the agent sees it: hooks, tables, and who asked for what.

Only this module and ``bpf/`` know the layouts of the maps. ``Hooks`` is the agent's: it loads, fills and attaches. ``Origins``
is what a worker needs: to learn what an accepted connection really asked for.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import msgspec

import bpf
from bpf import abi
from bpf.loader import Map, Object, map_from_fd
from policies.compile import KernelTables, RuleEntry
from proxy import hostnet

# A heartbeat older than this means a dead agent (seconds). The agent beats ten times as often (proxy/heartbeat.py).
HEARTBEAT_LIMIT = 1.0
# A redirected connection that was not accepted for this long (seconds) never will be: its client has given up.
PENDING_LIMIT = 120.0

PROGRAMS = (
    "connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6",
    "sock_create", "getpeername4", "getpeername6", "sock_ops", "ingress", "egress",
)  # fmt: skip

_SO_NETNS_COOKIE = 71
_PEER = abi.Origin._fields.index("peer")  # asked for with every connection
_PREFIX = {4: 96, 6: 0}  # IPv4 lives in the IPv4-mapped part of the address space


def mapped(address: IPv4Address | IPv6Address) -> bytes:
    """16 bytes in network order; IPv4 as IPv4-mapped."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def unmapped(address: bytes, v4: bool) -> str:
    return socket.inet_ntoa(address[12:]) if v4 else socket.inet_ntop(socket.AF_INET6, address)


def netns_cookie() -> int:
    """The cookie of our network namespace, as the kernel's programs see it."""
    with socket.socket() as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


class Origin(msgspec.Struct, frozen=True):
    """What a redirected connection asked for, by the kernel's word."""

    address: str
    port: int
    subject: int  # identities of bpf/sluice.h
    peer: int
    cookie: int
    cgroup: int
    accelerated: bool  # the caller's workload lets the kernel carry its calls
    sock: int = 0  # address of the caller's socket, if it is in the map of the kernel path
    first: int = 0  # number of the first byte to it

    @property
    def unresolved(self) -> bool:
        """The peer is a process of this host, but the hook could not tell which."""
        return self.peer == abi.Identity.UNRESOLVED

    @property
    def from_host(self) -> bool:
        """The caller is a process of this host that is no workload."""
        return self.subject == abi.Identity.HOST

    @property
    def to_agent(self) -> bool:
        return self.peer == abi.Identity.AGENT


class Origins:
    """What sockets of ours are about, as the kernel's programs have noted it with them."""

    def __init__(self, accepted: Map, connected: Map) -> None:
        self._accepted, self._connected = accepted, connected
        self.fds = (accepted.fd, connected.fd)

    def asked(self, sock: socket.SocketType) -> Origin | None:
        """What the connection that a socket of ours has accepted really asked for; None: nobody redirected it."""
        value = self._accepted.get(sock.fileno().to_bytes(4, sys.byteorder))
        if value is None:
            return None
        addr, port, v4, subject, peer, _, cookie, cgroup, _, flags, _, caller, first, _ = abi.SLUICE_ORIGIN.unpack(value)
        accelerated = bool(flags & abi.Flag.ORIGIN_ACCELERATE)
        return Origin(unmapped(addr, bool(v4)), socket.ntohs(port), subject, peer, cookie, cgroup, accelerated, caller, first)

    def reached(self, sock: socket.SocketType) -> int | None:
        """The identity of whom a socket of ours has connected to, noted by the hook when ``connect`` was called.

        None: nobody can tell.
        """
        value = self._connected.get(sock.fileno().to_bytes(4, sys.byteorder))
        peer = abi.SLUICE_ORIGIN.unpack(value)[_PEER] if value else abi.Identity.UNRESOLVED
        return None if peer == abi.Identity.UNRESOLVED else peer

    @classmethod
    def inherited(cls, fds: tuple[int, int]) -> "Origins":
        """In a worker process: from the agent's maps."""
        accepted, connected = (
            map_from_fd(fd, name, 4, abi.SLUICE_ORIGIN.size) for fd, name in zip(fds, ("accepted", "origins"), strict=True)
        )
        return cls(accepted, connected)


def _rule_flags(entry: RuleEntry) -> int:
    return (abi.Flag.RULE_FAIL_OPEN if entry.fail_open else 0) | (abi.Flag.RULE_CARRIED if entry.carried else 0)


# The first and the last field of struct sluice_control.
_HEARTBEAT, _FLAGS = struct.Struct("=Q"), struct.Struct("=I")
_FLAGS_AT = abi.SLUICE_CONTROL.size - _FLAGS.size


def is_class(identity: int) -> bool:
    """Whether an identity is a class of addresses, whose numbers change with the policy, and not a process of a host."""
    return identity >= abi.Identity.FIRST_CLASS


class Hooks:
    """The programs of redirect.bpf.c and their maps. Nothing is attached before ``attach``; before the first ``install``
    the programs let everything pass. With ``only_maps`` there is nothing to attach."""

    def __init__(self, port: int, gateway4: IPv4Address | None, gateway6: IPv6Address | None, only_maps: bool = False) -> None:
        self.netns = netns_cookie()
        none = IPv6Address(0)
        config = abi.Config(
            agent_netns=self.netns,
            heartbeat_limit_ns=int(HEARTBEAT_LIMIT * 1e9),
            gateway4=mapped(gateway4 or none),
            gateway6=mapped(gateway6 or none),
            agent_port=socket.htons(port),
            no_ipv6=not hostnet.has_ipv6(),
            zero=b"\0" * 5,
        )
        self.config = abi.SLUICE_CONFIG.pack(*config)
        self._object = Object(object_file("redirect"), self.config, only_maps=only_maps)
        self._cgroups = self._object.map("cgroups")
        self._addresses = self._object.map("addresses")
        self._rules = self._object.map("rules")
        self.pending = self._object.map("pending")
        self._events = self._object.map("events")
        self.writers, self.waiting = self._object.map("writers"), self._object.map("waiting")
        control = self._object.map("control")
        self.shared = (control, self._object.map("origins"))  # with the programs of the kernel path
        names = "cgroups", "graves", "natives", "device_ports"
        self.survey = [self._object.map(name) for name in names]  # with the programs of existing.bpf.c
        self._control = control.memory(abi.SLUICE_CONTROL.size)
        self._generation = 0
        # Whether a local address at which nobody listens may be led elsewhere (proxy/translation.py).
        self._translated = True
        self._known: dict[int, tuple[int, int]] = {}
        self._graves = self._object.map("graves")
        self._buried: dict[bytes, None] = {}  # the oldest first
        self.forgotten = 0  # how often the limit MAX_GRAVES was reached
        self._own: set[int] = set()
        self.origins = Origins(self._object.map("accepted"), self._object.map("origins"))

    def attach(self, mount: Path) -> list[int]:
        """Attach to the root of the cgroup tree; the file descriptors of the links."""
        root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [self._object.attach(f"sluice_{program}", root) for program in PROGRAMS]
        finally:
            os.close(root)

    def beat(self) -> None:
        """We are alive. From any thread: nothing is written but the time."""
        self._control[: _HEARTBEAT.size] = _HEARTBEAT.pack(time.monotonic_ns())

    @property
    def translated(self) -> bool:
        return self._translated

    @translated.setter
    def translated(self, translated: bool) -> None:
        self._translated = translated
        self._control[_FLAGS_AT : _FLAGS_AT + _FLAGS.size] = _FLAGS.pack(self._flags)

    @property
    def _flags(self) -> int:
        return abi.Flag.CONTROL_TRANSLATED if self._translated else 0

    def end(self) -> None:
        """Redirect nobody any more: what would be redirected is refused, as if we were dead. The heart must have stopped."""
        self._control[: _HEARTBEAT.size] = bytes(_HEARTBEAT.size)

    def exclude(self, cgroup: int) -> None:
        """Never redirect what this cgroup's processes do: they are the agent. It stays so, whatever a look at the tree says."""
        self._own.add(cgroup)
        self._cgroups.set(cgroup.to_bytes(8, sys.byteorder), abi.SLUICE_CGROUP.pack(abi.Identity.AGENT, 0))

    def set_cgroups(
        self, cgroups: Mapping[int, int | None], unsettled: Iterable[int], accelerated: Collection[int] = ()
    ) -> None:
        """Who each cgroup is: cgroup id to subject. Entries that are not named any more are removed.

        Whose those were is still known of sockets that outlive their cgroup.

        ``accelerated`` are the subjects whose connections the kernel may carry.
        """
        open_ended = set(unsettled)
        wanted = {
            cgroup: (
                subject or abi.Identity.HOST,
                (abi.Flag.CGROUP_UNSETTLED if cgroup in open_ended else 0)
                | (abi.Flag.CGROUP_ACCELERATE if subject in accelerated else 0),
            )
            for cgroup, subject in cgroups.items()
            if cgroup not in self._own
        }
        # Children before the folder in which they appeared: an unsettled folder refuses until its child is known.
        changed = [item for item in wanted.items() if self._known.get(item[0]) != item[1]]
        self._cgroups.set_all((cgroup.to_bytes(8, sys.byteorder), abi.SLUICE_CGROUP.pack(*entry)) for cgroup, entry in changed)
        for cgroup in self._known.keys() - wanted.keys():
            key = cgroup.to_bytes(8, sys.byteorder)
            self._bury(key, self._known[cgroup][0])
            self._cgroups.delete(key)
        self._known = wanted

    def _bury(self, cgroup: bytes, subject: int) -> None:
        """The hooks ask here only of cgroups that are removed, so one that is merely not named any more does no harm."""
        if subject == abi.Identity.HOST:
            return
        self._buried.pop(cgroup, None)
        if len(self._buried) >= abi.Limit.MAX_GRAVES:
            oldest = next(iter(self._buried))
            del self._buried[oldest]
            self._graves.delete(oldest)
            self.forgotten += 1
        self._graves.set(cgroup, abi.SLUICE_CGROUP.pack(subject, 0))
        self._buried[cgroup] = None

    def install(self, tables: KernelTables, generation: int) -> None:
        """Make ``tables`` the ones that connect() is judged by: all at once, when the last entry is in."""
        self._addresses.set_all(
            (
                _address_key(generation, entry.network),
                abi.SLUICE_ADDRESS.pack(entry.identity, abi.Flag.ADDRESS_LOCAL if entry.local else 0),
            )
            for entry in tables.addresses
        )
        self._rules.set_all(
            (
                abi.SLUICE_RULE_KEY.pack(
                    112 + entry.prefix_bits, generation, entry.subject, entry.peer, entry.transport, 0, socket.htons(entry.port)
                ),
                abi.SLUICE_RULE.pack(entry.action, _rule_flags(entry)),
            )
            for entry in tables.rules
        )
        previous, self._generation = self._generation, generation
        self._write_control()
        # A connect() that read the old number a moment ago must still find its entries: they go with the next generation.
        for table in (self._addresses, self._rules):
            for key in table.keys():  # noqa: SIM118 - a Map is no dict
                if int.from_bytes(key[4:8], sys.byteorder) not in (previous, generation):
                    table.delete(key)

    def sweep(self) -> int:
        """Forget connections that were redirected but will never be accepted; how many there were."""
        oldest = time.monotonic_ns() - int(PENDING_LIMIT * 1e9)
        forgotten = 0
        for key in self.pending.keys():  # noqa: SIM118
            value = self.pending.get(key)
            if value and abi.Origin(*abi.SLUICE_ORIGIN.unpack(value)).since_ns < oldest:
                self.pending.delete(key)
                forgotten += 1
        return forgotten

    def events(self) -> dict[str, int]:
        """How many connects had which outcome since the start."""
        counts = self._events.per_cpu_sums(abi.Event.EV_MAX)
        return {abi.Event(number).name.removeprefix("EV_").lower(): count for number, count in enumerate(counts)}

    def close(self) -> None:
        self._control.close()
        self._object.close()

    def _write_control(self) -> None:
        control = abi.SLUICE_CONTROL.pack(time.monotonic_ns(), self._generation, self._flags)
        self._control[: abi.SLUICE_CONTROL.size] = control


def _address_key(generation: int, network: IPv4Network | IPv6Network) -> bytes:
    bits = 32 + _PREFIX[network.version] + network.prefixlen
    return abi.SLUICE_ADDRESS_KEY.pack(bits, generation, mapped(network.network_address))


def object_file(name: str) -> Path:
    """A compiled BPF object, shipped beside the package."""
    return Path(bpf.__file__).with_name(f"{name}.bpf.o")
