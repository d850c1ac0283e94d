"""The plot: admit, predict, place, dispatch, serve, settle, tell; and what waits follows what was learnt."""

import logging
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import inf
from typing import NoReturn

from driftsched.core.admission import WHOLE_QUEUE, Backlog, Bounds
from driftsched.core.errors import RejectedError
from driftsched.core.events import (
    Admitted,
    Dispatched,
    Event,
    Evicted,
    Failed,
    Finished,
    FirstToken,
    PolicyChanged,
    Rejected,
    Reranked,
)
from driftsched.core.lessons import Lessons
from driftsched.core.model import UNDIVIDED, Estimate, Load, Request, Ticket, Tier, Usage
from driftsched.core.placing import Placing, prices_alike
from driftsched.core.promises import Promise, Promises
from driftsched.core.protocols import Describer, Estimator, Listener, Policy, Queue
from driftsched.core.quotas import Quotas, Refusal
from driftsched.core.revision import MAX_RERANKS, Revisions, Waiting
from driftsched.core.shedding import Shedding
from driftsched.core.throughput import Throughput
from driftsched.core.usual import Usual
from driftsched.core.waits import Eta, Waits

_logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_SECONDS = 120.0
"""Official SDKs do not retry at all if told to wait longer."""


@dataclass(slots=True)
class _Flight:
    """A ticket in flight. Owned by the scheduler from dispatch to settlement."""

    ticket: Ticket
    dispatched_at: float
    charge: float
    milestone: float
    """Completion tokens at which the estimator is to hear of it; infinite once it has."""
    first_token_at: float | None = None


