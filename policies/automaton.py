"""Regular expressions as deterministic automata over bytes: the RE2 patterns of policies, as the kernel can run them.

Only what RE2 (Latin-1, full match) would match is matched: `parse` reads the part of RE2's syntax that policies use and
raises `Unsupported` for everything else, so that a pattern is either understood exactly or not at all. docs/adr/0006 says why
this is no library.

A pattern becomes a tree (`parse`, `literal`), trees become one position automaton (Glushkov's: one state per place of the
pattern where a byte is read, no empty moves), and `Automaton` makes it deterministic as far as somebody walks. A set of
positions is one integer, one bit per position.

Everything that can grow is paid for out of a `Budget`, which counts work and not time, so that the same policy always has the
same outcome.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec

# Groups in groups, and brackets of the parser's own recursion. Patterns that people write have four or five.
MAX_DEPTH = 32
# Places of all patterns of one automaton: 64 rules with paths of 128 characters. One bit each in every set of places, so it
# bounds both memory (1 KiB per state) and the time of one step.
MAX_POSITIONS = 8192

# A set of so many places is cheaper to look at place by place.
_FEW_PLACES = 8

BYTES = 256
_ALL = (1 << BYTES) - 1
_NEWLINE = 1 << ord("\n")


class Unsupported(ValueError):  # noqa: N818 - it is nobody's error: the pattern is left to RE2
    """The pattern uses something that this kit does not know for certain to mean the same to RE2."""


class TooLarge(ValueError):  # noqa: N818 - as above
    """The automaton would need more places, states or work than its limits allow."""


class Budget:
    """Work that may still be done. One unit is about a microsecond."""

    def __init__(self, units: int) -> None:
        self._left = units

    def spend(self, units: int) -> None:
        """Raises `TooLarge`."""
        self._left -= units
        if self._left < 0:
            raise TooLarge("work")


# Trees


class Bytes(msgspec.Struct, frozen=True):
    """Any one of the bytes whose bits are set."""

    mask: int


class Sequenced(msgspec.Struct, frozen=True):
    parts: "tuple[Node, ...]" = ()


class Choice(msgspec.Struct, frozen=True):
    options: "tuple[Node, ...]"


class Repeat(msgspec.Struct, frozen=True):
    """``most`` None: without end."""

    node: "Node"
    least: int
    most: int | None


Node = Bytes | Sequenced | Choice | Repeat
EMPTY = Sequenced()
ANYTHING = Repeat(Bytes(_ALL), 0, None)


def literal(data: bytes) -> Node:
    """Exactly these bytes."""
    return Sequenced(tuple(Bytes(1 << byte) for byte in data))


def masks(node: Node) -> Iterator[int]:
    """Every set of bytes in a tree."""
    if isinstance(node, Bytes):
        yield node.mask
    elif isinstance(node, Repeat):
        yield from masks(node.node)
    else:
        for part in node.parts if isinstance(node, Sequenced) else node.options:
            yield from masks(part)


def mask_of(data: Iterable[int]) -> int:
    """A set of bytes as the bits of an integer."""
    mask = 0
    for byte in data:
        mask |= 1 << byte
    return mask


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def partition(sets: Iterable[int]) -> list[int]:
    """The coarsest partition of all bytes in which every one of ``sets`` is a union of parts."""
    parts = [_ALL]
    for mask in sets:
        parts = [piece for part in parts for piece in (part & mask, part & ~mask) if piece]
    return parts


# From a pattern to its tree

_DIGITS = mask_of(b"0123456789")
_LOWER = mask_of(range(ord("a"), ord("z") + 1))
_UPPER = mask_of(range(ord("A"), ord("Z") + 1))
_WORD = _DIGITS | _LOWER | _UPPER | mask_of(b"_")
_GRAPH = mask_of(range(0x21, 0x7F))
_CASE_SHIFT = ord("a") - ord("A")

_PERL = {"d": _DIGITS, "s": mask_of(b"\t\n\f\r "), "w": _WORD}
_POSIX = {
    "alnum": _DIGITS | _LOWER | _UPPER,
    "alpha": _LOWER | _UPPER,
    "ascii": mask_of(range(0x80)),
    "blank": mask_of(b"\t "),
    "cntrl": mask_of([*range(0x20), 0x7F]),
    "digit": _DIGITS,
    "graph": _GRAPH,
    "lower": _LOWER,
    "print": _GRAPH | mask_of(b" "),
    "punct": _GRAPH & ~(_DIGITS | _LOWER | _UPPER),
    "space": mask_of(b"\t\n\v\f\r "),
    "upper": _UPPER,
    "word": _WORD,
    "xdigit": _DIGITS | mask_of(b"abcdefABCDEF"),
}
_CONTROL = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_REPETITION = re.compile(r"\{([0-9]+)(?:(,)([0-9]*))?\}")
_REPEATED_MAX = 1000  # RE2's own limit
_POSIX_CLASS = re.compile(r"\[:(\^?)([a-z]+):\]")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|x\{([0-9A-Fa-f]{1,4})\}")
_GROUP_FLAGS = re.compile(r"\?([is]*)([:)])")


class _Flags(msgspec.Struct, frozen=True):
    fold: bool = False
    dot_nl: bool = False


def parse(pattern: str, dot_nl: bool = False) -> Node:
    """The tree of an RE2 pattern that is to match a whole text. ``dot_nl``: ``.`` matches a newline. Raises `Unsupported`."""
    return _Parser(pattern, dot_nl).parse()


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str, dot_nl: bool) -> None:
        self._pattern = pattern
        self._flags = _Flags(dot_nl=dot_nl)
        self._at = 0

    def parse(self) -> Node:
        if not self._pattern.isascii():
            raise Unsupported("not ASCII")
        node = self._choice(0)
        if self._at < len(self._pattern):
            raise Unsupported("a closing parenthesis too many")
        return node

    def _next(self) -> str:
        """The next character, "" at the end."""
        return self._pattern[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._next()
        if not character:
            raise Unsupported("the pattern breaks off")
        self._at += 1
        return character

    def _match(self, grammar: re.Pattern[str]) -> re.Match[str] | None:
        match = grammar.match(self._pattern, self._at)
        if match is not None:
            self._at = match.end()
        return match

    def _choice(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unsupported("groups are nested too deeply")
        options = [self._sequence(depth)]
        while self._next() == "|":
            self._at += 1
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while (character := self._next()) and character not in "|)":
            if depth == 0 and character == "^" and not parts:
                self._at += 1
                if self._bounds() is not None:
                    raise Unsupported("a repeated anchor")
                continue
            if depth == 0 and character == "$" and self._pattern[self._at + 1 : self._at + 2] in ("", "|"):
                self._at += 1
                break
            atom = self._atom(depth)
            if atom is not None:
                parts.append(self._repeated(atom))
        return parts[0] if len(parts) == 1 else Sequenced(tuple(parts))

    def _repeated(self, atom: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return atom
        if self._next() == "?":  # as few as possible: the same to a full match
            self._at += 1
        if self._bounds() is not None:
            raise Unsupported("a repetition of a repetition")
        return Repeat(atom, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        """A repetition operator, or None. A brace that is none is a literal."""
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self._next() in simple:
            return simple[self._take()]
        match = self._match(_REPETITION)
        if match is None:
            return None
        least = int(match[1])
        most = least if match[2] is None else int(match[3]) if match[3] else None
        if max(least, most or 0) > _REPEATED_MAX or (most is not None and most < least):
            raise Unsupported("bad bounds of a repetition")
        return least, most

    def _atom(self, depth: int) -> Node | None:
        """One atom; None for a group that only sets flags."""
        character = self._take()
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._class()
        if character == ".":
            return Bytes(_ALL if self._flags.dot_nl else _ALL & ~_NEWLINE)
        if character == "\\":
            return Bytes(self._escape())
        if character in "*+?^$":
            raise Unsupported(f"{character} at this place")
        return Bytes(self._folded(1 << ord(character)))

    def _group(self, depth: int) -> Node | None:
        outer = self._flags
        if self._next() == "?":
            match = self._match(_GROUP_FLAGS)
            if match is None:
                raise Unsupported("a special group")
            self._flags = _Flags(outer.fold or "i" in match[1], outer.dot_nl or "s" in match[1])
            if match[2] == ")":  # they hold until the group around ends
                if not match[1]:
                    raise Unsupported("a group without flags")
                if self._bounds() is not None:
                    raise Unsupported("a repetition of flags")
                return None
        node = self._choice(depth + 1)
        if self._take() != ")":
            raise Unsupported("a group that does not end")
        self._flags = outer
        return node

    def _escape(self) -> int:
        """What a backslash introduces, as a set of bytes."""
        if self._next().lower() in _PERL:
            letter = self._take()
            mask = _PERL[letter.lower()]
            return mask if letter.islower() else _ALL & ~mask
        return self._folded(1 << self._escaped_byte())

    def _escaped_byte(self) -> int:
        match = self._match(_HEX)
        if match is not None:
            byte = int(match[1] or match[2], 16)
            if byte >= BYTES:
                raise Unsupported("a character that is no byte")
            return byte
        character = self._take()
        if character in _CONTROL:
            return _CONTROL[character]
        if character.isalnum():
            raise Unsupported(f"\\{character}")
        return ord(character)

    def _class(self) -> Node:
        negated = self._next() == "^"
        self._at += negated
        mask = 0
        first = True
        while first or self._next() != "]":
            mask |= self._class_item()
            first = False
        self._at += 1
        return Bytes(_ALL & ~mask if negated else mask)

    def _class_item(self) -> int:
        """One class in a class, or one range, or one byte."""
        if self._pattern.startswith("[:", self._at):
            match = self._match(_POSIX_CLASS)
            if match is None or match[2] not in _POSIX:
                raise Unsupported("a class of characters")
            mask = self._folded(_POSIX[match[2]])
            return _ALL & ~mask if match[1] else mask
        if self._next() == "\\" and self._pattern[self._at + 1 : self._at + 2].lower() in _PERL:
            self._at += 1
            return self._escape()
        low = high = self._class_byte()
        following = self._pattern[self._at + 1 : self._at + 2]
        if self._next() == "-" and following not in ("]", ""):
            self._at += 1
            high = self._class_byte()
            if high < low:
                raise Unsupported("a range that ends before it begins")
        return self._folded(mask_of(range(low, high + 1)))

    def _class_byte(self) -> int:
        character = self._take()
        return self._escaped_byte() if character == "\\" else ord(character)

    def _folded(self, mask: int) -> int:
        """The same bytes in both cases, where case is ignored."""
        if not self._flags.fold:
            return mask
        if mask >> 0x80:
            raise Unsupported("letters of Latin-1 whose case is ignored")
        return mask | (mask & _UPPER) << _CASE_SHIFT | (mask & _LOWER) >> _CASE_SHIFT


# From trees to an automaton

_NOTHING: frozenset[int] = frozenset()


class Automaton:
    """Several patterns as one deterministic automaton. States are numbers; 0 is the one in which nothing can match any more.

    ``symbols`` has one byte of every class of bytes that no pattern tells apart (see `partition`); steps are taken by the
    number of a class.
    """

    DEAD = 0

    def __init__(self, nodes: Sequence[Node], symbols: Sequence[int], budget: Budget) -> None:
        self._budget = budget
        self._reads: list[int] = []  # which bytes a place reads
        self._follow: list[int] = []  # the places that come behind it
        self._ends: list[int] = []  # of every pattern, the place behind its last byte
        self._owned: list[int] = []  # of every pattern, all its places
        start = 0
        for node in nodes:
            before = len(self._reads)
            nullable, first, last = self._add(node)
            end = self._place(0)
            self._link(last, 1 << end)
            start |= first | (1 << end if nullable else 0)
            self._ends.append(1 << end)
            self._owned.append((1 << end + 1) - (1 << before))
        self._symbols = symbols
        self._symbols_in: dict[int, list[int]] = {}
        self._all_ends = mask_of(end.bit_length() - 1 for end in self._ends)
        self._readers = [0] * len(symbols)  # the places that read a class of bytes
        for mask, places in self._readers_of().items():
            for symbol in self._symbols_of(mask):
                self._readers[symbol] |= places
        self._numbers = {0: 0}
        self._sets = [0]
        self._rows: list[list[int] | None] = [[0] * len(symbols)]
        self._next: dict[int, int] = {}
        self.start = self._number(start)

    def row(self, state: int) -> list[int]:
        """The next state for every class of bytes. Raises `TooLarge`."""
        row = self._rows[state]
        if row is None:
            row = self._rows[state] = [self._number(places) for places in self._moves(self._sets[state])]
        return row

    def _moves(self, places: int) -> list[int]:
        """The places behind each class of bytes, found by place where they are few, else by class."""
        if places.bit_count() > _FEW_PLACES:
            self._budget.spend(len(self._readers) * (1 + places.bit_length() // 4096))
            return [self._after(places & readers) for readers in self._readers]
        moves = [0] * len(self._readers)
        for place in bits(places):
            for symbol in self._symbols_of(self._reads[place]):
                moves[symbol] |= self._follow[place]
        self._budget.spend(len(moves) // 4)
        return moves

    def _readers_of(self) -> dict[int, int]:
        """For every set of bytes the places that read it."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for place, mask in enumerate(self._reads):
            found[mask].append(place)
        return {mask: mask_of(places) for mask, places in found.items()}

    def _symbols_of(self, mask: int) -> list[int]:
        known = self._symbols_in.get(mask)
        if known is None:
            known = [number for number, byte in enumerate(self._symbols) if mask >> byte & 1]
            self._symbols_in[mask] = known
        return known

    def accepted(self, state: int) -> frozenset[int]:
        """The patterns that match what has been read."""
        places = self._sets[state] & self._all_ends
        return frozenset(pattern for pattern, end in enumerate(self._ends) if places & end) if places else _NOTHING

    def restricted(self, state: int, patterns: Iterable[int]) -> int:
        """The state with only these patterns kept."""
        owned = 0
        for pattern in patterns:
            owned |= self._owned[pattern]
        return self._number(self._sets[state] & owned)

    def _number(self, places: int) -> int:
        number = self._numbers.get(places)
        if number is None:
            number = self._numbers[places] = len(self._sets)
            self._sets.append(places)
            self._rows.append(None)
        return number

    def _after(self, read: int) -> int:
        known = self._next.get(read)
        if known is None:
            known = 0
            for place in bits(read):
                known |= self._follow[place]
            self._budget.spend(read.bit_count())
            self._next[read] = known
        return known

    def _place(self, reads: int) -> int:
        if len(self._reads) >= MAX_POSITIONS:
            raise TooLarge("MAX_POSITIONS")
        self._budget.spend(1)
        self._reads.append(reads)
        self._follow.append(0)
        return len(self._reads) - 1

    def _link(self, last: int, first: int) -> None:
        self._budget.spend(last.bit_count())
        for place in bits(last):
            self._follow[place] |= first

    def _add(self, node: Node) -> tuple[bool, int, int]:
        """Add a tree's places. Returns whether it matches the empty text, and the places where it can begin and end."""
        self._budget.spend(1)
        if isinstance(node, Bytes):
            place = 1 << self._place(node.mask)
            return False, place, place
        if isinstance(node, Choice):
            added = [self._add(option) for option in node.options]
            first = last = 0
            for _, begins, ends in added:
                first |= begins
                last |= ends
            return any(nullable for nullable, _, _ in added), first, last
        if isinstance(node, Sequenced):
            return self._chain(self._add(part) for part in node.parts)
        return self._chain(self._copies(node))

    def _copies(self, node: Repeat) -> Iterator[tuple[bool, int, int]]:
        """A repetition written out: the copies that must be there, then those that may be, or one that may be repeated."""
        for number in range(node.least if node.most is not None else max(node.least, 1)):
            nullable, first, last = self._add(node.node)
            if node.most is None and number == max(node.least, 1) - 1:
                self._link(last, first)
                nullable = nullable or node.least == 0
            yield nullable, first, last
        for _ in range((node.most or 0) - node.least):
            _, first, last = self._add(node.node)
            yield True, first, last

    def _chain(self, parts: Iterable[tuple[bool, int, int]]) -> tuple[bool, int, int]:
        nullable, first, last = True, 0, 0
        for skippable, begins, ends in parts:
            self._link(last, begins)
            first |= begins if nullable else 0
            last = ends | (last if skippable else 0)
            nullable = nullable and skippable
        return nullable, first, last


