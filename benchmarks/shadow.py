"""How right the shadow is, and what it costs.

    python benchmarks/shadow.py [--seeds 3] [--requests 3000] [--json FILE]

Requests of the workload `poisson` are served in virtual time by each of four policies, with the estimator
`calibrated`, on a simulated L4 of 32 slots that the shadow is told nothing of, at a utilisation of 0.8, 0.97 and
1.1; beside each that serves, the other three are shadows. So it is known what every shadow would really have given.
Nobody waits for longer than ten minutes, and nobody is turned away.

Printed are, for each that serves, its own P50 and P99 as simulated to those measured; and of each shadow the change
it promises (its simulated P50 to the simulated live one) to the change that came of it when it served. Both are
given as the mean over seeds, in percent off. Then processor time: of the listener per event, of the shadow per
request and policy, and its longest step.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from time import process_time

from driftsched.core.events import Event, Finished
from driftsched.core.evidence import Evidence, Times
from driftsched.core.model import Tier
from driftsched.core.scheduler import Scheduler
from driftsched.engines.presets import get_hardware
from driftsched.estimators import create_estimator
from driftsched.queues.memory import MemoryQueue
from driftsched.shadowing import policy_of
from driftsched.sim.conditions import capture_environment, source_commit
from driftsched.sim.driver import simulate
from driftsched.sim.experiment import Machine, TraceDescriber, capacity
from driftsched.sim.experiment import _arrivals as arrivals_of
from driftsched.sim.shadow import Shadow, ShadowParts, Terms
from driftsched.sim.trace import Row
from driftsched.sim.workloads import generate, make_scenario

MACHINE = Machine(get_hardware("l4-qwen1.5-1.8b"), "continuous", slots=32)
TERMS = Terms(dict.fromkeys(Tier, 600.0))
PARTS = ShadowParts(policy_of, MemoryQueue)
POLICIES = ("fifo", "sjf", "slack", "fair")
RHOS = (0.8, 0.97, 1.1)
EVENTS_BETWEEN = 100
"""So many events the shadow lets come before it works."""


def workload(rho: float, seed: int, requests: int) -> list[Row]:
    options = {"requests": str(requests), "rho": str(rho)}
    sample = generate(make_scenario("poisson", options), 0, capacity=1.0)
    return generate(make_scenario("poisson", options), seed, capacity=capacity(sample, MACHINE))


class Served:
    """One run of a policy, with the others as shadows."""

    def __init__(self, rows: Sequence[Row], policy: str, shadows: Sequence[str]) -> None:
        self.ended: list[tuple[float, float]] = []  # arrival and end-to-end seconds
        self.seconds = 0.0  # processor time of the shadow
        self.longest = 0.0  # seconds of a step
        self._num_events = 0
        self._shadow = Shadow(policy, shadows, slots=lambda: MACHINE.slots, parts=PARTS, terms=TERMS)
        scheduler = Scheduler(
            policy=policy_of(policy),
            estimator=create_estimator("calibrated"),
            describer=TraceDescriber(),
            queue=MemoryQueue(MACHINE.slots),
            max_wait_seconds=TERMS.max_wait_seconds,
            listeners=(self._note, self._shadow, self._let_work),
        )
        simulate(arrivals_of(rows, 0, 0.0, Counter()), scheduler, MACHINE.engine())
        self._work()

    @property
    def evidence(self) -> Evidence:
        assert self._shadow.evidence is not None  # there were requests enough
        return self._shadow.evidence

    def times(self, window: Evidence) -> Times:
        """Of the requests that arrived during the window."""
        return Times.of(e2e for at, e2e in self.ended if window.started_at <= at <= window.ended_at)

    def _note(self, event: Event) -> None:
        if isinstance(event, Finished):
            arrived_at = event.ticket.request.arrived_at
            self.ended.append((arrived_at, event.at - arrived_at))

    def _let_work(self, _: Event) -> None:
        self._num_events += 1
        if self._num_events % EVENTS_BETWEEN == 0:
            self._work()

    def _work(self) -> None:
        began = before = process_time()
        for _ in self._shadow.steps():
            now = process_time()
            self.longest = max(self.longest, now - before)
            before = now
        self.seconds += process_time() - began


def accuracy(rho: float, seeds: int, requests: int) -> dict[str, dict[str, float]]:
    """Figures of each policy that serves: percent off, by name."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(1, seeds + 1):
        rows = workload(rho, seed, requests)
        runs = {p: Served(rows, p, [other for other in POLICIES if other != p]) for p in POLICIES}
        for policy, run in runs.items():
            told = run.evidence
            found[policy]["own P50"].append(told.live.times.p50 / told.measured.times.p50 - 1)
            found[policy]["own P99"].append(told.live.times.p99 / told.measured.times.p99 - 1)
            for shadow in told.shadows:
                really = runs[shadow.policy].times(told).p50 / run.times(told).p50
                promised = shadow.times.p50 / told.live.times.p50
                found[policy][shadow.policy].append(promised / really - 1)
    return {policy: {name: 100 * fmean(v) for name, v in figures.items()} for policy, figures in found.items()}


def cost(requests: int) -> dict[str, float]:
    rows = workload(0.97, 1, requests)
    none, few, many = (Served(rows, "fifo", POLICIES[1:n]) for n in (1, 2, 4))
    per_policy = (many.seconds - few.seconds) / 2 / requests
    shadow = Shadow("fifo", [], slots=lambda: 1, parts=PARTS)
    event: list[Event] = []
    simulate(
        arrivals_of(rows[:1], 0, 0.0, Counter()),
        Scheduler(
            policy=policy_of("fifo"),
            estimator=create_estimator("calibrated"),
            describer=TraceDescriber(),
            queue=MemoryQueue(1),
            listeners=(event.append,),
        ),
        MACHINE.engine(),
    )
    began = process_time()
    for _ in range(10_000):
        shadow(event[0])
    listener = (process_time() - began) / 10_000
    return {
        "listener, us per event": 1e6 * listener,
        "one policy, us per request": 1e6 * per_policy,
        "all else (hearing, fitting, comparing), us per request": 1e6 * (none.seconds / requests - per_policy),
        "longest step, ms": 1e3 * max(none.longest, few.longest, many.longest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {rho: accuracy(rho, arguments.seeds, arguments.requests) for rho in RHOS}
    print(
        f"| rho | serves | own P50 | own P99 | {' | '.join(POLICIES)} |\n|---|---|---|---|" + "---|" * len(POLICIES)
    )
    for rho, by_policy in found.items():
        for policy, figures in by_policy.items():
            cells = [figures["own P50"], figures["own P99"], *(figures.get(other) for other in POLICIES)]
            shown = " | ".join("" if cell is None else f"{cell:+.1f} %" for cell in cells)
            print(f"| {rho:g} | {policy} | {shown} |")
    costs = cost(arguments.requests)
    print()
    for name, value in costs.items():
        print(f"{name}: {value:.2f}")
    if arguments.json is not None:
        facts = {"environment": capture_environment(), "commit": source_commit(), "off": found, "cost": costs}
        arguments.json.write_text(json.dumps(facts, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
