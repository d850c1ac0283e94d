"""Strict tiers with another order inside each, and a reserved share so that none starves."""

from math import inf

from driftsched.core.model import Estimate, Load, Request, Tier, Usage
from driftsched.core.protocols import Policy
from driftsched.policies import create_policy
from driftsched.policies.vtc import tokens_of

TIER_RANK = 1e9
"""By which the ranks of two tiers differ: as seconds, longer than any two arrivals are apart."""


class Composite:
    """Serve the best tier that waits, in the order of another policy; every tier is sure of a share.

    Why: premium hardly ever waits for a lower tier, inside a tier short requests pass, and no lower tier starves.
    Trade-off: the reserved share is taken from the better tiers, and the better tier may take all else.

    A tier that waits beside the next better one is sure of `reserve` of the tokens that the two get: a token served
    to a tier counts (1 - reserve) / reserve times as much as one served to the tier above, and once the better tier
    is ahead by more than `tokens`, the one that lags is served. Flows of the inner policy, as tenants are, stay
    apart: each is sure of its tier's share beside others.

    Source: strict priority with a guaranteed minimum is class-based queueing (Floyd and Van Jacobson, "Link-sharing
    and Resource Management Models for Packet Networks", 1995); accounts are those of `vtc`.
    """

    def __init__(self, inner: str = "slack", reserve: float = 0.1, tokens: float = 20_000.0) -> None:
        """`inner`: the policy inside a tier, at its defaults. `reserve`: above 0, at most 0.5.

        `tokens`, > 0: prompt tokens + 2 x completion tokens that a tier may be ahead of its share.
        Raises `ValueError` for what is out of range, and `ConfigError` for a policy that does not exist.
        """
        if inner == "composite":
            raise ValueError("inner must be another policy")
        if not 0 < reserve <= 0.5:
            raise ValueError(f"reserve must be above 0 and at most 0.5, but is {reserve}")
        if not 0 < tokens < inf:
            raise ValueError(f"tokens must be a number > 0, but is {tokens}")
        self._inner: Policy = create_policy(inner)
        self._price_of_a_tier = {tier: ((1 - reserve) / reserve) ** tier for tier in Tier}
        self._tokens = tokens

    @property
    def lead(self) -> float:
        return self._tokens

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return f"{request.tier:d} {self._inner.flow(request)}"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.tier * TIER_RANK + self._inner.rank(request, estimate, load)

    def charge(self, request: Request, usage: Usage) -> float:
        return tokens_of(usage) * self._price_of_a_tier[request.tier]
