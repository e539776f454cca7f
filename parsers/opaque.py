"""Connections whose bytes nobody reads: one call named ``tcp``, then a tunnel.

``TunnelParser`` is for ports on which only the connection as such is policed. ``DetectingParser`` is for ports whose policy
says ``opaque: allow``: it looks at the first bytes and becomes the protocol's parser, or a tunnel.
"""

from collections.abc import Callable, Sequence

from parsers.contract import ApiCall, Direction, Fail, Judge, More, Opaque, Outage, Parser, Ruling, Verb
from parsers.detect import detect

CONNECTION = 0  # the number of a tunnel's only call


class TunnelParser:
    """The client may wait for the server to speak, so the connection is judged before its first byte."""

    protocol = "tcp"

    def __init__(self) -> None:
        self._judged = False
        self._open = False

    @property
    def at_boundary(self) -> bool:
        return False

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        if self._judged:
            return ()
        self._judged = True
        return (Judge(CONNECTION, ApiCall(protocol=self.protocol)),)

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        if not ruling.allowed:
            return (Fail("denied", call=number),)
        self._open = True
        return (Opaque(number),)

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        return (Fail(outage.value, call=CONNECTION if self._open else None),)


class DetectingParser:
    """Waits for enough bytes to tell the protocol, or for the time in which a client that speaks first would have spoken."""

    def __init__(self, parsers: Callable[[str], Parser | None]) -> None:
        """``parsers`` makes the parser of a detected protocol; None means that it may pass as a tunnel."""
        self._parsers = parsers
        self._parser: Parser | None = None

    @property
    def protocol(self) -> str:
        return self._parser.protocol if self._parser else "tcp"

    @property
    def at_boundary(self) -> bool:
        return self._parser is not None and self._parser.at_boundary

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        if self._parser is None:
            found = detect(data, end) if data or end else None
            if found is None:
                return (More(),)
            self._parser = self._parsers(found) or TunnelParser()
        return self._parser.on_data(direction, data, end)

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        assert self._parser is not None
        return self._parser.on_ruling(number, ruling)

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        if self._parser is None and outage is Outage.SLOW_CLIENT:
            # A protocol in which the server speaks first.
            self._parser = TunnelParser()
            return self._parser.on_data(Direction.REQUEST, b"", False)
        return self._parser.on_outage(outage) if self._parser else (Fail(outage.value),)
