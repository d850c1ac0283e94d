from contextlib import suppress
from itertools import count, pairwise
from math import floor, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.errors import RejectedError
from driftsched.core.events import Dispatched, Event, Finished, Rejected
from driftsched.core.model import Tier, Usage
from driftsched.core.promises import GUARD, SHARE, STRETCHES, Promise, Promises
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import HARDWARE
from driftsched.policies import POLICIES
from driftsched.sim.driver import simulate
from support.scheduling import request_at, scheduler_of, step, workload

PACE = 100.0
WAITS = {Tier.PREMIUM: 16.0, Tier.STANDARD: 32.0, Tier.BATCH: 96.0}
STRETCH = 16.0 / STRETCHES
FULL = SHARE * PACE * STRETCH
"""Tokens that may be booked of a stretch."""


def promises_at_pace() -> Promises:
    """At instant 0, when far longer than the memory of the pace 100 predicted tokens have ended each second."""
    promises = Promises(WAITS, keeps=True)
    promises.enter("first", Promise(inf), -1000.0)
    for second in range(-999, 1):
        promises.ended(PACE, 1, float(second))
    promises.enter("second", Promise(inf), 0.0)
    promises.leave("first")
    assert pytest.approx(SHARE * PACE, rel=0.01) == promises.tokens_per_second
    return promises


def made(promises: Promises, tier: Tier, tokens: float, now: float = 0.0, *, name: str = "") -> Promise | None:
    promise = promises.make(request_at(now, tier=tier), tokens, now)
    if promise is not None and name:
        promises.enter(name, promise, now)
    return promise


def test_a_tier_without_a_maximum_is_never_overdue_and_needs_no_booking() -> None:
    promises = Promises({Tier.PREMIUM: 10.0}, keeps=True)
    promises.enter("a", Promise(inf), 0.0)
    assert Promise(inf) == made(promises, Tier.BATCH, 1e9)


def test_whoever_finds_nobody_waiting_has_all_its_time() -> None:
    promises = promises_at_pace()
    promises.leave("second")
    assert Promise(16.0) == made(promises, Tier.PREMIUM, 1e9)


def test_until_the_pace_is_known_nothing_is_refused_and_all_are_next_when_their_share_is_over() -> None:
    promises = Promises(WAITS, keeps=True)
    promises.enter("a", Promise(inf), 0.0)
    promise = made(promises, Tier.PREMIUM, 1e9, 3.0)
    assert promise
    assert 3.0 + SHARE * 16.0 == promise.overdue_at


def test_promises_that_need_not_be_kept_are_made_to_all() -> None:
    promises = Promises(WAITS, keeps=False)
    promises.enter("a", Promise(inf), 0.0)
    for _ in range(100):
        promises.ended(1.0, 1, 1.0)
    assert Promise(18.0) == made(promises, Tier.PREMIUM, 1e9, 2.0)


def test_an_idle_engine_does_not_tell_its_pace() -> None:
    promises = Promises(WAITS, keeps=True)
    for second in range(100):
        promises.ended(5.0, 1, float(second))
    assert 0.0 == promises.tokens_per_second


def test_the_pace_is_that_of_times_in_which_somebody_waited() -> None:
    promises = promises_at_pace()
    known = promises.tokens_per_second
    promises.leave("second")
    for second in range(1, 100):
        promises.ended(1.0, 1, float(second))
    promises.enter("third", Promise(inf), 100.0)
    assert known == promises.tokens_per_second


def test_a_time_in_which_nothing_could_be_dispatched_does_not_count() -> None:
    promises = promises_at_pace()
    promises.resumed(300.0)
    promises.ended(PACE, 1, 301.0)
    assert pytest.approx(SHARE * PACE, rel=0.01) == promises.tokens_per_second


def test_the_latest_that_is_free_is_booked_and_the_next_goes_before_it() -> None:
    promises = promises_at_pace()
    last = 16.0 - GUARD * STRETCH - STRETCH  # that of the last stretch, at whose end the wait is not yet over
    full = promises.tokens_per_second * STRETCH
    instants = []
    for name in "abcd":
        promise = made(promises, Tier.PREMIUM, full / 2, name=name)
        assert promise
        instants.append(promise.overdue_at)
    assert pytest.approx([last + 0.5, last, last - 0.5, last - 1.0]) == instants


