"""The ``spec`` of a policy out of its document: selectors, peers, ports and rules."""

import re
from collections.abc import Callable
from ipaddress import IPv6Network, ip_network

from policies.model import (
    ANY_PORT,
    NAMESPACE_LABEL,
    NAMESPACE_LABELS,
    STRICT,
    AnyL7Rule,
    CidrRule,
    Direction,
    EmptySegments,
    EncodedSlash,
    Entity,
    Network,
    Normalise,
    Operator,
    Peers,
    Place,
    Policy,
    PortRange,
    PortRule,
    Requirement,
    Rule,
    Section,
    Selector,
)
from policies.nodes import Fields, Node, Report, Scalar
from policies.rules import RuleReader

# Cilium's own limit per toPorts entry.
MAX_PORTS = 40

NOT_YET = "is not supported yet, refused so that nothing is silently open"

_SPEC_FIELDS = (
    "endpointSelector",
    "ingress",
    "ingressDeny",
    "egress",
    "egressDeny",
    "enableDefaultDeny",
    "description",
    "labels",
)
_SPEC_EXTENSIONS = ("mode", "failOpen", "redactQuery")
_SPEC_REFUSED = dict.fromkeys(("nodeSelector", "log"), NOT_YET)
_EXTENSION = "is an extension: use apiVersion sluice.dev/v1, kind ApiPolicy"
_RULE_EXTENSIONS = ("name", "mode")
_PEER_KINDS = ("Endpoints", "CIDR", "CIDRSet", "Entities")
_PEERS_REFUSED = ("Requires", "Groups", "Nodes", "Services", "FQDNs")
_L7_REFUSED = dict.fromkeys(("dns", "l7proto", "l7"), NOT_YET)
_PORT_RULE_EXTENSIONS = ["opaque", "bodilessMethods", "normalise"]  # ApiPolicy's
_PORT_RULE_REFUSED = dict.fromkeys(("serverNames", "terminatingTLS", "originatingTLS", "listener"), NOT_YET)
_ENTITIES_REFUSED = (
    "init",
    "ingress",
    "unmanaged",
    "remote-node",
    "health",
    "none",
    "kube-apiserver",
    "world-ipv4",
    "world-ipv6",
)
_TRANSPORTS = ("TCP", "UDP", "ANY")
_TRANSPORTS_REFUSED = ("SCTP", "ICMP", "ICMPV6", "VRRP", "IGMP")

# Kubernetes' grammar of label keys and values.
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}")
_LABEL_VALUE = re.compile(rf"({_LABEL_NAME})?")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
# Python also takes masks, inverted ones and scopes: "10.0.0.0/0.0.0.0" would be everybody, "fe80::1%eth0" nobody.
_NETWORK = re.compile(r"[0-9A-Fa-f:.]+(/(0|[1-9][0-9]{0,2}))?")
_MAPPED = IPv6Network("::ffff:0:0/96")


