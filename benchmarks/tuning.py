"""What self-tuning does while load and predictions change: its choices over time, beside each candidate kept fixed.

    python benchmarks/tuning.py [--seeds 3] [--minutes 40] [--every 120] [--start fair:slack=8]

In virtual time, 32 slots of a simulated A100 under continuous batching, four tenants in equal parts, answers of
log-normal length (median 200 tokens, sigma 0.9). Six phases of `--minutes` each: load 0.7, 0.97, 1.1, 0.8 (in
which the backlog is worked off), 0.97 with predictions that are noise, and 0.97 with predictions as before, which
are off by a log-normal factor of sigma 0.5. The goal is "p50 while p99 <= 1.2 x fifo"; the tuner hears what the
shadow finds on an engine model that it fits itself, as in the gateway, and judges a window every `--every` seconds.

Printed are the choices, and for each phase P50 and P99 of the end-to-end seconds of what arrived in it, under
`fifo`, under each candidate kept fixed, and tuned; all on the same requests. No time is measured.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import NamedTuple

from driftsched.core.events import Event, Finished, PolicyChanged
from driftsched.core.evidence import Evidence, Times
from driftsched.core.goals import parse_goal
from driftsched.core.model import Estimate, Request, Tenant, Tier, Usage
from driftsched.core.protocols import Listener
from driftsched.core.scheduler import Scheduler
from driftsched.core.tuning import Tuner
from driftsched.core.worth import Worth
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import get_hardware
from driftsched.queues.memory import MemoryQueue
from driftsched.shadowing import policy_of
from driftsched.sim.driver import Arrival, run_now, simulate
from driftsched.sim.experiment import TraceDescriber
from driftsched.sim.shadow import Shadow, ShadowParts

HARDWARE = get_hardware("a100-llama3-8b")
SLOTS = 32
PROMPT_TOKENS = 300
MEDIAN_TOKENS, SIGMA = 200.0, 0.9
PREDICTION_SIGMA = 0.5
TENANTS = tuple(Tenant(f"tenant-{number}") for number in range(4))
GOAL = "p50 while p99 <= 1.2 x fifo"
CANDIDATES = ("fair:slack=0", "fair:slack=2", "fair:slack=4", "fair:slack=8")
LOOK_SECONDS = 10.0
"""Between two times that the shadow works: its thread works all the time."""


class Phase(NamedTuple):
    rho: float
    noise: bool = False

    def __str__(self) -> str:
        return f"load {self.rho:g}" + (", predictions are noise" if self.noise else "")


PHASES = (Phase(0.7), Phase(0.97), Phase(1.1), Phase(0.8), Phase(0.97, noise=True), Phase(0.97))


class Outcome(NamedTuple):
    times: dict[str, list[Times]]
    """By arm, of each phase."""
    changes: list[PolicyChanged]


class Said:
    """The estimator that says what was drawn for each request."""

    def __init__(self, said: Sequence[float]) -> None:
        self._said = said

    def predict(self, request: Request) -> Estimate:
        tokens = self._said[int(request.id)]
        return Estimate(tokens, tokens, 2 * tokens, 3 * tokens)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:  # noqa: ARG002
        return estimate

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        """It was all drawn beforehand."""

    def bias(self, request: Request) -> float:  # noqa: ARG002
        return 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=40.0, help="of a phase")
    parser.add_argument("--every", type=float, default=120.0, help="seconds between two windows that are judged")
    parser.add_argument("--start", default=CANDIDATES[-1], help="the candidate that serves first")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    run = partial(outcome, arguments.minutes * 60, arguments.every, arguments.start)
    with ProcessPoolExecutor(arguments.processes) as pool:
        outcomes = list(pool.map(run, range(1, arguments.seeds + 1)))
    for seed, of_seed in enumerate(outcomes, 1):
        print(f"\nseed {seed}, choices from {arguments.start} on")
        for change in of_seed.changes:
            print(f"  {change.at / 60:6.1f} min  {change.after:14} {change.why}")
    for number, phase in enumerate(PHASES):
        print(f"\nfrom minute {number * arguments.minutes:g}, {phase}: P50 and P99 in seconds, and times fifo's")
        fifo50, fifo99 = means(outcomes, "fifo", number)
        for arm in outcomes[0].times:
            p50, p99 = means(outcomes, arm, number)
            print(f"  {arm:14} {p50:8.2f} {p99:8.2f}   {p50 / fifo50:5.2f} {p99 / fifo99:5.2f}")


def means(outcomes: Sequence[Outcome], arm: str, phase: int) -> tuple[float, float]:
    found = [each.times[arm][phase] for each in outcomes]
    return fmean(times.p50 for times in found), fmean(times.p99 for times in found)


def outcome(seconds: float, every: float, start: str, seed: int) -> Outcome:
    """Every arm on the requests of a seed."""
    arrivals, said = drawn(seconds, seed)
    times = {arm: served(arrivals, said, arm, seconds) for arm in ("fifo", *CANDIDATES)}
    times["tuned"], changes = tuned(arrivals, said, start, every, seconds)
    return Outcome(times, changes)


def drawn(seconds: float, seed: int) -> tuple[list[Arrival], list[float]]:
    """The requests of all phases, and what is predicted of each."""
    random, whose, predicted = (Random(f"{seed} {what}") for what in ("times", "tenants", "predictions"))
    rate = capacity()
    arrivals: list[Arrival] = []
    said: list[float] = []
    for number, phase in enumerate(PHASES):
        at = number * seconds
        while (at := at + random.expovariate(phase.rho * rate)) < (number + 1) * seconds:
            tokens = max(1, round(MEDIAN_TOKENS * random.lognormvariate(0, SIGMA)))
            tenant = whose.choice(TENANTS)
            request = Request(
                str(len(said)), tenant, Tier.STANDARD, "m", at, prompt_tokens=PROMPT_TOKENS, category="chat"
            )
            arrivals.append(Arrival(request, tokens))
            known = MEDIAN_TOKENS * predicted.lognormvariate(0, SIGMA) if phase.noise else tokens
            said.append(known * predicted.lognormvariate(0, PREDICTION_SIGMA))
    return arrivals, said


def capacity(number: int = 5000) -> float:
    """Requests per second while some always wait."""
    engine, random = BatchModel(HARDWARE, max_num_seqs=SLOTS), Random("capacity")
    for name in range(number):
        tokens = max(1, round(MEDIAN_TOKENS * random.lognormvariate(0, SIGMA)))
        engine.add(str(name), PROMPT_TOKENS, tokens, 0.0)
    while engine.advance():
        pass
    return number / engine.time


def served(arrivals: Sequence[Arrival], said: Sequence[float], policy: str, seconds: float) -> list[Times]:
    events: list[Event] = []
    scheduler = scheduler_of(policy, said, events.append)
    simulate(arrivals, scheduler, BatchModel(HARDWARE, max_num_seqs=SLOTS))
    return by_phase(events, seconds)


def tuned(
    arrivals: Sequence[Arrival], said: Sequence[float], start: str, every: float, seconds: float
) -> tuple[list[Times], list[PolicyChanged]]:
    events: list[Event] = []
    heard: list[Evidence] = []
    worth = Worth()
    tuner = Tuner(parse_goal(GOAL), CANDIDATES, start, every_seconds=every)
    parts = ShadowParts(policy_of, MemoryQueue)
    shadow = Shadow(start, ("fifo", *CANDIDATES), slots=lambda: SLOTS, parts=parts, listeners=[heard.append])

    def hear(event: Event) -> None:
        events.append(event)
        worth(event)
        shadow(event)

    scheduler = scheduler_of(start, said, hear)

    def watched() -> Iterator[Arrival]:
        for before, arrival in pairwise((arrivals[0], *arrivals)):
            yield arrival
            now, then = arrival.request.arrived_at, before.request.arrived_at
            if now // LOOK_SECONDS > then // LOOK_SECONDS:
                for _ in shadow.steps():
                    pass
                judge(now)

    def judge(now: float) -> None:
        while heard:
            before, choice = tuner.current, tuner.observe(heard.pop(0), useful=worth.judge())
            if choice is not None:
                change = PolicyChanged(now, before, choice.policy, choice.why)
                run_now(scheduler.adopt(policy_of(choice.policy), change))
                while run_now(scheduler.place_anew(64)):
                    pass
                shadow.follow(choice.policy)

    simulate(watched(), scheduler, BatchModel(HARDWARE, max_num_seqs=SLOTS))
    return by_phase(events, seconds), [event for event in events if isinstance(event, PolicyChanged)]


def scheduler_of(policy: str, said: Sequence[float], listener: Listener) -> Scheduler:
    return Scheduler(
        policy=policy_of(policy),
        estimator=Said(said),
        describer=TraceDescriber(),
        queue=MemoryQueue(SLOTS),
        max_reranks=0,
        listeners=[listener],
    )


def by_phase(events: Sequence[Event], seconds: float) -> list[Times]:
    found: defaultdict[int, list[float]] = defaultdict(list)
    for event in events:
        if isinstance(event, Finished):
            arrived_at = event.ticket.request.arrived_at
            found[int(arrived_at // seconds)].append(event.at - arrived_at)
    return [Times.of(found[number]) for number in range(len(PHASES))]


if __name__ == "__main__":
    main()
