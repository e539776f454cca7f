"""Is this machine fit to run Sluice, and if not, what to mend: the checks behind ``sluice check``.

Each check looks at one thing and says what it found. None changes the machine, and none disturbs a running agent: the
self-test attaches the hooks only to a cgroup of its own.
"""

import contextlib
import ctypes
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import msgspec

from bpf.loader import BpfError
from policies.compile import ANY_PEER, FIRST_ADDRESS_CLASS, FIRST_WORKLOAD, AddressEntry, KernelTables, RuleEntry
from policies.decide import Action
from proxy import guard, hostnet, selftest
from proxy.datapath import Hooks, object_file
from proxy.existing import Existing
from proxy.reading import CALLS, Call
from proxy.runtime import DESCRIPTORS
from proxy.workloads import OWN_FOLDER, WorkloadError, cgroup2_mount

# The first long-term kernel with everything that the hooks use, getpeername and retval in cgroup programs among them.
FIRST_KERNEL = (6, 1)
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
CAP_SYS_RESOURCE = 24  # raises limits
# Less than an agent with a handful of connections needs, and what is comfortable for a busy node.
LEAST_DESCRIPTORS, ENOUGH_DESCRIPTORS = 256, 65536
# Two sockets and up to two pipes for one relayed connection.
DESCRIPTORS_PER_CONNECTION = 6
# An address at which nobody is (RFC 5737): who gets an answer from there was redirected.
NOWHERE = ("192.0.2.1", 80)
# How long the self-test waits for a connection over loopback (seconds).
PATIENCE = 2.0


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding. ``hint`` says what to do: always when not ``ok``, else as advice."""

    name: str
    ok: bool
    detail: str
    hint: str | None = None


def preflight(run_dir: Path) -> list[Result]:
    """All checks, in the order in which things are needed. Those that cannot work yet say what they wait for."""
    status = Path("/proc/self/status").read_text()
    machine = [kernel(platform.release()), btf(), cgroups(), privileges(status)]
    parts = [libbpf(), objects(object_file("redirect"))]
    ready = all(result.ok for result in (*machine, *parts))
    return [
        *machine,
        *parts,
        _after(ready, "programs", programs),
        _after(machine[2].ok, "neighbours", neighbours),
        agents(run_dir),
        ipv6(),
        descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1], bool(_held(status) >> CAP_SYS_RESOURCE & 1)),
        _after(ready, "self-test", self_test),
        _after(ready, "kernel path", kernel_path),
        _after(ready, "old connections", old_connections),
    ]


def _after(ready: bool, name: str, check: Callable[[], Result]) -> Result:
    return check() if ready else Result(name, False, "not tried", "mend what is above first")


def kernel(release: str) -> Result:
    found = re.match(r"(\d+)\.(\d+)", release)
    ok = found is not None and (int(found[1]), int(found[2])) >= FIRST_KERNEL
    hint = None if ok else "Sluice needs Linux {}.{} or later".format(*FIRST_KERNEL)
    return Result("kernel", ok, f"Linux {release}", hint)


def btf(path: Path = Path("/sys/kernel/btf/vmlinux")) -> Result:
    if path.exists():
        return Result("BTF", True, str(path))
    return Result("BTF", False, f"no {path}", "use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y, as distributions do")


def cgroups() -> Result:
    try:
        return Result("cgroup v2", True, str(cgroup2_mount()))
    except WorkloadError as error:
        return Result("cgroup v2", False, "not mounted", str(error))


def privileges(status: str) -> Result:
    """``status`` is /proc/self/status."""
    held = _held(status)
    missing = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if os.geteuid() == 0 and not missing:
        return Result("privileges", True, "root")
    detail = f"user id {os.geteuid()}" + (f", without {', '.join(missing)}" if missing else "")
    return Result("privileges", False, detail, "run as root; in a container with --privileged, or these capabilities added")


def _held(status: str) -> int:
    """The effective capabilities, one bit each."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(found[1], 16) if found else 0


def libbpf() -> Result:
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError as error:
        return Result("libbpf", False, str(error), "on Debian and Ubuntu: apt install libbpf1")
    return Result("libbpf", True, "libbpf.so.1")


