"""The simulator against queueing theory: formulas, conservation laws, invariants. docs/simulate.md has the table.

One slot and an engine of which every iteration takes equally long make an M/G/1 queue: a request of n tokens is
served for n iterations, alone. Formulas are for the long run; a run begins empty, so its first tenth is left out.
Each must lie in the 99 % interval over ten seeds, and that interval may not be wide enough to hide a mistake.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from math import ceil, exp, factorial, fsum, log1p, sqrt
from random import Random
from statistics import fmean, stdev

import pytest

from driftsched.core.model import Tier
from driftsched.engines.model import BatchModel, Mode
from driftsched.engines.presets import Hardware, get_hardware
from driftsched.sim.experiment import Case, Experiment, Machine, run_case, run_experiment
from driftsched.sim.measures import Run
from driftsched.sim.recording import Recording
from driftsched.sim.statistics import student_t_quantile
from driftsched.sim.trace import Row, on_grid
from driftsched.sim.workloads import generate, poisson
from driftsched.simulating import PARTS

POLICIES = ("fifo", "priority", "weighted", "aging", "sjf", "fair")
SIZE_BLIND = ("fifo", "priority", "weighted", "aging")
SEEDS = range(1, 11)
REQUESTS = 6000
RHO = 0.7
STEP = 1e-3
MEAN_TOKENS = 1000
"""A mean service of one second, in steps so fine that a geometric law of them is as good as an exponential one."""
CONFIDENCE = 0.99
WIDEST = 0.15
"""Half-width of an interval, as a share of the formula's value."""

STEADY = Hardware(
    name="steady",
    host_ms=STEP * 1e3,
    floor_ms=0,
    g0_ms=0,
    g_us_per_token=0,
    r_us_per_sequence=0,
    kv_ns_per_token=0,
    api_ms=0,
    kv_tokens=10_000_000,
    source="measured",
    note="a millisecond an iteration, whatever is in it",
)
L4 = get_hardware("l4-qwen1.5-1.8b")

TIER_OF_CLASS = (Tier.PREMIUM, Tier.STANDARD, Tier.BATCH)
CLASS_SHARES = (0.2, 0.5, 0.3)

Law = Callable[[Random], int]
"""Draws the tokens of an answer."""


def constant(_draws: Random) -> int:
    return MEAN_TOKENS


def geometric(draws: Random) -> int:
    return max(1, ceil(log1p(-draws.random()) / log1p(-1 / MEAN_TOKENS)))


def lognormal(draws: Random) -> int:
    """With a coefficient of variation of 1.2."""
    variance = log1p(1.2**2)
    return max(1, round(draws.lognormvariate(0.0, sqrt(variance)) * MEAN_TOKENS * exp(-variance / 2)))


def few_sizes(draws: Random) -> int:
    return draws.choices(list(SIZES), list(SIZES.values()))[0]


SIZES = {200: 0.5, 1000: 0.3, 3000: 0.2}
"""Tokens and how often: their mean is `MEAN_TOKENS`, the shortest first."""

SECOND_MOMENTS: dict[Law, float] = {
    constant: 1.0,
    geometric: 2.0 - 1 / MEAN_TOKENS,
    lognormal: 1 + 1.2**2,
    few_sizes: fsum(share * size**2 for size, share in SIZES.items()) / MEAN_TOKENS**2,
}
"""E[S^2] in square seconds; E[S] is one second."""


@lru_cache(maxsize=2 * len(SEEDS))
def trace(law: Law, rate: float, seed: int) -> tuple[Row, ...]:
    """A Poisson process of `rate` requests a second, tiers drawn independently of lengths."""
    gaps, lengths, tiers = (Random(f"{seed}:{purpose}") for purpose in ("gaps", "lengths", "tiers"))
    times = accumulate(gaps.expovariate(rate) for _ in range(REQUESTS))
    return tuple(
        Row(
            on_grid(at),
            prompt_tokens=1,
            completion_tokens=law(lengths),
            tenant=f"tenant-{number % 3}",
            tier=tiers.choices(TIER_OF_CLASS, CLASS_SHARES)[0],
        )
        for number, at in enumerate(times)
    )


def run(
    rows: Sequence[Row],
    policy: str,
    *,
    hardware: Hardware = STEADY,
    slots: int = 1,
    mode: Mode = "continuous",
    estimator: str = "oracle",
) -> Recording:
    machine = Machine(hardware, mode, slots)
    return run_case(rows, Case(policy, estimator, machine), 1, PARTS)


@lru_cache(maxsize=4)
def runs(law: Law, rho: float, policy: str) -> list[Recording]:
    """One server under `policy`, a run for every seed."""
    return [run(trace(law, rho, seed), policy) for seed in SEEDS]


