"""What documents may say, and what is answered to those that may not."""

from pathlib import Path
from textwrap import indent

import pytest

from policies import nodes
from policies.decide import Action
from policies.load import Bundle, LoadError, Source, load
from policies.model import Endpoint
from policies.spec import MAX_PORTS

from .words import PARTIES, bundle, http_policy, kafka_policy, pair, policy, policy_set, workload

CNP = "CiliumNetworkPolicy"


def refusal(*documents: str) -> str:
    """All findings, one per line."""
    with pytest.raises(LoadError) as caught:
        bundle(*documents)
    return str(caught.value)


def refused_rule(rule: str) -> str:
    return refusal(http_policy(f"[{rule}]"))


def refused_section(section: str, kind: str = "ApiPolicy") -> str:
    return refusal(policy(f"endpointSelector: {{}}\n{section}", kind=kind))


class TestFindings:
    def test_all_errors_of_all_sources_are_reported_at_once_with_positions(self) -> None:
        sources = [
            Source("a.yaml", http_policy("[{metod: GET}]", "a")),
            Source("b.yaml", http_policy("[{path: '('}, {method: 7}]", "b")),
        ]
        with pytest.raises(LoadError) as caught:
            load(sources)
        found = [(f.file, f.line, f.column, f.code, f.message, f.hint) for f in caught.value.findings]
        assert found == [
            ("a.yaml", 10, 23, "SE003", "an HTTP rule has no field 'metod'", "did you mean 'method'?"),
            ("b.yaml", 10, 29, "SE010", "path '(' is not an RE2 pattern: missing ): (", ""),
            ("b.yaml", 10, 44, "SE004", "method must be a string, not the number 7", 'quote it: "7"'),
        ]
        assert str(caught.value.findings[0]).startswith("a.yaml:10:23 SE003 an HTTP rule has no field")

    def test_the_number_of_findings_is_bounded(self) -> None:
        with pytest.raises(LoadError) as caught:
            load([Source("x", "---\nkind: No\n" * (nodes.MAX_FINDINGS + 10))])
        assert len(caught.value.findings) == nodes.MAX_FINDINGS


class TestYaml:
    def test_broken_yaml_has_a_position(self) -> None:
        assert refusal("a: [1\nb: 2").startswith("test.yaml:2:2 SE001 not YAML: ")

    def test_a_character_that_yaml_forbids_is_refused(self) -> None:
        assert "SE001" in refusal("a: \x00")

    def test_an_alias_is_what_its_anchor_names(self) -> None:
        found = bundle(
            *PARTIES,
            policy(
                """
endpointSelector: &orders {matchLabels: {app: &name orders}}
ingress:
- fromEndpoints: [*orders, {matchLabels: {app: *name}}]
  toPorts: &ports [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
- fromEntities: [host]
  toPorts: *ports
"""
            ),
        ).policies[0]
        assert found.ingress is not None
        first, second = found.ingress.rules
        assert first.peers is not None
        assert first.peers.endpoints == (found.selector, found.selector)
        assert first.ports is not None
        assert second.ports is not None
        assert [ports.ports for ports in first.ports] == [ports.ports for ports in second.ports]
        assert [rule.name for rules in (first, second) for port in rules.ports or () for rule in port.rules] == [
            "ingress[0].toPorts[0].rules.http[0]",
            "ingress[1].toPorts[0].rules.http[0]",
        ]

    def test_a_merge_key_brings_what_the_mapping_does_not_say_itself(self) -> None:
        text = """
endpointSelector: {}
ingress:
- &base {fromEntities: &who [host], toPorts: [{ports: [{port: "80"}]}]}
- {<<: *base, toPorts: [{ports: [{port: "81"}]}]}
- {<<: [{fromEntities: [world]}, *base]}
"""
        found = bundle(policy(text)).policies[0]
        assert found.ingress is not None
        rules = [
            (*(rule.peers.entities if rule.peers else ()), *(port.first for one in rule.ports or () for port in one.ports))
            for rule in found.ingress.rules
        ]
        assert rules == [("host", 80), ("host", 81), ("world", 80)]

    def test_a_quoted_merge_key_is_a_field_s_name(self) -> None:
        assert "spec has no field '<<'" in refusal(policy('endpointSelector: {}\ningress: []\n"<<": {egress: []}'))

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a: *x", "the alias *x has no anchor before it"),
            ("a: &x 1\n---\nb: *x", "the alias *x has no anchor before it in this document"),
            ("a: &x [1, *x]", "the alias *x is part of what it repeats"),
            ("a: &x {<<: *x}", "the alias *x is part of what it repeats"),
            ("a: {<<: 1}", "<< takes mappings, not the number 1"),
            ("a: {<<: [{b: 1}, [2]]}", "<< takes mappings, not a list"),
            ("a: {<<: {b: 1}, <<: {c: 1}}", "the key << occurs twice"),
        ],
    )
    def test_an_alias_that_cannot_be_is_refused(self, text: str, says: str) -> None:
        assert says in refusal(text)

    @pytest.mark.parametrize(
        "value", ["[*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0,*a0]", "{a: *a0, b: *a0, c: *a0, d: *a0, e: *a0, f: *a0}"]
    )
    def test_aliases_of_aliases_are_counted_as_if_they_were_written_out(self, value: str) -> None:
        """The "billion laughs" bomb: 9 to the power of 20 values in a kilobyte."""
        lines = ["x0: &a0 [1, 2]"] + [f"x{n}: &a{n} {value.replace('a0', f'a{n - 1}')}" for n in range(1, 21)]
        assert "more than 1000000 values" in refusal("\n".join(lines))

    def test_long_texts_are_counted_as_often_as_they_are_repeated(self) -> None:
        """A pattern is compiled wherever it stands."""
        text = f"a: &x {'y' * 4000}\nb: [{', '.join(['*x'] * 3000)}]"
        assert "larger than 8388608 characters" in refusal(text)

    def test_thousands_of_small_sources_repeat_no_more_than_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodes, "MAX_REPEATED", 100)
        text = "kind: &x [1, 2, 3, 4]\nother: [*x, *x, *x]"
        with pytest.raises(LoadError) as caught:
            load([Source(str(number), text) for number in range(10)])
        found = [finding for finding in caught.value.findings if "aliases repeat more than 100 values" in finding.message]
        assert [finding.file for finding in found] == ["6", "7", "8", "9"]

    def test_depth_counts_through_aliases(self) -> None:
        deep = "[" * 20 + "]" * 20
        assert "nested deeper than" in refusal(f"a: &x {deep}\nb: {'[' * 15}*x{']' * 15}")
        assert "nested deeper than" not in refusal(f"a: &x {deep}\nb: {'[' * 8}*x{']' * 8}")

    def test_what_is_wrong_in_a_repeated_value_is_told_once_and_where_it_stands(self) -> None:
        shown = refusal(policy("endpointSelector: {}\ningress:\n- &x {fromEntity: [host]}\n- *x\n- *x"))
        assert shown == "test.yaml:7:9 SE003 a rule of ingress has no field 'fromEntity' (hint: did you mean 'fromEntities'?)"

    def test_of_two_fields_with_one_value_the_wrong_one_is_told(self) -> None:
        shown = refusal(policy("endpointSelector: &x {}\ningres: *x"))
        assert "test.yaml:6:3 SE003 spec has no field 'ingres'" in shown

    def test_depth_is_bounded(self) -> None:
        assert "nested deeper than" in refusal("[" * 5000)

    def test_size_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodes, "MAX_SOURCE_CHARACTERS", 10)
        assert "SE002 larger than" in refusal("a: 1234567890")

    def test_the_number_of_values_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodes, "MAX_NODES", 10)
        assert "more than 10 values" in refusal("[1,1,1,1,1,1,1,1,1,1,1,1]")

    def test_a_field_that_occurs_twice_is_refused(self) -> None:
        assert "SE007 spec has the field 'egress' twice" in refused_section("egress: []\negress: [{toEntities: [all]}]")

    def test_a_custom_tag_is_refused(self) -> None:
        assert "the tag !evil is not known" in refusal("a: !evil x")

    @pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing\n"])
    def test_empty_documents_are_nothing(self, text: str) -> None:
        assert load([Source("x", text)]).policies == ()


