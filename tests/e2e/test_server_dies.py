"""A server that is killed while it is called: every call that was sent has one record, whatever became of it."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

from tests.harness import Sluice, Workload, eventually, free_port, http_policy

MakeSluice = Callable[..., Sluice]

KILLS = 50 if os.environ.get("SLUICE_SOAK") == "1" else 4

SERVER = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
print("ready", flush=True)

def serve(client):
    rest = b""
    while data := client.recv(65536):
        *heads, rest = (rest + data).split(b"\\r\\n\\r\\n")
        for _ in heads:
            client.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 3\\r\\n\\r\\nok\\n")

while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"""

# Prints the paths that it has sent and those that were answered with 200.
CLIENT = """
import json, socket, sys, threading, time
sent, answered, ended = [], [], threading.Event()

def call(sock, path):
    sock.sendall(f"GET {path} HTTP/1.1\\r\\nhost: orders\\r\\n\\r\\n".encode())
    sent.append(path)
    reply = b""
    while not reply.endswith(b"ok\\n"):
        data = sock.recv(65536)
        if not data or b" 50" in data[:12]:
            raise ConnectionError
        reply += data
    answered.append(path)

def run(number):
    made = 0
    while not ended.is_set():
        try:
            with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as sock:
                while not ended.is_set() and (made := made + 1) % 300:
                    call(sock, f"/{number}/{made}")
        except OSError:
            time.sleep(0.005)

threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
sys.stdin.read()
ended.set()
for thread in threads:
    thread.join()
print(json.dumps([sent, answered]))
"""


def test_every_call_that_was_sent_to_a_server_that_is_killed_has_one_record(
    web: Workload, orders: Workload, sluice: MakeSluice
) -> None:
    port = free_port()
    agent = sluice(web.document() + orders.document() + http_policy(orders, web, port, "[{}]"))

    def start() -> "subprocess.Popen[bytes]":
        server = orders.start(sys.executable, "-c", SERVER, str(port), stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        return server

    server = start()
    client = web.start(sys.executable, "-c", CLIENT, str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(KILLS):
        time.sleep(0.2)  # calls are under way
        server.kill()
        server.wait()
        server = start()
    output, _ = client.communicate(timeout=30)
    sent, answered = json.loads(output)
    eventually(lambda: agent.metric("sluice_connections") == 0, "no connection is open")
    eventually(lambda: agent.audit.read_bytes().count(b"\n") >= len(sent), "records")
    server.kill()
    records = agent.records()
    told = Counter(record["path"] for record in records)
    assert told == Counter(sent)
    assert len({record["id"] for record in records}) == len(records)
    statuses = {record["path"]: record.get("status") for record in records}
    assert {path for path in sent if statuses[path] == 200} >= set(answered)
