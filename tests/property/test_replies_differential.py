"""What the kernel accepts of replies, the parser accepts, and both agree on where the reply ends and on what it says."""

import os
from random import Random

import pytest

from bpf import abi
from parsers.http1_answers import Refused
from parsers.http1_head import FIELDS_MAX, HEAD_END, LINE_MAX
from parsers.http1_replies import UNTIL_CLOSE, ReplyHead, read_reply
from policies import heads
from policies.heads import Proof, run
from policies.replies import FIELD_LINE_MIN, reply_table

SOAK = os.environ.get("SLUICE_SOAK") == "1"
TABLE = reply_table()
DATE = "Date: Tue, 24 Nov 2026 07:03:54 GMT"

# As these servers send them, N being the length of the body.
SERVERS: dict[str, list[str]] = {
    "nginx": [
        "Server: nginx/1.26.2",
        DATE,
        "Content-Type: text/html",
        "Content-Length: N",
        "Last-Modified: Tue, 24 Nov 2026 07:03:54 GMT",
        "Connection: keep-alive",
        'ETag: "67a1-264"',
        "Accept-Ranges: bytes",
    ],
    "go": ["Content-Type: application/json", DATE, "Content-Length: N"],
    "node": [
        "X-Powered-By: Express",
        "Content-Type: application/json; charset=utf-8",
        "Content-Length: N",
        'ETag: W/"d-abc"',
        DATE,
        "Connection: keep-alive",
        "Keep-Alive: timeout=5",
    ],
    "java": ["Content-Type: application/json", "Content-Length: N", DATE, "Keep-Alive: timeout=60", "Connection: keep-alive"],
    "java's own": [DATE, "Content-length: N"],
    "gunicorn": ["Server: gunicorn", DATE, "Connection: keep-alive", "Content-Type: text/plain", "Content-Length: N"],
    "envoy": [
        "content-length: N",
        "content-type: text/plain",
        DATE.lower(),
        "server: envoy",
        "x-envoy-upstream-service-time: 1",
    ],
}
STATUSES = [
    "200 OK",
    "200 OK",
    "200 OK",
    "201 Created",
    "404 Not Found",
    "500 Internal Server Error",
    "302 Found",
    "200 ",
    "403",
]
EXTRA = ["Vary: Accept-Encoding", "Set-Cookie: s=abc; Path=/", "Location: /x", "Cache-Control: no-store", "X-Id: 7f3a9c"]
HOSTILE = [
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding : identity",
    "\nX-Lines: a\nX-Alone: b",
    "Connection: close",
    "Connection: upgrade",
    "Upgrade: h2c",
    "Content-Length: 7",
    "content-length: 0",
    "Content-Length: 1, 1",
    "Content-Length : 3",
    "Connection: keep-alive, close",
    "A:1",
    " folded",
    "x",
]


def head(status: str, lines: list[str]) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def plausible(random: Random) -> bytes:
    lines = random.choice(list(SERVERS.values())) + random.sample(EXTRA, random.randrange(3))
    length = str(random.choice([0, 1, 13, 612, 65536, 10**9]))
    return head(random.choice(STATUSES), [line.replace(" N", f" {length}") for line in lines])


def hostile(random: Random) -> bytes:
    lines = random.sample(HOSTILE, random.randrange(1, 3)) + random.sample(EXTRA, random.randrange(3))
    random.shuffle(lines)
    return head(random.choice(["204 No Content", "304 Not Modified", "100 Continue", "101 x", "205 x", *STATUSES]), lines)


def read(data: bytes) -> ReplyHead | None:
    try:
        return read_reply(data)
    except Refused:
        return None