class TestDocuments:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[]", "a document must be a mapping"),
            ("kind: CiliumNetworkPolicy\napiVersion: v1", "hint: apiVersion: cilium.io/v2"),
            ("kind: Worklod\napiVersion: sluice.dev/v1", "did you mean 'Workload'?"),
            ("apiVersion: sluice.dev/v1\nkind: Workload", "a Workload lacks the field 'metadata'"),
            (policy("ingress: []"), "spec lacks the field 'endpointSelector'"),
            (policy("endpointSelector: {}"), "neither ingress nor egress"),
            (policy("endpointSelector: {}\ningress: []", name="Bad_Name"), "'Bad_Name' is not a name"),
            (
                policy("endpointSelector: {}\ningress: []\nnodeSelector: {}", kind=CNP),
                "nodeSelector of spec is not",
            ),
        ],
    )
    def test_what_is_no_document_here(self, text: str, says: str) -> None:
        assert says in refusal(text)

    def test_what_kubectl_prints_besides_is_accepted(self) -> None:
        text = policy("endpointSelector: {}\ndescription: words\ningress: []", kind=CNP).replace(
            "{name: p}", "{name: p, uid: x, resourceVersion: '1', annotations: {a: b}, creationTimestamp: null}"
        )
        assert bundle(text + "status: {conditions: []}\n").policies[0].name == "p"

    @pytest.mark.parametrize("head", ["v1\nkind: List", "cilium.io/v2\nkind: CiliumNetworkPolicyList"])
    def test_the_items_of_a_list_are_documents(self, head: str) -> None:
        """As ``kubectl get cnp -o yaml`` prints them."""
        items = [policy("endpointSelector: {}\ningress: []", name, CNP) for name in ("a", "b")]
        text = "".join("- " + indent(item, "  ")[2:] for item in items).replace(
            "name: a", "clusterName: x, generateName: a-, name: a"
        )
        found = bundle(f"apiVersion: {head}\nmetadata: {{resourceVersion: '', selfLink: ''}}\nitems:\n{text}").policies
        assert [one.name for one in found] == ["a", "b"]

    def test_errors_in_a_list_have_their_place(self) -> None:
        assert refusal("apiVersion: v1\nkind: List\nitems:\n- kind: Nope").startswith("test.yaml:4:3 SE003 ")

    @pytest.mark.parametrize(
        "kind", ["apiVersion: v1\nkind: List\nitems: []", "kind: Kustomization\napiVersion: kustomize.config.k8s.io/v1"]
    )
    def test_documents_of_which_none_says_anything_are_an_error(self, kind: str) -> None:
        """An agent that enforces nothing because ``kubectl get`` found nothing would be silently open."""
        assert "SE005 there is no document but this one" in refusal(kind)
        assert bundle(workload("web"), kind)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy",
                "hint: Kubernetes' own policies are not read: write it as",
            ),
            ("apiVersion: v1\nkind: Service", "hint: only ApiPolicy, CiliumCIDRGroup, Cilium"),
            ("apiVersion: apps/v1\nkind: Deployment", "keep them in files of their own"),
            ("apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization", "what 'kustomize build' prints"),
            ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicies", "did you mean 'CiliumNetworkPolicy'?"),
            ("apiVersion: v2\nname: chart", "a document lacks the field 'kind'"),
            ("replicas: 1", "a document lacks the field 'kind' (hint: is this a policy?"),
        ],
    )
    def test_documents_of_others_are_refused_with_what_to_do(self, text: str, says: str) -> None:
        assert says in refusal(text)

    @pytest.mark.parametrize(
        "text",
        [
            policy("endpointselector: {}\ningress: []"),
            policy("endpointSelector: {}\negress: [{toCIDRSet: [{cird: 10.0.0.0/8}]}]"),
            policy("endpointSelector: {}\ningress: [{toPorts: [{port: [{port: '1'}]}]}]"),
            policy("endpointSelector: {}\ningress: [{toPorts: [7]}]"),
            http_policy("[{headerMatches: [{nam: X-A}]}]"),
        ],
    )
    def test_a_misspelt_field_is_not_missing_as_well(self, text: str) -> None:
        assert len(refusal(text).splitlines()) == 1

    @pytest.mark.parametrize(
        ("section", "says"),
        [
            ("ingress: [{from: [{podSelector: {}}]}]", "hint: fromEndpoints, with matchLabels"),
            ("egress: [{to: [{podSelector: {}}]}]", "hint: toEndpoints, with matchLabels"),
            ("podSelector: {}\ningress: []", "hint: endpointSelector"),
            ("ingress: [{ports: [{port: 80}]}]", "hint: toPorts: [{ports: [...]}]"),
            ("policyTypes: [Ingress]\ningress: []", "ingress: [] or egress: [] is default deny"),
        ],
    )
    def test_fields_of_kubernetes_own_policies_have_a_hint(self, section: str, says: str) -> None:
        assert says in refused_section(section)

    @pytest.mark.parametrize(
        "text",
        [
            policy("endpointSelector: {matchLabels: {app: '${NAME}'}}\ningress: []"),
            policy("endpointSelector: {}\negress: [{toCIDR: ['${ADDRESS}/32']}]"),
            policy("endpointSelector: {}\ningress: []", name="'a-${NAME}'"),
        ],
    )
    def test_variables_that_are_not_filled_in_are_told(self, text: str) -> None:
        assert "hint: variables have to be filled in first" in refusal(text)

    def test_specs_are_several_policies_of_one_name(self) -> None:
        text = policy("endpointSelector: {}\ningress: [{fromEntities: [all]}]").replace("spec:\n", "specs:\n-\n")
        found = bundle(text).policies
        assert [(p.name, p.ingress.rules[0].name if p.ingress else None) for p in found] == [("p", "specs[0].ingress[0]")]

    def test_two_policies_or_workloads_of_one_name_are_refused(self) -> None:
        text = policy("endpointSelector: {}\ningress: []")
        assert "the policy 'p' is also defined at test.yaml:1" in refusal(text, text)
        assert "the policy 'p' is also defined" in refusal(
            text, text.replace("ApiPolicy", CNP).replace("sluice.dev/v1", "cilium.io/v2")
        )
        assert "the Workload 'web' is also defined" in refusal(workload("web"), workload("web"))

    def test_two_rules_of_one_name_are_refused(self) -> None:
        assert "two rules named 'a'" in refused_rule("{name: a}, {name: a, path: /x}")


