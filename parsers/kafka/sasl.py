"""Who a client says that it is in a SASL exchange (RFC 4616, RFC 5802). Passwords are read over and never kept.

What the client says counts once the broker has accepted it. It is told in records, and nothing is decided by it.
"""

from parsers.kafka.frame import MalformedError
from parsers.kafka.wire import Reader, request_body

MAX_PRINCIPAL = 256  # characters; a user's name
# Messages of a client until the broker knows it, by mechanism.
_ROUNDS = {"PLAIN": 1, "SCRAM-SHA-256": 2, "SCRAM-SHA-512": 2}
_FLEXIBLE_AUTHENTICATE = 2  # the first flexible version of SaslAuthenticate


class Login:
    """The exchanges of one connection, of which there may be several (KIP-368)."""

    def __init__(self) -> None:
        self.principal: str | None = None
        self._mechanism = ""
        self._claimed: str | None = None
        self._rounds = 0  # that are still to come

    def begin(self, handshake: bytes) -> None:
        """A whole SaslHandshake goes by, which names the mechanism."""
        self._claimed = None
        try:
            reader = Reader(handshake, 0)
            request_body(reader, False)
            length = reader.integer(2)
            self._mechanism = handshake[reader.at : reader.at + max(length, 0)].decode("utf-8", "replace")
        except MalformedError:
            self._mechanism = ""
        self._rounds = _ROUNDS.get(self._mechanism, 0)

    def says(self, authenticate: bytes, version: int) -> None:
        """A whole SaslAuthenticate goes by."""
        if self._claimed is not None or not self._rounds:
            return
        flexible = version >= _FLEXIBLE_AUTHENTICATE
        try:
            reader = Reader(authenticate, 0)
            request_body(reader, flexible)
            length = reader.varint() - 1 if flexible else reader.integer(4)
        except MalformedError:
            return
        self._claimed = named(self._mechanism, authenticate[reader.at : reader.at + max(length, 0)])

    def answered(self, error: int) -> None:
        """The broker has answered a SaslAuthenticate."""
        if error:
            self._claimed = None
            self._rounds = 0
        elif self._rounds:
            self._rounds -= 1
            if not self._rounds:
                self.principal, self._claimed = self._claimed, None


def named(mechanism: str, first_message: bytes) -> str | None:
    """The user that the first message of an exchange names, or None where it does not say."""
    try:
        text = first_message.decode("utf-8")
    except UnicodeDecodeError:
        return None
    name = None
    if mechanism == "PLAIN":
        parts = text.split("\0")
        name = parts[1] if len(parts) == 3 else None
    elif mechanism.startswith("SCRAM-"):
        found = next((part for part in text.split(",") if part.startswith("n=")), "")
        name = found[2:].replace("=2C", ",").replace("=3D", "=")
    return name if name and len(name) <= MAX_PRINCIPAL and name.isprintable() else None
