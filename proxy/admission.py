"""Which connections are let in: as many as there are descriptors for, shared by subject.

A connection needs two descriptors, and some that carry long bodies need pipes. The rest is the agent's own: however many
connections there are, it can reload policy, open the audit file anew, answer its admin listener and start workers.

When there is no place for a subject, the oldest idle connection of whoever has the most is ended for it, in an orderly way: a
client that keeps connections makes another. Only where nobody who has as much is idle, the newcomer is turned away.
"""

import os
import resource
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from time import monotonic
from typing import Generic, Protocol, TypeVar

import msgspec

from proxy.shares import Budget, Claim, Share
from proxy.summaries import Summaries

# Descriptors that no connection takes, beside those that are open at the start: for documents, the audit file, the admin
# listener and its clients, hooks that are attached later, the guard and the pipes of processes that are started.
RESERVED_DESCRIPTORS = 128
# The part of all descriptors that pipes may take. Without one a body is copied, which is slower.
PIPES_PART = 8
# A connection on which nothing has happened for so long (seconds) may be ended for another: the next call of a client that is
# at work comes sooner.
RESTED = 1.0
# So many of a subject's connections are looked at for those that rest, the oldest first and then in turn, and after this time
# (seconds) again: with a hundred thousand of them, looking at all would hold the others up.
LOOKED_AT = 512
LOOK_INTERVAL = 0.25


class Descriptors(msgspec.Struct, frozen=True):
    """What a limit of open files is good for."""

    connections: int
    pipes: int


def descriptors() -> Descriptors:
    """What this process has left, by RLIMIT_NOFILE and what it has open now."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return share_out(limit, len(os.listdir("/proc/self/fd")))


def share_out(limit: int, taken: int) -> Descriptors:
    """``taken`` of ``limit`` descriptors are in use. There is always one connection and a pipe."""
    pipes = limit // PIPES_PART
    return Descriptors(max((limit - taken - RESERVED_DESCRIPTORS - pipes) // 2, 1), max(pipes // 2, 1))


class Connection(Protocol):
    """What is known here of a connection."""

    @property
    def idle(self) -> bool:
        """No call is open."""
        ...

    @property
    def active_at(self) -> float:
        """When something last happened, in seconds of the monotonic clock."""
        ...

    def dismiss(self, since: float) -> bool:
        """End it, if it is idle and nothing has happened ``since``."""
        ...


Member = TypeVar("Member", bound=Connection)


class Crowd(Generic[Member]):
    """The connections of one worker, by subject."""

    def __init__(self, capacity: int) -> None:
        self.budget = Budget(capacity)
        self._members: dict[str, OrderedDict[Member, None]] = {}
        self._resting: dict[str, deque[Member]] = {}  # those that rest longest come first
        self._looked_at: dict[str, float] = {}

    def admit(self, subject: str) -> Claim | None:
        """A place for one more connection of ``subject``; None: it must be turned away."""
        claim = self.budget.claim(subject)
        if self.budget.take(claim, 1):
            return claim
        if not self._make_room(claim.share):
            return None
        self.budget.charge(claim, 1)
        return claim

    def enter(self, member: Member, claim: Claim) -> None:
        subject = claim.share.subject
        members = self._members.get(subject)
        if members is None:
            members = self._members[subject] = OrderedDict()
        members[member] = None

    def give_back(self, claim: Claim) -> None:
        """The connection never came about."""
        self.budget.charge(claim, -claim.held)

    def leave(self, member: Member, claim: Claim) -> None:
        """The connection is over."""
        self.give_back(claim)
        members = self._members.get(claim.share.subject)
        if members is not None:
            members.pop(member, None)

    def _make_room(self, newcomer: Share) -> bool:
        """End a connection of the greediest, or at last of the newcomer's own subject."""
        now = monotonic()
        for share in (*self.budget.greedier(newcomer.held + 1), newcomer):
            for member in self._rested(share.subject, now):
                if member.dismiss(now - RESTED):
                    return True
        return False

    def _rested(self, subject: str, now: float) -> Iterator[Member]:
        resting = self._resting.setdefault(subject, deque())
        if not resting and now - self._looked_at.get(subject, 0.0) > LOOK_INTERVAL:
            self._looked_at[subject] = now
            members = self._members.get(subject, OrderedDict())
            for member in list(islice(members, LOOKED_AT)):
                if now - member.active_at > RESTED and member.idle:
                    resting.append(member)
                else:
                    members.move_to_end(member)
            self._resting[subject] = resting = deque(sorted(resting, key=lambda member: member.active_at))
        while resting:
            yield resting.popleft()


Refused = TypeVar("Refused")


class TurnedAway(Generic[Refused]):
    """Connections that were not let in. Those between the same two ends in one second are told together, with their number."""

    def __init__(self, tell: Callable[[Refused, int], None]) -> None:
        """``tell`` the first of so many."""
        self._tell = tell
        self._summaries: Summaries[Refused] = Summaries()

    def add(self, second: int, ends: Hashable, make: Callable[[], Refused]) -> None:
        """``make`` is asked for what is told of a connection, if it is the first of its kind."""
        self.tell(second)
        summary = self._summaries.get(second, (ends,))
        if summary is None:
            first = make()
            summary, _ = self._summaries.find(second, (ends,), first)
            if summary is None:  # more different ones than are kept: those of this second so far are told at once
                self.tell(None)
                summary, _ = self._summaries.find(second, (ends,), first)
        assert summary is not None
        summary.add(0, 0, 0.0)

    def tell(self, second: int | None) -> None:
        """Tell of seconds that are over, or of all."""
        for summary in self._summaries.ended(second):
            self._tell(summary.first, summary.calls)


__all__ = ["Connection", "Crowd", "Descriptors", "TurnedAway", "descriptors", "share_out"]
