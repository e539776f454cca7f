"""The admin listener: how the agent is, for people, probes and Prometheus. It reads and never changes anything.

aiohttp is imported when the listener starts, because it costs an idle agent more memory than all the rest of this package.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from proxy.metrics import Snapshot, render

if TYPE_CHECKING:
    from aiohttp import web

DEFAULT_ADDRESS = "/run/sluice/admin.sock"
SOCKET_MODE = 0o600  # whoever may read this learns who talks to whom
# Entries of /connections: enough to look at, small enough to build without holding the event loop up.
MAX_CONNECTIONS = 1000
# How long the agent may take to answer, for instance to ask its workers. Probes and scrapers wait 10 s by default.
STATUS_TIMEOUT_SECONDS = 5.0
# How long requests that are being answered may hold up the end of the agent.
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


class Admin:
    """Serves a ``Status`` at a Unix socket (a path) or at a TCP port of 127.0.0.1 (a number)."""

    def __init__(self, status: Status, address: str = DEFAULT_ADDRESS) -> None:
        self._status = status
        self._address = address
        self._runner: web.AppRunner | None = None
        self._socket_file: tuple[str, int] | None = None  # path and inode
        self.address = address

    async def start(self) -> None:
        """Listen. Raises ``AdminError``."""
        from aiohttp import web

        listener = self._listen()
        app = web.Application(middlewares=[web.middleware(_only_loopback_names)] if self._is_tcp else [])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/policy", self._policy)
        app.router.add_get("/connections", self._connections)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._socket_file is not None:
            path, inode = self._socket_file
            with contextlib.suppress(FileNotFoundError):
                # A newer agent may have put its own socket there.
                if os.stat(path).st_ino == inode:
                    os.unlink(path)

    @property
    def _is_tcp(self) -> bool:
        return self._address.isdecimal()

    def _listen(self) -> socket.socket:
        try:
            if self._is_tcp:
                listener = _listen_tcp(int(self._address))
                self.address = str(listener.getsockname()[1])
            else:
                listener = _listen_unix(self._address)
                self._socket_file = (self._address, os.stat(self._address).st_ino)
        except (OSError, OverflowError) as error:
            raise AdminError(f"admin listener at {self._address}: {error}") from error
        return listener

    async def _metrics(self, _: "web.Request") -> "web.Response":
        return await _answer(self._render_metrics)

    async def _healthz(self, _: "web.Request") -> "web.Response":
        return await _answer(self._render_health)

    async def _policy(self, _: "web.Request") -> "web.Response":
        return await _answer(self._render_policy)

    async def _connections(self, _: "web.Request") -> "web.Response":
        return await _answer(self._render_connections)

    async def _render_metrics(self) -> "web.Response":
        return _response(render(await self._status.metrics()), content_type="text/plain; version=0.0.4; charset=utf-8")

    async def _render_health(self) -> "web.Response":
        checks = await self._status.health()
        ok = all(check.ok for check in checks.values())
        return _json({"ok": ok, "checks": checks}, status=200 if ok else 503)

    async def _render_policy(self) -> "web.Response":
        return _json(await self._status.policy())

    async def _render_connections(self) -> "web.Response":
        total, shown = await self._status.connections(MAX_CONNECTIONS)
        return _json({"total": total, "connections": shown[:MAX_CONNECTIONS]})


async def _answer(render_response: Callable[[], Awaitable["web.Response"]]) -> "web.Response":
    try:
        async with asyncio.timeout(STATUS_TIMEOUT_SECONDS):
            return await render_response()
    except TimeoutError:
        return _json({"ok": False, "error": "the agent did not answer in time"}, status=503)


def _json(value: object, status: int = 200) -> "web.Response":
    return _response(msgspec.json.format(msgspec.json.encode(value)) + b"\n", "application/json", status)


def _response(body: bytes, content_type: str, status: int = 200) -> "web.Response":
    from aiohttp import web

    # nosniff: what a client put into a name must not be run as a page by a browser that looks at it.
    headers = {"Content-Type": content_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=body, status=status, headers=headers)


async def _only_loopback_names(
    request: "web.Request", handler: "Callable[[web.Request], Awaitable[web.StreamResponse]]"
) -> "web.StreamResponse":
    """Refuse DNS rebinding: a page of evil.example whose name now points to 127.0.0.1 still says its own name in Host."""
    name, colon, port = request.headers.get("Host", "").rpartition(":")
    host = name if colon and port.isdecimal() else request.headers.get("Host", "")
    if host.lower() not in LOOPBACK_NAMES:
        return _json({"ok": False, "error": "the Host header must be localhost"}, status=403)
    return await handler(request)


def _listen_tcp(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
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
