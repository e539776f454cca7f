"""The audit record: one per call, one JSON line each.

Everything here is pure. A record is bounded and encodable **by construction**: whatever a hostile client put into its
request, the strings of a finished ``AuditRecord`` are short enough to queue by the thousand and safe to write as one line.
The file is pure ASCII: JSON (RFC 8259 section 7) escapes control characters, and ``encode_lines`` escapes the rest, so
that no byte of a client can end a line, start a forged one, or steer the terminal of the person who reads the file.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

# A path with its query. Longer ones are mostly payload.
MAX_PATH_CHARS = 4096
# Any other string: names have at most 253 characters in DNS and Kubernetes, "namespace/name" twice that.
MAX_TEXT_CHARS = 512
# Entries of one list or mapping, and their characters together: a Kafka request may name thousands of topics of 249
# characters. What an operator's own client asks for fits; what a hostile one asks for must not fill the queue's memory.
MAX_ITEMS = 256
MAX_ITEMS_CHARS = 16384

REDACTED = "***"

_TEXT_FIELDS = (
    "id",
    "node",
    "direction",
    "source",
    "destination",
    "protocol",
    "method",
    "host",
    "client_id",
    "principal",
    "verdict",
    "policy",
    "rule",
    "reason",
    "limit",
    "status",
    "via",
)


class Party(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Who is at one end of a call. Build it once per connection and share it between the records."""

    workload: str | None = None
    labels: Mapping[str, str] | None = None
    address: str | None = None  # the IP address, without the port

    def __post_init__(self) -> None:
        for name in ("workload", "address"):
            text = getattr(self, name)
            if text is not None:
                msgspec.structs.force_setattr(self, name, bounded(text))
        if self.labels is not None:
            msgspec.structs.force_setattr(self, "labels", _bounded_mapping(self.labels))


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What one call was, who made it, what was decided and how it ended. An absent fact is an absent key.

    ``time`` is when the call was read and must be aware (UTC), ``duration_ms`` runs from there to the end of the reply.
    ``truncated`` names the fields that were cut to their limit or hold an escaped surrogate: filled in here, never by the
    caller.
    """

    time: datetime
    id: str  # ``call_id``
    node: str
    verdict: str  # ALLOWED, DENIED, PARTIAL or WOULD_DENY
    subject: Party | None = None  # who called
    peer: Party | None = None  # who was called
    direction: str | None = None  # whose policy decided: "egress" the subject's, "ingress" the peer's
    source: str | None = None  # "ip:port"
    destination: str | None = None  # "ip:port"
    protocol: str | None = None
    method: str | None = None
    path: str | None = None
    host: str | None = None
    api_version: int | str | None = None  # Kafka's
    client_id: str | int | None = None  # as the client calls itself
    principal: str | int | None = None  # as the broker knows it, by SASL
    headers: Mapping[str, str] | None = None  # only names that the operator listed: ``listed_headers``
    resources: Sequence[str] = ()
    policy: str | None = None
    rule: str | None = None
    reason: str | None = None
    limit: str | None = None  # the named limit that was reached
    notes: Sequence[str] = ()  # findings that changed nothing, such as a headerMatches mismatch with LOG
    per_resource: Mapping[str, str] | None = None  # resource to verdict, when PARTIAL
    status: int | str | None = None
    bytes_request: int | None = None
    bytes_reply: int | None = None
    duration_ms: float | None = None
    calls: int | None = None  # how many, when the record stands for several
    via: str | None = None  # "kernel" or "relay"
    generation: int | None = None
    truncated: Sequence[str] = ()

    def __post_init__(self) -> None:
        # Nearly every record passes this one look at all its words together.
        words = (
            f"{self.id}{self.node}{self.direction}{self.source}{self.destination}{self.protocol}{self.method}{self.path}"
            f"{self.host}{self.client_id}{self.principal}{self.verdict}{self.policy}{self.rule}{self.reason}{self.limit}{self.status}{self.via}"
        )
        if len(words) > MAX_TEXT_CHARS or not words.isascii() or self._has_lists():
            self._bound()

    def _has_lists(self) -> bool:
        return bool(self.resources or self.notes) or self.per_resource is not None or self.headers is not None

    def _bound(self) -> None:
        changed: list[str] = []
        for name in _TEXT_FIELDS:
            text = getattr(self, name)
            if isinstance(text, str) and (len(text) > MAX_TEXT_CHARS or not text.isascii()):
                self._replace(name, text, bounded(text), changed)
        if self.path is not None and (len(self.path) > MAX_PATH_CHARS or not self.path.isascii()):
            self._replace("path", self.path, bounded(self.path, MAX_PATH_CHARS), changed)
        for name in ("resources", "notes"):
            items = getattr(self, name)
            if items:
                self._replace(name, tuple(items), _bounded_items(items), changed)
        if self.per_resource is not None:
            self._replace("per_resource", self.per_resource, _bounded_mapping(self.per_resource), changed)
        if self.headers is not None:
            self._replace("headers", self.headers, _bounded_mapping(self.headers), changed)
        if changed:
            msgspec.structs.force_setattr(self, "truncated", tuple(changed))

    def _replace(self, name: str, given: object, kept: object, changed: list[str]) -> None:
        msgspec.structs.force_setattr(self, name, kept)
        if kept != given:
            changed.append(_camel(name))


_LINES = msgspec.json.Encoder()
# DEL, the C1 controls (one of them starts terminal sequences) and everything beyond: only ever inside a JSON string here.
_NOT_PLAIN = re.compile("[\x7f-\U0010ffff]")


def encode_lines(records: Iterable[AuditRecord]) -> bytes:
    """The records as ASCII JSON lines, each ended by ``\\n``."""
    return to_ascii(_LINES.encode_lines(records))


def to_ascii(json: bytes) -> bytes:
    """``json``, as msgspec encodes it, with every character outside printable ASCII as an escape. The meaning is the same."""
    if json.isascii() and b"\x7f" not in json:
        return json
    return _NOT_PLAIN.sub(_json_escape, json.decode()).encode("ascii")


def encode_text(text: str) -> str:
    """One string as a record's line has it, with its quotation marks. ``text`` has no surrogates."""
    return to_ascii(_LINES.encode(text)).decode("ascii")


