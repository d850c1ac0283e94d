"""Strict tiers."""

from driftsched.core.model import Estimate, Load, Request, Usage


class Priority:
    """Serve premium before standard before batch; order of arrival inside a tier.

    Why: the best tier never waits for a lower one. Trade-off: under overload the lower tiers are not served at all,
    until their maximum wait is over.

    Source: the reference system's Priority scheduler (DriftSched, arXiv 2606.02982).
    """

    def band(self, request: Request) -> int:
        return int(request.tier)

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0
