"""Scenarios: what real clients try at a broker, and what must come of it. They are data, in ``scenarios/*.yaml``.

A scenario has the topics to make beforehand and the records in them (``seed``), who may do what, twice: as ACLs of the broker
and as ``rules.kafka`` of Sluice (``policy``); the ``steps`` of a client with what each must come to (``expect``), and the
committed records that the topics have in the end (``after``). ``tests/kafka/clients/jobs.py`` says what steps there are.
``differs`` of a step says which clients tell something else, and must not hide what anybody may do.

Names of topics, groups and transactional ids are short in the data. ``Names`` makes them unique to a scenario and client, so
that all scenarios can share a broker and run at the same time.

An ACL is a line such as ``write topic orders``, ``read group billing``, ``write topic-prefix orders-``.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.harness import command_exists
from tests.kafka import broker

HERE = Path(__file__).parent
PROGRAMS = {"confluent": "confluent.py", "kafka-python": "pure.py", "aiokafka": "aio.py", "kcat": "kcat_program.py"}
CLIENTS = ("java", *PROGRAMS)
# How long all jobs of one program may take (seconds); only a failure waits for all of it.
PROGRAM_PATIENCE = 150.0

# The fields of a rule that name something of the broker's.
NAMING = ("topic", "topicPrefix", "group", "groupPrefix", "transactionalID", "transactionalIDPrefix")

Outcomes = list[Any]


@dataclass(frozen=True, eq=False)
class Scenario:
    name: str
    says: str
    steps: Sequence[Mapping[str, Any]]
    topics: Mapping[str, int]  # name to number of partitions
    acls: Sequence[str]
    policy: Sequence[Mapping[str, str]]
    seed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    after: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clients: Sequence[str] = CLIENTS

    def expected(self, client: str) -> Outcomes:
        """What each step must come to, whoever enforces it."""
        return [step.get("differs", {}).get(client, step["expect"]) for step in self.steps]


@cache
def scenarios() -> dict[str, Scenario]:
    """All of them, by name."""
    found = {}
    for path in sorted(HERE.glob("scenarios/*.yaml")):
        text = path.read_text()
        told = yaml.safe_load(text)
        # YAML takes the last of two that have one name, without a word.
        assert len(told) == sum(line[:1].isalpha() for line in text.splitlines()), f"a scenario of {path.name} hides another"
        for name, fields in told.items():
            assert name not in found, f"two scenarios are called {name}"
            found[name] = Scenario(name, **fields)
    return found


@dataclass(frozen=True)
class Case:
    """A scenario as one client plays it, and in which of several runs at the same broker."""

    scenario: Scenario
    client: str
    run: str = "a"

    @property
    def name(self) -> str:
        return f"{self.run}-{self.client}-{self.scenario.name}"

    def full(self, name: str) -> str:
        """The topic, group or transactional id that the data calls ``name``."""
        return f"{self.name}.{name}"

    def short(self, outcome: Any) -> Any:
        """An outcome in the words of the data."""
        if isinstance(outcome, str):
            return outcome.removeprefix(f"{self.name}.")
        if isinstance(outcome, list):
            return [self.short(part) for part in outcome]
        if isinstance(outcome, dict):
            return {self.short(key): self.short(value) for key, value in outcome.items()}
        return outcome

    @property
    def topics(self) -> dict[str, int]:
        return {self.full(topic): partitions for topic, partitions in self.scenario.topics.items()}

    @property
    def policy(self) -> list[dict[str, str]]:
        """``rules.kafka`` with the full names, for the client id of this case alone: so many cases can share a workload."""
        return [
            {key: self.full(value) if key in NAMING else value for key, value in rule.items()} | {"clientID": self.name}
            for rule in self.scenario.policy
        ]

    def job(self, bootstrap: str, user: broker.User | None = None) -> dict[str, Any]:
        """What the client's program is told."""
        access = {"user": user.name, "password": user.password} if user else {}
        steps = [self._step(step) for step in self.scenario.steps]
        return {"job": self.name, "bootstrap": bootstrap, "client_id": self.name, "steps": steps} | access

    def _step(self, step: Mapping[str, Any]) -> dict[str, Any]:
        told = {key: value for key, value in step.items() if key not in ("expect", "differs")}
        for key in ("topics", "groups", "records", "group", "name"):
            if key in told:
                told[key] = self._full_names(told[key])
        if "offsets" in told:
            offsets = told["offsets"]
            told["offsets"] = offsets | {key: self.full(offsets[key]) for key in ("group", "topic")}
        return told

    def _full_names(self, names: Any) -> Any:
        if isinstance(names, str):
            return self.full(names)
        return (
            {self.full(key): value for key, value in names.items()} if isinstance(names, dict) else list(map(self.full, names))
        )


def cases(clients: Iterable[str] = CLIENTS, run: str = "a") -> list[Case]:
    """Every scenario with every client that plays it."""
    return [
        Case(scenario, client, run) for client in clients for scenario in scenarios().values() if client in scenario.clients
    ]


def missing(client: str) -> str | None:
    """Why this client cannot run here; None if it can."""
    if client == "java":
        return None if (broker.KAFKA / "classes").exists() else "the Java client is not compiled (make kafka)"
    if client == "kcat" and not command_exists("kcat"):
        return "kcat is not installed"
    return None


def play(
    played: Sequence[Case],
    bootstrap: str,
    users: Mapping[str, broker.User] | None = None,
    prefixes: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Outcomes]:
    """Play cases against one address, all clients at the same time; the outcomes by the names of the cases.

    ``users`` are by case, ``prefixes`` by client: what places its program.
    """
    with contextlib.ExitStack() as stack:
        programs = []
        for client in dict.fromkeys(case.client for case in played):
            jobs = [case.job(bootstrap, (users or {}).get(case.name)) for case in played if case.client == client]
            programs.append(Program(client, jobs, (prefixes or {}).get(client, ())))
            stack.callback(programs[-1].kill)
        return {name: outcomes for program in programs for name, outcomes in program.outcomes().items()}


class Program:
    """A client's program with its jobs, running. ``prefix`` places it: ``("sluice", "exec", NAME, "--")``."""

    def __init__(self, client: str, jobs: Sequence[Mapping[str, Any]], prefix: Sequence[str] = ()) -> None:
        python = [sys.executable, str(HERE / "clients" / PROGRAMS[client])] if client in PROGRAMS else []
        self.client, self._jobs = client, jobs
        self._process = subprocess.Popen(
            [*prefix, *(python or broker.java("-Dorg.slf4j.simpleLogger.defaultLogLevel=off", "Client"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        with self._process.stdin as given:
            given.writelines(json.dumps(job) + "\n" for job in jobs)
        self._process.stdin = None

    def outcomes(self) -> dict[str, Outcomes]:
        """The outcomes of all jobs by name, once all have ended; a job that went wrong has a text in place of one."""
        try:
            printed, complaints = self._process.communicate(timeout=PROGRAM_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            printed, complaints = self._process.communicate()
            complaints += f"\n{self.client} was still at work after {PROGRAM_PATIENCE} s"
        found: dict[str, Outcomes] = {str(job["job"]): [] for job in self._jobs}
        for line in printed.splitlines():
            said = json.loads(line)
            found[said["job"]].append(said["outcome"] if "outcome" in said else f"fault: {said['fault']}")
        for outcomes, job in zip(found.values(), self._jobs, strict=True):
            if len(outcomes) < len(job["steps"]):
                outcomes.append(f"the program said no more; on stderr: {complaints[-1500:]}")
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
