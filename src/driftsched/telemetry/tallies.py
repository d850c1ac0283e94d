"""Counts and histograms for the way of a request: plain numbers, made into Prometheus' families when it asks.

A counter of prometheus-client takes a lock and a look-up of its labels at each step, which came to 20 microseconds
a request; here a step is an addition. All are stepped and read in one thread, the event loop's.
"""

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

OTHER = "other"
"""The value of a label for all that has no series of its own."""


class Tally:
    """A histogram: how many were at most each bound, and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: ascending upper bounds, inclusive; beyond the last there is one more bucket."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self.counts), strict=True)), self.sum)


class Reasons:
    """A counter by tier and reason, of the first so many pairs; what comes later counts as the tier's `other`."""

    def __init__(self, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._counts: dict[tuple[str, str], int] = {}

    def inc(self, tier: str, reason: str) -> None:
        counts = self._counts
        if (tier, reason) not in counts and len(counts) >= self._max_pairs:
            reason = OTHER
        counts[tier, reason] = counts.get((tier, reason), 0) + 1

    def family(self, name: str, text: str, label: str) -> CounterMetricFamily:
        """`label`: what the reason is called."""
        family = CounterMetricFamily(name, text, labels=["tier", label])
        for pair, count in self._counts.items():
            family.add_metric(pair, count)
        return family


def tallies(of: Mapping[str, Tally], name: str, text: str, label: str) -> HistogramMetricFamily:
    """The family of one histogram for each value of a label."""
    family = HistogramMetricFamily(name, text, labels=[label])
    for value, tally in of.items():
        tally.add_to(family, [value])
    return family
