"""The request target and the host, in the form in which policy judges them (RFC 3986, RFC 9112 section 3.2).

The target is forwarded as it came. For judging it is brought into the one form that RFC 3986 section 6.2.2 calls equal to
it: hexadecimal digits of percent-encodings in upper case, and percent-encoded *unreserved* characters decoded. Everything
whose meaning depends on the server is a fault: the call has a path, but no rule may be satisfied by it. docs/http1.md says
why this is safe for rules that allow and for rules that deny. Path and query have their faults each for itself: where the
path ends, and what it is, does not depend on what stands in the query.
"""

import re
from functools import lru_cache

import msgspec

HOST_MAX = 261  # characters: a name of 255 (RFC 1035 section 2.3.4) and a port
HOSTS_REMEMBERED = 1024  # most connections name one of a few hosts; 1024 of them take a quarter of a MiB


class Target(msgspec.Struct, frozen=True):
    """A request target as policy sees it.

    ``path`` is canonical, with its query. When ``fault`` is not None it is the raw target instead, but for bytes above ASCII,
    which are percent-encoded; so is the query when ``query_fault`` is not None. ``slashes``: the path has no fault but
    slashes, empty segments or encoded ones, and whatever a server makes of them it has no other; it is canonical nevertheless.
    ``host`` is the canonical authority of an absolute-form target, else None, and ``default_port`` that of its scheme.
    """

    path: str
    host: str | None = None
    fault: str | None = None
    query_fault: str | None = None
    slashes: bool = False
    default_port: str = ""


class BadTarget(ValueError):  # noqa: N818 - it is the client that is bad, not our code
    """The text is not a request target, or not a host, at all (RFC 9112 section 3.2)."""


# RFC 9110 section 7.2 with RFC 3986 section 3.2, less what no real host has: user information, percent-encodings,
# sub-delimiters, an empty host, an empty port or one with leading zeros.
_HOST = re.compile(r"(?:([A-Za-z0-9._-]++)|(\[[0-9A-Fa-f:.]++\]))(:[1-9][0-9]{0,4})?")
_TARGET = re.compile(r"[\x21-\x7e\x80-\xff]+")
_ABSOLUTE = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_ABOVE_ASCII = re.compile(r"[\x80-\xff]")
_SLASHES = re.compile(r"//+")
_BROKEN_TRIPLET = re.compile(r"%(?![0-9A-Fa-f]{2})")
# RFC 3986 section 2.3. Only these mean the same encoded and plain, whatever the server does with delimiters.
_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_HEX = "0123456789ABCDEFabcdef"
# By the two digits of a percent-encoding, what is written instead.
_NORMAL = {
    high + low: chr(byte) if (byte := int(high + low, 16)) in _UNRESERVED else f"%{byte:02X}" for high in _HEX for low in _HEX
}
# A segment may carry parameters: servlet containers strip them before they resolve dots ("/public/..;/admin") and merge
# slashes ("/;x/admin"). Some decode before they strip.
_DOT_SEGMENT = re.compile(r"/\.\.?(?:(?:;|%3B)[^/]*)?(?:/|\Z)")
_EMPTY_BUT_PARAMETERS = re.compile(r"/(?:;|%3B)[^/]*/")


@lru_cache(HOSTS_REMEMBERED)
def parse_host(text: str) -> str:
    """Return a Host value lower-cased and without trailing dot, with its port if it has one; raise BadTarget."""
    match = _HOST.fullmatch(text)
    if match is None or len(text) > HOST_MAX:
        raise BadTarget("not a host")
    name, literal, port = match.groups()
    if name is None:
        return (literal + (port or "")).lower()
    name = name.removesuffix(".")
    if not name or name.startswith(".") or ".." in name or name.endswith("."):
        raise BadTarget("a host name has an empty label")
    return (name + (port or "")).lower()


