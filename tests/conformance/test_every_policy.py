"""What every registered policy must do, whoever wrote it."""

from dataclasses import replace
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.model import Estimate, Load, Request, Tenant, Tier, Usage
from driftsched.core.protocols import Policy, Triage
from driftsched.policies import DEFAULT_POLICY, POLICIES, create_policy
from driftsched.queues.memory import MemoryQueue
from support.scheduling import SLOTS, dispatch_order, request_at, scheduler_of, simulated_events, step, workload

LENGTHS = st.floats(0, 1e6)
REQUESTS = st.builds(
    lambda at, tenant, weight, tier, prompt_tokens, target_seconds: replace(
        request_at(at, tenant=Tenant(tenant, tier, weight), tier=tier, prompt_tokens=prompt_tokens),
        target_seconds=target_seconds,
    ),
    at=st.floats(0, 1e9),
    tenant=st.text(max_size=5),
    weight=st.floats(1e-3, 1e3),
    tier=st.sampled_from(Tier),
    prompt_tokens=st.integers(0, 10**6),
    target_seconds=st.none() | st.floats(0, 1.7e308, exclude_min=True),
)
ESTIMATES = st.builds(lambda tokens: Estimate(tokens, tokens, tokens, tokens), LENGTHS)
LOADS = st.builds(
    Load,
    num_waiting=st.integers(0, 10**6),
    num_inflight=st.integers(0, 1000),
    waiting_tokens=st.floats(0, 1e12),
    tokens_per_second=st.floats(0, 1e6),
    long_tokens=st.floats(0, 1e7),
    middle_tokens=st.floats(0, 1e7),
    usual_drain_seconds=st.floats(0, 600),
    waiting_by_band_and_tier=st.dictionaries(
        st.tuples(st.integers(0, 1), st.sampled_from(Tier)), st.floats(0, 1e12), max_size=6
    ),
)
COUNTS = st.integers(0, 10**7)


@pytest.fixture(params=POLICIES.names(), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def policy(name: str) -> Policy:
    return create_policy(name)


def test_the_default_is_registered() -> None:
    assert DEFAULT_POLICY in POLICIES.names()


def test_it_says_in_a_line_what_it_does(name: str) -> None:
    assert POLICIES.describe(name).endswith(".")


@settings(max_examples=200, derandomize=True, deadline=None)
@given(request=REQUESTS, estimate=ESTIMATES, load=LOADS)
def test_a_place_is_one_that_any_queue_can_hold(
    policy: Policy, request: Request, estimate: Estimate, load: Load
) -> None:
    assert policy.band(request) in range(10)
    if isinstance(policy, Triage):
        assert policy.triage(request, estimate, load) in range(10)
    assert type(policy.flow(request)) is str
    assert isfinite(policy.rank(request, estimate, load))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(request=REQUESTS, prompt=COUNTS, completion=COUNTS, more_prompt=COUNTS, more_completion=COUNTS)
def test_a_price_is_finite_never_negative_and_never_falls_as_usage_grows(
    policy: Policy, request: Request, prompt: int, completion: int, more_prompt: int, more_completion: int
) -> None:
    price = policy.charge(request, Usage(prompt, completion))
    assert isfinite(price)
    assert price >= 0
    assert price <= policy.charge(request, Usage(prompt + more_prompt, completion + more_completion))


@settings(max_examples=50, derandomize=True, deadline=None)
@given(asked=st.lists(st.tuples(REQUESTS, ESTIMATES, LOADS), min_size=1, max_size=10))
def test_the_same_question_has_the_same_answer_whatever_was_asked_between(
    policy: Policy, asked: list[tuple[Request, Estimate, Load]]
) -> None:
    def answers(request: Request, estimate: Estimate, load: Load) -> tuple[object, ...]:
        usage = Usage(request.prompt_tokens, round(estimate.completion_tokens))
        return (
            policy.band(request),
            policy.flow(request),
            policy.rank(request, estimate, load),
            policy.charge(request, usage),
        )

    first = [answers(*question) for question in asked]
    assert first[::-1] == [answers(*question) for question in reversed(asked)]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(request=REQUESTS, estimate=ESTIMATES, load=LOADS)
def test_a_safety_margin_moves_nobody(policy: Policy, request: Request, estimate: Estimate, load: Load) -> None:
    padded = Estimate(estimate.completion_tokens, estimate.q50 + 1, estimate.q80 + 50, estimate.q90 + 900)
    assert policy.rank(request, estimate, load) == policy.rank(request, padded, load)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(request=REQUESTS, entitled=st.sampled_from(Tier), estimate=ESTIMATES, load=LOADS)
def test_a_request_counts_by_the_tier_it_is_served_at_whatever_its_tenant_could_have_had(
    policy: Policy, request: Request, entitled: Tier, estimate: Estimate, load: Load
) -> None:
    other = replace(request, tenant=replace(request.tenant, tier=entitled))
    usage = Usage(request.prompt_tokens, round(estimate.completion_tokens))
    assert (policy.band(request), policy.flow(request)) == (policy.band(other), policy.flow(other))
    assert policy.rank(request, estimate, load) == policy.rank(other, estimate, load)
    assert policy.charge(request, usage) == policy.charge(other, usage)


def test_equal_requests_of_a_tenant_are_served_in_order_of_arrival(name: str) -> None:
    scheduler = scheduler_of(name, slots=20)
    for n in range(20):
        step(scheduler.submit(request_at(float(n), str(n)), float(n)))
    served = [ticket.id for _ in range(20) if (ticket := step(scheduler.dispatch(20.0)))]
    assert [str(n) for n in range(20)] == served


def test_no_slot_idles_while_a_ticket_waits(name: str) -> None:
    queue = MemoryQueue(SLOTS)
    scheduler = scheduler_of(name, queue=queue)
    for arrival in workload(2, num_requests=60):
        step(scheduler.submit(arrival.request, arrival.request.arrived_at))
    served = 0
    while queue.num_waiting:
        ticket = step(scheduler.dispatch(100.0))
        assert ticket is not None
        served += 1
        step(scheduler.finish(ticket.id, Usage(ticket.request.prompt_tokens, 7), "stop", 100.0))
    assert 60 == served


def test_everything_is_served_once_and_the_order_is_reproducible(name: str) -> None:
    arrivals = workload(3, num_requests=200)
    order = dispatch_order(simulated_events(name, arrivals))
    assert sorted(order) == [arrival.request.id for arrival in arrivals]
    assert order == dispatch_order(simulated_events(name, arrivals))
