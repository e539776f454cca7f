"""Who is at each end of a connection: the cgroup of the caller, and the cgroup of the socket that listens."""

import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from ipaddress import ip_network

import pytest

from bpf import abi
from policies.compile import AddressEntry
from tests.bpf.rig import (
    AGENT,
    CLIENT,
    HOST,
    NATIVE,
    OTHER,
    PATIENCE,
    REDIRECT,
    REFUSE,
    SERVER,
    TCP,
    UDP,
    UNRESOLVED,
    WORLD,
    Cgroup,
    Rig,
    free,
    rule,
)
from tests.harness import eventually


def test_a_process_in_a_sub_cgroup_is_its_workload(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    deep = web.sub("a").sub("b")
    rig.connect(deep, "192.0.2.1", 80)
    origin = rig.origin()
    assert (origin.subject, origin.cgroup) == (CLIENT, deep.id)


def test_the_nearest_known_cgroup_decides(rig: Rig) -> None:
    rig.cgroup("web", CLIENT)
    inner = rig.cgroup("web/inner", OTHER)
    rig.attach(rule(CLIENT, WORLD, REFUSE), rule(OTHER, WORLD, REDIRECT))
    rig.connect(inner.sub("below"), "192.0.2.1", 80)
    assert rig.origin().subject == OTHER


def test_below_the_sixteenth_level_the_workload_above_still_decides(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    deep = web
    for level in range(20):
        deep = deep.sub(str(level))
    rig.connect(deep, "192.0.2.1", 80)
    assert rig.origin().subject == CLIENT


def test_a_cgroup_newer_than_the_agents_last_look_is_refused_until_it_is_known(rig: Rig) -> None:
    place = rig.cgroup("place")
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    rig.hooks.set_cgroups({place.id: None}, [place.id])
    fresh = place.sub("fresh")
    before = rig.event("unsettled")
    with pytest.raises(BlockingIOError) as refused:
        rig.connect(fresh, "192.0.2.1", 80)
    assert refused.value.errno == errno.EAGAIN
    assert rig.event("unsettled") > before
    assert rig.nobody_came()

    rig.hooks.set_cgroups({place.id: None, fresh.id: CLIENT}, [place.id])
    rig.connect(fresh, "192.0.2.1", 80)
    assert rig.origin().subject == CLIENT
    rig.hooks.set_cgroups({place.id: None, fresh.id: None}, [place.id])
    server = rig.server()
    rig.connect(fresh, *server.getsockname())


def test_a_process_in_an_unsettled_cgroup_itself_is_not_refused(rig: Rig) -> None:
    place = rig.cgroup("place")
    rig.attach()
    rig.hooks.set_cgroups({place.id: None}, [place.id])
    rig.connect(place, *rig.server().getsockname())


def test_the_agents_own_connections_are_left_alone_and_told_whom_they_reach(rig: Rig) -> None:
    agent, orders = rig.cgroup("agent"), rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REFUSE), rule(HOST, WORLD, REFUSE))
    rig.hooks.exclude(agent.id)
    server = rig.server(orders)
    up = rig.connect(agent, *server.getsockname())
    assert rig.hooks.origins.reached(up) == SERVER
    assert up.getpeername() == server.getsockname()
    assert rig.hooks.origins.reached(rig.connect(agent, *rig.server().getsockname())) == HOST
    assert rig.nobody_came()


def test_the_agent_sees_that_a_client_wants_the_agent_itself(rig: Rig) -> None:
    agent = rig.cgroup("agent")
    rig.attach(rule(HOST, AGENT, REDIRECT))
    rig.hooks.exclude(agent.id)
    rig.connect(None, *rig.server(agent).getsockname())
    assert rig.origin().to_agent


def test_marks_on_a_socket_exclude_nobody(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REDIRECT))
    client = rig.client(web, socket.AF_INET)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x7FFFFFFF)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6)
    with web.inside():
        client.connect(("192.0.2.1", 80))
    assert rig.origin().subject == CLIENT


