"""The outside of a Kafka request: its size, its header, and the ways in which it is refused.

A request is an int32 size in bytes, then so many bytes: API key (int16), version (int16), correlation id (int32), client id
(nullable string with an int16 length in every version, so that a broker can read it in the header of an API version which
it does not know), and in flexible versions tagged fields (KIP-482). Header version 0, without a client id, exists only for
ControlledShutdown version 0, which brokers sent to each other before Kafka 0.9 and which is not understood here.
"""

from struct import Struct
from typing import NamedTuple

from parsers.kafka.layouts import REQUESTS

SIZE = 4  # bytes of the size field itself
# Bytes behind the size field. The broker's default of socket.request.max.bytes: what is larger it would refuse as well.
FRAME_MAX = 104_857_600
_START = Struct(">ihhih")  # size, API key, version, correlation id, length of the client id
HEADER_LEAST = _START.size  # bytes with the size field; no request is shorter
API_VERSIONS = 18
_HTTP = (b"GET ", b"HEAD", b"POST", b"PUT ", b"OPTI", b"CONN", b"DELE", b"PRI ")
_CONTROLLED_SHUTDOWN = 7


class MalformedError(Exception):
    """The bytes are not a request as it has to be laid out. The connection cannot go on, because its framing is in doubt.

    ``reason`` is a stable kebab-case token; ``limit`` names the constant that was reached, if it was one.
    """

    def __init__(self, reason: str, limit: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.limit = reason, limit


class UnsupportedError(Exception):
    """The frame is sound as far as can be told, but nobody here knows the API, or this version of it.

    ``client_id`` is None also when it cannot be read. ``size``: bytes of the whole frame with its size field.
    """

    def __init__(self, header: "Header") -> None:
        super().__init__(f"API key {header.api_key} version {header.version}")
        self.api_key, self.version = header.api_key, header.version
        self.correlation_id, self.client_id, self.size = header.correlation_id, header.client_id, header.size

    @property
    def api(self) -> str | None:
        """The API's name, if it is only this version that is unknown."""
        api = REQUESTS.get(self.api_key)
        return api and api.name

    @property
    def is_api_versions(self) -> bool:
        """A newer client asks what versions there are: it is answered in version 0, whatever the body says (KIP-511)."""
        return self.api_key == API_VERSIONS


class Header(NamedTuple):
    """The header up to its client id. ``size``: bytes of the frame with its size field; ``end``: of header and size field."""

    size: int
    api_key: int
    version: int
    correlation_id: int
    client_id: str | None
    end: int


def frame_size(data: bytes) -> int | None:
    """Bytes of the first frame of ``data`` with its size field, or None if that is not there yet. Raises MalformedError."""
    if len(data) < SIZE:
        return None
    size = SIZE + int.from_bytes(data[:SIZE], "big", signed=True)
    if size < HEADER_LEAST:
        raise MalformedError("frame-too-short")
    if size > SIZE + FRAME_MAX:
        if is_tls(data):
            raise MalformedError("tls-not-opened")
        if data.startswith(_HTTP):
            raise MalformedError("http-not-kafka")
        raise MalformedError("frame-too-large", "FRAME_MAX")
    return size


def is_tls(data: bytes) -> bool:
    """Whether bytes that cannot be Kafka's are how a handshake or an alert of TLS begins (RFC 8446 section 5.1)."""
    return data[:1] in (b"\x15", b"\x16") and data[1:2] == b"\x03"


def read_header(data: bytes) -> Header | None:
    """The header of the first frame of ``data``, or None if it is not there yet.

    Raises MalformedError, or UnsupportedError for an API key that has no layouts at all.
    """
    size = frame_size(data)
    if size is None or len(data) < HEADER_LEAST:
        return None
    _, api_key, version, correlation_id, length = _START.unpack_from(data)
    known = api_key in REQUESTS
    end = HEADER_LEAST + max(length, 0)
    broken = length < -1 or end > size or (api_key, version) == (_CONTROLLED_SHUTDOWN, 0)
    client_id = None
    if not broken:
        if len(data) < end:
            return None
        try:
            client_id = None if length < 0 else str(data[HEADER_LEAST:end], "utf-8")
        except UnicodeDecodeError:
            broken = True
    header = Header(size, api_key, version, correlation_id, client_id, end)
    if not known:
        raise UnsupportedError(header)
    if broken:
        raise MalformedError("bad-client-id")
    return header
