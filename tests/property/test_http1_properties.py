"""What holds for every HTTP/1.1 conversation, however its bytes are split and whatever they are.

The oracles are httptools (llhttp, the parser of Node.js) and h11 (the grammar written from the RFC). What they accept and
this parser refuses is listed in docs/http1.md.
"""

import os
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import h11
import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsers import http1_chunked
from parsers.contract import ApiCall, Direction, Fail
from parsers.http1 import Http1Parser
from tests.corpus_loader import hostile_requests
from tests.playbook import ALLOW, DENY, Playbook, Verdict

SOAK = 100 if os.environ.get("SLUICE_SOAK") == "1" else 1
pytestmark = pytest.mark.timeout(120 * SOAK)


def examples(count: int) -> settings:
    return settings(max_examples=count * SOAK, deadline=None, suppress_health_check=[HealthCheck.too_slow])


DENIED = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\nAccess denied\r\n"
PROBE = b"GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n"


def deny_deletes(call: ApiCall) -> Verdict:
    return DENY if call.method == "DELETE" else ALLOW


# Traffic

names = st.sampled_from(["X-A", "x-b", "Accept", "Cookie", "User-Agent", "A!#$%&'*+-.^_`|~9"])
values = st.text(st.sampled_from('abc 1,;="\t\xe9/'), max_size=12).map(lambda text: text.strip(" \t").encode("latin-1"))
fields = st.lists(st.tuples(names.map(str.encode), values), max_size=4)
targets = st.text(st.sampled_from("ab/.%27?&=~[]|"), max_size=12).map(lambda text: b"/" + text.encode())


def field_lines(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in pairs)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A framing field line and the body on the wire."""
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "none":
        return b"", b""
    if kind == "length":
        body = draw(st.binary(max_size=60))
        return b"Content-Length: %d\r\n" % len(body), body
    wire = b""
    for chunk in draw(st.lists(st.binary(min_size=1, max_size=30), max_size=3)):
        extension = draw(st.sampled_from([b"", b";a", b';a=b;c="d\\" e"']))
        wire += draw(st.sampled_from([b"%x", b"%X", b"0%x"])) % len(chunk) + extension + b"\r\n" + chunk + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
    return b"Transfer-Encoding: chunked\r\n", wire + b"0\r\n" + trailers + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A method and a whole request."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS"]))
    framing, body = draw(bodies())
    extra = field_lines(draw(fields))
    return method, method + b" " + draw(targets) + b" HTTP/1.1\r\nHost: a.example\r\n" + framing + extra + b"\r\n" + body


@st.composite
def replies(draw: st.DrawFn, method: bytes) -> bytes:
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]))
    status = draw(st.sampled_from([b"200 OK", b"404 Not Found", b"204 No Content", b"304 Not Modified"]))
    if status[:3] in (b"204", b"304"):
        framing, body = b"", b""
    else:
        framing, body = draw(bodies().filter(lambda framed: framed[0]))
    if method == b"HEAD":
        body = b""
    return interim + b"HTTP/1.1 " + status + b"\r\n" + framing + field_lines(draw(fields)) + b"\r\n" + body


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[bytes, bytes, bytes]]:
    """Pipelined (method, request, reply); a denied request's reply is the denial."""
    talk = []
    for method, request in draw(st.lists(requests(), min_size=1, max_size=5)):
        reply = DENIED if method == b"DELETE" else draw(replies(method))
        talk.append((method, request, reply))
    return talk


def cut(draw: Callable[[st.SearchStrategy[Any]], Any], data: bytes) -> list[bytes]:
    """Split ``data`` at random places, often next to a line's end."""
    places = st.integers(0, len(data))
    ends = [at + shift for at in range(len(data)) if data[at] == 10 for shift in (-1, 0, 1) if at + shift > 0]
    if ends:
        places |= st.sampled_from(ends)
    at = [0, *sorted(draw(st.sets(places, max_size=6))), len(data)]
    return [data[start:stop] for start, stop in pairwise(at)]


