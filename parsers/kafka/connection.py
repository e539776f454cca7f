"""One Kafka connection, as ``parsers.contract.Parser``.

    frame -> look -> Judge -> Pass | without the denied topics | our own words
    reply frame -> whose is it -> Pass | filtered | merged -> the words of ours that waited behind it

A broker answers the requests of a connection one after another, in their order, and so do we: a denial waits until every
earlier request has been answered. Requests are judged by their beginning, as soon as nothing that follows can change the
verdict; the rest of a frame, and all of its records, goes by unread.

Topic ids (KIP-516) have names only in Metadata replies. Those that went by on this connection are remembered; for any other
id the broker is asked, on this very connection and with the client's permissions, before the request is judged.
"""

import base64
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache

import msgspec

from parsers.contract import (
    KEPT_BYTES,
    ApiCall,
    Direction,
    Done,
    Drop,
    Fail,
    Hold,
    Inject,
    Judge,
    Later,
    More,
    Outage,
    Pass,
    Prefix,
    Reply,
    Ruling,
    Verb,
)
from parsers.kafka import denials, replies, splits
from parsers.kafka.frame import API_VERSIONS, SIZE, MalformedError, UnsupportedError, is_tls
from parsers.kafka.layouts import REQUESTS
from parsers.kafka.metadata import TOLD_AT_ONCE, Metadata
from parsers.kafka.prefixes import CARRIED, is_carriable, prefix_of
from parsers.kafka.request import CLUSTER, Request, Topic, look, skim
from parsers.kafka.sasl import Login, bare_size
from parsers.kafka.sessions import FINAL_EPOCH, INITIAL_EPOCH, Partitions, Session, Sessions
from parsers.kafka.wire import message, varint

PROTOCOL = "kafka"

# Calls that are open at once. Clients have 5 to 1,000 under way; more wait in their sockets until replies have come.
OPEN_CALLS_MAX = 1024
# Bytes of our own words that wait for earlier replies; beyond, the client is not read until these have come.
OWN_WORDS_MAX = 1024 * 1024
# Bytes of one request that are kept until it can be judged, or refused with all its topics. A Produce request to several topics
# has to be read to its last topic, and is at most 1 MiB with the defaults of all clients.
HELD_REQUEST_MAX = 8 * 1024 * 1024
# Bytes of one reply that has to be read as a whole: a broker's versions, or a word of its login.
HELD_SMALL_REPLY_MAX = 64 * 1024
# A request that names more, and is refused or taken apart, is so over several turns.
MANY_RESOURCES = 256
# Verbs about replies that are said at once: many tiny ones may come together, and others want their turn.
VERBS_MAX = 32
# Answers of ours that wait for earlier replies; beyond, the client is not read until these have come. All are given at once.
OWN_ANSWERS_MAX = 64
# Shorter replies are kept until they are there as a whole, too: the record tells their error. Of those that the kernel may
# carry, it keeps less.
READ_WHOLE_MAX = 16 * 1024
# Prefixes of one connection: those that were used last. A producer has one for each topic, a consumer for each set of topics
# and partitions that it asks for.
PREFIXES_MAX = 8
# Topic ids whose names are remembered: as many as a large cluster has topics.
TOPIC_IDS_MAX = 50_000
# What one of them, and a partition of a fetch session, take in memory (bytes, measured).
TOPIC_ID_BYTES = 220
PARTITION_BYTES = 100

_PRODUCE, _FETCH, _METADATA, _SASL_HANDSHAKE, _SASL_AUTHENTICATE, _ADD_PARTITIONS = 0, 1, 3, 17, 36, 24
_IDS_SINCE = 10  # the first version of Metadata whose replies have topic ids
_METADATA_BY_ID = 12  # the first version of Metadata that may be asked by topic id
# What is not offered to clients because it cannot be judged by what it says: ShareFetch and ShareAcknowledge go on with what an
# earlier request of their share session has named (KIP-932).
_UNJUDGEABLE = frozenset({78, 79})
# By API key, the first and the last version that can be judged, and refused.
SUPPORTED = {
    key: (api.layouts[0][0], min(api.layouts[-1][1], known.highest))
    for key, api in REQUESTS.items()
    if key not in _UNJUDGEABLE and (known := message(key)) is not None
}
# Calls that are kept, to be the same objects when they are asked again: so policy remembers what it has decided.
_CALLS_KEPT = 2048
# Resources of a call that is kept.
_KEPT_RESOURCES_MAX = 16
_BEGINNING = struct.Struct(">ii")  # size, correlation id
# Replies that are kept until they are there as a whole, if they are not of a size that none of them has.
_READ_WHOLE = frozenset({API_VERSIONS, _SASL_AUTHENTICATE})
_MORE, _LATER, _HOLD = More(), Later(), Hold()
# The status of a reply that went by and says what nobody here can read: clients make of it what they can.
_UNREAD = "unknown"


