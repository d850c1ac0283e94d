from collections.abc import Iterable
from math import inf
from random import Random

import pytest

from driftsched.core.events import Admitted, Dispatched, Event
from driftsched.core.model import Estimate, Load, Ticket, Tier, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.core.waits import MEMORY, MIN_WAITS, PROBE, Eta, Waits
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE
from driftsched.sim.driver import simulate
from support.scheduling import request_at, scheduler_of, step, workload

BUSY = Load(num_waiting=5, num_inflight=2, waiting_tokens=900.0, tokens_per_second=100.0, long_tokens=1000.0)
"""With a request of 100 tokens, it drains in 10 seconds."""
IDLE = Load(num_waiting=0, num_inflight=0, waiting_tokens=0.0, tokens_per_second=100.0, long_tokens=1000.0)


def ticket_of(name: str, *, at: float = 0.0, tokens: float = 100.0, tier: Tier = Tier.STANDARD) -> Ticket:
    estimate = Estimate(tokens, tokens, tokens, tokens)
    return Ticket(request_at(at, name, tier=tier), estimate, seq=0, band=0, flow="f", rank=0.0, charge=0.0)


def waits_after(
    seconds: Iterable[float], *, tokens: float = 100.0, tier: Tier = Tier.STANDARD, load: Load = BUSY
) -> Waits:
    """What is known after requests, one after the other, waited so long."""
    waits = Waits()
    learn(waits, seconds, tokens=tokens, tier=tier, load=load)
    return waits


def learn(
    waits: Waits,
    seconds: Iterable[float],
    *,
    tokens: float = 100.0,
    tier: Tier = Tier.STANDARD,
    load: Load = BUSY,
    num_of_tenant: int = 0,
) -> None:
    for waited in seconds:
        waits.enter(ticket_of("past", tokens=tokens, tier=tier), load, num_of_tenant)
        waits.observe("past", waited)
        waits.leave("past")


def test_without_a_rate_nothing_is_forecast() -> None:
    waits = Waits()
    unknown = Load(num_waiting=3, num_inflight=1, waiting_tokens=500.0, tokens_per_second=0.0)
    waits.enter(ticket_of("a"), unknown, 0)
    waits.observe("a", 7.0)
    assert (None, 1) == (waits.eta_of("a", 7.0), waits.position_of("a"))
    assert waits.forecast(ticket_of("b"), unknown, 0) is None


def test_before_anything_is_known_of_waits_the_line_in_front_takes_its_time() -> None:
    assert Eta(10.0, low=0.0, high=20.0) == Waits().forecast(ticket_of("a"), BUSY, 0)


def test_a_wait_is_forecast_from_those_of_its_kind() -> None:
    seconds = [2.0 + n / 100 for n in range(100)]
    Random(1).shuffle(seconds)
    eta = waits_after(seconds).forecast(ticket_of("a"), BUSY, 0)
    assert eta is not None
    assert (2.5, 2.1, 2.9) == pytest.approx((eta.seconds, eta.low, eta.high), rel=0.15)


def test_a_longer_line_takes_longer_in_proportion() -> None:
    waits = waits_after([4.0] * MIN_WAITS)
    longer = Load(num_waiting=9, num_inflight=2, waiting_tokens=2900.0, tokens_per_second=100.0, long_tokens=1000.0)
    assert pytest.approx(12.0) == forecast_seconds(waits, load=longer)


@pytest.mark.parametrize("others", [{"tier": Tier.BATCH}, {"tokens": 500.0}, {"num_of_tenant": 3}])
def test_those_who_wait_otherwise_are_a_kind_of_their_own(others: dict[str, object]) -> None:
    waits = waits_after([1.0] * MIN_WAITS)
    learn(waits, [50.0] * MIN_WAITS, **others)  # type: ignore[arg-type]
    assert pytest.approx(1.0) == forecast_seconds(waits)


def test_who_found_nobody_waiting_tells_nothing_of_lines() -> None:
    waits = waits_after([0.0] * 100, load=IDLE)
    assert 10.0 == forecast_seconds(waits)
    assert 0.0 == forecast_seconds(waits, load=IDLE)


def test_a_kind_of_which_too_little_is_known_is_judged_by_its_tier_and_then_by_all() -> None:
    waits = waits_after([3.0] * MIN_WAITS, tier=Tier.BATCH)
    assert pytest.approx(3.0) == forecast_seconds(waits)
    learn(waits, [30.0] * MIN_WAITS, num_of_tenant=1)
    assert pytest.approx(30.0) == forecast_seconds(waits)
    learn(waits, [5.0] * (MIN_WAITS - 1))
    assert pytest.approx(30.0) == forecast_seconds(waits)
    learn(waits, [5.0])
    assert pytest.approx(5.0) == forecast_seconds(waits)


def test_old_waits_are_forgotten() -> None:
    waits = waits_after([50.0] * 1000)
    learn(waits, [2.0] * MEMORY)
    eta = waits.forecast(ticket_of("a"), BUSY, 0)
    assert eta is not None
    assert (2.0, 2.0) == pytest.approx((eta.low, eta.high), rel=0.15)


