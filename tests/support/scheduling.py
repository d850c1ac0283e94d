"""Schedulers stepped by hand, workloads, and what can be read from their events."""

import random
from collections.abc import Callable, Generator, Iterable, Sequence
from math import inf, log2

from driftsched.core.admission import Bounds
from driftsched.core.events import Dispatched, Event
from driftsched.core.model import Estimate, Request, Tenant, Tier, Usage
from driftsched.core.protocols import Estimator, Policy, Queue
from driftsched.core.quotas import Quotas
from driftsched.core.revision import MAX_RERANKS
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import Arrival, run_now, simulate

step = run_now
"""The result of a coroutine of the scheduler; raises if it suspends, and so proves that the core does no I/O."""

SLOTS = 8
MEAN_TOKENS = {"short_qa": 40.0, "summary": 150.0, "technical": 300.0, "report": 400.0}
TENANTS = (
    Tenant("acme", Tier.PREMIUM, weight=1.0),
    Tenant("bolt", Tier.STANDARD, weight=2.0),
    Tenant("cyan", Tier.STANDARD, weight=0.5),
    Tenant("dune", Tier.BATCH, weight=1.0),
)


class KnownDescriber:
    """Everything about the prompt is known already, as a trace's is."""

    def describe(self, request: Request) -> Request:
        return request

    def learn(self, request: Request, usage: Usage) -> None:
        pass


class CategoryMeans:
    """Expects the mean of the category, which a workload's answers scatter about; learns nothing."""

    def predict(self, request: Request) -> Estimate:
        length = MEAN_TOKENS.get(request.category, 100.0)
        return Estimate(length, q50=length, q80=1.5 * length, q90=2 * length)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        return self.predict(request)

    def learn(
        self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None
    ) -> float | None:
        return None

    def bias(self, request: Request) -> float:
        return 1.0


class Foretold(CategoryMeans):
    """Expects what it was told, by request."""

    def __init__(self) -> None:
        self.tokens: dict[str, float] = {}

    def predict(self, request: Request) -> Estimate:
        tokens = self.tokens[request.id]
        return Estimate(tokens, tokens, tokens, tokens)


class Learning(CategoryMeans):
    """Expects what was last seen in the category, to a power of two of its mean: it stays, or moves far."""

    def __init__(self) -> None:
        self.biases: dict[str, float] = {}

    def predict(self, request: Request) -> Estimate:
        length = MEAN_TOKENS[request.category] * self.bias(request)
        return Estimate(length, q50=length, q80=length, q90=length)

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        seen = max(1, usage.completion_tokens) / MEAN_TOKENS[request.category]
        self.biases[request.category] = 2.0 ** round(log2(seen))

    def bias(self, request: Request) -> float:
        return self.biases.get(request.category, 1.0)


class Pause:
    """Suspends once: what a queue on another machine does."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def request_at(
    at: float = 0.0,
    name: str = "r",
    *,
    tenant: Tenant | None = None,
    tier: Tier = Tier.STANDARD,
    category: str = "short_qa",
    prompt_tokens: int = 10,
    expires_at: float = inf,
    payload: object = None,
    payload_bytes: int = 0,
) -> Request:
    """A described request; its tenant is `t` of the same tier unless one is given."""
    return Request(
        id=name,
        tenant=tenant or Tenant("t", tier),
        tier=tier,
        model="m",
        arrived_at=at,
        prompt_tokens=prompt_tokens,
        category=category,
        expires_at=expires_at,
        payload=payload,
        payload_bytes=payload_bytes,
    )


def scheduler_of(
    policy: str | Policy = "fifo",
    *,
    slots: int = 1,
    estimator: Estimator | None = None,
    queue: Queue | None = None,
    bounds: Bounds | None = None,
    max_wait_seconds: dict[Tier, float] | None = None,
    max_inflight_tokens: float = inf,
    max_reranks: int = MAX_RERANKS,
    rejects_unattainable: bool = False,
    sheds: bool = False,
    quotas: Quotas | None = None,
    listeners: Iterable[Callable[[Event], None]] = (),
) -> Scheduler:
    """A scheduler over a memory queue, for requests that are described already."""
    return Scheduler(
        policy=create_policy(policy) if isinstance(policy, str) else policy,
        estimator=estimator or CategoryMeans(),
        describer=KnownDescriber(),
        queue=queue or MemoryQueue(slots),
        bounds=bounds,
        max_wait_seconds=max_wait_seconds,
        max_inflight_tokens=max_inflight_tokens,
        max_reranks=max_reranks,
        rejects_unattainable=rejects_unattainable,
        sheds=sheds,
        quotas=quotas,
        listeners=listeners,
    )


def workload(seed: int, *, num_requests: int = 600, requests_per_second: float = 4.0) -> list[Arrival]:
    """Poisson arrivals of four tenants in all tiers; the same for every policy, whatever it does with them.

    At the default rate `SLOTS` slots of the simulated engine fall behind, so that order matters.
    """
    times, kinds, lengths = (random.Random(f"{seed} {purpose}") for purpose in ("times", "kinds", "lengths"))
    arrivals, at = [], 0.0
    for number in range(num_requests):
        at += times.expovariate(requests_per_second)
        tenant = kinds.choice(TENANTS)
        category = kinds.choice(list(MEAN_TOKENS))
        name = f"{number:03d}-{tenant.id}-{category}"
        request = request_at(
            at, name, tenant=tenant, tier=tenant.tier, category=category, prompt_tokens=kinds.randint(5, 200)
        )
        arrivals.append(
            Arrival(request, completion_tokens=1 + round(lengths.gammavariate(4, MEAN_TOKENS[category] / 4)))
        )
    return arrivals


def simulated_events(policy: str | Policy, arrivals: Sequence[Arrival], *, slots: int = SLOTS) -> list[Event]:
    """All that happens when `arrivals` are served in virtual time under the policy's defaults."""
    events: list[Event] = []
    scheduler = scheduler_of(policy, slots=slots, listeners=[events.append])
    simulate(arrivals, scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=slots))
    return events


def dispatch_order(events: Iterable[Event]) -> list[str]:
    """Ids of the requests, in the order in which they were served."""
    return [event.ticket.id for event in events if isinstance(event, Dispatched)]
