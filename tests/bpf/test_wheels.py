"""What a worker makes of finished calls and of policies: the kernel's ring, real automata, a real audit file."""

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bpf import abi
from bpf.loader import BpfError
from parsers.http1 import Http1Parser
from policies.decide import Endpoint, Pair
from policies.decide import PolicySet as Policies
from policies.load import Source, load
from proxy.audit.places import PLACE_BYTES
from proxy.audit.writer import AuditWriter
from proxy.datapath import Origin
from proxy.flow import Flow, Orphan
from proxy.metrics import Metrics
from proxy.wheel import RING_BATCH, RING_SHORT, Legacy, Wheels
from tests.bpf.kernel_rig import GET, HELLO, Call, KernelRig, receive
from tests.bpf.rig import CLIENT, REDIRECT, SERVER, free, rule
from tests.flow_playbook import Dialogue

PATIENCE = 10.0

POLICY = """
apiVersion: sluice.dev/v1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {addresses: [10.0.0.1]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toPorts:
    - {ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/a"}]}}
    - {ports: [{port: "81", protocol: TCP}], rules: {http: []}}
"""


def pair(generation: int, port: int = 80) -> Pair:
    policies = Policies(load([Source("policy.yaml", POLICY)]), generation)
    return policies.pair(policies.endpoint("web"), Endpoint(address="192.0.2.1"), port)


class Told:
    """A relay, as far as its wheel knows it."""

    def __init__(self) -> None:
        self.play = Dialogue(Http1Parser()).client(GET).server(HELLO)
        assert self.play.flow.lend() is not None
        self.faults: list[Exception] = []
        self.taken = 0

    @property
    def flow(self) -> Flow:
        return self.play.flow

    def fault(self, error: Exception) -> None:
        self.faults.append(error)

    def take_wheel(self) -> None:
        self.taken += 1


class Worker:
    """A worker's wheels over the rig's programs."""

    def __init__(self, path: KernelRig, audit: AuditWriter) -> None:
        self.audit = audit
        self.loop = asyncio.new_event_loop()
        self.metrics = Metrics()
        self.complaints: list[Exception] = []
        self.wheels = Wheels(self.loop, path.path.files[0], audit, self.metrics, self.complaints.append)

    def watch(self, call: Call) -> Told:
        told = call.wheel.rider = Told()
        self.wheels.own[call.wheel.index] = call.wheel
        return told

    def run(self, until: Callable[[], bool]) -> None:
        async def wait() -> None:
            deadline = time.monotonic() + PATIENCE
            while not until():
                assert time.monotonic() < deadline, "waited in vain"
                await asyncio.sleep(0.001)

        self.do(wait())

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    def close(self) -> None:
        self.wheels.close()
        self.loop.close()


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def worker(path: KernelRig, audit: Path) -> Iterator[Worker]:
    writer = AuditWriter(audit)
    with contextlib.closing(Worker(path, writer)) as made:
        yield made
    assert writer.close(PATIENCE)


def lines(audit: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in audit.read_bytes().splitlines()]


# Finished calls.


def worker_call(worker: Worker, path: KernelRig) -> Call:
    """A connection of which the kernel has the wheel, and ``worker`` is the owner."""
    call = path.call()
    call.wheel._wheels = worker.wheels
    worker.wheels._free.remove(call.wheel.index)
    worker.watch(call)
    assert call.let_go()
    return call


def test_finished_calls_are_recorded_in_their_order_and_counted(path: KernelRig, worker: Worker, audit: Path) -> None:
    calls = [path.carried(), path.carried()]
    for call in calls:
        worker.watch(call)
    worker.wheels.start()
    for _ in range(RING_BATCH):  # more than one turn takes
        for call in calls:
            call.exchange()
    worker.run(lambda: len(lines(audit)) == 2 * RING_BATCH)
    assert not worker.wheels.ring.waiting
    assert [line["id"] for line in lines(audit)[::2]] == [f"c.{number}" for number in range(1, RING_BATCH + 1)]
    assert {(line["via"], line["status"], line["bytesRequest"]) for line in lines(audit)} == {("kernel", 200, len(GET))}
    carried = {labels[0]: count for labels, count in worker.metrics.kernel_bytes.items()}
    assert carried == {"request": 2 * RING_BATCH * len(GET), "reply": 2 * RING_BATCH * len(HELLO)}


def test_what_is_finished_is_recorded_before_the_wheel_is_taken(path: KernelRig, worker: Worker, audit: Path) -> None:
    call = path.carried()
    told = worker.watch(call)
    call.exchange()
    call.exchange()
    worker.wheels.finish()
    told.flow.skip(2)
    told.play.client(GET).server(HELLO)
    assert told.play.records[-1].id == "c.3"
    worker.run(lambda: [line["id"] for line in lines(audit)] == ["c.1", "c.2"])


