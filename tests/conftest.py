"""What all tests share: by which way the agents of the end-to-end tests let allowed calls travel."""

import pytest

from tests.harness import Sluice


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--datapath", choices=("relay", "kernel"), default="relay", help="how allowed calls travel in the end-to-end tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    Sluice.datapath = config.getoption("--datapath")
