import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.admission import Bounds
from driftsched.core.errors import RejectedError
from driftsched.core.events import Admitted, Event, Evicted, Finished, Rejected
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier
from driftsched.core.shedding import MAX_SHED, Shedding
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE
from driftsched.policies import POLICIES
from driftsched.sim.driver import simulate
from support.queues import most_entries
from support.scheduling import CategoryMeans, request_at, scheduler_of, step, workload


def ticket_of(
    name: str,
    *,
    tenant: str = "t",
    tier: Tier = Tier.STANDARD,
    tokens: float = 10.0,
    weight: float = 1.0,
    overdue_at: float = 100.0,
    seq: int = 0,
) -> Ticket:
    request = request_at(name=name, tenant=Tenant(tenant, tier, weight), tier=tier)
    return Ticket(request, Estimate(tokens, tokens, tokens, tokens), seq, 0, "f", 0.0, 0.0, overdue_at)


def holding(*tickets: Ticket) -> Shedding:
    shedding = Shedding()
    for ticket in tickets:
        shedding.enter(ticket)
    return shedding


def victims(shedding: Shedding, newcomer: Ticket, *, number: int = 1, now: float = 0.0) -> list[str]:
    def enough(leaving: Sequence[Ticket]) -> bool:
        return len(leaving) >= number

    return [ticket.id for ticket in shedding.victims(newcomer, now, enough)]


PREMIUM = ticket_of("new", tenant="new", tier=Tier.PREMIUM)
STANDARD = ticket_of("new", tenant="new", tier=Tier.STANDARD)


def test_the_worst_tier_goes_first() -> None:
    waiting = [ticket_of(tier.label, tier=tier, tokens=10.0 + 100 * (2 - tier)) for tier in Tier]
    assert ["batch"] == victims(holding(*waiting), PREMIUM)
    assert ["batch", "standard"] == victims(holding(*waiting), PREMIUM, number=2)


def test_of_a_tier_the_tenant_with_most_waiting_for_its_weight_goes_first_and_of_that_the_longest() -> None:
    waiting = [
        ticket_of("a", tenant="heavy", tokens=300, weight=10.0),
        ticket_of("b", tenant="light", tokens=30),
        ticket_of("c", tenant="light", tokens=20),
        ticket_of("d", tenant="other", tokens=45),
    ]
    assert ["b", "d", "a", "c"] == victims(holding(*waiting), PREMIUM, number=4)


def test_of_equal_ones_the_last_that_came_goes_first() -> None:
    assert ["b"] == victims(holding(ticket_of("b", seq=2), ticket_of("a", seq=1)), PREMIUM)


def test_nobody_of_a_better_tier_goes() -> None:
    assert [] == victims(holding(ticket_of("a", tier=Tier.PREMIUM, tokens=1e6)), STANDARD)
    assert not holding(ticket_of("a", tier=Tier.PREMIUM, tokens=1e6)).may_help(STANDARD.request)


def test_of_the_same_tier_only_who_still_has_no_less_waiting_makes_room() -> None:
    flood = [ticket_of(str(n), tenant="flood") for n in range(3)]
    assert ["0"] == victims(holding(*flood), STANDARD)
    assert ["0"] == victims(holding(*flood, ticket_of("mine", tenant="new")), STANDARD)
    assert [] == victims(holding(*flood, *(ticket_of(n, tenant="new") for n in "ab")), STANDARD)
    assert [] == victims(holding(flood[0]), STANDARD)


def test_nobody_makes_room_for_its_own_tenants_excess() -> None:
    mine = [ticket_of(str(n), tenant="new", tokens=1000) for n in range(3)]
    assert [] == victims(holding(*mine), STANDARD)
    assert not holding(*mine).may_help(STANDARD.request)


def test_whoever_is_overdue_stays() -> None:
    waiting = [ticket_of("a", tokens=100, overdue_at=5.0), ticket_of("b", tokens=50, overdue_at=6.0)]
    assert ["a"] == victims(holding(*waiting), PREMIUM, now=4.9)
    assert ["b"] == victims(holding(*waiting), PREMIUM, now=5.0)
    assert [] == victims(holding(*waiting), PREMIUM, now=6.0)