def objects(path: Path) -> Result:
    if path.exists():
        return Result("BPF objects", True, str(path))
    return Result("BPF objects", False, f"{path} is missing", "build it with: make bpf")


def programs() -> Result:
    began = time.perf_counter()
    try:
        Hooks(0, None, None).close()
    except (BpfError, OSError) as error:
        return Result("programs", False, "the kernel does not take them", str(error))
    return Result("programs", True, f"loaded and verified in {(time.perf_counter() - began) * 1e3:.0f} ms")


def neighbours() -> Result:
    """Programs of others on the root of the cgroup tree. They share the hooks with ours unless they are exclusive."""
    name = "neighbours"
    if shutil.which("bpftool") is None:
        return Result(name, True, "not looked at: there is no bpftool", "on Debian and Ubuntu: apt install bpftool")
    command = ["bpftool", "-j", "cgroup", "show", str(cgroup2_mount())]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        return Result(name, True, "not looked at: bpftool may not", "run as root")
    return judge_neighbours(json.loads(shown.stdout.strip() or "[]"))  # bpftool prints nothing where nothing is attached


def judge_neighbours(attached: list[dict[str, object]]) -> Result:
    """``attached`` is what ``bpftool -j cgroup show`` says of the root."""
    ours = sum(str(program.get("name", "")).startswith("sluice_") for program in attached)
    others = [program for program in attached if not str(program.get("name", "")).startswith("sluice_")]
    exclusive = [program for program in others if program.get("attach_flags", "") == ""]
    told = ", ".join(f"{program.get('name') or 'unnamed'} ({program.get('attach_type')})" for program in others)
    detail = "; ".join(filter(None, (told or "none", f"{ours} programs of Sluice" if ours else "")))
    if not exclusive:
        return Result("neighbours", True, detail)
    which = ", ".join(f"{program.get('name') or 'unnamed'}, id {program.get('id')}" for program in exclusive)
    return Result("neighbours", False, detail, f"attached in exclusive mode; its owner must use BPF_F_ALLOW_MULTI: {which}")


def agents(run_dir: Path) -> Result:
    name = "other agents"
    try:
        agent, guards = guard.holder(run_dir / guard.AGENT_LOCK), guard.guards(run_dir)
    except PermissionError as error:
        return Result(name, True, f"not looked at: {error}", "run as root")
    if agent:
        return Result(name, True, f"process {agent} runs with {run_dir}", "a second one needs a --run-dir of its own")
    if guards:
        numbers = " ".join(str(left.pid) for left in guards)
        detail = f"left by an agent that is gone, refusing policed connections: guard {numbers}"
        return Result(name, True, detail, f"sluice run takes over; or, to let them pass unpoliced: kill {numbers}")
    return Result(name, True, f"none with {run_dir}")


def ipv6() -> Result:
    if hostnet.has_ipv6():
        return Result("IPv6 loopback", True, "::1")
    enable = "sysctl net.ipv6.conf.lo.disable_ipv6=0, before the agent starts"
    hint = f"connections to IPv6 servers under an HTTP policy are refused; enable with: {enable}"
    return Result("IPv6 loopback", True, "none", hint)


def descriptors(hard: int, may_raise: bool) -> Result:
    """``hard`` is the limit that getrlimit(2) gives; the agent takes that, and more where it may. -1 is without limit."""
    if hard == resource.RLIM_INFINITY:
        return Result("open files", True, "no limit")
    most = max(hard, DESCRIPTORS) if may_raise else hard
    detail = f"{most}: about {most // DESCRIPTORS_PER_CONNECTION} connections at once"
    if most > hard:
        return Result("open files", True, f"{detail} (the agent raises the limit of {hard})")
    hint = None if hard >= ENOUGH_DESCRIPTORS else f"for more: ulimit -Hn {ENOUGH_DESCRIPTORS}, or LimitNOFILE= in the unit"
    return Result("open files", hard >= LEAST_DESCRIPTORS, detail, hint)


