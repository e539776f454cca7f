"""Fetch sessions (KIP-227): which topics an incremental Fetch means without naming them.

A broker remembers what a session fetches, and does not tie a session to a connection. So only sessions are known here whose
making went by on this connection; any other is answered as if the broker had forgotten it, and the client names all anew.

What is known of a session is never less than what the broker knows: topics are added when the request that adds them goes
by, and taken out when the broker has accepted the request that forgets them.
"""

from collections import OrderedDict
from collections.abc import Iterable

from parsers.kafka.request import MAX_RESOURCES

# Sessions of one connection. A client has one with each broker.
MAX_SESSIONS = 4
# Partitions of one session: as many as a cluster should have at most.
MAX_PARTITIONS = 200_000

# Bytes of the entries that one session's replies repeat of denied topics: some thousands of topics.
MAX_DENIED_BYTES = 256 * 1024

INITIAL_EPOCH = 0
FINAL_EPOCH = -1

Partitions = tuple[str, tuple[int, ...]]  # a topic's name and some of its partitions


class Session:
    """What one session fetches. ``denied``: of topics that the broker never saw, the entries of a reply, for ``version``."""

    __slots__ = ("denied", "partitions", "topics", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.topics: dict[str, set[int]] = {}
        self.denied: dict[str, list[bytes]] = {}
        self.partitions = 0

    def add(self, topics: Iterable[Partitions]) -> bool:
        """Add partitions; False when there are too many, or too many topics: each Fetch is judged by all of them."""
        for name, partitions in topics:
            kept = self.topics.setdefault(name, set())
            before = len(kept)
            kept.update(partitions)
            self.partitions += len(kept) - before
        return self.partitions <= MAX_PARTITIONS and len(self.topics) <= MAX_RESOURCES

    def deny(self, topics: Iterable[tuple[str, bytes]]) -> bool:
        """Tell of topics in every reply, each by its entry; False when there are too many."""
        for name, entry in topics:
            self.denied.setdefault(name, []).append(entry)
        return sum(map(len, self.entries)) <= MAX_DENIED_BYTES

    @property
    def entries(self) -> list[bytes]:
        return [entry for entries in self.denied.values() for entry in entries]

    def forget(self, topics: Iterable[Partitions]) -> None:
        for name, partitions in topics:
            kept = self.topics.get(name)
            if kept is None:
                continue
            before = len(kept)
            kept.difference_update(partitions)
            self.partitions += len(kept) - before
            if not kept:
                del self.topics[name]


class Sessions:
    """The sessions of one connection."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[int, Session] = OrderedDict()

    @property
    def partitions(self) -> int:
        """Of all sessions."""
        return sum(session.partitions for session in self._sessions.values()) if self._sessions else 0

    def get(self, session_id: int, version: int) -> Session | None:
        """The session, if its making went by here and in this version of Fetch."""
        session = self._sessions.get(session_id)
        if session is None or session.version != version:
            return None
        self._sessions.move_to_end(session_id)
        return session

    def keep(self, session_id: int, session: Session) -> None:
        self._sessions[session_id] = session
        self._sessions.move_to_end(session_id)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def end(self, session_id: int) -> None:
        self._sessions.pop(session_id, None)
