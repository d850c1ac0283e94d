"""Waiting requests follow what was learnt since they were admitted."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.core.events import Dispatched, Event, Evicted, Finished, Reranked
from driftsched.core.lines import Lines
from driftsched.core.model import Estimate, Load, Request, Ticket, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.policies import POLICIES, create_policy
from driftsched.queues.memory import MemoryQueue
from support.scheduling import (
    MEAN_TOKENS,
    TENANTS,
    Learning,
    Pause,
    dispatch_order,
    request_at,
    scheduler_of,
    step,
)

FOUR_TIMES = 600
"""Tokens of a summary, of which 150 are expected at first."""


def submit(scheduler: Scheduler, *names: str, category: str = "summary") -> list[Ticket]:
    return [step(scheduler.submit(request_at(0.0, name, category=category), 0.0)) for name in names]


def settle_one(scheduler: Scheduler, tokens: int = FOUR_TIMES, now: float = 1.0) -> Ticket:
    """Serve whoever is next, with an answer of so many tokens."""
    ticket = step(scheduler.dispatch(now))
    assert ticket is not None
    assert step(scheduler.finish(ticket.id, Usage(10, tokens), "stop", now))
    return ticket


def drain(scheduler: Scheduler) -> None:
    while ticket := step(scheduler.dispatch(2.0)):
        step(scheduler.finish(ticket.id, Usage(10, round(ticket.estimate.completion_tokens)), "stop", 2.0))


def test_who_waits_is_overtaken_once_its_kind_turns_out_to_be_longer() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("sjf", estimator=Learning(), listeners=[events.append])
    submit(scheduler, "s1", "s2")
    submit(scheduler, "t1", category="technical")
    settle_one(scheduler)
    drain(scheduler)
    assert ["s1", "t1", "s2"] == dispatch_order(events)
    assert [(1.0, "m", "summary", ["s2"])] == [
        (e.at, e.model, e.category, [ticket.id for ticket in e.tickets]) for e in events if isinstance(e, Reranked)
    ]


def test_with_a_maximum_of_zero_everybody_keeps_the_place_of_its_admission() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("sjf", estimator=Learning(), max_reranks=0, listeners=[events.append])
    submit(scheduler, "s1", "s2")
    submit(scheduler, "t1", category="technical")
    settle_one(scheduler)
    drain(scheduler)
    assert ["s1", "s2", "t1"] == dispatch_order(events)
    assert [] == [e for e in events if isinstance(e, Reranked)]


def test_no_settlement_moves_more_than_the_maximum_and_the_next_ones_go_on() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("sjf", estimator=Learning(), max_reranks=2, listeners=[events.append])
    submit(scheduler, *"abcdefg")
    for now in (1.0, 2.0, 3.0, 4.0):
        settle_one(scheduler, now=now)
    # "a" teaches; "d" and "g" are served before it is their turn to be revised, now that they seem the shortest
    assert list("adgb") == dispatch_order(events)
    assert [(1.0, 2), (2.0, 2)] == [(e.at, e.count) for e in events if isinstance(e, Reranked)]


def test_a_ticket_carries_its_last_estimate_rank_and_charge_to_its_end() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("fair", estimator=Learning(), listeners=[events.append])
    (_, second) = submit(scheduler, "a", "b")
    settle_one(scheduler)
    assert second.estimate.completion_tokens == 150.0
    settle_one(scheduler, tokens=1)
    dispatched, finished = (
        next(e.ticket for e in events if isinstance(e, kind) and e.ticket.id == "b")
        for kind in (Dispatched, Finished)
    )
    assert dispatched == finished
    assert (600.0, (10 + 2 * 600) / 30) == (dispatched.estimate.completion_tokens, dispatched.charge)


def test_a_ticket_is_ranked_again_under_the_load_of_its_admission() -> None:
    loads: dict[str, list[Load]] = {}

    class Watching:
        def band(self, request: Request) -> int:
            return 0

        def flow(self, request: Request) -> str:
            return "all"

        def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
            loads.setdefault(request.id, []).append(load)
            return estimate.completion_tokens

        def charge(self, request: Request, usage: Usage) -> float:
            return 0.0

    scheduler = scheduler_of(Watching(), estimator=Learning())
    submit(scheduler, "a", "b", "c")
    settle_one(scheduler)
    assert [1, 2, 2] == [len(loads[name]) for name in "abc"]
    assert all(seen[0] == seen[-1] for seen in loads.values())
    assert [0, 1, 2] == [loads[name][0].num_waiting for name in "abc"]


def test_the_tokens_that_wait_are_those_predicted_now() -> None:
    scheduler = scheduler_of("sjf", estimator=Learning())
    (_, _, third) = submit(scheduler, "a", "b", "c")
    settle_one(scheduler)
    assert 2 * 600.0 == scheduler.load.waiting_tokens
    step(scheduler.cancel(third, Usage(), 2.0))  # by its ticket of admission, as a driver holds it
    assert 600.0 == scheduler.load.waiting_tokens
    settle_one(scheduler)
    assert 0.0 == scheduler.load.waiting_tokens


def test_who_leaves_the_line_is_told_of_with_its_last_estimate() -> None:
    events: list[Event] = []
    scheduler = scheduler_of("sjf", estimator=Learning(), listeners=[events.append])
    (_, second) = submit(scheduler, "a", "b")
    step(scheduler.submit(request_at(0.0, "c", category="summary", expires_at=5.0), 0.0))
    settle_one(scheduler)
    step(scheduler.cancel(second, Usage(), 2.0))
    step(scheduler.expire(6.0))
    evicted = [e.ticket for e in events if isinstance(e, Evicted)]
    assert [("b", 600.0, 610.0), ("c", 600.0, 610.0)] == [
        (t.id, t.estimate.completion_tokens, t.rank) for t in evicted
    ]


def test_failures_and_cancellations_settle_and_so_move_others_too() -> None:
    for end in ("fail", "cancel"):
        scheduler = scheduler_of("sjf", estimator=Learning())
        submit(scheduler, "a", "b")
        ticket = step(scheduler.dispatch(1.0))
        assert ticket is not None
        usage = Usage(10, FOUR_TIMES)
        verb = scheduler.fail(ticket.id, usage, "x", 1.0) if end == "fail" else scheduler.cancel(ticket, usage, 1.0)
        assert step(verb)
        assert 600.0 == scheduler.load.waiting_tokens


def test_a_ticket_that_leaves_while_the_queue_is_moving_it_is_counted_once() -> None:
    class Slow(MemoryQueue):
        """Moves a ticket, and takes a while to say so."""

        async def rerank(self, ticket_id: str, rank: float, charge: float) -> bool:
            moved = await super().rerank(ticket_id, rank, charge)
            await Pause()
            return moved

    events: list[Event] = []
    scheduler = scheduler_of("sjf", estimator=Learning(), queue=Slow(1), listeners=[events.append])
    submit(scheduler, "a", "b", "c")
    ticket = step(scheduler.dispatch(1.0))
    assert ticket is not None
    finishing = scheduler.finish(ticket.id, Usage(10, FOUR_TIMES), "stop", 1.0)
    finishing.send(None)  # "b" has been moved behind "c", and nobody knows yet
    assert ["c", "b"] == [settle_one(scheduler).id for _ in range(2)]
    with suppress(StopIteration):
        finishing.send(None)
    assert 0.0 == scheduler.load.waiting_tokens
    assert [] == [e for e in events if isinstance(e, Reranked)]


# Plug-ins that do not do what they should


class Broken(Learning):
    """Cannot revise one request, in one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self._way = way

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        if request.id != "b":
            return self.predict(request)
        if self._way == "raises":
            raise RuntimeError("no idea")
        if self._way == "nan":
            return Estimate(nan, q50=nan, q80=nan, q90=nan)
        if self._way == "negative":
            return Estimate(-5.0, q50=0, q80=0, q90=0)
        return None  # type: ignore[return-value]