def test_a_call_that_policy_denies_is_recorded_and_ends_its_connection_alone(
    path: KernelRig, worker: Worker, audit: Path
) -> None:
    wrong, right = path.carried(), path.carried()
    told_wrong, told_right = worker.watch(wrong), worker.watch(right)
    told_wrong.play.policy.denies = lambda call: True
    for call in (wrong, right, wrong):
        call.exchange()
    worker.wheels.finish()
    worker.run(lambda: bool(told_wrong.faults))
    assert [type(fault) for fault in told_wrong.faults] == [PermissionError, PermissionError]
    assert told_right.faults == []
    worker.run(lambda: [line["verdict"] for line in lines(audit)] == ["DENIED", "ALLOWED", "DENIED"])


def test_an_entry_of_another_connection_costs_one_record_and_is_told(path: KernelRig, worker: Worker, audit: Path) -> None:
    """Whatever has mixed them up: no record names a connection that it is not of."""
    call, other = path.carried(), path.carried()
    told = worker.watch(call)
    for one in (call, other, call):
        one.exchange()
    worker.wheels.own[other.wheel.index] = call.wheel  # its number, with another client
    assert worker.wheels.trouble is None
    worker.wheels.start()
    worker.run(lambda: [line["id"] for line in lines(audit)] == ["c.1", "c.2"])
    assert told.faults == []
    assert f"of the socket {other.cookie:x} is nobody's" in (worker.wheels.trouble or "")
    assert [(list(labels), count) for labels, count in worker.metrics.limits.items()] == [(["RING_ENTRY"], 1)]
    assert not worker.wheels.ring.waiting


def test_an_entry_under_a_policy_that_was_never_lent_costs_one_record(path: KernelRig, worker: Worker, audit: Path) -> None:
    call, right = path.carried(), path.carried()
    worker.watch(call).flow._loans.clear()
    worker.watch(right)
    for one in (call, right):
        one.exchange()
    worker.wheels.start()
    worker.run(lambda: len(lines(audit)) == 1)
    assert "under generation 1" in (worker.wheels.trouble or "")


