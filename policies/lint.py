"""What is allowed to be written and probably not meant. docs/policies.md has a table of the codes."""

import re
from collections.abc import Iterable, Iterator, Sequence

from policies import lint_kafka
from policies.match import compile_pattern, is_literal, looks_at_path
from policies.model import (
    BODILESS_METHODS,
    RESERVED,
    STRICT,
    AnyL7Rule,
    Bundle,
    CidrRule,
    Direction,
    EncodedSlash,
    Entity,
    GrpcRule,
    HttpRule,
    KafkaRule,
    PathKind,
    Peers,
    Place,
    Policy,
    PortRule,
    Rule,
    Selector,
    ValueKind,
    Workload,
    is_in_cluster,
)
from policies.nodes import Finding
from policies.spec import entity_of

_BROAD = frozenset({".*", "/.*", ".+", "^.*$", "^/.*$"})
# What no canonical path contains: lower-case hex, encoded unreserved characters, and encodings that are always refused.
_NEVER_IN_PATH = re.compile(r"%[0-9A-F]?[a-f][0-9A-Fa-f]?|%(2D|2E|3\d|4[1-9A-F]|5[0-9A]|5F|6[1-9A-F]|7[0-9A]|7E|2F|5C|00)")


def lint(bundle: Bundle) -> list[Finding]:
    """Every finding, in the order of the text."""
    linter = _Linter(bundle)
    return sorted(set(linter.findings()))


