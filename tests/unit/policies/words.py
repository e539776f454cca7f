"""Short words for the documents and questions of these tests."""

from textwrap import indent

from parsers.contract import ApiCall
from policies.decide import Decision, Pair, PolicySet
from policies.kafka import APIS
from policies.load import Source, load
from policies.model import Bundle


def workload(name: str, cgroups: bool = True, addresses: str = "", namespace: str = "default", extra: str = "") -> str:
    """A Workload document with the label app=NAME."""
    where = (f'cgroups: ["/sluice/{name}"]' if cgroups else "") + (", " if cgroups and addresses else "")
    where += f"addresses: [{addresses}]" if addresses else ""
    metadata = f"{{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}"
    return f"apiVersion: sluice.dev/v1\nkind: Workload\nmetadata: {metadata}\nspec: {{{where}{extra}}}\n"


def policy(spec: str, name: str = "p", kind: str = "ApiPolicy", namespace: str = "") -> str:
    """A policy document with this spec."""
    version = "sluice.dev/v1" if kind == "ApiPolicy" else "cilium.io/v2"
    namespaced = f", namespace: {namespace}" if namespace else ""
    body = indent(spec.strip("\n"), "  ")
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{namespaced}}}\nspec:\n{body}\n"


def http_policy(rules: str, name: str = "p", extra: str = "", peer: str = "web") -> str:
    """A policy of orders' ingress from ``peer`` on port 8080 with these HTTP rules (a YAML flow list)."""
    return policy(
        f"""
endpointSelector: {{matchLabels: {{app: orders}}}}
ingress:
- fromEndpoints: [{{matchLabels: {{app: {peer}}}}}]
  toPorts:
  - ports: [{{port: "8080", protocol: TCP}}]
    rules: {{http: {rules}}}
{extra}""",
        name,
    )


def kafka_policy(rules: str, name: str = "p", extra: str = "", owner: str = "orders", direction: str = "ingress") -> str:
    """A policy of one direction of ``owner`` on port 9092 with these Kafka rules (a YAML flow list)."""
    return policy(
        f"""
endpointSelector: {{matchLabels: {{app: {owner}}}}}
{direction}:
- toPorts:
  - ports: [{{port: "9092", protocol: TCP}}]
    rules: {{kafka: {rules}}}
{extra}""",
        name,
    )


PARTIES = [workload("orders"), workload("web"), workload("batch")]


def bundle(*documents: str) -> Bundle:
    return load([Source("test.yaml", "---\n".join(documents))])


def policy_set(*documents: str) -> PolicySet:
    """The documents together with the workloads orders, web and batch."""
    return PolicySet(bundle(*PARTIES, *documents), 7)


def pair(policies: PolicySet, subject: str = "web", peer: str = "orders", port: int = 8080, transport: str = "TCP") -> Pair:
    return policies.pair(policies.endpoint(subject), policies.endpoint(peer), port, transport)


def get(path: str = "/", method: str = "GET", host: str = "orders", protocol: str = "http/1.1", **more: object) -> ApiCall:
    """An HTTP call."""
    return ApiCall(protocol=protocol, method=method, path=path, host=host, **more)  # type: ignore[arg-type]


def grpc(path: str, *metadata: tuple[str, str]) -> ApiCall:
    return ApiCall(protocol="grpc", method="POST", path=path, host="orders", headers=metadata)


def kafka(api: str, *resources: str, version: int = 3, client: str | None = None, **more: bool) -> ApiCall:
    """A Kafka request. A resource without ``kind:`` is a topic."""
    return ApiCall(
        protocol="kafka",
        method=api,
        resources=tuple(name if ":" in name else f"topic:{name}" for name in resources),
        attributes={"apiKey": APIS[api], "apiVersion": version, **({"clientId": client} if client is not None else {})},
        **more,  # type: ignore[arg-type]
    )


def decide_kafka(rules: str, call: ApiCall, *more: str, extra: str = "") -> Decision:
    """What `kafka_policy` with these rules says to a request of web to orders."""
    return pair(policy_set(kafka_policy(rules, extra=extra), *more), port=9092).decide(call)


def decide(rules: str, call: ApiCall, *more: str, extra: str = "") -> Decision:
    """What `http_policy` with these rules says to a call of web to orders."""
    return pair(policy_set(http_policy(rules, extra=extra), *more)).decide(call)
