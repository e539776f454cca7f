"""The agent's numbers: counted cheaply, added up over the workers, rendered for Prometheus.

The hot path increments plain dictionaries. ``prometheus-client`` is imported only when somebody scrapes: an agent that
nobody scrapes does not pay for it. Labels are workload names and fixed tokens, never words of a client, and every family
has a bound on its series, so that no traffic can grow the agent's memory or the scraper's.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Labels = tuple[str, ...]

# Upper bounds in seconds, three to a decade. A call that the relay answers on one host takes some 100 us; 10 s is where
# servers and clients give up, so that everything slower is one kind of bad.
DURATION_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
# Series of sluice_calls_total: 40 workloads that each call 10 others, in 5 ways. About 250 KiB per scrape.
MAX_CALL_SERIES = 2000
# Series of any other family: their labels are tokens of this code, so that 100 is far away unless a token is no token.
MAX_TOKEN_SERIES = 100

OTHER = "other"


class Series:
    """One number per combination of labels. Past ``limit`` combinations, all but the first ``keep`` labels are ``other``."""

    def __init__(self, limit: int = MAX_TOKEN_SERIES, keep: int = 0) -> None:
        self._limit = limit
        self._keep = keep
        self._values: dict[Labels, int] = {}

    def add(self, labels: Labels, amount: int = 1) -> None:
        """Add ``amount``; a gauge counts down with a negative one."""
        try:
            self._values[labels] += amount
        except KeyError:
            labels = self._admit(labels)
            self._values[labels] = self._values.get(labels, 0) + amount

    def set(self, labels: Labels, value: int) -> None:
        """What a gauge shows now."""
        self._values[labels if labels in self._values else self._admit(labels)] = value

    def entry(self, labels: Labels) -> tuple[dict[Labels, int], Labels]:
        """Where ``add`` counts these labels: in which dictionary, under which key."""
        if labels not in self._values:
            labels = self._admit(labels)
            self._values.setdefault(labels, 0)
        return self._values, labels

    def items(self) -> list[tuple[list[str], int]]:
        return [(list(labels), value) for labels, value in self._values.items()]

    def _admit(self, labels: Labels) -> Labels:
        if len(self._values) < self._limit:
            return labels
        folded = labels[: self._keep] + (OTHER,) * (len(labels) - self._keep)
        # Kept labels are fixed tokens, so there are few of these; should they not be, the bound still holds.
        if folded in self._values or len(self._values) < self._limit + MAX_TOKEN_SERIES:
            return folded
        return (OTHER,) * len(labels)


class Durations:
    """A histogram per (protocol, via): how long calls took, from reading the call to the end of its reply."""

    def __init__(self) -> None:
        self._cells: dict[Labels, _Cell] = {}

    def add(self, labels: Labels, seconds: float) -> None:
        cell = self.cell(labels)
        cell.counts[bisect_left(DURATION_BUCKETS, seconds)] += 1
        cell.total += seconds

    def absorb(self, labels: Labels, counts: list[int], total: float) -> None:
        cell = self.cell(labels)
        cell.counts = [ours + theirs for ours, theirs in zip(cell.counts, counts, strict=True)]
        cell.total += total

    def items(self) -> list[tuple[list[str], list[int], float]]:
        return [(list(labels), list(cell.counts), cell.total) for labels, cell in self._cells.items()]

    def cell(self, labels: Labels) -> "_Cell":
        cell = self._cells.get(labels)
        if cell is None:
            if len(self._cells) >= MAX_TOKEN_SERIES:
                labels = (OTHER,) * len(labels)
            cell = self._cells.setdefault(labels, _Cell())
        return cell


class _Cell:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(DURATION_BUCKETS) + 1)
        self.total = 0.0


class CallCounter:
    """Counts calls that have all their labels in common, without looking anything up."""

    __slots__ = ("_cell", "_labels", "_values")

    def __init__(self, values: dict[Labels, int], labels: Labels, cell: _Cell) -> None:
        self._values, self._labels, self._cell = values, labels, cell

    def add(self, seconds: float) -> None:
        self._values[self._labels] += 1
        self._cell.counts[bisect_left(DURATION_BUCKETS, seconds)] += 1
        self._cell.total += seconds


class Calls:
    """Finished calls: ``sluice_calls_total`` and ``sluice_call_duration_seconds``."""

    def __init__(self) -> None:
        self.total = Series(MAX_CALL_SERIES, keep=3)
        self.durations = Durations()

    def add(self, labels: tuple[str, str, str, str, str], seconds: float) -> None:
        """Count one call. ``labels``: protocol, verdict, via, subject, peer (workload names, or a token such as ``world``)."""
        self.total.add(labels)
        self.durations.add((labels[0], labels[2]), seconds)

    def counter(self, labels: tuple[str, str, str, str, str]) -> CallCounter:
        """What ``add`` does with these labels, for many calls."""
        return CallCounter(*self.total.entry(labels), self.durations.cell((labels[0], labels[2])))


class Snapshot(TypedDict):
    """One process's numbers at one moment, as plain JSON."""

    series: dict[str, list[tuple[list[str], int]]]
    durations: list[tuple[list[str], list[int], float]]
    audit_queue: int
    audit_moved: int
    policy_generation: int | None