def test_a_tenant_all_of_whose_requests_are_overdue_does_not_shield_the_others() -> None:
    waiting = [ticket_of("a", tokens=100, overdue_at=1.0), ticket_of("b", tenant="u", tokens=5)]
    shedding = holding(*waiting)
    assert ["b"] == victims(shedding, PREMIUM, now=2.0)
    shedding.enter(ticket_of("c", tokens=1))
    assert ["c"] == victims(shedding, PREMIUM, now=2.0), "it has something to shed again"


def test_if_the_most_that_may_go_do_not_make_room_nobody_goes() -> None:
    waiting = [ticket_of(str(n), seq=n) for n in range(MAX_SHED + 1)]
    shedding = holding(*waiting)
    assert MAX_SHED == len(victims(shedding, PREMIUM, number=MAX_SHED))
    assert [] == victims(shedding, PREMIUM, number=MAX_SHED + 1)
    assert MAX_SHED == len(victims(shedding, PREMIUM, number=MAX_SHED)), "nor is anybody forgotten"


def test_what_is_predicted_now_counts() -> None:
    shedding = holding(ticket_of("a", tokens=10), ticket_of("b", tokens=20))
    shedding.revise(ticket_of("a", tokens=30))
    assert ["a"] == victims(shedding, PREMIUM)
    shedding.revise(ticket_of("a", tokens=10))
    assert ["b"] == victims(shedding, PREMIUM)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.integers(1, 60))
def test_it_chooses_whom_a_search_through_all_would_choose(seed: int, number: int) -> None:
    rng = random.Random(seed)
    shedding, waiting = Shedding(), dict[str, Ticket]()
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    for seq in range(number):
        tenant = rng.choice("abc")
        fields: dict[str, Any] = {
            "tier": rng.choice(list(Tier)),
            "tokens": float(rng.randint(1, 9)),
            "weight": weights[tenant],
        }
        one = ticket_of(str(seq), tenant=tenant, seq=seq, overdue_at=float(rng.randint(0, 200)), **fields)
        if rng.random() < 0.3 and waiting:
            shedding.leave(waiting.popitem()[0])
        now = seq / 2
        expected = _searched(list(waiting.values()), one, now)
        assert ([expected.id] if expected else []) == victims(shedding, one, now=now)
        if rng.random() < 0.8:
            shedding.enter(one)
            waiting[one.id] = one
    for name in waiting:
        shedding.leave(name)
    assert 0 == shedding._num_sorted
    assert ({}, {}) == (shedding._tickets, shedding._entries)
    assert [{}] * 3 == [tier.tenants for tier in shedding._tiers.values()]


def _searched(waiting: list[Ticket], newcomer: Ticket, now: float) -> Ticket | None:
    def line(of: Ticket) -> float:
        same = [
            t for t in waiting if (t.request.tenant.id, t.request.tier) == (of.request.tenant.id, of.request.tier)
        ]
        return sum(t.estimate.expected_tokens for t in same) / of.request.tenant.weight

    def value(t: Ticket) -> tuple[object, ...]:
        return -t.request.tier, -line(t), t.request.tenant.id, -t.estimate.expected_tokens, -t.seq

    ours = newcomer.request
    for victim in sorted((t for t in waiting if t.overdue_at > now and t.request.tier >= ours.tier), key=value)[:1]:
        theirs = victim.request
        if theirs.tier > ours.tier:
            return victim
        left = line(victim) - victim.estimate.expected_tokens / theirs.tenant.weight
        mine = line(newcomer) + newcomer.estimate.expected_tokens / ours.tenant.weight
        return victim if theirs.tenant.id != ours.tenant.id and left >= mine else None
    return None


def test_what_left_is_forgotten() -> None:
    shedding = holding(*(ticket_of(f"stays{n}", tenant=f"t{n}") for n in range(5)))
    assert shedding.may_help(PREMIUM.request)  # from here on they are sorted
    for n in range(2000):
        shedding.enter(ticket_of(str(n), tenant=f"t{n % 7}", tokens=float(n % 50)))
        shedding.leave(str(n))
    tier = shedding._tiers[Tier.STANDARD]
    assert len(tier._heap) <= most_entries(5)
    assert all(len(tenant.tickets) <= most_entries(1) for tenant in tier.tenants.values())


# As the scheduler sheds


