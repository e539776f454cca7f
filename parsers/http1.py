"""HTTP/1.1 and HTTP/1.0: one connection's conversation (RFC 9112).

The heads are read by ``http1_head``; here lives what one message means for the next. Each direction has one state, which
is a method of the parser: it is given the bytes from ``data[at]`` on, appends verbs, and returns up to where they settle.

Order of replies. The server answers in the order of the requests that were passed to it. What the parser answers itself,
a denial or an error, has to wait until every earlier call is over. Only one such answer can exist, because the request
direction stops behind it (``Hold``): ``_own`` keeps it, and it is given in the verbs of whichever direction ends the last
earlier call.

Ends of bodies. A body of known length is passed in one verb when all of it is there. Otherwise its last byte is left to a
second verb: bytes that a ``Pass`` has announced arrive without the parser being asked, so only a byte that it still waits
for can tell it whether the body ended or the connection did.

A call is over when both its request and its reply are complete. A reply may begin before its request's body ends, and both
may go on together; but a server whose reply is *complete* by then may take what is left of the body for its next request.
So nothing of the request goes on behind an early reply, and the connection ends with it. A server that refuses (its status is
not 2xx) does not read on while it writes its reply: there nothing goes on behind the reply's head. A body that is announced
with ``Expect`` is kept back until the server has said what it will do with it.
"""

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from parsers import http1_answers as faults
from parsers.contract import (
    ApiCall,
    Direction,
    Done,
    Drop,
    Fail,
    Hold,
    Inject,
    Judge,
    Leave,
    More,
    Opaque,
    Outage,
    Pass,
    Reply,
    Ruling,
    Tolerated,
    Verb,
    Void,
)
from parsers.http1_answers import Fault, Refused, answer
from parsers.http1_chunked import ChunkedBody
from parsers.http1_head import (
    CHUNKED,
    HEAD_END,
    HEAD_MAX,
    PROTOCOL,
    REQUEST_HEADS,
    UNJUDGED_UPGRADES,
    RequestHead,
    early_fault,
    edit_head,
    partial_call,
)
from parsers.http1_replies import MAYBE_AN_END, REPLY_HEADS, UNTIL_CLOSE, ReplyHead, early_reply_fault, find_head

OPEN_CALLS_MAX = 64  # calls passed to the server and not over; more pipelined requests wait with the transport
# Seconds that a body with Expect is kept back for the server's answer. Servers that know nothing of Expect wait for the body,
# and clients that find out send it after about a second (RFC 9110 section 10.1.1).
EXPECT_PATIENCE = 1.0
DRAIN_MAX = 1024 * 1024  # bytes of a denied request's body that are read away to keep the connection usable
EARLY_REPLY = "early-reply"  # the reason of a call whose reply was complete before its request was, and ended the connection
VERBS_MAX = 32  # said at once about what a server sends: it may be thousands of tiny replies, and others want their turn
# How servers begin to say that a kept connection was idle for too long, before they close it.
_TIMED_OUT = (b"HTTP/1.1 408", b"HTTP/1.0 408")
_RAW_PROTOCOL = ("tcp",)  # what Docker's clients ask for
_LAST_CHUNK = b"0\r\n\r\n"
UNTIL_CLOSE_LENGTH = 1 << 62  # bytes; more than any connection carries

_State = Callable[["Http1Parser", bytes, int, list[Verb]], int]
_MORE = More()
_HOLD = Hold()
# What a state returns instead of a position.
_NEED_MORE = -1  # the next message or part has begun and is not complete
_STOP = -2  # nothing of this direction can be settled before something else happens
_PAUSE = -3  # enough for once

_OUTAGES = {
    Outage.UNREACHABLE: (502, "the server cannot be reached"),
    Outage.TIMEOUT: (504, "the server did not answer in time"),
    Outage.RESET: (502, "the server closed the connection"),
    Outage.OVERLOAD: (503, "a limit was reached, try again later"),
}


