"""Priority that grows with waiting."""

from driftsched.core.model import Estimate, Load, Request, Usage


class Aging:
    """Serve the best tier, where every 100 seconds of waiting make up for one tier.

    Why: strict tiers for short waits, order of arrival for long ones. Trade-off: if everybody waits longer than the
    head start, it is order of arrival; if nobody does, it is strict priority.

    Source: the reference system's Aging scheduler (DriftSched, arXiv 2606.02982) serves the smallest
    `tier - rate * seconds waited` and scans the whole queue for it. All waits grow at the same pace, so the order
    is that of `arrived_at + tier / rate`, which never changes and needs no scan.
    """

    def __init__(self, tiers_per_second: float = 0.01) -> None:
        """`tiers_per_second`: how fast waiting makes up for tiers, > 0. Raises `ValueError` otherwise."""
        if not tiers_per_second > 0:
            raise ValueError(f"tiers_per_second must be > 0, but is {tiers_per_second}")
        self._seconds_per_tier = 1 / tiers_per_second

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at + request.tier * self._seconds_per_tier

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0
