"""A generation that fails half-way, at points where a real kernel and a real worker cannot be made to fail."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

import pytest

from bpf.loader import BpfError
from policies.decide import PolicySet
from policies.load import Source
from proxy.agent import READDRESS, Agent, Options

WORKLOAD = "apiVersion: sluice.dev/v1\nkind: Workload\nmetadata: {name: %s}\nspec: {cgroups: [/%s]}\n"


class Kernel:
    """Stands for the hooks and for inotify: remembers what it is told, and fails when asked to."""

    def __init__(self) -> None:
        self.generation = 0
        self.tried: list[int] = []
        self.cgroups: Mapping[int, int | None] = {}
        self.fails = False

    def install(self, _: object, generation: int) -> None:
        self.tried.append(generation)
        if self.fails:
            raise BpfError("cannot write BPF map rules: the map is full")
        self.generation = generation

    def set_cgroups(self, cgroups: Mapping[int, int | None], _: object, accelerated: object) -> None:
        self.cgroups = cgroups

    def follow(self, _: object) -> None:
        pass


class Judge:
    """Stands for a worker."""

    def __init__(self) -> None:
        self.generation = 0
        self.refuses = 0

    async def apply(self, policies: PolicySet, sources: Sequence[Source], names: Mapping[int, str]) -> None:
        if policies.generation == self.refuses:
            raise RuntimeError("a fault of ours")
        self.generation = policies.generation


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    documents = tmp_path / "documents.yaml"
    documents.write_text(WORKLOAD % ("web", "web"))
    (tmp_path / "web").mkdir()
    (tmp_path / "orders").mkdir()
    agent = Agent(Options((str(documents),), "-", "0", 1, tmp_path, (), 1.0, 1.0, (), False, "reset-denied", "relay", 1 << 28))
    agent._mount = tmp_path
    agent._kernel = None
    agent._hooks = agent._watch = Kernel()  # type: ignore[assignment]
    agent._members = [Judge(), Judge()]  # type: ignore[list-item]
    agent._local = (ip_network("127.0.0.0/8"),)
    asyncio.run(agent._install(agent._read()))
    documents.write_text(WORKLOAD % ("orders", "orders"))
    return agent


def in_force(agent: Agent) -> tuple[int, list[int], list[str]]:
    """The generation that the agent tells, those that its workers judge by, and the workloads whose cgroups are known."""
    names = {number: name for name, number in agent._ids.all().items()}
    cgroups = agent._hooks.cgroups  # type: ignore[attr-defined]
    known = [names[number] for number in cgroups.values() if number]
    return agent._now.policies.generation, [member.generation for member in agent._members], known  # type: ignore[attr-defined]


def test_a_generation_that_the_kernel_does_not_take_is_taken_back_from_the_workers(agent: Agent) -> None:
    agent._hooks.fails = True  # type: ignore[attr-defined]
    asyncio.run(agent._reload())
    assert in_force(agent) == (1, [1, 1], ["web"])
    assert "the map is full" in agent._troubles["policy"]


def test_a_generation_that_one_worker_does_not_take_is_taken_back_from_the_others(agent: Agent) -> None:
    agent._members[1].refuses = 2  # type: ignore[attr-defined]
    asyncio.run(agent._reload())
    assert in_force(agent) == (1, [1, 1], ["web"])
    assert agent._hooks.tried == [1], "the kernel was not asked"  # type: ignore[attr-defined]


def test_the_number_of_a_generation_that_failed_is_not_used_again(agent: Agent) -> None:
    """The kernel's tables may hold entries under it, which must never come into force."""
    agent._hooks.fails = True  # type: ignore[attr-defined]
    asyncio.run(agent._reload())
    agent._hooks.fails = False  # type: ignore[attr-defined]
    asyncio.run(agent._reload())
    assert agent._hooks.tried == [1, 2, 3]  # type: ignore[attr-defined]
    assert in_force(agent) == (3, [3, 3], ["orders"])
    assert "policy" not in agent._troubles


def test_other_addresses_of_the_host_do_not_hide_that_the_documents_could_not_be_loaded(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "documents.yaml").write_text("kind: [")
    asyncio.run(agent._reload())
    assert "documents.yaml" in (agent._policy_trouble or "")
    asyncio.run(agent._change(READDRESS, agent._again))
    assert "documents.yaml" in (agent._policy_trouble or "")
    (tmp_path / "documents.yaml").write_text(WORKLOAD % ("orders", "orders"))
    asyncio.run(agent._reload())
    assert agent._policy_trouble is None


def test_a_file_system_that_never_answers_does_not_keep_the_agent_from_ending(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr("proxy.agent.fingerprint", lambda _: answers.wait(60))

    async def told_to_stop() -> None:
        loop = asyncio.get_running_loop()
        agent._next_look = loop.call_later(0, agent._wake.set)
        loop.call_later(0.2, agent._stop)
        await asyncio.wait_for(agent._follow(), 10)

    begun = time.monotonic()
    asyncio.run(told_to_stop())
    assert time.monotonic() - begun < 10
    answers.set()
