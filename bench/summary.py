"""From samples to medians, ratios and the product's targets. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """The values of one scenario on one contender in one round."""

    round: int
    layout: str
    contender: str
    scenario: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """One metric of one contender over all rounds."""

    median: float
    low: float
    high: float
    rounds: int


# (layout, scenario, metric, contender)
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Target:
    """What `contender` promises: `limit` bounds the ratio to `peer`, or the figure itself when `peer` is None."""

    contender: str
    text: str
    scenario: str
    metric: str
    peer: str | None
    limit: float
    at_least: bool
    layouts: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """A target in one layout, and what was measured; `met` is None when a figure is missing."""

    target: str
    layout: str
    measured: float | None
    met: bool | None


def summarise(samples: Iterable[Sample]) -> dict[Key, Figure]:
    """Median and spread of each metric, in the order in which the samples first named them."""
    series: dict[Key, list[float]] = {}
    for sample in samples:
        for metric, value in sample.values.items():
            series.setdefault((sample.layout, sample.scenario, metric, sample.contender), []).append(value)
    return {key: figure(values) for key, values in series.items()}


def figure(values: Sequence[float]) -> Figure:
    """Median, smallest and largest of at least one value."""
    return Figure(median(values), min(values), max(values), len(values))


def ratio(figures: Mapping[Key, Figure], key: Key, peer: str) -> float | None:
    """The median of `key` divided by the median of `peer` in the same place; None when there is none or it is zero."""
    own, other = figures.get(key), figures.get((*key[:3], peer))
    return own.median / other.median if own and other and other.median else None


def judge(figures: Mapping[Key, Figure], targets: Iterable[Target]) -> list[Verdict]:
    """Each target in each of its layouts."""
    verdicts = []
    for target in targets:
        for layout in target.layouts:
            key = (layout, target.scenario, target.metric, target.contender)
            own = figures.get(key)
            own_median = own.median if own else None
            measured = ratio(figures, key, target.peer) if target.peer else own_median
            verdicts.append(
                Verdict(
                    f"{target.contender}: {target.text}",
                    layout,
                    measured,
                    None if measured is None else _meets(measured, target),
                )
            )
    return verdicts


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The same items, starting `by` places later: over the rounds everyone goes first as often as anyone."""
    shift = by % len(items) if items else 0
    return [*items[shift:], *items[:shift]]


def _meets(measured: float, target: Target) -> bool:
    return measured >= target.limit if target.at_least else measured <= target.limit
