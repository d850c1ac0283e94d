"""The figures of a live run, defined as those of a simulated one."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from driftsched.bench.load import Hit
from driftsched.sim import measures


def percentile(values: Iterable[float | None], fraction: float) -> float | None:
    """Nearest-rank percentile of the values there are; None if they are too few to carry it."""
    return measures.percentile(sorted(value for value in values if value is not None), fraction)


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
