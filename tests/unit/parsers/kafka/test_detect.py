"""What is taken for Kafka where other protocols may pass: in doubt it is, because then rules apply."""

import pytest

from parsers.kafka.detect import Watch, detect, detect_surely
from parsers.kafka.layouts import REQUESTS


@pytest.mark.parametrize("key", REQUESTS)
def test_every_request_of_every_version_is_kafka(key: int) -> None:
    for version in range(REQUESTS[key].layouts[-1][1] + 5):
        for size in (10, 1000, 104_857_600):
            data = size.to_bytes(4, "big") + key.to_bytes(2, "big") + version.to_bytes(2, "big")
            assert detect(data, False) == detect_surely(data, False) == "kafka"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\x16\x03\x01\x00\x00\x01\x00\x00", b"\xff" * 8]
)
def test_http_and_tls_are_not(data: bytes) -> None:
    assert detect(data, False) == detect_surely(data, False) == "unknown"


def test_in_audit_mode_what_no_broker_of_today_knows_is_another_protocol() -> None:
    """PostgreSQL, for instance: nothing may be refused there for its protocol."""
    assert detect_surely(b"\0\0\0\x08\x04\xd2\x16\x2f", False) == "unknown"
    assert detect_surely(b"\0\0\0\x08\x04", False) is None
    assert detect_surely(b"\0\0\0\x08\x04", True) == "unknown"


def test_a_frame_is_kafka_by_its_size_alone() -> None:
    """Old clients send SASL tokens without a header, and their requests behind them; the broker's limit can be raised."""
    assert detect(b"\0\0\x02\0" + b"\x60\x82\x01\xf0", False) == "kafka"
    assert detect((300_000_000).to_bytes(4, "big"), False) == "kafka"


def test_too_few_bytes_say_nothing_before_the_end() -> None:
    assert detect(b"\0\0\0", False) is None
    assert detect(b"\0\0\0", True) == "unknown"


@pytest.mark.parametrize("split", range(6))
def test_a_client_that_begins_behind_the_server_is_known_by_the_same(split: int) -> None:
    watch, data = Watch(), b"\0\0\0\x10\0\x12"
    places = [watch.read(data[:split]), watch.read(data[split:])]
    assert (places[0] if split > 3 else split + (places[1] or 0)) == 3
    other = Watch()
    assert other.read(b"\x16\x03\x01") is None
    assert not other.over
    assert other.read(b"\0\0\0\0\0") is None
    assert other.over
