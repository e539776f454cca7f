"""What policy demands of a request head, in the order in which a head can show it.

A pair's rules become one list of `Demand`s over *facts*: the method, which path patterns match the target, which patterns
the host and the named headers match. When the request line has been read, what is left is a `Residue` over headers only. It
shrinks with every header that has been read, and equal residues are one state for the kernel.

The one direction in which this may err is towards the proxy. A rule that allows and cannot be read exactly is left out. Of a
rule that denies, a condition that cannot be read exactly is taken to hold. A rule that would change headers or leave a note
counts as one that denies, because the kernel can do neither. Each header that a rule names counts as read once: a head in
which it occurs twice is for the proxy (docs/policies.md, "Several values").
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum

import msgspec

from policies.automaton import ANYTHING, Budget, Choice, Node, Sequenced, Unsupported, literal, parse
from policies.decide import Entry, L7Plan, Pair, Rank, View
from policies.match import UndecidedError, compile_pattern, is_literal, on_wire, path_regex
from policies.model import HeaderMatch, HttpRule, Mismatch, PathKind, PathMatch, ValueKind, ValueMatch

# Rules of one pair. A table has room for some 3,000 states of paths, and a path that differs from the others needs three or
# more of them; so more rules than this would be work for nothing.
MAX_RULES = 1000

# Methods that are proven although no rule names them. Any other that a rule names literally comes on top.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_METHOD_MAX = 32  # characters, as in the parser

HOST = ":host"  # stands for the host, which rules compare in its canonical form; no header has this name

Atom = tuple[str, int]  # a header's name (or HOST), and the number of one of the patterns that are asked of it
Term = frozenset[Atom]  # all of these must hold
Terms = frozenset[Term]  # one of these must hold
# What a deny rule for a host, and for a value of a header, holds for as well (policies/match.py).
_PORT = parse("(:[0-9]+)?")
_SEVERAL = parse("(?s).*,.*")
_ALWAYS: Terms = frozenset({frozenset()})
_NEVER: Terms = frozenset()


class NotProvableError(Exception):
    """No head of this pair can be proven; ``reason`` is a stable kebab-case token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Reading(Enum):
    """What of a target a path pattern is compared with."""

    WHOLE = 0
    BARE = 1  # without the query
    EITHER = 2  # a deny rule's: with the query or without


class Demand(msgspec.Struct, frozen=True, eq=False):
    """One rule. ``view`` is the view that it allows the call in, None when a call that it matches is not proven.

    ``targets`` are the numbers of patterns of the target, all of which must match.
    """

    view: int | None
    methods: frozenset[str] | None
    targets: frozenset[int]
    headers: Term


class Residue(msgspec.Struct, frozen=True, cache_hash=True):
    """What headers have still to show: every one of ``allow`` must come to hold, ``forbid`` must not."""

    allow: frozenset[Terms]
    forbid: Terms

    @property
    def names(self) -> frozenset[str]:
        """The headers that still matter."""
        return frozenset(name for terms in (*self.allow, self.forbid) for term in terms for name, _ in term)

    def asked(self, name: str) -> frozenset[int]:
        """The patterns that are still asked of one header."""
        return frozenset(number for terms in (*self.allow, self.forbid) for term in terms for of, number in term if of == name)


def _known(terms: Terms, name: str, matched: frozenset[int]) -> Iterator[Term]:
    """What is left of terms when it is known which patterns a header matches."""
    for term in terms:
        if all(of != name or number in matched for of, number in term):
            yield frozenset(atom for atom in term if atom[0] != name)


