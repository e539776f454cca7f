"""What documents may say, and what is answered to those that may not."""

from pathlib import Path

import pytest

from policies import nodes
from policies.load import Bundle, LoadError, Source, load
from policies.spec import MAX_PORTS

from .words import PARTIES, bundle, http_policy, kafka_policy, policy, workload

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

    def test_aliases_and_anchors_are_refused(self) -> None:
        """The "billion laughs" bomb."""
        assert "anchors and aliases are refused" in refusal("a: &x [1]\nb: *x")

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
        assert "the label source 'reserved'" in refusal(workload("a").replace("{app: a}", '{"reserved:host": ""}'))


class TestRefusedFeatures:
    """What cannot be enforced must not load: it would be silently open."""

    @pytest.mark.parametrize(
        "section",
        [
            "egress: [{toFQDNs: [{matchName: example.com}]}]",
            "egress: [{toServices: []}]",
            "ingress: [{fromRequires: [{}]}]",
            "ingress: [{icmps: [{fields: [{type: 8}]}]}]",
            "ingress: [{fromEntities: [kube-apiserver]}]",
            "ingress: [{authentication: {mode: required}}]",
            "ingress: [{fromCIDRSet: [{cidrGroupRef: x, cidr: 10.0.0.0/8}]}]",
            'egress: [{toPorts: [{ports: [{port: "443", protocol: TCP}], serverNames: [a.example]}]}]',
            'egress: [{toPorts: [{ports: [{port: "9", protocol: SCTP}]}]}]',
            'egress: [{toPorts: [{ports: [{port: "53", protocol: UDP}], rules: {dns: [{matchPattern: "*"}]}}]}]',
        ],
    )
    @pytest.mark.parametrize("kind", ["ApiPolicy", CNP])
    def test_what_is_not_supported_is_refused_by_name(self, section: str, kind: str) -> None:
        assert "SE008" in refused_section(section, kind)
        assert "not supported yet, refused so that nothing is silently open" in refused_section(section, kind)

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


class TestPeersAndPorts:
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
            ("{role: Produce}", "SE006", "did you mean 'produce'?"),
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
            (f"{{topic: {'a' * 250}}}", "SE006", "at most 249"),
            ("{topic: café}", "SE006", "is not a topic's name"),
            ('{topic: "a\\n"}', "SE006", "is not a topic's name"),
            ("{topicPrefix: 'orders-*'}", "SE006", "topicPrefix 'orders-*' is not a topic's name"),
            ("{topicPattern: '*'}", "SE010", "for anything write .*"),
            ("{topicPattern: 'a(?=b)'}", "SE010", "is not an RE2 pattern"),
            ("{topicPattern: é}", "SE010", "characters that are not ASCII"),
            ("{topic: a, topicPrefix: b}", "SE009", "topic and topicPrefix in one rule"),
            ("{topicPattern: a, topicPrefix: b}", "SE009", "topicPrefix and topicPattern in one rule"),
            ("{group: ''}", "SE006", "group is empty"),
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
    return sorted((Path(__file__).parents[3] / "policies" / "examples").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert [path.stem for path in _examples()] == ["audit-mode", "deny-rule", "egress-cidr", "http-orders", "kafka"]


@pytest.mark.parametrize("path", _examples(), ids=lambda path: path.stem)
def test_every_example_loads(path: Path) -> None:
    loaded: Bundle = load([Source(str(path), path.read_text())])
    assert loaded.policies
    assert loaded.workloads
