"""Laws that hold for any documents and any calls."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsers.contract import ApiCall
from policies.decide import Action, Decision, PolicySet, Verdict
from policies.load import Finding, LoadError, Source, load
from policies.model import Endpoint

from .policies_words import document, documents, http_rules, sections, workload_documents

CALLS = [
    ApiCall(protocol="http/1.1", method=method, path=path, host="orders", headers=headers)
    for method in ("GET", "POST")
    for path in ("/", "/a", "/a/b", "/a?q=1", "/a/b;x?q=2")
    for headers in ((), (("x-a", "1"),))
]
PARTIES = ["orders", "web", "batch", "far"]

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def _loaded(*texts: str) -> PolicySet | None:
    """None for documents with http and grpc rules on one port."""
    try:
        return PolicySet(load([Source(f"{number}.yaml", text) for number, text in enumerate([*workload_documents, *texts])]), 1)
    except LoadError as error:
        if {finding.code for finding in error.findings} != {"SE009"}:
            raise
        return None


def _numbered(texts: Sequence[str]) -> list[str]:
    return [text.replace("NAME", f"p{number}") for number, text in enumerate(texts)]


def _allowed(policies: PolicySet, subject: str, peer: str, port: int) -> list[bool]:
    pair = policies.pair(policies.endpoint(subject), policies.endpoint(peer), port)
    return [pair.action is not Action.REFUSE, *(pair.decide(call).allowed for call in CALLS)]


@relaxed
@given(texts=st.lists(documents, max_size=3), rules=http_rules, port=st.sampled_from([80, 8080, 53]))
def test_a_rule_for_one_peer_never_widens_what_another_may(texts: list[str], rules: list[Any], port: int) -> None:
    """The class of CVE-2023-30851 and CVE-2025-64715: a policy that opens more than it says."""
    allowed_for_web = document(
        {
            "endpointSelector": {"matchLabels": {"app": "orders"}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": "web"}}],
                    "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}], "rules": {"http": rules}}],
                }
            ],
        },
        "added",
    )
    before, after = _loaded(*_numbered(texts)), _loaded(*_numbered(texts), allowed_for_web)
    if before is None or after is None:
        return
    for subject, peer in (("batch", "orders"), ("far", "orders"), ("web", "batch"), ("orders", "web")):
        was, is_ = _allowed(before, subject, peer, port), _allowed(after, subject, peer, port)
        assert all(earlier or not later for earlier, later in zip(was, is_, strict=True))


@relaxed
@given(texts=st.lists(documents, max_size=3), spec=sections, port=st.sampled_from([80, 8080, 53]))
def test_a_policy_in_audit_mode_changes_no_verdict_to_allow_or_deny(texts: list[str], spec: dict[str, Any], port: int) -> None:
    before, after = _loaded(*_numbered(texts)), _loaded(*_numbered(texts), document({**spec, "mode": "audit"}, "added"))
    if before is None or after is None:
        return
    for subject in PARTIES:
        for peer in PARTIES:
            assert _allowed(before, subject, peer, port) == _allowed(after, subject, peer, port)


@relaxed
@given(texts=st.lists(documents, min_size=2, max_size=4), data=st.data())
def test_the_order_of_documents_has_no_meaning(texts: list[str], data: st.DataObject) -> None:
    numbered = _numbered(texts)
    one, other = _loaded(*numbered), _loaded(*data.draw(st.permutations(numbered)))
    assert (one is None) == (other is None)
    if one is None or other is None:
        return
    for subject in PARTIES:
        for peer in PARTIES:
            for call in CALLS[:6]:
                assert _facts(one, subject, peer, call) == _facts(other, subject, peer, call)


def _facts(policies: PolicySet, subject: str, peer: str, call: ApiCall) -> tuple[object, ...]:
    decision = policies.pair(policies.endpoint(subject), policies.endpoint(peer), 80).decide(call)
    return decision.verdict, decision.policy, decision.rule, decision.reason, decision.direction, decision.detail


@relaxed
@given(texts=st.lists(documents, max_size=3), field=st.sampled_from(["ingress", "fromEndpoints", "toPorts", "ports", "http"]))
def test_an_empty_list_denies(texts: list[str], field: str) -> None:
    """CVE-2025-64715: an empty list that allowed everything."""
    ports: dict[str, Any] = {"ports": [] if field == "ports" else [{"port": "80", "protocol": "TCP"}]}
    if field == "http":
        ports["rules"] = {"http": []}
    rule = {
        "fromEndpoints": [] if field == "fromEndpoints" else [{"matchLabels": {"app": "web"}}],
        "toPorts": [] if field == "toPorts" else [ports],
    }
    spec = {"endpointSelector": {"matchLabels": {"app": "orders"}}, "ingress": [] if field == "ingress" else [rule]}
    policies = _loaded(document(spec, "empty"))
    assert policies is not None
    assert not any(_allowed(policies, "web", "orders", 80)[1:])
    # Nor does it become an opening beside other policies: only they can allow. (With "http: []" the proxy takes the
    # connection, to answer its calls with a denial.)
    before, after = _loaded(*_numbered(texts)), _loaded(*_numbered(texts), document(spec, "added"))
    if before is not None and after is not None:
        was, is_ = _allowed(before, "web", "orders", 80)[1:], _allowed(after, "web", "orders", 80)[1:]
        assert all(earlier or not later for earlier, later in zip(was, is_, strict=True))


hostile_text = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.text(alphabet="/%;?&=+a\\#*\x00\n\xff", max_size=60),
    st.sampled_from(["/a" * 20_000, "\ud800", "*", "?" * 500, "/a?" + "q=1&" * 2_000]),
)
hostile_calls = st.builds(
    ApiCall,
    protocol=st.sampled_from(["http/1.1", "http/2", "grpc", "kafka", "tcp", "", "HTTP/1.1"]),
    method=hostile_text,
    path=hostile_text,
    host=hostile_text,
    headers=st.lists(st.tuples(st.sampled_from(["x-a", "", "X-A", "\xff"]), st.text(max_size=20)), max_size=4).map(tuple),
    path_fault=st.one_of(st.none(), st.just("encoded-slash")),
)


@relaxed
@given(texts=st.lists(documents, max_size=3), calls=st.lists(hostile_calls, min_size=1, max_size=5))
def test_decide_is_total_and_repeats_itself(texts: list[str], calls: list[ApiCall]) -> None:
    policies = _loaded(*_numbered(texts))
    if policies is None:
        return
    for peer in (
        policies.endpoint("orders"),
        Endpoint(address="not an address"),
        Endpoint(local=True),
        Endpoint(workload="gone"),
    ):
        pair = policies.pair(policies.endpoint("web"), peer, 80)
        for call in calls:
            decision = pair.decide(call)
            assert isinstance(decision, Decision)
            assert decision.verdict in Verdict
            assert decision.allowed is (decision.verdict is not Verdict.DENIED)
            assert (decision.would == "DENY") is (decision.verdict is Verdict.WOULD_DENY)
            assert pair.decide(call) is decision


@relaxed
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.text(alphabet="{}[]:,-&*!|>'\"# \nab\t", max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["spec", "kind", "ingress"]), inner),
            max_leaves=20,
        ).map(json.dumps),
    )
)
def test_any_text_loads_or_is_refused_with_positions(text: str) -> None:
    findings = _findings(text)
    assert findings is None or findings
    assert all(one.file == "any.yaml" and one.line >= 1 and one.column >= 1 for one in findings or ())


def _findings(text: str) -> tuple[Finding, ...] | None:
    try:
        load([Source("any.yaml", text)])
    except LoadError as error:
        return error.findings
    return None
