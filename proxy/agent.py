"""The agent: puts hooks, policy, workers, workloads and the admin listener together, and keeps them together.

The order at start matters. The kernel's tables are complete, and somebody accepts, before the first hook is attached; the
old agent's hooks, if it was killed, go only after ours are there. A change of policy reaches the workers before the kernel
sends them what the change concerns.
"""

import asyncio
import contextlib
import errno
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import msgspec

from policies.compile import kernel_tables
from policies.decide import PolicySet
from policies.load import LoadError, Source, load
from policies.model import Network
from proxy import guard, hostnet
from proxy.admin import Admin, Check, PolicyStatus
from proxy.datapath import HEARTBEAT_INTERVAL, HEARTBEAT_LIMIT, Hooks, netns_cookie
from proxy.documents import read_sources
from proxy.metrics import Snapshot, merge
from proxy.pool import LocalMember, Member, ProcessMember
from proxy.reload import fingerprint
from proxy.worker import Settings, Worker
from proxy.workloads import Found, Ids, Watch, cgroup2_mount, prepare, scan

# How often files of policy and addresses of the host are looked at (seconds): what people change by hand.
LOOK_INTERVAL = 1.0
# A changed file is read only after it has stayed the same this long (seconds): editors and copies write in steps.
SETTLE = 0.2
LISTEN_BACKLOG = 4096
# How often one tries to find a port that is free on every address at once.
PORT_ATTEMPTS = 50


class StartError(Exception):
    """The agent cannot start; the text says why and what to do."""


class Options(msgspec.Struct, frozen=True):
    """What ``sluice run`` was told."""

    paths: tuple[str, ...]
    audit: str
    admin: str
    workers: int
    run_dir: Path
    gateways: tuple[str, ...]
    idle_timeout: float
    drain_timeout: float
    record_headers: tuple[str, ...]
    hold_on_exit: bool


class Generation(msgspec.Struct, frozen=True):
    """The documents in force."""

    policies: PolicySet
    sources: tuple[Source, ...]
    loaded_at: datetime


