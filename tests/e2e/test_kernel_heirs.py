"""What a worker that was killed has left in the kernel: its successor records it as that one's, and nothing as its own.

These tests are about the kernel path alone, and ask for agents whose workers are processes.
"""

import contextlib
import os
import signal
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients import hammering
from tests.e2e.test_workers import processes
from tests.harness import Server, Sluice, Workload, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]

pytestmark = pytest.mark.only("kernel", "about the kernel path alone")

SOAK = os.environ.get("SLUICE_SOAK") == "1"
KILLS = 6 if SOAK else 2


def documents(clients: list[Workload], orders: Workload, port: int) -> str:
    text = orders.document()
    for client in clients:
        policy = http_policy(orders, client, port, '[{method: GET, path: "/.*"}]')
        text += client.document() + policy.replace(f"name: {orders.name}-api", f"name: {client.name}-calls")
    return text


def ask(client: socket.socket, path: str) -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n".encode())


def until_carried(agent: Sluice, client: socket.socket, path: str) -> int:
    """Make calls until the kernel has every connection; how many there were."""
    for made in range(1, 200):
        ask(client, path)
        assert read_reply(client)[0] == 200
        if {one["via"] for one in agent.get("/connections")["connections"]} == {"kernel"}:
            return made
    raise AssertionError("the kernel never has the connection")


class Hesitant:
    """A server that answers everything but ``/wait``."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def serve(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            if b"/wait" in data:
                self.asked.set()
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n")


def of_call(record: dict[str, Any]) -> tuple[str, int]:
    connection, _, number = record["id"].rpartition(".")
    return connection, int(number)


def test_calls_that_a_dead_worker_did_not_live_to_record_are_recorded_as_its_own(
    web: Workload, orders: Workload, workload: Callable[..., Workload], serve: MakeServer, sluice: MakeSluice
) -> None:
    """It is stopped, so that it sees none of them, and then killed. Behind it, numbers of connections are used again."""
    shop = workload("shop")
    hesitant = Hesitant()
    server = serve(orders, hesitant.serve)
    agent = sluice(documents([web, shop], orders, server.port), "--workers", "2")
    made = {}
    clients = {}
    for who in (web, shop):
        clients[who.name] = who.connect(server.port)
        made[who.name] = until_carried(agent, clients[who.name], f"/{who.name}")
    agent.wait_records(sum(made.values()))
    before = processes(agent)
    for worker in before:
        os.kill(worker, signal.SIGSTOP)
    for name, client in clients.items():
        for number in range(30):
            ask(client, f"/{name}/unseen/{number}")
            assert read_reply(client)[0] == 200
    ask(clients[web.name], f"/{web.name}/wait")
    assert hesitant.asked.wait(10)
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    for client in clients.values():
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
    eventually(lambda: len(processes(agent)) == 2 and agent.get("/healthz")["ok"], "two new workers")
    for who in (shop, web):
        with who.connect(server.port) as client:
            made[f"{who.name}/later"] = until_carried(agent, client, f"/{who.name}/later")
    records = agent.wait_records(sum(made.values()) + 61)
    assert len({record["id"] for record in records}) == len(records) == sum(made.values()) + 61
    for record in records:
        assert record["subject"]["workload"] == record["path"].split("/")[1]
    sources = defaultdict(set)
    for record in records:
        sources[of_call(record)[0]].add(record["source"])
    assert [len(of_one) for of_one in sources.values()] == [1] * 4, "every connection has its own id"
    unseen = [record for record in records if "/unseen/" in record["path"]]
    assert {(record["status"], record["via"], record["reason"]) for record in unseen} == {(200, "kernel", "rule-matched")}
    for name in clients:
        told = [(of_call(record)[1], record["path"]) for record in unseen if record["path"].startswith(f"/{name}/")]
        assert told == [(made[name] + number, f"/{name}/unseen/{number}") for number in range(30)]
    (waited,) = (record for record in records if record["path"].endswith("/wait"))
    assert (waited["status"], waited["reason"], waited["verdict"]) == ("reset", "worker-died", "ALLOWED")
    assert of_call(waited)[1] == made[web.name] + 30
    assert "Traceback" not in agent.log.read_text()


def test_no_record_names_another_connection_and_nothing_hangs_however_often_workers_die(
    web: Workload, orders: Workload, workload: Callable[..., Workload], serve: MakeServer, sluice: MakeSluice
) -> None:
    """Two workloads call without pause, each call with a path of its own, while workers are killed."""
    shop = workload("shop")
    server = serve(orders)
    agent = sluice(documents([web, shop], orders, server.port), "--workers", "2")
    completed = 0
    with (
        hammering(web, server.port, f"/{web.name}", connections=4) as one,
        hammering(shop, server.port, f"/{shop.name}", connections=4) as other,
    ):
        for _ in range(KILLS):
            before = agent.metric("sluice_kernel_bytes_total")
            eventually(lambda before=before: agent.metric("sluice_kernel_bytes_total") != before, "calls are carried")
            victims = processes(agent)
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            eventually(
                lambda victims=victims: (
                    len(processes(agent)) == 2 and not set(processes(agent)) & set(victims) and agent.get("/healthz")["ok"]
                ),
                "two new workers",
            )
        for hammer in (one, other):
            completed += hammer.stop()["completed"]
    eventually(lambda: agent.metric("sluice_connections") == 0, "no connection hangs")
    eventually(lambda: agent.metric("sluice_audit_queue") == 0, "every record is written")
    records = agent.records()
    connections: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for record in records:
        _, name, call = record["path"].split("/")
        assert record["subject"]["workload"] == name, "under its own subject"
        connections[of_call(record)[0]].add((name, call.partition("-")[0]))
    assert max(map(len, connections.values())) == 1, "under its own connection's id"
    assert agent.get("/healthz")["ok"]
    assert "Traceback" not in agent.log.read_text()
    told = Counter(record["path"] for record in records)
    lost = completed - len(told)
    print(f"{completed} calls, {len(told)} recorded, {sum(told.values()) - len(told)} twice, {lost} not")
    assert lost < 0.02 * completed