class Metrics:
    """One process's numbers. Counters only grow; connections and budgets are gauges; the last three are set."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.connections = Series()  # (state,)
        self.relayed_bytes = Series()  # (direction,)
        self.kernel_bytes = Series()  # (direction,)
        self.kernel_fallbacks = Series()  # (reason,)
        self.limits = Series()  # (limit,)
        self.tolerated = Series()  # (reason,)
        self.over_share = Series(MAX_CALL_SERIES, keep=1)  # (budget, subject)
        self.budget_used = Series()  # (budget,)
        self.budget_limit = Series()  # (budget,)
        self.audit_queue = 0
        self.audit_moved = 0
        self.policy_generation: int | None = None

    def snapshot(self) -> Snapshot:
        return {
            "series": {name: series.items() for name, series in self._series().items()},
            "durations": self.calls.durations.items(),
            "audit_queue": self.audit_queue,
            "audit_moved": self.audit_moved,
            "policy_generation": self.policy_generation,
        }

    def absorb(self, snapshot: Snapshot) -> None:
        """Add another process's numbers. The generation becomes the lower of the two: what all processes have reached."""
        for name, series in self._series().items():
            for labels, value in snapshot["series"][name]:
                series.add(tuple(labels), value)
        for labels, counts, total in snapshot["durations"]:
            self.calls.durations.absorb(tuple(labels), counts, total)
        self.audit_queue += snapshot["audit_queue"]
        self.audit_moved += snapshot["audit_moved"]
        generations = [g for g in (self.policy_generation, snapshot["policy_generation"]) if g is not None]
        self.policy_generation = min(generations, default=None)

    def _series(self) -> dict[str, Series]:
        return {
            "sluice_calls": self.calls.total,
            "sluice_connections": self.connections,
            "sluice_relayed_bytes": self.relayed_bytes,
            "sluice_kernel_bytes": self.kernel_bytes,
            "sluice_kernel_fallbacks": self.kernel_fallbacks,
            "sluice_limits": self.limits,
            "sluice_tolerated": self.tolerated,
            "sluice_over_share": self.over_share,
            "sluice_budget_used": self.budget_used,
            "sluice_budget_limit": self.budget_limit,
        }


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The numbers of all processes together."""
    whole = Metrics()
    for snapshot in snapshots:
        whole.absorb(snapshot)
    return whole.snapshot()


def render(snapshot: Snapshot) -> bytes:
    """The Prometheus text format (``text/plain; version=0.0.4``)."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(snapshot))
    return generate_latest(registry)


class _Collector:
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator["Metric"]:
        yield self._counter("sluice_calls", "Calls that have ended", ("protocol", "verdict", "via", "subject", "peer"))
        yield self._durations()
        yield self._gauge("sluice_connections", "Connections by state", ("state",))
        yield self._counter("sluice_relayed_bytes", "Bytes carried by the relay", ("direction",))
        yield self._counter("sluice_kernel_bytes", "Bytes carried inside the kernel", ("direction",))
        yield self._counter("sluice_kernel_fallbacks", "Calls that the kernel path handed to the relay", ("reason",))
        yield self._counter("sluice_limits", "Limits that were reached", ("limit",))
        yield self._counter("sluice_tolerated", "Oddities of servers that were passed on", ("reason",))
        yield self._counter("sluice_over_share", "Calls and connections refused for want of a place", ("budget", "subject"))
        yield self._gauge("sluice_budget_used", "How much of a budget is in use", ("budget",))
        yield self._gauge("sluice_budget_limit", "How much there is of a budget", ("budget",))
        yield self._counter("sluice_connects", "What the hooks did with connect() and unconnected sends", ("outcome",))
        yield self._value("sluice_audit_queue", "Audit records not yet written", self._snapshot["audit_queue"])
        yield self._total("sluice_audit_moved", "Audit files found renamed or removed", self._snapshot["audit_moved"])
        generation = self._snapshot["policy_generation"]
        if generation is not None:
            yield self._value("sluice_policy_generation", "Policy generation that every worker has reached", generation)

    def _counter(self, name: str, text: str, labels: Labels) -> "Metric":
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(name, text, labels=labels)
        for values, amount in self._snapshot["series"].get(name, []):  # only the agent adds what the hooks counted
            family.add_metric(values, amount)
        return family

    def _gauge(self, name: str, text: str, labels: Labels) -> "Metric":
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(name, text, labels=labels)
        for values, amount in self._snapshot["series"][name]:
            family.add_metric(values, amount)
        return family

    def _total(self, name: str, text: str, value: int) -> "Metric":
        from prometheus_client.core import CounterMetricFamily

        return CounterMetricFamily(name, text, value=value)

    def _value(self, name: str, text: str, value: int) -> "Metric":
        from prometheus_client.core import GaugeMetricFamily

        return GaugeMetricFamily(name, text, value=value)

    def _durations(self) -> "Metric":
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily("sluice_call_duration_seconds", "How long calls took", labels=("protocol", "via"))
        for values, counts, total in self._snapshot["durations"]:
            family.add_metric(values, buckets=_cumulative(counts), sum_value=total)
        return family


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    bounds = [str(bound) for bound in DURATION_BUCKETS] + ["+Inf"]
    return [(bound, sum(counts[: i + 1])) for i, bound in enumerate(bounds)]
