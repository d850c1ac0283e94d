from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.engines.breaker import (
    JITTER,
    MAX_BUSY_SECONDS,
    MAX_CONSECUTIVE,
    MAX_FAILURES,
    MAX_OPEN_SECONDS,
    OPEN_SECONDS,
    WINDOW,
    Breaker,
)


def steady(*, is_checked: bool = False) -> Breaker:
    """Without jitter."""
    return Breaker(lambda: 0.5, is_checked=is_checked)


def opened(now: float = 0.0, *, unreachable: bool = False, is_checked: bool = False) -> Breaker:
    breaker = steady(is_checked=is_checked)
    for _ in range(1 if unreachable else MAX_CONSECUTIVE):
        breaker.failed(breaker.begin(now), now, unreachable=unreachable)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = steady()
    for _ in range(MAX_CONSECUTIVE - 1):
        breaker.failed(breaker.begin(0.0), 0.0)
    assert ("closed", True) == (breaker.state(0.0), breaker.allows(0.0))
    breaker.failed(breaker.begin(0.0), 0.0)
    assert ("open", False, 1) == (breaker.state(0.0), breaker.allows(0.0), breaker.num_opened)


def test_a_success_between_failures_begins_the_row_anew() -> None:
    breaker = steady()
    for _ in range(3):
        for _ in range(2):
            breaker.failed(breaker.begin(0.0), 0.0)
        breaker.succeeded(breaker.begin(0.0))
    assert "closed" == breaker.state(0.0)


def test_an_engine_that_fails_every_other_request_is_ill_too() -> None:
    breaker = steady()
    num_failures = 0
    while breaker.state(0.0) == "closed":
        breaker.succeeded(breaker.begin(0.0))
        breaker.failed(breaker.begin(0.0), 0.0)
        num_failures += 1
    assert MAX_FAILURES == num_failures


def test_failures_long_past_do_not_count() -> None:
    breaker = steady()
    for _ in range(20):
        breaker.failed(breaker.begin(0.0), 0.0)
        for _ in range(WINDOW // MAX_FAILURES):
            breaker.succeeded(breaker.begin(0.0))
    assert "closed" == breaker.state(0.0)


def test_one_connection_that_fails_opens_it() -> None:
    assert "open" == opened(unreachable=True).state(0.0)


def test_after_a_while_one_request_may_find_out() -> None:
    breaker = opened()
    assert not breaker.allows(OPEN_SECONDS - 0.01)
    assert ("half_open", True) == (breaker.state(OPEN_SECONDS), breaker.allows(OPEN_SECONDS))
    epoch = breaker.begin(OPEN_SECONDS)
    assert ("half_open", False) == (breaker.state(OPEN_SECONDS), breaker.allows(OPEN_SECONDS))
    breaker.succeeded(epoch)
    assert ("closed", True) == (breaker.state(OPEN_SECONDS), breaker.allows(OPEN_SECONDS))


def test_a_trial_that_nobody_waits_for_any_more_leaves_room_for_another() -> None:
    breaker = opened()
    breaker.abandoned(breaker.begin(OPEN_SECONDS))
    assert breaker.allows(OPEN_SECONDS)


def test_each_failed_trial_doubles_the_time_up_to_a_bound() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(6):
        start = now
        while not breaker.allows(now):
            now += 0.125
        pauses.append(now - start)
        breaker.failed(breaker.begin(now), now)
    assert [1.0, 2.0, 4.0, 8.0, MAX_OPEN_SECONDS, MAX_OPEN_SECONDS] == pauses
    assert 1 == breaker.num_opened


def test_once_well_the_next_outage_begins_with_a_short_pause_again() -> None:
    breaker = opened()
    breaker.failed(breaker.begin(1.0), 1.0)
    breaker.succeeded(breaker.begin(9.0))
    breaker.failed(breaker.begin(10.0), 10.0, unreachable=True)
    assert (False, True) == (breaker.allows(10.9), breaker.allows(11.0))


def test_an_engine_that_is_checked_is_tried_by_no_request_while_it_is_away() -> None:
    breaker = opened(unreachable=True, is_checked=True)
    assert (OPEN_SECONDS, False) == (breaker.due_at(), breaker.allows(1000.0))
    breaker.succeeded(breaker.begin(1000.0))
    assert (None, True) == (breaker.due_at(), breaker.allows(1000.0))


def test_an_engine_that_falls_silent_while_it_is_away_stays_away() -> None:
    breaker = opened(unreachable=True, is_checked=True)
    breaker.failed(breaker.begin(2.0), 2.0, is_check=True)
    assert (True, False) == (breaker.is_away, breaker.allows(1000.0))


def test_an_engine_that_answers_checks_and_fails_at_requests_is_tried_by_a_request() -> None:
    breaker = opened(is_checked=True)
    assert (None, True) == (breaker.due_at(), breaker.allows(OPEN_SECONDS))


@pytest.mark.parametrize(
    ("asked", "spared"), [(None, 1.0), (7.0, 7.0), (-3.0, 0.0), (1e9, MAX_BUSY_SECONDS), (inf, MAX_BUSY_SECONDS)]
)
def test_an_engine_that_is_full_is_well_and_spared_for_as_long_as_it_asks(
    asked: float | None, spared: float
) -> None:
    breaker = steady()
    for _ in range(2 * WINDOW):
        breaker.busy(breaker.begin(5.0), 5.0, asked)
    assert ("closed", False) == (breaker.state(5.0), breaker.is_busy(5.0 + spared))
    assert (spared > 0) == breaker.is_busy(5.0 + spared / 2)


def test_many_failures_of_one_outage_are_one_outage() -> None:
    breaker = steady()
    epochs = [breaker.begin(0.0) for _ in range(32)]
    for number, epoch in enumerate(epochs):
        breaker.failed(epoch, number / 100, unreachable=True)
    assert (1, OPEN_SECONDS) == (breaker.num_opened, breaker.due_at())


def test_what_was_sent_before_the_outage_ends_it_neither_way() -> None:
    breaker = steady()
    early = breaker.begin(0.0)
    breaker.failed(breaker.begin(0.0), 0.0, unreachable=True)
    trial = breaker.begin(OPEN_SECONDS)
    breaker.succeeded(early)
    breaker.failed(early, OPEN_SECONDS)
    breaker.abandoned(early)
    assert ("half_open", False) == (breaker.state(OPEN_SECONDS), breaker.allows(OPEN_SECONDS))
    breaker.succeeded(trial)
    assert "closed" == breaker.state(OPEN_SECONDS)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "succeeded", "failed", "unreachable", "check", "busy", "abandoned"]),
        st.floats(0.0, 5.0),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(steps=STEPS, is_checked=st.booleans(), luck=st.floats(0.0, 0.999))
