"""Texts in, a checked `Bundle` out, or every complaint at once. There is no file I/O here (see proxy/documents.py)."""

import base64
import binascii
import re
from collections.abc import Iterable
from itertools import product

import msgspec

from policies.model import (
    DEFAULT_NAMESPACE,
    NAMESPACE_LABEL,
    Acceleration,
    Bundle,
    Direction,
    Network,
    Peers,
    Place,
    Policy,
    PortRule,
    Workload,
)
from policies.nodes import Fields, Finding, LoadError, Node, Report, Scalar, Source, documents, suggestion
from policies.rules import is_field_value
from policies.spec import SpecReader, labels, network

__all__ = ["Bundle", "Finding", "LoadError", "Source", "load"]

# The kernel's identities of workloads are 1 to 0xFFFE.
MAX_WORKLOADS = 0xFFFE

OURS = "sluice.dev/v1"
CILIUM = "cilium.io/v2"
_KINDS = {
    (OURS, "Workload"),
    (OURS, "ApiPolicy"),
    (CILIUM, "CiliumNetworkPolicy"),
    (CILIUM, "CiliumClusterwideNetworkPolicy"),
    ("v1", "Secret"),
}
# What kubectl prints besides, which says nothing about policy.
_METADATA = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
# RFC 1123 subdomain, as Kubernetes has it.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CGROUP = re.compile(r"(/[^/\0]+)+")


def load(sources: Iterable[Source]) -> Bundle:
    """Everything that the sources say. Raises `LoadError` with all that is wrong in any of them."""
    reader = _DocumentReader()
    for source in sources:
        for node in documents(source, reader.report):
            reader.read(node)
    bundle = reader.bundle()
    if not reader.report.findings:
        _check_kinds(bundle, reader.report)
    if reader.report.findings:
        raise LoadError(sorted(reader.report.findings))
    return bundle


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    namespace: str
    labels: dict[str, str]


