"""The agent's workers: one in its own process, or several processes that share the load.

Each process has its own listening sockets (SO_REUSEPORT spreads connections over them) and its own event loop. The agent
keeps every socket open too, so that connections to a worker that died wait for its successor. Agent and worker talk in JSON
lines over a socket pair: requests with a number, answers with the same number, in order.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from policies.decide import PolicySet
from policies.load import Source, load
from proxy.datapath import Origins
from proxy.metrics import Snapshot
from proxy.runtime import run_loop
from proxy.worker import Settings, Worker

# One line between agent and worker: a policy of 10,000 rules is about 3 MB of YAML.
MAX_LINE = 256 * 1024 * 1024
# A worker that died is replaced after this long (seconds), so that one that always dies at once does not eat a core.
RESPAWN_PAUSE = 0.5


class Member(Protocol):
    """A worker, wherever it runs."""

    async def apply(self, policies: PolicySet, sources: Sequence[Source], names: Mapping[int, str]) -> None: ...
    async def reopen(self) -> None: ...
    async def snapshot(self) -> Snapshot: ...
    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]: ...
    async def audit_trouble(self) -> str | None: ...
    async def drain(self, seconds: float) -> None: ...


class LocalMember:
    """The only worker, in the agent's own process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._started = False

    async def apply(self, policies: PolicySet, sources: Sequence[Source], names: Mapping[int, str]) -> None:
        self._worker.apply(policies, names)
        if not self._started:
            self._started = True
            self._worker.start()

    async def reopen(self) -> None:
        self._worker.reopen()

    async def snapshot(self) -> Snapshot:
        return self._worker.snapshot()

    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]:
        return self._worker.connections(limit)

    async def audit_trouble(self) -> str | None:
        return self._worker.audit_trouble()

    async def drain(self, seconds: float) -> None:
        await self._worker.drain(seconds)


class Setup(msgspec.Struct, frozen=True):
    """The first line to a new worker process: what it is and which descriptors it inherited."""

    settings: Settings
    listeners: tuple[int, ...]
    maps: tuple[int, int]


class Policy(msgspec.Struct, frozen=True):
    """A generation of documents, on its way to a worker process."""

    generation: int
    sources: list[tuple[str, str]]
    names: dict[int, str]


class Request(msgspec.Struct, frozen=True):
    number: int
    verb: str
    policy: Policy | None = None
    amount: float = 0.0


class Answer(msgspec.Struct, frozen=True):
    number: int
    value: Any = None
    error: str | None = None


class ProcessMember:
    """A worker process, and its successors when it dies."""

    def __init__(self, settings: Settings, listeners: Sequence[socket.socket], origins: Origins) -> None:
        self._setup = Setup(settings, tuple(listener.fileno() for listener in listeners), origins.fds)
        self._policy: Policy | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._writer: asyncio.StreamWriter | None = None
        self._life: asyncio.Task[None] | None = None
        self._ending = False

    async def start(self) -> None:
        await self._spawn()
        self._life = asyncio.create_task(self._keep_alive())

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "proxy.pool", str(theirs.fileno())]
        inherited = (theirs.fileno(), *self._setup.listeners, *self._setup.maps)
        self._process = await asyncio.create_subprocess_exec(*command, pass_fds=inherited, start_new_session=True)
        theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        self._writer.write(msgspec.json.encode(self._setup) + b"\n")
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        decoder = msgspec.json.Decoder(Answer)
        with contextlib.suppress(ConnectionError):
            while line := await self._reader.readline():
                answer = decoder.decode(line)
                waiting = self._answers.pop(answer.number, None)
                if waiting and not waiting.done():
                    if answer.error:
                        waiting.set_exception(RuntimeError(answer.error))
                    else:
                        waiting.set_result(answer.value)
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError("the worker process died"))
        self._answers.clear()

    async def _keep_alive(self) -> None:
        while True:
            await self._process.wait()
            await self._listening
            if self._ending:
                return
            sys.stderr.write(f"sluice: worker process {self._process.pid} died; starting another\n")
            await asyncio.sleep(RESPAWN_PAUSE)
            await self._spawn()
            if self._policy is not None:
                with contextlib.suppress(ConnectionError, RuntimeError):  # it died again: the loop goes on
                    await self._ask("apply", policy=self._policy)

    async def _ask(self, verb: str, policy: Policy | None = None, amount: float = 0.0) -> Any:
        assert self._writer is not None
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        self._writer.write(msgspec.json.encode(Request(self._number, verb, policy, amount)) + b"\n")
        return await answer

    async def apply(self, policies: PolicySet, sources: Sequence[Source], names: Mapping[int, str]) -> None:
        self._policy = Policy(policies.generation, [(source.name, source.text) for source in sources], dict(names))
        await self._ask("apply", policy=self._policy)

    async def reopen(self) -> None:
        await self._ask("reopen")

    async def snapshot(self) -> Snapshot:
        return msgspec.convert(await self._ask("snapshot"), Snapshot)

    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]:
        count, shown = await self._ask("connections", amount=limit)
        return count, shown

    async def audit_trouble(self) -> str | None:
        trouble: str | None = await self._ask("audit_trouble")
        return trouble

    async def drain(self, seconds: float) -> None:
        self._ending = True
        with contextlib.suppress(ConnectionError):
            await self._ask("drain", amount=seconds)
        if self._writer:
            self._writer.close()
        if self._life:
            await self._life


async def serve(control: socket.socket) -> None:
    """A worker process: do what the agent says until it closes the line. An agent that died takes its workers with it."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)  # the agent decides
    reader, writer = await asyncio.open_connection(sock=control, limit=MAX_LINE)
    setup = msgspec.json.decode(await reader.readline(), type=Setup)
    settings = setup.settings
    listeners = [socket.socket(fileno=fd) for fd in setup.listeners]
    member = LocalMember(Worker(loop, settings, listeners, Origins.inherited(setup.maps, settings.netns, settings.port)))
    decoder = msgspec.json.Decoder(Request)
    while line := await reader.readline():
        request = decoder.decode(line)
        try:
            answer = Answer(request.number, await _do(member, request))
        except Exception as error:
            answer = Answer(request.number, error=f"{type(error).__name__}: {error}")
        writer.write(msgspec.json.encode(answer) + b"\n")
        await writer.drain()
    os._exit(1)  # nobody judges the judge: without its agent a worker must not go on


async def _do(member: LocalMember, request: Request) -> object:
    if request.verb == "apply":
        assert request.policy is not None
        sources = [Source(name, text) for name, text in request.policy.sources]
        await member.apply(PolicySet(load(sources), request.policy.generation), sources, request.policy.names)
        return None
    if request.verb == "snapshot":
        return await member.snapshot()
    if request.verb == "connections":
        return await member.connections(int(request.amount))
    if request.verb == "audit_trouble":
        return await member.audit_trouble()
    if request.verb == "reopen":
        await member.reopen()
        return None
    assert request.verb == "drain"
    await member.drain(request.amount)
    return None


if __name__ == "__main__":
    run_loop(serve(socket.socket(fileno=int(sys.argv[1]))))
