"""The scenarios of tests/kafka through Sluice: a broker that allows everything, clients that know of nothing.

Every client must meet what it meets at a broker that has the same rules as ACLs (tests/kafka/test_oracle.py), and the topics
must hold the same records in the end.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.stage import Line
from tests.harness import SLUICE, Sluice, Workload, eventually, kafka_policy
from tests.kafka import broker, raw
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
        log_in_as_of_old(apps.connect(server.port("SASL")), played[0].name, users[played[0].name])
        outcomes = play(played, server.address("SASL"), users, prefixes)
        eventually(lambda: agent.get("/connections")["total"] == 0, "every connection ends")
        after = administrator.records(case.full(topic) for case in played for topic in case.scenario.after)
        assert agent.stop() == 0
        log = agent.log.read_text()
        assert "fault" not in log, log
        yield Stage(outcomes, after, [json.loads(line) for line in agent.audit.read_text().splitlines()])


def log_in_as_of_old(connection: socket.socket, client_id: str, user: User) -> None:
    """SaslHandshake version 0, whose messages have no header, and a request behind it."""
    with Line(connection) as line:
        line.send(raw.sized(raw.header(17, 0, 1, client_id) + b"\0\5PLAIN"))
        assert raw.frame(line.exactly)[4:10] == b"\0\0\0\1\0\0"
        line.send(raw.sized(f"\0{user.name}\0{user.password}".encode()))
        assert raw.frame(line.exactly) == bytes(4)
        line.send(raw.sized(raw.header(18, 0, 2, client_id)))
        assert raw.frame(line.exactly)[4:10] == b"\0\0\0\2\0\0"


def documents(apps: Workload, kafka: Workload, server: Broker, played: list[Case]) -> str:
    rules = [{**rule, "name": f"{case.name}-{i}"} for case in played for i, rule in enumerate(case.policy)]
    return kafka_policy(apps, kafka, server.port("SASL"), rules)


def test_a_client_that_logs_in_as_of_old_is_known_by_its_user(stage: Stage) -> None:
    first = [record for record in stage.records if record["protocol"] == "kafka"][:3]
    assert [(record["method"], record["apiVersion"], record["status"]) for record in first] == [
        ("SaslHandshake", 0, "kafka:0"),
        ("SaslAuthenticate", 0, "kafka:0"),
        ("ApiVersions", 0, "kafka:0"),
    ]
    assert first[-1]["principal"] == first[-1]["clientId"]


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.client}-{case.scenario.name}")
def test_a_client_meets_what_it_meets_at_the_brokers_own_acls(stage: Stage, case: Case) -> None:
    require(missing(case.client))
    assert case.short(stage.outcomes[case.name]) == case.scenario.expected(case.client)
    after = {topic: stage.after[case.full(topic)] for topic in case.scenario.after}
    assert after == {topic: sorted(values) for topic, values in case.scenario.after.items()}
