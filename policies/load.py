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
    RESERVED,
    Acceleration,
    Bundle,
    CidrRule,
    Direction,
    Kustomization,
    Network,
    Peers,
    Place,
    Policy,
    PortRule,
    Workload,
    can_be_subject,
    is_in_cluster,
)
from policies.nodes import Fields, Finding, Found, LoadError, Node, Report, Scalar, Source, documents, suggestion
from policies.rules import is_field_value
from policies.spec import CidrGroup, Known, SpecReader, labels, network

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
    (CILIUM, "CiliumCIDRGroup"),
    (f"{CILIUM}alpha1", "CiliumCIDRGroup"),
    ("v1", "Secret"),
}
# What kubectl prints of several: each item is a document.
_LISTS = {
    ("v1", "List"),
    ("v1", "SecretList"),
    (CILIUM, "CiliumNetworkPolicyList"),
    (CILIUM, "CiliumClusterwideNetworkPolicyList"),
    (CILIUM, "CiliumCIDRGroupList"),
    (f"{CILIUM}alpha1", "CiliumCIDRGroupList"),
}
_LIST_METADATA = ("resourceVersion", "selfLink", "continue", "remainingItemCount")
_KUSTOMIZE = "kustomize.config.k8s.io/"
_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml")
# What makes other documents of a kustomization's resources.
_TRANSFORMS = (
    *("commonLabels", "labels", "namePrefix", "namespace", "nameSuffix", "patches", "patchesJson6902", "replacements"),
    *("patchesStrategicMerge", "transformers", "vars", "components", "generators"),
)
# What is often taken for one of ours, with what to do instead.
_NOT_OURS = {
    "NetworkPolicy": "Kubernetes' own policies are not read: write it as a CiliumNetworkPolicy",
    "AdminNetworkPolicy": "write it as a CiliumClusterwideNetworkPolicy",
    "ClusterNetworkPolicy": "write it as a CiliumClusterwideNetworkPolicy",
    "CiliumEndpoint": "a Workload document says who is an endpoint",
    "Kustomization": "give what 'kustomize build' prints, or the folder with the policies",
    "CiliumEnvoyConfig": "nothing is configured in Envoy here",
    "CiliumClusterwideEnvoyConfig": "nothing is configured in Envoy here",
}
# What kubectl prints besides, which says nothing about policy.
_METADATA = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "clusterName",
    "generateName",
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
    reader.finish()
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
        self._cidr_groups: dict[str, CidrGroup] = {}
        self._policy_documents: list[tuple[Node, str]] = []
        self._kustomizations: list[Kustomization] = []
        self._empty_lists: list[Place] = []

    def bundle(self) -> Bundle:
        """Sorted, so that the order of documents and files has no meaning."""
        policies = [policy for name in sorted(self._policies) for policy in self._policies[name]]
        workloads = [self._workloads[name] for name in sorted(self._workloads)]
        return Bundle(
            workloads=tuple(workloads),
            policies=tuple(policies),
            secrets=self._secrets,
            kustomizations=tuple(self._kustomizations),
        )

    def finish(self) -> None:
        """Policies are read when all that they may refer to is known, whatever the order of the documents."""
        known = self._known()
        for node, kind in self._policy_documents:
            self._policy(node, kind, known)
        if self._workloads or self._policies or self._secrets or self._cidr_groups or self.report.findings:
            return
        for place in (*self._empty_lists, *(one.place for one in self._kustomizations)):
            # As an empty folder: an agent that enforces nothing would be silently open.
            hint = "a folder's folders are not read: give what 'kustomize build' or 'kubectl get -o yaml' prints"
            self.report.error(place, "SE005", "there is no document but this one, which has none", hint)

    def read(self, node: Node) -> None:
        kind = self._kind(node)
        if kind == "Workload":
            self._workload(node)
        elif kind == "Secret":
            self._secret(node)
        elif kind is not None and kind.endswith("List"):
            self._list(node, kind)
        elif kind == "Kustomization":
            self._kustomization(node)
        elif kind == "CiliumCIDRGroup":
            self._cidr_group(node)
        elif kind is not None:
            self._policy_documents.append((node, kind))

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
        if (version, kind) in _KINDS or (version, kind) in _LISTS:
            return kind
        # kustomize itself does not ask for these two fields in a file of that name.
        is_named_so = node.place.file.rpartition("/")[2] in _KUSTOMIZATIONS and not found
        if is_named_so or (version.startswith(_KUSTOMIZE) and kind == "Kustomization"):
            return "Kustomization"
        if not kind:
            hint = "" if version else "is this a policy? Values of a Helm chart have to be rendered first"
            self.report.required(Found(), "kind", node.place, "a document", hint)
            return None
        self.report.error(
            node.place, "SE003", f"apiVersion {version!r}, kind {kind!r} is not known here", _hint_at_kind(version, kind)
        )
        return None

    def _list(self, node: Node, kind: str) -> None:
        fields = self.report.fields(node, f"a {kind}", ("apiVersion", "kind", "metadata", "items"))
        if fields is None:
            return
        if "metadata" in fields:
            self.report.fields(fields["metadata"], f"metadata of a {kind}", _LIST_METADATA)
        items_node = self.report.required(fields, "items", node.place, f"a {kind}")
        items = self.report.items(items_node, "items") if items_node is not None else []
        if not items:
            self._empty_lists.append(node.place)
        for item in items:
            self.read(item)

    def _kustomization(self, node: Node) -> None:
        """Read over: it says which files are to be read, and here all of a folder are. What it would change is a finding of
        lint's, for the files are taken as they are."""
        names = (name for name, _ in self.report.pairs(node, "a Kustomization"))
        self._kustomizations.append(Kustomization(node.place, tuple(name for name in names if name in _TRANSFORMS)))

    def _metadata(self, fields: Found, place: Place, what: str) -> _Metadata | None:
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
            labels=self._workload_labels(metadata, cgroups, node.place),
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

    def _workload_labels(self, metadata: _Metadata, cgroups: tuple[str, ...], place: Place) -> dict[str, str]:
        """A workload's namespace may also be given as the label that Cilium knows it by. What is reserved has none."""
        reserved = next((key for key in metadata.labels if key.startswith(RESERVED)), None)
        if reserved is not None:
            if NAMESPACE_LABEL in metadata.labels or metadata.namespace != DEFAULT_NAMESPACE:
                self.report.error(place, "SE009", f"a Workload with the label {reserved} has no namespace")
            if cgroups and not can_be_subject(metadata.labels):
                hint = "give its addresses only; a Workload with its own labels may have cgroups"
                self.report.error(place, "SE009", f"a Workload with the label {reserved} is not on this host", hint)
            return dict(metadata.labels)
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

    # CIDR groups

    def _cidr_group(self, node: Node) -> None:
        fields = self.report.fields(node, "a CiliumCIDRGroup", ("apiVersion", "kind", "metadata", "spec", "status"))
        metadata = self._metadata(fields, node.place, "a CiliumCIDRGroup") if fields is not None else None
        spec_node = self.report.required(fields, "spec", node.place, "a CiliumCIDRGroup")
        spec = self.report.fields(spec_node, "spec", ("externalCIDRs",)) if spec_node is not None else None
        if metadata is None or spec_node is None or spec is None:
            return
        cidrs_node = self.report.required(spec, "externalCIDRs", spec_node.place, "spec")
        items = self.report.items(cidrs_node, "externalCIDRs") if cidrs_node is not None else []
        networks = [network(self.report, item, "a CIDR") for item in items]
        if metadata.name in self._cidr_groups:
            self.report.error(node.place, "SE007", f"the CiliumCIDRGroup {metadata.name!r} is defined twice")
        cidrs = tuple(dict.fromkeys(CidrRule(one) for one in networks if one is not None))
        self._cidr_groups[metadata.name] = CidrGroup(metadata.labels, cidrs)

    # Policies

    def _known(self) -> Known:
        entities = {
            key.removeprefix(RESERVED)
            for workload in self._workloads.values()
            for key in workload.labels
            if key.startswith(RESERVED)
        }
        return Known(frozenset(entities), self._cidr_groups)

    def _policy(self, node: Node, kind: str, known: Known) -> None:
        fields = self.report.fields(node, f"a {kind}", ("apiVersion", "kind", "metadata", "spec", "specs", "status"))
        metadata = self._metadata(fields, node.place, f"a {kind}") if fields is not None else None
        if fields is None or metadata is None:
            return
        namespace = None if kind == "CiliumClusterwideNetworkPolicy" else metadata.namespace
        in_default = namespace in (None, DEFAULT_NAMESPACE)
        name = metadata.name if in_default else f"{namespace}/{metadata.name}"
        if "spec" not in fields and "specs" not in fields:
            self.report.required(fields, "spec", node.place, f"a {kind}")
        reader = SpecReader(self.report, kind, name, namespace, known)
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


def _hint_at_kind(version: str, kind: str) -> str:
    right = next((known_version for known_version, known in sorted(_KINDS | _LISTS) if known == kind), None)
    if right is not None:
        return f"apiVersion: {right}"
    if kind in _NOT_OURS:
        return _NOT_OURS[kind]
    kinds = sorted({known for _, known in _KINDS})
    if version in (OURS, CILIUM, "cilium.io/v2alpha1", ""):
        return suggestion(kind, kinds) or f"one of {', '.join(kinds)}"
    return f"only {', '.join(kinds)} are read: keep them in files of their own"


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
            frozenset(workload.name for workload in bundle.workloads if policy.selects(workload.labels)),
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
    if peers is None or "all" in peers.entities or ("cluster" in peers.entities and is_in_cluster(workload.labels)):
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
