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
from proxy.heartbeat import Heartbeat
from proxy.metrics import Snapshot
from proxy.runtime import run_loop
from proxy.wheel import Files
from proxy.worker import Settings, Worker

# One line between agent and worker: a policy of 10,000 rules is about 3 MB of YAML.
MAX_LINE = 256 * 1024 * 1024
# A worker that died is replaced after this long (seconds), so that one that always dies at once does not eat a core.
RESPAWN_PAUSE = 0.5
# What a worker process may take beyond the time for its calls to write its last records and to answer (seconds).
DRAIN_MARGIN = 10.0

GONE = "the worker process died"


class WorkerError(Exception):
    """A worker process could not do what it was asked; the text says why."""


class Member(Protocol):
    """A worker, wherever it runs."""

    async def apply(self, policies: PolicySet, sources: Sequence[Source], names: Mapping[int, str]) -> None: ...
    async def reopen(self) -> None: ...
    async def snapshot(self) -> Snapshot: ...
    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]: ...
    async def audit_trouble(self) -> str | None: ...
    async def pressure(self) -> Sequence[str]: ...
    async def kernel_trouble(self) -> str | None: ...
    async def drain(self, seconds: float) -> int:
        """Finish within ``seconds``; how many records could not be written."""
        ...


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

    async def pressure(self) -> Sequence[str]:
        return self._worker.pressure()

    async def kernel_trouble(self) -> str | None:
        return self._worker.kernel_trouble()

    async def drain(self, seconds: float) -> int:
        return await self._worker.drain(seconds)


class Setup(msgspec.Struct, frozen=True):
    """The first line to a new worker process: what it is and which descriptors it inherited."""

    settings: Settings
    listeners: tuple[int, ...]
    maps: tuple[int, int]
    kernel: Files | None


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

    def __init__(self, settings: Settings, listeners: Sequence[socket.socket], origins: Origins, kernel: Files | None) -> None:
        self._listeners = listeners  # ours stay open: what connects while a worker is replaced waits for its successor
        self._setup = Setup(settings, tuple(listener.fileno() for listener in listeners), origins.fds, kernel)
        self._policy: Policy | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None  # None: nobody is there to be asked
        self._listening: asyncio.Task[None] | None = None
        self._life: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._spawn()
        self._life = asyncio.create_task(self._keep_alive())

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: a folder named proxy where the agent happens to be started is not ours.
            command = [sys.executable, "-P", "-m", "proxy.pool", str(theirs.fileno())]
            inherited = (theirs.fileno(), *self._setup.listeners, *self._setup.maps, *self._kernel_fds())
            process = await asyncio.create_subprocess_exec(*command, pass_fds=inherited, start_new_session=True)
        self._process = process
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        self._writer.write(msgspec.json.encode(self._setup) + b"\n")
        self._listening = asyncio.create_task(self._listen(reader, process))

    def _kernel_fds(self) -> tuple[int, ...]:
        return self._setup.kernel.fds if self._setup.kernel else ()

    async def _listen(self, reader: asyncio.StreamReader, process: asyncio.subprocess.Process) -> None:
        """Hand answers to those who asked, until the line is cut; then nobody waits any more, and the process has ended."""
        decoder = msgspec.json.Decoder(Answer)
        try:
            while line := await reader.readline():
                answer = decoder.decode(line)
                waiting = self._answers.pop(answer.number, None)
                if waiting and not waiting.done():
                    if answer.error:
                        waiting.set_exception(WorkerError(answer.error))
                    else:
                        waiting.set_result(answer.value)
        except ConnectionError:
            pass  # how a killed process hangs up
        finally:
            self._writer = None
            for waiting in self._answers.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(GONE))
            self._answers.clear()
            _kill(process)

    async def _keep_alive(self) -> None:
        while True:
            assert self._process is not None
            assert self._listening is not None
            await asyncio.wait([self._listening])
            await self._process.wait()
            sys.stderr.write(f"sluice: worker process {self._process.pid} died; starting another\n")
            await asyncio.sleep(RESPAWN_PAUSE)
            try:
                await self._spawn()
                if self._policy is not None:
                    await self._ask("apply", policy=self._policy)
            except (OSError, WorkerError) as error:  # the loop tries again
                sys.stderr.write(f"sluice: the new worker process cannot start: {error}\n")
                _kill(self._process)

    async def _ask(self, verb: str, policy: Policy | None = None, amount: float = 0.0) -> Any:
        """The worker's answer. `ConnectionError` when there is no process, `WorkerError` when it could not do it."""
        if self._writer is None:
            raise ConnectionError(GONE)
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        self._writer.write(msgspec.json.encode(Request(self._number, verb, policy, amount)) + b"\n")
        return await answer

    async def apply(self, policies: PolicySet, sources: Sequence[Source], names: Mapping[int, str]) -> None:
        first = self._policy is None
        self._policy = Policy(policies.generation, [(source.name, source.text) for source in sources], dict(names))
        try:
            await self._ask("apply", policy=self._policy)
        except ConnectionError:
            if first:
                raise
            # It died meanwhile: its successor begins with this policy, before it accepts anything.

    async def reopen(self) -> None:
        with contextlib.suppress(ConnectionError):  # a successor opens the file that is there now
            await self._ask("reopen")

    async def snapshot(self) -> Snapshot:
        return msgspec.convert(await self._ask("snapshot"), Snapshot)

    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]:
        count, shown = await self._ask("connections", amount=limit)
        return count, shown

    async def audit_trouble(self) -> str | None:
        trouble: str | None = await self._ask("audit_trouble")
        return trouble

    async def pressure(self) -> Sequence[str]:
        told: Sequence[str] = await self._ask("pressure")
        return told

    async def kernel_trouble(self) -> str | None:
        trouble: str | None = await self._ask("kernel_trouble")
        return trouble

    async def drain(self, seconds: float) -> int:
        if self._life:
            self._life.cancel()
        for listener in self._listeners:
            listener.close()
        lost = 0
        with contextlib.suppress(OSError, WorkerError):  # it died, or hangs: TimeoutError is an OSError
            async with asyncio.timeout(seconds + DRAIN_MARGIN):
                lost = await self._ask("drain", amount=seconds)
        await self.end()
        return lost

    async def end(self) -> None:
        """End the process, whatever it does."""
        if self._life:
            self._life.cancel()
        if self._process:
            _kill(self._process)
            await self._process.wait()


