"""The whole life of a request, stepped by hand: no loop, no clock."""

import gc
import logging
import weakref
from asyncio import CancelledError
from collections.abc import Mapping
from dataclasses import replace
from math import inf, nan

import pytest

from driftsched.core.admission import Bounds
from driftsched.core.errors import RejectedError
from driftsched.core.events import (
    Admitted,
    Dispatched,
    DriftDetected,
    Event,
    Evicted,
    Failed,
    Finished,
    FirstToken,
    Recalibrated,
    Rejected,
)
from driftsched.core.model import Estimate, Load, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.scheduler import MAX_RETRY_AFTER_SECONDS, Scheduler
from driftsched.estimators import create_estimator
from driftsched.queues.memory import MemoryQueue
from support.scheduling import CategoryMeans, KnownDescriber, dispatch_order, request_at, scheduler_of, step


class Priced:
    """Least served tenant first; a completion token costs 1, unless the price of so many tokens is given."""

    def __init__(self, prices: Mapping[int, float] | None = None) -> None:
        self._prices = prices or {}

    def band(self, request: Request) -> int:
        return 0

    def flow(self, request: Request) -> str:
        return request.tenant.id

    def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
        return request.arrived_at

    def charge(self, request: Request, usage: Usage) -> float:
        return self._prices.get(usage.completion_tokens, float(usage.completion_tokens))


class Recorder(CategoryMeans):
    """Remembers what it was taught."""

    def __init__(self) -> None:
        self.lessons: list[tuple[str, int, bool]] = []

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        self.lessons.append((request.id, usage.completion_tokens, finished))


def dispatched(scheduler: Scheduler, now: float) -> Ticket:
    ticket = step(scheduler.dispatch(now))
    assert ticket is not None
    return ticket


# The way of a request


def test_a_request_goes_from_admission_to_its_end_and_every_step_is_told() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(Priced(), listeners=[events.append])
    request = request_at(1.0, "a", category="summary")
    found = scheduler.load
    ticket = step(scheduler.submit(request, 1.0))
    assert dispatched(scheduler, 3.0) == ticket
    step(scheduler.progress("a", Usage(10, 1), 4.0))
    step(scheduler.progress("a", Usage(10, 64), 5.0))
    assert step(scheduler.finish("a", Usage(10, 80), "stop", 6.0))
    assert [
        Admitted(1.0, ticket, position=1, load=found),
        Dispatched(3.0, ticket, why="only_waiting"),
        FirstToken(4.0, ticket),
        Finished(6.0, ticket, Usage(10, 80), "stop", dispatched_at=3.0, first_token_at=4.0, charge=80.0),
    ] == events
    assert isinstance(events[1], Dispatched)
    assert 2.0 == events[1].queue_seconds


def test_a_ticket_carries_what_policy_and_estimator_said() -> None:
    scheduler = scheduler_of("fair", max_wait_seconds={Tier.BATCH: 30.0})
    request = request_at(5.0, "a", tenant=Tenant("acme", Tier.BATCH), tier=Tier.BATCH, category="summary")
    ticket = step(scheduler.submit(request, 5.0))
    assert CategoryMeans().predict(request) == ticket.estimate
    assert (0, "acme", 5.0, (10 + 2 * 150) / 20, 35.0) == (
        ticket.band,
        ticket.flow,
        ticket.rank,
        ticket.charge,
        ticket.overdue_at,
    )


def test_positions_count_who_waits() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(listeners=[events.append])
    for n in range(3):
        step(scheduler.submit(request_at(float(n), str(n)), float(n)))
    dispatched(scheduler, 3.0)
    step(scheduler.submit(request_at(4.0, "3"), 4.0))
    assert [1, 2, 3, 3] == [e.position for e in events if isinstance(e, Admitted)]


