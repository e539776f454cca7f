"""Programs that ask, through the agent: the column of a conversation and the row of a program make one test."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.harness import Sluice
from tests.programs.calls import BODIES, REFUSED, Call, Kind, denied, download, refused_early, upload
from tests.programs.clients import CLIENTS, Client, Player
from tests.programs.conftest import need, which
from tests.programs.content import SIZES
from tests.programs.town import Made, Town

pytestmark = pytest.mark.programs


class House:
    """A client program that runs, and what it has asked."""

    def __init__(self, town: Town, client: Client, player: Player) -> None:
        self.town, self.client = town, client
        self._player = player
        self.made: list[Made] = []
        self.together: list[list[Call]] = []  # calls of one connection

    def play(self, calls: Iterable[Call]) -> None:
        asked = list(calls)
        if not self.client.chunks and any(call.chunked for call in asked):
            pytest.skip(f"{self.client.name} sends no chunked bodies")
        answers = self._player.play(asked)
        assert len(answers) == len(asked)
        for number, (call, (status, length, digest)) in enumerate(zip(asked, answers, strict=True), 1):
            assert status == call.status, (number, call, status)
            if call.length is not None:
                assert (length, digest) == (call.length, call.digest), (number, call, length)
        self.made += map(Made, asked)
        self.together.append(asked)


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda client: client.name)
def house(request: pytest.FixtureRequest, town: Town) -> Iterator[House]:
    client: Client = request.param
    need(client)
    with client.start(client, town) as player:
        yield House(town, client, player)


@pytest.mark.parametrize(("kind", "size"), BODIES, ids=lambda value: getattr(value, "name", str(value)))
def test_bodies(house: House, kind: Kind, size: int) -> None:
    house.play(kind.calls(size, *which(size)))


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_server_that_reads_slowly(house: House, chunked: bool) -> None:
    house.play([upload(SIZES[-1], chunked, "/slow"), download(500, False)])


@pytest.mark.parametrize("refuse", [refused_early, denied])
@pytest.mark.parametrize(("size", "chunked"), REFUSED)
def test_a_body_that_is_refused(house: House, size: int, chunked: bool, refuse: Callable[[int, bool], Call]) -> None:
    """By the server before it has read it, or by policy. The first call of a connection, and one behind others."""
    house.play([refuse(size, chunked)])
    house.play([download(500, False), download(500, False), refuse(size, chunked)])


def test_every_call_has_its_record(house: House) -> None:
    """All those that the tests above have made."""
    records = house.town.check_records(house.made, house.town.origin_port)
    assert house.town.surprises(house.town.origin_port) == []
    if house.client.keeps:
        sources = {record["path"]: record["source"] for record in records}
        for calls in house.together:
            assert len({sources[call.target] for call in calls}) == 1, "these were calls of one connection"
        if Sluice.datapath != "relay":
            assert any(record["via"] == "kernel" for record in records), "nothing was carried: this row shows nothing"
