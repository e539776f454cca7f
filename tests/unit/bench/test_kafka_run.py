"""Of the Kafka part: what is counted in the audit log, and the policy that is enforced while measuring."""

from pathlib import Path

import yaml

from bench.contenders import HERE, LISTEN, POLICED_SINK, POLICED_WEB, SINK, WEB
from bench.kafka_run import ALLOWED, DENIED, POLICED, SCENARIOS, UNPOLICED, Record, Recorded, kernel_share, read_log, tally
from bench.run import KAFKA, Visit


def record(method: str = "Produce", client: str = "a", verdict: str = "ALLOWED", via: str = "relay", calls: int = 1) -> Record:
    return Record(method, client, verdict, via, calls)


def visit(lines: int) -> Visit:
    return Visit(0, "unpinned", "sluice", lines, finished=100, broken_off=16, others_percent=0.0, part=KAFKA)


def test_a_record_counts_for_all_the_calls_that_it_stands_for() -> None:
    assert tally([record(calls=7), record(calls=2)])["a"].calls == 9


def test_clients_are_told_apart() -> None:
    assert {name: found.calls for name, found in tally([record(), record(client="b", calls=3)]).items()} == {"a": 1, "b": 3}


def test_writing_is_produce_and_reading_is_fetch() -> None:
    records = [record("Produce"), record("Fetch", calls=2), record("Metadata"), record("ApiVersions")]
    assert tally(records)["a"] == Recorded(calls=5, writing=1, reading=2)


def test_a_denial_in_part_is_a_denial() -> None:
    assert tally([record(verdict="DENIED"), record(verdict="PARTIAL"), record()])["a"].denied == 2


def test_the_share_of_the_kernel_is_that_of_the_calls_that_move_records() -> None:
    writing = [record(via="kernel", calls=3), record(via="relay"), record("Metadata", via="relay", calls=10)]
    reading = [record("Fetch", via="relay", calls=2)]
    assert kernel_share(tally([*writing, *reading])["a"]) == {"write_by_kernel": 75.0, "read_by_kernel": 0.0}


def test_of_nothing_the_kernel_has_no_share() -> None:
    assert kernel_share(Recorded()) == {}


def test_the_log_is_read_as_the_agent_writes_it(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(
        '{"id":"1.0","method":"Produce","clientId":"a","resources":["topic:bench-1"],"verdict":"ALLOWED","via":"kernel"}\n'
        '{"id":"1.1","method":"Fetch","clientId":"a","verdict":"ALLOWED","calls":4,"via":"relay"}\n'
        '{"id":"2.0","protocol":"tcp","verdict":"DENIED"}\n'
    )
    assert read_log(log) == {"a": Recorded(calls=5, writing=1, written_by_kernel=1, reading=4), "": Recorded(calls=1, denied=1)}


def test_without_a_proxy_there_is_no_log(tmp_path: Path) -> None:
    assert read_log(tmp_path / "audit.log") == {}


def test_a_call_that_a_client_saw_answered_and_no_record_has_makes_a_visit_incomplete() -> None:
    assert [visit(lines).complete for lines in (99, 100, 116, 117)] == [False, True, True, False]


def test_clients_may_use_the_topics_of_the_bench_on_the_policed_port_and_nothing_else() -> None:
    documents = list(yaml.safe_load_all((HERE / "kafka_policy.yaml").read_text()))
    [policy] = [document["spec"] for document in documents if document["kind"] == "ApiPolicy"]
    clients, itself, unpoliced = policy["ingress"]
    [entry] = clients["toPorts"]
    assert entry["ports"] == [{"port": str(POLICED), "protocol": "TCP"}]
    assert {(rule["role"], rule["topicPrefix"]) for rule in entry["rules"]["kafka"]} == {
        ("produce", "bench-"),
        ("consume", "bench-"),
    }
    assert "toPorts" not in itself
    assert unpoliced["toPorts"] == [{"ports": [{"port": str(UNPOLICED), "protocol": "TCP"}]}]


def test_what_is_measured_is_allowed_and_what_must_be_refused_is_not() -> None:
    assert all(topic.startswith("bench-") for topic in [ALLOWED, *(scenario.topic for scenario in SCENARIOS)])
    assert not DENIED.startswith("bench-")


def test_the_broker_has_ports_of_its_own() -> None:
    assert len({WEB, SINK, LISTEN, POLICED_WEB, POLICED_SINK, UNPOLICED, POLICED}) == 7


def test_scenarios_have_names_and_titles_of_their_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len({scenario.title for scenario in SCENARIOS}) == len(SCENARIOS)
