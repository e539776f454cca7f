"""Who is let in, who goes for whom, and what is told of those who are turned away."""

from collections.abc import Iterator
from itertools import count
from time import monotonic

import pytest

from proxy import admission
from proxy.admission import RESERVED_DESCRIPTORS, RESTED, Crowd, Descriptors, TurnedAway, share_out
from proxy.shares import Claim

CAPACITY = 100
GREEDY, HONEST = "greedy", "honest"


class Member:
    """A connection that was active ``at`` last, and never rests while a call is open."""

    def __init__(self, crowd: "Crowd[Member]", claim: Claim, at: float, idle: bool) -> None:
        self._crowd, self._claim = crowd, claim
        self.active_at, self.idle = at, idle
        self.gone = False
        crowd.enter(self, claim)

    def dismiss(self, since: float) -> bool:
        if self.gone or not self.idle or self.active_at > since:
            return False
        self.gone = True
        self._crowd.leave(self, self._claim)
        return True


class Place:
    """A crowd of members with a clock of its own."""

    def __init__(self) -> None:
        self.crowd: Crowd[Member] = Crowd(CAPACITY)
        self.crowd.budget.expect(3)
        self.now = monotonic()

    def come(self, subject: str, *, idle: bool = True) -> Member | None:
        claim = self.crowd.admit(subject)
        return Member(self.crowd, claim, self.now, idle) if claim else None

    def fill(self, subject: str, *, idle: bool = True) -> list[Member]:
        """As many as come in; they rest by then, if they ever do."""
        members = list(iter(lambda: self.come(subject, idle=idle), None))
        self.now += RESTED + 1
        return [member for member in members if member]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setattr(admission, "monotonic", lambda: place.now)
    yield place
    assert place.crowd.budget.used <= CAPACITY


def test_one_subject_gets_most_places_and_another_still_finds_some(place: Place) -> None:
    assert CAPACITY * 0.5 < len(place.fill(GREEDY, idle=False)) < CAPACITY * 0.8
    assert len(place.fill(HONEST, idle=False)) > place.crowd.budget.own
    assert place.come("newcomer", idle=False)


def test_the_oldest_idle_connection_of_the_greediest_goes_for_a_newcomer(place: Place) -> None:
    greedy = place.fill(GREEDY)
    greedy[0].active_at = place.now  # it has said something just now
    greedy[1].idle = False
    honest = place.fill(HONEST, idle=False)
    left = [member for member in greedy if not member.gone]
    ended = len(greedy) - len(left)
    assert left == [*greedy[:2], *greedy[2 + ended :]]
    assert 0 <= len(left) - len(honest) <= 1, "nobody is ended for who has as many"


def test_the_greediest_itself_gets_the_place_of_its_own_oldest_idle_connection(place: Place) -> None:
    greedy = place.fill(GREEDY)
    assert place.come(GREEDY)
    assert [member.gone for member in greedy[:2]] == [True, False]


def test_who_has_nothing_idle_is_turned_away(place: Place) -> None:
    greedy = place.fill(GREEDY, idle=False)
    assert place.come(GREEDY) is None
    assert not any(member.gone for member in greedy)


def test_a_connection_that_has_just_come_is_not_ended_for_another(place: Place) -> None:
    greedy = place.fill(GREEDY)
    for member in greedy:
        member.active_at = place.now
    assert place.come(GREEDY) is None


def test_a_place_that_was_left_is_free_again(place: Place) -> None:
    greedy = place.fill(GREEDY, idle=False)
    greedy[0].idle = True
    assert greedy[0].dismiss(place.now)
    assert place.come(GREEDY)


@pytest.mark.parametrize("limit", [256, 1024, 65_536, 1_048_576])
def test_what_connections_and_pipes_take_leaves_the_agent_its_own(limit: int) -> None:
    taken = 60
    there = share_out(limit, taken)
    assert 2 * there.connections + 2 * there.pipes + taken + RESERVED_DESCRIPTORS <= limit
    assert there.connections > limit // 16 or limit < 1024


def test_there_is_always_room_for_one() -> None:
    assert share_out(16, 60) == Descriptors(1, 1)


def test_those_who_are_turned_away_in_one_second_are_told_together() -> None:
    told: list[tuple[str, int]] = []
    away: TurnedAway[str] = TurnedAway(lambda first, number: told.append((first, number)))
    made = count()
    for second, ends in [(1, "a"), (1, "b"), (1, "a"), (1, "a"), (2, "a")]:
        away.add(second, ends, lambda ends=ends: f"{ends}{next(made)}")  # type: ignore[misc]
    assert told == [("a0", 3), ("b1", 1)]
    away.tell(2)
    assert len(told) == 2
    away.tell(3)
    assert told[2:] == [("a2", 1)]


def test_every_one_that_is_turned_away_is_told_of_however_many_ends_there_are() -> None:
    told: list[int] = []
    away: TurnedAway[str] = TurnedAway(lambda first, number: told.append(number))
    for number in range(1000):
        away.add(1, number % 300, lambda: "x")
    away.tell(None)
    assert sum(told) == 1000