class _Linter:
    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def findings(self) -> Iterator[Finding]:
        for kustomization in self._bundle.kustomizations:
            if kustomization.changes:
                what = (
                    f"kustomize would change these documents ({', '.join(kustomization.changes)}), which are read as they are"
                )
                yield _at(kustomization.place, "SL021", what, "give what 'kustomize build' prints")
        for policy in self._bundle.policies:
            yield from self._of_policy(policy)
            for direction in Direction:
                section = policy.section(direction)
                if section is None:
                    continue
                yield from self._unenforceable(policy, direction)
                for rule in section.rules:
                    yield from self._of_peers(rule)
                    for port_rule in rule.ports or ():
                        yield from self._of_port_rule(policy, direction, rule, port_rule)
        for direction in Direction:
            yield from self._of_all_kafka_rules(direction)

    def _of_all_kafka_rules(self, direction: Direction) -> Iterator[Finding]:
        found: list[KafkaRule] = []
        for policy in self._bundle.policies:
            section = policy.section(direction)
            for rule in section.rules if section is not None else ():
                for port_rule in rule.ports or ():
                    if port_rule.kind == "kafka" and not self._is_default_deny(policy, direction):
                        return  # what no rule is about is allowed
                    found += (one for one in port_rule.rules if isinstance(one, KafkaRule))
        yield from lint_kafka.without_metadata(found)
        yield from lint_kafka.without_commits(found)

    def _selected(self, selector: Selector) -> list[Workload]:
        return [workload for workload in self._bundle.workloads if selector.matches(workload.labels)]

    def _subjects(self, policy: Policy) -> list[Workload]:
        return [workload for workload in self._bundle.workloads if policy.selects(workload.labels)]

    def _of_policy(self, policy: Policy) -> Iterator[Finding]:
        if not self._subjects(policy):
            yield _at(
                policy.place, "SL003", f"the policy {policy.name!r} selects no workload", "check endpointSelector and labels"
            )
        if policy.fail_open:
            yield _at(policy.place, "SL009", f"failOpen: with the agent dead, nothing of {policy.name!r} is enforced")

    def _unenforceable(self, policy: Policy, direction: Direction) -> Iterator[Finding]:
        for workload in self._subjects(policy):
            if workload.cgroups:
                continue
            what = "is enforced only for clients on this host" if direction is Direction.INGRESS else "cannot be enforced here"
            yield _at(
                policy.place,
                "SL005",
                f"{direction} of {workload.name!r}, which has addresses only, {what}",
                "load the policy on the workload's own host, too",
            )

    def _of_peers(self, rule: Rule) -> Iterator[Finding]:
        for selector in rule.peers.endpoints if rule.peers is not None else ():
            if self._selected(selector):
                continue
            entity = entity_of(selector)
            if entity is None or any(f"{RESERVED}{entity}" in workload.labels for workload in self._bundle.workloads):
                yield _at(rule.place, "SL004", f"a selector in the rule {rule.name!r} selects no workload")
            elif entity != "none":
                hint = f'a Workload with the label "{RESERVED}{entity}": "" and the addresses'
                yield _at(rule.place, "SL004", f"no document says who the entity {entity!r} is: it selects nobody", hint)

    def _of_port_rule(self, policy: Policy, direction: Direction, rule: Rule, port_rule: PortRule) -> Iterator[Finding]:
        if port_rule.opaque_allowed:
            yield _at(port_rule.place, "SL008", "opaque: allow lets any unrecognised protocol through, unread")
        if port_rule.kind is None:
            return
        if port_rule.bodies_refused and not any(map(_allows_bodiless, port_rule.rules)):
            methods = ", ".join(sorted(BODILESS_METHODS))
            yield _at(port_rule.place, "SL018", f"bodilessMethods: refuse has no effect: no rule here allows {methods}")
        if port_rule.rules and all(one.deny for one in port_rule.rules) and self._is_default_deny(policy, direction):
            yield _at(port_rule.place, "SL014", "only deny rules: this entry allows no call", "add an allow rule, such as {}")
        opener = self._opener(policy, direction, rule, port_rule)
        if opener is not None:
            yield _at(
                port_rule.place,
                "SL001",
                f"these L7 rules deny nothing: the rule at {opener.file}:{opener.line} allows everything on the port",
                "give that rule L7 rules, too, or remove one of them; if calls are to be recorded only, write [{}]",
            )
        yield from lint_kafka.of_rules([one for one in port_rule.rules if isinstance(one, KafkaRule)])
        yield from _unreachable([one for one in port_rule.rules if not isinstance(one, KafkaRule)])
        for one in port_rule.rules:
            yield from _of_headers(one)
            if isinstance(one, HttpRule):
                yield from self._of_http_rule(one, _takes_encoded_slashes(port_rule))
        yield from self._of_slashes(policy, direction, port_rule)

    def _of_slashes(self, policy: Policy, direction: Direction, port_rule: PortRule) -> Iterator[Finding]:
        if port_rule.normalise is None:
            return
        if not any(map(looks_at_path, port_rule.rules)):
            yield _at(port_rule.place, "SL020", "normalise has no effect: no rule here looks at the path")
            return
        subjects = self._subjects(policy)
        others = [p for p in self._bundle.policies if any(p.selects(workload.labels) for workload in subjects)]
        sections = [section for section in (p.section(direction) for p in others) if section is not None]
        for other in (ports for section in sections for rule in section.rules for ports in rule.ports or ()):
            meets = any(mine.overlaps(theirs) for mine in port_rule.ports for theirs in other.ports)
            allows = any(looks_at_path(one) and not one.deny for one in other.rules)
            if meets and allows and (other.normalise or STRICT) != port_rule.normalise:
                where = f"{other.place.file}:{other.place.line}"
                hint = "say the same there: where both are for one peer, only what both say holds"
                yield _at(port_rule.place, "SL020", f"the entry at {where} says something else of slashes, or nothing", hint)
                return

    @staticmethod
    def _is_default_deny(policy: Policy, direction: Direction) -> bool:
        section = policy.section(direction)
        return section is not None and section.default_deny

    def _opener(self, policy: Policy, direction: Direction, rule: Rule, port_rule: PortRule) -> Place | None:
        """A rule without L7 rules that allows all that ``port_rule`` is about, for all of the same workloads. Beside one, a
        rule that allows every call is how users of Cilium ask to see calls: nothing is wrong with it."""
        if any(one.deny or (not one.audit and _allows_every_call(one)) for one in port_rule.rules):
            return None
        owners = self._subjects(policy)
        for other in self._bundle.policies:
            section = other.section(direction)
            if section is None or other.audit or not all(other.selects(owner.labels) for owner in owners):
                continue
            for candidate in section.rules:
                if candidate.deny or not self._covers(candidate.peers, rule.peers):
                    continue
                if candidate.ports is None:
                    return candidate.place
                for ports in candidate.ports:
                    if ports.kind is None and _covers_ports(ports, port_rule):
                        return ports.place
        return None

    def _covers(self, wide: Peers | None, narrow: Peers | None) -> bool:
        """Whether everybody in ``narrow`` is certainly in ``wide``."""
        if wide is None or Entity.ALL in wide.entities:
            return True
        if narrow is None:
            return False
        if Entity.ALL in narrow.entities or not set(narrow.entities) <= set(wide.entities):
            return False
        outside = Entity.WORLD in wide.entities
        if not outside and not all(_in_cidrs(cidr, wide.cidrs) for cidr in narrow.cidrs):
            return False
        selected = [workload for selector in narrow.endpoints for workload in self._selected(selector)]
        inside = Entity.CLUSTER in wide.entities
        return all(
            (inside and is_in_cluster(w.labels)) or any(selector.matches(w.labels) for selector in wide.endpoints)
            for w in selected
        )

    def _of_http_rule(self, rule: HttpRule, encoded_slashes: bool) -> Iterator[Finding]:
        for field, pattern in (("method", rule.method), ("host", rule.host)):
            if pattern in _BROAD:
                yield _at(rule.place, "SL006", f"{field}: {pattern!r} matches everything", "leave the field out")
        if rule.method is not None and is_literal(rule.method) and rule.method != rule.method.upper():
            yield _at(
                rule.place,
                "SL011",
                f"method: {rule.method!r} matches no method that programs commonly send",
                f"methods are upper-case: {rule.method.upper()}",
            )
        if rule.host is not None and re.search(r"(?<!\\)[A-Z]", rule.host) and "(?i" not in rule.host:
            yield _at(rule.place, "SL011", f"host: {rule.host!r} never matches", "hosts are compared in lower case")
        if rule.path is not None:
            text = rule.path.text
            yield from _of_path(rule.place, rule.path.kind, text, text.replace("%2F", "") if encoded_slashes else text)
        for match in rule.header_matches:
            if match.secret is not None and match.secret not in self._bundle.secrets:
                name = "/".join(match.secret)
                yield _at(rule.place, "SL013", f"the secret {name!r} is missing", "until it is there, this rule allows nothing")