def call_id(connection: int | str, number: int | str) -> str:
    """The ``id`` of call ``number`` (from 0) of a connection: ``connection.number``."""
    return f"{connection}.{number}"


def redact_query(path: str) -> str:
    """``path`` with every query value replaced by ``***``: ``/a?user=bob&tok`` becomes ``/a?user=***&***``.

    A part without ``=`` may be a bare secret, so it is taken for a value. Only ``&`` separates: a server that does not
    split at ``;`` would take ``;name=`` for a piece of the value before it.
    """
    base, mark, query = path.partition("?")
    if not mark:
        return path
    return f"{base}?{'&'.join(_redact_part(part) for part in query.split('&'))}"


def listed_headers(headers: Iterable[tuple[str, str]], names: Collection[str]) -> dict[str, str] | None:
    """The values of the headers in ``names`` (lower-case), several lines of one name joined by ``, ``; None without any."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name in names:
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found or None


def bounded(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """``text`` cut to ``limit`` characters; a lone surrogate, which no UTF-8 can carry, becomes its visible escape."""
    text = text[:limit]
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")[:limit]


def now() -> datetime:
    """The time as records carry it: aware, UTC, microseconds."""
    return datetime.now(UTC)


def moment(at: int) -> datetime:
    """``at``, in microseconds of the epoch, as records carry it."""
    return datetime.fromtimestamp(at / 1e6, UTC)


def _bounded_items(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name, _ in _bounded_pairs((item, "") for item in items))


def _bounded_mapping(items: Mapping[str, str]) -> dict[str, str]:
    return dict(_bounded_pairs(items.items()))


def _bounded_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    room = MAX_ITEMS_CHARS
    for name, value in itertools.islice(pairs, MAX_ITEMS):
        name, value = bounded(name), bounded(value)
        room -= len(name) + len(value)
        if room < 0:
            return
        yield name, value


def _redact_part(part: str) -> str:
    name, equals, _ = part.partition("=")
    if equals:
        return f"{name}={REDACTED}"
    return REDACTED if part else ""


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