def test_whatever_happens_one_is_tried_at_a_time_and_an_engine_is_never_lost(
    steps: list[tuple[str, float, int]], is_checked: bool, luck: float
) -> None:
    breaker = Breaker(lambda: luck, is_checked=is_checked)
    now, pending = 0.0, [breaker.begin(0.0)]
    for what, seconds, which in steps:
        now += seconds
        epoch = pending[which % len(pending)]
        state, num_opened = breaker.state(now), breaker.num_opened
        if what == "begin":
            allowed = breaker.allows(now)
            assert not (allowed and state == "open")
            pending.append(breaker.begin(now))
            if allowed and state == "half_open":
                assert not breaker.allows(now)  # one at a time
        elif what == "succeeded":
            breaker.succeeded(epoch)
            assert state == "closed" or breaker.state(now) in ("closed", state)
        elif what == "busy":
            breaker.busy(epoch, now, seconds)
        elif what == "abandoned":
            breaker.abandoned(epoch)
        else:
            breaker.failed(epoch, now, unreachable=what == "unreachable", is_check=what == "check")
            assert breaker.num_opened - num_opened <= (state == "closed")
            assert state == "closed" or breaker.state(now) != "closed"
        due_at = breaker.due_at()
        assert due_at is None or due_at <= now + MAX_OPEN_SECONDS * (1 + JITTER)
    # once all that is under way has ended and it answers again, it is used again
    for epoch in pending:
        breaker.abandoned(epoch)
    later = now + MAX_OPEN_SECONDS * (1 + JITTER)
    assert breaker.allows(later) or breaker.due_at() is not None
    breaker.succeeded(breaker.begin(later))
    assert ("closed", True, False) == (breaker.state(later), breaker.allows(later), breaker.is_away)


def test_failures_before_an_outage_do_not_count_after_it() -> None:
    breaker = steady()
    while breaker.state(0.0) == "closed":
        breaker.succeeded(breaker.begin(0.0))
        breaker.failed(breaker.begin(0.0), 0.0)
    breaker.succeeded(breaker.begin(OPEN_SECONDS))
    breaker.failed(breaker.begin(OPEN_SECONDS), OPEN_SECONDS)
    assert "closed" == breaker.state(OPEN_SECONDS)


def test_a_full_engine_is_spared_for_the_longest_time_it_asked_for() -> None:
    breaker = steady()
    breaker.busy(breaker.begin(0.0), 0.0, 7.0)
    breaker.busy(breaker.begin(0.0), 0.0, 1.0)
    assert (True, False) == (breaker.is_busy(6.9), breaker.is_busy(7.0))


def test_an_early_trial_that_fails_changes_nothing() -> None:
    breaker = opened(unreachable=True, is_checked=True)
    due_at = breaker.due_at()
    for _ in range(10):
        breaker.failed(breaker.begin(0.1, early=True), 0.1, is_check=True)
        assert ("open", due_at, True, False) == (
            breaker.state(0.1),
            breaker.due_at(),
            breaker.is_away,
            breaker.is_lost,
        )


def test_an_early_trial_that_succeeds_closes_it() -> None:
    breaker = opened(unreachable=True, is_checked=True)
    breaker.succeeded(breaker.begin(0.1))
    assert not breaker.is_closed
    breaker.succeeded(breaker.begin(0.1, early=True))
    assert breaker.is_closed
