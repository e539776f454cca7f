"""What servers make of slashes in a path: encoded ones (``%2F``), and several behind one another.

A port can say what its server does with them (``normalise`` of a ``toPorts`` entry). Rules that allow look at the path as that
server reads it. Rules that deny look at every reading, because a server may be wrongly described, or hand the path on to
another one. Without a word of the port's, rules about paths do not judge such a path at all.

The parser tells which paths have no other fault, in none of these readings (``ApiCall.slashes``).
"""

import re
from collections.abc import Sequence

from policies.model import STRICT, EmptySegments, EncodedSlash, Normalise

_SEVERAL = re.compile("//+")
_AUTHORITY = re.compile("//+[^/]*")


def reading(target: str, normalise: Normalise) -> str | None:
    """A target as the server of a port reads it; None if the port refuses what is in its path."""
    path, mark, query = target.partition("?")
    if "%2F" in path:
        if normalise.encoded_slash is EncodedSlash.REFUSE:
            return None
        if normalise.encoded_slash is EncodedSlash.DECODE:
            path = path.replace("%2F", "/")
    if "//" in path:
        if normalise.empty_segments is EmptySegments.REFUSE:
            return None
        if normalise.empty_segments is EmptySegments.MERGE:
            path = _SEVERAL.sub("/", path)
    return path + mark + query


def readings(target: str) -> frozenset[str]:
    """Whatever a server may make of a target's slashes."""
    path, mark, query = target.partition("?")
    decoded = path.replace("%2F", "/")
    found = {path, decoded, _SEVERAL.sub("/", path), _SEVERAL.sub("/", decoded)}
    for one in (path, decoded):
        if one.startswith("//"):  # "//name/path" is a host and a path to whoever takes it for the rest of an URL
            rest = _AUTHORITY.sub("", one, count=1) or "/"
            found |= {rest, _SEVERAL.sub("/", rest)}
    return frozenset(one + mark + query for one in found)


def united(said: Sequence[Normalise]) -> Normalise:
    """What several entries say together: where they differ, nothing."""
    slashes = {one.encoded_slash for one in said}
    segments = {one.empty_segments for one in said}
    return Normalise(
        slashes.pop() if len(slashes) == 1 else STRICT.encoded_slash,
        segments.pop() if len(segments) == 1 else STRICT.empty_segments,
    )
