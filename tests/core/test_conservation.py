"""No request is lost or answered twice, in whatever order things happen."""

from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    PolicyChanged,
    Recalibrated,
    Rejected,
    Reranked,
)
from driftsched.core.model import Tenant, Ticket, Tier, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.policies import POLICIES, create_policy
from driftsched.queues.memory import MemoryQueue
from support.scheduling import TENANTS, CategoryMeans, Learning, Pause, request_at, scheduler_of, step

SLOTS = 3
BOUNDS = Bounds(max_waiting=6, max_waiting_per_tenant=4, max_waiting_bytes=50)
ENDS = (Rejected, Finished, Evicted, Failed)


@dataclass
class Log:
    """What happened to each request, by id."""

    events: list[Event] = field(default_factory=list)

    def ids(self, *kinds: type[Event]) -> list[str]:
        return [_id_of(e) for e in self.events if isinstance(e, kinds)]

    @property
    def waiting(self) -> set[str]:
        left = {e.ticket.id for e in self.events if isinstance(e, Evicted) and e.dispatched_at is None}
        return set(self.ids(Admitted)) - set(self.ids(Dispatched)) - left

    @property
    def inflight(self) -> set[str]:
        return set(self.ids(Dispatched)) - set(self.ids(Finished, Evicted, Failed))


def _id_of(event: Event) -> str:
    assert not isinstance(event, Recalibrated | DriftDetected | Reranked | PolicyChanged), (
        "these are of no single request"
    )
    return event.request.id if isinstance(event, Rejected) else event.ticket.id


class PausingQueue(MemoryQueue):
    """A memory queue that suspends before and after each verb, as one over a network does."""

    async def push(self, ticket: Ticket) -> None:
        await Pause()
        await super().push(ticket)
        await Pause()

    async def pop(self, now: float) -> Ticket | None:
        await Pause()
        ticket = await super().pop(now)
        await Pause()
        return ticket

    async def settle(self, ticket_id: str, charge: float, *, release: bool) -> bool:
        await Pause()
        settled = await super().settle(ticket_id, charge, release=release)
        await Pause()
        return settled

    async def rerank(self, ticket_id: str, rank: float, charge: float) -> bool:
        await Pause()
        moved = await super().rerank(ticket_id, rank, charge)
        await Pause()
        return moved

    async def move(self, ticket: Ticket) -> bool:
        await Pause()
        moved = await super().move(ticket)
        await Pause()
        return moved

    async def restart_accounts(self) -> None:
        await Pause()
        await super().restart_accounts()
        await Pause()

    async def remove(self, ticket_id: str) -> bool:
        await Pause()
        removed = await super().remove(ticket_id)
        await Pause()
        return removed

    async def reap(self, now: float) -> list[Ticket]:
        await Pause()
        reaped = await super().reap(now)
        await Pause()
        return reaped


CHOICES = st.tuples(
    st.sampled_from(
        ["submit", "submit", "submit", "dispatch", "dispatch", "progress", "finish", "fail", "cancel", "expire"]
    )
    | st.sampled_from(["adopt", "place_anew"]),
    st.integers(0, 30),
    st.integers(0, 200),
)
"""A verb, whom it concerns (modulo those ever admitted), and how many tokens or seconds."""


