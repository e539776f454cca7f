"""Why a call is decided as it is: the decision itself, and for every rule that could have a say, what spoke against it.

Nothing is decided here. The decision is `Pair.decide`'s, and the reasons come from the very objects that it asks: the parties,
the port ranges and the rule indexes of the pair.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from parsers.contract import ApiCall
from policies.decide import Action, Decision, Entry, Pair, PolicySet, Side, Verdict
from policies.heads import NotProvable, prove, run
from policies.kafka import PROTOCOL, KafkaIndex, Reach, asked_of, pieces, reach_of_call
from policies.match import RuleIndex
from policies.model import (
    NAMESPACE_LABEL,
    Acceleration,
    Direction,
    Endpoint,
    Place,
    Policy,
    PortRule,
    Rule,
    Selector,
    can_be_subject,
)

PROVEN = "proven"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One rule and its part in the decision. ``mismatch`` is the first field that did not match, None when all did."""

    direction: Direction
    policy: str
    rule: str
    place: Place
    effect: str  # "allow", "deny", and "audit" before them
    mismatch: str | None = None
    note: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """``policies`` are the ones that were asked, per direction; ``candidates`` are all of their rules.

    ``kernel`` is `PROVEN` when the kernel path may carry the call without the proxy, else the reason why it asks the proxy;
    None when the call is no HTTP/1.1 request on a connection that the proxy reads. ``cut_down``: the call is about all topics,
    and its reply will have only those that are allowed. ``elsewhere`` are policies that would concern the connection, were
    their namespaces those of its ends. ``unasked``: where the kernel path may carry the call, the ends that say nothing of
    acceleration; by default it does so only where the kernel is right for every program.
    """

    decision: Decision
    action: Action
    protocol: str
    policies: dict[Direction, tuple[str, ...]]
    candidates: tuple[Candidate, ...]
    kernel: str | None = None
    cut_down: bool = False
    elsewhere: tuple[str, ...] = ()
    unasked: tuple[Direction, ...] = ()


def explain(
    policy_set: PolicySet, subject: Endpoint, peer: Endpoint, port: int, call: ApiCall, head: bytes | None = None
) -> Explanation:
    """The decision for a call of ``subject`` to TCP ``port`` of ``peer``, with every rule's part in it.

    ``head`` is the call as an HTTP/1.1 request head on the wire, if it is one.
    """
    pair = policy_set.pair(subject, peer, port)
    candidates: list[Candidate] = []
    for side in pair.sides:
        other = peer if side.direction is Direction.EGRESS else subject
        candidates += _SideReader(policy_set, side, other, port, call).candidates()
    decision = _decision(pair, call)
    kernel = None if head is None or pair.action is not Action.REDIRECT else _kernel(pair, head, decision, candidates)
    ends = {Direction.EGRESS: subject, Direction.INGRESS: peer}
    unasked = (side for side, end in ends.items() if policy_set.acceleration(end) is Acceleration.AUTO)
    return Explanation(
        decision=decision,
        action=pair.action,
        protocol=pair.protocol,
        policies={side.direction: tuple(dict.fromkeys(policy.name for policy in side.policies)) for side in pair.sides},
        candidates=tuple(candidates),
        elsewhere=_elsewhere(policy_set, subject, peer),
        cut_down=decision.per_resource is not None and call.all_topics,
        kernel=kernel,
        unasked=tuple(unasked) if kernel == PROVEN else (),
    )


def _kernel(pair: Pair, head: bytes, decision: Decision, candidates: Iterable[Candidate]) -> str:
    """`PROVEN`, or the first reason that speaks against it."""
    table = prove(pair)
    if isinstance(table, NotProvable):
        return table.reason
    if run(table, head) is not None:
        return PROVEN
    if decision.verdict is not Verdict.ALLOWED:
        return "not-allowed"
    left_out = {(policy, rule): reason for policy, rule, reason in table.left_out}
    matching = ((one.policy, one.rule) for one in candidates if one.mismatch is None)
    return next((left_out[names] for names in matching if names in left_out), "head-form")


def _decision(pair: Pair, call: ApiCall) -> Decision:
    """A call is judged only on a connection that the proxy reads."""
    return pair.decide(call) if pair.action is Action.REDIRECT else pair.connection()


def _elsewhere(policy_set: PolicySet, subject: Endpoint, peer: Endpoint) -> tuple[str, ...]:
    """One sentence for every policy whose ``endpointSelector`` fits an end of the connection but for the namespace."""
    found: dict[str, None] = {}
    for end, direction in ((subject, Direction.EGRESS), (peer, Direction.INGRESS)):
        labels = policy_set.party(end).labels
        for policy in policy_set.bundle.policies if labels is not None else ():
            if policy.section(direction) is not None and labels is not None and can_be_subject(labels):
                where = _in_another_namespace([policy.selector], labels)
                if where:
                    found[f"{policy.name} does not select {end.workload} for {direction}: {where}"] = None
    return tuple(found)


