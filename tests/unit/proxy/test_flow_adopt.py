"""A call that the kernel began and the relay takes over: what has gone by is counted, and opens nothing that follows."""

import pytest

from parsers.http1 import Http1Parser
from proxy.flow import CARRY_MIN, Carried
from tests.flow_playbook import REPLY, REQUEST, Dialogue

BODY = 4 * CARRY_MIN
HEAD = b"POST /yes/big HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % BODY
REPLY_HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BODY


def lent() -> Dialogue:
    """A connection that the kernel may have: one call has gone by the relay."""
    play = Dialogue(Http1Parser()).client(b"GET /yes HTTP/1.1\r\nhost: a\r\n\r\n").server(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert play.flow.lend() is not None
    return play


def adopted(request: int, reply: int = 0) -> Dialogue:
    """Of a call with long bodies the kernel has carried so many bytes of each."""
    play = lent()
    carried = Carried(0.0, HEAD, len(HEAD) + request, REPLY_HEAD if reply else b"", len(REPLY_HEAD) + reply, 200)
    return play.take(play.flow.adopt([carried if reply else Carried(0.0, HEAD, len(HEAD) + request, b"", 0, 0)], play.now))


def test_a_long_body_that_has_gone_by_lets_no_later_call_pass_unjudged() -> None:
    play = adopted(BODY)
    assert play.carry == [0, 0]
    before = play.to_server
    play.client(b"GET /no HTTP/1.1\r\nhost: a\r\n\r\n")
    assert play.to_server == before
    play.server(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert play.story[1:] == [("ALLOWED", "/yes/big", 204, "rule-matched"), ("DENIED", "/no", 403, "no-rule-matched")]


@pytest.mark.parametrize("left", [1, 2, CARRY_MIN - 1, CARRY_MIN, CARRY_MIN + 1, BODY - 1, BODY])
def test_the_rest_of_a_body_passes_and_no_byte_more(left: int) -> None:
    play = adopted(BODY - left)
    before = len(play.to_server)
    rest = bytes(left)
    while rest:
        if carry := min(play.carry[REQUEST], len(rest)):
            play.carried(REQUEST, carry)
            rest, before = rest[carry:], before - carry
        else:
            play.client(rest[:100])
            rest = rest[100:]
    assert len(play.to_server) == before + left
    assert play.carry[REQUEST] == 0
    play.client(b"GET /no HTTP/1.1\r\nhost: a\r\n\r\n").server(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert len(play.to_server) == before + left
    assert [(record.path, record.bytes_request) for record in play.records[1:]] == [("/yes/big", len(HEAD) + BODY), ("/no", 29)]


@pytest.mark.parametrize("left", [1, CARRY_MIN - 1, CARRY_MIN, CARRY_MIN + 1])
def test_of_a_long_reply_no_more_is_carried_than_is_left(left: int) -> None:
    play = adopted(BODY, BODY - left)
    assert play.carry[REPLY] <= left
    play.server(b"x")
    assert play.carry[REPLY] <= left - 1


def test_of_several_calls_each_has_a_record_even_if_the_first_should_not_have_begun() -> None:
    play = lent()
    heads = [b"GET /no HTTP/1.1\r\nhost: a\r\n\r\n", b"GET /yes/2 HTTP/1.1\r\nhost: a\r\n\r\n"]
    play.take(play.flow.adopt([Carried(0.0, head, len(head), b"", 0, 0) for head in heads], play.now))
    assert play.ended
    assert [type(fault) for fault in play.faults] == [PermissionError]
    assert sorted(str(path) for _, path, _, _ in play.story) == ["/no", "/yes", "None", "None"], "the fault has one, too"
