"""Programs that know nothing of Sluice: the HTTP clients of several languages get the right answers and see the right peer."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from proxy import hostnet
from tests.clients import FOLDER
from tests.harness import Server, Sluice, Workload, command_exists, http_policy
from tests.requirements import require_bpf

RULES = '[{method: GET, path: "/ok"}, {method: POST, path: "/submit"}]'
PLACES = {"IPv4": "127.0.0.1", "IPv6": "[::1]", "IPv4-mapped": "[::ffff:127.0.0.1]"}


def echo(connection: socket.socket) -> None:
    """Answers each request with its own body, framed by Content-Length."""
    buffer = b""
    while data := connection.recv(65536):
        buffer += data
        while b"\r\n\r\n" in buffer:
            head, rest = buffer.split(b"\r\n\r\n", 1)
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            size = int(length[1]) if length else 0
            if len(rest) < size:
                break
            body, buffer = rest[:size], rest[size:]
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (size, body))


class House:
    """One agent, a client's and a server's workload, and the same port on IPv4 and IPv6."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.web, self.orders = Workload("web"), Workload("orders")
        stack.callback(self.web.close)
        stack.callback(self.orders.close)
        server = Server(self.orders, echo)
        stack.callback(server.close)
        self.port = server.port
        if hostnet.has_ipv6():
            stack.callback(Server(self.orders, echo, "::1", server.port).close)
        policy = http_policy(self.orders, self.web, server.port, RULES)
        self.agent = stack.enter_context(Sluice(folder, self.web.document() + self.orders.document() + policy))
        self.records = 0

    def place(self, kind: str) -> str:
        if kind == "IPv6" and not hostnet.has_ipv6():
            pytest.skip("this machine has no IPv6")
        return f"{PLACES[kind]}:{self.port}"

    def check(self, answer: dict[str, object], kind: str) -> None:
        """The three calls came out as the policy says, were recorded, and the program saw the server as its peer."""
        assert (answer["allowed"], answer["denied"], answer["posted"]) == (200, 403, 200)
        assert answer["echo"] == "a body"
        peer = answer["peer"]
        if peer is not None:
            shown = re.fullmatch(r"\[?([^\]]+?)\]?[ :](\d+)", str(peer))
            assert shown, peer
            assert int(shown[2]) == self.port
            assert plain(shown[1]) == plain(PLACES[kind].strip("[]"))
        fresh = self.agent.wait_records(self.records + 3)[self.records :]
        self.records += 3
        assert [(record["verdict"], record["method"], record["path"]) for record in fresh] == [
            ("ALLOWED", "GET", "/ok"),
            ("DENIED", "GET", "/denied"),
            ("ALLOWED", "POST", "/submit"),
        ]
        assert {(record["subject"]["workload"], record["peer"]["workload"]) for record in fresh} == {
            (self.web.name, self.orders.name)
        }


def plain(text: str) -> str:
    address = ip_address(text)
    return str((address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    require_bpf()
    with contextlib.ExitStack() as stack:
        yield House(stack, tmp_path_factory.mktemp("house"))


def printed(house: House, *command: str) -> dict[str, object]:
    done = house.web.run(*command)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("library", ["http.client", "requests", "urllib3", "aiohttp"])
def test_python(house: House, library: str, kind: str) -> None:
    house.check(printed(house, sys.executable, str(FOLDER / "pythons.py"), library, house.place(kind)), kind)


@pytest.mark.parametrize("kind", PLACES)
def test_curl(house: House, kind: str) -> None:
    base, form = f"http://{house.place(kind)}", "%{http_code} %{remote_ip} %{remote_port}\\n"
    done = house.web.run(
        "curl", "-s", "-g", "-w", form, "-o", "/dev/null", f"{base}/ok", "-o", "/dev/null", f"{base}/denied",
        "--next", "-s", "-g", "-w", form, "-d", "a body", f"{base}/submit",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    allowed, denied, posted = (line.split() for line in done.stdout.removesuffix("\n").split("\n"))
    assert posted[:2] == ["a", "body200"]
    answer = {"allowed": int(allowed[0]), "denied": int(denied[0]), "posted": 200, "echo": "a body"}
    house.check(answer | {"peer": " ".join(posted[2:])}, kind)


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not command_exists("go"):
        pytest.skip("go is not installed")
    program = tmp_path_factory.mktemp("go") / "client"
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    built = subprocess.run(
        ["go", "build", "-gcflags=all=-N -l", "-ldflags=-s -w", "-o", str(program), "."],
        cwd=FOLDER / "go",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return str(program)


@pytest.mark.parametrize("kind", PLACES)
def test_go(house: House, go_client: str, kind: str) -> None:
    house.check(printed(house, go_client, house.place(kind)), kind)


@pytest.mark.parametrize("kind", PLACES)
def test_java(house: House, kind: str) -> None:
    if not command_exists("java"):
        pytest.skip("java is not installed")
    house.check(
        printed(house, "java", "-XX:TieredStopAtLevel=1", str(FOLDER / "java" / "Client.java"), house.place(kind)), kind
    )


@pytest.mark.parametrize("kind", PLACES)
def test_node(house: House, kind: str) -> None:
    if not command_exists("node"):
        pytest.skip("node is not installed")
    house.check(printed(house, "node", str(FOLDER / "node" / "client.js"), house.place(kind)), kind)