def _in_another_namespace(selectors: Iterable[Selector], labels: Mapping[str, str]) -> str:
    """What keeps selectors from matching, if that is the namespace alone."""
    for selector in selectors:
        wrong = [one for one in selector.requirements if not one.holds(labels)]
        if wrong and all(one.key == NAMESPACE_LABEL for one in wrong):
            wanted = ", ".join(value for one in wrong for value in one.values) or "a namespace"
            return f"its labels match, but its namespace is {labels.get(NAMESPACE_LABEL, 'none')}, not {wanted}"
    return ""


class _SideReader:
    """All rules of one side, with what keeps each of them from matching."""

    def __init__(self, policy_set: PolicySet, side: Side, other: Endpoint, port: int, call: ApiCall) -> None:
        self._side = side
        self._party = policy_set.party(other)
        self._port = port
        self._call = call
        # The rules that are asked, by the object that the index holds, with their first mismatch and a note.
        self._asked: dict[int, tuple[str | None, str]] = {}
        self._opener: Entry | None = None
        for view in side.views:
            plan = view.l7
            if plan is None:
                continue
            asked = list(pieces(call)) if call.protocol == PROTOCOL else [plan.read(call)]
            for effect, rules in plan.lists:
                if plan.open_by is not None and "allow" in effect:
                    self._opener = plan.open_by
                    continue
                for order, rule in enumerate(rules.rules):
                    self._asked[id(rule)] = _mismatch(rules.index, order, asked)

    def candidates(self) -> list[Candidate]:
        return [
            candidate
            for policy in self._side.policies
            if (section := policy.section(self._side.direction)) is not None
            for rule in section.rules
            for candidate in self._of_rule(policy, rule)
        ]

    def _of_rule(self, policy: Policy, rule: Rule) -> list[Candidate]:
        audit = policy.audit or rule.audit
        whole = Candidate(
            direction=self._side.direction,
            policy=policy.name,
            rule=rule.name,
            place=rule.place,
            effect=_effect(rule.deny, audit),
        )
        if not self._party.is_selected(rule.peers, rule.deny):
            where = ""
            if rule.peers is not None and self._party.labels is not None:
                where = _in_another_namespace(rule.peers.endpoints, self._party.labels)
            return [msgspec.structs.replace(whole, mismatch="peer", note=where and f"no match: peer ({where})")]
        if rule.ports is None:
            return [whole]
        concerned = [ports for ports in rule.ports if any(p.contains(self._port, "TCP") for p in ports.ports)]
        if not concerned:
            return [msgspec.structs.replace(whole, mismatch="toPorts")]
        return [candidate for port_rule in concerned for candidate in self._of_port_rule(whole, policy, port_rule)]

    def _of_port_rule(self, whole: Candidate, policy: Policy, port_rule: PortRule) -> list[Candidate]:
        if port_rule.kind is None:
            return [whole]
        if not port_rule.rules:
            return [msgspec.structs.replace(whole, mismatch=port_rule.kind, note="an empty list of rules allows no call")]
        found = []
        for rule in port_rule.rules:
            mismatch, note = self._asked.get(id(rule), (None, self._not_asked()))
            found.append(
                msgspec.structs.replace(
                    whole,
                    rule=rule.name,
                    place=rule.place,
                    effect=_effect(rule.deny, rule.audit or policy.audit),
                    mismatch=mismatch,
                    note=note,
                )
            )
        return found

    def _not_asked(self) -> str:
        if self._opener is None:
            return "has no effect: another rule decides about the connection"
        name = f"{self._opener.policy.name} {self._opener.rule.name}"
        return f"has no effect but that calls are recorded: {name} allows everything on this port"


def _mismatch(index: RuleIndex | KafkaIndex, order: int, pieces: Sequence[ApiCall]) -> tuple[str | None, str]:
    """A rule's first mismatch, and a note if it matches only some of the pieces of a call that are judged one by one."""
    found = [(piece, index.mismatch(order, piece)) for piece in pieces]
    held = [piece for piece, mismatch in found if mismatch is None]
    if not held:
        return found[0][1], _too_far(index, order, found[0][0], found[0][1])
    if len(held) == len(found):
        return None, ""
    names = dict.fromkeys(" ".join(piece.resources) or "all topics" for piece in held)
    return None, f"matches for {', '.join(names)}"


def _too_far(index: RuleIndex | KafkaIndex, order: int, piece: ApiCall, mismatch: str | None) -> str:
    """Why a rule of Kafka does not allow what Kafka authorises on something else than what the rule has conditions on."""
    if not isinstance(index, KafkaIndex) or not index.goes_too_far(order, piece):
        return ""
    asks = " and ".join(asked_of(piece))
    needed = "name the API by apiKey" + ", without topic, group and id," * (reach_of_call(piece) is Reach.CLUSTER)
    return f"no match: {mismatch} (Kafka asks for {asks}: a rule has to {needed} or to have no condition)"


def _effect(deny: bool, audit: bool) -> str:
    return ("audit " if audit else "") + ("deny" if deny else "allow")
