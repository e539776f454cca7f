"""Fixtures of the end-to-end tests: two workloads, a server, and agents that clean up behind themselves."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Server, Sluice, Workload, answer_http
from tests.requirements import require_bpf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for only in item.iter_markers("only"):
            datapath, because = only.args
            if datapath != Sluice.datapath:
                item.add_marker(pytest.mark.skip(reason=f"runs with --datapath {datapath}: {because}"))


@pytest.fixture(autouse=True)
def _needs_bpf() -> None:
    require_bpf()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def workload(stack: contextlib.ExitStack) -> Callable[..., Workload]:
    """Makes a workload that is gone after the test."""

    def make(role: str, labels: dict[str, str] | None = None) -> Workload:
        made = Workload(role, labels)
        stack.callback(made.close)
        return made

    return make


@pytest.fixture
def web(workload: Callable[..., Workload]) -> Workload:
    return workload("web")


@pytest.fixture
def orders(workload: Callable[..., Workload]) -> Workload:
    return workload("orders")


@pytest.fixture
def serve(stack: contextlib.ExitStack) -> Callable[..., Server]:
    """Makes a server in a thread; by default one that answers every HTTP request with 200."""

    def make(
        workload: Workload | None, handler: Callable[[socket.socket], None] = answer_http, host: str = "127.0.0.1"
    ) -> Server:
        server = Server(workload, handler, host)
        stack.callback(server.close)
        return server

    return make


@pytest.fixture
def sluice(stack: contextlib.ExitStack, tmp_path: Path) -> Callable[..., Sluice]:
    """Starts an agent with documents and options; it is stopped after the test."""

    def start(documents: str, *options: str) -> Sluice:
        return stack.enter_context(Sluice(tmp_path, documents, *options))

    return start
