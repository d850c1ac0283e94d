"""What a figure is worth: intervals over seeds, paired differences, and whether a run may be read at all.

The requests of one run queue behind one another, so they are no independent sample: resampling them gives intervals
that are several times too narrow. Runs with different seeds are independent. Intervals here are Student's t over
seeds, which holds its level from three seeds on.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import atan2, cos, isnan, pi, sin, sqrt
from statistics import NormalDist, fmean, stdev
from typing import Literal

import msgspec

from driftsched.sim.recording import UNFINISHED, Recording

CONFIDENCE = 0.95
"""Of every interval."""

Saturation = Literal["STABLE", "BACKLOGGED", "OVERLOADED"]

BACKLOG_SHARE = 0.02
OVERLOAD_SHARE = 0.10


class Interval(msgspec.Struct, frozen=True):
    """A mean over runs and where the true mean lies, with 95 % confidence."""

    mean: float
    low: float | None
    """None of one run: there is nothing to tell its spread from."""
    high: float | None
    n: int
    """Runs, one for each seed."""

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean

    @property
    def spans_zero(self) -> bool:
        """It may well be nothing: "n.s.". Of a single run this cannot be ruled out."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


class Difference(msgspec.Struct, frozen=True):
    """How runs differ from those of a baseline on the same traces, seed by seed."""

    absolute: Interval
    """In the unit of the figure."""
    relative: Interval | None
    """Of the baseline's figure: 0.1 is 10 % more. None if the baseline is 0 for some seed."""

    @property
    def significant(self) -> bool:
        return not self.absolute.spans_zero


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of `values`, one or more independent runs.

    Raises `ValueError` if there are none.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    half_width = student_t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / sqrt(len(values))
    return Interval(mean, mean - half_width, mean + half_width, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """By how much `values` exceed `baseline`, both by seed, over the seeds they share; None if they share none."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    relative = [values[seed] / baseline[seed] - 1 for seed in seeds if baseline[seed]]
    return Difference(
        absolute=t_interval([values[seed] - baseline[seed] for seed in seeds]),
        relative=t_interval(relative) if len(relative) == len(seeds) else None,
    )


def student_t_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t with `degrees` >= 1 of freedom stays below with `probability`, in (0, 1).

    Found by bisection, to about 1e-9 of its size. Raises `ValueError` for arguments out of range.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie between 0 and 1, but is {probability}")
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {degrees}")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    within = 2 * probability - 1
    low, high = 0.0, 1.0
    while _t_within(high, degrees) < within:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < within else (low, middle)
    return (low + high) / 2


def _t_within(t: float, degrees: int) -> float:
    """Probability that |T| <= t: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = atan2(t, sqrt(degrees))
    square = cos(angle) ** 2
    odd = degrees % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= square * (k - 1) / k
    return (angle + sin(angle) * total) * 2 / pi if odd else sin(angle) * total


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Where the true share lies, with 95 % confidence, after `successes` in `trials` independent trials.

    (0, 1) of no trials. Source: Wilson, 1927. Requests of one run are not quite independent, so of a share of
    requests it is the narrowest interval to believe in; prefer `t_interval` over several runs.
    """
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def kendall_tau(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Kendall's rank correlation tau-b of two equally long columns, in -1..1; None if one of them is constant.

    The share of pairs that both columns put in the same order minus the share they put in opposite order, pairs
    tied in a column left out of that column's account. O(n log n): discordant pairs are inversions of `ys` in the
    order of `xs` (Knight, 1966), counted in a binary indexed tree (Fenwick, 1994).
    """
    x_ranks = {value: rank for rank, value in enumerate(sorted(set(xs)))}
    y_ranks = {value: rank for rank, value in enumerate(sorted(set(ys)))}
    width = len(y_ranks)
    cells = [x_ranks[x] * width + y_ranks[y] for x, y in zip(xs, ys, strict=True)]
    cells.sort()
    pairs = len(cells) * (len(cells) - 1) // 2
    tied_x, tied_y, tied_both = (_tied_pairs(column) for column in (xs, ys, cells))
    if tied_x == pairs or tied_y == pairs:
        return None
    discordant = _inversions([cell % width for cell in cells], width)
    surplus = pairs - tied_x - tied_y + tied_both - 2 * discordant
    return surplus / sqrt((pairs - tied_x) * (pairs - tied_y))


def _tied_pairs(values: Iterable[Hashable]) -> int:
    return sum(count * (count - 1) // 2 for count in Counter(values).values())


def _inversions(ranks: Iterable[int], width: int) -> int:
    """Pairs of which the larger rank, of 0 .. width - 1, comes first."""
    tree = [0] * (width + 1)
    inversions = 0
    for seen, rank in enumerate(ranks):
        not_larger, node = 0, rank + 1
        while node:
            not_larger += tree[node]
            node &= node - 1
        inversions += seen - not_larger
        node = rank + 1
        while node <= width:
            tree[node] += 1
            node += node & -node
    return inversions


def saturation(recording: Recording) -> Saturation:
    """Whether the engine kept up with what arrived.

    `OVERLOADED`: when the last request arrived, more than a tenth of all of them still waited: times measure how
    long the run was, not how the system serves. `BACKLOGGED`: at some moment more waited than one full batch and
    more than a fiftieth of all, but the line was worked off. `STABLE`: neither.
    """
    if not len(recording):
        return "STABLE"
    end = recording.arrived_at[-1]
    left = sum(
        (began > end) if not isnan(began) else left_at > end
        for began, left_at in zip(recording.dispatched_at, recording.finished_at, strict=True)
    )
    if left > max(recording.slots, OVERLOAD_SHARE * len(recording)):
        return "OVERLOADED"
    if recording.max_queue_depth > max(recording.slots, BACKLOG_SHARE * len(recording)):
        return "BACKLOGGED"
    return "STABLE"


def unaccounted(recording: Recording, submitted: int | None = None) -> str | None:
    """Why not every request left exactly once, in words; None if each did.

    `submitted` is how many the workload held, if the caller knows.
    """
    if submitted is not None and submitted != len(recording):
        return f"{submitted} requests were submitted, but {len(recording)} recorded"
    outcomes = Counter(recording.outcome)
    if outcomes[UNFINISHED]:
        return f"{outcomes[UNFINISHED]} of {len(recording)} requests were neither answered nor refused"
    if recording.stray_events:
        return f"{recording.stray_events} ends were told of requests that had already ended"
    return None
