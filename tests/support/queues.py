"""What the tests of queues share: tickets in one line, and an order so plain that it can be checked by reading."""

from collections.abc import Iterator
from dataclasses import replace
from math import inf, isfinite
from typing import Protocol

from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Why
from driftsched.core.protocols import Queue
from driftsched.queues.memory import MemoryQueue

_TENANT = Tenant("tenant")
_ESTIMATE = Estimate(1.0, 1.0, 1.0, 1.0)


def ticket(
    ticket_id: str,
    *,
    seq: int,
    band: int = 0,
    flow: str = "flow",
    rank: float = 0.0,
    charge: float = 1.0,
    overdue_at: float = inf,
    expires_at: float = inf,
    lead: float = 0.0,
) -> Ticket:
    """A ticket of which only its place matters."""
    request = Request(ticket_id, _TENANT, Tier.STANDARD, "model", 0.0, expires_at=expires_at)
    return Ticket(request, _ESTIMATE, seq, band, flow, rank, charge, overdue_at, lead)


class ReferenceQueue:
    """The two-level order as its documentation puts it: plain tables, looked through anew for every answer."""

    def __init__(self, max_inflight: int) -> None:
        self.max_inflight = max_inflight
        self.waiting: list[Ticket] = []
        self.inflight: dict[str, tuple[Ticket, float | None]] = {}  # and what it was charged so far
        self.whys: dict[str, Why] = {}  # of all that ever flew
        self.services: dict[tuple[int, str], float] = {}  # of the flows that are remembered
        self.floors: dict[int, float] = {}

    def service(self, band: int, flow: str) -> float:
        return self.services.get((band, flow), 0.0)

    def find(self, ticket_id: str) -> Ticket | None:
        return next((waiting for waiting in self.waiting if waiting.id == ticket_id), None)

    def push(self, new: Ticket) -> None:
        if self.find(new.id) or new.id in self.inflight:
            raise ValueError(new.id)
        _check(new.rank, new.charge)
        if not any(_flow(waiting) == _flow(new) for waiting in self.waiting):
            rivals = [self.services[_flow(waiting)] for waiting in self.waiting if waiting.band == new.band]
            if rivals:
                self._raise_floor(new.band, min(rivals))
            self.services[_flow(new)] = max(self.service(*_flow(new)), self._floor(new.band))
        self.waiting.append(new)
        self._forget()

    def pop(self, now: float) -> Ticket | None:
        if len(self.inflight) >= self.max_inflight or not self.waiting:
            return None
        overdue = [waiting for waiting in self.waiting if waiting.overdue_at <= now]
        if overdue:
            chosen = min(overdue, key=lambda waiting: (waiting.overdue_at, waiting.seq))
        else:
            chosen = min(
                self.waiting,
                key=lambda waiting: (
                    waiting.band,
                    self.services[_flow(waiting)],
                    waiting.flow,
                    waiting.rank,
                    waiting.seq,
                ),
            )
            leading = [waiting for waiting in self.waiting if waiting.band == chosen.band and waiting.lead > 0]
            first = min(leading, key=lambda waiting: (waiting.rank, waiting.seq), default=chosen)
            if self.services[_flow(first)] - self.services[_flow(chosen)] <= first.lead:
                chosen = first
        self.whys[chosen.id] = self._why(chosen, is_overdue=bool(overdue))
        self.services[_flow(chosen)] += chosen.charge
        self.inflight[chosen.id] = (chosen, chosen.charge)
        self._leave(chosen)
        return chosen

    def why(self, ticket_id: str) -> Why | None:
        return self.whys[ticket_id] if ticket_id in self.inflight else None

    def _why(self, chosen: Ticket, *, is_overdue: bool) -> Why:
        flows = {_flow(waiting) for waiting in self.waiting if waiting.band == chosen.band}
        least = min(flows, key=lambda flow: (self.services[flow], flow[1]))
        ways: list[tuple[bool, Why]] = [
            (is_overdue, "overdue"),
            (self.waiting == [chosen], "only_waiting"),
            ([w for w in self.waiting if w.band == chosen.band] == [chosen], "best_band"),
            (len(flows) == 1, "smallest_rank"),
            (least == _flow(chosen), "least_served"),
        ]
        return next((why for holds, why in ways if holds), "lead")

    def settle(self, ticket_id: str, charge: float, *, release: bool) -> bool:
        if ticket_id not in self.inflight:
            return False
        _check(0.0, charge)
        settled, charged = self.inflight[ticket_id]
        if charged is not None:
            self.services[_flow(settled)] += charge - charged
        if release:
            del self.inflight[ticket_id]
        else:
            self.inflight[ticket_id] = (settled, None if charged is None else charge)
        self._forget()
        return True

    def rerank(self, ticket_id: str, rank: float, charge: float) -> bool:
        found = self.find(ticket_id)
        if found is None:
            return False
        _check(rank, charge)
        self.waiting[self.waiting.index(found)] = replace(found, rank=rank, charge=charge)
        return True

    def move(self, ticket: Ticket) -> bool:
        found = self.find(ticket.id)
        if found is None:
            return False
        _check(ticket.rank, ticket.charge)
        _check(0.0, ticket.lead)
        if (*_flow(found), found.lead) == (*_flow(ticket), ticket.lead):
            return self.rerank(ticket.id, ticket.rank, ticket.charge)
        self._leave(found)
        self.push(ticket)
        return True

    def restart_accounts(self) -> None:
        self.services = dict.fromkeys(self.services, 0.0)
        self.floors = {}
        self.inflight = {ticket_id: (flying, None) for ticket_id, (flying, _) in self.inflight.items()}
        self._forget()

    def remove(self, ticket_id: str) -> bool:
        found = self.find(ticket_id)
        if found is None:
            return False
        self._leave(found)
        return True

    def reap(self, now: float) -> list[Ticket]:
        expired = [waiting for waiting in self.waiting if waiting.request.expires_at <= now]
        expired.sort(key=lambda waiting: (waiting.request.expires_at, waiting.seq))
        for waiting in expired:
            self._leave(waiting)
        return expired

    def resize(self, max_inflight: int) -> None:
        self.max_inflight = max_inflight

    def _leave(self, gone: Ticket) -> None:
        self.waiting.remove(gone)
        if not any(waiting.band == gone.band for waiting in self.waiting):
            self._raise_floor(gone.band, self.services[_flow(gone)])
        self._forget()

    def _floor(self, band: int) -> float:
        return self.floors.get(band, 0.0)

    def _raise_floor(self, band: int, service: float) -> None:
        self.floors[band] = max(self._floor(band), service)

    def _forget(self) -> None:
        alive = {_flow(waiting) for waiting in self.waiting} | {
            _flow(flying) for flying, _ in self.inflight.values()
        }
        self.services = {
            flow: service
            for flow, service in self.services.items()
            if flow in alive or service > self._floor(flow[0])
        }


