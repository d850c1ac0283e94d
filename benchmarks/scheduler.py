"""What the core costs with a million tickets waiting: microseconds per request, the worst pause, bytes per ticket.

    python benchmarks/scheduler.py [--waiting 1000000] [--flows 10000] [--turns 200000] [--json FILE]

`lines` is the order alone: push, pop and settle of tickets made beforehand. `scheduler` is the whole plot over it:
submit, dispatch and finish, with the static estimator, a maximum wait for every tier and an expiry for every
request, so that both time indexes are full. Each fills up, takes turns (one request comes, one is dispatched, one
is settled) with everything waiting, then drains. Calls are timed one by one: the means in elapsed time, the worst
in processor time of the thread, because a shared machine's own pauses are no fault of the core.

The cyclic collector is off while calls are timed, because the core makes no cycles and a full collection has to
look at every ticket that waits: what one such collection takes is reported beside the pauses. Memory is what
`tracemalloc` counts per ticket with 50,000 waiting: for `lines` the order alone, for `scheduler` estimate and
ticket as well; the request is the caller's in both.
"""

import argparse
import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from time import perf_counter, thread_time
from typing import Any, NamedTuple, TypeVar

from driftsched.core.admission import Bounds
from driftsched.core.lines import Lines
from driftsched.core.model import Load, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.protocols import Policy
from driftsched.core.scheduler import Scheduler
from driftsched.estimators.static import Static
from driftsched.policies import POLICIES
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit
from driftsched.sim.driver import run_now

POLICY_NAMES = ("fifo", "fair")
CATEGORIES = ("chat", "code", "summary")
MAX_WAIT_SECONDS = {tier: 3600.0 * (1 + tier) for tier in Tier}
INFLIGHT = 64
MEMORY_SAMPLE = 50_000

R = TypeVar("R")


class Verbs(NamedTuple):
    """One way to run the core: what comes, what is served next, what has ended. Each a single timed call."""

    come: Callable[[int], object]
    serve: Callable[[], str]
    end: Callable[[str], object]


