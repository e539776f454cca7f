"""The L3/L4 part of a policy set as tables for the kernel's connect hook.

The tables hold nothing that `PolicySet.pair` does not say: they are made by asking it, once per subject, peer and range of
ports in which the answer cannot change.

The hook looks an address up in ``addresses`` (longest prefix), which gives the peer's identity, and then in ``rules`` (longest
prefix on the port) under (subject, peer), then under (subject, `ANY_PEER`). When neither has an entry, subject `LOCAL` is
native and every other subject is refused.

Subject `UNRESOLVED` is a sender of TCP on this host that nobody can tell: what all subjects agree on where the peer has ingress
policies, else native.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec

from policies.decide import Action, PolicySet
from policies.model import CidrRule, Direction, Endpoint, Network, Policy

LOCAL = 0  # a process of this host that is no workload
FIRST_WORKLOAD = 1
LAST_WORKLOAD = 0xFFFE
UNRESOLVED = 0xFFFF  # on this host, but the hook cannot tell which process
FIRST_ADDRESS_CLASS = 0x10000
ANY_PEER = 0xFFFFFFFF

# Sizes of the kernel's maps. They are allocated when the agent starts, so they are sized for a busy node and not for any
# possible one: 16,384 prefixes are about 1 MiB, 65,536 rules about 4 MiB.
MAX_ADDRESSES = 16_384
MAX_RULES = 65_536

_TRANSPORTS = {"TCP": 6, "UDP": 17}
_PORT_BITS = 16
_LAST_PORT = 65535


class TableLimitError(Exception):
    """A table would be larger than the kernel's map; ``limit`` names the constant."""

    def __init__(self, limit: str, size: int) -> None:
        super().__init__(f"the policies need {size} entries, more than {limit}")
        self.limit = limit


class AddressEntry(msgspec.Struct, frozen=True):
    """``local``: the hook must look for the listening socket; the workload ``identity`` holds when that is no workload's."""

    network: Network
    identity: int
    local: bool


class RuleEntry(msgspec.Struct, frozen=True):
    """What holds for ports whose first ``prefix_bits`` bits are those of ``port``. ``transport`` is IP's protocol number.

    ``carried``: the kernel may carry the calls of such connections."""

    subject: int
    peer: int
    transport: int
    port: int
    prefix_bits: int
    action: Action
    fail_open: bool
    carried: bool = False


class KernelTables(msgspec.Struct, frozen=True):
    addresses: tuple[AddressEntry, ...]
    rules: tuple[RuleEntry, ...]


class _Value(msgspec.Struct, frozen=True, order=True):
    """What the table says about one port. ``fail_open`` and ``carried`` are only ever true of a redirect."""

    action: Action
    fail_open: bool = False
    carried: bool = False


_REFUSE = _Value(Action.REFUSE)
_NATIVE = _Value(Action.NATIVE)
# (first port, last port, value), without gaps from 0 to 65535.
_Ranges = list[tuple[int, int, _Value]]


def kernel_tables(policy_set: PolicySet, workload_ids: Mapping[str, int], local: Iterable[Network]) -> KernelTables:
    """The tables of a policy set.

    ``workload_ids`` has an identity (`FIRST_WORKLOAD` to `LAST_WORKLOAD`) for every workload of the set; ``local`` are the
    networks of this host's own addresses. Raises `ValueError` for other identities and `TableLimitError`.
    """
    names = {workload.name for workload in policy_set.bundle.workloads}
    if names - workload_ids.keys() or not all(FIRST_WORKLOAD <= workload_ids[name] <= LAST_WORKLOAD for name in names):
        raise ValueError("every workload needs an identity from FIRST_WORKLOAD to LAST_WORKLOAD")
    addresses, classes = _addresses(policy_set, workload_ids, list(local))
    rules = tuple(_rules(policy_set, workload_ids, classes, {entry.identity for entry in addresses if entry.local}))
    for limit, size, most in (("MAX_ADDRESSES", len(addresses), MAX_ADDRESSES), ("MAX_RULES", len(rules), MAX_RULES)):
        if size > most:
            raise TableLimitError(limit, size)
    return KernelTables(addresses, rules)


# Addresses


