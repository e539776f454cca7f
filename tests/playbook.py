"""Plays the transport for a parser: holds unsettled bytes, carries out verbs, and notes everything that happens.

It is stricter than a transport has to be: a verb that breaks the contract of ``parsers.contract`` is an AssertionError.

    play = Playbook(Http1Parser())
    play.client(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    assert play.verbs == [Judge(0, play.calls[0]), Pass(27, 0)]
"""

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from parsers.contract import (
    ApiCall,
    Direction,
    Done,
    Drop,
    Fail,
    HeaderEdit,
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
    Reply,
    Tolerated,
    Verb,
    Void,
)

REQUEST, REPLY = Direction.REQUEST, Direction.REPLY


class Verdict(msgspec.Struct, frozen=True):
    """A ruling as a test states it."""

    allowed: bool = True
    edits: tuple[HeaderEdit, ...] = ()
    bad_request: bool = False
    trailers: bool = True


ALLOW = Verdict()
DENY = Verdict(allowed=False)
BAD_REQUEST = Verdict(allowed=False, bad_request=True)


def allow_all(call: ApiCall) -> Verdict:
    return ALLOW


class _Side:
    def __init__(self) -> None:
        self.unsettled = b""
        self.credit: Pass | Drop | None = None
        self.left = 0  # bytes that the credit still covers
        self.waiting: deque[Verb] = deque()
        self.ended = False
        self.held = False


class Playbook:
    """One connection. Feed ``client``, ``server``, their ends and ``outage``; read what came of it.

    ``verbs`` are those of the last event; ``to_server`` and ``to_client`` are all bytes that each side has got.
    """

    def __init__(self, parser: Parser, rule: Callable[[ApiCall], Verdict] = allow_all) -> None:
        self.parser = parser
        self.rule = rule
        self.to_server = b""
        self.to_client = b""
        self.calls: list[ApiCall] = []
        self.replies: list[tuple[int, int | str]] = []
        self.done: list[int] = []
        self.fail: Fail | None = None
        self.left = False
        self.tolerated: list[str] = []
        self.tunnel: int | None = None
        self.watched = False
        self.bytes: dict[int, list[int]] = {}
        self.verbs: list[Verb] = []
        self._rulings: dict[int, Verdict] = {}
        self._sides = (_Side(), _Side())

    @property
    def open_calls(self) -> list[int]:
        """The calls that have had no end yet."""
        return [number for number in range(len(self.calls)) if number not in self.done]

    def client(self, data: bytes = b"", end: bool = False) -> "Playbook":
        return self._event(REQUEST, data, end)

    def server(self, data: bytes = b"", end: bool = False) -> "Playbook":
        return self._event(REPLY, data, end)

    def outage(self, outage: Outage) -> "Playbook":
        self.verbs = []
        self._sides[REPLY].left = 0
        self._sides[REPLY].waiting.clear()
        self._perform(REPLY, self.parser.on_outage(outage))
        return self

    def unsettled(self, direction: Direction) -> bytes:
        return self._sides[direction].unsettled

    def _event(self, direction: Direction, data: bytes, end: bool) -> "Playbook":
        self.verbs = []
        side = self._sides[direction]
        assert not (side.ended and data), "data behind the end of a stream"
        side.unsettled += data
        side.ended = side.ended or end
        self._advance(direction)
        if direction is REPLY and self._sides[REQUEST].held:
            self._advance(REQUEST)
        return self

    def _advance(self, direction: Direction) -> None:
        side = self._sides[direction]
        while self.fail is None and not self.left:
            if not self._settle(direction):
                return
            if side.waiting:
                verbs = list(side.waiting)
                side.waiting.clear()
                self._perform(direction, verbs)
                continue
            if self.tunnel is not None and not (self.watched and direction is REQUEST):
                self._forward(direction, side.unsettled, self.tunnel)
                side.unsettled = b""
                return
            if not side.unsettled and not side.ended:
                return
            before = len(side.unsettled)
            side.held = False
            verbs = list(self.parser.on_data(direction, side.unsettled, side.ended))
            self._perform(direction, verbs)
            later = isinstance(self.verbs[-1] if self.verbs else None, Later)
            if len(side.unsettled) == before and not side.left and not side.waiting and not later:
                return

    def _settle(self, direction: Direction) -> bool:
        """Apply the present credit; False while it waits for bytes."""
        side = self._sides[direction]
        if not side.left:
            return True
        assert side.credit is not None
        data, side.unsettled = side.unsettled[: side.left], side.unsettled[side.left :]
        side.left -= len(data)
        if isinstance(side.credit, Pass):
            self._forward(direction, data, side.credit.call)
        if not side.left:
            return True
        if side.ended:
            side.left = 0
            side.waiting.clear()
            return True
        return False

    def _forward(self, direction: Direction, data: bytes, number: int | None) -> None:
        assert number is not None, "bytes that belong to no call"
        assert self._rulings[number].allowed, f"bytes of call {number}, which was denied, are passed"
        assert number not in self.done, f"bytes of call {number}, which is over, are passed"
        self.bytes[number][direction] += len(data)
        if direction is REQUEST:
            self.to_server += data
        else:
            self.to_client += data

    def _perform(self, direction: Direction, verbs: Sequence[Verb]) -> None:
        side = self._sides[direction]
        for at, verb in enumerate(verbs):
            assert self.fail is None, f"{verb} behind a Fail"
            assert not self.left, f"{verb} behind a Leave"
            self.verbs.append(verb)
            match verb:
                case Pass(n=n) | Drop(n=n):
                    assert n > 0
                    assert not side.left
                    side.credit, side.left = verb, n
                    if not self._settle(direction):
                        side.waiting.extend(verbs[at + 1 :])
                        return
                case Judge(number=number, call=call):
                    assert at == len(verbs) - 1, "verbs behind a Judge"
                    assert direction is REQUEST
                    assert number == len(self.calls)
                    self.calls.append(call)
                    self.bytes[number] = [0, 0]
                    self._rulings[number] = self.rule(call)
                    self._perform(REQUEST, self.parser.on_ruling(number, self._rulings[number]))
                case Inject(direction=Direction.REPLY, data=data, call=number):
                    assert number is None or number not in self.done
                    self.to_client += data
                case Inject(data=data, call=number):
                    assert number is not None
                    assert self._rulings[number].allowed
                    self.to_server += data
                case Reply(number=number, status=status):
                    assert number in self.open_calls
                    assert number not in dict(self.replies)
                    self.replies.append((number, status))
                case Done(number=number):
                    assert number in self.open_calls
                    self.done.append(number)
                case Fail(last_words=words, call=number):
                    assert number is None or number in self.open_calls
                    self.fail = verb
                    self.to_client += words
                case Opaque(call=number, watched=watched):
                    assert number in self.open_calls
                    self.tunnel, self.watched = number, watched
                    self._advance(REQUEST)
                    self._advance(REPLY)
                case Tolerated(reason=reason):
                    self.tolerated.append(reason)
                case Leave():
                    assert not self.open_calls, "a Leave with calls that are open"
                    self.left = True
                case Void(direction=way):
                    self._sides[way].left = 0
                    self._sides[way].waiting.clear()
                case Hold():
                    side.held = True
                case Later():
                    assert at == len(verbs) - 1, "verbs behind a Later"
                case More(n=n):
                    assert n > 0
