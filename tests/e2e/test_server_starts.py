"""Calls that race a server's start: connect() is judged while nobody listens, and the SYN arrives when somebody does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

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