def _addresses(
    policy_set: PolicySet, workload_ids: Mapping[str, int], local: Sequence[Network]
) -> tuple[tuple[AddressEntry, ...], dict[int, Endpoint]]:
    """The address table, and one endpoint for every class of addresses that no policy tells apart."""
    cidrs = _cidr_rules(policy_set.bundle.policies)
    networks: set[Network] = {IPv4Network("0.0.0.0/0"), IPv6Network("::/0"), *local}
    networks.update(network for workload in policy_set.bundle.workloads for network in workload.addresses)
    for rules in cidrs.values():
        networks.update(network for rule in rules for network in (rule.cidr, *rule.excepts))
    if len(networks) > MAX_ADDRESSES:
        raise TableLimitError("MAX_ADDRESSES", len(networks))
    entries: list[AddressEntry] = []
    identities: dict[frozenset[CidrRule], int] = {}
    classes: dict[int, Endpoint] = {}
    for network, address in _representatives(networks):
        workload = policy_set.workload_of_address(address)
        # A workload of 10.0.0.0/8 does not own the servers of this host that listen at 10.0.0.5: those have cgroups.
        here = any(network.version == own.version and network.subnet_of(own) for own in local)  # type: ignore[arg-type]
        if workload is not None:
            entries.append(AddressEntry(network, workload_ids[workload.name], here))
        elif here:
            entries.append(AddressEntry(network, UNRESOLVED, True))
        else:
            signature = _signature(address, cidrs)
            identity = identities.setdefault(signature, FIRST_ADDRESS_CLASS + len(identities))
            classes.setdefault(identity, Endpoint(address=address))
            entries.append(AddressEntry(network, identity, False))
    return tuple(entries), classes


def _cidr_rules(policies: Iterable[Policy]) -> dict[Network, list[CidrRule]]:
    found: dict[Network, list[CidrRule]] = {}
    for policy in policies:
        for section in filter(None, (policy.ingress, policy.egress)):
            for rule in section.rules:
                for cidr in rule.peers.cidrs if rule.peers is not None else ():
                    found.setdefault(cidr.cidr, []).append(cidr)
    return found


def _signature(address: str, cidrs: Mapping[Network, Sequence[CidrRule]]) -> frozenset[CidrRule]:
    """The CIDR rules that hold for an address: addresses with the same ones are the same to every policy."""
    parsed = ip_address(address)
    around = (ip_network((parsed, bits), strict=False) for bits in range(parsed.max_prefixlen + 1))
    return frozenset(rule for network in around for rule in cidrs.get(network, ()) if rule.contains(parsed))


def _representatives(networks: Iterable[Network]) -> Iterator[tuple[Network, str]]:
    """Every network with an address in it that no longer prefix owns; networks without such an address are left out."""
    for version in (4, 6):
        ordered = sorted(network for network in networks if network.version == version)
        starts = [int(network.network_address) for network in ordered]
        for index, network in enumerate(ordered):
            end = bisect_left(starts, int(network.broadcast_address) + 1)
            address = _uncovered(network, ordered[index + 1 : end])
            if address is not None:
                yield network, address


def _uncovered(network: Network, longer: Sequence[Network]) -> str | None:
    """An address of ``network`` outside of all of ``longer``, which are its subnets."""
    if not longer:
        return str(network.network_address)
    if network in longer:
        return None
    for half in network.subnets():
        address = _uncovered(half, [other for other in longer if other.subnet_of(half)])  # type: ignore[arg-type]
        if address is not None:
            return address
    return None


# Rules


def _rules(
    policy_set: PolicySet, workload_ids: Mapping[str, int], classes: Mapping[int, Endpoint], owners_here: Collection[int]
) -> Iterator[RuleEntry]:
    """``owners_here`` are the workloads that own an address of this host."""
    workloads = {workload_ids[workload.name]: policy_set.endpoint(workload.name) for workload in policy_set.bundle.workloads}
    on_this_host = {LOCAL: Endpoint(local=True)} | {
        workload_ids[workload.name]: workloads[workload_ids[workload.name]]
        for workload in policy_set.bundle.workloads
        if workload.cgroups
    }
    peers = {LOCAL: on_this_host[LOCAL]} | workloads | dict(classes)
    candidates = on_this_host.keys() | (workloads.keys() & set(owners_here))
    policed = {peer_id for peer_id in candidates if policy_set.policies_of(peers[peer_id], Direction.INGRESS)}
    anybody: dict[int, _Ranges] = {}  # what all subjects agree on over TCP, by peer
    for subject_id, subject in on_this_host.items():
        # What is in audit mode stops nothing: neither datagrams nor sockets of protocols that nobody reads.
        restricted = any(not policy.audit for policy in policy_set.policies_of(subject, Direction.EGRESS))
        missing = _REFUSE if restricted else _NATIVE
        if subject_id != LOCAL and not restricted:
            for number in _TRANSPORTS.values():
                yield RuleEntry(subject_id, ANY_PEER, number, 0, 0, Action.NATIVE, False)
        for transport, number in _TRANSPORTS.items():
            ranges = {peer_id: _ranges(policy_set, subject, peer, transport) for peer_id, peer in peers.items()}
            ranges[UNRESOLVED] = _any_of([ranges[peer_id] for peer_id in candidates])
            for peer_id, of_peer in ranges.items():
                for port, bits, value in _prefixes(of_peer, missing):
                    carried = value.carried and peer_id in candidates  # what comes from other hosts cannot be
                    yield RuleEntry(subject_id, peer_id, number, port, bits, value.action, value.fail_open, carried)
                if peer_id in policed and transport == "TCP":
                    anybody[peer_id] = _any_of([of_peer, anybody.get(peer_id, of_peer)])
    yield from _of_anybody(anybody)


