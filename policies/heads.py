"""HTTP/1.1 request heads that are allowed for certain, as one table for the kernel: policy and framing in one automaton.

`prove` makes the table of a pair. Whatever the table accepts is a head that the proxy's parser accepts and that
`Pair.decide` allows, with nothing to change and nothing to note; it is far from accepting all such heads. A head that it does
not accept is not denied: it goes to the proxy. `run` is the reference for the kernel's runner.

**The grammar here is a small part of the parser's** (`parsers/http1_head.py`): what follows is left to the proxy on purpose,
because proving it would cost states or because servers read it in different ways. tests/property/test_heads_differential.py
compares both.

* Target: origin-form only, without ``%``, ``\\``, ``#``; a path without ``;``, empty segments and dot segments.
* Version 1.1 only.
* Host: exactly one, a name in lower case of at most `HOST_PROOF_MAX` characters without trailing dot, and a port.
* Content-Length: at most one, of 1 to `LENGTH_DIGITS` digits. Connection: only keep-alive.
* No Transfer-Encoding, Upgrade, Expect, TE, Trailer, HTTP2-Settings, Keep-Alive, Proxy-Anything; nor any name that begins as
  these do up to the point that tells them from others in use. Nor a capital letter in the middle of a word of what may still
  become one of the names that are looked at: so the table needs few classes of bytes.
* Field values: no tabs. A field line has at least `FIELD_LINE_MIN` bytes.

**States.** Behind the request line a state knows four things: where in a line it is, whether Host and Content-Length have been
seen, which headers that rules name have been seen, and the `Residue` of policy. So every combination of the last three, a
*section*, costs a hundred states, and the sections are what fills a table.
"""

from array import array
from collections import deque
from collections.abc import Callable
from functools import cached_property

import msgspec

from policies.automaton import (
    LABELS,
    Automaton,
    Budget,
    TooLarge,
    bits,
    mask_of,
    masks,
    merged_columns,
    minimised,
    partition,
    trimmed,
)
from policies.decide import Action, Pair
from policies.demands import HOST, Demands, NotProvableError, Reading, Residue
from policies.model import BODILESS_METHODS, Acceleration

# The table's format, which bpf/ shares.
CLASSES = 64  # cells of a row: one per class of bytes
STATE_BITS = 13  # of a cell: the next state; the action is above them
MAX_STATES = 4096  # 512 KiB of rows for one pair: more of the kernel's memory than one set of rules should have
DEAD = 0
# Steps: a digit of the length; the reply has no body; the head ends here. Of replies: a digit of the status; the head ends here
# and says nothing of a body.
DIGIT, NO_REPLY_BODY, ACCEPT, STATUS, ACCEPT_BARE = 1, 2, 3, 4, 5

# What the grammar bounds, for want of counters in the kernel.
LENGTH_DIGITS = 15  # fits a signed 64-bit integer however it is summed up
HOST_PROOF_MAX = 48  # characters of the name; the parser's HOST_MAX is 261. One or two states each, in every section.
# Together these keep a head within 100 field lines, which is within the parser's FIELDS_MAX: with 101 lines it has at least 14
# bytes of request line, 8 of Host, 4 for each of the few headers that rules name (once each), FIELD_LINE_MIN for each of the
# 92 others, and the empty line: 14 + 8 + 8 * 4 + 92 * 12 + 2 = 1160.
FIELD_LINE_MIN = 12  # bytes with CRLF; "Accept:*/*" is the shortest line that clients commonly send
NAMES_MAX = 8  # different headers that the rules of a pair name
HEAD_PROOF_MAX = 1104  # bytes: the runner gives up behind so many, and the kernel keeps no more of a head

# What making a table may cost. Either is reached in about a second.
MAX_BUILT_STATES = 2 * MAX_STATES  # before equal ones are merged
MAX_WORK = 1_000_000

