"""Quotas: never more than the bucket gives, nothing lost, nothing given twice."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.errors import RejectedError
from driftsched.core.events import Event, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Estimate, Quota, Request, Tenant, Ticket, Usage
from driftsched.core.quotas import Bucket, Quotas, Standing
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import simulate
from support.scheduling import SLOTS, CategoryMeans, request_at, scheduler_of, step, workload

MINUTE = 60.0


def near(seconds: float) -> Any:
    """Equal to what differs by rounding only."""
    return pytest.approx(seconds)


def tenant(**limits: int) -> Tenant:
    return Tenant("ann", quota=Quota("ann", **limits))


def ticket(name: str, of: Tenant, *, prompt: int = 10, expected: float = 40.0, at: float = 0.0) -> Ticket:
    request = request_at(at, name, tenant=of, prompt_tokens=prompt)
    return Ticket(request, Estimate(expected, expected, expected, expected), 0, 0, "f", 0.0, 0.0)


def finished(of: Ticket, used: int, at: float) -> Finished:
    usage = Usage(of.request.prompt_tokens, used - of.request.prompt_tokens)
    return Finished(at, of, usage, "stop", dispatched_at=at, first_token_at=at, charge=0.0)


def standings(quotas: Quotas, of: Tenant, now: float) -> list[Standing]:
    assert of.quota is not None
    return quotas.standing(of.quota, now)


def test_a_tenant_without_quota_is_never_refused_and_leaves_no_account() -> None:
    quotas = Quotas()
    for number in range(100):
        each = ticket(f"{number}", Tenant("free"), expected=1e9)
        assert (None, None) == (quotas.check(each.request, 0.0), quotas.reserve(each, 0.0))
    assert ({}, {}) == (quotas._accounts, quotas._reservations)


def test_requests_are_counted_and_come_back_with_time() -> None:
    quotas, ann = Quotas(), tenant(requests_per_minute=3)
    assert [None] * 3 == [quotas.reserve(ticket(f"{n}", ann), 0.0) for n in range(3)]
    refusal = quotas.reserve(ticket("3", ann), 5.0)
    assert refusal is not None
    assert ("requests_quota", 3, near(15.0)) == (
        refusal.reason,
        refusal.limit,
        refusal.retry_after_seconds,
    )
    assert quotas.reserve(ticket("3", ann), 5.0 + 15.0) is None
    assert quotas.reserve(ticket("4", ann), 5.0 + 15.0) is not None


def test_tokens_are_reserved_as_predicted_and_settled_as_used() -> None:
    quotas, ann = Quotas(), tenant(tokens_per_minute=100)
    first = ticket("a", ann, prompt=10, expected=80.0)
    assert quotas.reserve(first, 0.0) is None
    assert [Standing("tokens", 100, 10, near(54.0))] == standings(quotas, ann, 0.0)
    quotas.hear(finished(first, 30, 0.0))
    assert [Standing("tokens", 100, 70, near(18.0))] == standings(quotas, ann, 0.0)


def test_who_used_more_than_predicted_pays_before_the_next_is_admitted() -> None:
    quotas, ann = Quotas(), tenant(tokens_per_minute=60)
    first = ticket("a", ann, prompt=10, expected=10.0)
    assert quotas.reserve(first, 0.0) is None
    quotas.hear(finished(first, 90, 0.0))
    assert [Standing("tokens", 60, 0, near(90.0))] == standings(quotas, ann, 0.0)
    refusal = quotas.check(ticket("b", ann).request, 0.0)
    assert refusal is not None
    assert near(31.0) == refusal.retry_after_seconds
    assert quotas.check(ticket("b", ann).request, 31.0) is None


@pytest.mark.parametrize(
    ("reason", "dispatched_at", "requests_left"), [("cancelled", None, 1), ("shed", None, 2), ("expired", None, 2)]
)
def test_what_was_never_served_gives_its_tokens_back(
    reason: str, dispatched_at: float | None, requests_left: int
) -> None:
    quotas, ann = Quotas(), tenant(requests_per_minute=2, tokens_per_minute=100)
    first = ticket("a", ann)
    quotas.reserve(first, 0.0)
    quotas.hear(Evicted(0.0, first, reason, Usage(), dispatched_at, 0.0))
    assert [requests_left, 100] == [each.remaining for each in standings(quotas, ann, 0.0)]


def test_what_failed_or_was_broken_off_pays_what_it_used() -> None:
    quotas, ann = Quotas(), tenant(tokens_per_minute=100)
    failed, left = ticket("a", ann), ticket("b", ann)
    quotas.reserve(failed, 0.0)
    quotas.reserve(left, 0.0)
    quotas.hear(Failed(0.0, failed, "broken_stream", Usage(10, 5), 0.0, 0.0))
    quotas.hear(Evicted(0.0, left, "cancelled", Usage(10, 15), 0.0, 0.0))
    assert [100 - 15 - 25] == [each.remaining for each in standings(quotas, ann, 0.0)]
    assert {} == quotas._reservations


def test_what_has_run_out_is_not_given_back_again() -> None:
    """Given back, it would be spent twice: others were admitted in its room."""
    quotas, ann = Quotas(), tenant(tokens_per_minute=600)
    first, second = ticket("a", ann, prompt=0, expected=600.0), ticket("b", ann, prompt=0, expected=500.0)
    quotas.reserve(first, 0.0)
    assert quotas.reserve(second, 50.0) is None
    quotas.hear(Evicted(60.0, first, "cancelled", Usage(), None, 0.0))
    assert [600 - 500] == [each.remaining for each in standings(quotas, ann, 60.0)]


def test_what_was_given_back_before_is_not_given_back_by_the_next_either() -> None:
    quotas, ann = Quotas(), tenant(tokens_per_minute=600)
    first, second, third = (ticket(name, ann, prompt=0, expected=300.0) for name in "abc")
    quotas.reserve(first, 0.0)
    quotas.reserve(second, 0.0)
    quotas.hear(Evicted(0.0, first, "cancelled", Usage(), None, 0.0))
    assert quotas.reserve(third, 0.0) is None
    quotas.hear(Evicted(30.0, second, "cancelled", Usage(), None, 0.0))
    assert [300] == [each.remaining for each in standings(quotas, ann, 30.0)]


def test_a_long_answer_is_admitted_when_nothing_else_is_and_a_prompt_beyond_the_quota_never() -> None:
    quotas, ann = Quotas(), tenant(tokens_per_minute=100)
    never = quotas.reserve(ticket("a", ann, prompt=101), 0.0)
    assert never is not None
    assert never.retry_after_seconds is None
    assert quotas.reserve(ticket("b", ann, prompt=100, expected=1e6), 0.0) is None
    assert [0] == [each.remaining for each in standings(quotas, ann, 0.0)]


def test_another_limit_counts_from_now_on_and_what_was_used_stays_used() -> None:
    quotas, ann = Quotas(), tenant(requests_per_minute=10)
    for number in range(10):
        quotas.reserve(ticket(f"{number}", ann), 0.0)
    more, less = tenant(requests_per_minute=12), tenant(requests_per_minute=2)
    assert [2] == [each.remaining for each in standings(quotas, more, 0.0)]
    assert [0] == [each.remaining for each in standings(quotas, less, 0.0)]
    refusal = quotas.check(ticket("x", less).request, 0.0)
    assert refusal is not None
    assert near(9 * 30.0) == refusal.retry_after_seconds


def test_tenants_of_one_account_share_it() -> None:
    quotas, quota = Quotas(), Quota("gateway", requests_per_minute=1)
    assert quotas.reserve(ticket("a", Tenant("x", quota=quota)), 0.0) is None
    assert quotas.reserve(ticket("b", Tenant("y", quota=quota)), 0.0) is not None


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket()
    bucket.add(10.0, 10, 100.0)
    assert [10.0, 10.0, 0.0] == [bucket.level(10, now) for now in (50.0, 100.0, 160.0)]


STEPS = st.lists(
    st.tuples(
        st.floats(0, 40),  # seconds since the step before
        st.sampled_from(["ask", "ask", "ask", "finish", "finish", "cancel"]),
        st.integers(1, 120),  # tokens expected
        st.floats(0, 1),  # share of them that is used; and which of those alive it is
    ),
    max_size=60,
)


@given(STEPS, st.integers(20, 100))
def test_no_stretch_of_time_sees_more_than_the_bucket_gives_and_nothing_leaks(
    steps: list[tuple[float, str, int, float]], limit: int
) -> None:
    quotas, ann = Quotas(), tenant(tokens_per_minute=limit, requests_per_minute=limit)
    now, alive, used = 0.0, [], {}
    for number, (seconds, what, expected, share) in enumerate(steps):
        now += seconds
        if what == "ask":
            asked = ticket(f"{number}", ann, prompt=0, expected=float(expected), at=now)
            if quotas.reserve(asked, now) is None:
                alive.append(asked)
        elif alive:
            ended = alive.pop(int(share * (len(alive) - 1)))
            taken = min(int(ended.estimate.expected_tokens), limit)
            tokens = int(share * taken) if what == "finish" else 0
            used[ended.request.arrived_at, ended.id] = tokens
            dispatched_at = now if what == "finish" else None
            quotas.hear(
                finished(ended, tokens, now)
                if what == "finish"
                else Evicted(now, ended, "cancelled", Usage(), dispatched_at, 0.0)
            )
    for ended in alive:
        used[ended.request.arrived_at, ended.id] = min(int(ended.estimate.expected_tokens), limit)
        quotas.hear(finished(ended, used[ended.request.arrived_at, ended.id], now))
    admitted = sorted((at, tokens) for (at, _), tokens in used.items())
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            window = admitted[first : last + 1]
            given = limit * (1 + (window[-1][0] - window[0][0]) / MINUTE)
            assert sum(tokens for _, tokens in window) <= given * (1 + 1e-5)
            assert len(window) <= given * (1 + 1e-5)
    assert {} == quotas._reservations
    full = standings(quotas, ann, now + 2 * MINUTE)
    assert [(limit, 0.0), (limit, 0.0)] == [(each.remaining, each.reset_seconds) for each in full]


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60)), max_size=40), st.integers(10, 60))
def test_whoever_comes_when_told_is_admitted(asked: list[tuple[float, int]], limit: int) -> None:
    quotas, ann, now = Quotas(), tenant(tokens_per_minute=limit), 0.0
    for number, (seconds, expected) in enumerate(asked):
        now += seconds
        each = ticket(f"{number}", ann, prompt=0, expected=float(expected))
        refusal = quotas.reserve(each, now)
        if refusal is not None:
            assert refusal.retry_after_seconds is not None
            now += refusal.retry_after_seconds
            assert quotas.reserve(each, now) is None


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 300)), min_size=2, max_size=30))
def test_an_excess_is_paid_back_before_anybody_is_admitted(asked: list[tuple[float, int]]) -> None:
    """Over the whole time no more is used than the bucket gives and the last one admitted took too much."""
    limit, quotas, now = 50, Quotas(), 0.0
    ann, taken = tenant(tokens_per_minute=limit), []
    for number, (seconds, used) in enumerate(asked):
        now += seconds
        each = ticket(f"{number}", ann, prompt=0, expected=10.0)
        if quotas.reserve(each, now) is None:
            quotas.hear(finished(each, used, now))
            taken.append((now, used))
    for before, after in pairwise(range(len(taken))):
        total = sum(used for _, used in taken[: before + 1])
        assert total <= limit * (1 + (taken[after][0] - taken[0][0]) / MINUTE) + 1e-3


def request(name: str, of: Tenant, prompt_tokens: int = 10) -> Request:
    return request_at(0.0, name, tenant=of, prompt_tokens=prompt_tokens)


class Refuses(MemoryQueue):
    """Takes nothing."""

    async def push(self, ticket: Ticket) -> None:
        raise ValueError(ticket.id)


class Counting(CategoryMeans):
    """Knows how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, request: Request) -> Estimate:
        self.asked += 1
        return super().predict(request)


