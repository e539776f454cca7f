"""Who is at the ends of a connection that outlives the documents under which it was made."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from bpf import abi
from parsers.contract import Direction
from policies.decide import PolicySet
from policies.load import Source, load
from policies.model import Endpoint
from proxy.datapath import Origins
from proxy.worker import Settings, Worker
from proxy.worker import _parser as parser_for

DATABASE, BACKEND = 1, 2
ADDRESS = "192.0.2.7"
NAMES = {DATABASE: "database", BACKEND: "backend"}


def workload(name: str, spec: str) -> str:
    return f"apiVersion: sluice.dev/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"


def policies(*documents: str) -> PolicySet:
    return PolicySet(load([Source("x", "".join(documents))]), 1)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    settings = Settings(node="n", audit=str(tmp_path / "audit"), port=1, idle_timeout=1.0, memory=1 << 28)
    with asyncio.Runner() as runner:
        yield Worker(runner.get_loop(), settings, (), cast(Origins, None), None)


TALK = """
apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {name: p}
spec:
  mode: MODE
  endpointSelector: {}
  ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], opaque: OPAQUE, rules: {http: [{path: /a}]}}]}]
"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize(
    ("mode", "opaque", "http2", "tls"),
    [
        ("enforce", "deny", "http/1.1", "http/1.1"),
        ("enforce", "allow", "http/1.1", "tcp"),
        ("audit", "deny", "tcp", "tcp"),
    ],
)
def test_what_reads_a_connection(mode: str, opaque: str, http2: str, tls: str) -> None:
    """The HTTP/1 parser refuses what it cannot read; in audit mode nothing may be refused for its protocol."""
    documents = workload("backend", "cgroups: [/sluice/backend]"), TALK.replace("MODE", mode).replace("OPAQUE", opaque)
    pair = policies(*documents).pair(Endpoint(local=True), Endpoint(workload="backend"), 80)
    read = []
    for first in (PREFACE, b"\x16\x03\x01\x02", b"GET /a HTTP/1.1\r\n"):
        parser = parser_for(pair)
        parser.on_data(Direction.REQUEST, first, False)
        read.append(parser.protocol)
    assert read == [http2, tls, "http/1.1"]


def test_every_workload_and_the_host_have_a_share(worker: Worker) -> None:
    worker.apply(policies(workload("a", "cgroups: [/a]"), workload("b", "cgroups: [/b]")), {})
    for budget in worker._budgets.values():
        assert budget.own == budget.limit // 12


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
    assert worker.endpoint(abi.Identity.FIRST_CLASS, ADDRESS).workload == "backend"


def test_a_workload_of_this_host_that_is_removed_is_the_host(worker: Worker) -> None:
    worker.apply(policies(workload("backend", "cgroups: [/sluice/backend]")), NAMES)
    worker.apply(policies(), NAMES)
    assert worker.endpoint(BACKEND, ADDRESS).local
    assert worker.endpoint(abi.Identity.HOST, ADDRESS).local
    assert not worker.endpoint(abi.Identity.FIRST_CLASS, ADDRESS).local


def test_nothing_holds_on_to_a_policy_that_is_no_longer_in_force(worker: Worker) -> None:
    """A reload every second would fill the memory with old ones."""
    worker.apply(policies(), {})
    for forms in (worker._likenesses.shapes, worker._likenesses.known):
        forms.put("key", object())  # type: ignore[arg-type]
        assert not forms.met("key")
    worker.apply(policies(), {})
    for forms in (worker._likenesses.shapes, worker._likenesses.known):
        assert forms.get("key") is None
        assert not forms.met("key")
