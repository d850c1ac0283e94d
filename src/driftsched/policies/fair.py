"""Token fairness between tenants, short requests first inside each."""

from math import inf

from driftsched.core.model import Estimate, Load, Request, Usage
from driftsched.policies.weighted import TIER_SHARES

PROMPT_WEIGHT = 1.0
COMPLETION_WEIGHT = 2.0

MAX_DRAIN_SECONDS = 600.0
"""A longer drain time is that of an engine that stands still, not of a backlog: it would exile who comes now."""


class Fair:
    """Serve the tenant that got the fewest tokens for its weight; of its requests, short ones may overtake.

    Why: a flooding tenant delays itself and nobody else, and short requests do not queue behind long ones.
    Trade-off: a long request may wait `slack` times as long as the backlog it found takes to drain, on top of its
    turn.

    A tenant's weight is its own times the share of the tier the request is served at (50/30/20). A request is
    charged its expected tokens when it is dispatched and corrected to the actual ones when it is settled, so a
    tenant can gain nothing by being hard to predict.

    Source: the virtual token counter with predicted lengths (Sheng et al., OSDI 2024, whose weights 1 and 2 for
    prompt and completion tokens are used) around a bounded-slack order of the Boost family (Yu and Scully, 2024).
    """

    def __init__(self, slack: float = 2.0) -> None:
        """`slack`: drain times by which the longest requests may be overtaken, >= 0; 0 is order of arrival."""
        if not 0 <= slack < inf:
            raise ValueError(f"slack must be a number >= 0, but is {slack}")
        self._slack = slack

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return request.tenant.id

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        if load.num_waiting == 0:
            return request.arrived_at
        long_tokens = 2 * load.waiting_tokens / load.num_waiting  # twice the mean is about the 90th percentile
        length = min(estimate.completion_tokens / long_tokens, 1.0) if long_tokens > 0 else 1.0
        return request.arrived_at + self._slack * min(load.drain_seconds, MAX_DRAIN_SECONDS) * length

    def charge(self, request: Request, usage: Usage) -> float:
        tokens = PROMPT_WEIGHT * usage.prompt_tokens + COMPLETION_WEIGHT * usage.completion_tokens
        return tokens / (request.tenant.weight * TIER_SHARES[request.tier])