def test_the_scheduler_rejects_what_is_beyond_a_quota_before_it_predicts_anything() -> None:
    estimator, ann = Counting(), tenant(requests_per_minute=1)
    scheduler = scheduler_of(slots=9, estimator=estimator)
    step(scheduler.submit(request("a", ann), 0.0))
    with pytest.raises(RejectedError) as caught:
        step(scheduler.submit(request("b", ann), 15.0))
    assert ("requests_quota", near(45.0), 1) == (
        caught.value.reason,
        caught.value.retry_after_seconds,
        estimator.asked,
    )


def test_a_rejected_request_takes_nothing_from_the_quota() -> None:
    quotas, ann = Quotas(), tenant(requests_per_minute=5, tokens_per_minute=1000)
    scheduler = scheduler_of(quotas=quotas)
    scheduler.close()
    with pytest.raises(RejectedError):
        step(scheduler.submit(request("a", ann), 0.0))
    scheduler = scheduler_of(quotas=quotas, queue=Refuses(1))
    with pytest.raises(ValueError, match="b"):
        step(scheduler.submit(request("b", ann), 0.0))
    with pytest.raises(RejectedError):
        step(scheduler_of(quotas=quotas).submit(request("c", ann, prompt_tokens=2000), 0.0))
    assert [5, 1000] == [each.remaining for each in standings(quotas, ann, 0.0)]