class Timer:
    """Time spent in calls of one kind."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.worst_seconds = 0.0

    def add(self, seconds: float, thread_seconds: float) -> None:
        self.calls += 1
        self.seconds += seconds
        self.worst_seconds = max(self.worst_seconds, thread_seconds)

    @property
    def mean_us(self) -> float:
        return self.seconds / self.calls * 1e6


def main() -> None:
    arguments = _arguments()
    results = [
        {"core": core, "policy": policy, **_measure(make, policy, arguments), **_memory(make, policy, arguments)}
        for core, make in (("lines", _lines), ("scheduler", _scheduler))
        for policy in POLICY_NAMES
    ]
    _print(results)
    document = {"conditions": _conditions(arguments), "results": results}
    print(json.dumps(document["conditions"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--flows", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _requests(flows: int) -> Iterator[Request]:
    """An endless seeded stream, a thousand arrivals per second."""
    rng = Random(1)
    tenants = [Tenant(f"tenant-{number}", Tier(number % 3)) for number in range(flows)]
    number = 0
    while True:
        tenant = rng.choice(tenants)
        yield Request(
            id=f"request-{number}",
            tenant=tenant,
            tier=tenant.tier,
            model="model",
            arrived_at=number / 1000,
            prompt_tokens=rng.randrange(10, 2000),
            category=rng.choice(CATEGORIES),
            max_tokens=rng.randrange(1, 1000),
            expires_at=number / 1000 + 7200 + rng.random() * 3600,
        )
        number += 1


def _ticket(policy: Policy, request: Request, seq: int, load: Load) -> Ticket:
    estimate = Static().predict(request)
    return Ticket(
        request=request,
        estimate=estimate,
        seq=seq,
        band=policy.band(request),
        flow=policy.flow(request),
        rank=policy.rank(request, estimate, load),
        charge=policy.charge(request, Usage(request.prompt_tokens, round(estimate.completion_tokens))),
        overdue_at=request.arrived_at + MAX_WAIT_SECONDS[request.tier],
    )


def _lines(policy_name: str, requests: list[Request]) -> Verbs:
    """The order alone; its tickets are made here, before any clock runs."""
    policy = POLICIES.create(policy_name)
    load = Load(num_waiting=1000, num_inflight=INFLIGHT, waiting_tokens=200_000.0, tokens_per_second=1000.0)
    tickets = [_ticket(policy, request, seq, load) for seq, request in enumerate(requests)]
    charges = {ticket.id: ticket.charge * 0.75 for ticket in tickets}  # every answer shorter than expected
    lines = Lines()

    def serve() -> str:
        ticket = lines.pop(0.0)
        return ticket.id if ticket else ""

    return Verbs(
        come=lambda number: lines.push(tickets[number]),
        serve=serve,
        end=lambda ticket_id: lines.settle(ticket_id, charges[ticket_id], release=True),
    )


class _Described:
    """The describer of requests that know their category and length already."""

    def describe(self, request: Request) -> Request:
        return request

    def learn(self, request: Request, usage: Usage) -> None:
        """Knows all it needs."""


def _scheduler(policy_name: str, requests: list[Request]) -> Verbs:
    """The whole plot, stepped by hand."""
    unbounded = Bounds(max_waiting=len(requests) + 1, max_waiting_per_tenant=len(requests) + 1)
    scheduler = Scheduler(
        policy=POLICIES.create(policy_name),
        estimator=Static(),
        describer=_Described(),
        queue=MemoryQueue(INFLIGHT + 1),
        bounds=unbounded,
        max_wait_seconds=MAX_WAIT_SECONDS,
    )
    usage = Usage(500, 100)

    def serve() -> str:
        ticket = run_now(scheduler.dispatch(0.0))
        return ticket.id if ticket else ""

    return Verbs(
        come=lambda number: run_now(scheduler.submit(requests[number], requests[number].arrived_at)),
        serve=serve,
        end=lambda ticket_id: run_now(scheduler.finish(ticket_id, usage, "stop", 0.0)),
    )


def _measure(
    make: Callable[[str, list[Request]], Verbs], policy: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """Fill, turn, drain. `turn_us` is the cost of one whole request while everything waits."""
    waiting, turns = arguments.waiting, arguments.turns
    verbs = make(policy, list(islice(_requests(arguments.flows), waiting + turns)))
    fill, turn, drain = ({name: Timer() for name in Verbs._fields} for _ in range(3))
    inflight: list[str] = []
    with _collector_off():
        for number in range(waiting):
            _timed(fill["come"], verbs.come, number)
        started_at = perf_counter()
        gc.collect()
        collection_seconds = perf_counter() - started_at
        for number in range(waiting, waiting + turns):
            _timed(turn["come"], verbs.come, number)
            _serve_and_end(verbs, turn, inflight, INFLIGHT)
        for left in range(waiting, 0, -1):
            _serve_and_end(verbs, drain, inflight, min(INFLIGHT, left - 1))
    worst = {name: max(phase[name].worst_seconds for phase in (fill, turn, drain)) for name in Verbs._fields}
    return {
        "turn_us": sum(timer.mean_us for timer in turn.values()),
        "whole_us": (fill["come"].mean_us + drain["serve"].mean_us + drain["end"].mean_us),
        "worst_come_ms": worst["come"] * 1e3,
        "worst_serve_ms": worst["serve"] * 1e3,
        "worst_end_ms": worst["end"] * 1e3,
        "collection_ms": collection_seconds * 1e3,
    }


def _serve_and_end(verbs: Verbs, timers: dict[str, Timer], inflight: list[str], max_inflight: int) -> None:
    inflight.append(_timed(timers["serve"], verbs.serve))
    while len(inflight) > max_inflight:
        _timed(timers["end"], verbs.end, inflight.pop(0))


def _timed(timer: Timer, call: Callable[..., R], *arguments: object) -> R:
    thread_started_at = thread_time()
    started_at = perf_counter()
    result = call(*arguments)
    seconds = perf_counter() - started_at
    timer.add(seconds, thread_time() - thread_started_at)
    return result


@contextmanager
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _memory(
    make: Callable[[str, list[Request]], Verbs], policy: str, arguments: argparse.Namespace
) -> dict[str, float]:
    verbs = make(policy, list(islice(_requests(arguments.flows), MEMORY_SAMPLE)))
    tracemalloc.start()
    for number in range(MEMORY_SAMPLE):
        verbs.come(number)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"bytes_per_ticket": held / MEMORY_SAMPLE}


def _print(results: list[dict[str, Any]]) -> None:
    measures = [name for name in results[0] if name not in ("core", "policy")]
    print("".join(f"{name:>18}" for name in ("core", "policy", *measures)))
    for result in results:
        print(f"{result['core']:>18}{result['policy']:>18}" + "".join(f"{result[name]:18.2f}" for name in measures))


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"waiting": arguments.waiting, "flows": arguments.flows, "turns": arguments.turns}
    return {"commit": source_commit(), **capture_environment(), **capture_conditions(), **settings}


if __name__ == "__main__":
    main()
