"""The reference's estimator: one running ratio per category."""

from collections.abc import Mapping

from driftsched.core.model import Estimate, Request, Tier, Usage
from driftsched.estimators.categories import base_tokens, input_factor

SAFETY_FACTORS: Mapping[Tier, float] = {Tier.PREMIUM: 1.2, Tier.STANDARD: 1.0, Tier.BATCH: 0.8}
"""Margin by tier (S_tenant)."""

MIN_RATIO = 0.25
MAX_RATIO = 3.0


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
        self._biases: dict[str, float] = {}  # by category: a small set, chosen by the describer, never by a client

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
        self._biases[request.category] = (1 - self._alpha) * self.bias(request) + self._alpha * (actual / base)

    def bias(self, request: Request) -> float:
        return self._biases.get(request.category, 1.0)
