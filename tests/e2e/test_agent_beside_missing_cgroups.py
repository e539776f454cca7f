"""The agent's own connections are its own, whatever cgroups the documents name."""

from collections.abc import Callable

from tests.harness import Server, Sluice, Workload, _own_cgroup, http_policy, read_reply, unique


def test_a_named_cgroup_that_is_missing_beside_the_agents_own_does_not_turn_the_agent_on_itself(
    web: Workload, orders: Workload, serve: Callable[..., Server], sluice: Callable[..., Sluice]
) -> None:
    """The folder that the agent's cgroup is in becomes unsettled, and all its children with it are looked at."""
    server = serve(orders)
    missing = f"{_own_cgroup().rstrip('/')}/{unique('missing')}"
    elsewhere = (
        f'apiVersion: sluice.dev/v1\nkind: Workload\nmetadata: {{name: elsewhere}}\nspec: {{cgroups: ["{missing}"]}}\n---\n'
    )
    policy = http_policy(orders, web, server.port, '[{method: GET, path: "/orders/[0-9]+"}]')
    agent = sluice(web.document() + orders.document() + elsewhere + policy)

    with web.connect(server.port) as client:
        client.sendall(b"GET /orders/1 HTTP/1.1\r\nhost: orders\r\n\r\n")
        assert read_reply(client)[0] == 200
    assert agent.wait_records(1)[0]["verdict"] == "ALLOWED"
