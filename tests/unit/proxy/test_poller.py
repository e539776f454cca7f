"""Turns of the poller: bounded in time, and fair."""

import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from proxy.poller import HALF_LIFE, TURN_SECONDS, Poller


class Handle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop that turns when a test says so."""

    def __init__(self) -> None:
        self.ready: Callable[[], None] = lambda: None
        self.soon: list[tuple[Handle, Callable[[], None]]] = []

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.ready = callback

    def call_soon(self, callback: Callable[[], None]) -> Handle:
        handle = Handle()
        self.soon.append((handle, callback))
        return handle

    @property
    def waits(self) -> bool:
        return any(not handle.cancelled for handle, _ in self.soon)

    def turn(self) -> None:
        """What is ready, as level-triggered readiness is told; else what was asked for."""
        soon, self.soon = self.soon, []
        self.ready()
        for handle, callback in soon:
            if not handle.cancelled:
                callback()


class Crowd:
    """Sockets that always have something to be read, and what each costs (seconds)."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = Loop()
        self.poller = Poller(self.loop, lambda: self.now)  # type: ignore[arg-type]
        self.served: list[str] = []
        self._pairs: dict[str, tuple[socket.socket, socket.socket]] = {}

    def add(self, name: str, cost: float) -> int:
        ours, theirs = self._pairs[name] = socket.socketpair()
        theirs.send(b"x")
        self.poller.add_reader(ours.fileno(), self.serve, name, cost)
        return ours.fileno()

    def remove(self, name: str) -> None:
        ours, theirs = self._pairs.pop(name)
        self.poller.forget(ours.fileno())
        ours.close()
        theirs.close()

    def serve(self, name: str, cost: float) -> None:
        self.now += cost
        self.served.append(name)

    def turn(self) -> list[str]:
        self.served = []
        self.loop.turn()
        return self.served

    def close(self) -> None:
        for name in list(self._pairs):
            self.remove(name)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd()
    yield crowd
    crowd.close()


def test_a_turn_ends_when_its_time_is_used_up(crowd: Crowd) -> None:
    for number in range(100):
        crowd.add(str(number), 0.001)
    assert len(crowd.turn()) == round(TURN_SECONDS / 0.001)
    assert crowd.loop.waits, "the rest has another turn, behind the loop's other work"


def test_all_that_is_cheap_is_served_in_one_turn(crowd: Crowd) -> None:
    for number in range(100):
        crowd.add(str(number), 0.00001)
    assert len(crowd.turn()) == 100
    assert not crowd.loop.waits


def test_nobody_starves(crowd: Crowd) -> None:
    for number in range(60):
        crowd.add(str(number), 0.002 if number % 3 else 0.0002)
    counts: Counter[str] = Counter()
    for _ in range(120):
        counts.update(crowd.turn())
    assert len(counts) == 60


def test_one_that_costs_little_hardly_waits_for_those_that_cost_much(crowd: Crowd) -> None:
    for number in range(100):
        crowd.add(f"heavy{number}", 0.003)
    for _ in range(150):
        crowd.turn()
    waited = []
    for _ in range(20):
        crowd.add("light", 0.0001)
        waited.append(next(number for number in range(300) if "light" in crowd.turn()))
        crowd.remove("light")
    assert max(waited) <= 3, "not a whole round of the others"
    assert sum(waited) / len(waited) <= 2


def test_many_of_one_owner_do_not_come_before_another(crowd: Crowd) -> None:
    """Also those that are new, one after the other, of whom nobody knows yet what they cost."""
    honest = crowd.add("honest", 0.0001)
    crowd.poller.belongs(honest, "honest")
    waits = longest = 0
    for number in range(300):
        crowd.poller.belongs(crowd.add(str(number), 0.003), "greedy")
        waits = 0 if "honest" in crowd.turn() else waits + 1
        longest = max(longest, waits)
        if number >= 50:
            crowd.remove(str(number - 50))
    assert longest <= 2


def test_one_that_has_used_much_is_forgiven(crowd: Crowd) -> None:
    heavy = crowd.add("heavy", 0.1)
    crowd.turn()
    assert crowd.poller._used[heavy] == pytest.approx(0.1)
    crowd.poller.remove_reader(heavy)
    crowd.add("another", 0.0)
    crowd.now += 10 * HALF_LIFE
    crowd.turn()
    assert crowd.poller._used[heavy] < 0.001


def test_what_a_descriptor_has_used_is_not_its_successor_s(crowd: Crowd) -> None:
    heavy = crowd.add("heavy", 0.1)
    crowd.turn()
    crowd.remove("heavy")
    assert crowd.add("another", 0.0) == heavy
    assert crowd.poller._used[heavy] == 0


def test_what_is_asked_for_comes_in_a_later_turn_and_before_what_comes_then(crowd: Crowd) -> None:
    fd = crowd.add("event", 0.0)
    crowd.poller.call(fd, crowd.serve, "asked", 0.0)
    assert crowd.served == []
    assert crowd.turn() == ["asked", "event"]
    assert crowd.turn() == ["event"]


def test_what_is_asked_for_again_and_again_lets_others_have_their_turn(crowd: Crowd) -> None:
    crowd.add("event", 0.0)
    fd = crowd.add("busy", 0.0)

    def go_on() -> None:
        crowd.serve("again", 0.001)
        crowd.poller.call(fd, go_on)

    go_on()
    for _ in range(10):
        assert crowd.turn().count("again") == 1
        assert "event" in crowd.served


def test_nothing_is_told_of_what_was_forgotten(crowd: Crowd) -> None:
    def end_all() -> None:
        for name in list(crowd._pairs):
            crowd.remove(name)

    for number in range(10):
        fd = crowd.add(str(number), 0.001)
    crowd.poller.call(fd, crowd.serve, "asked", 0.0)
    crowd.poller.add_reader(fd, end_all)
    for _ in range(20):
        crowd.turn()
    count = len(crowd._pairs)
    assert not count
    assert crowd.turn() == []
