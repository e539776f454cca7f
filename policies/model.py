"""What policy documents mean, as frozen values: everything here has been checked, nothing here decides.

The names are those of CiliumNetworkPolicy where it has them (https://docs.cilium.io/en/stable/security/policy/), so that a
reader of the documents finds the same words. `docs/policies.md` is the reference of the language.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NAMESPACE_LABEL = "io.kubernetes.pod.namespace"
# How Cilium shows a namespace's own labels on its endpoints: this, and then the label.
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
DEFAULT_NAMESPACE = "default"
ANY_PORT = 0

# Labels that Cilium makes by itself, and here a Workload's document gives: each is an entity of the same name.
RESERVED = "reserved:"
RESERVED_NAMES = ("kube-apiserver", "remote-node", "health", "ingress", "init", "unmanaged", "none", "cluster-mesh")
# Those of them that are endpoints, so that a policy can select them. The others are elsewhere, and nobody's subject.
_SUBJECTS = tuple(f"{RESERVED}{name}" for name in ("health", "ingress", "init"))
# What is not in the entity "cluster".
_OUTSIDE_CLUSTER = tuple(f"{RESERVED}{name}" for name in ("none", "cluster-mesh"))


def is_reserved(labels: Mapping[str, str]) -> bool:
    """Whether a workload is one of the entities that Cilium has labels for. It has no namespace."""
    return any(key.startswith(RESERVED) for key in labels)


def can_be_subject(labels: Mapping[str, str]) -> bool:
    """Whether an ``endpointSelector`` can select a workload at all."""
    return not is_reserved(labels) or any(label in labels for label in _SUBJECTS)


def is_in_cluster(labels: Mapping[str, str]) -> bool:
    """Whether a workload is part of the entity "cluster"."""
    return not any(label in labels for label in _OUTSIDE_CLUSTER)


class Place(msgspec.Struct, frozen=True):
    """Where in the documents something was said. ``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int


class Direction(StrEnum):
    """The side of a connection that a policy speaks for: its own workload connects (egress) or is connected to (ingress)."""

    EGRESS = "egress"
    INGRESS = "ingress"


class Entity(StrEnum):
    """The groups of peers that need no selector."""

    ALL = "all"
    WORLD = "world"
    HOST = "host"
    CLUSTER = "cluster"


