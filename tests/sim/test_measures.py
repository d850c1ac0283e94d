from itertools import combinations, pairwise
from math import isnan, nan, sqrt
from random import Random
from statistics import fmean

import pytest

from driftsched.bench import measures as bench_measures
from driftsched.sim.measures import (
    MAX_TENANTS,
    Objective,
    attainment,
    e2e_seconds,
    measure,
    percentile,
    prediction,
    queue_seconds,
    service_gap_tokens,
    ttft_seconds,
)
from driftsched.sim.recording import Recording
from support.recordings import Served, queue_run, recording_of


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (50.0, 90.0, 95.0) == tuple(percentile(values, fraction) for fraction in (0.5, 0.9, 0.95))
    assert 57.0 == percentile(values[:60], 0.95)


@pytest.mark.parametrize(("fraction", "enough"), [(0.5, 4), (0.9, 20), (0.95, 40), (0.99, 200)])
def test_a_percentile_is_suppressed_where_too_few_values_lie_beyond_it(fraction: float, enough: int) -> None:
    assert percentile([1.0] * enough, fraction) is not None
    assert percentile([1.0] * (enough - 1), fraction) is None
    assert percentile([], fraction) is None


def test_live_and_simulated_runs_have_the_same_percentile() -> None:
    values = [Random(1).expovariate(1) for _ in range(500)]
    for fraction in (0.5, 0.95, 0.99):
        assert percentile(sorted(values), fraction) == bench_measures.percentile([*values, None], fraction)


def test_times_are_those_of_finished_requests() -> None:
    run = recording_of(
        [
            Served(1.0, 2.0, 5.0, first_token_at=3.0),
            Served(1.5, 2.5, 4.0),
            Served(2.0, 3.0, 9.0, outcome="failed"),
            Served(2.0, finished_at=9.0, outcome="evicted"),
            Served(2.0, outcome="rejected"),
        ]
    )
    assert [4.0, 2.5] == e2e_seconds(run)
    assert [1.0, 1.0] == queue_seconds(run)
    assert [2.0] == ttft_seconds(run)
    figures = measure(run)
    assert 5 == figures.requests
    assert {"finished": 2, "rejected": 1, "evicted": 1, "failed": 1, "unfinished": 0} == figures.outcomes
    assert (3.25, None, 4.0) == (figures.e2e_seconds.mean, figures.e2e_seconds.p50, figures.e2e_seconds.max)
    assert 8.0 == figures.makespan_seconds
    assert figures.slot_utilisation == pytest.approx((3.0 + 1.5 + 6.0) / 8.0)


def test_groups_hold_the_values_of_their_members_and_nothing_else() -> None:
    run = queue_run(requests=900, seed=4)
    figures = measure(run)
    assert ["premium", "standard", "batch"] == list(figures.by_tier)
    assert ["short", "medium"] == list(figures.by_class)
    assert ["acme", "globex", "initech"] == list(figures.by_tenant)
    assert ["calibration", "stress"] == list(figures.by_phase)
    for groups, column in (
        (figures.by_tier, run.tier),
        (figures.by_class, run.runtime_class),
        (figures.by_tenant, run.tenant),
        (figures.by_phase, run.phase),
    ):
        assert 900 == sum(group.requests for group in groups.values())
        for name, group in groups.items():
            mine = [seconds for seconds, of in zip(e2e_seconds(run), column, strict=True) if of == name]
            waits = [seconds for seconds, of in zip(queue_seconds(run), column, strict=True) if of == name]
            assert (fmean(mine), max(mine), percentile(sorted(mine), 0.95)) == (
                group.e2e_seconds.mean,
                group.e2e_seconds.max,
                group.e2e_seconds.p95,
            )
            assert percentile(sorted(waits), 0.5) == group.queue_seconds.p50
    assert percentile(sorted(e2e_seconds(run)), 0.99) == figures.e2e_seconds.p99


def test_only_the_busiest_tenants_are_told_apart() -> None:
    requests = [Served(0.0, 0.0, 1.0, tenant=f"t{n % 30:02}") for n in range(60)]
    requests += [Served(0.0, 0.0, 1.0, tenant="t29")]
    tenants = measure(recording_of(requests)).by_tenant
    assert MAX_TENANTS == len(tenants)
    assert "t29" == next(iter(tenants))


def test_a_run_without_an_answer_has_no_figures_and_no_errors() -> None:
    for run in (recording_of([]), recording_of([Served(outcome="rejected", predicted_tokens=nan)])):
        figures = measure(run)
        assert figures.e2e_seconds.mean is None
        assert figures.prediction.mae_tokens is None
        assert figures.slot_utilisation is None
        assert {} == figures.by_tier


def test_prediction_error_leaves_truncated_answers_out() -> None:
    served = [
        Served(0.0, 0.0, 1.0, predicted_tokens=10.0, completion_tokens=12),
        Served(0.0, 0.0, 1.0, predicted_tokens=20.0, completion_tokens=14),
        Served(0.0, 0.0, 1.0, predicted_tokens=30.0, completion_tokens=31),
        Served(0.0, 0.0, 1.0, predicted_tokens=1000.0, completion_tokens=64, finish_reason="length"),
        Served(0.0, 0.0, 1.0, predicted_tokens=1000.0, completion_tokens=3, outcome="evicted"),
    ]
    error = prediction(recording_of(served))
    assert 3.0 == error.mae_tokens
    assert sqrt((4 + 36 + 1) / 3) == error.rmse_tokens
    assert error.bias == pytest.approx((-2 + 6 - 1) / 3)
    assert 1.0 == error.kendall_tau
    assert (3, 1) == (error.compared, error.truncated)


