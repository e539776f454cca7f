"""The hostile corpus over real sockets: each case is refused as it says, is recorded, and does no harm to the other side."""

from collections.abc import Iterator

import pytest

from tests.corpus_loader import HostileReply, HostileRequest, hostile_replies, hostile_requests
from tests.e2e.stage import Line, Stage, staged
from tests.odd_replies import ODD, OK, Odd
from tests.requirements import require_bpf


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    yield from staged(tmp_path_factory.mktemp("hostile"), {"any": "[{}]"})


def only_listen(line: Line) -> None:
    line.rest()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in hostile_requests()])
def test_a_hostile_request_is_refused_and_the_server_sees_nothing_of_it(stage: Stage, case: HostileRequest) -> None:
    accepted = stage.listeners["any"].accepted
    with stage.client("any", only_listen) as client:
        client.send(case.request)
        if case.end:
            client.end()
        answer = client.rest()

    assert answer.startswith(b"HTTP/1.1 %d " % case.status)
    assert answer.count(b"\r\n\r\n") == 1  # one reply
    assert b"connection: close\r\n" in answer
    (record,) = stage.records(1)
    assert (record["reason"], record["status"]) == (case.reason, case.status)
    if case.judged:
        assert record["verdict"] == "ALLOWED"  # the head was good
        assert case.request.startswith(bytes(stage.seen["any"]))
        assert bytes(stage.seen["any"]) != case.request or case.end
    else:
        assert record["verdict"] == "DENIED"
        assert stage.listeners["any"].accepted == accepted
        assert not stage.seen["any"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in hostile_replies()])
def test_a_hostile_reply_is_kept_from_the_client(stage: Stage, case: HostileReply) -> None:
    def answer_badly(line: Line) -> None:
        line.head()
        line.send(case.reply)
        if not case.end:
            line.rest()  # until the agent ends it

    with stage.client("any", answer_badly) as client:
        answer = client.send(case.request).rest()
        if case.status is None:
            assert case.reply.startswith(answer)
            assert answer != case.reply or case.end
        else:
            assert answer.startswith(b"HTTP/1.1 %d " % case.status)
            assert answer.count(b"\r\n\r\n") == 1  # one reply

    without_call = case.reason in ("reply-without-request", "reply-data-after-close")
    calls = case.request.count(b" HTTP/1.1\r\n")
    records = stage.records(calls + without_call)
    assert records[-1]["reason"] == case.reason
    assert [record["status"] for record in records[:-1]] == [200 if without_call else case.status] * (len(records) - 1)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ODD])
def test_an_odd_reply_reaches_the_client_as_it_is_and_the_connection_goes_on_where_nobody_doubts_its_end(
    stage: Stage, case: Odd
) -> None:
    request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"

    def answer_oddly(line: Line) -> None:
        line.head()
        line.send(case.reply)
        if case.until_close:
            return
        if case.goes_on:
            line.head()
            line.send(OK)
        line.rest()  # until the agent, or the client, ends it

    with stage.client("any", answer_oddly) as client:
        assert client.send(request).exactly(len(case.reply)) == case.reply
        if case.goes_on:
            assert client.send(request).exactly(len(OK)) == OK
            client.end()
        assert client.rest() == b""
    records = stage.records(2 if case.goes_on else 1)
    assert [(record["verdict"], record["reason"]) for record in records] == [("ALLOWED", "rule-matched")] * len(records)


def test_what_a_server_says_to_an_idle_connection_is_no_denial(stage: Stage) -> None:
    def time_out(line: Line) -> None:
        line.head()
        line.send(OK)
        line.send(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    with stage.client("any", time_out) as client:
        assert client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").rest() == OK
    assert [(record["verdict"], record["status"]) for record in stage.records(1)] == [("ALLOWED", 200)]


def test_http2_is_told_so_in_its_own_words(stage: Stage) -> None:
    with stage.client("any", only_listen) as client:
        answer = client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0").rest()
    assert answer.startswith(b"\0\0\0\4\0\0\0\0\0")
    assert answer.endswith(b"HTTP/2 is not supported on this port")
    (record,) = stage.records(1)
    assert (record["verdict"], record["reason"], record["status"]) == ("DENIED", "http2-not-supported", 505)
