"""What a parser and its transport say to each other.

A parser is one object per connection and sees both directions. The transport owns the bytes: it offers everything of a
direction that is not settled yet, and the parser answers with *verbs* that settle some of it. The same verbs are all that
the kernel path can do, so nothing here may need a protocol's knowledge to carry out.

The rules of the conversation:

* ``Parser.on_data(direction, data, end)`` is offered **all unsettled bytes** of a direction (not only the new ones) and
  returns verbs, which the transport carries out from left to right. ``Pass`` and ``Drop`` count from the first unsettled
  byte. Bytes that no verb settles stay with the transport and are offered again, longer, next time.
* ``Pass.n`` may exceed what is buffered: the rest is passed as it arrives, without asking again. Verbs behind such a
  ``Pass`` wait until all of it has gone by. At the end of the stream an unfinished ``Pass`` and the verbs behind it are
  void, and the parser is asked once more with ``end``.
* After a ``Judge`` verb the list ends: the transport asks policy and calls ``Parser.on_ruling``, whose verbs come next; then
  it offers what is still unsettled.
* A parser raises nothing. A transport that sees an exception treats it as ``Fail`` without last words.
"""

from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum
from typing import Protocol

import msgspec


class Direction(IntEnum):
    """The way a byte goes: a request goes from the downstream client to the upstream server."""

    REQUEST = 0
    REPLY = 1

    @property
    def other(self) -> "Direction":
        return Direction.REPLY if self is Direction.REQUEST else Direction.REQUEST


