"""Programs that answer, behind the agent: the column of a conversation and the row of a program make one test."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import Sluice
from tests.programs.calls import BODIES, REFUSED, Call, Kind, denied, download, refused_early, upload
from tests.programs.conftest import need, which
from tests.programs.content import SIZES
from tests.programs.driver import Driver
from tests.programs.servers import PROGRAMS, Program
from tests.programs.town import Made, Town

pytestmark = pytest.mark.programs


class House:
    """A program that runs, and what has been asked of it."""

    def __init__(self, town: Town, program: Program) -> None:
        self.town, self.program = town, program
        self.port = town.ports[program.name]
        self.made: list[Made] = []

    def driver(self, slow: bool = False) -> Driver:
        return Driver(lambda: self.town.connect(self.port), slow)

    def play(self, calls: Iterable[Call], slow: bool = False) -> Driver:
        """Make these calls on one connection; each must be answered as it should."""
        made = []
        with self.driver(slow) as driver:
            for number, call in enumerate(calls, 1):
                reply = driver.make(call, together=number != 2)
                assert reply.status == call.status, (number, call, reply)
                if call.length is not None:
                    assert (reply.length, reply.digest) == (call.length, call.digest), (number, call, reply)
                made.append(Made(call, reply))
        self.made += made  # of a call that fails there is no telling what its record should say
        return driver


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda program: program.name)
def house(request: pytest.FixtureRequest, town: Town) -> Iterator[House]:
    need(request.param)
    with town.running(request.param):
        yield House(town, request.param)


@pytest.mark.parametrize(("kind", "size"), BODIES, ids=lambda value: getattr(value, "name", str(value)))
def test_bodies(house: House, kind: Kind, size: int) -> None:
    driver = house.play(kind.calls(size, *which(size)))
    if house.program.keeps:
        assert driver.connections == 1, "these were calls of one connection"


def test_slow_readers(house: House) -> None:
    """A client, or a server, that takes its time; with a length and chunked. All at once, as most of it is waiting."""
    with ThreadPoolExecutor() as threads:
        done = [
            threads.submit(house.play, [download(SIZES[-1], chunked), download(500, False)], slow=True)
            for chunked in (False, True)
        ]
        done += [
            threads.submit(house.play, [upload(SIZES[-1], chunked, "/slow"), download(500, False)]) for chunked in (False, True)
        ]
    for one in done:
        one.result()


@pytest.mark.parametrize("refuse", [refused_early, denied])
@pytest.mark.parametrize(("size", "chunked"), REFUSED)
def test_a_body_that_is_refused(house: House, size: int, chunked: bool, refuse: Callable[[int, bool], Call]) -> None:
    """By the server before it has read it, or by policy. The first call of a connection, and one behind others."""
    house.play([refuse(size, chunked)])
    house.play([download(500, False), download(500, False), refuse(size, chunked)])


def test_every_call_has_its_record(house: House) -> None:
    """All those that the tests above have made."""
    records = house.town.check_records(house.made, house.port, house.program.asks_origin)
    assert set(house.town.surprises(house.port)) <= ({"reply-without-request"} if house.program.misreads else set())
    if Sluice.datapath != "relay" and house.program.carried:
        carried = any(record["via"] == "kernel" for record in records)
        assert carried is not house.program.splices, "this row shows nothing of what it is to show"
