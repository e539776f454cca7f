"""Whatever a client sends and a broker answers, nothing about a denied topic reaches the broker, and nothing escapes.

The whole parser with the real flow and a real policy of one topic; kafka-python and kio read what the broker got.
"""

import os
from collections import Counter

import pytest

from .kafka_conversations import Played, check, one_topic

SOAK = os.environ.get("SLUICE_SOAK") == "1"
CONNECTIONS = 100_000 if SOAK else 2_000
# Seconds of processor time. A step walks a small frame, or refuses it.
SLOWEST = 0.5
PER_BYTE = 20e-6
pytestmark = pytest.mark.timeout(3600 if SOAK else 120)


def test_no_mutation_brings_a_denied_topic_to_the_broker_and_all_replies_are_in_order() -> None:
    seen = Counter[str]()
    pair = one_topic()
    slowest = spent = 0.0
    length = 0
    for seed in range(CONNECTIONS):
        played = Played(pair, f"connection {seed}")
        try:
            seen.update(check(played))
        except AssertionError as error:
            error.add_note(f"seed {seed}: {played.sent.hex()}")
            raise
        slowest, spent, length = max(slowest, played.slowest), spent + played.spent, length + len(played.sent)
    print(f"{dict(seen)}; slowest step {slowest * 1e3:.1f} ms, {spent / length * 1e6:.2f} us per byte")
    # The test sees something of each kind.
    for what in ("frames passed", "judged by an oracle", "topics passed", "replies", "ALLOWED", "DENIED", "PARTIAL"):
        assert seen[what] > CONNECTIONS / 20, what
    assert slowest < SLOWEST
    assert spent / length < PER_BYTE