class Agent:
    """``run`` returns when the agent has drained after SIGTERM or SIGINT."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ids = Ids()
        self._members: list[Member] = []
        self._last_error: str | None = None
        self._local: tuple[Network, ...] = ()
        self._found: Found | None = None
        self._beat_at = time.monotonic()
        self._reloading = asyncio.Lock()
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        options = self._options
        sources = tuple(read_sources(options.paths))
        policies = PolicySet(load(sources), 1)
        self._fingerprint = fingerprint(options.paths)
        self._now = Generation(policies, sources, datetime.now(UTC))
        try:
            lock = guard.lock(options.run_dir / "agent.lock")
        except guard.HeldError as held:
            raise StartError(f"another agent (process {held}) is running with --run-dir {options.run_dir}") from None
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(os.close, lock)
            await self._start(loop, stack)
            sys.stderr.write(self._ready_line())
            sys.stderr.flush()
            await self._stopping.wait()
            sys.stderr.write("sluice: draining\n")
            await asyncio.gather(*(member.drain(options.drain_timeout) for member in self._members))
        return 0

    async def _start(self, loop: asyncio.AbstractEventLoop, stack: contextlib.AsyncExitStack) -> None:
        options = self._options
        mount = cgroup2_mount()
        gateway4, gateway6 = _gateways(options.gateways)
        port, groups = _listen(options.workers, [gateway for gateway in (gateway4, gateway6) if gateway])
        hooks = self._hooks = Hooks(port, gateway4, gateway6)
        stack.callback(hooks.close)
        settings = Settings(
            node=platform.node(),
            audit=options.audit,
            port=port,
            netns=netns_cookie(),
            idle_timeout=options.idle_timeout,
            record_headers=options.record_headers,
        )
        for listeners in groups:
            if options.workers == 1:
                self._members.append(LocalMember(Worker(loop, settings, listeners, hooks.origins)))
            else:
                process = ProcessMember(settings, listeners, hooks.origins)
                await process.start()
                self._members.append(process)
        own = OwnCgroup(mount)
        stack.callback(own.leave)
        hooks.exclude(own.id)
        self._mount = mount
        self._watch = Watch()
        stack.callback(self._watch.close)
        self._local = hostnet.local_networks()
        await self._install(self._now)
        self._beat(loop)
        links = hooks.attach(mount)
        held = guard.Guard(options.run_dir, links, mount / f"sluice-guard-{os.getpid()}")
        if not options.hold_on_exit:
            stack.callback(held.end)
        loop.add_reader(self._watch.fd, self._cgroups_changed)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._on_hangup()))
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._look())
        stack.callback(lambda: [task.cancel() for task in self._tasks])
        admin = Admin(self, options.admin)
        await admin.start()
        self._admin_address = admin.address
        stack.push_async_callback(admin.stop)

    def _spawn(self, work: "contextlib._GeneratorContextManager[None] | object") -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ready_line(self) -> str:
        bundle = self._now.policies.bundle
        return (
            f"sluice: ready: {len(bundle.policies)} policies for {len(bundle.workloads)} workloads, "
            f"generation {self._now.policies.generation}, datapath relay, {self._options.workers} worker(s), "
            f"records in {self._options.audit}, admin at {self._admin_address}\n"
        )

    # The heartbeat.

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_at = time.monotonic()
        self._hooks.beat()
        loop.call_later(HEARTBEAT_INTERVAL, self._beat, loop)

    # Policy.

    async def _install(self, generation: Generation) -> None:
        """Make a generation the one in force: first where it is judged, then where it is redirected."""
        policies = generation.policies
        workloads = policies.bundle.workloads
        ids = {workload.name: self._ids.of(workload.name) for workload in workloads}
        tables = await asyncio.to_thread(kernel_tables, policies, ids, self._local)
        names = {number: name for name, number in self._ids.all().items()}
        await asyncio.gather(*(member.apply(policies, generation.sources, names) for member in self._members))
        self._now = generation
        prepare(self._mount, workloads)
        self._look_at_cgroups()
        await asyncio.to_thread(self._hooks.install, tables, policies.generation)

    async def reload(self) -> None:
        """Read the documents again. What cannot be loaded changes nothing and is told."""
        async with self._reloading:
            self._fingerprint = fingerprint(self._options.paths)
            number = self._now.policies.generation + 1
            try:
                sources = tuple(read_sources(self._options.paths))
                bundle = await asyncio.to_thread(load, sources)
                await self._install(Generation(PolicySet(bundle, number), sources, datetime.now(UTC)))
            except (LoadError, OSError) as error:
                self._last_error = str(error)
                sys.stderr.write(f"sluice: reload failed, generation {number - 1} stays in force:\n{error}\n")
            else:
                self._last_error = None
                sys.stderr.write(f"sluice: reloaded: generation {number}\n")

    async def _on_hangup(self) -> None:
        await asyncio.gather(*(member.reopen() for member in self._members))
        await self.reload()

    async def _look(self) -> None:
        """Notice what changes by hand: files of policy, addresses of the host."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            if fingerprint(self._options.paths) != self._fingerprint:
                await asyncio.sleep(SETTLE)
                await self.reload()
            local = hostnet.local_networks()
            if local != self._local:
                self._local = local
                async with self._reloading:
                    policies = PolicySet(self._now.policies.bundle, self._now.policies.generation + 1)
                    await self._install(msgspec.structs.replace(self._now, policies=policies))
            self._look_at_cgroups()
            self._hooks.sweep()

    # Workloads.

    def _cgroups_changed(self) -> None:
        self._watch.drain()
        self._look_at_cgroups()

    def _look_at_cgroups(self) -> None:
        """Look until nothing new is seen, so that what appeared before its folder was watched is not missed."""
        while True:
            found = scan(self._mount, self._now.policies.bundle.workloads)
            self._watch.follow(found.watched)
            if self._found is not None and self._found.watched == found.watched:
                break
            self._found = found
        self._found = found
        owners = {cgroup: self._ids.of(name) if name else None for cgroup, name in found.cgroups.items()}
        self._hooks.set_cgroups(owners, found.unsettled)

    # What the admin listener tells.

    async def metrics(self) -> Snapshot:
        merged = merge(await asyncio.gather(*(member.snapshot() for member in self._members)))
        merged["series"]["sluice_connects"] = [([outcome], count) for outcome, count in self._hooks.events().items()]
        return merged

    async def health(self) -> Mapping[str, Check]:
        troubles = await asyncio.gather(*(member.audit_trouble() for member in self._members))
        trouble = next((trouble for trouble in troubles if trouble), None)
        late = time.monotonic() - self._beat_at
        return {
            "heartbeat": Check(late < HEARTBEAT_LIMIT, f"{late:.3f} s ago"),
            "audit": Check(trouble is None, trouble),
            "policy": Check(self._last_error is None, self._last_error),
        }

    async def policy(self) -> PolicyStatus:
        bundle = self._now.policies.bundle
        documents = [f"Workload/{workload.name}" for workload in bundle.workloads]
        documents += [f"{policy.kind}/{policy.name}" for policy in bundle.policies]
        return PolicyStatus(
            generation=self._now.policies.generation,
            files=[source.name for source in self._now.sources],
            documents=documents,
            loaded_at=self._now.loaded_at,
            last_reload_error=self._last_error,
        )

    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]:
        parts = await asyncio.gather(*(member.connections(limit) for member in self._members))
        shown = [connection for _, some in parts for connection in some]
        return sum(count for count, _ in parts), shown[:limit]


