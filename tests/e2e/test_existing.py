"""Connections that existed before the agent, or before a policy: ``sluice run --existing``."""

import contextlib
import socket
import time
from collections.abc import Callable

import pytest

from tests.harness import PATIENCE, Server, Sluice, Workload, http_policy

MakeSluice = Callable[..., Sluice]
Serve = Callable[..., Server]


def echo(connection: socket.socket) -> None:
    while data := connection.recv(100):
        connection.sendall(data)


def l4_policy(server: Workload, client: Workload, port: int) -> str:
    """``client`` may connect, and nobody reads what it says."""
    return http_policy(server, client, port, "[{}]").replace("      rules: {http: [{}]}\n", "")


def lives(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b"x"
    except OSError:
        return False


def ends(connection: socket.socket) -> bool:
    connection.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionError):
        return connection.recv(1) == b""
    return True


@pytest.fixture
def thief(workload: Callable[..., Workload]) -> Workload:
    return workload("thief")


def test_connections_older_than_the_agent_end_if_policy_would_refuse_or_read_them(
    web: Workload, orders: Workload, thief: Workload, serve: Serve, sluice: MakeSluice
) -> None:
    read, plain = serve(orders, echo), serve(orders, echo)
    redirected, refused, native = web.connect(read.port), thief.connect(plain.port), web.connect(plain.port)
    unconcerned = thief.connect(serve(web, echo).port)
    for connection in (redirected, refused, native, unconcerned):
        assert lives(connection)
    documents = web.document() + orders.document() + thief.document()
    sluice(documents + http_policy(orders, web, read.port, "[{}]") + l4_policy(orders, web, plain.port).replace("-api", "-l4"))
    assert ends(redirected)
    assert ends(refused)
    assert lives(native)
    assert lives(unconcerned)


@pytest.mark.parametrize(("mode", "kept"), [("keep", (True, True, True)), ("reset", (False, False, True))])
def test_all_connections_of_policed_workloads_end_or_none(
    web: Workload, orders: Workload, thief: Workload, serve: Serve, sluice: MakeSluice, mode: str, kept: tuple[bool, ...]
) -> None:
    server = serve(orders, echo)
    connections = (thief.connect(server.port), web.connect(server.port), thief.connect(serve(web, echo).port))
    documents = web.document() + orders.document() + thief.document()
    sluice(documents + l4_policy(orders, web, server.port), "--existing", mode)
    for connection, keeps in zip(connections, kept, strict=True):
        assert lives(connection) if keeps else ends(connection)


def test_a_change_of_policy_ends_what_it_does_not_let_pass_any_more(
    web: Workload, orders: Workload, thief: Workload, serve: Serve, sluice: MakeSluice
) -> None:
    server, read = serve(orders, echo), serve(orders)
    documents = web.document() + orders.document() + thief.document()
    both = l4_policy(orders, thief, server.port).replace("-api", "-thief")
    by_http = http_policy(orders, web, read.port, "[{}]").replace("-api", "-http")
    agent = sluice(documents + l4_policy(orders, web, server.port) + both + by_http)
    kept, ended, relayed = web.connect(server.port), thief.connect(server.port), web.connect(read.port)
    assert lives(kept)
    assert lives(ended)
    agent.reload(documents + l4_policy(orders, web, server.port) + by_http)
    assert ends(ended)
    assert lives(kept)
    relayed.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert relayed.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_is_handed_over_stays_that_of_who_connected_it(
    web: Workload, orders: Workload, thief: Workload, serve: Serve, sluice: MakeSluice
) -> None:
    """By SCM_RIGHTS, or by a fork into another cgroup: neither who made the socket nor who uses it counts."""
    server = serve(orders, echo)
    documents = web.document() + orders.document() + thief.document()
    agent = sluice(documents + l4_policy(orders, web, server.port))
    with thief.inside():
        connection = socket.socket()
        connection.settimeout(PATIENCE)
    with web.inside():
        connection.connect(("127.0.0.1", server.port))
    with thief.inside():
        assert lives(connection)
    agent.reload(documents + l4_policy(orders, web, server.port) + "# again\n")
    assert lives(connection)
    agent.reload(documents + l4_policy(orders, thief, server.port))
    assert ends(connection)


def test_a_connect_whose_syn_was_refused_where_it_arrived_ends_soon(
    web: Workload, orders: Workload, thief: Workload, sluice: MakeSluice
) -> None:
    """It would send the SYN again, in vain, for two minutes."""
    with orders.inside():
        listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")  # so that connect() itself finds nobody
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    sluice(web.document() + orders.document() + thief.document() + l4_policy(orders, web, port))
    with pytest.raises(ConnectionError):
        thief.connect(port)
    assert web.connect(port)
    listener.close()


def test_what_the_application_has_not_read_yet_is_not_lost_when_the_agent_is_killed_and_started_again(
    web: Workload, orders: Workload, serve: Serve, sluice: MakeSluice
) -> None:
    server = serve(orders)
    agent = sluice(web.document() + orders.document() + http_policy(orders, web, server.port, "[{}]"))
    client = web.connect(server.port)
    client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    agent.wait_records(1)
    agent.kill()
    agent.start()
    time.sleep(0.1)
    assert client.recv(1000).endswith(b"hello\n")