def test_what_is_left_of_a_stretch_is_booked_with_what_comes_before() -> None:
    promises = promises_at_pace()
    full = promises.tokens_per_second * STRETCH
    promise = made(promises, Tier.PREMIUM, 2.5 * full)
    assert promise
    assert pytest.approx([full, full, full / 2]) == [tokens for _, tokens in promise.pieces]
    assert [14, 13, 12] == [stretch for stretch, _ in promise.pieces]
    assert pytest.approx(12.5) == promise.overdue_at


def test_when_all_is_booked_nothing_more_is_promised_until_somebody_leaves() -> None:
    promises = promises_at_pace()
    names = map(str, count())
    booked = []
    while made(promises, Tier.PREMIUM, 40.0, name=(name := next(names))):
        booked.append(name)
    assert len(booked) == floor(15 * promises.tokens_per_second * STRETCH / 40.0)
    assert made(promises, Tier.BATCH, 40.0) is not None, "later there is room"
    promises.leave(booked[3])
    assert made(promises, Tier.PREMIUM, 40.0) is not None


def test_a_full_line_of_one_tier_leaves_the_better_ones_what_is_due_before() -> None:
    promises = promises_at_pace()
    for n in range(20):  # 800 tokens, from the back
        made(promises, Tier.BATCH, 40.0, name=f"b{n}")
    first = made(promises, Tier.PREMIUM, 40.0)
    assert first == made(promises_at_pace(), Tier.PREMIUM, 40.0)


def test_what_is_late_leaves_less_for_others() -> None:
    promises = promises_at_pace()
    for n in range(10):
        made(promises, Tier.PREMIUM, 40.0, name=str(n))
    later = 40.0  # nobody was served, and all of it is late
    assert made(promises, Tier.PREMIUM, 500.0, later) is None
    for n in range(10):
        promises.leave(str(n))
    assert made(promises, Tier.PREMIUM, 500.0, later) is not None


def test_what_was_booked_before_the_pace_was_known_is_taken_from_what_is_free_before_it() -> None:
    promises = Promises(WAITS, keeps=True)
    promises.enter("first", Promise(inf), 0.0)
    for n in range(30):
        made(promises, Tier.PREMIUM, 40.0, name=str(n))  # 1,200 tokens: 24 of 16 seconds
    for second in range(1, 11):
        promises.ended(PACE, 1, float(second))
    assert made(promises, Tier.PREMIUM, 40.0, 10.5) is None
    for n in range(30):
        promises.leave(str(n))
    assert made(promises, Tier.PREMIUM, 40.0, 10.5) is not None


def test_what_does_not_even_fit_before_it_is_late_at_once() -> None:
    promises = Promises(WAITS, keeps=True)
    promises.enter("first", Promise(inf), 0.0)
    for n in range(30):
        made(promises, Tier.PREMIUM, 40.0, name=str(n))
    for second in (1.0, 2.0):
        promises.ended(PACE, 1, second)
    assert made(promises, Tier.PREMIUM, 40.0, 2.5) is None
    assert made(promises, Tier.STANDARD, 40.0, 2.5) is not None


