"""A limit in tokens on what is in flight."""

from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.events import Dispatched, Event
from driftsched.core.model import Usage
from driftsched.core.scheduler import Scheduler
from support.scheduling import MEAN_TOKENS, request_at, scheduler_of, step

TOKENS = MEAN_TOKENS["short_qa"]
"""Expected of every answer here."""


def submitted(scheduler: Scheduler, *prompt_tokens: int) -> None:
    for number, tokens in enumerate(prompt_tokens):
        step(scheduler.submit(request_at(float(number), f"r{number}", prompt_tokens=tokens), float(number)))


def dispatched(scheduler: Scheduler, now: float = 100.0) -> list[str]:
    """Who is dispatched at once, in order."""
    names = []
    while ticket := step(scheduler.dispatch(now)):
        names.append(ticket.id)
    return names


def test_nothing_more_is_dispatched_once_so_many_tokens_are_in_flight() -> None:
    scheduler = scheduler_of(slots=10, max_inflight_tokens=300.0)
    submitted(scheduler, 60, 60, 60, 60, 60)  # 100 each, with the answer

    assert ["r0", "r1", "r2"] == dispatched(scheduler)
    step(scheduler.finish("r1", Usage(60, 5), "stop", 101.0))
    assert ["r3"] == dispatched(scheduler)


def test_the_last_one_dispatched_may_go_beyond() -> None:
    scheduler = scheduler_of(slots=10, max_inflight_tokens=101.0)
    submitted(scheduler, 60, 5000, 60)

    assert ["r0", "r1"] == dispatched(scheduler)


def test_one_is_always_in_flight_however_long() -> None:
    scheduler = scheduler_of(slots=10, max_inflight_tokens=1.0)
    submitted(scheduler, 5000, 60)

    assert ["r0"] == dispatched(scheduler)
    step(scheduler.fail("r0", Usage(), "broken_stream", 101.0))
    assert ["r1"] == dispatched(scheduler)


def test_the_head_is_not_passed_over_for_a_smaller_one() -> None:
    scheduler = scheduler_of("fifo", slots=10, max_inflight_tokens=200.0)
    submitted(scheduler, 160, 5000, 1)
    assert ["r0"] == dispatched(scheduler)
    step(scheduler.finish("r0", Usage(160, 40), "stop", 101.0))

    assert ["r1"] == dispatched(scheduler)


def test_slots_are_a_limit_as_before() -> None:
    scheduler = scheduler_of(slots=2, max_inflight_tokens=1e9)
    submitted(scheduler, 1, 1, 1)

    assert ["r0", "r1"] == dispatched(scheduler)


@given(
    st.floats(1.0, 2000.0),
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(["submit", "finish", "cancel"]), st.integers(0, 900)), max_size=60),
)
def test_before_each_dispatch_there_was_room_and_a_slot_free_with_room_is_never_left(
    limit: float, slots: int, steps: list[tuple[str, int]]
) -> None:
    flying: dict[str, float] = {}
    waiting: set[str] = set()
    events: list[Event] = []
    scheduler = scheduler_of(slots=slots, max_inflight_tokens=limit, listeners=[events.append])
    for number, (what, size) in enumerate(steps):
        now = float(number)
        if what == "submit":
            step(scheduler.submit(request_at(now, f"r{number}", prompt_tokens=size), now))
            waiting.add(f"r{number}")
        elif flying:
            name = sorted(flying)[size % len(flying)]
            if what == "finish":
                step(scheduler.finish(name, Usage(1, size), "stop", now))
            else:
                (ended,) = (e.ticket for e in events if isinstance(e, Dispatched) and e.ticket.id == name)
                step(scheduler.cancel(ended, Usage(), now))
            del flying[name]
        while ticket := step(scheduler.dispatch(now)):
            assert not flying or sum(flying.values()) < limit
            flying[ticket.id] = ticket.request.prompt_tokens + TOKENS
            waiting.remove(ticket.id)
        assert not waiting or len(flying) == slots or sum(flying.values()) >= limit