class TestWorkloads:
    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ("{}", "needs cgroups, addresses, or both"),
            ("{cgroups: [sluice/web]}", "is not a cgroup's path"),
            ("{cgroups: [/a/../b]}", "is not a cgroup's path"),
            ("{cgroups: /a}", "cgroups must be a list"),
            ("{addresses: [10.0.0.300]}", "which is no address"),
            ("{addresses: [10.0.0.1], acceleration: maybe}", "acceleration must be on or off"),
            ("{addresses: [10.0.0.1], cgroup: [/a]}", "did you mean 'cgroups'?"),
        ],
    )
    def test_a_bad_spec_is_refused(self, spec: str, says: str) -> None:
        assert says in refusal(f"apiVersion: sluice.dev/v1\nkind: Workload\nmetadata: {{name: a}}\nspec: {spec}\n")

    def test_one_address_has_one_owner(self) -> None:
        assert "also belongs to the Workload 'a'" in refusal(
            workload("a", False, "10.0.0.1"), workload("b", False, "10.0.0.1/32")
        )

    def test_labels_are_strings_and_lose_ciliums_source(self) -> None:
        text = workload("a").replace("{app: a}", '{"k8s:app": a, "any:tier": "1"}')
        assert dict(bundle(text).workloads[0].labels) == {"app": "a", "tier": "1", "io.kubernetes.pod.namespace": "default"}
        assert 'quote it: "1"' in refusal(workload("a").replace("{app: a}", "{app: 1}"))
        assert "the label source 'container'" in refusal(workload("a").replace("{app: a}", '{"container:app": ""}'))


