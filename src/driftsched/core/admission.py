"""Bounds on what may wait, checked before any work is spent on a request."""

from dataclasses import dataclass
from math import inf

from driftsched.core.model import Request, Tenant, Ticket, Tier


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait. A request that would exceed a bound is rejected, and costs nothing."""

    max_waiting: int = 10_000
    """Requests."""
    max_waiting_per_tenant: int = 10_000
    """Requests of one tenant."""
    max_waiting_bytes: int = 1 << 30
    """Payload bytes."""
    max_waiting_tokens: float = inf
    """Predicted completion tokens. Nothing is predicted before the bounds are checked: a request is rejected once
    so many wait, and the last one admitted may go beyond."""
    max_waiting_tokens_per_tenant: float = inf
    """The same of one tenant."""

    def admits(self, request: Request) -> bool:
        """Whether there is room for `request` while nothing else waits: else no retry will ever help it."""
        return request.payload_bytes <= self.max_waiting_bytes


class Backlog:
    """What waits and what is in flight, counted as tickets come and go."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.num_inflight = 0
        self.waiting_bytes = 0
        self.waiting_tokens = 0.0  # predicted completion tokens
        self._by_tenant: dict[str, _Waiting] = {}  # holds only tenants that wait
        self._by_band_and_tier: dict[tuple[int, Tier], _Waiting] = {}  # only of those that wait

    def waiting_of(self, tenant: Tenant) -> int:
        """Requests of one tenant that wait."""
        waiting = self._by_tenant.get(tenant.id)
        return waiting.number if waiting else 0

    def waiting_tokens_of(self, tenant: Tenant) -> float:
        """Predicted completion tokens of one tenant's requests that wait."""
        waiting = self._by_tenant.get(tenant.id)
        return waiting.tokens if waiting else 0.0

    def tokens_by_band_and_tier(self) -> dict[tuple[int, Tier], float]:
        """`waiting_tokens`, divided up."""
        return {place: waiting.tokens for place, waiting in self._by_band_and_tier.items()}

    def enter(self, ticket: Ticket) -> None:
        """The ticket starts to wait."""
        self.num_waiting += 1
        self.waiting_bytes += ticket.request.payload_bytes
        self.waiting_tokens += ticket.estimate.expected_tokens
        self._by_tenant.setdefault(ticket.request.tenant.id, _Waiting()).add(1, ticket.estimate.expected_tokens)
        self._by_band_and_tier.setdefault(_place(ticket), _Waiting()).add(1, ticket.estimate.expected_tokens)

    def leave(self, ticket: Ticket) -> None:
        """The ticket waits no longer."""
        self.num_waiting -= 1
        self.waiting_bytes -= ticket.request.payload_bytes
        # sums of floats do not cancel exactly: never below 0, and anew from what is certain when nothing waits
        rest = self.waiting_tokens - ticket.estimate.expected_tokens
        self.waiting_tokens = max(0.0, rest) if self.num_waiting else 0.0
        tenant = ticket.request.tenant.id
        self._by_tenant[tenant].add(-1, -ticket.estimate.expected_tokens)
        if self._by_tenant[tenant].number == 0:
            del self._by_tenant[tenant]
        self._by_band_and_tier[_place(ticket)].add(-1, -ticket.estimate.expected_tokens)
        if self._by_band_and_tier[_place(ticket)].number == 0:
            del self._by_band_and_tier[_place(ticket)]

    def revise(self, before: Ticket, after: Ticket) -> None:
        """The ticket still waits, with another estimate."""
        change = after.estimate.expected_tokens - before.estimate.expected_tokens
        self.waiting_tokens = max(0.0, self.waiting_tokens + change)
        self._by_tenant[before.request.tenant.id].add(0, change)
        self._by_band_and_tier[_place(before)].add(0, change)

    def exceeds(self, bounds: Bounds, request: Request) -> str | None:
        """The reason why `request` may not wait as well (see `events.Rejected.reason`); None if it may."""
        if self.num_waiting >= bounds.max_waiting:
            return "queue_full"
        if self.waiting_of(request.tenant) >= bounds.max_waiting_per_tenant:
            return "tenant_queue_full"
        if self.waiting_bytes + request.payload_bytes > bounds.max_waiting_bytes:
            return "queue_bytes_full"
        if self.waiting_tokens >= bounds.max_waiting_tokens:
            return "queue_tokens_full"
        if self.waiting_tokens_of(request.tenant) >= bounds.max_waiting_tokens_per_tenant:
            return "tenant_tokens_full"
        return None


class _Waiting:
    """The tickets of one tenant, or of one band and tier."""

    __slots__ = ("number", "tokens")

    def __init__(self) -> None:
        self.number = 0
        self.tokens = 0.0

    def add(self, number: int, tokens: float) -> None:
        self.number += number
        self.tokens = max(0.0, self.tokens + tokens)


def _place(ticket: Ticket) -> tuple[int, Tier]:
    return ticket.band, ticket.request.tier
