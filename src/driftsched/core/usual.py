"""What is usual: the lengths predicted for the requests admitted lately, and the backlogs they found."""

from math import exp, log

MEMORY = 1000
"""Admissions that are averaged over."""
MIDDLE = 0.5
"""Share of the requests that are shorter than one of the middle length."""
LONG = 0.9
"""Share of the requests that are shorter than a long one."""
QUANTILE_STEP = 0.03
"""By how much one length moves the logarithm of the quantile: it scatters by about a tenth."""
MAX_DRAIN_SECONDS = 600.0
"""A longer drain time is that of an engine that stands still, not of a backlog."""


class Usual:
    """Three figures for policies, each O(1) to keep. Fed in order of admission; knows no clock."""

    def __init__(self) -> None:
        self.drain_seconds = 0.0
        """Mean drain time found at admission, at most `MAX_DRAIN_SECONDS`; 0 until one could be told."""
        self._log_middle: float | None = None
        self._log_long: float | None = None
        self._num_lengths = 0
        self._num_drains = 0

    @property
    def middle_tokens(self) -> float:
        """Completion tokens that half of the predictions stay below; 0 until there is one."""
        return 0.0 if self._log_middle is None else exp(self._log_middle)

    @property
    def long_tokens(self) -> float:
        """Completion tokens that nine of ten predictions stay below; 0 until there is one."""
        return 0.0 if self._log_long is None else exp(self._log_long)

    def observe(self, tokens: float, drain_seconds: float | None) -> None:
        """A request of `tokens` predicted was admitted to a backlog of `drain_seconds`; None: not to be told."""
        self._observe_length(log(max(1.0, tokens)))
        if drain_seconds is None:
            return
        self._num_drains = min(MEMORY, self._num_drains + 1)
        self.drain_seconds += (min(drain_seconds, MAX_DRAIN_SECONDS) - self.drain_seconds) / self._num_drains

    def _observe_length(self, length: float) -> None:
        self._num_lengths += 1
        if self._log_middle is None or self._log_long is None:
            self._log_middle = self._log_long = length
            return
        step = max(QUANTILE_STEP, 1 / self._num_lengths)
        self._log_middle += step * (MIDDLE if length > self._log_middle else MIDDLE - 1)
        self._log_long += step * (LONG if length > self._log_long else LONG - 1)