class _OwnAnswer(msgspec.Struct, frozen=True):
    """What the client is told in the server's place, once the calls before ``turn`` are over."""

    turn: int
    fail: Fail
    polite: tuple[Verb, ...] = ()  # instead of ``fail``, when the connection stays usable


class _Call:
    """A call between its Judge and its end."""

    __slots__ = ("answering", "denial", "head", "number", "sent", "trailers")

    def __init__(self, number: int, head: RequestHead) -> None:
        self.number = number
        self.head = head
        self.denial: _OwnAnswer | None = None
        self.sent = False  # all of the request has been passed
        self.answering = False  # the final reply has begun
        self.trailers = True  # whether its body may have some


class Http1Parser:
    """One HTTP/1 connection, as ``parsers.contract.Parser``."""

    __slots__ = (
        "_body",
        "_buffered",
        "_closing",
        "_current",
        "_drained",
        "_empty_line_seen",
        "_leaving",
        "_next_number",
        "_open",
        "_own",
        "_reply_body",
        "_reply_searched",
        "_reply_state",
        "_request_searched",
        "_request_state",
        "_served",
    )

    protocol = PROTOCOL
    kept = 0

    def __init__(self) -> None:
        self._next_number = 0
        self._open: deque[_Call] = deque()  # passed to the server and not over
        self._current: _Call | None = None  # judged, and not passed: policy is asked, or its denial is under way
        self._own: _OwnAnswer | None = None
        self._closing = False  # the client has been told that no reply will follow
        self._leaving = False  # the reply that is under way must be the last one
        self._buffered = 0  # bytes of the current call that were there when it was judged
        self._drained = 0  # bytes of the current, denied call's chunked body that were dropped
        self._empty_line_seen = False
        self._served = False  # the server has answered on this connection
        self._request_searched = 0  # bytes of an incomplete head that need no second look
        self._reply_searched = 0
        self._body: ChunkedBody = ChunkedBody()
        self._reply_body: ChunkedBody = ChunkedBody()
        self._request_state: _State = Http1Parser._read_request
        self._reply_state: _State = Http1Parser._read_reply

    @property
    def at_boundary(self) -> bool:
        return (
            not self._open
            and self._current is None
            and self._own is None
            and not self._empty_line_seen  # the next call must not come with another
            and self._request_searched == 0
            and self._reply_searched == 0
            and self._request_state is Http1Parser._read_request
            and self._reply_state is Http1Parser._read_reply
        )

    @property
    def prefixes(self) -> None:
        return None

    def policy_changed(self) -> None:
        pass

    @property
    def next_number(self) -> int:
        return self._next_number

    def skip(self, calls: int) -> None:
        self._next_number += calls
        self._served = self._served or calls > 0

    def recall(self, head: bytes, reply: bytes) -> tuple[ApiCall, None]:
        return REQUEST_HEADS[head].call, None

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        verbs: list[Verb] = []
        at = settled = 0
        if direction is Direction.REQUEST:
            while 0 <= at < len(data):
                settled = at
                at = self._request_state(self, data, at, verbs)
        else:
            while 0 <= at < len(data):
                at = self._reply_state(self, data, at, verbs) if len(verbs) < VERBS_MAX else _PAUSE
        # With a position behind the data the transport asks again when those bytes have come, or cannot come any more.
        if end and _NEED_MORE <= at <= len(data):
            if direction is Direction.REQUEST:
                self._request_ended(data[settled:] if at == _NEED_MORE else b"", verbs)
            else:
                self._reply_ended(at == _NEED_MORE, verbs)
        elif at == _NEED_MORE:
            verbs.append(_MORE)
        return verbs

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        call = self._current
        if call is None or call.number != number:
            return [self._dead(Fail("ruling-without-judge"))]
        if not ruling.allowed:
            if ruling.bad_request:
                return self._deny(call, 400, faults.BAD_PATH_TEXT)
            return self._deny(call, 403, faults.DENIED_TEXT)
        head = call.head
        verbs: list[Verb] = []
        length = len(head.wire)
        if ruling.edits:
            edited = edit_head(head.wire, ruling.edits)
            if edited is None:
                return self._deny(call, 403, faults.DENIED_TEXT)
            verbs += (Drop(length, number), Inject(Direction.REQUEST, edited, number))
            length = 0
        self._current = None
        call.trailers = ruling.trailers
        self._open.append(call)
        self._begin_body(call, length, Pass, verbs)
        return verbs

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        if self._reply_state is Http1Parser._read_stray_end:
            verbs: list[Verb] = []
            self._reply_over(verbs)
            return verbs
        if outage is Outage.SLOW_CLIENT:
            return self._time_out_request()
        if outage is Outage.SLOW_SERVER:
            if self._request_state is Http1Parser._await_continue:
                self._request_state = Http1Parser._begin_held_body
            return ()
        if outage is Outage.TIMEOUT and self._request_state is Http1Parser._begin_held_body:
            return self._time_out_request()  # it was told to continue, and does not
        status, text = _OUTAGES[outage]
        oldest = self._open[0] if self._open else self._current
        number = None if oldest is None else oldest.number
        if oldest is not None and oldest.denial is not None:  # it needs no server
            return [self._dead(oldest.denial.fail)]
        # A connection that breaks between calls owes nothing; inside a reply, words would become part of that reply. A server
        # may close a kept connection while a request is under way: clients know this and ask again, if they see a close.
        silent = self._closing or (outage is Outage.RESET and (oldest is None or self._served)) or (oldest and oldest.answering)
        if silent:
            return [self._dead(Fail(outage.value, call=number))]
        words = answer(status, text, close=True, with_body=oldest is None or oldest.head.call.method != "HEAD")
        return [self._dead(Fail(outage.value, words, status, number))]

    # Requests

    def _read_request(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        if len(self._open) >= OPEN_CALLS_MAX:
            return self._hold(data, at, verbs)
        if data[at] == 13 and not self._empty_line_seen:  # RFC 9112 section 2.2: one empty line is forgiven, not passed on
            if data.startswith(b"\r\n", at):
                self._empty_line_seen = True
                verbs.append(Drop(2))
                return at + 2
            if len(data) == at + 1:
                return _NEED_MORE
        searched = self._request_searched
        end = data.find(HEAD_END, at + searched - 3 if searched > 3 else at, at + HEAD_MAX)
        if end < 0:
            rest = data[at:]
            fault = early_fault(rest, max(0, searched - 1))
            if fault is not None:
                return self._refuse_request(fault, rest, verbs)
            self._request_searched = len(rest)
            return _NEED_MORE
        wire = data[at : end + 4]
        self._request_searched = 0
        self._empty_line_seen = False
        try:
            head = REQUEST_HEADS[wire]
        except Refused as refused:
            return self._refuse_request(refused.fault, wire, verbs)
        number = self._next_number
        self._next_number = number + 1
        self._current = _Call(number, head)
        self._buffered = len(data) - at
        self._request_state = Http1Parser._hold
        verbs.append(Judge(number, head.call))
        return _STOP

    def _begin_body(self, call: _Call, length: int, settle: type[Pass] | type[Drop], verbs: list[Verb]) -> None:
        """Settle ``length`` bytes of the head and what can be said of the body."""
        body = call.head.body
        if body == CHUNKED:
            self._body = ChunkedBody(call.trailers)
        if body and settle is Pass and call.head.expects and call.head.http11:  # RFC 9110: not in HTTP/1.0
            self._request_state = Http1Parser._await_continue
        elif body == CHUNKED:
            self._request_state = Http1Parser._read_request_chunks
        elif len(call.head.wire) + body <= self._buffered:
            length += body
        else:
            length += body - 1
            self._request_state = Http1Parser._read_request_last_byte
        if length:
            verbs.append(settle(length, call.number))
        if self._request_state is Http1Parser._hold:
            self._request_over(call, verbs)

    def _await_continue(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        """Keep the body back: a server that refuses it may not read it, and would take it for the next request."""
        verbs.append(Hold(EXPECT_PATIENCE) if self._open[-1] is self._open[0] else _HOLD)
        return _STOP

    def _begin_held_body(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        call = self._open[-1]
        body = call.head.body
        if body == CHUNKED:
            self._request_state = Http1Parser._read_request_chunks
            return at
        if body <= len(data) - at:
            verbs.append(Pass(body, call.number))
            self._request_over(call, verbs)
            return at + body
        self._request_state = Http1Parser._read_request_last_byte
        verbs.append(Pass(body - 1, call.number))
        return at + body - 1

    def _discard_body(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        """The server has refused the request before it got all of it. The connection ends with its reply."""
        verbs.append(Drop(len(data) - at, self._open[-1].number))
        return len(data)

    def _read_request_last_byte(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        call, settle = self._sending()
        verbs.append(settle(1, call.number))
        self._request_over(call, verbs)
        return at + 1

    def _read_request_chunks(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        call, settle = self._sending()
        behind = self._body.scan(data, at)
        if call.denial is not None:
            self._drained += behind - at
            if self._drained > DRAIN_MAX:
                return self._answer(_OwnAnswer(call.number, call.denial.fail), verbs)
        if behind > at:
            verbs.append(settle(behind - at, call.number))
        if self._body.fault is not None:
            return self._break_request(self._body.fault, call, verbs)
        if self._body.finished:
            self._request_over(call, verbs)
            return behind
        return behind if behind >= len(data) else _NEED_MORE if self._body.starved else _PAUSE

    def _sending(self) -> tuple[_Call, type[Pass] | type[Drop]]:
        """Return the call whose body is under way, and the verb that settles it: a denied one is drained."""
        if self._current is not None:
            return self._current, Drop
        return self._open[-1], Pass

    def _request_over(self, call: _Call, verbs: list[Verb]) -> None:
        """The last byte of a request has been settled."""
        if call.denial is not None:
            self._answer(call.denial, verbs)
            return
        call.sent = True
        self._request_state = self._state_behind(call)
        if call.head.names_protocol and self._request_state is Http1Parser._read_request:
            self._request_state = Http1Parser._hold  # what follows may be HTTP or the other protocol: the reply says which

    def _state_behind(self, call: _Call) -> _State:
        """Return the state of the request direction behind ``call``."""
        if self._leaving:
            return Http1Parser._end_stray_end if self._reply_state is Http1Parser._read_stray_end else Http1Parser._hold
        last = self._closing or not call.head.keep_alive
        return Http1Parser._after_last_request if last else Http1Parser._read_request

    def _hold(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        """Wait for a ruling, for the turn of our own answer, for the reply to an upgrade, or for open calls to end."""
        verbs.append(_HOLD)
        return _STOP

    def _after_last_request(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        fail = Fail(faults.DATA_AFTER_CLOSE.reason)
        return self._answer(_OwnAnswer(self._next_number, fail), verbs)

    def _request_ended(self, rest: bytes, verbs: list[Verb]) -> None:
        """The client sends nothing more; ``rest`` is the beginning of what it did not complete."""
        if self._request_state in _SENDING:
            self._break_request(faults.TRUNCATED_BODY, self._sending()[0], verbs)
        elif rest:
            self._refuse_request(faults.TRUNCATED_HEAD, rest, verbs)

    def _time_out_request(self) -> list[Verb]:
        verbs: list[Verb] = []
        if self._request_state in _SENDING:
            self._break_request(faults.CLIENT_TIMEOUT, self._sending()[0], verbs)
        elif self._request_state is Http1Parser._read_request:
            self._refuse_request(faults.CLIENT_TIMEOUT, b"", verbs)
        return verbs or [_HOLD]  # what the client is told has to wait for its turn

    # Our own answers

    def _deny(self, call: _Call, status: int, text: str) -> list[Verb]:
        """Answer a call that policy denied; keep the connection when its body can be read away."""
        verbs: list[Verb] = []
        head, number = call.head, call.number
        with_body = head.call.method != "HEAD"
        fail = Fail("denied-and-closed", answer(status, text, close=True, with_body=with_body), status, number)
        # A client that expects "100 Continue" may send its body or not. An HTTP/1.0 client reads until the close.
        may_not_come = head.body != 0 and head.expects
        if may_not_come or head.body > DRAIN_MAX or not head.keep_alive or not head.http11:
            self._answer(_OwnAnswer(number, fail), verbs)
            return verbs
        words = answer(status, text, close=False, with_body=with_body)
        polite = (Inject(Direction.REPLY, words, number), Reply(number, status), Done(number))
        call.denial = _OwnAnswer(number, fail, polite)
        self._drained = 0
        self._begin_body(call, len(head.wire), Drop, verbs)
        return verbs

    def _refuse_request(self, fault: Fault, seen: bytes, verbs: list[Verb]) -> int:
        """Refuse what never became a call."""
        words = answer(fault.status, fault.text, close=True)
        if seen == faults.PREFACE and not self._next_number:  # in the words of who speaks HTTP/2, and would read no others
            words = faults.goaway(fault.text)
        fail = Fail(fault.reason, words, fault.status, partial=partial_call(seen), limit=fault.limit)
        return self._answer(_OwnAnswer(self._next_number, fail), verbs)

    def _break_request(self, fault: Fault, call: _Call, verbs: list[Verb]) -> int:
        """Refuse the body of a call whose head has been judged."""
        words = answer(fault.status, fault.text, close=True, with_body=call.head.call.method != "HEAD")
        return self._answer(
            _OwnAnswer(call.number, Fail(fault.reason, words, fault.status, call.number, limit=fault.limit)), verbs
        )

    def _answer(self, own: _OwnAnswer, verbs: list[Verb]) -> int:
        """Give our own answer, now or in its turn; nothing of the request direction is settled before."""
        self._own = own
        self._request_state = Http1Parser._hold
        self._take_turn(verbs)
        return _STOP

    def _take_turn(self, verbs: list[Verb]) -> None:
        own = self._own
        oldest = self._open[0] if self._open else None
        if own is None or (oldest is not None and oldest.number < own.turn):
            return
        self._own = None
        self._current = None
        if self._closing or (oldest is not None and oldest.answering):
            verbs.append(self._dead(msgspec.structs.replace(own.fail, last_words=b"", status=None)))
        elif own.polite:
            verbs.extend(own.polite)
            self._request_state = Http1Parser._read_request
        else:
            verbs.append(self._dead(own.fail))

    def _dead(self, fail: Fail) -> Fail:
        """Let nothing more through; the transport closes the connection."""
        self._open.clear()
        self._current = None
        self._own = None
        self._request_state = Http1Parser._ended
        self._reply_state = Http1Parser._ended
        return fail

    def _ended(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        """After a Fail nothing is settled any more."""
        return _STOP

    # Replies

    def _read_reply(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        call = self._open[0] if self._open else None
        if call is None:
            return self._read_between_calls(data, at, verbs)
        wire = find_head(data, at, self._reply_searched)
        if wire is None:
            rest = data[at:]
            fault = early_reply_fault(rest, self._reply_searched)
            if fault is not None:
                return self._break_reply(fault, verbs)
            self._reply_searched = len(rest)
            return _NEED_MORE
        self._reply_searched = 0
        try:
            head = REPLY_HEADS[wire]
        except Refused as refused:
            return self._break_reply(refused.fault, verbs)
        if head.doubt is not None:
            if len(self._open) > 1 or self._current is not None or self._own is not None:
                return self._break_reply(head.doubt, verbs)  # somebody might take some of it for the next reply
            self._leaving = self._closing = True
            if self._request_state is Http1Parser._read_request:
                self._request_state = Http1Parser._hold
        end = at + head.length
        number = call.number
        if head.tolerated:
            verbs.extend(map(Tolerated, head.tolerated))
        if head.status < 200:
            if head.status == 101:
                return self._switch(call, head, end - at, verbs)
            if head.status == 100 and call is self._open[-1] and self._request_state is Http1Parser._await_continue:
                self._request_state = Http1Parser._begin_held_body
            verbs.append(Pass(end - at, number))
            return end
        if head.hijacked and call.sent and call.head.upgrade == _RAW_PROTOCOL:
            return self._open_tunnel(call, head, end - at, verbs)
        call.answering = True
        if not call.sent and (self._request_state is Http1Parser._await_continue or not 200 <= head.status < 300):
            verbs.append(Void(Direction.REQUEST))
            self._request_state = Http1Parser._discard_body
        verbs.append(Reply(number, head.status))
        request = call.head
        body = 0 if request.call.method == "HEAD" else head.body
        stays = request.keep_alive and head.keep_alive and (request.http11 or head.says_keep_alive) and body != UNTIL_CLOSE
        if not stays:
            self._closing = True
            if self._request_state is Http1Parser._read_request:
                self._request_state = Http1Parser._after_last_request
        if body == CHUNKED:
            verbs.append(Pass(end - at, number))
            self._reply_body = ChunkedBody(in_reply=True)
            self._reply_state = Http1Parser._read_reply_chunks
            return end
        if body == MAYBE_AN_END:
            verbs.append(Pass(end - at, number))
            self._reply_state = Http1Parser._read_stray_end
            if self._request_state is Http1Parser._hold and call.sent:
                self._request_state = Http1Parser._end_stray_end
            return end
        if body == UNTIL_CLOSE:
            self._reply_state = Http1Parser._read_until_close
            return self._read_until_close(data, at, verbs)
        if end + body <= len(data):
            verbs.append(Pass(end + body - at, number))
            self._reply_over(verbs)
            return end + body
        verbs.append(Pass(end + body - 1 - at, number))
        self._reply_state = Http1Parser._read_reply_last_byte
        return end + body - 1

    def _read_between_calls(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        """What a server says that nobody has asked for: the end of a line, or that it has waited for long enough.

        Anything else might become the reply to a request that it knows nothing of.
        """
        if data[at] in b"\r\n":
            behind = len(data) - len(data[at:].lstrip(b"\r\n"))
            verbs += (Tolerated(faults.BLANK_LINE.reason), Drop(behind - at))
            return behind
        seen = data[at : at + len(_TIMED_OUT[0])]
        told = seen in _TIMED_OUT
        if not self._served or not (told or any(words.startswith(seen) for words in _TIMED_OUT)):
            return self._break_reply(faults.WITHOUT_REQUEST, verbs)
        if not told:
            self._reply_searched = len(seen)
            if self._request_state is Http1Parser._read_request:
                self._request_state = Http1Parser._hold
            return _NEED_MORE
        verbs.append(Tolerated(faults.REQUEST_TIMEOUT.reason))
        if self._current is not None or self._own is not None:
            verbs.extend(self.on_outage(Outage.RESET))
        else:
            self._leave(verbs)
        return _STOP

    def _leave(self, verbs: list[Verb]) -> None:
        self._request_state = Http1Parser._ended
        self._reply_state = Http1Parser._ended
        verbs.append(Leave())

    def _read_reply_last_byte(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        verbs.append(Pass(1, self._open[0].number))
        self._reply_over(verbs)
        return at + 1

    def _read_reply_chunks(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        behind = self._reply_body.scan(data, at)
        if behind > at:
            verbs.append(Pass(behind - at, self._open[0].number))
        if self._reply_body.fault is not None:
            return self._break_reply(self._reply_body.fault, verbs)
        if self._reply_body.finished:
            verbs.extend(map(Tolerated, sorted(self._reply_body.tolerated)))
            self._reply_over(verbs)
            return behind
        return behind if behind >= len(data) else _NEED_MORE if self._reply_body.starved else _PAUSE

    def _read_stray_end(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        """Behind the head of a reply that has no body and says that it is chunked: some servers end that body."""
        seen = data[at : at + len(_LAST_CHUNK)]
        if seen != _LAST_CHUNK and _LAST_CHUNK.startswith(seen):
            return _NEED_MORE
        if seen == _LAST_CHUNK:
            verbs.append(Pass(len(seen), self._open[0].number))
        self._reply_over(verbs)
        return _STOP

    def _end_stray_end(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        """The client has its reply, and goes on."""
        self._reply_over(verbs)
        return _STOP

    def _read_until_close(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        verbs.append(Pass(UNTIL_CLOSE_LENGTH, self._open[0].number))
        return at + UNTIL_CLOSE_LENGTH

    def _reply_over(self, verbs: list[Verb]) -> None:
        """The last byte of a final reply has been settled."""
        call = self._open[0]
        if not call.sent:
            verbs.append(self._dead(Fail(EARLY_REPLY, call=call.number)))
            return
        self._served = True
        self._reply_state = Http1Parser._after_last_reply if self._closing else Http1Parser._read_reply
        if self._leaving:
            self._own = None  # what has come meanwhile was sent by somebody who knew nothing of this
        self._finish(verbs)
        if self._leaving:
            self._leave(verbs)

    def _finish(self, verbs: list[Verb]) -> None:
        """The oldest call is over."""
        call = self._open.popleft()
        verbs.append(Done(call.number))
        if call.head.names_protocol and self._request_state is Http1Parser._hold:
            self._request_state = self._state_behind(call)
        if self._own is not None:
            self._take_turn(verbs)

    def _switch(self, call: _Call, head: ReplyHead, length: int, verbs: list[Verb]) -> int:
        """Open the tunnel that the client asked for, that policy allowed and that the server agrees to."""
        unjudged = any(protocol.startswith(UNJUDGED_UPGRADES) for protocol in head.upgrade)
        if unjudged or not call.sent or not head.upgrade or not set(head.upgrade) <= set(call.head.upgrade):
            return self._break_reply(faults.UNEXPECTED_SWITCH, verbs)
        return self._open_tunnel(call, head, length, verbs)

    def _open_tunnel(self, call: _Call, head: ReplyHead, length: int, verbs: list[Verb]) -> int:
        verbs += (Reply(call.number, head.status), Pass(length, call.number), Opaque(call.number))
        self._request_state = Http1Parser._tunnel
        self._reply_state = Http1Parser._tunnel
        return _STOP

    def _tunnel(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        verbs.append(Pass(len(data) - at, self._open[0].number))
        return len(data)

    def _after_last_reply(self, data: bytes, at: int, verbs: list[Verb]) -> int:
        return self._break_reply(faults.DATA_AFTER_CLOSE, verbs)

    def _reply_ended(self, cut: bool, verbs: list[Verb]) -> None:
        """The server sends nothing more; ``cut``: it did not complete what it began."""
        state = self._reply_state
        if state in (Http1Parser._read_until_close, Http1Parser._read_stray_end):
            self._reply_over(verbs)
        elif state in (Http1Parser._read_reply_last_byte, Http1Parser._read_reply_chunks):
            self._break_reply(faults.TRUNCATED_BODY, verbs)
        elif cut:
            self._break_reply(faults.TRUNCATED_HEAD, verbs)
        elif state in (Http1Parser._read_reply, Http1Parser._after_last_reply):
            if self._open:
                verbs.extend(self.on_outage(Outage.RESET))
                return
            self._closing = True
            if self._request_state is Http1Parser._read_request:
                self._request_state = Http1Parser._after_last_request

    def _break_reply(self, fault: Fault, verbs: list[Verb]) -> int:
        """Stop at a reply that cannot be trusted; the client is told while its own reply has not begun."""
        call = self._open[0] if self._open else None
        number = None if call is None else call.number
        reason = f"reply-{fault.reason}"
        if call is None or call.answering or self._closing:
            verbs.append(self._dead(Fail(reason, call=number, limit=fault.limit)))
        else:
            words = answer(
                502, f"bad reply from the server: {fault.text}", close=True, with_body=call.head.call.method != "HEAD"
            )
            verbs.append(self._dead(Fail(reason, words, 502, number, limit=fault.limit)))
        return _STOP


# The states of the request direction in which a body is under way.
_SENDING = (
    Http1Parser._await_continue,
    Http1Parser._begin_held_body,
    Http1Parser._read_request_last_byte,
    Http1Parser._read_request_chunks,
)
