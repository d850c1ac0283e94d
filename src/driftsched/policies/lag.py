"""Short requests first across tenants, until one of them lags."""

from math import inf

from driftsched.core.model import Estimate, Load, Request, Tier, Usage
from driftsched.policies.slack import Slack
from driftsched.policies.vtc import Vtc
from driftsched.policies.weighted import TIER_SHARES


class Lag:
    """Serve short requests first whoever asks; but once a tenant lags by a stated number of tokens, it is served.

    Why: nearly the median of `slack`, with a bound on how far a flooding tenant can get ahead. Trade-off: a light
    tenant waits as under `slack` until the bound is reached; `fair` protects it at once.

    The order is that of `slack`. Accounts are kept as by `vtc`. The first in order is served unless its tenant is
    ahead of the least served waiting one by more than `tokens` for its weight; then the latter is served.

    Source: the idea of a bounded deviation from a preferred order is that of deficit longest prefix match (Cao et
    al., "Locality-aware Fair Scheduling in LLM Serving", arXiv 2501.14312), there for cache hits.
    """

    def __init__(self, tokens: float = 20_000.0, beta: float = 3.0) -> None:
        """`tokens`, > 0: prompt tokens + 2 x completion tokens, of a tenant of weight 1 at tier standard.

        `beta`: as of `slack`.
        """
        if not 0 < tokens < inf:
            raise ValueError(f"tokens must be a number > 0, but is {tokens}")
        self._accounts = Vtc()
        self._order = Slack(beta)
        self._lead = tokens / TIER_SHARES[Tier.STANDARD]

    @property
    def lead(self) -> float:
        return self._lead

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return self._accounts.flow(request)

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return self._order.rank(request, estimate, load)

    def charge(self, request: Request, usage: Usage) -> float:
        return self._accounts.charge(request, usage)