@st.composite
def early_replies(draw: st.DrawFn) -> tuple[bytes, bytes, bytes, bytes]:
    """A request's beginning, the rest of its body, the reply's head and its body."""
    framing, body = draw(bodies().filter(lambda framed: len(framed[1]) > 1))
    expect = draw(st.sampled_from([b"", b"Expect: 100-continue\r\n"]))
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + expect + framing + b"\r\n"
    there = 0 if expect else draw(st.integers(0, len(body) - 1))
    status = draw(st.sampled_from([b"200 OK", b"302 Found", b"401 Unauthorized", b"503 Busy"]))
    reply_framing, reply_body = draw(bodies().filter(lambda framed: framed[0]))
    reply = b"HTTP/1.1 " + status + b"\r\n" + reply_framing + b"\r\n"
    return head + body[:there], body[there:], reply, reply_body


class TestEarlyReplies:
    @examples(250)
    @given(st.data())
    def test_any_split_stops_the_request_at_the_same_place(self, data: st.DataObject) -> None:
        """A refusal stops it with its head, any other reply with its end; the client gets all of the reply, and no more."""
        begun, rest, head, body = data.draw(early_replies())
        play = Playbook(Http1Parser())
        for piece in cut(data.draw, begun):
            play.client(piece)
        for piece in cut(data.draw, head):
            play.server(piece)
        refused = not head.startswith(b"HTTP/1.1 2") or b"Expect" in begun
        at = data.draw(st.integers(0, len(rest) - 1))
        for piece in cut(data.draw, rest[:at]):
            play.client(piece)
        for piece in cut(data.draw, body):
            play.server(piece)
        play.client(rest[at:] + b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
        sent = b"" if refused or not body else rest[:at]
        assert (begun + sent).startswith(play.to_server)
        assert play.to_server == begun + sent or b"chunked" in begun  # a size line goes on when it is complete
        assert play.to_client == head + body
        assert play.fail == Fail("early-reply", call=0)
        assert len(play.calls) == 1


class TestSplits:
    @examples(250)
    @given(st.data())
    def test_any_split_gives_the_same_calls_and_output(self, data: st.DataObject) -> None:
        talk = data.draw(conversations())
        client = cut(data.draw, b"".join(request for _, request, _ in talk))
        allowed = [(request, reply) for method, request, reply in talk if method != b"DELETE"]
        play = Playbook(Http1Parser(), deny_deletes)
        replied = 0
        while client or replied < len(allowed):
            ready = b"".join(request for request, _ in allowed[: replied + 1])
            can_reply = replied < len(allowed) and play.to_server.startswith(ready)
            if client and not (can_reply and data.draw(st.booleans())):
                play.client(client.pop(0))
            else:
                assert can_reply, "a request that the server needs has not been passed"
                for piece in cut(data.draw, allowed[replied][1]):
                    play.server(piece)
                replied += 1
        play.client(end=True)
        assert play.fail is None
        assert play.to_server == b"".join(request for request, _ in allowed)
        assert play.to_client == b"".join(reply for _, _, reply in talk)
        assert [call.method for call in play.calls] == [method.decode() for method, _, _ in talk]
        assert play.done == list(range(len(talk)))
        assert play.parser.at_boundary

    @examples(250)
    @given(st.data())
    def test_any_split_of_broken_bytes_gives_the_same_refusal(self, data: st.DataObject) -> None:
        stream = data.draw(broken_streams())
        whole = Playbook(Http1Parser(), deny_deletes).client(stream, end=True)
        split = Playbook(Http1Parser(), deny_deletes)
        for piece in cut(data.draw, stream):
            if split.fail is None:
                split.client(piece)
        split.client(end=True)
        assert outcome(split) == outcome(whole)

    @examples(150)
    @given(st.data())
    def test_any_split_of_a_broken_reply_gives_the_same_end(self, data: st.DataObject) -> None:
        method, request = data.draw(requests().filter(lambda request: request[0] != b"DELETE"))
        stream = data.draw(mutated(data.draw(replies(method))))
        whole = Playbook(Http1Parser()).client(request).server(stream, end=True)
        split = Playbook(Http1Parser()).client(request)
        for piece in cut(data.draw, stream):
            if split.fail is None:
                split.server(piece)
        split.server(end=True)
        assert outcome(split) == outcome(whole)
        assert whole.fail is not None or whole.done == [0] or whole.tunnel == 0


def outcome(play: Playbook) -> tuple[Any, ...]:
    fail = play.fail
    told = fail and (fail.reason, fail.last_words, fail.status, fail.call, fail.limit)
    partial = fail.partial if fail else None
    seen = partial and (partial.method, partial.path)
    calls = [(call.method, call.path, call.headers) for call in play.calls]
    return play.to_server, play.to_client, calls, play.replies, play.done, told, seen, play.left, sorted(set(play.tolerated))


# Oracles

_HOSTILE = [case.request for case in hostile_requests() if len(case.request) < 400]
_INSERTS = [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\x00", b",", b";", b"0", b"Host: b\r\n", b"Content-Length: 3\r\n"]
_INSERTS += [b"Transfer-Encoding: gzip, chunked\r\n", b"\n\n", b" :", b"\r\n x"]
_INSERTS += [b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"\r\n\r\n", b"GET /x HTTP/1.1\r\n"]


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "replace", "delete", "repeat"]))
        if kind == "insert":
            data = data[:at] + draw(st.sampled_from(_INSERTS)) + data[at:]
        elif kind == "replace":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "delete":
            data = data[:at] + data[at + draw(st.integers(1, 3)) :]
        else:
            data = data[:at] + data[max(0, at - draw(st.integers(1, 30))) :]
    return data


