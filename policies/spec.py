"""The ``spec`` of a policy out of its document: selectors, peers, ports and rules."""

import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv6Network, ip_network

import msgspec

from policies.model import (
    ANY_PORT,
    NAMESPACE_LABEL,
    NAMESPACE_LABELS,
    RESERVED,
    RESERVED_NAMES,
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
from policies.nodes import Fields, Found, Node, Report, Scalar, suggestion
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
    "log",
)
_SPEC_EXTENSIONS = ("mode", "failOpen", "redactQuery")
# What cannot be enforced, each with what to write instead behind the semicolon.
_SPEC_REFUSED = {
    "nodeSelector": f"{NOT_YET}; connections of this host's other processes are not policed: give them a Workload",
}
_EXTENSION = "is an extension: use apiVersion sluice.dev/v1, kind ApiPolicy"
_RULE_EXTENSIONS = ("name", "mode")
_PEER_KINDS = ("Endpoints", "CIDR", "CIDRSet", "Entities")
_PEERS_REFUSED = {
    "Requires": "add its labels to the selectors of the allow rules; Cilium has removed it, too",
    "Groups": "{way}CIDRSet with the group's addresses, or a CiliumCIDRGroup",
    "Nodes": "{way}Endpoints of Workloads that have the nodes' addresses and labels, or {way}Entities: [remote-node]",
    "Services": "{way}Endpoints with the labels of the service's workloads, or {way}CIDRSet with its addresses",
    "FQDNs": "{way}CIDRSet with the addresses; on a port with plain HTTP, rules.http with host says which names may be asked",
}
_RULE_REFUSED = {
    "icmps": "leave it out: ICMP is neither allowed nor denied by its type; whose egress is default deny sends none",
}
_L7_REFUSED = {
    "dns": f"{NOT_YET}; leave rules out: the port is then allowed, and all names may be asked",
    "l7proto": f"{NOT_YET}; http and kafka are read",
    "l7": f"{NOT_YET}; http and kafka are read",
}
_PORT_RULE_EXTENSIONS = ["opaque", "bodilessMethods", "normalise"]  # ApiPolicy's
_TLS = "TLS is not opened: leave it out, with the L7 rules, and the port is allowed unread; or police the plain side"
_PORT_RULE_REFUSED = {
    "serverNames": f"{NOT_YET}; toCIDRSet with the servers' addresses, or host of HTTP rules where the connection is plain",
    "terminatingTLS": f"{NOT_YET}; {_TLS}",
    "originatingTLS": f"{NOT_YET}; {_TLS}",
    "listener": f"{NOT_YET}; there is no Envoy here: rules say what is allowed",
}
# Labels of Cilium's that are no workload's here, with the entity that means the same.
_RESERVED_ENTITIES = ("host", "world", "world-ipv4", "world-ipv6", "all", "cluster")
_EVERY_ADDRESS = {"world-ipv4": ip_network("0.0.0.0/0"), "world-ipv6": ip_network("::/0")}
_ENTITIES = (*Entity, *_EVERY_ADDRESS, *RESERVED_NAMES)
_CIDRS = ("cidr", "cidrGroupRef", "cidrGroupSelector")
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


class CidrGroup(msgspec.Struct, frozen=True):
    """A CiliumCIDRGroup: addresses that many rules refer to by one name, or by labels."""

    labels: Mapping[str, str]
    cidrs: tuple[CidrRule, ...]


class Known(msgspec.Struct, frozen=True):
    """What other documents say that policies refer to. ``entities`` are those of `RESERVED_NAMES` that have a Workload."""

    entities: frozenset[str] = frozenset()
    cidr_groups: Mapping[str, CidrGroup] = {}


