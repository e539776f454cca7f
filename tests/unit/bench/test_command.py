"""The command line of the bench: what is chosen by names and patterns."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench.__main__ import SCENARIO_NAMES, chosen, main


def test_names_and_patterns_choose_in_the_order_of_measuring() -> None:
    assert chosen(["memory", "upload", "kafka-java-100", "kafka-java-1000"], "kafka-*,memory") == [
        "memory",
        "kafka-java-100",
        "kafka-java-1000",
    ]


def test_a_name_is_not_the_beginning_of_others() -> None:
    assert chosen(["kafka-java-100", "kafka-java-1000"], "kafka-java-100") == ["kafka-java-100"]


@pytest.mark.parametrize("text", ["nothing", "memory,kafka-?", ""])
def test_a_pattern_that_chooses_nothing_is_a_mistake_that_names_what_there_is(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"known: memory, kafka-java-100"):
        chosen(["memory", "kafka-java-100"], text)


def test_help_names_every_scenario() -> None:
    text = CliRunner().invoke(main, ["--help"], terminal_width=2000).output
    assert all(name in text for name in SCENARIO_NAMES)


def test_a_mistake_is_found_before_anything_starts(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--scenarios", "kafka-cobol-*", "--out", str(tmp_path / "out.json")])
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())
