"""The proxies are compared with the same rules."""

import re

import yaml

from bench.contenders import HERE, LISTEN, POLICED_SINK, POLICED_WEB, SINK, WEB

Rules = set[tuple[str, str]]


def rules_of_sluice() -> dict[int, Rules]:
    documents = yaml.safe_load_all((HERE / "policy.yaml").read_text())
    [policy] = [document["spec"] for document in documents if document["kind"] == "CiliumNetworkPolicy"]
    [ingress] = policy["ingress"]
    return {
        int(entry["ports"][0]["port"]): {(rule["method"], rule["path"]) for rule in entry["rules"]["http"]}
        for entry in ingress["toPorts"]
    }


def rules_of_envoy() -> Rules:
    document = yaml.safe_load((HERE / "envoy.yaml").read_text())
    manager = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    rules = set()
    for policy in manager["http_filters"][0]["typed_config"]["rules"]["policies"].values():
        method, path = policy["permissions"][0]["and_rules"]["rules"]
        rules.add((method["header"]["string_match"]["exact"], path["header"]["string_match"]["safe_regex"]["regex"]))
    return rules


def rules_of_haproxy() -> Rules:
    text = (HERE / "haproxy.conf").read_text()
    paths = dict(re.findall(r"acl (\w+) pathq -m reg \^(.*)\$\$", text))
    methods = re.findall(r"if METH_(\w+) from_client (\w+)", text)
    return {(method, paths[name]) for method, name in methods}


def test_sluice_envoy_and_haproxy_allow_the_same_methods_and_paths() -> None:
    of_sluice = set.union(*rules_of_sluice().values())
    assert len(of_sluice) == 3
    assert of_sluice == rules_of_envoy() == rules_of_haproxy()


def test_the_policy_is_for_the_ports_that_the_harness_uses() -> None:
    assert set(rules_of_sluice()) == {POLICED_WEB, POLICED_SINK}


def test_the_unpoliced_servers_have_ports_of_their_own() -> None:
    assert len({WEB, SINK, LISTEN, POLICED_WEB, POLICED_SINK}) == 5
