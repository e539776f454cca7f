"""What Kafka's performance tools print is read right, or not at all."""

import pytest

from bench.kafka import parse_calls, parse_consumer, parse_producer
from bench.processes import BenchError

PROGRESS = "251 records sent, 50.2 records/sec (0.48 MB/sec), 3.1 ms avg latency, 150.0 ms max latency.\n"
PRODUCER = (
    PROGRESS
    + """20000 records sent, 3812.4 records/sec (36.36 MB/sec), 561.25 ms avg latency, 720.00 ms max latency, \
580 ms 50th, 690 ms 95th, 711 ms 99th, 719 ms 99.9th.

Metric Name                                                                                   Value
producer-metrics:request-total:{client-id=kafka-java-100}                                   : 6256.000
producer-metrics:response-total:{client-id=kafka-java-100}                                  : 6255.000
producer-node-metrics:response-total:{client-id=kafka-java-100, node-id=node--1}            : 3.000
"""
)
CONSUMER = """start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, rebalance.time.ms, \
fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec
2026-11-24 10:06:20:114, 2026-11-24 10:06:24:001, 190.7349, 49.0699, 2000000, 514535.6316, 3400, 487, 391.6527, 4106776.1807

Metric Name                                                                                                          Value
consumer-metrics:response-total:{client-id=kafka-java-100}                                  : 110.000
consumer-node-metrics:response-total:{client-id=kafka-java-100, node-id=node-1}             : 98.000
"""


def test_the_producers_last_line_has_the_rate_and_the_99th_percentile() -> None:
    assert parse_producer(PRODUCER) == (36.36, 711.0)


@pytest.mark.parametrize("text", ["", "Exception in thread main", PROGRESS])
def test_a_producer_that_did_not_end_in_order_is_an_error(text: str) -> None:
    with pytest.raises(BenchError):
        parse_producer(text)


def test_the_consumers_rate_is_that_of_fetching_without_the_rebalance() -> None:
    assert parse_consumer(CONSUMER, 2_000_000) == 391.6527


@pytest.mark.parametrize(("text", "records"), [("", 1), ("a, b\nc, d", 1), (CONSUMER, 2_000_001)])
def test_a_consumer_that_did_not_read_all_is_an_error(text: str, records: int) -> None:
    with pytest.raises(BenchError):
        parse_consumer(text, records)


@pytest.mark.parametrize(("text", "calls"), [(PRODUCER, 6255), (CONSUMER, 110)])
def test_the_answered_requests_are_those_of_all_nodes_together(text: str, calls: int) -> None:
    assert parse_calls(text) == calls


def test_a_client_that_says_nothing_of_its_requests_is_an_error() -> None:
    with pytest.raises(BenchError):
        parse_calls(PROGRESS)