class TestRefusedFeatures:
    """What cannot be enforced must not load: it would be silently open."""

    @pytest.mark.parametrize(
        ("section", "instead"),
        [
            ("egress: [{toFQDNs: [{matchName: example.com}]}]", "rules.http with host says which names may be asked"),
            ("egress: [{toServices: []}]", "toEndpoints with the labels of the service's workloads"),
            ("egress: [{toNodes: [{}]}]", "toEntities: [remote-node]"),
            ("ingress: [{fromRequires: [{}]}]", "add its labels to the selectors of the allow rules"),
            ("ingress: [{fromGroups: [{}]}]", "fromCIDRSet with the group's addresses"),
            ("ingress: [{icmps: [{fields: [{type: 8}]}]}]", "leave it out: ICMP is neither allowed nor denied by its type"),
            ("ingress: [{authentication: {mode: required}}]", "leave it out: who is who comes from the kernel"),
            ("ingress: [{fromEndpoints: [{matchLabels: {'reserved:host': ''}}]}]", "fromEntities or toEntities: [host]"),
            (
                'egress: [{toPorts: [{ports: [{port: "443", protocol: TCP}], serverNames: [a.example]}]}]',
                "toCIDRSet with the servers' addresses",
            ),
            ('egress: [{toPorts: [{ports: [{port: "443"}], terminatingTLS: {secret: {name: a}}}]}]', "TLS is not opened"),
            ('egress: [{toPorts: [{ports: [{port: "443"}], originatingTLS: {secret: {name: a}}}]}]', "TLS is not opened"),
            ('egress: [{toPorts: [{ports: [{port: "1"}], listener: {name: a}}]}]', "there is no Envoy here"),
            ('egress: [{toPorts: [{ports: [{port: "9", protocol: SCTP}]}]}]', ""),
            (
                'egress: [{toPorts: [{ports: [{port: "53", protocol: UDP}], rules: {dns: [{matchPattern: "*"}]}}]}]',
                "leave rules out: the port is then allowed, and all names may be asked",
            ),
            ("nodeSelector: {}\ningress: []", "give them a Workload"),
        ],
    )
    @pytest.mark.parametrize("kind", ["ApiPolicy", CNP])
    def test_what_is_not_supported_is_refused_by_name_and_with_what_to_write_instead(
        self, section: str, instead: str, kind: str
    ) -> None:
        found = refused_section(section, kind)
        assert "SE008" in found
        assert "not supported yet, refused so that nothing is silently open" in found
        assert instead in found

    @pytest.mark.parametrize("port", ['{port: "53"}', '{port: "53", protocol: UDP}', '{port: "53", protocol: ANY}'])
    def test_dns_rules_are_not_told_to_use_tcp(self, port: str) -> None:
        section = f'egress: [{{toPorts: [{{ports: [{port}], rules: {{dns: [{{matchPattern: "*"}}]}}}}]}}]'
        assert [line.split(" ", 2)[1] for line in refused_section(section, CNP).splitlines()] == ["SE008"]

    def test_a_policy_of_nodes_lacks_no_endpoint_selector(self) -> None:
        text = policy("nodeSelector: {}\ningress: []", kind="CiliumClusterwideNetworkPolicy")
        assert refusal(text).count("\n") == 0

    @pytest.mark.parametrize(
        "section",
        [
            "mode: audit\ningress: []",
            "failOpen: true\ningress: []",
            "ingress: [{name: a, fromEntities: [all]}]",
            'ingress: [{toPorts: [{ports: [{port: "1", protocol: TCP}], rules: {http: [{pathPrefix: /a}]}}]}]',
            'ingress: [{toPorts: [{ports: [{port: "1", protocol: TCP}], rules: {http: [{deny: true}]}}]}]',
            'ingress: [{toPorts: [{ports: [{port: "1", protocol: TCP}], rules: {grpc: [{}]}}]}]',
            'ingress: [{toPorts: [{ports: [{port: "1", protocol: TCP}], opaque: allow, rules: {http: [{}]}}]}]',
            'ingress: [{toPorts: [{ports: [{port: "1", protocol: TCP}], bodilessMethods: refuse, rules: {http: [{}]}}]}]',
            'egress: [{toPorts: [{ports: [{port: "1", protocol: TCP}], normalise: {encodedSlash: keep}, rules: {http: []}}]}]',
        ],
    )
    def test_extensions_need_our_own_kind(self, section: str) -> None:
        assert "kind ApiPolicy" in refused_section(section, CNP)


def entity(name: str, addresses: str = "192.0.2.1") -> str:
    """The document that says who is the entity ``name``."""
    return workload(name, False, addresses).replace(f"{{app: {name}}}", f'{{"reserved:{name}": ""}}')


class TestEntities:
    """Entities that other documents say the addresses of."""

    NAMES = ("kube-apiserver", "remote-node", "health", "ingress", "init", "unmanaged", "cluster-mesh")

    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_whoever_has_its_label(self, name: str) -> None:
        text = policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\negress: [{{toEntities: [{name}]}}]")
        policies = policy_set(text, entity(name), entity("none", "192.0.2.9"))
        assert pair(policies, "web", name).action is Action.NATIVE
        assert pair(policies, "web", "none").action is Action.REFUSE
        assert pair(policies, "web", "orders").action is Action.REFUSE

    @pytest.mark.parametrize("name", NAMES)
    def test_a_selector_of_the_label_is_the_same(self, name: str) -> None:
        for labels in (
            f'matchLabels: {{"reserved:{name}": ""}}',
            f'matchExpressions: [{{key: "reserved:{name}", operator: Exists}}]',
        ):
            text = policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\negress: [{{toEndpoints: [{{{labels}}}]}}]")
            assert pair(policy_set(text, entity(name)), "web", name).action is Action.NATIVE

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("peer", ["fromEntities: [{}]", "fromEndpoints: [{{matchLabels: {{'reserved:{}': ''}}}}]"])
    def test_a_deny_rule_needs_somebody_whom_it_denies(self, name: str, peer: str) -> None:
        text = policy(f"endpointSelector: {{}}\ningressDeny: [{{{peer.format(name)}}}]")
        assert f"SE005 no document says who the entity {name!r} is: nobody would be denied" in refusal(text)
        assert bundle(text, entity(name))
        assert bundle(entity(name), text)

    def test_none_is_nobody(self) -> None:
        assert bundle(policy("endpointSelector: {}\ningressDeny: [{fromEntities: [none]}]"))

    @pytest.mark.parametrize(("name", "address"), [("world-ipv4", "198.51.100.1"), ("world-ipv6", "2001:db8::1")])
    def test_the_world_of_one_family(self, name: str, address: str) -> None:
        text = policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\negress: [{{toEntities: [{name}]}}]")
        policies = policy_set(text)
        web = policies.endpoint("web")
        allowed = {
            other: policies.pair(web, Endpoint(address=other), 80).action is Action.NATIVE
            for other in ("198.51.100.1", "2001:db8::1")
        }
        assert [other for other, native in allowed.items() if native] == [address]
        assert pair(policies, "web", "orders").action is Action.REFUSE

    @pytest.mark.parametrize("kind", [CNP, "CiliumClusterwideNetworkPolicy"])
    def test_what_is_reserved_has_no_namespace_and_is_selected_by_no_other_label(self, kind: str) -> None:
        for peer in ("{}", "{matchExpressions: [{key: app, operator: DoesNotExist}]}"):
            text = policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\negress: [{{toEndpoints: [{peer}]}}]", kind=kind)
            assert pair(policy_set(text, entity("remote-node")), "web", "remote-node").action is Action.REFUSE

    @pytest.mark.parametrize("name", ["kube-apiserver", "remote-node", "unmanaged", "cluster-mesh", "none"])
    def test_what_is_elsewhere_is_nobody_s_subject(self, name: str) -> None:
        """In Cilium no policy of endpoints selects a node: its clients on this host would be cut off."""
        text = policy("endpointSelector: {}\ningress: []", kind="CiliumClusterwideNetworkPolicy")
        policies = policy_set(text, entity(name))
        assert pair(policies, "web", name).action is Action.NATIVE
        assert pair(policies, "web", "orders").action is Action.REFUSE

    @pytest.mark.parametrize(
        ("name", "kind", "action"),
        [
            ("health", "CiliumClusterwideNetworkPolicy", Action.REFUSE),
            ("ingress", "CiliumClusterwideNetworkPolicy", Action.REFUSE),
            ("init", "CiliumClusterwideNetworkPolicy", Action.REFUSE),
            ("init", CNP, Action.REFUSE),
            ("health", CNP, Action.NATIVE),  # which has no namespace
        ],
    )
    def test_what_is_an_endpoint_can_be_a_subject(self, name: str, kind: str, action: Action) -> None:
        text = policy(f"endpointSelector: {{matchLabels: {{'reserved:{name}': ''}}}}\ningress: []", kind=kind)
        assert pair(policy_set(text, entity(name)), "web", name).action is action

    @pytest.mark.parametrize(("name", "action"), [("remote-node", Action.NATIVE), ("cluster-mesh", Action.REFUSE)])
    def test_the_cluster_has_its_nodes_but_not_other_clusters(self, name: str, action: Action) -> None:
        text = policy("endpointSelector: {matchLabels: {app: web}}\negress: [{toEntities: [cluster]}]")
        assert pair(policy_set(text, entity(name)), "web", name).action is action

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (entity("remote-node").replace("addresses", "cgroups: [/a], addresses"), "is not on this host"),
            (entity("remote-node").replace("namespace: default", "namespace: prod"), "has no namespace"),
            (entity("remote-node").replace('"reserved:remote-node": ""', '"reserved:remote-node": x'), "never has a value"),
            (entity("host"), "fromEntities or toEntities: [host]"),
            (entity("remote-nod"), "did you mean 'remote-node'?"),
            (policy("endpointSelector: {}\ningress: [{fromEntities: [cluster-mash]}]"), "did you mean 'cluster-mesh'?"),
            (
                policy(
                    "endpointSelector: {}\n"
                    "ingress: [{fromEndpoints: [{matchExpressions: [{key: 'reserved:init', operator: In, values: [a]}]}]}]"
                ),
                "the label reserved:init never has a value",
            ),
        ],
    )
    def test_what_cannot_be_reserved(self, text: str, says: str) -> None:
        assert says in refusal(text)


