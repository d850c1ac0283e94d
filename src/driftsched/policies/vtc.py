"""Token fairness between tenants."""

from driftsched.core.model import Estimate, Load, Request, Usage
from driftsched.policies.weighted import TIER_SHARES

PROMPT_WEIGHT = 1.0
COMPLETION_WEIGHT = 2.0


class Vtc:
    """Serve the tenant that got the fewest tokens for its weight; of its requests, the one that came first.

    Why: a flooding tenant delays itself and nobody else, whatever it sends. Trade-off: inside a tenant a long
    answer delays the short ones behind it, and a tenant that asks for more than its share waits.

    A tenant's weight is its own times the share of the tier the request is served at (50/30/20). A request is
    charged its expected tokens when it is dispatched, more as its answer outgrows them, and corrected to the actual
    ones when it is settled, so a tenant can gain nothing by being hard to predict.

    Source: the virtual token counter, in its variant with predicted lengths (Sheng et al., "Fairness in Serving
    Large Language Models", OSDI 2024, whose weights 1 and 2 for prompt and completion tokens are used).
    """

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return request.tenant.id

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at

    def charge(self, request: Request, usage: Usage) -> float:
        return tokens_of(usage) / (request.tenant.weight * TIER_SHARES[request.tier])


def tokens_of(usage: Usage) -> float:
    """What `usage` counts as work: a completion token costs an engine more than one of the prompt."""
    return PROMPT_WEIGHT * usage.prompt_tokens + COMPLETION_WEIGHT * usage.completion_tokens