def waits(recording: Recording) -> list[float]:
    return [began - at for at, began in zip(recording.arrived_at, recording.dispatched_at, strict=True)]


def settled_mean(recording: Recording) -> float:
    """Mean wait, without the first tenth of the requests."""
    return mean_wait_of([True] * len(recording), recording)


def mean_wait_of(chosen: Sequence[bool], recording: Recording) -> float:
    """The same of the chosen ones alone."""
    start = len(recording) // 10
    return fmean(wait for wait, counts in zip(waits(recording)[start:], chosen[start:], strict=True) if counts)


def assert_formula_holds(formula: float, means: Sequence[float]) -> None:
    """`formula` is where the mean over all seeds may lie, and little else is."""
    reach = student_t_quantile((1 + CONFIDENCE) / 2, len(means) - 1) * stdev(means) / sqrt(len(means))
    assert fmean(means) - reach <= formula <= fmean(means) + reach
    assert reach <= WIDEST * formula


def pollaczek_khinchine(rho: float, law: Law) -> float:
    return rho * SECOND_MOMENTS[law] / (2 * (1 - rho))


def cobham(loads: Iterable[float], second_moment: float) -> list[float]:
    """Mean wait of each class, the best first, of non-preemptive priorities; `second_moment` is lambda E[S^2]."""
    above, below = 0.0, 0.0
    means = []
    for load in loads:
        above, below = below, below + load
        means.append(second_moment / 2 / ((1 - above) * (1 - below)))
    return means


@pytest.mark.parametrize(
    ("law", "rho"),
    [(constant, RHO), (lognormal, 0.5), (lognormal, RHO), (geometric, RHO)],
    ids=["M/D/1", "lognormal-0.5", "lognormal", "M/M/1"],
)
def test_the_mean_wait_for_one_server_is_that_of_pollaczek_and_khinchine(law: Law, rho: float) -> None:
    means = [settled_mean(recording) for recording in runs(law, rho, "fifo")]
    assert_formula_holds(pollaczek_khinchine(rho, law), means)


def test_the_mean_wait_for_four_servers_is_that_of_erlang() -> None:
    slots, rho = 4, 0.75
    offered = slots * rho
    full = offered**slots / factorial(slots) / (1 - rho)
    delayed = full / (full + fsum(offered**k / factorial(k) for k in range(slots)))
    means = [settled_mean(run(trace(geometric, offered, seed), "fifo", slots=slots)) for seed in SEEDS]
    assert_formula_holds(delayed / (slots * (1 - rho)), means)


@pytest.mark.parametrize("policy", SIZE_BLIND)
def test_kleinrock_what_a_size_blind_order_gives_to_one_it_takes_from_another(policy: str) -> None:
    """If tiers need the same service, the mean over all waits is that of order of arrival."""
    means = [settled_mean(recording) for recording in runs(geometric, RHO, policy)]
    assert_formula_holds(pollaczek_khinchine(RHO, geometric), means)


@pytest.mark.parametrize("tier", list(TIER_OF_CLASS), ids=lambda tier: tier.label)
def test_under_strict_priority_each_tier_waits_as_cobham_says(tier: Tier) -> None:
    expected = cobham([share * RHO for share in CLASS_SHARES], RHO * SECOND_MOMENTS[geometric])
    means = [
        mean_wait_of([label == tier.label for label in recording.tier], recording)
        for recording in runs(geometric, RHO, "priority")
    ]
    assert_formula_holds(expected[tier], means)


@pytest.mark.parametrize("size", list(SIZES))
def test_under_shortest_first_each_size_waits_as_a_priority_class_of_its_own(size: int) -> None:
    loads = [RHO * share * tokens / MEAN_TOKENS for tokens, share in SIZES.items()]
    expected = dict(zip(SIZES, cobham(loads, RHO * SECOND_MOMENTS[few_sizes]), strict=True))
    means = [
        mean_wait_of([tokens == size for tokens in recording.completion_tokens], recording)
        for recording in runs(few_sizes, RHO, "sjf")
    ]
    assert_formula_holds(expected[size], means)


