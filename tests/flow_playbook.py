"""A flow's life as a dialogue: events in, commands out, and the records at the end. No socket, no clock, no real policy.

    play = Dialogue(Http1Parser())
    play.client(b"GET / HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n")
    assert play.commands == [Dial(), Forward(...)]

``Dialogue`` is stricter than the transport: a byte behind a half-close, or anything behind the last command, is an
AssertionError. ``LineParser`` speaks a toy protocol of one line per call, so that a flow can be tested without any real one.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import msgspec

from parsers.contract import (
    ApiCall,
    Direction,
    Done,
    Drop,
    Fail,
    Inject,
    Judge,
    More,
    Opaque,
    Outage,
    Parser,
    Pass,
    Reply,
    Ruling,
    Verb,
)
from policies.decide import Decision, Pair, Verdict
from proxy.audit.places import Place
from proxy.audit.record import AuditRecord, Party
from proxy.flow import (
    Abort,
    Again,
    Answer,
    Carried,
    Carry,
    Close,
    Command,
    Dial,
    Discard,
    Finished,
    Flow,
    Forward,
    Scene,
    Shut,
)
from proxy.metrics import Metrics

REQUEST, REPLY = Direction.REQUEST, Direction.REPLY


class Records:
    """A sink with as much room as a test says."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.accepts_refusals = True
        self.written: list[tuple[Any, bool]] = []  # records, or lines of calls that the kernel has carried
        self.reserved = 0

    def reserve(self, place: Place) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.reserved += 1
        return True

    def cancel(self, place: Place) -> None:
        self.room += 1
        self.reserved -= 1

    def write_line(self, line: str, reserved: Place) -> None:
        assert line.endswith("\n")
        self.write(msgspec.json.decode(line, type=AuditRecord), reserved=reserved)

    def write(self, record: AuditRecord, *, reserved: Place | None) -> None:
        self.written.append((record, reserved is not None))
        self.reserved -= reserved is not None


class Policy:
    """Denies every call whose path begins with ``/no``. ``generation`` changes as a reload changes it."""

    redact_query = False

    def __init__(self) -> None:
        self.generation = 1
        self.denies: Callable[[ApiCall], bool] = lambda call: (call.path or "").startswith("/no")
        self.asked: list[ApiCall] = []

    def decide(self, call: ApiCall) -> Decision:
        self.asked.append(call)
        denied = self.denies(call)
        return Decision(
            verdict=Verdict.DENIED if denied else Verdict.ALLOWED,
            reason="no-rule-matched" if denied else "rule-matched",
            generation=self.generation,
            redact_query=self.redact_query,
        )

    def deciding(self, call: ApiCall) -> Generator[None, None, Decision]:
        yield
        return self.decide(call)


