"""The smallest whole: a call that policy allows, one that it does not, and their records."""

from collections.abc import Callable

from tests.harness import Server, Sluice, Workload, http_policy, read_reply


def test_an_allowed_call_passes_and_a_denied_one_is_refused_on_the_same_connection(
    web: Workload, orders: Workload, serve: Callable[..., Server], sluice: Callable[..., Sluice]
) -> None:
    server = serve(orders)
    policy = http_policy(orders, web, server.port, '[{method: GET, path: "/orders/[0-9]+"}]')
    agent = sluice(web.document() + orders.document() + policy)

    with web.connect(server.port) as client:
        client.sendall(b"GET /orders/1 HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert read_reply(client)[0] == 200
        client.sendall(b"GET /admin HTTP/1.1\r\nhost: orders\r\n\r\n")
        status, _, body = read_reply(client)
        assert (status, body) == (403, b"Access denied\r\n")
        client.sendall(b"GET /orders/2 HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert read_reply(client)[0] == 200

    records = agent.wait_records(3)
    assert [(r["verdict"], r["path"], r["status"]) for r in records] == [
        ("ALLOWED", "/orders/1", 200),
        ("DENIED", "/admin", 403),
        ("ALLOWED", "/orders/2", 200),
    ]
    assert {(r["subject"]["workload"], r["peer"]["workload"], r["via"]) for r in records} == {(web.name, orders.name, "relay")}
