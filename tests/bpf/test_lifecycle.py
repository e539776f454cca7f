"""Heartbeat, generations of policy, and connections on their way to the agent."""

import errno
import socket
import struct
import sys
import threading
import time

import pytest

from bpf import abi
from proxy import datapath
from tests.bpf.rig import CLIENT, HOST, NATIVE, OTHER, PATIENCE, REDIRECT, REFUSE, SERVER, WORLD, Rig, free, rule


def _wait_for_stale(rig: Rig) -> None:
    rig.stop_heart()
    time.sleep(datapath.HEARTBEAT_LIMIT + 0.2)


def test_an_agent_that_ends_has_nobody_redirected_at_once_and_fail_open_holds(rig: Rig) -> None:
    """Its listening sockets close after that: until then a connection would wait for somebody who takes no more."""
    web, shop = rig.cgroup("web", CLIENT), rig.cgroup("shop", OTHER)
    server = rig.server(rig.cgroup("orders", SERVER))
    open_ = rule(OTHER, SERVER, REDIRECT, fail_open=True)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), open_, free(SERVER))
    rig.connect(web, "192.0.2.1", 80)
    rig.accepted()
    rig.stop_heart()
    rig.hooks.end()
    with pytest.raises(ConnectionRefusedError):
        rig.connect(web, "192.0.2.1", 80)
    rig.connect(shop, "127.0.0.1", server.getsockname()[1])
    server.accept()[0].close()
    assert rig.nobody_came()


def test_without_a_heartbeat_what_would_be_redirected_is_refused_until_it_beats_again(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    _wait_for_stale(rig)
    before = rig.event("stale_refused")
    with pytest.raises(ConnectionRefusedError):
        rig.connect(web, "192.0.2.1", 80)
    assert rig.event("stale_refused") > before
    assert rig.nobody_came()
    rig.start_heart()
    rig.connect(web, "192.0.2.1", 80)
    assert rig.origin().subject == CLIENT


def test_without_a_heartbeat_only_what_may_fail_open_is_native(rig: Rig) -> None:
    web, orders, closed = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER), rig.cgroup("closed", 3)
    rig.attach(
        rule(CLIENT, SERVER, REDIRECT, fail_open=True),
        rule(CLIENT, 3, REDIRECT),
        rule(CLIENT, WORLD, REFUSE),
        rule(CLIENT, HOST, NATIVE),
    )
    server, other, free_server = rig.server(orders), rig.server(closed), rig.server()
    rig.connect(web, *server.getsockname())
    assert rig.origin().peer == SERVER
    _wait_for_stale(rig)
    client = rig.connect(web, *server.getsockname())
    assert server.accept()[1] == client.getsockname()
    assert client.getpeername() == server.getsockname()
    with pytest.raises(ConnectionRefusedError):
        rig.connect(web, *other.getsockname())
    with pytest.raises(PermissionError):
        rig.connect(web, "192.0.2.1", 80)
    rig.connect(web, *free_server.getsockname())
    assert rig.nobody_came()


def test_before_the_first_policy_everything_is_native(rig: Rig) -> None:
    """Hooks are attached only after it; a hook that is loaded but not filled must not break the host."""
    from proxy.workloads import cgroup2_mount

    rig.hooks.attach(cgroup2_mount())
    rig.connect(None, *rig.server().getsockname())


def test_a_change_of_policy_is_seen_whole_or_not_at_all(rig: Rig) -> None:
    """Someone who connects all the time meets the old policy or the new one, never the gap between them.

    Both generations refuse the host (EPERM), and let the workload meet either EPERM or a closed port; the gap would be native
    for the host. Who was held up while two changes passed by is refused, too (EAGAIN).
    """
    rounds = 300
    orders = rig.cgroup("orders", SERVER)
    guarded = rig.server(orders).getsockname()
    rig.attach(rule(HOST, SERVER, REFUSE))
    before = rig.event("unsettled")
    seen: set[int] = set()
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            with socket.socket() as client:
                seen.add(client.connect_ex(guarded))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(rounds):
        rig.install(rule(HOST, SERVER, REFUSE), [rule(CLIENT, peer, REDIRECT) for peer in range(20)])
    over.set()
    for thread in threads:
        thread.join()
    assert errno.EPERM in seen
    assert seen <= {errno.EPERM, errno.EAGAIN}
    assert rig.event("unsettled") - before < rounds


def test_the_entries_of_the_last_generation_stay_until_the_next(rig: Rig) -> None:
    """A connect() that read the old number a moment before the switch must find what it looks for."""

    def generations() -> set[int]:
        keys = (*rig.hooks._rules.keys(), *rig.hooks._addresses.keys())
        return {int.from_bytes(key[4:8], sys.byteorder) for key in keys}  # in both behind the length of the prefix

    kept = []
    for _ in range(4):
        rig.install(free(CLIENT))
        kept.append(generations())
    assert kept == [{1}, {1, 2}, {2, 3}, {3, 4}]


# Connections on their way.


def _pending(rig: Rig) -> int:
    return len(rig.hooks.pending.keys())


def test_an_answered_connection_leaves_no_entry(rig: Rig) -> None:
    """Whether the agent has come to accept it or not."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    rig.connect(web, "192.0.2.1", 80)
    assert _pending(rig) == 0
    assert rig.origin().subject == CLIENT


def test_connects_that_fail_leave_no_entry(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    for listener in rig.listeners:
        listener.close()  # as if the agent had died a moment ago
    for host in ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"):
        with pytest.raises(ConnectionRefusedError):
            rig.connect(web, host, 80)
    assert _pending(rig) == 0


def test_what_is_never_answered_is_swept_after_its_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket takes it away by itself, unless something has gone wrong."""
    entry = abi.Origin._make(abi.SLUICE_ORIGIN.unpack(bytes(abi.SLUICE_ORIGIN.size)))._replace(since_ns=time.monotonic_ns())
    rig.hooks.pending.set(bytes(abi.SLUICE_TUPLE.size), abi.SLUICE_ORIGIN.pack(*entry))
    assert rig.hooks.sweep() == 0
    monkeypatch.setattr(datapath, "PENDING_LIMIT", 0.0)
    assert rig.hooks.sweep() == 1
    assert _pending(rig) == 0


def test_with_no_room_left_a_redirected_connection_is_nobodys(rig: Rig) -> None:
    """The agent resets what it cannot name. Nothing passes because a table is full."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    nobody = b"\0" * abi.SLUICE_ORIGIN.size
    rig.hooks.pending.set_all(
        (abi.SLUICE_TUPLE.pack(0, b"\0" * 16, struct.pack("I12x", number), 0, 0, 0), nobody)
        for number in range(abi.Limit.MAX_PENDING)
    )
    before = rig.event("no_room")
    rig.connect(web, "192.0.2.1", 80)
    assert rig.accepted(PATIENCE)[1] is None
    assert rig.event("no_room") > before
