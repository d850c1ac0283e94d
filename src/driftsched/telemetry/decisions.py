"""A record of what was decided about each request: what was expected of it, where it was placed, why it was served.

The records of those alive and of the last that ended are held in memory; older ones are forgotten. No text of any
request is in them. A request costs 4 to 8 microseconds, all its events together, and its record 1.2 kB: see
benchmarks/decisions.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

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
from driftsched.core.model import Load, Ticket, Tier, Usage, Why
from driftsched.core.overtaking import Overtaking
from driftsched.core.waits import Eta

MAX_ENDED = 10_000

T = TypeVar("T")


class Place(NamedTuple):
    """Where a ticket stood."""

    policy: str
    band: int
    flow: str
    rank: float
    charge: float
    predicted_tokens: float


@dataclass(slots=True, eq=False)
class Decision:
    """What was decided about one admitted request, as far as it has come. Instants are the scheduler's."""

    id: str
    tenant: str
    tier: Tier
    """What it is served at."""
    model: str
    category: str
    prompt_tokens: int
    """As estimated; as the engine counted once it has ended."""
    max_tokens: int | None
    arrived_at: float

    predicted_tokens: float
    q50: float
    q80: float
    q90: float
    policy: str
    """The one in force at its admission, which placed it."""
    band: int
    flow: str
    rank: float
    charge: float
    """What serving it was expected to cost, in weighted tokens."""
    position: int
    """Tickets waiting at its admission, itself included."""
    found: Load | None
    """The load at its admission, itself not included."""
    eta: Eta | None
    """When it would be dispatched, as forecast at its admission."""

    number: int
    """That of `Overtaking`; -1 once it waits no longer."""
    num_reranks: int = 0
    """Times that feedback placed it anew while it waited."""
    last: Place | None = None
    """Where it stood when it was dispatched, or when feedback last placed it anew; None before either."""
    dispatched_at: float | None = None
    why: Why | None = None
    overtook: int = 0
    """Requests admitted before it that still waited when it was dispatched."""
    overtaken: int = 0
    """Requests admitted after it that were dispatched while it waited; known once it waits no longer."""
    first_token_at: float | None = None
    ended_at: float | None = None
    outcome: str = ""
    """`finished`, `evicted` or `failed`; empty while it is alive."""
    reason: str = ""
    """The finish reason of what finished; else why it did not."""
    completion_tokens: int = 0
    paid: float = 0.0
    """What its flow was charged in the end."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was never given a place."""

    id: str
    tenant: str
    tier: Tier
    model: str
    arrived_at: float
    ended_at: float
    reason: str
    retry_after_seconds: float | None


class Decisions:
    """A listener that keeps the records. It must hear the scheduler from the first request on.

    The queue must not suspend, as the memory queue does not: else a dispatch could be told before its admission.
    """

    def __init__(self, policy: str, max_ended: int = MAX_ENDED) -> None:
        """`policy`: the one in force at the start.

        `max_ended`, > 0: records kept of what ended, and as many of what was rejected; the latest.
        """
        self.policy = policy
        self._alive: dict[str, Decision] = {}
        self._ended: dict[str, Decision] = {}  # in order of their ends, as the next
        self._refused: dict[str, Refusal] = {}
        self._max_ended = max_ended
        self._overtaking = Overtaking()
        self._by_type: dict[type[Event], Callable[..., None]] = {
            Admitted: self._on_admitted,
            Rejected: self._on_rejected,
            Reranked: self._on_reranked,
            Dispatched: self._on_dispatched,
            FirstToken: self._on_first_token,
            Finished: self._on_finished,
            Evicted: self._on_evicted,
            Failed: self._on_failed,
            PolicyChanged: self._on_policy_changed,
        }

    def __call__(self, event: Event) -> None:
        handle = self._by_type.get(type(event))
        if handle is not None:
            handle(event)

    @property
    def alive(self) -> Iterator[Decision]:
        """What waits or is in flight, in order of admission."""
        return iter(self._alive.values())

    def find(self, request_id: str) -> Decision | Refusal | None:
        """The record of a request; None if it was forgotten, or never was. `overtaken` is that of this moment."""
        decision = self._alive.get(request_id)
        if decision is None:
            return self._ended.get(request_id) or self._refused.get(request_id)
        if decision.number >= 0:
            decision.overtaken = self._overtaking.counts(decision.number)[1]
        return decision

    def ended(self, request_id: str) -> Decision | None:
        """The record of a request that was admitted and has ended."""
        return self._ended.get(request_id)

    def _on_admitted(self, event: Admitted) -> None:
        ticket = event.ticket
        request, estimate = ticket.request, ticket.estimate
        self._alive[request.id] = Decision(
            request.id,
            request.tenant.id,
            request.tier,
            request.model,
            request.category,
            request.prompt_tokens,
            request.max_tokens,
            request.arrived_at,
            estimate.completion_tokens,
            estimate.q50,
            estimate.q80,
            estimate.q90,
            self.policy,
            ticket.band,
            ticket.flow,
            ticket.rank,
            ticket.charge,
            event.position,
            event.load,
            event.eta,
            self._overtaking.enter(),
        )

    def _on_rejected(self, event: Rejected) -> None:
        request = event.request
        refusal = Refusal(
            request.id,
            request.tenant.id,
            request.tier,
            request.model,
            request.arrived_at,
            event.at,
            event.reason,
            event.retry_after_seconds,
        )
        _keep(self._refused, refusal.id, refusal, self._max_ended)

    def _on_reranked(self, event: Reranked) -> None:
        for ticket in event.tickets:
            decision = self._alive.get(ticket.id)
            if decision is not None:
                decision.num_reranks += 1
                decision.last = self._place_of(ticket)

    def _on_dispatched(self, event: Dispatched) -> None:
        decision = self._alive.get(event.ticket.request.id)
        if decision is None:
            return
        decision.dispatched_at = event.at
        decision.why = event.why
        decision.last = self._place_of(event.ticket)  # another policy may have moved it meanwhile
        decision.overtook, decision.overtaken = self._overtaking.dispatch(decision.number)
        decision.number = -1

    def _place_of(self, ticket: Ticket) -> Place:
        predicted = ticket.estimate.completion_tokens
        return Place(self.policy, ticket.band, ticket.flow, ticket.rank, ticket.charge, predicted)

    def _on_policy_changed(self, event: PolicyChanged) -> None:
        self.policy = event.after

    def _on_first_token(self, event: FirstToken) -> None:
        decision = self._alive.get(event.ticket.request.id)
        if decision is not None:
            decision.first_token_at = event.at

    def _on_finished(self, event: Finished) -> None:
        self._end(event.ticket.request.id, event.at, "finished", event.finish_reason, event.usage, event.charge)

    def _on_evicted(self, event: Evicted) -> None:
        self._end(event.ticket.request.id, event.at, "evicted", event.reason, event.usage, event.charge)

    def _on_failed(self, event: Failed) -> None:
        self._end(event.ticket.request.id, event.at, "failed", event.error, event.usage, event.charge)

    def _end(self, request_id: str, at: float, outcome: str, reason: str, usage: Usage, charge: float) -> None:
        decision = self._alive.pop(request_id, None)
        if decision is None:
            return
        if decision.number >= 0:
            decision.overtaken = self._overtaking.give_up(decision.number)
            decision.number = -1
        decision.ended_at = at
        decision.outcome = outcome
        decision.reason = reason
        decision.prompt_tokens = usage.prompt_tokens or decision.prompt_tokens
        decision.completion_tokens = usage.completion_tokens
        decision.paid = charge
        _keep(self._ended, request_id, decision, self._max_ended)


