"""What an HTTP/1.1 connection may say, as dialogues: bytes in, verbs and bytes out (RFC 9112)."""

import pytest

from parsers import http1
from parsers.contract import (
    ApiCall,
    Direction,
    Done,
    Drop,
    Fail,
    HeaderEdit,
    Hold,
    Inject,
    Judge,
    More,
    Opaque,
    Outage,
    Pass,
    Reply,
)
from parsers.http1 import Http1Parser
from parsers.http1_answers import Refused
from parsers.http1_head import FRAMING_FIELDS, MEMO_ENTRIES_MAX, MEMO_HEAD_MAX, REQUEST_HEADS
from tests.corpus_loader import HostileReply, HostileRequest, hostile_replies, hostile_requests
from tests.playbook import ALLOW, BAD_REQUEST, DENY, Playbook, Verdict

GET = b"GET /orders/1 HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST /orders HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST /orders HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
DENIED = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\nAccess denied\r\n"
DENIED_AND_CLOSED = DENIED.replace(b"15\r\n", b"15\r\nconnection: close\r\n")


def deny_posts(call: ApiCall) -> Verdict:
    return DENY if call.method == "POST" else ALLOW


def conversation(rule=lambda call: ALLOW) -> Playbook:  # type: ignore[no-untyped-def]
    return Playbook(Http1Parser(), rule)


