"""Random policy documents that load."""

import json

from hypothesis import strategies as st

NAMES = ["orders", "web", "batch", "far"]

workload_documents = [
    json.dumps(
        {
            "apiVersion": "sluice.dev/v1",
            "kind": "Workload",
            "metadata": {"name": name, "labels": {"app": name, "tier": tier}},
            "spec": spec,
        }
    )
    + "\n"
    for name, tier, spec in (
        ("orders", "back", {"cgroups": ["/sluice/orders"]}),
        ("web", "front", {"cgroups": ["/sluice/web"]}),
        ("batch", "back", {"cgroups": ["/sluice/batch"]}),
        ("far", "back", {"addresses": ["10.1.2.0/24", "2001:db8:1::/48"]}),
    )
]

selectors = st.one_of(
    st.just({}),
    st.sampled_from(NAMES).map(lambda name: {"matchLabels": {"app": name}}),
    st.sampled_from(["front", "back"]).map(
        lambda tier: {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": [tier]}]}
    ),
)
_cidrs = st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.1.2.0/25", "8.8.8.8", "::/0", "2001:db8::/32"])
_cidr_sets = st.one_of(
    _cidrs.map(lambda cidr: {"cidr": cidr}),
    st.just({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24", "10.9.0.0/16"]}),
    st.just({"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}),
)
_ports = st.sampled_from(
    [
        {"port": "80", "protocol": "TCP"},
        {"port": "53", "protocol": "ANY"},
        {"port": "8080", "endPort": 8090, "protocol": "TCP"},
        {"port": "1024", "endPort": 40000},
        {"port": "0"},
        {"port": "53", "protocol": "UDP"},
    ]
)
_l7_ports = st.sampled_from([{"port": "80", "protocol": "TCP"}, {"port": "8080", "endPort": 9000, "protocol": "TCP"}])
http_rules = st.lists(
    st.sampled_from(
        [
            {},
            {"method": "GET"},
            {"path": "/a"},
            {"path": "/[a-z]+", "method": "GET|POST"},
            {"pathPrefix": "/a"},
            {"pathTemplate": "/a/{id}"},
            {"headers": ["X-A: 1"]},
            {"query": [{"name": "q", "value": "1"}]},
            {"host": "orders"},
            {"deny": True, "pathPrefix": "/a/b"},
            {"deny": True, "mode": "audit", "method": "POST"},
        ]
    ),
    max_size=3,
)


def _peers(way: str) -> st.SearchStrategy[dict[str, object]]:
    return st.one_of(
        st.lists(selectors, max_size=2).map(lambda some: {f"{way}Endpoints": some}),
        st.lists(_cidrs, max_size=2).map(lambda some: {f"{way}CIDR": some}),
        st.lists(_cidr_sets, min_size=1, max_size=2).map(lambda some: {f"{way}CIDRSet": some}),
        st.lists(st.sampled_from(["all", "world", "host", "cluster"]), min_size=1, max_size=1).map(
            lambda some: {f"{way}Entities": some}
        ),
    )


_port_rules = st.one_of(
    st.lists(_ports, max_size=2).map(lambda ports: {"ports": ports}),
    st.builds(lambda port, rules: {"ports": [port], "rules": {"http": rules}}, _l7_ports, http_rules),
    st.just({"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"grpc": [{"service": "pkg.Svc"}]}}),
)


def _rules(way: str) -> st.SearchStrategy[list[dict[str, object]]]:
    rule = st.builds(
        lambda peers, ports: {**peers, **({"toPorts": ports} if ports is not None else {})},
        st.one_of(st.just({}), _peers(way)),
        st.one_of(st.none(), st.lists(_port_rules, max_size=2)),
    )
    return st.lists(rule, max_size=3)


def _deny_rules(way: str) -> st.SearchStrategy[list[dict[str, object]]]:
    rule = st.builds(
        lambda peers, ports: {**peers, **({"toPorts": [{"ports": ports}]} if ports is not None else {})},
        _peers(way),
        st.one_of(st.none(), st.lists(_ports, max_size=1)),
    )
    return st.lists(rule, max_size=1)


sections = st.fixed_dictionaries(
    {"endpointSelector": selectors},
    optional={
        "ingress": _rules("from"),
        "egress": _rules("to"),
        "ingressDeny": _deny_rules("from"),
        "egressDeny": _deny_rules("to"),
        "enableDefaultDeny": st.sampled_from([{"ingress": False}, {"egress": False}]),
        "mode": st.sampled_from(["audit", "enforce"]),
        "failOpen": st.booleans(),
    },
).filter(lambda spec: any(key in spec for key in ("ingress", "egress", "ingressDeny", "egressDeny")))


def document(spec: object, name: str = "NAME") -> str:
    """One ApiPolicy. JSON is YAML."""
    built = {"apiVersion": "sluice.dev/v1", "kind": "ApiPolicy", "metadata": {"name": name}, "spec": spec}
    return json.dumps(built) + "\n"


documents = sections.map(document)
