"""The order in which a saturated gateway serves is that of its policy, and that of the simulator."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean
from time import monotonic

import aiohttp
import pytest

from driftsched.config import LimitSettings, PartSettings, Settings, TenantSettings
from driftsched.core.events import Admitted, Dispatched, Event, Finished, Reranked
from driftsched.core.model import Ticket, Usage
from driftsched.core.revision import MAX_RERANKS
from driftsched.core.scheduler import Scheduler
from driftsched.engines.lengths import Drift, LengthLaw
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import get_hardware
from driftsched.engines.simulated import SimulatedEngine
from driftsched.estimators import create_counter, create_estimator
from driftsched.estimators.categories import BASE_TOKENS, KeywordClassifier
from driftsched.estimators.describe import PromptDescriber
from driftsched.policies import create_policy
from driftsched.policies.weighted import TIER_SHARES
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import Arrival, simulate
from support.servers import House, chat, live_gateway, simulated, until

TENANTS = [TenantSettings("p", "premium"), TenantSettings("s", "standard"), TenantSettings("b", "batch")]
PROMPTS = {"short": "What is it?", "summary": "Summarize it", "report": "A detailed and comprehensive report"}
BURST = [
    (tenant, PROMPTS[kind])
    for tenant, kind in zip("bspbbssppbsbpsbbps", ("report", "short", "summary") * 6, strict=True)
]
AGING = 500.0  # tiers per second: a head start of 2 ms, about what lies between two arrivals of the burst


@dataclass(frozen=True)
class Record:
    """What happened to the burst."""

    events: list[Event]
    plugs: list[Ticket]
    """What filled the slots before the burst came."""
    burst: list[Ticket]
    """In order of admission."""

    @property
    def dispatched(self) -> list[str]:
        order = [event.ticket.id for event in self.events if isinstance(event, Dispatched)]
        return order[len(self.plugs) :]


async def record_of(
    http: aiohttp.ClientSession, policy: str, slots: int, *, max_reranks: int = MAX_RERANKS, **options: object
) -> Record:
    """Fill every slot, let the burst arrive one by one while the engine stands still, then let it run."""
    engine = simulated(slots=slots, speed=2000.0)
    settings = Settings(
        policy=PartSettings(policy, options),
        estimator=PartSettings("calibrated"),
        tenants=list(TENANTS),
        limits=LimitSettings(max_reranks=max_reranks),
    )
    async with live_gateway(engine, slots=slots, settings=settings) as house:
        engine.hold()
        plug = {"max_tokens": 2000, "ignore_eos": True}
        calls = [await admitted(http, house, "plug", "x", **plug) for _ in range(slots)]
        calls += [await admitted(http, house, tenant, prompt) for tenant, prompt in BURST]
        engine.resume()
        assert {200} == set(await asyncio.gather(*calls))
        tickets = [event.ticket for event in house.of(Admitted)]
        return Record(list(house.events), tickets[:slots], tickets[slots:])


async def admitted(
    http: aiohttp.ClientSession, house: House, tenant: str, prompt: str, **fields: object
) -> "asyncio.Task[int]":
    """A call that has its place in line."""
    num_before = len(house.of(Admitted))
    call = asyncio.create_task(status_of(http, house, chat(prompt, user=tenant, **fields)))
    await until(lambda: len(house.of(Admitted)) > num_before)
    return call


async def status_of(http: aiohttp.ClientSession, house: House, body: dict[str, object]) -> int:
    async with http.post(f"{house.url}/v1/chat/completions", json=body) as response:
        await response.read()
        return response.status


def fifo(record: Record) -> list[Ticket]:
    return sorted(record.burst, key=lambda t: t.request.arrived_at)


def priority(record: Record) -> list[Ticket]:
    return sorted(record.burst, key=lambda t: (t.request.tier, t.request.arrived_at))


def aging(record: Record) -> list[Ticket]:
    return sorted(record.burst, key=lambda t: t.request.arrived_at + t.request.tier / AGING)


def sjf(record: Record) -> list[Ticket]:
    return sorted(record.burst, key=lambda t: t.request.prompt_tokens + t.estimate.completion_tokens)


def weighted(record: Record) -> list[Ticket]:
    """Next is the tier that was served least for its share; all begin where the tier of the plugs was."""
    lines = {tier: [t for t in record.burst if t.request.tier == tier] for tier in TIER_SHARES}
    start = sum(1 / TIER_SHARES[plug.request.tier] for plug in record.plugs)
    served = dict.fromkeys(lines, start)
    order = []
    while any(lines.values()):
        tier = min((tier for tier in lines if lines[tier]), key=lambda tier: (served[tier], tier))
        served[tier] += 1 / TIER_SHARES[tier]
        order.append(lines[tier].pop(0))
    return order


DEFINITIONS = {"fifo": fifo, "priority": priority, "aging": aging, "sjf": sjf, "weighted": weighted}
OPTIONS = {"aging": {"tiers_per_second": AGING}}


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("policy", DEFINITIONS)
async def test_a_burst_is_served_in_the_order_that_the_policy_defines(
    http: aiohttp.ClientSession, policy: str, slots: int
) -> None:
    record = await record_of(http, policy, slots, max_reranks=0, **OPTIONS.get(policy, {}))
    expected = [ticket.id for ticket in DEFINITIONS[policy](record)]
    assert expected == record.dispatched
    assert (policy == "fifo") == (expected == [ticket.id for ticket in record.burst])


@pytest.mark.parametrize("slots", [1, 3])
async def test_a_burst_is_served_fairly_by_what_each_tenant_really_used(
    http: aiohttp.ClientSession, slots: int
) -> None:
    record = await record_of(http, "fair", slots, max_reranks=0)
    lines: dict[str, list[Ticket]] = {}
    for ticket in record.burst:
        lines.setdefault(ticket.request.tenant.id, []).append(ticket)
    for line in lines.values():
        line.sort(key=lambda ticket: ticket.rank)
    served = dict.fromkeys(lines, sum(expected_price(plug) for plug in record.plugs))
    served["plug"] = inf  # it waits for nothing more
    for event in record.events:
        if isinstance(event, Dispatched) and event.ticket not in record.plugs:
            tenant = min((t for t in lines if lines[t]), key=lambda t: (served[t], t))
            assert lines[tenant].pop(0).id == event.ticket.id
            served[tenant] += expected_price(event.ticket)
        elif isinstance(event, Finished):
            correction = price(event.ticket, event.usage) - expected_price(event.ticket)
            served[event.ticket.request.tenant.id] += correction
    assert {"p": [], "s": [], "b": []} == lines


@pytest.mark.parametrize(("max_reranks", "follows"), [(MAX_RERANKS, True), (0, False)])
async def test_who_waits_follows_what_is_learnt_unless_told_not_to(
    http: aiohttp.ClientSession, max_reranks: int, follows: bool
) -> None:
    record = await record_of(http, "sjf", 1, max_reranks=max_reranks)
    assert follows == any(isinstance(event, Reranked) for event in record.events)


def price(ticket: Ticket, usage: Usage) -> float:
    """A token of the prompt counts one, a generated one two, by the share of the tier."""
    return (usage.prompt_tokens + 2 * usage.completion_tokens) / TIER_SHARES[ticket.request.tier]


def expected_price(ticket: Ticket) -> float:
    return price(ticket, Usage(ticket.request.prompt_tokens, round(ticket.estimate.completion_tokens)))


BY_PREDICTION = ("slack", "boost", "gittins", "vtc", "lag", "fair", "composite")
LIVE_AND_SIMULATED = [(policy, 1) for policy in (*DEFINITIONS, *BY_PREDICTION)] + [
    (policy, 3) for policy in DEFINITIONS
]
# Fair with several slots depends on which of two answers ends first: on the wall clock that is no repeatable fact.


@pytest.mark.parametrize(("policy", "slots"), LIVE_AND_SIMULATED)
async def test_the_simulator_serves_the_same_requests_in_the_same_order(
    http: aiohttp.ClientSession, policy: str, slots: int
) -> None:
    record = await record_of(http, policy, slots, **OPTIONS.get(policy, {}))  # type: ignore[arg-type]
    finished = {event.ticket.id: event for event in record.events if isinstance(event, Finished)}
    arrivals = [
        Arrival(
            replace(ticket.request, expires_at=inf),
            finished[ticket.id].usage.completion_tokens,
            finished[ticket.id].finish_reason,
        )
        for ticket in (*record.plugs, *record.burst)
    ]
    events: list[Event] = []
    scheduler = Scheduler(
        policy=create_policy(policy, **OPTIONS.get(policy, {})),
        estimator=create_estimator("calibrated"),
        describer=PromptDescriber(KeywordClassifier(), create_counter("bytes")),
        queue=MemoryQueue(slots),
        listeners=[events.append],
    )
    simulate(arrivals, scheduler, BatchModel(get_hardware("l4-qwen1.5-1.8b"), max_num_seqs=slots))
    assert Record(events, record.plugs, record.burst).dispatched == record.dispatched


DRIFT_AT = 10_000.0
SPEED = 2000.0


class LeapingClock:
    """The monotonic clock, with leaps."""

    def __init__(self) -> None:
        self.leapt = 0.0

    def now(self) -> float:
        return monotonic() + self.leapt


async def errors_around_a_drift(http: aiohttp.ClientSession, estimator: str) -> tuple[float, float]:
    """Mean absolute error in tokens before answers become twice as long, and once it was time to learn that."""
    clock = LeapingClock()
    engine = SimulatedEngine(
        BatchModel(get_hardware("l4-qwen1.5-1.8b"), max_num_seqs=8),
        LengthLaw(BASE_TOKENS, cv=0.1, drifts=[Drift(DRIFT_AT, 2.0)]),
        KeywordClassifier().classify,
        speed=SPEED,
        clock=clock,
    )
    async with live_gateway(engine, slots=8, policy="sjf", estimator=estimator) as house:
        await call_all(http, house, range(48))
        before = mean_absolute_error(house.of(Finished))
        clock.leapt += DRIFT_AT / SPEED
        await call_all(http, house, range(48, 192))
        return before, mean_absolute_error(house.of(Finished)[-72:])


async def call_all(http: aiohttp.ClientSession, house: House, numbers: range) -> None:
    """Eight at a time; each has a length of its own, the same whoever predicts it."""
    prompts = list(PROMPTS.values())
    for start in numbers[::8]:
        calls = [status_of(http, house, chat(prompts[n % 3], seed=n)) for n in range(start, start + 8)]
        assert {200} == set(await asyncio.gather(*calls))


def mean_absolute_error(finished: Sequence[Finished]) -> float:
    return fmean(abs(e.usage.completion_tokens - e.ticket.estimate.completion_tokens) for e in finished)


async def test_feedback_removes_most_of_the_error_that_a_drift_brings(http: aiohttp.ClientSession) -> None:
    right_at_first, wrong = await errors_around_a_drift(http, "static")
    _, corrected = await errors_around_a_drift(http, "calibrated")
    assert wrong > 5 * right_at_first
    assert corrected <= 0.4 * wrong
