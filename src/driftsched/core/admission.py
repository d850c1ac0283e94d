"""Bounds on what may wait, checked before any work is spent on a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import TypeVar

from driftsched.core.model import Request, Tenant, Ticket, Tier

K = TypeVar("K")

WHOLE_QUEUE = ("queue_full", "queue_bytes_full", "queue_tokens_full")
"""The reasons that are of nobody's own making: another's leaving would help."""

NO_BOUND: Mapping[Tier, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait: in all, of one tenant, of one tier. Whoever would exceed one is rejected, at no cost."""

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
    max_waiting_bytes_per_tenant: float = inf
    """Payload bytes of one tenant."""
    max_waiting_per_tier: Mapping[Tier, float] = field(default_factory=lambda: NO_BOUND)
    """Requests served at a tier; a tier left out has no bound of its own. The next two as well."""
    max_waiting_tokens_per_tier: Mapping[Tier, float] = field(default_factory=lambda: NO_BOUND)
    max_waiting_bytes_per_tier: Mapping[Tier, float] = field(default_factory=lambda: NO_BOUND)

    def admits(self, request: Request) -> bool:
        """Whether there is room for `request` while nothing else waits: else no retry will ever help it."""
        of_tier = self.max_waiting_bytes_per_tier.get(request.tier, inf)
        return request.payload_bytes <= min(self.max_waiting_bytes, self.max_waiting_bytes_per_tenant, of_tier)


