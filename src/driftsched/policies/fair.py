"""Token fairness between tenants, short requests first inside each."""

from math import inf

from driftsched.core.model import Estimate, Load, Request, Usage
from driftsched.policies.slack import Slack
from driftsched.policies.vtc import Vtc


class Fair:
    """Serve the tenant that got the fewest tokens for its weight; of its requests, short ones may overtake.

    Why: a flooding tenant delays itself and nobody else, and short requests do not queue behind long ones.
    Trade-off: a long request may wait `slack` times the usual drain time on top of its tenant's turn.

    `vtc` between tenants, `slack` inside each.

    Source: the virtual token counter with predicted lengths (Sheng et al., OSDI 2024) around a bounded-slack order
    of the Boost family (Yu and Scully, 2024).
    """

    def __init__(self, slack: float = 3.0) -> None:
        """`slack`: usual drain times for which the longest requests give way to shorter ones of their tenant,
        >= 0; 0 is order of arrival."""
        if not 0 <= slack < inf:
            raise ValueError(f"slack must be a number >= 0, but is {slack}")
        self._between = Vtc()
        self._inside = Slack(slack)

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return self._between.flow(request)

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return self._inside.rank(request, estimate, load)

    def charge(self, request: Request, usage: Usage) -> float:
        return self._between.charge(request, usage)
