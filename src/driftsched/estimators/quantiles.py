"""How far answers scatter about their predictions: tracked quantiles, and a correction that keeps their promise."""

from typing import Final

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

NUM_LEVELS: Final = 20
LEVELS: Final[Vector] = (np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS
"""The middles of twenty equally likely parts: 0.025, 0.075 .. 0.975."""

_NORMAL: Final[Vector] = 1.2533 * np.array(
    [-1.96, -1.44, -1.15, -0.935, -0.755, -0.598, -0.454, -0.319, -0.189, -0.063]
    + [0.063, 0.189, 0.319, 0.454, 0.598, 0.755, 0.935, 1.15, 1.44, 1.96]
)
"""Quantiles of a normal law whose mean absolute deviation is 1."""


class Profile:
    """Quantiles of log residuals, in mean absolute deviations, at `LEVELS`.

    Each steps up by `level` when a residual is larger and down by `1 - level` when it is not, so it rests where that
    share of residuals is smaller. Of a residual that is only a lower bound the part beyond it is spread over the
    levels beyond it, in proportion: Efron's redistribution, by which Kaplan and Meier's estimate can be had as well.

    Source: stochastic approximation (Robbins and Monro, 1951) of the pinball loss (Koenker and Bassett, 1978).
    """

    def __init__(self) -> None:
        self.values = _NORMAL.copy()
        self.num_learnt = 0

    def sorted(self) -> Vector:
        """Ascending; trackers move one by one, and neighbours may cross for a moment."""
        return np.sort(self.values)

    def learn(self, residual: float, *, finished: bool) -> None:
        """Move towards `residual`, in mean absolute deviations; unfinished, it is a lower bound."""
        self.num_learnt += 1
        step = max(MIN_STEP, 1.5 / (self.num_learnt + 8))
        below = self.values <= residual
        if finished:
            chance = 1.0 - below
        else:
            passed = float(below.mean())  # the share of all answers that would have ended by now
            chance = np.where(below, 0.0, (LEVELS - passed) / max(1 - passed, 1 / NUM_LEVELS))
            chance = np.clip(chance, 0.0, 1.0)
        self.values += step * (LEVELS - chance)

    def expected_beyond(self, residual: float) -> float:
        """Median of the residuals larger than `residual`: what a lower bound stands for; at least the bound."""
        ordered = self.sorted()
        passed = int(np.searchsorted(ordered, residual, side="right"))
        return max(residual, float(ordered[min((passed + NUM_LEVELS) // 2, NUM_LEVELS - 1)]))


MIN_STEP: Final = 0.02

TARGETS: Final = (0.8, 0.9)
"""The quantiles promised, q80 and q90."""


class Conformal:
    """Offsets that keep the share of answers within q80 and q90 at 80 and 90 %, whatever the predictions do.

    After each answer the offset of a quantile goes up by `rate` x p if the answer was longer than the quantile that
    was promised for it at admission, down by `rate` x (1 - p) if not. Over any run of n answers the share that is
    longer then misses 1 - p by no more than the change of the offset over `rate` x n.

    Source: adaptive conformal inference (Gibbs and Candes, NeurIPS 2021), in the form of quantile tracking
    (Angelopoulos, Candes and Tibshirani, NeurIPS 2023).
    """

    def __init__(self, rate: float) -> None:
        self.offsets = [0.0] * len(TARGETS)
        self._rate = rate

    def learn(self, chances: tuple[float, ...]) -> None:
        """`chances`: of each promised quantile, the chance that the answer is longer: 1 or 0 where that is known."""
        for i, (target, longer) in enumerate(zip(TARGETS, chances, strict=True)):
            moved = self.offsets[i] + self._rate * (longer - (1 - target))
            self.offsets[i] = min(max(moved, -MAX_OFFSET), MAX_OFFSET)


MAX_OFFSET: Final = 4.0
"""Mean absolute deviations: nothing seen asks for more, and a broken engine could."""
