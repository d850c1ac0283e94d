"""The figures of one run, each defined once (docs/metrics.md)."""

from collections.abc import Callable, Iterable, Sequence
from math import ceil
from statistics import fmean

from driftsched.bench.load import Hit

MIN_BEYOND = 2
"""A percentile is given only if at least so many values are expected beyond it: of fewer it is chance."""


def percentile(values: Iterable[float | None], fraction: float) -> float | None:
    """Nearest-rank percentile of the values there are; None if they are too few to carry it."""
    known = sorted(value for value in values if value is not None)
    if len(known) * (1 - fraction) < MIN_BEYOND:
        return None
    return known[ceil(len(known) * fraction) - 1]


def mean_absolute_error(hits: Sequence[Hit]) -> float | None:
    """Tokens, over the answers that ended by themselves: the true length of a truncated one is unknown."""
    errors = [
        abs(hit.predicted_tokens - hit.completion_tokens)
        for hit in hits
        if hit.predicted_tokens is not None and hit.completion_tokens is not None and hit.finish_reason == "stop"
    ]
    return fmean(errors) if errors else None


def of(hits: Iterable[Hit], figure: Callable[[Hit], float | None]) -> list[float | None]:
    """One figure of every request that was answered in full."""
    return [figure(hit) for hit in hits if hit.ok]