def parse_target(method: str, target: str) -> Target:
    """Return what policy judges for the target of a ``method`` request, its bytes as Latin-1; raise BadTarget when it is none.

    Accepted are origin-form, absolute-form with the scheme http or https, and asterisk-form for OPTIONS.
    """
    if target.startswith("/"):
        if _TARGET.fullmatch(target) is None:
            raise BadTarget("a byte that no target may have")
        return _judged(target)
    if target == "*" and method == "OPTIONS":
        return Target("*", fault="not-origin-form")
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or _TARGET.fullmatch(target) is None:
        raise BadTarget("neither origin-form nor absolute-form")
    scheme, authority, rest = absolute.groups()
    host, default_port = parse_host(authority), _DEFAULT_PORTS[scheme.lower()]
    if not rest and method == "OPTIONS":  # RFC 9112 section 3.2.4: this means asterisk-form
        judged = Target("*", fault="not-origin-form")
    else:
        judged = _judged(rest if rest.startswith("/") else "/" + rest)
    return msgspec.structs.replace(judged, host=host, default_port=default_port)


def _judged(target: str) -> Target:
    """Canonicalise an origin-form target, or find the faults that forbid to do so."""
    path, mark, query = target.partition("?")
    if not mark and "%" not in path and path.isascii():  # as most are
        fault = _fault(path)
        return Target(path, fault=fault, slashes=fault is not None and _has_only_slashes(path, fault))
    canonical, fault = _canonical(path)
    fault = fault or _fault(canonical)
    slashes = fault is not None and _has_only_slashes(canonical, fault)
    shown = canonical if fault is None or slashes else _encoded(path)
    query, query_fault = _canonical(query)
    return Target(shown + mark + query, fault=fault, query_fault=query_fault or _query_fault(query), slashes=slashes)


def _encoded(text: str) -> str:
    return _ABOVE_ASCII.sub(lambda found: f"%{ord(found[0]):02X}", text)


def _canonical(text: str) -> tuple[str, str | None]:
    """One part of a target in its canonical form, or as it is, with the fault that keeps it from having one."""
    if not text.isascii():
        return _encoded(text), "unencoded-byte"
    if "%" not in text:
        return text, None
    if _BROKEN_TRIPLET.search(text):
        return text, "broken-percent-encoding"
    return _normalised(text), None


def _query_fault(query: str) -> str | None:
    if "\\" in query:
        return "backslash"
    if "#" in query:
        return "fragment"
    return "encoded-nul" if "%00" in query else None


def _has_only_slashes(path: str, fault: str) -> bool:
    """Whether a path has no other fault, decoded or not, merged or not."""
    if fault not in ("empty-segment", "encoded-slash"):
        return False
    decoded = path.replace("%2F", "/")
    return all(_other_fault(reading) is None for one in (path, decoded) for reading in (one, _SLASHES.sub("/", one)))


def _normalised(target: str) -> str:
    """A target of which each ``%`` has its two digits; there may be thousands of them."""
    before, *pieces = target.split("%")
    return before + "".join([_NORMAL[piece[:2]] + piece[2:] for piece in pieces])


def _fault(path: str) -> str | None:
    """Name what servers read in different ways."""
    if "//" in path:
        return _fault_of_bytes(path) or "empty-segment"
    if "%2F" in path:
        return _fault_of_bytes(path) or "encoded-slash"
    return _other_fault(path)


def _fault_of_bytes(path: str) -> str | None:
    if "\\" in path:
        return "backslash"
    if "#" in path:
        return "fragment"
    if "%" in path:
        if "%00" in path:
            return "encoded-nul"
        if "%5C" in path:
            return "encoded-backslash"
    return None


def _other_fault(path: str) -> str | None:
    """A fault that is no slash."""
    fault = _fault_of_bytes(path)
    if fault is not None:
        return fault
    if ("/;" in path or "/%3B" in path) and _EMPTY_BUT_PARAMETERS.search(path):
        return "empty-segment"
    if "/." in path and _DOT_SEGMENT.search(path):
        return "dot-segment"
    return None
