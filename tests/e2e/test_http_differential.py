"""Transparency: with and without the agent, each side receives the same bytes."""

import gzip
import os
import re
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.stage import Line, Stage, staged
from tests.harness import Workload, command_exists, eventually, free_port
from tests.requirements import require_bpf

LARGE = os.urandom(5 * 1024 * 1024)
TEXT = b"All work and no play makes Jack a dull boy.\n" * 200


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    yield from staged(tmp_path_factory.mktemp("differential"), {"server": "[{}]"})


@pytest.fixture(scope="module")
def nginx(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """A real server with two ports: the first one is policed, the second one is not."""
    if not command_exists("nginx"):
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    (folder / "large").write_bytes(LARGE)
    (folder / "text.txt").write_bytes(TEXT)
    policed, open_port = free_port(), free_port()
    workload = stage.workload("nginx")
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, policed=policed, open=open_port))
    stage.agent.reload(stage.documents + _policy(stage.web, workload, policed))
    workload.start("nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"))
    eventually(lambda: _listens(open_port), "nginx listens")
    return policed, open_port


_NGINX = """
daemon off; master_process off; pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
  access_log off; gzip on; gzip_types text/plain; gzip_min_length 1; gzip_proxied any; server_tokens off;
  types {{ text/plain txt; }} default_type application/octet-stream;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{policed}; listen 127.0.0.1:{open}; root {folder}; location = /gone {{ return 410; }} }}
}}
"""


def _policy(web: Workload, server: Workload, port: int) -> str:
    return f"""{server.document()}apiVersion: sluice.dev/v1
kind: ApiPolicy
metadata: {{name: nginx}}
spec:
  endpointSelector: {{matchLabels: {{app: {server.name}}}}}
  enableDefaultDeny: {{ingress: false}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: {web.name}}}}}]
    toPorts:
    - ports: [{{port: "{port}", protocol: TCP}}]
      rules: {{http: [{{}}]}}
"""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"{method} {path} HTTP/1.1\r\nHost: site.example\r\n{lines}\r\n".encode("latin-1")


CLOSE = get("/text.txt", "Connection: close", method="HEAD")
TALKS = {
    "get": [get("/text.txt")],
    "keep-alive": [get("/text.txt"), get("/text.txt"), get("/gone"), get("/text.txt")],
    "head": [get("/large", method="HEAD")],
    "range": [get("/large", "Range: bytes=1000-1999")],
    "several-ranges": [get("/large", "Range: bytes=0-9,100-109")],
    "impossible-range": [get("/large", "Range: bytes=99999999-")],
    "not-found": [get("/none")],
    "not-modified": [get("/text.txt", "If-Modified-Since: Fri, 01 Jan 2038 00:00:00 GMT")],
    "large": [get("/large")],
    "gzip": [get("/text.txt", "Accept-Encoding: gzip")],
    "method-not-allowed": [b"POST /text.txt HTTP/1.1\r\nHost: site.example\r\nContent-Length: 5\r\n\r\nhello"],
    "options": [get("/text.txt", method="OPTIONS")],
    "http10": [b"GET /text.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"],
}


def talk(line: Line, requests: list[bytes]) -> bytes:
    """All that the server says to pipelined requests and its close, but for the time of day and the boundary it chose."""
    received = line.send(b"".join(requests) + CLOSE).rest()
    return re.sub(rb"\r\nDate: [^\r]+|\d{20}", b"", received)


@pytest.mark.parametrize("requests", [pytest.param(requests, id=name) for name, requests in TALKS.items()])
def test_nginx_says_the_same_through_the_agent(stage: Stage, nginx: tuple[int, int], requests: list[bytes]) -> None:
    policed, open_port = nginx
    with Line(stage.web.connect(open_port)) as direct, Line(stage.web.connect(policed)) as relayed:
        expected = talk(direct, requests)
        assert talk(relayed, requests) == expected
    assert expected.startswith(b"HTTP/1.1 ")
    verdicts = [record["verdict"] for record in stage.records(len(requests) + 1)]
    assert verdicts == ["ALLOWED"] * (len(requests) + 1)


def test_the_talks_show_what_they_mean_to(stage: Stage, nginx: tuple[int, int]) -> None:
    with Line(stage.web.connect(nginx[0])) as client:
        head = client.send(get("/text.txt", "Accept-Encoding: gzip", "Connection: close")).head()
        assert b"Content-Encoding: gzip" in head
        assert b"Transfer-Encoding: chunked" in head
        body = client.rest()
    stage.records(1)
    assert gzip.decompress(b"".join(re.findall(rb"(?s)[0-9a-f]+\r\n(.+?)\r\n(?=[0-9a-f]+\r\n)", body))) == TEXT


REQUESTS = {
    "odd-fields": get("/a?b=%20c;d", "X-Odd:   spaces  inside ", "x-ODD: again", "Cookie: a=b; c=d", "X-Latin: caf\xe9"),
    "body": b"PUT /up HTTP/1.1\r\nHost: site.example\r\nContent-Length: 100000\r\n\r\n" + LARGE[:100_000],
    "chunks": b"POST /up HTTP/1.1\r\nHost: site.example\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"A;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
    "absolute": b"GET http://site.example/a HTTP/1.1\r\nHost: site.example\r\n\r\n",
    "pipelined": get("/1") + get("/2") + get("/3"),
}


@pytest.mark.parametrize("request_", [pytest.param(request, id=name) for name, request in REQUESTS.items()])
def test_a_server_receives_the_same_through_the_agent(stage: Stage, request_: bytes) -> None:
    """TCP already guarantees what a direct connection delivers: the bytes that were sent."""

    def listen(line: Line) -> None:
        line.exactly(len(request_))
        line.send(b"HTTP/1.1 204 x\r\n\r\n" * max(1, request_.count(b"HTTP/1.1\r\n"))).rest()

    with stage.client("server", listen) as client:
        client.send(request_).end()
        client.rest()
    assert bytes(stage.seen["server"]) == request_
    stage.records(request_.count(b"HTTP/1.1\r\n"))
