"""Whether a connection speaks Kafka, from its first bytes.

As with HTTP (parsers/detect.py), a wrong "unknown" would lead requests around the rules of the port, so this goes by what some
broker could take for a request, and that is all that has a size which a broker accepts: in front of their requests old clients
send SASL tokens that have no API key and no version (before KIP-43). TLS and text, which Kafka ports are asked as well, give
sizes of hundreds of megabytes.
"""

from parsers.kafka.frame import SIZE

# Bytes. The broker's default is 100 MiB (socket.request.max.bytes), but it can be set. From here on the size is the beginning
# of TLS (0x1603), or of text.
_SIZE_MAX = 0x1603_0000


def detect(first_bytes: bytes, end: bool) -> str | None:
    """Return ``kafka`` or ``unknown``, or None when more bytes are needed; with ``end`` the answer is never None."""
    if len(first_bytes) < SIZE:
        return "unknown" if end else None
    return "kafka" if int.from_bytes(first_bytes[:SIZE], "big") < _SIZE_MAX else "unknown"


class Watch:
    """The same for a client that begins behind the server: tells the byte with which it is Kafka."""

    def __init__(self) -> None:
        self._size = b""

    @property
    def over(self) -> bool:
        return len(self._size) == SIZE

    def read(self, data: bytes) -> int | None:
        """Return the place in ``data`` of the size's last byte, if it is there and the size is one."""
        missing = SIZE - len(self._size)
        if not missing:
            return None
        self._size += data[:missing]
        return missing - 1 if detect(self._size, False) == "kafka" else None