# Smaller tables

# A table is a list of rows; a cell is a move, ``target * LABELS + label``. Row 0 is dead, row 1 is the start.
LABELS = 8

_Rows = Sequence[Sequence[int]]


def trimmed(rows: _Rows, final: int) -> list[list[int]]:
    """The table without moves from which no move labelled ``final`` can follow: they become 0."""
    cells = [set(row) for row in rows]
    sources: list[list[int]] = [[] for _ in rows]
    reached: list[int] = []
    for number, different in enumerate(cells):
        for cell in different:
            sources[cell // LABELS].append(number)
        if any(cell % LABELS == final for cell in different):
            reached.append(number)
    alive = set(reached)
    for number in reached:  # which grows
        fresh = set(sources[number]) - alive
        alive |= fresh
        reached += fresh
    lost = {cell for different in cells for cell in different if cell % LABELS != final and cell // LABELS not in alive}
    return [list(row) if lost.isdisjoint(row) else [0 if cell in lost else cell for cell in row] for row in rows]


def merged_columns(rows: _Rows) -> tuple[list[int], list[list[int]]]:
    """For every column its number among the different ones, and the rows with the different ones only."""
    numbers: dict[tuple[int, ...], int] = {}
    column_of = [numbers.setdefault(column, len(numbers)) for column in zip(*rows, strict=True)]
    return column_of, [list(row) for row in zip(*numbers, strict=True)]


def minimised(rows: _Rows) -> list[list[int]]:
    """The smallest table with the same moves: states that nothing tells apart become one (Hopcroft's idea, by hashing)."""
    targets = [[cell // LABELS for cell in row] for row in rows]
    sources: list[set[int]] = [set() for _ in rows]
    for number, row in enumerate(targets):
        for target in set(row):
            sources[target].add(number)
    block = _numbered(tuple(cell % LABELS for cell in row) for row in rows)
    members: list[set[int]] = [set() for _ in range(max(block) + 1)]
    for number, of_state in enumerate(block):
        members[of_state].add(number)
    affected = set(range(len(rows)))
    while affected:
        groups: defaultdict[int, defaultdict[tuple[int, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
        for number in affected:
            groups[block[number]][tuple(map(block.__getitem__, targets[number]))].add(number)
        moved: list[tuple[int, set[int]]] = []
        for of_state, by_moves in groups.items():
            parts = list(by_moves.values())
            untouched = members[of_state].difference(*parts)
            if untouched:
                parts.append(untouched)
            parts.sort(key=len)
            members[of_state] = parts.pop()  # the largest keeps its number, so that few states are looked at again
            for part in parts:
                moved.append((len(members), part))
                members.append(part)
        for new, part in moved:
            for number in part:
                block[number] = new
        affected = {source for _, part in moved for number in part for source in sources[number]}
    return _in_order(rows, block)


def _numbered(signatures: Iterable[tuple[int, ...]]) -> list[int]:
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(signature, len(numbers)) for signature in signatures]


def _in_order(rows: _Rows, block: Sequence[int]) -> list[list[int]]:
    """One row per block that can be reached, numbered as a walk from the start meets them."""
    numbers = {block[0]: 0, block[1]: 1}
    if len(numbers) == 1:
        return [list(rows[0])]
    order = [0, 1]
    smaller: list[list[int]] = []
    for number in order:
        moves = dict.fromkeys(rows[number], 0)
        for cell in moves:
            target = cell // LABELS
            if block[target] not in numbers:
                numbers[block[target]] = len(order)
                order.append(target)
            moves[cell] = numbers[block[target]] * LABELS + cell % LABELS
        smaller.append([moves[cell] for cell in rows[number]])
    return smaller