def test_a_finished_request_frees_its_slot_and_no_slot_is_given_twice() -> None:
    scheduler = scheduler_of(slots=1)
    for name in "ab":
        step(scheduler.submit(request_at(0.0, name), 0.0))
    assert "a" == dispatched(scheduler, 1.0).id
    assert step(scheduler.dispatch(1.0)) is None
    assert step(scheduler.finish("a", Usage(10, 5), "stop", 2.0))
    assert "b" == dispatched(scheduler, 2.0).id


def test_a_request_that_waited_its_maximum_is_served_next_and_said_to_be_overdue() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("priority", max_wait_seconds={Tier.BATCH: 10.0}, listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "batch", tier=Tier.BATCH), 0.0))
    for n in range(3):
        step(scheduler.submit(request_at(1.0 + n, f"premium{n}", tier=Tier.PREMIUM), 1.0 + n))
    for now in (5.0, 10.0, 11.0):
        step(scheduler.finish(dispatched(scheduler, now).id, Usage(10, 5), "stop", now))
    assert ["premium0", "batch", "premium1"] == dispatch_order(events)
    assert [False, True, False] == [e.overdue for e in events if isinstance(e, Dispatched)]


def test_the_maximum_wait_is_that_of_the_tier_asked_for_not_of_the_best_one_allowed() -> None:
    scheduler = scheduler_of(max_wait_seconds={Tier.PREMIUM: 10.0, Tier.BATCH: 600.0})
    request = request_at(1.0, "a", tenant=Tenant("acme", Tier.PREMIUM), tier=Tier.BATCH)
    assert 601.0 == step(scheduler.submit(request, 1.0)).overdue_at


def test_the_first_token_is_told_once_and_not_before_there_is_one() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    for at, tokens in ((1.0, 0), (2.0, 1), (3.0, 2)):
        step(scheduler.progress("a", Usage(10, tokens), at))
    assert [2.0] == [e.at for e in events if isinstance(e, FirstToken)]


# Accounts


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue(1)


def test_a_flow_pays_what_was_expected_at_dispatch_and_what_was_used_at_the_end(queue: MemoryQueue) -> None:
    scheduler = scheduler_of(Priced(), queue=queue)
    step(scheduler.submit(request_at(0.0, "a", category="summary"), 0.0))
    assert 0.0 == queue.service(0, "t")
    dispatched(scheduler, 0.0)
    assert 150.0 == queue.service(0, "t")
    # another of the flow waits, so that its account is remembered
    step(scheduler.submit(request_at(1.0, "b", category="summary"), 1.0))
    step(scheduler.finish("a", Usage(10, 40), "stop", 2.0))
    assert 40.0 == queue.service(0, "t")


def test_an_answer_longer_than_expected_pays_as_it_grows(queue: MemoryQueue) -> None:
    scheduler = scheduler_of(Priced(), queue=queue)
    step(scheduler.submit(request_at(0.0, "a", category="summary"), 0.0))
    dispatched(scheduler, 0.0)
    services = []
    for tokens in (64, 149, 200, 264):
        step(scheduler.progress("a", Usage(10, tokens), 1.0))
        services.append(queue.service(0, "t"))
    assert [150.0, 150.0, 200.0, 264.0] == services


def test_a_count_that_falls_back_gives_nothing_back_before_the_end(queue: MemoryQueue) -> None:
    scheduler = scheduler_of(Priced(), queue=queue)
    for name in "ab":
        step(scheduler.submit(request_at(0.0, name), 0.0))
    dispatched(scheduler, 0.0)
    for tokens in (90, 60):
        step(scheduler.progress("a", Usage(10, tokens), 1.0))
    assert 90.0 == queue.service(0, "t")


def test_a_cancelled_request_pays_what_it_generated_and_frees_its_slot(queue: MemoryQueue) -> None:
    events: list[Event] = []
    scheduler = scheduler_of(Priced(), queue=queue, listeners=[events.append])
    ticket = step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 1.0)
    assert step(scheduler.cancel(ticket, Usage(10, 7), 2.0))
    assert Evicted(2.0, ticket, "cancelled", Usage(10, 7), dispatched_at=1.0, charge=7.0) == events[-1]
    assert 0 == queue.num_inflight == scheduler.load.num_inflight