def _flow(of: Ticket) -> tuple[int, str]:
    return of.band, of.flow


def _check(rank: float, charge: float) -> None:
    if not (isfinite(rank) and isfinite(charge) and charge >= 0):
        raise ValueError((rank, charge))


def entries_held(queue: MemoryQueue) -> Iterator[tuple[int, int]]:
    """Of every heap of the queue: entries held, and how many things they stand for."""
    lines = queue._lines
    yield len(lines._overdue), lines.num_waiting
    yield len(lines._expiring), lines.num_waiting
    for band in lines._bands.values():
        yield len(band.waiting), band.num_backlogged
        yield len(band.idle), len(band.flows)
        leading = sum(
            place.ticket.lead > 0 for place in lines._waiting.values() if lines._bands[place.ticket.band] is band
        )
        yield len(band.ranked), leading
        for flow in band.flows.values():
            yield len(flow.tickets), flow.num_waiting


def flows_remembered(queue: MemoryQueue) -> int:
    return sum(len(band.flows) for band in queue._lines._bands.values())


def most_entries(living: int) -> int:
    """What a heap may hold for so many living, the dead included."""
    return 3 * living + 24


class Accounts(Queue, Protocol):
    """A queue that also tells what it holds, which only tests and operators ask."""

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_inflight(self) -> int: ...

    def service(self, band: int, flow: str) -> float: ...
