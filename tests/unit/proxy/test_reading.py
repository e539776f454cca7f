"""The ways to read a socket: on one like any other all are right, and what is wrong is seen. tests/bpf has those in a map."""

import socket
from collections.abc import Callable, Iterator
from time import sleep

import pytest

from proxy import reading
from proxy.reading import CALLS, Right, reading_calls, try_blocking, try_calls

MESSAGE = bytes(1000)


class Both:
    """The two ends of a connection over loopback."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender, self.receiver = sender, receiver

    def give(self) -> bytes:
        self.sender.sendall(MESSAGE)
        sleep(0.001)  # over loopback it is there already
        return MESSAGE


@pytest.fixture
def both() -> Iterator[Both]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver = listener.accept()[0]
        with receiver:
            receiver.settimeout(5)
            yield Both(sender, receiver)


QUEUES = [name for name in CALLS if name != "blocking"]


def test_a_socket_in_no_map_is_read_right_by_every_call_and_left_as_it_was(both: Both) -> None:
    assert try_calls(both.receiver, both.give) == dict.fromkeys(QUEUES, True)
    assert both.receiver.gettimeout() == 5
    both.sender.sendall(b"x")
    assert both.receiver.recv(2) == b"x", "nothing is left"


@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("fionread", ("_unread", lambda _: 0)),
        ("poll", ("_is_silent", lambda _: True)),
        ("low_water", ("_is_silent", lambda _: False)),
        ("wait_all", ("monotonic", lambda: 0.0)),
    ],
)
def test_a_wrong_answer_is_seen(
    both: Both, name: str, breaks: tuple[str, Callable[..., object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, *breaks)
    assert not try_calls(both.receiver, both.give)[name]


def test_a_queue_that_stays_empty_is_wrong_for_every_call(both: Both) -> None:
    """As bytes that a kernel has lost."""
    assert try_calls(both.receiver, lambda: MESSAGE) == dict.fromkeys(QUEUES, False)


def test_a_blocking_read_is_told_of_a_reset(both: Both) -> None:
    def reset() -> None:
        both.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        both.sender.close()

    assert try_blocking(both.receiver, reset)


def test_a_blocking_read_that_ends_with_anything_else_is_wrong(both: Both) -> None:
    assert not try_blocking(both.receiver, lambda: both.sender.sendall(b"x"))


@pytest.mark.parametrize("name", QUEUES)
def test_each_call_and_each_kind_of_bytes_is_told_by_itself(name: str) -> None:
    right = dict.fromkeys(QUEUES, True)
    assert reading_calls(right, right, True).wrong() == ()
    assert reading_calls(right, right, False).wrong() == ("blocking",)
    for carried, tcp in ((False, True), (True, False), (False, False)):
        found = reading_calls(right | {name: carried}, right | {name: tcp}, True)
        assert found.wrong() == (() if carried else (name,)), "nothing comes by TCP to a socket in the map"
        assert getattr(found, name) == Right(carried, tcp)
