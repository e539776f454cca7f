"""The kernel's tables say exactly what `PolicySet.pair` says."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.compile import (
    ANY_PEER,
    FIRST_ADDRESS_CLASS,
    LOCAL,
    UNRESOLVED,
    AddressEntry,
    KernelTables,
    kernel_tables,
)
from policies.decide import Action, PolicySet
from policies.load import LoadError, Source, load
from policies.lookup import Lookup
from policies.model import Direction, Endpoint

from .policies_words import NAMES, documents, workload_documents

IDS = {name: number for number, name in enumerate(NAMES, 1)}
OUTSIDE = ["10.0.0.1", "10.0.0.200", "10.1.2.3", "10.9.0.1", "192.0.2.1", "8.8.8.8", "2001:db8::1", "2001:db8:1::1", "fd00::1"]
HOST_NETWORKS = [ip_network("127.0.0.0/8"), ip_network("10.0.0.1/32"), ip_network("::1/128")]
PORTS = [1, 52, 53, 54, 79, 80, 81, 1023, 1024, 8079, 8080, 8081, 8090, 9000, 40000, 65535]


def mapped(address: str) -> bytes:
    parsed = ip_address(address)
    return parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed


def lookup_address(tables: KernelTables, address: str) -> AddressEntry:
    """Longest prefix match, as BPF_MAP_TYPE_LPM_TRIE does it."""
    parsed = ip_address(address)
    return max((e for e in tables.addresses if parsed in e.network), key=lambda entry: entry.network.prefixlen)


def lookup_rule(tables: KernelTables, subject: int, peer: int, transport: int, port: int) -> tuple[Action, bool]:
    """What the connect hook does: (subject, peer), then (subject, any peer), then the rule for a missing entry."""
    for key in (peer, ANY_PEER):
        found = [
            entry
            for entry in tables.rules
            if (entry.subject, entry.peer, entry.transport) == (subject, key, transport)
            and port >> (16 - entry.prefix_bits) == entry.port >> (16 - entry.prefix_bits)
        ]
        if found:
            best = max(found, key=lambda entry: entry.prefix_bits)
            return best.action, best.fail_open
    return (Action.NATIVE if subject == LOCAL else Action.REFUSE), False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(policies=st.lists(documents, min_size=0, max_size=4), data=st.data())
def test_a_lookup_in_the_tables_equals_the_decision_of_the_pair(policies: list[str], data: st.DataObject) -> None:
    policy_set = _loaded(policies)
    if policy_set is None:
        return
    tables = kernel_tables(policy_set, IDS, HOST_NETWORKS)
    assert len({(e.subject, e.peer, e.transport, e.port, e.prefix_bits) for e in tables.rules}) == len(tables.rules)
    lookup = Lookup(tables)
    hooked = {LOCAL: Endpoint(local=True)} | {
        IDS[workload.name]: policy_set.endpoint(workload.name) for workload in policy_set.bundle.workloads if workload.cgroups
    }
    for subject_id, subject in hooked.items():
        transport = data.draw(st.sampled_from([("TCP", 6), ("UDP", 17)]))
        for address in OUTSIDE:
            entry, port = lookup_address(tables, address), data.draw(st.sampled_from(PORTS))
            assert lookup.address(mapped(address)) == entry
            if not entry.local:
                owner = policy_set.workload_of_address(address)
                away = policy_set.endpoint(owner.name) if owner is not None else Endpoint(address=address)
                _same(tables, policy_set, (subject_id, subject), (entry.identity, away), port, transport)
        here_id = data.draw(st.sampled_from(sorted(hooked)))
        for port in PORTS:
            _same(tables, policy_set, (subject_id, subject), (here_id, hooked[here_id]), port, transport)
            pairs = [policy_set.pair(subject, peer, port, transport[0]) for peer in hooked.values()]
            action, fail_open = lookup_rule(tables, subject_id, UNRESOLVED, transport[1], port)
            assert lookup.action(subject_id, UNRESOLVED, transport[1], port) is action
            assert (
                lookup.action(subject_id, here_id, transport[1], port)
                is lookup_rule(tables, subject_id, here_id, transport[1], port)[0]
            )
            actions = {pair.action for pair in pairs}
            assert action is (actions.pop() if len(actions) == 1 else Action.REDIRECT)
            if fail_open:
                assert all(p.action is Action.NATIVE or (p.action is Action.REDIRECT and p.fail_open) for p in pairs)
    for here_id, here in hooked.items():
        for port in PORTS:
            native = all(policy_set.pair(subject, here, port, "TCP").action is Action.NATIVE for subject in hooked.values())
            policed = policy_set.policies_of(here, Direction.INGRESS)
            action, _ = lookup_rule(tables, UNRESOLVED, here_id, 6, port)
            assert (action is Action.NATIVE) is (native or not policed)


def _same(
    tables: KernelTables,
    policy_set: PolicySet,
    subject: tuple[int, Endpoint],
    peer: tuple[int, Endpoint],
    port: int,
    transport: tuple[str, int],
) -> None:
    pair = policy_set.pair(subject[1], peer[1], port, transport[0])
    action, fail_open = lookup_rule(tables, subject[0], peer[0], transport[1], port)
    assert action is pair.action
    assert fail_open is (pair.fail_open and action is Action.REDIRECT)


@settings(max_examples=60, deadline=None)
@given(policies=st.lists(documents, max_size=4), address=st.sampled_from([*OUTSIDE, "127.0.0.1", "::1", "10.1.0.5"]))
def test_every_address_has_an_entry_and_local_ones_are_flagged(policies: list[str], address: str) -> None:
    policy_set = _loaded(policies)
    if policy_set is None:
        return
    tables = kernel_tables(policy_set, IDS, HOST_NETWORKS)
    networks = {entry.network for entry in tables.addresses}
    assert {IPv4Network("0.0.0.0/0"), IPv6Network("::/0")} <= networks
    assert len(networks) == len(tables.addresses)
    entry = lookup_address(tables, address)
    owner = policy_set.workload_of_address(address)
    is_local = any(ip_address(address) in network for network in HOST_NETWORKS)
    assert entry.local is is_local
    if owner is not None:
        assert entry.identity == IDS[owner.name]
    elif not is_local:
        assert entry.identity >= FIRST_ADDRESS_CLASS


def _loaded(policies: list[str]) -> PolicySet | None:
    """The random policies with the workloads; None when they contradict each other (http and grpc on one port)."""
    texts = [policy.replace("NAME", f"p{number}") for number, policy in enumerate(policies)]
    try:
        return PolicySet(load([Source("t", "---\n".join([*workload_documents, *texts]))]), 1)
    except LoadError as error:
        if {finding.code for finding in error.findings} != {"SE009"}:
            raise
        return None
