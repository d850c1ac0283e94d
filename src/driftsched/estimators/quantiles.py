"""How far answers scatter about their predictions: tracked quantiles, and a correction that keeps their promise."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from driftsched.estimators.nodes import Numbers

Vector = npt.NDArray[np.float64]

NUM_LEVELS: Final = 20
LEVELS: Final[Vector] = (np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS
"""The middles of twenty equally likely parts: 0.025, 0.075 .. 0.975."""

_UPPER = (0.063, 0.189, 0.319, 0.454, 0.598, 0.755, 0.935, 1.15, 1.44, 1.96)
_NORMAL: Final[Vector] = 1.2533 * np.array([*(-value for value in reversed(_UPPER)), *_UPPER])
"""Quantiles of a normal law whose mean absolute deviation is 1."""

MIN_STEP: Final = 0.02
MAX_DEVIATION: Final = 100.0


class Profile:
    """Quantiles of log residuals, in mean absolute deviations, at `LEVELS`.

    Each steps up by `level` when a residual is larger and down by `1 - level` when it is not, so it rests where
    that share of residuals is smaller. Of a residual that is only a lower bound, the mass is spread over what lies
    beyond it, in proportion: Efron's redistribution, by which Kaplan and Meier's estimate can be had as well.

    Sources: stochastic approximation (Robbins and Monro, 1951) of the pinball loss (Koenker and Bassett, 1978);
    Efron, "The two sample problem with censored data", 1967.
    """

    def __init__(self) -> None:
        self.values = _NORMAL.copy()
        self.ordered = _NORMAL
        """The same, ascending: trackers move one by one, and neighbours may cross for a moment."""
        self.num_learnt = 0

    def learn(self, residual: float, *, finished: bool) -> None:
        """Move towards `residual`, in mean absolute deviations; unfinished, it is a lower bound."""
        self.num_learnt += 1
        step = max(MIN_STEP, 4 / (self.num_learnt + 10))
        below = self.values <= residual
        if finished:
            shorter = 1.0 - below
        else:
            passed = self.share_below(residual)
            beyond = np.clip((LEVELS - passed) / max(1 - passed, 1 / NUM_LEVELS), 0.0, 1.0)
            shorter = np.where(below, 0.0, beyond)
        self.values += step * (LEVELS - shorter)
        self.ordered = np.sort(self.values)

    def share_below(self, residual: float) -> float:
        """Share of all answers that would have ended by now, 0 .. 1."""
        return float((self.values <= residual).mean())

    def expected_beyond(self, residual: float) -> float:
        """Median of the residuals larger than `residual`: what a lower bound stands for; at least the bound."""
        passed = int(np.searchsorted(self.ordered, residual, side="right"))
        low, high = (passed + NUM_LEVELS - 1) // 2, min((passed + NUM_LEVELS) // 2, NUM_LEVELS - 1)
        return max(residual, float(self.ordered[low] + self.ordered[high]) / 2)

    def pack(self) -> list[float]:
        return [self.num_learnt, *self.values.tolist()]

    def unpack(self, numbers: Numbers) -> None:
        self.num_learnt = int(numbers.take(0, 2**53))
        self.values = np.array(numbers.take_all(-MAX_DEVIATION, MAX_DEVIATION, num=NUM_LEVELS))
        self.ordered = np.sort(self.values)

    def absorb(self, other: "Profile") -> None:
        """The mean of both, weighed by what each has learnt, of which the last hundred or so count."""
        mine, theirs = min(self.num_learnt, 100), min(other.num_learnt, 100)
        if theirs:
            self.values = (mine * self.values + theirs * other.values) / (mine + theirs)
            self.ordered = np.sort(self.values)
            self.num_learnt = min(self.num_learnt + other.num_learnt, 2**53)


TARGETS: Final = (0.8, 0.9)
"""The quantiles promised, q80 and q90."""
MAX_OFFSET: Final = 4.0
"""Mean absolute deviations: nothing seen asks for more, and a broken engine could."""


class Conformal:
    """Offsets that keep the share of answers within q80 and q90 at 80 and 90 %, whatever the predictions do.

    After each answer the offset of a quantile goes up by `rate` x p if the answer was longer than the quantile that
    was promised for it at admission, down by `rate` x (1 - p) if not. Over any run of n answers the share that is
    longer then misses 1 - p by no more than the change of the offset over `rate` x n.

    Source: adaptive conformal inference (Gibbs and Candes, NeurIPS 2021), as quantile tracking (Angelopoulos,
    Candes and Tibshirani, NeurIPS 2023).
    """

    def __init__(self, rate: float) -> None:
        """`rate`: in mean absolute deviations, > 0. More holds the promise over shorter runs, and wanders more."""
        self.offsets = [0.0] * len(TARGETS)
        self._rate = rate

    def learn(self, chances: Sequence[float]) -> None:
        """`chances`: of each promised quantile, the chance that the answer is longer: 1 or 0 where it is known."""
        for i, (target, longer) in enumerate(zip(TARGETS, chances, strict=True)):
            moved = self.offsets[i] + self._rate * (longer - (1 - target))
            self.offsets[i] = min(max(moved, -MAX_OFFSET), MAX_OFFSET)

    def pack(self) -> list[float]:
        return list(self.offsets)

    def unpack(self, numbers: Numbers) -> None:
        self.offsets = numbers.take_all(-MAX_OFFSET, MAX_OFFSET, num=len(TARGETS))

    def absorb(self, other: "Conformal", share: float) -> None:
        """Move by `share`, 0 .. 1, towards the other's offsets."""
        self.offsets = [a + share * (b - a) for a, b in zip(self.offsets, other.offsets, strict=True)]
