"""What the client programs written in Python share: how jobs come in, how outcomes go out, how errors are called.

A job is one line of JSON on stdin: ``job`` (its name), ``bootstrap``, ``client_id``, perhaps ``user`` and ``password``, and
``steps``. Each step prints one line ``{"job", "step", "outcome"}``; a program that fails itself prints ``fault`` instead and
ends the job. Jobs run at the same time, each with clients of its own, which keep their connections from step to step.

The steps, by ``do``:

====================  ====================================================  ==================================================
produce               records {topic: [value]}, idempotent, acks            {topic: "ok" or an error}
transaction           name, records, offsets {group, topic, offset}, end    "ok" or an error (and an abort); topic by topic
fetch                 topics, count, errors, wait                           {values, errors}; partition 0, from the beginning
consume               topics, group, protocol, count, errors, wait, auto    {values, errors}; as a member of the group
rebalance             topics, group, protocol, partitions                   partitions of one member, of two, of the first again
list_topics                                                                 [topic] or an error
describe_topics       topics                                                {topic: number of partitions or an error}
create_topics         topics {topic: partitions}                            {topic: "ok" or an error}
delete_topics         topics                                                {topic: "ok" or an error}
alter_configs         topics, whole                                         {topic: "ok" or an error}
describe_groups       groups                                                {group: "ok" or an error}
pause                 seconds                                               "ok"
describe_configs      topics                                                {topic: "ok" or an error}
list_offsets          group, topics                                         {topic: offset of partition 0 that is told}
list_all_offsets      groups                                                {group: number of partitions or an error}
====================  ====================================================  ==================================================

With ``auto`` a member commits by itself, and leaves at the end of the step. ``whole`` asks by AlterConfigs, which replaces all
settings of a topic, and not by IncrementalAlterConfigs.

Errors have the names of the Java clients' exceptions without the word Exception.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

# How long a step may take (seconds); only a failure waits for all of it.
PATIENCE = 40.0
# How often who commits by itself does so.
AUTO_COMMIT_MS = 100
# What alter_configs sets.
SETTING = ("retention.ms", "86400000")
TICK = 0.1
# Of the protocol's error codes those that a test can meet.
ERRORS = {
    3: "UnknownTopicOrPartition", 16: "NotCoordinator", 17: "InvalidTopic", 29: "TopicAuthorization", 30: "GroupAuthorization",
    31: "ClusterAuthorization", 35: "UnsupportedVersion", 36: "TopicExists", 47: "InvalidProducerEpoch",
    48: "InvalidTxnState", 53: "TransactionalIdAuthorization", 58: "SaslAuthentication", 69: "GroupIdNotFound",
    100: "UnknownTopicId",
}  # fmt: skip

_printing = threading.Lock()


def name(code: int) -> str:
    """ "ok" for 0, else what the tests call this error code."""
    return ERRORS.get(code, f"error {code}") if code else "ok"


def serve(client: Callable[[dict[str, Any]], Any]) -> None:
    """Run the jobs of stdin. ``client`` makes an object of each, with a method for each kind of step, and ``close``."""
    threads = [threading.Thread(target=_run, args=(client, json.loads(line))) for line in sys.stdin if line.strip()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run(client: Callable[[dict[str, Any]], Any], job: dict[str, Any]) -> None:
    number = 0
    try:
        made = client(job)
        try:
            for number, step in enumerate(job["steps"]):
                arguments = dict(step)
                what = arguments.pop("do")
                _say(job, number, outcome=_pause(**arguments) if what == "pause" else getattr(made, what)(**arguments))
        finally:
            made.close()
    except Exception as fault:
        _say(job, number, fault=f"{type(fault).__name__}: {fault}")


def _pause(seconds: float) -> str:
    time.sleep(seconds)
    return "ok"


def _say(job: dict[str, Any], step: int, **what: Any) -> None:
    with _printing:
        print(json.dumps({"job": job["job"], "step": step} | what), flush=True)


class Harvest:
    """Records and errors that a consumer has met, until there are as many as the step expects, or ``wait`` seconds are over."""

    def __init__(self, count: int, errors: int, wait: float) -> None:
        self._count, self._wrong = count, errors
        self.values: list[str] = []
        self.errors: set[str] = set()
        self._deadline = time.monotonic() + wait

    @property
    def complete(self) -> bool:
        met = len(self.values) >= self._count and len(self.errors) >= self._wrong
        return met or time.monotonic() > self._deadline

    def outcome(self) -> dict[str, list[str]]:
        return {"values": sorted(self.values), "errors": sorted(self.errors)}


def shares(look: Callable[[], Iterable[int]], wanted: list[int]) -> list[int]:
    """The members' numbers of partitions, once they are as wanted, or as they are when PATIENCE is over."""
    deadline = time.monotonic() + PATIENCE
    while (seen := list(look())) != wanted and time.monotonic() < deadline:
        pass
    return seen


def first_error(outcomes: Iterable[str]) -> str:
    """The first that is an error, if there is one."""
    return next((outcome for outcome in outcomes if outcome != "ok"), "ok")


def halves(whole: int) -> list[int]:
    return [whole // 2, whole - whole // 2]
