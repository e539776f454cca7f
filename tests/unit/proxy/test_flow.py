"""The life of one connection: who may pass, what is recorded, and how it ends."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import pytest

from parsers.contract import ApiCall, Outage
from parsers.http1 import Http1Parser
from parsers.kafka.connection import KafkaParser
from parsers.opaque import DetectingParser, TunnelParser
from policies.decide import Decision, Verdict
from proxy import flow
from proxy.audit.places import Place, place_for
from proxy.flow import (
    AUDIT_PATIENCE,
    CARRY_MIN,
    FIRST_CALL_TIMEOUT,
    HEAD_TIMEOUT,
    Abort,
    Again,
    Answer,
    AwaitRoom,
    Carried,
    Carry,
    Close,
    Dial,
    Discard,
    Finished,
    Forward,
    Orphan,
    Permit,
    Shut,
    UnknownLoanError,
)
from proxy.summaries import MAX_SUMMARIES
from tests.flow_playbook import REPLY, REQUEST, Dialogue, LineParser, Policy, Records

GET = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BIG = 4 * CARRY_MIN


def line() -> Dialogue:
    return Dialogue(LineParser())


def http() -> Dialogue:
    return Dialogue(Http1Parser())


def full(play: Dialogue) -> Dialogue:
    play.sink.room = 0
    return play


def broken(play: Dialogue) -> Dialogue:
    play.policy.denies = lambda call: bool(1 / 0)
    return play


class TestPermits:
    def test_no_permit_can_be_made_from_a_denial(self) -> None:
        with pytest.raises(PermissionError):
            Permit(Decision(verdict=Verdict.DENIED, reason="x", generation=1))

    @pytest.mark.parametrize("verdict", [Verdict.ALLOWED, Verdict.WOULD_DENY, Verdict.PARTIAL])
    def test_every_other_verdict_gives_one(self, verdict: Verdict) -> None:
        assert Permit(Decision(verdict=verdict, reason="x", generation=1)).decision.verdict is verdict

    def test_an_allowed_call_dials_once_and_is_forwarded_unchanged(self) -> None:
        play = line().client(b"/a\n")
        assert [type(command) for command in play.commands] == [Dial, Forward]
        play.client(b"/b\n")
        assert [type(command) for command in play.commands] == [Forward]
        assert play.to_server == b"/a\n/b\n"

    def test_a_denied_call_is_answered_without_a_connection_to_the_server(self) -> None:
        play = line().client(b"/no\n")
        assert play.commands == [Answer(b"no\n")]
        assert play.story == [("DENIED", "/no", 403, "no-rule-matched")]

    def test_a_parser_that_passes_what_nobody_judged_ends_the_connection(self) -> None:
        play = line().client(b"/leak\n")
        assert play.to_server == b""
        assert isinstance(play.commands[-1], Abort)
        assert play.story == [("DENIED", None, None, "internal-error")]
        assert isinstance(play.faults[0], PermissionError)


class TestOddReplies:
    ODD = b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok"
    LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

    def test_an_odd_reply_is_an_allowed_call_that_is_counted_and_the_connection_closes_behind_it(self) -> None:
        play = http().client(GET % b"1").server(self.ODD)
        assert play.to_client == self.ODD
        assert play.story == [("ALLOWED", "/1", 200, "rule-matched")]
        assert isinstance(play.commands[-1], Close)
        assert play.metrics.tolerated.items() == [(["bare-lf"], 1)]

    def test_a_server_that_says_408_between_calls_closes_the_connection_and_is_denied_nothing(self) -> None:
        play = http().client(GET % b"1").server(OK).server(self.LATE)
        assert play.to_client == OK
        assert play.story == [("ALLOWED", "/1", 200, "rule-matched")]
        assert isinstance(play.commands[-1], Close)
        assert play.metrics.tolerated.items() == [(["late-408"], 1)]


class TestRecords:
    def test_a_call_is_recorded_when_its_reply_has_gone_by_and_not_before(self) -> None:
        play = line().client(b"/a\n")
        assert play.records == []
        play.server(b"yes\n")
        assert play.story == [("ALLOWED", "/a", 200, "rule-matched")]

    def test_bytes_are_counted_for_the_call_that_they_belong_to(self) -> None:
        play = http().client(GET % b"1" + GET % b"no").server(OK)
        first, second = play.records
        assert (first.bytes_request, first.bytes_reply) == (len(GET % b"1"), len(OK))
        answer = play.to_client[len(OK) :]
        assert (second.bytes_request, second.bytes_reply) == (len(GET % b"no"), len(answer))

    @pytest.mark.parametrize("path", [b"1", b"1?user=bob&tok", b"%22%5C", b"x" * 5000, b"caf%C3%A9"])
    @pytest.mark.parametrize("redacts", [False, True])
    def test_of_calls_that_are_alike_the_first_record_is_made_and_the_others_are_filled_in_and_nobody_can_tell(
        self, path: bytes, redacts: bool
    ) -> None:
        play = http()
        play.policy.redact_query = redacts
        for _ in range(4):
            play.client(GET % path).server(OK)
        first, *others = [msgspec.structs.asdict(record) for record in play.records]
        assert [record.pop("id") for record in others] == ["c.1", "c.2", "c.3"]
        told = {name for record in others for name, value in record.items() if value != first[name]}
        assert told <= {"time"}, "the clock of the play stands still"

    def test_carried_bytes_are_counted_too(self) -> None:
        play = line().client(b"/body %d\n" % BIG)
        assert play.carry[REQUEST] == BIG
        play.carried(REQUEST, BIG - 1).client(b"x").server(b"body %d\n" % BIG)
        play.carried(REPLY, BIG)
        assert play.records[0].bytes_request == len(b"/body %d\n" % BIG) + BIG
        assert play.records[0].bytes_reply == len(b"body %d\n" % BIG) + BIG

    @pytest.mark.parametrize(
        ("ending", "status", "reason"),
        [
            (Dialogue.client_resets, "reset", "client-reset"),
            (Dialogue.server_resets, 502, "upstream-reset"),
            (Dialogue.server_ends, 502, "upstream-reset"),
            (Dialogue.stop, "reset", "agent-stopped"),
            (Dialogue.idles, 502, "upstream-timeout"),
            (lambda play: play.idles(REPLY), "reset", "client-timeout"),
            (lambda play: play.outage(Outage.UNREACHABLE), 502, "upstream-unreachable"),
            (lambda play: play.server(b"garbage\n"), None, "reply-garbage"),
            (lambda play: play.client(b"/crash\n"), "unanswered", "internal-error"),
        ],
    )
    def test_every_ending_records_an_open_call_once_and_says_why(
        self, ending: Callable[[Dialogue], Dialogue], status: int | str | None, reason: str
    ) -> None:
        play = ending(line().client(b"/a\n"))
        assert play.ended
        assert [entry for entry in play.story if entry[1] == "/a"] == [("ALLOWED", "/a", status, reason)]

    def test_pipelined_calls_behind_the_one_at_fault_are_recorded_with_the_same_reason(self) -> None:
        play = line().client(b"/a\n/b\n/c\n").server(b"yes\n").outage(Outage.TIMEOUT)
        assert [entry[1:] for entry in play.story] == [
            ("/a", 200, "rule-matched"),
            ("/b", 502, "upstream-timeout"),
            ("/c", "unanswered", "upstream-timeout"),
        ]

    def test_a_denied_call_keeps_its_reason_however_the_connection_ends(self) -> None:
        head = b"POST /no HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n"
        play = http().client(head + b"x").client_resets()
        assert play.story == [("DENIED", "/no", "reset", "no-rule-matched")]

    def test_a_call_that_was_answered_but_cut_off_keeps_its_status(self) -> None:
        play = http().client(GET % b"1").server(OK[:-1]).server_resets()
        assert play.story == [("ALLOWED", "/1", 200, "upstream-reset")]

    def test_what_never_became_a_call_is_recorded_as_a_refusal(self) -> None:
        play = http().client(b"GET / HTTP/9.9\r\n\r\n")
        assert play.story == [("DENIED", "/", 505, "bad-version")]
        assert play.records[0].id == "c.r0"

    @pytest.mark.parametrize(
        "act",
        [
            lambda play: play.client(b"GET /a?token=s3cret HTTP/9.9\r\n\r\n"),
            lambda play: play.client(b"GET /a?token=s3cret HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n"),
            lambda play: play.client(b"GET /a?token=s3cret HTTP/1.1\r\nhost").client_ends(),
            lambda play: play.client(GET % b"a?token=s3cret").server(OK),
            lambda play: play.client(GET % b"no?token=s3cret"),
            lambda play: full(play).client(GET % b"a?token=s3cret").wait(AUDIT_PATIENCE + 1),
            lambda play: full(play).client(GET % b"a?token=s3cret").client_resets(),
            lambda play: broken(play).client(GET % b"a?token=s3cret"),
        ],
    )
    def test_a_query_that_policy_redacts_is_redacted_in_every_record(self, act: Callable[[Dialogue], Dialogue]) -> None:
        """Also of what never came to be judged: the class of secrets in records."""
        play = http()
        play.policy.redact_query = True
        assert [(record.path or "").removeprefix("/no").removeprefix("/a") for record in act(play).records] == ["?token=***"]

    def test_events_after_the_end_change_nothing(self) -> None:
        play = line().client(b"/a\n").client_resets()
        before = list(play.story)
        for event in (Dialogue.client_ends, Dialogue.server_ends, Dialogue.server_resets, Dialogue.stop, Dialogue.drain):
            assert event(play).commands == []
        assert play.client(b"/b\n").wait(100).idles().outage(Outage.TIMEOUT).commands == []
        assert play.story == before


class TestFaultsOfOurs:
    def test_a_parser_that_crashes_closes_the_connection_with_a_record(self) -> None:
        play = line().client(b"/crash\n")
        assert isinstance(play.commands[-1], Abort)
        assert play.story == [("DENIED", None, None, "internal-error")]
        assert isinstance(play.faults[0], ValueError)

    def test_a_parser_that_crashes_on_a_ruling_forwards_nothing(self) -> None:
        play = line().client(b"/crash-on-ruling\n")
        assert play.to_server == b""
        assert [record.reason for record in play.records] == ["internal-error", "internal-error"]

    def test_a_policy_that_crashes_denies_the_call_and_keeps_the_connection(self) -> None:
        def crash(call: ApiCall) -> bool:
            raise ValueError(call)

        policy = Policy()
        policy.denies = crash
        play = Dialogue(LineParser(), policy).client(b"/a\n")
        assert play.story == [("DENIED", "/a", 403, "internal-error")]
        assert not play.ended


class TestPlaces:
    def test_connections_that_were_turned_away_have_one_record_with_their_number(self) -> None:
        for count, told in ((1, None), (7, 7)):
            play = http()
            since = datetime.now(UTC)
            play.flow.turned_away(count, round(since.timestamp() * 1e6), 1.0)
            (record,) = play.records
            assert (record.verdict, record.protocol, record.reason) == ("DENIED", "tcp", "too-many-connections")
            assert (record.limit, record.calls, record.time, record.status) == ("CONNECTIONS", told, since, None)
            assert play.metrics.calls.total.items() == [(["tcp", "DENIED", "relay", "web", "orders"], count)]
            assert play.sink.written[0][1] is False

    def test_an_idle_connection_that_is_dismissed_is_closed_without_a_record(self) -> None:
        play = http().client(GET % b"1").server(OK)
        assert play.take(play.flow.dismiss(play.now)).commands == [Close()]
        assert len(play.records) == 1

    def test_what_is_kept_is_what_is_not_settled(self) -> None:
        play = http()
        assert play.flow.kept == 0
        play.client(b"GET / HTTP")
        assert (play.flow.kept, play.flow.unsettled(REQUEST), play.flow.unsettled(REPLY)) == (10, 10, 0)

    def test_a_call_takes_a_larger_place_the_more_it_keeps(self) -> None:
        least = Place()
        small = ApiCall(protocol="http/1.1", headers=(("host", "a"),), wire_length=300)
        assert place_for(small, least) is least
        for large in (
            ApiCall(protocol="http/1.1", wire_length=60_000),
            ApiCall(protocol="http/1.1", headers=(("x", "y"),) * 100, wire_length=600),
            ApiCall(protocol="kafka", resources=("topic:a",) * 1000, wire_length=7000),
        ):
            place = place_for(large, least)
            assert place.size >= 2 * large.wire_length + 200 * (len(large.headers) + len(large.resources))


class TestAudit:
    def test_a_call_without_room_for_its_record_waits_and_reading_stops(self) -> None:
        play = Dialogue(LineParser(), sink=Records(room=0)).client(b"/a\n/b\n")
        assert play.commands == [AwaitRoom()]
        assert not play.flow.wants(REQUEST)
        assert play.flow.wants(REPLY)

    def test_with_room_it_goes_on_and_the_next_one_waits(self) -> None:
        play = Dialogue(LineParser(), sink=Records(room=0)).client(b"/a\n/b\n").room()
        assert play.to_server == b"/a\n"
        assert play.commands[-1] == AwaitRoom()
        assert play.room().to_server == b"/a\n/b\n"
        assert play.flow.wants(REQUEST)

    def test_the_policy_of_the_moment_of_room_decides(self) -> None:
        play = Dialogue(LineParser(), sink=Records(room=0)).client(b"/a\n")
        play.policy.denies = lambda call: True
        assert play.room().story == [("DENIED", "/a", 403, "no-rule-matched")]

    def test_after_the_patience_it_is_denied_with_a_record_from_the_reserve(self) -> None:
        play = Dialogue(LineParser(), sink=Records(room=0)).client(b"/a\n").wait(AUDIT_PATIENCE)
        assert play.records == []
        play.wait(0.1)
        assert play.story == [("DENIED", "/a", 403, "audit-unavailable")]
        assert play.sink.written[0][1] is False
        assert play.records[0].limit == "AUDIT_PATIENCE"
        assert play.metrics.over_share.items() == [(["records", "web"], 1)]

    def test_it_waits_longer_while_even_refusals_have_no_room(self) -> None:
        sink = Records(room=0)
        sink.accepts_refusals = False
        play = Dialogue(LineParser(), sink=sink).client(b"/a\n").wait(10 * HEAD_TIMEOUT)
        assert play.flow.waits_for_audit
        sink.accepts_refusals = True
        assert play.wait(1).story == [("DENIED", "/a", 403, "audit-unavailable")]

    def test_a_client_that_leaves_while_it_waits_is_recorded_and_keeps_no_reservation(self) -> None:
        play = Dialogue(LineParser(), sink=Records(room=0)).client(b"/a\n").client_resets()
        assert not play.flow.waits_for_audit
        assert play.story == [("DENIED", "/a", "reset", "audit-unavailable")]
        assert play.sink.reserved == 0

    def test_a_half_close_behind_a_waiting_call_does_not_cost_it_its_answer(self) -> None:
        sink = Records(room=1)
        play = Dialogue(Http1Parser(), sink=sink)
        upgrade = b"GET /1 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        play.client(upgrade + GET % b"2").client_ends().server(OK)
        assert play.flow.waits_for_audit
        play.room().server(OK)
        assert [record.status for record in play.records] == [200, 200]


class TestReload:
    def test_a_change_of_policy_reaches_an_open_connection_at_its_next_call(self) -> None:
        play = line().client(b"/a\n")
        play.policy.denies = lambda call: True
        play.policy.generation = 2
        play.server(b"yes\n").client(b"/a\n")
        assert [(record.verdict, record.generation) for record in play.records] == [("ALLOWED", 1), ("DENIED", 2)]

    def test_a_body_that_is_under_way_is_not_judged_again(self) -> None:
        play = line().client(b"/body 4\nab")
        play.policy.denies = lambda call: True
        assert play.client(b"cd").to_server == b"/body 4\nabcd"


class TestBackPressure:
    def test_a_held_request_is_read_no_further_until_the_reply_moves(self) -> None:
        play = http().client(GET % b"1" + GET % b"no" + GET % b"2")
        assert not play.flow.wants(REQUEST)
        play.server(OK)
        assert play.flow.wants(REQUEST)
        assert play.to_server == GET % b"1" + GET % b"2"

    def test_a_denial_never_overtakes_the_reply_to_an_earlier_call(self) -> None:
        play = http().client(GET % b"1" + GET % b"no")
        assert play.to_client == b""
        play.server(OK)
        assert play.to_client.startswith(OK + b"HTTP/1.1 403 ")

    def test_a_long_body_is_carried_and_a_short_one_is_not(self) -> None:
        assert any(isinstance(command, Carry) for command in line().client(b"/body %d\n" % CARRY_MIN).commands)
        assert not any(isinstance(command, Carry) for command in line().client(b"/body %d\n" % (CARRY_MIN - 1)).commands)


def carried(
    head: bytes, request_bytes: int | None = None, reply_head: bytes = b"", reply_bytes: int = 0, began: float = 0.0
) -> Carried:
    """What the kernel keeps of a call that is still open."""
    return Carried(began, head, len(head) if request_bytes is None else request_bytes, reply_head, reply_bytes, 0)


def post(length: int, path: bytes = b"2") -> bytes:
    return b"POST /%s HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (path, length)


def lent(play: Dialogue | None = None) -> Dialogue:
    """A connection on which one call is over and the next may be the kernel's."""
    play = (play or http()).client(GET % b"1").server(OK)
    assert play.flow.lend() is not None
    return play


