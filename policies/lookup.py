"""What the connect hook says of an address and of two identities, read from the same tables (`policies.compile`)."""

from collections import defaultdict
from ipaddress import IPv6Address

from policies.compile import ANY_PEER, LOCAL, UNRESOLVED, AddressEntry, KernelTables
from policies.decide import Action

_MAPPED = int(IPv6Address("::ffff:0:0"))  # IPv4 lives here
_ADDRESS_BITS, _PORT_BITS = 128, 16


class Lookup:
    """Longest-prefix matches over one generation's tables."""

    def __init__(self, tables: KernelTables) -> None:
        self._addresses: dict[int, dict[int, AddressEntry]] = defaultdict(dict)
        for entry in tables.addresses:
            shift = entry.network.max_prefixlen - entry.network.prefixlen
            start = int(entry.network.network_address) + (_MAPPED if entry.network.version == 4 else 0)
            self._addresses[shift][start >> shift] = entry
        self._rules: dict[tuple[int, int, int], dict[tuple[int, int], Action]] = defaultdict(dict)
        self._policed = {rule.peer for rule in tables.rules if rule.subject == UNRESOLVED and rule.peer != ANY_PEER}
        self._free = {LOCAL}
        for rule in tables.rules:
            shift = _PORT_BITS - rule.prefix_bits
            self._rules[rule.subject, rule.peer, rule.transport][shift, rule.port >> shift] = rule.action
            if rule.peer == ANY_PEER:
                self._free.add(rule.subject)

    def address(self, packed: bytes) -> AddressEntry:
        """What an address is; 16 bytes, IPv4 as IPv4-mapped. Every address has an entry."""
        number = int.from_bytes(packed, "big")
        shifts = sorted(self._addresses)
        return next(self._addresses[shift][number >> shift] for shift in shifts if number >> shift in self._addresses[shift])

    def action(self, subject: int, peer: int, transport: int, port: int) -> Action:
        for whom in (peer, ANY_PEER):
            found = self._rules.get((subject, whom, transport), {})
            for shift in range(_PORT_BITS + 1):
                if (shift, port >> shift) in found:
                    return found[shift, port >> shift]
        return Action.NATIVE if subject == LOCAL else Action.REFUSE

    def is_policed(self, subject: int, peer: int) -> bool:
        """Whether policies of either's own concern the two: the subject's for egress, the peer's for ingress."""
        return subject not in self._free or peer in self._policed
