"""When lengths shift: a detector that tells, and says by how much."""

from typing import Final, NamedTuple

MAX_STEP: Final = 3.0
"""Mean absolute deviations that one residual adds at most: no single answer raises the alarm."""


class Side(NamedTuple):
    """What speaks for a shift in one direction."""

    total: float = 0.0
    """By how much residuals exceeded the slack, >= 0."""
    num: int = 0
    """Residuals since the total last stood at 0."""
    sum: float = 0.0
    """Their sum."""
    source: int = 0
    """Where the last of them came from."""
    num_elsewhere: int = 0
    """How many came from elsewhere than the one before."""


class Cusum:
    """A two-sided cumulative sum over standardised residuals.

    Each side adds what a residual exceeds `slack` and never falls below 0; at `threshold` it alarms. The mean since
    the side last stood at 0 estimates the shift, so whoever is told can correct at once instead of creeping after.

    Residuals come from sources, and an alarm needs more than one of them, unless the caller says that one is all
    there is: what one source does alone is no shift of the others.

    Source: Page, "Continuous Inspection Schemes", Biometrika 1954.
    """

    __slots__ = ("downs", "slack", "threshold", "ups")

    def __init__(self, slack: float = 0.5, threshold: float = 12.0) -> None:
        """Both in mean absolute deviations of the residuals, > 0."""
        self.slack = slack
        self.threshold = threshold
        self.ups = Side()
        self.downs = Side()

    def observe(self, residual: float, source: int = 0, *, is_alone: bool = True) -> float:
        """Take in a residual, in mean absolute deviations; the estimated shift if it raised the alarm, else 0."""
        self.ups = self._grown(self.ups, residual, source)
        self.downs = self._grown(self.downs, -residual, source)
        for side, sign in ((self.ups, 1), (self.downs, -1)):
            if side.total > self.threshold and (is_alone or 3 * side.num_elsewhere >= side.num):
                self.ups = self.downs = Side()
                return sign * side.sum / side.num
        return 0.0

    def _grown(self, side: Side, residual: float, source: int) -> Side:
        total = min(side.total + min(residual, MAX_STEP) - self.slack, 2 * self.threshold)
        if total <= 0:
            return _NOTHING
        is_elsewhere = side.num > 0 and source != side.source
        return Side(total, side.num + 1, side.sum + residual, source, side.num_elsewhere + is_elsewhere)


_NOTHING: Final = Side()