def test_who_calls_decides_and_not_who_made_the_socket(rig: Rig) -> None:
    """A socket can be handed over (SCM_RIGHTS): whoever calls connect() needs the permission."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, WORLD, REFUSE))
    made_by_host = rig.client(None, socket.AF_INET)
    with web.inside(), pytest.raises(PermissionError):
        made_by_host.connect(("192.0.2.1", 80))


def test_a_process_that_leaves_its_cgroup_is_judged_by_where_it_is(rig: Rig) -> None:
    """Only who may write both cgroups (root, or a delegated common ancestor) can move a process."""
    web, other = rig.cgroup("web", CLIENT), rig.cgroup("other", OTHER)
    rig.attach(rule(CLIENT, WORLD, REDIRECT), rule(OTHER, WORLD, REFUSE))
    client = rig.client(web, socket.AF_INET)
    with other.inside(), pytest.raises(PermissionError):
        client.connect(("192.0.2.1", 80))


def test_an_unprivileged_process_cannot_leave_its_workload(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    code = "import os, sys; os.setuid(65534); open(sys.argv[1] + '/cgroup.procs', 'w').write('0')"
    with web.inside():
        done = subprocess.run([sys.executable, "-c", code, str(web.path.parent)], capture_output=True, text=True)
    assert "Permission denied" in done.stderr


# The peer.


@pytest.mark.parametrize(
    ("listen", "dial"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.5.6.7"), ("::1", "::1"), ("::", "::1")]
)
@pytest.mark.parametrize("where", ["itself", "below"])
def test_the_peer_is_the_workload_whose_cgroup_the_listening_socket_was_made_in(
    rig: Rig, listen: str, dial: str, where: str
) -> None:
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REDIRECT))
    server = rig.server(orders if where == "itself" else orders.sub("below"), listen)
    rig.connect(None, dial, server.getsockname()[1])
    assert rig.origin().peer == SERVER


def test_at_an_address_of_this_host_that_a_workload_owns_the_listening_socket_decides(rig: Rig) -> None:
    orders = rig.cgroup("orders", SERVER)
    here = AddressEntry(ip_network("127.0.0.9/32"), OTHER, True)
    rig.attach(rule(HOST, SERVER, REDIRECT), rule(HOST, OTHER, REDIRECT), addresses=[here])
    for owner, peer in ((orders, SERVER), (None, OTHER)):
        server = rig.server(owner, "127.0.0.9")
        rig.connect(None, "127.0.0.9", server.getsockname()[1])
        assert rig.origin().peer == peer


def test_a_dual_stack_listener_is_found_from_ipv4_and_from_mapped_addresses(rig: Rig) -> None:
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REDIRECT))
    port = rig.server(orders, "::").getsockname()[1]
    for dial in ("127.0.0.1", "::ffff:127.0.0.1", "::1"):
        client = rig.connect(None, dial, port)
        assert client.getpeername()[0] == dial
        assert rig.origin().peer == SERVER


# Where nobody listens.


def _closed_port(rig: Rig) -> tuple[str, int]:
    server = rig.server()
    address: tuple[str, int] = server.getsockname()
    server.close()
    return address


@pytest.mark.parametrize("to_host", [NATIVE, REDIRECT])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_a_port_at_which_nobody_listens_is_closed_at_once_where_a_policed_server_might_come_up(
    rig: Rig, host: str, to_host: int
) -> None:
    """Judged as native, its SYN would be dropped by whoever comes up meanwhile, and the caller would wait for seconds."""
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, HOST, to_host), rule(CLIENT, UNRESOLVED, REDIRECT), rule(CLIENT, SERVER, REDIRECT))
    before = rig.event("closed")
    _, port = _closed_port(rig)
    with pytest.raises(ConnectionRefusedError):
        rig.connect(web, host, port)
    client = rig.client(web, socket.AF_INET6 if ":" in host else socket.AF_INET)
    client.setblocking(False)
    with web.inside():
        assert client.connect_ex((host, port)) == errno.ECONNREFUSED
    assert rig.event("closed") == before + 2
    assert rig.nobody_came()
    server = rig.server(rig.cgroup("orders", SERVER), host.removeprefix("::ffff:"), port=port)
    client.settimeout(PATIENCE)
    with web.inside():
        client.connect((host, port))  # the same socket may try again
    assert rig.origin().peer == SERVER
    assert client.getpeername()[1] == server.getsockname()[1]


def test_a_port_at_which_nobody_listens_is_left_to_the_kernel_where_nothing_is_policed(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(free(CLIENT), rule(CLIENT, WORLD, REDIRECT))
    before = rig.event("native")
    with pytest.raises(ConnectionRefusedError):
        rig.connect(web, *_closed_port(rig))
    assert rig.event("native") > before


def test_who_may_not_reach_this_host_is_refused_also_where_nobody_listens(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, HOST, REFUSE), rule(CLIENT, UNRESOLVED, REFUSE))
    with pytest.raises(PermissionError):
        rig.connect(web, *_closed_port(rig))


def test_where_addresses_are_translated_a_port_at_which_nobody_listens_is_not_closed(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, HOST, REDIRECT), rule(CLIENT, UNRESOLVED, REDIRECT))
    rig.hooks.translated = True
    rig.hooks.beat()
    rig.connect(web, *_closed_port(rig))
    assert rig.origin().peer == HOST


def test_a_server_of_the_host_that_is_bound_to_a_device_is_not_taken_for_a_closed_port(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, HOST, NATIVE), rule(CLIENT, UNRESOLVED, REDIRECT))
    server = rig.client(None, socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    server.bind(("127.0.0.1", 0))
    server.listen()
    rig.connect(web, *server.getsockname())
    assert server.accept()[1]


def test_a_listener_that_was_there_before_the_hooks_is_known(rig: Rig) -> None:
    orders = rig.cgroup("orders", SERVER)
    server = rig.server(orders)
    rig.attach(rule(HOST, SERVER, REDIRECT))
    rig.connect(None, *server.getsockname())
    assert rig.origin().peer == SERVER


def test_a_group_of_listeners_on_one_port_is_their_workload(rig: Rig) -> None:
    """SO_REUSEPORT: any of the group may answer, all of one workload."""
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REDIRECT))
    port = 0
    for _ in range(3):
        member = rig.client(orders, socket.AF_INET)
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        member.bind(("127.0.0.1", port))
        member.listen()
        port = member.getsockname()[1]
    for _ in range(8):
        rig.connect(None, "127.0.0.1", port)
        assert rig.origin().peer == SERVER


def _group(rig: Rig, *owners: Cgroup, kind: int = socket.SOCK_STREAM) -> list[socket.socket]:
    """Sockets that share a port; the kernel, or a program of any of them, chooses who gets a connection."""
    members: list[socket.socket] = []
    for owner in owners:
        member = rig.client(owner, socket.AF_INET, kind)
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        member.bind(("127.0.0.1", members[0].getsockname()[1] if members else 0))
        if kind == socket.SOCK_STREAM:
            member.listen()
        members.append(member)
    return members


def _choose(group: list[socket.socket], index: int) -> None:
    """Let a classic BPF program say who gets what comes (SO_ATTACH_REUSEPORT_CBPF, which needs no privileges)."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, index))  # return index
    group[0].setsockopt(socket.SOL_SOCKET, 51, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("turned", [False, True])
def test_a_port_that_a_workload_shares_with_others_is_nobodys(rig: Rig, kind: int, turned: bool) -> None:
    """Otherwise some, or by a program all, connections that were judged for another would reach the policed one."""
    web, orders, thief = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER), rig.cgroup("thief", OTHER)
    rig.attach(*(rule(CLIENT, UNRESOLVED, REFUSE, transport=number) for number in (TCP, UDP)), free(CLIENT))
    group = _group(rig, *([thief, orders] if turned else [orders, thief, thief, thief]), kind=kind)
    for index in range(len(group)):
        _choose(group, index)
        for _ in range(4):
            with pytest.raises(PermissionError):
                rig.connect(web, *group[0].getsockname(), kind=kind)
    thief_alone = _group(rig, thief, thief, kind=kind)
    rig.connect(web, *thief_alone[0].getsockname(), kind=kind)


