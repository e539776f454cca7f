"""The agent's numbers are exact, add up over workers, and cannot be grown by traffic."""

import json
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.metrics import DURATION_BUCKETS, MAX_CALL_SERIES, MAX_TOKEN_SERIES, OTHER, Metrics, Snapshot, merge, render

ALLOWED = ("http/1.1", "ALLOWED", "relay", "web", "orders")


def scraped(snapshot: Snapshot) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus reads: value by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(render(snapshot).decode())
        for sample in family.samples
    }


def value(snapshot: Snapshot, name: str, **labels: str) -> float:
    return scraped(snapshot)[name, frozenset(labels.items())]


def test_every_metric_of_the_public_interface_is_there_under_its_name_and_labels() -> None:
    metrics = Metrics()
    metrics.calls.add(ALLOWED, 0.02)
    metrics.connections.add(("open",), 3)
    metrics.connections.add(("open",), -1)
    metrics.relayed_bytes.add(("request",), 100)
    metrics.kernel_bytes.add(("reply",), 200)
    metrics.kernel_fallbacks.add(("not-proven",))
    metrics.limits.add(("MAX_HEAD_BYTES",))
    metrics.audit_queue = 5
    metrics.policy_generation = 7
    snapshot = metrics.snapshot()
    labels = {"protocol": "http/1.1", "verdict": "ALLOWED", "via": "relay", "subject": "web", "peer": "orders"}
    assert value(snapshot, "sluice_calls_total", **labels) == 1
    assert value(snapshot, "sluice_call_duration_seconds_count", protocol="http/1.1", via="relay") == 1
    assert value(snapshot, "sluice_connections", state="open") == 2
    assert value(snapshot, "sluice_relayed_bytes_total", direction="request") == 100
    assert value(snapshot, "sluice_kernel_bytes_total", direction="reply") == 200
    assert value(snapshot, "sluice_kernel_fallbacks_total", reason="not-proven") == 1
    assert value(snapshot, "sluice_limits_total", limit="MAX_HEAD_BYTES") == 1
    assert value(snapshot, "sluice_audit_queue") == 5
    assert value(snapshot, "sluice_policy_generation") == 7


def test_an_agent_without_policy_has_no_generation_to_show() -> None:
    assert ("sluice_policy_generation", frozenset()) not in scraped(Metrics().snapshot())


@pytest.mark.parametrize(
    ("seconds", "first_bucket"),
    [(0.0, "0.0001"), (0.0001, "0.0001"), (0.00011, "0.00025"), (10.0, "10.0"), (10.1, "+Inf")],
)
def test_a_duration_counts_in_the_bucket_of_its_upper_bound_and_in_all_above(seconds: float, first_bucket: str) -> None:
    metrics = Metrics()
    metrics.calls.add(ALLOWED, seconds)
    counts = [
        value(metrics.snapshot(), "sluice_call_duration_seconds_bucket", protocol="http/1.1", via="relay", le=bound)
        for bound in [*map(str, DURATION_BUCKETS), "+Inf"]
    ]
    at = [*map(str, DURATION_BUCKETS), "+Inf"].index(first_bucket)
    assert counts == [0] * at + [1] * (len(counts) - at)


def test_the_snapshots_of_workers_add_up_also_after_a_trip_as_json() -> None:
    workers = []
    for generation in (4, 3):
        metrics = Metrics()
        metrics.calls.add(ALLOWED, 0.5)
        metrics.connections.add(("open",), 2)
        metrics.audit_queue = 10
        metrics.policy_generation = generation
        workers.append(json.loads(json.dumps(metrics.snapshot())))
    workers.append(Metrics().snapshot())
    whole = merge(workers)
    assert whole["series"]["sluice_calls"] == [(list(ALLOWED), 2)]
    assert whole["series"]["sluice_connections"] == [(["open"], 4)]
    assert value(whole, "sluice_call_duration_seconds_sum", protocol="http/1.1", via="relay") == 1.0
    assert whole["audit_queue"] == 20
    # What every worker has reached; the third has not loaded anything yet, and does not hide the others.
    assert whole["policy_generation"] == 3


def test_a_snapshot_does_not_change_when_counting_goes_on() -> None:
    metrics = Metrics()
    metrics.calls.add(ALLOWED, 0.5)
    before = json.dumps(metrics.snapshot())
    snapshot = metrics.snapshot()
    metrics.calls.add(ALLOWED, 0.5)
    assert json.dumps(snapshot) == before


def test_label_values_cannot_break_out_of_their_line() -> None:
    metrics = Metrics()
    metrics.limits.add(('x"} 1\nsluice_forged_total 9\n\\',))
    assert value(metrics.snapshot(), "sluice_limits_total", limit='x"} 1\nsluice_forged_total 9\n\\') == 1


def test_calls_beyond_the_bound_keep_their_verdict_and_lose_their_names() -> None:
    metrics = Metrics()
    count = MAX_CALL_SERIES + 500
    for number in range(count):
        metrics.calls.add(("http/1.1", "DENIED", "relay", f"workload-{number}", "orders"), 0.001)
    calls = metrics.snapshot()["series"]["sluice_calls"]
    assert len(calls) == MAX_CALL_SERIES + 1
    assert {tuple(labels): n for labels, n in calls}["http/1.1", "DENIED", "relay", OTHER, OTHER] == 500
    assert sum(n for _, n in calls) == count


def test_no_label_can_grow_the_series_without_bound_and_nothing_is_lost() -> None:
    metrics = Metrics()
    for number in range(MAX_CALL_SERIES * 2):
        metrics.calls.add((f"protocol-{number}", "DENIED", f"via-{number}", "web", "orders"), 0.001)
        metrics.limits.add((f"limit-{number}",))
    whole = merge([metrics.snapshot(), metrics.snapshot()])
    assert len(whole["series"]["sluice_calls"]) <= MAX_CALL_SERIES + MAX_TOKEN_SERIES + 1
    assert len(whole["series"]["sluice_limits"]) == MAX_TOKEN_SERIES + 1
    assert len(whole["durations"]) == MAX_TOKEN_SERIES + 1
    assert sum(n for _, n in whole["series"]["sluice_calls"]) == MAX_CALL_SERIES * 4
    assert sum(sum(counts) for _, counts, _ in whole["durations"]) == MAX_CALL_SERIES * 4


def test_counting_does_not_import_the_prometheus_client() -> None:
    code = (
        "import sys; from proxy.metrics import Metrics; "
        "Metrics().calls.add(('http/1.1', 'ALLOWED', 'relay', 'a', 'b'), 0.1); "
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
