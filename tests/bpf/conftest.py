"""Fixtures of the tests that load the hooks into the running kernel."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.bpf.kernel_rig import KernelRig
from tests.bpf.namespace import Namespace
from tests.bpf.rig import Rig
from tests.requirements import require_bpf


@pytest.fixture(autouse=True)
def _needs_bpf() -> None:
    require_bpf()


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs with options; they are gone after the test."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: str, **options: int) -> Rig:
            made = Rig(*arguments, **options)  # type: ignore[arg-type]
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture
def path() -> Iterator[KernelRig]:
    """The programs of both objects, attached, with a heart that beats."""
    with contextlib.closing(KernelRig()) as made:
        yield made.start()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    with contextlib.ExitStack() as stack:
        stack.callback(made.close)
        made.open()
        yield made
