"""Short requests first, and nobody passed over for long."""

from math import inf

from driftsched.core.model import Estimate, Load, Request, Usage


class Slack:
    """Serve in order of arrival, where a long request gives way to shorter ones for a bounded time.

    Why: nearly the median of shortest first, with a tail near that of order of arrival. Trade-off: the longest
    tenth of the requests may wait `beta` times the usual drain time more than in order of arrival.

    A request gives way for `beta` times the drain time that requests of late found on average, times its predicted
    length over the ninth decile of the lengths predicted of late, at most 1. The usual drain time rather than the
    present one: while the backlog is small everybody short still passes, and when it is large the order is nearly
    that of arrival, which keeps the tail short.

    Source: a member of the Boost family (Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed
    M/G/1", 2024): an arrival time less a boost that falls with size, here a straight line.
    """

    def __init__(self, beta: float = 4.0) -> None:
        """`beta`: usual drain times for which the longest requests give way, >= 0; 0 is order of arrival."""
        if not 0 <= beta < inf:
            raise ValueError(f"beta must be a number >= 0, but is {beta}")
        self._beta = beta

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        length = min(estimate.completion_tokens / load.long_tokens, 1.0) if load.long_tokens > 0 else 1.0
        return request.arrived_at + self._beta * load.usual_drain_seconds * length

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0