class _Open:
    """A request whose reply is still to come: from the broker, or ours once ``words`` are set."""

    __slots__ = (
        "api_key",
        "bare",
        "correlation_id",
        "ends",
        "forgotten",
        "granting",
        "merged",
        "number",
        "place",
        "probe",
        "refusal",
        "session",
        "version",
        "words",
    )

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.api_key = request.api_key
        self.version = request.version
        self.correlation_id = request.correlation_id
        self.words: tuple[bytes, str] | None = None  # with their status
        self.probe = False  # a question of ours: its reply is for nobody else
        self.bare = False  # a message of a login, which has no header
        self.granting: Callable[[str], bool] | None = None  # which topics of the reply may be seen; None: all
        self.place: splits.Place = ()  # of these:
        self.merged: Sequence[bytes] = ()  # entries that say of what the broker did not get to see that it is denied
        self.refusal = denials.TOPIC_DENIED  # the code of one of them
        self.session: Session | None = None  # of a Fetch: what it makes or goes on with
        self.forgotten: Sequence[Partitions] = ()
        self.ends: int | None = None  # the id of a session that the broker closes with its answer

    @property
    def rewritten(self) -> bool:
        """Whether the client gets to see another reply than the broker's, which has to be understood for that."""
        return bool(self.merged) or self.granting is not None or (self.api_key == API_VERSIONS)


class _Asked(msgspec.Struct):
    """The request that policy is asked about."""

    number: int
    request: Request
    data: bytes  # the frame, or the beginning of it that was looked at
    names: tuple[str, ...] = ()  # of request.topics
    resources: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()  # of request.elements, as resources
    session: Session | None = None  # of an incremental Fetch
    unknown: tuple[int, ...] = ()  # positions of topics whose ids nobody knows
    instead: tuple[bytes, str] | None = None  # our words, whatever the ruling, with their status
    probe: bool = False  # a question of ours, in ``data``
    bare: bool = False  # a message of a login, which has no header
    sound: bool = False  # ``request`` was read from the whole of its frame

    def takes_long(self, ruling: Ruling) -> bool:
        """Whether it names very many things, of which some are refused, and is there as a whole: then it is dealt with step by
        step. What the kernel has carried is never as long, and must be dealt with at once."""
        many = len(self.resources) > MANY_RESOURCES and len(self.data) >= self.request.size > KEPT_BYTES
        return many and not self.probe and not (ruling.allowed and ruling.per_resource is None)


