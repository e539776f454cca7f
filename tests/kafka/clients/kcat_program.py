"""Runs jobs (see jobs.py) with kcat. It is a program for one task: each step is a run, with connections of its own."""

import json
import re
import subprocess
from typing import Any

from jobs import PATIENCE, serve

# What kcat says of an error, in librdkafka's words.
WORDS = {
    "Topic authorization failed": "TopicAuthorization",
    "Group authorization failed": "GroupAuthorization",
    "Unknown topic or partition": "UnknownTopicOrPartition",
}
SECONDS = str(int(PATIENCE))


class Client:
    def __init__(self, job: dict[str, Any]) -> None:
        self._start = ["kcat", "-b", job["bootstrap"], "-X", f"client.id={job['client_id']}", "-m", SECONDS]
        if job.get("user"):
            options = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN")
            for option in (*options, f"sasl.username={job['user']}", f"sasl.password={job['password']}"):
                self._start += ["-X", option]

    def close(self) -> None:
        pass

    def _kcat(self, *options: str, given: str = "") -> tuple[str, list[str]]:
        """What it prints, and the errors that it tells of."""
        done = subprocess.run([*self._start, *options], input=given, capture_output=True, text=True, timeout=2 * PATIENCE)
        errors = sorted({error for words, error in WORDS.items() if words in done.stderr})
        if done.returncode != 0 and not errors:
            raise RuntimeError(f"kcat ended with {done.returncode}: {done.stderr[-500:]}")
        return done.stdout, errors

    def produce(self, records: dict[str, list[str]]) -> dict[str, str]:
        outcomes = {}
        for topic, values in records.items():
            _, errors = self._kcat("-P", "-t", topic, "-X", "message.timeout.ms=15000", given="\n".join(values) + "\n")
            outcomes[topic] = errors[0] if errors else "ok"
        return outcomes

    def fetch(self, topics: list[str], count: int = 0, errors: int = 0, wait: float = PATIENCE) -> dict[str, list[str]]:
        values: list[str] = []
        wrong: set[str] = set()
        for topic in topics:
            printed, met = self._kcat("-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q")
            values += printed.splitlines()
            wrong.update(met)
        return {"values": sorted(values), "errors": sorted(wrong)}

    def consume(
        self, topics: list[str], group: str, count: int = 0, errors: int = 0, wait: float = PATIENCE
    ) -> dict[str, list[str]]:
        until = ("-c", str(count)) if count else ("-e",)
        printed, met = self._kcat("-G", group, "-q", *until, "-X", "auto.offset.reset=earliest", *topics)
        return {"values": sorted(printed.splitlines()), "errors": met}

    def list_topics(self) -> list[str]:
        return sorted(topic["topic"] for topic in self._metadata("-L", "-J"))

    def describe_topics(self, topics: list[str]) -> dict[str, int | str]:
        outcomes: dict[str, int | str] = {}
        for topic in topics:
            [described] = self._metadata("-L", "-J", "-t", topic)
            wrong = re.sub(r"^Broker: ", "", described.get("error", ""))
            outcomes[topic] = WORDS.get(wrong, wrong) if wrong else len(described["partitions"])
        return outcomes

    def _metadata(self, *options: str) -> list[dict[str, Any]]:
        printed, _ = self._kcat(*options)
        topics: list[dict[str, Any]] = json.loads(printed)["topics"]
        return topics


if __name__ == "__main__":
    serve(Client)