@pytest.mark.parametrize("policy", ["sjf", "fair", "fifo"])
@pytest.mark.parametrize("way", ["raises", "nan", "negative", "nothing"])
def test_an_estimator_that_cannot_revise_loses_nothing(
    policy: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    scheduler = scheduler_of(policy, estimator=Broken(way), listeners=[events.append])
    submit(scheduler, *"abcd")
    with caplog.at_level(logging.CRITICAL):
        settle_one(scheduler)
        settle_one(scheduler)
        drain(scheduler)
    assert sorted("abcd") == sorted(dispatch_order(events))
    assert sorted("abcd") == sorted(e.ticket.id for e in events if isinstance(e, Finished))
    assert (0, 0, 0.0) == (scheduler.load.num_waiting, scheduler.load.num_inflight, scheduler.load.waiting_tokens)


def test_a_policy_that_cannot_rank_again_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Once:
        def __init__(self) -> None:
            self._seen: set[str] = set()

        def band(self, request: Request) -> int:
            return 0

        def flow(self, request: Request) -> str:
            return "all"

        def rank(self, request: Request, estimate: Estimate, load: Load) -> float:
            again = request.id in self._seen
            self._seen.add(request.id)
            return nan if again else request.arrived_at

        def charge(self, request: Request, usage: Usage) -> float:
            return 0.0

    events: list[Event] = []
    scheduler = scheduler_of(Once(), estimator=Learning(), listeners=[events.append])
    submit(scheduler, *"abcd")
    with caplog.at_level(logging.ERROR):
        settle_one(scheduler)
    assert 1 == len(caplog.records), "one report at each settlement is enough"
    assert "b" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.CRITICAL):
        drain(scheduler)
    assert list("abcd") == dispatch_order(events)


def test_a_correction_that_is_no_number_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Speechless(Learning):
        def bias(self, request: Request) -> float:
            return 1.0 if not self.biases else None  # type: ignore[return-value]

        def predict(self, request: Request) -> Estimate:
            return Estimate(1.0, q50=1.0, q80=1.0, q90=1.0)

    events: list[Event] = []
    scheduler = scheduler_of("sjf", estimator=Speechless(), listeners=[events.append])
    submit(scheduler, "a", "b")
    with caplog.at_level(logging.CRITICAL):
        drain(scheduler)
    assert ["a", "b"] == [e.ticket.id for e in events if isinstance(e, Finished)]


