"""Law 7: whatever part of a conversation the kernel carries, nothing changes but the field that says how."""

import os
import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.http1 import Http1Parser
from parsers.http1_head import HEAD_END
from proxy.flow import CARRY_MIN, Carried
from tests.flow_playbook import REQUEST, Dialogue, Direction

SOAK = os.environ.get("SLUICE_SOAK") == "1"


class Exchange(msgspec.Struct, frozen=True):
    request: bytes
    reply: bytes
    denied: bool = False

    @property
    def status(self) -> int:
        return int(self.reply[9:12])


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    """Calls that the kernel could carry, and denied ones, which it could not."""
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "PUT"]))
    sizes = st.sampled_from([0, 1, 2, 17, 300, CARRY_MIN + 5])
    size = draw(sizes)
    denied = draw(st.integers(0, 4)) == 0
    path = f"/{'no' if denied else 'yes'}/{draw(st.integers(0, 2))}"
    length = f"content-length: {size}\r\n" if method in ("POST", "PUT") and (size or draw(st.booleans())) else ""
    request = f"{method} {path} HTTP/1.1\r\nhost: a\r\n{length}\r\n".encode() + (b"q" * size if length else b"")
    size = draw(sizes)
    match draw(st.sampled_from(["length", "length", "204", "304"])):
        case "length":
            reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + (b"" if method == "HEAD" else b"r" * size)
        case "204":
            reply = b"HTTP/1.1 204 No Content\r\n\r\n"
        case _:
            reply = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"
    return Exchange(request, reply, denied)


def head_of(message: bytes) -> bytes:
    return message[: message.index(HEAD_END) + len(HEAD_END)]


class Wire:
    """Both ends, and the kernel between them, of one connection after its first call."""

    def __init__(self, chance: random.Random) -> None:
        self.play = Dialogue(Http1Parser())
        self.chance = chance
        self.by_kernel = [b"", b""]
        self.got = [b"", b""]
        self._taken = [0, 0]
        self.relay(Exchange(b"GET /yes HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 204 x\r\n\r\n"))

    def send(self, way: Direction, data: bytes) -> None:
        while data:
            n = self.chance.choice([1, 7, len(data)]) if len(data) < 1000 else self.chance.randint(1000, len(data) + 999)
            allowance = self.play.carry[way]
            if allowance:  # as the transport does: no byte is looked at before so many have gone by
                n = min(n, allowance)
            piece, data = data[:n], data[n:]
            if allowance:
                self.got[way] += piece
                self.play.carried(way, len(piece))
            elif way is REQUEST:
                self.play.client(piece)
            else:
                self.play.server(piece)
            self._collect()

    def _collect(self) -> None:
        for way, sent in enumerate((self.play.to_server, self.play.to_client)):
            self.got[way] += sent[self._taken[way] :]
            self._taken[way] = len(sent)

    def relay(self, exchange: Exchange) -> None:
        self.send(REQUEST, exchange.request)
        if not exchange.denied:
            self.send(Direction.REPLY, exchange.reply)

    def carry(self, exchange: Exchange) -> None:
        """The kernel carries all of it."""
        assert self.play.flow.lend() is not None
        self.play.carried_call(head_of(exchange.request), len(exchange.request), len(exchange.reply), exchange.status, took=0)
        self.got[0] += exchange.request
        self.got[1] += exchange.reply

    def adopt(self, exchange: Exchange) -> None:
        """The kernel carries some of it: at least the request's head, at most all but a byte of the reply."""
        assert self.play.flow.lend() is not None
        request, reply = exchange.request, exchange.reply
        head, reply_head = head_of(request), head_of(reply)
        sent = self.chance.choice([len(head), self.chance.randint(len(head), len(request)), len(request)])
        answered = 0
        if sent == len(request) and len(reply) > len(reply_head) and self.chance.random() < 0.7:
            answered = self.chance.choice(
                [len(reply_head), len(reply) - 1, self.chance.randint(len(reply_head), len(reply) - 1)]
            )
        self.play.adopt(
            Carried(
                self.play.now,
                head,
                sent,
                reply_head if answered else b"",
                answered,
                exchange.status if answered else 0,
            )
        )
        self.got[0] += request[:sent]
        self.got[1] += reply[:answered]
        self.send(REQUEST, request[sent:])
        self.send(Direction.REPLY, reply[answered:])


def told(play: Dialogue) -> list[dict[str, Any]]:
    """The records, without what may differ."""
    found = []
    for record, _ in play.sink.written:
        line = record if isinstance(record, str) else msgspec.json.encode(record)
        fields = msgspec.json.decode(line)
        found.append({name: value for name, value in fields.items() if name not in ("via", "time")})
    return found


@settings(max_examples=3000 if SOAK else 150, deadline=None)
@given(talk=st.lists(exchanges(), min_size=1, max_size=6), seed=st.integers(0, 1 << 32))
def test_calls_that_the_kernel_carries_or_begins_are_as_if_forwarded_by_us(talk: list[Exchange], seed: int) -> None:
    chance = random.Random(seed)
    ours, shared = Wire(random.Random(seed)), Wire(chance)
    for exchange in talk:
        ours.relay(exchange)
        way = shared.relay if exchange.denied else chance.choice([shared.relay, shared.carry, shared.adopt])
        way(exchange)
        assert shared.play.flow.idle, "one call, wholly over"
    assert shared.got == ours.got
    assert told(shared.play) == told(ours.play)
    assert len(told(ours.play)) == len(talk) + 1
    assert shared.play.faults == ours.play.faults == []
    assert shared.play.flow.lend() is not None


@settings(max_examples=1000 if SOAK else 100, deadline=None)
@given(
    exchange=exchanges().filter(lambda exchange: not exchange.denied),
    seed=st.integers(0, 1 << 32),
    ending=st.sampled_from(["client_ends", "client_resets", "server_ends", "server_resets", "stop", "idles", "drain"]),
    pipelined=st.booleans(),
)
def test_however_a_connection_ends_behind_an_adopted_call_its_record_is_as_ever(
    exchange: Exchange, seed: int, ending: str, pipelined: bool
) -> None:
    chance = random.Random(seed)
    request, reply = exchange.request, exchange.reply
    head, reply_head = head_of(request), head_of(reply)
    sent = chance.randint(len(head), len(request))
    answered = 0
    if sent == len(request) and len(reply) > len(reply_head):
        answered = chance.choice([0, chance.randint(len(reply_head), len(reply) - 1)])
    ours, shared = Wire(chance), Wire(chance)
    ours.play.client(request[:sent])
    if answered:
        ours.play.server(reply[:answered])
    assert shared.play.flow.lend() is not None
    shared.play.adopt(Carried(0.0, head, sent, reply_head if answered else b"", answered, 0))
    for wire in (ours, shared):
        if pipelined and sent == len(request):
            wire.play.client(b"GET /no/behind HTTP/1.1\r\nhost: a\r\n\r\n")
        getattr(wire.play, ending)()
        wire.play.stop()
    assert told(shared.play) == told(ours.play)
    assert [type(command) for command in shared.play.commands] == [type(command) for command in ours.play.commands]
    assert shared.play.faults == []
    of_call = [line for line in told(shared.play) if line["id"] == "c.1"]
    assert len(of_call) == 1
    assert of_call[0]["bytesRequest"] == sent