def test_a_request_cancelled_while_it_waits_pays_nothing(queue: MemoryQueue) -> None:
    events: list[Event] = []
    scheduler = scheduler_of(Priced(), queue=queue, listeners=[events.append])
    ticket = step(scheduler.submit(request_at(0.0, "a"), 0.0))
    assert step(scheduler.cancel(ticket, Usage(10, 7), 2.0, "shutting_down"))
    assert Evicted(2.0, ticket, "shutting_down", Usage(), dispatched_at=None, charge=0.0) == events[-1]
    assert 0 == queue.num_waiting == scheduler.load.num_waiting


def test_a_failed_request_pays_what_it_generated() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(Priced(), listeners=[events.append])
    ticket = step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 1.0)
    assert step(scheduler.fail("a", Usage(10, 3), "upstream_timeout", 2.0))
    assert Failed(2.0, ticket, "upstream_timeout", Usage(10, 3), dispatched_at=1.0, charge=3.0) == events[-1]


def test_whoever_settles_first_wins_and_the_others_change_nothing() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(listeners=[events.append])
    ticket = step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 1.0)
    assert step(scheduler.finish("a", Usage(10, 3), "stop", 2.0))
    told = list(events)
    assert not step(scheduler.finish("a", Usage(10, 3), "stop", 3.0))
    assert not step(scheduler.fail("a", Usage(10, 3), "x", 3.0))
    assert not step(scheduler.cancel(ticket, Usage(10, 3), 3.0))
    assert [] == step(scheduler.expire(inf))
    step(scheduler.progress("a", Usage(10, 9), 3.0))
    assert told == events
    assert 0 == scheduler.load.num_inflight == scheduler.load.num_waiting


def test_a_ticket_that_waits_cannot_be_finished() -> None:
    scheduler = scheduler_of()
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    assert not step(scheduler.finish("a", Usage(), "stop", 1.0))
    assert not step(scheduler.fail("a", Usage(), "x", 1.0))
    assert "a" == dispatched(scheduler, 1.0).id


def test_what_expired_is_evicted_and_what_is_in_flight_never_expires() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(listeners=[events.append])
    for name, expires_at in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", inf)):
        step(scheduler.submit(request_at(0.0, name, expires_at=expires_at), 0.0))
    assert "a" == dispatched(scheduler, 0.5).id
    assert ["b"] == [t.id for t in step(scheduler.expire(2.0))]
    assert [("b", "expired", None, 0.0)] == [
        (e.ticket.id, e.reason, e.dispatched_at, e.charge) for e in events if isinstance(e, Evicted)
    ]
    assert 2 == scheduler.load.num_waiting


# Learning


def test_the_estimator_is_told_whether_a_length_is_true_or_a_lower_bound() -> None:
    recorder = Recorder()
    scheduler = scheduler_of(slots=4, estimator=recorder)
    tickets = [step(scheduler.submit(request_at(0.0, name), 0.0)) for name in "abcd"]
    for _ in tickets:
        dispatched(scheduler, 0.0)
    step(scheduler.finish("a", Usage(10, 1), "stop", 1.0))
    step(scheduler.finish("b", Usage(10, 2), "length", 1.0))
    step(scheduler.fail("c", Usage(10, 3), "x", 1.0))
    step(scheduler.cancel(tickets[3], Usage(10, 4), 1.0))
    assert [("a", 1, True), ("b", 2, False), ("c", 3, False), ("d", 4, False)] == recorder.lessons


