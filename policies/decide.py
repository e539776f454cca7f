"""Decisions: may this connection be, may this call pass, and who says so.

A `PolicySet` is one generation of the documents. It hands out a `Pair` for a subject, a peer and a port; a pair has gathered
once all that the documents say about such connections, and then judges any number of calls. Every pair has up to two *sides*,
the subject's egress and the peer's ingress, and both must allow. Every side has up to two *views*: what is enforced, and what
would be if everything in ``mode: audit`` were enforced as well. Where only the second one denies, the call passes and its
record says WOULD_DENY.

Law: doubt is a denial. `Pair.decide` never raises; whatever goes wrong inside is a denial with reason ``internal-error``.
"""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from enum import IntEnum, StrEnum
from functools import cached_property
from ipaddress import IPv6Address, ip_address
from itertools import chain
from typing import TypeVar

import msgspec

from parsers.contract import ApiCall, HeaderEdit
from policies.kafka import PROTOCOL, TOPIC, KafkaIndex, pieces
from policies.match import RuleIndex, UndecidedError, headers_of, looks_at_path, looks_at_query
from policies.model import (
    BODILESS_METHODS,
    DEFAULT_NAMESPACE,
    NAMESPACE_LABEL,
    STRICT,
    Acceleration,
    Address,
    AnyL7Rule,
    Bundle,
    Direction,
    Endpoint,
    Entity,
    HttpRule,
    KafkaRule,
    Normalise,
    Peers,
    Policy,
    PortRule,
    Rule,
    Section,
    Workload,
    is_in_cluster,
    is_reserved,
)
from policies.slashes import reading, readings, united

# Pairs and decisions that are kept. A pair is asked for per connection and a decision per call, and both are only caches:
# what falls out is worked out again. The numbers bound the memory that strangers' addresses or varied calls can claim: of
# decisions, that of all pairs together.
MAX_PAIRS = 4096
PIECES_AT_ONCE = 128  # pieces of a call that are judged before others have their turn: some 20 us each
MAX_DECISIONS = 4096
# Bytes; a call with a longer head is never the same object again (parsers.http1_head.MEMO_HEAD_MAX).
MAX_REMEMBERED_LENGTH = 4096

# The note of a call that may see in its reply what it might have asked for by name, and nothing else.
REPLY_FILTERED, WOULD_BE_FILTERED = "reply-filtered", "reply-would-be-filtered"

# The calls that each kind of L7 rule can judge. A gRPC call is an HTTP request as well (POST to /pkg.Svc/Method).
PROTOCOLS_OF_KIND = {
    "http": frozenset({"http/1.1", "http/2", "grpc"}),
    "grpc": frozenset({"grpc"}),
    "kafka": frozenset({PROTOCOL}),
}


_Item = TypeVar("_Item")


class Action(IntEnum):
    """What happens to a connection when it is made. The numbers are the kernel's."""

    REFUSE = 0  # L3/L4 policy denies it
    NATIVE = 1  # nothing is left to enforce or to record: the proxy is not needed
    REDIRECT = 2  # the proxy must see it


class Verdict(StrEnum):
    """As records spell it."""

    ALLOWED = "ALLOWED"
    DENIED = "DENIED"
    PARTIAL = "PARTIAL"
    WOULD_DENY = "WOULD_DENY"


