"""Category limits, no feedback."""

from math import inf

from driftsched.core.model import Estimate, Request, Usage
from driftsched.estimators.categories import base_tokens


class Static:
    """Expect the base length of the request's category, for ever.

    Why: the yardstick that every learning estimator must beat. Trade-off: it is as wrong on the last day as on the
    first, and its quantiles carry no margin, since it knows nothing of the spread.
    """

    def predict(self, request: Request) -> Estimate:
        """The category's base length, never more than `max_tokens`."""
        limit = inf if request.max_tokens is None else request.max_tokens
        length = min(float(base_tokens(request.category)), limit)
        return Estimate(length, q50=length, q80=length, q90=length)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        return self.predict(request)

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        """Learns nothing."""

    def bias(self, request: Request) -> float:
        return 1.0
