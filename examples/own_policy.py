"""A policy of your own, and the scheduler stepped by hand: no server, no clock, no event loop.

    python examples/own_policy.py

To offer such a policy to `driftsched serve --policy`, name the class in your package's entry points:

    [project.entry-points."driftsched.policies"]
    long-prompts-last = "your_package:LongPromptsLast"
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

from driftsched.core.model import Estimate, Load, Request, Tenant, Tier, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.estimators import create_counter, create_estimator
from driftsched.estimators.categories import KeywordClassifier
from driftsched.estimators.describe import PromptDescriber
from driftsched.policies import POLICIES, create_policy
from driftsched.queues.memory import MemoryQueue

T = TypeVar("T")


class LongPromptsLast:
    """Serve requests whose prompts are longer than a limit only when no other request waits."""

    def __init__(self, limit_tokens: int = 1000) -> None:
        self._limit_tokens = limit_tokens

    def band(self, request: Request) -> int:
        return int(request.prompt_tokens > self._limit_tokens)

    def flow(self, request: Request) -> str:
        return request.tenant.id

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at

    def charge(self, request: Request, usage: Usage) -> float:
        return usage.total_tokens / request.tenant.weight


def step(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits: with a memory queue, those of the scheduler do not."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("the coroutine waits for something")


def main() -> None:
    POLICIES.register("long-prompts-last", LongPromptsLast)
    scheduler = Scheduler(
        policy=create_policy("long-prompts-last", limit_tokens=1000),
        estimator=create_estimator("calibrated"),
        describer=PromptDescriber(KeywordClassifier(), create_counter("bytes")),
        queue=MemoryQueue(max_inflight=1),
    )
    asked = [("a", "x" * 8000), ("a", "Hi?"), ("b", "Summarize this: ..."), ("a", "Why?")]
    for at, (tenant, prompt) in enumerate(asked):
        request = Request(
            id=f"{tenant}{at}",
            tenant=Tenant(tenant),
            tier=Tier.STANDARD,
            model="any",
            arrived_at=at,
            prompt=prompt,
            prompt_bytes=len(prompt),
        )
        step(scheduler.submit(request, now=at))
    now = 10.0
    while ticket := step(scheduler.dispatch(now)):
        request, tokens = ticket.request, ticket.estimate.completion_tokens
        print(f"{request.id}: {request.category}, {tokens:.0f} tokens, waited {now - request.arrived_at:.0f} s")
        now += 1
        step(scheduler.finish(ticket.id, Usage(ticket.request.prompt_tokens, 50), "stop", now))


if __name__ == "__main__":
    main()
