"""Who is meant by a policy's selectors, held against the words of Kubernetes and of Cilium read one by one.

Cilium narrows a peer's selector to the policy's own namespace unless it names the namespace or one of its labels
(pkg/k8s/apis/cilium.io/utils, getEndpointSelector); ``endpointSelector`` never leaves it.
"""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.decide import Action, PolicySet
from policies.load import Source, load

NAMESPACE, LABELS = "io.kubernetes.pod.namespace", "io.cilium.k8s.namespace.labels."
TEAM = f"{LABELS}team"
# By name: its namespace and labels. The labels of one namespace are alike, but for a workload that has none.
WORKLOADS: dict[str, tuple[str, dict[str, str]]] = {
    "own": ("prod", {"app": "a", TEAM: "red"}),
    "sibling": ("prod", {"app": "b", TEAM: "red"}),
    "foreign": ("test", {"app": "a", TEAM: "blue"}),
    "third": ("default", {"app": "b"}),
}
EVERYBODY = {name: {**labels, NAMESPACE: namespace} for name, (namespace, labels) in WORKLOADS.items()}
VALUES = {
    "app": ["a", "b"],
    NAMESPACE: ["prod", "test", "default"],
    TEAM: ["red", "blue"],
    f"{LABELS}kubernetes.io/name": ["x"],
}

Selector = dict[str, Any]


@st.composite
def selectors(draw: st.DrawFn, keys: tuple[str, ...] = tuple(VALUES)) -> Selector:
    """Of one or two requirements, with and without Cilium's prefixes of keys, in both forms."""
    found: Selector = {"matchLabels": {}, "matchExpressions": []}
    for key in draw(st.lists(st.sampled_from(keys), max_size=2, unique=True)):
        spelled = draw(st.sampled_from(["", "k8s:", "any:"])) + key
        operator = draw(st.sampled_from(["", "In", "NotIn", "Exists", "DoesNotExist"]))
        some = draw(st.lists(st.sampled_from(VALUES[key]), min_size=1, max_size=2, unique=True))
        if operator:
            values = {"values": some} if operator.endswith("In") else {}
            found["matchExpressions"].append({"key": spelled, "operator": operator, **values})
        else:
            found["matchLabels"][spelled] = some[0]
    return found


def meant(selector: Selector, labels: dict[str, str]) -> bool:
    """Whether these labels are selected, in Kubernetes' words."""
    for key, value in selector["matchLabels"].items():
        if labels.get(key.rpartition(":")[2]) != value:
            return False
    for one in selector["matchExpressions"]:
        has = labels.get(one["key"].rpartition(":")[2])
        holds = {"In": has in one.get("values", ()), "NotIn": has not in one.get("values", ())}
        holds |= {"Exists": has is not None, "DoesNotExist": has is None}
        if not holds[one["operator"]]:
            return False
    return True


def peers(selector: Selector, namespace: str | None) -> set[str]:
    keys = [*selector["matchLabels"], *(one["key"] for one in selector["matchExpressions"])]
    names_one = any(NAMESPACE in key or LABELS in key for key in keys)
    own = namespace is None or names_one
    return {who for who, labels in EVERYBODY.items() if meant(selector, labels) and (own or labels[NAMESPACE] == namespace)}


def loaded(kind: str, spec: dict[str, Any]) -> PolicySet:
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "sluice.dev/v1",
            "kind": "Workload",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"cgroups": [f"/sluice/{name}"]},
        }
        for name, (namespace, labels) in WORKLOADS.items()
    ]
    version = "sluice.dev/v1" if kind == "ApiPolicy" else "cilium.io/v2"
    metadata = {"name": "p"} if "Clusterwide" in kind else {"name": "p", "namespace": "prod"}
    documents.append({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
    return PolicySet(load([Source("p.yaml", "\n---\n".join(map(json.dumps, documents)))]), 1)


def refused(policies: PolicySet, direction: str, owner: str) -> set[str]:
    """Whose connections with ``owner`` are refused."""
    found = set()
    for other in WORKLOADS:
        ends = (owner, other) if direction == "egress" else (other, owner)
        pair = policies.pair(*(policies.endpoint(end) for end in ends), 80)
        found |= {other} if pair.action is Action.REFUSE else set()
    return found


kinds = st.sampled_from(["CiliumNetworkPolicy", "ApiPolicy", "CiliumClusterwideNetworkPolicy"])
directions = st.sampled_from(["ingress", "egress"])


@settings(max_examples=300, deadline=None)
@given(selector=selectors(), kind=kinds, direction=directions)
def test_a_deny_rule_denies_whoever_its_selector_means_and_nobody_else(selector: Selector, kind: str, direction: str) -> None:
    way = "from" if direction == "ingress" else "to"
    spec = {
        "endpointSelector": {"matchLabels": {"app": "a"}},
        direction: [{f"{way}Entities": ["all"]}],
        f"{direction}Deny": [{f"{way}Endpoints": [selector]}],
    }
    namespace = None if "Clusterwide" in kind else "prod"
    assert refused(loaded(kind, spec), direction, "own") == peers(selector, namespace)


@settings(max_examples=300, deadline=None)
@given(selector=selectors(), kind=kinds, direction=directions)
def test_an_allow_rule_allows_whoever_its_selector_means_and_nobody_else(selector: Selector, kind: str, direction: str) -> None:
    way = "from" if direction == "ingress" else "to"
    spec = {"endpointSelector": {"matchLabels": {"app": "a"}}, direction: [{f"{way}Endpoints": [selector]}]}
    namespace = None if "Clusterwide" in kind else "prod"
    assert refused(loaded(kind, spec), direction, "own") == set(WORKLOADS) - peers(selector, namespace)


@settings(max_examples=200, deadline=None)
@given(selector=selectors(("app", TEAM, f"{LABELS}kubernetes.io/name")), kind=kinds, direction=directions)
def test_a_policy_polices_workloads_of_its_own_namespace_alone(selector: Selector, kind: str, direction: str) -> None:
    policies = loaded(kind, {"endpointSelector": selector, direction: []})
    everywhere = "Clusterwide" in kind
    for name, labels in EVERYBODY.items():
        policed = meant(selector, labels) and (everywhere or labels[NAMESPACE] == "prod")
        assert refused(policies, direction, name) == (set(WORKLOADS) if policed else set())
