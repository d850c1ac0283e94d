"""Whom to send away when the queue is full and somebody of better value comes.

Value is least where the tier is worst; among those of a tier, where the tenant has most predicted tokens waiting
for its weight, so that who fills the queue makes room in it; and of that tenant, the longest request, since it
makes the most room for one that is disappointed. A newcomer may displace what is of a worse tier, and of its own
tier what is of a tenant that even then has no less waiting for its weight than the newcomer's would. So every
exchange makes the line better or more even, and none can be undone by the next. Nobody goes that is overdue.
"""

from collections.abc import Callable, Sequence

from driftsched.core.heaps import LazyHeap
from driftsched.core.model import Request, Tenant, Ticket, Tier

MAX_SHED = 4
"""For one newcomer: a large one does not drive a crowd of small ones away."""

_TicketEntry = tuple[float, int, str]
"""(-predicted tokens, -seq, id): the longest first, and of equal ones the last that came"""
_TenantEntry = tuple[float, str]
"""(-tokens waiting / weight, tenant id)"""


class Shedding:
    """The waiting tickets, by value once that is asked for.

    As long as the queue is never full this is a dictionary. The first time it is, all that waits is sorted in, and
    the order is kept up until half of it has left. Every method is O(log n) amortised, `victims` `MAX_SHED` times
    that.
    """

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._num_sorted = 0  # tickets when they were sorted in; 0: they are not
        self._entries: dict[str, _TicketEntry] = {}  # the one that stands for the ticket; all others are dead
        self._tiers = self._empty_tiers()

    def enter(self, ticket: Ticket) -> None:
        """The ticket starts to wait."""
        self._tickets[ticket.id] = ticket
        if self._num_sorted:
            self._sort_in(ticket)

    def leave(self, ticket_id: str) -> None:
        """The ticket waits no longer, if it did."""
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is None or not self._num_sorted:
            return
        self._sort_out(ticket)
        if 2 * len(self._tickets) < self._num_sorted:
            self._num_sorted = 0
            self._entries.clear()
            self._tiers = self._empty_tiers()

    def revise(self, ticket: Ticket) -> None:
        """The ticket still waits, with another estimate."""
        self.leave(ticket.id)
        self.enter(ticket)

    def may_help(self, request: Request) -> bool:
        """Whether there is anybody at all that could be displaced for `request`, whatever is predicted for it."""
        self._sort()
        if any(self._tiers[tier].tenants for tier in Tier if tier > request.tier):
            return True
        own = self._tiers[request.tier]
        return own.most_waiting() > own.waiting_of(request.tenant)

    def victims(self, newcomer: Ticket, now: float, enough: Callable[[Sequence[Ticket]], bool]) -> list[Ticket]:
        """Those to be displaced for `newcomer`, least value first; none if it may not displace `enough`."""
        self._sort()
        chosen: list[Ticket] = []
        while not enough(chosen):
            victim = self._least(newcomer, now) if len(chosen) < MAX_SHED else None
            if victim is None:
                self._put_back(chosen)
                return []
            self._sort_out(victim)  # so that the next is chosen without it
            chosen.append(victim)
        self._put_back(chosen)
        return chosen

    def _sort(self) -> None:
        if not self._num_sorted:
            self._num_sorted = len(self._tickets)
            for ticket in self._tickets.values():
                self._sort_in(ticket)

    def _sort_in(self, ticket: Ticket) -> None:
        tokens = ticket.estimate.expected_tokens
        entry = self._entries[ticket.id] = (-tokens, -ticket.seq, ticket.id)
        self._tiers[ticket.request.tier].enter(ticket.request.tenant, tokens, entry)

    def _sort_out(self, ticket: Ticket) -> None:
        self._entries.pop(ticket.id, None)
        self._tiers[ticket.request.tier].leave(ticket.request.tenant, ticket.estimate.expected_tokens)

    def _empty_tiers(self) -> "dict[Tier, _Tier]":
        return {tier: _Tier(self._is_live) for tier in Tier}

    def _put_back(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self._sort_in(ticket)

    def _least(self, newcomer: Ticket, now: float) -> Ticket | None:
        request = newcomer.request
        for tier in reversed(Tier):
            if tier < request.tier:
                return None
            victim = self._least_of(self._tiers[tier], now)
            if victim is None:
                continue
            if tier > request.tier or self._evens_out(victim, newcomer):
                return victim
        return None

    def _least_of(self, tier: "_Tier", now: float) -> Ticket | None:
        while (tenant := tier.first()) is not None:
            entry = tenant.tickets.first()
            if entry is None:
                tenant.entry = None  # all that it has waiting is overdue
                continue
            ticket = self._tickets[entry[2]]
            if ticket.overdue_at > now:
                return ticket
            del self._entries[ticket.id]  # once overdue it stays so, and is looked at no more
        return None

    def _evens_out(self, victim: Ticket, newcomer: Ticket) -> bool:
        """After the exchange the victim's tenant still has no less waiting for its weight than the newcomer's."""
        theirs, ours = victim.request.tenant, newcomer.request.tenant
        if theirs.id == ours.id:
            return False
        tier = self._tiers[newcomer.request.tier]
        left = tier.waiting_of(theirs) - victim.estimate.expected_tokens / theirs.weight
        return left >= tier.waiting_of(ours) + newcomer.estimate.expected_tokens / ours.weight

    def _is_live(self, entry: _TicketEntry) -> bool:
        return self._entries.get(entry[2]) is entry


class _Tenant:
    """What one tenant has waiting at one tier."""

    __slots__ = ("entry", "number", "tickets", "tokens", "weight")

    def __init__(self, weight: float, tickets: LazyHeap[_TicketEntry]) -> None:
        self.tokens = 0.0
        self.number = 0
        self.weight = weight
        self.tickets = tickets
        self.entry: _TenantEntry | None = None  # says at least as much as waits, until it surfaces

    @property
    def waiting(self) -> float:
        return self.tokens / self.weight


class _Tier:
    """The tenants that wait at one tier, those with most waiting for their weight first."""

    def __init__(self, is_live: Callable[[_TicketEntry], bool]) -> None:
        self.tenants: dict[str, _Tenant] = {}
        self._is_live_ticket = is_live
        self._heap: LazyHeap[_TenantEntry] = LazyHeap(self._is_live)

    def enter(self, tenant: Tenant, tokens: float, entry: _TicketEntry) -> None:
        held = self.tenants.get(tenant.id)
        if held is None:
            held = self.tenants[tenant.id] = _Tenant(tenant.weight, LazyHeap(self._is_live_ticket))
        held.number += 1
        held.tokens += tokens
        held.tickets.push(entry)
        if held.entry is None or -held.entry[0] < held.waiting:
            self._stand(tenant.id, held)

    def leave(self, tenant: Tenant, tokens: float) -> None:
        held = self.tenants[tenant.id]
        held.number -= 1
        held.tokens = max(0.0, held.tokens - tokens)
        held.tickets.sweep(held.number)
        if held.number == 0:
            del self.tenants[tenant.id]
            self._heap.sweep(len(self.tenants))

    def waiting_of(self, tenant: Tenant) -> float:
        """Predicted tokens for its weight."""
        held = self.tenants.get(tenant.id)
        return held.waiting if held else 0.0

    def most_waiting(self) -> float:
        """The most that any tenant has waiting for its weight, of those that may have something to shed."""
        first = self.first()
        return first.waiting if first else 0.0

    def first(self) -> _Tenant | None:
        """The tenant with most waiting for its weight, of those that may have something to shed."""
        while (entry := self._heap.first()) is not None:
            held = self.tenants[entry[1]]
            if -entry[0] <= held.waiting:
                return held
            self._stand(entry[1], held)  # some of its tickets have left since
        return None

    def _stand(self, tenant_id: str, held: _Tenant) -> None:
        held.entry = (-held.waiting, tenant_id)
        self._heap.push(held.entry)
        self._heap.sweep(len(self.tenants))

    def _is_live(self, entry: _TenantEntry) -> bool:
        held = self.tenants.get(entry[1])
        return held is not None and held.entry is entry
