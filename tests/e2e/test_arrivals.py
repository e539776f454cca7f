"""Calls that could arrive at another server than was judged: one that starts meanwhile, or one of several at a port."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.clients import FOLDER
from tests.harness import Sluice, Workload, eventually, free_port, http_policy

STARTS = 10_000 if os.environ.get("SLUICE_SOAK") == "1" else 300
PROGRAM = [sys.executable, str(FOLDER / "starts.py")]


def test_no_call_gets_past_policy_while_its_server_starts(
    web: Workload, orders: Workload, workload: Callable[..., Workload], sluice: Callable[..., Sluice]
) -> None:
    """No denied call arrives, none arrives without a record, and whoever may call is neither stuck nor left native."""
    thief, port = workload("thief"), free_port()
    policy = http_policy(orders, web, port, '[{method: GET, path: "/ok"}]')
    agent = sluice(web.document() + orders.document() + thief.document() + policy)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    thieves = [thief.start(*PROGRAM, how, "127.0.0.1", str(port)) for how in ("deny", "late")]
    honest = web.start(*PROGRAM, "call", "127.0.0.1", str(port), **pipes)
    server = orders.start(*PROGRAM, "serve", "127.0.0.1", str(port), str(STARTS), **pipes)
    assert server.stdout.readline() == "ready\n"
    result = json.loads(honest.communicate("\n")[0])
    for process in thieves:
        process.kill()
    asked = json.loads(server.communicate("\n")[0])

    print(f"{STARTS} starts: {asked}; the honest client: {result}")
    assert set(asked) <= {"GET /ok HTTP/1.1", "nothing"}  # nothing: the agent dialled, and the client had gone
    assert result["outcomes"]["last: HTTP/1.1 200 OK"] == 1
    assert result["longest"] < 5

    def recorded() -> bool:
        return sum(record["verdict"] == "ALLOWED" for record in agent.records()) >= asked["GET /ok HTTP/1.1"]

    eventually(recorded, "a record of every call that arrived")


def test_a_policed_port_that_another_workload_joins_gets_no_call_that_nobody_reads(
    web: Workload, orders: Workload, workload: Callable[..., Workload], sluice: Callable[..., Sluice]
) -> None:
    """SO_REUSEPORT: the kernel chooses between the two for every connection, the agent's own among them."""
    thief, port = workload("thief"), free_port()
    policy = http_policy(orders, web, port, '[{method: GET, path: "/ok"}]')
    sluice(web.document() + orders.document() + thief.document() + policy)
    sockets = []
    for owner in (orders, thief):
        with owner.inside():
            sockets.append(socket.socket())
        sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sockets[-1].bind(("127.0.0.1", port))
        sockets[-1].listen()
        sockets[-1].setblocking(False)
    for owner in (thief, web):
        for _ in range(20):
            with contextlib.suppress(ConnectionError), owner.connect(port) as client:
                client.sendall(b"DELETE / HTTP/1.1\r\nhost: a\r\n\r\n")
                assert client.recv(1000) == b""
    for listener in sockets:
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.close()
