"""Recordings made by hand, and a queue simple enough to check figures against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import nan
from random import Random
from typing import Any

from driftsched.sim.recording import Recording, runtime_class


@dataclass(frozen=True, slots=True)
class Served:
    """One request of a recording; what is not given is as plain as can be."""

    arrived_at: float = 0.0
    dispatched_at: float = nan
    finished_at: float = nan
    first_token_at: float = nan
    tenant: str = "acme"
    weight: float = 1.0
    tier: str = "standard"
    category: str = "short_qa"
    phase: str = "steady"
    prompt_tokens: int = 10
    completion_tokens: int = 20
    predicted_tokens: float = 25.0
    outcome: str = "finished"
    finish_reason: str = "stop"


def recording_of(
    requests: Sequence[Served],
    *,
    policy: str = "fifo",
    estimator: str = "static",
    engine_mode: str = "continuous",
    variant: str = "plain",
    seed: int = 1,
    slots: int = 1,
    **more: Any,
) -> Recording:
    return Recording(
        policy=policy,
        estimator=estimator,
        engine_mode=engine_mode,
        variant=variant,
        seed=seed,
        slots=slots,
        arrived_at=[r.arrived_at for r in requests],
        dispatched_at=[r.dispatched_at for r in requests],
        first_token_at=[r.first_token_at for r in requests],
        finished_at=[r.finished_at for r in requests],
        tenant=[r.tenant for r in requests],
        tenant_weight=[r.weight for r in requests],
        tier=[r.tier for r in requests],
        category=[r.category for r in requests],
        runtime_class=[runtime_class(r.prompt_tokens + r.predicted_tokens) for r in requests],
        phase=[r.phase for r in requests],
        prompt_tokens=[r.prompt_tokens for r in requests],
        completion_tokens=[r.completion_tokens for r in requests],
        predicted_tokens=[r.predicted_tokens for r in requests],
        outcome=[r.outcome for r in requests],
        finish_reason=[r.finish_reason for r in requests],
        charge=[0.0 for _ in requests],
        **more,
    )


MEANS: Mapping[str, int] = {"short_qa": 40, "summary": 160, "technical": 260, "report": 420}
TIERS: Mapping[str, str] = {"acme": "premium", "globex": "standard", "initech": "batch"}


def queue_run(
    policy: str = "fifo",
    *,
    seed: int = 1,
    requests: int = 400,
    rate: float = 7.0,
    slots: int = 8,
    speed: float = 1.0,
    **facts: Any,
) -> Recording:
    """A queue with `slots` servers under Poisson load, three tenants and four kinds of request.

    `sjf` serves the shortest prediction first, anything else the first come. `speed` divides service times.
    """
    draw = Random(seed)
    now, arrivals = 0.0, []
    for number in range(requests):
        now += draw.expovariate(rate)
        category = draw.choice(list(MEANS))
        tenant = draw.choices(list(TIERS), [5, 3, 2])[0]
        length = max(1, round(draw.lognormvariate(0, 0.4) * MEANS[category]))
        phase = "calibration" if number < requests // 3 else "stress"
        arrivals.append((now, tenant, category, length, phase))

    free = [0.0] * slots
    waiting: list[tuple[float, int]] = []
    served: dict[int, Served] = {}
    depth, coming = [], 0
    while coming < len(arrivals) or waiting:
        at = heappop(free)
        if not waiting and coming < len(arrivals):
            at = max(at, arrivals[coming][0])
        while coming < len(arrivals) and arrivals[coming][0] <= at:
            key = MEANS[arrivals[coming][2]] if policy == "sjf" else 0
            heappush(waiting, (key, coming))
            coming += 1
        if not waiting:
            continue
        number = heappop(waiting)[1]
        depth.append((at, len(waiting)))
        arrived, tenant, category, length, phase = arrivals[number]
        end = at + (0.2 + length * 0.005) / speed
        heappush(free, end)
        served[number] = Served(
            arrived,
            at,
            end,
            first_token_at=at + 0.2 / speed,
            tenant=tenant,
            tier=TIERS[tenant],
            category=category,
            phase=phase,
            prompt_tokens=20,
            completion_tokens=min(length, 512),
            predicted_tokens=float(MEANS[category]),
            finish_reason="length" if length >= 512 else "stop",
        )
    bias = [(at, category, 1 + 0.2 * at / now) for at in (0.0, now / 2, now) for category in MEANS]
    return recording_of(
        [served[number] for number in range(len(arrivals))],
        policy=policy,
        seed=seed,
        slots=slots,
        queue_depth=depth,
        max_queue_depth=max(waiting for _, waiting in depth),
        bias=sorted(bias),
        **facts,
    )
