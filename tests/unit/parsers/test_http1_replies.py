"""Replies that RFC 9112 does not allow and that reach the client unchanged (docs/http1.md has the table, with the reasons)."""

import pytest

from parsers.contract import Done, Leave, Opaque, Outage, Pass, Reply, Tolerated
from parsers.http1 import Http1Parser
from parsers.http1_head import FIELDS_MAX
from tests.odd_replies import ODD, OK, Odd, head, odd
from tests.playbook import ALLOW, DENY, Playbook

GET = b"GET /orders/1 HTTP/1.1\r\nHost: a.example\r\n\r\n"
HEAD = b"HEAD /orders/1 HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST /orders HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("case", ODD, ids=lambda case: case.name)
@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_an_odd_reply_reaches_the_client_unchanged_and_is_counted(case: Odd, size: int) -> None:
    play = Playbook(Http1Parser()).client(GET)
    for piece in pieces(case.reply, size):
        play.server(piece)
    if case.until_close:
        assert play.done == []
        play.server(end=True)
    assert (play.to_client, play.done, play.fail) == (case.reply, [0], None)
    assert play.tolerated == case.reasons
    assert play.left is not case.goes_on


@pytest.mark.parametrize("case", [case for case in ODD if case.goes_on], ids=lambda case: case.name)
def test_where_nobody_doubts_the_end_the_connection_goes_on(case: Odd) -> None:
    play = Playbook(Http1Parser()).client(GET).server(case.reply).client(GET).server(OK)
    assert (play.to_client, play.done) == (case.reply + OK, [0, 1])
    assert play.parser.at_boundary
    assert Playbook(Http1Parser()).client(GET + GET).server(case.reply + OK).done == [0, 1]


@pytest.mark.parametrize("case", [case for case in ODD if not case.goes_on], ids=lambda case: case.name)
def test_no_reply_follows_one_whose_end_is_in_doubt(case: Odd) -> None:
    """Response splitting: whoever sees another end would take the rest for the reply to his next request."""
    play = Playbook(Http1Parser()).client(GET + GET).server(case.reply)
    assert play.fail is not None
    assert (play.fail.reason, play.fail.status) == (f"reply-{case.reasons[0]}", 502)
    assert play.to_client == play.fail.last_words


@pytest.mark.parametrize(
    "case", [case for case in ODD if not case.goes_on and not case.name.startswith("204")], ids=lambda case: case.name
)
def test_a_request_that_comes_during_a_doubtful_reply_waits_and_goes_nowhere(case: Odd) -> None:
    play = Playbook(Http1Parser()).client(GET)
    play.server(case.reply[:-1]).client(GET)
    play.server(case.reply[-1:], end=case.until_close)
    assert (play.to_server, play.to_client, play.done, play.fail) == (GET, case.reply, [0], None)
    assert play.left


def test_bytes_behind_a_doubtful_reply_never_reach_the_client() -> None:
    play = Playbook(Http1Parser()).client(GET).server(odd("equal-lengths").reply + OK)
    assert play.to_client == odd("equal-lengths").reply
    play = Playbook(Http1Parser()).client(GET).server(odd("204-chunked-without-an-end").reply + OK)
    assert play.to_client == odd("204-chunked-without-an-end").reply


@pytest.mark.parametrize("seen", [b"", b"0\r\n"])
def test_a_204_whose_end_does_not_come_is_over_when_the_client_goes_on_or_nothing_more_comes(seen: bytes) -> None:
    reply = odd("204-chunked-without-an-end").reply
    play = Playbook(Http1Parser()).client(GET).server(reply + seen).client(GET)
    assert (play.to_client, play.to_server, play.done, play.left) == (reply, GET, [0], True)
    play = Playbook(Http1Parser()).client(GET).server(reply + seen).outage(Outage.TIMEOUT)
    assert (play.to_client, play.done, play.left) == (reply, [0], True)
    play = Playbook(Http1Parser()).client(GET).server(reply + seen, end=True)
    assert (play.to_client, play.done, play.left) == (reply, [0], True)
    play = Playbook(Http1Parser()).client(POST + b"1").server(reply + seen).client(b"2345").client(GET)
    assert (play.to_client, play.to_server, play.done, play.left) == (reply, POST + b"12345", [0], True)
    early = Playbook(Http1Parser()).client(POST + b"1").server(reply + seen, end=True)
    assert early.fail is not None
    assert (early.to_client, early.fail.reason) == (reply, "early-reply")


def test_a_doubtful_reply_beside_a_denied_request_is_refused() -> None:
    play = Playbook(Http1Parser(), lambda call: DENY if call.method == "POST" else ALLOW).client(GET + POST + b"12345")
    assert play.server(odd("bare-lf").reply).fail is not None
    assert play.to_client.startswith(b"HTTP/1.1 502 ")


