"""`python -m bench.kafka_table RESULT.json`: the figures of Kafka as the Markdown table of docs/benchmarks.md."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import kafka_run
from bench.scenarios import METRICS

NAMES = [contender.name for contender in kafka_run.CONTENDERS]
COMPARED = NAMES[1:]
ROWS = ("write", "write_p99", "read", "paced_p99", "write_cpu", "read_cpu", "write_by_kernel", "read_by_kernel")


def table(document: Mapping[str, Any]) -> list[str]:
    """The lines of the table: a cell is the median with the lowest and the highest; "-" where there is nothing."""
    places: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for figure in document["figures"]:
        places.setdefault((figure["scenario"], figure["layout"], figure["metric"]), {})[figure["contender"]] = figure
    head = ["client, records", "layout", "", *NAMES, *(f"{name} : direct" for name in COMPARED)]
    lines = [_line(head), "|---" * len(head) + "|"]
    for scenario in kafka_run.SCENARIOS:
        for layout in scenario.layouts:
            for metric in ROWS:
                if found := places.get((scenario.title, layout, metric)):
                    ratios = [_ratio(found.get(name)) for name in COMPARED]
                    label = f"{scenario.client}, {scenario.size:,} B"
                    lines.append(
                        _line([label, layout, METRICS[metric].title, *(_cell(found.get(n), metric) for n in NAMES), *ratios])
                    )
    return lines


def _cell(figure: Mapping[str, Any] | None, metric: str) -> str:
    if figure is None:
        return "-"
    digits = 0 if figure["median"] >= 100 else METRICS[metric].digits
    return f"{figure['median']:,.{digits}f} ({figure['low']:,.{digits}f} to {figure['high']:,.{digits}f})"


def _ratio(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None or figure["x_direct"] is None else f"{figure['x_direct']:.2f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table(json.loads(Path(sys.argv[1]).read_text()))))