def group(name: str, cidrs: str, labels: str = "{}", version: str = "v2") -> str:
    return (
        f"apiVersion: cilium.io/{version}\nkind: CiliumCIDRGroup\nmetadata: {{name: {name}, labels: {labels}}}\n"
        f"spec: {{externalCIDRs: [{cidrs}]}}\n"
    )


class TestCidrGroups:
    GROUPS = (
        group("vpn", "192.0.2.0/24, '2001:db8::/32'", "{role: vpn}"),
        group("partner", "198.51.100.0/24", "{role: partner}", "v2alpha1"),
    )

    @staticmethod
    def reached(entry: str, *documents: str) -> list[str]:
        text = policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\negress: [{{toCIDRSet: [{entry}]}}]", kind=CNP)
        policies = policy_set(text, *documents)
        addresses = ("192.0.2.1", "192.0.2.200", "2001:db8::1", "198.51.100.1", "203.0.113.1")
        web = policies.endpoint("web")
        return [one for one in addresses if policies.pair(web, Endpoint(address=one), 80).action is Action.NATIVE]

    @pytest.mark.parametrize(
        ("entry", "addresses"),
        [
            ("{cidrGroupRef: vpn}", ["192.0.2.1", "192.0.2.200", "2001:db8::1"]),
            ("{cidrGroupRef: vpn, except: [192.0.2.128/25]}", ["192.0.2.1", "2001:db8::1"]),
            ("{cidrGroupRef: partner}", ["198.51.100.1"]),
            ("{cidrGroupSelector: {matchLabels: {role: partner}}}", ["198.51.100.1"]),
            ("{cidrGroupSelector: {}}", ["192.0.2.1", "192.0.2.200", "2001:db8::1", "198.51.100.1"]),
        ],
    )
    def test_a_group_is_its_cidrs(self, entry: str, addresses: list[str]) -> None:
        assert self.reached(entry, *self.GROUPS) == addresses

    @pytest.mark.parametrize(
        ("entry", "says"),
        [
            ("{cidrGroupRef: vnp}", "there is no CiliumCIDRGroup 'vnp' in the documents"),
            ("{cidrGroupSelector: {matchLabels: {role: none}}}", "no CiliumCIDRGroup in the documents has these labels"),
            ("{cidrGroupRef: vpn, cidr: 10.0.0.0/8}", "cidr and cidrGroupRef in one entry"),
            ("{}", "an entry of a CIDR set lacks the field 'cidr'"),
        ],
    )
    def test_a_reference_to_nothing_is_refused(self, entry: str, says: str) -> None:
        """A deny rule of a group that is not there would deny nobody."""
        found = refusal(policy(f"endpointSelector: {{}}\negressDeny: [{{toCIDRSet: [{entry}]}}]"), *self.GROUPS)
        assert says in found
        assert found.count("\n") == 0

    def test_a_bad_group_is_refused(self) -> None:
        assert "a CIDR is '10.0.0.0/33', which is no address" in refusal(group("a", "10.0.0.0/33"))
        assert "the CiliumCIDRGroup 'a' is defined twice" in refusal(group("a", ""), group("a", ""))

    def test_what_references_repeat_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodes, "MAX_REPEATED", 3)
        entry = "{cidrGroupRef: vpn}"
        text = policy(f"endpointSelector: {{}}\negress: [{{toCIDRSet: [{entry}, {entry}]}}]")
        assert "references repeat more than 3 values" in refusal(text, *self.GROUPS)