def _takes_encoded_slashes(port_rule: PortRule) -> bool:
    said = port_rule.normalise
    return said is not None and said.encoded_slash is not EncodedSlash.REFUSE


def _of_path(place: Place, kind: PathKind, text: str, encodings: str) -> Iterator[Finding]:
    if _NEVER_IN_PATH.search(encodings):
        hint = (
            "write unreserved characters plainly and other bytes as %XX in upper case; %5C and %00 are always refused, "
            "and %2F where the port does not say what it is (normalise)"
        )
        yield _at(place, "SL012", f"{kind.value}: {text!r} has an encoding that no judged path has", hint)
    if kind is not PathKind.REGEX:
        return
    if text in _BROAD:
        yield _at(place, "SL006", f"path: {text!r} matches every path", "leave the field out")
    elif _cannot_begin_with_slash(text):
        yield _at(place, "SL007", f"path: {text!r} never matches: every path begins with /", f"/{text}")
    elif _looks_like_prefix(text):
        hint = f"{text.rstrip('/')}/.* or pathPrefix"
        yield _at(
            place,
            "SL010",
            f"path: {text!r} looks like a prefix, but the whole path must match",
            f"{text.rstrip('/')}/.* or pathPrefix",
        )


def _of_headers(rule: AnyL7Rule) -> Iterator[Finding]:
    literal = [(one.name, one.value) for one in rule.headers if one.kind is ValueKind.EXACT]
    if isinstance(rule, HttpRule):
        literal += [(one.name, one.value) for one in rule.header_matches if one.value is not None]
    for name in dict.fromkeys(name for name, value in literal if _looks_like_expression(value)):
        # The value is not shown: it may be a secret.
        hint = f"headers: [{{name: {name}, regex: ...}}] of an ApiPolicy takes an expression"
        yield _at(rule.place, "SL022", f"the value of {name} looks like an expression, and is compared as it stands", hint)