class SpecReader:
    """Reads the specs of one policy document.

    ``namespace`` is None for a cluster-wide policy. ``extended``: it is an ApiPolicy.
    """

    def __init__(self, report: Report, kind: str, name: str, namespace: str | None, extended: bool) -> None:
        self._report = report
        self._kind = kind
        self._name = name
        self._namespace = namespace
        self._extended = extended
        self._rules = RuleReader(report, namespace or "default", extended)
        self._names: set[str] = set()

    def policy(self, node: Node, prefix: str) -> Policy | None:
        """One spec. ``prefix`` stands before the positions of its rules, as in ``specs[1].``"""
        known = _SPEC_FIELDS + _SPEC_EXTENSIONS if self._extended else _SPEC_FIELDS
        refused = _SPEC_REFUSED | dict.fromkeys(_SPEC_EXTENSIONS, _EXTENSION)
        fields = self._report.fields(node, "spec", known, refused)
        if fields is None:
            return None
        selector_node = self._report.required(fields, "endpointSelector", node.place, "spec")
        defaults = self._default_denies(fields)
        ingress = self._section(fields, Direction.INGRESS, defaults.get(Direction.INGRESS), prefix)
        egress = self._section(fields, Direction.EGRESS, defaults.get(Direction.EGRESS), prefix)
        if ingress is None and egress is None:
            self._report.error(node.place, "SE005", "spec says nothing: it has neither ingress nor egress")
        return Policy(
            kind=self._kind,
            name=self._name,
            place=node.place,
            selector=self._subject(selector_node) if selector_node is not None else Selector(),
            ingress=ingress,
            egress=egress,
            audit=self._rules.audit(fields),
            fail_open=self._flag(fields, "failOpen"),
            redact_query=self._flag(fields, "redactQuery"),
        )

    def _flag(self, fields: dict[str, Node], name: str) -> bool:
        return name in fields and self._report.boolean(fields[name], name)

    def _section(self, fields: dict[str, Node], direction: Direction, default: bool | None, prefix: str) -> Section | None:
        """Present as soon as the document names the direction, so that an empty list denies everything."""
        deny_field = f"{direction}Deny"
        if direction not in fields and deny_field not in fields and not default:
            return None
        rules: list[Rule] = []
        for field, deny in ((direction.value, False), (deny_field, True)):
            if field not in fields:
                continue
            for index, item in enumerate(self._report.items(fields[field], field)):
                rule = self._rule(item, direction, deny, f"{prefix}{field}[{index}]")
                if rule is not None:
                    rules.append(rule)
        return Section(tuple(rules), default is not False)

    def _default_denies(self, fields: dict[str, Node]) -> dict[Direction, bool]:
        """What ``enableDefaultDeny`` says, for the directions that it names."""
        if "enableDefaultDeny" not in fields:
            return {}
        switches = self._report.fields(fields["enableDefaultDeny"], "enableDefaultDeny", list(Direction)) or {}
        return {Direction(name): self._report.boolean(node, f"enableDefaultDeny.{name}") for name, node in switches.items()}

    def _rule(self, node: Node, direction: Direction, deny: bool, position: str) -> Rule | None:
        way = "to" if direction is Direction.EGRESS else "from"
        known = [f"{way}{kind}" for kind in _PEER_KINDS] + ["toPorts"] + (list(_RULE_EXTENSIONS) if self._extended else [])
        refused = dict.fromkeys([f"{way}{kind}" for kind in _PEERS_REFUSED] + ["icmps", "authentication"], NOT_YET)
        refused |= dict.fromkeys(_RULE_EXTENSIONS, _EXTENSION)
        fields = self._report.fields(node, f"a rule of {direction}", known, refused)
        if fields is None:
            return None
        name = self._unique(self._rules.name(fields, position), node.place)
        peers = self._peers(fields, way)
        ports = None
        if "toPorts" in fields:
            ports = self._port_rules(fields["toPorts"], deny, name)
        elif peers is None:
            if deny:
                self._report.error(
                    node.place, "SE005", "a deny rule without peers and ports", "fromEntities: [all] is everybody"
                )
            # As in Cilium, "ingress: [{}]" is how users ask for default deny: a rule that names nothing allows nothing.
            ports = ()
        audit = self._rules.audit(fields)
        if audit and not deny and not (ports and all(port.kind is not None for port in ports)):
            self._report.error(
                fields["mode"].place,
                "SE006",
                "mode: audit on a rule that denies nothing",
                "it belongs on a deny rule, on a rule all of whose ports have L7 rules, or on the policy",
            )
        return Rule(name=name, place=node.place, peers=peers, ports=ports, deny=deny, audit=audit)

    def _unique(self, name: str, place: Place) -> str:
        if name in self._names:
            self._report.error(place, "SE007", f"the policy has two rules named {name!r}")
        self._names.add(name)
        return name

    # Selectors

    def _subject(self, node: Node) -> Selector:
        """``endpointSelector``: of a namespaced policy it can only select workloads of its own namespace."""
        selector = self._selector(node, "endpointSelector")
        if self._namespace is not None:
            for requirement in selector.requirements:
                stays = requirement.operator is Operator.IN and requirement.values == (self._namespace,)
                if requirement.key == NAMESPACE_LABEL and not stays:
                    self._report.error(node.place, "SE009", f"endpointSelector leaves the namespace {self._namespace!r}")
        return self._in_namespace(selector)

    def _peer(self, node: Node, what: str) -> Selector:
        """A peer's selector. As in Cilium, one that says anything of namespaces or of their labels speaks of all of them: it is
        not narrowed to the policy's own, where a deny rule about other namespaces would deny nobody."""
        selector = self._selector(node, what)
        keys = [requirement.key for requirement in selector.requirements]
        if NAMESPACE_LABEL in keys or any(key.startswith(NAMESPACE_LABELS) for key in keys):
            return selector
        return self._in_namespace(selector)

    def _in_namespace(self, selector: Selector) -> Selector:
        if self._namespace is None:
            return selector
        return Selector((*selector.requirements, Requirement(NAMESPACE_LABEL, Operator.IN, (self._namespace,))))

    def _selector(self, node: Node, what: str) -> Selector:
        fields = self._report.fields(node, what, ("matchLabels", "matchExpressions")) or {}
        requirements: list[Requirement] = []
        if "matchLabels" in fields:
            for key, value in labels(self._report, fields["matchLabels"], "matchLabels").items():
                requirements.append(Requirement(key, Operator.IN, (value,)))
        if "matchExpressions" in fields:
            for item in self._report.items(fields["matchExpressions"], "matchExpressions"):
                requirement = self._expression(item)
                if requirement is not None:
                    requirements.append(requirement)
        return Selector(tuple(requirements))

    def _expression(self, node: Node) -> Requirement | None:
        what = "an entry of matchExpressions"
        fields = self._report.fields(node, what, ("key", "operator", "values"))
        if fields is None:
            return None
        key_node = self._report.required(fields, "key", node.place, what)
        operator_node = self._report.required(fields, "operator", node.place, what)
        if key_node is None or operator_node is None:
            return None
        key = self._report.string(key_node, "key")
        operator = self._report.choice(operator_node, "operator", list(Operator))
        if key is None or operator is None:
            return None
        key = label_key(self._report, key, key_node.place)
        values = self._report.items(fields["values"], "values") if "values" in fields else []
        texts = [self._report.string(value, "a value", empty=True) for value in values]
        needs_values = operator in (Operator.IN, Operator.NOT_IN)
        if needs_values != bool(values):
            count = "at least one value" if needs_values else "no values"
            self._report.error(node.place, "SE006", f"{operator} takes {count}")
        return Requirement(key, Operator(operator), tuple(text for text in texts if text is not None))

    # Peers

    def _peers(self, fields: dict[str, Node], way: str) -> Peers | None:
        given = [f"{way}{kind}" for kind in _PEER_KINDS if f"{way}{kind}" in fields]
        if len(given) > 1:
            names = " and ".join(given)
            self._report.error(fields[given[1]].place, "SE009", f"{names} in one rule", "make them two rules; rules are ORed")
        if not given:
            return None
        field, node = given[0], fields[given[0]]
        items = self._report.items(node, field)
        if field.endswith("Endpoints"):
            return Peers(endpoints=tuple(self._peer(item, f"an entry of {field}") for item in items))
        if field.endswith("Entities"):
            entities = [self._entity(item, field) for item in items]
            return Peers(entities=tuple(entity for entity in entities if entity is not None))
        read: Callable[[Node], CidrRule | None] = self._cidr_rule if field.endswith("Set") else self._plain_cidr
        cidrs = [read(item) for item in items]
        return Peers(cidrs=tuple(cidr for cidr in cidrs if cidr is not None))

    def _entity(self, node: Node, field: str) -> Entity | None:
        if isinstance(node, Scalar) and node.text in _ENTITIES_REFUSED:
            self._report.error(node.place, "SE008", f"the entity {node.text!r} {NOT_YET}")
            return None
        name = self._report.choice(node, f"an entry of {field}", list(Entity))
        return Entity(name) if name in list(Entity) else None

    def _plain_cidr(self, node: Node) -> CidrRule | None:
        cidr = network(self._report, node, "a CIDR")
        return CidrRule(cidr) if cidr is not None else None

    def _cidr_rule(self, node: Node) -> CidrRule | None:
        what = "an entry of a CIDR set"
        refused = dict.fromkeys(("cidrGroupRef", "cidrGroupSelector"), NOT_YET)
        fields = self._report.fields(node, what, ("cidr", "except"), refused)
        cidr_node = self._report.required(fields or {}, "cidr", node.place, what)
        cidr = network(self._report, cidr_node, "cidr") if cidr_node is not None else None
        if fields is None or cidr is None:
            return None
        excepts: list[Network] = []
        for item in self._report.items(fields["except"], "except") if "except" in fields else []:
            exception = network(self._report, item, "an exception")
            if exception is None:
                continue
            if exception.version != cidr.version or not exception.subnet_of(cidr):  # type: ignore[arg-type]
                self._report.error(item.place, "SE006", f"the exception {exception} is not part of {cidr}")
            excepts.append(exception)
        return CidrRule(cidr, tuple(excepts))

    # Ports

    def _port_rules(self, node: Node, deny: bool, rule_name: str) -> tuple[PortRule, ...]:
        items = self._report.items(node, "toPorts")
        found = [self._port_rule(item, deny, f"{rule_name}.toPorts[{index}]") for index, item in enumerate(items)]
        return tuple(rule for rule in found if rule is not None)

    def _port_rule(self, node: Node, deny: bool, position: str) -> PortRule | None:
        what = "an entry of toPorts"
        known = ["ports"] + ([] if deny else ["rules"]) + (_PORT_RULE_EXTENSIONS if self._extended and not deny else [])
        refused = _PORT_RULE_REFUSED | dict.fromkeys(_PORT_RULE_EXTENSIONS, _EXTENSION)
        if deny:
            refused |= {"rules": "cannot be below a Deny section, which is L3/L4"}
            refused |= dict.fromkeys(_PORT_RULE_EXTENSIONS, "cannot be below a Deny section")
        fields = self._report.fields(node, what, known, refused)
        ports_node = self._report.required(fields or {}, "ports", node.place, what)
        if fields is None or ports_node is None:
            return None
        has_rules = "rules" in fields
        items = self._report.items(ports_node, "ports")
        if len(items) > MAX_PORTS:
            self._report.error(
                ports_node.place, "SE002", f"{len(items)} ports, more than {MAX_PORTS}", "use endPort, or two entries"
            )
        ports = [self._port(item, has_rules) for item in items[:MAX_PORTS]]
        kind, rules = self._l7(fields["rules"], position) if has_rules else (None, ())
        opaque = "opaque" in fields and self._report.choice(fields["opaque"], "opaque", ("allow", "deny")) == "allow"
        if opaque and kind is None:
            self._report.error(fields["opaque"].place, "SE006", "opaque: allow without L7 rules has no meaning")
        bodiless = "bodilessMethods"
        bodies_refused = bodiless in fields and self._report.choice(fields[bodiless], bodiless, ("allow", "refuse")) == "refuse"
        if bodies_refused and kind != "http":
            self._report.error(fields[bodiless].place, "SE006", f"{bodiless}: refuse without http rules has no meaning")
        return PortRule(
            ports=tuple(port for port in ports if port is not None),
            place=node.place,
            kind=kind,
            rules=rules,
            opaque_allowed=opaque,
            bodies_refused=bodies_refused,
            normalise=self._normalise(fields["normalise"], kind) if "normalise" in fields else None,
        )

    def _normalise(self, node: Node, kind: str | None) -> Normalise | None:
        fields = self._report.fields(node, "normalise", ("encodedSlash", "emptySegments"))
        if fields is None:
            return None
        if kind != "http":
            self._report.error(node.place, "SE006", "normalise without http rules has no meaning")
        slash = segments = None
        if "encodedSlash" in fields:
            slash = self._report.choice(fields["encodedSlash"], "encodedSlash", list(EncodedSlash))
        if "emptySegments" in fields:
            segments = self._report.choice(fields["emptySegments"], "emptySegments", list(EmptySegments))
        if not fields:
            self._report.error(node.place, "SE005", "normalise says nothing", "encodedSlash and emptySegments: keep, …")
        return Normalise(
            EncodedSlash(slash) if slash in list(EncodedSlash) else STRICT.encoded_slash,
            EmptySegments(segments) if segments in list(EmptySegments) else STRICT.empty_segments,
        )

    def _port(self, node: Node, has_rules: bool) -> PortRange | None:
        fields = self._report.fields(node, "an entry of ports", ("port", "endPort", "protocol"))
        port_node = self._report.required(fields or {}, "port", node.place, "an entry of ports")
        if fields is None or port_node is None:
            return None
        first = self._port_number(port_node, "port")
        last = self._port_number(fields["endPort"], "endPort") if "endPort" in fields else first
        transport = self._transport(fields["protocol"]) if "protocol" in fields else "ANY"
        if first is None or last is None or transport is None:
            return None
        if first == ANY_PORT:
            if "endPort" in fields:
                self._report.error(node.place, "SE006", 'port "0" means every port and takes no endPort')
            if has_rules:
                self._report.error(port_node.place, "SE006", 'port "0" (every port) cannot have L7 rules')
            last = 65535
        elif last < first:
            self._report.error(fields["endPort"].place, "SE006", f"endPort {last} is below port {first}")
            return None
        if has_rules and transport != "TCP":
            self._report.error(node.place, "SE006", f"L7 rules are for TCP only, this port is {transport}", "protocol: TCP")
        return PortRange(first, last, transport)

    def _port_number(self, node: Node, what: str) -> int | None:
        # Kubernetes wants port as a string and endPort as a number; either spelling is clear here.
        if isinstance(node, Scalar) and node.type in ("str", "int") and _PORT.fullmatch(node.text) and int(node.text) <= 65535:
            return int(node.text)
        shown = repr(node.text) if isinstance(node, Scalar) else "a collection"
        hint = "named ports are not supported yet" if isinstance(node, Scalar) and node.text[:1].isalpha() else '"0" to "65535"'
        self._report.error(node.place, "SE006", f"{what} is {shown}", hint)
        return None

    def _transport(self, node: Node) -> str | None:
        text = self._report.string(node, "protocol")
        if text is None:
            return None
        if text.upper() in _TRANSPORTS_REFUSED:
            self._report.error(node.place, "SE008", f"protocol {text} {NOT_YET}")
        elif text.upper() not in _TRANSPORTS:
            self._report.error(node.place, "SE006", f"protocol is {text!r}", f"one of {', '.join(_TRANSPORTS)}")
        else:
            return text.upper()
        return None

    def _l7(self, node: Node, position: str) -> tuple[str | None, tuple[AnyL7Rule, ...]]:
        known = ("http", "kafka", "grpc") if self._extended else ("http", "kafka")
        refused = _L7_REFUSED | {"grpc": _EXTENSION}
        fields = self._report.fields(node, "rules", known, refused)
        if fields is None:
            return None, ()
        if len(fields) != 1:
            if isinstance(node, Fields) and not node.entries:
                self._report.error(
                    node.place, "SE005", "rules is empty", 'leave it out, or write "http: []" to deny every call'
                )
            elif fields:
                self._report.error(node.place, "SE009", f"{' and '.join(fields)} rules on the same ports", "one kind per port")
            return None, ()
        kind = next(iter(fields))
        readers: dict[str, Callable[[Node, str], AnyL7Rule | None]] = {
            "http": self._rules.http,
            "grpc": self._rules.grpc,
            "kafka": self._rules.kafka,
        }
        read = readers[kind]
        found: list[AnyL7Rule] = []
        for index, item in enumerate(self._report.items(fields[kind], kind)):
            rule = read(item, f"{position}.rules.{kind}[{index}]")
            if rule is not None:
                self._unique(rule.name, rule.place)
                found.append(rule)
        return kind, tuple(found)


