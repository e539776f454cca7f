"""The hooks alone, with tables written by hand: a plain listening socket stands in for the agent.

``Rig`` drives `proxy.datapath.Hooks` as the agent does. The test process itself is the client and the server: it moves into
a cgroup, makes a socket, and moves back. Whose socket it is stays as it was.
"""

import contextlib
import itertools
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import TypeVar, cast

from policies.compile import ANY_PEER, AddressEntry, KernelTables, RuleEntry
from policies.decide import Action
from proxy.datapath import Hooks, Origin
from proxy.heartbeat import INTERVAL
from proxy.workloads import cgroup2_mount
from tests.harness import free_port

HOST, UNRESOLVED, WORLD, AGENT = 0, 0xFFFF, 0x10000, 0xFFFFFFFE
CLIENT, SERVER, OTHER = 1, 2, 3  # workloads
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
NATIVE, REFUSE, REDIRECT = Action.NATIVE, Action.REFUSE, Action.REDIRECT
# How long something on this machine that should happen may take (seconds).
PATIENCE = 10.0
NOBODY = 65534  # the user and the group without any rights

T = TypeVar("T")

# Every generation knows every address: the world, and this host's own.
ADDRESSES = (
    AddressEntry(ip_network("0.0.0.0/0"), WORLD, False),
    AddressEntry(ip_network("::/0"), WORLD, False),
    AddressEntry(ip_network("127.0.0.0/8"), UNRESOLVED, True),
    AddressEntry(ip_network("::1/128"), UNRESOLVED, True),
)

_unique = itertools.count(1)


def address(text: str, identity: int) -> AddressEntry:
    """A prefix of an endpoint that is not on this host."""
    return AddressEntry(ip_network(text), identity, False)


def rule(
    subject: int,
    peer: int,
    action: Action,
    port: int = 0,
    bits: int = 0,
    transport: int = TCP,
    fail_open: bool = False,
    carried: bool = True,
) -> RuleEntry:
    """What holds for the ports whose first ``bits`` bits are those of ``port``; all ports if 0."""
    return RuleEntry(subject, peer, transport, port, bits, action, fail_open, carried)


def free(subject: int) -> list[RuleEntry]:
    """A workload that no egress policy selects."""
    return [rule(subject, ANY_PEER, NATIVE, transport=transport) for transport in (TCP, UDP)]