@st.composite
def broken_streams(draw: st.DrawFn) -> bytes:
    good = b"".join(request for _, request in draw(st.lists(requests(), min_size=1, max_size=2)))
    return draw(mutated(good) | st.sampled_from(_HOSTILE).flatmap(mutated))


class LlHttp:
    """What httptools reads in a stream of requests."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, list[tuple[str, str]], bytes]] = []
        self._url = b""
        self._fields: list[tuple[str, str]] = []
        self._body = b""

    def on_message_begin(self) -> None:
        self._url, self._fields, self._body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        self._head_fields = list(self._fields)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        parser = self.parser
        message = (parser.get_method().decode(), self._url.decode(), self._head_fields, self._body)
        self.messages.append(message)

    def read(self, data: bytes) -> bool:
        """Read all of ``data``; False when httptools refuses it."""
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return True
        except httptools.HttpParserError:
            return False
        return True


def read_with_h11(data: bytes) -> tuple[str, str, list[tuple[str, str]], bytes, bytes] | None:
    """Read one whole request: method, target, fields, body and what is left. None when h11 refuses it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    assert request is not None
    head = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
    return request.method.decode(), request.target.decode(), head, body, connection.trailing_data[0]


def passed_requests(play: Playbook) -> list[tuple[ApiCall, bytes]]:
    """Each passed call with its bytes, head and body."""
    at, parts = 0, []
    for number, call in enumerate(play.calls):
        length = play.bytes[number][Direction.REQUEST]
        if length:
            parts.append((call, play.to_server[at : at + length]))
        at += length
    assert at == len(play.to_server)
    return parts