def test_whatever_a_program_of_a_shared_port_chooses_is_judged_for_whom_it_chose(rig: Rig) -> None:
    web, orders, thief = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER), rig.cgroup("thief", OTHER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE))
    group = _group(rig, thief, orders)
    _choose(group, 0)
    rig.connect(web, *group[0].getsockname())
    assert group[0].accept()[1]
    _choose(group, 1)
    before = rig.event("syn_refused")
    client = rig.client(web, socket.AF_INET)
    client.setblocking(False)
    with web.inside():
        client.connect_ex(group[0].getsockname())
    eventually(lambda: rig.event("syn_refused") > before, "the SYN is dropped")
    group[1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        group[1].accept()


def test_of_a_port_that_more_share_than_are_looked_at_nobody_can_tell_whose_it_is(rig: Rig) -> None:
    web, orders = rig.cgroup("web", CLIENT), rig.cgroup("orders", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, UNRESOLVED, REFUSE))
    group = _group(rig, *[orders] * abi.Limit.MAX_GROUP)
    rig.connect(web, *group[0].getsockname())
    more = _group(rig, *[orders] * (abi.Limit.MAX_GROUP + 1))
    with pytest.raises(PermissionError):
        rig.connect(web, *more[0].getsockname())


def test_a_multipath_listener_is_its_workload(rig: Rig) -> None:
    """Servers in Go listen with MPTCP where the kernel has it."""
    orders = rig.cgroup("orders", SERVER)
    rig.attach(free(SERVER), rule(HOST, SERVER, REDIRECT))
    try:
        server = rig.server(orders, protocol=socket.IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP ({error})")
    rig.connect(None, *server.getsockname())
    assert rig.origin().peer == SERVER


def test_on_two_addresses_of_one_port_each_listener_is_its_own(rig: Rig) -> None:
    orders, other = rig.cgroup("orders", SERVER), rig.cgroup("other", OTHER)
    rig.attach(rule(HOST, SERVER, REDIRECT), rule(HOST, OTHER, REFUSE))
    port = rig.server(orders, "127.0.0.1").getsockname()[1]
    rig.server(other, "127.0.0.2", port=port)
    rig.connect(None, "127.0.0.1", port)
    assert rig.origin().peer == SERVER
    with pytest.raises(PermissionError):
        rig.connect(None, "127.0.0.2", port)


def test_a_listener_in_a_cgroup_that_nobody_has_looked_at_is_unresolved(rig: Rig) -> None:
    place = rig.cgroup("place")
    rig.attach(rule(HOST, UNRESOLVED, REDIRECT))
    rig.hooks.set_cgroups({place.id: None}, [place.id])
    rig.connect(None, *rig.server(place.sub("fresh")).getsockname())
    assert rig.origin().unresolved


def test_where_nobody_listens_the_kernel_itself_refuses(rig: Rig) -> None:
    web = rig.cgroup("web", CLIENT)
    rig.attach(rule(CLIENT, HOST, NATIVE), rule(CLIENT, SERVER, REDIRECT), rule(CLIENT, UNRESOLVED, REDIRECT))
    server = rig.server()
    address = server.getsockname()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        rig.connect(web, *address)
    assert rig.nobody_came()


# Cgroups that go while sockets that were made in them stay: with systemd's fd store, or a server that hands its socket on.


@pytest.mark.parametrize("where", ["itself", "below"])
def test_a_listener_whose_cgroup_is_removed_and_made_anew_stays_its_workloads(rig: Rig, where: str) -> None:
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REDIRECT))
    server = rig.server(orders if where == "itself" else orders.sub("below"))
    orders.remove()
    rig.connect(None, *server.getsockname())  # before the agent knows
    assert rig.origin().peer == SERVER
    rig.forget(orders)
    rig.connect(None, *server.getsockname())
    assert rig.origin().peer == SERVER
    anew = rig.cgroup("orders", OTHER)
    assert anew.id != orders.id
    rig.connect(None, *server.getsockname())
    assert rig.origin().peer == SERVER


