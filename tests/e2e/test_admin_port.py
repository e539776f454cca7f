"""The admin listener's port, which every user of the host can reach: they learn little, and hold no call up."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable

from tests.harness import Server, Sluice, Workload, http_policy, read_reply

# Becomes user nobody, opens connections that say nothing, asks 500 times a second, and tells the statuses that it got.
FLOOD = """
import collections, contextlib, json, os, select, socket, sys, time
os.setgid(65534), os.setuid(65534)
port, statuses, open_ = int(sys.argv[1]), collections.Counter(), []
silent = [socket.socket() for _ in range(100)]
for sock in silent:
    sock.setblocking(False), sock.connect_ex(("127.0.0.1", port))
print(flush=True)
while not select.select([sys.stdin], [], [], 0.002)[0]:
    sock = socket.socket()
    sock.settimeout(1)
    with sock, contextlib.suppress(OSError):
        path = ("/connections", "/metrics", "/policy")[sum(statuses.values()) % 3]
        sock.connect(("127.0.0.1", port))
        sock.sendall(f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n".encode())
        statuses[path + " " + sock.recv(1000).decode()[9:12]] += 1
print(json.dumps(statuses))
"""


def test_a_user_who_floods_the_port_learns_of_no_connection_and_holds_no_call_up(
    web: Workload, orders: Workload, serve: Callable[..., Server], sluice: Callable[..., Sluice]
) -> None:
    server = serve(orders)
    agent = sluice(web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]"), "--admin", "0")
    port = re.search(r"admin at \S+ and (\d+)", agent.log.read_text())
    assert port
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    flood = subprocess.Popen([sys.executable, "-c", FLOOD, port[1]], **pipes)
    assert flood.stdout is not None
    slowest, ends = 0.0, time.monotonic() + 1.5
    flood.stdout.readline()
    while time.monotonic() < ends:
        began = time.monotonic()
        with web.connect(server.port) as client:
            client.sendall(b"GET /x HTTP/1.1\r\nhost: orders\r\n\r\n")
            assert read_reply(client)[0] == 200
        slowest = max(slowest, time.monotonic() - began)
    told, _ = flood.communicate(timeout=30)
    assert slowest < 2.0
    statuses = json.loads(told)
    assert set(statuses) <= {"/connections 403", "/metrics 200", "/policy 403", "/metrics ", "/connections ", "/policy "}
    assert {"/connections 403", "/metrics 200"} <= set(statuses)
    assert agent.get("/connections")["total"] >= 0, "the socket tells"
