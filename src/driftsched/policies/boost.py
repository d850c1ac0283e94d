"""Order of arrival with a boost for short requests that the tail itself asks for."""

from math import expm1, inf, log

from driftsched.core.model import Estimate, Load, Request, Usage


class Boost:
    """Serve as if short requests had come earlier: by `ln(1 / (1 - e^-gs)) / g` seconds for s seconds of work.

    Why: of all orders that do not preempt, the lightest tail where lengths have a light tail, and a median below
    that of order of arrival. Trade-off: `slack` with a large beta has the lower median.

    g, gamma, is the rate at which the tail of the work found on arrival decays. That work is close to exponential
    under load, so g is 1 over its mean: the drain time that requests of late found on average. s is the predicted
    length at the speed of the whole pool.

    Source: gamma-Boost (Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1", 2024). Gamma
    from the mean is the heavy-traffic approximation; the paper solves for it from arrivals and lengths.
    """

    def __init__(self, tilt: float = 1.0) -> None:
        """`tilt`: g times the usual drain time, > 0. 1 is the theory; less favours the median, more the tail."""
        if not 0 < tilt < inf:
            raise ValueError(f"tilt must be a number > 0, but is {tilt}")
        self._tilt = tilt

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        if not (load.usual_drain_seconds > 0 and load.tokens_per_second > 0):
            return request.arrived_at
        work_seconds = max(1.0, estimate.completion_tokens) / load.tokens_per_second
        scale_seconds = load.usual_drain_seconds / self._tilt  # 1 / gamma
        decayed = -expm1(-work_seconds / scale_seconds)  # 1 - e^-gs
        return request.arrived_at + log(decayed) * scale_seconds if decayed > 0 else request.arrived_at

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0
