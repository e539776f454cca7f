"""The request target and the host, in the form in which policy judges them (RFC 3986, RFC 9112 section 3.2).

The target is forwarded as it came. For judging it is brought into the one form that RFC 3986 section 6.2.2 calls equal to
it: hexadecimal digits of percent-encodings in upper case, and percent-encoded *unreserved* characters decoded. Everything
whose meaning depends on the server is a fault: the call has a path, but no rule may be satisfied by it. docs/http1.md says
why this is safe for rules that allow and for rules that deny.
"""

import re
from functools import lru_cache

import msgspec

HOST_MAX = 261  # characters: a name of 255 (RFC 1035 section 2.3.4) and a port
HOSTS_REMEMBERED = 1024  # most connections name one of a few hosts; 1024 of them take a quarter of a MiB


class Target(msgspec.Struct, frozen=True):
    """A request target as policy sees it.

    ``path`` is canonical, with its query; when ``fault`` is not None it is the raw target instead. ``host`` is the canonical
    authority of an absolute-form target, else None.
    """

    path: str
    host: str | None = None
    fault: str | None = None


class BadTarget(ValueError):  # noqa: N818 - it is the client that is bad, not our code
    """The text is not a request target, or not a host, at all (RFC 9112 section 3.2)."""


# RFC 9110 section 7.2 with RFC 3986 section 3.2, less what no real host has: user information, percent-encodings,
# sub-delimiters, an empty host, an empty port or one with leading zeros.
_HOST = re.compile(r"(?:([A-Za-z0-9._-]++)|(\[[0-9A-Fa-f:.]++\]))(:[1-9][0-9]{0,4})?")
_TARGET = re.compile(r"[\x21-\x7e]+")
_ABSOLUTE = re.compile(r"[Hh][Tt][Tt][Pp]://([^/?#]*)(.*)")
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
    """Return what policy judges for the target of a ``method`` request; raise BadTarget when it is none.

    Accepted are origin-form, absolute-form with the scheme http, and asterisk-form for OPTIONS.
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
    host = parse_host(absolute[1])
    rest = absolute[2]
    if not rest and method == "OPTIONS":  # RFC 9112 section 3.2.4: this means asterisk-form
        return Target("*", host, "not-origin-form")
    judged = _judged(rest if rest.startswith("/") else "/" + rest)
    return Target(judged.path, host, judged.fault)


def _judged(target: str) -> Target:
    """Canonicalise an origin-form target, or find the fault that forbids to do so."""
    if _BROKEN_TRIPLET.search(target):
        return Target(target, fault="broken-percent-encoding")
    canonical = _normalised(target) if "%" in target else target
    fault = _fault(canonical)
    return Target(canonical if fault is None else target, fault=fault)


def _normalised(target: str) -> str:
    """A target of which each ``%`` has its two digits; there may be thousands of them."""
    before, *pieces = target.split("%")
    return before + "".join([_NORMAL[piece[:2]] + piece[2:] for piece in pieces])


def _fault(canonical: str) -> str | None:
    """Name what servers read in different ways. A query may carry slashes and dots, the path may not."""
    path = canonical.partition("?")[0]
    if "\\" in canonical:
        return "backslash"
    if "#" in canonical:
        return "fragment"
    if "//" in path:
        return "empty-segment"
    if "%" in canonical:
        if "%00" in canonical:
            return "encoded-nul"
        if "%2F" in path:
            return "encoded-slash"
        if "%5C" in path:
            return "encoded-backslash"
    if ("/;" in path or "/%3B" in path) and _EMPTY_BUT_PARAMETERS.search(path):
        return "empty-segment"
    if "/." in path and _DOT_SEGMENT.search(path):
        return "dot-segment"
    return None