# Whatever happens, the order comes out right

ACTS = st.tuples(st.sampled_from(["submit", "submit", "serve", "finish", "cancel"]), st.integers(0, 11))
SLOTS = 3
MAX_ACTS = 60


class Known(MemoryQueue):
    """Tells which tickets wait, with the rank and charge they have now."""

    def __init__(self, max_inflight: int) -> None:
        super().__init__(max_inflight)
        self.waiting: dict[str, Ticket] = {}

    async def push(self, ticket: Ticket) -> None:
        await super().push(ticket)
        self.waiting[ticket.id] = ticket

    async def pop(self, now: float) -> Ticket | None:
        ticket = await super().pop(now)
        if ticket is not None:
            del self.waiting[ticket.id]
        return ticket

    async def rerank(self, ticket_id: str, rank: float, charge: float) -> bool:
        moved = await super().rerank(ticket_id, rank, charge)
        self.waiting[ticket_id] = replace(self.waiting[ticket_id], rank=rank, charge=charge)
        return moved

    async def remove(self, ticket_id: str) -> bool:
        self.waiting.pop(ticket_id, None)
        return await super().remove(ticket_id)


class Story:
    """A scheduler, what was submitted to it, and some answers under way whose ends teach nothing new."""

    def __init__(self, policy: str, max_reranks: int) -> None:
        self.estimator = Learning()
        self.queue = Known(SLOTS + MAX_ACTS)
        self.scheduler = scheduler_of(policy, estimator=self.estimator, queue=self.queue, max_reranks=max_reranks)
        self.loads: dict[str, Load] = {}
        self._admitted: list[Ticket] = []
        self._inflight: list[Ticket] = []
        submit(self.scheduler, *(f"quiet {number}" for number in range(MAX_ACTS)), category="report")
        self._quiet = [step(self.scheduler.dispatch(0.0)) for _ in range(MAX_ACTS)]

    def act(self, act: str, amount: int, now: float) -> None:
        if act == "submit":
            category = ("short_qa", "summary", "technical")[amount % 3]
            request = request_at(now, str(now), tenant=TENANTS[amount % 4], category=category)
            self.loads[request.id] = self.scheduler.load
            self._admitted.append(step(self.scheduler.submit(request, now)))
        elif act == "serve" and len(self._inflight) < SLOTS:
            if (ticket := step(self.scheduler.dispatch(now))) is not None:
                self._inflight.append(ticket)
        elif act == "finish" and self._inflight:
            self._finish(self._inflight.pop(amount % len(self._inflight)), 2.0 ** (amount - 5), now)
        elif act == "cancel" and self._admitted:
            ticket = self._admitted[amount % len(self._admitted)]
            self._inflight = [other for other in self._inflight if other.id != ticket.id]
            step(self.scheduler.cancel(ticket, Usage(), now))

    def come_to_rest(self, now: float) -> None:
        """Settle so often that each ticket that waits has had its turn, and nothing new is learnt."""
        for ticket in self._quiet:
            assert ticket is not None
            self._finish(ticket, 1.0, now)

    def _finish(self, ticket: Ticket, factor: float, now: float) -> None:
        tokens = round(MEAN_TOKENS[ticket.request.category] * factor)
        assert step(self.scheduler.finish(ticket.id, Usage(10, tokens), "stop", now))


def order(tickets: Iterable[Ticket]) -> list[str]:
    """In which a fresh queue serves them."""
    lines = Lines()
    for ticket in tickets:
        lines.push(ticket)
    served = []
    while (first := lines.pop(0.0)) is not None:
        served.append(first.id)
        lines.settle(first.id, first.charge, release=True)
    return served


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(POLICIES.names()),
    max_reranks=st.integers(1, 4),
    acts=st.lists(ACTS, max_size=MAX_ACTS),
)
def test_at_rest_the_order_is_that_of_a_queue_freshly_filled_with_what_is_known_now(
    name: str, max_reranks: int, acts: list[tuple[str, int]]
) -> None:
    story = Story(name, max_reranks)
    for number, (act, amount) in enumerate(acts):
        story.act(act, amount, float(number))
    story.come_to_rest(float(len(acts)))
    policy, predict, fresh = create_policy(name), story.estimator.predict, []
    for ticket in story.queue.waiting.values():
        request, estimate = ticket.request, predict(ticket.request)
        fresh.append(
            replace(
                ticket,
                rank=policy.rank(request, estimate, story.loads[request.id]),
                charge=policy.charge(request, Usage(request.prompt_tokens, round(estimate.completion_tokens))),
            )
        )
    assert order(fresh) == order(story.queue.waiting.values())
    assert pytest.approx(story.scheduler.load.waiting_tokens) == sum(
        predict(ticket.request).completion_tokens for ticket in fresh
    )