class SpecReader:
    """Reads the specs of one policy document.

    ``namespace`` is None for a cluster-wide policy. ``known``: what there is besides.
    """

    def __init__(self, report: Report, kind: str, name: str, namespace: str | None, known: Known) -> None:
        self._report = report
        self._kind = kind
        self._name = name
        self._namespace = namespace
        self._known = known
        self._extended = kind == "ApiPolicy"
        self._rules = RuleReader(report, namespace or "default", self._extended)
        self._names: set[str] = set()

    def policy(self, node: Node, prefix: str) -> Policy | None:
        """One spec. ``prefix`` stands before the positions of its rules, as in ``specs[1].``"""
        known = _SPEC_FIELDS + _SPEC_EXTENSIONS if self._extended else _SPEC_FIELDS
        refused = _SPEC_REFUSED | dict.fromkeys(_SPEC_EXTENSIONS, _EXTENSION)
        fields = self._report.fields(node, "spec", known, refused)
        if fields is None:
            return None
        selector_node = fields.get("endpointSelector")
        if "nodeSelector" not in fields.refused:
            self._report.required(fields, "endpointSelector", node.place, "spec")
        if "log" in fields:
            self._log(fields["log"])
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

    def _log(self, node: Node) -> None:
        """Words that Cilium shows beside its flows; here they are for people, as ``description`` is."""
        fields = self._report.fields(node, "log", ("value",))
        if fields is not None and "value" in fields:
            self._report.string(fields["value"], "log.value", empty=True)

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
        switches = self._report.fields(fields["enableDefaultDeny"], "enableDefaultDeny", list(Direction)) or Found()
        return {Direction(name): self._report.boolean(node, f"enableDefaultDeny.{name}") for name, node in switches.items()}

    def _rule(self, node: Node, direction: Direction, deny: bool, position: str) -> Rule | None:
        way = "to" if direction is Direction.EGRESS else "from"
        known = [f"{way}{kind}" for kind in _PEER_KINDS] + ["toPorts"] + (list(_RULE_EXTENSIONS) if self._extended else [])
        known.append("authentication")
        refused = {f"{way}{kind}": f"{NOT_YET}; {hint.format(way=way)}" for kind, hint in _PEERS_REFUSED.items()}
        refused |= {field: f"{NOT_YET}; {hint}" for field, hint in _RULE_REFUSED.items()}
        refused |= dict.fromkeys(_RULE_EXTENSIONS, _EXTENSION)
        fields = self._report.fields(node, f"a rule of {direction}", known, refused)
        if fields is None:
            return None
        if "authentication" in fields:
            self._authentication(fields["authentication"])
        name = self._unique(self._rules.name(fields, position), node.place)
        peers = self._peers(fields, way, deny)
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

    def _authentication(self, node: Node) -> None:
        fields = self._report.fields(node, "authentication", ("mode",))
        mode = self._report.required(fields, "mode", node.place, "authentication")
        if mode is not None and self._report.choice(mode, "mode", ("disabled", "required", "test-always-fail")) != "disabled":
            hint = "leave it out: who is who comes from the kernel of this host, and nobody is asked for certificates"
            self._report.error(node.place, "SE008", f"authentication {NOT_YET}", hint)

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
        if entity_of(selector) == "init":
            return selector  # as in Cilium: what has no labels yet has no namespace, either, and is in every policy's
        return self._in_namespace(selector)

    def _peer(self, node: Node, what: str) -> Selector:
        """A peer's selector. As in Cilium, one that says anything of namespaces or of their labels speaks of all of them: it is
        not narrowed to the policy's own, where a deny rule about other namespaces would deny nobody. What is reserved has no
        namespace: only a selector that names a reserved label selects it."""
        selector = self._selector(node, what)
        keys = [requirement.key for requirement in selector.requirements]
        if NAMESPACE_LABEL in keys or any(key.startswith((NAMESPACE_LABELS, RESERVED)) for key in keys):
            return selector
        if self._namespace is None:
            return Selector((*selector.requirements, Requirement(NAMESPACE_LABEL, Operator.EXISTS)))
        return self._in_namespace(selector)

    def _in_namespace(self, selector: Selector) -> Selector:
        if self._namespace is None:
            return selector
        return Selector((*selector.requirements, Requirement(NAMESPACE_LABEL, Operator.IN, (self._namespace,))))

    def _selector(self, node: Node, what: str) -> Selector:
        fields = self._report.fields(node, what, ("matchLabels", "matchExpressions")) or Found()
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
        if key.startswith(RESERVED) and any(texts):
            self._report.error(node.place, "SE006", f"the label {key} never has a value", "operator: Exists")
        return Requirement(key, Operator(operator), tuple(text for text in texts if text is not None))

    # Peers

    def _peers(self, fields: dict[str, Node], way: str, deny: bool) -> Peers | None:
        given = [f"{way}{kind}" for kind in _PEER_KINDS if f"{way}{kind}" in fields]
        if len(given) > 1:
            names = " and ".join(given)
            self._report.error(fields[given[1]].place, "SE009", f"{names} in one rule", "make them two rules; rules are ORed")
        if not given:
            return None
        field, node = given[0], fields[given[0]]
        items = self._report.items(node, field)
        if field.endswith("Endpoints"):
            selectors = tuple(self._peer(item, f"an entry of {field}") for item in items)
            for item, selector in zip(items, selectors, strict=True):
                self._check_entity(item, entity_of(selector), deny)
            return Peers(endpoints=selectors)
        if field.endswith("Entities"):
            return self._entities(items, field, deny)
        if not field.endswith("Set"):
            return Peers(cidrs=tuple(cidr for item in items if (cidr := self._plain_cidr(item)) is not None))
        return Peers(cidrs=tuple(cidr for item in items for cidr in self._cidr_rules(item)))

    def _entities(self, items: Sequence[Node], field: str, deny: bool) -> Peers:
        entities: list[Entity] = []
        endpoints: list[Selector] = []
        cidrs: list[CidrRule] = []
        for item in items:
            name = self._report.choice(item, f"an entry of {field}", _ENTITIES)
            if name in _EVERY_ADDRESS:
                cidrs.append(CidrRule(_EVERY_ADDRESS[name]))
            elif name in RESERVED_NAMES:
                endpoints.append(Selector((Requirement(f"{RESERVED}{name}", Operator.EXISTS),)))
                self._check_entity(item, name, deny)
            elif name in list(Entity):
                entities.append(Entity(name))
        return Peers(endpoints=tuple(endpoints), cidrs=tuple(cidrs), entities=tuple(entities))

    def _check_entity(self, node: Node, name: str | None, deny: bool) -> None:
        """An allow rule for an entity that nobody is allows nothing, which lint tells. A deny rule would deny nobody."""
        if deny and name is not None and name != "none" and name not in self._known.entities:
            hint = f'a Workload with the label "{RESERVED}{name}": "" and the addresses, or the CIDRs in this rule'
            self._report.error(
                node.place, "SE005", f"no document says who the entity {name!r} is: nobody would be denied", hint
            )

    def _plain_cidr(self, node: Node) -> CidrRule | None:
        cidr = network(self._report, node, "a CIDR")
        return CidrRule(cidr) if cidr is not None else None

    def _cidr_rules(self, node: Node) -> Sequence[CidrRule]:
        """One entry of a CIDR set: one CIDR, or those of the groups that it refers to."""
        what = "an entry of a CIDR set"
        fields = self._report.fields(node, what, (*_CIDRS, "except"))
        given = [name for name in _CIDRS if fields is not None and name in fields]
        if len(given) > 1:
            self._report.error(node.place, "SE009", f"{' and '.join(given)} in one entry", "make them two entries")
        if fields is None or not given:
            self._report.required(fields, "cidr", node.place, what)
            return ()
        items = self._report.items(fields["except"], "except") if "except" in fields else []
        excepts = [(exception, item.place) for item in items if (exception := network(self._report, item, "an exception"))]
        if given[0] != "cidr":
            groups = self._cidr_groups(fields, given[0])
            self._report.repeat(node.place, sum(len(group.cidrs) for group in groups))
            cidrs = [cidr for group in groups for cidr in group.cidrs]
            without = tuple(exception for exception, _ in excepts)
            return [CidrRule(one.cidr, without) for one in cidrs] if excepts else cidrs
        cidr = network(self._report, fields["cidr"], "cidr")
        if cidr is None:
            return ()
        for exception, place in excepts:
            if exception.version != cidr.version or not exception.subnet_of(cidr):  # type: ignore[arg-type]
                self._report.error(place, "SE006", f"the exception {exception} is not part of {cidr}")
        return (CidrRule(cidr, tuple(exception for exception, _ in excepts)),)

    def _cidr_groups(self, fields: dict[str, Node], name: str) -> list[CidrGroup]:
        node = fields[name]
        if name == "cidrGroupRef":
            text = self._report.string(node, name)
            found = [group for group_name, group in self._known.cidr_groups.items() if group_name == text]
            missing = f"there is no CiliumCIDRGroup {text!r} in the documents"
        else:
            selector = self._selector(node, name)
            found = [group for group in self._known.cidr_groups.values() if selector.matches(group.labels)]
            missing = "no CiliumCIDRGroup in the documents has these labels"
        if not found:
            self._report.error(node.place, "SE005", missing, "load the group's document as well: apiVersion cilium.io/v2")
        return found

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
        ports_node = self._report.required(fields, "ports", node.place, what)
        if fields is None or ports_node is None:
            return None
        has_rules = "rules" in fields
        items = self._report.items(ports_node, "ports")
        if len(items) > MAX_PORTS:
            self._report.error(
                ports_node.place, "SE002", f"{len(items)} ports, more than {MAX_PORTS}", "use endPort, or two entries"
            )
        kind, rules = self._l7(fields["rules"], position) if has_rules else (None, ())
        # Rules that are refused as a whole, such as DNS', say nothing of the ports.
        ports = [self._port(item, kind is not None) for item in items[:MAX_PORTS]]
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
        port_node = self._report.required(fields, "port", node.place, "an entry of ports")
        if fields is None or port_node is None:
            return None
        first = self._port_number(port_node, "port")
        last = self._port_number(fields["endPort"], "endPort") if "endPort" in fields else first
        if last == 0:  # Kubernetes' spelling of none
            last = first
        transport = self._transport(fields["protocol"]) if "protocol" in fields else "ANY"
        if first is None or last is None or transport is None:
            return None
        if first == ANY_PORT:
            if last != ANY_PORT:
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
        if bare.startswith(RESERVED) and text:
            report.error(value.place, "SE006", f"the label {bare} never has a value", f'"{bare}": ""')
        if bare in found:
            report.error(value.place, "SE007", f"{what} has the label {bare!r} twice, with different sources")
        found[bare] = text
    return found