_TOKEN = mask_of(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_CAPITALS = mask_of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS = mask_of(b"0123456789")
_TEXT = mask_of([*range(0x20, 0x7F), *range(0x80, 0x100)])
_TARGET = mask_of(range(0x21, 0x7F)) & ~mask_of(b"%\\#")
_HOST_NAME = mask_of(b"0123456789abcdefghijklmnopqrstuvwxyz-_")
_VERSION = b"HTTP/1.1\r\n"
_KEEP_ALIVE = b"keep-alive"

_LENGTH, _CONNECTION = "content-length", "connection"
# Names that lead to the proxy: whole ones, and beginnings.
_REFUSED = frozenset({"te", "upgrade"})
_REFUSED_BEGINNINGS = frozenset({"transf", "trail", "expect", "proxy-", "keep-", "http2"})

# What is given up, one after the other, when a table is too large: conditions on headers multiply the sections. How many
# conditions on headers a rule may have, and whether Content-Length must come behind Host.
_ATTEMPTS = ((None, False), (None, True), (1, True), (0, False))
# Requests with these methods are proven without Content-Length only, if no other method has the same rules: half the sections.
_BODILESS = frozenset({"GET", "HEAD"})

_Key = tuple[object, ...]


class HeadTable(msgspec.Struct, frozen=True):
    """The automaton of one pair.

    ``classes`` has the class of every byte. ``rows`` has `CLASSES` cells for every state, each a native 16-bit integer: the
    next state in its low `STATE_BITS` bits, and above them the action of the move (`DIGIT`: length = length * 10 + digit,
    `NO_REPLY_BODY`: the method is HEAD, `ACCEPT`: the head ends with this byte). State `DEAD` is "not proven".

    ``left_out`` has the reason for every allow rule that the table does not know, by the names of policy and rule.
    """

    classes: bytes
    rows: bytes
    start: int
    left_out: tuple[tuple[str, str, str], ...] = ()

    @property
    def states(self) -> int:
        return len(self.rows) // (2 * CLASSES)


class NotProvable(msgspec.Struct, frozen=True):
    """Every call of the pair is for the proxy. ``reason`` is a stable kebab-case token (docs/policies.md has a table)."""

    reason: str


class Proof(msgspec.Struct, frozen=True):
    """A head that is allowed: its length in bytes, that of the body behind it, and whether the reply has no body (HEAD).

    Of a reply's head: its status, whether there is no body whatever the length says, and ``bare``: nothing is said of one.
    """

    head_length: int
    body_length: int
    no_reply_body: bool
    status: int = 0
    bare: bool = False


def run(table: HeadTable, data: bytes) -> Proof | None:
    """What the kernel (sluice_prove) does with the first bytes of a message. None: not proven."""
    cells = memoryview(table.rows).cast("H")
    state = table.start
    length = status = 0
    no_reply_body = False
    for at, byte in enumerate(data[:HEAD_PROOF_MAX]):
        cell = cells[state * CLASSES + table.classes[byte]]
        action = cell >> STATE_BITS
        if action in (ACCEPT, ACCEPT_BARE):
            return Proof(at + 1, length, no_reply_body, status, action == ACCEPT_BARE)
        if action == DIGIT:
            length = length * 10 + byte - ord("0")
        elif action == NO_REPLY_BODY:
            no_reply_body = True
        elif action == STATUS:
            status = status * 10 + byte - ord("0")
        state = cell & (1 << STATE_BITS) - 1
        if state == DEAD:
            return None
    return None


def prove(pair: Pair) -> HeadTable | NotProvable:
    """The table of a pair, or why there is none. Pure and bounded; some milliseconds for the policies that people write."""
    if pair.action is not Action.REDIRECT:
        return NotProvable("not-redirected")
    if pair.acceleration is Acceleration.OFF:
        return NotProvable("acceleration-off")
    if pair.protocol != "http":
        return NotProvable("protocol")
    for most_headers, host_first in _ATTEMPTS:
        try:
            budget = Budget(MAX_WORK)
            demands = Demands(pair, budget, _is_framing, most_headers)
            return _Compiler(demands, budget, host_first).table()
        except NotProvableError as error:
            return NotProvable(error.reason)
        except TooLarge:
            if not demands.names:
                break  # it is the paths that are too many
    return NotProvable("too-many-states")


def _is_framing(name: str) -> bool:
    """Whether rules cannot ask for a header, because the grammar needs it for itself or has no head with it."""
    known = name in _REFUSED or name in ("host", _LENGTH, _CONNECTION)
    return known or any(name.startswith(beginning) for beginning in _REFUSED_BEGINNINGS)


class _Asked(msgspec.Struct, frozen=True, cache_hash=True):
    """What a method asks: the numbers of rules, and whether its requests are proven without Content-Length only."""

    rules: tuple[int, ...]
    bare: bool


class _Section(msgspec.Struct, frozen=True, cache_hash=True):
    """What is known at the beginning of a field line."""

    host: bool
    length: bool  # Content-Length has been seen, or must not come
    named: frozenset[str]  # headers that rules name and that must not occur again
    residue: Residue

    @property
    def names(self) -> frozenset[str]:
        """The headers that rules name and that matter here."""
        return self.named | self.residue.names - {HOST}


class _Targets:
    """The target's patterns of some rules: ``numbers`` are those of `Demands.targets`, ``in_query`` who can match a query."""

    def __init__(self, automaton: Automaton, numbers: tuple[int, ...], in_query: list[int]) -> None:
        self.automaton = automaton
        self.in_query = in_query
        self._numbers = numbers

    def matched(self, state: int) -> frozenset[int]:
        return frozenset(self._numbers[pattern] for pattern in self.automaton.accepted(state))


class _Compiler:
    """Makes one table. Every state has a key, which is the method that makes its row, with the method's arguments.

    The method as such, not one bound to us: that would be a circle, and the agent's collector hardly ever looks for circles.
    """

    def __init__(self, demands: Demands, budget: Budget, host_first: bool) -> None:
        self._demands = demands
        self._budget = budget
        self._host_first = host_first
        methods_of: dict[tuple[int, ...], set[str]] = {}
        for method in demands.methods:
            methods_of.setdefault(demands.of_method(method), set()).add(method)
        self._bodiless = {rules for rules, methods in methods_of.items() if methods <= _BODILESS}
        patterns = [node for _, node in demands.targets] + [node for nodes in demands.values.values() for node in nodes]
        if len(demands.names) > NAMES_MAX:
            raise TooLarge("NAMES_MAX")
        # Every byte that the grammar may treat by itself, then whatever patterns tell apart.
        single = [1 << byte for byte in (*range(0x20, 0x7F), *b"\r\n")]
        parts = partition([*single, _TEXT, *{mask for node in patterns for mask in masks(node)}])
        self._symbols = [next(bits(part)) for part in parts]
        self._symbol_of = {byte: number for number, part in enumerate(parts) for byte in bits(part)}
        self._numbers: dict[_Key, int] = {}
        self._waiting: deque[_Key] = deque()
        self._targets: dict[tuple[int, ...], _Targets] = {}
        self._values: dict[str, Automaton] = {}
        self._fills: dict[int, list[int]] = {}
        self._tries: dict[frozenset[str], dict[str, set[str]]] = {}

    def table(self) -> HeadTable:
        """Raises `TooLarge` and `NotProvableError`."""
        self._state(_Compiler._method, "")
        rows = [[0] * len(self._symbols)]
        while self._waiting:
            make, *arguments = self._waiting.popleft()
            assert callable(make)
            row = [0] * len(self._symbols)
            make(self, row, *arguments)
            rows.append(row)
            self._budget.spend(10)
        column_of, rows = merged_columns(rows)  # at once, because everything below takes time for every column
        rows = trimmed(rows, ACCEPT)
        if not any(rows[1]):
            raise NotProvableError(self._why_nothing())
        again, rows = merged_columns(minimised(rows))
        column_of = [again[column] for column in column_of]
        if len(rows) > MAX_STATES:
            raise TooLarge("MAX_STATES")
        if len(rows[0]) > CLASSES:
            raise NotProvableError("too-many-classes")
        cells = array("H")
        padding = [0] * (CLASSES - len(rows[0]))
        for row in rows:
            cells.extend([cell // LABELS | cell % LABELS << STATE_BITS for cell in row] + padding)
        classes = bytes(column_of[self._symbol_of[byte]] for byte in range(256))
        return HeadTable(classes, cells.tobytes(), 1, self._left_out)

    @cached_property
    def _left_out(self) -> tuple[tuple[str, str, str], ...]:
        return tuple(sorted((policy, rule, reason) for (policy, rule), reason in self._demands.left_out.items()))

    def _why_nothing(self) -> str:
        return self._left_out[0][2] if self._left_out else "nothing-to-prove"

    # Rows

    def _state(self, make: Callable[..., None], *arguments: object) -> int:
        """A move to the state that ``make`` fills the row of."""
        key = (make, *arguments)
        number = self._numbers.get(key)
        if number is None:
            number = len(self._numbers) + 1
            if number > MAX_BUILT_STATES:
                raise TooLarge("MAX_BUILT_STATES")
            self._numbers[key] = number
            self._waiting.append(key)
        return number * LABELS

    def _set(self, row: list[int], text: str, move: int) -> None:
        """One character's move."""
        row[self._symbol_of[ord(text)]] = move

    def _fill(self, row: list[int], mask: int, move: int) -> None:
        """The same move for all bytes of a set."""
        for symbol in self._symbols_in(mask):
            row[symbol] = move

    def _follow(self, row: list[int], mask: int, after: list[int], make: Callable[..., None], *arguments: object) -> None:
        """Moves for the bytes of a set that differ by the state that a pattern's automaton has ``after`` them."""
        moves: dict[int, int] = {}
        for symbol in self._symbols_in(mask):
            state = after[symbol]
            if state not in moves:
                moves[state] = self._state(make, *arguments, state)
            row[symbol] = moves[state]

    def _symbols_in(self, mask: int) -> list[int]:
        known = self._fills.get(mask)
        if known is None:
            known = [number for number, byte in enumerate(self._symbols) if mask >> byte & 1]
            self._fills[mask] = known
        return known

    # The request line

    def _method(self, row: list[int], read: str) -> None:
        for method in self._demands.methods:
            if method == read:
                asked = self._asked(method)
                self._set(row, " ", self._state(_Compiler._target_start, asked) | (NO_REPLY_BODY if method == "HEAD" else 0))
            elif method.startswith(read):
                self._set(row, method[len(read)], self._state(_Compiler._method, method[: len(read) + 1]))

    def _asked(self, method: str) -> _Asked:
        rules = self._demands.of_method(method)
        refused = self._demands.refuses_bodies and method in BODILESS_METHODS
        return _Asked(rules, refused or rules in self._bodiless)

    def _target_start(self, row: list[int], asked: _Asked) -> None:
        automaton = self._targets_of(asked.rules).automaton
        after = automaton.row(automaton.start)[self._symbol_of[ord("/")]]
        self._set(row, "/", self._state(_Compiler._path, asked, "/", after))

    def _targets_of(self, rules: tuple[int, ...]) -> _Targets:
        known = self._targets.get(rules)
        if known is None:
            numbers = self._demands.targets_of(rules)
            chosen = [self._demands.targets[number] for number in numbers]
            automaton = Automaton([node for _, node in chosen], self._symbols, self._budget)
            in_query = [own for own, (reading, _) in enumerate(chosen) if reading is not Reading.BARE]
            known = self._targets[rules] = _Targets(automaton, numbers, in_query)
        return known

    def _path(self, row: list[int], asked: _Asked, segment: str, state: int) -> None:
        """In the path. ``segment`` is the beginning of the segment as far as it matters: "/", "/.", "/..", or ""."""
        targets = self._targets_of(asked.rules)
        after = targets.automaton.row(state)
        self._follow(row, _TARGET & ~mask_of(b"/.?;"), after, _Compiler._path, asked, "")
        dot = self._symbol_of[ord(".")]
        row[dot] = self._state(_Compiler._path, asked, segment + "." if segment in ("/", "/.") else "", after[dot])
        if segment in ("/.", "/.."):
            return
        if segment != "/":
            slash = self._symbol_of[ord("/")]
            row[slash] = self._state(_Compiler._path, asked, "/", after[slash])
        matched = targets.matched(state)
        held = frozenset(number for number in matched if self._demands.targets[number][0] is not Reading.WHOLE)
        mark = self._symbol_of[ord("?")]
        row[mark] = self._state(_Compiler._query, asked, held, targets.automaton.restricted(after[mark], targets.in_query))
        self._end_target(row, asked, matched)

    def _query(self, row: list[int], asked: _Asked, held: frozenset[int], state: int) -> None:
        """In the query. ``held`` are the patterns that the path alone has satisfied."""
        targets = self._targets_of(asked.rules)
        self._follow(row, _TARGET, targets.automaton.row(state), _Compiler._query, asked, held)
        self._end_target(row, asked, held | targets.matched(state))

    def _end_target(self, row: list[int], asked: _Asked, matched: frozenset[int]) -> None:
        residue = self._demands.residue(asked.rules, matched)
        if residue is not None:
            section = _Section(False, asked.bare, frozenset(), residue)
            self._set(row, " ", self._state(_Compiler._version, section, 0))

    def _version(self, row: list[int], section: _Section, read: int) -> None:
        following = (_Compiler._version, section, read + 1) if read + 1 < len(_VERSION) else (_Compiler._line, section)
        move = self._state(*following)
        self._set(row, chr(_VERSION[read]), move)

    # Field lines

    def _line(self, row: list[int], section: _Section) -> None:
        """At the beginning of a line: a field, or the end."""
        self._name(row, section, "")
        if section.host and not section.residue.allow:
            self._set(row, "\r", self._state(_Compiler._end))

    def _end(self, row: list[int]) -> None:
        self._set(row, "\n", ACCEPT)

    def _name(self, row: list[int], section: _Section, read: str) -> None:
        """In a name of which ``read`` (lower-cased) can still become one that matters."""
        trie = self._trie(section.names)
        self._fill(row, _TOKEN, self._state(_Compiler._other_name, section, min(len(read) + 1, FIELD_LINE_MIN)))
        in_word = read != "" and not read.endswith("-")
        if in_word:
            self._fill(row, _CAPITALS, 0)
        for character in trie.get(read, ()):
            name = read + character
            move = 0 if name in _REFUSED_BEGINNINGS else self._state(_Compiler._name, section, name)
            self._set(row, character, move)
            if not in_word or any(named.startswith(name) for named in section.names):
                self._set(row, character.upper(), move)
        if read:
            self._set(row, ":", self._after_colon(section, read))

    def _trie(self, names: frozenset[str]) -> dict[str, set[str]]:
        """For every beginning of a name that matters, the characters by which it goes on."""
        trie = self._tries.get(names)
        if trie is None:
            trie = self._tries[names] = {}
            for name in {*names, "host", _LENGTH, _CONNECTION, *_REFUSED, *_REFUSED_BEGINNINGS}:
                for at, character in enumerate(name):
                    trie.setdefault(name[:at], set()).add(character)
        return trie

    def _after_colon(self, section: _Section, name: str) -> int:
        if name in _REFUSED:
            return 0
        if name == "host":
            if section.host:
                return 0
            return self._state(_Compiler._host_start, section)
        if name == _LENGTH:
            is_late = section.length or (self._host_first and not section.host)
            return 0 if is_late else self._state(_Compiler._length, section, 0)
        if name == _CONNECTION:
            return self._state(_Compiler._connection, section, 0)
        if name in section.names:
            return 0 if name in section.named else self._state(_Compiler._value_start, section, name)
        return self._state(_Compiler._other_value, section, min(len(name) + 1, FIELD_LINE_MIN))

    def _other_name(self, row: list[int], section: _Section, length: int) -> None:
        """In a name that does not matter. ``length`` bytes of the line have been read, or more than can matter."""
        longer = min(length + 1, FIELD_LINE_MIN)
        self._fill(row, _TOKEN, self._state(_Compiler._other_name, section, longer))
        self._set(row, ":", self._state(_Compiler._other_value, section, longer))

    def _other_value(self, row: list[int], section: _Section, length: int) -> None:
        self._fill(row, _TEXT, self._state(_Compiler._other_value, section, min(length + 1, FIELD_LINE_MIN)))
        if length + len("\r\n") >= FIELD_LINE_MIN:
            self._end_line(row, section)

    def _end_line(self, row: list[int], section: _Section) -> None:
        self._set(row, "\r", self._state(_Compiler._line_feed, section))

    def _line_feed(self, row: list[int], section: _Section) -> None:
        self._set(row, "\n", self._state(_Compiler._line, section))

    def _connection(self, row: list[int], section: _Section, read: int) -> None:
        """Exactly keep-alive, as often as the client likes: saying it again says nothing new."""
        if read in (0, len(_KEEP_ALIVE)):
            self._set(row, " ", self._state(_Compiler._connection, section, read))
        if read == len(_KEEP_ALIVE):
            self._end_line(row, section)
            return
        move = self._state(_Compiler._connection, section, read + 1)
        self._set(row, chr(_KEEP_ALIVE[read]), move)
        if read == 0 or _KEEP_ALIVE[read - 1 : read] == b"-":
            self._set(row, chr(_KEEP_ALIVE[read]).upper(), move)

    def _length(self, row: list[int], section: _Section, digits: int) -> None:
        if digits < LENGTH_DIGITS:
            self._fill(row, _DIGITS, self._state(_Compiler._length, section, digits + 1) | DIGIT)
        if digits:
            self._length_end(row, section)
        else:
            self._set(row, " ", self._state(_Compiler._length, section, 0))

    def _length_end(self, row: list[int], section: _Section) -> None:
        self._set(row, " ", self._state(_Compiler._length_end, section))
        self._end_line(row, msgspec.structs.replace(section, length=True))

    # Values that policy looks at

    def _automaton(self, name: str) -> Automaton:
        known = self._values.get(name)
        if known is None:
            known = self._values[name] = Automaton(self._demands.values.get(name, ()), self._symbols, self._budget)
        return known

    def _start_of(self, section: _Section, name: str) -> int:
        """The state in which only what is still asked of a header is looked for."""
        automaton = self._automaton(name)
        return automaton.restricted(automaton.start, section.residue.asked(name))

    def _host_start(self, row: list[int], section: _Section) -> None:
        self._set(row, " ", self._state(_Compiler._host_start, section))
        after = self._automaton(HOST).row(self._start_of(section, HOST))
        self._follow(row, _HOST_NAME, after, _Compiler._host, section, 1)

    def _host(self, row: list[int], section: _Section, length: int, state: int) -> None:
        """Behind a character of the name that is no dot."""
        after = self._automaton(HOST).row(state)
        if length < HOST_PROOF_MAX:
            self._follow(row, _HOST_NAME, after, _Compiler._host, section, length + 1)
            dot = self._symbol_of[ord(".")]
            row[dot] = self._state(_Compiler._host_dot, section, length + 1, after[dot])
        colon = self._symbol_of[ord(":")]
        row[colon] = self._state(_Compiler._port, section, 0, after[colon])
        self._end_host(row, section, state)

    def _host_dot(self, row: list[int], section: _Section, length: int, state: int) -> None:
        if length < HOST_PROOF_MAX:
            after = self._automaton(HOST).row(state)
            self._follow(row, _HOST_NAME, after, _Compiler._host, section, length + 1)

    def _port(self, row: list[int], section: _Section, digits: int, state: int) -> None:
        if digits < len("65535"):
            after = self._automaton(HOST).row(state)
            self._follow(row, _DIGITS if digits else _DIGITS & ~mask_of(b"0"), after, _Compiler._port, section, digits + 1)
        if digits:
            self._end_host(row, section, state)

    def _end_host(self, row: list[int], section: _Section, state: int) -> None:
        residue = self._demands.after(section.residue, HOST, self._automaton(HOST).accepted(state))
        if residue is not None:
            self._end_value(row, msgspec.structs.replace(section, host=True, residue=residue))

    def _end_value(self, row: list[int], section: _Section) -> None:
        """Behind a value that has been judged: spaces, or the end of the line. ``section`` is what the next line finds."""
        self._set(row, " ", self._state(_Compiler._end_value, section))
        self._end_line(row, section)

    def _value_start(self, row: list[int], section: _Section, name: str) -> None:
        self._value(row, section, name, None, self._start_of(section, name))
        self._set(row, " ", self._state(_Compiler._value_start, section, name))

    def _value(self, row: list[int], section: _Section, name: str, stripped: int | None, state: int) -> None:
        """In the value of a header that rules name. ``stripped`` is the state before the spaces that were read last, if any."""
        after = self._automaton(name).row(state)
        self._follow(row, _TEXT & ~mask_of(b" "), after, _Compiler._value, section, name, None)
        if stripped is None:
            stripped = state
        self._set(row, " ", self._state(_Compiler._value, section, name, stripped, after[self._symbol_of[ord(" ")]]))
        residue = self._demands.after(section.residue, name, self._automaton(name).accepted(stripped))
        if residue is not None:
            self._end_line(row, msgspec.structs.replace(section, named=section.named | {name}, residue=residue))
