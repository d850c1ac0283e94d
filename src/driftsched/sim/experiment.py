"""`driftsched simulate`: a workload x policies x estimators x seeds, every policy on the very same requests."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Literal

from driftsched.core.errors import ConfigError
from driftsched.core.limit import AdaptiveLimit
from driftsched.core.model import NO_TRAITS, Request, Tenant, Traits, Usage
from driftsched.core.protocols import Estimator, Policy, Queue
from driftsched.core.scheduler import Scheduler
from driftsched.core.traits import read_traits
from driftsched.engines.model import BatchModel, Mode
from driftsched.engines.presets import Hardware
from driftsched.sim.driver import Arrival, simulate
from driftsched.sim.feedback import Feedback, Untaught, arm_name, max_reranks
from driftsched.sim.measures import Objective, Run, measure
from driftsched.sim.oracle import Oracle
from driftsched.sim.recording import Recorder, Recording
from driftsched.sim.statistics import unaccounted
from driftsched.sim.trace import Row, segments, trace_hash
from driftsched.sim.watch import Watched

Executor = Literal["processes", "ray"]

ORACLE = "oracle"
"""The estimator that knows true lengths: only a simulation can build it."""


Turns = Counter[str]
"""By session: how many of its requests have arrived."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the simulator is not to know: how policies, estimators and queues are made. Must pickle."""

    create_policy: Callable[[str], Policy]
    create_estimator: Callable[[str], Estimator]
    create_queue: Callable[[int], Queue]
    """With so many slots."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The engine that is simulated."""

    hardware: Hardware
    mode: Mode = "continuous"
    slots: int = 32
    """Sequences in a batch."""
    inflight: int | None = None
    """Requests in flight; None: as many as fill the batch."""
    adaptive: bool = False
    """Requests in flight follow the engine, from `inflight` on."""
    max_inflight_tokens: float = inf
    """See `Scheduler`."""

    @property
    def first_limit(self) -> int:
        """Requests that may be in flight at the start."""
        return self.inflight or self.slots

    def engine(self) -> BatchModel:
        """A fresh one, at time 0."""
        return BatchModel(self.hardware, mode=self.mode, max_num_seqs=self.slots)


@dataclass(frozen=True, slots=True)
class Case:
    """One way to schedule."""

    policy: str
    estimator: str
    machine: Machine
    variant: str = "base"
    """What sets it apart from others with the same policy and estimator."""
    feedback: Feedback = "reranked"

    @property
    def estimator_name(self) -> str:
        """As results call it."""
        return arm_name(self.estimator, self.feedback)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything that decides the outcome. Must pickle."""

    trace: Callable[[int], Sequence[Row]]
    """The requests of a seed."""
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    parts: Parts
    objective: Objective | None = None


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What came of one seed: a run for each case, in order."""

    seed: int
    trace_hash: str
    runs: list[Run]
    recordings: list[Recording]
    """Empty unless asked for: they hold every request."""


