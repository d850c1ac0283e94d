"""Where a request is: waiting, running or done; told to nobody but its own tenant."""

from collections.abc import Iterator
from contextlib import contextmanager

from driftsched.core.model import Request, Tenant
from driftsched.core.protocols import Clock
from driftsched.core.scheduler import Scheduler
from driftsched.gateway.holding import Holding

MAX_DONE = 10_000
"""Requests remembered after their end; the oldest are forgotten first."""

_Name = tuple[str, bytes]
"""(tenant, `x-request-id` as the client knows it)"""


class Whereabouts:
    """The requests of late, by the id that their client knows. Of two that are alive with one id, the later."""

    def __init__(self, scheduler: Scheduler, clock: Clock, holding: Holding | None = None) -> None:
        self._scheduler = scheduler
        self._holding = holding
        self._clock = clock
        self._alive: dict[_Name, Request] = {}
        self._done: dict[_Name, str] = {}  # our id, in order of their ends

    @contextmanager
    def following(self, request: Request, public_id: bytes) -> Iterator[None]:
        """Inside the block the request is alive, after it, it is done, however that came."""
        name = (request.tenant.id, public_id)
        self._alive[name] = request
        try:
            yield
        finally:
            if self._alive.get(name) is request:
                del self._alive[name]
                self._remember(name, request.id)

    def find(self, tenant: Tenant, public_id: bytes) -> dict[str, object] | None:
        """What the client is told of its request; None if the tenant has none of this id."""
        name = (tenant.id, public_id)
        request = self._alive.get(name)
        if request is not None:
            return self._held(request) or self._waiting(request) or {"status": "running"}
        return {"status": "done"} if name in self._done else None

    def own_id(self, public_id: bytes) -> str | None:
        """Our id of a request of any tenant: the latest alive, else the latest done. O(n), for operators."""
        alive = (request.id for (_, name), request in reversed(self._alive.items()) if name == public_id)
        done = (own_id for (_, name), own_id in reversed(self._done.items()) if name == public_id)
        return next(alive, None) or next(done, None)

    def _held(self, request: Request) -> dict[str, object] | None:
        if self._holding is None or not self._holding.holds(request.id):
            return None
        return {"status": "held", "waited_seconds": round(self._clock.now() - request.arrived_at, 3)}

    def _waiting(self, request: Request) -> dict[str, object] | None:
        position = self._scheduler.position_of(request.id)
        if position is None:
            return None
        now = self._clock.now()
        eta = self._scheduler.eta_of(request.id, now)
        return {
            "status": "waiting",
            "position": position,
            "waited_seconds": round(now - request.arrived_at, 3),
            "eta_seconds": round(eta.seconds, 3) if eta else None,
            "eta_low_seconds": round(eta.low, 3) if eta else None,
            "eta_high_seconds": round(eta.high, 3) if eta else None,
        }

    def _remember(self, name: _Name, own_id: str) -> None:
        self._done.pop(name, None)
        self._done[name] = own_id
        if len(self._done) > MAX_DONE:
            del self._done[next(iter(self._done))]
