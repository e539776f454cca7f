"""Patterns as automata: what is understood means what it means to RE2, everything else is refused, and growth is bounded."""

import pytest

from policies.automaton import (
    ANYTHING,
    LABELS,
    Automaton,
    Budget,
    Node,
    Sequenced,
    TooLarge,
    Unsupported,
    bits,
    literal,
    mask_of,
    masks,
    merged_columns,
    minimised,
    parse,
    partition,
    trimmed,
)


def build(*nodes: Node, budget: int = 100_000) -> tuple[Automaton, dict[int, int]]:
    """An automaton and the class of every byte."""
    parts = partition(mask for node in nodes for mask in masks(node))
    automaton = Automaton(nodes, [next(bits(part)) for part in parts], Budget(budget))
    return automaton, {byte: number for number, part in enumerate(parts) for byte in bits(part)}


def matching(text: bytes, *nodes: Node) -> set[int]:
    """Which of the patterns match a text."""
    automaton, class_of = build(*nodes)
    state = automaton.start
    for byte in text:
        state = automaton.row(state)[class_of[byte]]
    return set(automaton.accepted(state))


def is_match(pattern: str, text: bytes, dot_nl: bool = False) -> bool:
    return bool(matching(text, parse(pattern, dot_nl)))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/orders", [b"/orders"], [b"", b"/order", b"/orders/", b"x/orders"]),
        ("/orders(/[0-9]+)?", [b"/orders", b"/orders/7", b"/orders/42"], [b"/orders/", b"/orders/x"]),
        ("a|bc|", [b"a", b"bc", b""], [b"b", b"abc"]),
        ("a*b+c?", [b"b", b"aabbc"], [b"", b"ac"]),
        ("a{2}", [b"aa"], [b"a", b"aaa"]),
        ("a{2,}", [b"aa", b"aaaaa"], [b"a"]),
        ("a{1,3}?", [b"a", b"aaa"], [b"", b"aaaa"]),
        ("(ab){0}c", [b"c"], [b"abc"]),
        ("(a*)*(b?){3}", [b"", b"aabbb"], [b"bbbb"]),
        ("a{,2}", [b"a{,2}"], [b"aa"]),
        (".", [b"\x00", b"\xff"], [b"\n", b""]),
        (r"\d\w\s", [b"1_\t", b"9z\f"], [b"a_ ", b"1- ", b"1_\x0b", b"1_\xa0"]),
        (r"\D\W\S", [b"a\xe9\xff", b"\n -"], [b"1--", b"aa-", b"a- "]),
        (r"\.\/\-\\", [b"./-\\"], [b"a/-\\"]),
        (r"\x41\x{e9}\n", [b"A\xe9\n"], [b"A\xc3\xa9\n"]),
        ("[a-c]", [b"a", b"c"], [b"d", b"-"]),
        ("[^a-c]", [b"d", b"\n", b"\xff"], [b"a"]),
        ("[]a]", [b"]", b"a"], [b"b"]),
        ("[^]a]", [b"b"], [b"]", b"a"]),
        ("[a-]", [b"a", b"-"], [b"b"]),
        (r"[\d.\]-]", [b"1", b".", b"]", b"-"], [b"a", b"\\"]),
        ("[[:alpha:][:^space:]]", [b"a", b"1"], [b" "]),
        ("[[:xdigit:]]", [b"f", b"F", b"0"], [b"g"]),
        ("(?i)GeT[a-c]", [b"get" + b"B", b"GETc"], [b"gexa"]),
        ("(?i:a)b", [b"Ab", b"ab"], [b"aB"]),
        ("(a(?i)b)c", [b"aBc", b"abc"], [b"Abc", b"abC"]),
        ("(?s).", [b"\n"], [b""]),
        ("^a|b$", [b"a", b"b"], [b"ab", b"^a"]),
        ("(?:a|b)c", [b"ac", b"bc"], [b"c"]),
    ],
)
def test_a_pattern_matches_a_whole_text(pattern: str, yes: list[bytes], no: list[bytes]) -> None:
    assert [text for text in yes if not is_match(pattern, text)] == []
    assert [text for text in no if is_match(pattern, text)] == []