def test_light_tenants_are_all_but_the_busiest() -> None:
    heavy = [Served(0.0, 0.0, 100.0, tenant="flood") for _ in range(500)]
    light = [Served(0.0, 0.0, 1.0 + number, tenant="light") for number in range(200)]
    assert 198.0 == measure(recording_of([*heavy, *light])).light_tenant_p99_seconds
    assert measure(recording_of(heavy)).light_tenant_p99_seconds is None


def test_an_objective_counts_everything_submitted() -> None:
    served = [
        Served(0.0, 0.0, 4.0, first_token_at=0.5),
        Served(0.0, 0.0, 4.0, first_token_at=2.0),
        Served(0.0, 0.0, 9.0, first_token_at=0.5),
        Served(0.0, outcome="rejected"),
    ]
    run = recording_of(served)
    assert 1 == attainment(run, Objective(ttft_seconds=1.0, e2e_seconds=5.0)).attained
    assert 2 == attainment(run, Objective(ttft_seconds=1.0)).attained
    slo = measure(run, Objective(e2e_seconds=5.0)).slo
    assert slo is not None
    assert (4, 2, 0.5) == (slo.requests, slo.attained, slo.share)
    assert slo.low < 0.5 < slo.high
    assert slo.goodput_per_second == pytest.approx(2 / 9)


def gap_by_definition(run: Recording) -> float:
    """Every pair, every two instants between which both wait without a break."""
    instants = sorted({at for column in (run.arrived_at, run.dispatched_at, run.finished_at) for at in column})
    instants = [at for at in instants if not isnan(at)]

    def waits(tenant: str, at: float) -> bool:
        """Right after `at`."""
        return any(
            run.tenant[p] == tenant and run.arrived_at[p] <= at < (run.dispatched_at[p]) for p in range(len(run))
        )

    def service(tenant: str, at: float) -> float:
        return sum(
            (run.prompt_tokens[p] + 2 * run.completion_tokens[p]) / run.tenant_weight[p]
            for p in range(len(run))
            if run.tenant[p] == tenant and run.dispatched_at[p] <= at
        )

    largest = 0.0
    for a, b in combinations(sorted(set(run.tenant)), 2):
        leads: list[float] = []
        for at, _ in pairwise([*instants, instants[-1] + 1]):
            if waits(a, at) and waits(b, at):
                leads.append(service(a, at) - service(b, at))
                largest = max(largest, max(leads) - min(leads))
            else:
                leads = []
    return largest


@pytest.mark.parametrize("policy", ["fifo", "sjf"])
@pytest.mark.parametrize("seed", range(5))
def test_the_service_gap_is_what_its_definition_says(policy: str, seed: int) -> None:
    run = queue_run(policy, requests=60, rate=12.0, slots=3, seed=seed)
    assert gap_by_definition(run) > 0
    assert service_gap_tokens(run) == pytest.approx(gap_by_definition(run))


def test_the_service_gap_compares_tenants_only_while_both_wait() -> None:
    def batch(tenant: str, arrived: float, *dispatched: float) -> list[Served]:
        """Ten tokens of prompt and twenty of completion: 50 of service each."""
        return [Served(arrived, at, at + 1.0, tenant=tenant) for at in dispatched]

    one_by_one = sorted(
        [*batch("a", 0.0, 1.0, 3.0, 5.0), *batch("b", 0.0, 2.0, 4.0, 6.0)], key=lambda r: r.arrived_at
    )
    assert 50.0 == service_gap_tokens(recording_of(one_by_one))
    in_turn = [*batch("a", 0.0, 1.0, 2.0, 3.0, 9.0), *batch("b", 0.0, 4.0, 5.0)]
    assert 150.0 == service_gap_tokens(recording_of(in_turn))  # a is served three times before b is
    apart = [*batch("a", 0.0, 1.0, 2.0, 3.0), *batch("b", 4.0, 5.0, 6.0)]
    assert 0.0 == service_gap_tokens(recording_of(apart))
    assert service_gap_tokens(recording_of(batch("a", 0.0, 1.0, 2.0))) is None


def test_requests_dispatched_at_one_instant_have_no_order_among_them() -> None:
    def pair(first: str, second: str) -> list[Served]:
        return [Served(0.0, 1.0, 2.0, tenant=tenant) for tenant in (first, first, second, second)]

    late = [Served(0.0, 3.0, 4.0, tenant=tenant) for tenant in ("a", "b")]
    assert 0.0 == service_gap_tokens(recording_of([*pair("a", "b"), *late], slots=4))


def test_a_request_that_is_dispatched_as_it_arrives_never_waited() -> None:
    waits = [Served(0.0, 9.0, 10.0, tenant="a")]
    passes = [Served(float(n), float(n), n + 1.0, tenant="b") for n in range(1, 5)]
    assert 0.0 == service_gap_tokens(recording_of([*waits, *passes], slots=4))


def test_service_is_relative_to_a_tenants_weight() -> None:
    double = [Served(0.0, 1.0 + n // 2, 2.0 + n, tenant="a", weight=2.0) for n in range(9)]
    single = [Served(0.0, 1.0 + n, 2.0 + n, tenant="b") for n in range(5)]
    assert 0.0 == service_gap_tokens(recording_of([*double, *single]))
