"""One connection's life, without any I/O: bytes and events in, commands out.

A ``Flow`` stands between a parser, which knows the protocol, and policy, which knows who may do what, and it is the only
place where an audit record is made. The transport (relay.py) feeds it and carries out its commands.

    offer -> parse -> judge -> permit -> forward -> reply -> done -> record

Bytes of a request are forwarded only under a ``Permit``, and a ``Permit`` can be made only from a decision that allows.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from time import time, time_ns
from typing import NamedTuple, Protocol

import msgspec

from parsers.contract import (
    KEPT_BYTES,
    ApiCall,
    Direction,
    Done,
    Drop,
    Fail,
    Hold,
    Inject,
    Judge,
    Later,
    Leave,
    More,
    Opaque,
    Outage,
    Parser,
    Pass,
    Prefix,
    Reply,
    Tolerated,
    Verb,
    Void,
)
from policies.decide import Decision, Pair, Verdict
from proxy.audit.forms import Form, Forms, PathForm, Repeated
from proxy.audit.places import ANYWHERE, Place, place_for
from proxy.audit.record import AuditRecord, Party, call_id, listed_headers, moment, redact_query
from proxy.metrics import CallCounter, Metrics
from proxy.summaries import Summaries, Summary

REQUEST, REPLY = Direction.REQUEST, Direction.REPLY

# A body with at least this much to come is carried by the kernel from socket to socket (splice). Below it, the two extra
# system calls per piece cost more than the copy that they save.
CARRY_MIN = 256 * 1024
# The credit of a tunnel: more than any connection can move.
TUNNEL = 1 << 62
# A call whose record has no room waits this long (seconds) before it is refused: a full disk that is cleared within
# this time costs nobody an error.
AUDIT_PATIENCE = 5.0
# Different calls of one connection that the kernel carries again and again: what their records have in common is kept.
REPEATED_MAX = 16
# Calls that come as larger heads (bytes) are not looked for likenesses: they would be kept by the thousand.
LIKE_BYTES = KEPT_BYTES
# The subject of whoever is no workload, in metrics and shares.
HOST = "host"
# Nothing of an unfinished head arrives for this long (seconds): the client is slow on purpose, or gone.
HEAD_TIMEOUT = 30.0
# A connection whose client has not made a whole call within this time (seconds) is closed: whoever has made one may be silent
# for as long as both ends answer TCP's keepalive.
FIRST_CALL_TIMEOUT = 60.0
# About so many steps are taken for a direction in one event: each verb of the parser is one, and so are so many bytes that are
# settled. One takes 10 to 150 us, and one read may bring thousands: they go on in later turns, so that others have theirs.
STEPS_MAX = 32
STEP_BYTES = 1024
# A call of very many resources is judged by each of them: so many are a step as well, and of more than these it is judged over
# several turns.
STEP_RESOURCES = 32
MANY_RESOURCES = 128


class Permit:
    """The right to forward the bytes of one call. It cannot be made from a decision that denies."""

    __slots__ = ("decision",)

    def __init__(self, decision: Decision) -> None:
        if not decision.allowed:
            raise PermissionError(f"no permit for a call that policy denies: {decision.reason}")
        self.decision = decision


class Forward(msgspec.Struct, frozen=True):
    """Send ``data`` on, unchanged and in order, in ``direction``."""

    permit: Permit
    direction: Direction
    data: bytes


class Carry(msgspec.Struct, frozen=True):
    """The next ``n`` bytes of ``direction`` may be moved without being shown; report them with ``Flow.carried``."""

    permit: Permit
    direction: Direction
    n: int


class Answer(msgspec.Struct, frozen=True):
    """Send ``data`` to the client in our own words."""

    data: bytes


class AwaitRoom(msgspec.Struct, frozen=True):
    """A call waits for room in the audit queue: call ``Flow.room`` with a reservation in hand."""


class Again(msgspec.Struct, frozen=True):
    """What has arrived could keep us busy for long: call ``Flow.go_on`` in a later turn."""


class Dial(msgspec.Struct, frozen=True):
    """Connect to the server. Report with ``Flow.dialled`` or ``Flow.outage``."""


class Shut(msgspec.Struct, frozen=True):
    """No more bytes will go in ``direction``: hand the half-close on once everything before it is sent."""

    direction: Direction


class Discard(msgspec.Struct, frozen=True):
    """Nothing that waits in ``direction`` goes on, and no ``Carry`` holds any more."""

    direction: Direction


class Close(msgspec.Struct, frozen=True):
    """End both connections when the client has what it is owed."""


class Abort(msgspec.Struct, frozen=True):
    """Reset both connections at once."""


class Carried(msgspec.Struct, frozen=True):
    """What the kernel has carried of a call that is still open, with the bytes of both heads."""

    began: float  # seconds of the monotonic clock
    head: bytes
    request_bytes: int
    reply_head: bytes
    reply_bytes: int
    status: int


class Finished(msgspec.Struct, gc=False):
    """A whole call that the kernel has carried."""

    at: int  # microseconds of the epoch
    took: int  # microseconds
    head: bytes
    request_bytes: int
    reply_head: bytes  # empty where the kernel tells the status itself
    reply_bytes: int
    status: int
    number: int  # of the connection's calls
    generation: int  # of the policy that the kernel went by


class Loan(NamedTuple):
    """What the kernel may go by: a policy, and of protocols with frames the beginnings of requests that it allows."""

    pair: Pair
    prefixes: Sequence[Prefix] | None
    number: int  # of the next call


Command = Forward | Carry | Discard | Answer | AwaitRoom | Again | Dial | Shut | Close | Abort

AWAIT_ROOM, AGAIN, DIAL, CLOSE, ABORT = AwaitRoom(), Again(), Dial(), Close(), Abort()
SHUT = (Shut(REQUEST), Shut(REPLY))

# Why a call has not come to the server, though nobody has refused it.
_NOT_REFUSED = frozenset(
    {
        *(Outage.UNREACHABLE.value, Outage.TIMEOUT.value, Outage.RESET.value),
        *("client-reset", "idle-timeout", "agent-stopped"),
    }
)

WORKER_DIED = "worker-died"
# The reason of a call that came when the connection had ended.
TOO_LATE = "connection-closed"
# How records show that a call is about all topics: no topic has such a name.
ALL_TOPICS = "topic:*"
# The status of a reply that nobody can read any more.
UNKNOWN = "unknown"


class Decider(Protocol):
    """A policy, as far as it judges calls."""

    @property
    def generation(self) -> int: ...

    def decide(self, call: ApiCall) -> Decision: ...


class UnknownLoanError(Exception):
    """The kernel has carried a call by a policy that this connection was never lent under."""


_log = logging.getLogger(__name__)
UNDECIDED = Decision(verdict=Verdict.DENIED, reason="internal-error", generation=0)
UNJUDGED = Decision(verdict=Verdict.DENIED, reason="ended-unjudged", generation=0)
UNRECORDED = Decision(verdict=Verdict.DENIED, reason="audit-unavailable", generation=0)


class Sink(Protocol):
    """Where records go: room is reserved before a call is let through, so that no record is ever lost."""

    def reserve(self, place: Place) -> bool:
        """Take room for the record of one call; False when there is none for this connection."""
        ...

    def cancel(self, place: Place) -> None:
        """Give a reservation back unused."""
        ...

    def write(self, record: AuditRecord, *, reserved: Place | None) -> None:
        """Take a finished record. Unreserved ones, of refusals, have a reserve of their own."""
        ...

    def write_line(self, line: str, reserved: Place) -> None:
        """Take a finished record that is a line already, in ASCII."""
        ...

    @property
    def accepts_refusals(self) -> bool:
        """Whether the reserve for refusals has room; while it has none, calls wait instead of being refused."""
        ...


def _log_fault(error: Exception) -> None:
    _log.error("a connection was ended by a fault of the agent", exc_info=error)


class Shape(NamedTuple):
    """What calls between the same two ends have in common to records and metrics, if they are alike but for their paths."""

    form: Form
    counter: CallCounter


class Known(NamedTuple):
    """The same of one call, which many connections make."""

    decision: Decision
    form: PathForm
    counter: CallCounter


class Likenesses:
    """What calls between the same two ends have in common, of all connections of a worker."""

    __slots__ = ("known", "shapes")

    def __init__(self) -> None:
        self.shapes: Forms[Shape] = Forms()
        self.known: Forms[Known] = Forms()

    def clear(self) -> None:
        """Another policy is in force: what is kept here holds on to the old one."""
        self.shapes.clear()
        self.known.clear()


class Scene(msgspec.Struct, frozen=True):
    """What is known of a connection before its first byte, and the services that its flow uses.

    ``pair`` gives the policy of now for this subject, peer and port: it is asked again for every call, so that a change of
    policy reaches open connections at their next call.
    """

    connection: str
    node: str
    source: str
    destination: str
    subject: Party
    peer: Party
    pair: Callable[[], Pair]
    sink: Sink
    metrics: Metrics
    place: Place = ANYWHERE  # of a small call of this connection in the audit queue
    likenesses: Likenesses = msgspec.field(default_factory=Likenesses)
    record_headers: frozenset[str] = frozenset()
    detect_within: float | None = None  # seconds for the first byte, where a silent client means another protocol
    complain: Callable[[Exception], None] = _log_fault  # about a fault of ours


class OpenCall:
    """A call that was read and whose record is not written yet."""

    __slots__ = (
        *("answered", "at", "began", "bytes", "call", "decision", "forwarded", "permit"),
        *("reason", "reserved", "status", "via"),
    )

    def __init__(self, call: ApiCall, decision: Decision, began: float, reserved: Place | None) -> None:
        self.call = call
        self.decision = decision
        self.began = began  # monotonic seconds
        self.at = time_ns() // 1000  # microseconds of the epoch
        self.via = "relay"
        self.permit = Permit(decision) if decision.allowed else None
        self.bytes = [0, 0]
        self.status: int | str | None = None
        self.forwarded = False  # some of it is on its way to the server, or there
        self.answered = False  # by a reply, ours or the server's
        self.reason: str | None = None
        self.reserved = reserved  # for its record, until that is written


class _RepeatedCall(NamedTuple):
    """A call that comes again and again under one policy, and what all of its records have in common."""

    call: ApiCall
    decision: Decision
    lines: Repeated
    counter: CallCounter


class Side:
    """What a flow keeps for one direction."""

    __slots__ = ("call", "credit", "dropping", "ended", "held", "paused", "queue", "shut", "steps", "unsettled")

    def __init__(self) -> None:
        self.unsettled = b""
        self.credit = 0  # bytes that a Pass or Drop still covers
        self.call: int | None = None  # the call to which that credit belongs
        self.dropping = False
        self.queue: list[Verb] = []  # behind that Pass or Drop
        self.held = False
        self.steps = STEPS_MAX  # that may still be taken in this event
        self.paused = False  # until the next turn: there is more to be settled
        self.ended = False
        self.shut = False


class Flow:
    """Feed the events below; each returns the commands that follow from it, to be carried out in order.

    ``now`` is always monotonic time in seconds. The last command of all is a ``Close`` or an ``Abort``; with it ``over`` is
    set, every record has been written, and no event changes anything any more.
    """

    __slots__ = (
        "_adopting",
        "_calls",
        "_deciding",
        "_dialled",
        "_ended_between_calls",
        "_fresh_since",
        "_head_since",
        "_heard",
        "_hold_until",
        "_lent",
        "_loans",
        "_now",
        "_out",
        "_pair",
        "_parser",
        "_refusals",
        "_relayed",
        "_repeated",
        "_scene",
        "_sides",
        "_silent_since",
        "_summaries",
        "_tunnel",
        "_waiting",
        "_waiting_since",
        "_watched",
        "awaited",
        "dialling",
        "draining",
        "kept",
        "over",
    )

    def __init__(self, scene: Scene, parser: Parser) -> None:
        self._scene = scene
        self._parser = parser
        self._sides = (Side(), Side())
        self._calls: dict[int, OpenCall] = {}
        self._tunnel: int | None = None  # the call that turned the connection opaque
        self._watched = False  # the parser reads along with what the client says in the tunnel
        self._waiting: Judge | None = None  # for room in the audit queue
        self._waiting_since = 0.0
        self.awaited = scene.place  # what it waits for
        self._deciding: tuple[Judge, Generator[None, None, Decision], Place] | None = None  # over several turns
        self._silent_since: float | None = None  # the client has not said a word, and that may mean another protocol
        self._fresh_since: float | None = None  # nothing was judged yet
        self._head_since: float | None = None  # the client has begun something; nothing of it could be settled since
        self._hold_until: float | None = None  # a held request is patient until then
        self._dialled = False
        self._refusals = 0
        self._summaries: Summaries[tuple[int | str, OpenCall]] | None = None  # calls whose records are summed up
        self._now = 0.0
        self._out: list[Command] = []
        self._pair: Pair | None = None  # what was judged by last
        self._lent: Pair | None = None  # what the kernel goes by
        self._loans: dict[int, Pair] = {}  # by generation: what it may have gone by in calls that we are still to hear of
        self._heard: Decider | None = None  # what it went by in the last one that we have heard of
        self._adopting: Carried | None = None
        self._repeated: dict[ApiCall, _RepeatedCall] = {}  # calls that were carried under ``_heard``
        self._relayed: _RepeatedCall | None = None  # the last one
        self._ended_between_calls = False
        self.dialling = False  # set by the transport: the server is not connected yet, and has got nothing of what goes to it
        self.kept = 0  # bytes in memory: what is not settled, and what the parser keeps of what was
        self.over = False
        self.draining = False

    # What the transport asks.

    def wants(self, direction: Direction) -> bool:
        """Whether more bytes of ``direction`` could be settled: if not, leave them in the socket (back-pressure)."""
        side = self._sides[direction]
        if side.ended or side.paused or (self._waiting and direction is REQUEST):
            return False
        return not (side.held and side.unsettled)

    @property
    def idle(self) -> bool:
        """No call is open and nothing is half read."""
        return not self._calls and not self._sides[0].unsettled and not self._sides[1].unsettled

    def unsettled(self, direction: Direction) -> int:
        """Bytes of ``direction`` that are not settled yet."""
        return len(self._sides[direction].unsettled)

    @property
    def client_ended(self) -> bool:
        """The client has said that it sends nothing more, and all that it sent is settled."""
        return self._sides[REQUEST].ended and not self._sides[REQUEST].unsettled

    @property
    def waits_for_audit(self) -> bool:
        """A call waits for room in the audit queue."""
        return self._waiting is not None

    @property
    def protocol(self) -> str:
        return self._parser.protocol

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    # The kernel path.

    def lend(self) -> Loan | None:
        """What the kernel may carry the next calls by, if the connection is between two of them."""
        if not self.idle or not self._parser.at_boundary:
            return None
        loan = self._loan()
        if loan is not None and loan.pair is not self._lent:
            self._lent = self._loans[loan.pair.generation] = loan.pair
        return loan

    @property
    def pipelines(self) -> bool:
        """Whether the kernel could have the connection, with as many calls as are open, if it were between two for a moment."""
        loan = self._loan()
        return loan is not None and loan.prefixes is not None

    def _loan(self) -> Loan | None:
        if not self._dialled or self.over or self.draining or self._waiting:
            return None
        if any(side.ended or side.held for side in self._sides):
            return None
        pair = self._current_pair()
        prefixes = self._parser.prefixes
        return None if prefixes is not None and not prefixes else Loan(pair, prefixes, self._parser.next_number)

    def _current_pair(self) -> Pair:
        pair = self._scene.pair()
        if pair is not self._pair:
            self._pair = pair
            self._parser.policy_changed()
        return pair

    def skip(self, calls: int) -> None:
        """The kernel has carried so many whole calls since it was lent the connection. `carried_call` tells what they were,
        which may be later, and even when the connection is over."""
        self._parser.skip(calls)

    def carried_call(self, finished: Finished, lines: list[str]) -> None:
        """What a whole call was that the kernel has carried: put its record, as a line, behind ``lines``. In order.

        Raises what shows that the kernel did what it must not; if it could be read, there is a line then too.
        """
        if self._heard is None or finished.generation != self._heard.generation:
            self._hear_under(finished.generation)
        call, status = self._recall(finished.head, finished.reply_head)
        repeated = self._repeated.get(call)
        if repeated is None:
            repeated = self._new_repeated(call)
        decision = repeated.decision
        if decision.summary and decision.verdict is Verdict.ALLOWED and self._sum_up_carried(call, decision, finished, status):
            return
        lines.append(
            repeated.lines.line(
                finished.at,
                finished.number,
                finished.status if status is None else status,
                finished.request_bytes,
                finished.reply_bytes,
                finished.took,
            )
        )
        repeated.counter.add(finished.took / 1e6)
        if not decision.allowed or decision.per_resource is not None:
            raise PermissionError(f"the kernel carried a call that policy denies: {decision.reason}")

    def _hear_under(self, generation: int) -> None:
        """From now on we hear of calls that were carried under ``generation``: those under older ones are through."""
        self._heard = self._loan_of(generation)
        self._loans = {later: pair for later, pair in self._loans.items() if later >= generation}
        self._repeated.clear()

    def _loan_of(self, generation: int) -> Decider:
        pair = self._loans.get(generation)
        if pair is None:
            raise UnknownLoanError
        return pair

    def _recall(self, head: bytes, reply: bytes) -> tuple[ApiCall, int | str | None]:
        return self._parser.recall(head, reply)

    def _sum_up_carried(self, call: ApiCall, decision: Decision, finished: Finished, status: int | str | None) -> bool:
        """Count a call in a record that stands for several, if that can have a place, and the connection is not over."""
        place = place_for(call, self._scene.place)
        if self.over or not self._scene.sink.reserve(place):
            return False
        seconds = finished.took / 1e6
        opened = OpenCall(call, decision, self._now - seconds, place)
        opened.at = finished.at
        opened.via = "kernel"
        opened.status = status
        opened.bytes = [finished.request_bytes, finished.reply_bytes]
        self._write(finished.number, opened)
        return True

    def _new_repeated(self, call: ApiCall) -> _RepeatedCall:
        if len(self._repeated) >= REPEATED_MAX:
            self._repeated.clear()
        assert self._heard is not None
        decision = self._heard.decide(call)
        repeated = self._like_others(call, decision, "kernel", at_once=True)
        if repeated is None:
            shape = self._shape(call, decision, "kernel")
            lines = shape.form.of(self._shown_path(call, decision)).of(self._scene.connection, self._scene.source)
            repeated = _RepeatedCall(call, decision, lines, shape.counter)
        self._repeated[call] = repeated
        return repeated

    def _like_others(self, call: ApiCall, decision: Decision, via: str, *, at_once: bool = False) -> _RepeatedCall | None:
        """A call of which all records between these two ends that are like it differ in nothing but what a form leaves blank.
        None: its record may have more than is in the key, or, unless ``at_once``, it is the first of its kind."""
        likenesses, ends = self._scene.likenesses, self._scene.pair
        known = likenesses.known.get((ends, call, via))
        if known is None or known.decision is not decision:
            path = self._shown_path(call, decision)
            if path is None or not path.isascii() or call.wire_length > LIKE_BYTES or self._is_peculiar(call, decision):
                return None
            by = decision.policy or decision.detail, decision.rule, decision.reason, decision.direction, decision.generation
            key = ends, via, call.protocol, call.method, call.host, decision.verdict, *by
            shape = likenesses.shapes.get(key)
            if shape is None:
                if not (likenesses.shapes.met(key) or at_once):
                    return None
                shape = self._shape(call, decision, via)
                likenesses.shapes.put(key, shape)
            known = Known(decision, shape.form.of(path), shape.counter)
            likenesses.known.put((ends, call, via), known)
        lines = known.form.of(self._scene.connection, self._scene.source)
        return _RepeatedCall(call, decision, lines, known.counter)

    def _is_peculiar(self, call: ApiCall, decision: Decision) -> bool:
        """Whether the record of a call may have more than is in the key of its shape."""
        details = call.resources or call.attributes or decision.notes or decision.per_resource is not None
        return bool(details or self._scene.record_headers) or not decision.generation

    def _shape(self, call: ApiCall, decision: Decision, via: str) -> Shape:
        opened = OpenCall(call, decision, 0.0, None)
        opened.via = via
        return Shape(Form(self._record("-", opened)), self._scene.metrics.calls.counter(self._labels(opened)))

    def _shown_path(self, call: ApiCall, decision: Decision) -> str | None:
        """The path of a call as its record shows it."""
        if call.path is None or not (decision.redact_query or (not decision.generation and self._redacts_queries())):
            return call.path
        return redact_query(call.path)

    def adopt(self, calls: Sequence[Carried], now: float) -> list[Command]:
        """Take over the calls that the kernel began to carry, oldest first: as if they had been forwarded by us."""
        return self._event(now, self._adopted, calls)

    # Events.

    def begin(self, now: float) -> list[Command]:
        """The connection was accepted. A protocol in which the server may speak first judges, and dials, at once."""
        return self._event(now, self._begun)

    def data(self, direction: Direction, data: bytes, now: float) -> list[Command]:
        """``data``, at least one byte, has arrived from the sender of ``direction``."""
        return self._event(now, self._arrived, direction, data)

    def go_on(self, now: float) -> list[Command]:
        """It is another turn: settle more of what has arrived. Asked for by ``Again``."""
        return self._event(now, self._gone_on)

    def eof(self, direction: Direction, now: float) -> list[Command]:
        """No more bytes will come in ``direction``."""
        return self._event(now, self._stream_ended, direction)

    def carried(self, direction: Direction, n: int, now: float) -> list[Command]:
        """``n`` bytes of a ``Carry`` have been delivered."""
        return self._event(now, self._delivered, direction, n)

    def room(self, now: float) -> list[Command]:
        """The audit queue has room again, and a place in it is ours. Only while ``waits_for_audit``."""
        return self._event(now, self._admitted)

    def outage(self, outage: Outage, now: float) -> list[Command]:
        """The server cannot be reached, or is too slow."""
        return self._event(now, self._without_server, outage)

    def lost(self, direction: Direction, now: float) -> list[Command]:
        """The sender of ``direction`` has reset its connection."""
        return self._event(now, self._reset, direction)

    def idled(self, unread: Direction | None, now: float) -> list[Command]:
        """Nothing has moved for the idle timeout. ``unread``: the direction whose receiver does not read what waits for it."""
        return self._event(now, self._expired, unread)

    def tick(self, now: float, listening: bool = True) -> list[Command]:
        """Time has passed: enforce the timeouts that belong to calls. Not ``listening``: we do not read from the client now."""
        return self._event(now, self._ticked, listening)

    def drain(self, now: float) -> list[Command]:
        """The agent is stopping: finish what is open, then close."""
        self.draining = True
        return self._event(now, self._drained)

    def stop(self, now: float) -> list[Command]:
        """The agent stops now: end what is open, with its records."""
        return self._event(now, self._end, ABORT, "reset", "agent-stopped")

    def dismiss(self, now: float) -> list[Command]:
        """The connection is idle, and another needs its place: its end costs no call."""
        self._limit("CONNECTIONS")
        return self._event(now, self._end_between_calls)

    def turned_away(self, count: int, since: int, now: float) -> None:
        """The connection was not let in, and neither were others like it: of all ``count``, from ``since`` on (microseconds
        of the epoch), there is one record."""
        self._now = now
        refused = Decision(verdict=Verdict.DENIED, reason="too-many-connections", generation=0)
        opened = OpenCall(ApiCall(protocol="tcp"), refused, now, None)
        opened.at = since
        for _ in range(count):
            self._scene.metrics.calls.add(self._labels(opened), 0.0)
        number: int | str = "r0"
        summary = Summary((number, opened), count) if count > 1 else None
        self._scene.sink.write(self._record(number, opened, "CONNECTIONS", summary), reserved=None)
        self.over = True

    def late(self, data: bytes, now: float) -> None:
        """The client has said ``data`` behind the end. Between two calls that may be its next one, which it sent before it
        knew: nobody takes it, and its record says so."""
        if not self._ended_between_calls:
            return
        self._ended_between_calls = False
        self._now = now
        try:
            call, _ = self._parser.recall(data, b"")
        except Exception:  # more than a head, or less, or whatever else
            call = None
        self._refused(Fail(TOO_LATE, partial=call), len(data))

    def disordered(self, now: float) -> list[Command]:
        """Nobody can tell in which order the client has said things: the connection is over, with its records."""
        return self._event(now, self._end, ABORT, "reset", "order-unknown")

    def fault(self, error: Exception, now: float) -> None:
        """Something of ours broke while commands were carried out: the connection is over, with its records."""
        self._event(now, self._broken, error)

    def _event(self, now: float, act: Callable[..., None], *facts: object) -> list[Command]:
        """Take an event in. Whatever goes wrong inside ends the connection: doubt is a denial, and leaves a record."""
        if self.over:
            return []
        self._now = now
        request, reply = self._sides
        request.steps = reply.steps = STEPS_MAX
        try:
            act(*facts)
        except Exception as error:
            self._scene.complain(error)
            self._crashed()
        self.kept = len(request.unsettled) + len(reply.unsettled) + self._parser.kept
        out, self._out = self._out, []
        return out

    def _broken(self, error: Exception) -> None:
        raise error

    def _begun(self) -> None:
        self._fresh_since = self._now
        if self._scene.detect_within is not None:
            self._silent_since = self._now
        self._perform(REQUEST, self._parser.on_data(REQUEST, b"", False))

    def _arrived(self, direction: Direction, data: bytes) -> None:
        side = self._sides[direction]
        side.unsettled = side.unsettled + data if side.unsettled else data
        if direction is REQUEST:
            self._silent_since = None
        self._advance(direction)

    def _gone_on(self) -> None:
        request, reply = self._sides
        goes_on = request.paused
        if self._deciding:
            request.paused = False
            self._decide_on(*self._deciding)
            goes_on = not request.paused
        if goes_on and not self.over:
            self._advance(REQUEST)
        if reply.paused and not self.over:
            self._advance(REPLY)

    def _stream_ended(self, direction: Direction) -> None:
        self._sides[direction].ended = True
        if direction is REQUEST:
            self._silent_since = None
        self._advance(direction)

    def _delivered(self, direction: Direction, n: int) -> None:
        side = self._sides[direction]
        side.credit -= n
        self._account(direction, side.call, n)
        self._advance(direction)

    def _adopted(self, calls: Sequence[Carried]) -> None:
        left = len(calls)
        try:
            for carried in calls:
                left -= 1
                self._adopting = carried
                self._take_over(carried)
        except Exception:
            for _ in range(left):  # they are under way as well, and nobody can tell any more what they are
                self._refused(Fail("internal-error"))
            raise
        finally:
            self._adopting = None
        # What has gone by is not sent again; nor may a Carry stay that counts it, for the next call would pass under it.
        self._out = [command for command in self._out if not isinstance(command, (Forward, Carry))]
        if not self.over:
            for direction in (REQUEST, REPLY):
                self._offer_carry(direction)

    def _take_over(self, carried: Carried) -> None:
        self._scene.metrics.kernel_bytes.add(("request",), carried.request_bytes)
        self._scene.metrics.kernel_bytes.add(("reply",), carried.reply_bytes)
        for direction, head, size in (
            (REQUEST, carried.head, carried.request_bytes),
            (REPLY, carried.reply_head, carried.reply_bytes),
        ):
            if head:
                self._arrived(direction, head)
                self._pass_by(direction, size - len(head))

    def _pass_by(self, direction: Direction, n: int) -> None:
        """``n`` bytes of a body have gone by. What they were does not matter to a parser that has announced their number."""
        known = min(n, self._sides[direction].credit)
        if known:
            self._delivered(direction, known)
        if n > known:  # the last one, for which a parser waits (parsers/http1.py)
            self._arrived(direction, bytes(n - known))

    def _admitted(self) -> None:
        judge, self._waiting = self._waiting, None
        assert judge is not None
        self._admit(judge, self.awaited)
        self._advance(REQUEST)

    def _reset(self, direction: Direction) -> None:
        if direction is REQUEST:
            self._end(ABORT, "reset", "client-reset")
        else:
            self._without_server(Outage.RESET)

    def _expired(self, unread: Direction | None) -> None:
        request = self._sides[REQUEST]
        if not self._calls:
            self._end_between_calls()
        elif unread is REPLY:
            self._end(ABORT, "reset", "client-timeout")
        elif self._tunnel is not None:
            self._end(CLOSE, None, "idle-timeout")
        elif request.credit and unread is None:  # the rest of a body that the client has announced
            self._client_is_slow()
        if not self.over:
            self._without_server(Outage.TIMEOUT)

    def _ticked(self, listening: bool) -> None:
        self._write_summaries(int(time()))
        if self._hold_until is not None and self._now > self._hold_until:
            self._hold_until = None
            self._perform(REQUEST, self._parser.on_outage(Outage.SLOW_SERVER))
            self._advance(REQUEST)
        elif self._waiting:
            if self._now - self._waiting_since > AUDIT_PATIENCE and self._scene.sink.accepts_refusals:
                self._limit("AUDIT_PATIENCE")
                self._scene.metrics.over_share.add(("records", self._scene.subject.workload or HOST))
                self._refuse_unrecorded()
        elif self._silent_since is not None:
            if self._now - self._silent_since > (self._scene.detect_within or 0):
                self._silent_since = None
                self._client_is_slow()
        elif self._head_since is not None:
            if not listening:
                self._head_since = self._now  # it cannot go on because of us
            elif self._now - self._head_since > HEAD_TIMEOUT:
                self._head_since = None
                self._limit("HEAD_TIMEOUT")
                self._client_is_slow()
        elif self._fresh_since is not None and self._now - self._fresh_since > FIRST_CALL_TIMEOUT:
            self._limit("FIRST_CALL_TIMEOUT")
            self._end_between_calls()

    def _drained(self) -> None:
        if self.idle:
            self._end_between_calls()

    # How verbs are carried out.

    def _advance(self, direction: Direction) -> None:
        """Settle as many bytes as possible: credit first, then waiting verbs, then ask the parser."""
        side = self._sides[direction]
        if self._deciding and direction is REQUEST:
            return
        side.paused = False
        while not self.over and not (self._waiting and direction is REQUEST):
            if side.credit and not self._spend(direction, side):
                break
            if side.queue:
                verbs, side.queue = side.queue, []
                self._perform(direction, verbs)
                continue
            if side.credit:
                continue
            if (not side.unsettled and not side.ended) or (self._tunnel is not None and not self._watched):
                break
            if side.steps <= 0 and not self._adopting:
                self._pause(side)
                break
            before = len(side.unsettled)
            side.held = False
            answer = self._parser.on_data(direction, side.unsettled, side.ended)
            self._perform(direction, answer)
            if side.unsettled:
                side.steps -= len(answer) + (before - len(side.unsettled)) // STEP_BYTES
            if side.paused or (not side.credit and not side.queue and len(side.unsettled) == before):
                break  # nothing was settled: wait for more bytes, or for the other direction
        if not self.over:
            self._after(direction)

    def _pause(self, side: Side) -> None:
        side.paused = True
        self._out.append(AGAIN)

    def _spend(self, direction: Direction, side: Side) -> bool:
        """Settle bytes that are covered by credit; False when the buffer ran dry first."""
        data = side.unsettled
        if data:
            n = len(data)
            if n > side.credit:
                n = side.credit
                data, side.unsettled = data[:n], data[n:]
            else:
                side.unsettled = b""
            side.credit -= n
            if direction is REQUEST or not side.dropping:  # records tell what the client has sent, and what it has got
                self._account(direction, side.call, n)
            if direction is REQUEST:
                self._head_since = None  # something was settled: what is behind it has its own time
            if not side.dropping:
                self._out.append(Forward(self._permit(side.call), direction, data))
        if not side.credit:
            return True
        if side.ended:
            side.credit = 0  # the parser is told of the end and knows what is missing
            side.queue = []
            return True
        self._offer_carry(direction)
        return False

    def _offer_carry(self, direction: Direction) -> None:
        side = self._sides[direction]
        if side.credit >= CARRY_MIN and not side.dropping:
            self._out.append(Carry(self._permit(side.call), direction, side.credit))

    def _perform(self, direction: Direction, verbs: Iterable[Verb]) -> None:
        side = self._sides[direction]
        waiting = iter(verbs)
        for verb in waiting:
            if isinstance(verb, (Pass, Drop)):
                side.credit, side.call, side.dropping = verb.n, verb.call, isinstance(verb, Drop)
                if side.credit and not self._spend(direction, side):
                    side.queue += waiting
                    return
            elif isinstance(verb, Judge):
                self._judge(verb)
            elif isinstance(verb, Reply):
                opened = self._calls.get(verb.number)
                if opened:
                    opened.status, opened.answered = verb.status, True
            elif isinstance(verb, Done):
                if verb.number in self._calls:
                    self._finish(verb.number)
            elif isinstance(verb, Inject):
                self._inject(verb)
            elif isinstance(verb, Hold):
                side.held = True
                if verb.patience is not None and self._hold_until is None:
                    self._hold_until = self._now + verb.patience
            elif isinstance(verb, Void):
                voided = self._sides[verb.direction]
                voided.credit, voided.queue = 0, []
                self._out.append(Discard(verb.direction))
            elif isinstance(verb, Later):
                self._pause(side)
            elif isinstance(verb, Fail):
                self._fail(verb)
            elif isinstance(verb, Opaque):
                self._open_tunnel(verb)
            elif isinstance(verb, Tolerated):
                self._scene.metrics.tolerated.add((verb.reason,))
            elif isinstance(verb, Leave):
                self._end_between_calls()
            else:
                assert isinstance(verb, More)
            if self.over:
                return

    def _open_tunnel(self, opaque: Opaque) -> None:
        self._tunnel, self._watched = opaque.call, opaque.watched
        for direction, side in zip(Direction, self._sides, strict=True):
            side.credit = 0 if opaque.watched and direction is REQUEST else TUNNEL
            side.call, side.dropping, side.held = opaque.call, False, False
        self._advance(REQUEST)

    def _permit(self, number: int | None) -> Permit:
        opened = self._calls.get(number) if number is not None else None
        permit = opened.permit if opened else None
        if permit is None:
            raise PermissionError(f"a parser passed bytes of call {number}, which nobody allowed")
        assert opened is not None
        opened.forwarded = True
        return permit

    def _account(self, direction: Direction, number: int | None, n: int) -> None:
        opened = self._calls.get(number) if number is not None else None
        if opened:
            opened.bytes[direction] += n

    def _judge(self, judge: Judge) -> None:
        self._fresh_since = None
        place = place_for(judge.call, self._scene.place)
        if self._scene.sink.reserve(place):
            self._admit(judge, place)
            return
        if self._adopting:  # it is under way: its record goes where those of refusals go
            self._rule(judge, self._decide(judge.call), None)
            return
        self._limit("AUDIT_QUEUE")
        self._waiting, self._waiting_since, self.awaited = judge, self._now, place
        self._out.append(AWAIT_ROOM)

    def _admit(self, judge: Judge, place: Place) -> None:
        """A call with room for its record: decide it now, or over several turns."""
        if len(judge.call.resources) > MANY_RESOURCES and not self._adopting:
            self._decide_on(judge, self._steps_to_decide(judge.call), place)
        else:
            self._rule(judge, self._decide(judge.call), place)

    def _steps_to_decide(self, call: ApiCall) -> Generator[None, None, Decision]:
        try:
            return (yield from self._current_pair().deciding(call))
        except Exception as error:
            self._scene.complain(error)
            return UNDECIDED

    def _decide_on(self, judge: Judge, steps: Generator[None, None, Decision], place: Place) -> None:
        try:
            next(steps)
        except StopIteration as end:
            self._deciding = None
            self._rule(judge, end.value, place)
        else:
            self._deciding = judge, steps, place
            self._pause(self._sides[REQUEST])

    def _decide(self, call: ApiCall) -> Decision:
        try:
            pair = self._lent if self._adopting and self._lent else self._current_pair()
            return pair.decide(call)
        except Exception as error:
            self._scene.complain(error)
            return UNDECIDED

    def _rule(self, judge: Judge, decision: Decision, reserved: Place | None) -> None:
        if judge.call.resources:
            self._sides[REQUEST].steps -= len(judge.call.resources) // STEP_RESOURCES
        opened = self._calls[judge.number] = OpenCall(judge.call, decision, self._now, reserved)
        if self._adopting:
            opened.at -= int((self._now - self._adopting.began) * 1e6)
            opened.began = self._adopting.began
            # Its bytes are with the server: nothing else that we could say to the client would be true.
            if not decision.allowed or decision.per_resource is not None:
                raise PermissionError(f"the kernel began a call that policy denies: {decision.reason}")
        if opened.permit and not self._dialled:
            self._dialled = True
            self._out.append(DIAL)
        self._perform(REQUEST, self._parser.on_ruling(judge.number, decision))

    def _limit(self, name: str) -> None:
        self._scene.metrics.limits.add((name,))

    def _inject(self, inject: Inject) -> None:
        if inject.direction is REPLY:
            self._account(REPLY, inject.call, len(inject.data))
            self._out.append(Answer(inject.data))
        else:
            self._out.append(Forward(self._permit(inject.call), REQUEST, inject.data))

    def _after(self, direction: Direction) -> None:
        """What a settled piece means for the rest: a held request may go on, an end is handed on."""
        request, reply = self._sides
        if not request.held:
            self._hold_until = None
        if direction is REPLY and request.held:
            request.held = False
            self._advance(REQUEST)
            if self.over:
                return
        if not request.unsettled or request.held or request.paused or self._waiting:
            self._head_since = None
        elif self._head_since is None:
            self._head_since = self._now
        if reply.ended and not (reply.shut or reply.credit or reply.queue or reply.paused):
            self._server_ended()
        waits = request.credit or request.queue or request.held or request.paused or self._waiting
        if request.ended and not (self.over or request.shut or waits):
            self._client_ended()
        if self.draining and not self.over:
            self._drained()

    def _server_ended(self) -> None:
        """All that the server will ever say is settled."""
        self._sides[REPLY].shut = True
        if self._tunnel is not None:
            self._out.append(SHUT[REPLY])
            if self._sides[REQUEST].shut:
                self._end(CLOSE, None)
        elif not self._calls:
            self._end_between_calls()
        elif all(opened.answered for opened in self._calls.values()):
            self._end(CLOSE)  # a reply may overtake its request, and the server need not wait for the rest
        else:
            self._without_server(Outage.RESET)

    def _client_ended(self) -> None:
        """All that the client will ever say is settled."""
        self._sides[REQUEST].shut = True
        if not self._dialled or (not self._calls and self._tunnel is None):
            self._end(CLOSE)  # the server owes nothing that anybody would read
            return
        self._out.append(SHUT[REQUEST])
        if self._sides[REPLY].shut:
            self._end(CLOSE, None)

    # How a call, and the connection, end.

    def _crashed(self) -> None:
        """Nobody can tell any more what has been said to whom: end both connections at once."""
        if self.over:
            self._out.append(ABORT)
            return
        self._refused(Fail("internal-error"))
        self._end(ABORT, "unanswered", "internal-error")

    def _without_server(self, outage: Outage) -> None:
        """The server can do no more for the calls that are open. Inside a tunnel nobody may put words into its mouth."""
        if self._tunnel is not None:
            self._end(ABORT, "reset", outage.value)
        elif self._calls:
            self._perform(REPLY, self._parser.on_outage(outage))
        if not self.over:
            self._end(CLOSE, "unanswered", outage.value)

    def _client_is_slow(self) -> None:
        self._perform(REQUEST, self._parser.on_outage(Outage.SLOW_CLIENT))

    def _refuse_unrecorded(self) -> None:
        """No room for the record of a call: deny it, with a record in the reserve that is kept for refusals."""
        judge, self._waiting = self._waiting, None
        assert judge is not None
        self._rule(judge, UNRECORDED, None)
        self._advance(REQUEST)

    def _fail(self, fail: Fail) -> None:
        """The connection cannot go on. The call at fault, or what could be read of it, gets its record here."""
        if fail.limit:
            self._limit(fail.limit)
        if fail.last_words:
            self._out.append(Answer(fail.last_words))
        opened = self._calls.get(fail.call) if fail.call is not None else None
        if opened:
            if opened.decision.allowed:
                opened.reason = fail.reason
            opened.status = opened.status if opened.answered else fail.status
            opened.bytes[REPLY] += len(fail.last_words)
            self._finish(fail.call or 0, fail.limit)
        elif fail.call is None:
            self._refused(fail)
        # A reply that lasts until the close looks complete if it is cut by an orderly one.
        cut = self._sides[REPLY].credit > 0
        self._end(ABORT if cut else CLOSE, "unanswered", fail.reason)

    def _end_between_calls(self) -> None:
        self._ended_between_calls = True
        self._end(CLOSE)

    def _refused(self, fail: Fail, size: int | None = None) -> None:
        """Something that never became a call, of ``size`` bytes: what is not settled."""
        call = fail.partial or ApiCall(protocol=self._parser.protocol)
        opened = OpenCall(call, self._refusal(fail.reason), self._now, None)
        opened.status = fail.status
        opened.bytes = [len(self._sides[REQUEST].unsettled) if size is None else size, len(fail.last_words)]
        self._write(f"r{self._refusals}", opened, fail.limit)
        self._refusals += 1

    def _refusal(self, reason: str) -> Decision:
        """A denial that is nobody's decision, with the policies that would have been asked; in doubt without."""
        try:
            return self._scene.pair().refusal(reason)
        except Exception:
            return Decision(verdict=Verdict.DENIED, reason=reason, generation=0)

    def _end(self, how: Close | Abort, status: str | None = "unanswered", reason: str | None = None) -> None:
        """The connection is over, and every call that is still open with it.

        ``status`` is that of calls without a reply; ``reason`` says of allowed calls why they were cut off.
        """
        self.over = True
        if self._waiting:
            judge, self._waiting = self._waiting, None
            self._calls[judge.number] = OpenCall(judge.call, UNRECORDED, self._now, None)
        if self._deciding:
            (judge, _, place), self._deciding = self._deciding, None
            self._calls[judge.number] = OpenCall(judge.call, UNJUDGED, self._now, place)
        for number in list(self._calls):
            opened = self._calls[number]
            if not opened.answered:
                opened.status = status
            if opened.decision.allowed:
                opened.reason = opened.reason or reason
            self._finish(number)
        self._write_summaries(None)
        self._out.append(how)

    def _redacts_queries(self) -> bool:
        """What policy says of the queries of calls that it was not asked about; in doubt they are redacted."""
        try:
            return self._scene.pair().redact_query
        except Exception:
            return True

    def _finish(self, number: int, limit: str | None = None) -> None:
        opened = self._calls.pop(number)
        if opened.permit is not None and (self.dialling or not opened.forwarded):
            self._take_back(opened)
        if self._came_to_nothing(opened):
            if opened.reserved is not None:
                self._scene.sink.cancel(opened.reserved)
            return
        self._write(number, opened, limit)

    @staticmethod
    def _came_to_nothing(opened: OpenCall) -> bool:
        """A connection on which nobody said a word, as probes of a port make, is none that policy would have denied."""
        said = any(opened.bytes) or opened.reason not in (None, "client-reset")
        return opened.call.protocol == "tcp" and opened.decision.verdict is Verdict.WOULD_DENY and not said

    @staticmethod
    def _take_back(opened: OpenCall) -> None:
        """The server never heard of a call that policy would have let through, in whole or in part.

        What we have refused is denied, and nothing of it was let through in part. Where it is the server that cannot be
        reached, or the client that went away, the verdict stays what policy said, and status and reason say what came of it.
        """
        decision = opened.decision
        refused = opened.reason is not None and opened.reason not in _NOT_REFUSED
        if not refused and decision.verdict is not Verdict.PARTIAL:
            return
        opened.decision = msgspec.structs.replace(decision, verdict=Verdict.DENIED, per_resource=None, granting=None)
        if opened.reason is not None:  # it was no rule that kept it back
            opened.decision = msgspec.structs.replace(opened.decision, policy=None, rule=None)

    def _write(self, number: int | str, opened: OpenCall, limit: str | None = None) -> None:
        decision = opened.decision
        plain = decision.verdict is Verdict.ALLOWED and opened.reserved is not None and opened.reason is None and limit is None
        if plain and not decision.summary and self._write_like_others(number, opened):
            return
        self._scene.metrics.calls.add(self._labels(opened), self._now - opened.began)
        if plain and decision.summary and self._sum_up(number, opened):
            return
        self._scene.sink.write(self._record(number, opened, limit), reserved=opened.reserved)

    def _write_like_others(self, number: int | str, opened: OpenCall) -> bool:
        """Fill in the line of a call that has ended as most do; False if its record has to be made."""
        if opened.status is None:
            return False
        last = self._relayed
        if last is None or last.call is not opened.call or last.decision is not opened.decision or opened.via != "relay":
            last = self._like_others(opened.call, opened.decision, opened.via)
            if last is None:
                return False
            if opened.via == "relay":
                self._relayed = last
        seconds = self._now - opened.began
        last.counter.add(seconds)
        sent, received = opened.bytes
        line = last.lines.line(opened.at, number, opened.status, sent, received, round(seconds * 1e6))
        assert opened.reserved is not None
        self._scene.sink.write_line(line, opened.reserved)
        return True

    def _sum_up(self, number: int | str, opened: OpenCall) -> bool:
        """Count the call in a record that stands for several; False if it needs one of its own."""
        if self._summaries is None:
            self._summaries = Summaries()
        second = opened.at // 1_000_000
        self._write_summaries(second)
        call, decision = opened.call, opened.decision
        facts = call.method, call.path, call.host, call.resources, *call.attributes.items()
        key = *facts, opened.status, decision.policy, decision.rule, decision.generation
        summary, known = self._summaries.find(second, key, (number, opened))
        if summary is None:
            return False
        summary.add(opened.bytes[0], opened.bytes[1], self._now - opened.began)
        if known and opened.reserved is not None:
            self._scene.sink.cancel(opened.reserved)  # the record has the room that was reserved for its first call
        return True

    def _write_summaries(self, second: int | None) -> None:
        """Write the records of seconds that are over, or all."""
        if self._summaries is not None:
            for summary in self._summaries.ended(second):
                number, opened = summary.first
                self._scene.sink.write(self._record(number, opened, summary=summary), reserved=opened.reserved)

    def _labels(self, opened: OpenCall) -> tuple[str, str, str, str, str]:
        scene = self._scene
        parties = scene.subject.workload or HOST, scene.peer.workload or "world"
        return (opened.call.protocol, opened.decision.verdict.value, opened.via, *parties)

    def _record(
        self,
        number: int | str,
        opened: OpenCall,
        limit: str | None = None,
        summary: Summary[tuple[int | str, OpenCall]] | None = None,
    ) -> AuditRecord:
        """Build the record of a call, or of several like it: the only place where one is made."""
        scene, call, decision = self._scene, opened.call, opened.decision
        sent, received = opened.bytes if summary is None else (summary.bytes_request, summary.bytes_reply)
        seconds = self._now - opened.began if summary is None else summary.longest
        return AuditRecord(
            time=moment(opened.at),
            id=call_id(scene.connection, number),
            node=scene.node,
            subject=scene.subject,
            peer=scene.peer,
            direction=decision.direction,
            source=scene.source,
            destination=scene.destination,
            protocol=call.protocol,
            method=call.method,
            path=self._shown_path(call, decision),
            host=call.host,
            api_version=call.attributes.get("apiVersion"),
            client_id=call.attributes.get("clientId"),
            principal=call.attributes.get("principal"),
            headers=listed_headers(call.headers, scene.record_headers) if scene.record_headers else None,
            resources=(*call.resources, ALL_TOPICS) if call.all_topics else call.resources,
            verdict=decision.verdict,
            policy=decision.policy or ", ".join(decision.detail) or None,  # where none decided: those that were asked
            rule=decision.rule,
            reason=opened.reason or decision.reason,
            limit=limit or ("AUDIT_PATIENCE" if decision is UNRECORDED else None),
            notes=decision.notes,
            per_resource=decision.per_resource or None,
            status=opened.status,
            bytes_request=sent,
            bytes_reply=received,
            duration_ms=round(seconds * 1000, 3),
            calls=None if summary is None else summary.calls,
            via=opened.via,
            generation=decision.generation or None,
        )