class TestLending:
    def test_between_two_calls_the_kernel_gets_the_policy_of_now(self) -> None:
        play = lent()
        loan = play.flow.lend()
        assert loan is not None
        assert loan.pair is play.policy
        assert loan.prefixes is None

    @pytest.mark.parametrize(
        "act",
        [
            lambda play: play.client(b"GE"),
            lambda play: play.client(b"\r"),
            lambda play: play.client(b"\r\n"),
            lambda play: play.client(GET % b"2"),
            lambda play: play.client(post(5) + b"123"),
            lambda play: play.client(post(5, b"no") + b"123"),
            lambda play: play.client(GET % b"2").server(OK[:9]),
            lambda play: play.client(GET % b"2").server(OK[:-1]),
            lambda play: play.client(GET % b"2" + GET % b"no"),
            lambda play: play.client(GET % b"2" + GET % b"3").server(OK),
            lambda play: play.client(post(5)).server(OK),
            lambda play: play.client(UPGRADE),
            lambda play: play.client(UPGRADE).server(SWITCH),
            lambda play: full(play).client(GET % b"2"),
            lambda play: play.client((GET % b"2")[:-2] + b"connection: close\r\n\r\n").server(OK),
            lambda play: play.client(GET % b"2").server(OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")),
            lambda play: play.client((GET % b"2").replace(b"1.1", b"1.0")).server(OK),
            lambda play: play.client(GET % b"2").server(OK.replace(b"1.1", b"1.0")),
            lambda play: play.client(GET % b"2").server(b"HTTP/1.1 200 OK\r\n\r\nuntil the close"),
            lambda play: play.client(GET % b"2").client_ends(),
            lambda play: play.client(GET % b"2").drain(),
            lambda play: play.client_resets(),
        ],
    )
    def test_nothing_is_lent_while_anything_is_half_done(self, act: Callable[[Dialogue], Dialogue]) -> None:
        assert act(lent()).flow.lend() is None

    def test_nothing_is_lent_before_there_is_a_server(self) -> None:
        assert http().flow.lend() is None
        assert http().client(GET % b"no").flow.lend() is None

    def test_what_was_half_done_is_lent_again_when_it_is_over(self) -> None:
        assert lent().client(b"\r\n").client(GET % b"2").server(OK).flow.lend() is not None
        assert lent().client(GET % b"no").flow.lend() is not None


class TestAdoption:
    @pytest.mark.parametrize("gone", [0, 1, BIG // 2, BIG - CARRY_MIN + 1, BIG - 1, BIG])
    def test_no_more_of_a_long_body_is_carried_than_is_left_of_it(self, gone: int) -> None:
        """Bytes behind it are a call that nobody has judged."""
        play = lent().adopt(carried(post(BIG), len(post(BIG)) + gone))
        left = BIG - gone - 1  # the last one is the parser's
        assert [command.n for command in play.commands if isinstance(command, Carry)] == ([left] if left >= CARRY_MIN else [])
        play.client(b"x" * (BIG - gone) + GET % b"no").server(OK)
        assert play.to_server == GET % b"1" + b"x" * (BIG - gone)
        assert [record.path for record in play.records] == ["/1", "/2", "/no"]

    @pytest.mark.parametrize("gone", [0, BIG // 2, BIG - 1])
    def test_the_same_of_a_long_reply(self, gone: int) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BIG
        play = lent().adopt(carried(GET % b"2", None, head, len(head) + gone))
        left = BIG - gone - 1
        assert [command.n for command in play.commands if isinstance(command, Carry)] == ([left] if left >= CARRY_MIN else [])
        play.server(b"x" * (BIG - gone))
        assert play.records[-1].bytes_reply == len(head) + BIG

    @pytest.mark.parametrize("head", [GET % b"no", GET % b"2"])
    def test_a_call_that_policy_denies_ends_the_connection_with_its_record(self, head: bytes) -> None:
        play = lent()
        play.policy.denies = lambda call: True
        play.adopt(carried(head))
        assert play.commands == [Abort()]
        assert isinstance(play.faults[0], PermissionError)
        assert [entry[0] for entry in play.story if entry[1] == (head.split()[1]).decode()] == ["DENIED"]

    def test_it_is_judged_by_the_policy_that_the_kernel_went_by(self) -> None:
        play = lent()
        play.policy, before = Policy(), play.policy
        play.policy.denies, play.policy.generation = (lambda call: True), before.generation + 1
        play.adopt(carried(GET % b"2")).server(OK)
        assert play.story[-1] == ("ALLOWED", "/2", 200, "rule-matched")
        assert play.records[-1].generation == before.generation

    def test_without_room_its_record_goes_where_those_of_refusals_go(self) -> None:
        play = full(lent()).adopt(carried(GET % b"2")).server(OK)
        assert not play.flow.waits_for_audit
        assert [reserved for _, reserved in play.sink.written] == [True, False]
        assert play.story[-1] == ("ALLOWED", "/2", 200, "rule-matched")

    def test_its_time_runs_from_when_the_kernel_saw_it(self) -> None:
        play = lent().wait(5)
        play.adopt(carried(GET % b"2", began=2.0)).server(OK)
        assert play.records[-1].duration_ms == 3000.0
        assert 2.9 < (datetime.now(UTC) - play.records[-1].time).total_seconds() < 4

    def test_a_body_that_does_not_come_is_a_timeout_of_the_client_and_a_reply_one_of_the_server(self) -> None:
        assert lent().adopt(carried(post(5), len(post(5)) + 2)).idles().story[-1] == ("ALLOWED", "/2", 408, "client-timeout")
        assert lent().adopt(carried(GET % b"2")).idles().story[-1] == ("ALLOWED", "/2", 504, "upstream-timeout")

    def test_a_denial_behind_it_waits_for_its_reply(self) -> None:
        play = lent().adopt(carried(GET % b"2")).client(GET % b"no")
        before = play.to_client
        play.server(OK)
        assert play.to_client.startswith(before + OK + b"HTTP/1.1 403 ")

    def test_an_early_reply_is_its_reply(self) -> None:
        early = b"HTTP/1.1 413 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        play = lent().adopt(carried(post(100), len(post(100)) + 2)).server(early).server_ends()
        assert play.all[-1] == Close()
        assert play.story[-1] == ("ALLOWED", "/2", 413, "early-reply")


class TestCarriedCalls:
    def whole(self, play: Dialogue, head: bytes) -> None:
        play.carried_call(head, len(head), 38, 200)

    def test_the_next_call_of_ours_has_the_next_number(self) -> None:
        play = lent()
        self.whole(play, GET % b"2")
        play.client(GET % b"3").server(OK)
        line = json.loads(play.records[1])
        assert (line["id"], line["path"], line["via"], line["durationMs"]) == ("c.1", "/2", "kernel", 250.0)
        assert play.records[2].id == "c.2"

    def test_calls_that_are_not_alike_have_lines_of_their_own(self) -> None:
        play = lent()
        for path in (b"2", b"2", b"3", b"2"):
            self.whole(play, GET % path)
        assert [json.loads(line)["path"] for line in play.records[1:]] == ["/2", "/2", "/3", "/2"]

    def test_one_that_policy_denies_is_recorded_and_raised(self) -> None:
        play = lent()
        with pytest.raises(PermissionError, match="no-rule-matched"):
            self.whole(play, GET % b"no")
        assert json.loads(play.records[1])["verdict"] == "DENIED"

    def test_they_may_be_told_when_the_relay_has_gone_on_and_even_when_the_connection_is_over(self) -> None:
        play = lent()
        told = [
            Finished(int(1.7e15), 0, GET % path, 30, b"", 40, 200, number, 1) for number, path in ((1, b"late"), (2, b"later"))
        ]
        play.flow.skip(2)
        play.client(GET % b"3").server(OK).client_ends()
        assert play.ended
        lines: list[str] = []
        for finished in told:
            play.flow.carried_call(finished, lines)
        assert play.records[-1].id == "c.3"
        assert [(json.loads(one)["id"], json.loads(one)["path"]) for one in lines] == [("c.1", "/late"), ("c.2", "/later")]

    def test_each_is_judged_by_the_policy_that_the_kernel_went_by(self) -> None:
        play = lent()
        old, play.policy = play.policy, Policy()
        play.policy.generation = 2
        play.policy.denies = lambda call: True
        assert play.flow.lend() is not None
        lines: list[str] = []
        play.flow.carried_call(Finished(0, 0, GET % b"2", 30, b"", 40, 200, 1, old.generation), lines)
        with pytest.raises(PermissionError):
            play.flow.carried_call(Finished(0, 0, GET % b"2", 30, b"", 40, 200, 2, 2), lines)
        assert [(json.loads(one)["verdict"], json.loads(one)["generation"]) for one in lines] == [("ALLOWED", 1), ("DENIED", 2)]
        with pytest.raises(UnknownLoanError):
            play.flow.carried_call(Finished(0, 0, GET % b"2", 30, b"", 40, 200, 3, 1), lines)

    def test_what_the_query_must_not_tell_is_in_none_of_their_lines(self) -> None:
        play = lent()
        play.policy.redact_query = True
        for secret in (b"2?key=a", b"2?key=b"):
            self.whole(play, GET % secret)
        assert [json.loads(one)["path"] for one in play.records[1:]] == ["/2?key=***"] * 2


class TestOrphans:
    """Connections that have ended with their worker."""

    def orphan(self, generation: int = 1) -> tuple[Dialogue, Orphan]:
        play = http()
        play.policy.generation = generation
        return play, Orphan(play.flow._scene, Http1Parser())

    def test_a_call_under_the_policy_of_now_has_the_record_that_its_worker_would_have_written(self) -> None:
        _, orphan = self.orphan()
        lines: list[str] = []
        orphan.carried_call(Finished(int(1.7e15), 250, GET % b"2", 30, b"", 40, 200, 7, 1), lines)
        told = json.loads(lines[0])
        assert (told["id"], told["path"], told["verdict"], told["reason"]) == ("c.7", "/2", "ALLOWED", "rule-matched")

    def test_of_an_older_policy_the_record_says_that_it_was_allowed_and_redacts_what_it_might_have_redacted(self) -> None:
        _, orphan = self.orphan(generation=2)
        lines: list[str] = []
        orphan.carried_call(Finished(int(1.7e15), 250, GET % b"no?key=secret", 30, b"", 40, 200, 7, 1), lines)
        told = json.loads(lines[0])
        assert (told["verdict"], told["reason"], told["path"]) == ("ALLOWED", "worker-died", "/no?key=***")
        assert told["generation"] == 1

    def test_an_open_call_is_reset_or_has_the_status_of_the_reply_that_was_begun(self) -> None:
        play, orphan = self.orphan()
        begun = msgspec.structs.replace(carried(GET % b"3"), reply_bytes=9, status=206)
        orphan.cut_off([(4, carried(GET % b"2")), (5, begun)], 1, now=3.0)
        assert [(record.id, record.status, record.reason, record.via) for record in play.records] == [
            ("c.4", "reset", "worker-died", "kernel"),
            ("c.5", 206, "worker-died", "kernel"),
        ]
        assert play.records[0].duration_ms == 3000.0

    def test_frames_that_name_what_nobody_knows_any_more_still_have_records(self) -> None:
        play = http()
        orphan = Orphan(play.flow._scene, KafkaParser())
        lines: list[str] = []
        orphan.carried_call(Finished(int(1.7e15), 250, b"no frame", 30, b"", 40, 0, 7, 1), lines)
        told = json.loads(lines[0])
        assert (told["protocol"], told["verdict"], told["status"], told["reason"]) == (
            "kafka",
            "ALLOWED",
            "unknown",
            "worker-died",
        )


class TestTooLate:
    """What a client says when the connection has ended between two calls, and it does not know."""

    def test_a_call_that_nobody_takes_any_more_has_a_record(self) -> None:
        play = http().client(GET % b"1").server(OK).server_ends()
        assert play.ended
        play.flow.late(GET % b"2", 1.0)
        play.flow.late(GET % b"3", 1.0)
        assert play.story[1:] == [("DENIED", "/2", None, "connection-closed")], "one, whatever comes"
        assert play.records[1].bytes_request == len(GET % b"2")

    def test_what_is_no_whole_head_has_one_without_a_path(self) -> None:
        play = http().client(GET % b"1").server(OK).server_ends()
        play.flow.late(b"GET /2", 1.0)
        assert play.story[1:] == [("DENIED", None, None, "connection-closed")]

    def test_the_rest_of_a_call_is_none(self) -> None:
        play = http().client(b"POST /no HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999\r\n\r\n")
        assert play.ended
        play.flow.late(b"the body", 1.0)
        assert len(play.records) == 1


class Clock:
    now = 1_700_000_000.5


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The wall clock."""
    clock = Clock()
    monkeypatch.setattr(flow, "time_ns", lambda: int(clock.now * 1e9))
    monkeypatch.setattr(flow, "time", lambda: clock.now)
    return clock


class Summing(Policy):
    def decide(self, call: ApiCall) -> Decision:
        return msgspec.structs.replace(super().decide(call), summary=True)


class TestClosing:
    def test_a_half_close_of_the_client_is_handed_on_behind_its_last_byte(self) -> None:
        play = line().client(b"/a\n").client_ends()
        assert play.commands == [Shut(REQUEST)]
        play.server(b"yes\n").server_ends()
        assert play.commands == [Close()]
        assert play.records[0].status == 200

    def test_a_client_that_only_asked_for_the_forbidden_is_closed_when_it_ends(self) -> None:
        assert line().client(b"/no\n").client_ends().commands == [Close()]

    def test_a_client_that_never_says_anything_leaves_no_record(self) -> None:
        play = line().client_ends()
        assert play.commands == [Close()]
        assert play.records == []

    def test_a_server_that_answers_early_and_closes_is_no_outage(self) -> None:
        """RFC 9112 section 9.6: a server may answer 413 and close while the body is still on its way."""
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
        play = http().client(head + b"x").server(b"HTTP/1.1 413 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        assert play.commands[-1] == Close()
        assert play.story == [("ALLOWED", "/", 413, "early-reply")]

    def test_an_early_reply_reaches_the_client_even_when_the_server_resets_behind_it(self) -> None:
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n"
        play = http().client(head + b"x").server(b"HTTP/1.1 413 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        assert play.commands[-1] == Close()
        assert play.server_resets().commands == []
        assert play.records[0].status == 413

    def test_a_body_that_is_spliced_stops_behind_a_refusal(self) -> None:
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"
        play = http().client(head + b"x").server(b"HTTP/1.1 413 x\r\ncontent-length: 2\r\n\r\n")
        assert Discard(REQUEST) in play.commands
        assert play.carry[REQUEST] == 0
        before = play.to_server
        play.client(b"GET /admin HTTP/1.1\r\nhost: a\r\n\r\n").server(b"no")
        assert (play.to_server, play.commands[-1]) == (before, Close())
        assert [(record.status, record.reason) for record in play.records] == [(413, "early-reply")]

    def test_a_body_with_expect_goes_on_when_the_server_has_been_silent_for_a_while(self) -> None:
        head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        play = http().client(head).wait(100).client(b"bo").wait(0.9)
        assert play.to_server == head
        assert not play.flow.wants(REQUEST)
        assert play.wait(0.2).to_server == head + b"bo"
        assert play.client(b"dy").server(OK).story == [("ALLOWED", "/", 200, "rule-matched")]

    def test_it_waits_no_longer_because_more_of_it_comes(self) -> None:
        head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        play = http().client(head + b"b").wait(0.6).client(b"o").wait(0.6)
        assert play.to_server == head + b"bo"

    def test_a_reply_that_lasts_until_the_close_is_reset_when_it_is_cut(self) -> None:
        """RFC 9112 section 8: an orderly close would make it look complete."""
        play = http().client(GET % b"1").server(b"HTTP/1.1 200 OK\r\n\r\nhalf").server_resets()
        assert play.commands == [Abort()]
        play = http().client(GET % b"1").server(b"HTTP/1.1 200 OK\r\n\r\nhalf").stop()
        assert play.commands == [Abort()]

    def test_a_reply_that_lasts_until_the_close_is_complete_with_it(self) -> None:
        play = http().client(GET % b"1").server(b"HTTP/1.1 200 OK\r\n\r\nall").server_ends()
        assert play.commands == [Close()]
        assert play.story == [("ALLOWED", "/1", 200, "rule-matched")]

    def test_an_idle_connection_that_the_server_resets_is_closed_so_that_no_reply_is_destroyed(self) -> None:
        play = line().client(b"/a\n").server(b"yes\n").server_resets()
        assert play.commands == [Close()]

    def test_a_client_that_ends_inside_its_body_is_told_and_the_server_is_not_asked_to_guess(self) -> None:
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n"
        play = http().client(head + b"x").client_ends()
        assert play.to_client.startswith(b"HTTP/1.1 400 ")
        assert play.story == [("ALLOWED", "/", 400, "truncated-body")]
        assert play.count(Shut) == 0

    def test_a_failed_dial_answers_the_client_while_it_still_uploads(self) -> None:
        head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % BIG
        play = http().client(head).outage(Outage.UNREACHABLE)
        assert play.to_client.startswith(b"HTTP/1.1 502 ")
        assert play.commands[-1] == Close()

    def test_drain_closes_an_idle_connection_at_once_and_a_busy_one_after_its_call(self) -> None:
        assert line().drain().commands == [Close()]
        play = line().client(b"/a\n").drain()
        assert play.commands == []
        play.server(b"yes\n")
        assert play.commands[-1] == Close()
        assert play.records[0].status == 200

    def test_drain_waits_for_the_rest_of_a_half_read_call(self) -> None:
        play = line().client(b"/a").drain()
        assert not play.ended
        play.client(b"\n").server(b"yes\n")
        assert play.ended


class TestTime:
    def test_a_head_that_is_not_completed_in_time_is_refused(self) -> None:
        play = http().client(b"GET / HT").wait(HEAD_TIMEOUT).client(b"TP")
        assert not play.ended
        play.wait(0.1)
        assert play.to_client.startswith(b"HTTP/1.1 408 ")
        assert play.story == [("DENIED", None, 408, "client-timeout")]

    def test_dripping_bytes_does_not_buy_time(self) -> None:
        play = http()
        for byte in b"GET / HTTP/1.1\r\nx: " + b"y" * int(HEAD_TIMEOUT):
            if not play.ended:
                play.client(bytes([byte])).wait(1.0)
        assert play.ended
        assert play.records[0].reason == "client-timeout"

    def test_a_busy_client_whose_pieces_always_end_inside_a_head_is_not_slow(self) -> None:
        play = http().client((GET % b"1")[:10])
        for _ in range(5):
            play.wait(HEAD_TIMEOUT / 2).client((GET % b"1")[10:] + (GET % b"1")[:10]).server(OK)
        assert not play.ended
        assert len(play.records) == 5

    def test_a_client_whose_bytes_are_left_in_the_socket_is_not_slow(self) -> None:
        play = http().client((GET % b"1")[:10]).wait(2 * HEAD_TIMEOUT, listening=False).wait(1)
        assert not play.ended

    def test_a_call_that_waits_for_its_reply_is_not_a_slow_client(self) -> None:
        assert not http().client(GET % b"1" + GET % b"no").wait(10 * HEAD_TIMEOUT).ended

    def test_a_client_that_makes_no_call_in_time_is_closed_without_a_record(self) -> None:
        play = http().wait(FIRST_CALL_TIMEOUT)
        assert not play.ended
        assert play.wait(0.1).commands == [Close()]
        assert not play.records
        assert play.metrics.limits.items() == [(["FIRST_CALL_TIMEOUT"], 1)]

    def test_empty_lines_are_no_call(self) -> None:
        assert http().client(b"\r\n").wait(FIRST_CALL_TIMEOUT + 0.1).commands == [Close()]

    def test_after_its_first_call_a_client_may_be_silent_for_as_long_as_it_likes(self) -> None:
        for play in (http().client(GET % b"1").server(OK), http().client(GET % b"no"), Dialogue(TunnelParser())):
            assert not play.wait(100 * FIRST_CALL_TIMEOUT).ended

    def test_a_client_that_we_do_not_read_has_its_time_for_what_it_has_begun(self) -> None:
        play = http().client((GET % b"1")[:10]).wait(FIRST_CALL_TIMEOUT + 1, listening=False)
        assert not play.ended
        assert play.client((GET % b"1")[10:]).server(OK).records[0].status == 200

    def test_an_idle_connection_without_a_call_is_closed_without_a_record(self) -> None:
        play = line().client(b"/a\n").server(b"yes\n").idles()
        assert play.commands == [Close()]
        assert len(play.records) == 1

    def test_a_server_that_does_not_answer_is_a_504(self) -> None:
        play = http().client(GET % b"1").idles()
        assert play.to_client.startswith(b"HTTP/1.1 504 ")
        assert play.story == [("ALLOWED", "/1", 504, "upstream-timeout")]

    def test_a_client_that_does_not_send_its_body_is_a_408(self) -> None:
        play = http().client(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n").idles()
        assert play.to_client.startswith(b"HTTP/1.1 408 ")
        assert play.story == [("ALLOWED", "/", 408, "client-timeout")]

    def test_a_server_that_does_not_read_the_body_is_a_504(self) -> None:
        play = http().client(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n").idles(REQUEST)
        assert play.to_client.startswith(b"HTTP/1.1 504 ")


UPGRADE = b"GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


class TestTunnels:
    def test_after_a_101_both_directions_pass_as_they_are(self) -> None:
        play = http().client(UPGRADE).server(SWITCH + b"early").client(b"\0\1").server(b"\2\3")
        assert (play.to_server, play.to_client) == (UPGRADE + b"\0\1", SWITCH + b"early\2\3")
        assert play.records == []

    def test_what_the_client_sent_before_the_101_waits_for_it(self) -> None:
        """Pingora CVE-2026-2833: nothing is a tunnel before the server has agreed."""
        play = http().client(UPGRADE + b"GET /no HTTP/1.1\r\n")
        assert play.to_server == UPGRADE
        assert play.server(SWITCH).to_server == UPGRADE + b"GET /no HTTP/1.1\r\n"

    def test_each_half_close_is_handed_on_and_the_second_one_ends_it(self) -> None:
        play = http().client(UPGRADE).server(SWITCH).server_ends()
        assert play.commands == [Shut(REPLY)]
        assert play.client(b"more").to_server.endswith(b"more")
        assert play.client_ends().commands == [Shut(REQUEST), Close()]
        assert play.story == [("ALLOWED", "/chat", 101, "rule-matched")]

    def test_a_half_close_before_the_101_is_handed_on_after_it(self) -> None:
        play = http().client(UPGRADE + b"x").client_ends()
        assert play.commands == []
        play.server(SWITCH)
        assert play.to_server == UPGRADE + b"x"
        assert Shut(REQUEST) in play.commands

    @pytest.mark.parametrize("ending", [Dialogue.server_resets, Dialogue.idles, lambda p: p.outage(Outage.TIMEOUT)])
    def test_no_words_of_ours_are_ever_put_into_a_tunnel(self, ending: Callable[[Dialogue], Dialogue]) -> None:
        play = ending(http().client(UPGRADE).server(SWITCH))
        assert play.to_client == SWITCH
        assert play.ended
        assert play.records[0].status == 101

    def test_a_tunnel_of_a_port_without_a_protocol_is_judged_and_dialled_before_the_first_byte(self) -> None:
        play = Dialogue(TunnelParser())
        assert isinstance(play.commands[0], Dial)
        play.server(b"220 hello\r\n").client(b"QUIT\r\n").server_ends().client_ends()
        assert (play.to_server, play.to_client) == (b"QUIT\r\n", b"220 hello\r\n")
        record = play.records[0]
        assert (record.protocol, record.verdict, record.status) == ("tcp", "ALLOWED", None)
        assert (record.bytes_request, record.bytes_reply) == (6, 11)

    def test_a_tunnel_that_policy_denies_never_dials(self) -> None:
        policy = Policy()
        policy.denies = lambda call: True
        play = Dialogue(TunnelParser(), policy)
        assert play.commands == [Close()]
        assert play.story == [("DENIED", None, None, "no-rule-matched")]

    def test_a_tunnel_whose_server_cannot_be_reached_is_reset(self) -> None:
        play = Dialogue(TunnelParser()).outage(Outage.UNREACHABLE)
        assert play.commands == [Abort()]
        assert play.story == [("ALLOWED", None, "reset", "upstream-unreachable")]

    def test_a_tunnel_waits_for_room_for_its_record_too(self) -> None:
        play = Dialogue(TunnelParser(), sink=Records(room=0))
        assert play.commands == [AwaitRoom()]
        assert isinstance(play.room().commands[0], Dial)


def detecting(policy: Policy | None = None) -> Dialogue:
    parser = DetectingParser(lambda found: Http1Parser() if found != "unknown" else None)
    return Dialogue(parser, policy, detect_within=1.0)


class TestDetection:
    def test_http_is_parsed_and_judged(self) -> None:
        play = detecting().client(GET % b"no")
        assert play.story == [("DENIED", "/no", 403, "no-rule-matched")]

    def test_another_protocol_is_a_tunnel(self) -> None:
        assert detecting().client(b"\x16\x03\x01").to_server == b"\x16\x03\x01"

    def test_a_silent_client_lets_the_server_begin(self) -> None:
        play = detecting().wait(0.9)
        assert play.commands == []
        play.wait(0.2)
        assert isinstance(play.commands[0], Dial)
        play.server(b"220 mail\r\n").client(b"EHLO a\r\nQUIT\r\n").client(b"GET /no HTTP/1.1\r\n")
        assert play.to_server == b"EHLO a\r\nQUIT\r\nGET /no HTTP/1.1\r\n"
        play.server_ends().client_ends()
        assert [record.protocol for record in play.records] == ["tcp"]

    def test_a_request_behind_the_servers_first_words_ends_the_connection(self) -> None:
        """It cannot be judged any more; and a second's silence must not be a way around the rules of the port."""
        play = detecting().wait(1.1).server(b"220 mail\r\n").client(b"GET /no HTTP/1.1\r\n\r\n")
        assert play.to_server == b"GET"
        assert play.commands[-1] == Abort()
        assert play.story == [("ALLOWED", None, None, "policed-protocol")]
        assert (play.records[0].bytes_request, play.records[0].bytes_reply) == (3, 10)

    @pytest.mark.parametrize("ending", ["client_ends", "server_ends", "idles", "client_resets", "server_resets"])
    def test_a_watched_tunnel_ends_as_any_other(self, ending: str) -> None:
        ends = [getattr(Dialogue(TunnelParser()).client(b"\x16"), ending)()]
        ends.append(getattr(detecting().client(b"\x16"), ending)())
        assert ends[0].commands == ends[1].commands
        assert [r.reason for r in ends[0].records] == [r.reason for r in ends[1].records]
        if not ends[0].ended:
            for play in ends:
                play.client_ends() if ending == "server_ends" else play.server_ends()
            assert (ends[0].commands, ends[0].story) == (ends[1].commands, ends[1].story)

    def test_a_client_that_is_silent_first_and_then_speaks_http_is_still_judged(self) -> None:
        """Silence must not be a way around the rules of the port."""
        play = detecting().wait(1.1).client(GET % b"no")
        assert play.to_server == b""
        assert play.to_client.startswith(b"HTTP/1.1 403 ")
        play.client(GET % b"1").server(OK)
        assert [(record.protocol, record.path, record.status) for record in play.records] == [
            ("tcp", None, None),
            ("http/1.1", "/no", 403),
            ("http/1.1", "/1", 200),
        ]
        assert len({record.id for record in play.records}) == 3

    def test_the_beginning_of_a_request_and_then_silence_is_refused(self) -> None:
        play = detecting().client(b"GE").wait(2)
        assert not play.ended
        play.wait(HEAD_TIMEOUT)
        assert play.to_server == b""
        assert play.story == [("DENIED", None, None, "client-timeout")]

    def test_a_silent_client_that_policy_denies_never_reaches_the_server(self) -> None:
        policy = Policy()
        policy.denies = lambda call: True
        play = detecting(policy).wait(1.1)
        assert play.commands == [Close()]
        assert play.story == [("DENIED", None, None, "no-rule-matched")]

    def test_a_silent_server_that_ends_is_recorded(self) -> None:
        play = detecting().wait(1.1).server_ends()
        assert play.ended
        assert play.story == [("ALLOWED", None, None, "upstream-reset")]


class TestSummaries:
    """What a rule's ``record: summary`` makes of records."""

    def talk(self, room: int = 1000) -> Dialogue:
        play = Dialogue(LineParser(), policy=Summing(), sink=Records(room))
        play.now = 100.0
        return play

    def test_calls_that_are_alike_have_one_record_when_their_second_is_over(self, second: Clock) -> None:
        play = self.talk()
        for _ in range(3):
            play.client(b"/a\n").server(b"yes\n")
        assert play.records == []
        second.now += 1
        play.wait(1)
        (record,) = play.records
        assert (record.calls, record.path, record.status) == (3, "/a", 200)
        assert (record.bytes_request, record.bytes_reply) == (9, 12)
        assert record.id == "c.0"

    def test_calls_that_differ_have_records_of_their_own(self, second: Clock) -> None:
        play = self.talk()
        for path in (b"/a", b"/b", b"/a"):
            play.client(path + b"\n").server(b"yes\n")
        second.now += 1
        play.wait(1)
        assert len(play.records) == 2

    def test_the_next_second_begins_another_record(self, second: Clock) -> None:
        play = self.talk().client(b"/a\n").server(b"yes\n")
        second.now += 1
        play.client(b"/a\n").server(b"yes\n").server_ends()
        assert [record.calls for record in play.records] == [1, 1]

    def test_the_end_of_a_connection_loses_nothing(self, second: Clock) -> None:
        play = self.talk()
        for _ in range(5):
            play.client(b"/a\n").server(b"yes\n")
        play.server_ends()
        assert [record.calls for record in play.records] == [5]

    def test_denials_and_calls_without_reply_are_told_one_by_one(self, second: Clock) -> None:
        play = self.talk().client(b"/a\n").server(b"yes\n").client(b"/no\n").client(b"/a\n").server_resets()
        assert sorted((record.verdict, record.calls) for record in play.records if record.calls is None) == [
            ("ALLOWED", None),
            ("DENIED", None),
        ]
        assert [record.calls for record in play.records if record.calls] == [1]

    def test_many_calls_need_the_room_of_one_record(self, second: Clock) -> None:
        play = self.talk()
        for _ in range(50):
            play.client(b"/a\n").server(b"yes\n")
        assert play.sink.reserved == 1
        play.server_ends()
        assert play.sink.reserved == 0

    def test_beyond_a_number_of_different_calls_each_has_its_own_record(self, second: Clock) -> None:
        play = self.talk()
        for number in range(MAX_SUMMARIES + 3):
            play.client(b"/%d\n" % number).server(b"yes\n")
        assert len(play.records) == 3
        play.server_ends()
        assert len(play.records) == MAX_SUMMARIES + 3


class TestTurns:
    """Thousands of calls may come in one piece."""

    def test_they_are_settled_over_several_turns_in_their_order(self) -> None:
        play = Dialogue(LineParser()).client(b"".join(b"/%s/%d\n" % (b"no" if i % 2 else b"ok", i) for i in range(500)))
        assert play.turns >= 10
        assert play.to_server == b"".join(b"/ok/%d\n" % i for i in range(0, 500, 2))
        assert [record.path for record in play.records] == [f"/no/{i}" for i in range(1, 500, 2)]
        play.server(b"yes\n" * 250)
        assert len(play.records) == 500

    def test_no_more_is_read_before_they_are_settled(self) -> None:
        flow = Dialogue(LineParser()).flow
        assert Again() in flow.data(REQUEST, b"/no\n" * 500, 0.0)
        assert not flow.wants(REQUEST)
        assert flow.wants(REPLY)

    def test_the_end_of_the_stream_comes_behind_them(self) -> None:
        play = Dialogue(LineParser())
        play.flow.data(REQUEST, b"/ok\n" * 100, 0.0)
        play.client_ends()
        assert len(play.policy.asked) == 100
        assert play.commands[-1] == Shut(REQUEST)

    def test_a_reset_between_turns_leaves_a_record_of_each_that_was_read(self) -> None:
        play = Dialogue(LineParser())
        play.flow.data(REQUEST, b"/ok\n" * 100, 0.0)
        play.client_resets()
        assert len(play.records) == len(play.policy.asked) < 100
        assert play.flow.go_on(0.0) == []

    def test_a_drain_between_turns_waits_for_what_has_come(self) -> None:
        play = Dialogue(LineParser())
        play.flow.data(REQUEST, b"/no\n" * 100, 0.0)
        play.drain()
        assert not play.ended
        play.take(play.flow.go_on(0.0))
        assert len(play.records) == 100
        assert play.ended

    def test_a_client_is_not_slow_while_it_waits_for_us(self) -> None:
        play = Dialogue(LineParser())
        play.flow.data(REQUEST, b"/ok\n" * 100, 0.0)
        play.wait(2 * HEAD_TIMEOUT)
        assert not play.ended