def test_promises_that_are_not_kept_become_wider() -> None:
    waits = waits_after([2.0] * MEMORY)
    before = waits.forecast(ticket_of("a"), BUSY, 0)
    learn(waits, [2.5, 1.5] * 5)  # too few to move a tenth of those remembered
    after = waits.forecast(ticket_of("a"), BUSY, 0)
    assert before is not None
    assert after is not None
    assert (2.0, 2.0, 2.0) == pytest.approx((before.seconds, before.low, before.high))
    assert after.low < 0.9 * before.low
    assert after.high > 1.1 * before.high
    assert after.seconds == before.seconds


def test_of_one_that_waits_already_only_longer_waits_tell() -> None:
    waits = waits_after([1.0] * 50 + [8.0] * 50)
    waits.enter(ticket_of("a", at=100.0), BUSY, 0)
    at_once, later = waits.eta_of("a", 100.0), waits.eta_of("a", 103.0)
    assert at_once is not None
    assert later is not None
    assert (1.0, 8.0) == pytest.approx((at_once.low, at_once.high), rel=0.3)
    assert (5.0, 5.0, 6.0) == pytest.approx((later.seconds, later.low, later.high), rel=0.15)


def test_one_that_waited_longer_than_any_before_it_has_an_open_end() -> None:
    waits = waits_after([8.0] * 50)
    waits.enter(ticket_of("a"), BUSY, 0)
    assert Eta(10.0, low=0.0, high=60.0) == waits.eta_of("a", 40.0)


def test_a_wait_is_too_long_by_what_its_low_end_is_beyond_the_time_left() -> None:
    waits = waits_after([9.0] * MIN_WAITS)
    assert [5.0, 0.0, 0.0] == pytest.approx([waits.too_long(ticket_of("a"), BUSY, 0, left) for left in (4, 9, inf)])


def test_nothing_is_too_long_where_nothing_is_known_or_nobody_waits() -> None:
    unknown = Load(num_waiting=3, num_inflight=1, waiting_tokens=500.0, tokens_per_second=0.0)
    assert 0.0 == waits_after([9.0] * MIN_WAITS).too_long(ticket_of("a"), unknown, 0, 1.0)
    assert 0.0 == waits_after([9.0] * MIN_WAITS, load=IDLE).too_long(ticket_of("a"), IDLE, 0, 1.0)
    assert 0.0 == Waits().too_long(ticket_of("a"), BUSY, 0, 1.0)


def test_one_in_twenty_is_let_in_to_see_whether_it_is_still_so() -> None:
    waits = waits_after([9.0] * MIN_WAITS)
    let_in = [waits.too_long(ticket_of("a"), BUSY, 0, 1.0) == 0 for _ in range(3 * PROBE)]
    assert 3 == sum(let_in)
    assert not let_in[0]


def test_the_position_is_that_among_those_that_still_wait() -> None:
    waits = Waits()
    for name in "abc":
        waits.enter(ticket_of(name), BUSY, 0)
    waits.leave("b")
    assert (1, None, 2) == (waits.position_of("a"), waits.position_of("b"), waits.position_of("c"))


def test_nothing_is_kept_of_who_left() -> None:
    waits = Waits()
    for n in range(1000):
        waits.enter(ticket_of(str(n)), BUSY, 0)
        waits.observe(str(n), 1.0)
        waits.leave(str(n))
    assert ({}, 3) == (waits._waiting, len(waits._by_kind))


@pytest.mark.parametrize("policy", ["fifo", "sjf", "slack", "fair", "priority"])
def test_most_waits_are_within_their_forecast_and_not_all_under_any_policy(policy: str) -> None:
    etas: dict[str, Eta | None] = {}
    within: list[bool] = []

    def compare(event: Event) -> None:
        if isinstance(event, Admitted) and event.position > 1:
            etas[event.ticket.id] = scheduler.eta_of(event.ticket.id, event.at)
        if isinstance(event, Dispatched) and (eta := etas.get(event.ticket.id)):
            within.append(eta.low <= event.queue_seconds <= eta.high)

    scheduler: Scheduler = scheduler_of(policy, slots=8, listeners=[compare])
    arrivals = workload(1, num_requests=1200, requests_per_second=2.6)
    simulate(arrivals, scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=8))
    assert len(within) > 600
    assert 0.7 <= sum(within) / len(within) <= 0.95


def test_an_expired_ticket_teaches_that_its_like_wait_at_least_so_long() -> None:
    scheduler = scheduler_of(slots=1)
    step(scheduler.submit(request_at(0.0, "busy"), 0.0))
    step(scheduler.dispatch(0.0))
    step(
        scheduler.finish("busy", Usage(10, 40), "stop", 1.0)
    )  # 40 tokens a second, as many as each is expected to have
    for name in ("running", "head"):
        step(scheduler.submit(request_at(1.0, name), 1.0))
        step(scheduler.dispatch(1.0))
    for n in range(MIN_WAITS):
        step(scheduler.submit(request_at(1.0, f"hopeless{n}", expires_at=91.0), 1.0))
        step(scheduler.expire(91.0))
    step(scheduler.submit(request_at(91.0, "new"), 91.0))
    eta = scheduler.eta_of("new", 91.0)
    assert eta is not None
    assert pytest.approx(90.0, rel=0.01) == eta.low


def forecast_seconds(waits: Waits, load: Load = BUSY) -> float:
    eta = waits.forecast(ticket_of("new"), load, 0)
    assert eta is not None
    return eta.seconds