class Scheduler:
    """Decides who is served next, and keeps every account straight.

    It waits for nothing and knows no clock: a driver calls `submit` when a request comes, `dispatch` whenever a
    slot may be free, and one of `finish`, `fail` and `cancel` for each ticket dispatched. Those three may race with
    one another and with `expire`; the first one to settle wins, the others answer False and change nothing.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        estimator: Estimator,
        describer: Describer,
        queue: Queue,
        bounds: Bounds | None = None,
        max_wait_seconds: Mapping[Tier, float] | None = None,
        max_inflight_tokens: float = inf,
        max_reranks: int = MAX_RERANKS,
        rejects_unattainable: bool = False,
        sheds: bool = False,
        quotas: Quotas | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        """`max_wait_seconds`, by tier: a ticket that waited so long is served next, whatever the policy says.

        `max_inflight_tokens`, > 0: once so many are expected of what is in flight, prompts included, nothing more
        is dispatched; so the last one dispatched may go beyond, and one is always in flight.

        `max_reranks`: waiting tickets predicted and placed anew at each settlement, when feedback has moved what is
        predicted for their like; 0 leaves every ticket as it was at admission.

        `rejects_unattainable`: reject a request at once if not all that waits could be served within its maximum
        wait any more, or if nine of ten like it would still wait when it expires.

        `sheds`: when the whole queue is full, evict waiting tickets of least value for a request of better value.

        `quotas`: holds the accounts of tenants that have quotas, where somebody else wants to look at them.
        """
        self._placing = Placing(policy)
        self._estimator = estimator
        self._describer = describer
        self._queue = queue
        self._bounds = bounds or Bounds()
        self._promises = Promises(max_wait_seconds or {}, keeps=rejects_unattainable)
        self._quotas = quotas or Quotas()
        self._listeners = (self._quotas.hear, *listeners)
        self._backlog = Backlog()
        self._max_inflight_tokens = max_inflight_tokens
        self._throughput = Throughput()
        self._usual = Usual()
        self._waits = Waits()
        self._revisions = Revisions(max_reranks)
        self._lessons = Lessons(estimator, describer, self._revisions)
        self._shedding = Shedding() if sheds else None
        self._shed: list[Ticket] = []
        self._flights: dict[str, _Flight] = {}
        self._unplaced: deque[Waiting] = deque()  # what still has the place that the policy before gave it
        self._seq = count()
        self._rejects_unattainable = rejects_unattainable
        self._open = True

    @property
    def load(self) -> Load:
        """How busy the pool is now."""
        divided = self._backlog.tokens_by_band_and_tier() if self._placing.triages else UNDIVIDED
        return Load(
            num_waiting=self._backlog.num_waiting,
            num_inflight=self._backlog.num_inflight,
            waiting_tokens=self._backlog.waiting_tokens,
            tokens_per_second=self._throughput.tokens_per_second,
            long_tokens=self._usual.long_tokens,
            middle_tokens=self._usual.middle_tokens,
            usual_drain_seconds=self._usual.drain_seconds,
            waiting_by_band_and_tier=divided,
        )

    @property
    def num_waiting(self) -> int:
        """Tickets in line."""
        return self._backlog.num_waiting

    @property
    def retry_after_seconds(self) -> float:
        """When it is worth trying again: once what waits is served, 1 to `MAX_RETRY_AFTER_SECONDS`."""
        return min(max(1.0, self.load.drain_seconds), MAX_RETRY_AFTER_SECONDS)

    def position_of(self, ticket_id: str) -> int | None:
        """Place of a waiting ticket in order of arrival, from 1; None if it does not wait. O(n)."""
        return self._waits.position_of(ticket_id)

    def eta_of(self, ticket_id: str, now: float) -> Eta | None:
        """When a waiting ticket will be dispatched; None if it does not wait, or that cannot be told."""
        return self._waits.eta_of(ticket_id, now)

    def expected_tokens_of(self, ticket_id: str) -> float:
        """Completion tokens predicted for a ticket in flight; 0 if it is not."""
        flight = self._flights.get(ticket_id)
        return flight.ticket.estimate.expected_tokens if flight else 0.0

    async def submit(self, request: Request, now: float) -> Ticket:
        """Admit, predict and place. Raises `RejectedError` if the request may not wait."""
        crowded = self._reject_beyond_bounds(request, now)
        self._reject_beyond_quota(request, self._quotas.check(request, now), now)
        request = self._describer.describe(request)
        load = self.load
        estimate = self._estimator.predict(request)
        promise = self._promise(request, estimate, now)
        ticket = self._placing.place(request, estimate, load, overdue_at=promise.overdue_at, seq=next(self._seq))
        if self._rejects_unattainable:
            self._reject_unattainable(ticket, load, now)
        victims = self._victims(ticket, crowded, now) if crowded else []
        self._reject_beyond_quota(request, self._quotas.reserve(ticket, now), now)
        eta = self._waits.enter(ticket, load, self._backlog.waiting_of(request.tenant))
        self._backlog.enter(ticket)  # before the push: if that suspends, others may submit and dispatch meanwhile
        self._promises.enter(ticket.id, promise, now)
        self._revisions.enter(ticket, load)
        if self._shedding is not None:
            self._shedding.enter(ticket)
        try:
            await self._queue.push(ticket)
        except BaseException:
            self._leave_line(ticket)
            self._quotas.forget(ticket.id, now)
            raise
        for victim in victims:
            await self._make_room(victim, now)
        drain_seconds = load.drain_seconds if load.tokens_per_second > 0 else None
        self._usual.observe(ticket.estimate.completion_tokens, drain_seconds)
        self._tell(Admitted(now, ticket, self._backlog.num_waiting, load, eta))
        return ticket

    def refuse(self, request: Request, reason: str, now: float) -> NoReturn:
        """Raises `RejectedError` for a request that its driver does not submit; `reason` as in `Rejected`."""
        self._reject(request, reason, self.retry_after_seconds, now)

    async def dispatch(self, now: float) -> Ticket | None:
        """The next ticket to serve, if one waits and a slot is free."""
        if self._backlog.inflight_tokens >= self._max_inflight_tokens:
            return None  # even if a smaller one would fit: it would not be its turn
        if not self._backlog.num_waiting:
            return None
        ticket = await self._queue.pop(now)
        if ticket is None:
            return None
        self._throughput.observe(now, busy=self._backlog.num_inflight > 0)
        self._waits.observe(ticket.id, now)
        self._promises.dispatched(now)
        estimate = self._leave_line(ticket).estimate
        if estimate is not ticket.estimate:  # revised meanwhile: the queue was told of rank and charge only
            ticket = replace(ticket, estimate=estimate)
        self._backlog.depart(ticket)
        self._flights[ticket.id] = _Flight(ticket, now, ticket.charge, self.milestone(ticket))
        self._tell(Dispatched(now, ticket, await self._queue.why(ticket.id)))
        return ticket

    def milestone(self, ticket: Ticket) -> float:
        """The count of completion tokens at which `progress` should hear of a dispatched ticket at once.

        That is where its answer becomes longer than was promised; infinite if nobody wants to know.
        """
        return self._lessons.milestone(ticket)

    async def progress(self, ticket_id: str, usage: Usage, now: float) -> None:
        """Tokens are flowing. Call at the first, the `milestone`, and at times: a long answer pays as it grows."""
        flight = self._flights.get(ticket_id)
        if flight is None:
            return
        if flight.first_token_at is None and usage.completion_tokens > 0:
            flight.first_token_at = now
            self._tell(FirstToken(now, flight.ticket))
        if usage.completion_tokens >= flight.milestone:
            flight.milestone = inf
            for change in self._lessons.outlive(flight.ticket, usage, now):
                self._tell(change)
        charge = self._placing.price(flight.ticket, usage)
        if charge > flight.charge and await self._queue.settle(ticket_id, charge, release=False):
            flight.charge = charge

    async def finish(self, ticket_id: str, usage: Usage, finish_reason: str, now: float) -> bool:
        """The answer is complete. `finish_reason` as on the OpenAI wire."""
        flight = await self._settle(ticket_id, usage, now)
        if flight is None:
            return False
        self._learn(flight.ticket, usage, now, finished=finish_reason != "length")
        self._tell(
            Finished(
                now,
                flight.ticket,
                usage,
                finish_reason,
                dispatched_at=flight.dispatched_at,
                first_token_at=flight.first_token_at,
                charge=flight.charge,
            )
        )
        await self._follow_feedback(now)
        return True

    async def fail(self, ticket_id: str, usage: Usage, error: str, now: float) -> bool:
        """The engine failed after `usage`; `error` is a short word for the kind of failure."""
        flight = await self._settle(ticket_id, usage, now)
        if flight is None:
            return False
        self._learn(flight.ticket, usage, now, finished=False)
        self._tell(Failed(now, flight.ticket, error, usage, flight.dispatched_at, flight.charge))
        await self._follow_feedback(now)
        return True

    async def cancel(self, ticket: Ticket, usage: Usage, now: float, reason: str = "cancelled") -> bool:
        """The client left: take the ticket out of the line, or end its flight and charge what it used."""
        if await self._queue.remove(ticket.id):
            self._evict_waiting(ticket, reason, now)
            return True
        flight = await self._settle(ticket.id, usage, now)
        if flight is None:
            return False
        self._learn(flight.ticket, usage, now, finished=False)
        self._tell(Evicted(now, flight.ticket, reason, usage, flight.dispatched_at, flight.charge))
        await self._follow_feedback(now)
        return True

    async def expire(self, now: float) -> list[Ticket]:
        """Evict every waiting ticket whose request has expired; the driver tells their clients."""
        expired = await self._queue.reap(now)
        for ticket in expired:
            self._waits.observe(ticket.id, now)
            self._evict_waiting(ticket, "expired", now)
        return expired

    async def adopt(self, policy: Policy, change: PolicyChanged) -> None:
        """Let `policy` decide from here on, and tell `change`. `place_anew` then takes what waits along.

        Accounts go on if it names and prices what is in flight as the policy before did; else they begin anew.
        """
        inflight = [flight.ticket for flight in self._flights.values()]
        goes_on = bool(inflight) and prices_alike(policy, inflight)
        self._placing.use(policy)
        if not goes_on:
            await self._queue.restart_accounts()
        self._unplaced = deque(self._revisions.waiting())
        self._tell(change)

    async def place_anew(self, max_tickets: int) -> bool:
        """Place the next of those that waited when the policy was adopted; False once none is left to be placed."""
        num_left = max_tickets
        while self._unplaced and num_left > 0:
            num_left -= 1
            await self._move(self._unplaced.popleft())
        return bool(self._unplaced)

    def resumed(self, now: float) -> None:
        """The engines were away until now: that time says nothing of how fast they are."""
        self._throughput.observe(now, busy=False)
        self._promises.resumed(now)

    def use_bounds(self, bounds: Bounds) -> None:
        """Let others bound what may wait from here on; what waits already may stay."""
        self._bounds = bounds

    def take_shed(self) -> list[Ticket]:
        """Those evicted for others since this was last asked; the driver tells their clients."""
        shed, self._shed = self._shed, []
        return shed

    def close(self) -> None:
        """Reject all that comes from here on; what was admitted is still served."""
        self._open = False

    def _reject_beyond_bounds(self, request: Request, now: float) -> str | None:
        """The bound that is reached, if there might be somebody to shed for `request`; None if there is room."""
        reason = self._backlog.exceeds(self._bounds, request) if self._open else "shutting_down"
        if reason is None:
            return None
        admits = self._bounds.admits(request)
        helped = (
            reason in WHOLE_QUEUE and admits and self._shedding is not None and self._shedding.may_help(request)
        )
        if not helped:
            self._reject(request, reason, self.retry_after_seconds if admits else None, now)
        return reason

    def _reject_beyond_quota(self, request: Request, refusal: Refusal | None, now: float) -> None:
        if refusal is not None:
            seconds = refusal.retry_after_seconds
            retry_after = seconds if seconds is not None and seconds <= MAX_RETRY_AFTER_SECONDS else None
            self._reject(request, refusal.reason, retry_after, now, refusal.message)

    def _victims(self, newcomer: Ticket, crowded: str, now: float) -> list[Ticket]:
        """Those to evict so that `newcomer` has room; it is rejected if it is not worth that."""

        def enough(leaving: Sequence[Ticket]) -> bool:
            return self._backlog.fits(self._bounds, newcomer.request, leaving)

        victims = self._shedding.victims(newcomer, now, enough) if self._shedding else []
        if not victims:
            self._reject(newcomer.request, crowded, self.retry_after_seconds, now)
        return victims

    async def _make_room(self, victim: Ticket, now: float) -> None:
        if await self._queue.remove(victim.id):
            self._evict_waiting(victim, "shed", now)
            self._shed.append(victim)

    def _reject_unattainable(self, ticket: Ticket, load: Load, now: float) -> None:
        request = ticket.request
        left = request.expires_at - now
        too_long = self._waits.too_long(ticket, load, self._backlog.waiting_of(request.tenant), left)
        if too_long == 0:
            return
        # so long the line must drain before there is a point in coming back
        retry_after = max(1.0, too_long) if too_long <= MAX_RETRY_AFTER_SECONDS else None
        self._reject(request, "deadline_unattainable", retry_after, now)

    def _promise(self, request: Request, estimate: Estimate, now: float) -> Promise:
        promise = self._promises.make(request, estimate.expected_tokens, now)
        if promise is None:
            self._reject(request, "max_wait_unattainable", self.retry_after_seconds, now)
        return promise

    def _reject(
        self, request: Request, reason: str, retry_after_seconds: float | None, now: float, message: str = ""
    ) -> NoReturn:
        self._tell(Rejected(now, request, reason, retry_after_seconds))
        if message:
            raise RejectedError(reason, message, retry_after_seconds)
        retry = "Do not retry." if retry_after_seconds is None else "Retry later."
        raise RejectedError(reason, f"{_REJECTIONS[reason]} {retry}", retry_after_seconds)

    async def _settle(self, ticket_id: str, usage: Usage, now: float) -> _Flight | None:
        """End a flight at its actual price. None if it is not in flight, or somebody else has just ended it."""
        flight = self._flights.get(ticket_id)
        if flight is None:
            return None
        charge = self._placing.price(flight.ticket, usage)
        if not await self._queue.settle(ticket_id, charge, release=True):
            return None
        del self._flights[ticket_id]
        flight.charge = charge
        self._promises.ended(flight.ticket.estimate.expected_tokens, self._backlog.num_inflight, now)
        self._backlog.land(flight.ticket)
        self._throughput.observe(now, busy=True, tokens=usage.completion_tokens)
        return flight

    def _learn(self, ticket: Ticket, usage: Usage, now: float, *, finished: bool) -> None:
        for change in self._lessons.learn(ticket, usage, now, finished=finished):
            self._tell(change)

    async def _follow_feedback(self, now: float) -> None:
        """Predict and place anew the next few waiting tickets whose kind feedback has moved."""
        if not self._revisions.any_due:
            return
        moved: defaultdict[tuple[str, str], list[Ticket]] = defaultdict(list)
        for waiting in self._revisions.due():
            request = waiting.ticket.request
            try:
                if await self._rerank(waiting):
                    moved[request.model, request.category].append(waiting.ticket)
            except Exception:  # a plug-in that cannot rank it again: it keeps its place, and the others their turn
                _logger.exception("request %s keeps its place: it could not be ranked again", request.id)
                break  # one report at each settlement is enough
        for (model, category), tickets in moved.items():
            self._tell(Reranked(now, model, category, tuple(tickets)))

    async def _rerank(self, waiting: Waiting) -> bool:
        """Predict and place a waiting ticket again, under the load it was admitted at. False if it did not move."""
        ticket = waiting.ticket
        estimate = self._estimator.revise(ticket.request, ticket.estimate)
        rank, charge = self._placing.rank_and_charge(ticket.request, estimate, waiting.load)
        moves = (rank, charge) != (ticket.rank, ticket.charge)
        if moves and not await self._queue.rerank(ticket.id, rank, charge):
            return False
        if not self._revisions.holds(waiting):
            return False  # the queue suspended, and the ticket left meanwhile
        revised = replace(waiting.ticket, estimate=estimate, rank=rank, charge=charge)
        self._backlog.revise(waiting.ticket, revised)
        if self._shedding is not None:
            self._shedding.revise(revised)
        waiting.ticket = revised
        return moves

    async def _move(self, waiting: Waiting) -> None:
        """Place a waiting ticket as if the policy had been in force at its admission."""
        if not self._revisions.holds(waiting):
            return  # it left since the policy was adopted
        before = waiting.ticket
        try:
            after = self._placing.place(
                before.request, before.estimate, waiting.load, overdue_at=before.overdue_at, seq=before.seq
            )
            moved = await self._queue.move(after)
        except Exception:  # a plug-in that cannot place it: it keeps its place, and is served all the same
            _logger.exception("request %s keeps its place: the policy could not place it anew", before.id)
            return
        if moved and self._revisions.holds(waiting):  # else it left meanwhile, since the queue suspended
            after = replace(after, estimate=waiting.ticket.estimate)
            self._backlog.revise(waiting.ticket, after)
            waiting.ticket = after

    def _leave_line(self, ticket: Ticket) -> Ticket:
        """The ticket waits no longer. Returns it as it last stood."""
        ticket = self._revisions.leave(ticket)
        self._waits.leave(ticket.id)
        self._promises.leave(ticket.id)
        if self._shedding is not None:
            self._shedding.leave(ticket.id)
        self._backlog.leave(ticket)
        return ticket

    def _evict_waiting(self, ticket: Ticket, reason: str, now: float) -> None:
        ticket = self._leave_line(ticket)
        self._tell(Evicted(now, ticket, reason, Usage(), dispatched_at=None, charge=0.0))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # a listener's failure is its own: no account may depend on it
                _logger.exception("listener %r failed on %s", listener, type(event).__name__)


_REJECTIONS = {
    "queue_full": "The queue is full.",
    "tenant_queue_full": "Too many of your requests are waiting already.",
    "queue_bytes_full": "The memory set aside for requests that wait has no room for it.",
    "queue_tokens_full": "The queue is full.",
    "tenant_tokens_full": "Too much work of yours is waiting already.",
    "tenant_bytes_full": "The memory set aside for your requests that wait has no room for it.",
    "tier_queue_full": "The queue of its tier is full.",
    "tier_tokens_full": "The queue of its tier is full.",
    "tier_bytes_full": "The memory set aside for requests of its tier that wait has no room for it.",
    "max_wait_unattainable": "The request would wait for longer than anybody of its tier may.",
    "deadline_unattainable": "The request would wait for longer than it may.",
    "tenant_inflight_full": "As many of your requests as may be were served all the time.",
    "shutting_down": "The server is shutting down.",
}
