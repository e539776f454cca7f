"""The matrix of real programs: what they send and read through the agent is what they send and read without it.

Rows are programs (``servers.py``, ``clients.py``: one small adapter each), columns are conversations (``calls.py``: bodies of
eight sizes, up and down, with a length and chunked, on the first, the second and the last of many calls of a connection; slow
readers; refusals). Every body is compared by its digest and every call has its one, right record.

    pytest tests/programs                          # a third of the programs: as CI does
    SLUICE_SOAK=1 pytest tests/programs            # all of them
    pytest tests/programs --datapath kernel -k nginx
    pytest -m "not programs"                       # everything else
    SLUICE_PROGRAMS_DIRECT=1 pytest tests/programs -k "not denied"   # without an agent: is it the program itself?

``make programs`` installs and builds what they need; what is missing is skipped with the reason. One agent serves all of them
(``town.py``). Kafka's clients and broker have their own matrix: ``tests/e2e/test_kafka_*.py`` and ``tests/kafka``.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.programs.clients import Client
from tests.programs.content import SIZES
from tests.programs.servers import Program
from tests.programs.town import Town
from tests.requirements import require_bpf

SOAK = os.environ.get("SLUICE_SOAK") == "1"


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    require_bpf()
    with contextlib.ExitStack() as stack:
        yield Town(stack, tmp_path_factory.mktemp("town"))


def need(program: Program | Client) -> None:
    """Skip, with the reason, what is not to run or cannot."""
    if not (SOAK or program.quick):
        pytest.skip("of all programs CI runs a third: SLUICE_SOAK=1")
    if reason := program.missing():
        pytest.skip(reason)


def which(size: int) -> tuple[int, ...]:
    """The calls of a connection that have a body of this size."""
    if SOAK or size == 2_000:
        return 1, 2, 100
    return (2,) if size == SIZES[-1] else (1, 2, 3)