class TestPeersAndPorts:
    def test_an_end_port_of_zero_is_none(self) -> None:
        found = bundle(policy("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: '80', endPort: 0}]}]}]")).policies[0]
        assert found.ingress is not None
        assert [(one.first, one.last) for port in found.ingress.rules[0].ports or () for one in port.ports] == [(80, 80)]

    def test_what_cilium_takes_for_people_is_taken(self) -> None:
        """Words beside flows, and authentication that is switched off."""
        assert bundle(
            policy(
                "endpointSelector: {}\nlog: {value: words}\ningress: [{authentication: {mode: disabled}, fromEntities: [all]}]",
                kind=CNP,
            )
        )

    @pytest.mark.parametrize(
        ("section", "says"),
        [
            ("ingress: [{fromEndpoints: }]", "fromEndpoints must be a list, not nothing (hint: write [] for nothing"),
            ("ingress: [{fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]}]", "in one rule"),
            ("ingress: [{fromCIDR: [10.0.0.0/33]}]", "which is no address"),
            ("ingress: [{fromCIDR: [10.0.0.0/0.0.0.0]}]", "which is no address"),
            ("ingress: [{fromCIDR: [10.0.0.0/0.0.0.255]}]", "which is no address"),
            ("ingress: [{fromCIDR: ['fe80::1%eth0']}]", "which is no address"),
            ("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]}]", "is not part of 10.0.0.0/8"),
            ("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: ['::/0']}]}]", "is not part of 10.0.0.0/8"),
            ("ingress: [{fromEntities: [wrold]}]", "did you mean 'world'?"),
            ("ingressDeny: [{}]", "a deny rule without peers and ports"),
            ("ingressDeny: [{toPorts: [{ports: [{port: '1'}], rules: {http: []}}]}]", "cannot be below a Deny section"),
            ("ingress: [{toPorts: [{}]}]", "lacks the field 'ports'"),
            ("ingress: [{toPorts: [{ports: [{port: http}]}]}]", "named ports are not supported yet"),
            ("ingress: [{toPorts: [{ports: [{port: '65536'}]}]}]", "port is '65536'"),
            ("ingress: [{toPorts: [{ports: [{port: '-1'}]}]}]", "port is '-1'"),
            ("ingress: [{toPorts: [{ports: [{port: '0x50'}]}]}]", "port is '0x50'"),
            ("ingress: [{toPorts: [{ports: [{port: '9', endPort: 8}]}]}]", "endPort 8 is below port 9"),
            ("ingress: [{toPorts: [{ports: [{port: '0', endPort: 8}]}]}]", "takes no endPort"),
            ("ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}], rules: {http: []}}]}]", "cannot have L7 rules"),
            (
                "ingress: [{toPorts: [{ports: [{port: '1'}], rules: {http: []}}]}]",
                "TCP only, this port is ANY",
            ),
            ("ingress: [{toPorts: [{ports: [{port: '1', protocol: UDP}], rules: {http: []}}]}]", "L7 rules are for TCP only"),
            ("ingress: [{toPorts: [{ports: [{port: '1', protocol: TCP}], rules: {}}]}]", "rules is empty"),
            ("ingress: [{toPorts: [{ports: [{port: '1', protocol: TPC}]}]}]", "protocol is 'TPC'"),
            ("ingress: [{toPorts: [{ports: [{port: '1'}], opaque: allow}]}]", "without L7 rules has no meaning"),
            ("ingress: [{toPorts: [{ports: [{port: '1'}], bodilessMethods: refuse}]}]", "without http rules has no meaning"),
            (
                "ingress: [{toPorts: [{ports: [{port: '1', protocol: TCP}], bodilessMethods: refuse, rules: {kafka: [{}]}}]}]",
                "without http rules has no meaning",
            ),
            ("ingress: [{toPorts: [{ports: [{port: '1'}], bodilessMethods: deny}]}]", "bodilessMethods is 'deny'"),
            ("ingressDeny: [{toPorts: [{ports: [{port: '1'}], bodilessMethods: refuse}]}]", "cannot be below a Deny section"),
            (
                "ingress: [{toPorts: [{ports: [{port: '1'}], normalise: {encodedSlash: keep}}]}]",
                "without http rules has no meaning",
            ),
            ("ingress: [{toPorts: [{ports: [{port: '1'}], normalise: {}}]}]", "normalise says nothing"),
            ("ingress: [{toPorts: [{ports: [{port: '1'}], normalise: {encodedSlash: merge}}]}]", "encodedSlash is 'merge'"),
            ("ingress: [{toPorts: [{ports: [{port: '1'}], normalise: {emptySegments: decode}}]}]", "emptySegments is 'decode'"),
            ("ingress: [{toPorts: [{ports: [{port: '1'}], normalise: {dots: keep}}]}]", "normalise has no field 'dots'"),
            ("mode: on\ningress: []", "mode must be a string"),
            ("mode: dry-run\ningress: []", "mode is 'dry-run'"),
            ("ingress: [{mode: audit, fromEntities: [all]}]", "mode: audit on a rule that denies nothing"),
            ("enableDefaultDeny: {ingres: true}\ningress: []", "did you mean 'ingress'?"),
        ],
    )
    def test_a_bad_rule_is_refused(self, section: str, says: str) -> None:
        assert says in refused_section(section)

    def test_the_number_of_ports_is_bounded(self) -> None:
        ports = ", ".join(f"{{port: '{n}'}}" for n in range(1, MAX_PORTS + 2))
        assert f"{MAX_PORTS + 1} ports, more than {MAX_PORTS}" in refused_section(
            f"ingress: [{{toPorts: [{{ports: [{ports}]}}]}}]"
        )

    @pytest.mark.parametrize(
        ("selector", "says"),
        [
            ("{matchExpressions: [{key: app, operator: In}]}", "In takes at least one value"),
            ("{matchExpressions: [{key: app, operator: Exists, values: [a]}]}", "Exists takes no values"),
            ("{matchExpressions: [{key: app, operator: in, values: [a]}]}", "did you mean 'In'?"),
            ("{matchLabels: {'a b': c}}", "is not a label's key"),
            ("{matchLabels: {app: '*'}}", "is not a label's value"),
            ("{matchLabels: {'k8s:app': a, 'any:app': b}}", "has the label 'app' twice"),
            ("{matchLabels: {io.kubernetes.pod.namespace: other}}", "leaves the namespace"),
            (
                "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [default]}]}",
                "leaves the namespace",
            ),
        ],
    )
    def test_a_bad_selector_is_refused(self, selector: str, says: str) -> None:
        assert says in refusal(policy(f"endpointSelector: {selector}\ningress: []"))


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "says"),
        [
            ("{path: '*'}", "for anything write .*"),
            ("{path: ''}", "path is empty"),
            ("{path: /café}", "characters that are not ASCII"),
            ("{path: '/a{1001}'}", "invalid repetition size"),
            (f"{{path: '/{'a' * 4096}'}}", "longer than 4096"),
            ("{path: /a, pathPrefix: /a}", "make them two rules"),
            ("{pathPrefix: api}", "is not a path"),
            ("{pathPrefix: '/api/*'}", "is not a path"),
            ("{pathTemplate: '/users/{id}x'}", "is not a template"),
            ("{headers: ['X A: 1']}", "is not a header's name"),
            ("{headers: ['X-A:']}", "not a header's value"),
            ("{headers: [{name: X-A, value: a, prefix: b}]}", "make them two entries"),
            ("{headers: {X-A: 1}}", "headers must be a list"),
            ("{query: [page]}", "an entry of query must be a mapping"),
            ("{headerMatches: [{name: X-A, mismatch: DROP}]}", "mismatch is 'DROP'"),
            ("{headerMatches: [{name: X-A, mismatch: ADD}]}", "ADD needs a value or a secret"),
            ("{headerMatches: [{name: Host, value: a, mismatch: REPLACE}]}", "would change the framing"),
            ('{headerMatches: [{name: X-A, value: "a\\r\\nX-B: c", mismatch: ADD}]}', "not a header's value"),
            ("{deny: true, headerMatches: [{name: X-A}]}", "a deny rule cannot have headerMatches"),
            ("{deny: 'yes'}", "deny must be true or false"),
        ],
    )
    def test_a_bad_http_rule_is_refused(self, rule: str, says: str) -> None:
        assert says in refused_rule(rule)

    @pytest.mark.parametrize("rule", ["{service: 'pkg.*'}", "{service: /pkg.Svc}", "{method: 'Get|Put'}", "{path: /x}"])
    def test_a_grpc_rule_takes_identifiers(self, rule: str) -> None:
        assert "SE00" in refusal(http_policy(f"[{rule}]").replace("http:", "grpc:"))


