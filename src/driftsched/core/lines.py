"""The two-level order: flows by service, tickets by rank, plus the overdue index.

    pop     = the ticket longest overdue, else: best band, least served flow of it, smallest rank of that;
              but the smallest rank of the whole band if its ticket has a lead, and its flow is no further ahead
              of the least served waiting flow than that
    charge  = service[flow] += expected charge, at pop
    settle  = service[flow] += actual - expected
    lift    = a flow that starts waiting again begins at max(its service, floor), so that it can neither spend
              the past as credit nor be punished for it

The floor of a band is its virtual time, and never falls. When a flow starts waiting, the floor is raised to the
service of the least served flow that waits already; when the last waiting flow stops, to the service of that flow,
with the charge if it was popped. That is how start-time fair queueing keeps time, and the lift is that of the
virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).

Costs: push, pop, settle, rerank, move and remove are O(log n) amortised; memory is proportional to the tickets
waiting and in flight, plus the flows that are ahead of the floor. A flow at or below the floor needs no memory:
were it to return, it would be lifted to the floor anyway, so it is forgotten as soon as it neither waits nor flies.
"""

from dataclasses import replace
from math import inf, isfinite

from driftsched.core.heaps import LazyHeap
from driftsched.core.model import Ticket, Why

RankEntry = tuple[float, int, str]
"""(rank, seq, ticket id)"""
TimeEntry = tuple[float, int, str]
"""(instant, seq, ticket id)"""
FlowEntry = tuple[float, str]
"""(service, flow): flows of equal service take turns by name, as members of a Redis sorted set would."""


class _Flow:
    """One flow inside one band: what it was served so far, and its tickets."""

    __slots__ = ("entry", "name", "num_inflight", "num_waiting", "service", "tickets")

    def __init__(self, name: str, tickets: LazyHeap[RankEntry]) -> None:
        self.name = name
        self.service = 0.0
        self.tickets = tickets
        self.num_waiting = 0
        self.num_inflight = 0
        self.entry: FlowEntry | None = None  # the one that stands for it; all others of its name are dead

    @property
    def idle(self) -> bool:
        return self.num_waiting == 0 and self.num_inflight == 0

    def new_entry(self) -> FlowEntry:
        self.entry = (self.service, self.name)
        return self.entry