def test_a_better_request_takes_the_place_of_one_that_waits_and_its_driver_is_told() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(bounds=Bounds(max_waiting=2), sheds=True, listeners=[events.append])
    for name in "ab":
        step(scheduler.submit(request_at(0.0, name, tier=Tier.BATCH), 0.0))
    step(scheduler.submit(request_at(1.0, "c", tier=Tier.PREMIUM), 1.0))
    assert [("b", "shed", None, 0.0)] == [
        (e.ticket.id, e.reason, e.dispatched_at, e.charge) for e in events if isinstance(e, Evicted)
    ]
    assert ["b"] == [ticket.id for ticket in scheduler.take_shed()]
    assert [] == scheduler.take_shed()
    assert 2 == scheduler.load.num_waiting
    with pytest.raises(RejectedError, match="queue is full"):
        step(scheduler.submit(request_at(1.0, "d", tier=Tier.BATCH), 1.0))


def test_unless_it_sheds_a_better_request_is_rejected() -> None:
    scheduler = scheduler_of(bounds=Bounds(max_waiting=1))
    step(scheduler.submit(request_at(0.0, "a", tier=Tier.BATCH), 0.0))
    with pytest.raises(RejectedError, match="queue is full"):
        step(scheduler.submit(request_at(1.0, "b", tier=Tier.PREMIUM), 1.0))


def test_room_is_made_in_tokens_and_bytes_too() -> None:
    for bounds in (Bounds(max_waiting_tokens=70), Bounds(max_waiting_bytes=100)):
        scheduler = scheduler_of(bounds=bounds, sheds=True)
        for name in "ab":
            step(scheduler.submit(request_at(0.0, name, tier=Tier.BATCH, payload_bytes=50), 0.0))
        step(scheduler.submit(request_at(1.0, "c", tier=Tier.PREMIUM, payload_bytes=50), 1.0))
        assert ["b"] == [ticket.id for ticket in scheduler.take_shed()]


@pytest.mark.parametrize(
    "bounds", [Bounds(max_waiting_per_tenant=1), Bounds(max_waiting_per_tier={Tier.PREMIUM: 1})]
)
def test_nobody_is_shed_for_a_bound_of_a_tenant_or_a_tier(bounds: Bounds) -> None:
    scheduler = scheduler_of(bounds=bounds, sheds=True)
    tenant = Tenant("p", Tier.PREMIUM)
    step(scheduler.submit(request_at(0.0, "a", tier=Tier.BATCH), 0.0))
    step(scheduler.submit(request_at(0.0, "b", tenant=tenant, tier=Tier.PREMIUM), 0.0))
    with pytest.raises(RejectedError):
        step(scheduler.submit(request_at(0.0, "c", tenant=tenant, tier=Tier.PREMIUM), 0.0))
    assert [] == scheduler.take_shed()


def test_a_newcomer_that_nobody_could_make_room_for_is_not_even_predicted() -> None:
    class Counting(CategoryMeans):
        predicted = 0

        def predict(self, request: Request) -> Estimate:
            self.predicted += 1
            return super().predict(request)

    estimator = Counting()
    scheduler = scheduler_of(bounds=Bounds(max_waiting=2), sheds=True, estimator=estimator)
    for n in range(20):
        with suppress(RejectedError):
            step(scheduler.submit(request_at(0.0, str(n)), 0.0))
    assert 2 == estimator.predicted


@pytest.mark.parametrize("policy", POLICIES.names())
def test_under_overload_every_request_ends_once_and_better_tiers_are_turned_away_less(policy: str) -> None:
    events: list[Event] = []
    bounds = Bounds(max_waiting=30, max_waiting_tokens=8000)
    scheduler = scheduler_of(policy, slots=4, bounds=bounds, sheds=True, listeners=[events.append])
    arrivals = workload(5, num_requests=400, requests_per_second=8.0)
    simulate(arrivals, scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=4))
    ended = [e.ticket.id for e in events if isinstance(e, Finished | Evicted)]
    ended += [e.request.id for e in events if isinstance(e, Rejected)]
    assert sorted(ended) == [arrival.request.id for arrival in arrivals]
    assert {"shed"} == {e.reason for e in events if isinstance(e, Evicted)}
    came = [sum(a.request.tier == tier for a in arrivals) for tier in Tier]
    served = [sum(isinstance(e, Finished) and e.ticket.request.tier == tier for e in events) for tier in Tier]
    shares = [num_served / num_came for num_served, num_came in zip(served, came, strict=True)]
    assert sorted(shares, reverse=True) == shares
    assert max(e.position for e in events if isinstance(e, Admitted)) <= 30
