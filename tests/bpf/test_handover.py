"""What a redirected connection asked for belongs to that connection: nobody else's is overwritten, taken or deleted, and nobody
fills the table for the others."""

import contextlib
import ctypes
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpf import abi
from tests.bpf.namespace import CLIENT4, HOST4, Namespace, ip
from tests.bpf.rig import CLIENT, NATIVE, NOBODY, OTHER, PATIENCE, REDIRECT, WORLD, Cgroup, Rig, rule
from tests.harness import free_port

CLONE_NEWUSER, CLONE_NEWNET, PR_SET_DUMPABLE = 0x10000000, 0x40000000, 4


def forge(source: str, port: int, keeper: socket.socket) -> int:
    """Connect from an address of somebody else, in a network namespace of one's own; the error number of connect().

    ``keeper`` gets the socket, so that it outlives the process.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 1)  # who was root just now may else not write its uid_map
    assert libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    Path("/proc/self/uid_map").write_text(f"0 {NOBODY} 1")
    for command in ("link set lo up", f"addr add {source}/32 dev lo", "route add default dev lo"):
        ip(*command.split())
    forged = socket.socket()
    forged.bind((source, port))
    forged.setblocking(False)
    error = forged.connect_ex(("192.0.2.66", 80))
    socket.send_fds(keeper, [b"x"], [forged.fileno()])
    return error


@pytest.fixture
def stage(make_rig: Callable[..., Rig], namespace: Namespace) -> tuple[Rig, Namespace, Cgroup, Cgroup]:
    """A container of the workload ``web``, reached by a gateway address, and another workload, both redirected."""
    rig = make_rig(HOST4)
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", OTHER)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), rule(OTHER, WORLD, REDIRECT))
    return rig, namespace, web, other


Stage = tuple[Rig, Namespace, Cgroup, Cgroup]


def start(rig: Rig, namespace: Namespace, owner: Cgroup, port: int, host: str = "192.0.2.1", to: int = 80) -> socket.socket:
    """Begin to connect from ``port`` of the container's address."""

    def connect() -> socket.socket:
        client = rig.client(owner, socket.AF_INET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((CLIENT4, port))
        client.setblocking(False)
        with owner.inside():
            client.connect_ex((host, to))
        return client

    return namespace.run(connect)


@contextlib.contextmanager
def twin() -> Iterator[Namespace]:
    """Another container, by root, that has chosen the same address. What it sends leads nowhere."""
    made = Namespace.__new__(Namespace)
    made.name = f"twin{os.getpid()}"
    ip("netns", "add", made.name)
    try:
        for command in ("link set lo up", f"addr add {CLIENT4}/32 dev lo", "route add default dev lo"):
            ip("-n", made.name, *command.split())
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.name], check=False)


def test_a_forged_address_in_a_namespace_of_ones_own_is_nobodys(stage: Stage) -> None:
    """As uid nobody, in a user and network namespace of its own (unshare -Urn)."""
    rig, namespace, web, other = stage
    port = free_port()
    start(rig, namespace, web, port)
    before = rig.event("rootless")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert other.as_nobody(lambda: forge(CLIENT4, port, theirs)) == errno.ECONNREFUSED
        origin = rig.origin()
        assert (origin.subject, origin.address) == (CLIENT, "192.0.2.1")
    assert rig.event("rootless") == before + 1


@pytest.mark.parametrize("first", ["attacker", "victim"])
def test_the_same_address_in_another_namespace_is_another_connection(stage: Stage, first: str) -> None:
    rig, namespace, web, other = stage
    port = free_port()
    with twin() as elsewhere:
        attacks = [] if first == "victim" else [start(rig, elsewhere, other, port, "192.0.2.66")]
        start(rig, namespace, web, port)
        attacks.append(start(rig, elsewhere, other, port + 1, "192.0.2.66"))
        if first == "victim":
            attacks.append(start(rig, elsewhere, other, port, "192.0.2.66"))
        origin = rig.origin()
        assert (origin.subject, origin.address) == (CLIENT, "192.0.2.1")
        for attack in attacks:
            attack.close()


@pytest.mark.parametrize("attack", ["redirected", "by itself"])
def test_the_entry_of_a_connection_that_waits_is_not_anothers_to_delete(
    make_rig: Callable[..., Rig], namespace: Namespace, attack: str
) -> None:
    rig = make_rig(HOST4, backlog=0)
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", OTHER)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), rule(OTHER, WORLD, REDIRECT if attack == "redirected" else NATIVE))
    port = free_port()
    start(rig, namespace, web, port + 1)  # takes the only place that the agent has
    victim = start(rig, namespace, web, port)
    with twin() as elsewhere:
        for _ in range(2):
            host, to = ("192.0.2.66", 80) if attack == "redirected" else (HOST4, rig.port)
            start(rig, elsewhere, other, port, host, to).close()
    rig.origin()
    origin = rig.origin()  # when the victim's SYN is sent again
    assert (origin.subject, origin.address) == (CLIENT, "192.0.2.1")
    victim.close()


def test_who_calls_the_agents_port_by_itself_is_nobody(stage: Stage) -> None:
    rig, namespace, _, other = stage
    rig.install(rule(OTHER, WORLD, NATIVE))
    start(rig, namespace, other, free_port(), HOST4, rig.port)
    assert rig.accepted()[1] is None


def test_a_port_that_is_used_again_at_once_is_the_new_connections(rig: Rig) -> None:
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", OTHER)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), rule(OTHER, WORLD, REDIRECT))
    port = free_port()
    for owner, subject in ((web, CLIENT), (other, OTHER), (web, CLIENT)):
        client = rig.client(owner, socket.AF_INET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset leaves no TIME_WAIT
        client.bind(("127.0.0.1", port))
        with owner.inside():
            client.connect(("192.0.2.1", 80))
        assert rig.origin().subject == subject
        client.close()


# Bounds.


def test_a_subject_has_only_so_many_connections_on_their_way(rig: Rig) -> None:
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", OTHER)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), rule(OTHER, WORLD, REDIRECT))
    rig.hooks.waiting.set(CLIENT.to_bytes(4, sys.byteorder), abi.Limit.MAX_WAITING.to_bytes(4, sys.byteorder))
    before = rig.event("crowded")
    with pytest.raises(BlockingIOError):
        rig.connect(web, "192.0.2.1", 80)
    assert rig.event("crowded") == before + 1
    rig.connect(other, "192.0.2.1", 80)
    assert rig.origin().subject == OTHER


def test_connections_that_wait_are_counted_until_they_are_answered_or_gone(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(backlog=0)
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))

    def waiting() -> int:
        return int.from_bytes(rig.hooks.waiting.get(CLIENT.to_bytes(4, sys.byteorder)) or b"", sys.byteorder)

    clients = [rig.client(web, socket.AF_INET) for _ in range(6)]
    with web.inside():
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("192.0.2.1", 80))
    unanswered = waiting()
    assert unanswered >= 4
    for client in clients[-2:]:
        client.close()
    assert waiting() == unanswered - 2
    rig.origin()
    deadline = time.monotonic() + PATIENCE
    while waiting() >= unanswered - 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # until a SYN is sent again
    assert waiting() < unanswered - 2
    for listener in rig.listeners:
        listener.close()
    for client in clients:
        client.close()
    assert waiting() == 0