class _DocumentReader:
    """Reads documents one by one and keeps what they define."""

    def __init__(self) -> None:
        self.report = Report()
        self._workloads: dict[str, Workload] = {}
        self._policies: dict[str, list[Policy]] = {}
        self._policy_places: dict[str, Place] = {}
        self._secrets: dict[tuple[str, str], str] = {}
        self._owners: dict[Network, str] = {}

    def bundle(self) -> Bundle:
        """Sorted, so that the order of documents and files has no meaning."""
        policies = [policy for name in sorted(self._policies) for policy in self._policies[name]]
        workloads = [self._workloads[name] for name in sorted(self._workloads)]
        return Bundle(workloads=tuple(workloads), policies=tuple(policies), secrets=self._secrets)

    def read(self, node: Node) -> None:
        kind = self._kind(node)
        if kind == "Workload":
            self._workload(node)
        elif kind == "Secret":
            self._secret(node)
        elif kind is not None:
            self._policy(node, kind)

    def _kind(self, node: Node) -> str | None:
        """Looks at ``apiVersion`` and ``kind`` only, because they decide which other fields there may be."""
        if not isinstance(node, Fields):
            self.report.error(node.place, "SE004", "a document must be a mapping")
            return None
        found = {
            key.text: value.text
            for key, value in node.entries
            if isinstance(key, Scalar) and key.text in ("apiVersion", "kind") and isinstance(value, Scalar)
        }
        version, kind = found.get("apiVersion", ""), found.get("kind", "")
        if (version, kind) in _KINDS:
            return kind
        kinds = [known for _, known in sorted(_KINDS)]
        right = next((known_version for known_version, known in _KINDS if known == kind), None)
        hint = f"apiVersion: {right}" if right is not None else suggestion(kind, kinds) or f"one of {', '.join(kinds)}"
        self.report.error(node.place, "SE003", f"apiVersion {version!r}, kind {kind!r} is not known here", hint)
        return None

    def _metadata(self, fields: dict[str, Node], place: Place, what: str) -> _Metadata | None:
        node = self.report.required(fields, "metadata", place, what)
        found = self.report.fields(node, "metadata", _METADATA) if node is not None else None
        if node is None or found is None:
            return None
        name_node = self.report.required(found, "name", node.place, "metadata")
        name = self.report.string(name_node, "name") if name_node is not None else None
        namespace = self.report.string(found["namespace"], "namespace") if "namespace" in found else DEFAULT_NAMESPACE
        for text, text_node in ((name, name_node), (namespace, found.get("namespace"))):
            if text is not None and text_node is not None and not _NAME.fullmatch(text):
                self.report.error(
                    text_node.place, "SE006", f"{text!r} is not a name", "lower-case letters, digits, '-' and '.'"
                )
        own_labels = labels(self.report, found["labels"], "labels") if "labels" in found else {}
        return _Metadata(name, namespace, own_labels) if name is not None and namespace is not None else None

    # Workloads

    def _workload(self, node: Node) -> None:
        fields = self.report.fields(node, "a Workload", ("apiVersion", "kind", "metadata", "spec"))
        if fields is None:
            return
        metadata = self._metadata(fields, node.place, "a Workload")
        spec_node = self.report.required(fields, "spec", node.place, "a Workload")
        spec = (
            self.report.fields(spec_node, "spec", ("cgroups", "addresses", "acceleration")) if spec_node is not None else None
        )
        if metadata is None or spec_node is None or spec is None:
            return
        cgroups = self._cgroups(spec)
        addresses = self._addresses(spec, metadata.name)
        if not cgroups and not addresses:
            self.report.error(spec_node.place, "SE005", "a Workload needs cgroups, addresses, or both")
        workload = Workload(
            name=metadata.name,
            place=node.place,
            labels=self._workload_labels(metadata, node.place),
            cgroups=cgroups,
            addresses=addresses,
            acceleration=self._acceleration(spec.get("acceleration")),
        )
        other = self._workloads.setdefault(workload.name, workload)
        if other is not workload:
            self.report.error(node.place, "SE007", f"the Workload {workload.name!r} is also defined at {_at(other.place)}")
        if len(self._workloads) == MAX_WORKLOADS + 1:
            self.report.error(node.place, "SE002", f"more than {MAX_WORKLOADS} Workloads")

    def _acceleration(self, node: Node | None) -> Acceleration:
        if node is None or (isinstance(node, Scalar) and node.text == "auto"):
            return Acceleration.AUTO
        return Acceleration.ON if self.report.boolean(node, "acceleration", "on", "off") else Acceleration.OFF

    def _workload_labels(self, metadata: _Metadata, place: Place) -> dict[str, str]:
        """A workload's namespace may also be given as the label that Cilium knows it by."""
        labelled = metadata.labels.get(NAMESPACE_LABEL, metadata.namespace)
        if labelled != metadata.namespace and metadata.namespace != DEFAULT_NAMESPACE:
            self.report.error(place, "SE009", f"the label {NAMESPACE_LABEL} contradicts the namespace {metadata.namespace!r}")
        return {**metadata.labels, NAMESPACE_LABEL: labelled}

    def _cgroups(self, spec: dict[str, Node]) -> tuple[str, ...]:
        found = self.report.strings(spec["cgroups"], "cgroups") if "cgroups" in spec else []
        for text, place in found:
            if not _CGROUP.fullmatch(text) or {".", ".."} & set(text.split("/")):
                hint = "a path below the cgroup2 mount, such as /system.slice/orders.service"
                self.report.error(place, "SE006", f"{text!r} is not a cgroup's path", hint)
        return tuple(text for text, _ in found)

    def _addresses(self, spec: dict[str, Node], name: str) -> tuple[Network, ...]:
        found: list[Network] = []
        for item in self.report.items(spec["addresses"], "addresses") if "addresses" in spec else []:
            address = network(self.report, item, "an address")
            if address is None:
                continue
            owner = self._owners.setdefault(address, name)
            if owner != name:
                self.report.error(item.place, "SE007", f"{address} also belongs to the Workload {owner!r}")
            found.append(address)
        return tuple(found)

    # Policies

    def _policy(self, node: Node, kind: str) -> None:
        fields = self.report.fields(node, f"a {kind}", ("apiVersion", "kind", "metadata", "spec", "specs", "status"))
        metadata = self._metadata(fields, node.place, f"a {kind}") if fields is not None else None
        if fields is None or metadata is None:
            return
        namespace = None if kind == "CiliumClusterwideNetworkPolicy" else metadata.namespace
        in_default = namespace in (None, DEFAULT_NAMESPACE)
        name = metadata.name if in_default else f"{namespace}/{metadata.name}"
        if "spec" not in fields and "specs" not in fields:
            self.report.required(fields, "spec", node.place, f"a {kind}")
        reader = SpecReader(self.report, kind, name, namespace, extended=kind == "ApiPolicy")
        found = [reader.policy(fields["spec"], "")] if "spec" in fields else []
        for index, item in enumerate(self.report.items(fields["specs"], "specs") if "specs" in fields else []):
            found.append(reader.policy(item, f"specs[{index}]."))
        if name in self._policies:
            # A decision names its policy by this, so it must be one policy, whatever the kinds.
            self.report.error(
                node.place, "SE007", f"the policy {name!r} is also defined at {_at(self._policy_places[name])}", "rename one"
            )
            return
        self._policy_places[name] = node.place
        self._policies[name] = [policy for policy in found if policy is not None]

    # Secrets

    def _secret(self, node: Node) -> None:
        known = ("apiVersion", "kind", "metadata", "data", "stringData", "type", "immutable")
        fields = self.report.fields(node, "a Secret", known)
        metadata = self._metadata(fields, node.place, "a Secret") if fields is not None else None
        if fields is None or metadata is None:
            return
        entries = [(value, field) for field in ("data", "stringData") for value in self._values(fields, field)]
        if len(entries) != 1:
            self.report.error(node.place, "SE006", f"a Secret must have exactly one entry, not {len(entries)}")
            return
        value, field = entries[0]
        text = self._secret_value(value, encoded=field == "data")
        if text is None:
            return
        key = (metadata.namespace, metadata.name)
        if key in self._secrets:
            self.report.error(node.place, "SE007", f"the Secret {metadata.name!r} is defined twice")
        self._secrets[key] = text

    def _values(self, fields: dict[str, Node], field: str) -> list[Node]:
        if isinstance(fields.get(field), Scalar):  # whose text may be the secret itself
            self.report.error(fields[field].place, "SE004", f"{field} must be a mapping")
            return []
        return [value for _, value in self.report.pairs(fields[field], field)] if field in fields else []

    def _secret_value(self, node: Node, encoded: bool) -> str | None:
        """Nothing of the value is ever shown."""
        if not isinstance(node, Scalar) or (node.type != "str" and not encoded):
            self.report.error(node.place, "SE004", "a secret's value must be a string")
            return None
        text = node.text
        if encoded:
            try:
                text = base64.b64decode(text, validate=True).decode("ascii")
            except (binascii.Error, ValueError):
                self.report.error(node.place, "SE006", "a secret's data must be base64 of visible ASCII", "or use stringData")
                return None
        if not is_field_value(text):
            hint = "often a newline at the end: printf, not echo"
            self.report.error(node.place, "SE006", "a secret's value must be able to stand in a header (RFC 9110)", hint)
            return None
        return text