def network(report: Report, node: Node, what: str) -> Network | None:
    """An address or a CIDR. IPv4-mapped IPv6 networks (RFC 4291 section 2.5.5.2) become the IPv4 networks that they are."""
    text = report.string(node, what)
    if text is None:
        return None
    try:
        if not _NETWORK.fullmatch(text):
            raise ValueError(text)
        parsed = ip_network(text, strict=False)
    except ValueError:
        report.error(node.place, "SE006", f"{what} is {text!r}, which is no address", "such as 10.0.0.0/8 or 2001:db8::/32")
        return None
    if isinstance(parsed, IPv6Network) and parsed.subnet_of(_MAPPED):
        return ip_network((int(parsed.network_address) & 0xFFFFFFFF, parsed.prefixlen - 96))
    return parsed


def labels(report: Report, node: Node, what: str) -> dict[str, str]:
    """Labels with Cilium's source prefixes taken off."""
    found: dict[str, str] = {}
    for key, value in report.pairs(node, what):
        text = report.string(value, f"the label {key!r}", empty=True)
        if text is None:
            continue
        if not _LABEL_VALUE.fullmatch(text):
            report.error(
                value.place, "SE006", f"{text!r} is not a label's value", "at most 63 letters, digits, '-', '_' and '.'"
            )
        bare = label_key(report, key, value.place)
        if bare in found:
            report.error(value.place, "SE007", f"{what} has the label {bare!r} twice, with different sources")
        found[bare] = text
    return found


def label_key(report: Report, key: str, place: Place) -> str:
    """A label's key without Cilium's source: every label here is what Cilium calls ``k8s:``."""
    source, colon, bare = key.rpartition(":")
    if colon and source not in ("k8s", "any"):
        report.error(place, "SE008", f"the label source {source!r} {NOT_YET}", "use the entities for reserved: labels")
    elif not _LABEL_KEY.fullmatch(bare):
        report.error(place, "SE006", f"{key!r} is not a label's key")
    return bare