def test_the_describer_is_told_what_the_engine_counted() -> None:
    class Counting(KnownDescriber):
        def __init__(self) -> None:
            self.lessons: list[tuple[str, Usage]] = []

        def learn(self, request: Request, usage: Usage) -> None:
            self.lessons.append((request.id, usage))

    describer = Counting()
    scheduler = Scheduler(
        policy=Priced(), estimator=CategoryMeans(), describer=describer, queue=MemoryQueue(max_inflight=1)
    )
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    assert [] == describer.lessons
    step(scheduler.finish("a", Usage(13, 5), "stop", 1.0))
    assert [("a", Usage(13, 5))] == describer.lessons


def test_a_lower_bound_of_nothing_teaches_nothing_and_an_empty_answer_does() -> None:
    recorder = Recorder()
    scheduler = scheduler_of(slots=3, estimator=recorder)
    tickets = [step(scheduler.submit(request_at(0.0, name), 0.0)) for name in "abc"]
    step(scheduler.cancel(tickets[2], Usage(10, 5), 0.0))
    for _ in "ab":
        dispatched(scheduler, 0.0)
    step(scheduler.fail("a", Usage(10, 0), "x", 1.0))
    step(scheduler.finish("b", Usage(10, 0), "stop", 1.0))
    assert [("b", 0, True)] == recorder.lessons


