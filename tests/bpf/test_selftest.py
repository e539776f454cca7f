"""The self-test of the kernel path: what it says of this kernel, and of kernels that are worse."""

import os
import socket
from pathlib import Path

import pytest

from bpf.loader import Object
from proxy import selftest
from proxy.reading import Right
from proxy.wheel import Ring


def test_this_kernel_does_what_the_kernel_path_needs() -> None:
    assert selftest.kernel_path().missing is None


def test_one_run_tells_all_of_reading() -> None:
    """What is right on every kernel so far. What is not, test_kernel_traps.py shows with connections of the agent."""
    reading = selftest.kernel_path().reading
    assert reading is not None
    assert reading.fionread.carried
    assert {reading.peek, reading.poll, reading.epoll_level, reading.epoll_edge} == {Right(True, True)}
    assert {reading.low_water.tcp, reading.wait_all.tcp, reading.splice.tcp} == {True}


def test_it_leaves_nothing_behind() -> None:
    selftest.kernel_path()
    before = sorted(os.listdir("/proc/self/fd"))
    selftest.kernel_path()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_missing_object_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "object_file", lambda name: Path("/nowhere") / name)
    assert selftest.kernel_path().missing == "/nowhere/verdict is missing: build it with make bpf"


def test_another_kind_of_processor_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is published by plain stores from Python, which needs barriers elsewhere than on x86-64."""
    monkeypatch.setattr(selftest.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(selftest, "_Bench", None)
    assert selftest.kernel_path().missing == "the kernel path has been tried on x86-64 only"


def test_a_kernel_that_counts_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 12: receivers' memory is counted since 6.1.123, 6.12.8 and 6.13 only."""
    monkeypatch.setattr(selftest._Bench, "_waiting", lambda _: 0)
    assert selftest.kernel_path().missing == "what waits for a receiver is not counted, so nothing would slow its sender down"


def test_a_kernel_that_carries_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "PATIENCE", 0.1)
    monkeypatch.setattr(Object, "attach_to_sockets", lambda *_: None)
    assert selftest.kernel_path().missing is not None


def test_a_kernel_that_sees_no_sockets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Object, "attach", lambda *_: 0)
    assert selftest.kernel_path().missing == "sockets are not put into the map as they connect"


def test_a_kernel_that_lets_memory_change_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 13: what is read must be what was judged."""

    def send(bench: selftest._Bench, body: bytes) -> None:
        bench._client.sendall(selftest._REQUEST + body)

    real = selftest._receive
    monkeypatch.setattr(selftest._Bench, "_send", send)
    monkeypatch.setattr(selftest, "_receive", lambda sock, length: real(sock, length).replace(b"POST /a", b"POST /b"))
    assert selftest.kernel_path().missing == "the receiver reads other bytes than those that were judged"


def test_a_call_without_a_record_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "take", lambda _, most: [])
    assert selftest.kernel_path().missing == "a call leaves no record"


def test_it_is_right_beside_connections_of_others() -> None:
    """Its programs see every socket of our cgroup for a moment: others go on as before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server = listener.accept()[0]
    with client, server:
        assert selftest.kernel_path().missing is None
        client.sendall(b"x")
        assert server.recv(1) == b"x"
