"""Who is at the ends of a connection that outlives the documents under which it was made."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from bpf import abi
from policies.decide import PolicySet
from policies.load import Source, load
from proxy.datapath import Origins
from proxy.worker import Settings, Worker

DATABASE, BACKEND = 1, 2
ADDRESS = "192.0.2.7"
NAMES = {DATABASE: "database", BACKEND: "backend"}


def workload(name: str, spec: str) -> str:
    return f"apiVersion: sluice.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"


def policies(*documents: str) -> PolicySet:
    return PolicySet(load([Source("x", "".join(documents))]), 1)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    settings = Settings(node="n", audit=str(tmp_path / "audit"), port=1, netns=1, idle_timeout=1.0)
    with asyncio.Runner() as runner:
        yield Worker(runner.get_loop(), settings, (), cast(Origins, None))


def test_a_workload_elsewhere_that_is_removed_is_its_address_and_not_this_host(worker: Worker) -> None:
    worker.apply(policies(workload("database", f"addresses: [{ADDRESS}]")), NAMES)
    assert worker.endpoint(DATABASE, ADDRESS).workload == "database"
    for _ in range(2):
        worker.apply(policies(), NAMES)
        found = worker.endpoint(DATABASE, ADDRESS)
        assert (found.workload, found.address, found.local) == (None, ADDRESS, False)


def test_the_address_of_a_workload_that_is_removed_may_be_anothers(worker: Worker) -> None:
    worker.apply(policies(workload("database", f"addresses: [{ADDRESS}]")), NAMES)
    worker.apply(policies(workload("backend", "addresses: [192.0.2.0/24]")), NAMES)
    assert worker.endpoint(DATABASE, ADDRESS).workload == "backend"


def test_an_address_that_has_become_a_workload_is_that_workload(worker: Worker) -> None:
    worker.apply(policies(workload("backend", "addresses: [192.0.2.0/24]")), NAMES)
    assert worker.endpoint(abi.Identity.FIRST_CLASS, ADDRESS, again=True).workload == "backend"


def test_a_workload_of_this_host_that_is_removed_is_the_host(worker: Worker) -> None:
    worker.apply(policies(workload("backend", "cgroups: [/sluice/backend]")), NAMES)
    worker.apply(policies(), NAMES)
    assert worker.endpoint(BACKEND, ADDRESS).local
    assert worker.endpoint(abi.Identity.HOST, ADDRESS).local
    assert not worker.endpoint(abi.Identity.FIRST_CLASS, ADDRESS).local