class Demands:
    """All rules of a pair. Raises `NotProvableError`.

    ``budget`` pays for what is asked later, which then raises `TooLarge`. ``unasked`` says of a header's name that the head's
    grammar keeps it to itself. Rules with more than ``most_headers`` conditions on headers are not read exactly. ``left_out``
    has the reason for every allow rule that is missing, by the names of policy and rule.
    """

    def __init__(self, pair: Pair, budget: Budget, unasked: Callable[[str], bool], most_headers: int | None = None) -> None:
        self._budget = budget
        self._unasked = unasked
        self._most_headers = most_headers
        self.targets: list[tuple[Reading, Node]] = []
        self.values: dict[str, list[Node]] = {}
        self.left_out: dict[tuple[str, str], str] = {}
        self._numbers: dict[object, int] = {}
        self._rules: list[Demand] = []
        self._views = 0
        self._method_matches: dict[str, frozenset[str]] = {}
        self._simple: dict[Terms, Terms] = {}
        self.refuses_bodies = pair.refuses_bodies
        views = [view for side in pair.sides for view in side.views]
        self.methods = METHODS + tuple(sorted(_named_methods(views)))
        for view in views:
            self._add_view(view)

    @property
    def names(self) -> frozenset[str]:
        """The headers that rules name."""
        return frozenset(self.values.keys() - {HOST})

    def of_method(self, method: str) -> tuple[int, ...]:
        """The numbers of the rules that a call with this method can match."""
        return tuple(n for n, rule in enumerate(self._rules) if rule.methods is None or method in rule.methods)

    def targets_of(self, rules: Iterable[int]) -> tuple[int, ...]:
        """The numbers of the target's patterns in these rules."""
        return tuple(sorted({target for number in rules for target in self._rules[number].targets}))

    def residue(self, rules: Iterable[int], targets: frozenset[int]) -> Residue | None:
        """What is left of ``rules`` behind a target that matches exactly these patterns; None: not proven."""
        self._budget.spend(len(self._rules) // 4)
        allow: list[list[Term]] = [[] for _ in range(self._views)]
        forbid: list[Term] = []
        for number in rules:
            rule = self._rules[number]
            if rule.targets <= targets:
                (forbid if rule.view is None else allow[rule.view]).append(rule.headers)
        return self._residue(allow, forbid)

    def after(self, residue: Residue, name: str, matched: frozenset[int]) -> Residue | None:
        """What is left when the header ``name`` has been read and matches exactly these patterns; None: not proven."""
        return self._residue([_known(terms, name, matched) for terms in residue.allow], _known(residue.forbid, name, matched))

    def _residue(self, allow: Iterable[Iterable[Term]], forbid: Iterable[Term]) -> Residue | None:
        wanted = {self._simplest(frozenset(terms)) for terms in allow}
        forbidden = self._simplest(frozenset(forbid))
        if _NEVER in wanted or forbidden == _ALWAYS:
            return None
        return Residue(frozenset(wanted - {_ALWAYS}), forbidden)

    def _simplest(self, terms: Terms) -> Terms:
        """Without terms that another one implies. This form is unique, because no condition is negated."""
        known = self._simple.get(terms)
        if known is None:
            known = terms
            if len({len(term) for term in terms}) > 1:
                self._budget.spend(len(terms) ** 2 // 8)
                known = frozenset(term for term in terms if not any(other < term for other in terms))
            self._budget.spend(len(terms))
            self._simple[terms] = known
        return known

    def _add_view(self, view: View) -> None:
        if view.connection.rank is not Rank.ALLOW:
            raise NotProvableError("connection-not-allowed")
        plan = view.l7
        if plan is None:
            return
        if not plan.kinds <= {"http"}:
            raise NotProvableError("protocol")
        if sum(len(rules.rules) for _, rules in plan.lists) + len(self._rules) > MAX_RULES:
            raise NotProvableError("too-many-rules")
        _try_out(plan)
        for rules in (plan.deny, plan.audit_deny):
            for _, rule in _http(rules.entries, rules.rules):
                self._forbid(rule)
        if plan.open_by is not None:  # allow rules are not asked, so they change nothing either
            return
        number: int | None = None
        if plan.default_allow is None:
            number = self._views
            self._views += 1
        for entry, rule in _http(plan.allow.entries, plan.allow.rules):
            reason = self._changes(rule)
            if reason is not None:
                self._forbid(rule)
            elif number is not None:
                reason = self._allow(number, rule)
            if reason is not None:
                self.left_out[(entry.policy.name, rule.name)] = reason

    @staticmethod
    def _changes(rule: HttpRule) -> str | None:
        """Why a call that the rule allows may be more than allowed: its headers are changed, or a note is taken."""
        if any(match.secret is not None for match in rule.header_matches):
            return "secret"
        return "header-actions" if any(match.mismatch is not Mismatch.FAIL for match in rule.header_matches) else None

    def _allow(self, view: int, rule: HttpRule) -> str | None:
        """Add a rule that allows, or say why it is left out."""
        wanted = (*rule.headers, *map(_as_condition, rule.header_matches))
        if rule.query:
            return "query"
        if any(self._unasked(header.name) for header in wanted):
            return "framing-header"
        if self._is_too_much(len(wanted)):
            return "too-many-states"
        try:
            targets = frozenset() if rule.path is None else frozenset({self._path(rule.path, deny=False)})
            atoms = [self._header(header, deny=False) for header in wanted]
            if rule.host is not None:
                atoms.append(self._atom(HOST, parse(rule.host)))
        except Unsupported:
            return "unsupported-pattern"
        self._rules.append(Demand(view, self._methods_of(rule), targets, frozenset(atoms)))
        return None

    def _forbid(self, rule: HttpRule) -> None:
        """Add a rule that denies, or that does what the kernel cannot. What cannot be read is taken to hold."""
        wanted = [] if self._is_too_much(len(rule.headers)) else [h for h in rule.headers if not self._unasked(h.name)]
        atoms = [self._header(header, deny=True) for header in wanted if self._is_readable(header)]
        if rule.host is not None and _is_known(rule.host):
            atoms.append(self._atom(HOST, Sequenced((parse(rule.host, dot_nl=True), _PORT))))
        targets = {self._target(Reading.WHOLE, _query_with(parameter.name)) for parameter in rule.query}
        if rule.path is not None and _is_known(path_regex(rule.path)):
            targets.add(self._path(rule.path, deny=True))
        self._rules.append(Demand(None, self._methods_of(rule), frozenset(targets), frozenset(atoms)))

    @staticmethod
    def _is_readable(header: ValueMatch) -> bool:
        return header.kind is not ValueKind.REGEX or _is_known(header.value)

    def _is_too_much(self, headers: int) -> bool:
        return self._most_headers is not None and headers > self._most_headers

    def _methods_of(self, rule: HttpRule) -> frozenset[str] | None:
        if rule.method is None:
            return None
        known = self._method_matches.get(rule.method)
        if known is None:
            pattern = compile_pattern(rule.method)
            known = frozenset(method for method in self.methods if pattern.fullmatch(method.encode()) is not None)
            self._method_matches[rule.method] = known
        return known

    def _path(self, path: PathMatch, deny: bool) -> int:
        reading = Reading.BARE
        if path.kind is PathKind.REGEX:
            reading = Reading.EITHER if deny else Reading.WHOLE
        return self._target(reading, parse(path_regex(path), deny))

    def _target(self, reading: Reading, node: Node) -> int:
        number = self._numbers.get((reading, node))
        if number is None:
            self.targets.append((reading, node))
            number = self._numbers[(reading, node)] = len(self.targets) - 1
        return number

    def _header(self, wanted: ValueMatch, deny: bool) -> Atom:
        value = self._value(wanted, deny)
        # One line may have several values, any of which may be what is denied.
        return self._atom(wanted.name, Choice((value, _SEVERAL)) if deny else value)

    @staticmethod
    def _value(wanted: ValueMatch, deny: bool) -> Node:
        value = on_wire(wanted.value).encode("latin-1")
        if wanted.kind is ValueKind.PRESENT:
            return ANYTHING
        if wanted.kind is ValueKind.REGEX:
            return parse(wanted.value, deny)
        if wanted.kind is ValueKind.PREFIX:
            return Sequenced((literal(value), ANYTHING))
        return literal(value)

    def _atom(self, name: str, node: Node) -> Atom:
        number = self._numbers.get((name, node))
        if number is None:
            nodes = self.values.setdefault(name, [])
            nodes.append(node)
            number = self._numbers[(name, node)] = len(nodes) - 1
        return name, number


def _http(entries: Sequence[Entry], rules: Sequence[object]) -> list[tuple[Entry, HttpRule]]:
    return [(entry, rule) for entry, rule in zip(entries, rules, strict=True) if isinstance(rule, HttpRule)]


def _query_with(name: str) -> Node:
    """Targets whose query may have a parameter of this name, whatever separates parameters."""
    if any(character in name for character in " +%"):  # "+" may be read as a space, and "%" never comes here
        return parse(r"[^?]*\?.*")
    return Sequenced((parse(r"[^?]*\?(.*[&;])?"), literal(on_wire(name).encode("latin-1")), parse("([=&;].*)?")))


def _is_known(pattern: str) -> bool:
    try:
        parse(pattern)
    except Unsupported:
        return False
    return True


def _named_methods(views: Iterable[View]) -> set[str]:
    rules = (rule for view in views if view.l7 is not None for _, listed in view.l7.lists for rule in listed.rules)
    named = {rule.method for rule in rules if isinstance(rule, HttpRule) and rule.method is not None}
    return {
        method
        for method in named.difference(METHODS)
        if is_literal(method) and method.isalpha() and method.isupper() and len(method) <= _METHOD_MAX and method != "CONNECT"
    }


def _as_condition(match: HeaderMatch) -> ValueMatch:
    """A ``headerMatches`` entry that changes nothing is a condition like any other."""
    return ValueMatch(match.name, ValueKind.PRESENT if match.value is None else ValueKind.EXACT, match.value or "")


def _try_out(plan: L7Plan) -> None:
    """Rules that the proxy cannot evaluate deny every call, so the kernel must not allow any."""
    try:
        for _, rules in plan.lists:
            _ = rules.index
    except UndecidedError:
        raise NotProvableError("pattern-undecided") from None