def test_a_listener_whose_cgroup_was_gone_before_the_agent_came_is_nobodys_that_can_be_told(rig: Rig) -> None:
    web, orders, above = rig.cgroup("web", CLIENT), rig.base.sub("above").sub("orders"), rig.cgroup("above", OTHER)
    server = rig.server(orders)
    orders.remove()
    rig.attach(free(CLIENT), rule(CLIENT, UNRESOLVED, REFUSE))
    with pytest.raises(PermissionError):
        rig.connect(web, *server.getsockname())
    alive = rig.server(above)
    rig.connect(web, *alive.getsockname())


def test_a_listener_in_a_removed_cgroup_takes_no_unjudged_syn(rig: Rig) -> None:
    orders = rig.cgroup("orders", SERVER)
    server = rig.client(orders, socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")  # so that connect() finds nobody
    server.bind(("127.0.0.1", 0))
    server.listen()
    orders.remove()
    rig.attach(rule(HOST, SERVER, REFUSE))
    rig.forget(orders)
    client = rig.client(None, socket.AF_INET)
    client.setblocking(False)
    client.connect_ex(server.getsockname())
    eventually(lambda: rig.event("syn_refused") > 0, "the SYN is dropped")


def test_a_live_cgroup_that_is_no_workload_any_more_is_nobodys(rig: Rig) -> None:
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REFUSE))
    server = rig.server(orders)
    rig.forget(orders)
    rig.connect(None, *server.getsockname())


def test_of_removed_cgroups_the_oldest_are_forgotten_first(rig: Rig) -> None:
    rig.attach(rule(HOST, SERVER, REDIRECT), rule(HOST, UNRESOLVED, REFUSE))
    servers = []
    for name in ("first", "second"):
        orders = rig.cgroup(name, SERVER)
        servers.append(rig.server(orders))
        orders.remove()
        rig.forget(orders)
    for number in range(abi.Limit.MAX_GRAVES - 1):
        rig.hooks._bury((1 << 60 | number).to_bytes(8, sys.byteorder), SERVER)
    assert rig.hooks.forgotten == 1
    with pytest.raises(PermissionError):
        rig.connect(None, *servers[0].getsockname())
    rig.connect(None, *servers[1].getsockname())
    assert rig.origin().peer == SERVER


def test_a_listener_that_its_maker_handed_to_another_process_stays_its_makers(rig: Rig) -> None:
    """Socket activation: systemd makes the socket, so documents must name the cgroup that made it."""
    orders = rig.cgroup("orders", SERVER)
    rig.attach(rule(HOST, SERVER, REDIRECT))
    server = rig.server(None)
    os.set_inheritable(server.fileno(), True)
    server.settimeout(PATIENCE)
    with orders.inside():
        heir = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        rig.connect(None, *server.getsockname())
        server.accept()[0].close()
        assert rig.nobody_came()
    finally:
        heir.kill()
        heir.wait()