class _Bygone:
    """A policy by which the kernel has carried calls, and of which no more is known than that."""

    def __init__(self, generation: int) -> None:
        self.generation = generation

    def decide(self, call: ApiCall) -> Decision:
        return Decision(verdict=Verdict.ALLOWED, reason=WORKER_DIED, generation=self.generation, redact_query=True)


class Orphan(Flow):
    """A connection that has ended with its worker: what is left are records of calls that the kernel has carried.

    Of the conversation before them nothing is known. Heads need nothing of it. Where frames may, or where the policy of then
    is not that of now, a record says what is certain: that the kernel carried what policy allowed.
    """

    __slots__ = ()

    def __init__(self, scene: Scene, parser: Parser) -> None:
        super().__init__(scene, parser)
        self.over = True

    def cut_off(self, calls: Iterable[tuple[int, Carried]], generation: int, now: float) -> None:
        """Nothing more comes of the calls that were open: ``calls`` has their numbers, ``generation`` is their policy's."""
        self._now = now
        for number, carried in calls:
            call, _ = self._recall(carried.head, carried.reply_head)
            opened = OpenCall(call, self._loan_of(generation).decide(call), carried.began, None)
            opened.at -= int((now - carried.began) * 1e6)
            opened.via, opened.reason = "kernel", WORKER_DIED
            opened.status = carried.status or "reset"
            opened.bytes = [carried.request_bytes, carried.reply_bytes]
            self._write(number, opened)

    def _loan_of(self, generation: int) -> Decider:
        pair = self._scene.pair()
        return pair if pair.generation == generation and self._parser.prefixes is None else _Bygone(generation)

    def _recall(self, head: bytes, reply: bytes) -> tuple[ApiCall, int | str | None]:
        if self._parser.prefixes is None:
            return super()._recall(head, reply)
        try:
            return super()._recall(head, reply)
        except Exception:  # it names what only the conversation before could tell
            return ApiCall(protocol=self._parser.protocol), UNKNOWN


__all__ = [
    "Abort",
    "Answer",
    "Carry",
    "Close",
    "Command",
    "Dial",
    "Discard",
    "Flow",
    "Forward",
    "Likenesses",
    "Orphan",
    "Permit",
    "Scene",
    "Shut",
]