class Cgroup:
    """A cgroup of the test's own below /sluice; gone after the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.id = path.stat().st_ino  # is never given to another

    def sub(self, name: str) -> "Cgroup":
        return Cgroup(self.path / name)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling process is in the cgroup for the body, all its threads with it."""
        (self.path / "cgroup.procs").write_text("0")
        try:
            yield
        finally:
            (cgroup2_mount() / "cgroup.procs").write_text("0")

    def as_nobody(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in a process of the cgroup that has no rights at all; raises what it raises.

        The process is a copy of this one (fork), so it has our sockets too.
        """
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                (self.path / "cgroup.procs").write_text("0")
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                result: tuple[bool, object] = True, work()
            except BaseException as error:
                result = False, error
            with open(theirs, "wb") as channel:
                channel.write(pickle.dumps(result))
            os._exit(0)
        os.close(theirs)
        with open(ours, "rb") as channel:
            answer = channel.read()
        os.waitpid(child, 0)
        done, value = pickle.loads(answer)
        if not done:
            raise value
        return cast(T, value)

    def remove(self) -> None:
        for child in list(self.path.iterdir()):
            if child.is_dir():
                Cgroup(child).remove()
        self.path.rmdir()


class Rig:
    """Hooks, the stand-in of the agent, and what tests need around them. Closed by the fixture."""

    def __init__(self, gateway4: str | None = None, gateway6: str | None = None, backlog: int = 128) -> None:
        self._stack = contextlib.ExitStack()
        self.base = Cgroup(cgroup2_mount() / "sluice" / f"rig{os.getpid()}-{next(_unique)}")
        self._stack.callback(self.base.remove)
        hosts = ["127.0.0.1", "::1", *(host for host in (gateway4, gateway6) if host)]
        self.agent = self.base.sub("agent")
        with self.agent.inside():
            self.listeners = self._listen(hosts, backlog)
        self.port: int = self.listeners[0].getsockname()[1]
        gateways = IPv4Address(gateway4) if gateway4 else None, IPv6Address(gateway6) if gateway6 else None
        self.hooks = Hooks(self.port, *gateways)
        self._stack.callback(self.hooks.close)
        self.hooks.exclude(self.agent.id)
        self.hooks.translated = False
        self._cgroups: dict[int, int | None] = {}
        self.accelerated: set[int] = set()  # subjects whose connections the kernel may carry
        self._generation = 0
        self._beating = threading.Event()
        self._stopped = threading.Event()

    def _listen(self, hosts: Iterable[str], backlog: int) -> list[socket.socket]:
        port, listeners = free_port(), []
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = self._stack.enter_context(socket.socket(family))
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
            listener.listen(backlog)
            listener.setblocking(False)
            listeners.append(listener)
        return listeners

    def cgroup(self, name: str, subject: int | None = None) -> Cgroup:
        """A cgroup, and whose it is."""
        made = self.base.sub(name)
        if subject is not None:
            self._cgroups[made.id] = subject
            self.hooks.set_cgroups(self._cgroups, [], self.accelerated)
        return made

    def forget(self, cgroup: Cgroup) -> None:
        """Nobody says any more whose a cgroup is."""
        del self._cgroups[cgroup.id]
        self.hooks.set_cgroups(self._cgroups, [], self.accelerated)

    def install(self, *rules: RuleEntry | Iterable[RuleEntry], addresses: Iterable[AddressEntry] = ()) -> None:
        """The next generation."""
        flat = [entry for some in rules for entry in ([some] if isinstance(some, RuleEntry) else some)]
        self._generation += 1
        self.hooks.install(KernelTables((*ADDRESSES, *addresses), tuple(flat)), self._generation)

    def attach(self, *rules: RuleEntry | Iterable[RuleEntry], addresses: Iterable[AddressEntry] = ()) -> "Rig":
        """Install the first generation and let the hooks act, with a beating heart."""
        self.install(*rules, addresses=addresses)
        self._beating.set()
        heart = threading.Thread(target=self._beat)
        heart.start()
        self._stack.callback(heart.join)
        self._stack.callback(self._stopped.set)
        self.links = self.hooks.attach(cgroup2_mount())
        return self

    def _beat(self) -> None:
        while not self._stopped.wait(INTERVAL):
            if self._beating.is_set():
                self.hooks.beat()

    def stop_heart(self) -> None:
        self._beating.clear()

    def start_heart(self) -> None:
        self._beating.set()
        self.hooks.beat()

    def accepted(self, patience: float = PATIENCE) -> tuple[socket.socket, Origin | None]:
        """The next connection to the agent's port, and what it really asked for."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for listener in self.listeners:
                with contextlib.suppress(BlockingIOError):
                    down, _ = listener.accept()
                    self._stack.enter_context(down)
                    return down, self.hooks.origins.asked(down)
            time.sleep(0.001)
        raise AssertionError("nobody came to the agent's port")

    def nobody_came(self) -> bool:
        """Whether the agent's port has been left alone so far."""
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                return False
        return True

    def origin(self) -> Origin:
        """What the next redirected connection asked for."""
        _, origin = self.accepted()
        assert origin is not None, "somebody came to the agent's port who was not redirected"
        return origin

    def event(self, name: str) -> int:
        """How many connects of anybody on this machine had this outcome since the hooks were loaded."""
        return self.hooks.events()[name]

    def written(self) -> int:
        """How many who wrote from elsewhere to UDP sockets are remembered."""
        return len(self.hooks.writers.keys())

    def server(
        self,
        owner: Cgroup | None = None,
        host: str = "127.0.0.1",
        kind: int = socket.SOCK_STREAM,
        protocol: int = 0,
        port: int = 0,
    ) -> socket.socket:
        """A listening (or UDP) socket that belongs to ``owner``."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with owner.inside() if owner else contextlib.nullcontext():
            made = self._stack.enter_context(socket.socket(family, kind, protocol))
        made.settimeout(PATIENCE)
        made.bind((host, port))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def client(self, owner: Cgroup | None, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A client's socket, with a time limit on everything that it does."""
        with owner.inside() if owner else contextlib.nullcontext():
            made = self._stack.enter_context(socket.socket(family, kind, protocol))
        made.settimeout(PATIENCE)
        return made

    def connect(
        self, owner: Cgroup | None, host: str, port: int, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A socket of ``owner`` that has connected; raises what ``connect`` raises."""
        made = self.client(owner, socket.AF_INET6 if ":" in host else socket.AF_INET, kind, protocol)
        with owner.inside() if owner else contextlib.nullcontext():
            made.connect((host, port))
        return made

    def close(self) -> None:
        self._stack.close()