class TestKafkaRules:
    def test_cilium_s_own_fields_need_no_extension(self) -> None:
        rule = "{role: produce, topic: a}, {apiKey: fetch, apiVersion: '9', clientID: me, topic: a.b_c-D}"
        text = kafka_policy(f"[{rule}]").replace("sluice.dev/v1", "cilium.io/v2").replace("ApiPolicy", CNP)
        assert bundle(text).policies

    @pytest.mark.parametrize(
        "field",
        [
            "topicPrefix: a",
            "topicPattern: a",
            "group: g",
            "transactionalID: t",
            "record: full",
            "name: a",
            "deny: true",
            "mode: audit",
        ],
    )
    def test_extensions_need_our_own_kind(self, field: str) -> None:
        text = kafka_policy(f"[{{{field}}}]").replace("sluice.dev/v1", "cilium.io/v2").replace("ApiPolicy", CNP)
        name = field.split(":")[0]
        assert f"test.yaml:9:24 SE008 {name} of a Kafka rule is an extension" in refusal(text)

    @pytest.mark.parametrize("role", ["produce", "Produce", "CONSUME"])
    def test_a_role_may_be_written_in_any_case(self, role: str) -> None:
        assert bundle(kafka_policy(f"[{{role: {role}}}]")).policies

    def test_a_topic_may_be_as_long_as_in_cilium(self) -> None:
        assert bundle(kafka_policy(f"[{{topic: {'a' * 255}}}]")).policies

    @pytest.mark.parametrize("version", ["'0'", "7", "'32767'"])
    def test_a_version_may_be_written_as_a_number(self, version: str) -> None:
        assert bundle(kafka_policy(f"[{{apiVersion: {version}}}]")).policies

    @pytest.mark.parametrize("topic", ["a", "A.b_c-9", "a" * 249])
    def test_a_topic_is_named_as_in_kafka(self, topic: str) -> None:
        assert bundle(kafka_policy(f"[{{topic: {topic}}}, {{topicPrefix: {topic}}}]")).policies

    @pytest.mark.parametrize(
        ("rule", "code", "says"),
        [
            ("{role: produce, apiKey: fetch}", "SE009", "role and apiKey in one rule (hint: make them two rules)"),
            ("{role: Producer}", "SE006", "did you mean 'produce'?"),
            ("{role: admin}", "SE006", "role is 'admin'"),
            ("{apiKey: fetsch}", "SE006", "apiKey is 'fetsch', which is no API of Kafka (hint: did you mean 'fetch'?)"),
            ("{apiKey: 'nothing at all'}", "SE006", "the name of an API, such as produce, fetch or metadata"),
            ("{apiKey: 1}", "SE004", "apiKey must be a string"),
            ("{apiVersion: v7}", "SE006", "apiVersion is not a version"),
            ("{apiVersion: '-1'}", "SE006", "apiVersion is not a version"),
            ("{apiVersion: '07'}", "SE006", "apiVersion is not a version"),
            ("{apiVersion: 7.0}", "SE006", "apiVersion is not a version"),
            ("{apiVersion: [7]}", "SE006", "apiVersion is not a version"),
            ("{clientID: 7}", "SE004", "clientID must be a string"),
            ("{clientID: ''}", "SE006", "clientID is empty"),
            ("{topic: ''}", "SE006", "topic is empty"),
            ("{topic: a/b}", "SE006", "topic 'a/b' is not a topic's name"),
            ("{topic: 'orders*'}", "SE006", "topicPattern of an ApiPolicy takes an expression"),
            (f"{{topic: {'a' * 256}}}", "SE006", "at most 255"),
            ("{topic: café}", "SE006", "is not a topic's name"),
            ('{topic: "a\\n"}', "SE006", "is not a topic's name"),
            ("{topicPrefix: 'orders-*'}", "SE006", "topicPrefix 'orders-*' is not a topic's name"),
            ("{topicPattern: '*'}", "SE010", "for anything write .*"),
            ("{topicPattern: 'a(?=b)'}", "SE010", "is not an RE2 pattern"),
            ("{topicPattern: é}", "SE010", "characters that are not ASCII"),
            ("{topic: a, topicPrefix: b}", "SE009", "topic and topicPrefix in one rule"),
            ("{topicPattern: a, topicPrefix: b}", "SE009", "topicPrefix and topicPattern in one rule"),
            ("{group: ''}", "SE006", "group is empty"),
            ("{groupPrefix: ''}", "SE006", "groupPrefix is empty"),
            ("{group: a, groupPrefix: b}", "SE009", "group and groupPrefix in one rule"),
            (
                "{transactionalIDPrefix: a, transactionalID: b}",
                "SE009",
                "transactionalID and transactionalIDPrefix in one rule",
            ),
            ("{transactionalID: [a]}", "SE004", "transactionalID must be a string"),
            ("{record: none}", "SE006", "record is 'none'"),
            ("{record: summary, deny: true}", "SE006", "a deny rule cannot have record: summary"),
            ("{topics: a}", "SE003", "a Kafka rule has no field 'topics' (hint: did you mean 'topic'?)"),
            ("{clientId: a}", "SE003", "did you mean 'clientID'?"),
            ("{path: /a}", "SE003", "a Kafka rule has no field 'path'"),
            ("produce", "SE004", "a Kafka rule must be a mapping"),
        ],
    )
    def test_a_bad_rule_is_refused_where_it_stands(self, rule: str, code: str, says: str) -> None:
        found = refusal(kafka_policy(f"[{rule}]"))
        assert (f" {code} " in found, says in found) == (True, True), found
        assert found.startswith("test.yaml:9:")

    @pytest.mark.parametrize(
        ("port", "says"),
        [
            ('port: "0", protocol: TCP', 'port "0" (every port) cannot have L7 rules'),
            ('port: "9092", protocol: UDP', "L7 rules are for TCP only, this port is UDP"),
            ('port: "9092"', "L7 rules are for TCP only, this port is ANY"),
        ],
    )
    def test_it_needs_a_tcp_port(self, port: str, says: str) -> None:
        assert says in refusal(kafka_policy("[{}]").replace('port: "9092", protocol: TCP', port))


