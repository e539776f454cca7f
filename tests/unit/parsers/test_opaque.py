"""Connections that are tunnels, or become one because nobody knows their protocol."""

import pytest

from parsers.contract import Direction, Done, Fail, Judge, More, Opaque, Outage, Parser, Pass
from parsers.http1 import Http1Parser
from parsers.opaque import CONNECTION, SILENCE, DetectingParser, TunnelParser
from tests.playbook import ALLOW, DENY, Playbook

REQUEST, REPLY = Direction.REQUEST, Direction.REPLY


def detecting() -> DetectingParser:
    return DetectingParser(lambda found: Http1Parser() if found != "unknown" else None)


class TestTunnel:
    def test_the_connection_is_judged_before_its_first_byte(self) -> None:
        (judge,) = TunnelParser().on_data(REQUEST, b"", False)
        assert isinstance(judge, Judge)
        assert (judge.number, judge.call.protocol) == (CONNECTION, "tcp")

    def test_it_is_judged_once(self) -> None:
        parser = TunnelParser()
        parser.on_data(REQUEST, b"", False)
        assert parser.on_data(REQUEST, b"x", False) == ()

    def test_allowed_it_is_a_tunnel_and_denied_it_is_over(self) -> None:
        assert TunnelParser().on_ruling(CONNECTION, ALLOW) == (Opaque(CONNECTION),)
        assert TunnelParser().on_ruling(CONNECTION, DENY) == (Fail("denied", call=CONNECTION),)

    def test_nothing_is_said_to_the_client_when_the_server_is_away(self) -> None:
        assert TunnelParser().on_outage(Outage.UNREACHABLE) == (Fail("upstream-unreachable", call=CONNECTION),)

    @pytest.mark.parametrize("parser", [TunnelParser(), detecting()])
    def test_the_kernel_may_never_take_over(self, parser: Parser) -> None:
        assert not parser.at_boundary


class TestDetection:
    def test_nothing_is_judged_before_the_protocol_is_known(self) -> None:
        play = Playbook(detecting()).client(b"GE")
        assert (play.verbs, play.calls) == ([More()], [])

    @pytest.mark.parametrize("split", range(1, 24))
    def test_http_is_http_however_it_is_split(self, split: int) -> None:
        request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        parser = detecting()
        play = Playbook(parser).client(request[:split]).client(request[split:])
        assert [call.protocol for call in play.calls] == ["http/1.1"]
        assert parser.protocol == "http/1.1"

    @pytest.mark.parametrize("first", [b"\x16\x03\x01", b"SSH-2.0-x\r\n", b"\0", b"x" * 40 + b"\n"])
    def test_what_is_no_http_is_judged_as_a_connection_and_passes_whole(self, first: bytes) -> None:
        play = Playbook(detecting()).client(first).client(b"more")
        assert [call.protocol for call in play.calls] == ["tcp"]
        assert play.to_server == first + b"more"

    @pytest.mark.parametrize("split", range(1, 20))
    def test_what_comes_to_be_http_is_stopped_at_one_and_the_same_byte(self, split: int) -> None:
        data = b"\xa0GET\x1c/admin\x1cHTTP/1.1\r\n\r\n"
        play = Playbook(detecting()).client(data[:split])
        if play.fail is None:
            play.client(data[split:])
        assert [call.protocol for call in play.calls] == ["tcp"]
        assert (play.to_server, play.fail) == (b"\xa0GET", Fail("policed-protocol", call=CONNECTION))

    def test_without_a_watch_whatever_comes_passes(self) -> None:
        play = Playbook(DetectingParser(lambda found: None, watch=None)).client(b"\xa0GET\x1c/admin\x1cHTTP/1.1\r\n")
        assert play.to_server == b"\xa0GET\x1c/admin\x1cHTTP/1.1\r\n"

    def test_a_client_that_ends_without_a_word_is_a_connection(self) -> None:
        assert [call.protocol for call in Playbook(detecting()).client(end=True).calls] == ["tcp"]

    def test_before_detection_the_fault_has_no_call(self) -> None:
        assert detecting().on_outage(Outage.OVERLOAD) == (Fail("overload"),)