def check(data: bytes) -> Proof | None:
    """Law: what the table accepts is a final reply, on a connection that stays open, of which the parser says the same."""
    proof = run(TABLE, data)
    if proof is None:
        return None
    assert proof.head_length == data.find(HEAD_END) + len(HEAD_END), data
    reply = read(data[: proof.head_length])
    assert reply is not None, data
    assert not reply.tolerated, data
    assert reply.doubt is None, data
    assert reply.length == proof.head_length, data
    assert reply.http11, data
    assert reply.keep_alive, data
    assert reply.status == proof.status >= 200, data
    assert proof.no_reply_body == (reply.status in (204, 304)), data
    assert proof.bare == (reply.body == UNTIL_CLOSE), data
    if not proof.bare:
        assert reply.body == (0 if proof.no_reply_body else proof.body_length), data
    assert not reply.upgrade, data
    return proof


def test_ordinary_replies_with_a_length_are_accepted() -> None:
    random = Random(1)
    count = 2000
    accepted = 0
    for _ in range(count):
        data = plausible(random)
        assert read(data) is not None, data
        accepted += check(data) is not None
    assert accepted >= count * 0.95


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_is_known(name: str) -> None:
    assert check(head("200 OK", [line.replace(" N", " 5") for line in SERVERS[name]])) is not None


def test_hostile_replies_are_never_wrongly_accepted() -> None:
    random = Random(2)
    outcomes = {check(hostile(random)) is not None for _ in range(20_000 if SOAK else 3000)}
    assert outcomes == {True, False}


@pytest.mark.parametrize("status", ["200 OK", "204", "304 x"])
def test_no_single_byte_makes_an_accepted_head_a_wrongly_accepted_one(status: str) -> None:
    length = [] if status == "204" else ["Content-Length: 12"]
    data = head(status, [*length, "Connection: keep-alive", "X-Server: a"])
    assert check(data) is not None
    for at in range(len(data)):
        for byte in range(256):
            check(data[:at] + bytes([byte]) + data[at + 1 :])
            check(data[:at] + bytes([byte]) + data[at:])
        check(data[:at] + data[at + 1 :])
        assert check(data[:at]) is None, "a head that is not complete"


def test_chains_of_changes_are_never_wrongly_accepted() -> None:
    random = Random(3)
    pool = [line.encode() for line in (*HOSTILE, *EXTRA)]
    data, accepted = plausible(random), 0
    for number in range(50_000 if SOAK else 5000):
        if number % 50 == 0:
            data = plausible(random)
        at = random.randrange(len(data))
        byte = bytes([random.randrange(256)])
        line = data.find(b"\r\n", at) + 2
        changed = random.choice(
            [
                data[:at] + byte + data[at + 1 :],
                data[:at] + byte + data[at:],
                data[:at] + data[at + 1 :],
                data[:line] + random.choice(pool) + b"\r\n" + data[line:],
            ]
        )
        if check(changed) is not None:
            data, accepted = changed, accepted + 1
    assert accepted > 500


def test_the_bounds_of_a_proof_are_within_those_of_the_parser_and_the_kernel_has_the_same() -> None:
    assert abi.PathLimit.HEAD_BYTES == heads.HEAD_PROOF_MAX < LINE_MAX
    assert len(b"HTTP/1.1 200\r\n" + b"y" * FIELD_LINE_MIN * (FIELDS_MAX + 1) + b"\r\n") > heads.HEAD_PROOF_MAX
    most = b"HTTP/1.1 200\r\n" + b"x:%s\r\n" % (b"y" * (FIELD_LINE_MIN - 4)) * (FIELDS_MAX + 1) + b"\r\n"
    assert run(TABLE, most) is None
    assert abi.PathLimit.CELLS == heads.CLASSES
    assert abi.Step.STEP_LENGTH == heads.DIGIT
    assert abi.Step.STEP_NO_REPLY_BODY == heads.NO_REPLY_BODY
    assert abi.Step.STEP_ACCEPT == heads.ACCEPT
    assert abi.Step.STEP_STATUS == heads.STATUS
    assert abi.Step.STEP_ACCEPT_BARE == heads.ACCEPT_BARE
