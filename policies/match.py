"""Whether L7 rules match a call: the part of a decision that has to be fast.

A `RuleIndex` holds all rules of one list. Path, method and host of a call are looked up once, in dictionaries (literals) and
in `re2.Set`s (everything else), and only the rules whose three conditions all hold are looked at one by one. So the cost of a
call depends on how many rules match it, not on how many there are.

Two things make sure that doubt never opens anything:

* Regular expressions run over bytes (RE2's Latin-1 mode). Every byte string is valid there, so no input, obs-text of RFC 9110
  section 5.5 included, can make a pattern fail to decide. A pattern must be ASCII for the same reason (`load` checks it).
* Where a text can be read in several ways, an allow rule must hold for all of them and a deny rule for any.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote_to_bytes

import msgspec
import re2

from parsers.contract import ApiCall, HeaderEdit
from policies.model import (
    GrpcRule,
    HeaderMatch,
    HttpRule,
    L7Rule,
    Mismatch,
    PathKind,
    PathMatch,
    ValueKind,
    ValueMatch,
)

# What one set of patterns may use for its program and its automaton. 10,000 patterns of 40 characters need about 20 MiB; more
# memory than this in one table is a policy that nobody can have meant.
MAX_SET_MEMORY = 256 << 20
# What one pattern may use: RE2's repetitions multiply, and 1 MiB holds any that a person writes.
MAX_PATTERN_MEMORY = 1 << 20
# Commas in a header whose members a deny rule looks at one by one. With more, which no program sends, it holds: 64 KiB of
# commas and a thousand such rules would take a minute.
MAX_MEMBERS = 256

ANY = 0  # the id of "no condition"

_META = re.compile(r"[\\.+*?()|\[\]{}^$]")
_PATH_PARAMETER = re.compile(r";[^/]*")
_PORT_OF_HOST = re.compile(r":[0-9]+\Z")
_TEMPLATE_PART = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


class UndecidedError(Exception):
    """A pattern could not be evaluated. Its holder must deny."""


class Values(msgspec.Struct, frozen=True):
    """One way to read the headers or the query of a call: every value of every name."""

    by_name: Mapping[str, Sequence[str]]


class Match(msgspec.Struct, frozen=True):
    """A rule that holds for a call, with what its ``headerMatches`` ask for."""

    order: int
    edits: tuple[HeaderEdit, ...] = ()
    notes: tuple[str, ...] = ()


def options(memory: int, dot_nl: bool = False) -> "re2.Options":
    """How every pattern of a policy is compiled."""
    chosen = re2.Options()
    chosen.encoding = re2.Options.Encoding.LATIN1
    chosen.max_mem = memory
    chosen.never_capture = True
    chosen.log_errors = False
    chosen.dot_nl = dot_nl
    return chosen


def compile_pattern(pattern: str, dot_nl: bool = False) -> "re2._Regexp":
    """One pattern, for byte strings. Raises `re2.error`."""
    return re2.compile(pattern.encode("ascii"), options=options(MAX_PATTERN_MEMORY, dot_nl))


def is_literal(pattern: str) -> bool:
    """Whether a pattern matches its own text and nothing else."""
    return _META.search(pattern) is None


def path_regex(path: PathMatch) -> str:
    """The RE2 pattern of a path condition: over the target for ``path``, over the target without its query for the others."""
    if path.kind is PathKind.REGEX:
        return path.text
    if path.kind is PathKind.PREFIX:
        prefix = path.text.rstrip("/")
        return f"{re2.escape(prefix)}(/.*)?"
    literals = (re2.escape(literal) for literal in _TEMPLATE_PART.split(path.text))
    return "[^/]+".join(literals)


def grpc_path(rule: GrpcRule) -> PathMatch | None:
    """A gRPC call's path is ``/service/method`` (the gRPC-over-HTTP/2 document's ABNF), so its rules are path rules."""
    if rule.service is None and rule.method is None:
        return None
    service = re2.escape(rule.service) if rule.service is not None else "[^/?]+"
    method = re2.escape(rule.method) if rule.method is not None else "[^/?]+"
    return PathMatch(PathKind.REGEX, f"/{service}/{method}")


class PatternTable:
    """Which of many conditions on one text hold."""

    def __init__(self, dot_nl: bool) -> None:
        self._dot_nl = dot_nl
        self._ids: dict[str, int] = {}
        self._literals: dict[str, int] = {}
        self._set_ids: list[int] = [ANY]
        self._set: re2.Set | None = None

    def add(self, pattern: str, new_id: int) -> int:
        """The id of ``pattern``, which is ``new_id`` when it has not been added before."""
        known = self._ids.setdefault(pattern, new_id)
        if known == new_id and is_literal(pattern):
            self._literals[pattern] = new_id
        return known

    def compile(self) -> None:
        """To be called once, after the last `add`. Raises `UndecidedError` when `MAX_SET_MEMORY` is too small."""
        patterns = [(pattern, id_) for pattern, id_ in self._ids.items() if pattern not in self._literals]
        if not patterns:
            return
        self._set = re2.Set.FullMatchSet(options(MAX_SET_MEMORY, self._dot_nl))
        # A set that runs out of memory reports no match at all, which would open a deny rule. This pattern matches
        # everything: when it is missing from the answer, there was no answer.
        self._set.Add("(?s).*")
        try:
            for pattern, id_ in patterns:
                self._set.Add(pattern)
                self._set_ids.append(id_)
            self._set.Compile()
        except re2.error as error:
            raise UndecidedError("the patterns need too much memory") from error

    def holds(self, pattern: str, text: str) -> bool:
        """Whether one condition that was added holds for ``text`` (Latin-1)."""
        return self._ids[pattern] in self.matching(text)

    def matching(self, text: str) -> list[int]:
        """The ids whose conditions hold for ``text`` (Latin-1)."""
        literal = self._literals.get(text)
        found = [] if literal is None else [literal]
        if self._set is not None:
            hits = self._set.Match(text.encode("latin-1"))
            if not hits or 0 not in hits:
                raise UndecidedError("a set of patterns ran out of memory")
            found += [self._set_ids[hit] for hit in hits if hit]
        return found


class RuleIndex:
    """All rules of one list, ready to be asked. ``rules`` are in the order in which they are reported.

    ``deny`` says that the rules forbid: they hold as soon as one reading of the call satisfies them.
    """

    def __init__(self, rules: Sequence[HttpRule | GrpcRule], secrets: Mapping[tuple[str, str], str], deny: bool) -> None:
        self.rules = rules
        self._deny = deny
        self._secrets = secrets
        self._target = PatternTable(deny)
        self._bare = PatternTable(deny)
        self._method = PatternTable(deny)
        self._host = PatternTable(deny)
        self._keys: list[tuple[int, int, int]] = []
        self._by_key: dict[tuple[int, int, int], list[int]] = {}
        self._rest: list[tuple[_Values, ...]] = []
        for order, rule in enumerate(rules):
            self._add(order, rule)
        for table in (self._target, self._bare, self._method, self._host):
            table.compile()
        wanted = [match for rule in rules if isinstance(rule, HttpRule) for match in rule.header_matches]
        # Header actions of every matching rule run, so with one such rule the first match is not enough.
        self.changes_headers = bool(wanted)
        self.lacks_secrets = any(match.secret is not None and self._expected(match) is None for match in wanted)

    def _add(self, order: int, rule: HttpRule | GrpcRule) -> None:
        new_id = order + 1
        key = (ANY, ANY, ANY)
        rest: list[_Values] = [_Values(header, query=False, deny=self._deny) for header in rule.headers]
        if isinstance(rule, HttpRule):
            key = (
                self._path_id(rule.path, new_id),
                ANY if rule.method is None else self._method.add(rule.method, new_id),
                ANY if rule.host is None else self._host.add(rule.host, new_id),
            )
            rest.extend(_Values(parameter, query=True, deny=self._deny) for parameter in rule.query)
        else:
            key = (self._path_id(grpc_path(rule), new_id), ANY, ANY)
        self._keys.append(key)
        self._by_key.setdefault(key, []).append(order)
        self._rest.append(tuple(rest))

    def _path_id(self, path: PathMatch | None, new_id: int) -> int:
        if path is None:
            return ANY
        # Ids of the two tables must differ: a bare path's are negative.
        if path.kind is PathKind.REGEX:
            return self._target.add(path.text, new_id)
        return self._bare.add(path_regex(path), -new_id)

    def _held(self, call: ApiCall) -> tuple[list[int], list[int], list[int]]:
        """The ids of the conditions on path, method and host that hold for ``call``."""
        paths, methods, hosts = [ANY], [ANY], [ANY]
        if call.path is not None:
            bare = call.path.partition("?")[0]
            paths += self._target.matching(call.path) + self._bare.matching(bare)
            if self._deny:
                for reading in _other_paths(call.path, bare):
                    paths += self._target.matching(reading) + self._bare.matching(reading)
        if call.method is not None:
            methods += self._method.matching(call.method)
            if self._deny and call.method != call.method.upper():
                methods += self._method.matching(call.method.upper())  # some servers take "get" for GET
        if call.host is not None:
            hosts += self._host.matching(call.host)
            bare_host = _PORT_OF_HOST.sub("", call.host)
            if self._deny and bare_host != call.host:
                hosts += self._host.matching(bare_host)  # "admin:80" reaches the same virtual host as "admin"
        return paths, methods, hosts

    def _candidates(self, call: ApiCall) -> list[int]:
        paths, methods, hosts = self._held(call)
        found: set[int] = set()
        if len(paths) * len(methods) * len(hosts) <= len(self._by_key):
            for path in paths:
                for method in methods:
                    for host in hosts:
                        found.update(self._by_key.get((path, method, host), ()))
        else:
            for (path, method, host), orders in self._by_key.items():
                if path in paths and method in methods and host in hosts:
                    found.update(orders)
        return sorted(found)

    def matches(self, call: ApiCall) -> tuple[list[Match], bool]:
        """The rules that hold for ``call``, first reported first, and whether one failed only for want of a secret.

        Only the first one, unless some rule changes headers. Raises `UndecidedError`, and `UnicodeEncodeError` for text that
        is not Latin-1.
        """
        found: list[Match] = []
        secret_missing = False
        reading = Reading(call)
        for order in self._candidates(call):
            rest = self._rest[order]
            if rest and not all(condition.holds(reading) for condition in rest):
                continue
            if not self.changes_headers:
                return [Match(order)], False
            match = self._header_actions(order, reading)
            if isinstance(match, Match):
                found.append(match)
            else:
                secret_missing = secret_missing or match == SECRET_MISSING
        return found, secret_missing

    def _header_actions(self, order: int, reading: "Reading") -> "Match | str":
        """The match, or the name of the condition that fails."""
        rule = self.rules[order]
        edits: list[HeaderEdit] = []
        notes: list[str] = []
        for wanted in rule.header_matches if isinstance(rule, HttpRule) else ():
            expected = self._expected(wanted)
            if expected is None and wanted.secret is not None:
                return SECRET_MISSING
            values = reading.headers.by_name.get(wanted.name, ())
            if values and (expected is None or ",".join(values) == expected):
                continue
            if wanted.mismatch is Mismatch.FAIL:
                return f"headerMatches {wanted.name}"
            if wanted.mismatch is Mismatch.LOG:
                notes.append(f"header-mismatch:{wanted.name}")
            elif wanted.mismatch is not Mismatch.DELETE:
                edits.append(HeaderEdit(wanted.mismatch.lower(), wanted.name, expected))
            elif values:
                edits.append(HeaderEdit("delete", wanted.name))
        return Match(order, tuple(edits), tuple(notes))

    def _expected(self, wanted: HeaderMatch) -> str | None:
        value = self._secrets.get(wanted.secret, wanted.value) if wanted.secret is not None else wanted.value
        return None if value is None else on_wire(value)

    def mismatch(self, order: int, call: ApiCall) -> str | None:
        """The first condition of a rule that does not hold for ``call``, by the document's name; None when all hold."""
        held = zip(("path", "method", "host"), self._keys[order], self._held(call), strict=True)
        for field, id_, ids in held:
            if id_ not in ids:
                return self._field_name(order, field)
        reading = Reading(call)
        for condition in self._rest[order]:
            if not condition.holds(reading):
                return condition.field
        match = self._header_actions(order, reading)
        return match if isinstance(match, str) else None

    def _field_name(self, order: int, field: str) -> str:
        rule = self.rules[order]
        if isinstance(rule, GrpcRule):
            return "service/method"
        return rule.path.kind.value if field == "path" and rule.path is not None else field


