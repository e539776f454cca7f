"""What the kernel has carried outlives the agent that let it: a slow reader loses nothing."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Server, Sluice, Workload, eventually, http_policy, read_reply

MakeServer = Callable[..., Server]

pytestmark = pytest.mark.only("kernel", "asks for it itself")

BODY = bytes(range(256)) * 4096  # 1 MiB: more than the client's TCP queue would take


def answer(connection: socket.socket) -> None:
    """Answers /small and /large, each in one piece."""
    while data := connection.recv(65536):
        body = BODY if b"/large" in data else b"ok"
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def ask(client: socket.socket, path: str) -> None:
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n".encode())


@pytest.mark.parametrize("end", ["stopped", "killed and replaced"])
def test_a_reply_that_waits_for_its_reader_survives_the_agent(
    end: str, web: Workload, orders: Workload, serve: MakeServer, tmp_path: Path
) -> None:
    server = serve(orders, answer)
    documents = web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]")
    agent = Sluice(tmp_path, documents, "--datapath", "kernel")
    with agent, web.connect(server.port) as client:

        def carried() -> bool:
            ask(client, "/small")
            assert read_reply(client)[0] == 200
            return agent.metric("sluice_kernel_bytes_total") > 0

        eventually(carried, "the kernel carries calls")
        before = agent.metric('sluice_kernel_bytes_total{direction="reply"}')
        ask(client, "/large")
        eventually(lambda: agent.metric('sluice_kernel_bytes_total{direction="reply"}') > before + len(BODY), "it is carried")
        if end == "stopped":
            assert agent.stop() == 0
        else:
            agent.kill()
            agent.start()
        status, _, body = read_reply(client)
        assert (status, body) == (200, BODY)
        assert client.recv(1) == b""


def test_a_clean_stop_leaves_no_process_when_everybody_has_closed(
    web: Workload, orders: Workload, serve: MakeServer, sluice: Callable[..., Sluice]
) -> None:
    server = serve(orders, answer)
    agent = sluice(web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]"), "--datapath", "kernel")
    with web.connect(server.port) as client:
        ask(client, "/small")
        assert read_reply(client)[0] == 200
    agent.wait_records(1)
    eventually(lambda: agent.get("/connections")["total"] == 0, "the connection is over")
    before = leftovers()
    assert agent.stop() == 0
    assert leftovers() == before


def leftovers() -> list[str]:
    return subprocess.run(["pgrep", "-f", "^sluice-leftover"], capture_output=True, text=True).stdout.split()
