"""Request targets and hosts as policy judges them (RFC 3986 section 6.2.2, RFC 9112 section 3.2)."""

import pytest

from parsers.target import BadTarget, Target, parse_host, parse_target
from tests.corpus_loader import TargetCase, target_cases


@pytest.mark.parametrize("case", target_cases(), ids=lambda case: case.target)
def test_a_target_has_one_canonical_form_or_a_fault(case: TargetCase) -> None:
    assert parse_target("GET", case.target) == Target(
        case.path, fault=case.fault, query_fault=case.query_fault, slashes=case.slashes
    )


@pytest.mark.parametrize(
    "case", [case for case in target_cases() if not case.fault and not case.query_fault], ids=lambda case: case.target
)
def test_a_canonical_path_is_its_own_canonical_form(case: TargetCase) -> None:
    assert parse_target("GET", case.path).path == case.path


def test_absolute_form_gives_the_host_too() -> None:
    judged = parse_target("GET", "http://A.example:80/%61/..?x")
    assert judged == Target("/%61/..?x", "a.example:80", "dot-segment", default_port=":80")
    assert parse_target("GET", "HTTPS://a") == Target("/", "a", default_port=":443")


@pytest.mark.parametrize(
    "target", ["", "admin", "a:80", "*", "httpss://a/", "http:///x", "http://a\\@b/", "http://[/", "/a b", "/\x7f", "/\u4e2d"]
)
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(BadTarget):
        parse_target("GET", target)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("A.Example", "a.example"),  # Istio CVE-2021-39155
        ("a.example.", "a.example"),
        ("a.example.:8080", "a.example:8080"),
        ("my_service", "my_service"),
        ("10.0.0.7:80", "10.0.0.7:80"),
        ("[::FFFF:1]:80", "[::ffff:1]:80"),
        ("a" * 255, "a" * 255),
    ],
)
def test_a_host_is_lower_cased_without_trailing_dot(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".a", "a..b", "a:", "a:0", "a:b", "a:123456", "::1", "[::1", "a b", "a\n", "a" * 300]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(BadTarget):
        parse_host(text)
