"""When lengths shift: a detector that tells, and says by how much."""


class Cusum:
    """A two-sided cumulative sum over standardised residuals.

    Each side adds what a residual exceeds `slack` and never falls below 0; at `threshold` it alarms. The mean since
    the side last stood at 0 estimates the shift, so whoever is told can correct at once instead of creeping after it.

    Source: Page, "Continuous Inspection Schemes", Biometrika 1954.
    """

    __slots__ = ("_downs", "_ups", "slack", "threshold")

    def __init__(self, slack: float = 0.5, threshold: float = 12.0) -> None:
        """Both in mean absolute deviations of the residuals, > 0.

        With the defaults steady lengths raise a false alarm about once in a thousand answers, and a shift by 1.3
        deviations is told after about 10.
        """
        self.slack = slack
        self.threshold = threshold
        self._ups = (0.0, 0)  # sum, and the number of residuals since it stood at 0
        self._downs = (0.0, 0)

    def observe(self, residual: float) -> float:
        """Take in a residual, in mean absolute deviations; the estimated shift if that raised the alarm, else 0."""
        self._ups = self._grown(self._ups, residual)
        self._downs = self._grown(self._downs, -residual)
        for (total, num), sign in ((self._ups, 1), (self._downs, -1)):
            if total > self.threshold:
                self._ups = self._downs = (0.0, 0)
                return sign * (total / num + self.slack)
        return 0.0

    def _grown(self, side: tuple[float, int], residual: float) -> tuple[float, int]:
        total = side[0] + residual - self.slack
        return (total, side[1] + 1) if total > 0 else (0.0, 0)
