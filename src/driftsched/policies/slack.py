"""Short requests first, and nobody passed over for long."""

from math import inf, log, tanh

from driftsched.core.model import Estimate, Load, Request, Usage

SHARPNESS = 8.0
"""A request of r middle lengths gives way for r^8 / (1 + r^8) of the whole: 0.09 at 3/4, 0.5 at 1, 0.91 at 4/3."""


class Slack:
    """Serve in order of arrival, where the longer half gives way to the shorter half for a bounded time.

    Why: nearly the median of shortest first, with a tail near that of order of arrival. Trade-off: the longer half
    of the requests may wait `beta` times the usual drain time more than in order of arrival.

    A request gives way for `beta` times the drain time that requests of late found on average, times a share that
    rises from 0 to 1 around the middle of the lengths predicted of late. The usual drain time rather than the
    present one: while the backlog is small everybody short still passes, and when it is large the order is nearly
    that of arrival, which keeps the tail short. A step rather than a line: a median is made of the shorter half,
    which no long request that passes a longer one brings forward. A soft one, so that lengths that hardly
    differ, or are hardly foreseen, hardly change the order.

    Source: a member of the Boost family (Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed
    M/G/1", 2024): an arrival time less a boost that falls with size. That one bit, short or long, has most of the
    gain is the finding of Mitzenmacher, "Queues with Small Advice", arXiv 2006.15463.
    """

    def __init__(self, beta: float = 3.0) -> None:
        """`beta`: usual drain times for which the longest requests give way, >= 0; 0 is order of arrival."""
        if not 0 <= beta < inf:
            raise ValueError(f"beta must be a number >= 0, but is {beta}")
        self._beta = beta

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at + self._beta * load.usual_drain_seconds * _share(estimate, load)

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0


def _share(estimate: Estimate, load: Load) -> float:
    """0..1 of the longest time for which any request gives way; 1 while no length is known."""
    if not load.middle_tokens > 0:
        return 1.0
    ratio = max(1.0, estimate.completion_tokens) / load.middle_tokens
    return 0.5 + 0.5 * tanh(SHARPNESS / 2 * log(ratio))  # r^8 / (1 + r^8), but never overflows
