"""Kafka connections that the kernel has: when it carries, when not, and that nobody can tell but by `via`.

The same tests run with either datapath; with `--datapath kernel` most of the calls must have been carried.
"""

import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.test_kafka_torture import (
    TOPIC_DENIED,
    Broker,
    documents,
    fetch,
    fetched,
    produce,
    produced,
    read_exactly,
)
from tests.harness import Server, Sluice, Workload, eventually

WARM = 40  # calls by which the kernel has a connection, whatever the client does
CALLS = 2_000

MakeServer = Callable[..., Server]
MakeSluice = Callable[..., Sluice]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def port(broker: Broker, orders: Workload, serve: MakeServer) -> int:
    return serve(orders, broker.serve).port


def rested(client: socket.socket, number: int, size: int = 100) -> None:
    """One produced record, with nothing else under way."""
    client.sendall(produce(number, "orders", size))
    assert read_exactly(client, len(produced(number, "orders"))) == produced(number, "orders")


def ways(records: list[dict[str, Any]]) -> Counter[str]:
    return Counter(record["via"] for record in records)


def mostly_carried(records: list[dict[str, Any]], share: float = 0.9) -> bool:
    """By the kernel, if it is there at all."""
    return (ways(records)["kernel"] > share * len(records)) is (Sluice.datapath == "kernel")


def test_a_client_that_rests_between_calls_is_carried_from_the_second_call_on(
    web: Workload, orders: Workload, sluice: MakeSluice, port: int, broker: Broker
) -> None:
    agent = sluice(documents(web, orders, port))
    with web.connect(port) as client:
        for number in range(200):
            rested(client, number, 1 + number * 1000 % 300_000)
        records = agent.wait_records(200)
    assert records[0]["via"] == "relay"
    assert mostly_carried(records)
    assert [record["id"].partition(".")[2] for record in records] == [str(number) for number in range(200)]
    assert broker.wrong == []


@pytest.mark.parametrize("window", [2, 5, 16])
def test_a_client_that_never_rests_is_carried_as_well(
    web: Workload, orders: Workload, sluice: MakeSluice, port: int, broker: Broker, window: int
) -> None:
    agent = sluice(documents(web, orders, port))
    room = threading.Semaphore(window)
    with web.connect(port) as client:

        def send() -> None:
            for number in range(CALLS):
                room.acquire()
                client.sendall(produce(number, "orders", 1000))

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        for number in range(CALLS):
            assert read_exactly(client, len(produced(number, "orders"))) == produced(number, "orders")
            room.release()
        sender.join()
        records = agent.wait_records(CALLS)
    assert mostly_carried(records, 0.5)
    assert broker.wrong == []


def test_a_client_that_reads_nothing_before_it_has_said_all_gets_all_replies(
    web: Workload, orders: Workload, sluice: MakeSluice, port: int, broker: Broker
) -> None:
    """Without a window it does not wait for us when replies are kept back."""
    agent = sluice(documents(web, orders, port))
    with web.connect(port) as client:
        sender = threading.Thread(
            target=lambda: [client.sendall(produce(number, "orders", 5000)) for number in range(CALLS)], daemon=True
        )
        sender.start()
        for number in range(CALLS):
            assert read_exactly(client, len(produced(number, "orders"))) == produced(number, "orders")
        sender.join()
        agent.wait_records(CALLS)
    assert broker.wrong == []


def test_a_denial_in_the_middle_of_carried_calls_comes_in_its_turn(
    web: Workload, orders: Workload, sluice: MakeSluice, port: int
) -> None:
    agent = sluice(documents(web, orders, port))
    with web.connect(port) as client:
        for number in range(WARM):
            rested(client, number)
        for turn in range(20):
            numbers = range(WARM + turn * 4, WARM + turn * 4 + 4)
            topics = ("orders", "orders", "secrets", "orders")
            for number, topic in zip(numbers, topics, strict=True):
                client.sendall(produce(number, topic, 100))
            for number, topic in zip(numbers, topics, strict=True):
                reply = read_exactly(client, len(produced(number, topic)))
                assert reply is not None
                if topic == "orders":
                    assert reply == produced(number, topic)
                else:
                    assert reply[4:8] == number.to_bytes(4, "big")
                    assert TOPIC_DENIED.to_bytes(2, "big") in reply[8:]
            rested(client, 10_000 + turn)
        records = agent.wait_records(WARM + 20 * 5)
    assert Counter(record["verdict"] for record in records) == {"ALLOWED": WARM + 80, "DENIED": 20}