class ApiCall(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One call as policy sees it. Immutable and compared by identity, so it may be shared and used as a cache key.

    ``headers`` has one entry per field line, names lower-cased, values stripped of surrounding white space, both decoded
    as latin-1 (RFC 9110 section 5.5), in wire order. ``resources`` are **all** things that the call touches (topics, groups).
    ``wire_length`` is the length in bytes of the part that was judged (an HTTP head, a Kafka frame).
    """

    protocol: str  # "http/1.1", "http/2", "grpc", "kafka", "tcp"
    method: str | None = None
    path: str | None = None  # the request target as canonicalised, with its query
    host: str | None = None  # lower-cased, without trailing dot, with the port if the client sent one
    headers: tuple[tuple[str, str], ...] = ()
    resources: tuple[str, ...] = ()
    attributes: Mapping[str, str | int] = {}
    wire_length: int = 0
    # Why a rule that looks at the path must not match (RFC 3986: what the server would see is not certain), or None.
    path_fault: str | None = None
    # The same of the query, and of rules that look at it.
    query_fault: str | None = None
    # The path's only fault are slashes: encoded ones, or several behind one another. ``path`` is canonical nevertheless.
    slashes: bool = False
    # Header fields (lower-cased) that the client lets the next hop drop: nobody knows whether the server will see them.
    nominated: tuple[str, ...] = ()
    # The protocol can refuse some of the resources and grant the rest, and the parser will do so: of topics that are for a
    # group or a transactional id, the topics.
    divisible: bool = False
    # The resources have nothing to do with each other: each is judged by itself, if the call is about all topics with them.
    separate: bool = False
    # The call is about every topic there is, whatever topics are among its resources.
    all_topics: bool = False
    # Something is left of the call when all that it names is refused: Kafka's Metadata also tells who the brokers are.
    remainder: bool = False


# Bytes of a request's beginning, and of a reply's, that the kernel path looks at and keeps (SLUICE_HEAD_BYTES).
KEPT_BYTES = 1104


class Prefix(msgspec.Struct, frozen=True):
    """How requests begin that are judged alike, whatever follows: they have these bytes wherever ``mask`` has a bit set.

    Both are of one length, at most ``KEPT_BYTES``, and ``data`` is zero where ``mask`` is.
    """

    data: bytes
    mask: bytes


class HeaderEdit(msgspec.Struct, frozen=True):
    """A change of one header that policy asks for: ``value`` None deletes every line of that name, else see ``action``."""

    action: str  # "add": append a line; "replace": one line instead of all of that name; "delete": no line of that name
    name: str
    value: str | None = None


class Ruling(Protocol):
    """The part of a policy decision that a parser acts on."""

    @property
    def allowed(self) -> bool: ...

    @property
    def edits(self) -> Sequence[HeaderEdit]: ...

    @property
    def trailers(self) -> bool:
        """Whether the request may have trailer fields. Where rules look at headers, a server may take them for headers."""
        ...

    @property
    def per_resource(self) -> Mapping[str, str] | None:
        """The verdicts of what is told apart of a divisible call that is allowed in part; None: it is as a whole, or denied."""
        ...

    def grants(self, resource: str) -> bool:
        """Whether the call may touch this resource, or see this topic in its reply."""
        ...

    @property
    def bad_request(self) -> bool:
        """The denial is the client's malformed target (HTTP 400), not a lack of permission (403)."""
        ...


class Pass(msgspec.Struct, frozen=True):
    """Forward the next ``n`` bytes unchanged. They belong to call number ``call`` (None: to the connection)."""

    n: int
    call: int | None = None


class Drop(msgspec.Struct, frozen=True):
    """Discard the next ``n`` bytes, which belong to call number ``call``; ``n`` may exceed what is buffered."""

    n: int
    call: int | None = None


class More(msgspec.Struct, frozen=True):
    """Nothing can be said before ``n`` more bytes (at least 1) have arrived."""

    n: int = 1


class Later(msgspec.Struct, frozen=True):
    """There is more to say about what was offered, and it takes time: ask again in a later turn. The last of its list."""


class Hold(msgspec.Struct, frozen=True):
    """Nothing more of this direction can be settled until the other direction has moved.

    If it does not within ``patience`` seconds, the parser hears of it as ``Outage.SLOW_SERVER``.
    """

    patience: float | None = None


class Void(msgspec.Struct, frozen=True):
    """No more goes on in ``direction`` under what was passed before: what is not with the receiver yet is discarded, and what
    comes is offered again."""

    direction: Direction


class Inject(msgspec.Struct, frozen=True):
    """Put ``data`` into the stream of ``direction``, at this place. It belongs to call number ``call``."""

    direction: Direction
    data: bytes
    call: int | None = None


class Judge(msgspec.Struct, frozen=True):
    """A call has been read: ask policy. ``number`` identifies it on this connection, counting from 0."""

    number: int
    call: ApiCall


class Reply(msgspec.Struct, frozen=True):
    """The reply of call ``number`` has begun. ``status`` is an HTTP code or a token such as ``grpc:7`` or ``kafka:29``."""

    number: int
    status: int | str


class Done(msgspec.Struct, frozen=True):
    """Call ``number`` is over, as far as the protocol can tell: its record may be written."""

    number: int


class Fail(msgspec.Struct, frozen=True):
    """The connection cannot go on: ``last_words`` to the client (after what it is still owed), close, one record.

    ``reason`` is a stable kebab-case token for records and metrics. ``status`` is the protocol's own (an HTTP code) when
    there are last words. ``call`` is the number of the call at fault when it is already known, ``partial`` what could be
    read of a call that never came to be judged. ``limit`` names the constant that was reached, if it was one.
    """

    reason: str
    last_words: bytes = b""
    status: int | str | None = None
    call: int | None = None
    partial: ApiCall | None = None
    limit: str | None = None


class Opaque(msgspec.Struct, frozen=True):
    """From here on both directions are one tunnel (an Upgrade that policy allowed and the server accepted).

    All bytes belong to call ``call``, which ends with the connection. ``watched``: the parser is still offered what the
    client says, and passes it, until it says ``Opaque`` without.
    """

    call: int
    watched: bool = False


class Tolerated(msgspec.Struct, frozen=True):
    """Something that a server sends is not as its protocol wants it, and does no harm: it is counted by ``reason``, a stable
    kebab-case token."""

    reason: str


class Leave(msgspec.Struct, frozen=True):
    """No call is open, and the connection must not carry another one: close it. Nobody is to blame."""


Verb = Pass | Drop | More | Later | Hold | Void | Inject | Judge | Reply | Done | Tolerated | Leave | Fail | Opaque


class Outage(Enum):
    """Why the transport has to answer, or to give up, in the server's place."""

    UNREACHABLE = "upstream-unreachable"  # the dial failed
    TIMEOUT = "upstream-timeout"  # the dial, or the reply, took too long
    RESET = "upstream-reset"  # the server went away inside a reply or before one
    OVERLOAD = "overload"  # a limit of ours
    SLOW_SERVER = "server-silent"  # not given up: what waits with a ``Hold`` has waited for as long as it said
    SLOW_CLIENT = "client-timeout"  # the client began a message and did not finish it in time


class Parser(Protocol):
    """One connection's protocol."""

    @property
    def protocol(self) -> str:
        """The name that records carry, for instance ``http/1.1``."""
        ...

    @property
    def kept(self) -> int:
        """About how many bytes of memory it keeps of what was settled, beside what belongs to open calls."""
        ...

    @property
    def at_boundary(self) -> bool:
        """No call is open, no message is half read in either direction, and another call may begin."""
        ...

    @property
    def prefixes(self) -> Sequence[Prefix] | None:
        """Beginnings of requests that were allowed, as they are, since `policy_changed`, and whose calls `skip` understands.
        None: requests begin with heads, which policy itself can tell (policies/heads.py)."""
        ...

    def policy_changed(self) -> None:
        """What was allowed need not be allowed any more."""
        ...

    @property
    def next_number(self) -> int:
        """Of the next call."""
        ...

    def skip(self, calls: int) -> None:
        """So many whole calls have gone by without the parser, which is at a boundary: the kernel has carried them."""
        ...

    def recall(self, head: bytes, reply: bytes) -> tuple[ApiCall, int | str | None]:
        """What a whole call was that the kernel has carried.

        ``head`` is what would have been judged. Of protocols with ``prefixes``, ``reply`` is the reply's beginning (all of it
        if it has at most ``KEPT_BYTES``), and the status that it tells is returned; of others both are nothing. Raises
        whatever it likes when the parser would not have let the call go by as it was.

        Parsers with ``prefixes`` are told of every call before it is skipped, and in order. Others may be told much later.
        """
        ...

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        """Offer all unsettled bytes of ``direction``; ``end``: no more will come behind them."""
        ...

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        """Policy's answer to the ``Judge`` of call ``number``."""
        ...

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        """The server cannot answer: what to tell the client (``Inject``, ``Reply``, ``Done``, and a ``Fail`` at the end)."""
        ...
