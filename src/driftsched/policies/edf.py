"""Earliest deadline first, for those who can still meet theirs."""

from math import ceil, inf, isfinite

from driftsched.core.model import Estimate, Load, Request, Tier, Usage

IN_TIME, LATE = 0, 1
"""Bands."""


class Edf:
    """Serve the request that must start soonest to end within its tier's target; those that cannot, after the rest.

    Why: the most requests in time while the engine can keep up, and under overload as many in time as it can serve
    instead of all of them late. Trade-off: whoever is judged late at admission waits until nobody in time waits, or
    for its maximum wait; and only targets count, not length or tenant.

    A request must start at its arrival plus the target less the time its answer takes: the 80th percentile of the
    predicted length, at the speed at which one answer now grows. It is judged late, once and for good, if what
    waits in time with the same or a shorter target fills more than `headroom` of the time until then: the rest is
    for more urgent requests that come later.

    A request that brings a target of its own (`target_seconds`) is served by that, but never as if it were shorter
    than `tightest` of its tier's, nor than the time that its answer takes: whoever claims too much comes before
    those of its tier that arrived a while earlier, or is judged late, and gains no more.

    Source: earliest deadline first with relegation: Niyama (Goel et al., arXiv 2503.22562), SCORPIO (arXiv
    2505.23022).
    """

    def __init__(
        self,
        premium_seconds: float = 30.0,
        standard_seconds: float = 60.0,
        batch_seconds: float = 600.0,
        headroom: float = 0.5,
        tightest: float = 0.5,
    ) -> None:
        """Targets for the time from arrival to the end of the answer, by tier; finite, > 0.

        `headroom`: share of the time until a request must start that what waits already may fill, > 0.

        `tightest`: shortest target that is believed, as a share of the tier's, above 0, at most 1.
        """
        self._targets = {
            Tier.PREMIUM: premium_seconds,
            Tier.STANDARD: standard_seconds,
            Tier.BATCH: batch_seconds,
        }
        self._headroom = headroom
        self._tightest = tightest
        if not 0 < tightest <= 1:
            raise ValueError(f"tightest must be above 0 and at most 1, but is {tightest}")
        if not 0 < headroom < inf:
            raise ValueError(f"headroom must be a number > 0, but is {headroom}")
        for tier, seconds in self._targets.items():
            if not 0 < seconds < inf:
                raise ValueError(f"{tier.label}_seconds must be a number > 0, but is {seconds}")

    def band(self, request: Request) -> int:
        return IN_TIME

    def triage(self, request: Request, estimate: Estimate, load: Load) -> int:
        """`LATE` if it cannot start in time behind those with the same or a shorter target."""
        target = self._target(request, estimate, load)
        ahead_tokens = sum(
            tokens
            for (band, tier), tokens in load.waiting_by_band_and_tier.items()
            if band == IN_TIME and (self._targets[tier] <= target or tier == request.tier)
        )
        ahead_seconds = ahead_tokens / load.tokens_per_second if load.tokens_per_second > 0 else 0.0
        return IN_TIME if ahead_seconds <= self._headroom * (target - _answer_seconds(estimate, load)) else LATE

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at + self._target(request, estimate, load) - _answer_seconds(estimate, load)

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0

    def _target(self, request: Request, estimate: Estimate, load: Load) -> float:
        """Its own, within bounds, or that of its tier."""
        of_tier = self._targets[request.tier]
        if request.target_seconds is None:
            return of_tier
        return max(request.target_seconds, self._tightest * of_tier, _answer_seconds(estimate, load))


def _answer_seconds(estimate: Estimate, load: Load) -> float:
    """What the answer takes once it has started; 0 while the speed is unknown, or not to be believed."""
    if not load.tokens_per_second > 0:
        return 0.0
    lengths = estimate.lengths or (estimate.completion_tokens,)
    tokens = lengths[ceil(0.8 * len(lengths)) - 1]
    seconds = tokens * max(1, load.num_inflight) / load.tokens_per_second
    return seconds if isfinite(seconds) else 0.0