class OwnCgroup:
    """A cgroup for our processes alone: what they connect to is never redirected."""

    def __init__(self, mount: Path) -> None:
        relative = next(
            line.strip().removeprefix("0::")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        self._before = mount / relative.lstrip("/")
        if self._before.name.startswith("sluice-agent-"):
            self._before = self._before.parent
        for stale in (*self._before.glob("sluice-agent-*"), *mount.glob("sluice-guard-*")):
            with contextlib.suppress(OSError):  # not empty: somebody lives there
                stale.rmdir()
        self.path = self._before / f"sluice-agent-{os.getpid()}"
        self.path.mkdir(exist_ok=True)
        (self.path / "cgroup.procs").write_text("0")
        self.id = self.path.stat().st_ino

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            (self._before / "cgroup.procs").write_text("0")
        guard.remove_cgroup(self.path)


def _gateways(given: Sequence[str]) -> tuple[IPv4Address | None, IPv6Address | None]:
    addresses = [ip_network(text).network_address for text in given]
    four = [address for address in addresses if isinstance(address, IPv4Address)]
    six = [address for address in addresses if isinstance(address, IPv6Address)]
    if len(four) > 1 or len(six) > 1:
        raise StartError("--gateway takes at most one IPv4 and one IPv6 address")
    return (four[0] if four else None), (six[0] if six else None)


def _listen(workers: int, gateways: Sequence[IPv4Address | IPv6Address]) -> tuple[int, list[list[socket.socket]]]:
    """The agent's port, the same on every address, and the listening sockets of each worker."""
    hosts = ["127.0.0.1", *(["::1"] if hostnet.has_ipv6() else []), *(str(gateway) for gateway in gateways)]
    for _ in range(PORT_ATTEMPTS):
        port, groups = 0, []
        try:
            for _ in range(workers):
                listeners: list[socket.socket] = []
                groups.append(listeners)
                for host in hosts:
                    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
                    listeners.append(listener)
                    if workers > 1:
                        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    if ":" in host:
                        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    listener.bind((host, port))
                    port = port or listener.getsockname()[1]
                    listener.listen(LISTEN_BACKLOG)
        except OSError as error:
            for listener in [listener for listeners in groups for listener in listeners]:
                listener.close()
            if error.errno == errno.EADDRINUSE:
                continue
            raise StartError(f"cannot listen on {host}: {error.strerror}") from None
        return port, groups
    raise StartError(f"found no port that is free on all of {', '.join(hosts)}")
