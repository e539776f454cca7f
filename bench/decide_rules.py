"""How long a decision takes with 10 rules and with 10,000, for calls that no cache has seen.

Run: .venv/bin/python -m bench.decide_rules. Prints one line per kind of rules: microseconds per call and the ratio, which
is to stay below 1.5. Every call is a new object with a new path, so that neither the pair's cache nor RE2 has met it.
"""

import json
import statistics
import time
from collections.abc import Callable

from parsers.contract import ApiCall
from policies.decide import Pair, PolicySet
from policies.load import Source, load

FEW, MANY = 10, 10_000
CALLS = 2_000
ROUNDS = 7

RULES: dict[str, Callable[[int], dict[str, object]]] = {
    "literal paths": lambda n: {"method": "GET", "path": f"/api/v1/service{n}/status"},
    "regular expressions": lambda n: {"method": "GET", "path": f"/api/v1/service{n}/items/[0-9]+(/parts)?"},
    "templates": lambda n: {"method": "GET", "pathTemplate": f"/api/v1/service{n}/items/{{id}}"},
    "hosts": lambda n: {"host": f"service{n}[.]example", "pathPrefix": "/api"},
}


def pair_of(rules: list[dict[str, object]]) -> tuple[Pair, float]:
    """A pair that is governed by these rules, and the seconds that loading and indexing them took."""
    ports = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": rules}}
    documents = [
        {
            "apiVersion": "sluice.dev/v1",
            "kind": "Workload",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"cgroups": [f"/{name}"]},
        }
        for name in ("web", "orders")
    ]
    spec = {"endpointSelector": {"matchLabels": {"app": "orders"}}, "ingress": [{"toPorts": [ports]}]}
    documents.append({"apiVersion": "sluice.dev/v1", "kind": "ApiPolicy", "metadata": {"name": "p"}, "spec": spec})
    began = time.perf_counter()
    policies = PolicySet(load([Source("bench", "\n---\n".join(map(json.dumps, documents)))]), 1)
    pair = policies.pair(policies.endpoint("web"), policies.endpoint("orders"), 80)
    pair.decide(ApiCall(protocol="http/1.1", method="GET", path="/", host="x"))
    return pair, time.perf_counter() - began


def calls(round_: int) -> list[ApiCall]:
    """Half of them are allowed by the few rules and by the many, the others by none."""
    return [
        ApiCall(
            protocol="http/1.1",
            method="GET",
            path=f"/api/v1/service{number % FEW}/{('items/' + str(number + round_ * CALLS)) if number % 2 else 'status'}",
            host=f"service{number % FEW}.example",
        )
        for number in range(CALLS)
    ]


def microseconds(pair: Pair, some: list[ApiCall]) -> float:
    began = time.perf_counter()
    for call in some:
        pair.decide(call)
    return (time.perf_counter() - began) / len(some) * 1e6


def main() -> None:
    print(f"{'rules':22}{FEW:>10}{MANY:>12}{'ratio':>8}{'load and index':>18}")
    for name, rule in RULES.items():
        few, _ = pair_of([rule(n) for n in range(FEW)])
        many, seconds = pair_of([rule(n) for n in range(MANY)])
        # Side by side in every round, so that a slow moment of the machine meets both.
        rounds = [(microseconds(few, calls(n)), microseconds(many, calls(n))) for n in range(ROUNDS)]
        less, more = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(f"{name:22}{less:8.1f}us{more:10.1f}us{more / less:8.2f}{seconds:16.1f}s")


if __name__ == "__main__":
    main()
