"""Shortest job first."""

from driftsched.core.model import Estimate, Load, Request, Usage


class Sjf:
    """Serve the request with the fewest predicted tokens, prompt and completion together.

    Why: the lowest median and mean wait of all orders that do not preempt. Trade-off: a long request waits for as
    long as shorter ones keep coming (until its maximum wait), and a tenant with short requests gets everything.

    Source: the reference system's SJF scheduler (DriftSched, arXiv 2606.02982). There a safety margin by tier leaks
    into the key, so that premium waits longest; here only the `ema` estimator, which reproduces it, does that.
    """

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return "all"

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.prompt_tokens + estimate.completion_tokens

    def charge(self, request: Request, usage: Usage) -> float:
        return 0.0
