"""The broker of these tests, with ACLs, and what all clients met there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.kafka import broker
from tests.kafka.admin import Administrator
from tests.kafka.broker import Broker, Listener, User
from tests.kafka.scenario import Case, Outcomes, cases, missing, play

REQUIRE = "1" in (os.environ.get("SLUICE_REQUIRE_KAFKA"), os.environ.get("SLUICE_REQUIRE_BPF"))


def require(reason: str | None) -> None:
    """Skip the calling test for this reason, or fail it where Kafka is demanded."""
    if reason is None:
        return
    if REQUIRE:
        pytest.fail(f"Kafka is required, but {reason}")
    pytest.skip(reason)


@dataclass(frozen=True)
class Oracle:
    """What the clients met at the broker that enforces the ACLs itself."""

    outcomes: dict[str, Outcomes]  # by the names of the cases
    after: dict[str, list[str]]  # the records of each topic


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """All cases, of all clients at the same time, each as a user of its own."""
    require(broker.missing())
    played = [case for case in cases() if missing(case.client) is None]
    users = {case.name: User(case.name, "secret") for case in played}
    listener, folder = Listener("SASL", sasl=True), tmp_path_factory.mktemp("kafka")
    with Broker(folder, (listener,), acls=True, users=tuple(users.values())) as kafka:
        administrator = Administrator(kafka)
        administrator.prepare(played)
        administrator.allow({case: f"User:{case.name}" for case in played})
        outcomes = play(played, kafka.address("SASL"), users)
        after = administrator.records(case.full(topic) for case in played for topic in case.scenario.after)
        yield Oracle(outcomes, after)


@pytest.fixture
def played(case: Case, oracle: Oracle) -> Case:
    """The case of this test, if its client could run."""
    require(missing(case.client))
    return case
