"""Setups compared on the same requests, and how sure a difference is.

Requests of one block queue behind one another; blocks do not. So the intervals come of drawing whole blocks again,
the same ones for both setups (a paired bootstrap over seeds). Beside them stands Student's t over the blocks' own
means and medians, because of few blocks a bootstrap gives intervals that are too narrow.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from random import Random
from statistics import fmean

import msgspec

from driftsched.sim.statistics import Interval, t_interval

RESAMPLES = 2000
RESAMPLING_SEED = 1
BLOCK_FIGURES = ("mean", "p50")
"""What a block has requests enough for."""

BySeed = Mapping[int, Sequence[float]]
"""The values of a setup, by the seed of the block."""


class Comparison(msgspec.Struct, frozen=True):
    """How one setup's times differ from another's on the same requests."""

    figure: str
    """`e2e_seconds.p50`, or with a group before it: `standard.e2e_seconds.p50`."""
    setup: str
    baseline: str
    value: float
    """Over all blocks together, as `baseline_value` is; nearest-rank percentiles."""
    baseline_value: float
    change: float
    """Of the baseline's: 0.1 is 10 % more."""
    low: float
    high: float
    """Bootstrap interval of `change`, 95 %."""
    by_block: Interval | None
    """Student's t interval of the mean difference of a block, in the unit of `change`; of `BLOCK_FIGURES` alone."""


FIGURES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "p50": lambda values: _nearest_rank(values, 0.50),
    "p95": lambda values: _nearest_rank(values, 0.95),
    "p99": lambda values: _nearest_rank(values, 0.99),
}


def _nearest_rank(values: Sequence[float], fraction: float) -> float:
    return sorted(values)[ceil(len(values) * fraction) - 1]


def compare(name: str, setup: str, values: BySeed, baseline: str, others: BySeed) -> list[Comparison]:
    """One comparison for each of `FIGURES`, over the seeds that both have; empty if there is nothing to compare.

    `name` is of the column, e.g. `e2e_seconds`; `setup` and `baseline` are labels.
    """
    seeds = sorted(seed for seed in values.keys() & others.keys() if values[seed] and others[seed])
    if not seeds:
        return []
    draws = Random(f"{RESAMPLING_SEED}:{len(seeds)}")
    drawn = [draws.choices(seeds, k=len(seeds)) for _ in range(RESAMPLES)]
    found = []
    for figure, of in FIGURES.items():
        value, other = of(_together(values, seeds)), of(_together(others, seeds))
        changes = sorted(of(_together(values, again)) / of(_together(others, again)) - 1 for again in drawn)
        found.append(
            Comparison(
                figure=f"{name}.{figure}",
                setup=setup,
                baseline=baseline,
                value=value,
                baseline_value=other,
                change=value / other - 1,
                low=changes[round(0.025 * RESAMPLES)],
                high=changes[round(0.975 * RESAMPLES) - 1],
                by_block=_by_block(values, others, seeds, of) if figure in BLOCK_FIGURES else None,
            )
        )
    return found


def _together(values: BySeed, seeds: Sequence[int]) -> list[float]:
    return [value for seed in seeds for value in values[seed]]


def _by_block(
    values: BySeed, others: BySeed, seeds: Sequence[int], of: Callable[[Sequence[float]], float]
) -> Interval:
    """Differences as a share of the baseline's mean: a mean of the blocks' own ratios would lean upwards."""
    difference = t_interval([of(values[seed]) - of(others[seed]) for seed in seeds])
    unit = fmean(of(others[seed]) for seed in seeds)
    low, high = (None if bound is None else bound / unit for bound in (difference.low, difference.high))
    return Interval(difference.mean / unit, low, high, difference.n)