def check_against_oracles(call: ApiCall, wire: bytes, complete: bool, must_accept: bool) -> None:
    """Both oracles see one request in ``wire``, that call, and what follows as a new request."""
    raw_target = wire.split(b" ", 2)[1].decode("latin-1")
    llhttp = LlHttp()
    accepted = llhttp.read(wire)
    assert accepted or not must_accept, "httptools refuses"
    if accepted:
        assert len(llhttp.messages) == (1 if complete else 0)
        for method, target, head, _ in llhttp.messages:
            assert (method, target, tuple(head)) == (call.method, raw_target, call.headers)
    request = read_with_h11(wire + PROBE if complete else wire)
    assert request is not None or not (must_accept and complete), "h11 refuses"
    if request is not None:
        assert complete, "h11 sees the end of a request that is not complete"
        method, target, head, body, rest = request
        assert (method, target, tuple(head)) == (call.method, raw_target, call.headers)
        assert rest == PROBE
        if accepted:
            assert body == llhttp.messages[0][3]


class TestOracles:
    @examples(250)
    @given(requests())
    def test_what_is_accepted_reads_the_same_elsewhere(self, request: tuple[bytes, bytes]) -> None:
        play = Playbook(Http1Parser()).client(request[1])
        assert play.to_server == request[1]
        check_against_oracles(play.calls[0], request[1], complete=True, must_accept=True)

    @examples(500)
    @given(broken_streams())
    def test_what_passes_of_broken_bytes_is_framed_the_same_elsewhere(self, stream: bytes) -> None:
        play = Playbook(Http1Parser()).client(stream, end=True)
        for _ in play.calls[1:]:  # a broken body is told when its turn comes
            play.server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        parts = passed_requests(play)
        for number, (call, wire) in enumerate(parts):
            cut_off = number == len(parts) - 1 and play.fail is not None and play.fail.call is not None
            check_against_oracles(call, wire, complete=not cut_off, must_accept=False)

    @examples(150)
    @given(st.binary(max_size=80), st.binary(max_size=80))
    def test_no_bytes_raise_or_loop(self, client: bytes, server: bytes) -> None:
        play = Playbook(Http1Parser()).client(PROBE + client)
        if play.fail is None:
            play.server(server)
        play.client(end=True)
        if play.fail is None:
            play.server(end=True)

    @pytest.mark.parametrize(
        ("request_bytes", "accepted_by"),
        [
            (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nxxxxx", "h11"),
            (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", "h11"),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", "h11"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "h11"),
            (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "both"),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "httptools"),
            (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "both"),
            (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", "both"),
            (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "both"),
            (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "both"),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "httptools"),
            (b"GET / HTTP/1.1\r\nX: y\r\n\r\n", "httptools"),
        ],
    )
    def test_what_others_accept_and_this_parser_refuses(self, request_bytes: bytes, accepted_by: str) -> None:
        """The table of docs/http1.md, kept true."""
        assert Playbook(Http1Parser()).client(request_bytes).fail is not None
        assert (read_with_h11(request_bytes) is not None) == (accepted_by in ("h11", "both"))
        assert LlHttp().read(request_bytes) == (accepted_by in ("httptools", "both"))


@examples(100)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([b"", b";a", b";a=b", b'; a="\r\n"']), st.booleans()), max_size=300),
    st.integers(1, 400),
)
def test_tiny_chunks_are_found_many_at_a_time_as_one_by_one(chunks: list[tuple[int, bytes, bool]], piece: int) -> None:
    data = b"".join(
        (b"%x" if lower else b"0%X") % size + extension + b"\r\n" + b"\n\r" * (size // 2) + b"0" * (size % 2) + b"\r\n"
        for size, extension, lower in chunks
    )
    data += b"0\r\n\r\nGET"

    def settled(pattern: "re.Pattern[bytes]") -> tuple[int, bool, object]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(http1_chunked, "_TINY_CHUNKS", pattern)
            body, at, end = http1_chunked.ChunkedBody(), 0, piece
            while not (body.finished or body.fault) and (at < len(data) or end < len(data)):
                before = at
                at = body.scan(data[:end], at) if at < end else at
                if at == before or at >= end:
                    end += piece
            return at, body.finished, body.fault

    one_by_one = re.compile(rb"(?!)")
    assert settled(http1_chunked._TINY_CHUNKS) == settled(one_by_one)
