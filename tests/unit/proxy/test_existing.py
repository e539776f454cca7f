"""Which connections end when policy comes, told from a survey of sockets."""

import socket

import pytest

from bpf import abi
from policies.compile import KernelTables, kernel_tables
from policies.lookup import Lookup
from proxy.existing import CLOSE_WAIT, ESTABLISHED, LISTEN, SYN_SENT, unwanted
from proxy.hostnet import LOOPBACK
from tests.unit.policies.words import http_policy, policy_set

ORDERS, WEB, BATCH = 1, 2, 3
HOST, UNRESOLVED, AGENT = abi.Identity.HOST, abi.Identity.UNRESOLVED, abi.Identity.AGENT
HERE, AWAY = b"\0" * 10 + b"\xff\xff\x7f\0\0\1", b"\0" * 10 + b"\xff\xff\x08\x08\x08\x08"
ANY4, ANY6 = b"\0" * 10 + b"\xff\xff" + bytes(4), bytes(16)
SERVER, CLIENT = 8080, 40000


def tables() -> KernelTables:
    """web may GET from orders at 8080, nobody else may anything there."""
    return kernel_tables(policy_set(http_policy("[{}]")), {"orders": ORDERS, "web": WEB, "batch": BATCH, "far": 4}, LOOPBACK)


def end(
    owner: int, local: int, remote: int, state: int = ESTABLISHED, caller: bool = False, subject: int | None = None
) -> abi.Socket:
    who = owner if subject is None else subject
    return abi.Socket(HERE, HERE, socket.htons(local), socket.htons(remote), state, caller, owner, who, local << 16 | remote)


def listener(owner: int, address: bytes = HERE, port: int = SERVER) -> abi.Socket:
    return abi.Socket(address, bytes(16), socket.htons(port), 0, LISTEN, 0, owner, owner, 1)


def ended(*sockets: abi.Socket, everything: bool = False) -> list[int]:
    return [cookie >> 16 for cookie in unwanted(sockets, Lookup(tables()), everything)]


@pytest.mark.parametrize("address", [HERE, ANY4, ANY6])
@pytest.mark.parametrize("who", [HOST, WEB, BATCH, UNRESOLVED])
def test_what_policy_refuses_or_reads_ends_at_the_callers_socket(who: int, address: bytes) -> None:
    assert ended(listener(ORDERS, address), end(ORDERS, SERVER, CLIENT), end(who, CLIENT, SERVER)) == [CLIENT]


def test_what_is_native_lives() -> None:
    assert ended(listener(BATCH), end(BATCH, SERVER, CLIENT), end(WEB, CLIENT, SERVER)) == []
    assert ended(listener(HOST), end(HOST, SERVER, CLIENT), end(ORDERS, CLIENT, SERVER)) == []


def test_who_connected_is_asked_about_and_not_who_made_the_socket() -> None:
    both = (listener(BATCH), end(BATCH, SERVER, CLIENT), end(ORDERS, CLIENT, SERVER, caller=True, subject=WEB))
    assert ended(*both) == []
    assert ended(*both, everything=True) == []
    called = end(BATCH, SERVER, CLIENT, caller=True, subject=WEB)  # it listens at the other end's port by now
    assert ended(called, end(ORDERS, CLIENT, SERVER), listener(HOST, port=SERVER)) == [SERVER]


def test_where_nobody_listens_any_more_both_may_have_called() -> None:
    assert ended(end(ORDERS, SERVER, CLIENT), end(WEB, CLIENT, SERVER)) == [CLIENT]
    assert ended(end(ORDERS, CLIENT, SERVER), end(WEB, SERVER, CLIENT)) == [SERVER]


def test_a_caller_that_listens_at_its_own_port_is_still_asked_about() -> None:
    """With SO_REUSEADDR it may open that port after the connect."""
    both = (listener(ORDERS), end(ORDERS, SERVER, CLIENT), end(BATCH, CLIENT, SERVER), listener(BATCH, port=CLIENT))
    assert CLIENT in ended(*both)


def test_the_agents_own_connections_and_redirected_ones_are_left_alone() -> None:
    assert ended(listener(ORDERS), end(ORDERS, SERVER, CLIENT), end(AGENT, CLIENT, SERVER)) == []
    assert ended(listener(AGENT), end(AGENT, SERVER, CLIENT), end(ORDERS, CLIENT, SERVER)) == []
    assert ended(listener(AGENT), end(ORDERS, CLIENT, SERVER, SYN_SENT)) == []


def test_what_waits_for_the_answer_to_its_syn_is_asked_about_whoever_listens() -> None:
    assert ended(listener(ORDERS), end(BATCH, CLIENT, SERVER, SYN_SENT)) == [CLIENT]
    assert ended(listener(BATCH), end(WEB, CLIENT, SERVER, SYN_SENT)) == []


def test_a_connection_whose_other_end_is_gone_is_left_to_be_read() -> None:
    assert ended(listener(ORDERS), end(WEB, CLIENT, SERVER, CLOSE_WAIT)) == []


def test_connections_of_other_hosts_are_left_alone_and_those_to_them_judged_by_their_address() -> None:
    inbound = end(ORDERS, SERVER, CLIENT)._replace(remote=AWAY)
    outbound = end(WEB, CLIENT, SERVER)._replace(remote=AWAY)
    assert ended(listener(ORDERS), inbound, outbound) == []


def test_all_that_has_a_policed_end_may_end() -> None:
    sockets = (listener(ORDERS, port=9), end(ORDERS, 9, CLIENT), end(WEB, CLIENT, 9))
    assert ended(*sockets, everything=True) == [CLIENT]
    assert ended(listener(BATCH), end(BATCH, SERVER, CLIENT), end(WEB, CLIENT, SERVER), everything=True) == []