class Dialogue:
    """One connection. ``commands`` are those of the last event; the rest adds up."""

    def __init__(
        self, parser: Parser, policy: Policy | None = None, sink: Records | None = None, detect_within: float | None = None
    ) -> None:
        self.policy = policy or Policy()
        self.sink = sink or Records()
        self.metrics = Metrics()
        self.faults: list[Exception] = []
        self.now = 0.0
        self.commands: list[Command] = []
        self.all: list[Command] = []
        self.to_server = b""
        self.to_client = b""
        self.carry = [0, 0]
        self.turns = 0  # that it has asked for
        scene = Scene(
            connection="c",
            node="n",
            source="127.0.0.1:1",
            destination="127.0.0.1:2",
            subject=Party(workload="web"),
            peer=Party(workload="orders"),
            pair=lambda: cast(Pair, self.policy),
            sink=self.sink,
            metrics=self.metrics,
            detect_within=detect_within,
            complain=self.faults.append,
        )
        self.flow = Flow(scene, parser)
        self.take(self.flow.begin(self.now))

    # Events.

    def client(self, data: bytes) -> "Dialogue":
        return self.take(self.flow.data(REQUEST, data, self.now))

    def server(self, data: bytes) -> "Dialogue":
        return self.take(self.flow.data(REPLY, data, self.now))

    def client_ends(self) -> "Dialogue":
        return self.take(self.flow.eof(REQUEST, self.now))

    def server_ends(self) -> "Dialogue":
        return self.take(self.flow.eof(REPLY, self.now))

    def client_resets(self) -> "Dialogue":
        return self.take(self.flow.lost(REQUEST, self.now))

    def server_resets(self) -> "Dialogue":
        return self.take(self.flow.lost(REPLY, self.now))

    def carried(self, direction: Direction, n: int) -> "Dialogue":
        assert n <= self.carry[direction], "more is carried than was allowed"
        self.carry[direction] -= n
        return self.take(self.flow.carried(direction, n, self.now))

    def carried_call(self, head: bytes, request_bytes: int, reply_bytes: int, status: int, took: int = 250_000) -> None:
        """The kernel has carried a whole call, in so many microseconds. Its record is a line."""
        self.finish(Finished(int(1.7e15), took, head, request_bytes, b"", reply_bytes, status, self.next_number, self.lent))

    def finish(self, finished: Finished) -> None:
        """The kernel has carried a whole call, and tells of it at once."""
        lines: list[str] = []
        try:
            self.flow.carried_call(finished, lines)
        finally:
            self.sink.written += ((line, True) for line in lines)
        self.flow.skip(1)

    @property
    def next_number(self) -> int:
        return self.flow._parser.next_number

    @property
    def lent(self) -> int:
        """The generation that the kernel goes by."""
        assert self.flow._lent is not None
        return self.flow._lent.generation

    def adopt(self, *carried: Carried) -> "Dialogue":
        self.take(self.flow.adopt(carried, self.now))
        assert not any(isinstance(command, Forward) for command in self.commands), "the kernel has carried it"
        return self

    def outage(self, outage: Outage) -> "Dialogue":
        return self.take(self.flow.outage(outage, self.now))

    def wait(self, seconds: float, listening: bool = True) -> "Dialogue":
        self.now += seconds
        return self.take(self.flow.tick(self.now, listening))

    def idles(self, unread: Direction | None = None) -> "Dialogue":
        return self.take(self.flow.idled(unread, self.now))

    def room(self) -> "Dialogue":
        """The writer has room again; as the real one, it hands over the reservation with the call-back."""
        self.sink.reserved += 1
        return self.take(self.flow.room(self.now))

    def drain(self) -> "Dialogue":
        return self.take(self.flow.drain(self.now))

    def stop(self) -> "Dialogue":
        return self.take(self.flow.stop(self.now))

    def take(self, commands: Sequence[Command]) -> "Dialogue":
        self.commands = list(commands)
        while not self.flow.over and Again() in commands:
            self.turns += 1
            commands = self.flow.go_on(self.now)
            self.commands += commands
        for command in self.commands:
            assert not self.ended, f"{command} behind the last command"
            self.all.append(command)
            match command:
                case Forward(permit=permit, direction=direction, data=data):
                    assert permit.decision.allowed
                    assert data
                    assert Shut(direction) not in self.all, "bytes behind a half-close"
                    if direction is REQUEST:
                        self.to_server += data
                    else:
                        self.to_client += data
                case Carry(permit=permit, direction=direction, n=n):
                    assert permit.decision.allowed
                    assert Shut(direction) not in self.all, "bytes behind a half-close"
                    self.carry[direction] = n
                case Discard(direction=direction):
                    self.carry[direction] = 0
                case Answer(data=data):
                    self.to_client += data
                case _:
                    pass
        assert self.flow.over == self.ended
        owners = bool(self.flow._deciding)
        owners += sum(opened.reserved is not None for opened in self.flow._calls.values())  # adopted calls may be without
        owners += len(self.flow._summaries) if self.flow._summaries is not None else 0
        assert self.sink.reserved == owners, "each reservation belongs to one open call, or to one record of several"
        return self

    # What came of it.

    @property
    def records(self) -> list[Any]:
        return [record for record, _ in self.sink.written]

    @property
    def ended(self) -> bool:
        return bool(self.all) and isinstance(self.all[-1], (Close, Abort))

    @property
    def story(self) -> list[tuple[str, str | None, int | str | None, str | None]]:
        """Verdict, path, status and reason of each record."""
        return [(str(record.verdict), record.path, record.status, record.reason) for record in self.records]

    def count(self, kind: type[Dial | Close | Abort | Shut]) -> int:
        return sum(isinstance(command, kind) for command in self.all)


class LineParser:
    """One line per call, one line per reply, in order. Some paths make it misbehave.

    ``/body N``: the call has N bytes behind its line. ``/tunnel``: opaque after the reply. ``/crash``, ``/crash-on-ruling``: an
    exception. ``/leak``: passes bytes that nobody judged. A reply line ``body N`` has N bytes behind it; ``garbage`` is a
    fault of the server.
    """

    protocol = "line"
    at_boundary = False
    kept = 0
    prefixes = None
    next_number = 0

    def policy_changed(self) -> None:
        pass

    def skip(self, calls: int) -> None:
        raise AssertionError("never at a boundary")

    def recall(self, head: bytes, reply: bytes) -> tuple[ApiCall, None]:
        raise AssertionError("never at a boundary")

    def __init__(self) -> None:
        self._open: list[int] = []
        self._next = 0
        self._line = b""

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        line, newline, _ = data.partition(b"\n")
        if not newline:
            return (Fail("truncated", b"bad\n", 400),) if end and data else (More(),)
        if direction is REPLY:
            return self._reply(line)
        path = line.decode()
        if path == "/crash":
            raise ValueError(path)
        if path == "/leak":
            return (Pass(len(line) + 1, 99),)
        self._line = line
        self._next += 1
        return (Judge(self._next - 1, ApiCall(protocol=self.protocol, path=path, method="LINE")),)

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        length = len(self._line) + 1
        if self._line == b"/crash-on-ruling":
            raise ValueError("ruling")
        if not ruling.allowed:
            return (Drop(length, number), Inject(REPLY, b"no\n", number), Reply(number, 403), Done(number))
        self._open.append(number)
        if self._line.startswith(b"/body "):
            length += int(self._line.split()[1])
        return (Pass(length, number),)

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        if outage is Outage.SLOW_CLIENT:
            return (Fail(outage.value, b"slow\n", 408),)
        return (Fail(outage.value, b"sorry\n", 502, self._open[0]),)

    def _reply(self, line: bytes) -> Sequence[Verb]:
        number = self._open[0]
        length = len(line) + 1
        if line == b"garbage":
            return (Fail("reply-garbage", call=number),)
        if line == b"tunnel":
            return (Reply(number, 101), Pass(length, number), Opaque(number))
        if line.startswith(b"body "):
            length += int(line.split()[1])
        self._open.pop(0)
        return (Reply(number, 200), Pass(length, number), Done(number))
