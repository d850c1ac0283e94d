"""Where requests of a tenant wait that has as many in line and at the engines as its quota allows.

They are held before the line, not in it: no slot is kept free for them, nobody waits behind them, and what the
scheduler measures and promises is of requests that could be served. As soon as one of the tenant's leaves, the one
that was held longest takes its place, and arrives in line then.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from math import inf

from driftsched.core.model import Request
from driftsched.core.protocols import Clock
from driftsched.core.scheduler import Scheduler


@dataclass(slots=True)
class _Account:
    max_inflight: int
    """As the last request of it says."""
    num_present: int = 0
    """In line or at the engines."""
    held: deque[asyncio.Future[None]] = field(default_factory=deque)

    def fill(self) -> None:
        """Give free places to those held longest."""
        while self.held and self.num_present < self.max_inflight:
            self.num_present += 1
            self.held.popleft().set_result(None)


class Places(dict[str, _Account]):
    """Of all accounts that have somebody present, by name. Several gateways may share them."""


class Holding:
    """Places of tenants with `max_inflight`. Those of one account share them."""

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        *,
        max_held: int,
        max_held_bytes: int,
        keep_alive_seconds: float | None = None,
        places: Places | None = None,
    ) -> None:
        """`max_held`: requests of one account that may be held, unless its `max_waiting` says another number.

        `max_held_bytes`: of the bodies of all that is held. `keep_alive_seconds`: how often whoever is held is
        given a sign of it; None: never.
        """
        self._scheduler = scheduler
        self._clock = clock
        self.max_held = max_held
        self.max_held_bytes = max_held_bytes
        self._keep_alive_seconds = keep_alive_seconds
        self._accounts = Places() if places is None else places
        self._ids: set[str] = set()
        self._bytes = 0

    @property
    def num_held(self) -> int:
        return len(self._ids)

    def holds(self, request_id: str) -> bool:
        return request_id in self._ids

    @asynccontextmanager
    async def place(
        self, request: Request, keep_alive: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[Request]:
        """Inside the block the request has a place; if it was held for it, it arrives at that instant.

        `keep_alive` is called from time to time while it is held, and may raise `ClientStalledError`.
        Raises `RejectedError`: at once if so many are held already, or when it expires.
        """
        quota = request.tenant.quota
        if quota is None or quota.max_inflight is None:
            yield request
            return
        account = self._accounts.setdefault(quota.account, _Account(quota.max_inflight))
        account.max_inflight = quota.max_inflight
        account.fill()  # the limit may have been raised
        if account.num_present < account.max_inflight:
            account.num_present += 1
        else:
            self._check_room(request, account, self.max_held if quota.max_waiting is None else quota.max_waiting)
            await self._hold(request, quota.account, account, keep_alive)
            request = replace(request, arrived_at=self._clock.now())
        try:
            yield request
        finally:
            self._leave(quota.account, account)

    def _check_room(self, request: Request, account: _Account, max_held: int) -> None:
        if len(account.held) >= max_held:
            self._scheduler.refuse(request, "tenant_queue_full", self._clock.now())
        if self._bytes + request.payload_bytes > self.max_held_bytes:
            self._scheduler.refuse(request, "queue_bytes_full", self._clock.now())

    async def _hold(
        self, request: Request, name: str, account: _Account, keep_alive: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Returns once the request has been given a place."""
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        account.held.append(given)
        self._ids.add(request.id)
        self._bytes += request.payload_bytes
        try:
            await self._given(given, request.expires_at, keep_alive)
        except BaseException:  # its client left, or does not read
            if given.done():
                self._leave(name, account)  # the place is another's
            else:
                account.held.remove(given)
            raise
        finally:
            self._ids.discard(request.id)
            self._bytes -= request.payload_bytes
        if not given.done():
            account.held.remove(given)
            self._scheduler.refuse(request, "tenant_inflight_full", self._clock.now())

    async def _given(
        self, given: asyncio.Future[None], expires_at: float, keep_alive: Callable[[], Awaitable[None]] | None
    ) -> None:
        """Returns once the place is given, or will not be in time."""
        pause = inf if keep_alive is None or self._keep_alive_seconds is None else self._keep_alive_seconds
        while not given.done() and (left := expires_at - self._clock.now()) > 0:
            wait = min(pause, left)
            await asyncio.wait((given,), timeout=wait if wait < inf else None)
            if keep_alive is not None and wait == pause and not given.done():
                await keep_alive()

    def _leave(self, name: str, account: _Account) -> None:
        account.num_present -= 1
        account.fill()
        if account.num_present == 0:
            del self._accounts[name]
