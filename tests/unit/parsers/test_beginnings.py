"""No beginning that a real server executes passes as unknown. Servers that are not installed are left out."""

import io
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from parsers.detect import Watch, detect
from tests.clients.beginnings import OTHERS, beginnings

BEGINNINGS = beginnings()


def fate(data: bytes, cuts: list[int]) -> tuple[str, int]:
    """What becomes of a beginning that arrives in pieces: it is read as HTTP, or passes, all of it or up to a byte."""
    places = [0, *cuts, len(data)]
    found = None
    for at in places[1:]:
        found = detect(data[:at], at == len(data))
        if found is not None:
            break
    if found != "unknown":
        return "read", 0
    watch = Watch()
    for start, stop in pairwise([0, *[place for place in places if place >= at]]):
        byte = watch.read(data[start:stop])
        if byte is not None:
            return "stopped", start + byte
        if watch.over:
            return "passed", 0
    return "passed", 0


class Executed(Exception):  # noqa: N818 - not an error: what a handler says
    pass


class Handler(BaseHTTPRequestHandler):
    """http.server as it is, on a file instead of a socket; and as wsgiref has it, with a handler for every method."""

    any_method = False

    def __init__(self, data: bytes) -> None:
        self.rfile = io.BytesIO(data)
        self.wfile = io.BytesIO()
        self.client_address = ("", 0)
        self.close_connection = True
        while True:
            self.handle_one_request()
            if self.close_connection:
                break

    def __getattr__(self, name: str) -> Any:
        if name in ("do_GET", "do_POST") or (self.any_method and name.startswith("do_")):
            raise Executed
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        pass


class AnyMethod(Handler):
    any_method = True


@pytest.mark.parametrize("handler", [Handler, AnyMethod])
def test_what_pythons_own_server_executes_is_not_unknown(handler: type[Handler]) -> None:
    executed = 0
    for name, data in BEGINNINGS.items():
        try:
            handler(data)
        except Executed:
            executed += 1
            assert fate(data, [])[0] != "passed", name
    assert executed > 150


# What other servers were seen to execute, one of each kind.
EXECUTED = {
    "Java takes any method, and any version": b"\x16\x03\x01 /admin x\r\n\r\n",
    "Java takes line feeds for a part of the method": b"X\nGET /admin HTTP/1.1\r\n\r\n",
    "Java takes a method of any length": b"\x16" + b"a" * 100_000 + b" /admin x\r\n\r\n",
    "Java decodes the target": b"\x16 %2fadmin x\r\n\r\n",
    "Java takes any scheme": b"\x16 a-b.c+d://a/admin x\r\n\r\n",
    "Java skips empty lines": b"\r\n\x16 /admin x\r\n\r\n",
    "WEBrick takes any method, and no version": b"\x16\x03\x01\t/admin\n",
    "WEBrick splits at a carriage return": b"GET\r/admin HTTP/1.1\r\n\r\n",
    "waitress takes any target, and no version": b"EHLO x\r\n\r\n",
    "waitress takes any target in front of fields": b"EHLO x\r\nHost: a\r\n\r\n",
    "Node.js takes RTSP, and no version": b"DESCRIBE foo://a/admin\r\n\r\n",
    "http.server splits at what Unicode calls a space": b"\xa0GET\x1c/admin\x85HTTP/1.1\r\n\r\n",
    "http.server takes no version": b"\x1c" * 9000 + b"GET\x1c/admin",
    "cheroot takes any method": b"\x16\x03\x01 /admin HTTP/1.1\r\n\r\n",
    "servers skip empty lines": b"\r\n" * 2000 + b"GET /admin HTTP/1.1\r\n\r\n",
    "a long line that ends with the connection": b"X" * 2000 + b" /admin HTTP/1.1",
    "servers behind a proxy": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /admin HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", EXECUTED)
def test_what_other_servers_execute_is_not_unknown(name: str) -> None:
    kind, at = fate(EXECUTED[name], [])
    assert kind != "passed"
    assert at < len(EXECUTED[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_protocols_pass(name: str) -> None:
    assert fate(OTHERS[name], []) == ("passed", 0)
    assert fate(OTHERS[name], list(range(1, len(OTHERS[name])))) == ("passed", 0)


def test_any_split_has_the_same_fate() -> None:
    chance = Random(1)
    for name, data in (BEGINNINGS | EXECUTED | OTHERS).items():
        if len(data) > 3000:
            continue
        whole = fate(data, [])
        assert fate(data, list(range(1, len(data)))) == whole, name
        assert fate(data, sorted(chance.sample(range(1, len(data)), min(3, len(data) - 1)))) == whole, name


class TestWatch:
    def test_it_is_over_with_the_first_lines(self) -> None:
        watch = Watch()
        assert watch.read(b"EHLO x\r\n") is None
        assert not watch.over  # field lines may follow
        assert watch.read(b"STARTTLS\r\n") is None
        assert watch.over

    def test_it_is_over_sometime_whatever_comes(self) -> None:
        watch = Watch()
        for _ in range(16):
            assert watch.read(b"\x16" * 65536) is None
        assert watch.over

    def test_it_keeps_little(self) -> None:
        watch = Watch()
        for _ in range(1000):
            watch.read(b"\x16 x" * 100)
        kept = [getattr(watch, name) for name in Watch.__slots__]
        assert sum(len(value) for value in kept if isinstance(value, bytes)) < 3000

    def test_requests_behind_the_first_lines_are_the_tunnels(self) -> None:
        """What a server reads behind other words is another protocol's business, as what is in TLS is."""
        watch = Watch()
        assert watch.read(b"one\r\ntwo\r\nGET / HTTP/1.1\r\n\r\n") is None
