"""The kernel's tables in examples; tests/property/test_policies_kernel_tables.py has the law."""

from ipaddress import ip_network

import pytest

from policies import compile as tables
from policies.compile import ANY_PEER, FIRST_ADDRESS_CLASS, LOCAL, UNRESOLVED, KernelTables, TableLimitError, kernel_tables
from policies.decide import Action

from .words import http_policy, policy, policy_set, workload

IDS = {"orders": 1, "web": 2, "batch": 3, "far": 4}
TCP, UDP = 6, 17


def compiled(*documents: str) -> KernelTables:
    return kernel_tables(policy_set(*documents), IDS, [ip_network("127.0.0.0/8")])


def rules(found: KernelTables, subject: int, peer: int, transport: int = TCP) -> list[tuple[int, int, Action]]:
    return [
        (rule.port, rule.prefix_bits, rule.action)
        for rule in found.rules
        if (rule.subject, rule.peer, rule.transport) == (subject, peer, transport)
    ]


def test_without_policies_every_workload_has_one_native_rule_per_transport() -> None:
    found = compiled()
    everybody = {(n, ANY_PEER, Action.NATIVE) for n in (1, 2, 3, UNRESOLVED)}
    assert {(rule.subject, rule.peer, rule.action) for rule in found.rules} == everybody
    assert len(found.rules) == 7


def test_a_policed_port_is_one_rule_beside_the_refusal_of_all_others() -> None:
    found = compiled(http_policy("[{}]"))
    assert rules(found, IDS["web"], IDS["orders"]) == [(0, 0, Action.REFUSE), (8080, 16, Action.REDIRECT)]
    assert rules(found, IDS["web"], IDS["orders"], UDP) == [(0, 0, Action.REFUSE)]
    assert rules(found, LOCAL, IDS["orders"]) == [(0, 0, Action.REFUSE)]
    assert rules(found, IDS["web"], IDS["batch"]) == []


def test_what_a_restricted_subject_has_no_rule_for_is_refused() -> None:
    found = compiled(policy("endpointSelector: {matchLabels: {app: web}}\negress: [{toEntities: [world]}]"))
    assert rules(found, IDS["web"], ANY_PEER) == []
    assert rules(found, IDS["web"], IDS["orders"]) == []
    assert rules(found, IDS["web"], FIRST_ADDRESS_CLASS) == [(0, 0, Action.NATIVE)]


