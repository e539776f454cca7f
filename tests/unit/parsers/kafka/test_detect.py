"""What is taken for Kafka where other protocols may pass: in doubt it is, because then rules apply."""

import pytest

from parsers.kafka.detect import detect
from parsers.kafka.layouts import REQUESTS


@pytest.mark.parametrize("key", REQUESTS)
def test_every_request_of_every_version_is_kafka(key: int) -> None:
    for version in range(REQUESTS[key].layouts[-1][1] + 5):
        for size in (10, 1000, 104_857_600):
            assert detect(size.to_bytes(4, "big") + key.to_bytes(2, "big") + version.to_bytes(2, "big"), False) == "kafka"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"\x16\x03\x01\x00\x00\x01\x00\x00", b"\xff" * 8]
)
def test_http_and_tls_are_not(data: bytes) -> None:
    assert detect(data, False) == "unknown"


def test_too_few_bytes_say_nothing_before_the_end() -> None:
    assert detect(b"\0\0\0\x10\0\x12\0", False) is None
    assert detect(b"\0\0\0\x10\0\x12\0", True) == "unknown"