def _kill(process: asyncio.subprocess.Process | None) -> None:
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def serve(control: socket.socket) -> None:
    """A worker process: do what the agent says until it closes the line. An agent that died takes its workers with it."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)  # the agent decides
    reader, writer = await asyncio.open_connection(sock=control, limit=MAX_LINE)
    setup = msgspec.json.decode(await reader.readline(), type=Setup)
    settings = setup.settings
    listeners = [socket.socket(fileno=fd) for fd in setup.listeners]
    origins = Origins.inherited(setup.maps)
    Heartbeat(loop, beat=lambda: None, hang=_end_hanging).start()
    member: LocalMember | None = None
    decoder = msgspec.json.Decoder(Request)
    while line := await reader.readline():
        request = decoder.decode(line)
        try:
            # Made here, so that the agent is told why it cannot be (an audit file that cannot be opened).
            member = member or LocalMember(Worker(loop, settings, listeners, origins, setup.kernel))
            answer = Answer(request.number, await _do(member, request))
        except Exception as error:
            answer = Answer(
                request.number, error=str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            )
        writer.write(msgspec.json.encode(answer) + b"\n")
        await writer.drain()
    os._exit(1)  # nobody judges the judge: without its agent a worker must not go on


def _end_hanging(where: str) -> None:
    """Our connections, and those that wait for us, would wait for ever: the agent starts another worker."""
    sys.stderr.write(f"sluice: worker process {os.getpid()} hangs; it is here:\n{where}")
    sys.stderr.flush()
    os._exit(1)


async def _do(member: LocalMember, request: Request) -> object:
    if request.verb == "apply":
        assert request.policy is not None
        policies, sources = await asyncio.to_thread(_read, request.policy)  # calls go on meanwhile
        await member.apply(policies, sources, request.policy.names)
        return None
    if request.verb == "snapshot":
        return await member.snapshot()
    if request.verb == "connections":
        return await member.connections(int(request.amount))
    if request.verb == "audit_trouble":
        return await member.audit_trouble()
    if request.verb == "pressure":
        return await member.pressure()
    if request.verb == "kernel_trouble":
        return await member.kernel_trouble()
    if request.verb == "reopen":
        await member.reopen()
        return None
    assert request.verb == "drain"
    return await member.drain(request.amount)


def _read(policy: Policy) -> tuple[PolicySet, list[Source]]:
    sources = [Source(name, text) for name, text in policy.sources]
    return PolicySet(load(sources), policy.generation), sources


if __name__ == "__main__":
    run_loop(serve(socket.socket(fileno=int(sys.argv[1]))))
