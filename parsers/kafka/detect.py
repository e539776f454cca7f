"""Whether a connection speaks Kafka, from its first bytes.

As with HTTP (parsers/detect.py), a wrong "unknown" would lead requests around the rules of the port, so this goes by what some
broker could take for a request: a size that a broker accepts, an API key and a version in a range with room for years to come.
TLS and text, which Kafka ports are asked as well, give sizes of hundreds of megabytes.
"""

import struct

from parsers.kafka.frame import FRAME_MAX

_BEGINNING = struct.Struct(">ihh")  # size, API key, version
_API_KEY_MAX = 1000  # the highest is 92 today, those of controllers included
_VERSION_MAX = 100  # the highest is 18 today


def detect(first_bytes: bytes, end: bool) -> str | None:
    """Return ``kafka`` or ``unknown``, or None when more bytes are needed; with ``end`` the answer is never None."""
    if len(first_bytes) < _BEGINNING.size:
        return "unknown" if end else None
    size, api_key, version = _BEGINNING.unpack_from(first_bytes)
    known = 0 <= size <= FRAME_MAX and 0 <= api_key <= _API_KEY_MAX and 0 <= version <= _VERSION_MAX
    return "kafka" if known else "unknown"