class Operator(StrEnum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Requirement(msgspec.Struct, frozen=True):
    """One line of a label selector, with Kubernetes' meaning: ``NotIn`` is also true of labels that lack the key."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        if self.operator is Operator.IN:
            return value is not None and value in self.values
        if self.operator is Operator.NOT_IN:
            return value is None or value not in self.values
        return (value is not None) == (self.operator is Operator.EXISTS)


class Selector(msgspec.Struct, frozen=True):
    """A label selector; all requirements must hold, so the empty one selects every workload."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.holds(labels) for requirement in self.requirements)


class CidrRule(msgspec.Struct, frozen=True):
    """Addresses outside of the host and its workloads: in ``cidr`` and in none of ``excepts``."""

    cidr: Network
    excepts: tuple[Network, ...] = ()

    def contains(self, address: Address) -> bool:
        return address in self.cidr and not any(address in network for network in self.excepts)


class Peers(msgspec.Struct, frozen=True):
    """The other side of a rule: any one of these. With nothing in it, it selects nobody."""

    endpoints: tuple[Selector, ...] = ()
    cidrs: tuple[CidrRule, ...] = ()
    entities: tuple[Entity, ...] = ()


class PortRange(msgspec.Struct, frozen=True):
    """Ports ``first`` to ``last``, both included (0 to 65535 is every port), of "TCP", "UDP" or, for both, "ANY"."""

    first: int
    last: int
    transport: str

    def contains(self, port: int, transport: str) -> bool:
        return self.first <= port <= self.last and self.transport in ("ANY", transport)

    def overlaps(self, other: "PortRange") -> bool:
        same_transport = "ANY" in (self.transport, other.transport) or self.transport == other.transport
        return same_transport and self.first <= other.last and other.first <= self.last


class ValueKind(StrEnum):
    """How the value of a header or of a query parameter is compared."""

    PRESENT = "present"
    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"


class ValueMatch(msgspec.Struct, frozen=True):
    """A condition on one header (``name`` is lower-cased) or one query parameter (``name`` is case-sensitive)."""

    name: str
    kind: ValueKind
    value: str = ""


class Mismatch(StrEnum):
    """What a ``headerMatches`` entry does when the request's header is not as it says."""

    FAIL = ""
    LOG = "LOG"
    ADD = "ADD"
    DELETE = "DELETE"
    REPLACE = "REPLACE"


class HeaderMatch(msgspec.Struct, frozen=True):
    """One ``headerMatches`` entry. ``secret`` is (namespace, name); its value goes before ``value``, which is the fallback."""

    name: str
    mismatch: Mismatch
    value: str | None = None
    secret: tuple[str, str] | None = None


class PathKind(StrEnum):
    """What a rule's path condition is and what it looks at."""

    REGEX = "path"  # RE2, the whole target with its query
    PREFIX = "pathPrefix"  # whole segments, without the query
    TEMPLATE = "pathTemplate"  # {name} is one segment, without the query


class PathMatch(msgspec.Struct, frozen=True):
    kind: PathKind
    text: str


class L7Rule(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What rules of every API protocol have in common. ``name`` is the user's, or the rule's position in its document."""

    name: str
    place: Place
    deny: bool = False
    audit: bool = False
    headers: tuple[ValueMatch, ...] = ()


class HttpRule(L7Rule, frozen=True, eq=False, kw_only=True):
    """Conditions are ANDed; None and () are no condition. ``method`` and ``host`` are RE2, full match."""

    path: PathMatch | None = None
    method: str | None = None
    host: str | None = None
    header_matches: tuple[HeaderMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()


class GrpcRule(L7Rule, frozen=True, eq=False, kw_only=True):
    """``service`` ("pkg.Svc") and ``method`` ("Get") are compared exactly; ``headers`` are the call's metadata."""

    service: str | None = None
    method: str | None = None


class KafkaRole(StrEnum):
    """What a client does with topics; the APIs of each role are in `policies.kafka`."""

    PRODUCE = "produce"
    CONSUME = "consume"


class TopicKind(StrEnum):
    """What a rule's topic condition is."""

    EXACT = "topic"
    PREFIX = "topicPrefix"
    PATTERN = "topicPattern"  # RE2, the whole name


class TopicMatch(msgspec.Struct, frozen=True):
    kind: TopicKind
    text: str


class NameMatch(msgspec.Struct, frozen=True):
    """A condition on a group or a transactional id: ``text`` itself, or with ``prefix`` whatever begins so."""

    text: str
    prefix: bool = False

    def holds(self, name: str) -> bool:
        return name.startswith(self.text) if self.prefix else name == self.text


class KafkaRule(L7Rule, frozen=True, eq=False, kw_only=True):
    """Conditions are ANDed. ``keys``: the APIs of ``role`` or of ``apiKey``; None: all. ``summary``: calls that it allows have
    one record for many."""

    role: KafkaRole | None = None
    keys: frozenset[int] | None = None
    api_version: int | None = None
    client_id: str | None = None
    topic: TopicMatch | None = None
    group: NameMatch | None = None
    transactional_id: NameMatch | None = None
    summary: bool = False


AnyL7Rule = HttpRule | GrpcRule | KafkaRule


# Methods whose content means nothing (RFC 9110 section 9.3), so that many servers do not read it.
BODILESS_METHODS = frozenset({"GET", "HEAD", "DELETE"})


class EncodedSlash(StrEnum):
    """What a server does with ``%2F`` in a path."""

    KEEP = "keep"  # it is a part of its segment
    DECODE = "decode"  # it is a slash
    REFUSE = "refuse"  # nobody knows


class EmptySegments(StrEnum):
    """What a server does with ``//`` in a path."""

    KEEP = "keep"  # there is an empty segment
    MERGE = "merge"  # it is one slash
    REFUSE = "refuse"  # nobody knows


class Normalise(msgspec.Struct, frozen=True):
    """How the server of a port reads paths."""

    encoded_slash: EncodedSlash = EncodedSlash.REFUSE
    empty_segments: EmptySegments = EmptySegments.REFUSE


STRICT = Normalise()


class PortRule(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One ``toPorts`` entry. ``kind`` None: these ports are allowed as such; else only what one of ``rules`` allows."""

    ports: tuple[PortRange, ...]
    place: Place
    kind: str | None = None  # "http", "grpc" or "kafka"
    rules: tuple[AnyL7Rule, ...] = ()
    opaque_allowed: bool = False
    bodies_refused: bool = False  # of calls with BODILESS_METHODS
    normalise: Normalise | None = None  # None: it says nothing

    @property
    def can_deny(self) -> bool:
        """Whether it denies calls, also those that another entry allows."""
        return self.bodies_refused or any(rule.deny for rule in self.rules)


class Rule(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One entry of ``ingress``, ``egress``, ``ingressDeny`` or ``egressDeny``.

    ``peers`` None: anybody. ``ports`` None: every port. An empty tuple selects nothing.
    """

    name: str
    place: Place
    peers: Peers | None = None
    ports: tuple[PortRule, ...] | None = None
    deny: bool = False
    audit: bool = False


class Section(msgspec.Struct, frozen=True, eq=False):
    """All that a policy says for one direction."""

    rules: tuple[Rule, ...]
    default_deny: bool = True


class Policy(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One ``spec``. A section that is None says nothing about its direction."""

    kind: str
    name: str  # as records show it: "name", or "namespace/name" outside of the default namespace
    place: Place
    selector: Selector
    ingress: Section | None = None
    egress: Section | None = None
    audit: bool = False
    fail_open: bool = False
    redact_query: bool = False

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload with these labels is a subject of this policy."""
        return can_be_subject(labels) and self.selector.matches(labels)

    def section(self, direction: Direction) -> Section | None:
        return self.egress if direction is Direction.EGRESS else self.ingress


class Acceleration(IntEnum):
    """Whether the kernel may carry a workload's calls. Of two ends of a connection the lower word counts."""

    OFF = 0
    AUTO = 1  # where the kernel is right for every program
    ON = 2  # its programs do not ask how many bytes are unread


class Workload(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """An endpoint: processes of this host (``cgroups``, globs below the cgroup2 mount), or addresses elsewhere, or both.

    ``labels`` contain the namespace under `NAMESPACE_LABEL`, unless it `is_reserved`.
    """

    name: str
    place: Place
    labels: Mapping[str, str]
    cgroups: tuple[str, ...] = ()
    addresses: tuple[Network, ...] = ()
    acceleration: Acceleration = Acceleration.AUTO


class Kustomization(msgspec.Struct, frozen=True):
    """A document of kustomize's beside the policies. ``changes`` are its fields that would change them."""

    place: Place
    changes: tuple[str, ...]


class Bundle(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Everything that was loaded, in an order that does not depend on the order of the documents.

    ``secrets`` maps (namespace, name) to the value of the secret's only entry.
    """

    workloads: tuple[Workload, ...] = ()
    policies: tuple[Policy, ...] = ()
    secrets: Mapping[tuple[str, str], str] = {}
    kustomizations: tuple[Kustomization, ...] = ()


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """One end of a connection.

    With ``workload`` it is that workload (``labels`` count only when the policy set does not know it). Without, ``local``
    says that it is some other process of this host; if not even that, it is whatever lives at ``address``.
    """

    workload: str | None = None
    labels: Mapping[str, str] = {}
    address: str | None = None
    local: bool = False