class TestRequestsAndReplies:
    def test_a_request_is_judged_then_passed_and_its_reply_ends_it(self) -> None:
        play = conversation()
        assert play.client(GET).verbs == [Judge(0, play.calls[0]), Pass(len(GET), 0)]
        assert play.server(OK).verbs == [Reply(0, 200), Pass(len(OK), 0), Done(0)]
        assert (play.to_server, play.to_client) == (GET, OK)

    def test_policy_sees_the_request_as_the_server_will(self) -> None:
        play = conversation().client(
            b"PUT /%61?q=%7e HTTP/1.1\r\nHost: A.Example.:80\r\nX-A:  b \r\nx-a: c\xe9\r\nEmpty:\r\n\r\n"
        )
        call = play.calls[0]
        assert (call.protocol, call.method, call.path, call.host) == ("http/1.1", "PUT", "/a?q=~", "a.example:80")
        assert call.headers == (("host", "A.Example.:80"), ("x-a", "b"), ("x-a", "c\xe9"), ("empty", ""))
        assert call.path_fault is None

    def test_wire_length_is_the_length_of_the_head(self) -> None:
        assert conversation().client(POST + b"12345").calls[0].wire_length == len(POST)

    def test_a_path_without_certain_meaning_is_judged_with_its_fault(self) -> None:
        call = conversation().client(b"GET /a/%2e%2e/b HTTP/1.1\r\nHost: a\r\n\r\n").calls[0]
        assert (call.path, call.path_fault) == ("/a/%2e%2e/b", "dot-segment")

    def test_absolute_form_gives_path_and_host(self) -> None:
        """RFC 9112 section 3.2.2."""
        play = conversation().client(b"GET HTTP://A.example/x?y HTTP/1.1\r\nHost: a.example\r\n\r\n")
        assert (play.calls[0].path, play.calls[0].host) == ("/x?y", "a.example")
        assert play.to_server.startswith(b"GET HTTP://A.example/x?y ")

    def test_absolute_form_without_path_means_the_root(self) -> None:
        call = conversation().client(b"GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n").calls[0]
        assert call.path == "/?x"

    @pytest.mark.parametrize("target", [b"*", b"http://a"])
    def test_options_may_ask_for_the_server_as_a_whole(self, target: bytes) -> None:
        """RFC 9112 section 3.2.4."""
        call = conversation().client(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n").calls[0]
        assert (call.path, call.path_fault) == ("*", "not-origin-form")

    @pytest.mark.parametrize(
        ("target", "host"),
        [
            (b"http://a/", b"a:80"),
            (b"http://a:80/", b"A."),
            (b"https://a/", b"a:443"),
            (b"HTTPS://A:443/", b"a"),
            (b"https://a:80/", b"a:80"),
        ],
    )
    def test_the_default_port_may_be_said_or_not(self, target: bytes, host: bytes) -> None:
        """RFC 9110 section 4.2.3. What Host says is judged."""
        request = b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
        play = conversation().client(request)
        assert play.to_server == request
        assert (play.calls[0].host, play.calls[0].path) == (host.decode().lower().removesuffix("."), "/")

    @pytest.mark.parametrize("method", [b"get", b"Post", b"propFind", b"m-search"])
    def test_methods_may_have_lower_case_letters(self, method: bytes) -> None:
        """RFC 9110 section 9.1: they are case-sensitive tokens. Policy sees them as they are."""
        assert conversation().client(method + GET[3:]).calls[0].method == method.decode()

    def test_a_hundred_and_one_field_lines_and_a_target_of_20_kilobytes_are_no_attack(self) -> None:
        request = b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 100 + b"\r\n"
        assert conversation().client(request).to_server == request

    def test_fields_that_connection_names_are_told_to_policy(self) -> None:
        """RFC 9110 section 7.6.1: a server may never see them."""
        call = conversation().client(GET[:-2] + b"Connection: close, X-Foo,x-bar\r\nConnection: X-foo\r\n\r\n").calls[0]
        assert call.nominated == ("x-foo", "x-bar")
        assert conversation().client(UPGRADE).calls[0].nominated == ()

    def test_a_fault_of_the_query_is_told_apart_from_one_of_the_path(self) -> None:
        call = conversation().client(b"GET /%61?100% HTTP/1.1\r\nHost: a\r\n\r\n").calls[0]
        assert (call.path, call.path_fault, call.query_fault) == ("/a?100%", None, "broken-percent-encoding")

    def test_raw_utf8_goes_on_as_it_came_and_is_judged_with_a_fault(self) -> None:
        request = b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"
        play = conversation().client(request)
        assert (play.to_server, play.calls[0].path) == (request, "/caf%C3%A9")
        assert (play.calls[0].path_fault, play.calls[0].slashes) == ("unencoded-byte", False)

    def test_http2_is_refused_in_its_own_words(self) -> None:
        """RFC 9113 sections 3.4 and 6.8: an empty SETTINGS frame, and GOAWAY with HTTP_1_1_REQUIRED that says why."""
        play = conversation()
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
            if play.fail is None:
                play.client(bytes([byte]))
        assert play.fail is not None
        assert (play.fail.reason, play.fail.status) == ("http2-not-supported", 505)
        text = b"HTTP/2 is not supported on this port"
        settings, goaway = b"\0\0\0\4\0\0\0\0\0", bytes([0, 0, 8 + len(text)]) + b"\7\0\0\0\0\0"
        assert play.to_client == settings + goaway + b"\0\0\0\0" + b"\0\0\0\x0d" + text
        late = conversation().client(GET).server(OK).client(b"PRI * HTTP/2.0\r\n\r\n")
        assert late.to_client.startswith(OK + b"HTTP/1.1 505 "), "behind HTTP/1 it is no preface"

    def test_an_incomplete_head_waits(self) -> None:
        play = conversation()
        assert play.client(GET[:-1]).verbs == [More()]
        assert play.client(GET[-1:]).verbs == [Judge(0, play.calls[0]), Pass(len(GET), 0)]

    def test_one_empty_line_before_a_request_is_not_passed_on(self) -> None:
        """RFC 9112 section 2.2."""
        play = conversation().client(b"\r").client(b"\n" + GET)
        assert play.verbs[0] == Drop(2)
        assert play.to_server == GET

    def test_an_empty_line_is_forgiven_before_every_request(self) -> None:
        play = conversation().client(b"\r\n" + GET + b"\r\n" + GET)
        assert play.to_server == GET + GET

    def test_equal_heads_give_the_very_same_call(self) -> None:
        """Policy keeps decisions by identity."""
        assert conversation().client(GET).calls[0] is conversation().client(GET).calls[0]

    def test_what_is_remembered_of_heads_is_bounded(self) -> None:
        for number in range(MEMO_ENTRIES_MAX + 10):
            conversation().client(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        assert len(REQUEST_HEADS) == MEMO_ENTRIES_MAX

    def test_neither_long_nor_refused_heads_are_remembered(self) -> None:
        long = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * MEMO_HEAD_MAX + b"\r\n\r\n"
        bad = b"GET / HTTP/1.1\r\nHost: /\r\n\r\n"
        conversation().client(long)
        conversation().client(bad)
        assert long not in REQUEST_HEADS
        assert bad not in REQUEST_HEADS


class TestBodies:
    def test_a_body_that_is_there_is_passed_with_its_head(self) -> None:
        play = conversation().client(POST + b"12345")
        assert play.verbs[1:] == [Pass(len(POST) + 5, 0)]

    def test_a_body_to_come_is_announced_and_its_last_byte_awaited(self) -> None:
        play = conversation().client(POST)
        assert play.verbs[1:] == [Pass(len(POST) + 4, 0)]
        assert play.client(b"1234").verbs == []
        assert play.client(b"5").verbs == [Pass(1, 0)]
        assert play.to_server == POST + b"12345"

    def test_the_next_request_may_follow_a_body_at_once(self) -> None:
        play = conversation().client(POST + b"123").client(b"45" + GET)
        assert [call.method for call in play.calls] == ["POST", "GET"]
        assert play.to_server == POST + b"12345" + GET

    def test_a_body_is_never_read_as_a_request(self) -> None:
        play = conversation().client(POST.replace(b": 5", b": %d" % len(GET)) + GET)
        assert len(play.calls) == 1

    def test_a_large_reply_is_announced_in_one_pass(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        play = conversation().client(GET).server(head)
        assert play.verbs == [Reply(0, 200), Pass(len(head) + 999_999, 0)]
        assert play.server(b"x" * 999_999).done == []
        assert play.server(b"x").verbs == [Pass(1, 0), Done(0)]

    def test_chunks_are_counted_and_not_read(self) -> None:
        body = b'5;ext=1;q="\\""\r\nGET /\r\nA\r\n0123456789\r\n0\r\n\r\n'
        play = conversation().client(CHUNKED + body + GET)
        assert play.to_server == CHUNKED + body + GET
        assert len(play.calls) == 2

    def test_a_chunk_to_come_is_announced(self) -> None:
        play = conversation().client(CHUNKED)
        assert play.client(b"400\r\n").verbs == [Pass(5 + 0x400, 0)]
        play.client(b"x" * 0x400)
        assert play.client(b"\r\n0\r\n").verbs == [Pass(5, 0)]
        play.client(b"\r\n")
        assert play.to_server == CHUNKED + b"400\r\n" + b"x" * 0x400 + b"\r\n0\r\n\r\n"

    def test_where_rules_look_at_headers_there_are_no_trailers(self) -> None:
        """Some servers take them for header fields, of this request or of the next."""
        for end in (1, 2, 3, 10):
            play = conversation(lambda call: Verdict(trailers=False)).client(CHUNKED + b"0\r\n")
            trailers = b"X-User: root\r\n\r\n"
            play.client(trailers[:end])
            play.client(trailers[end:])
            assert play.fail is not None
            assert (play.fail.reason, play.fail.status) == ("unjudged-trailer", 400)
            assert play.to_server == CHUNKED + b"0\r\n"
        play = conversation(lambda call: Verdict(trailers=False)).client(CHUNKED + b"1\r\na\r\n0\r\n\r\n").server(OK)
        assert play.done == [0]

    def test_harmless_trailers_are_passed(self) -> None:
        play = conversation().client(CHUNKED + b"0\r\nX-Checksum: 1\r\nServer-Timing: x\r\n\r\n").server(EMPTY)
        assert play.done == [0]

    def test_a_chunked_reply_ends_its_call(self) -> None:
        reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        play = conversation().client(GET + GET).server(reply + OK)
        assert (play.done, play.to_client) == ([0, 1], reply + OK)

    def test_a_reply_without_length_ends_with_the_connection(self) -> None:
        """RFC 9112 section 6.3 rule 8."""
        play = conversation().client(GET).server(b"HTTP/1.1 200 OK\r\n\r\nsome")
        assert play.server(b" more").done == []
        assert play.server(end=True).verbs == [Done(0)]
        assert play.to_client == b"HTTP/1.1 200 OK\r\n\r\nsome more"

    @pytest.mark.parametrize("status", [b"204", b"304"])
    def test_some_replies_have_no_body_whatever_they_announce(self, status: bytes) -> None:
        """RFC 9112 section 6.3 rule 1."""
        length = b"10" if status == b"304" else b"0"
        reply = b"HTTP/1.1 " + status + b" X\r\nContent-Length: " + length + b"\r\n\r\n"
        play = conversation().client(GET + GET).server(reply + OK)
        assert play.done == [0, 1]

    def test_a_reply_to_head_has_no_body(self) -> None:
        """RFC 9112 section 6.3 rule 1."""
        for reply in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ):
            play = conversation().client(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET).server(reply + OK)
            assert (play.done, play.fail) == ([0, 1], None)

    def test_a_status_line_without_reason_is_accepted(self) -> None:
        assert conversation().client(GET).server(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n").done == [0]


class TestInterimReplies:
    def test_interim_replies_pass_and_end_nothing(self) -> None:
        play = conversation().client(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert play.server(interim).verbs == [Pass(len(interim), 0)]
        play.client(b"12345")
        assert play.server(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK).replies == [(0, 200)]
        assert play.done == [0]


EXPECTING = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REFUSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
EARLY = Fail("early-reply", call=0)


class TestEarlyReplies:
    """Behind a reply that was complete before its request, a server may take what is left of the body for a request."""

    SMUGGLED = b"POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    UPLOAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (len(SMUGGLED) + 1)

    def test_nothing_of_a_request_goes_on_behind_its_reply(self) -> None:
        play = conversation().client(self.UPLOAD + b"1").server(REFUSED)
        assert (play.to_client, play.replies, play.fail) == (REFUSED, [(0, 401)], EARLY)
        play.client(self.SMUGGLED)
        assert play.to_server == self.UPLOAD + b"1"

    def test_both_may_go_on_together_as_long_as_neither_is_complete(self) -> None:
        reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        play = conversation().client(CHUNKED).server(reply)
        for _ in range(3):
            play.client(b"1\r\na\r\n").server(b"1\r\nA\r\n")
        play.client(b"0\r\n\r\n").server(b"0\r\n\r\n")
        assert (play.to_server.count(b"a\r\n"), play.to_client.count(b"A\r\n"), play.done, play.fail) == (3, 3, [0], None)

    def test_a_chunked_body_stops_as_well(self) -> None:
        play = conversation().client(CHUNKED + b"1\r\na\r\n").server(REFUSED).client(b"0\r\n\r\n" + GET)
        assert (play.to_server, play.fail) == (CHUNKED + b"1\r\na\r\n", EARLY)

    def test_behind_the_head_of_a_refusal_nothing_goes_on(self) -> None:
        """http.server writes the head and the body of a reply one after the other, and reads nothing in between."""
        reply = REFUSED.replace(b"Length: 0", b"Length: 2")
        play = conversation().client(self.UPLOAD + b"1").server(reply).client(self.SMUGGLED)
        assert play.to_server == self.UPLOAD + b"1"
        play.server(b"no")
        assert (play.to_client, play.fail) == (reply + b"no", EARLY)

    def test_a_reply_that_lasts_until_the_close_ends_it_with_the_close(self) -> None:
        play = conversation().client(POST + b"1").server(b"HTTP/1.1 200 OK\r\n\r\nall")
        assert play.client(b"2").fail is None
        assert play.server(end=True).fail == EARLY

    def test_a_second_reply_never_reaches_the_client(self) -> None:
        play = conversation().client(POST + b"1").server(OK + OK)
        assert (play.fail, play.to_client) == (EARLY, OK)

    def test_it_ends_the_connection_also_behind_other_calls(self) -> None:
        play = conversation().client(GET + POST + b"1").server(OK + REFUSED)
        assert (play.done, play.fail) == ([0], Fail("early-reply", call=1))


class TestExpect:
    """RFC 9110 section 10.1.1: the server says first what it will do with the body."""

    @pytest.mark.parametrize("together", [True, False])
    def test_the_body_waits_for_100(self, together: bool) -> None:
        play = conversation().client(EXPECTING + b"12345") if together else conversation().client(EXPECTING).client(b"12345")
        assert play.to_server == EXPECTING
        assert play.verbs[-1] == Hold(http1.EXPECT_PATIENCE)
        assert play.server(CONTINUE).to_server == EXPECTING + b"12345"
        assert play.server(OK).done == [0]

    def test_other_interim_replies_are_no_answer(self) -> None:
        play = conversation().client(EXPECTING + b"12345").server(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        assert play.to_server == EXPECTING

    def test_a_body_that_comes_in_parts_goes_on_behind_100(self) -> None:
        play = conversation().client(EXPECTING + b"1").server(CONTINUE).client(b"23").client(b"45" + GET).server(OK)
        assert (play.to_server, play.done) == (EXPECTING + b"12345" + GET, [0])

    def test_chunks_wait_too(self) -> None:
        head = CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        play = conversation().client(head + b"1\r\na\r\n")
        assert play.to_server == head
        assert play.server(CONTINUE).client(b"0\r\n\r\n").server(OK).done == [0]

    def test_a_body_that_was_refused_goes_nowhere(self) -> None:
        play = conversation().client(EXPECTING).client(b"12")
        reply = b"HTTP/1.1 417 X\r\nContent-Length: 3\r\n\r\n"
        play.server(reply + b"no").client(b"345").server(b"!")
        assert (play.to_server, play.to_client, play.fail) == (EXPECTING, reply + b"no!", EARLY)

    def test_a_server_that_does_not_know_expect_gets_the_body_after_a_while(self) -> None:
        play = conversation().client(EXPECTING + b"123").outage(Outage.SLOW_SERVER).client(b"45").server(OK)
        assert (play.to_server, play.done) == (EXPECTING + b"12345", [0])

    def test_patience_begins_when_it_is_the_calls_turn(self) -> None:
        play = conversation().client(GET + EXPECTING + b"12345")
        assert play.verbs[-1] == Hold()
        assert play.server(OK).verbs[-1] == Hold(http1.EXPECT_PATIENCE)

    def test_in_http10_it_has_no_meaning(self) -> None:
        old = EXPECTING.replace(b"HTTP/1.1", b"HTTP/1.0") + b"12345"
        assert conversation().client(old).to_server == old

    def test_without_a_body_there_is_nothing_to_wait_for(self) -> None:
        asking = GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        assert conversation().client(asking).server(OK).done == [0]

    def test_a_client_that_ends_instead_is_told(self) -> None:
        play = conversation().client(EXPECTING).client(end=True)
        assert play.fail is not None
        assert (play.fail.reason, play.fail.status) == ("truncated-body", 400)

    def test_a_client_that_was_told_to_continue_and_does_not_is_slow(self) -> None:
        play = conversation().client(EXPECTING).server(CONTINUE).outage(Outage.TIMEOUT)
        assert play.fail is not None
        assert (play.fail.reason, play.fail.status) == ("client-timeout", 408)


class TestPipelining:
    def test_replies_are_matched_in_order(self) -> None:
        play = conversation().client(GET + POST + b"12345" + GET)
        play.server(b"HTTP/1.1 201 X\r\nContent-Length: 0\r\n\r\nHTTP/1.1 202 X\r\nContent-Length: 0\r\n\r\n" + OK)
        assert play.replies == [(0, 201), (1, 202), (2, 200)]
        assert play.done == [0, 1, 2]

    def test_the_number_of_open_calls_is_bounded(self) -> None:
        play = conversation().client(GET * (http1.OPEN_CALLS_MAX + 2))
        assert play.verbs[-1] == Hold()
        assert len(play.calls) == http1.OPEN_CALLS_MAX
        assert len(play.server(OK).calls) == http1.OPEN_CALLS_MAX + 1

    def test_a_denial_waits_for_the_replies_before_it(self) -> None:
        play = conversation(deny_posts).client(GET + POST + b"12345" + GET)
        assert play.to_client == b""
        assert play.verbs[-1] == Hold()
        play.server(OK[:-1])
        assert play.to_client == OK[:-1]
        play.server(OK[-1:])
        assert play.to_client == OK + DENIED
        assert (play.done, play.to_server) == ([0, 1], GET + GET)
        assert play.server(OK).to_client == OK + DENIED + OK

    def test_a_refusal_waits_for_the_replies_before_it(self) -> None:
        play = conversation().client(GET + b"get / HTTP/1.1\r\n\r\n")
        assert play.fail is None
        assert play.server(OK).fail is not None
        assert play.to_client.startswith(OK + b"HTTP/1.1 400 ")

    def test_nothing_passes_behind_a_refusal(self) -> None:
        play = conversation().client(b"get / HTTP/1.1\r\n\r\n" + GET)
        assert play.to_server == b""
        assert play.parser.on_data(Direction.REQUEST, GET, False) == []

    def test_a_broken_body_is_answered_in_its_turn(self) -> None:
        play = conversation().client(GET + CHUNKED + b"z\r\n")
        assert play.fail is None
        assert play.server(OK).fail is not None
        assert play.fail is not None
        assert (play.fail.reason, play.fail.call) == ("bad-chunk-line", 1)

    def test_a_broken_body_whose_reply_has_begun_is_only_closed(self) -> None:
        play = conversation().client(CHUNKED).server(OK[:-1]).client(b"z\r\n")
        assert play.fail == Fail("bad-chunk-line", call=0)


class TestPersistence:
    """RFC 9112 section 9.3."""

    @pytest.mark.parametrize(
        ("request_head", "reply_head", "stays"),
        [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n", True),
            (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", b"HTTP/1.1 200 OK\r\n", False),
            (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", b"HTTP/1.1 200 OK\r\n", False),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.0 200 OK\r\n", False),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
            (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n", False),
            (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"HTTP/1.1 200 OK\r\n", False),
            (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n", True),
        ],
    )
    def test_who_keeps_the_connection(self, request_head: bytes, reply_head: bytes, stays: bool) -> None:
        play = conversation().client(request_head).server(reply_head + b"Content-Length: 0\r\n\r\n")
        play.client(GET)
        assert play.done == [0]
        assert (play.to_server == request_head + GET) is stays
        assert (play.fail is None) is stays

    def test_a_request_behind_the_last_one_is_not_passed(self) -> None:
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        play = conversation().client(last + GET)
        assert play.to_server == last
        assert play.server(OK).fail == Fail("data-after-close")
        assert play.to_client == OK

    def test_calls_behind_a_closing_reply_get_no_words(self) -> None:
        """The client stops to read behind Connection: close."""
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        play = conversation().client(GET + GET).server(closing, end=True)
        assert play.fail == Fail("upstream-reset", call=1)
        assert play.to_client == closing

    def test_a_denial_behind_a_closing_reply_gets_no_words(self) -> None:
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        play = conversation(deny_posts).client(GET + POST + b"12345").server(closing)
        assert play.fail == Fail("denied-and-closed", call=1)
        assert play.to_client == closing

    def test_a_client_may_end_its_side_and_wait_for_replies(self) -> None:
        play = conversation().client(GET + GET, end=True).server(OK).server(OK)
        assert (play.done, play.fail) == ([0, 1], None)

    def test_a_server_may_close_an_idle_connection(self) -> None:
        play = conversation().client(GET).server(OK).server(end=True)
        assert play.fail is None
        assert play.client(GET).fail == Fail("data-after-close")

    def test_a_request_that_is_cut_off_goes_on_record_with_what_was_read(self) -> None:
        play = conversation().client(b"GET /secret HTTP", end=True)
        assert play.fail is not None
        assert play.fail.partial is not None
        assert (play.fail.partial.method, play.fail.partial.path) == ("GET", "/secret")

    def test_http10_needs_no_host(self) -> None:
        assert conversation().client(b"GET / HTTP/1.0\r\n\r\n").calls[0].host is None


class TestDenials:
    def test_a_denied_request_is_dropped_and_answered_and_the_connection_stays(self) -> None:
        play = conversation(deny_posts).client(POST + b"12345")
        assert play.verbs == [
            Judge(0, play.calls[0]),
            Drop(len(POST) + 5, 0),
            Inject(Direction.REPLY, DENIED, 0),
            Reply(0, 403),
            Done(0),
        ]
        play.client(GET).server(OK)
        assert (play.to_server, play.to_client) == (GET, DENIED + OK)

    def test_a_faulty_path_is_a_bad_request(self) -> None:
        play = conversation(lambda call: BAD_REQUEST).client(GET)
        assert play.replies == [(0, 400)]
        assert play.to_client.startswith(b"HTTP/1.1 400 Bad Request\r\n")

    def test_a_denied_body_to_come_is_read_away_first(self) -> None:
        play = conversation(deny_posts).client(POST + b"12")
        assert play.to_client == b""
        play.client(b"345" + GET)
        assert (play.to_server, play.to_client) == (GET, DENIED)

    def test_a_denied_chunked_body_is_read_away_too(self) -> None:
        play = conversation(deny_posts).client(CHUNKED + b"5\r\n12").client(b"345\r\n0\r\n\r\n" + GET)
        assert (play.to_server, play.to_client) == (GET, DENIED)

    def test_a_large_denied_body_is_not_awaited(self) -> None:
        play = conversation(deny_posts).client(POST.replace(b": 5", b": %d" % (http1.DRAIN_MAX + 1)))
        assert play.fail == Fail("denied-and-closed", DENIED_AND_CLOSED, 403, 0)

    def test_a_large_denied_chunked_body_is_not_awaited(self) -> None:
        play = conversation(deny_posts).client(CHUNKED + b"%x\r\n" % (http1.DRAIN_MAX + 1))
        assert play.fail == Fail("denied-and-closed", DENIED_AND_CLOSED, 403, 0)

    def test_a_body_that_may_not_come_is_not_awaited(self) -> None:
        """RFC 9110 section 10.1.1."""
        play = conversation(deny_posts).client(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-Continue\r\n\r\n"))
        assert play.fail == Fail("denied-and-closed", DENIED_AND_CLOSED, 403, 0)

    def test_expect_without_body_changes_nothing(self) -> None:
        play = conversation(lambda call: DENY).client(GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert (play.to_client, play.fail) == (DENIED, None)

    def test_a_denied_head_request_gets_no_body(self) -> None:
        play = conversation(lambda call: DENY).client(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert play.to_client == DENIED.removesuffix(b"Access denied\r\n")

    @pytest.mark.parametrize(
        "request_head",
        [b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"],
    )
    def test_a_client_that_reads_until_the_close_gets_it(self, request_head: bytes) -> None:
        play = conversation(lambda call: DENY).client(request_head)
        assert play.fail == Fail("denied-and-closed", DENIED_AND_CLOSED, 403, 0)

    def test_a_denied_body_that_is_cut_off_ends_the_call(self) -> None:
        play = conversation(deny_posts).client(POST + b"1", end=True)
        assert play.fail is not None
        assert (play.fail.reason, play.fail.call) == ("truncated-body", 0)

    def test_a_ruling_that_nobody_asked_for_lets_nothing_through(self) -> None:
        parser = Http1Parser()
        assert parser.on_ruling(0, ALLOW) == [Fail("ruling-without-judge")]
        assert parser.on_data(Direction.REQUEST, GET, False) == []


class TestHeaderEdits:
    HEAD = b"GET / HTTP/1.1\r\nHost: a\r\nX-A:  1\r\nX-B: 2\r\nx-a: 3\r\n\r\n"

    @pytest.mark.parametrize(
        ("edit", "head"),
        [
            (HeaderEdit("add", "X-C", "4"), HEAD[:-2] + b"X-C: 4\r\n\r\n"),
            (HeaderEdit("delete", "X-A"), b"GET / HTTP/1.1\r\nHost: a\r\nX-B: 2\r\n\r\n"),
            (HeaderEdit("replace", "X-A", "5"), b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 5\r\nX-B: 2\r\n\r\n"),
            (HeaderEdit("replace", "X-C", "5"), HEAD[:-2] + b"X-C: 5\r\n\r\n"),
        ],
    )
    def test_an_edit_keeps_every_other_line(self, edit: HeaderEdit, head: bytes) -> None:
        play = conversation(lambda call: Verdict(edits=(edit,))).client(self.HEAD)
        assert play.verbs[1:] == [Drop(len(self.HEAD), 0), Inject(Direction.REQUEST, head, 0)]
        assert play.to_server == head

    def test_a_body_follows_an_edited_head_unchanged(self) -> None:
        play = conversation(lambda call: Verdict(edits=(HeaderEdit("delete", "X-A"),)))
        play.client(POST.replace(b"Host", b"X-A: 1\r\nHost") + b"1").client(b"2345")
        assert play.to_server == POST + b"12345"

    def test_a_body_of_one_byte_follows_an_edited_head(self) -> None:
        head = POST.replace(b": 5", b": 1")
        play = conversation(lambda call: Verdict(edits=(HeaderEdit("add", "X", "y"),))).client(head).client(b"z")
        assert play.to_server == head[:-2] + b"X: y\r\n\r\nz"

    @pytest.mark.parametrize("name", sorted(FRAMING_FIELDS))
    def test_an_edit_of_a_framing_field_denies_the_call(self, name: str) -> None:
        play = conversation(lambda call: Verdict(edits=(HeaderEdit("replace", name.title(), "1"),))).client(GET)
        assert (play.to_server, play.to_client) == (b"", DENIED)

    @pytest.mark.parametrize(("name", "value"), [("X", "a\r\nY: b"), ("X", "\x00"), ("X:", "a"), ("", "a"), ("X", "\u20ac")])
    def test_an_edit_that_is_no_field_line_denies_the_call(self, name: str, value: str) -> None:
        play = conversation(lambda call: Verdict(edits=(HeaderEdit("add", name, value),))).client(GET)
        assert (play.to_server, play.to_client) == (b"", DENIED)


class TestUpgrades:
    """RFC 9110 section 7.8. A tunnel only when policy, client and server agree: Pingora CVE-2026-2833, Envoy CVE-2024-23326."""

    def test_a_switch_that_was_asked_for_opens_a_tunnel(self) -> None:
        play = conversation().client(UPGRADE)
        assert play.server(SWITCH + b"\x81\x00").verbs == [Reply(0, 101), Pass(len(SWITCH), 0), Opaque(0)]
        play.client(b"\x81\x80")
        assert (play.to_server, play.to_client) == (UPGRADE + b"\x81\x80", SWITCH + b"\x81\x00")

    def test_nothing_follows_an_upgrade_before_its_reply(self) -> None:
        play = conversation().client(UPGRADE + GET)
        assert play.verbs[-1] == Hold()
        assert play.to_server == UPGRADE

    def test_a_server_that_refuses_an_upgrade_goes_on_with_http(self) -> None:
        play = conversation().client(UPGRADE + GET).server(OK)
        assert play.to_server == UPGRADE + GET
        assert play.server(OK).done == [0, 1]

    def test_an_upgrade_waits_for_the_replies_before_it(self) -> None:
        play = conversation().client(GET + UPGRADE).server(OK + SWITCH)
        assert (play.done, play.tunnel) == ([0], 1)

    def test_a_denied_upgrade_opens_nothing(self) -> None:
        play = conversation(lambda call: DENY).client(UPGRADE)
        assert (play.to_server, play.to_client) == (b"", DENIED)

    def test_an_offer_of_http2_is_a_request_like_any_other(self) -> None:
        """Java's HttpClient offers h2c with its first request and goes on with HTTP/1.1 when the server ignores it."""
        offer = UPGRADE.replace(b"websocket", b"h2c")
        play = conversation().client(offer).server(OK)
        assert (play.to_server, play.to_client, play.done) == (offer, OK, [0])

    @pytest.mark.parametrize(
        "offer",
        [
            UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
            UPGRADE.replace(b"Connection: keep-alive, Upgrade\r\n", b""),
            UPGRADE.replace(b"websocket", b"h2c").replace(b"keep-alive, Upgrade", b"keep-alive"),
            UPGRADE.replace(b"1.1", b"1.0"),
            UPGRADE.replace(b"websocket", b""),
        ],
    )
    def test_an_upgrade_that_a_server_has_to_ignore_opens_nothing(self, offer: bytes) -> None:
        """RFC 9110 section 7.8. What follows waits all the same: there are servers that do not ignore it."""
        play = conversation().client(offer + GET)
        assert play.to_server == offer
        assert play.server(OK).to_client == OK
        play = conversation().client(offer).server(SWITCH)
        assert play.tunnel is None
        assert play.fail is not None
        assert play.fail.reason == "reply-unexpected-101"

    def test_a_switch_before_the_request_is_complete_is_refused(self) -> None:
        upgrade = UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n")
        play = conversation().client(upgrade + b"1").server(SWITCH)
        assert play.tunnel is None
        assert play.fail is not None
        assert play.fail.reason == "reply-unexpected-101"


class TestHijacks:
    """Docker's daemon and Podman answer an ``Upgrade: tcp`` with 200 and a media type of their own, and go on in raw bytes."""

    ATTACH = UPGRADE.replace(b"websocket", b"tcp").replace(b"GET", b"POST")
    STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"

    def test_a_raw_stream_that_was_asked_for_is_a_tunnel(self) -> None:
        play = conversation().client(self.ATTACH + b"ls\n")
        assert play.to_server == self.ATTACH
        assert play.server(self.STREAM + b"x").verbs == [Reply(0, 200), Pass(len(self.STREAM), 0), Opaque(0)]
        play.client(b"exit\n").server(b"y")
        assert (play.to_server, play.to_client) == (self.ATTACH + b"ls\nexit\n", self.STREAM + b"xy")

    @pytest.mark.parametrize(
        ("request_head", "reply"),
        [
            (GET, STREAM),
            (UPGRADE, STREAM),
            (ATTACH.replace(b"Upgrade: tcp", b"Upgrade: tcp, websocket"), STREAM),
            (ATTACH.replace(b"keep-alive, Upgrade", b"keep-alive"), STREAM),
            (ATTACH, STREAM.replace(b"200 OK", b"201 Created")),
            (ATTACH, STREAM.replace(b"HTTP/1.1", b"HTTP/1.0")),
            (ATTACH, STREAM.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
            (ATTACH, STREAM.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")),
            (ATTACH, STREAM.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n")),
            (ATTACH, STREAM.replace(b"vnd.docker.raw-stream", b"octet-stream")),
            (ATTACH, STREAM.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain\r\n\r\n")),
        ],
    )
    def test_nothing_else_that_lasts_until_the_close_is_one(self, request_head: bytes, reply: bytes) -> None:
        """A server that merely ignores an offer of Upgrade would take what follows for requests, which nobody has judged."""
        play = conversation().client(request_head).server(reply).client(b"ls\n")
        assert (play.tunnel, play.to_server) == (None, request_head)

    def test_a_hijack_before_the_request_is_complete_is_none(self) -> None:
        play = conversation().client(self.ATTACH.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n") + b"1")
        assert play.server(self.STREAM).tunnel is None


class TestOutages:
    @pytest.mark.parametrize(
        ("outage", "status"),
        [(Outage.UNREACHABLE, 502), (Outage.TIMEOUT, 504), (Outage.RESET, 502), (Outage.OVERLOAD, 503)],
    )
    def test_the_client_is_told_while_its_reply_has_not_begun(self, outage: Outage, status: int) -> None:
        play = conversation().client(GET + GET).outage(outage)
        assert play.fail is not None
        assert (play.fail.reason, play.fail.status, play.fail.call) == (outage.value, status, 0)
        assert play.to_client.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in play.to_client

    @pytest.mark.parametrize("outage", [Outage.TIMEOUT, Outage.RESET, Outage.OVERLOAD])
    def test_no_words_are_put_into_a_reply(self, outage: Outage) -> None:
        play = conversation().client(GET).server(OK[:-1]).outage(outage)
        assert play.fail == Fail(outage.value, call=0)
        assert play.to_client == OK[:-1]

    def test_a_denied_call_whose_body_is_still_coming_keeps_its_denial(self) -> None:
        play = conversation(lambda call: DENY).client(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab")
        play.outage(Outage.RESET)
        assert play.fail is not None
        assert (play.fail.status, play.fail.call) == (403, 0)

    def test_an_interim_reply_is_no_beginning(self) -> None:
        play = conversation().client(GET).server(b"HTTP/1.1 103 Early Hints\r\n\r\n").outage(Outage.RESET)
        assert b"\r\n\r\nHTTP/1.1 502 " in play.to_client

    def test_a_reset_between_calls_is_only_a_close(self) -> None:
        assert conversation().client(GET).server(OK).outage(Outage.RESET).fail == Fail("upstream-reset")

    def test_a_kept_connection_that_the_server_closed_is_a_close_to_the_client_too(self) -> None:
        """Clients ask again when a connection that was kept closes under a request; they do not when they are told 502."""
        play = conversation().client(GET).server(OK).client(GET).outage(Outage.RESET)
        assert play.fail == Fail("upstream-reset", call=1)

    def test_a_head_request_gets_no_body(self) -> None:
        play = conversation().client(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").outage(Outage.TIMEOUT)
        assert play.to_client.endswith(b"\r\n\r\n")

    def test_a_slow_head_is_answered(self) -> None:
        play = conversation().client(GET[:10]).outage(Outage.SLOW_CLIENT)
        assert play.fail is not None
        assert (play.fail.reason, play.fail.status) == ("client-timeout", 408)

    def test_a_slow_body_is_answered(self) -> None:
        play = conversation().client(POST).outage(Outage.SLOW_CLIENT)
        assert play.fail is not None
        assert (play.fail.status, play.fail.call) == (408, 0)

    def test_a_slow_head_behind_an_open_call_is_answered_in_its_turn(self) -> None:
        play = conversation().client(GET + GET[:10])
        assert play.outage(Outage.SLOW_CLIENT).verbs == [Hold()]
        assert play.outage(Outage.SLOW_CLIENT).verbs == [Hold()]
        assert play.server(OK).fail is not None
        assert play.to_client.startswith(OK + b"HTTP/1.1 408 ")


class TestBoundary:
    def test_between_calls_is_a_boundary(self) -> None:
        play = conversation()
        assert play.parser.at_boundary
        assert not play.client(GET[:5]).parser.at_boundary
        assert not play.client(GET[5:]).parser.at_boundary
        assert not play.server(OK[:5]).parser.at_boundary
        assert not play.server(OK[5:-1]).parser.at_boundary
        assert play.server(OK[-1:]).parser.at_boundary

    @pytest.mark.parametrize("data", [POST, CHUNKED, UPGRADE, b"head / HTTP/1.1\r\n\r\n"])
    def test_inside_a_request_and_behind_a_refusal_is_none(self, data: bytes) -> None:
        assert not conversation().client(data).parser.at_boundary


class TestHostileInput:
    """The corpus of tests/corpus/http1: each case names its RFC section or CVE."""

    @pytest.mark.parametrize("case", hostile_requests(), ids=lambda case: case.name)
    @pytest.mark.parametrize("split", ["whole", "in-pieces"])
    def test_a_hostile_request_is_refused(self, case: HostileRequest, split: str) -> None:
        play = conversation()
        for piece in pieces(case.request, split):
            if play.fail is None:
                play.client(piece)
        play.client(end=case.end)
        assert play.fail is not None
        assert (play.fail.reason, play.fail.status, len(play.calls)) == (case.reason, case.status, case.judged)
        assert play.to_client == play.fail.last_words
        assert play.to_client.startswith(b"HTTP/1.1 %d " % case.status)
        if not case.judged:
            assert play.to_server == b""

    @pytest.mark.parametrize("case", hostile_replies(), ids=lambda case: case.name)
    @pytest.mark.parametrize("split", ["whole", "in-pieces"])
    def test_a_hostile_reply_is_refused(self, case: HostileReply, split: str) -> None:
        play = conversation().client(case.request)
        for piece in pieces(case.reply, split):
            if play.fail is None:
                play.server(piece)
        play.server(end=case.end)
        assert play.fail is not None
        assert (play.fail.reason, play.fail.status) == (case.reason, case.status)
        if case.status is not None:
            assert play.to_client.startswith(b"HTTP/1.1 502 ")

    def test_a_reply_before_any_request_is_refused(self) -> None:
        assert conversation().server(OK).fail == Fail("reply-without-request")

    def test_every_refusal_is_a_complete_reply_that_closes(self) -> None:
        words = conversation().client(b"GET / HTTP/1.1\r\n\r\n").to_client
        assert words == (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 32\r\nconnection: close\r\n\r\n"
            b"HTTP/1.1 requires a Host field\r\n"
        )


def pieces(data: bytes, split: str) -> list[bytes]:
    size = len(data) or 1 if split == "whole" else 1 if len(data) < 500 else 997
    return [data[at : at + size] for at in range(0, len(data), size)]


class TestSkip:
    """Calls that the kernel has carried past the parser."""

    def test_a_skipped_call_takes_the_next_number_and_is_the_call_that_policy_would_see(self) -> None:
        play = conversation().client(GET).server(OK)
        parser = play.parser
        assert parser.next_number == 1
        call, status = parser.recall(POST, b"")
        assert status is None, "the kernel tells it"
        assert (call.method, call.path) == ("POST", "/orders")
        parser.skip(1)
        assert parser.at_boundary
        (following,) = parser.on_data(Direction.REQUEST, GET, False)
        assert isinstance(following, Judge)
        assert following.number == 2

    def test_equal_heads_are_one_call_object_whichever_way_they_go(self) -> None:
        play = conversation().client(GET).server(OK)
        assert play.parser.recall(GET, b"")[0] is play.calls[0]

    def test_what_a_call_was_can_be_told_while_another_is_open(self) -> None:
        play = conversation().client(GET)
        assert play.parser.recall(POST, b"")[0].path == "/orders"
        assert play.server(OK).parser.at_boundary

    def test_what_would_not_be_judged_raises(self) -> None:
        play = conversation().client(GET).server(OK)
        for head in (b"GET / HTTP/9.9\r\n\r\n", b"", GET[:-2]):
            with pytest.raises(Refused):
                play.parser.recall(head, b"")

    def test_a_server_that_closes_behind_a_skipped_call_has_answered_before(self) -> None:
        """Its client asks again when it sees a close; words of ours would keep it from that."""
        parser = Http1Parser()
        parser.skip(1)
        parser.on_data(Direction.REQUEST, GET, False)
        parser.on_ruling(1, ALLOW)
        assert parser.on_outage(Outage.RESET) == [Fail("upstream-reset", call=1)]


class TestWhereACallMayFollow:
    @pytest.mark.parametrize("begun", [b"\r\n", b"G", b"GET / HTTP/1.1\r\nhost: a", POST + b"1", CHUNKED, UPGRADE])
    def test_there_is_none_while_a_request_is_half_read_or_open(self, begun: bytes) -> None:
        play = conversation().client(GET).server(OK)
        assert play.parser.at_boundary
        assert not play.client(begun).parser.at_boundary

    @pytest.mark.parametrize("begun", [b"", OK[:5], OK[:-1]])
    def test_there_is_none_before_the_reply_is_over(self, begun: bytes) -> None:
        assert not conversation().client(GET).server(begun).parser.at_boundary

    def test_there_is_none_where_no_call_may_follow(self) -> None:
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert not conversation().client(GET).server(closing).parser.at_boundary
        assert not conversation().client(GET.replace(b"1.1", b"1.0")).server(OK).parser.at_boundary
        assert not conversation().client(UPGRADE).server(SWITCH).parser.at_boundary
        assert not conversation().client(GET).server(OK).server(end=True).parser.at_boundary

    def test_there_is_one_behind_a_denial_that_keeps_the_connection(self) -> None:
        play = conversation(deny_posts).client(POST)
        assert not play.parser.at_boundary
        assert play.client(b"12345").parser.at_boundary


@pytest.mark.parametrize("unit", [b"1\r\nx\r\n", b"1;a\r\nx\r\n"])
def test_thousands_of_chunks_in_one_piece_go_by_whole(unit: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head + unit * 5_000 + b"0\r\n\r\n"
    play = Playbook(Http1Parser()).client(data)
    assert play.to_server == data


def test_thousands_of_interim_replies_in_one_piece_go_by_whole() -> None:
    play = Playbook(Http1Parser()).client(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3_000
    last = b"HTTP/1.1 204 No Content\r\n\r\n"
    play.server(hints + last)
    assert play.to_client == hints + last
    assert play.done == [0]