def test_the_wait_after_a_great_excess_is_not_worth_a_retry() -> None:
    quotas, ann = Quotas(), tenant(tokens_per_minute=100)
    scheduler = scheduler_of(quotas=quotas)
    served = step(scheduler.submit(request("a", ann), 0.0))
    step(scheduler.dispatch(0.0))
    step(scheduler.finish(served.id, Usage(10, 1000), "stop", 0.0))
    with pytest.raises(RejectedError) as caught:
        step(scheduler.submit(request("b", ann), 0.0))
    assert ("tokens_quota", None) == (caught.value.reason, caught.value.retry_after_seconds)


def test_a_tenants_own_bound_on_what_waits_counts_beside_that_of_all() -> None:
    scheduler = scheduler_of()
    ann = tenant(max_waiting=2)
    for name in ("a", "b"):
        step(scheduler.submit(request(name, ann), 0.0))
    with pytest.raises(RejectedError) as caught:
        step(scheduler.submit(request("c", ann), 0.0))
    assert "tenant_queue_full" == caught.value.reason
    step(scheduler.submit(replace(request("d", ann), tenant=Tenant("bob")), 0.0))


@pytest.mark.parametrize("policy", ["fifo", "fair", "sjf"])
def test_over_a_whole_load_nothing_stays_reserved_and_nobody_gets_more_than_was_agreed(policy: str) -> None:
    quotas, limit = Quotas(), 6_000
    arrivals = []
    for arrival in workload(3, num_requests=400):
        quota = Quota("acme", tokens_per_minute=limit) if arrival.request.tenant.id == "acme" else None
        tenant = replace(arrival.request.tenant, quota=quota)
        arrivals.append(replace(arrival, request=replace(arrival.request, tenant=tenant)))
    events: list[Event] = []
    scheduler = scheduler_of(policy, slots=SLOTS, quotas=quotas, listeners=[events.append])
    simulate(arrivals, scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=SLOTS))
    refused = [event for event in events if isinstance(event, Rejected)]
    ended = [event for event in events if isinstance(event, Finished)]
    assert {("acme", "tokens_quota")} == {(event.request.tenant.id, event.reason) for event in refused}
    assert len(arrivals) == len(refused) + len(ended)
    assert {} == quotas._reservations
    used = sum(event.usage.total_tokens for event in ended if event.ticket.request.tenant.id == "acme")
    assert used > 0.5 * limit * arrivals[-1].request.arrived_at / MINUTE
    assert used < limit * (1.2 + arrivals[-1].request.arrived_at / MINUTE)  # the last ones may go beyond
