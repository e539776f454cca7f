"""Who a client says that it is in a SASL exchange (RFC 4616, RFC 5802). Passwords are read over and never kept.

What the client says counts once the broker has accepted it. It is told in records, and nothing is decided by it.

Behind SaslHandshake version 0 the messages of an exchange have a size and nothing else (KIP-43). They are told from requests
by their number alone, which the mechanism says: a broker takes neither more nor fewer. Where it does not say, as with GSSAPI,
a client could pass a request off for a message, so such an exchange is not let through.
"""

from parsers.kafka.frame import SIZE, MalformedError
from parsers.kafka.wire import Reader, request_body

MAX_PRINCIPAL = 256  # characters; a user's name
# Bytes of a message without a header: the broker's default of sasl.server.max.receive.size.
BARE_MAX = 524_288
# Messages of a client until the broker knows it, by mechanism.
_ROUNDS = {"PLAIN": 1, "SCRAM-SHA-256": 2, "SCRAM-SHA-512": 2, "OAUTHBEARER": 1}
_FLEXIBLE_AUTHENTICATE = 2  # the first flexible version of SaslAuthenticate


def bare_size(data: bytes) -> int | None:
    """Bytes of the message without a header at the beginning of ``data``, with its size; None: not there yet."""
    if len(data) < SIZE:
        return None
    length = int.from_bytes(data[:SIZE], "big", signed=True)
    if length < 0:
        raise MalformedError("negative-length")
    if length > BARE_MAX:
        raise MalformedError("frame-too-large", "BARE_MAX")
    return SIZE + length


class Login:
    """The exchanges of one connection, of which there may be several (KIP-368)."""

    def __init__(self) -> None:
        self.principal: str | None = None
        self._mechanism = ""
        self._claimed: str | None = None
        self._rounds = 0  # that are still to come
        self.bare: int | None = 0  # messages without a header that the client still has to send; None: nobody can tell how many

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

    def agreed(self, version: int, error: int | None) -> None:
        """The broker has answered a SaslHandshake. Without its consent, what follows are requests."""
        if version == 0 and error == 0:
            self.bare = _ROUNDS.get(self._mechanism)

    def says_bare(self, message: bytes) -> None:
        """A message without a header goes by, with its size."""
        assert self.bare, "one is expected"
        if not _is_no_request(self._mechanism, message[SIZE:]):
            raise MalformedError("not-a-login")
        self.bare -= 1
        if self._claimed is None:
            self._claimed = named(self._mechanism, message[SIZE:])

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

    def answered(self, error: int | None) -> None:
        """The broker has answered a SaslAuthenticate, nobody knows how (None), or a message without a header."""
        if error != 0:
            self._claimed = None
            self._rounds = 0
        elif self._rounds:
            self._rounds -= 1
            if not self._rounds:
                self.principal, self._claimed = self._claimed, None


def _is_no_request(mechanism: str, message: bytes) -> bool:
    """Whether a message is a login's, and no broker could take it for a request, should it not wait for a login.

    Requests begin with a byte of zero, and have one below 32 in their version. Only PLAIN has a byte of zero: two, before the
    user's name and before the password.
    """
    if mechanism != "PLAIN":
        return message[:1] >= b" " and b"\0" not in message
    parts = message.split(b"\0")
    return len(parts) == 3 and all(byte >= 0x20 for part in parts for byte in part)


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
