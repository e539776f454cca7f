"""Whether a connection speaks Kafka, from its first bytes.

As with HTTP (parsers/detect.py), a wrong "unknown" would lead requests around the rules of the port, so this goes by what some
broker could take for a request, and that is all that has a size which a broker accepts: in front of their requests old clients
send SASL tokens that have no API key and no version (before KIP-43). TLS and text, which Kafka ports are asked as well, give
sizes of hundreds of megabytes.
"""

import struct

from parsers.kafka.frame import FRAME_MAX, SIZE

_BEGINNING = struct.Struct(">ihh")  # size, API key, version
_API_KEY_MAX = 1000  # the highest is 92 today, those of controllers included
_VERSION_MAX = 100  # the highest is 18 today

# Bytes. The broker's default is 100 MiB (socket.request.max.bytes), but it can be set. From here on the size is the beginning
# of TLS (0x1603), or of text.
_SIZE_MAX = 0x1603_0000


def detect(first_bytes: bytes, end: bool) -> str | None:
    """Return ``kafka`` or ``unknown``, or None when more bytes are needed; with ``end`` the answer is never None."""
    if len(first_bytes) < SIZE:
        return "unknown" if end else None
    return "kafka" if int.from_bytes(first_bytes[:SIZE], "big") < _SIZE_MAX else "unknown"


def detect_surely(first_bytes: bytes, end: bool) -> str | None:
    """The same where nothing may be refused: Kafka is what has an API key and a version behind its size, too."""
    if len(first_bytes) < _BEGINNING.size:
        return "unknown" if end else None
    size, api_key, version = _BEGINNING.unpack_from(first_bytes)
    known = 0 <= size <= FRAME_MAX and 0 <= api_key <= _API_KEY_MAX and 0 <= version <= _VERSION_MAX
    return "kafka" if known else "unknown"


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