def test_new_rules_reach_a_carried_connection_at_its_next_frame(
    web: Workload, orders: Workload, sluice: MakeSluice, port: int
) -> None:
    allowed = documents(web, orders, port)
    denied = allowed.replace('{"role": "produce", "topic": "orders"}, ', "")
    assert denied != allowed
    agent = sluice(allowed)
    with web.connect(port) as client:
        for number in range(WARM):
            rested(client, number)
        agent.reload(denied)
        client.sendall(produce(1000, "orders", 100))
        reply = read_exactly(client, len(produced(1000, "orders")))
        assert reply is not None
        assert reply != produced(1000, "orders")
        assert reply[4:8] == (1000).to_bytes(4, "big")
        agent.reload(allowed)
        for number in range(WARM):
            rested(client, number)
        records = agent.wait_records(2 * WARM + 1)
    assert [record["verdict"] for record in records].count("DENIED") == 1
    assert mostly_carried(records, 0.8)


def test_the_errors_of_a_broker_are_in_the_records_of_carried_calls(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    def refuse(sock: socket.socket) -> None:
        number = 0
        while read_exactly(sock, len(produce(number, "orders", 100))) is not None:
            sock.sendall(produced(number, "orders", error=number % 3))
            number += 1

    port = serve(orders, refuse).port
    agent = sluice(documents(web, orders, port))
    with web.connect(port) as client:
        for number in range(300):
            client.sendall(produce(number, "orders", 100))
            assert read_exactly(client, len(produced(number, "orders"))) == produced(number, "orders", error=number % 3)
        records = agent.wait_records(300)
    assert [record["status"] for record in records] == [f"kafka:{number % 3}" for number in range(300)]
    assert mostly_carried(records)


def test_calls_of_a_second_are_counted_in_one_record_where_a_rule_says_so(
    web: Workload, orders: Workload, sluice: MakeSluice, port: int
) -> None:
    policy = documents(web, orders, port)
    agent = sluice(policy.replace('"topic": "orders"}', '"topic": "orders", "record": "summary"}'))
    with web.connect(port) as client:
        for number in range(500):
            rested(client, number)
    eventually(lambda: sum(record.get("calls", 0) for record in agent.records()) == 500, "every call is counted")
    records = agent.records()
    assert len(records) < 30
    assert sum(record["bytesRequest"] for record in records) == 500 * len(produce(0, "orders", 100))
    assert sum(record["bytesReply"] for record in records) == 500 * len(produced(0, "orders"))


def test_what_is_open_when_a_client_resets_has_its_records(
    web: Workload, orders: Workload, serve: MakeServer, sluice: MakeSluice
) -> None:
    heard: list[int] = []

    def answer_until_silent(sock: socket.socket) -> None:
        while read_exactly(sock, len(produce(0, "orders", 100))) is not None:
            if len(heard) < WARM:
                sock.sendall(produced(len(heard), "orders"))
            heard.append(len(heard))

    port = serve(orders, answer_until_silent).port
    agent = sluice(documents(web, orders, port))
    with web.connect(port) as client:
        for number in range(WARM):
            rested(client, number)
        for number in range(WARM, WARM + 5):
            client.sendall(produce(number, "orders", 100))
        eventually(lambda: len(heard) == WARM + 5, "the server has them")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    records = agent.wait_records(WARM + 5)
    assert [record["status"] for record in records] == ["kafka:0"] * WARM + ["reset"] * 5
    assert [record["reason"] for record in records[-5:]] == ["client-reset"] * 5
    assert {record["bytesRequest"] for record in records} == {len(produce(0, "orders", 100))}


def test_a_consumer_is_carried_whatever_it_asks_for_next(
    web: Workload, orders: Workload, sluice: MakeSluice, port: int, broker: Broker
) -> None:
    """Offsets and sizes change with every request, topics and partitions do not."""
    agent = sluice(documents(web, orders, port))
    with web.connect(port) as client:
        for number in range(200):
            size = number * 7919 % 200_000
            client.sendall(fetch(number, "orders", size))
            assert read_exactly(client, len(fetched(number, "orders", size))) == fetched(number, "orders", size)
        records = agent.wait_records(200)
    assert {(record["status"], *record["resources"]) for record in records} == {("kafka:0", "topic:orders")}
    assert mostly_carried(records)
    assert broker.wrong == []
