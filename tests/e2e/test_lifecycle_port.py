"""The agent's port is never to be had while hooks point connections at it.

Whoever got it would get the requests of others, with their tokens.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.clients import Witness, hammering
from tests.harness import Server, Sluice, Workload, eventually, http_policy, read_reply

# Becomes user nobody and binds, in a loop and in every way there is, the ports of the line that it read last. Ends with its
# input; then tells how often it tried, what it got, and which bytes came there.
SQUATTER = """
import itertools, json, os, select, socket, sys, time
os.setgid(65534), os.setuid(65534)
tried, got, seen, ports, held = 0, set(), b"", [], []
PLACES = [("127.0.0.1", 1), ("0.0.0.0", 1), ("::1", 1), ("::", 1), ("::", 0), ("::ffff:127.0.0.1", 0)]
WAYS = list(itertools.product(PLACES, *[(False, True)] * 3))
while True:
    time.sleep(0.001)
    if select.select([sys.stdin], [], [], 0)[0]:
        line = sys.stdin.readline()
        if not line:
            break
        ports = [int(port) for port in line.split()]
        print(flush=True)
    for port, ((host, only_v6), reuse, share, device) in itertools.product(ports, WAYS) if len(held) < 100 else ():
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if ":" in host:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
            sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        tried += 1
        try:
            sock.bind((host, port))
            sock.listen()
        except OSError:
            sock.close()
            continue
        got.add(f"{host} {port}")
        held.append(sock)
    for sock in select.select(held, [], [], 0)[0]:
        taken, _ = sock.accept()
        taken.settimeout(1)
        try:
            seen += taken.recv(1000)
        except OSError:
            pass
print(json.dumps({"tried": tried, "got": sorted(got), "seen": seen.decode("latin-1")}))
"""


class Squatter:
    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", SQUATTER], **pipes)

    def want(self, *ports: int) -> None:
        """From now on these ports."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, ports)) + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def end(self) -> dict[str, object]:
        told, _ = self._process.communicate(timeout=60)
        result: dict[str, object] = json.loads(told)
        return result


@contextlib.contextmanager
def squatting() -> Iterator[Squatter]:
    squatter = Squatter()
    try:
        yield squatter
    finally:
        squatter._process.kill()
        squatter._process.communicate()


def port_of(agent: Sluice) -> int:
    """On which an agent listens, as anybody can find out who may read /proc."""
    assert agent.process is not None
    folder = f"/proc/{agent.process.pid}/fd"
    inodes = set()
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(f"{folder}/{fd}").removeprefix("socket:[").removesuffix("]"))
    sockets = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return next(int(fields[1].partition(":")[2], 16) for fields in sockets if fields[3] == "0A" and fields[9] in inodes)


def test_nobody_gets_the_agents_port_through_stops_kills_and_upgrades(
    web: Workload, orders: Workload, serve: Callable[..., Server], tmp_path: Path
) -> None:
    half, rest = threading.Event(), threading.Event()
    witness = Witness()

    def serve_one(connection: socket.socket) -> None:
        if connection.recv(5, socket.MSG_PEEK) == b"GET /":
            witness.serve(connection)
        connection.recv(1000)
        half.set()
        rest.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n.")

    server = serve(orders, serve_one)
    documents = web.document() + orders.document() + http_policy(orders, web, server.port, '[{path: "/ok(/.*)?"}]')
    agent = Sluice(tmp_path, documents, "--hold-on-exit", "--workers", "2")
    other = Sluice(tmp_path, documents)
    with contextlib.ExitStack() as stack:
        stack.callback(agent.end_guard)
        stack.callback(agent.stop)
        stack.callback(other.stop)
        squatter = stack.enter_context(squatting())
        hammer = stack.enter_context(hammering(web, server.port, "/ok", per_connection=1))

        agent.start()
        first = port_of(agent)
        squatter.want(first)
        eventually(lambda: len(witness.seen) > 50, "calls")
        with web.connect(server.port) as busy:
            busy.sendall(b"PUT /ok HTTP/1.1\r\nhost: orders\r\ncontent-length: 0\r\n\r\n")
            assert half.wait(15)
            assert agent.process is not None
            agent.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # it drains
            rest.set()
            assert read_reply(busy)[0] == 200
        assert agent.stop() == 0
        time.sleep(0.2)  # the guard holds on alone

        other.start()  # an upgrade, to one without --hold-on-exit
        second = port_of(other)
        squatter.want(first, second)
        at_start = len(witness.seen)
        eventually(lambda: len(witness.seen) > at_start + 20, "calls of the second agent")
        squatter.want(second)  # the first one's hooks are gone
        other.kill()
        time.sleep(0.3)  # while the last heartbeat is fresh
        other.start()
        third = port_of(other)
        squatter.want(second, third)
        at_start = len(witness.seen)
        eventually(lambda: len(witness.seen) > at_start + 20, "calls of the third agent")
        result = squatter.end()
        assert (result["got"], result["seen"]) == ([], "")
        assert int(str(result["tried"])) > 1000
        hammer.stop()
        assert other.stop() == 0

    with squatting() as squatter:
        squatter.want(third)
        eventually(lambda: _is_taken(third), "a port that nobody holds any more is to be had")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_the_port_is_held_on_the_ipv6_loopback_also_where_ipv6_is_switched_off() -> None:
    """It may be switched on later, and then hooks point IPv6 connections there."""
    code = """if True:
        import errno, socket, subprocess
        from proxy.port import Port
        port = Port()
        (listeners,) = port.listen(1)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "w").write("0")
        with socket.create_connection(("::1", port.number), timeout=5):
            pass
        for listener in listeners:
            listener.close()
        with socket.socket(socket.AF_INET6) as client:
            assert client.connect_ex(("::1", port.number)) == errno.ECONNREFUSED, "held, but nobody listens"
        """
    off = 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", off, "sh", sys.executable, "-c", code], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