def _keep(records: dict[str, T], request_id: str, record: T, max_records: int) -> None:
    records[request_id] = record
    if len(records) > max_records:
        del records[next(iter(records))]


def document(record: Decision | Refusal, age_seconds: float, now: float) -> dict[str, object]:
    """What an operator reads. `age_seconds`: since its arrival; `now`: seconds since 1970 UTC.

    Durations count from the arrival; what has not come to pass is None.
    """
    head: dict[str, object] = {
        "object": "request.decision",
        "id": record.id,
        "tenant": record.tenant,
        "tier": record.tier.label,
        "model": record.model,
        "arrived_at": round(now - age_seconds, 3),
    }
    if isinstance(record, Refusal):
        return head | {
            "status": "rejected",
            "reason": record.reason,
            "retry_after_seconds": record.retry_after_seconds,
            "ended_seconds": _since(record.arrived_at, record.ended_at),
        }
    return head | {
        "status": record.outcome or ("waiting" if record.dispatched_at is None else "running"),
        "reason": record.reason or None,
        "category": record.category,
        "prompt_tokens": record.prompt_tokens,
        "max_tokens": record.max_tokens,
        "predicted": {
            "completion_tokens": record.predicted_tokens,
            "q50": round(record.q50, 1),
            "q80": round(record.q80, 1),
            "q90": round(record.q90, 1),
        },
        "placed": {
            "policy": record.policy,
            "band": record.band,
            "flow": record.flow,
            "rank": record.rank,
            "charge": record.charge,
        },
        "found": _found(record),
        "reranked": record.num_reranks,
        "placed_last": record.last._asdict() if record.last else None,
        "overtaken": record.overtaken,
        "served": None
        if record.dispatched_at is None
        else {
            "because": record.why,
            "queue_seconds": _since(record.arrived_at, record.dispatched_at),
            "overtook": record.overtook,
        },
        "first_token_seconds": _since(record.arrived_at, record.first_token_at),
        "ended_seconds": _since(record.arrived_at, record.ended_at),
        "used": {"completion_tokens": record.completion_tokens, "charge": record.paid} if record.outcome else None,
    }


def _found(record: Decision) -> dict[str, object]:
    load, eta = record.found, record.eta
    found: dict[str, object] = {"position": record.position}
    if load is not None:
        found |= {
            "num_waiting": load.num_waiting,
            "num_inflight": load.num_inflight,
            "waiting_tokens": round(load.waiting_tokens, 1),
            "tokens_per_second": round(load.tokens_per_second, 1),
            "drain_seconds": round(load.drain_seconds, 3),
        }
    return found | {
        "eta_seconds": round(eta.seconds, 3) if eta else None,
        "eta_low_seconds": round(eta.low, 3) if eta else None,
        "eta_high_seconds": round(eta.high, 3) if eta else None,
    }


def _since(arrived_at: float, at: float | None) -> float | None:
    return None if at is None else round(at - arrived_at, 6)