def test_a_newline_is_matched_by_a_dot_only_on_demand() -> None:
    assert not is_match("a.", b"a\n")
    assert is_match("a.", b"a\n", dot_nl=True)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bfoo",
        r"\pL",
        r"\x{100}",
        r"\Qa.b\E",
        r"\z",
        r"\A",
        r"\C",
        r"\1",
        r"\012",
        "(?P<name>a)",
        "(?=a)",
        "(?!a)",
        "(?m)^a",
        "(?U)a",
        "(?-i)a",
        "(^a)",
        "a^",
        "(a$)",
        "$a",
        "^*",
        "^{2}",
        "a**",
        "a{2}{3}",
        "a{1001}",
        "a{3,2}",
        "[[:nope:]]",
        r"[\b]",
        r"(?i)\xe9",
        "(?i)[^\\x{e0}-\\x{ef}]",
        "é",
        "(a",
        "a)",
        "[a",
        "a\\",
        "*a",
        "(" * 40 + ")" * 40,
    ],
)
def test_what_is_not_known_to_mean_the_same_is_refused(pattern: str) -> None:
    with pytest.raises(Unsupported):
        parse(pattern)


def test_several_patterns_are_told_apart() -> None:
    nodes = parse("/a/.*"), parse("/[a-z]/b"), literal(b"/a/b"), Sequenced((literal(b"/z"), ANYTHING))
    assert matching(b"/a/b", *nodes) == {0, 1, 2}
    assert matching(b"/z/b", *nodes) == {1, 3}
    assert matching(b"/z\n\xff", *nodes) == {3}
    assert matching(b"/", *nodes) == set()


def test_nothing_matches_in_the_dead_state() -> None:
    automaton, class_of = build(parse("ab"))
    dead = automaton.row(automaton.start)[class_of[ord("b")]]
    assert dead == Automaton.DEAD
    assert set(automaton.row(dead)) == {Automaton.DEAD}


def test_patterns_can_be_taken_out_on_the_way() -> None:
    automaton, class_of = build(parse("a+"), parse("[ab]+"))
    state = automaton.restricted(automaton.row(automaton.start)[class_of[ord("a")]], [1])
    assert automaton.accepted(state) == {1}
    assert automaton.accepted(automaton.row(state)[class_of[ord("a")]]) == {1}


def test_without_patterns_there_is_only_the_dead_state() -> None:
    automaton, _ = build()
    assert (automaton.start, automaton.accepted(automaton.start)) == (Automaton.DEAD, frozenset())


def test_places_and_work_are_bounded() -> None:
    with pytest.raises(TooLarge):
        build(parse("((a{1000}){1000})"), budget=10**9)
    with pytest.raises(TooLarge):
        build(parse("(((){1000}){1000}){1000}"))
    with pytest.raises(TooLarge):
        walk_everywhere(build(parse("(a|b)*a(a|b){40}"))[0])


def walk_everywhere(automaton: Automaton) -> None:
    states = dict.fromkeys([automaton.start])
    waiting = list(states)
    for state in waiting:
        fresh = [after for after in automaton.row(state) if after not in states]
        states.update(dict.fromkeys(fresh))
        waiting += fresh


def test_a_partition_has_no_more_parts_than_the_sets_tell_apart() -> None:
    digits, word = mask_of(b"0123456789"), mask_of(b"0123456789abc")
    parts = partition([digits, word, digits])
    assert sorted(part.bit_count() for part in parts) == [3, 10, 243]
    assert partition([]) == [(1 << 256) - 1]


# Tables: 0 is dead, 1 the start; a cell is target * LABELS + label.

END = 3


def test_moves_that_lead_to_no_end_are_taken_out() -> None:
    rows = [[0, 0], [2 * LABELS, 3 * LABELS + 1], [END, 0], [3 * LABELS, 0]]
    assert trimmed(rows, END) == [[0, 0], [2 * LABELS, 0], [END, 0], [0, 0]]


def test_equal_columns_become_one() -> None:
    assert merged_columns([[0, 0, 0], [8, END, 8]]) == ([0, 1, 0], [[0, 0], [8, END]])


def test_states_that_nothing_tells_apart_become_one() -> None:
    # 1 goes to 2 or 3, which do the same; 4 differs by a label.
    rows = [[0, 0], [2 * LABELS, 3 * LABELS], [4 * LABELS, END], [4 * LABELS, END], [1 * LABELS + 1, END]]
    assert minimised(rows) == [[0, 0], [2 * LABELS, 2 * LABELS], [3 * LABELS, END], [1 * LABELS + 1, END]]


def test_a_start_without_moves_is_dead() -> None:
    assert minimised([[0, 0], [0, 0], [END, 0]]) == [[0, 0]]
