"""The kernel's table never allows what the proxy would not: the same heads through `policies.heads.run` and through the parser
and `Pair.decide`. And it does allow what programs ordinarily send."""

import os
from collections import Counter
from random import Random

import pytest
import re2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsers.http1_answers import Refused
from parsers.http1_head import FIELDS_MAX, HEAD_END, HEAD_MAX, LINE_MAX, RequestHead, read_request
from parsers.target import HOST_MAX
from policies import heads
from policies.automaton import Automaton, Budget, Unsupported, bits, masks, parse, partition
from policies.decide import Pair, PolicySet, Verdict
from policies.heads import HeadTable, Proof, prove, run
from policies.load import Source, load
from policies.match import compile_pattern

from .heads_words import PAIRS, hostile, one_byte, plausible
from .policies_words import document, http_rules, workload_documents

SOAK = os.environ.get("SLUICE_SOAK") == "1"
HEADS = 4_000 if SOAK else 200  # of each kind, per policy
PATTERNS = 20_000 if SOAK else 400
pytestmark = pytest.mark.timeout(3600 if SOAK else 120)


def table_of(name: str) -> HeadTable:
    table = prove(PAIRS[name])
    assert isinstance(table, HeadTable), table
    return table


def read(head: bytes) -> RequestHead | None:
    try:
        return read_request(head)
    except Refused:
        return None


def is_carried(request: RequestHead) -> bool:
    """Whether the framing is one that the kernel carries."""
    names = {name for name, _ in request.call.headers}
    connection = {value.lower() for name, value in request.call.headers if name == "connection"}
    odd = {"transfer-encoding", "upgrade", "expect", "te", "trailer", "proxy-connection", "keep-alive", "http2-settings"}
    return (
        request.http11 and connection <= {"keep-alive"} and names.isdisjoint(odd) and len(request.wire) <= heads.HEAD_PROOF_MAX
    )


def is_allowed(pair: Pair, request: RequestHead) -> bool:
    decision = pair.decide(request.call)
    return decision.verdict is Verdict.ALLOWED and not decision.edits and not decision.notes


def check(pair: Pair, table: HeadTable, data: bytes) -> Proof | None:
    """Law: what the table accepts, the proxy allows, and they agree on where the message ends."""
    proof = run(table, data)
    if proof is None:
        return None
    assert proof.head_length == data.find(HEAD_END) + len(HEAD_END), data
    request = read(data[: proof.head_length])
    assert request is not None, data
    assert (request.call.path_fault, request.call.query_fault, request.call.nominated) == (None, None, ()), data
    assert not request.names_protocol, data
    assert is_allowed(pair, request), data
    assert is_carried(request), data
    assert request.keep_alive, data
    assert not request.expects, data
    assert not request.upgrade, data
    assert request.body == proof.body_length, data
    assert (request.call.method == "HEAD") == proof.no_reply_body, data
    return proof


@pytest.mark.parametrize("name", PAIRS)
def test_what_the_kernel_accepts_the_proxy_allows(name: str) -> None:
    pair, table = PAIRS[name], table_of(name)
    random = Random(name)
    accepted = Counter[bool]()
    for number in range(HEADS):
        for head in (plausible(random, body=number % 3 == 0), hostile(random)):
            accepted[check(pair, table, head) is not None] += 1
    assert accepted[True] > HEADS / 200, "the corpus says nothing of this policy"


@pytest.mark.parametrize("name", PAIRS)
def test_no_single_byte_makes_an_accepted_head_a_wrongly_accepted_one(name: str) -> None:
    pair, table = PAIRS[name], table_of(name)
    random = Random(name)
    found = [head for head in (plausible(random) for _ in range(1000)) if len(head) < 200 and run(table, head) is not None]
    for head in found[:1]:
        for at in range(len(head)):
            for byte in (
                range(256)
                if SOAK
                else {0, 9, 10, 13, 32, 35, 37, 46, 47, 58, 59, 63, 92, 128, 255, head[at] ^ 32, head[at] ^ 1}
            ):
                check(pair, table, head[:at] + bytes([byte]) + head[at + 1 :])
                check(pair, table, head[:at] + bytes([byte]) + head[at:])
            check(pair, table, head[:at] + head[at + 1 :])
            assert run(table, head[:at]) is None, "a head that is not complete"


@pytest.mark.parametrize("name", PAIRS)
def test_chains_of_changes_are_never_wrongly_accepted(name: str) -> None:
    """A walk through what is accepted: every accepted change is changed again."""
    pair, table = PAIRS[name], table_of(name)
    random = Random(name)
    head = plausible(random)
    for number in range(HEADS):
        if number % 50 == 0:
            head = plausible(random)
        changed = one_byte(random, head)
        if check(pair, table, changed) is not None:
            head = changed


HEADS_OF_ANY_POLICY = [
    "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()
    for method in ("GET", "POST", "HEAD")
    for path in ("/", "/a", "/a/", "/a/b", "/a/bc", "/abc", "/a?q=1", "/a/b?q=2", "/a?x&q=1")
    for lines in (
        ["Host: orders"],
        ["Host: other", "Accept: */*"],
        ["X-A: 1", "Host: orders"],
        ["Host: orders", "X-A: 2"],
        ["Host: orders", "X-A: 1", "X-A: 2"],
    )
]


def _policy(direction: str, rules: object, mode: str, default_deny: bool, is_open: bool) -> str:
    ports: dict[str, object] = {"ports": [{"port": "80", "protocol": "TCP"}]}
    entries = [{"toPorts": [{**ports, "rules": {"http": rules}}, *([ports] if is_open else [])]}]
    default = {"enableDefaultDeny": {direction: default_deny}}
    return document({"endpointSelector": {}, direction: entries, "mode": mode, **default})