class Decision(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What policy says to one call or connection, and why. It is a `parsers.contract.Ruling`.

    ``policy`` and ``rule`` name what decided, if one thing did; ``detail`` has the names of all policies that were asked.
    ``reason`` is a stable kebab-case token. ``would`` is "DENY" when only ``mode: audit`` let the call pass.
    ``notes`` are findings that changed nothing, such as a ``headerMatches`` mismatch with LOG. ``per_resource`` is what
    becomes of each topic of a PARTIAL call, or of each resource where every one is judged by itself; empty where nothing was
    named and the reply has to be cut. ``summary``: its record
    may stand for several calls (``record: summary``). ``trailers``: whether the request may have some. ``granting`` is asked by
    ``grants`` about resources where not all have the same verdict.
    """

    verdict: Verdict
    reason: str
    generation: int
    direction: Direction | None = None
    policy: str | None = None
    rule: str | None = None
    would: str | None = None
    edits: tuple[HeaderEdit, ...] = ()
    notes: tuple[str, ...] = ()
    bad_request: bool = False
    per_resource: Mapping[str, Verdict] | None = None
    redact_query: bool = False
    detail: tuple[str, ...] = ()
    summary: bool = False
    trailers: bool = True
    granting: Callable[[str], bool] | None = None

    @property
    def allowed(self) -> bool:
        return self.verdict is not Verdict.DENIED

    def grants(self, resource: str) -> bool:
        """Whether the call may touch this topic, group or transactional id, or see this topic in its reply."""
        if self.granting is None:
            return self.allowed
        known = self.per_resource.get(resource) if self.per_resource is not None else None
        return known is not Verdict.DENIED if known is not None else self.granting(resource)


class Rank(IntEnum):
    """How one view of one side judges; the lowest of several counts."""

    DENY = 0
    TOLERATE = 1  # would be denied, but what denies is in audit mode
    ALLOW = 2


class Outcome(msgspec.Struct, frozen=True):
    """One view's judgement."""

    rank: Rank
    reason: str
    policy: str | None = None
    rule: str | None = None
    edits: tuple[HeaderEdit, ...] = ()
    notes: tuple[str, ...] = ()
    bad_request: bool = False
    summary: bool | None = None  # of the Kafka rule that decided; None: it was none


class Party(msgspec.Struct, frozen=True):
    """An endpoint as rules look at it: ``labels`` is None when it is no workload."""

    labels: Mapping[str, str] | None
    address: Address | None
    local: bool

    @property
    def entities(self) -> frozenset[Entity]:
        if self.labels is not None:
            return frozenset({Entity.ALL, Entity.CLUSTER}) if is_in_cluster(self.labels) else frozenset({Entity.ALL})
        if self.local:
            return frozenset({Entity.ALL, Entity.CLUSTER, Entity.HOST})
        return frozenset({Entity.ALL, Entity.WORLD})

    def is_selected(self, peers: Peers | None, deny: bool) -> bool:
        """Whether it is one of ``peers``. ``deny``: the rule forbids, so that an unknown address counts as any address."""
        if peers is None:
            return True
        if not self.entities.isdisjoint(peers.entities):
            return True
        if self.labels is not None:
            return any(selector.matches(self.labels) for selector in peers.endpoints)
        if self.local:
            return False  # CIDRs mean addresses elsewhere, as in Cilium; processes of this host are the entity "host"
        if self.address is None:
            return deny and bool(peers.cidrs)
        return any(cidr.contains(self.address) for cidr in peers.cidrs)


class Entry(msgspec.Struct, frozen=True, eq=False):
    """A rule that concerns a connection, with the ``toPorts`` entry that does (None: the rule is for every port)."""

    policy: Policy
    section: Section
    rule: Rule
    port_rule: PortRule | None

    @property
    def is_open(self) -> bool:
        return self.port_rule is None or self.port_rule.kind is None


class L7Plan:
    """The L7 rules of one view, as indexes. ``open_by`` is the L3/L4 entry that allows whatever no rule denies.

    If then no rule denies either, the plan only ``records``: the proxy reads the connection, and every call is allowed.
    """

    def __init__(self, entries: Sequence[Entry], open_by: Entry | None, secrets: Mapping[tuple[str, str], str]) -> None:
        self.kinds = frozenset(entry.port_rule.kind for entry in entries if entry.port_rule is not None)
        self._protocols = frozenset.intersection(*(PROTOCOLS_OF_KIND[kind] for kind in self.kinds if kind is not None))
        self.opaque_allowed = any(entry.port_rule.opaque_allowed for entry in entries if entry.port_rule is not None)
        refusing = [entry for entry in entries if entry.port_rule is not None and entry.port_rule.bodies_refused]
        # What becomes of calls with a body that their method has no use for, if not the same as of others.
        self.bodies = min(map(_body_refused, refusing), key=lambda outcome: outcome.rank, default=None)
        self.open_by = open_by
        self._entries = entries
        # Non-matching calls pass (``enableDefaultDeny: false``), or pass and are recorded (the rule's ``mode: audit``).
        self.default_allow = next((entry for entry in entries if not entry.section.default_deny), None)
        self._tolerant = next((entry for entry in entries if entry.rule.audit), None)
        labelled = [(entry, rule) for entry in entries if entry.port_rule is not None for rule in entry.port_rule.rules]
        denying = [(e, r, r.audit or e.rule.audit) for e, r in labelled if r.deny]
        allowing = [(e, r, r.audit) for e, r in labelled if not r.deny]
        self.deny = _Rules([(e, r) for e, r, audit in denying if not audit], secrets, Rank.DENY, "deny-rule")
        self.audit_deny = _Rules([(e, r) for e, r, audit in denying if audit], secrets, Rank.TOLERATE, "deny-rule")
        # Whether no call can be denied here: then no protocol may be, either.
        enforces_bodies = self.bodies is not None and self.bodies.rank is Rank.DENY
        denies = bool(self.deny.rules) or enforces_bodies
        self.records = open_by is not None and not any(e.port_rule is not None and e.port_rule.can_deny for e in entries)
        self.only_watches = self.records or (self._tolerant is not None and not denies)
        self.looks_at_headers = any(not isinstance(r, KafkaRule) and _looks_at_headers(r) for _, r in labelled)
        self.allow = _Rules([(e, r) for e, r, audit in allowing if not audit], secrets, Rank.ALLOW, "rule-matched")
        self.audit_allow = _Rules([(e, r) for e, r, audit in allowing if audit], secrets, Rank.TOLERATE, "audit-rule")
        # A Kafka call may need two rules, of which one is in audit mode.
        together = [(e, r) for e, r, audit in allowing if audit or isinstance(r, KafkaRule)] if self.audit_allow.rules else []
        self._audited = _Rules(together, secrets, Rank.TOLERATE, "audit-rule")
        asked = [(e, r) for e, r in labelled if open_by is None or r.deny]
        self._path = _Concern([(e, r) for e, r in asked if looks_at_path(r)])
        self._query = _Concern([(e, r) for e, r in asked if looks_at_query(r)])
        by_header: dict[str, list[tuple[Entry, AnyL7Rule]]] = {}
        for entry, rule in labelled:
            for name in headers_of(rule):
                by_header.setdefault(name, []).append((entry, rule))
        self._headers = {name: _Concern(rules) for name, rules in by_header.items()}
        self._slashes = united(_said_of_slashes(entries, asked))

    def judge(self, call: ApiCall) -> Outcome:
        """Raises `UndecidedError` and `UnicodeEncodeError`."""
        if self.records:
            return self._allowed(call)
        if call.protocol == "tcp" and self.opaque_allowed:
            return Outcome(Rank.ALLOW, "opaque-allowed", *self._opaque_name())
        if call.protocol not in self._protocols:
            return self._refusal("protocol-not-allowed")
        read = self.read(call)
        tolerated: Outcome | None = None
        for reason, concern, bad_request in self._doubts(read):
            if concern.enforced:
                return Outcome(Rank.DENY, reason, bad_request=bad_request)
            tolerated = tolerated or Outcome(Rank.TOLERATE, reason)
        if self.bodies is not None and _has_needless_body(call):
            if self.bodies.rank is Rank.DENY:
                return self.bodies
            tolerated = self.bodies
        forbidden = self._readings(call, read)
        denied = self.deny.first_of(forbidden)
        if denied is not None:
            return denied
        tolerated = tolerated or self.audit_deny.first_of(forbidden)
        allowed = self._allowed(read)
        if tolerated is None or allowed.rank is Rank.DENY:
            return allowed
        return msgspec.structs.replace(tolerated, edits=allowed.edits, notes=allowed.notes)

    def finder(self, call: ApiCall) -> Callable[[str], bool]:
        """Whether `judge` would deny a call like ``call`` that is about one topic, by the topic's name."""
        denied, allowed, audited = (rules.finder(call) for rules in (self.deny, self.allow, self._audited))
        if self.open_by is not None or self.default_allow is not None or self._tolerant is not None:
            return denied
        return lambda topic: denied(topic) or not (allowed(topic) or audited(topic))

    def read(self, call: ApiCall) -> ApiCall:
        """The call as the port's server reads it, if the port says what becomes of the only fault of its path."""
        if not call.slashes or call.path is None:
            return call
        path = reading(call.path, self._slashes)
        return call if path is None else msgspec.structs.replace(call, path=path, path_fault=None)

    def _readings(self, call: ApiCall, read: ApiCall) -> Sequence[ApiCall]:
        """The call as any server may read it."""
        if read is call or call.path is None:
            return (call,)
        return [read, *(msgspec.structs.replace(call, path=path, path_fault=None) for path in sorted(readings(call.path)))]

    def _doubts(self, call: ApiCall) -> "Iterable[tuple[str, _Concern, bool]]":
        """Why rules cannot judge a call, for those that are concerned, and whether it is the target that is bad."""
        if call.path_fault is not None and self._path.matters:
            yield call.path_fault, self._path, True
        if call.query_fault is not None and self._query.matters:
            yield call.query_fault, self._query, True
        for name in call.nominated:
            if name in self._headers:
                yield "connection-nominates-field", self._headers[name], False

    def _allowed(self, call: ApiCall) -> Outcome:
        if self.open_by is not None:
            return Outcome(Rank.ALLOW, "connection-allowed", self.open_by.policy.name, self.open_by.rule.name)
        allowed = self.allow.first(call)
        if allowed is not None:
            return allowed
        if self.default_allow is not None:
            return Outcome(Rank.ALLOW, "default-allow", self.default_allow.policy.name)
        audited = self._audited.first(call)
        if audited is not None:
            return audited
        return self._refusal("secret-missing" if self.allow.lacks_secret(call) else "no-rule-matched")

    def _refusal(self, reason: str) -> Outcome:
        """Nothing allows the call: denied, or tolerated when one of the rules that ask for L7 is in audit mode."""
        if self._tolerant is not None:
            return Outcome(Rank.TOLERATE, reason, self._tolerant.policy.name, self._tolerant.rule.name)
        return Outcome(Rank.DENY, reason)

    def _opaque_name(self) -> tuple[str, str]:
        entry = next(entry for entry in self._entries if entry.port_rule is not None and entry.port_rule.opaque_allowed)
        return entry.policy.name, entry.rule.name

    @property
    def lists(self) -> "tuple[tuple[str, _Rules], ...]":
        """All rules with what they do, in the order in which they are asked."""
        return (
            ("deny", self.deny),
            ("audit deny", self.audit_deny),
            ("allow", self.allow),
            ("audit allow", self.audit_allow),
        )


class _Concern:
    """Rules that have to know something for certain: whether there are any, and whether one of them is enforced."""

    def __init__(self, rules: Sequence[tuple[Entry, AnyL7Rule]]) -> None:
        self.matters = bool(rules)
        self.enforced = any(not e.rule.audit and not (r.deny and r.audit) for e, r in rules)


def _said_of_slashes(entries: Sequence[Entry], asked: Sequence[tuple[Entry, AnyL7Rule]]) -> list[Normalise]:
    """What entries say of slashes. Where a rule that allows looks at paths, saying nothing is a word against them."""
    allowing = {id(entry) for entry, rule in asked if not rule.deny and looks_at_path(rule)}
    said = [(entry, entry.port_rule.normalise) for entry in entries if entry.port_rule is not None]
    return [normalise or STRICT for entry, normalise in said if normalise is not None or id(entry) in allowing] or [STRICT]


class _Rules:
    """One list of L7 rules with the entries that they come from, and what it means when one of them matches."""

    def __init__(
        self,
        labelled: Sequence[tuple[Entry, AnyL7Rule]],
        secrets: Mapping[tuple[str, str], str],
        rank: Rank,
        reason: str,
    ) -> None:
        self.entries = [entry for entry, _ in labelled]
        self.rules = [rule for _, rule in labelled]
        self._secrets = secrets
        self._rank = rank
        self._reason = reason
        self._plain: dict[int, Outcome] = {}  # of rules that leave the headers alone, by their order

    @cached_property
    def index(self) -> RuleIndex | KafkaIndex:
        """Built for the first call that is judged: L3/L4 questions do not need it. Raises `UndecidedError`."""
        deny = any(rule.deny for rule in self.rules)
        kafka = [rule for rule in self.rules if isinstance(rule, KafkaRule)]
        if kafka:
            return KafkaIndex(kafka, deny)
        return RuleIndex([rule for rule in self.rules if not isinstance(rule, KafkaRule)], self._secrets, deny)

    def first_of(self, calls: Iterable[ApiCall]) -> Outcome | None:
        """The outcome of the first of several readings of a call that a rule matches."""
        return next((outcome for outcome in map(self.first, calls) if outcome is not None), None)

    def first(self, call: ApiCall) -> Outcome | None:
        """The outcome that the first matching rule has, with the header changes of all matching ones."""
        if not self.entries:
            return None
        matches, _ = self.index.matches(call)
        if not matches:
            return None
        order = matches[0].order
        if not self.index.changes_headers:
            return self._plain.get(order) or self._plain.setdefault(order, self._outcome(order))
        edits = dict.fromkeys(edit for match in matches for edit in match.edits)
        notes = dict.fromkeys(note for match in matches for note in match.notes)
        return self._outcome(order, tuple(edits), tuple(notes))

    def finder(self, call: ApiCall) -> Callable[[str], bool]:
        """Whether a Kafka rule holds for a call like ``call`` about one topic, by the topic's name."""
        index = self.index if self.entries else None
        return index.finder(call) if isinstance(index, KafkaIndex) else _nothing

    def _outcome(self, order: int, edits: tuple[HeaderEdit, ...] = (), notes: tuple[str, ...] = ()) -> Outcome:
        rule = self.rules[order]
        summary = rule.summary if isinstance(rule, KafkaRule) else None
        return Outcome(self._rank, self._reason, self.entries[order].policy.name, rule.name, edits, notes, summary=summary)

    def lacks_secret(self, call: ApiCall) -> bool:
        """Whether a rule would hold for the call if its secret were there."""
        return bool(self.entries) and self.index.lacks_secrets and self.index.matches(call)[1]


class View:
    """What one set of policies says to connections of one side: an L3/L4 outcome, and the L7 rules that remain."""

    def __init__(self, connection: Outcome, l7: L7Plan | None) -> None:
        self.connection = connection
        self.l7 = l7

    def judge(self, call: ApiCall) -> Outcome:
        if self.l7 is None or self.connection.rank is Rank.DENY:
            return self.connection
        outcome = self.l7.judge(call)
        if self.connection.rank < outcome.rank:
            return msgspec.structs.replace(self.connection, edits=outcome.edits, notes=outcome.notes)
        return outcome

    @property
    def is_native(self) -> bool:
        return self.l7 is None and self.connection.rank is Rank.ALLOW


class Side:
    """One direction of a pair: ``full`` is None when no policy of it is in audit mode."""

    def __init__(self, direction: Direction, policies: Sequence[Policy], enforced: View, full: View | None) -> None:
        self.direction = direction
        self.policies = policies
        self.enforced = enforced
        self.full = full

    @property
    def views(self) -> tuple[View, ...]:
        return (self.enforced,) if self.full is None else (self.enforced, self.full)


# Protocols whose calls the kernel path knows.
CARRIED_PROTOCOLS = frozenset({"http", "kafka"})


class Pair:
    """All connections of one subject to one port of one peer, under one generation of policy."""

    def __init__(
        self,
        sides: Sequence[Side],
        generation: int,
        acceleration: Acceleration,
        remembered: "deque[tuple[dict[ApiCall, Decision], ApiCall]]",
        transport: str = "TCP",
    ) -> None:
        """``remembered`` has the decisions that all pairs of a policy set keep, the oldest first."""
        self.sides = sides
        self.acceleration = acceleration
        policies = [policy for side in sides for policy in side.policies]
        self.redact_query = any(policy.redact_query for policy in policies)
        views = [view for side in sides for view in side.views]
        # Where calls are only recorded, nothing is enforced that could not be without the agent.
        records = all(view.connection.rank is Rank.ALLOW and (view.l7 is None or view.l7.records) for view in views)
        self.fail_open = bool(policies) and (records or all(policy.fail_open for policy in policies))
        self.generation = generation
        self._consulted = tuple(dict.fromkeys(policy.name for policy in policies))
        enforced = _kinds(side.enforced for side in sides)
        full = _kinds(side.full or side.enforced for side in sides)
        self._conflict = len(enforced) > 1
        self._audit_conflict = len(full) > 1
        # What is only recorded gives way to what is enforced, and is not read where it is of two kinds.
        recorded = {
            kind for view in views if view.l7 is not None and view.l7.records for kind in view.l7.kinds if kind is not None
        }
        kinds = sorted(enforced) or sorted(full) or (sorted(recorded) if len(recorded) == 1 else [])
        self.protocol = kinds[0] if kinds and not self._conflict else "tcp"
        plans = [side.enforced.l7 for side in sides if side.enforced.l7 is not None]
        # What is only in audit mode lets every protocol pass, also those that the proxy knows and cannot read.
        self.only_watches = all(plan.only_watches for plan in plans)
        # Trailer fields: some servers merge them into the head, where rules would have judged them.
        self.trailers = not any(plan.looks_at_headers and not plan.only_watches for plan in plans)
        self.refuses_bodies = any(view.l7 is not None and view.l7.bodies is not None for side in sides for view in side.views)
        self.opaque_allowed = all(plan.opaque_allowed or plan.only_watches for plan in plans)
        self.action = self._action(transport)
        self._decisions: dict[ApiCall, Decision] = {}
        self._remembered = remembered

    @property
    def may_be_carried(self) -> bool:
        """Whether the kernel path knows the protocol, and both workloads let it."""
        return self.protocol in CARRIED_PROTOCOLS and self.acceleration is not Acceleration.OFF

    def _action(self, transport: str) -> Action:
        if self._conflict or any(side.enforced.connection.rank is Rank.DENY for side in self.sides):
            return Action.REFUSE
        if transport != "TCP":
            return Action.NATIVE  # nobody reads datagrams; audit mode, the only reason left to do so, stops nothing
        native = all(view.is_native for side in self.sides for view in side.views)
        return Action.NATIVE if native and not self._audit_conflict else Action.REDIRECT

    def connection(self) -> Decision:
        """The L3/L4 decision: whether there may be a connection, whatever is said on it."""
        return self._combine(
            [(side.enforced.connection, side.full.connection if side.full else None) for side in self.sides],
        )

    def decide(self, call: ApiCall) -> Decision:
        """The decision for one call. Total: it denies instead of raising."""
        known = self._decisions.get(call)
        if known is not None:
            return known
        steps = self.deciding(call)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                decision: Decision = end.value
                return decision

    def deciding(self, call: ApiCall) -> Generator[None, None, Decision]:
        """The same, step by step: of a call about very many things it yields behind every `PIECES_AT_ONCE` of them."""
        try:
            decision = yield from self._judge(call)
        except UndecidedError:
            decision = self._denial("pattern-undecided")
        except Exception:
            # Law 5. The transport records the denial; what went wrong shows as its reason.
            decision = self._denial("internal-error")
        if call.wire_length <= MAX_REMEMBERED_LENGTH:
            self._remember(call, decision)
        return decision

    def _remember(self, call: ApiCall, decision: Decision) -> None:
        if len(self._remembered) >= MAX_DECISIONS:
            decisions, oldest = self._remembered.popleft()
            decisions.pop(oldest, None)
        self._decisions[call] = decision
        # Not the pair itself: a circle would keep every generation of policy, with its calls, until a collection finds it.
        self._remembered.append((self._decisions, call))

    def _judge(self, call: ApiCall) -> Generator[None, None, Decision]:
        return (yield from self._judge_pieces(call)) if call.protocol == PROTOCOL else self._judge_whole(call)

    def _judge_whole(self, call: ApiCall) -> Decision:
        return self._combine([(s.enforced.judge(call), _audited(s.full, call) if s.full else None) for s in self.sides])

    def _judge_pieces(self, call: ApiCall) -> Generator[None, None, Decision]:
        """A call that touches several things: each must be allowed, or, where the protocol can tell them apart, some."""
        judged = []
        for piece in pieces(call):
            judged.append((piece, self._judge_whole(piece)))
            if not len(judged) % PIECES_AT_ONCE:
                yield
        denied = next((decision for _, decision in judged if not decision.allowed), None)
        named = call.separate or any(name.startswith(TOPIC) for name in call.resources)
        asks_for_whatever = call.divisible and call.all_topics and not named
        if denied is None:
            decision = next((one for _, one in judged if one.verdict is not Verdict.ALLOWED), judged[0][1])
            if asks_for_whatever and decision.verdict is Verdict.WOULD_DENY:
                return self._filtered(call, decision)
            return msgspec.structs.replace(decision, summary=all(one.summary for _, one in judged))
        granting = _Granting(tuple(self.sides), call)
        if call.divisible:
            verdicts: dict[str, Verdict] = {}
            for piece, decision in judged:
                for name in piece.resources:
                    if (call.separate or name.startswith(TOPIC)) and verdicts.get(name) is not Verdict.DENIED:
                        verdicts[name] = Verdict.ALLOWED if decision.allowed else Verdict.DENIED
            if asks_for_whatever:
                return self._filtered(call, denied, granting)
            some = any(verdict is Verdict.ALLOWED for verdict in verdicts.values())
            left = call.remainder or (call.all_topics and not call.separate)
            if some or (left and self._allows_all(_remainder(call))):
                return msgspec.structs.replace(denied, verdict=Verdict.PARTIAL, per_resource=verdicts, granting=granting)
        return msgspec.structs.replace(denied, granting=granting)

    def _filtered(self, call: ApiCall, denied: Decision, granting: "_Granting | None" = None) -> Decision:
        """A call that asks for whatever there is gets what it may see: that denies it nothing that it has named.

        ``denied`` is what is said of it if it may not even ask. Without ``granting``, in audit mode, its reply stays whole.
        """
        judged = [self._judge_whole(piece) for piece in pieces(_remainder(call))]
        decision = next((one for one in judged if one.verdict is not Verdict.ALLOWED), judged[0])
        if granting is None:
            told = denied if decision.verdict is not Verdict.ALLOWED else decision
            return told if told is denied else msgspec.structs.replace(told, notes=(*told.notes, WOULD_BE_FILTERED))
        if not all(one.allowed for one in judged):
            return msgspec.structs.replace(denied, granting=granting)
        notes = (*decision.notes, REPLY_FILTERED)
        return msgspec.structs.replace(decision, notes=notes, per_resource={}, granting=granting)

    def _allows_all(self, call: ApiCall) -> bool:
        return all(self._judge_whole(piece).allowed for piece in pieces(call))

    def _combine(self, outcomes: Sequence[tuple[Outcome, Outcome | None]]) -> Decision:
        """One decision from the outcomes (enforced, full) of the sides."""
        if self._conflict:
            return self._denial("protocol-conflict")
        for side, (enforced, _) in zip(self.sides, outcomes, strict=True):
            if enforced.rank is Rank.DENY:
                return self._decision(Verdict.DENIED, side.direction, enforced, ())
        changing = [enforced for enforced, _ in outcomes]
        for side, judged in zip(self.sides, outcomes, strict=True):
            for outcome in judged:
                if outcome is not None and outcome.rank is not Rank.ALLOW:
                    return self._decision(Verdict.WOULD_DENY, side.direction, outcome, changing)
        if self._audit_conflict:
            return self._decision(Verdict.WOULD_DENY, None, Outcome(Rank.TOLERATE, "protocol-conflict"), changing)
        if not self.sides:
            return self._decision(Verdict.ALLOWED, None, Outcome(Rank.ALLOW, "no-policy"), changing)
        return self._decision(Verdict.ALLOWED, self.sides[0].direction, outcomes[0][0], changing)

    def _decision(
        self, verdict: Verdict, direction: Direction | None, outcome: Outcome, changing: Sequence[Outcome]
    ) -> Decision:
        return Decision(
            verdict=verdict,
            reason=outcome.reason,
            generation=self.generation,
            direction=direction,
            policy=outcome.policy,
            rule=outcome.rule,
            would="DENY" if verdict is Verdict.WOULD_DENY else None,
            edits=_together([one.edits for one in changing]),
            notes=_together([one.notes for one in changing]),
            bad_request=outcome.bad_request and verdict is Verdict.DENIED,
            redact_query=self.redact_query,
            detail=self._consulted,
            trailers=self.trailers,
            summary=verdict is Verdict.ALLOWED and _may_be_summed_up(changing),
        )

    def refusal(self, reason: str) -> Decision:
        """What is said of what was refused before policy could be asked about it, where these policies would have been."""
        side = next((one for one in self.sides if any(view.l7 is not None for view in one.views)), None)
        refused = self._decision(Verdict.DENIED, side.direction if side else None, Outcome(Rank.DENY, reason), ())
        return msgspec.structs.replace(refused, generation=0)

    def _denial(self, reason: str) -> Decision:
        return self._decision(Verdict.DENIED, None, Outcome(Rank.DENY, reason), ())


class PolicySet:
    """One generation of the documents, ready to decide. Immutable but for its caches."""

    def __init__(self, bundle: Bundle, generation: int) -> None:
        self.bundle = bundle
        self.generation = generation
        self._workloads = {workload.name: workload for workload in bundle.workloads}
        # Longest prefix first, so that the first one that contains an address is its owner.
        self._addresses = sorted(
            ((network, workload) for workload in bundle.workloads for network in workload.addresses),
            key=lambda owned: -owned[0].prefixlen,
        )
        self._selected: dict[tuple[str, Direction], tuple[Policy, ...]] = {}
        self._pairs: dict[tuple[object, ...], Pair] = {}
        self._remembered: deque[tuple[dict[ApiCall, Decision], ApiCall]] = deque()
        self._plans: weakref.WeakValueDictionary[tuple[object, ...], L7Plan] = weakref.WeakValueDictionary()

    def endpoint(self, workload_name: str) -> Endpoint:
        """The endpoint of a workload of these documents. Raises `KeyError` for any other name."""
        return Endpoint(workload=workload_name, labels=self._workloads[workload_name].labels)

    def workload_of_address(self, address: str) -> Workload | None:
        """The workload that owns an address (without port) by its document's ``addresses``, the longest prefix first."""
        parsed = parse_address(address)
        if parsed is None:
            return None
        return next((workload for network, workload in self._addresses if parsed in network), None)

    def pair(self, subject: Endpoint, peer: Endpoint, port: int, transport: str = "TCP") -> Pair:
        """What holds for connections of ``subject`` to ``port`` of ``peer``. ``transport`` is "TCP" or "UDP"."""
        key = (self._identity(subject), self._identity(peer), port, transport)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self.build_pair(subject, peer, port, transport)
            if len(self._pairs) >= MAX_PAIRS:
                del self._pairs[next(iter(self._pairs))]
            self._pairs[key] = pair
        return pair

    def _identity(self, endpoint: Endpoint) -> object:
        """What makes two endpoints the same to policy. Labels count for workloads that the documents do not know."""
        if endpoint.workload is None:
            return endpoint.local or endpoint.address
        if endpoint.workload in self._workloads:
            return endpoint.workload
        return endpoint.workload, tuple(sorted(endpoint.labels.items()))

    def build_pair(self, subject: Endpoint, peer: Endpoint, port: int, transport: str) -> Pair:
        """`pair` without its cache."""
        sides = [
            self._side(Direction.EGRESS, subject, peer, port, transport),
            self._side(Direction.INGRESS, peer, subject, port, transport),
        ]
        acceleration = min(self.acceleration(end) for end in (subject, peer))
        present = [side for side in sides if side is not None]
        return Pair(present, self.generation, acceleration, self._remembered, transport)

    def acceleration(self, end: Endpoint) -> Acceleration:
        """What this end says by itself; of a connection the lower word counts."""
        workload = self._workloads.get(end.workload) if end.workload is not None else None
        return Acceleration.AUTO if workload is None else workload.acceleration

    def policies_of(self, owner: Endpoint, direction: Direction) -> tuple[Policy, ...]:
        """The policies that police one direction of an endpoint's connections; none when it is no workload."""
        if owner.workload is None:
            return ()
        known = self._selected.get((owner.workload, direction))
        if known is not None:
            return known
        labels = self._labels(owner)
        chosen = tuple(p for p in self.bundle.policies if p.section(direction) is not None and p.selects(labels))
        if owner.workload in self._workloads:
            self._selected[(owner.workload, direction)] = chosen
        return chosen

    def party(self, endpoint: Endpoint) -> Party:
        """An endpoint as rules look at it."""
        labels = self._labels(endpoint) if endpoint.workload is not None else None
        address = parse_address(endpoint.address) if endpoint.address is not None else None
        return Party(labels, address, endpoint.local)

    def _labels(self, endpoint: Endpoint) -> Mapping[str, str]:
        """The documents' labels, which may be newer than the endpoint's: a connection can outlive a reload."""
        workload = self._workloads.get(endpoint.workload or "")
        labels = workload.labels if workload is not None else endpoint.labels
        return labels if NAMESPACE_LABEL in labels or is_reserved(labels) else {**labels, NAMESPACE_LABEL: DEFAULT_NAMESPACE}

    def _side(self, direction: Direction, owner: Endpoint, other: Endpoint, port: int, transport: str) -> Side | None:
        policies = self.policies_of(owner, direction)
        if not policies:
            return None
        party = self.party(other)
        enforced = [policy for policy in policies if not policy.audit]
        view = self._view(direction, enforced, party, port, transport)
        full = self._view(direction, policies, party, port, transport) if len(enforced) < len(policies) else None
        return Side(direction, policies, view, full)

    def _view(self, direction: Direction, policies: Iterable[Policy], party: Party, port: int, transport: str) -> View:
        restricted = False
        entries: list[Entry] = []
        for policy in policies:
            section = policy.section(direction)
            assert section is not None
            restricted = restricted or section.default_deny
            entries.extend(concerned(policy, section, party, port, transport))
        allowing = [entry for entry in entries if not entry.rule.deny]
        open_by = next((entry for entry in allowing if entry.is_open), None)
        asking = [entry for entry in allowing if not entry.is_open]
        if open_by is not None:
            # The union of rules allows everything on this port; only what denies can still say no. Without such, calls are
            # recorded, as in Cilium: L7 rules beside a wider rule are how its users ask to see them.
            asking = [e for e in asking if e.port_rule is not None and e.port_rule.can_deny] or asking
        connection = _connection(entries, [open_by] if open_by is not None else allowing, restricted)
        plan = self._plan(asking, open_by) if asking else None
        if plan is not None and not plan.records and len(plan.kinds) > 1:
            connection = Outcome(Rank.DENY, "protocol-conflict")
        return View(connection, plan)

    def _plan(self, asking: Sequence[Entry], open_by: Entry | None) -> L7Plan:
        """Shared by all pairs that are governed by the same rules: an index of thousands of rules is built once."""
        key = (*((id(entry.rule), id(entry.port_rule)) for entry in asking), id(open_by.rule) if open_by else None)
        plan = self._plans.get(key)
        if plan is None:
            plan = L7Plan(asking, open_by, self.bundle.secrets)
            self._plans[key] = plan
        return plan


def concerned(policy: Policy, section: Section, party: Party, port: int, transport: str) -> list[Entry]:
    """The rules of a section that concern connections with ``party`` on ``port``."""
    found: list[Entry] = []
    for rule in section.rules:
        if not party.is_selected(rule.peers, rule.deny):
            continue
        if rule.ports is None:
            found.append(Entry(policy, section, rule, None))
            continue
        found.extend(
            Entry(policy, section, rule, port_rule)
            for port_rule in rule.ports
            if any(ports.contains(port, transport) for ports in port_rule.ports)
        )
    return found


def _connection(entries: Sequence[Entry], allowing: Sequence[Entry], restricted: bool) -> Outcome:
    """The L3/L4 outcome of a view: deny rules win, then allow rules are united, then the default."""
    denying = [entry for entry in entries if entry.rule.deny]
    for entry in denying:
        if not entry.rule.audit:
            return Outcome(Rank.DENY, "deny-rule", entry.policy.name, entry.rule.name)
    if restricted and not allowing:
        return Outcome(Rank.DENY, "connection-not-allowed")
    for entry in denying:
        return Outcome(Rank.TOLERATE, "deny-rule", entry.policy.name, entry.rule.name)
    for entry in allowing:
        return Outcome(Rank.ALLOW, "connection-allowed", entry.policy.name, entry.rule.name)
    return Outcome(Rank.ALLOW, "default-allow")


def _remainder(call: ApiCall) -> ApiCall:
    """What is left of a call without all that is told apart."""
    others = () if call.separate else tuple(resource for resource in call.resources if not resource.startswith(TOPIC))
    return msgspec.structs.replace(call, resources=others, all_topics=False)


class _Granting:
    """Which of the things that a call names, or that its reply names, are allowed by what is enforced."""

    def __init__(self, sides: tuple[Side, ...], call: ApiCall) -> None:
        self._sides, self._call = sides, call
        self._for = tuple(one for one in call.resources if not one.startswith(TOPIC))

    def __call__(self, resource: str) -> bool:
        if resource.startswith(TOPIC) and not (self._for or self._call.separate):
            return self._grants_topic(resource[len(TOPIC) :])
        resources: tuple[str, ...] = (resource,)
        all_topics = False
        if not resource.startswith(TOPIC):
            all_topics = self._call.all_topics and self._call.separate  # each of the groups with all topics
        elif not self._call.separate:  # a rule may be about this topic for that group
            resources += self._for
        call = msgspec.structs.replace(self._call, resources=resources, all_topics=all_topics)
        try:
            judged = [side.enforced.judge(piece).rank for piece in pieces(call) for side in self._sides]
        except Exception:
            return False
        return Rank.DENY not in judged

    def _grants_topic(self, topic: str) -> bool:
        """The same of what a reply may name by the ten thousand."""
        try:
            return not any(denied(topic) for denied in self._finders)
        except Exception:
            return False

    @cached_property
    def _finders(self) -> list[Callable[[str], bool]]:
        call = msgspec.structs.replace(self._call, resources=(), all_topics=False)
        views = [side.enforced for side in self._sides]
        if any(view.connection.rank is Rank.DENY for view in views):
            raise PermissionError("nothing may be said on this connection")
        return [view.l7.finder(call) for view in views if view.l7 is not None]


def _nothing(topic: str) -> bool:
    return False


def _body_refused(entry: Entry) -> Outcome:
    return Outcome(Rank.TOLERATE if entry.rule.audit else Rank.DENY, "body-refused", entry.policy.name, entry.rule.name)


def _looks_at_headers(rule: AnyL7Rule) -> bool:
    return bool(rule.headers or (isinstance(rule, HttpRule) and rule.header_matches))


def _has_needless_body(call: ApiCall) -> bool:
    """Whether a call has a body although its method gives it no meaning."""
    return (
        call.method is not None
        and call.method.upper() in BODILESS_METHODS
        and any(name == "transfer-encoding" or (name == "content-length" and value.strip("0")) for name, value in call.headers)
    )


def _may_be_summed_up(outcomes: Sequence[Outcome]) -> bool:
    """Whether the rules of all sides that decided say so."""
    says = [outcome.summary for outcome in outcomes if outcome.summary is not None]
    return bool(says) and all(says)


def _together(parts: Sequence[tuple[_Item, ...]]) -> tuple[_Item, ...]:
    return parts[0] if len(parts) == 1 else tuple(chain.from_iterable(parts))


def _audited(full: View, call: ApiCall) -> Outcome:
    """The view that is not enforced cannot deny, whatever goes wrong in it: what it cannot judge, it would deny."""
    try:
        return full.judge(call)
    except UndecidedError:
        return Outcome(Rank.DENY, "pattern-undecided")


def _kinds(views: Iterable[View]) -> set[str]:
    """The kinds of L7 rules that can deny something."""
    plans = (view.l7 for view in views if view.l7 is not None and not view.l7.records)
    return {kind for plan in plans for kind in plan.kinds if kind is not None}


def parse_address(text: str) -> Address | None:
    """An address without its IPv6 scope; an IPv4-mapped one (RFC 4291 section 2.5.5.2) as the IPv4 address that it is."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def decide(policy_set: PolicySet, subject: Endpoint, peer: Endpoint, port: int, call: ApiCall) -> Decision:
    """The decision for one call of ``subject`` to TCP ``port`` of ``peer``."""
    return policy_set.pair(subject, peer, port).decide(call)
