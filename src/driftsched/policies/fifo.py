"""First in, first out."""

from driftsched.core.model import Estimate, Load, Request, Usage


class Fifo:
    """Serve in order of arrival, whoever asks and whatever for.

    Why: no order has a lighter tail when lengths are light-tailed, and none is easier to explain. Trade-off: one
    long answer, or one tenant's burst, delays everybody behind it.

    Source: the reference system's baseline (DriftSched, arXiv 2606.02982).
    """

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0
