"""The scenarios of tests/kafka through Sluice: a broker that allows everything, clients that know of nothing.

Every client must meet what it meets at a broker that has the same rules as ACLs (tests/kafka/test_oracle.py), and the topics
must hold the same records in the end.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness import SLUICE, Sluice, Workload, eventually, kafka_policy
from tests.kafka import broker
from tests.kafka.admin import Administrator
from tests.kafka.broker import Broker, Listener, User
from tests.kafka.conftest import require
from tests.kafka.scenario import Case, Outcomes, cases, missing, play
from tests.requirements import require_bpf


@dataclass(frozen=True)
class Stage:
    """What has come of all cases, of all clients at the same time."""

    outcomes: dict[str, Outcomes]  # by the names of the cases
    after: dict[str, list[str]]  # the records of each topic
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    require(broker.missing())
    played = [case for case in cases() if missing(case.client) is None]
    folder = tmp_path_factory.mktemp("kafka")
    users = {case.name: User(case.name, "secret") for case in played}
    with contextlib.ExitStack() as stack:
        apps, kafka = Workload("apps"), Workload("kafka")
        for workload in (apps, kafka):
            stack.callback(workload.close)
        place = (SLUICE, "exec", kafka.name, "--")
        server = Broker(folder, (Listener("SASL", sasl=True),), users=tuple(users.values()), prefix=place)
        stack.enter_context(server)
        administrator = Administrator(server)
        administrator.prepare(played)
        agent = stack.enter_context(Sluice(folder / "agent", documents(apps, kafka, server, played)))
        prefixes = dict.fromkeys({case.client for case in played}, (SLUICE, "exec", apps.name, "--"))
        outcomes = play(played, server.address("SASL"), users, prefixes)
        eventually(lambda: agent.get("/connections")["total"] == 0, "every connection ends")
        after = administrator.records(case.full(topic) for case in played for topic in case.scenario.after)
        assert agent.stop() == 0
        log = agent.log.read_text()
        assert "fault" not in log, log
        yield Stage(outcomes, after, [json.loads(line) for line in agent.audit.read_text().splitlines()])


def documents(apps: Workload, kafka: Workload, server: Broker, played: list[Case]) -> str:
    rules = [{**rule, "name": f"{case.name}-{i}"} for case in played for i, rule in enumerate(case.policy)]
    return kafka_policy(apps, kafka, server.port("SASL"), rules)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.client}-{case.scenario.name}")
def test_a_client_meets_what_it_meets_at_the_brokers_own_acls(stage: Stage, case: Case) -> None:
    require(missing(case.client))
    assert case.short(stage.outcomes[case.name]) == case.scenario.expected(case.client)
    after = {topic: stage.after[case.full(topic)] for topic in case.scenario.after}
    assert after == {topic: sorted(values) for topic, values in case.scenario.after.items()}
