"""Connections whose bytes nobody reads: one call named ``tcp``, then a tunnel.

``TunnelParser`` is for ports on which only the connection as such is policed. ``DetectingParser`` is for ports whose policy
says ``opaque: allow``: it looks at the first bytes and becomes the protocol's parser, or a tunnel.
"""

from collections.abc import Callable, Sequence
from typing import Never

from parsers.contract import ApiCall, Direction, Done, Fail, Judge, More, Opaque, Outage, Parser, Prefix, Ruling, Verb
from parsers.detect import detect

CONNECTION = 0  # the number of a tunnel's only call
# The call of a connection on which the server may speak first. Outside the numbers of calls that may follow it.
SILENCE = -1


class TunnelParser:
    """The client may wait for the server to speak, so the connection is judged before its first byte."""

    protocol = "tcp"

    def __init__(self) -> None:
        self._judged = False

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def prefixes(self) -> None:
        return None

    def policy_changed(self) -> None:
        pass

    def skip(self, head: bytes, reply: bytes) -> Never:
        raise AssertionError("a tunnel has no boundary")

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        if self._judged:
            return ()
        self._judged = True
        return (Judge(CONNECTION, ApiCall(protocol=self.protocol)),)

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        return (Opaque(number) if ruling.allowed else Fail("denied", call=number),)

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        return (Fail(outage.value, call=CONNECTION),)


class DetectingParser:
    """Waits for enough bytes to tell the protocol.

    A client that says nothing for a while (``Outage.SLOW_CLIENT``) may speak a protocol in which the server begins: the
    connection is judged and the server is dialled. It is a tunnel only when the server does begin. A client that begins
    after all is looked at as ever: otherwise a second's silence would lead every request around its rules.
    """

    def __init__(self, parsers: Callable[[str], Parser | None], detect: Callable[[bytes, bool], str | None] = detect) -> None:
        """``parsers`` makes the parser of a protocol that ``detect`` has told; None means that it may pass as a tunnel."""
        self._parsers = parsers
        self._detect = detect
        self._parser: Parser | None = None
        self._begun = False  # the client has said something, not enough to tell what
        self._awaits_server = False

    @property
    def protocol(self) -> str:
        return self._parser.protocol if self._parser else "tcp"

    @property
    def at_boundary(self) -> bool:
        return self._parser is not None and self._parser.at_boundary

    @property
    def prefixes(self) -> Sequence[Prefix] | None:
        return self._parser.prefixes if self._parser else None

    def policy_changed(self) -> None:
        if self._parser:
            self._parser.policy_changed()

    def skip(self, head: bytes, reply: bytes) -> tuple[Judge, int | str | None]:
        assert self._parser is not None, "nothing was detected yet"
        return self._parser.skip(head, reply)

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        if self._parser is not None:
            return self._parser.on_data(direction, data, end)
        if direction is Direction.REPLY:
            return (Opaque(SILENCE),) if data else ()
        self._begun = bool(data)
        found = self._detect(data, end) if data or end else None
        if found is None:
            return (More(),)
        self._parser = self._parsers(found)
        if not self._awaits_server:
            self._parser = self._parser or TunnelParser()
            return self._parser.on_data(direction, data, end)
        if self._parser is None:
            return (Opaque(SILENCE),)
        return (Done(SILENCE), *self._parser.on_data(direction, data, end))

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
