"""Scheduler, shadow and tuner together, in virtual time."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from driftsched.core.events import Event, Finished, PolicyChanged
from driftsched.core.evidence import Evidence
from driftsched.core.goals import parse_goal
from driftsched.core.model import Estimate, Request
from driftsched.core.tuning import Tuner
from driftsched.core.worth import Worth
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE
from driftsched.queues.memory import MemoryQueue
from driftsched.shadowing import policy_of
from driftsched.sim.driver import Arrival, simulate
from driftsched.sim.shadow import Shadow, ShadowParts
from support.scheduling import TENANTS, CategoryMeans, request_at, scheduler_of, step

SLOTS = 8
GRID = ("slack:beta=0", "slack:beta=4")


class Said(CategoryMeans):
    """Says what the test put into the request."""

    def predict(self, request: Request) -> Estimate:
        tokens = float(request.prompt_bytes)
        return Estimate(tokens, tokens, tokens, tokens)


def drawn(number: int, *, noise: bool) -> list[Arrival]:
    """About as many as the engine can serve."""
    random, at, arrivals = Random(5), 0.0, list[Arrival]()
    for n in range(number):
        at += random.expovariate(2.6)
        tokens, other = (1 + round(150 * random.lognormvariate(0, 0.9)) for _ in range(2))
        request = replace(request_at(at, str(n), tenant=TENANTS[1]), prompt_bytes=other if noise else tokens)
        arrivals.append(Arrival(request, tokens))
    return arrivals


def changes(start: str, *, noise: bool) -> list[tuple[str, str]]:
    """Before and after of every change, all requests having been served once."""
    events: list[Event] = []
    heard: list[Evidence] = []
    worth, parts = Worth(), ShadowParts(policy_of, MemoryQueue)
    tuner = Tuner(parse_goal("p50 while p99 <= 2 x fifo"), GRID, start, every_seconds=20.0, min_requests=100)
    shadow = Shadow(start, ("fifo", *GRID), slots=lambda: SLOTS, parts=parts, listeners=[heard.append])
    scheduler = scheduler_of(
        policy_of(start), slots=SLOTS, estimator=Said(), listeners=[events.append, worth, shadow]
    )
    arrivals = drawn(1500, noise=noise)

    def watched() -> Iterator[Arrival]:
        for number, arrival in enumerate(arrivals):
            yield arrival
            if number % 50 == 0:
                for _ in shadow.steps():
                    pass
            while heard:
                before, choice = tuner.current, tuner.observe(heard.pop(0), useful=worth.judge())
                if choice is not None:
                    change = PolicyChanged(arrival.request.arrived_at, before, choice.policy, choice.why)
                    step(scheduler.adopt(policy_of(choice.policy), change))
                    while step(scheduler.place_anew(16)):
                        pass
                    shadow.follow(choice.policy)

    simulate(watched(), scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=SLOTS))
    assert sorted(str(n) for n in range(1500)) == sorted(e.ticket.id for e in events if isinstance(e, Finished))
    return [(event.before, event.after) for event in events if isinstance(event, PolicyChanged)]


def test_with_good_predictions_short_requests_are_let_pass() -> None:
    assert [(GRID[0], GRID[1])] == changes(GRID[0], noise=False)


@pytest.mark.parametrize(("start", "expected"), [(GRID[1], [(GRID[1], GRID[0])]), (GRID[0], [])])
def test_with_predictions_that_are_noise_order_of_arrival_it_is(
    start: str, expected: list[tuple[str, str]]
) -> None:
    assert expected == changes(start, noise=True)
