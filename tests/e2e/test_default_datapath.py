"""What works without a single option: programs that ask how many bytes are unread must never wait for ever.

Sockets in the map get everything in one queue, of which FIONREAD is right. As kernels are wrong about other ways to read it,
`auto` accelerates only workloads that ask for it. These tests start the agent as a user would, whatever ``--datapath`` says,
with workloads that ask for it and with others that say nothing.
"""

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy import selftest
from tests.harness import Server, Sluice, Workload, command_exists, eventually, free_port, http_policy

MakeServer = Callable[..., Server]

pytestmark = pytest.mark.only("relay", "asks for auto itself")

SIZES = (0, 500, 930, 2_000, 20_000, 200_000, 2_000_000)

NGINX = """daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
  access_log off; client_max_body_size 100m; client_body_timeout 3s; large_client_header_buffers 4 16k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen {port}; location / {{ proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass {behind}; }} }}
  server {{ listen unix:{folder}/echo.sock; location / {{ return 200 "$request_length $request_uri\\n"; }} }}
}}
"""


@contextlib.contextmanager
def nginx(workload: Workload, folder: Path, behind: str | None = None) -> Iterator[int]:
    """An unmodified nginx in ``workload``; its port. It needs the whole body before it can answer: it hands it on to a second
    server, its own or the one at ``behind``."""
    if not command_exists("nginx"):
        pytest.skip("no nginx here")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, behind=behind or f"http://unix:{folder}/echo.sock"))
    process = workload.start("nginx", "-c", str(config), stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: f":{port:04X} " in Path("/proc/net/tcp").read_text(), "nginx listens")
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(params=["on", None], ids=["asks", "says-nothing"])
def word(request: pytest.FixtureRequest) -> str | None:
    """What both workloads say about acceleration."""
    return request.param  # type: ignore[no-any-return]


def by_default(folder: Path, web: Workload, orders: Workload, port: int, word: str | None) -> Sluice:
    documents = "".join(workload.document(word) for workload in (web, orders)) + http_policy(orders, web, port, "[{}]")
    return Sluice(folder, documents, "--datapath", "auto")


def carries(word: str | None) -> bool:
    found = selftest.kernel_path().reading
    return found is not None and (word == "on" or not found.wrong())


def test_an_nginx_server_gets_heads_and_bodies_of_every_size(
    word: str | None, web: Workload, orders: Workload, tmp_path: Path
) -> None:
    """A request that the kernel has not proven is the relay's, to a socket that may be in the map."""
    body = tmp_path / "body.bin"
    with nginx(orders, tmp_path) as port, by_default(tmp_path, web, orders, port, word) as agent:
        url = f"http://127.0.0.1:{port}/[1-4]"
        curl = ["curl", "-sS", "--max-time", "10", "-H", "Expect:"]
        for size in SIZES:
            body.write_bytes(b"x" * size)
            done = web.run(*curl, "--data-binary", f"@{body}", url)
            assert [line.split()[1:] for line in done.stdout.splitlines()] == [["/1"], ["/2"], ["/3"], ["/4"]], (size, done)
        done = web.run(*curl, "-b", "c=" + "x" * 1500, url)
        assert len(done.stdout.splitlines()) == 4, done
        records = agent.wait_records(4 * len(SIZES) + 4)
        assert {record["status"] for record in records} == {200}
        assert ("kernel" in {record["via"] for record in records}) is carries(word)


def answer_as_asked(connection: socket.socket) -> None:
    """A reply with as many bytes as the path says."""
    with contextlib.closing(connection.makefile("rb")) as lines:
        while line := lines.readline():
            if line.startswith(b"GET /"):
                size = int(line.split()[1][1:])
            elif line == b"\r\n":
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (size, b"y" * size))


def test_an_nginx_client_gets_replies_of_every_size(
    word: str | None, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve(orders, answer_as_asked)
    with (
        nginx(web, tmp_path, f"http://127.0.0.1:{server.port}") as port,
        by_default(tmp_path, web, orders, server.port, word) as agent,
    ):
        for size in SIZES:
            url = f"http://127.0.0.1:{port}/{size}"
            done = subprocess.run(["curl", "-sS", "--max-time", "10", *[url] * 4], capture_output=True, text=True, check=True)
            assert done.stdout == "y" * size * 4, (size, len(done.stdout), done.stderr)
        assert {record["status"] for record in agent.wait_records(4 * len(SIZES))} == {200}


def test_by_default_only_workloads_that_ask_are_accelerated_where_a_way_to_read_is_wrong(
    word: str | None, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve(orders)
    with by_default(tmp_path, web, orders, server.port, word) as agent:
        web.run("curl", "-sS", "--rate", "50/s", f"http://127.0.0.1:{server.port}/[1-30]")
        ways = {record["via"] for record in agent.wait_records(30)}
    assert ("kernel" in ways) is carries(word), json.dumps(sorted(ways))
