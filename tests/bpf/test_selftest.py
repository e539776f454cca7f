"""The self-test of the kernel path: what it says of this kernel, and of kernels that are worse."""

import fcntl
import os
import socket
import termios
from array import array
from pathlib import Path

import pytest

from bpf.loader import Object
from proxy import selftest
from proxy.wheel import Ring


def test_this_kernel_does_what_the_kernel_path_needs() -> None:
    assert selftest.kernel_path() is None


def test_it_tells_whether_unread_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """FIONREAD of bytes in the queue of a socket in the map: all of them, or fewer."""
    answers = {}
    whole = len(selftest._REQUEST) + selftest._BODY
    for told in (whole, whole - 1, 0):
        monkeypatch.setattr(selftest._Bench, "unread_bytes", lambda _, told=told: told)
        answers[told] = selftest.counts_unread_bytes()
    assert answers == {whole: True, whole - 1: False, 0: False}


def test_it_tries_with_a_socket_that_is_in_the_map() -> None:
    """Carried bytes are counted on 6.18.44, those that came over TCP are not: nothing but the end comes to it that way."""
    whole = len(selftest._REQUEST) + selftest._BODY
    with selftest._Bench() as bench:
        in_map = bench.unread_bytes()
        assert bench._server.recv(1 << 20)
        bench._up.sendall(b"12345")
        assert bench._server.recv(1, socket.MSG_PEEK) == b"1"
        over_tcp = _unread(bench._server)
        bench._client.sendall(b"12345")  # its own end is in no map
        assert bench._down.recv(1, socket.MSG_PEEK) == b"1"
        assert _unread(bench._down) == 5
    assert (in_map, over_tcp) in ((whole, 0), (whole, 5), (0, 5))


def _unread(sock: socket.socket) -> int:
    told = array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, told)
    return told[0]


def test_it_leaves_nothing_behind() -> None:
    selftest.kernel_path()
    before = sorted(os.listdir("/proc/self/fd"))
    selftest.kernel_path()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_missing_object_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "object_file", lambda name: Path("/nowhere") / name)
    assert selftest.kernel_path() == "/nowhere/verdict is missing: build it with make bpf"


def test_another_kind_of_processor_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is published by plain stores from Python, which needs barriers elsewhere than on x86-64."""
    monkeypatch.setattr(selftest.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(selftest, "_Bench", None)
    assert selftest.kernel_path() == "the kernel path has been tried on x86-64 only"


def test_a_kernel_that_counts_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 12: receivers' memory is counted since 6.1.123, 6.12.8 and 6.13 only."""
    monkeypatch.setattr(selftest._Bench, "_waiting", lambda _: 0)
    assert selftest.kernel_path() == "what waits for a receiver is not counted, so nothing would slow its sender down"


def test_a_kernel_that_carries_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "PATIENCE", 0.1)
    monkeypatch.setattr(Object, "attach_to_sockets", lambda *_: None)
    assert selftest.kernel_path() is not None


def test_a_kernel_that_sees_no_sockets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Object, "attach", lambda *_: 0)
    assert selftest.kernel_path() == "sockets are not put into the map as they connect"


def test_a_kernel_that_lets_memory_change_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 13: what is read must be what was judged."""

    def send(bench: selftest._Bench, body: bytes) -> None:
        bench._client.sendall(selftest._REQUEST + body)

    real = selftest._receive
    monkeypatch.setattr(selftest._Bench, "_send", send)
    monkeypatch.setattr(selftest, "_receive", lambda sock, length: real(sock, length).replace(b"POST /a", b"POST /b"))
    assert selftest.kernel_path() == "the receiver reads other bytes than those that were judged"


def test_a_call_without_a_record_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "take", lambda _, most: [])
    assert selftest.kernel_path() == "a call leaves no record"


def test_it_is_right_beside_connections_of_others() -> None:
    """Its programs see every socket of our cgroup for a moment: others go on as before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server = listener.accept()[0]
    with client, server:
        assert selftest.kernel_path() is None
        client.sendall(b"x")
        assert server.recv(1) == b"x"