@settings(max_examples=200, derandomize=True, deadline=None)
@given(asked=st.lists(st.tuples(st.sampled_from(Tier), st.floats(1.0, 400.0)), max_size=60))
def test_it_promises_just_what_could_be_kept_by_serving_the_earliest_first(
    asked: list[tuple[Tier, float]],
) -> None:
    promises = promises_at_pace()
    full = promises.tokens_per_second * STRETCH
    booked: list[tuple[float, float]] = []  # stretches until the end, tokens
    for number, (tier, tokens) in enumerate(asked):
        end = WAITS[tier] / STRETCH - GUARD
        promise = made(promises, tier, tokens, name=str(number))
        by_end = [
            sum(size for other, size in [*booked, (end, tokens)] if other <= limit) - limit * full
            for limit in {other for other, _ in [*booked, (end, tokens)]}
        ]
        if abs(max(by_end)) > 1e-6:
            assert (promise is not None) == (max(by_end) <= 0)
        if promise is not None:
            booked.append((end, tokens))
            assert pytest.approx(tokens) == sum(piece for _, piece in promise.pieces)
            assert 0 <= promise.overdue_at <= WAITS[tier]
    assert all(tokens <= full * (1 + 1e-9) for tokens in promises._booked.values())


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["come", "come", "leave", "end"]), st.sampled_from(Tier), st.floats(0, 200.0))
    )
)
def test_when_nobody_waits_nothing_is_booked(steps: list[tuple[str, Tier, float]]) -> None:
    promises, now, waiting = Promises(WAITS, keeps=True), 0.0, list[str]()
    for number, (verb, tier, amount) in enumerate(steps):
        now += amount / 20
        if verb == "come" and made(promises, tier, amount, now, name=str(number)):
            waiting.append(str(number))
        elif verb == "leave" and waiting:
            promises.leave(waiting.pop(int(amount) % len(waiting)))
        elif verb == "end":
            promises.ended(amount, 3, now)
        assert len(promises._booked) <= 2 * 96 / STRETCH
    for name in waiting:
        promises.leave(name)
    assert ({}, 0.0, {}) == (promises._booked, promises._late, promises._pieces)


# As the scheduler keeps them

HARD = {Tier.PREMIUM: 15.0, Tier.STANDARD: 30.0, Tier.BATCH: 60.0}
SLOTS = 32
CAPACITY = 5.9
"""Requests like those of the workload that the engine serves per second."""


@pytest.mark.parametrize("overload", [1.1, 2.0, 5.0])
@pytest.mark.parametrize("policy", POLICIES.names())
def test_under_any_policy_and_overload_nobody_waits_longer_than_its_maximum_and_a_step(
    policy: str, overload: float
) -> None:
    """A step is the time until the next slot is free."""
    events: list[Event] = []
    scheduler = scheduler_of(
        policy, slots=SLOTS, max_wait_seconds=HARD, rejects_unattainable=True, listeners=[events.append]
    )
    arrivals = workload(7, num_requests=500, requests_per_second=overload * CAPACITY)
    simulate(arrivals, scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=SLOTS))
    served = [event for event in events if isinstance(event, Dispatched)]
    rejected = [event for event in events if isinstance(event, Rejected)]
    ends = [event.at for event in events if isinstance(event, Finished) and event.at <= served[-1].at]
    over = [event.queue_seconds - HARD[event.ticket.request.tier] for event in served]
    assert len(arrivals) == len(served) + len(rejected)
    assert {"max_wait_unattainable"} >= {event.reason for event in rejected}
    assert max(over) <= max(later - earlier for earlier, later in pairwise(ends))
    assert sum(seconds > 0 for seconds in over) <= 0.02 * len(served)


def test_without_promises_the_same_overload_breaks_them() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("sjf", slots=SLOTS, max_wait_seconds=HARD, listeners=[events.append])
    arrivals = workload(7, num_requests=500, requests_per_second=5.0 * CAPACITY)
    simulate(arrivals, scheduler, BatchModel(HARDWARE["l4-qwen1.5-1.8b"], max_num_seqs=SLOTS))
    served = [event for event in events if isinstance(event, Dispatched)]
    assert len(arrivals) == len(served)
    assert max(event.queue_seconds - HARD[event.ticket.request.tier] for event in served) > 10.0


def test_a_request_whose_maximum_wait_cannot_be_kept_is_told_when_the_line_has_drained() -> None:
    scheduler = scheduler_of(max_wait_seconds=dict.fromkeys(Tier, 10.0), rejects_unattainable=True)
    for n in range(100):
        step(scheduler.submit(request_at(n / 10, str(n)), n / 10))
        if step(scheduler.dispatch(n / 10)) is None:
            break
    step(scheduler.finish("0", Usage(1, 40), "stop", 1.0))  # 40 tokens in a second
    step(scheduler.dispatch(1.0))
    for n in range(100, 110):
        with suppress(RejectedError):
            step(scheduler.submit(request_at(1.0, str(n)), 1.0))
    with pytest.raises(RejectedError) as caught:
        step(scheduler.submit(request_at(1.0, "late"), 1.0))
    assert "max_wait_unattainable" == caught.value.reason
    assert scheduler.retry_after_seconds == caught.value.retry_after_seconds