def _at(place: Place) -> str:
    return f"{place.file}:{place.line}"


class _L7Entry(msgspec.Struct, frozen=True):
    """``owners`` and ``selected`` are names of workloads: whose policy it is, and whom ``peers`` selects."""

    direction: Direction
    peers: Peers | None
    port_rule: PortRule
    owners: frozenset[str]
    selected: frozenset[str]


def _check_kinds(bundle: Bundle, report: Report) -> None:
    """One L7 kind per port and peer: complains where two kinds can meet on one connection."""
    rules = [
        (policy, direction, rule, port_rule)
        for policy in bundle.policies
        for direction in Direction
        if (section := policy.section(direction)) is not None
        for rule in section.rules
        for port_rule in rule.ports or ()
        if port_rule.kind is not None
    ]
    if len({port_rule.kind for *_, port_rule in rules}) < 2:
        return
    entries = [
        _L7Entry(
            direction,
            rule.peers,
            port_rule,
            frozenset(workload.name for workload in bundle.workloads if policy.selector.matches(workload.labels)),
            frozenset(workload.name for workload in bundle.workloads if _selects(rule.peers, workload)),
        )
        for policy, direction, rule, port_rule in rules
    ]
    by_kind = {kind: [entry for entry in entries if entry.port_rule.kind == kind] for kind in ("http", "grpc", "kafka")}
    for kind, other_kind in _CONFLICTS:
        hint = "one kind of L7 rules per port and peer"
        if (kind, other_kind) == ("grpc", "http"):
            hint += "; http rules can express gRPC (POST, /pkg.Svc/Method)"
        for one, other in product(by_kind[kind], by_kind[other_kind]):
            if _ports_overlap(one.port_rule, other.port_rule) and _meet(one, other):
                what = f"{kind} rules for connections that have {other_kind} rules at {_at(other.port_rule.place)}"
                report.error(one.port_rule.place, "SE009", what, hint)


_CONFLICTS = (("grpc", "http"), ("kafka", "http"), ("kafka", "grpc"))


def _ports_overlap(one: PortRule, other: PortRule) -> bool:
    return any(ports.overlaps(others) for ports in one.ports for others in other.ports)


def _meet(one: _L7Entry, other: _L7Entry) -> bool:
    """Whether some connection is governed by both entries."""
    if one.direction is not other.direction:
        # The egress of a subject and the ingress of its peer: each must be selected by the other's rule.
        return not (one.selected.isdisjoint(other.owners) or other.selected.isdisjoint(one.owners))
    if one.owners.isdisjoint(other.owners):
        return False
    if one.peers is None or other.peers is None:
        return one.peers != Peers() and other.peers != Peers()
    return not one.selected.isdisjoint(other.selected) or _groups_overlap(one.peers, other.peers)


def _selects(peers: Peers | None, workload: Workload) -> bool:
    if peers is None or {"all", "cluster"} & set(peers.entities):
        return True
    return any(selector.matches(workload.labels) for selector in peers.endpoints)


def _groups_overlap(one: Peers, other: Peers) -> bool:
    """Whether two peers that are no workloads' selectors have something in common."""
    inside, outside = {"all", "cluster", "host"}, {"all", "world"}
    for peers, others in ((one, other), (other, one)):
        if inside & set(peers.entities) and inside & set(others.entities):
            return True
        if outside & set(peers.entities) and (outside & set(others.entities) or others.cidrs):
            return True
    return any(a.cidr.version == b.cidr.version and a.cidr.overlaps(b.cidr) for a in one.cidrs for b in other.cidrs)