def self_test() -> Result:
    """Redirect one connection in a cgroup of its own to a socket in another one, and look at it from both ends."""
    began = time.perf_counter()
    try:
        with _own_cgroup("agent") as own, socket.create_server(("127.0.0.1", 0)) as agent, _own_cgroup("client") as cgroup:
            _redirect_once(own, cgroup, agent)
    except (BpfError, OSError, _SurpriseError) as error:
        return Result("self-test", False, "a connection was not redirected as it should", str(error) or type(error).__name__)
    return Result("self-test", True, f"a connection redirected in {(time.perf_counter() - began) * 1e3:.0f} ms")


class _SurpriseError(Exception):
    """The hooks did something else than they were told."""


def _redirect_once(own: Path, cgroup: Path, agent: socket.socket) -> None:
    agent.settimeout(PATIENCE)
    hooks = Hooks(agent.getsockname()[1], None, None)
    with contextlib.closing(hooks), socket.socket() as client:
        client.settimeout(PATIENCE)
        hooks.set_cgroups({cgroup.stat().st_ino: FIRST_WORKLOAD}, [])
        everywhere = AddressEntry(ip_network("0.0.0.0/0"), FIRST_ADDRESS_CLASS, False)
        to_us = RuleEntry(FIRST_WORKLOAD, ANY_PEER, socket.IPPROTO_TCP, 0, 0, Action.REDIRECT, False)
        hooks.install(KernelTables((everywhere,), (to_us,)), 1)
        hooks.exclude(own.stat().st_ino)
        for end in (own, cgroup):
            hooks.attach(end)
        client.connect(NOWHERE)
        accepted, _ = agent.accept()
        with accepted:
            accepted.sendall(b"x")
            origin = hooks.origins.asked(accepted)
            if origin is None or (origin.address, origin.port) != NOWHERE:
                raise _SurpriseError(f"the agent would see {origin} instead of {NOWHERE}")
            if client.getpeername() != NOWHERE:
                raise _SurpriseError(f"the application sees {client.getpeername()} instead of {NOWHERE}")
            if client.recv(1) != b"x":
                raise _SurpriseError("nothing comes back")


def kernel_path() -> Result:
    """Without it Sluice does the same, slower: so it never makes a machine unfit."""
    began = time.perf_counter()
    found = selftest.kernel_path()
    return judge_kernel_path(found, f"{(time.perf_counter() - began) * 1e3:.0f} ms")


def judge_kernel_path(found: selftest.Findings, took: str) -> Result:
    """What was found, and which programs this kernel does not serve well when their sockets are accelerated."""
    name = "kernel path"
    if found.reading is None:
        hint = "a newer kernel of the same branch may do it; see docs/kernel-path.md"
        return Result(name, True, f"not on this kernel, calls are relayed: {found.missing}", hint)
    detail, wrong = f"a call carried in {took}", found.reading.wrong()
    if not wrong:
        return Result(name, True, detail)
    detail += "; by default only for workloads that ask for it (acceleration: on)"
    return Result(name, True, detail, "\n".join(_consequence(CALLS[call]) for call in wrong))


def _consequence(call: Call) -> str:
    return f"{call.name} is wrong of accelerated sockets: {call.programs} may {call.may}. Cure: {call.cure}"


def old_connections() -> Result:
    """Without it connections that are there already keep their path: policy reaches new ones only."""
    try:
        hooks = Hooks(0, None, None)
        with contextlib.closing(hooks):
            Existing(hooks).close()
    except BpfError:
        hint = "Linux 6.5 or later can; else restart servers that are to be policed after the agent"
        return Result("old connections", True, "not ended when policy comes: this kernel cannot", hint)
    return Result("old connections", True, "ended when policy comes that would not let them pass")


@contextlib.contextmanager
def _own_cgroup(name: str) -> Iterator[Path]:
    """A cgroup in which this process is for the body; sockets made there meet the hooks that are attached to it."""
    home = selftest.own_cgroup()
    cgroup = cgroup2_mount() / OWN_FOLDER / f"check-{os.getpid()}-{name}"
    cgroup.mkdir(parents=True)
    try:
        (cgroup / "cgroup.procs").write_text("0")
        yield cgroup
    finally:
        (home / "cgroup.procs").write_text("0")
        guard.remove_cgroup(cgroup)
