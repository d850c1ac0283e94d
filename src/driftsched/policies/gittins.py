"""Shortest first, by the whole distribution of the predicted length instead of one number."""

from math import ceil, inf

from driftsched.core.model import Estimate, Load, Request, Usage

WORST_SHARE = 0.1
"""Of the lengths, for the conditional value at risk."""


class Gittins:
    """Serve the request that promises most endings for the tokens spent on it.

    Why: a request that ends at once or never is worth a try before one that surely takes long, and a mean hides
    the difference. Trade-off: that of `sjf`; and without a predicted distribution it is `sjf` by answers alone.

    `index`: `gittins` ranks by the smallest ratio, over all lengths d, of the tokens spent if the answer is given
    up at d to the chance that it has ended by then; `risk` by mean + `b` times the mean of the longest tenth, so
    that of two with the same mean the surer one goes first.

    Source: Gittins, "Bandit Processes and Dynamic Allocation Indices", 1979, at age 0. The risk-adjusted score is
    that of TIE (arXiv 2604.00499).
    """

    def __init__(self, index: str = "gittins", b: float = 0.3) -> None:
        """`b`, >= 0, matters to `risk` only. Raises `ValueError` for what is out of range."""
        if index not in ("gittins", "risk"):
            raise ValueError(f"index must be gittins or risk, but is {index!r}")
        if not 0 <= b < inf:
            raise ValueError(f"b must be a number >= 0, but is {b}")
        self._index = gittins_index if index == "gittins" else self._risk
        self._b = b

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return self._index(estimate.lengths or (estimate.completion_tokens,))

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0

    def _risk(self, lengths: tuple[float, ...]) -> float:
        worst = lengths[-ceil(WORST_SHARE * len(lengths)) :]
        return sum(lengths) / len(lengths) + self._b * sum(worst) / len(worst)


def gittins_index(lengths: tuple[float, ...]) -> float:
    """Tokens spent for each answer that ends, at best; `lengths` are equally likely and ascending."""
    best, spent_below = inf, 0.0
    for number, length in enumerate(lengths, start=1):
        spent_below += length
        spent = spent_below + (len(lengths) - number) * length  # the longer ones are given up at `length`
        best = min(best, spent / number)
    return best