def test_audit_mode_stops_no_datagram_and_no_socket() -> None:
    """The hook refuses a datagram that it would have to redirect, and sockets of other protocols without a native rule."""
    found = compiled(policy("endpointSelector: {matchLabels: {app: web}}\negress: [{toEntities: [world]}]\nmode: audit"))
    for peer in (LOCAL, UNRESOLVED, FIRST_ADDRESS_CLASS, *IDS.values()):
        assert rules(found, IDS["web"], peer, UDP) == []
    assert rules(found, IDS["web"], ANY_PEER, UDP) == rules(found, IDS["web"], ANY_PEER, TCP) == [(0, 0, Action.NATIVE)]
    assert rules(found, IDS["web"], IDS["orders"], TCP) == [(0, 0, Action.REDIRECT)]
    deny = "egressDeny: [{toEntities: [world], mode: audit}]\negress: [{toEntities: [all]}]"
    found = compiled(policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\n{deny}"))
    assert rules(found, IDS["web"], FIRST_ADDRESS_CLASS, UDP) == [(0, 0, Action.NATIVE)]


def test_a_port_range_becomes_aligned_prefixes() -> None:
    ports = 'toPorts: [{ports: [{port: "8080", endPort: 8090, protocol: TCP}]}]'
    found = compiled(policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\negress: [{{toEntities: [world], {ports}}}]"))
    assert rules(found, IDS["web"], FIRST_ADDRESS_CLASS) == [
        (8080, 13, Action.NATIVE),
        (8088, 15, Action.NATIVE),
        (8090, 16, Action.NATIVE),
    ]


def test_a_peer_that_the_hook_cannot_tell_is_redirected_unless_all_agree() -> None:
    found = compiled(http_policy("[{}]"))
    assert rules(found, IDS["web"], UNRESOLVED) == [(0, 0, Action.REDIRECT)]
    everybody = compiled(policy("endpointSelector: {matchLabels: {app: web}}\negress: []"))
    assert rules(everybody, IDS["web"], UNRESOLVED) == []


def test_addresses_that_no_policy_tells_apart_are_one_class() -> None:
    cidrs = "[{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}, {cidr: 192.0.2.0/24}]"
    found = compiled(
        policy(f"endpointSelector: {{}}\negress: [{{toCIDRSet: {cidrs}}}]"), workload("far", False, "10.1.2.3, 10.2.0.0/16")
    )
    by_network = {str(entry.network): entry.identity for entry in found.addresses}
    assert by_network["0.0.0.0/0"] == by_network["::/0"] == by_network["10.1.0.0/16"]
    assert len({by_network["0.0.0.0/0"], by_network["10.0.0.0/8"], by_network["192.0.2.0/24"]}) == 3
    assert by_network["10.1.2.3/32"] == by_network["10.2.0.0/16"] == IDS["far"]
    assert [str(entry.network) for entry in found.addresses if entry.local] == ["127.0.0.0/8"]


def test_the_servers_of_this_host_are_no_part_of_a_workload_whose_addresses_contain_its_own() -> None:
    """Otherwise a workload of 10.0.0.0/8 switches the ingress policy of every server off that is called by this host's own
    address."""
    far = policy_set(http_policy("[{}]"), workload("offices", False, "10.0.0.0/8"))
    found = kernel_tables(far, IDS | {"offices": 5}, [ip_network("10.0.0.5/32")])
    assert {(str(entry.network), entry.identity, entry.local) for entry in found.addresses} >= {
        ("10.0.0.0/8", 5, False),
        ("10.0.0.5/32", 5, True),
    }
    assert rules(found, IDS["web"], UNRESOLVED) == [(0, 0, Action.REDIRECT)]


def test_fail_open_is_a_property_of_redirects() -> None:
    found = compiled(http_policy("[{}]", extra="failOpen: true"))
    to_orders = [rule for rule in found.rules if rule.peer == IDS["orders"]]
    assert {(rule.action, rule.fail_open) for rule in to_orders if rule.subject != UNRESOLVED} == {
        (Action.REDIRECT, True),
        (Action.REFUSE, False),
    }
    # Not all of those that it might be are redirected.
    assert {rule.fail_open for rule in to_orders if rule.subject == UNRESOLVED} == {False}


def test_what_is_only_recorded_goes_on_without_the_agent() -> None:
    wide = http_policy("[{}]", "wide").replace("rules: {http: [{}]}", "")
    found = compiled(http_policy("[{path: /a}]"), wide)
    assert [
        (rule.port, rule.action, rule.fail_open)
        for rule in found.rules
        if (rule.subject, rule.peer, rule.transport) == (IDS["web"], IDS["orders"], TCP)
    ] == [(0, Action.REFUSE, False), (8080, Action.REDIRECT, True)]


def test_a_sender_that_cannot_be_told_passes_only_what_everybody_passes() -> None:
    found = compiled(http_policy("[{}]"))
    assert rules(found, UNRESOLVED, ANY_PEER) == [(0, 0, Action.NATIVE)]
    assert rules(found, UNRESOLVED, IDS["orders"]) == [(0, 0, Action.REFUSE), (8080, 16, Action.REDIRECT)]
    assert rules(found, UNRESOLVED, IDS["batch"]) == rules(found, UNRESOLVED, LOCAL) == []
    assert rules(found, UNRESOLVED, UNRESOLVED) == [(0, 0, Action.REDIRECT)]


def test_the_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_RULES", 5)
    with pytest.raises(TableLimitError, match="more than MAX_RULES") as caught:
        compiled()
    assert caught.value.limit == "MAX_RULES"
    monkeypatch.setattr(tables, "MAX_ADDRESSES", 2)
    with pytest.raises(TableLimitError, match="MAX_ADDRESSES"):
        compiled()


@pytest.mark.parametrize("ids", [{}, {"orders": 1, "web": 2}, {"orders": 0, "web": 2, "batch": 3}, {**IDS, "web": 0xFFFF}])
def test_every_workload_needs_an_identity(ids: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needs an identity"):
        kernel_tables(policy_set(), ids, [])