class _Place:
    """A waiting ticket, and the one entry that stands for it in its flow; reranking makes another."""

    __slots__ = ("entry", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.entry: RankEntry = (ticket.rank, ticket.seq, ticket.id)


class _Band:
    """The flows that compete with one another."""

    __slots__ = ("floor", "flows", "idle", "num_backlogged", "num_leading", "ranked", "waiting")

    def __init__(self, ranked: LazyHeap[RankEntry]) -> None:
        self.flows: dict[str, _Flow] = {}
        self.ranked = ranked  # the tickets that have a lead, of all flows
        self.num_leading = 0
        self.num_backlogged = 0
        self.floor = 0.0
        self.waiting: LazyHeap[FlowEntry] = LazyHeap(self._is_backlogged)
        self.idle: LazyHeap[FlowEntry] = LazyHeap(self._is_idle)

    def _is_backlogged(self, entry: FlowEntry) -> bool:
        flow = self.flows.get(entry[1])
        return flow is not None and flow.entry is entry and flow.num_waiting > 0

    def _is_idle(self, entry: FlowEntry) -> bool:
        flow = self.flows.get(entry[1])
        return flow is not None and flow.entry is entry and flow.idle

    def least_served(self) -> _Flow | None:
        entry = self.waiting.first()
        return self.flows[entry[1]] if entry else None

    def raise_floor(self, service: float) -> None:
        """Let virtual time advance to `service`, and forget the idle flows it passed."""
        self.floor = max(self.floor, service)
        while (entry := self.idle.first()) and entry[0] <= self.floor:
            self._forget(entry[1])

    def start_waiting(self, name: str, tickets: LazyHeap[RankEntry]) -> _Flow:
        """Lift the flow called `name`, which has no waiting ticket yet; `tickets` will hold those of a new flow."""
        if first := self.least_served():
            self.raise_floor(first.service)
        flow = self.flows.get(name)  # looked up only now: raising the floor may have forgotten it
        if flow is None:
            flow = self.flows[name] = _Flow(name, tickets)
        flow.service = max(flow.service, self.floor)
        self.num_backlogged += 1
        self.waiting.push(flow.new_entry())
        self.idle.sweep(len(self.flows))  # it may have been idle: its entry there is dead now
        return flow

    def stop_waiting(self, flow: _Flow) -> None:
        """`flow` has no waiting ticket left."""
        self.num_backlogged -= 1
        self.waiting.sweep(self.num_backlogged)
        if self.num_backlogged == 0:
            self.raise_floor(flow.service)
        self.forget_if_spent(flow)

    def add_service(self, flow: _Flow, amount: float) -> None:
        if amount == 0.0:
            return
        flow.service += amount
        if flow.num_waiting:
            self.waiting.push(flow.new_entry())
            self.waiting.sweep(self.num_backlogged)

    def restart(self) -> None:
        """No flow has been served anything yet. Those that neither wait nor fly are forgotten."""
        self.floor = 0.0
        self.flows = {name: flow for name, flow in self.flows.items() if not flow.idle}
        self.waiting = LazyHeap(self._is_backlogged)
        self.idle = LazyHeap(self._is_idle)
        for flow in self.flows.values():
            flow.service = 0.0
            if flow.num_waiting > 0:
                self.waiting.push(flow.new_entry())

    def forget_if_spent(self, flow: _Flow) -> None:
        """Drop an idle flow that the floor has passed; remember the others until it has."""
        if not flow.idle:
            return
        if flow.service <= self.floor:
            self._forget(flow.name)
        else:
            self.idle.push(flow.new_entry())

    def _forget(self, name: str) -> None:
        del self.flows[name]
        self.idle.sweep(len(self.flows))


class Lines:
    """All waiting tickets in order, and what each ticket in flight was charged. Not safe for several threads."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Place] = {}
        # band, flow, charge so far (None if the accounts were restarted since), why it flies
        self._inflight: dict[str, tuple[_Band, _Flow, float | None, Why]] = {}
        self._bands: dict[int, _Band] = {}
        self._band_numbers: list[int] = []  # sorted; policies use a handful
        self._overdue: LazyHeap[TimeEntry] = LazyHeap(self._still_waits)
        self._expiring: LazyHeap[TimeEntry] = LazyHeap(self._still_waits)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_inflight(self) -> int:
        return len(self._inflight)

    def service(self, band: int, flow: str) -> float:
        """Weighted tokens served to a flow, in flight included at their expected price; 0 for a flow not known."""
        known = self._bands[band].flows.get(flow) if band in self._bands else None
        return known.service if known else 0.0

    def push(self, ticket: Ticket) -> None:
        """Let `ticket` wait. Raises `ValueError` for an id in use, or a rank or charge no order can hold,
        and `TypeError` for a band that is no int or a flow that is no str.

        Its `seq` must be new as well: it tells the ticket from an earlier one with the same id.
        """
        if ticket.id in self._waiting or ticket.id in self._inflight:
            raise ValueError(f"ticket id {ticket.id!r} is in use")
        _check_place(ticket)
        self._enter_flow(ticket)
        if ticket.overdue_at < inf:
            self._overdue.push((ticket.overdue_at, ticket.seq, ticket.id))
        if ticket.request.expires_at < inf:
            self._expiring.push((ticket.request.expires_at, ticket.seq, ticket.id))

    def pop(self, now: float) -> Ticket | None:
        """Take the next ticket into flight and charge its flow; None if nothing waits."""
        overdue = self._longest_overdue(now)
        ticket = overdue or self._first_in_order()
        if ticket is None:
            return None
        band = self._bands[ticket.band]
        flow = band.flows[ticket.flow]
        why: Why = "overdue" if overdue else self._why_first(band, flow)
        flow.num_inflight += 1  # before it stops waiting, so that the flow is not taken for idle
        self._inflight[ticket.id] = (band, flow, ticket.charge, why)
        self._leave(ticket)
        band.add_service(flow, ticket.charge)
        if band.num_backlogged == 0:
            band.raise_floor(flow.service)
        return ticket

    def why(self, ticket_id: str) -> Why | None:
        """Why a ticket in flight was popped when it was; None if it does not fly."""
        entry = self._inflight.get(ticket_id)
        return entry[3] if entry else None

    def settle(self, ticket_id: str, charge: float, *, release: bool) -> bool:
        """Correct the charge of a ticket in flight; with `release` its flight ends. False if it does not fly."""
        entry = self._inflight.get(ticket_id)
        if entry is None:
            return False
        _check_numbers(0.0, charge)
        band, flow, charged, why = entry
        if release:
            del self._inflight[ticket_id]
            flow.num_inflight -= 1
        else:
            self._inflight[ticket_id] = (band, flow, None if charged is None else charge, why)
        if charged is not None:
            band.add_service(flow, charge - charged)
        band.forget_if_spent(flow)
        return True

    def rerank(self, ticket_id: str, rank: float, charge: float) -> bool:
        """Give a waiting ticket a new rank and expected charge. False if it does not wait."""
        place = self._waiting.get(ticket_id)
        if place is None:
            return False
        _check_numbers(rank, charge)
        ticket = replace(place.ticket, rank=rank, charge=charge)
        place = self._waiting[ticket_id] = _Place(ticket)
        band = self._bands[ticket.band]
        flow = band.flows[ticket.flow]
        flow.tickets.push(place.entry)
        flow.tickets.sweep(flow.num_waiting)
        if ticket.lead:
            band.ranked.push(place.entry)
            band.ranked.sweep(band.num_leading)
        return True

    def move(self, ticket: Ticket) -> bool:
        """Put a waiting ticket where `ticket`, the same one placed anew, says. False if it does not wait.

        Nothing but band, flow, rank, charge and lead may have changed. Raises as `push` does, with nothing done.
        """
        place = self._waiting.get(ticket.id)
        if place is None:
            return False
        before = place.ticket
        if (ticket.band, ticket.flow, ticket.lead) == (before.band, before.flow, before.lead):
            return self.rerank(ticket.id, ticket.rank, ticket.charge)
        _check_place(ticket)
        self._leave_flow(before)
        self._enter_flow(ticket)  # its instants are those of before, and so are their entries
        return True

    def restart_accounts(self) -> None:
        """Let every flow begin anew, as if nobody had been served: what follows is priced otherwise.

        What is in flight is charged no more, since its prices are those of before. O(flows and tickets in flight).
        """
        for band in self._bands.values():
            band.restart()
        self._inflight = {
            ticket_id: (band, flow, None, why) for ticket_id, (band, flow, _, why) in self._inflight.items()
        }

    def remove(self, ticket_id: str) -> Ticket | None:
        """Take a waiting ticket out, uncharged; None if it does not wait."""
        place = self._waiting.get(ticket_id)
        if place is None:
            return None
        self._leave(place.ticket)
        return place.ticket

    def expire(self, now: float) -> list[Ticket]:
        """Take out every waiting ticket whose request has expired by `now`, earliest first."""
        expired = []
        while (entry := self._expiring.first()) and entry[0] <= now:
            ticket = self._waiting[entry[2]].ticket
            self._leave(ticket)
            expired.append(ticket)
        return expired

    def _band(self, number: int) -> _Band:
        if number not in self._bands:
            self._bands[number] = _Band(LazyHeap(self._still_ranked))
            self._band_numbers = sorted(self._bands)
        return self._bands[number]

    def _longest_overdue(self, now: float) -> Ticket | None:
        entry = self._overdue.first()
        return self._waiting[entry[2]].ticket if entry and entry[0] <= now else None

    def _first_in_order(self) -> Ticket | None:
        for number in self._band_numbers:
            band = self._bands[number]
            if least := band.least_served():
                return self._first_within_lead(band, least) or self._first_of(least)
        return None

    def _first_within_lead(self, band: _Band, least: _Flow) -> Ticket | None:
        """The first of the band by rank, if its flow may be as far ahead of the `least` served one as it is."""
        entry = band.ranked.first()
        if entry is None:
            return None
        ticket = self._waiting[entry[2]].ticket
        return ticket if band.flows[ticket.flow].service - least.service <= ticket.lead else None

    def _why_first(self, band: _Band, flow: _Flow) -> Why:
        """Why the first of `flow` is the first of all; asked while it still waits."""
        if len(self._waiting) == 1:
            return "only_waiting"
        if band.num_backlogged > 1:
            return "least_served" if band.least_served() is flow else "lead"
        return "best_band" if flow.num_waiting == 1 else "smallest_rank"

    def _first_of(self, flow: _Flow) -> Ticket:
        entry = flow.tickets.first()
        assert entry is not None  # noqa: S101 - a flow is in the waiting heap only while a ticket of it waits
        return self._waiting[entry[2]].ticket

    def _enter_flow(self, ticket: Ticket) -> None:
        band = self._band(ticket.band)
        flow = band.flows.get(ticket.flow)
        if flow is None or flow.num_waiting == 0:
            flow = band.start_waiting(ticket.flow, LazyHeap(self._still_ranked))
        flow.num_waiting += 1
        place = self._waiting[ticket.id] = _Place(ticket)
        flow.tickets.push(place.entry)
        if ticket.lead:
            band.num_leading += 1
            band.ranked.push(place.entry)

    def _leave(self, ticket: Ticket) -> None:
        """`ticket` stops waiting; its heap entries are dead from here on."""
        self._leave_flow(ticket)
        self._overdue.sweep(len(self._waiting))
        self._expiring.sweep(len(self._waiting))

    def _leave_flow(self, ticket: Ticket) -> None:
        del self._waiting[ticket.id]
        band = self._bands[ticket.band]
        flow = band.flows[ticket.flow]
        flow.num_waiting -= 1
        flow.tickets.sweep(flow.num_waiting)
        if ticket.lead:
            band.num_leading -= 1
            band.ranked.sweep(band.num_leading)
        if flow.num_waiting == 0:
            band.stop_waiting(flow)

    def _still_waits(self, entry: TimeEntry) -> bool:
        place = self._waiting.get(entry[2])
        return place is not None and place.ticket.seq == entry[1]

    def _still_ranked(self, entry: RankEntry) -> bool:
        place = self._waiting.get(entry[2])
        return place is not None and place.entry is entry


def _check_place(ticket: Ticket) -> None:
    _check_names(ticket.band, ticket.flow)
    _check_numbers(ticket.rank, ticket.charge)
    _check_numbers(0.0, ticket.lead)


def _check_names(band: int, flow: str) -> None:
    """A policy may be a plug-in that nobody type-checked, and names of mixed types cannot be sorted."""
    if not isinstance(band, int):
        raise TypeError(f"band must be an int, not {band!r}")
    if not isinstance(flow, str):
        raise TypeError(f"flow must be a str, not {flow!r}")


def _check_numbers(rank: float, charge: float) -> None:
    if not isfinite(rank):
        raise ValueError(f"rank must be finite, not {rank}")
    if not (isfinite(charge) and charge >= 0):
        raise ValueError(f"charge must be finite and not negative, not {charge}")
