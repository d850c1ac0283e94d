"""The reference's estimator: one running ratio per category."""

from collections.abc import Mapping
from dataclasses import dataclass

from driftsched.core.model import Estimate, Request, Tier, Usage
from driftsched.estimators.categories import base_tokens, input_factor
from driftsched.estimators.state import add_counts, check_range, is_keepable, make_state, read_rows, share_of

SAFETY_FACTORS: Mapping[Tier, float] = {Tier.PREMIUM: 1.2, Tier.STANDARD: 1.0, Tier.BATCH: 0.8}
"""Margin by tier (S_tenant)."""

MIN_RATIO = 0.25
MAX_RATIO = 3.0
MAX_CATEGORIES = 1024
"""In a state; there are a handful."""
STATE_VERSION = 1


@dataclass(slots=True)
class _Bias:
    num_learnt: int = 0
    ratio: float = 1.0


class Ema:
    """Predict base length x bias x tier margin x prompt factor; the bias is a running mean per category.

        T = int(T_base * B * S_tenant * F_input)        B <- (1 - alpha) * B + alpha * (T_actual / T_base)

    Why: it reproduces the published system, its flaws included. Trade-off: the tier margin is part of the
    prediction, so it enters the order; the ratio leaves margin and prompt factor out, so its fixed point is S x F
    times the true length, not the true length; an answer cut short is learnt as if it were whole; the prediction
    may exceed `max_tokens`; all quantiles equal the point. `calibrated` is the same idea without these.

    Source: DriftSched, arXiv 2606.02982, equations 1 to 6, and the clamp of its code.
    """

    def __init__(self, alpha: float = 0.1, feedback: bool = True) -> None:
        """`alpha`: weight of the newest ratio, 0 < alpha <= 1. Without `feedback` the bias stays 1."""
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must be > 0 and <= 1, but is {alpha}")
        self._alpha = alpha
        self._feedback = feedback
        self._biases: dict[str, _Bias] = {}  # by category: a small set, chosen by the describer, never by a client

    def predict(self, request: Request) -> Estimate:
        base, bias = base_tokens(request.category), self.bias(request)
        length = float(int(base * bias * SAFETY_FACTORS[request.tier] * input_factor(request.prompt_tokens)))
        return Estimate(length, q50=length, q80=length, q90=length)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        return self.predict(request)

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        """Move the category's bias to actual / base, which counts as at least 0.25 and at most 3."""
        if not self._feedback:
            return
        base = base_tokens(request.category)
        actual = max(MIN_RATIO * base, min(usage.completion_tokens, MAX_RATIO * base))  # then divide: no overflow
        bias = self._biases.setdefault(request.category, _Bias())
        bias.num_learnt += 1
        bias.ratio = (1 - self._alpha) * bias.ratio + self._alpha * (actual / base)

    def bias(self, request: Request) -> float:
        bias = self._biases.get(request.category)
        return bias.ratio if bias else 1.0

    def snapshot(self) -> dict[str, object]:
        rows = ((name, bias.num_learnt, bias.ratio) for name, bias in self._biases.items() if is_keepable(name))
        return make_state(STATE_VERSION, rows)

    def restore(self, state: Mapping[str, object]) -> None:
        """Without feedback nothing is taken over."""
        biases = _biases_of(state)
        if self._feedback:
            self._biases = biases

    def merge(self, state: Mapping[str, object]) -> None:
        """The mean of both ratios, weighed by the answers learnt, of which the last 1 / alpha count."""
        others = _biases_of(state)
        if not self._feedback:
            return
        for category, other in others.items():
            bias = self._biases.setdefault(category, _Bias())
            bias.ratio += share_of(other.num_learnt, bias.num_learnt, 1 / self._alpha) * (other.ratio - bias.ratio)
            bias.num_learnt = add_counts(bias.num_learnt, other.num_learnt)


def _biases_of(state: Mapping[str, object]) -> dict[str, _Bias]:
    """Raises `ValueError`."""
    rows = read_rows(state, version=STATE_VERSION, kinds=(str, int, float), max_rows=MAX_CATEGORIES)
    return {name: _Bias(count, check_range("ratio", ratio, MIN_RATIO, MAX_RATIO)) for name, count, ratio in rows}
