"""The table of docs/benchmarks.md is made of the figures of one result."""

from typing import Any

from bench.kafka_run import SCENARIOS
from bench.kafka_table import table


def figure(contender: str, median: float, x_direct: float | None, metric: str = "write", **other: Any) -> dict[str, Any]:
    place = {"layout": "unpinned", "scenario": SCENARIOS[0].title, "metric": metric, "contender": contender}
    return place | {"median": median, "low": median / 2, "high": median * 2, "x_direct": x_direct} | other


def test_a_row_has_medians_spreads_and_ratios_to_direct() -> None:
    document = {"figures": [figure("direct", 50.0, 1.0), figure("sluice", 40.0, 0.8)]}
    assert table(document)[2:] == [
        "| java, 100 B | unpinned | produce, MB/s | 50.0 (25.0 to 100.0) | 40.0 (20.0 to 80.0) | - | 0.80 | - |"
    ]


def test_large_figures_have_no_decimals() -> None:
    assert "| 1,234 (617 to 2,469) |" in table({"figures": [figure("direct", 1234.4, 1.0)]})[2]


def test_figures_of_other_parts_are_left_out() -> None:
    document = {"figures": [figure("direct", 1.0, 1.0, scenario="keep-alive, 1 connection")]}
    assert len(table(document)) == 2


def test_every_line_has_as_many_cells_as_the_head() -> None:
    lines = table({"figures": [figure("kernel", 99.5, None, metric="read_by_kernel")]})
    assert len({line.count("|") for line in lines}) == 1