def test_a_doubtful_reply_to_head_has_no_body() -> None:
    play = Playbook(Http1Parser()).client(HEAD).server(head(b"Content-Length: 2, 2"))
    assert (play.done, play.left, play.tolerated) == ([0], True, ["repeated-content-length"])


def test_an_early_doubtful_reply_ends_the_connection_as_any_early_reply() -> None:
    play = Playbook(Http1Parser()).client(POST + b"1").server(odd("equal-lengths").reply)
    assert play.fail is not None
    assert play.fail.reason == "early-reply"


def test_several_oddities_are_counted_each() -> None:
    reply = b"\nHTTP/1.1 200 OK\nX-A : b\n c\nContent-Length: 2\nContent-Length: 2\n\nok"
    play = Playbook(Http1Parser()).client(GET).server(reply)
    assert play.to_client == reply
    assert play.tolerated == ["blank-line", "bare-lf", "space-before-colon", "obs-fold", "repeated-content-length"]


def test_101_may_carry_a_transfer_encoding() -> None:
    """Behind it comes the other protocol, whatever the head says."""
    switch = head(
        b"Connection: Upgrade", b"Upgrade: websocket", b"Transfer-Encoding: chunked", status=b"101 Switching Protocols"
    )
    play = Playbook(Http1Parser()).client(UPGRADE)
    assert play.server(switch).verbs == [Tolerated("body-forbidden"), Reply(0, 101), Pass(len(switch), 0), Opaque(0)]


def test_as_many_header_lines_as_the_limit_says() -> None:
    lines = [b"a:%d" % n for n in range(FIELDS_MAX - 1)]
    assert Playbook(Http1Parser()).client(GET).server(head(*lines, b"Content-Length: 0")).done == [0]
    play = Playbook(Http1Parser()).client(GET).server(head(*lines, b"a:b", b"Content-Length: 0"))
    assert play.fail is not None
    assert (play.fail.reason, play.fail.limit) == ("reply-too-many-fields", "FIELDS_MAX")
    play = Playbook(Http1Parser()).client(GET).server(b"HTTP/1.1 200 OK\n" + b"a:b\n" * (FIELDS_MAX + 1) + b"\n")
    assert play.fail is not None
    assert play.fail.reason == "reply-too-many-fields"


class TestBetweenCalls:
    """What a server says while no request is open."""

    TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    @pytest.mark.parametrize("size", [1, 5, 1000])
    def test_a_408_on_an_idle_connection_closes_it_and_is_no_denial(self, size: int) -> None:
        play = Playbook(Http1Parser()).client(GET).server(OK)
        for piece in pieces(self.TIMED_OUT, size):
            if not play.left:
                play.server(piece)
        assert (play.to_client, play.fail, play.left) == (OK, None, True)
        assert play.tolerated == ["late-408"]

    def test_nothing_of_a_request_goes_on_while_it_is_being_told(self) -> None:
        """Else it would become that request's reply."""
        play = Playbook(Http1Parser()).client(GET).server(OK + self.TIMED_OUT[:9]).client(GET)
        assert play.to_server == GET
        assert not play.parser.at_boundary
        assert play.server(self.TIMED_OUT[9:]).left

    def test_anything_else_is_a_reply_without_a_request(self) -> None:
        for words in (OK, b"HTTP/1.1 407 ", b"HTTP/1.1 4000", b"x"):
            play = Playbook(Http1Parser()).client(GET).server(OK).server(words)
            assert play.fail is not None
            assert play.fail.reason == "reply-without-request"
            assert play.to_client == OK

    def test_a_408_while_a_denied_request_is_read_away_does_not_take_its_answer(self) -> None:
        play = Playbook(Http1Parser(), lambda call: DENY if call.method == "POST" else ALLOW).client(GET).server(OK)
        play.client(POST + b"1").server(self.TIMED_OUT)
        assert play.fail is not None
        assert (play.fail.status, play.fail.call) == (403, 1)

    @pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r", b"\r\n\r\n\r\n"])
    def test_line_ends_behind_a_reply_are_dropped(self, blank: bytes) -> None:
        play = Playbook(Http1Parser()).client(GET).server(OK + blank)
        assert play.tolerated == ["blank-line"]
        assert play.parser.at_boundary
        play.client(GET).server(OK)
        assert (play.to_client, play.done) == (OK + OK, [0, 1])

    def test_the_answer_to_a_request_may_be_408(self) -> None:
        play = Playbook(Http1Parser()).client(GET).server(OK).client(GET).server(self.TIMED_OUT)
        assert (play.to_client, play.replies[-1]) == (OK + self.TIMED_OUT, (1, 408))

    def test_leaving_is_said_once_and_settles_nothing_more(self) -> None:
        play = Playbook(Http1Parser()).client(GET)
        assert play.server(odd("bare-lf").reply).verbs[-2:] == [Done(0), Leave()]
        assert play.parser.on_outage(Outage.RESET) != []
