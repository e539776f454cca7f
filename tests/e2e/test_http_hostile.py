"""The hostile corpus over real sockets: each case is refused as it says, is recorded, and does no harm to the other side."""

from collections.abc import Iterator

import pytest

from tests.corpus_loader import HostileReply, HostileRequest, hostile_replies, hostile_requests
from tests.e2e.stage import Line, Stage, staged
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
    records = stage.records(2 if without_call else 1)
    assert records[-1]["reason"] == case.reason
    assert [record["status"] for record in records[:-1]] == [200] * without_call
