"""One call, made and compared with what was expected of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from proxy.audit.query import client_of, server_of
from tests.demo.story import Answer, Call, Talk, Unseen
from tests.demo.system import System


@dataclass(frozen=True)
class Outcome:
    """What came of a call; ``record`` is None where the story expects none."""

    call: Call
    seen: int | str
    record: dict[str, Any] | None
    differences: tuple[str, ...]


def make(call: Call, system: System, index: int, previous: dict[str, Any] | None) -> Outcome:
    """Make ``call``. Its record, if it should have one, is number ``index``; ``previous`` is the last one of its client."""
    counted = isinstance(call.expected, Unseen) and call.expected.counted
    refusals = system.refusals() if counted else 0
    seen = call.client(system, call.who, call.method, call.url, call.headers)
    record = system.record(index) if isinstance(call.expected, Answer) else None
    differences = [*_differences(call, seen, record, previous)]
    if counted and system.refusals() != refusals + 1:
        differences.append(f"the metrics count {system.refusals() - refusals:.0f} refused connections, expected was 1")
    return Outcome(call, seen, record, tuple(differences))


@dataclass(frozen=True)
class Told:
    """What came of a talk; ``record`` is the one that says why."""

    talk: Talk
    seen: Any
    record: dict[str, Any] | None
    differences: tuple[str, ...]


def listen(talk: Talk, system: System) -> Told:
    """Let a Kafka client try it, and look at the records of its requests."""
    before = len(system.agent.records())
    seen = system.kafka(talk.who, talk.step)
    system.wait_for_records_of(talk.who)
    differences = [] if seen == talk.expected else [f"the client was told {seen}, expected was {talk.expected}"]
    records = [one for one in system.agent.records()[before:] if _name(client_of(one)[0]) == talk.who]
    found = next((one for one in records if all(one.get(name) == value for name, value in talk.record.items())), None)
    if found is None:
        told = [{name: one.get(name) for name in talk.record} for one in records]
        differences.append(f"no record has {dict(talk.record)}: {told}")
    return Told(talk, seen, found, tuple(differences))


def _differences(call: Call, seen: int | str, record: dict[str, Any] | None, previous: dict[str, Any] | None) -> Iterator[str]:
    if seen != call.expected.status:
        yield f"the client saw {seen}, expected was {call.expected.status}"
    if record is None or not isinstance(call.expected, Answer):
        return
    wanted = {"method": call.method, "path": call.target, **call.expected.facts}
    found = {name: record.get(name) for name in wanted}
    wanted |= {"caller": call.who, "called": call.server}
    found |= {"caller": _name(client_of(record)[0]), "called": _name(server_of(record)[0])}
    for name in wanted:
        if found[name] != wanted[name]:
            yield f"the record has {name} {found[name]!r}, expected was {wanted[name]!r}"
    if call.expected.same_connection and (previous is None or _connection(record) != _connection(previous)):
        yield f"the call {record['id']} is not on the connection of the call before it"


def _name(party: dict[str, Any] | None) -> str | None:
    return (party or {}).get("workload") or (party or {}).get("address")


def _connection(record: dict[str, Any]) -> str:
    """The first part of an id ``connection.call``."""
    return str(record["id"]).rpartition(".")[0]
