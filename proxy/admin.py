"""The admin listener: how the agent is, for people, probes and Prometheus. It reads and never changes anything.

Whoever asks, and however often, must not hold calls up. So it has a thread and an event loop of its own. The agent's loop is
only asked for facts; text is made of them here. A port is open to every user of the host, and so is told less than the
socket, answers of an age of up to a second, and takes so many connections a second and no more. What is spoken is the least
of HTTP/1.1 that curl, probes and Prometheus need: one GET or HEAD on a connection.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Protocol

import msgspec

from proxy.metrics import Snapshot, render

DEFAULT_ADDRESS = "/run/sluice/admin.sock"
SOCKET_MODE = 0o600  # whoever may read this learns who talks to whom
# Entries of /connections: enough to look at, small enough to build without holding the event loop up.
MAX_CONNECTIONS = 1000
# How long the agent may take to answer, for instance to ask its workers (seconds). Probes and scrapers wait 10 s by default.
STATUS_TIMEOUT_SECONDS = 5.0
# How long a client may take to say what it wants, and again to take the answer (seconds): it is on this host.
CLIENT_TIMEOUT_SECONDS = 5.0
# A request's head (bytes): browsers and probes send some hundreds.
MAX_HEAD = 8192
# Connections at once at one address. The next one ends the oldest: who is slow must not keep others out.
MAX_OPEN = 64
# The least time between two connections that are taken at one address (seconds), so that a flood of them does not eat the
# processor time of the interpreter, which this thread shares with the agent's. What comes faster waits in the backlog.
PACE = 0.002
BACKLOG = 256
# How old an answer at a port may be (seconds): a flood asks the agent no more often than this.
MAX_AGE = 1.0
# After running out of descriptors, wait this long (seconds) before accepting again.
ACCEPT_PAUSE = 0.1
# How long the thread may take to end (seconds).
SHUTDOWN_SECONDS = 1.0
# The name of a web page's host that a browser was tricked into resolving to 127.0.0.1 is none of these.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class AdminError(Exception):
    """The admin listener cannot start; the message says why and what to do."""


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of ``/healthz``."""

    ok: bool
    detail: str | None = None


class PolicyStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is enforced: ``/policy``. ``last_reload_error`` is None when the newest files are the ones in force."""

    generation: int
    files: Sequence[str]
    documents: Sequence[str]  # "kind/name", in the order of the files
    loaded_at: datetime
    last_reload_error: str | None


class Status(Protocol):
    """What the agent tells. Its answers are for all of its workers together."""

    async def metrics(self) -> Snapshot: ...

    async def health(self) -> Mapping[str, Check]: ...

    async def policy(self) -> PolicyStatus: ...

    async def connections(self, limit: int) -> tuple[int, Sequence[Mapping[str, object]]]:
        """How many connections are open, and a description of at most ``limit`` of them, as JSON-able facts."""
        ...


class Page(NamedTuple):
    """An answer."""

    status: HTTPStatus
    content_type: str
    body: bytes

    def reply(self, with_body: bool) -> bytes:
        # nosniff: what a client put into a name must not be run as a page by a browser that looks at it.
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (self.body if with_body else b"")


class Request(NamedTuple):
    """What is read of a request."""

    method: str
    path: str
    hosts: Sequence[str]


class Place:
    """An address at which the listener is, with the connections that are open there."""

    def __init__(self, listener: socket.socket, is_port: bool) -> None:
        self.listener = listener
        self.is_port = is_port
        self.open: dict[asyncio.Task[None], None] = {}  # the oldest first


class Admin:
    """Serves a ``Status`` at Unix sockets (paths) and at TCP ports of 127.0.0.1 (numbers)."""

    def __init__(self, status: Status, *addresses: str) -> None:
        self._status = status
        self._addresses = addresses or (DEFAULT_ADDRESS,)
        self._places: list[Place] = []
        self._socket_files: list[tuple[str, int]] = []  # paths and inodes
        self._pages: dict[tuple[str, bool], tuple[float, asyncio.Task[Page]]] = {}
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()
        self.address = ""  # where it is, for people
        self.cut_off = 0  # connections that had to make room

    # For the agent.

    def listen(self) -> None:
        """Take the addresses; who connects waits for ``start``. Raises ``AdminError``, and then holds none."""
        names = []
        for address in self._addresses:
            try:
                if address.isdecimal():
                    listener = _listen_tcp(int(address))
                    names.append(str(listener.getsockname()[1]))
                else:
                    listener = _listen_unix(address)
                    names.append(address)
                    self._socket_files.append((address, os.stat(address).st_ino))
            except (OSError, OverflowError) as error:
                self._close()
                raise AdminError(f"admin listener at {address}: {error}") from error
            listener.setblocking(False)
            self._places.append(Place(listener, address.isdecimal()))
        self.address = " and ".join(names)

    def start(self) -> None:
        """Answer, with what the running event loop's ``Status`` says."""
        self._agent = asyncio.get_running_loop()
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="admin", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
            await asyncio.to_thread(self._thread.join, SHUTDOWN_SECONDS)
            self._thread = None
        self._close()

    def _close(self) -> None:
        for place in self._places:
            place.listener.close()
        for path, inode in self._socket_files:
            with contextlib.suppress(FileNotFoundError):
                # A newer agent may have put its own socket there.
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._places.clear()
        self._socket_files.clear()

    # In the thread.

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        accepting = [asyncio.create_task(self._accept(place)) for place in self._places]
        await self._ended.wait()
        tasks = [
            *accepting,
            *(task for place in self._places for task in place.open),
            *(page for _, page in self._pages.values()),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, place: Place) -> None:
        while True:
            try:
                client, _ = await self._loop.sock_accept(place.listener)
            except OSError:  # no descriptors, or the client was gone before we came
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if len(place.open) >= MAX_OPEN:
                oldest = next(iter(place.open))
                del place.open[oldest]
                oldest.cancel()
                self.cut_off += 1
            task = self._loop.create_task(self._converse(client, place.is_port))
            place.open[task] = None
            task.add_done_callback(lambda task: place.open.pop(task, None))
            await asyncio.sleep(PACE)

    async def _converse(self, client: socket.socket, at_port: bool) -> None:
        with client, contextlib.suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(CLIENT_TIMEOUT_SECONDS):
                request = _parse(await self._read_head(client))
            page = (
                await self._page(request, at_port) if request else _error(HTTPStatus.BAD_REQUEST, "this is no HTTP/1 request")
            )
            async with asyncio.timeout(CLIENT_TIMEOUT_SECONDS):
                await self._loop.sock_sendall(client, page.reply(request is None or request.method != "HEAD"))

    async def _read_head(self, client: socket.socket) -> bytes:
        """Up to the empty line; shorter if the client does not say more, longer heads are not read to the end."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
            piece = await self._loop.sock_recv(client, MAX_HEAD - len(head))
            if not piece:
                break
            head += piece
        return head

    async def _page(self, request: Request, at_port: bool) -> Page:
        if at_port and not _names_loopback(request.hosts):
            return _error(HTTPStatus.FORBIDDEN, "the Host header must be localhost")
        make = self._makers().get(request.path)
        if make is None:
            return _error(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz, /policy and /connections")
        if request.method not in ("GET", "HEAD"):
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, "nothing can be changed here")
        if at_port and request.path in ("/policy", "/connections"):
            return _error(HTTPStatus.FORBIDDEN, "a port is open to every user of this host: ask at the agent's socket")
        made, page = self._pages.get((request.path, at_port), (0.0, None))
        # Who asks while an answer is being made shares it.
        if page is None or (page.done() and not (at_port and monotonic() - made < MAX_AGE)):
            page = self._loop.create_task(self._make(make(at_port)))
            self._pages[request.path, at_port] = monotonic(), page
        return await asyncio.shield(page)

    def _makers(self) -> Mapping[str, Callable[[bool], Awaitable[Page]]]:
        return {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/policy": self._policy,
            "/connections": self._connections,
        }

    async def _make(self, page: Awaitable[Page]) -> Page:
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_SECONDS):
                return await page
        except TimeoutError:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "the agent did not answer in time")
        except Exception as error:  # a fault of ours must not end the listener
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    async def _ask(self, question: Coroutine[Any, Any, Any]) -> Any:
        """What the agent says, in its own loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(question, self._agent))

    async def _metrics(self, _: bool) -> Page:
        text = render(await self._ask(self._status.metrics()))
        return Page(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", text)

    async def _healthz(self, at_port: bool) -> Page:
        checks: Mapping[str, Check] = await self._ask(self._status.health())
        if at_port:  # details name files and quote documents
            checks = {name: Check(check.ok) for name, check in checks.items()}
        ok = all(check.ok for check in checks.values())
        return _json({"ok": ok, "checks": checks}, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _policy(self, _: bool) -> Page:
        return _json(await self._ask(self._status.policy()))

    async def _connections(self, _: bool) -> Page:
        total, shown = await self._ask(self._status.connections(MAX_CONNECTIONS))
        return _json({"total": total, "connections": shown[:MAX_CONNECTIONS]})


def _parse(head: bytes) -> Request | None:
    """A request's head, up to the empty line; None if it is none that we understand."""
    text, end, _ = head.decode("latin-1").partition("\r\n\r\n")
    line, *fields = text.split("\r\n")
    words = line.split(" ")
    if not end or len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    named = (field.partition(":") for field in fields)
    hosts = [value.strip() for name, _, value in named if name.lower() == "host"]
    return Request(words[0], words[1].partition("?")[0], hosts)


def _names_loopback(hosts: Sequence[str]) -> bool:
    """Whether this is no DNS rebinding: a page of evil.example whose name now points to 127.0.0.1 says its own name in Host."""
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].rpartition(":")
    host = name if colon and port.isdecimal() else hosts[0]
    return host.lower() in LOOPBACK_NAMES


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> Page:
    return Page(status, "application/json", msgspec.json.format(msgspec.json.encode(value)) + b"\n")


def _error(status: HTTPStatus, text: str) -> Page:
    return _json({"ok": False, "error": text}, status)


def _listen_tcp(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError):
        listener.close()
        raise
    return listener


def _listen_unix(path: str) -> socket.socket:
    Path(path).parent.mkdir(mode=0o755, exist_ok=True)
    _remove_dead_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        # Nobody can connect before ``listen``, so there is no moment at which the socket is open to all.
        os.chmod(path, SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_dead_socket(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "there is a file that is not a socket; move it away or choose another --admin path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A live agent whose backlog is full must not make us wait.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another agent answers here; stop it or choose another --admin path")