def test_a_change_of_the_correction_is_told() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(estimator=create_estimator("ema"), listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a", category="short_qa"), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.finish("a", Usage(10, 128), "stop", 1.0))
    assert [Recalibrated(1.0, "m", "short_qa", bias_before=1.0, bias_after=0.9 * 1.0 + 0.1 * 128 / 64)] == events[
        2:-1
    ]
    assert isinstance(events[-1], Finished)


class Alarmed(CategoryMeans):
    """Takes every answer for a shift by a tenth of its length."""

    def learn(
        self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None
    ) -> float | None:
        return usage.completion_tokens / 10 or None


def test_a_drift_is_told_before_the_end_of_the_request_that_showed_it() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(slots=2, estimator=Alarmed(), listeners=[events.append])
    for name in "ab":
        step(scheduler.submit(request_at(0.0, name, category="summary"), 0.0))
        dispatched(scheduler, 0.0)
    step(scheduler.finish("a", Usage(10, 16), "stop", 1.0))
    step(scheduler.fail("b", Usage(10, 5), "x", 2.0))
    assert [
        DriftDetected(1.0, "m", "summary", factor=1.6),
        DriftDetected(2.0, "m", "summary", factor=0.5),
    ] == [event for event in events if isinstance(event, DriftDetected)]
    assert [DriftDetected, Finished, DriftDetected, Failed] == [type(event) for event in events[-4:]]


def test_an_estimator_that_detects_none_leaves_drift_untold() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(estimator=Alarmed(), listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.finish("a", Usage(10, 0), "stop", 1.0))
    assert [Admitted, Dispatched, Finished] == [type(event) for event in events]


class Listening(CategoryMeans):
    """Promises 80.5 tokens, and takes every answer that becomes longer for a shift of what it corrects by."""

    def __init__(self) -> None:
        self.outlived: list[tuple[str, Estimate, int]] = []

    def predict(self, request: Request) -> Estimate:
        return Estimate(40.0, q50=40.0, q80=60.0, q90=80.5)

    def outlive(self, request: Request, estimate: Estimate, produced: int) -> float | None:
        self.outlived.append((request.id, estimate, produced))
        return 1.5

    def bias(self, request: Request) -> float:
        return 1.0 + len(self.outlived)


def test_an_answer_that_becomes_longer_than_promised_is_told_to_the_estimator_once_before_its_end() -> None:
    estimator = Listening()
    scheduler = scheduler_of(estimator=estimator)
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    ticket = dispatched(scheduler, 0.0)
    assert 81 == scheduler.milestone(ticket)
    step(scheduler.progress("a", Usage(10, 80), 1.0))
    assert [] == estimator.outlived
    step(scheduler.progress("a", Usage(10, 81), 2.0))
    step(scheduler.progress("a", Usage(10, 145), 3.0))
    step(scheduler.finish("a", Usage(10, 200), "stop", 4.0))
    assert [("a", ticket.estimate, 81)] == estimator.outlived


def test_what_an_answer_that_goes_on_has_changed_is_told_at_once() -> None:
    events: list[Event] = []
    scheduler = scheduler_of(estimator=Listening(), listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.progress("a", Usage(10, 100), 2.0))
    assert [Recalibrated(2.0, "m", "short_qa", 1.0, 2.0), DriftDetected(2.0, "m", "short_qa", 1.5)] == events[-2:]


def test_a_request_that_was_revised_while_it_waited_is_held_against_its_last_estimate() -> None:
    class Revising(Listening):
        def revise(self, request: Request, estimate: Estimate) -> Estimate:
            return Estimate(90.0, q50=90.0, q80=100.0, q90=110.0)

    estimator = Revising()
    scheduler = scheduler_of(estimator=estimator)
    for name in "ab":
        step(scheduler.submit(request_at(0.0, name), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.progress("a", Usage(10, 100), 1.0))  # moves what is predicted for its like
    step(scheduler.finish("a", Usage(10, 100), "stop", 2.0))
    assert 111 == scheduler.milestone(dispatched(scheduler, 2.0))


@pytest.mark.parametrize("q90", [inf, nan])
def test_an_estimator_that_promises_no_figure_is_told_nothing(q90: float) -> None:
    class Vague(Listening):
        def predict(self, request: Request) -> Estimate:
            return Estimate(40.0, q50=40.0, q80=60.0, q90=q90)

    estimator = Vague()
    scheduler = scheduler_of(estimator=estimator)
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.progress("a", Usage(10, 10**9), 1.0))
    assert [] == estimator.outlived


def test_nobody_need_report_to_an_estimator_that_does_not_listen() -> None:
    scheduler = scheduler_of(estimator=CategoryMeans())
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    assert inf == scheduler.milestone(dispatched(scheduler, 0.0))


def test_an_estimator_that_fails_when_it_listens_keeps_no_answer_from_paying(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Deaf(Listening):
        def outlive(self, request: Request, estimate: Estimate, produced: int) -> float | None:
            raise ZeroDivisionError

    events: list[Event] = []
    scheduler = scheduler_of(Priced(), estimator=Deaf(), listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.progress("a", Usage(10, 90), 1.0))
    assert step(scheduler.finish("a", Usage(10, 100), "stop", 2.0))
    (finished,) = (event for event in events if isinstance(event, Finished))
    assert 100.0 == finished.charge
    assert 1 == len(caplog.messages)


# Bounds


def test_a_request_beyond_the_bounds_is_rejected_before_any_work_and_told() -> None:
    class Untouchable(KnownDescriber):
        def describe(self, request: Request) -> Request:
            described.append(request.id)
            return request

    described: list[str] = []
    events: list[Event] = []
    scheduler = Scheduler(
        policy=Priced(),
        estimator=CategoryMeans(),
        describer=Untouchable(),
        queue=MemoryQueue(1),
        bounds=Bounds(max_waiting=1),
        listeners=[events.append],
    )
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    with pytest.raises(RejectedError, match="queue is full") as caught:
        step(scheduler.submit(request_at(0.0, "b"), 0.0))
    assert ("queue_full", 1.0) == (caught.value.reason, caught.value.retry_after_seconds)
    assert Rejected(0.0, request_at(0.0, "b"), "queue_full", 1.0) == events[-1]
    assert ["a"] == described
    assert 1 == scheduler.load.num_waiting


@pytest.mark.parametrize(
    ("num_waiting", "seconds"), [(1, 1.0), (10, 10 * 150 / 40), (1000, MAX_RETRY_AFTER_SECONDS)]
)
def test_a_rejected_client_is_told_to_come_back_when_the_backlog_has_drained(
    num_waiting: int, seconds: float
) -> None:
    scheduler = scheduler_of(bounds=Bounds(max_waiting=num_waiting))
    # far more of its memory than a minute at 40 tokens/s
    for n in range(3000):
        step(scheduler.submit(request_at(float(n), f"warm{n}"), float(n)))
        dispatched(scheduler, float(n))
        step(scheduler.finish(f"warm{n}", Usage(10, 400 if num_waiting == 1 else 40), "stop", n + 1.0))
    for n in range(num_waiting):
        step(scheduler.submit(request_at(3000.0, str(n), category="summary"), 3000.0))
    with pytest.raises(RejectedError) as caught:
        step(scheduler.submit(request_at(3000.0, "late"), 3000.0))
    assert pytest.approx(seconds, rel=0.02) == caught.value.retry_after_seconds == scheduler.retry_after_seconds


def with_a_line(*, rejects_unattainable: bool, events: list[Event]) -> Scheduler:
    """40 tokens are served a second; whoever comes to the line of 10 at instant 100 waits for about 10 seconds."""
    scheduler = scheduler_of(rejects_unattainable=rejects_unattainable, listeners=[events.append])
    for n in range(100):
        step(scheduler.submit(request_at(float(n), f"run{n}"), float(n)))
        if n >= 10:
            step(scheduler.finish(f"run{n - 10}", Usage(10, 40), "stop", float(n)))
        step(scheduler.dispatch(float(n)))
    events.clear()
    return scheduler


@pytest.mark.parametrize("rejects_unattainable", [False, True])
def test_a_request_that_would_expire_before_its_turn_is_rejected_at_once_if_wanted(
    rejects_unattainable: bool,
) -> None:
    events: list[Event] = []
    scheduler = with_a_line(rejects_unattainable=rejects_unattainable, events=events)
    before = scheduler.load
    step(scheduler.submit(request_at(100.0, "patient", expires_at=160.0), 100.0))
    if not rejects_unattainable:
        step(scheduler.submit(request_at(100.0, "hasty", expires_at=103.0), 100.0))
        assert [Admitted, Admitted] == [type(event) for event in events]
        return
    with pytest.raises(RejectedError, match="longer than it may") as caught:
        step(scheduler.submit(request_at(100.0, "hasty", expires_at=103.0), 100.0))
    assert "deadline_unattainable" == caught.value.reason
    assert 1.0 <= (caught.value.retry_after_seconds or 0.0) <= 7.0
    assert [Admitted, Rejected] == [type(event) for event in events]
    assert before.num_waiting + 1 == scheduler.load.num_waiting


def test_who_would_be_rejected_again_after_the_longest_wait_is_told_not_to_retry() -> None:
    scheduler = with_a_line(rejects_unattainable=True, events=[])
    for n in range(1000):
        step(scheduler.submit(request_at(100.0, f"more{n}"), 100.0))
    with pytest.raises(RejectedError, match="Do not retry") as caught:
        step(scheduler.submit(request_at(100.0, "hasty", expires_at=103.0), 100.0))
    assert caught.value.retry_after_seconds is None


def test_a_closed_scheduler_rejects_what_comes_and_serves_what_it_admitted() -> None:
    scheduler = scheduler_of()
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    scheduler.close()
    with pytest.raises(RejectedError, match="shutting down") as caught:
        step(scheduler.submit(request_at(1.0, "b"), 1.0))
    assert "shutting_down" == caught.value.reason
    assert "a" == dispatched(scheduler, 1.0).id
    assert step(scheduler.finish("a", Usage(10, 5), "stop", 2.0))


def test_the_load_is_what_waits_and_flies_and_how_fast_it_ends() -> None:
    scheduler = scheduler_of(slots=1)
    for n, category in enumerate(("short_qa", "summary", "report")):
        step(scheduler.submit(request_at(0.0, str(n), category=category), 0.0))
    dispatched(scheduler, 0.0)
    load = scheduler.load
    assert load.long_tokens > 40
    load = replace(load, long_tokens=0.0, middle_tokens=0.0)
    assert Load(num_waiting=2, num_inflight=1, waiting_tokens=550.0, tokens_per_second=0.0) == load
    assert 0.0 == scheduler.load.drain_seconds
    step(scheduler.finish("0", Usage(10, 40), "stop", 1.0))
    assert pytest.approx(40, rel=0.01) == scheduler.load.tokens_per_second
    assert pytest.approx(550 / 40, rel=0.01) == scheduler.load.drain_seconds


def test_time_without_requests_does_not_slow_the_measured_pool() -> None:
    scheduler = scheduler_of()
    for at in (0.0, 1000.0):
        step(scheduler.submit(request_at(at, str(at)), at))
        dispatched(scheduler, at)
        step(scheduler.finish(str(at), Usage(10, 40), "stop", at + 1.0))
    assert pytest.approx(40, rel=0.01) == scheduler.load.tokens_per_second


def test_an_outage_of_the_engines_does_not_slow_the_measured_pool() -> None:
    scheduler = scheduler_of(slots=2)
    for name in ("a", "b"):
        step(scheduler.submit(request_at(0.0, name), 0.0))
        dispatched(scheduler, 0.0)
    step(scheduler.finish("a", Usage(10, 40), "stop", 1.0))
    scheduler.resumed(101.0)
    step(scheduler.finish("b", Usage(10, 40), "stop", 102.0))
    assert pytest.approx(40, rel=0.01) == scheduler.load.tokens_per_second


# Parts that fail


def test_a_listener_that_raises_harms_neither_the_scheduler_nor_the_other_listeners(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("listener is broken")

    events: list[Event] = []
    scheduler = scheduler_of(listeners=[broken, events.append])
    with caplog.at_level(logging.CRITICAL, logger="driftsched.core.scheduler"):
        step(scheduler.submit(request_at(0.0, "a"), 0.0))
        dispatched(scheduler, 0.0)
        assert step(scheduler.finish("a", Usage(10, 5), "stop", 1.0))
    assert [Admitted, Dispatched, Finished] == [type(event) for event in events]
    assert 0 == scheduler.load.num_inflight


@pytest.mark.parametrize("price", [nan, inf, -1.0])
def test_an_expectation_that_is_no_price_is_refused_and_leaves_no_trace(price: float) -> None:
    events: list[Event] = []
    queue = MemoryQueue(1)
    scheduler = scheduler_of(Priced({40: price}), queue=queue, listeners=[events.append])
    with pytest.raises(ValueError, match="charge"):
        step(scheduler.submit(request_at(0.0, "a"), 0.0))
    assert [] == events
    assert Load(0, 0, 0.0, 0.0) == scheduler.load
    assert 0 == queue.num_waiting
    assert step(scheduler.dispatch(1.0)) is None


@pytest.mark.parametrize("error", [ConnectionError("the store is gone"), CancelledError()])
def test_a_push_that_fails_or_is_abandoned_leaves_no_trace(error: BaseException) -> None:
    class Unreachable(MemoryQueue):
        async def push(self, ticket: Ticket) -> None:
            raise error

    events: list[Event] = []
    scheduler = scheduler_of(queue=Unreachable(1), listeners=[events.append])
    with pytest.raises(type(error)):
        step(scheduler.submit(request_at(0.0, "a"), 0.0))
    assert Load(0, 0, 0.0, 0.0) == scheduler.load
    assert [] == events


def test_an_id_in_use_is_refused_and_leaves_no_trace() -> None:
    scheduler = scheduler_of()
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    with pytest.raises(ValueError, match="'a' is in use"):
        step(scheduler.submit(request_at(0.0, "a"), 0.0))
    assert 1 == scheduler.load.num_waiting


@pytest.mark.parametrize("price", [nan, inf, -1.0])
def test_a_use_that_has_no_price_is_charged_as_expected_and_frees_its_slot(
    price: float, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    scheduler = scheduler_of(Priced({7: price}), listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.progress("a", Usage(10, 7), 1.0))
    assert step(scheduler.finish("a", Usage(10, 7), "stop", 1.0))
    assert isinstance(events[-1], Finished)
    assert 40.0 == events[-1].charge
    assert 0 == scheduler.load.num_inflight
    assert "charging what was expected" in caplog.text


def test_a_policy_that_raises_at_the_end_loses_no_slot() -> None:
    class Brittle(Priced):
        def charge(self, request: Request, usage: Usage) -> float:
            return 1000.0 / (7 - usage.completion_tokens)

    events: list[Event] = []
    scheduler = scheduler_of(Brittle(), estimator=Fixed(2), listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    step(scheduler.progress("a", Usage(10, 7), 1.0))
    assert step(scheduler.finish("a", Usage(10, 7), "stop", 1.0))
    assert isinstance(events[-1], Finished)
    assert 200.0 == events[-1].charge
    assert 0 == scheduler.load.num_inflight


class Fixed(CategoryMeans):
    """Always expects the same."""

    def __init__(self, length: float) -> None:
        self._length = length

    def predict(self, request: Request) -> Estimate:
        return Estimate(self._length, self._length, self._length, self._length)


def test_an_engine_that_states_an_absurd_length_loses_no_slot() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("fair", listeners=[events.append])
    ticket = step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    assert step(scheduler.finish("a", Usage(10, 10**400), "stop", 1.0))
    assert isinstance(events[-1], Finished)
    assert ticket.charge == events[-1].charge
    assert Load(0, 0, 0.0, 0.0) == replace(scheduler.load, long_tokens=0.0, middle_tokens=0.0)


def test_an_estimator_that_cannot_learn_keeps_no_end_from_being_told(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(CategoryMeans):
        def learn(
            self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None
        ) -> None:
            raise ArithmeticError("no")

    events: list[Event] = []
    scheduler = scheduler_of(estimator=Stubborn(), listeners=[events.append])
    step(scheduler.submit(request_at(0.0, "a"), 0.0))
    dispatched(scheduler, 0.0)
    assert step(scheduler.finish("a", Usage(10, 5), "stop", 1.0))
    assert isinstance(events[-1], Finished)
    assert "could not learn" in caplog.text


def test_an_estimator_that_cannot_predict_leaves_no_trace() -> None:
    scheduler = scheduler_of(estimator=Fixed(nan))
    with pytest.raises(ValueError, match="NaN"):
        step(scheduler.submit(request_at(0.0, "a"), 0.0))
    assert Load(0, 0, 0.0, 0.0) == scheduler.load


# Memory


def test_nothing_remembers_a_request_that_has_ended() -> None:
    class Payload:
        pass

    scheduler = scheduler_of("fair", slots=2, max_wait_seconds=dict.fromkeys(Tier, 5.0))
    alive = []
    tickets = []
    for n in range(50):
        payload = Payload()
        alive.append(weakref.ref(payload))
        request = request_at(0.0, str(n), payload=payload, expires_at=100.0)
        tickets.append(step(scheduler.submit(replace(request, tenant=Tenant(f"t{n % 7}")), 0.0)))
    del payload, request
    for ticket in tickets[40:]:
        step(scheduler.cancel(ticket, Usage(), 1.0))
    del tickets, ticket
    for _ in range(10):
        step(scheduler.finish(dispatched(scheduler, 1.0).id, Usage(10, 5), "stop", 2.0))
        step(scheduler.fail(dispatched(scheduler, 1.0).id, Usage(), "x", 2.0))
    step(scheduler.expire(100.0))
    gc.collect()
    assert [] == [n for n, reference in enumerate(alive) if reference() is not None]
