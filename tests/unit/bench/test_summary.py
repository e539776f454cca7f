"""Medians, ratios and targets."""

import pytest

from bench.summary import Figure, Sample, Target, figure, judge, ratio, rotated, summarise


def samples(contender: str, *rates: float) -> list[Sample]:
    return [Sample(number, "split", contender, "load", {"rate": rate}) for number, rate in enumerate(rates)]


def target(peer: str | None, limit: float, at_least: bool = True) -> Target:
    return Target("sluice", "promise", "load", "rate", peer, limit, at_least, ("split",))


def test_a_figure_is_the_median_and_the_whole_spread() -> None:
    assert figure([3.0, 1.0, 100.0]) == Figure(median=3.0, low=1.0, high=100.0, rounds=3)


def test_an_even_number_of_rounds_has_the_middle_of_the_middle_two() -> None:
    assert figure([1.0, 2.0, 4.0, 100.0]).median == 3.0


def test_samples_of_different_places_are_not_mixed() -> None:
    other_layout = Sample(0, "one-cpu", "envoy", "load", {"rate": 1000.0})
    figures = summarise([*samples("envoy", 10, 20, 30), other_layout])
    assert figures["split", "load", "rate", "envoy"].median == 20
    assert figures["one-cpu", "load", "rate", "envoy"].median == 1000


def test_a_ratio_compares_medians_of_the_same_place() -> None:
    figures = summarise([*samples("sluice", 5, 10, 15), *samples("envoy", 20, 40, 80)])
    assert ratio(figures, ("split", "load", "rate", "sluice"), "envoy") == pytest.approx(0.25)


def test_there_is_no_ratio_to_a_peer_that_did_not_run() -> None:
    assert ratio(summarise(samples("sluice", 5)), ("split", "load", "rate", "sluice"), "envoy") is None


@pytest.mark.parametrize(("rate", "met"), [(39.9, False), (40.0, True), (50.0, True)])
def test_a_target_against_a_peer_is_met_from_its_limit_on(rate: float, met: bool) -> None:
    figures = summarise([*samples("sluice", rate), *samples("envoy", 40)])
    assert [verdict.met for verdict in judge(figures, [target("envoy", 1.0)])] == [met]


@pytest.mark.parametrize(("mebibytes", "met"), [(64.0, True), (64.1, False)])
def test_a_target_without_a_peer_bounds_the_figure_itself(mebibytes: float, met: bool) -> None:
    figures = summarise(samples("sluice", mebibytes))
    assert [verdict.met for verdict in judge(figures, [target(None, 64.0, at_least=False)])] == [met]


def test_a_target_is_neither_met_nor_missed_when_its_peer_did_not_run() -> None:
    [verdict] = judge(summarise(samples("sluice", 5)), [target("envoy", 1.0)])
    assert (verdict.measured, verdict.met) == (None, None)


def test_over_as_many_rounds_as_contenders_everyone_is_first_once() -> None:
    names = ["direct", "sluice", "envoy", "haproxy"]
    assert [rotated(names, number)[0] for number in range(4)] == names
    assert all(sorted(rotated(names, number)) == sorted(names) for number in range(9))