def run_experiment(
    experiment: Experiment,
    *,
    processes: int = 1,
    executor: Executor = "processes",
    keep_recordings_of: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[SeedResult]:
    """Run every case on every seed. The results do not depend on `processes` nor on `executor`.

    With `executor` "ray", seeds run on the Ray cluster that RAY_ADDRESS names, or on this machine if it names none,
    and the cluster decides how many at the same time. `keep_recordings_of` is a seed whose recordings are wanted;
    `progress` is told how many seeds of how many are done. Raises `ConfigError` for no seeds, a seed given twice,
    or what the trace cannot be run on.
    """
    seeds = experiment.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds: give at least one, and none twice")
    if processes < 1:
        raise ConfigError(f"processes: must be at least 1, not {processes}")
    results = []
    run = partial(run_seed, experiment, keep_recordings_of)
    mapped = _on_ray(run, seeds) if executor == "ray" else _mapped(run, seeds, min(processes, len(seeds)))
    for result in mapped:
        results.append(result)
        progress(len(results), len(seeds))
    return results


def run_seed(experiment: Experiment, keep_recordings_of: int | None, seed: int) -> SeedResult:
    """Every case on the trace of one seed."""
    rows = experiment.trace(seed)
    kept = []
    runs = []
    for case in experiment.cases:
        recording = run_case(rows, case, seed, experiment.parts)
        runs.append(measure(recording, experiment.objective))
        if seed == keep_recordings_of:
            kept.append(recording)
    return SeedResult(seed, trace_hash(rows), runs, kept)


def run_case(rows: Sequence[Row], case: Case, seed: int, parts: Parts) -> Recording:
    """One run in virtual time. Raises `ConfigError` for a row that does not fit into the engine's memory."""
    machine = case.machine
    check_fits(rows, machine)
    recorder = Recorder(
        policy=case.policy,
        estimator=case.estimator_name,
        engine_mode=machine.mode,
        variant=case.variant,
        seed=seed,
        slots=machine.first_limit,
        phases=[row.phase for row in rows],
    )
    queue = parts.create_queue(machine.first_limit)
    scheduler = Scheduler(
        policy=parts.create_policy(case.policy),
        estimator=_estimator(case, rows, parts),
        describer=TraceDescriber(),
        queue=queue,
        max_inflight_tokens=machine.max_inflight_tokens,
        max_reranks=max_reranks(case.feedback),
        listeners=[recorder],
    )
    engine = machine.engine()
    serve: Callable[[Iterable[Arrival]], float] = partial(simulate, scheduler=scheduler, engine=engine)
    if machine.adaptive:
        serve = Watched(scheduler, queue, engine, AdaptiveLimit(machine.first_limit)).simulate
    now = 0.0
    number = 0
    turns: Turns = Counter()
    for part in segments(rows):
        now = serve(_arrivals(part, number, now, turns))
        number += len(part)
    recording = recorder.recording()
    if problem := unaccounted(recording, submitted=len(rows)):
        raise RuntimeError(f"{case.policy}, seed {seed}: {problem}")  # figures of such a run would be worth nothing
    return recording


def capacity(rows: Sequence[Row], machine: Machine) -> float:
    """Requests like these that the engine serves per second if some always wait: utilisation 1."""
    check_fits(rows, machine)
    engine = machine.engine()
    for number, row in enumerate(rows):
        engine.add(str(number), row.prompt_tokens, row.completion_tokens, 0.0)
    while engine.advance():
        pass
    return len(rows) / engine.time


def check_fits(rows: Iterable[Row], machine: Machine) -> None:
    """Raises `ConfigError` naming the first row that the engine's context memory cannot hold."""
    room = machine.hardware.kv_tokens
    for number, row in enumerate(rows, 1):
        total = row.prompt_tokens + row.completion_tokens
        if total > room:
            raise ConfigError(
                f"request {number} of the trace has {total} tokens, but {machine.hardware.name} holds {room}: "
                "choose other hardware, or leave such requests out"
            )


class TraceDescriber:
    """A trace tells category and prompt length of every request: there is nothing to find out."""

    def describe(self, request: Request) -> Request:
        return request

    def learn(self, request: Request, usage: Usage) -> None:
        """Nothing was estimated."""


def _estimator(case: Case, rows: Sequence[Row], parts: Parts) -> Estimator:
    if case.estimator == ORACLE:
        return Oracle({str(number): row.completion_tokens for number, row in enumerate(rows)})
    estimator = parts.create_estimator(case.estimator)
    return Untaught(estimator) if case.feedback == "off" else estimator


def traits_of(row: Row, turns: Turns) -> Traits:
    """What a gateway would see of the call's form. Counts the row in `turns`, which holds those before it.

    The length of the last answer is left out: the trace knows it even where the simulated engine is still at it.
    """
    if row.session is None:
        return read_traits([("user", row.prompt)]) if row.prompt else NO_TRAITS
    traits = read_traits([("user", row.prompt)], tenant=row.tenant, session=row.session)
    turn = turns[traits.session]
    turns[traits.session] += 1
    return replace(traits, turn=turn) if turn else traits


def _arrivals(rows: Iterable[Row], first_number: int, start: float, turns: Turns) -> Iterator[Arrival]:
    """Requests named by their place in the trace, `start` seconds later than it says."""
    tenants: dict[tuple[str, int], Tenant] = {}
    for number, row in enumerate(rows, first_number):
        tenant = tenants.get((row.tenant, row.tier))
        if tenant is None:
            tenant = tenants[row.tenant, row.tier] = Tenant(row.tenant, row.tier)
        request = Request(
            id=str(number),
            tenant=tenant,
            tier=row.tier,
            model=row.model,
            arrived_at=start + row.at,
            prompt=row.prompt,
            prompt_tokens=row.prompt_tokens,
            category=row.category,
            max_tokens=row.max_tokens,
            traits=traits_of(row, turns),
        )
        yield Arrival(request, row.completion_tokens, row.finish_reason)


def _mapped(run: Callable[[int], SeedResult], seeds: Sequence[int], processes: int) -> Iterator[SeedResult]:
    if processes == 1:
        yield from map(run, seeds)
    else:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(run, seeds)


def _on_ray(run: Callable[[int], SeedResult], seeds: Sequence[int]) -> Iterator[SeedResult]:
    """Raises `ConfigError` if Ray, the extra `ray`, is not installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError("executor ray: Ray is not installed; run: pip install 'driftsched[ray]'") from None
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        task = ray.remote(_run_one)
        shared = ray.put(run)  # sent to each node once, not with each seed
        yield from (ray.get(result) for result in [task.remote(shared, seed) for seed in seeds])
    finally:
        if started_here:
            ray.shutdown()


def _run_one(run: Callable[[int], SeedResult], seed: int) -> SeedResult:
    return run(seed)
