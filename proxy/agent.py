"""The agent: puts hooks, policy, workers, workloads and the admin listener together, and keeps them together.

The order at start matters. Everything that can fail comes before the first hook is attached: the kernel's tables are
complete, somebody accepts, the admin listener's addresses are ours. The old agent's hooks, if it was killed, go last, when
ours are there and a guard holds them, so that a start that fails or is killed leaves what was refused refused. So does the
order at the end: redirection ends before the listening sockets close, and the port is given up after the last hook is gone.

A change of policy reaches the workers before the kernel sends them what the change concerns; one that fails half-way is taken
back.
"""

import asyncio
import contextlib
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bpf.loader import BpfError, fd_of_map
from policies.compile import KernelTables, TableLimitError, kernel_tables
from policies.decide import PolicySet
from policies.load import LoadError, Source, load
from policies.model import Acceleration, Network, Workload
from policies.replies import reply_table
from proxy import guard, hostnet, selftest
from proxy.admin import Admin, Check, PolicyStatus
from proxy.datapath import HEARTBEAT_LIMIT, Hooks
from proxy.documents import UnsettledError, read_sources
from proxy.existing import Existing
from proxy.faults import step
from proxy.heartbeat import REMEMBERED, Heartbeat
from proxy.metrics import Snapshot, merge
from proxy.pool import LocalMember, Member, ProcessMember, WorkerError
from proxy.port import Port
from proxy.reload import SETTLE, Fingerprint, Rest, fingerprint
from proxy.translation import translates
from proxy.wheel import KernelPath
from proxy.worker import Settings, Worker
from proxy.workloads import Ids, Watch, WorkloadError, cgroup2_mount, prepare, scan

# How often files of policy and addresses of the host are looked at (seconds): what people change by hand.
LOOK_INTERVAL = 1.0
# A start waits so long (seconds) for documents that somebody has open for writing.
START_PATIENCE = 10.0
# Looks at the cgroup tree in a row. Each finds folders that the one before made us watch; a tree that goes on changing must
# not hold the event loop up, and inotify and the next regular look bring us back to it.
MAX_LOOKS = 16
# Why policy is put in force again.
RELOAD, READDRESS = "reload", "the addresses of this host have changed"


Answer = TypeVar("Answer")


class StartError(Exception):
    """The agent cannot start; the text says why and what to do."""


class _StoppingError(Exception):
    """The agent was told to stop while it waited for a file system."""


class Options(msgspec.Struct, frozen=True):
    """What ``sluice run`` was told."""

    paths: tuple[str, ...]
    audit: str
    admin: str
    workers: int
    run_dir: Path
    gateways: tuple[IPv4Address | IPv6Address, ...]
    idle_timeout: float
    drain_timeout: float
    record_headers: tuple[str, ...]
    hold_on_exit: bool
    existing: str  # "keep", "reset" or "reset-denied"
    datapath: str  # "auto", "kernel" or "relay"
    memory: int  # bytes for the records and connections of all workers


class Generation(msgspec.Struct, frozen=True):
    """The documents in force."""

    policies: PolicySet
    sources: tuple[Source, ...]
    loaded_at: datetime