policies_of_port_80 = st.builds(
    _policy,
    st.sampled_from(["ingress", "egress"]),
    http_rules,
    st.sampled_from(["enforce", "enforce", "audit"]),
    st.sampled_from([True, True, False]),
    st.sampled_from([False, False, False, True]),
)


@settings(max_examples=1500 if SOAK else 60, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(policies_of_port_80, min_size=1, max_size=4))
def test_whatever_the_policies_what_the_kernel_accepts_the_proxy_allows(texts: list[str]) -> None:
    numbered = [text.replace("NAME", f"p{number}") for number, text in enumerate(texts)]
    policies = PolicySet(load([Source(f"{n}.yaml", text) for n, text in enumerate([*workload_documents, *numbered])]), 1)
    pair = policies.pair(policies.endpoint("web"), policies.endpoint("orders"), 80)
    table = prove(pair)
    if isinstance(table, HeadTable):
        for head in HEADS_OF_ANY_POLICY:
            check(pair, table, head)


def coverage(body: bool) -> tuple[int, int]:
    """How many ordinary heads that the proxy allows the kernel accepts, and how many there are.

    Of policies that have no rule which is for the proxy as a whole.
    """
    proven = eligible = 0
    for name, pair in PAIRS.items():
        table = table_of(name)
        if table.left_out:
            continue
        random = Random(f"coverage {name}")
        for _ in range(HEADS):
            head = plausible(random, body)
            request = read(head)
            if request is not None and is_carried(request) and is_allowed(pair, request):
                eligible += 1
                proven += run(table, head) is not None
    return proven, eligible


@pytest.mark.parametrize("body", [False, True])
def test_ordinary_heads_that_are_allowed_are_accepted(body: bool) -> None:
    proven, eligible = coverage(body)
    print(f"coverage {'with' if body else 'without'} a body: {proven} of {eligible}, {proven / eligible:.2%}")
    assert proven >= eligible * 0.95


def test_the_bounds_of_a_proof_are_within_those_of_the_parser() -> None:
    assert heads.HEAD_PROOF_MAX < LINE_MAX <= HEAD_MAX
    assert heads.HOST_PROOF_MAX + len(":65535") <= HOST_MAX
    fewest = b"A / HTTP/1.1\r\n" + b"host:a\r\n" + b"x:\r\n" * heads.NAMES_MAX
    fewest += b"y" * heads.FIELD_LINE_MIN * (FIELDS_MAX - heads.NAMES_MAX)
    assert len(fewest + b"\r\n") > heads.HEAD_PROOF_MAX


# The regular expressions

_ATOMS = [
    *"ab/-_Kq{}]",
    ".",
    *(r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\.", r"\/", r"\-", r"\n", r"\t", r"\x41", r"\xe9", r"\x{e9}"),
    *("[a-c]", "[^a]", "[[:alpha:]]", "[[:^space:]x]", "[]a]", "[^]b]", "[a-]", r"[\d-z]", r"[\w.]", r"[\]\-x]", "[!--]"),
    *("{,3}", "x{2}", "(?i)", "(?s)", "(?i:q)", "(?s:.)", "(?i:[^k])", "(?i)[[:lower:]]", r"(?i:\W)", "(?i:[[:^upper:]])", ""),
    *(r"\b", r"\pN", r"\Qa\E", "(?P<n>a)", "(?m)", r"\z", r"\C", r"\101", "^", "$"),
]  # fmt: skip
_REPEATS = ["", "", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?", "??", "{2,3}?", "{0}"]
_TEXT = b"abAB/-.09_ \t\n\x00\xe9\xc9kKqxXz{},3]\x0b\\^$"


def _pattern(random: Random, depth: int) -> str:
    chance = random.random()
    if depth == 0 or chance < 0.4:
        return random.choice(_ATOMS) + random.choice(_REPEATS)
    if chance < 0.7:
        return _pattern(random, depth - 1) + _pattern(random, depth - 1)
    if chance < 0.85:
        return _pattern(random, depth - 1) + "|" + _pattern(random, depth - 1)
    return random.choice(["(", "(?:", "(?i:"]) + _pattern(random, depth - 1) + ")" + random.choice(_REPEATS)


def test_a_pattern_matches_what_re2_matches_or_is_not_understood() -> None:
    random = Random(2)
    outcomes = Counter[str]()
    for _ in range(PATTERNS):
        pattern = random.choice(["", "", "", "^"]) + _pattern(random, 4) + random.choice(["", "", "", "$"])
        dot_nl = random.random() < 0.3
        try:
            oracle = compile_pattern(pattern, dot_nl)
        except re2.error:
            continue
        try:
            tree = parse(pattern, dot_nl)
        except Unsupported:
            outcomes["not understood"] += 1
            continue
        parts = partition(masks(tree))
        class_of = {byte: number for number, part in enumerate(parts) for byte in bits(part)}
        automaton = Automaton([tree], [next(bits(part)) for part in parts], Budget(1_000_000))
        for _ in range(25):
            text = bytes(
                random.choice(_TEXT) if random.random() < 0.9 else random.randrange(256) for _ in range(random.randrange(7))
            )
            state = automaton.start
            for byte in text:
                state = automaton.row(state)[class_of[byte]]
            matches = automaton.accepted(state) != frozenset()
            assert matches == (oracle.fullmatch(text) is not None), (pattern, text, dot_nl)
            outcomes["matches" if matches else "does not match"] += 1
    assert min(outcomes.values()) > PATTERNS / 20