def _of_anybody(policed: Mapping[int, _Ranges]) -> Iterator[RuleEntry]:
    """What holds for a SYN whose sender cannot be told, where the peer has policies of its own."""
    yield RuleEntry(UNRESOLVED, ANY_PEER, _TRANSPORTS["TCP"], 0, 0, Action.NATIVE, False)
    somebody = {UNRESOLVED: _any_of([*policed.values(), [(0, _LAST_PORT, _NATIVE)]])} if policed else {}
    for peer_id, ranges in {**policed, **somebody}.items():
        for port, bits, value in _prefixes(ranges, _NATIVE):
            yield RuleEntry(UNRESOLVED, peer_id, _TRANSPORTS["TCP"], port, bits, value.action, value.fail_open)


def _ranges(policy_set: PolicySet, subject: Endpoint, peer: Endpoint, transport: str) -> _Ranges:
    """What holds for every port, asked once between any two ports at which some rule begins or ends."""
    starts = {0}
    policed = False
    for direction, owner, other in ((Direction.EGRESS, subject, peer), (Direction.INGRESS, peer, subject)):
        party = policy_set.party(other)
        for policy in policy_set.policies_of(owner, direction):
            policed = True
            section = policy.section(direction)
            for rule in section.rules if section is not None else ():
                if rule.ports is not None and party.is_selected(rule.peers, rule.deny):
                    ranges = (ports for port_rule in rule.ports for ports in port_rule.ports)
                    starts.update(edge for ports in ranges for edge in (ports.first, ports.last + 1))
    if not policed:
        return [(0, _LAST_PORT, _NATIVE)]
    ordered = sorted(start for start in starts if start <= _LAST_PORT)
    ends = [start - 1 for start in ordered[1:]] + [_LAST_PORT]
    return [
        (first, last, _value(policy_set, subject, peer, first, transport)) for first, last in zip(ordered, ends, strict=True)
    ]


def _value(policy_set: PolicySet, subject: Endpoint, peer: Endpoint, port: int, transport: str) -> _Value:
    pair = policy_set.build_pair(subject, peer, port, transport)
    redirected = pair.action is Action.REDIRECT
    return _Value(pair.action, redirected and pair.fail_open, redirected and pair.may_be_carried)


def _any_of(peers: Sequence[_Ranges]) -> _Ranges:
    """What holds when the peer is one of several: what they agree on, else the proxy finds out."""
    starts = sorted({first for ranges in peers for first, _, _ in ranges})
    ends = [start - 1 for start in starts[1:]] + [_LAST_PORT]
    positions = [0] * len(peers)
    found: _Ranges = []
    for first, last in zip(starts, ends, strict=True):
        values: set[_Value] = set()
        for index, ranges in enumerate(peers):
            while ranges[positions[index]][1] < first:
                positions[index] += 1
            values.add(ranges[positions[index]][2])
        found.append((first, last, _merged(values)))
    return found


def _merged(values: set[_Value]) -> _Value:
    actions = {value.action for value in values}
    if len(actions) == 1 and Action.REDIRECT not in actions:
        return next(iter(values))
    # With the agent dead, a redirect that may fail open is let through: only if it could have been for every one of them.
    return _Value(Action.REDIRECT, all(value == _NATIVE or value.fail_open for value in values))


def _prefixes(ranges: _Ranges, missing: _Value) -> list[tuple[int, int, _Value]]:
    """Ranges as (port, bits, value) for a longest-prefix match, where ``missing`` is what holds without an entry.

    One value may be given once for all ports, with the others as exceptions from it; the choice is the one that is shortest.
    """
    choices = []
    for base in sorted({value for _, _, value in ranges} | {missing}):
        entries = [] if base == missing else [(0, 0, base)]
        for first, last, value in ranges:
            if value != base:
                entries += [(port, bits, value) for port, bits in _aligned(first, last)]
        choices.append(entries)
    return min(choices, key=len)


def _aligned(first: int, last: int) -> Iterator[tuple[int, int]]:
    """A range of ports as the fewest (port, bits) prefixes."""
    while first <= last:
        size = min(first & -first or 1 << _PORT_BITS, 1 << ((last - first + 1).bit_length() - 1))
        yield first, _PORT_BITS - size.bit_length() + 1
        first += size
