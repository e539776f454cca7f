"""The broker that the tests start: it is there when it says so, keeps what it got, and leaves nothing behind."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import SLUICE, Workload
from tests.kafka import broker
from tests.kafka.admin import Administrator
from tests.kafka.broker import Broker
from tests.kafka.conftest import require
from tests.kafka.scenario import Case, play, scenarios
from tests.requirements import require_bpf

# The controller waits so long (ms) until it believes that a killed broker is gone; else 9 s.
SHORT_SESSION = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "500"}
CASE = Case(scenarios()["produce-allowed"], "confluent")


@pytest.fixture
def workload() -> Iterator[Workload]:
    with contextlib.closing(Workload("kafka")) as made:
        yield made


def outcomes(kafka: Broker) -> object:
    return CASE.short(play([CASE], kafka.address())[CASE.name])


def test_with_acls_an_anonymous_client_may_do_nothing_until_it_is_allowed(tmp_path: Path) -> None:
    require(broker.missing())
    with Broker(tmp_path, acls=True) as kafka:
        administrator = Administrator(kafka)
        administrator.prepare([CASE])
        assert outcomes(kafka) == [{"orders": "TopicAuthorization"}]
        administrator.allow({CASE: "User:ANONYMOUS"})
        assert outcomes(kafka) == CASE.scenario.expected(CASE.client)


def test_a_broker_in_a_workload_is_killed_and_starts_again_with_its_data(tmp_path: Path, workload: Workload) -> None:
    require(broker.missing())
    require_bpf()  # for the cgroup
    with Broker(tmp_path, settings=SHORT_SESSION, prefix=(SLUICE, "exec", workload.name, "--")) as kafka:
        Administrator(kafka).prepare([CASE])
        assert outcomes(kafka) == CASE.scenario.expected(CASE.client)
        members = (workload.cgroup / "cgroup.procs").read_text().split()
        assert kafka.process is not None
        assert members == [str(kafka.process.pid)]
        kafka.kill()
        assert (workload.cgroup / "cgroup.procs").read_text() == ""
        kafka.start()
        assert Administrator(kafka).records([CASE.full("orders")]) == {CASE.full("orders"): ["a", "b"]}
    assert kafka.process is None
    assert (workload.cgroup / "cgroup.procs").read_text() == ""


def test_a_broker_that_cannot_start_tells_why(tmp_path: Path) -> None:
    require(broker.missing())
    with pytest.raises(AssertionError, match=r"(?s)Kafka ended with .*ClassNotFoundException: no\.such\.Authorizer"):
        Broker(tmp_path, settings={"authorizer.class.name": "no.such.Authorizer"}).start()
