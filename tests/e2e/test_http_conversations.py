"""HTTP/1 conversations of every shape, byte by byte, between a raw client and a raw server."""

import base64
import hashlib
import os
import socket
from collections.abc import Iterator

import pytest

from proxy.flow import HEAD_TIMEOUT
from tests.e2e.stage import Line, Stage, staged
from tests.harness import eventually
from tests.requirements import require_bpf

DENIED = b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\nAccess denied\r\n"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_bpf()
    yield from staged(tmp_path_factory.mktemp("http"), {"open": '[{path: "/yes.*"}]'})


def get(path: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = "".join(f"{field}\r\n" for field in ("host: a", *fields))
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode()


def told(stage: Stage, count: int) -> list[tuple[str, str, object]]:
    return [(record["verdict"], record["path"], record.get("status")) for record in stage.records(count)]


def test_calls_follow_each_other_on_one_connection_and_the_server_sees_one(stage: Stage) -> None:
    accepted = stage.listeners["open"].accepted
    with stage.client("open") as client:
        for number in range(3):
            assert client.send(get(f"/yes/{number}")).reply() == (200, get(f"/yes/{number}"))
    assert stage.listeners["open"].accepted == accepted + 1
    assert told(stage, 3) == [("ALLOWED", f"/yes/{number}", 200) for number in range(3)]


def test_fifty_pipelined_requests_are_answered_in_order_with_the_denials_in_their_places(stage: Stage) -> None:
    paths = [f"/no/{number}" if number % 3 == 1 else f"/yes/{number}" for number in range(50)]
    with stage.client("open") as client:
        client.send(b"".join(map(get, paths)))
        replies = [client.reply() for _ in paths]
    assert [status for status, _ in replies] == [403 if path.startswith("/no") else 200 for path in paths]
    assert [body for status, body in replies if status == 200] == [get(path) for path in paths if path.startswith("/yes")]
    records = stage.records(50)
    assert sorted(record["path"] for record in records) == sorted(paths)
    assert bytes(stage.seen["open"]) == b"".join(get(path) for path in paths if path.startswith("/yes"))


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (get("/yes", method="HEAD"), b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"),
        (get("/yes"), b"HTTP/1.1 204 No Content\r\n\r\n"),
        (get("/yes"), b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5000\r\n\r\n"),
        (get("/yes"), b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 x\r\n\r\n"),
        (get("/yes"), b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"),
        (get("/yes"), b"HTTP/1.1 200 \r\nX-Odd:  spaces \r\ncontent-length: 0\r\n\r\n"),
    ],
    ids=["head", "204", "304", "1xx", "chunked", "odd-but-legal"],
)
def test_a_reply_reaches_the_client_as_it_is_and_the_connection_stays_usable(
    stage: Stage, request_: bytes, reply: bytes
) -> None:
    def answer(line: Line) -> None:
        while line.head():
            line.send(reply)

    with stage.client("open", answer) as client:
        for _ in range(2):
            assert client.send(request_).exactly(len(reply)) == reply
    assert bytes(stage.seen["open"]) == request_ * 2
    assert [record["bytesReply"] for record in stage.records(2)] == [len(reply)] * 2


def test_a_chunked_request_with_trailers_reaches_the_server_as_it_is(stage: Stage) -> None:
    body = b"4;x=y\r\nWiki\r\n5\r\npedia\r\n0\r\nx-checksum: 7\r\n\r\n"
    request = get("/yes", "transfer-encoding: chunked", "trailer: x-checksum", method="POST") + body

    def answer(line: Line) -> None:
        line.until(b"7\r\n\r\n")
        line.send(b"HTTP/1.1 204 x\r\n\r\n").rest()

    with stage.client("open", answer) as client:
        for byte in request:
            client.send(bytes([byte]))
        assert client.head() == b"HTTP/1.1 204 x\r\n\r\n"
    assert bytes(stage.seen["open"]) == request
    assert stage.records(1)[0]["bytesRequest"] == len(request)


def test_expect_100_continue_is_between_the_client_and_the_server(stage: Stage) -> None:
    """RFC 9110 section 10.1.1."""
    request = get("/yes", "expect: 100-continue", "content-length: 4", method="PUT")

    def answer(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        line.send(b"HTTP/1.1 201 Created\r\ncontent-length: 4\r\n\r\n" + line.exactly(4)).rest()

    with stage.client("open", answer) as client:
        assert client.send(request).head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.send(b"body").reply() == (201, b"body")
    assert told(stage, 1) == [("ALLOWED", "/yes", 201)]


def test_a_denied_expect_100_continue_is_answered_without_waiting_for_the_body(stage: Stage) -> None:
    with stage.client("open") as client:
        client.send(get("/no", "expect: 100-continue", "content-length: 4", method="PUT"))
        answer = client.rest()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in answer
    assert told(stage, 1) == [("DENIED", "/no", 403)]


def test_a_denied_upload_is_read_away_and_the_connection_stays_usable(stage: Stage) -> None:
    with stage.client("open") as client:
        body = os.urandom(300_000)
        client.send(get("/no", f"content-length: {len(body)}", method="POST") + body)
        assert client.exactly(len(DENIED)) == DENIED
        assert client.send(get("/yes")).reply() == (200, get("/yes"))
    assert bytes(stage.seen["open"]) == get("/yes")
    assert told(stage, 2) == [("DENIED", "/no", 403), ("ALLOWED", "/yes", 200)]


def test_http10_ends_with_the_reply(stage: Stage) -> None:
    def answer(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the close")

    with stage.client("open", answer) as client:
        assert client.send(get("/yes", version="1.0")).rest() == b"HTTP/1.0 200 OK\r\n\r\nuntil the close"
        assert not client.was_reset
    assert told(stage, 1) == [("ALLOWED", "/yes", 200)]


def test_a_reply_until_the_close_passes_whole_and_ends_in_order(stage: Stage) -> None:
    reply = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + os.urandom(3_000_000)

    def answer(line: Line) -> None:
        line.head()
        line.send(reply)

    with stage.client("open", answer) as client:
        assert client.send(get("/yes")).rest() == reply
        assert not client.was_reset
    assert stage.records(1)[0]["bytesReply"] == len(reply)


def test_a_client_may_half_close_behind_its_request(stage: Stage) -> None:
    def answer(line: Line) -> None:
        request = line.rest()  # to the end: the half-close has to arrive
        line.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(request), request))

    with stage.client("open", answer) as client:
        assert client.send(get("/yes")).end().reply() == (200, get("/yes"))
        assert client.rest() == b""
    assert told(stage, 1) == [("ALLOWED", "/yes", 200)]


def test_a_half_close_behind_pipelined_requests_costs_none_its_reply(stage: Stage) -> None:
    with stage.client("open") as client:
        client.send(get("/yes/1") + get("/no") + get("/yes/2")).end()
        assert [client.reply()[0] for _ in range(3)] == [200, 403, 200]
        assert client.rest() == b""
    stage.records(3)


KEY = base64.b64encode(bytes(16)).decode()
UPGRADE = get("/yes/chat", "connection: Upgrade", "upgrade: websocket", f"sec-websocket-key: {KEY}")
ACCEPT = base64.b64encode(hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: %s\r\n\r\n"
    % ACCEPT
)


def echo_websocket(line: Line) -> None:
    line.head()
    line.send(SWITCH)
    while data := line.sock.recv(65536):
        line.seen += data
        line.send(data)


def test_a_websocket_that_policy_allows_becomes_a_tunnel(stage: Stage) -> None:
    """RFC 6455. The frames are masked noise to us: they pass as they are."""
    with stage.client("open", echo_websocket) as client:
        assert client.send(UPGRADE).head() == SWITCH
        for size in (1, 125, 70_000):
            frame = os.urandom(size)
            assert client.send(frame).exactly(size) == frame
        client.end()
        assert client.rest() == b""
    (record,) = stage.records(1)
    assert (record["status"], record["reason"]) == (101, "rule-matched")
    assert record["bytesReply"] == len(SWITCH) + 70_126


def test_a_denied_upgrade_stays_http(stage: Stage) -> None:
    with stage.client("open") as client:
        client.send(UPGRADE.replace(b"/yes/chat", b"/no/chat"))
        assert client.exactly(len(DENIED)) == DENIED
        assert client.send(get("/yes")).reply()[0] == 200
    assert told(stage, 2) == [("DENIED", "/no/chat", 403), ("ALLOWED", "/yes", 200)]


def test_an_upgrade_that_the_server_declines_stays_http_and_policed(stage: Stage) -> None:
    with stage.client("open") as client:
        client.send(UPGRADE + get("/no"))
        assert client.reply()[0] == 200
        assert client.reply()[0] == 403
    stage.records(2)
    assert bytes(stage.seen["open"]) == UPGRADE


def test_a_client_that_resets_has_its_open_call_recorded(stage: Stage) -> None:
    def never_answer(line: Line) -> None:
        line.rest()

    client = stage.client("open", never_answer).send(get("/yes"))
    eventually(lambda: bytes(stage.seen["open"]) == get("/yes"), "the server has the request")
    client.reset()
    (record,) = stage.records(1)
    assert (record["status"], record["reason"]) == ("reset", "client-reset")


def test_a_client_that_is_refused_while_it_sends_a_long_body_can_still_read_the_refusal(stage: Stage) -> None:
    """It has to wait with the rest of the body, and is not reset: that would take the refusal away."""

    def refuse(line: Line) -> None:
        line.head()
        line.send(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno").rest()

    with stage.client("open", refuse) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.send(get("/yes", "content-length: 100000000", method="PUT"))
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.send(bytes(100_000_000))
        assert client.reply() == (401, b"no")
    assert told(stage, 1) == [("ALLOWED", "/yes", 401)]


@pytest.mark.skipif(os.environ.get("SLUICE_SOAK") != "1", reason="takes HEAD_TIMEOUT; unit tests cover it: SLUICE_SOAK=1")
def test_a_dripping_head_is_refused_after_its_time(stage: Stage) -> None:
    with stage.client("open") as client:
        client.sock.settimeout(1.0)
        answer = b""
        client.send(b"GET /yes HTTP/1.1\r\nx: ")
        for _ in range(int(HEAD_TIMEOUT) + 5):
            client.send(b"y")
            try:
                answer = client.sock.recv(1000)
                break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert stage.records(1)[0]["reason"] == "client-timeout"