@pytest.mark.parametrize("seed", [1, 2])
def test_kleinrock_waits_weighted_by_service_add_up_to_the_same_under_every_order(seed: int) -> None:
    """On one and the same trace this is exact, and holds for orders by size too: the work left does not depend
    on who is served first."""
    rows = trace(lognormal, RHO, seed)
    sums = {}
    for policy in POLICIES:
        recording = run(rows, policy)
        served = zip(waits(recording), recording.completion_tokens, strict=True)
        sums[policy] = fsum(wait * tokens * STEP for wait, tokens in served)
    assert dict.fromkeys(POLICIES, pytest.approx(sums["fifo"], rel=1e-9)) == sums


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("mode", ["continuous", "static"])
@pytest.mark.parametrize("policy", POLICIES)
def test_little_the_mean_number_waiting_is_rate_times_mean_wait(policy: str, mode: Mode, slots: int) -> None:
    rows = generate(poisson(rate=0.6 * slots, requests=600), 1)
    recording = run(rows, policy, hardware=L4, slots=slots, mode=mode, estimator="calibrated")
    integral = fsum(depth * (until - at) for (at, depth), (until, _) in pairwise(recording.queue_depth))
    assert integral == pytest.approx(fsum(waits(recording)), rel=1e-9)
    assert integral > 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_one_slot_no_order_makes_the_work_more_or_less(seed: int) -> None:
    """Neither does it leave the slot idle while somebody waits: then the last would be done later."""
    rows = generate(poisson(rate=0.5, requests=400), seed)
    recordings = [run(rows, policy, hardware=L4, estimator="calibrated") for policy in POLICIES]
    busy = [recording.busy_slot_seconds for recording in recordings]
    ends = [recording.makespan_seconds for recording in recordings]
    assert [pytest.approx(busy[0], rel=1e-9)] * len(POLICIES) == busy
    assert [pytest.approx(ends[0], rel=1e-9)] * len(POLICIES) == ends


@pytest.mark.parametrize("policy", POLICIES)
def test_no_slot_is_free_while_a_request_waits(policy: str) -> None:
    slots = 4
    recording = run(trace(geometric, 3.4, 1)[:2000], policy, slots=slots)
    changes: dict[float, tuple[int, int]] = {}
    for instants, waiting, inflight in (
        (recording.arrived_at, 1, 0),
        (recording.dispatched_at, -1, 1),
        (recording.finished_at, 0, -1),
    ):
        for at in instants:
            before = changes.get(at, (0, 0))
            changes[at] = (before[0] + waiting, before[1] + inflight)
    states = list(accumulate((changes[at] for at in sorted(changes)), lambda a, b: (a[0] + b[0], a[1] + b[1])))
    assert {slots} == {inflight for waiting, inflight in states if waiting}
    assert slots == max(inflight for _, inflight in states)


@pytest.mark.parametrize("slots", [1, 8])
def test_who_knows_the_lengths_and_serves_the_shortest_first_has_the_shorter_mean_wait(slots: int) -> None:
    for seed in (1, 2, 3):
        rows = trace(lognormal, 0.8 * slots, seed)[:2000]
        assert settled_mean(run(rows, "sjf", slots=slots)) < settled_mean(run(rows, "fifo", slots=slots))


def ends(rows: Sequence[Row], mode: Mode, max_steps: int | None) -> dict[str, float]:
    """When each request ends on the engine alone, `max_steps` iterations at a time, in memory that is short."""
    engine = BatchModel(L4, mode=mode, max_num_seqs=8, kv_tokens=4000)
    for number, row in enumerate(rows):
        engine.add(str(number), row.prompt_tokens, row.completion_tokens, row.at)
    ended_at = {}
    while step := engine.advance(max_steps=max_steps):
        ended_at.update(dict.fromkeys(step.finished, step.ended_at))
    return ended_at


@pytest.mark.parametrize("mode", ["continuous", "static"])
def test_iterations_taken_together_last_as_long_as_one_by_one(mode: Mode) -> None:
    rows = generate(poisson(rate=0.5, requests=200), 1)
    together, singly = ends(rows, mode, None), ends(rows, mode, 1)
    assert len(rows) == len(together)
    assert pytest.approx(singly, rel=1e-9) == together


def test_every_policy_sees_the_same_requests_at_the_same_times() -> None:
    rows = generate(poisson(rate=2.0, requests=300), 1)
    recordings = [run(rows, policy, hardware=L4, slots=4, estimator="calibrated") for policy in POLICIES]
    demand = [(list(r.arrived_at), list(r.prompt_tokens), list(r.completion_tokens)) for r in recordings]
    assert [demand[0]] * len(POLICIES) == demand


def rows_of_seed(seed: int) -> list[Row]:
    return generate(poisson(rate=2.0, requests=300), seed)


def test_what_comes_of_a_policy_does_not_depend_on_which_others_are_simulated_nor_in_what_order() -> None:
    machine = Machine(L4, slots=4)
    several = [Case(policy, "calibrated", machine) for policy in POLICIES]
    found: dict[str, Run] = {}
    for cases in (several, several[::-1], several[2:3]):
        (result,) = run_experiment(Experiment(rows_of_seed, tuple(cases), (1,), PARTS))
        for outcome in result.runs:
            assert outcome == found.setdefault(outcome.policy, outcome)
    assert set(POLICIES) == set(found)
