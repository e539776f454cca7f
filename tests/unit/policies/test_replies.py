"""Reply heads whose end the kernel finds by itself: framing only."""

import pytest

from policies import heads
from policies.heads import Proof, run
from policies.replies import FIELD_LINE_MIN, reply_table

TABLE = reply_table()


def head(status: str = "200 OK", *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def accepts(*lines: str, status: str = "200 OK") -> bool:
    return run(TABLE, head(status, *lines)) is not None


class TestProof:
    def test_it_has_the_status_and_the_length_of_the_body(self) -> None:
        data = head("404 Not Found", "Content-Length: 17")
        assert run(TABLE, data + b"x" * 17) == Proof(len(data), 17, False, 404, False)

    def test_a_head_that_says_nothing_of_a_body_is_bare(self) -> None:
        assert run(TABLE, head()) == Proof(len(head()), 0, False, 200, True)

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "204", "304"])
    def test_some_replies_never_have_a_body(self, status: str) -> None:
        assert run(TABLE, head(status)) == Proof(len(head(status)), 0, True, int(status[:3]), False)

    def test_a_304_may_say_how_long_the_body_would_be(self) -> None:
        data = head("304 Not Modified", "Content-Length: 17")
        assert run(TABLE, data) == Proof(len(data), 0, True, 304, False)

    def test_a_head_that_is_not_complete_is_not_proven(self) -> None:
        data = head("200 OK", "Content-Length: 5", "Server: x")
        assert all(run(TABLE, data[:end]) is None for end in range(len(data)))

    def test_a_head_that_is_too_long_is_not_proven(self) -> None:
        spare = heads.HEAD_PROOF_MAX - len(head("200 OK", "Server: "))
        assert accepts("Server: " + "x" * spare)
        assert not accepts("Server: " + "x" * (spare + 1))


class TestGrammar:
    @pytest.mark.parametrize("status", ["200 OK", "200 ", "200", "599 \xe9 \t", "204", "999 x"])
    def test_status_lines(self, status: str) -> None:
        assert accepts(status=status)

    @pytest.mark.parametrize("status", ["100 Continue", "101 x", "199 x", "099 x", "20 x", "2000 x", "200\tOK", "200 \x00", ""])
    def test_status_lines_that_are_for_the_proxy(self, status: str) -> None:
        assert not accepts("Content-Length: 0", status=status)

    @pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b" HTTP/1.1", b"ICY", b""])
    def test_versions_that_are_for_the_proxy(self, version: bytes) -> None:
        assert run(TABLE, head("200 OK", "Content-Length: 0").replace(b"HTTP/1.1", version)) is None

    @pytest.mark.parametrize(
        "line",
        [
            "content-length:5",
            "CONTENT-LENGTH:   5",
            "Content-Length: " + "9" * heads.LENGTH_DIGITS,
            "Connection: keep-alive",
            "connection:Keep-Alive",
            "Server: \xe9\t",
            "Keep-Alive: timeout=5",
            "Content-Lengths: x",
            "Connections: close",
            "Upgrades: websocket",
            "Server: x",
        ],
    )
    def test_field_lines(self, line: str) -> None:
        assert accepts(line)

    @pytest.mark.parametrize(
        "line",
        [
            "Content-Length: ",
            "Content-Length: 5 ",
            "Content-Length:\t5",
            "Content-Length: +5",
            "Content-Length: 5, 5",
            "Content-Length : 5",
            "Content-Length: " + "9" * (heads.LENGTH_DIGITS + 1),
            "Transfer-Encoding: chunked",
            "Upgrade: websocket",
            "Connection: close",
            "Connection: keep-alive, close",
            "Connection: ",
            "Connection: keep-alive ",
            "Server: x\x00",
            "Server: x\x7f",
            "Server: x\n",
            " folded: line",
            ": no name at all",
            "no-colon-at-all",
            "bad name: value",
        ],
    )
    def test_field_lines_that_are_for_the_proxy(self, line: str) -> None:
        assert not accepts(line)
        assert not accepts("Server: nginx", line)

    def test_a_second_length_is_for_the_proxy_equal_or_not(self) -> None:
        for status in ("200 OK", "304 Not Modified"):
            assert not accepts("Content-Length: 5", "content-length: 5", status=status)
        assert not accepts("Content-Length: 5", status="204 No Content")

    def test_a_short_field_line_is_for_the_proxy(self) -> None:
        line = "x" * (FIELD_LINE_MIN - len(":\r\n"))
        assert accepts(f"{line}:")
        assert not accepts(f"{line[1:]}:")
        assert accepts(f"a:{line[1:]}")
        assert not accepts(f"a:{line[2:]}")
