"""The head of an HTTP/1 message: from its bytes to what policy and the framing of the connection need (RFC 9112).

A head either fits the grammar as a whole, checked by one regular expression that cannot backtrack, or it is refused. Only
then is it asked line by line why. Nothing is repaired: the server gets the bytes that were judged.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import msgspec

from parsers import http1_answers as faults
from parsers.contract import ApiCall, HeaderEdit
from parsers.http1_answers import Fault, Refused
from parsers.target import BadTarget, Target, parse_host, parse_target

PROTOCOL = "http/1.1"
HEAD_END = b"\r\n\r\n"

HEAD_MAX = 64 * 1024  # bytes; the common upper end of servers' own limits (Node.js 16, nginx 32, Envoy 60 KiB)
LINE_MAX = 32 * 1024  # bytes of the first line with its CRLF; RFC 9112 section 3 asks for at least 8000, Go takes 1 MiB
FIELDS_MAX = 1000  # field lines; nginx and Go bound their bytes alone, Node.js has 2000, and replies may set a hundred cookies
LENGTH_DIGITS_MAX = 18  # digits of Content-Length: every such number fits a signed 64-bit integer

CHUNKED = -1  # the body is chunked

# For heads, for the field lines of a head together, and for single lines. 1024 of at most 4 KiB are 4 MiB of keys, some five
# times that with what they say.
MEMO_ENTRIES_MAX = 1024
MEMO_HEAD_MAX = 4096  # bytes; a longer head is rarely sent twice

_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# Any field line, then the empty line. obs-text (0x80 to 0xFF) may occur in values (RFC 9110 section 5.5).
FIELDS = rb"(?:" + _NAME + rb":[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
_METHOD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}+"
_REQUEST = re.compile(rb"(" + _METHOD + rb") ([\x21-\x7e\x80-\xff]++) HTTP/1\.([01])\r\n" + FIELDS)
_SUSPECT = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FIELD_NAME = re.compile(_NAME)
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
DIGITS = re.compile(r"[0-9]+")
_READABLE_START = re.compile(rb"([\x21-\x7e]{1,32}+) ([\x21-\x7e]{1,1024}+)")

# Methods that say where a reply ends. Some servers ignore case: nobody would know whether the reply to "head" has a body.
_FRAMING_METHODS = frozenset({"HEAD", "CONNECT"})
# Options that Connection may carry. Any other names a field that a server would then be free to ignore, although policy
# may have judged it (hop-by-hop abuse): policy is told.
_CONNECTION_OPTIONS = frozenset({"close", "keep-alive", "upgrade", "te", "http2-settings", "proxy-connection"})
# Protocols that carry calls which nobody would judge behind an upgrade (h2c smuggling). Java's client offers h2c with every
# first request, so the offer passes; a server that accepts it is cut off.
UNJUDGED_UPGRADES = ("h2", "h3", "http", "tls")
_READ_HERE = frozenset({"host", "connection", "content-length", "transfer-encoding", "upgrade", "expect"})
# Fields that say where a message ends or goes. Policy may not edit them, and no trailer may carry them.
FRAMING_FIELDS = frozenset(
    {
        "host",
        "connection",
        "proxy-connection",
        "keep-alive",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "expect",
    }
)

Fields = tuple[tuple[str, str], ...]
Special = Mapping[str, Sequence[str]]  # every value of the fields that matter for framing and routing


class _Section(msgspec.Struct, frozen=True, eq=False):
    """What the field lines of a request say, whatever line stands above them."""

    fields: Fields
    special: Special
    connection: tuple[str, ...]
    expects: bool  # whatever it expects: 100-continue is all that RFC 9110 knows, and who knows more may answer 417


class RequestHead(msgspec.Struct, frozen=True, eq=False):
    """A request head that was accepted. ``body`` is a length in bytes or CHUNKED."""

    call: ApiCall
    wire: bytes
    body: int
    http11: bool
    keep_alive: bool
    expects: bool  # whatever it expects: 100-continue is all that RFC 9110 knows, and who knows more may answer 417
    upgrade: tuple[str, ...]  # the protocols that the client offers, lower-cased
    names_protocol: bool  # it has an Upgrade field, if only one to be ignored


_Head = TypeVar("_Head")


class Memo(OrderedDict[bytes, _Head]):
    """What heads say, by their bytes: ``memo[head]`` reads a head at most once as long as it is remembered.

    Equal heads give the very same object. What is refused raises Refused and is not kept, nor are long heads; the oldest
    entry makes room. So nobody can make it grow beyond MEMO_ENTRIES_MAX times MEMO_HEAD_MAX.
    """

    def __init__(self, read: Callable[[bytes], _Head]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, head: bytes) -> _Head:
        read = self._read(head)
        if len(head) <= MEMO_HEAD_MAX:
            if len(self) >= MEMO_ENTRIES_MAX:
                self.popitem(last=False)
            self[head] = read
        return read


def read_request(head: bytes) -> RequestHead:
    """Read a request head that ends with its empty line; raise Refused."""
    match = _REQUEST.fullmatch(head)
    if match is None:
        raise Refused(_why_no_request(head))
    line_end = match.end(3) + 2
    if line_end > LINE_MAX:
        raise Refused(faults.LINE_TOO_LONG)
    method = match[1].decode("ascii")
    http11 = match[3] == b"1"
    if method == "CONNECT":
        raise Refused(faults.CONNECT_REFUSED)
    if method != method.upper() and method.upper() in _FRAMING_METHODS:
        raise Refused(faults.BAD_METHOD)
    section = _SECTIONS[head[line_end:]]
    special, options = section.special, section.connection
    target, host = _target_and_host(method, match[2].decode("latin-1"), special, http11)
    nominated = () if _CONNECTION_OPTIONS.issuperset(options) else _nominated(options)
    call = ApiCall(
        protocol=PROTOCOL,
        method=method,
        path=target.path,
        host=host,
        headers=section.fields,
        wire_length=len(head),
        path_fault=target.fault,
        query_fault=target.query_fault,
        slashes=target.slashes,
        nominated=nominated,
    )
    body = _framing(special, http11)
    return RequestHead(
        call=call,
        wire=head,
        body=0 if body is None else body,
        http11=http11,
        keep_alive="close" not in options and (http11 or "keep-alive" in options),
        expects=section.expects,
        upgrade=_upgrade(special, options, http11),
        names_protocol="upgrade" in special,
    )


REQUEST_HEADS: Memo[RequestHead] = Memo(read_request)


def early_fault(data: bytes, start: int = 0, suspects: re.Pattern[bytes] = _SUSPECT) -> Fault | None:
    """Find the first defect of a head that is not complete; bytes before ``start`` are known to be clean.

    The answer depends on the bytes alone and not on how they were split: a byte that no head may have comes before a limit
    that is reached behind it.
    """
    suspect = suspects.search(data, start, HEAD_MAX)
    if len(data) > LINE_MAX and data.find(b"\n", 0, LINE_MAX) < 0 and (suspect is None or suspect.start() >= LINE_MAX):
        return faults.LINE_TOO_LONG
    if suspect is not None:
        return suspect_fault(suspect[0])
    return faults.HEAD_TOO_LARGE if len(data) > HEAD_MAX else None


def find_suspect(data: bytes, start: int, end: int) -> Fault | None:
    """Find the first byte in ``data[start:end]`` that no line of a head or trailer section may have."""
    suspect = _SUSPECT.search(data, start, end)
    return None if suspect is None else suspect_fault(suspect[0])


def suspect_fault(byte: bytes) -> Fault:
    """Name the fault of a byte that no head may have."""
    if byte == b"\n":
        return faults.BARE_LF
    return faults.BARE_CR if byte == b"\r" else faults.CONTROL_BYTE


def why_no_field(lines: Sequence[bytes]) -> Fault:
    """Say which rule of RFC 9112 section 5 the first bad one of these field lines breaks."""
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            return faults.OBS_FOLD
        name, colon, _ = line.partition(b":")
        if not colon:
            return faults.NO_COLON
        if not name:
            return faults.EMPTY_NAME
        if name.rstrip(b" \t") != name:
            return faults.SPACE_BEFORE_COLON
        if _FIELD_NAME.fullmatch(name) is None:
            return faults.BAD_NAME
    return faults.CONTROL_BYTE


def partial_call(data: bytes) -> ApiCall | None:
    """Read what a record can say of a request that was refused before it could be judged."""
    start = _READABLE_START.match(data)
    if start is None:
        return None
    return ApiCall(protocol=PROTOCOL, method=start[1].decode("ascii"), path=start[2].decode("ascii"))


def edit_head(head: bytes, edits: Sequence[HeaderEdit]) -> bytes | None:
    """Carry out policy's header edits; every other line keeps its bytes and its place.

    Return None when an edit touches a framing field or would not be a field line: the call must then be denied.
    """
    lines = head[: -len(HEAD_END)].split(b"\r\n")
    for edit in edits:
        name = edit.name.lower()
        if name in FRAMING_FIELDS or _FIELD_NAME.fullmatch(name.encode("latin-1", "replace")) is None:
            return None
        if edit.value is not None and _FIELD_VALUE.fullmatch(edit.value) is None:
            return None
        new = [] if edit.value is None else [f"{edit.name}: {edit.value}".encode("latin-1")]
        if edit.action == "add":
            lines += new
            continue
        ours = [at for at, line in enumerate(lines) if at and line.partition(b":")[0].lower() == name.encode("ascii")]
        place = ours[0] if ours else len(lines)
        lines = [line for at, line in enumerate(lines) if at not in ours]
        if edit.action == "replace":
            lines[place:place] = new
    return b"\r\n".join(lines) + HEAD_END


def _read_section(section: bytes) -> _Section:
    fields = read_fields(section)
    special = special_fields(fields)
    return _Section(
        fields=fields,
        special=special,
        connection=list_members(special, "connection"),
        expects="expect" in special,
    )


# Where requests differ, most of them do in their first line only.
_SECTIONS: Memo[_Section] = Memo(_read_section)


def read_fields(section: bytes) -> Fields:
    """Split field lines, with the empty line behind them, that are known to fit the grammar."""
    if section == b"\r\n":
        return ()
    lines = section[: -len(HEAD_END)].decode("latin-1").split("\r\n")
    if len(lines) > FIELDS_MAX:
        raise Refused(faults.TOO_MANY_FIELDS)
    return tuple(map(_remembered_field if len(section) <= MEMO_HEAD_MAX else _field, lines))


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip(" \t")


# Where heads differ, most of their lines do not.
_remembered_field = lru_cache(MEMO_ENTRIES_MAX)(_field)


def special_fields(fields: Fields) -> dict[str, list[str]]:
    """Collect every value of the fields that matter for framing and routing."""
    special: dict[str, list[str]] = {}
    for name, value in fields:
        if name in _READ_HERE:
            special.setdefault(name, []).append(value)
    return special


def list_members(special: Special, name: str) -> tuple[str, ...]:
    """Split the values of a list field into lower-cased members (RFC 9110 section 5.6.1)."""
    if name not in special:
        return ()
    members = (member.strip(" \t").lower() for value in special[name] for member in value.split(","))
    return tuple(member for member in members if member)


def _nominated(options: tuple[str, ...]) -> tuple[str, ...]:
    """Header fields that Connection names; raise Refused where the framing of the message would depend on them."""
    names = tuple(dict.fromkeys(option for option in options if option not in _CONNECTION_OPTIONS))
    if any(name in FRAMING_FIELDS or _FIELD_NAME.fullmatch(name.encode("latin-1")) is None for name in names):
        raise Refused(faults.CONNECTION_NOMINATES)
    return names


def _target_and_host(method: str, text: str, special: Special, http11: bool) -> tuple[Target, str | None]:
    """Return what policy judges of target and host (RFC 9112 section 3.2 and 3.2.2)."""
    hosts = special.get("host", [])
    if len(hosts) > 1:
        raise Refused(faults.SEVERAL_HOSTS)
    if not hosts and http11:
        raise Refused(faults.NO_HOST)
    try:
        target = parse_target(method, text)
    except BadTarget:
        raise Refused(faults.BAD_TARGET) from None
    try:
        host = parse_host(hosts[0]) if hosts else target.host
    except BadTarget:
        raise Refused(faults.BAD_HOST) from None
    if target.host is not None and host is not None:
        port = target.default_port
        if target.host.removesuffix(port) != host.removesuffix(port):
            raise Refused(faults.AUTHORITY_DIFFERS)
    return target, host


def _framing(special: Special, http11: bool) -> int | None:
    """Return the length that a head announces, CHUNKED, or None if it announces none (RFC 9112 section 6)."""
    codings = special.get("transfer-encoding")
    lengths = special.get("content-length")
    if codings is not None:
        if lengths is not None:
            raise Refused(faults.LENGTH_AND_CODING)
        if len(codings) > 1:
            raise Refused(faults.REPEATED_CODING)
        if not http11:
            raise Refused(faults.CODING_IN_HTTP10)
        if codings[0].lower() != "chunked":
            raise Refused(faults.UNKNOWN_CODING)
        return CHUNKED
    if lengths is None:
        return None
    if len(lengths) > 1:
        raise Refused(faults.REPEATED_LENGTH)
    if DIGITS.fullmatch(lengths[0]) is None:
        raise Refused(faults.BAD_LENGTH)
    if len(lengths[0]) > LENGTH_DIGITS_MAX:
        raise Refused(faults.LENGTH_TOO_LONG)
    return int(lengths[0])


def _upgrade(special: Special, options: tuple[str, ...], http11: bool) -> tuple[str, ...]:
    """Return the protocols of a request's Upgrade field; elsewhere a server ignores it (RFC 9110 section 7.8)."""
    return list_members(special, "upgrade") if http11 and "upgrade" in options else ()


def _why_no_request(head: bytes) -> Fault:
    fault = early_fault(head)
    if fault is not None:
        return fault
    line, *fields = head[: -len(HEAD_END)].split(b"\r\n")
    if not line:
        return faults.EMPTY_LINE
    words = line.split(b" ")
    if words[-1] == b"HTTP/2.0":
        return faults.HTTP2
    if len(words) == 2 and words[0] == b"GET":
        return faults.HTTP09
    if len(words) != 3 or not all(words):
        return faults.BAD_REQUEST_LINE
    method, target, version = words
    if re.fullmatch(_METHOD, method) is None:
        return faults.BAD_METHOD
    if re.fullmatch(rb"[\x21-\x7e\x80-\xff]+", target) is None:
        return faults.BAD_TARGET
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        return faults.BAD_VERSION
    return why_no_field(fields)