SECRET_MISSING = "secret-missing"  # noqa: S105 - a reason, not a secret


def _other_paths(target: str, bare: str) -> set[str]:
    """What else a server may make of a target. A rule that denies "/admin" must not be escaped by any of it."""
    readings = {bare}  # "/admin?x"
    if ";" in bare:
        readings.add(_PATH_PARAMETER.sub("", bare))  # "/admin;x", of which servlet containers make "/admin"
    if "%" in bare:
        decoded = _decode(bare)  # "/a%3Ab": RFC 3986 keeps it apart from "/a:b", many servers do not
        readings |= {decoded, _PATH_PARAMETER.sub("", decoded)}
    readings.discard(target)
    return readings


class Reading:
    """The headers and the query of a call, taken apart when a rule asks for them."""

    def __init__(self, call: ApiCall) -> None:
        self._call = call
        self._headers: Values | None = None
        self._queries: list[Values] | None = None

    @property
    def headers(self) -> Values:
        if self._headers is None:
            self._headers = _collect(self._call.headers)
        return self._headers

    @property
    def queries(self) -> list[Values]:
        """Every way in which a server may read the query: with ``+`` as itself or as a space, with ``;`` separating or not."""
        if self._queries is None:
            query = (self._call.path or "").partition("?")[2]
            separators = ("&", "[&;]") if ";" in query else ("&",)
            spaces = ("+", " ") if "+" in query else ("+",)
            self._queries = [
                _collect(_pair(part, space) for part in re.split(separator, query) if part)
                for separator in separators
                for space in spaces
            ]
        return self._queries