class Life:
    """One scheduler and everything that was ever submitted to it."""

    def __init__(self, policy: str, queue: MemoryQueue, estimator: CategoryMeans) -> None:
        self.log = Log()
        self.queue = queue
        self.estimator = estimator
        self.scheduler: Scheduler = scheduler_of(
            policy,
            queue=queue,
            estimator=estimator,
            bounds=BOUNDS,
            max_wait_seconds={Tier.BATCH: 20.0},
            rejects_unattainable=True,
            sheds=True,
            listeners=[self.log.events.append],
        )
        self.tickets: list[Ticket] = []
        self.submitted = 0
        self.now = 0.0

    def verb(self, verb: str, whom: int, amount: int) -> Coroutine[Any, Any, Any] | None:
        """A coroutine that does it, not yet begun; None if there is nobody to do it to."""
        self.now += amount / 100
        if verb == "submit":
            return self.submit(TENANTS[whom % len(TENANTS)], amount)
        if verb == "dispatch":
            return self.scheduler.dispatch(self.now)
        if verb == "expire":
            return self.scheduler.expire(self.now)
        if verb == "adopt":
            name = POLICIES.names()[whom % len(POLICIES.names())]
            change = PolicyChanged(self.now, "before", name, "to see")
            return self.scheduler.adopt(create_policy(name), change)
        if verb == "place_anew":
            return self.scheduler.place_anew(amount % 4)
        if not self.tickets:
            return None
        ticket = self.tickets[whom % len(self.tickets)]
        usage = Usage(ticket.request.prompt_tokens, amount)
        if verb == "progress":
            return self.scheduler.progress(ticket.id, usage, self.now)
        if verb == "finish":
            return self.scheduler.finish(ticket.id, usage, "stop" if amount % 2 else "length", self.now)
        if verb == "fail":
            return self.scheduler.fail(ticket.id, usage, "broken", self.now)
        return self.scheduler.cancel(ticket, usage, self.now)

    async def submit(self, tenant: Tenant, amount: int) -> None:
        name = str(self.submitted)
        self.submitted += 1
        request = request_at(
            self.now, name, tenant=tenant, tier=tenant.tier, expires_at=self.now + amount, payload_bytes=amount % 13
        )
        with suppress(RejectedError):
            self.tickets.append(await self.scheduler.submit(request, self.now))

    def check(self) -> None:
        load, log = self.scheduler.load, self.log
        assert len(log.waiting) == load.num_waiting == self.queue.num_waiting
        assert len(log.inflight) == load.num_inflight == self.queue.num_inflight
        assert load.num_inflight <= SLOTS
        assert load.num_waiting <= BOUNDS.max_waiting

    def check_tokens(self) -> None:
        """All that may wait here can be revised at one settlement, so what waits is as predicted now."""
        assert pytest.approx(self.scheduler.load.waiting_tokens) == sum(
            self.estimator.predict(t.request).completion_tokens for t in self.tickets if t.id in self.log.waiting
        )

    def drain(self) -> None:
        """Serve all that waits and end all that flies."""
        while True:
            while run_to_end(self.scheduler.dispatch(self.now)):
                pass
            if not self.log.inflight:
                break
            for name in sorted(self.log.inflight):
                assert run_to_end(self.scheduler.finish(name, Usage(1, 1), "stop", self.now))

    def check_the_books(self) -> None:
        log = self.log
        assert Counter(log.ids(*ENDS)) == Counter(str(n) for n in range(self.submitted))
        assert Counter(log.ids(Admitted, Rejected)) == Counter(log.ids(*ENDS))
        assert max(Counter(log.ids(Dispatched)).values(), default=1) == 1
        assert max(Counter(log.ids(FirstToken)).values(), default=1) == 1
        assert set(log.ids(Finished, Failed)) <= set(log.ids(Dispatched))
        load = self.scheduler.load
        assert (0, 0, 0.0) == (load.num_waiting, load.num_inflight, load.waiting_tokens)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    policy=st.sampled_from(POLICIES.names()),
    estimator=st.sampled_from([CategoryMeans, Learning]),
    choices=st.lists(CHOICES, max_size=80),
)
def test_every_request_ends_exactly_once_and_the_counts_agree_at_every_step(
    policy: str, estimator: type[CategoryMeans], choices: list[tuple[str, int, int]]
) -> None:
    life = Life(policy, MemoryQueue(SLOTS), estimator())
    for choice in choices:
        if (coroutine := life.verb(*choice)) is not None:
            before = len(life.log.ids(*ENDS))
            result = step(coroutine)
            ended = len(life.log.ids(*ENDS)) - before
            if choice[0] in ("finish", "fail", "cancel"):
                assert int(result) == ended, "whoever is told that it settled is the one that is told of"
            life.check()
            life.check_tokens()
    life.drain()
    life.check_the_books()


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    policy=st.sampled_from(["fair", "fifo", "sjf"]),
    estimator=st.sampled_from([CategoryMeans, Learning]),
    choices=st.lists(CHOICES, max_size=60),
    turns=st.randoms(use_true_random=False),
)
def test_every_request_ends_exactly_once_when_verbs_overlap(
    policy: str, estimator: type[CategoryMeans], choices: list[tuple[str, int, int]], turns: Any
) -> None:
    life = Life(policy, PausingQueue(SLOTS), estimator())
    begun: list[Coroutine[Any, Any, Any]] = []

    def advance() -> None:
        coroutine = turns.choice(begun)
        try:
            coroutine.send(None)
        except StopIteration:
            begun.remove(coroutine)

    try:
        for choice in choices:
            if (coroutine := life.verb(*choice)) is not None:
                begun.append(coroutine)
            for _ in range(turns.randint(0, 4)):
                if begun:
                    advance()
        while begun:
            advance()
    finally:  # an example may be given up half-way
        for coroutine in begun:
            coroutine.close()
    life.check()
    life.drain()
    life.check_the_books()


def run_to_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, however often it suspends."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as done:
        return done.value
