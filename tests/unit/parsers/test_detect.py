"""Which protocol a connection's first bytes belong to."""

import pytest

from parsers.detect import DETECT_MAX, detect

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize(
    ("first_bytes", "protocol"),
    [
        (b"GET ", "http/1.1"),
        (b"DELETE /x", "http/1.1"),
        (b"\r\nGET / HTTP/1.1", "http/1.1"),
        (b"PURGE /x", "http/1.1"),
        (b"OPTIONS * HTTP/1.1", "http/1.1"),
        (b"CONNECT a:443", "http/1.1"),
        (b"GET http://a/", "http/1.1"),
        (b"PROPFIND HTTP://a/", "http/1.1"),
        (b"get / HTTP/1.1", "http/1.1"),  # so that it is refused with a reason
        (b"PRI * HTTP/1.1\r\n", "http/1.1"),
        (PREFACE, "http/2"),
        (PREFACE + b"\x00\x00\x00\x04", "http/2"),
        (b"\x16\x03\x01\x02\x00", "unknown"),
        (b"\x00\x00\x00\x1a\x00\x12\x00\x03", "unknown"),
        (b"EHLO mail.example\r\n", "unknown"),
        (b"SET a b\r\n", "unknown"),
        (b"*1\r\n$4\r\nPING\r\n", "unknown"),
        (b"SSH-2.0-OpenSSH_for_Windows_8.1\r\n", "unknown"),
        (b"AMQP\x00\x00\x09\x01", "unknown"),
        (b"USER anonymous\n", "unknown"),
        (b"\r\n\x00", "unknown"),
        # What nginx and others take for a request, or answer without closing.
        (b" GET / HTTP/1.1", "http/1.1"),
        (b"\nGET / HTTP/1.1", "http/1.1"),
        (b"\r\n" * 40 + b"GET /", "http/1.1"),
        (b"\n" * DETECT_MAX, "http/1.1"),
        (b"A" * 40 + b" / HTTP/1.1", "http/1.1"),
        (b"A" * DETECT_MAX, "http/1.1"),
        (b"FOO  / HTTP/1.1", "http/1.1"),
        (b"FOO\t/ HTTP/1.1", "http/1.1"),
        (b"GET\t/ HTTP/1.1", "http/1.1"),
        (b"FOO ws://host/ HTTP/1.1\r\n", "http/1.1"),
        (b"FOO caf\xe9 http/1.0\n", "http/1.1"),
        (b"DESCRIBE foo://a/", "http/1.1"),
        (b"FOO %2fa", "http/1.1"),
        (b"GET\x1c/admin", "http/1.1"),
        (b"GET\xa0", "http/1.1"),
        (b"GET\0", "http/1.1"),
        (b"GET\r/", "http/1.1"),
        (b"PROXY TCP4 127.0.0.1", "proxy"),
        (b"\r\n\r\n\0\r\nQUIT\n", "proxy"),
        (b"CONNECT\naccept-version:1.2\n", "unknown"),  # STOMP
    ],
)
def test_the_first_bytes_tell_the_protocol(first_bytes: bytes, protocol: str) -> None:
    assert detect(first_bytes, False) == protocol


@pytest.mark.parametrize(
    "first_bytes", [b"", b"\r", b"\r\n", b"\r\r", b"FOO a:", b"G", b"GET", b"GET\r", b"PURGE ", b"PURGE ht", b"\r\n\r\n\0"]
)
def test_too_few_bytes_tell_nothing_until_the_end(first_bytes: bytes) -> None:
    assert detect(first_bytes, False) is None
    assert detect(first_bytes, True) == "unknown"


@pytest.mark.parametrize(
    "first_bytes", [b"PRI * HT", PREFACE[:-1], b"FOO bar HTTP/1.1", b"X" * DETECT_MAX, b"\n" * DETECT_MAX, b" " * 2000]
)
def test_what_could_be_a_request_is_one_also_at_the_end(first_bytes: bytes) -> None:
    """Several servers read a line that the connection's end ends."""
    assert detect(first_bytes, True) == "http/1.1"


@pytest.mark.parametrize(
    "stream",
    [
        b"\r\n\r\nFOO x://a HTTP/1.1\r\nabc",
        b"FOO bar\r\nbaz",
        b"\n" * (DETECT_MAX + 10),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\nPROPFIND /aaaaaaaaaaaaa",
        PREFACE,
        PREFACE[:-1] + b"x",
        b"\r\n\r\n\0\r\nQUIT\n\x20",
        b"\r\n\r\n\0\r\nQUIET",
        b"GET\r/admin",
        b"GET\r\n",
        b"\xa0GET\x1c/admin",
        b"EHLO mail.example\r\nabcdef",
        b"A" * 30,
    ],
)
def test_more_bytes_never_change_an_answer(stream: bytes) -> None:
    answers = [detect(stream[:length], False) for length in range(len(stream) + 1)]
    decided = [answer for answer in answers if answer is not None]
    assert answers == [None] * (len(answers) - len(decided)) + decided[:1] * len(decided)
