"""The programs that ask: one entry for each, with how it makes calls.

Most are one process that is told what to do on its standard input, a line for each call, and prints what came of it:

    new                           the next calls are made on a new connection
    GET /down/500?n=1
    POST /up?n=2 2000 length      with the file of this size as its body, with its length, or chunked
    -> 200 500 DIGEST             status, length and digest of the reply's body; or: error WORD

curl and wget are a process for each connection.
"""

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.programs.calls import Call
from tests.programs.driver import SurpriseError
from tests.programs.servers import BUILT, HERE, missing
from tests.programs.town import Town, end

# status, length and digest of a reply's body
Answer = tuple[int, int, str]


class Player(Protocol):
    """Makes the calls of one connection."""

    def play(self, calls: Sequence[Call]) -> list[Answer]: ...


@dataclass(frozen=True)
class Client:
    """A client program. ``needs`` as of servers."""

    name: str
    start: Callable[["Client", Town], "contextlib.AbstractContextManager[Player]"]
    command: Callable[[Town], list[str]]
    needs: tuple[str | Path, ...] = ()
    quick: bool = False
    chunks: bool = True  # can send chunked bodies
    keeps: bool = True  # makes its calls on one connection

    def missing(self) -> str | None:
        return missing(self.needs)


class Told:
    """A process that is told what to do, as above."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def play(self, calls: Sequence[Call]) -> list[Answer]:
        self._say("new")
        return [self._call(call) for call in calls]

    def _call(self, call: Call) -> Answer:
        body = "" if call.body is None else f" {call.body} {'chunked' if call.chunked else 'length'}"
        self._say(f"{call.method} {call.target}{body}")
        assert self._process.stdout is not None
        words = self._process.stdout.readline().decode().split()
        if len(words) != 3:
            raise SurpriseError(f"{call}: {' '.join(words) or 'the program has ended'}")
        return int(words[0]), int(words[1]), words[2]

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def _told(client: Client, town: Town) -> Iterator[Player]:
    with (town.folder / f"{client.name}.log").open("wb") as errors:
        command = client.command(town)
        process = town.web.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
        yield Told(process)
    finally:
        end(process)


class Curl:
    """One process and one connection: a transfer for each call."""

    def __init__(self, town: Town) -> None:
        self._town = town

    def play(self, calls: Sequence[Call]) -> list[Answer]:
        folder = self._town.folder / "curl"
        folder.mkdir(exist_ok=True)
        transfers = []
        for number, call in enumerate(calls):
            lines = [f'url = "{_base(self._town)}{call.target}"', f'output = "{folder}/{number}"']
            if call.body is not None:
                lines.append(f'data-binary = "@{self._town.content}/{call.body}"')
            if call.chunked:
                lines.append('header = "Transfer-Encoding: chunked"')
            transfers.append("\n".join([*lines, 'write-out = "%{http_code}\\n"', "silent", "show-error", "max-time = 60", ""]))
        config = folder / "config"
        config.write_text("next\n".join(transfers))
        for path in folder.glob("[0-9]*"):
            path.unlink()
        done = self._town.run("curl", "-q", "-K", str(config))
        if done.returncode != 0:
            raise SurpriseError(f"curl: {done.stderr}")
        return [_answer(status, folder / str(number)) for number, status in enumerate(done.stdout.split())]


class Wget:
    """One process for each call."""

    def __init__(self, town: Town) -> None:
        self._town = town

    def play(self, calls: Sequence[Call]) -> list[Answer]:
        return [self._run(call) for call in calls]

    def _run(self, call: Call) -> Answer:
        file = self._town.folder / "wget"
        body = [] if call.body is None else [f"--post-file={self._town.content}/{call.body}"]
        options = ["-q", "-S", "--content-on-error", "-t", "1", "-T", "60", "-O", str(file)]
        done = self._town.run("wget", *options, *body, _base(self._town) + call.target)
        statuses = [line.split()[1] for line in done.stderr.splitlines() if line.strip().startswith("HTTP/")]
        if not statuses:
            raise SurpriseError(f"wget: {done.returncode} {done.stderr}")
        return _answer(statuses[-1], file)


def _answer(status: str, file: Path) -> Answer:
    data = file.read_bytes() if file.exists() else b""  # curl makes no file for an empty body
    return int(status), len(data), hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _curl(_: Client, town: Town) -> Iterator[Player]:
    yield Curl(town)


@contextlib.contextmanager
def _wget(_: Client, town: Town) -> Iterator[Player]:
    yield Wget(town)


def _base(town: Town) -> str:
    return f"http://127.0.0.1:{town.origin_port}"


def _python(library: str) -> Callable[[Town], list[str]]:
    return lambda town: [sys.executable, str(HERE / "python" / "client.py"), library, _base(town), str(town.content)]


def _node(library: str) -> Callable[[Town], list[str]]:
    return lambda town: ["node", str(HERE / "node" / "client.js"), library, _base(town), str(town.content)]


def _java(kind: str) -> Callable[[Town], list[str]]:
    options = ["-XX:+UseSerialGC", "-Xmx256m", "-cp", str(BUILT / "java")]
    return lambda town: ["java", *options, "JdkClient", kind, _base(town), str(town.content)]


def _go(town: Town) -> list[str]:
    return [str(BUILT / "go-programs"), "client", _base(town), str(town.content)]


def _nothing(_: Town) -> list[str]:
    return []


_GO, _JAVA, _PYTHON = (BUILT / "go-programs",), ("java", BUILT / "java" / "JdkClient.class"), (BUILT / "python",)

CLIENTS = (
    Client("curl", _curl, _nothing, ("curl",), quick=True),
    Client("wget", _wget, _nothing, ("wget",), chunks=False, keeps=False),
    Client("go", _told, _go, _GO, quick=True),
    Client("node", _told, _node("http"), ("node",), quick=True),
    Client("undici", _told, _node("undici"), ("node", BUILT / "node_modules" / "undici")),
    Client("java-httpclient", _told, _java("HttpClient"), _JAVA, quick=True),
    Client("java-urlconnection", _told, _java("HttpURLConnection"), _JAVA),
    Client("requests", _told, _python("requests")),
    Client("httpx", _told, _python("httpx"), _PYTHON),
    Client("pycurl", _told, _python("pycurl"), _PYTHON),
    Client("aiohttp", _told, _python("aiohttp")),
)