class KafkaParser:
    """Kafka has no words for a connection that cannot go on: it is closed."""

    protocol = PROTOCOL

    def __init__(self) -> None:
        self._next_number = 0
        self._open: deque[_Open] = deque()
        self._asked: _Asked | None = None
        self._half: tuple[_Asked, Ruling] | None = None  # ruled, and its frame has to be there as a whole before we can act
        self._behind_probe: tuple[Request, bytes] | None = None  # the request that asked for names
        self._own_words = 0  # bytes
        self._own_answers = 0
        self._metadata: Metadata | None = None  # a reply that is being read
        self._telling: Iterator[bytes] | None = None  # what is still to be said of one that was read, and cut
        self._wanted = 0  # bytes of the next frame that must be there before it is worth a look
        self._topic_ids: OrderedDict[bytes, str] = OrderedDict()
        self._asked_ids: frozenset[bytes] = frozenset()  # the broker was asked for their names, for the next request
        self._sessions = Sessions()
        self._login = Login()
        self._handshake: Request | None = None  # a SaslHandshake that messages without a header may follow
        self._request_rest: _Open | None = None  # a request that was passed up to its last byte, which may not be there yet
        self._reply_rest: _Open | None = None  # a reply of which only the last byte is left
        self._dead = False
        self._prefixes: OrderedDict[Prefix, None] = OrderedDict()
        self._alike: deque[tuple[bytes, Request]] = deque(maxlen=PREFIXES_MAX)  # passed as they are, for prefixes to be made of

    @property
    def kept(self) -> int:
        reading = self._metadata.kept if self._metadata is not None else 0
        return reading + self._own_words + TOPIC_ID_BYTES * len(self._topic_ids) + PARTITION_BYTES * self._sessions.partitions

    # The kernel path

    @property
    def at_boundary(self) -> bool:
        under_way = self._open or self._asked or self._half or self._behind_probe or self._request_rest or self._reply_rest
        return not (under_way or self._dead or self._login.bare != 0)

    @property
    def prefixes(self) -> Sequence[Prefix]:
        while self._alike:
            prefix = prefix_of(*self._alike.popleft())
            self._prefixes[prefix] = None
            self._prefixes.move_to_end(prefix)
        while len(self._prefixes) > PREFIXES_MAX:
            self._prefixes.popitem(last=False)
        return tuple(self._prefixes)

    def policy_changed(self) -> None:
        self._prefixes.clear()
        self._alike.clear()

    @property
    def next_number(self) -> int:
        return self._next_number

    def skip(self, calls: int) -> None:
        self._next_number += calls

    def recall(self, head: bytes, reply: bytes) -> tuple[ApiCall, str]:
        request = look(head)
        if isinstance(request, int) or request.api_key not in CARRIED:
            raise MalformedError("carried-unproven")
        number = self._next_number
        judge = self._judge(request, head)[-1]
        self._next_number = number  # the kernel has numbered it
        asked, self._asked = self._asked, None
        if not isinstance(judge, Judge) or asked is None or asked.probe or asked.instead is not None or asked.unknown:
            raise MalformedError("carried-unproven")
        opened = _Open(asked.number, request)
        if request.session is not None:
            self._follow_session(asked, opened, ())
        if opened.merged:
            raise MalformedError("carried-unproven")
        return judge.call, self._status(opened, reply)

    def _passed(self, asked: _Asked, opened: _Open) -> None:
        if opened.merged:
            self.policy_changed()  # the like of it would have to be answered by us in part, too
        elif is_carriable(asked.request):
            self._alike.append((asked.data[: asked.request.determined], asked.request))

    def on_data(self, direction: Direction, data: bytes, end: bool) -> Sequence[Verb]:
        if self._dead or not data:
            return ()
        if direction is Direction.REPLY:
            return self._read_reply(data, end)
        judged = self._judged
        try:
            return self._read_request(data, end)
        except MalformedError as error:
            return [self._fail(error.reason, judged, limit=error.limit)]

    def on_ruling(self, number: int, ruling: Ruling) -> Sequence[Verb]:
        asked, self._asked = self._asked, None
        if asked is None or asked.number != number:
            return [self._fail("ruling-without-judge")]
        if asked.takes_long(ruling):
            self._half = asked, ruling
            return [_LATER]
        try:
            return self._act(asked, ruling)
        except MalformedError as error:
            return [self._fail(error.reason, number, limit=error.limit)]

    def on_outage(self, outage: Outage) -> Sequence[Verb]:
        if outage is Outage.SLOW_CLIENT:
            return [self._fail(outage.value, self._judged)]
        return () if self._oldest is None else [self._fail(outage.value, self._oldest)]

    @property
    def _judged(self) -> int | None:
        """The call whose request was judged and is not there as a whole: it has its record, whatever comes of it."""
        return self._half[0].number if self._half is not None else None

    @property
    def _oldest(self) -> int | None:
        return self._open[0].number if self._open else None

    # Requests

    def _read_request(self, data: bytes, end: bool) -> Sequence[Verb]:
        if self._request_rest is not None:
            number, self._request_rest = self._request_rest.number, None
            return [Pass(1, number)]
        if self._half is not None:
            return self._act_when_whole(*self._half, data, end)
        if self._behind_probe is not None or len(self._open) >= OPEN_CALLS_MAX:
            return [_HOLD]
        if self._own_words > OWN_WORDS_MAX or self._own_answers >= OWN_ANSWERS_MAX:
            return [_HOLD]
        if self._handshake is not None:
            if self._open:
                return [_HOLD]  # the broker's answer tells how the client goes on
            if self._login.bare is None:
                raise MalformedError("unsupported-mechanism")
            if self._login.bare:
                return self._read_bare(self._handshake, data, end)
            self._handshake = None
        if len(data) < self._wanted and not end:
            return [_MORE]
        try:
            found = look(data)
        except UnsupportedError as error:
            return self._unsupported(error, data)
        if not isinstance(found, int) and found.api_key in (_SASL_HANDSHAKE, _SASL_AUTHENTICATE) and len(data) < found.size:
            found = found.size  # it is read for who the client says it is
        if isinstance(found, int):
            if end:
                raise MalformedError("truncated-request")
            if found > HELD_REQUEST_MAX:
                raise MalformedError("request-not-judgeable", "HELD_REQUEST_MAX")
            self._wanted = found
            return [_MORE]
        self._wanted = 0
        low, high = SUPPORTED.get(found.api_key, (1, 0))
        if not low <= found.version <= high:
            return [self._fail("unsupported-version", partial=self._call(found))]
        return self._judge(found, data)

    def _unsupported(self, error: UnsupportedError, data: bytes) -> Sequence[Verb]:
        request = Request(
            api_key=error.api_key,
            api=error.api or f"ApiKey{error.api_key}",
            version=error.version,
            correlation_id=error.correlation_id,
            client_id=error.client_id,
            size=error.size,
        )
        if not error.is_api_versions:
            return [self._fail("unsupported-version" if error.api else "unsupported-api", partial=self._call(request))]
        words = denials.unsupported_version(error.correlation_id, *SUPPORTED[API_VERSIONS])
        return self._ask(_Asked(self._number(), request, data, instead=(words, f"kafka:{denials.UNSUPPORTED_VERSION}")))

    def _read_bare(self, handshake: Request, data: bytes, end: bool) -> Sequence[Verb]:
        """What a client says to log in behind SaslHandshake version 0: judged as what newer clients say with a header."""
        size = bare_size(data)
        if size is None or len(data) < size:
            if end:
                raise MalformedError("truncated-request")
            return [_MORE]
        api = REQUESTS[_SASL_AUTHENTICATE].name
        request = Request(
            api_key=_SASL_AUTHENTICATE,
            api=api,
            version=0,
            correlation_id=0,
            client_id=handshake.client_id,
            size=size,
        )
        return self._ask(_Asked(self._number(), request, data[:size], bare=True))

    def _pass_bare(self, asked: _Asked, ruling: Ruling) -> Sequence[Verb]:
        if not ruling.allowed:
            return [self._fail("denied", asked.number)]  # a broker has no words for this either
        self._login.says_bare(asked.data)  # raises for what could be taken for a request
        opened = _Open(asked.number, asked.request)
        opened.bare = True
        self._open.append(opened)
        return [Pass(asked.request.size, asked.number)]

    def _judge(self, request: Request, data: bytes) -> Sequence[Verb]:
        unknown = {
            topic.topic_id for topic in request.topics if topic.topic_id is not None and topic.topic_id not in self._topic_ids
        }
        if unknown - self._asked_ids:
            return self._ask_for_names(request, data, frozenset(unknown))
        self._asked_ids = frozenset()
        asked = _Asked(self._number(), request, data, tuple(self._name(topic) for topic in request.topics))
        if unknown:
            asked.unknown = tuple(i for i, topic in enumerate(request.topics) if topic.topic_id in unknown)
        topics = tuple(f"topic:{name}" for name in asked.names)
        asked.elements = tuple(one.resource for one in request.named) if request.named else topics
        if request.session is not None and request.session[1] not in (INITIAL_EPOCH, FINAL_EPOCH):
            asked.session = self._sessions.get(request.session[0], request.version)
            if asked.session is None:
                code = denials.SESSION_NOT_FOUND
                asked.instead = denials.fetch_session_error(request, code), f"kafka:{code}"
            else:
                topics = (*(f"topic:{name}" for name in asked.session.topics), *topics)
        asked.resources = tuple(
            dict.fromkeys(
                (
                    *topics,
                    *(f"group:{group}" for group in request.groups),
                    *(f"transactionalId:{name}" for name in request.transactional_ids),
                    *(one.resource for one in request.named),
                )
            )
        )
        return self._ask(asked)

    def _ask(self, asked: _Asked) -> Sequence[Verb]:
        self._asked = asked
        return [Judge(asked.number, self._call(asked.request, asked.resources))]

    def _call(self, request: Request, resources: tuple[str, ...] = ()) -> ApiCall:
        return call_of(request, resources, self._login.principal)

    def _number(self) -> int:
        number = self._next_number
        self._next_number = number + 1
        return number

    # Topic ids

    def _name(self, topic: Topic) -> str:
        if topic.name is not None:
            return topic.name
        known = self._topic_ids.get(topic.topic_id) if topic.topic_id else None
        # No topic can have such a name, so no rule about names is about it.
        return known if known is not None else f"?{base64.urlsafe_b64encode(topic.topic_id or bytes(16)).decode().rstrip('=')}"

    def _ask_for_names(self, request: Request, data: bytes, ids: frozenset[bytes]) -> Sequence[Verb]:
        """Ask the broker, and policy whether we may: it is the client's connection, and its call."""
        self._asked_ids = ids
        self._behind_probe = request, data
        frame = _metadata_by_id(request.client_id, ids)
        return self._ask(_Asked(self._number(), skim(frame), frame, probe=True))

    def _probe(self, asked: _Asked, ruling: Ruling) -> Sequence[Verb]:
        if ruling.allowed:
            opened = _Open(asked.number, asked.request)
            opened.probe = True
            self._open.append(opened)
            return [Inject(Direction.REQUEST, asked.data, asked.number), _HOLD]
        assert self._behind_probe is not None
        request, data = self._behind_probe
        self._behind_probe = None
        return [Done(asked.number), *self._judge(request, data)]

    def _learn(self, topic_ids: Mapping[bytes, str]) -> None:
        self._topic_ids.update(topic_ids)
        while len(self._topic_ids) > TOPIC_IDS_MAX:
            self._topic_ids.popitem(last=False)

    # What follows from a ruling

    def _act(self, asked: _Asked, ruling: Ruling) -> Sequence[Verb]:
        request = asked.request
        if asked.probe:
            return self._probe(asked, ruling)
        if asked.bare:
            return self._pass_bare(asked, ruling)
        if asked.instead is not None:
            return self._answer(asked, *asked.instead)
        refused: dict[int, int] = {}
        if ruling.allowed or request.api_key == _ADD_PARTITIONS:  # of what is denied as a whole nobody else asks which
            named = enumerate(asked.elements)
            refused = {i: denials.code_of(one) for i, one in named if not ruling.grants(one)}
        # Whether what nobody knows is allowed, nobody can tell.
        refused |= dict.fromkeys(asked.unknown, denials.UNKNOWN_TOPIC_ID)
        nothing_left = bool(refused) and len(refused) == len(asked.elements) and not _has_remainder(request)
        if not ruling.allowed or nothing_left:
            return self._refuse(asked, ruling, refused)
        if asked.session is not None and not all(ruling.grants(f"topic:{name}") for name in asked.session.topics):
            # Policy has changed, and the broker would go on with what is denied by now: the client has to name everything anew.
            assert request.session is not None
            self._sessions.end(request.session[0])
            code = denials.SESSION_NOT_FOUND
            return self._answer(asked, denials.fetch_session_error(request, code), f"kafka:{code}")
        if refused and not splits.may_be_split(request):
            return self._refuse(asked, ruling, refused)
        return self._forward(asked, ruling, refused)

    def _forward(self, asked: _Asked, ruling: Ruling, refused: Mapping[int, int]) -> Sequence[Verb]:
        request, number = asked.request, asked.number
        opened = _Open(number, request)
        verbs: list[Verb] = [Pass(request.size, number)]
        if refused:
            frame = self._whole(asked)
            if frame is None:
                self._half = asked, ruling
                return [_MORE]
            request = asked.request
            opened.merged = denials.entries(request, frame, refused)
            opened.place = splits.place_of(request)
            opened.refusal = min(refused.values())
            verbs = [Drop(request.size, number), Inject(Direction.REQUEST, splits.without(frame, request, refused), number)]
        if _may_be_filtered(request) and ruling.per_resource is not None:
            opened.granting = ruling.grants
        if request.session is not None:
            self._follow_session(asked, opened, sorted(refused))
        if request.api_key == _SASL_HANDSHAKE:
            self._login.begin(asked.data)
            if request.version == 0:
                self._handshake = request
        elif request.api_key == _SASL_AUTHENTICATE:
            self._login.says(asked.data, request.version)
        if request.api_key in CARRIED:
            self._passed(asked, opened)
        if request.api_key == _PRODUCE and request.acks == 0:
            verbs.append(Done(number))
        else:
            self._open.append(opened)
            if len(asked.data) < request.size:
                verbs = [Pass(request.size - 1, number)]  # of the last byte we are told
                self._request_rest = opened
        return verbs

    def _follow_session(self, asked: _Asked, opened: _Open, denied: Sequence[int]) -> None:
        request = asked.request
        assert request.session is not None
        session_id, epoch = request.session
        if epoch in (INITIAL_EPOCH, FINAL_EPOCH):
            opened.ends = session_id
        if epoch == FINAL_EPOCH:
            return
        session = asked.session if asked.session is not None else Session(request.version)
        named = zip(asked.names, request.topics, strict=True)
        allowed = [(name, topic.partitions) for i, (name, topic) in enumerate(named) if i not in denied]
        if not session.add(allowed):
            raise MalformedError("fetch-session-too-large", "MAX_PARTITIONS")
        opened.session = session
        opened.forgotten = [(self._name(topic), topic.partitions) for topic in request.forgotten]
        for name, _ in opened.forgotten:
            session.denied.pop(name, None)  # of which the broker knows nothing
        if not session.deny(zip((asked.names[i] for i in denied), opened.merged, strict=True)):
            raise MalformedError("fetch-session-too-large", "MAX_DENIED_BYTES")
        opened.place, opened.merged = splits.place_of(request), session.entries

    # Our own words

    def _refuse(self, asked: _Asked, ruling: Ruling, refused: Mapping[int, int]) -> Sequence[Verb]:
        frame = self._whole(asked)
        if frame is None:
            self._half = asked, ruling
            return [_MORE]
        request = asked.request
        code = denials.told_code(request, denials.denied_code(asked.resources, ruling.grants))
        codes = dict.fromkeys(asked.unknown, denials.UNKNOWN_TOPIC_ID)
        if request.api_key == _ADD_PARTITIONS and code == denials.TOPIC_DENIED:
            codes |= denials.not_attempted(request, refused)
        words = denials.denial(request, frame, code, codes)
        if words is None:
            return [Drop(request.size, asked.number), Done(asked.number)]
        status = denials.UNKNOWN_TOPIC_ID if asked.unknown and ruling.allowed else code
        return self._answer(asked, words, f"kafka:{status}")

    def _whole(self, asked: _Asked) -> bytes | None:
        """The frame, if all of it is there. What is refused or taken apart must be sound to its end."""
        size = asked.request.size
        if size > HELD_REQUEST_MAX:
            raise MalformedError("request-not-answerable", "HELD_REQUEST_MAX")
        if len(asked.data) < size:
            return None
        frame = asked.data[:size]
        if not asked.sound:
            asked.request, asked.sound = skim(frame), True
        return frame

    def _act_when_whole(self, asked: _Asked, ruling: Ruling, data: bytes, end: bool) -> Sequence[Verb]:
        if len(data) < asked.request.size:
            return [self._fail("truncated-request", asked.number)] if end else [_MORE]
        asked.data = data
        if asked.takes_long(ruling) and not asked.sound and self._whole(asked) is not None:
            return [_LATER]
        self._half = None
        return self._act(asked, ruling)

    def _answer(self, asked: _Asked, words: bytes, status: str) -> Sequence[Verb]:
        """Say ``words`` when it is this request's turn."""
        opened = _Open(asked.number, asked.request)
        opened.words = words, status
        self._open.append(opened)
        self._own_words += len(words)
        self._own_answers += 1
        verbs: list[Verb] = [Drop(asked.request.size, asked.number)]
        if len(self._open) == 1:
            self._take_turn(verbs)
        return verbs

    def _take_turn(self, verbs: list[Verb]) -> None:
        """Say what has waited for the replies before it."""
        while self._open and self._open[0].words is not None:
            opened = self._open.popleft()
            assert opened.words is not None
            words, status = opened.words
            self._own_words -= len(words)
            self._own_answers -= 1
            verbs += (Reply(opened.number, status), Inject(Direction.REPLY, words, opened.number), Done(opened.number))

    # Replies

    def _read_reply(self, data: bytes, end: bool) -> Sequence[Verb]:
        verbs: list[Verb] = []
        at = 0
        while at < len(data) and len(verbs) < VERBS_MAX:
            if self._reply_rest is not None:
                opened, self._reply_rest = self._reply_rest, None
                verbs.append(Drop(1, opened.number) if opened.probe else Pass(1, opened.number))
                self._reply_over(opened, verbs)
                at += 1
                continue
            sound = len(verbs)
            try:
                if not self._open:
                    raise MalformedError("unasked")
                settled = self._one_reply(self._open[0], data[at:] if at else data, verbs)
                if settled is None and end:
                    raise MalformedError("truncated")
            except MalformedError as error:  # the replies before it reach the client, as if they had come alone
                del verbs[sound:]
                verbs.append(self._fail(f"reply-{error.reason}", self._oldest, limit=error.limit))
                break
            if settled is None:
                verbs.append(_MORE)
                break
            at += settled
            if self._metadata is not None:
                if self._metadata.waits and end:
                    verbs.append(self._fail("reply-truncated", self._oldest))
                else:
                    verbs.append(_MORE if self._metadata.waits else _LATER)
                break
        return verbs

    def _one_reply(self, opened: _Open, data: bytes, verbs: list[Verb]) -> int | None:
        """Settle the reply at the beginning of ``data``, or all but the last byte of it; None: more must come first."""
        if opened is self._request_rest:
            raise MalformedError("too-early")  # no broker answers what it has not read
        if self._metadata is not None:
            return self._read_metadata(opened, self._metadata, data, verbs)
        if opened.bare:
            return self._bare_reply(opened, data, verbs)
        expected = opened.correlation_id.to_bytes(4, "big", signed=True)
        if len(data) > SIZE and is_tls(data) and not expected.startswith(data[SIZE : _BEGINNING.size]):
            raise MalformedError("tls-not-opened")  # a broker that takes its client's words for a broken handshake
        if len(data) < _BEGINNING.size:
            return None
        length: int
        length, correlation_id = _BEGINNING.unpack_from(data)
        size = SIZE + length
        if length < SIZE:
            raise MalformedError("frame-too-short")
        if correlation_id != opened.correlation_id:
            raise MalformedError("out-of-order")
        by_topic = opened.rewritten or opened.probe or opened.version >= _IDS_SINCE or size <= READ_WHOLE_MAX
        if opened.api_key == _METADATA and by_topic:
            self._metadata = Metadata(opened.version, size, opened.granting, opened.merged)
            return self._read_metadata(opened, self._metadata, data, verbs)
        if not self._is_read_whole(opened, size):
            return self._long_reply(opened, data, size, verbs)
        if len(data) < size:
            return None
        self._whole_reply(opened, data[:size], verbs)
        return size

    @staticmethod
    def _is_read_whole(opened: _Open, size: int) -> bool:
        """Whether a reply is kept until all of it is there. Raises MalformedError for one that has to be and is too large."""
        if opened.api_key not in _READ_WHOLE:
            return size <= (KEPT_BYTES if opened.api_key in CARRIED else READ_WHOLE_MAX)
        if size > HELD_SMALL_REPLY_MAX and opened.rewritten:
            raise MalformedError("too-large", "HELD_SMALL_REPLY_MAX")
        return size <= HELD_SMALL_REPLY_MAX

    def _read_metadata(self, opened: _Open, reading: Metadata, data: bytes, verbs: list[Verb]) -> int:
        """Settle some of a reply, which may be all; the rest is for later turns, or has to come first."""
        if self._telling is not None:
            return self._tell_on(opened, self._telling, verbs)
        number, kept_back = opened.number, opened.rewritten or opened.probe
        try:
            n = reading.read(data)
        except MalformedError:
            if opened.rewritten:
                raise
            return self._give_up(opened, reading.left, verbs)
        self._learn(reading.topic_ids)
        error = (reading.error or opened.refusal) if opened.merged else reading.error
        if reading.over:  # its status is known with its last piece
            verbs.append(Reply(number, f"kafka:{error}"))
        if reading.over and opened.rewritten:
            self._telling = reading.told()
            if n > 1:
                verbs.append(Drop(n - 1, number))
            return n - 1 + self._tell_on(opened, self._telling, verbs)
        if n:
            verbs.append(Drop(n, number) if kept_back else Pass(n, number))
        if reading.over:
            self._metadata = None
            self._reply_over(opened, verbs)
        return n

    def _tell_on(self, opened: _Open, telling: Iterator[bytes], verbs: list[Verb]) -> int:
        """Say some of what may be seen. The broker's last byte waits until all is said: so we are asked again."""
        said = 0
        for piece in telling:
            verbs.append(Inject(Direction.REPLY, piece, opened.number))
            said += len(piece)
            if said > TOLD_AT_ONCE:
                return 0
        self._telling = self._metadata = None
        verbs.append(Drop(1, opened.number))
        self._reply_over(opened, verbs)
        return 1

    def _give_up(self, opened: _Open, left: int, verbs: list[Verb]) -> int:
        """What is left of a reply that cannot be read goes by without being looked at."""
        self._metadata = None
        verbs.append(Reply(opened.number, _UNREAD))
        if left > 1:
            verbs.append(Drop(left - 1, opened.number) if opened.probe else Pass(left - 1, opened.number))
        self._reply_rest = opened  # of the last byte we are told
        return left - 1

    def _bare_reply(self, opened: _Open, data: bytes, verbs: list[Verb]) -> int | None:
        """Settle a word of the broker's in a login without headers."""
        size = bare_size(data)
        if size is None or len(data) < size:
            return None
        self._login.answered(0)
        verbs += (Reply(opened.number, "kafka:0"), Pass(size, opened.number))
        self._reply_over(opened, verbs)
        return size

    def _status(self, opened: _Open, start: bytes) -> str:
        """What a reply tells that goes by as it is, by its beginning: all of it if it is short."""
        size = SIZE + _BEGINNING.unpack_from(start)[0]
        try:
            if size <= KEPT_BYTES:
                error: int | None = replies.first_error(start, opened.api_key, opened.version)
            else:
                error = self._first_words(opened, start)
        except MalformedError:
            error = None
        if opened.api_key == _FETCH:
            self._session_answered(opened, start)
        return _UNREAD if error is None else f"kafka:{error}"

    @staticmethod
    def _first_words(opened: _Open, data: bytes) -> int | None:
        """The error that a long reply tells of itself, 0 where it is not looked for; None: more must come, if that helps."""
        if opened.api_key in _READ_WHOLE:
            return None
        if opened.api_key != _FETCH:
            return 0
        start = replies.fetch_start(data, opened.version)
        return None if start is None else start[0]

    def _whole_reply(self, opened: _Open, frame: bytes, verbs: list[Verb]) -> None:
        """Settle a reply that is there as a whole."""
        number = opened.number
        told = frame
        error: int | None = None
        try:
            error = replies.first_error(frame, opened.api_key, opened.version)
        except MalformedError:
            if opened.rewritten:
                raise
        if opened.api_key == API_VERSIONS:
            told = replies.filter_api_versions(frame, opened.version, SUPPORTED)
        elif opened.api_key == _SASL_HANDSHAKE:
            self._login.agreed(opened.version, error)
        elif opened.api_key == _SASL_AUTHENTICATE:
            self._login.answered(error)
        elif opened.api_key == _FETCH:
            self._session_answered(opened, frame)
        if opened.merged:
            told = splits.merged(told, opened.api_key, opened.version, opened.place, opened.merged)
            error = error or opened.refusal
        verbs.append(Reply(number, _UNREAD if error is None else f"kafka:{error}"))
        if told is frame or told == frame:
            verbs.append(Pass(len(frame), number))
        else:
            verbs += (Drop(len(frame), number), Inject(Direction.REPLY, told, number))
        self._reply_over(opened, verbs)

    def _long_reply(self, opened: _Open, data: bytes, size: int, verbs: list[Verb]) -> int | None:
        """Most of it goes by unread; of its last byte we are told, and so that it is over."""
        number = opened.number
        replaced = 0
        enough = len(data) >= KEPT_BYTES  # to be understood, by anybody who could
        try:
            error = self._first_words(opened, data)
        except MalformedError:
            error, enough = None, True
        if error is None:
            if not enough:
                return None
            if opened.rewritten:
                raise MalformedError("truncated")
        if opened.merged and not error:
            beginning = splits.merge(data, opened.api_key, opened.version, opened.place, opened.merged)
            if beginning is None:
                if len(data) > HELD_SMALL_REPLY_MAX:
                    raise MalformedError("too-large", "HELD_SMALL_REPLY_MAX")
                return None
            words, replaced = beginning
            error = opened.refusal
            verbs += (Reply(number, f"kafka:{error}"), Drop(replaced, number), Inject(Direction.REPLY, words, number))
        else:
            verbs.append(Reply(number, _UNREAD if error is None else f"kafka:{error}"))
        if opened.api_key == _FETCH:
            self._session_answered(opened, data)
        elif opened.api_key == _SASL_AUTHENTICATE:
            self._login.answered(None)
        if size - replaced > 1:
            verbs.append(Pass(size - replaced - 1, number))
        self._reply_rest = opened
        return size - 1

    def _session_answered(self, opened: _Open, data: bytes) -> None:
        try:
            start = replies.fetch_start(data, opened.version)
        except MalformedError:
            start = None
        if start is None:
            return  # what the broker may have forgotten is judged with the rest
        error, session_id = start
        if error:
            opened.merged = ()
            return
        if opened.ends is not None:
            self._sessions.end(opened.ends)
        if opened.session is not None:
            opened.session.forget(opened.forgotten)
            if session_id:
                self._sessions.keep(session_id, opened.session)

    def _reply_over(self, opened: _Open, verbs: list[Verb]) -> None:
        self._open.popleft()
        verbs.append(Done(opened.number))
        if opened.probe:
            self._behind_probe = None  # the request is offered, and judged, again
        self._take_turn(verbs)

    def _fail(self, reason: str, call: int | None = None, *, partial: ApiCall | None = None, limit: str | None = None) -> Fail:
        self._dead = True
        status = None if call is None else "unanswered"
        return Fail(reason, status=status, call=call, partial=partial, limit=limit)