def test_whatever_goes_wrong_in_a_turn_the_ring_is_read_on(
    path: KernelRig, worker: Worker, audit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = path.carried()
    worker.watch(call)
    monkeypatch.setattr(worker.wheels._metrics.kernel_bytes, "add", lambda *_: 1 / 0)
    worker.wheels.start()
    call.exchange()
    worker.run(lambda: len(worker.complaints) > 0)
    assert "cannot be read: ZeroDivisionError" in (worker.wheels.trouble or "")
    monkeypatch.undo()
    call.exchange()
    worker.run(lambda: [line["id"] for line in lines(audit)] == ["c.1", "c.2"])


def test_a_connection_whose_wheel_cannot_be_taken_still_ends(path: KernelRig, worker: Worker) -> None:
    call = path.carried()
    worker.watch(call)
    call.exchange()

    def broken(_: bytes) -> int:
        return abi.Wheel.WHEEL_BUSY

    path.wheels.take, take = broken, path.wheels.take  # type: ignore[assignment]
    with pytest.raises(BpfError):
        call.wheel.close()
    path.wheels.take = take
    assert [wheel.index for _, wheel in path.wheels._leaving] or call.wheel.index in path.wheels._free


def test_taking_the_wheel_leaves_what_others_have_in_the_ring(path: KernelRig, worker: Worker, audit: Path) -> None:
    """Its relay need not wait for their records, nor for its own: numbers and policy come with them."""
    busy, call = worker_call(worker, path), worker_call(worker, path)
    for _ in range(40):
        busy.exchange()
    call.exchange()
    waiting = worker.wheels.ring.waiting
    assert waiting > RING_SHORT
    assert call.take() is None
    assert worker.wheels.ring.waiting == waiting
    told = call.wheel.rider
    assert isinstance(told, Told)
    told.flow.skip(call.wheel.answered)
    told.play.client(GET).server(HELLO)
    assert told.play.records[-1].id == "c.2"
    worker.wheels.start()
    worker.run(lambda: len(lines(audit)) == 41)
    assert lines(audit)[-1]["id"] == "c.1"


def test_a_number_is_used_again_when_its_records_are_written(path: KernelRig, worker: Worker, audit: Path) -> None:
    call = worker_call(worker, path)
    call.exchange()
    call.wheel.close()
    free = list(worker.wheels._free)
    assert call.wheel.index not in free
    worker.wheels.start()
    worker.run(lambda: call.wheel.index in worker.wheels._free)
    assert [line["id"] for line in lines(audit)] == ["c.1"]
    assert call.wheel.index not in worker.wheels.own


def test_a_connection_that_is_over_waits_for_no_garbage_collection(path: KernelRig, worker: Worker) -> None:
    call = worker_call(worker, path)
    rider = weakref.ref(worker.wheels.own[call.wheel.index].rider)
    call.exchange()
    call.wheel.close()
    gc.disable()
    try:
        worker.wheels.start()
        worker.run(lambda: call.wheel.index in worker.wheels._free)
        assert rider() is None
    finally:
        gc.enable()


def test_without_room_for_records_nobody_is_carried_until_there_is_some(path: KernelRig, tmp_path: Path) -> None:
    fifo = tmp_path / "stuck"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = AuditWriter(fifo, capacity=2 * PLACE_BYTES)
    filler = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(filler, b"\n" * 4096)
    os.close(filler)
    call = path.carried()
    with contextlib.closing(Worker(path, writer)) as worker:
        told = worker.watch(call)
        worker.wheels.start()
        for _ in range(5):
            call.exchange()
        worker.run(lambda: worker.wheels.stuck)
        assert told.taken == 1
        assert writer.depth == 2
        assert worker.wheels.ring.waiting
        received = b""

        def read_on() -> bool:
            nonlocal received
            with contextlib.suppress(BlockingIOError):
                received += os.read(reader, 1 << 20).lstrip(b"\n")
            return received.count(b"\n") == 5 and not worker.wheels.stuck

        worker.run(read_on)
        assert [json.loads(line)["id"] for line in received.splitlines()] == [f"c.{number}" for number in range(1, 6)]
    assert writer.close(PATIENCE)
    os.close(reader)


# What a dead worker has left.


def test_a_successor_records_what_was_finished_and_what_was_open_and_clears_all_places(
    path: KernelRig, worker: Worker, audit: Path
) -> None:
    """But nothing of calls of which the dead worker had the wheel again: they were its own."""
    play = Dialogue(Http1Parser())
    finished, open_call, taken = calls = [path.call() for _ in range(3)]
    for call in calls:
        call.wheel._legacy = Legacy(Origin("127.0.0.1", 80, CLIENT, SERVER, call.cookie, 1, True), "127.0.0.1:1")
        assert call.let_go()
        call.exchange()
    for call in (open_call, taken):
        call.client.sendall(GET)
        assert receive(call.server, len(GET)) == GET
    assert taken.take() is not None
    with contextlib.closing(Worker(path, worker.audit)) as successor:
        scenes = {}

        def orphan(legacy: Legacy) -> Orphan:
            scene = msgspec.structs.replace(play.flow._scene, connection=f"{legacy.origin.cookie:x}")
            scenes[legacy.origin.cookie] = legacy.source
            return Orphan(scene, Http1Parser())

        successor.wheels.inherit(orphan)
        assert scenes == {call.cookie: "127.0.0.1:1" for call in calls}
        successor.wheels.start()
        indexes = {call.wheel.index for call in calls}
        assert not indexes & set(successor.wheels._free), "not before their records are written"
        successor.run(lambda: indexes <= set(successor.wheels._free))
        assert [line["id"] for line in lines(audit)] == [f"{call.cookie:x}.1" for call in calls]
        assert [(record.id, record.reason) for record in play.records] == [(f"{open_call.cookie:x}.2", "worker-died")]
        for call in calls:
            assert call.state is abi.Wheel.WHEEL_OFF
            assert path.wheels.callers.get(call.cookie.to_bytes(8, sys.byteorder)) is None
        assert successor.complaints == []
        assert successor.wheels.trouble is None
        successor.wheels.inherit(orphan)
        assert len(scenes) == 3
    assert finished.relayed_nothing()


def test_a_successor_forgets_the_servers_of_connections_that_the_kernel_never_had(path: KernelRig, worker: Worker) -> None:
    """Its own connections with these numbers have others."""
    call = path.call()
    assert call.wheel.reaches_server
    with contextlib.closing(Worker(path, worker.audit)) as successor:
        successor.wheels.inherit(lambda legacy: pytest.fail("nothing of it was ever carried"))
        assert call.wheel.index in successor.wheels._free
    assert not call.wheel.reaches_server


# Automata.


def test_the_automaton_of_a_pair_is_made_once_and_in_the_background(path: KernelRig, worker: Worker) -> None:
    one, other = pair(1), pair(1)
    assert worker.wheels.table(one) is None
    worker.run(lambda: worker.wheels.table(one) is not None)
    assert worker.wheels.table(one) == worker.wheels.table(one)
    assert worker.wheels.table(other) is None
    worker.run(lambda: worker.wheels.table(other) is not None)
    assert worker.wheels.table(other) != worker.wheels.table(one)


def test_a_pair_of_which_nothing_can_be_proven_never_has_an_automaton(path: KernelRig, worker: Worker) -> None:
    hopeless, one = pair(1, port=81), pair(1)
    assert worker.wheels.table(hopeless) is None
    assert worker.wheels.table(one) is None
    worker.run(lambda: worker.wheels.table(one) is not None)  # they are made one after another
    assert worker.wheels.table(hopeless) is None


def test_a_pair_of_another_generation_than_the_kernels_has_none(path: KernelRig, worker: Worker) -> None:
    for late_or_early in (pair(0), pair(2)):
        assert worker.wheels.table(late_or_early) is None
    assert not worker.wheels._making


def test_a_new_generation_starts_with_all_the_room(path: KernelRig, worker: Worker) -> None:
    old = pair(1)
    worker.wheels.table(old)
    worker.run(lambda: worker.wheels.table(old) is not None)
    first = worker.wheels.table(old)
    path.install(rule(CLIENT, SERVER, REDIRECT), free(SERVER))
    new = pair(2)
    assert worker.wheels.table(old) is None
    worker.wheels.table(new)
    worker.run(lambda: worker.wheels.table(new) is not None)
    assert worker.wheels.table(new) == first