def label_key(report: Report, key: str, place: Place) -> str:
    """A label's key without Cilium's source: every label here is what Cilium calls ``k8s:``, but for the `RESERVED` ones."""
    source, colon, bare = key.rpartition(":")
    if f"{source}{colon}" == RESERVED:
        if bare in _RESERVED_ENTITIES:
            report.error(place, "SE008", f"the label {key} {NOT_YET}", f"the entity: fromEntities or toEntities: [{bare}]")
        elif bare not in RESERVED_NAMES:
            hint = suggestion(bare, RESERVED_NAMES) or f"one of {', '.join(RESERVED_NAMES)}"
            report.error(place, "SE006", f"{key!r} is no label of Cilium's", hint)
        return key
    if colon and source not in ("k8s", "any"):
        report.error(place, "SE008", f"the label source {source!r} {NOT_YET}", "labels of Workloads, without a source")
    elif not _LABEL_KEY.fullmatch(bare):
        report.error(place, "SE006", f"{key!r} is not a label's key")
    return bare


def entity_of(selector: Selector) -> str | None:
    """The entity that a selector stands for, if it selects nothing but such a one."""
    for requirement in selector.requirements:
        if requirement.key.startswith(RESERVED) and requirement.operator in (Operator.EXISTS, Operator.IN):
            return requirement.key.removeprefix(RESERVED)
    return None
