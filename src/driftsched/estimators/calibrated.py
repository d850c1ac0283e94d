"""Category lengths corrected by what each model really does: the default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, inf, log
from typing import get_args

from driftsched.core.model import Estimate, Request, Usage
from driftsched.estimators.categories import base_tokens, input_factor
from driftsched.estimators.recent import Recent
from driftsched.estimators.state import add_counts, check_range, is_keepable, make_state, read_rows, share_of

MAX_KEYS = 1024
"""Pairs of model and category remembered: about 450 KB."""

MAX_LENGTH = 10_000_000
"""A longer answer, in tokens, is an error of whoever counted it."""

MAX_DEVIATION = log(4)
"""An outlier widens the spread as if it were four times, or a quarter of, what was expected."""

FIRST_STEPS = 3
"""The median of n lognormal lengths is found fastest by steps of about 3 / n mean deviations."""

LEVELS = (0.5, 0.8, 0.9)
MAX_LOG_RATIO = 20.0
"""No quantile gets there: `MAX_LENGTH` is e^16."""
STATE_VERSION = 1


@dataclass(slots=True)
class Calibration:
    """What one model's answers in one category have taught, in logarithms of length / uncorrected prediction.

    Before they taught anything, lengths are taken to be lognormal around the prediction with a sigma of 0.6, which
    is roughly what chat answers are.
    """

    num_learnt: int = 0
    spread: float = 0.5
    """Mean absolute deviation from the median."""
    quantiles: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.8])
    """One for each of `LEVELS`."""

    def observe(self, length: float, alpha: float, finished: bool) -> None:
        """Move spread and quantiles towards `length`, the logarithm of a ratio; unfinished, it is a lower bound."""
        deviation = length - self.quantiles[0]
        if not finished and deviation <= 0:
            return  # it ran no longer than expected, and might have: no news
        self.num_learnt += 1
        weight = max(alpha, 1 / (self.num_learnt + 1))  # what was assumed at first counts as one observation
        self.spread += weight * (min(abs(deviation), MAX_DEVIATION) - self.spread)
        step = max(alpha, FIRST_STEPS / (self.num_learnt + FIRST_STEPS)) * self.spread
        for i, level in enumerate(LEVELS):
            if length > self.quantiles[i]:
                self.quantiles[i] += step * level
            elif finished:
                self.quantiles[i] -= step * (1 - level)

    def absorb(self, other: "Calibration", memory: float) -> None:
        """Move spread and quantiles to the means of both, weighed by the answers learnt, at most `memory` each."""
        share = share_of(other.num_learnt, self.num_learnt, memory)
        self.num_learnt = add_counts(self.num_learnt, other.num_learnt)
        self.spread += share * (other.spread - self.spread)
        for i, quantile in enumerate(other.quantiles):
            self.quantiles[i] += share * (quantile - self.quantiles[i])


_UNTAUGHT = Calibration()


class Calibrated:
    """Predict base length x prompt factor x the median ratio of actual to that, tracked per model and category.

    Why: the median minimises the mean absolute error, shrugs off outliers, and stays right when many answers are
    cut short. Keyed by model as well, since models differ more than prompts do; no tenant and no tier, so that a
    margin never enters the order. Trade-off: requests of one model and category differ by their prompt factor only.

    Each of q50, q80 and q90 steps up by `level` when an answer is longer and down by `1 - level` when it is not, so
    it rests where that share of answers is shorter. A step is `alpha` mean deviations: small while lengths are
    steady, larger when they shift, and larger while little is known. The ratio is of the actual length to the whole
    uncorrected prediction, so the correction's fixed point is the true median. An answer that was cut short (by
    `max_tokens`, its client or a failure) is a lower bound: it can raise a quantile, never lower one.

    Source: the running ratio of DriftSched (arXiv 2606.02982) turned into quantile tracking by stochastic
    approximation (Robbins and Monro, 1951) of the pinball loss (Koenker and Bassett, 1978).
    """

    def __init__(self, alpha: float = 0.1) -> None:
        """`alpha`: step, in mean deviations, once about 3 / alpha answers are known; 0 < alpha <= 1."""
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be > 0 and <= 1, but is {alpha}")
        self._alpha = alpha
        self._calibrations: Recent[tuple[str, str], Calibration] = Recent(Calibration, MAX_KEYS)

    def predict(self, request: Request) -> Estimate:
        """The point is the median; no figure exceeds `max_tokens`."""
        limit = inf if request.max_tokens is None else request.max_tokens
        base = _uncorrected(request)
        q50, q80, q90 = (min(base * exp(quantile), limit) for quantile in self._of(request).quantiles)
        q80 = max(q50, q80)  # trackers move one by one, and may cross for a moment
        return Estimate(q50, q50=q50, q80=q80, q90=max(q80, q90))

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        return self.predict(request)

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        """Counts that no engine can mean (negative, not a number, beyond `MAX_LENGTH`) teach nothing."""
        if not 0 <= usage.completion_tokens <= MAX_LENGTH:
            return
        length = log(max(usage.completion_tokens, 1) / _uncorrected(request))
        self._calibrations.write(_key(request)).observe(length, self._alpha, finished)

    def bias(self, request: Request) -> float:
        return exp(self._of(request).quantiles[0])

    def snapshot(self) -> dict[str, object]:
        rows = (
            (model, category, learnt.num_learnt, learnt.spread, *learnt.quantiles)
            for (model, category), learnt in self._calibrations.items()
            if is_keepable(model) and is_keepable(category)
        )
        return make_state(STATE_VERSION, rows)

    def restore(self, state: Mapping[str, object]) -> None:
        self._calibrations.replace(_calibrations_of(state))

    def merge(self, state: Mapping[str, object]) -> None:
        """Quantiles are averaged, weighed by the answers learnt, of which about the last 3 / alpha count.

        Beyond `MAX_KEYS` what is known here stays, and what the other learnt longest ago is left out.
        """
        for key, other in reversed(_calibrations_of(state)):
            mine = self._calibrations.read(key)
            if mine is None:
                self._calibrations.add_oldest(key, other)
            else:
                mine.absorb(other, FIRST_STEPS / self._alpha)

    def _of(self, request: Request) -> Calibration:
        return self._calibrations.read(_key(request)) or _UNTAUGHT


def _key(request: Request) -> tuple[str, str]:
    return request.model, request.category


def _uncorrected(request: Request) -> float:
    return base_tokens(request.category) * input_factor(request.prompt_tokens)


_Row = tuple[str, str, int, float, float, float, float]


def _calibrations_of(state: Mapping[str, object]) -> list[tuple[tuple[str, str], Calibration]]:
    """Raises `ValueError`."""
    rows = read_rows(state, version=STATE_VERSION, kinds=get_args(_Row), max_rows=MAX_KEYS)
    return [_calibration_of(row) for row in rows]


def _calibration_of(row: _Row) -> tuple[tuple[str, str], Calibration]:
    model, category, num_learnt, spread, *quantiles = row
    for quantile in quantiles:
        check_range("quantile", quantile, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (model, category), Calibration(num_learnt, check_range("spread", spread, 0.0, MAX_DEVIATION), quantiles)