def _pair(part: str, space: str) -> tuple[str, str]:
    name, _, value = part.replace("+", space).partition("=")
    return _decode(name), _decode(value)


def _decode(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("latin-1")


def _collect(pairs: Iterable[tuple[str, str]]) -> Values:
    by_name: dict[str, list[str]] = {}
    for name, value in pairs:
        by_name.setdefault(name, []).append(value)
    return Values(by_name)


def on_wire(text: str) -> str:
    """A document's text as calls spell it: its UTF-8 bytes, each as one Latin-1 character."""
    return text.encode().decode("latin-1")


class _Values:
    """One condition on a header or a query parameter."""

    def __init__(self, wanted: ValueMatch, query: bool, deny: bool) -> None:
        self.field = f"{'query' if query else 'header'} {wanted.name}"
        self._query = query
        self._deny = deny
        self._name = on_wire(wanted.name)
        self._kind = wanted.kind
        self._value = on_wire(wanted.value)
        self._regex = compile_pattern(wanted.value, deny) if wanted.kind is ValueKind.REGEX else None

    def holds(self, reading: Reading) -> bool:
        if self._query:
            verdicts = (self._holds_for(read.by_name.get(self._name, ()), joined=False) for read in reading.queries)
            return any(verdicts) if self._deny else all(verdicts)
        return self._holds_for(reading.headers.by_name.get(self._name, ()), joined=True)

    def _holds_for(self, values: Sequence[str], joined: bool) -> bool:
        """``joined``: several values are also one list (RFC 9110 section 5.2), as header lines are."""
        if not values or self._kind is ValueKind.PRESENT:
            return bool(values)
        readings = [",".join(values), *values] if joined else values
        if self._deny:
            return any(map(self._is, readings)) or (joined and self._holds_for_member(values))
        if joined and self._kind is ValueKind.EXACT:
            return self._is(readings[0])
        # All of them, so that a rule is never satisfied by one value of many.
        return all(map(self._is, readings))

    def _holds_for_member(self, values: Sequence[str]) -> bool:
        """One line with commas says the same as several lines (RFC 9110 section 5.2)."""
        if sum(value.count(",") for value in values) > MAX_MEMBERS:
            return True
        return any(self._is(member.strip(" \t")) for value in values for member in value.split(","))

    def _is(self, value: str) -> bool:
        if self._regex is not None:
            return self._regex.fullmatch(value.encode("latin-1")) is not None
        return value.startswith(self._value) if self._kind is ValueKind.PREFIX else value == self._value


def looks_at_query(rule: L7Rule) -> bool:
    """Whether a rule needs to know for certain which query the server will see: its path with the query, or parameters."""
    if isinstance(rule, HttpRule):
        return bool(rule.query) or (rule.path is not None and rule.path.kind is PathKind.REGEX)
    return looks_at_path(rule)


def headers_of(rule: L7Rule) -> frozenset[str]:
    """The header fields (lower-cased) that a rule looks at."""
    names = [header.name for header in rule.headers]
    if isinstance(rule, HttpRule):
        names += [match.name for match in rule.header_matches]
    return frozenset(name.lower() for name in names)


def looks_at_path(rule: L7Rule) -> bool:
    """Whether a rule needs to know for certain which path the server will see."""
    if isinstance(rule, HttpRule):
        return rule.path is not None or bool(rule.query)
    return isinstance(rule, GrpcRule) and grpc_path(rule) is not None