def _looks_like_expression(value: str) -> bool:
    """Whether a literal value has what expressions are made of and values seldom: a quantified dot or class, an anchor, an
    escaped class, or a wildcard at either end. (``*/*`` and ``text/*`` are what Accept says.)"""
    if "/" in value and value.endswith("/*"):
        return False
    return re.search(r"\.[*+]|[\])][*+?{]|\(.*\|.*\)|\\[dwsb.]|^\^|\w\$$|^\*.|.\*$", value) is not None


def _looks_like_prefix(pattern: str) -> bool:
    half_anchored = pattern.startswith("^") and not pattern.endswith("$")
    return half_anchored or (is_literal(pattern) and pattern.endswith("/") and pattern != "/")


def _cannot_begin_with_slash(pattern: str) -> bool:
    """Only what is certain: a pattern without alternatives whose first character is a literal that must be there."""
    start = pattern.lstrip("^(")
    return "|" not in pattern and bool(re.match(r"[A-Za-z0-9_%-](?![?*{])", start))


def _allows_bodiless(rule: AnyL7Rule) -> bool:
    """Whether a rule allows calls that ``bodilessMethods: refuse`` is about."""
    if not isinstance(rule, HttpRule) or rule.deny:
        return False
    pattern = None if rule.method is None else compile_pattern(rule.method)
    return pattern is None or any(pattern.fullmatch(method.encode()) is not None for method in BODILESS_METHODS)


def _allows_every_call(rule: AnyL7Rule) -> bool:
    if isinstance(rule, KafkaRule):
        conditions: Sequence[object] = (
            rule.keys,
            rule.api_version,
            rule.client_id,
            rule.topic,
            rule.group,
            rule.transactional_id,
        )
    else:
        conditions = _conditions(rule)[1:]
    return not rule.deny and not any(one is not None and one != () for one in conditions)


def _unreachable(rules: Sequence[HttpRule | GrpcRule]) -> Iterator[Finding]:
    """Rules that another rule of the same list makes pointless."""
    seen: dict[object, str] = {}
    denied = {_conditions(rule) for rule in rules if rule.deny and not rule.audit}
    matches_all = next((rule for rule in rules if not rule.deny and not rule.audit and not any(_conditions(rule)[1:])), None)
    for rule in rules:
        conditions = _conditions(rule)
        twin = seen.setdefault((conditions, rule.deny, rule.audit), rule.name)
        if twin != rule.name:
            yield _at(rule.place, "SL002", f"says the same as {twin!r}")
        elif not rule.deny and conditions in denied:
            yield _at(rule.place, "SL002", "a deny rule says the same, and deny wins")
        elif matches_all is not None and rule is not matches_all and not rule.deny and not _changes_headers(rule):
            yield _at(rule.place, "SL002", f"{matches_all.name!r} allows every call already")


def _conditions(rule: HttpRule | GrpcRule) -> tuple[object, ...]:
    if isinstance(rule, GrpcRule):
        return ("grpc", rule.service, rule.method, rule.headers)
    return ("http", rule.path, rule.method, rule.host, rule.headers, rule.header_matches, rule.query)


def _changes_headers(rule: HttpRule | GrpcRule) -> bool:
    return isinstance(rule, HttpRule) and bool(rule.header_matches)


def _in_cidrs(cidr: CidrRule, wide: Iterable[CidrRule]) -> bool:
    return any(
        not other.excepts and other.cidr.version == cidr.cidr.version and cidr.cidr.subnet_of(other.cidr)  # type: ignore[arg-type]
        for other in wide
    )


def _covers_ports(wide: PortRule, narrow: PortRule) -> bool:
    return all(
        any(o.first <= p.first and p.last <= o.last and o.transport in ("ANY", p.transport) for o in wide.ports)
        for p in narrow.ports
    )


def _at(place: Place, code: str, message: str, hint: str = "") -> Finding:
    return Finding(place.file, place.line, place.column, code, message, hint)