class TestKinds:
    """Rules of two kinds on one port and peer are an error."""

    GRPC = http_policy("[{}]", "other").replace("http:", "grpc:")
    KAFKA = http_policy("[{}]", "other").replace("http:", "kafka:")

    def test_the_same_port_and_peer(self) -> None:
        assert "grpc rules for connections that have http rules" in refusal(*PARTIES, http_policy("[{}]"), self.GRPC)
        assert "kafka rules for connections that have http rules" in refusal(*PARTIES, http_policy("[{}]"), self.KAFKA)

    def test_another_port_or_another_peer_is_fine(self) -> None:
        assert bundle(*PARTIES, http_policy("[{}]"), self.GRPC.replace("8080", "9090"))
        assert bundle(*PARTIES, http_policy("[{}]"), self.GRPC.replace("app: web", "app: batch"))

    def test_an_overlapping_range(self) -> None:
        wide = self.GRPC.replace('port: "8080"', 'port: "8000", endPort: 9000')
        assert "SE009" in refusal(*PARTIES, http_policy("[{}]"), wide)

    def test_one_side_each(self) -> None:
        rules = 'toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {grpc: [{}]}}]'
        egress = policy(f"endpointSelector: {{matchLabels: {{app: web}}}}\negress: [{{{rules}}}]", "out")
        assert "SE009" in refusal(*PARTIES, http_policy("[{}]"), egress)
        assert bundle(*PARTIES, http_policy("[{}]"), egress.replace("app: web", "app: batch"))

    def test_kafka_is_another_kind(self) -> None:
        here = kafka_policy("[{}]", "k").replace("9092", "8080")
        assert "kafka rules for connections that have http rules" in refusal(*PARTIES, http_policy("[{}]"), here)
        assert "kafka rules for connections that have grpc rules" in refusal(*PARTIES, self.GRPC, here)
        assert "http and kafka rules on the same ports" in refusal(http_policy("[{}], kafka: [{}]"))
        assert bundle(*PARTIES, http_policy("[{}]"), kafka_policy("[{}]", "k"))

    def test_both_kinds_in_one_entry(self) -> None:
        assert "http and grpc rules on the same ports" in refusal(http_policy("[{}], grpc: [{}]"))


class TestSecrets:
    def secret(self, entries: str) -> str:
        return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: prod}}\n{entries}\n"

    @pytest.mark.parametrize("entries", ["stringData: {a: value}", "data: {a: dmFsdWU=}"])
    def test_the_only_entry_is_the_value(self, entries: str) -> None:
        assert dict(bundle(self.secret(entries)).secrets) == {("prod", "s"): "value"}

    @pytest.mark.parametrize(
        ("entries", "says"),
        [
            ("stringData: {a: x, b: y}", "exactly one entry, not 2"),
            ("type: Opaque", "exactly one entry, not 0"),
            ("data: {a: '%%%'}", "must be base64"),
            ("data: {a: dmFsdWUK}", "often a newline at the end"),
            ("stringData: {a: 7}", "must be a string"),
            ("stringData: dmFsdWU=", "stringData must be a mapping"),
            ("data: dmFsdWU=", "data must be a mapping"),
        ],
    )
    def test_a_bad_secret_is_refused_without_showing_it(self, entries: str, says: str) -> None:
        shown = refusal(self.secret(entries))
        assert says in shown
        assert "dmFsdWU" not in shown


def _examples() -> list[Path]:
    return sorted((Path(__file__).parents[3] / "policies").glob("examples*/*.yaml"))


def test_there_are_examples() -> None:
    kafka = ["kafka", "connect", "mirrormaker", "streams", "tools"]
    others = ["as-in-a-cluster", "audit-mode", "deny-rule", "egress-cidr", "http-orders"]
    assert sorted(path.stem for path in _examples()) == sorted([*others, *kafka])


def test_the_examples_of_a_folder_may_be_in_force_together() -> None:
    """As in the demo."""
    load([Source(str(path), path.read_text()) for path in _examples() if path.parent.name == "examples"])


@pytest.mark.parametrize("path", _examples(), ids=lambda path: path.stem)
def test_every_example_loads(path: Path) -> None:
    loaded: Bundle = load([Source(str(path), path.read_text())])
    assert loaded.policies
    assert loaded.workloads
