"""What policy makes of slashes in paths: whichever reading a server takes, it is judged, and it has no other fault."""

import os
from urllib.parse import unquote

from hypothesis import given, settings
from hypothesis import strategies as st

from parsers.target import parse_target
from policies.model import EmptySegments, EncodedSlash, Normalise
from policies.slashes import reading, readings

EXAMPLES = 20_000 if os.environ.get("SLUICE_SOAK") == "1" else 600

pieces = st.sampled_from(
    ["/", "//", "%2F", "%2f", "a", "b.", ".", "..", "%2e", ";", ";x", "%3B", "%5C", "\\", "#", "%00", "%", "%25", "2F", "\xe9"]
)
targets = st.tuples(st.lists(pieces, max_size=9), st.sampled_from(["", "?", "?a=//", "?%2F..", "?100%"])).map(
    lambda drawn: "/" + "".join(drawn[0]) + drawn[1]
)
settings_of_ports = st.builds(Normalise, st.sampled_from(EncodedSlash), st.sampled_from(EmptySegments))


@settings(max_examples=EXAMPLES, deadline=None)
@given(targets)
def test_a_target_whose_only_fault_are_slashes_has_no_other_in_any_reading(target: str) -> None:
    judged = parse_target("GET", target)
    assert not judged.slashes or judged.fault in ("encoded-slash", "empty-segment")
    for one in readings(judged.path) if judged.slashes else ():
        again = parse_target("GET", one)
        assert again.fault is None or again.slashes, one
        segments = unquote(one.partition("?")[0]).split("/")
        assert not {".", ".."}.intersection(segment.partition(";")[0] for segment in segments), one


@settings(max_examples=EXAMPLES, deadline=None)
@given(targets, settings_of_ports)
def test_what_rules_that_allow_see_rules_that_deny_see_too(target: str, said: Normalise) -> None:
    judged = parse_target("GET", target)
    if judged.slashes:
        read = reading(judged.path, said)
        assert read is None or read in readings(judged.path)
        assert reading(judged.path, Normalise()) is None


@settings(max_examples=EXAMPLES, deadline=None)
@given(targets)
def test_a_target_without_fault_reads_the_same_whatever_the_server_does_with_slashes(target: str) -> None:
    judged = parse_target("GET", target)
    if judged.fault is None:
        assert readings(judged.path) == {judged.path}