class Backlog:
    """What waits and what is in flight, counted as tickets come and go."""

    def __init__(self) -> None:
        self.num_inflight = 0
        self.inflight_tokens = 0.0
        """Prompt and predicted completion tokens of what is in flight."""
        self._all = Waiting()
        self._by_tenant: dict[str, Waiting] = {}  # holds only tenants that wait
        self._by_tier = {tier: Waiting() for tier in Tier}
        self._by_band_and_tier: dict[tuple[int, Tier], Waiting] = {}  # only of those that wait

    @property
    def num_waiting(self) -> int:
        return self._all.number

    @property
    def waiting_tokens(self) -> float:
        """Predicted completion tokens."""
        return self._all.tokens

    @property
    def waiting_bytes(self) -> int:
        return self._all.bytes

    def waiting_of(self, tenant: Tenant) -> int:
        """Requests of one tenant that wait."""
        return self._by_tenant.get(tenant.id, NOTHING).number

    def waiting_tokens_of(self, tenant: Tenant) -> float:
        """Predicted completion tokens of one tenant's requests that wait."""
        return self._by_tenant.get(tenant.id, NOTHING).tokens

    def tokens_by_band_and_tier(self) -> dict[tuple[int, Tier], float]:
        """`waiting_tokens`, divided up."""
        return {place: waiting.tokens for place, waiting in self._by_band_and_tier.items()}

    def enter(self, ticket: Ticket) -> None:
        """The ticket starts to wait."""
        request = ticket.request
        tokens, size = ticket.estimate.expected_tokens, request.payload_bytes
        self._all.add(1, tokens, size)
        self._by_tenant.setdefault(request.tenant.id, Waiting()).add(1, tokens, size)
        self._by_tier[request.tier].add(1, tokens, size)
        self._by_band_and_tier.setdefault(_place(ticket), Waiting()).add(1, tokens, size)

    def leave(self, ticket: Ticket) -> None:
        """The ticket waits no longer."""
        request = ticket.request
        tokens, size = -ticket.estimate.expected_tokens, -request.payload_bytes
        self._all.add(-1, tokens, size)
        self._by_tier[request.tier].add(-1, tokens, size)
        _leave(self._by_tenant, request.tenant.id, tokens, size)
        _leave(self._by_band_and_tier, _place(ticket), tokens, size)

    def revise(self, before: Ticket, after: Ticket) -> None:
        """The ticket still waits, with another estimate or in another band."""
        change = after.estimate.expected_tokens - before.estimate.expected_tokens
        request = before.request
        self._all.add(0, change, 0)
        self._by_tenant[request.tenant.id].add(0, change, 0)
        self._by_tier[request.tier].add(0, change, 0)
        if before.band == after.band:
            self._by_band_and_tier[_place(before)].add(0, change, 0)
        else:
            size = request.payload_bytes
            _leave(self._by_band_and_tier, _place(before), -before.estimate.expected_tokens, -size)
            entered = self._by_band_and_tier.setdefault(_place(after), Waiting())
            entered.add(1, after.estimate.expected_tokens, size)

    def depart(self, ticket: Ticket) -> None:
        """The ticket is in flight."""
        self.num_inflight += 1
        self.inflight_tokens += _total_tokens(ticket)

    def land(self, ticket: Ticket) -> None:
        """The ticket, as it was when it departed, is in flight no longer."""
        self.num_inflight -= 1
        rest = self.inflight_tokens - _total_tokens(ticket)
        self.inflight_tokens = max(0.0, rest) if self.num_inflight else 0.0  # sums of floats do not cancel exactly

    def exceeds(self, bounds: Bounds, request: Request) -> str | None:
        """The reason why `request` may not wait as well (see `events.Rejected.reason`); None if it may.

        What is of its tenant's own making comes first, then what is of its tier's.
        """
        return (
            self._exceeds_of_tenant(bounds, request)
            or self._exceeds_of_tier(bounds, request)
            or self._exceeds_of_all(bounds, request)
        )

    def fits(self, bounds: Bounds, request: Request, leaving: Sequence[Ticket]) -> bool:
        """Whether the whole queue has room for `request` once those `leaving` have left."""
        size = sum(ticket.request.payload_bytes for ticket in leaving)
        tokens = sum(ticket.estimate.expected_tokens for ticket in leaving)
        return (
            self._all.number - len(leaving) < bounds.max_waiting
            and self._all.bytes - size + request.payload_bytes <= bounds.max_waiting_bytes
            and self._all.tokens - tokens < bounds.max_waiting_tokens
        )

    def _exceeds_of_tenant(self, bounds: Bounds, request: Request) -> str | None:
        waiting = self._by_tenant.get(request.tenant.id, NOTHING)
        quota = request.tenant.quota
        if waiting.number >= bounds.max_waiting_per_tenant or (
            quota is not None and quota.max_waiting is not None and waiting.number >= quota.max_waiting
        ):
            return "tenant_queue_full"
        if waiting.bytes + request.payload_bytes > bounds.max_waiting_bytes_per_tenant:
            return "tenant_bytes_full"
        if waiting.tokens >= bounds.max_waiting_tokens_per_tenant:
            return "tenant_tokens_full"
        return None

    def _exceeds_of_tier(self, bounds: Bounds, request: Request) -> str | None:
        tier, waiting = request.tier, self._by_tier[request.tier]
        if waiting.number >= bounds.max_waiting_per_tier.get(tier, inf):
            return "tier_queue_full"
        if waiting.bytes + request.payload_bytes > bounds.max_waiting_bytes_per_tier.get(tier, inf):
            return "tier_bytes_full"
        if waiting.tokens >= bounds.max_waiting_tokens_per_tier.get(tier, inf):
            return "tier_tokens_full"
        return None

    def _exceeds_of_all(self, bounds: Bounds, request: Request) -> str | None:
        if self._all.number >= bounds.max_waiting:
            return "queue_full"
        if self._all.bytes + request.payload_bytes > bounds.max_waiting_bytes:
            return "queue_bytes_full"
        if self._all.tokens >= bounds.max_waiting_tokens:
            return "queue_tokens_full"
        return None


class Waiting:
    """Tickets that wait, added up."""

    __slots__ = ("bytes", "number", "tokens")

    def __init__(self) -> None:
        self.number = 0
        self.tokens = 0.0
        self.bytes = 0

    def add(self, number: int, tokens: float, size: int) -> None:
        self.number += number
        self.bytes += size
        # sums of floats do not cancel exactly: never below 0, and anew from what is certain when nothing waits
        self.tokens = max(0.0, self.tokens + tokens) if self.number else 0.0


NOTHING = Waiting()
"""What waits of those of whom nothing waits. Never added to."""


def _leave(table: dict[K, Waiting], key: K, tokens: float, size: int) -> None:
    waiting = table[key]
    waiting.add(-1, tokens, size)
    if waiting.number == 0:
        del table[key]


def _total_tokens(ticket: Ticket) -> float:
    return ticket.request.prompt_tokens + ticket.estimate.expected_tokens


def _place(ticket: Ticket) -> tuple[int, Tier]:
    return ticket.band, ticket.request.tier