def _has_remainder(request: Request) -> bool:
    """Whether a request makes sense without all that policy may refuse of it."""
    # In version 0 of Metadata no topics are all topics.
    return request.api_key == _METADATA and request.version > 0 and request.array is not None


def _may_be_filtered(request: Request) -> bool:
    """Whether the reply can be cut down to the topics that may be seen."""
    return request.all_topics and request.api_key == _METADATA


def call_of(request: Request, resources: tuple[str, ...], principal: str | None = None) -> ApiCall:
    """A request as policy is asked about it. ``resources``: what it names, all topics by their names."""
    if request.of_brokers:
        resources = (*resources, CLUSTER)
    make = _kept_call if len(resources) <= _KEPT_RESOURCES_MAX else _call
    divisible = _may_be_filtered(request) or (bool(request.topics or request.named) and splits.may_be_split(request))
    more = divisible, bool(request.named), request.all_topics, _has_remainder(request)
    return make(request.api, request.api_key, request.version, (request.client_id, principal), resources, more)


def _call(
    api: str,
    api_key: int,
    version: int,
    who: tuple[str | None, str | None],
    resources: tuple[str, ...],
    more: tuple[bool, bool, bool, bool],
) -> ApiCall:
    client_id, principal = who
    divisible, separate, all_topics, remainder = more
    attributes: dict[str, str | int] = {"apiKey": api_key, "apiVersion": version}
    if client_id is not None:
        attributes["clientId"] = client_id
    if principal is not None:
        attributes["principal"] = principal
    return ApiCall(
        protocol=PROTOCOL,
        method=api,
        resources=resources,
        attributes=attributes,
        wire_length=sum(map(len, resources)),
        divisible=divisible,
        separate=separate,
        all_topics=all_topics,
        remainder=remainder,
    )


_kept_call = lru_cache(_CALLS_KEPT)(_call)


def _metadata_by_id(client_id: str | None, ids: Collection[bytes]) -> bytes:
    """A Metadata request for topics by their ids (KIP-516), which makes none."""
    encoded = b"" if client_id is None else client_id.encode()
    length = -1 if client_id is None else len(encoded)
    topics = b"".join(topic_id + b"\0\0" for topic_id in ids)  # no name, no tagged fields
    # No topic is made, no operations are asked for, no tagged fields.
    body = (
        struct.pack(">hhih", _METADATA, _METADATA_BY_ID, 0, length) + encoded + b"\0" + varint(len(ids) + 1) + topics + bytes(3)
    )
    return struct.pack(">i", len(body)) + body
