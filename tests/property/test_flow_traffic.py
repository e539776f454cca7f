"""Laws 2, 3 and 4: what was judged is what is forwarded, for any split and any interleaving, with one record per call."""

import random
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.contract import Direction
from parsers.http1 import Http1Parser
from proxy import flow
from proxy.audit.record import AuditRecord
from tests.flow_playbook import REPLY, REQUEST, Dialogue


class Exchange(msgspec.Struct, frozen=True):
    """A request and what the server answers to it, if it ever sees it."""

    path: str
    request: bytes
    reply: bytes

    @property
    def denied(self) -> bool:
        return self.path.startswith("/no")


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\nx-sum: 1\r\n\r\n"


@st.composite
def exchanges(draw: st.DrawFn, number: int) -> Exchange:
    path = f"/{draw(st.sampled_from(['yes', 'no']))}/{number}"
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "PUT"]))
    bodies = st.lists(st.binary(max_size=300), max_size=3)
    head = f"{method} {path} HTTP/1.1\r\nhost: a\r\n".encode()
    match draw(st.sampled_from(["none", "length", "chunked"])) if method in ("POST", "PUT") else "none":
        case "none":
            request = head + b"\r\n"
        case "length":
            body = b"".join(draw(bodies))
            request = head + b"content-length: %d\r\n\r\n%s" % (len(body), body)
        case _:
            request = head + b"transfer-encoding: chunked\r\n\r\n" + chunked(draw(bodies))
    reply = b"HTTP/1.1 103 Early Hints\r\n\r\n" if draw(st.booleans()) else b""
    body = b"".join(draw(bodies))
    match draw(st.sampled_from(["length", "chunked", "204", "304"])):
        case "length":
            reply += b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + (b"" if method == "HEAD" else body)
        case "chunked":
            reply += b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            reply += b"" if method == "HEAD" else chunked([body])
        case "204":
            reply += b"HTTP/1.1 204 No Content\r\n\r\n"
        case _:
            reply += b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"
    return Exchange(path, request, reply)


conversations = st.integers(1, 6).flatmap(lambda count: st.tuples(*(exchanges(number) for number in range(count))))


class Wire:
    """Both ends of one connection, which send their bytes in pieces of any size, at any time."""

    def __init__(self, talk: tuple[Exchange, ...], chance: random.Random, largest: int) -> None:
        self.play = Dialogue(Http1Parser())
        self._chance = chance
        self._largest = largest
        self._allowed = [exchange for exchange in talk if not exchange.denied]
        self._to_send = [b"".join(exchange.request for exchange in talk), b""]
        self.got = [b"", b""]
        self._taken = [0, 0]
        self._answered = 0

    def run(self) -> None:
        while self.step():
            pass

    def step(self) -> bool:
        """One piece in one direction; False when neither has any more that is wanted."""
        ways = [way for way in (REQUEST, REPLY) if self._to_send[way] and self.play.flow.wants(way)]
        if ways:
            self._send(self._chance.choice(ways))
        return bool(ways)

    def _send(self, way: Direction) -> None:
        n = min(self._chance.randint(1, self._largest), len(self._to_send[way]))
        allowance = self.play.carry[way]
        carried = allowance and self._chance.random() < 0.7
        if carried:
            n = min(n, allowance)
        piece, self._to_send[way] = self._to_send[way][:n], self._to_send[way][n:]
        if carried:
            self.got[way] += piece
            self.play.carried(way, n)
        else:
            self.play.carry[way] = 0
            self.play.server(piece) if way is REPLY else self.play.client(piece)
        self._collect()
        self._serve()

    def _collect(self) -> None:
        """What was forwarded in this step comes behind what was carried before it."""
        for way, sent in ((REQUEST, self.play.to_server), (REPLY, self.play.to_client)):
            self.got[way] += sent[self._taken[way] :]
            self._taken[way] = len(sent)

    def _serve(self) -> None:
        """The server answers each request when it has all of it."""
        while self._answered < len(self._allowed):
            behind = sum(len(exchange.request) for exchange in self._allowed[: self._answered + 1])
            if len(self.got[REQUEST]) < behind:
                return
            self._to_send[REPLY] += self._allowed[self._answered].reply
            self._answered += 1


def told(records: list[AuditRecord]) -> list[tuple[Any, ...]]:
    return sorted((r.id, r.verdict, r.method, r.path, r.status, r.reason, r.bytes_request, r.bytes_reply) for r in records)


DENIAL = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\n"


@settings(max_examples=150, deadline=None)
@given(talk=conversations, seed=st.integers(0, 1 << 32), largest=st.sampled_from([1, 7, 50, 5000]))
def test_any_split_forwards_the_same_bytes_and_writes_the_same_records(
    talk: tuple[Exchange, ...], seed: int, largest: int
) -> None:
    with patch.object(flow, "CARRY_MIN", 16):
        wire = Wire(talk, random.Random(seed), largest)
        wire.run()
        whole = Wire(talk, random.Random(0), 1 << 30)
        whole.run()

    assert wire.got[REQUEST] == b"".join(exchange.request for exchange in talk if not exchange.denied)
    expected = b"".join(
        (DENIAL + (b"" if exchange.request.startswith(b"HEAD") else b"Access denied\r\n"))
        if exchange.denied
        else exchange.reply
        for exchange in talk
    )
    assert wire.got[REPLY] == expected
    records = wire.play.records
    assert sorted(record.path or "" for record in records) == sorted(exchange.path for exchange in talk)
    assert {record.path for record in records if record.verdict == "ALLOWED"} == {e.path for e in talk if not e.denied}
    assert sum(record.bytes_request or 0 for record in records) == sum(len(exchange.request) for exchange in talk)
    assert sum(record.bytes_reply or 0 for record in records) == len(expected)
    assert told(records) == told(whole.play.records)
    assert not wire.play.ended
    assert wire.play.flow.idle


@settings(max_examples=150, deadline=None)
@given(
    talk=conversations,
    seed=st.integers(0, 1 << 32),
    steps=st.integers(0, 40),
    ending=st.sampled_from(["client_ends", "client_resets", "server_ends", "server_resets", "stop", "idles", "drain"]),
)
def test_every_call_that_was_judged_has_one_record_wherever_the_connection_ends(
    talk: tuple[Exchange, ...], seed: int, steps: int, ending: str
) -> None:
    with patch.object(flow, "CARRY_MIN", 16):
        wire = Wire(talk, random.Random(seed), 40)
        for _ in range(steps):
            wire.step()
        getattr(wire.play, ending)()
        wire.play.stop()

    assert wire.play.ended
    calls = [record for record in wire.play.records if ".r" not in record.id]
    assert len(calls) == len(wire.play.policy.asked)
    assert len({record.id for record in wire.play.records}) == len(wire.play.records)
    allowed = b"".join(exchange.request for exchange in talk if not exchange.denied)
    assert allowed.startswith(wire.got[REQUEST])
