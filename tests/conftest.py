"""What all tests share: by which way the agents of the end-to-end tests let allowed calls travel, and kept bytecode."""

import os
import sys

import pytest

from tests.harness import Sluice


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--datapath",
        choices=("relay", "kernel", "auto"),
        default="relay",
        help="how allowed calls travel in the end-to-end tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    Sluice.datapath = config.getoption("--datapath")
    # Agents and clients are started by the hundred: each would compile all of the source again, half of what its start costs.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