class TestSkip:
    REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

    def test_a_detected_protocol_has_its_boundaries_and_skips_its_calls(self) -> None:
        parser = detecting()
        play = Playbook(parser).client(self.REQUEST)
        assert not parser.at_boundary
        play.server(b"HTTP/1.1 204 x\r\n\r\n")
        assert parser.at_boundary
        assert parser.next_number == 1
        assert parser.recall(self.REQUEST, b"")[0].path == "/"
        parser.skip(1)
        assert parser.next_number == 2

    @pytest.mark.parametrize("parser", [TunnelParser(), detecting()])
    def test_what_has_no_boundary_skips_nothing(self, parser: Parser) -> None:
        with pytest.raises(AssertionError):
            parser.recall(self.REQUEST, b"")
        with pytest.raises(AssertionError):
            parser.skip(1)


class TestSilence:
    """A client that waits for the server to begin."""

    def silent(self) -> DetectingParser:
        parser = detecting()
        (judge,) = parser.on_outage(Outage.SLOW_CLIENT)
        assert isinstance(judge, Judge)
        assert judge.number == SILENCE
        assert parser.on_ruling(SILENCE, ALLOW) == ()
        return parser

    def test_allowed_it_is_no_tunnel_yet(self) -> None:
        assert self.silent().protocol == "tcp"

    def test_denied_it_is_over(self) -> None:
        parser = detecting()
        parser.on_outage(Outage.SLOW_CLIENT)
        assert parser.on_ruling(SILENCE, DENY) == (Fail("denied", call=SILENCE),)

    def test_it_is_a_tunnel_when_the_server_speaks_first(self) -> None:
        assert self.silent().on_data(REPLY, b"220 ", False) == (Opaque(SILENCE, watched=True),)

    def test_what_the_client_says_behind_the_server_is_watched(self) -> None:
        parser = self.silent()
        parser.on_data(REPLY, b"220 ", False)
        assert list(parser.on_data(REQUEST, b"EH", False)) == [Pass(2, SILENCE)]
        assert list(parser.on_data(REQUEST, b"LO a\r\nQUIT\r\n", False)) == [Pass(12, SILENCE), Opaque(SILENCE)]

    def test_a_request_behind_the_server_does_not_pass(self) -> None:
        parser = self.silent()
        parser.on_data(REPLY, b"220 ", False)
        fail = Fail("policed-protocol", call=SILENCE)
        assert list(parser.on_data(REQUEST, b"GET / HTTP/1.1", False)) == [Pass(3, SILENCE), fail]

    def test_it_is_a_tunnel_when_the_client_speaks_another_protocol(self) -> None:
        parser = self.silent()
        assert parser.on_data(REQUEST, b"\x16\x03", False) == (Opaque(SILENCE, watched=True),)
        assert list(parser.on_data(REQUEST, b"\x16\x03", False)) == [Pass(2, SILENCE)]

    def test_it_is_judged_call_by_call_when_the_client_speaks_http(self) -> None:
        done, judge = self.silent().on_data(REQUEST, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", False)
        assert done == Done(SILENCE)
        assert isinstance(judge, Judge)
        assert judge.number != SILENCE

    def test_half_a_word_is_waited_for_and_then_refused(self) -> None:
        parser = self.silent()
        assert parser.on_data(REQUEST, b"GE", False) == (More(),)
        assert parser.on_outage(Outage.SLOW_CLIENT) == (Fail("client-timeout", call=SILENCE),)

    def test_a_server_that_ends_first_says_nothing(self) -> None:
        assert self.silent().on_data(REPLY, b"", True) == ()
        assert self.silent().on_outage(Outage.RESET) == (Fail("upstream-reset", call=SILENCE),)

    def test_a_client_that_began_before_is_not_silent(self) -> None:
        parser = detecting()
        parser.on_data(REQUEST, b"GE", False)
        assert parser.on_outage(Outage.SLOW_CLIENT) == (Fail("client-timeout"),)