class Agent:
    """``run`` returns when the agent has drained after SIGTERM or SIGINT."""

    _now: Generation  # in force; from the first ``_install`` on

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ids = Ids()
        self._members: list[Member] = []
        self._troubles: dict[str, str] = {}  # what does not work at the moment -> why
        self._local: tuple[Network, ...] = ()
        self._workloads: Sequence[Workload] = ()  # whose cgroups the kernel is told: a step ahead of ``_now`` in ``_install``
        self._watched: frozenset[Path] = frozenset()
        self._kernel: KernelPath | None = None
        self._accelerate_all = False  # also workloads that do not ask for it
        self._guard: guard.Guard | None = None
        self._guard_fd: int | None = None
        self._guarded_at = 0.0  # when it was started
        self._stays = False  # the guard, when we end, and with it the hooks
        self._links: list[int] = []
        self._existing: Existing | None = None
        self._tables: KernelTables | None = None  # in force
        self._dropped = 0  # SYNs, when their senders were last looked at
        self._left: list[int] = []  # maps of sockets of the agent before us, which may hold bytes that nobody has read yet
        self._heartbeat: Heartbeat | None = None
        self._number = 0  # of the last generation that was tried
        self._rest = Rest()
        self._asking: asyncio.Future[Any] | None = None  # what is asked about files
        self._stopping = asyncio.Event()
        self._hung_up = False
        self._wake = asyncio.Event()  # there is something to do before the next regular look

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        options = self._options
        self._next_look = loop.call_later(0, self._wake.set)
        # First of all, so that a signal during the start is obeyed after it and cuts nothing in two.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            generation = await self._first()
        except _StoppingError:
            return 0
        try:
            lock = guard.lock(options.run_dir / guard.AGENT_LOCK)
        except guard.HeldError as held:
            raise StartError(f"another agent (process {held}) is running with --run-dir {options.run_dir}") from None
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(os.close, lock)
            await self._start(loop, stack, generation)
            sys.stderr.write(self._ready_line())
            sys.stderr.flush()
            await self._follow()
            sys.stderr.write("sluice: draining\n")
            self._end_beat()
            self._hooks.end()
            step("ended")
            lost = sum(await asyncio.gather(*(member.drain(options.drain_timeout) for member in self._members)))
            if self._stays:
                self._look_at_guard()
            step("drained")
        if lost:
            sys.stderr.write(f"sluice: {lost} records could not be written to {options.audit}\n")
        return 1 if lost else 0

    async def _start(self, loop: asyncio.AbstractEventLoop, stack: contextlib.AsyncExitStack, generation: Generation) -> None:
        options = self._options
        self._mount = cgroup2_mount()
        # First: sockets and processes belong to the cgroup that they are made in, and ours must be known as the agent's.
        own = OwnCgroup(self._mount)
        stack.callback(own.leave)
        port = self._port = Port(options.gateways)
        stack.callback(port.close)
        stack.callback(self._let_go)
        step("bound")
        gateway4 = next((address for address in options.gateways if isinstance(address, IPv4Address)), None)
        gateway6 = next((address for address in options.gateways if isinstance(address, IPv6Address)), None)
        hooks = self._hooks = Hooks(port.number, gateway4, gateway6)
        stack.callback(self._unhook)
        hooks.exclude(own.id)
        self._kernel = self._kernel_path()
        if self._kernel:
            stack.callback(self._kernel.close)
        settings = Settings(
            node=platform.node(),
            audit=options.audit,
            port=port.number,
            idle_timeout=options.idle_timeout,
            accelerate_all=self._accelerate_all,
            memory=options.memory // options.workers,
            record_headers=options.record_headers,
        )
        stack.callback(self._leave, own.before)
        step("loaded")
        for index, listeners in enumerate(port.listen(options.workers)):
            files = self._kernel.files[index] if self._kernel else None
            if options.workers == 1:
                self._members.append(LocalMember(Worker(loop, settings, listeners, hooks.origins, files)))
            else:
                process = ProcessMember(settings, listeners, hooks.origins, files)
                stack.push_async_callback(process.end)
                await process.start()
                self._members.append(process)
        self._watch = Watch()
        stack.callback(self._watch.close)
        self._local = hostnet.local_networks()
        stack.callback(self._end_beat)
        self._existing = self._existing_connections()
        if self._existing:
            stack.callback(self._existing.close)
            self._existing.survey()  # the hooks learn where listening sockets are bound to a device
        self._look_for_translation()
        self._beat(loop)
        await self._install(generation)
        step("installed")
        # At a port, which every user of the host can reach, not everything is told.
        also = (str(options.run_dir / "admin.sock"),) if options.admin.isdecimal() else ()
        admin = self._admin = Admin(self, *also, options.admin)
        stack.push_async_callback(admin.stop)
        admin.listen()
        step("admin")
        self._links = hooks.attach(self._mount)
        step("hooked")
        if self._kernel:
            self._links.append(self._kernel.attach(self._mount))
        step("attached")
        loop.add_reader(self._watch.fd, self._cgroups_changed)
        stack.callback(loop.remove_reader, self._watch.fd)
        self._hold()
        step("held")
        self._stays = True  # if this fails, some older guards may be gone already
        self._succeed(loop, own.before)
        step("alone")
        await self._end_existing()
        self._stays = options.hold_on_exit
        admin.start()

    def _kernel_path(self) -> KernelPath | None:
        """The kernel path, or None where it is not wanted or this kernel does not have what it needs."""
        if self._options.datapath == "relay":
            return None
        found = selftest.kernel_path()
        missing = found.missing
        try:
            if found.reading is not None:
                # Nobody can tell how a program will read before it has. One that reads by what is wrong stalls.
                self._accelerate_all = self._options.datapath == "kernel" or not found.reading.wrong()
                return KernelPath(self._hooks, reply_table(), self._options.workers)
        except BpfError as error:
            missing = str(error)
        if self._options.datapath == "kernel":
            raise StartError(f"the kernel path does not work here: {missing}")
        sys.stderr.write(f"sluice: calls are relayed, the kernel path does not work here: {missing}\n")
        return None

    def _existing_connections(self) -> Existing | None:
        try:
            return Existing(self._hooks)
        except BpfError:
            if self._options.existing != "keep":
                sys.stderr.write(
                    "sluice: connections that exist already keep their path, whatever policy says: this kernel cannot end them "
                    "(Linux 6.5 or later can; --existing keep says that you know)\n"
                )
            return None

    def _look_for_translation(self) -> None:
        # Where nobody can tell who listened before us, a port may be open that looks closed.
        self._hooks.translated = self._existing is None or translates(self._mount)

    async def _end_existing(self) -> None:
        """End connections that were judged by other rules than those in force, or by nobody."""
        if self._existing is None or self._tables is None or self._options.existing == "keep":
            return
        try:
            ended = await asyncio.to_thread(self._existing.end, self._tables, self._options.existing == "reset")
        except (BpfError, OSError) as error:
            self._tell("existing", error)
            return
        self._troubles.pop("existing", None)
        if ended:
            sys.stderr.write(f"sluice: ended {ended} connections that policy does not let pass any more\n")

    async def _end_refused(self) -> None:
        """End connects whose SYN was refused where it arrived: they would send it again for minutes, in vain."""
        dropped = self._hooks.events()["syn_refused"]
        if self._existing is None or self._tables is None or dropped == self._dropped:
            return
        self._dropped = dropped
        await asyncio.to_thread(self._existing.end, self._tables, connecting=True)

    def _ready_line(self) -> str:
        bundle = self._now.policies.bundle
        datapath = "kernel" if self._kernel else "relay"
        if self._kernel and not self._accelerate_all:
            datapath = "kernel for workloads that ask for it"
        return (
            f"sluice: ready: {len(bundle.policies)} policies for {len(bundle.workloads)} workloads, "
            f"generation {self._now.policies.generation}, datapath {datapath}, {self._options.workers} worker(s), "
            f"records in {self._options.audit}, admin at {self._admin.address}\n"
        )

    # Signals and other news. They only wake ``_follow``, so that a storm of them is one piece of work.

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._asking is not None and not self._asking.done():
            self._asking.set_exception(_StoppingError)

    def _hang_up(self) -> None:
        self._hung_up = True
        self._wake.set()

    async def _follow(self) -> None:
        """Follow what changes until the agent is told to stop. Only here does policy change: one change at a time."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._wake.wait()
            self._wake.clear()
            if self._stopping.is_set():
                return
            try:
                await self._look()
            except _StoppingError:
                return
            except Exception as error:  # whatever it is: an agent that stopped looking would enforce yesterday's policy
                self._tell("upkeep", error)
            else:
                self._troubles.pop("upkeep", None)

    async def _look(self) -> None:
        """Notice what changed: signals, files of policy, addresses of the host, cgroups, the guard."""
        if self._hung_up:
            self._hung_up = False
            await asyncio.gather(*(member.reopen() for member in self._members))
            await self._reload()
        elif self._rest.look(await self._from_disk(fingerprint, self._options.paths), time.monotonic()):
            await self._reload()
        self._mind_restless_documents()
        await asyncio.to_thread(self._look_for_translation)
        await self._end_refused()
        local = hostnet.local_networks()
        if local != self._local:
            self._local = local
            await self._change(READDRESS, self._again)
        self._look_at_cgroups()
        self._hooks.sweep()
        self._look_at_guard()

    def _mind_restless_documents(self) -> None:
        if self._rest.restless:
            self._next_look.cancel()
            self._next_look = asyncio.get_running_loop().call_later(SETTLE, self._wake.set)
        trouble = self._rest.trouble(time.monotonic())
        if trouble is None:
            self._troubles.pop("documents", None)
        else:
            self._tell("documents", UnsettledError(trouble))

    async def _from_disk(self, ask: Callable[..., Answer], *about: object) -> Answer:
        """What ``ask`` finds out about files. Should a file system never answer, the agent still ends when it is told to:
        `_StoppingError`."""
        if self._stopping.is_set():
            raise _StoppingError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()

        def reply(give: Callable[..., None], what: object) -> None:
            if not answer.done():
                give(what)

        def work() -> None:
            told: tuple[Callable[..., None], object]
            try:
                told = answer.set_result, ask(*about)
            except BaseException as error:
                told = answer.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(reply, *told)

        threading.Thread(target=work, name="sluice-files", daemon=True).start()
        self._asking = answer
        return await answer

    def _tell(self, what: str, error: Exception) -> None:
        """Keep a trouble for /healthz, and say it once."""
        text = _text(error)
        if self._troubles.get(what) != text:
            self._troubles[what] = text
            sys.stderr.write(f"sluice: {what}: {text}\n")

    # The heartbeat, and the guard that holds the hooks when it ends.

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._heartbeat = Heartbeat(loop, self._hooks.beat, self._hangs)
        self._heartbeat.start()

    def _end_beat(self) -> None:
        if self._heartbeat:
            self._heartbeat.end()

    def _hangs(self, where: str) -> None:
        sys.stderr.write(f"sluice: the event loop does not turn, connects are refused until it does; it is here:\n{where}")
        sys.stderr.flush()

    def _hold(self) -> None:
        """Have a guard hold what refuses, and what it points to, when we are killed."""
        maps = [self._kernel.sockets] if self._kernel else []
        cgroup = self._mount / f"{guard.GUARD_CGROUP}{os.getpid()}"
        held = [*self._links, *self._port.fds, *(own.fd for own in maps)]
        self._guarded_at = time.monotonic()
        self._guard = guard.Guard(self._options.run_dir, held, cgroup, [own.number for own in maps], self._port.addresses)
        self._guard_fd = os.pidfd_open(self._guard.pid)  # readable once it has died
        asyncio.get_running_loop().add_reader(self._guard_fd, self._guard_died)

    def _guard_died(self) -> None:
        """Replace it now; if it was but just started, at the next regular look: one that always dies must not eat a core."""
        self._forget_guard()
        if time.monotonic() - self._guarded_at > LOOK_INTERVAL:
            self._wake.set()

    def _forget_guard(self) -> None:
        if self._guard_fd is not None:
            asyncio.get_running_loop().remove_reader(self._guard_fd)
            os.close(self._guard_fd)
            self._guard_fd = None

    def _look_at_guard(self) -> None:
        if self._guard is None or self._guard.alive:
            return
        sys.stderr.write("sluice: the guard process died; starting another\n")
        self._forget_guard()
        try:
            self._hold()
        except (guard.GuardError, OSError) as error:
            self._tell("guard", error)
        else:
            self._troubles.pop("guard", None)

    def _succeed(self, loop: asyncio.AbstractEventLoop, before: Path) -> None:
        """End the guards of agents before us, when we have what they hold of what must last, and remove what they leave.

        What the kernel has carried for a dead agent's connections is in a map. The port that their hooks point to is kept as
        well, for SYNs that are late.
        """
        assert self._guard is not None
        run_dir, own = self._options.run_dir, self._guard.pid
        for left in guard.guards(run_dir):
            if left.pid == own:
                continue
            self._port.also_hold(left.addresses)
            for number in left.maps:
                fd = fd_of_map(number)
                if fd is not None:
                    self._left.append(fd)
                else:  # its guard is there, so it is the right that is missing
                    sys.stderr.write(
                        "sluice: replies that the kernel has carried for the agent before us, and that applications have not "
                        "read yet, are lost: without CAP_SYS_ADMIN they cannot be taken over\n"
                    )
        if self._left:
            loop.call_later(guard.LEFTOVER_SECONDS, self._drop_left)
        step("taken-over")
        guard.end_guards(run_dir, spare=own)
        guard.remove_abandoned(self._mount, guard.GUARD_CGROUP)
        guard.remove_abandoned(before, guard.AGENT_CGROUP)

    def _drop_left(self) -> None:
        for fd in self._left:
            os.close(fd)
        self._left.clear()

    def _leave(self, cgroup: Path) -> None:
        """At a clean stop: the same for our own connections, whose applications may not have read to the end."""
        own = [self._kernel.sockets.fd] if self._kernel and self._kernel.sockets.keys() else []
        if own or self._left:
            guard.leave([*own, *self._left], cgroup)
        self._drop_left()

    def _unhook(self) -> None:
        """Close our links. Where a guard holds them too, the hooks stay, and go on refusing."""
        self._hooks.close()
        step("unhooked")

    def _let_go(self) -> None:
        """With the guard go the last hooks; and then, by us, the port."""
        if self._guard is None:
            return
        self._forget_guard()
        if not self._stays:
            self._guard.end()
            step("let-go")

    # Policy.

    async def _first(self) -> Generation:
        """The documents at the start. Raises what `_read` does, and `StartError` if they do not come to rest."""
        deadline = time.monotonic() + START_PATIENCE
        while True:
            try:
                return await self._from_disk(self._read)
            except UnsettledError as error:
                if time.monotonic() > deadline:
                    raise StartError(f"the documents do not come to rest: {error}") from None
                await asyncio.sleep(SETTLE)

    def _read(self) -> Generation:
        """The documents as they are on disk now, under a number that no attempt before has used.

        A generation that could not be installed may have left entries under its number in the kernel's tables. Raises
        `UnsettledError` when they change meanwhile, or somebody has one open for writing.
        """
        try:
            state, read = _state_and_sources(self._options.paths)
        except UnsettledError as error:
            self._rest.unsettled(str(error), time.monotonic())
            raise
        self._rest.read(state)
        if isinstance(read, Exception):
            raise read
        self._number += 1
        return Generation(PolicySet(load(read), self._number), read, datetime.now(UTC))

    def _again(self) -> Generation:
        """The documents that are in force, to be installed under a new number."""
        self._number += 1
        return msgspec.structs.replace(self._now, policies=PolicySet(self._now.policies.bundle, self._number))

    async def _reload(self) -> None:
        await self._change(RELOAD, self._read)

    async def _change(self, why: str, make: Callable[[], Generation]) -> None:
        """Install another generation. What cannot be made or installed changes nothing and is told."""
        what = "policy" if why == RELOAD else "addresses"
        try:
            await self._install(await self._from_disk(make))
        except _StoppingError:
            raise
        except UnsettledError:
            self._mind_restless_documents()
        except Exception as error:  # doubt of any kind: what was in force stays in force
            text = self._troubles[what] = _text(error)
            sys.stderr.write(f"sluice: {why} failed, generation {self._now.policies.generation} stays in force:\n{text}\n")
        else:
            self._troubles.pop(what, None)
            if why == RELOAD:
                self._troubles.pop("addresses", None)  # it has made all tables anew
            sys.stderr.write(f"sluice: {why}: generation {self._now.policies.generation} is in force\n")

    async def _install(self, generation: Generation) -> None:
        """Make a generation the one in force: first where it is judged, then where it is redirected.

        Whatever it raises, the generation before it is in force again in both places.
        """
        policies = generation.policies
        workloads = policies.bundle.workloads
        ids = {workload.name: self._ids.of(workload.name) for workload in workloads}
        tables = await asyncio.to_thread(kernel_tables, policies, ids, self._local)
        prepare(self._mount, workloads)
        scan(self._mount, workloads)  # raises what it must before anything has changed
        before = self._workloads
        try:
            await self._apply(generation)
            self._workloads = workloads
            self._enter()
            await asyncio.to_thread(self._hooks.install, tables, policies.generation)
        except Exception:
            if self._number > 1:
                await self._apply(self._now)
                self._workloads = before
                self._enter()
            raise
        self._now, self._tables = generation, tables
        if self._links:
            await self._end_existing()

    async def _apply(self, generation: Generation) -> None:
        names = {number: name for name, number in self._ids.all().items()}
        done = await asyncio.gather(
            *(member.apply(generation.policies, generation.sources, names) for member in self._members),
            return_exceptions=True,  # all of them must be through before anything can be taken back
        )
        for error in done:
            if isinstance(error, BaseException):
                raise error

    # Workloads.

    def _cgroups_changed(self) -> None:
        self._watch.drain()
        self._look_at_cgroups()

    def _look_at_cgroups(self) -> None:
        try:
            self._enter()
        except (WorkloadError, BpfError, OSError) as error:  # what is not known stays unsettled, and so refused
            self._tell("workloads", error)
        else:
            self._troubles.pop("workloads", None)

    def _enter(self) -> None:
        """Tell the kernel whose cgroup is whose. Looks again while there are new folders to watch, so that what appeared
        in one before it was watched is not missed."""
        for _ in range(MAX_LOOKS):
            found = scan(self._mount, self._workloads)
            if found.watched == self._watched:
                break
            self._watch.follow(found.watched)
            self._watched = found.watched
        owners = {cgroup: self._ids.of(name) if name else None for cgroup, name in found.cgroups.items()}
        least = Acceleration.AUTO if self._accelerate_all else Acceleration.ON
        able = [workload for workload in self._workloads if self._kernel and workload.acceleration >= least]
        self._hooks.set_cgroups(owners, found.unsettled, [self._ids.of(workload.name) for workload in able])

    # What the admin listener tells.

    async def metrics(self) -> Snapshot:
        merged = merge(await self._ask_all(lambda member: member.snapshot()))
        if self._kernel:
            merged["series"]["sluice_kernel_fallbacks"] = [([reason], n) for reason, n in self._kernel.fallbacks().items()]
        own_limits = {"MAX_GRAVES": self._hooks.forgotten, "ADMIN_CONNECTIONS": self._admin.cut_off}
        merged["series"]["sluice_limits"] += [([limit], count) for limit, count in own_limits.items() if count]
        merged["series"]["sluice_connects"] = [([outcome], count) for outcome, count in self._hooks.events().items()]
        return merged

    async def _ask_all(self, question: Callable[[Member], Awaitable[Answer]]) -> list[Answer]:
        """Ask every worker. One that has just died, and is being replaced, has nothing to say."""
        answers = await asyncio.gather(*map(question, self._members), return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def health(self) -> Mapping[str, Check]:
        troubles = await self._ask_all(lambda member: member.audit_trouble())
        trouble = next((trouble for trouble in troubles if trouble), None)
        kernel = next((one for one in await self._ask_all(lambda member: member.kernel_trouble()) if one), None)
        absent = len(self._members) - len(troubles)
        pressure = "; ".join(told for some in await self._ask_all(lambda member: member.pressure()) for told in some)
        return {
            "heartbeat": self._check_heartbeat(),
            "hooks": Check(self._guard is not None, None if self._guard else "not attached yet"),
            "workers": Check(not absent, f"{absent} of {len(self._members)} are being replaced" if absent else None),
            "audit": Check(trouble is None, trouble),
            "kernel": Check(kernel is None, kernel),
            # Told, and no fault: who uses too much must not be able to have the agent started anew.
            "pressure": Check(True, pressure or None),
            "policy": Check(self._policy_trouble is None, self._policy_trouble),
            **{what: self._check(what) for what in ("guard", "workloads", "upkeep", "existing")},
        }

    def _check(self, what: str) -> Check:
        return Check(what not in self._troubles, self._troubles.get(what))

    @property
    def _policy_trouble(self) -> str | None:
        """Why the documents on disk are not the ones in force."""
        told = [self._troubles[what] for what in ("documents", "policy", "addresses") if what in self._troubles]
        return "\n".join(told) or None

    def _check_heartbeat(self) -> Check:
        if self._heartbeat is None:
            return Check(False, "not yet")
        age, pause = self._heartbeat.age, self._heartbeat.longest_pause
        late = f", and {pause:.1f} s late in the last {REMEMBERED:.0f} s" if pause else ""
        return Check(age < HEARTBEAT_LIMIT, f"{age:.3f} s ago{late}")

    async def policy(self) -> PolicyStatus:
        bundle = self._now.policies.bundle
        documents = [f"Workload/{workload.name}" for workload in bundle.workloads]
        documents += [f"{policy.kind}/{policy.name}" for policy in bundle.policies]
        return PolicyStatus(
            generation=self._now.policies.generation,
            files=[source.name for source in self._now.sources],
            documents=documents,
            loaded_at=self._now.loaded_at,
            last_reload_error=self._policy_trouble,
        )

    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]:
        parts = await self._ask_all(lambda member: member.connections(limit))
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
        self.before = mount / relative.lstrip("/")
        if self.before.name.startswith(guard.AGENT_CGROUP):
            self.before = self.before.parent
        guard.remove_abandoned(self.before, guard.AGENT_CGROUP)
        self.path = self.before / f"{guard.AGENT_CGROUP}{os.getpid()}"
        self.path.mkdir(exist_ok=True)
        (self.path / "cgroup.procs").write_text("0")
        self.id = self.path.stat().st_ino

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            (self.before / "cgroup.procs").write_text("0")
        guard.remove_cgroup(self.path)


def _text(error: Exception) -> str:
    """What an error says to people. Of one that nobody expected, its type says more than its text."""
    known = isinstance(
        error,
        (LoadError, UnsettledError, TableLimitError, WorkloadError, WorkerError, BpfError, guard.GuardError, OSError),
    )
    return str(error) if known else f"{type(error).__name__}: {error}"


def _state_and_sources(paths: Sequence[str]) -> tuple[Fingerprint, tuple[Source, ...] | Exception]:
    """What the documents say, or what is wrong with them, and the state of the files in which they say it.

    Raises `UnsettledError` if that changed meanwhile.
    """
    state = fingerprint(paths)
    found: tuple[Source, ...] | Exception
    try:
        found = tuple(read_sources(paths, settled=True))
    except (LoadError, OSError) as error:
        found = error
    if fingerprint(paths) != state:
        raise UnsettledError("they changed while they were read")
    return state, found
