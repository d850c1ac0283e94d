"""Shares of the requests, by tier."""

from collections.abc import Mapping

from driftsched.core.model import Estimate, Load, Request, Tier, Usage

TIER_SHARES: Mapping[Tier, float] = {Tier.PREMIUM: 50, Tier.STANDARD: 30, Tier.BATCH: 20}

_PRICE_AT_SHARE_1 = 300.0
"""The least common multiple of the shares: every charge is a whole number, and equal service is exactly equal."""


class Weighted:
    """Give premium 50, standard 30 and batch 20 of every 100 requests served, while all three wait.

    Why: tiers get a known share and none starves. Trade-off: a share of requests is not a share of the engine; a
    tier that asks for long answers takes more tokens than its share says.

    Source: the reference system's Weighted scheduler (DriftSched, arXiv 2606.02982) walks a cycle of ten slots,
    five premium, three standard, two batch. Here a request costs its tier in proportion to 1 / share, and the least
    served tier is next, which gives the same shares, spread evenly, and survives a tier falling idle.
    """

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return f"tier{request.tier:d}"  # numbered, so that of equally served tiers the better one goes first

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at

    def charge(self, request: Request, usage: Usage) -> float:
        return _PRICE_AT_SHARE_1 / TIER_SHARES[request.tier]
