"""Connections whose bytes nobody reads: one call named ``tcp``, then a tunnel.

``TunnelParser`` is for ports on which only the connection as such is policed. ``DetectingParser`` is for ports whose policy
says ``opaque: allow``: it looks at the first bytes and becomes the protocol's parser, or a tunnel. That tunnel is watched
as long as the server could still take what passes for the protocol: the connection ends before the byte with which it would.
"""

from collections.abc import Callable, Sequence
from typing import Never, Protocol

from parsers.contract import ApiCall, Direction, Done, Fail, Judge, More, Opaque, Outage, Parser, Pass, Prefix, Ruling, Verb
from parsers.detect import Watch, detect

CONNECTION = 0  # the number of a tunnel's only call
# The call of a connection on which the server may speak first. Outside the numbers of calls that may follow it.
SILENCE = -1
POLICED_PROTOCOL = "policed-protocol"  # the reason of a tunnel that ended because it came to be what the port's rules are about


class Watcher(Protocol):
    """Reads along with the client's first bytes (`parsers.detect.Watch`)."""

    @property
    def over(self) -> bool:
        """Whether nothing need be read any more."""
        ...

    def read(self, data: bytes) -> int | None:
        """Return the place in ``data`` of the byte that must not pass, if it is there."""
        ...


class TunnelParser:
    """The client may wait for the server to speak, so the connection is judged before its first byte."""

    protocol = "tcp"
    kept = 0

    def __init__(self, number: int = CONNECTION, watch: Watcher | None = None, judged: bool = False) -> None:
        """``judged``: it is open already, as call ``number``. ``watch`` reads along, until it is over."""
        self._number = number
        self._watch = watch
        self._judged = judged

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def prefixes(self) -> None:
        return None

    def policy_changed(self) -> None:
        pass

    @property
    def next_number(self) -> int:
        return CONNECTION

    def skip(self, calls: int) -> Never:
        raise AssertionError("a tunnel has no boundary")

    def recall(self, head: bytes, reply: bytes) -> Never:
        raise AssertionError("a tunnel has no boundary")

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        if not self._judged:
            self._judged = True
            return (Judge(self._number, ApiCall(protocol=self.protocol)),)
        if direction is Direction.REPLY or self._watch is None or not data:
            return ()
        at = self._watch.read(data)
        passed = len(data) if at is None else at
        verbs: list[Verb] = [Pass(passed, self._number)] if passed else []
        if at is not None:
            verbs.append(Fail(POLICED_PROTOCOL, call=self._number))
        elif self._watch.over:
            self._watch = None
            verbs.append(self.opening)
        return verbs

    @property
    def opening(self) -> Opaque:
        return Opaque(self._number, watched=self._watch is not None)

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        return (self.opening if ruling.allowed else Fail("denied", call=number),)

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        return (Fail(outage.value, call=self._number),)


class DetectingParser:
    """Waits for enough bytes to tell the protocol.

    A client that says nothing for a while (``Outage.SLOW_CLIENT``) may speak a protocol in which the server begins: the
    connection is judged and the server is dialled. It is a tunnel only when the server does begin, or the client in another
    protocol; what the client says first is looked at as ever. Otherwise a second's silence would lead every request around
    its rules. Behind the server's first words a request is not read any more, but ends the connection.
    """

    def __init__(
        self,
        parsers: Callable[[str], Parser | None],
        detect: Callable[[bytes, bool], str | None] = detect,
        watch: Callable[[], Watcher] | None = Watch,
    ) -> None:
        """``parsers`` makes the parser of a protocol that ``detect`` has told; None means that it may pass as a tunnel.

        ``watch`` makes what reads along with such a tunnel; None: whatever comes may pass.
        """
        self._parsers = parsers
        self._detect = detect
        self._watch = watch
        self._parser: Parser | None = None
        self._begun = False  # the client has said something, not enough to tell what
        self._awaits_server = False

    @property
    def protocol(self) -> str:
        return self._parser.protocol if self._parser else "tcp"

    @property
    def kept(self) -> int:
        return self._parser.kept if self._parser else 0

    @property
    def at_boundary(self) -> bool:
        return self._parser is not None and self._parser.at_boundary

    @property
    def prefixes(self) -> Sequence[Prefix] | None:
        return self._parser.prefixes if self._parser else None

    def policy_changed(self) -> None:
        if self._parser:
            self._parser.policy_changed()

    @property
    def next_number(self) -> int:
        return self._parser.next_number if self._parser else 0

    def skip(self, calls: int) -> None:
        assert self._parser is not None, "nothing was detected yet"
        self._parser.skip(calls)

    def recall(self, head: bytes, reply: bytes) -> tuple[ApiCall, int | str | None]:
        assert self._parser is not None, "nothing was detected yet"
        return self._parser.recall(head, reply)

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        if self._parser is not None:
            return self._parser.on_data(direction, data, end)
        if direction is Direction.REPLY:
            return (self._open_silence(),) if data else ()
        self._begun = bool(data)
        found = self._detect(data, end) if data or end else None
        if found is None:
            return (More(),)
        parser = self._parsers(found)
        if parser is None:
            if self._awaits_server:
                return (self._open_silence(),)
            parser = TunnelParser(watch=self._watch() if self._watch else None)
        self._parser = parser
        verbs = parser.on_data(direction, data, end)
        return (Done(SILENCE), *verbs) if self._awaits_server else verbs

    def _open_silence(self) -> Opaque:
        self._parser = tunnel = TunnelParser(SILENCE, self._watch() if self._watch else None, judged=True)
        return tunnel.opening

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        if self._parser is not None:
            return self._parser.on_ruling(number, ruling)
        return () if ruling.allowed else (Fail("denied", call=number),)

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        if self._parser is not None:
            return self._parser.on_outage(outage)
        if outage is not Outage.SLOW_CLIENT or self._begun:
            return (Fail(outage.value, call=SILENCE if self._awaits_server else None),)
        self._awaits_server = True
        return (Judge(SILENCE, ApiCall(protocol="tcp")),)
