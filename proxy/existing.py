"""Connections that the connect hook has not judged by the policy of now: older than the agent, or than the policy.

A survey of all TCP sockets of our network namespace says whose both ends are. What policy would refuse or redirect by now is
ended: its sockets get ECONNABORTED, the other end a reset. What the agent carries itself is left alone.
"""

import socket
import sys
from collections import defaultdict
from collections.abc import Iterable

from bpf import abi
from bpf.loader import Object
from policies.compile import KernelTables
from policies.decide import Action
from policies.lookup import Lookup
from proxy.datapath import Hooks, object_file

# States of TCP, as of include/net/tcp_states.h.
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LISTEN = 1, 2, 3, 4, 5, 8, 10
_ALIVE = {ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT}
_WILDCARDS = (bytes(16), b"\0" * 10 + b"\xff\xff" + bytes(4))


class Existing:
    """The programs of existing.bpf.c. Making one raises `BpfError` where the kernel cannot end sockets (before Linux 6.5)."""

    def __init__(self, hooks: Hooks) -> None:
        self._object = Object(object_file("existing"), hooks.config, hooks.survey)
        self._doomed = self._object.map("doomed")

    def survey(self) -> list[abi.Socket]:
        return [abi.Socket._make(told) for told in abi.SLUICE_SOCKET.iter_unpack(self._object.iterate("sluice_survey"))]

    def end(self, tables: KernelTables, everything: bool = False, connecting: bool = False) -> int:
        """End what ``tables`` would not let pass, or ``everything`` that has a policed end; how many there were.

        ``connecting``: only those whose SYN has not been answered yet, as it is when it was refused.
        """
        sockets = self.survey()
        if connecting:
            sockets = [told for told in sockets if told.state in (SYN_SENT, LISTEN)]
        doomed = unwanted(sockets, Lookup(tables), everything)
        for start in range(0, len(doomed), abi.Limit.MAX_DOOMED):
            keys = [cookie.to_bytes(8, sys.byteorder) for cookie in doomed[start : start + abi.Limit.MAX_DOOMED]]
            self._doomed.set_all((key, b"\1") for key in keys)
            self._object.iterate("sluice_destroy")
            for key in keys:
                self._doomed.delete(key)
        return len(doomed)

    def close(self) -> None:
        self._object.close()


def unwanted(sockets: Iterable[abi.Socket], lookup: Lookup, everything: bool = False) -> list[int]:
    """The cookies of the callers' sockets of connections that are to be ended."""
    told = list(sockets)
    ends = {(one.local, one.local_port, one.remote, one.remote_port): one for one in told if one.state in _ALIVE}
    listeners: dict[int, list[abi.Socket]] = defaultdict(list)
    for one in told:
        if one.state == LISTEN:
            listeners[one.local_port].append(one)

    def listener(address: bytes, port: int) -> abi.Socket | None:
        here = listeners.get(port, ())
        return next((one for wanted in (address, *_WILDCARDS) for one in here if one.local == wanted), None)

    found = []
    for one in ends.values():
        other = ends.get((one.remote, one.remote_port, one.local, one.local_port))
        # Who called is known of some. Of others, whoever's port is listened at was called; where nobody listens any more, or
        # somebody does at both ports (which he may have opened later), either may have called, and both are asked about.
        there = listener(one.remote, one.remote_port)
        was_called = listener(one.local, one.local_port) and not (other and there)
        if not one.caller and (was_called or (other and other.caller)):
            continue
        peer = _peer(one, other, lookup, there)
        if peer is None or abi.Identity.AGENT in (one.owner, peer):
            continue
        port = socket.ntohs(one.remote_port)
        denied = lookup.action(one.subject, peer, socket.IPPROTO_TCP, port) is not Action.NATIVE
        if denied or (everything and lookup.is_policed(one.subject, peer)):
            found.append(one.cookie)
    return found


def _peer(one: abi.Socket, other: abi.Socket | None, lookup: Lookup, listener: abi.Socket | None) -> int | None:
    """Who is called; None: the other end is gone, and the connection with it."""
    entry = lookup.address(one.remote)
    if other is None and entry.local:
        if one.state != SYN_SENT:
            return None
        other = listener
    owner = other.owner if other else abi.Identity.HOST
    if owner != abi.Identity.HOST:
        return owner
    is_workload = abi.Identity.FIRST_WORKLOAD <= entry.identity < abi.Identity.UNRESOLVED
    return entry.identity if is_workload or not entry.local else abi.Identity.HOST
