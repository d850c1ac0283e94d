"""Where requests wait for their turn: the scheduler's decisions, turned into tasks that go on."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from math import inf
from time import monotonic

from driftsched.core.errors import EngineError
from driftsched.core.events import PolicyChanged
from driftsched.core.model import Request, Ticket, Usage
from driftsched.core.protocols import Chunk, Clock, Engine, Policy, Prioritising
from driftsched.core.scheduler import Scheduler
from driftsched.core.urgency import urgency
from driftsched.gateway.errors import ClientStalledError, ExpiredError, ShedError

PROGRESS_TOKENS = 64
"""How many tokens an answer grows by between two part-way settlements."""

PLACED_AT_ONCE = 64
"""Waiting tickets placed anew between two looks at whatever else there is to do: one to two milliseconds."""


class MonotonicClock:
    """Seconds of this process."""

    def now(self) -> float:
        return monotonic()


class Turn:
    """A request that was dispatched, until its account is settled.

    Whoever holds the turn reads `answer()`; what passes by is counted here, so that the account is right however
    the reading ends.
    """

    def __init__(
        self, ticket: Ticket, scheduler: Scheduler, engine: Engine, clock: Clock, *, prioritises: bool = False
    ) -> None:
        """Made at admission, before anybody else is admitted. `prioritises`: the engine is told its urgency."""
        self.ticket = ticket
        self.position = scheduler.num_waiting
        self.eta = scheduler.eta_of(ticket.id, ticket.request.arrived_at)
        self.dispatched_at: float | None = None
        self.milestone = inf  # see `Scheduler.milestone`
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self._reported: Usage | None = None
        self._scheduler = scheduler
        self._engine = engine
        self._clock = clock
        self._prioritises = prioritises

    @property
    def usage(self) -> Usage:
        """What the engine stated, else what was counted."""
        return self._reported or Usage(self.ticket.request.prompt_tokens, self.completion_tokens)

    @property
    def queue_seconds(self) -> float | None:
        """None while it waits."""
        return None if self.dispatched_at is None else self.dispatched_at - self.ticket.request.arrived_at

    async def answer(self) -> AsyncGenerator[Chunk, None]:
        """The engine's answer, piece by piece. Raises `EngineError`. To be read once."""
        report_at = 1.0
        request = self.ticket.request
        if self._prioritises and self.dispatched_at is not None:
            request = replace(request, urgency=urgency(self.ticket, self.dispatched_at))
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.begins_anew:  # what was lost is nobody's to pay
                    self._reported = self.finish_reason = None
                self.completion_tokens = chunk.completion_tokens
                self._reported = chunk.usage or self._reported
                self.finish_reason = chunk.finish_reason or self.finish_reason
                if chunk.completion_tokens >= report_at:
                    report_at = chunk.completion_tokens + PROGRESS_TOKENS
                    if chunk.completion_tokens < self.milestone < report_at:
                        report_at = self.milestone
                    counted = Usage(self.ticket.request.prompt_tokens, chunk.completion_tokens)
                    await self._scheduler.progress(self.ticket.id, counted, self._clock.now())
                yield chunk


class Dispatcher:
    """Parks each request until the scheduler calls it, and settles it exactly once."""

    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        clock: Clock,
        *,
        alarm_seconds: float = 0.25,
        keep_alive_seconds: float | None = None,
    ) -> None:
        """`alarm_seconds`: how often waiting requests are looked through for expired ones.

        `keep_alive_seconds`: how often whoever waits is given a sign of it; None: never.
        """
        self._scheduler = scheduler
        self._engine = engine
        self._prioritises = isinstance(engine, Prioritising) and engine.prioritises
        self._clock = clock
        self._alarm_seconds = alarm_seconds
        self._keep_alive_seconds = keep_alive_seconds
        # Instant and milestone of each dispatch, by ticket id: owned by the task in `turn` that waits for it.
        self._parked: dict[str, asyncio.Future[tuple[float, float]]] = {}
        self._lock = asyncio.Lock()
        self._alarm: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def turn(
        self,
        request: Request,
        client_left: Callable[[], bool],
        keep_alive: Callable[["Turn"], Awaitable[None]] | None = None,
    ) -> AsyncIterator[Turn]:
        """Wait in line; inside the block it is the request's turn; after it, its account is settled.

        `keep_alive` is called from time to time while it waits, and may raise `ClientStalledError`.
        If there is no turn it raises `RejectedError` at once, or `ExpiredError` or `ShedError` after a while. A
        cancellation settles the request as evicted: because the client left, if `client_left` then says so, else
        because the server stops. So does a `ClientStalledError` inside the block; any other exception there settles
        it as failed.
        """
        try:
            ticket = await self._scheduler.submit(request, self._clock.now())
        finally:
            self._send_away(self._scheduler.take_shed(), ShedError)
        turn = Turn(ticket, self._scheduler, self._engine, self._clock, prioritises=self._prioritises)
        try:
            turn.dispatched_at, turn.milestone = await self._called(turn, keep_alive)
            yield turn
        except EngineError as error:
            await self._scheduler.fail(ticket.id, turn.usage, error.kind, self._clock.now())
            raise
        except asyncio.CancelledError:
            reason = "cancelled" if client_left() else "shutting_down"
            await self._scheduler.cancel(ticket, turn.usage, self._clock.now(), reason)
            raise
        except ClientStalledError:
            await self._scheduler.cancel(ticket, turn.usage, self._clock.now())
            raise
        except (ExpiredError, ShedError):
            raise  # the scheduler, which sent it away, has told
        except Exception:
            await self._scheduler.fail(ticket.id, turn.usage, "internal_error", self._clock.now())
            raise
        else:
            await self._scheduler.finish(ticket.id, turn.usage, turn.finish_reason or "stop", self._clock.now())
        finally:
            await self.dispatch()

    async def dispatch(self) -> None:
        """Give every free slot to whoever is next."""
        async with self._lock:
            while ticket := await self._scheduler.dispatch(now := self._clock.now()):
                parked = self._parked.get(ticket.id)
                if parked is None or parked.done():  # it left between its call and this line
                    await self._scheduler.cancel(ticket, Usage(), self._clock.now())
                else:
                    parked.set_result((now, self._scheduler.milestone(ticket)))

    async def adopt(self, policy: Policy, change: PolicyChanged) -> None:
        """Let `policy` decide from here on, for what waits as well, a few tickets at a time."""
        async with self._lock:
            await self._scheduler.adopt(policy, change)
        any_left = True
        while any_left:
            async with self._lock:
                any_left = await self._scheduler.place_anew(PLACED_AT_ONCE)
            await asyncio.sleep(0)  # others may come, be served and leave meanwhile

    async def expire(self) -> None:
        """Send away every request that waited too long."""
        self._send_away(await self._scheduler.expire(self._clock.now()), ExpiredError)

    def start(self) -> None:
        """Set the alarm that looks for expired requests. Call inside a running loop, once."""
        self._alarm = asyncio.get_running_loop().create_task(self._ring())

    async def close(self) -> None:
        """Accept nothing more and stop the alarm; turns under way are their tasks' own."""
        self._scheduler.close()
        if self._alarm is not None:
            self._alarm.cancel()
            await asyncio.gather(self._alarm, return_exceptions=True)

    async def _called(
        self, turn: Turn, keep_alive: Callable[[Turn], Awaitable[None]] | None
    ) -> tuple[float, float]:
        """Wait until the ticket is dispatched, and say when that was, and its milestone.

        Raises `ExpiredError` or `ShedError`.
        """
        ticket = turn.ticket
        parked: asyncio.Future[tuple[float, float]] = asyncio.get_running_loop().create_future()
        self._parked[ticket.id] = parked
        try:
            await self.dispatch()
            if keep_alive is not None and self._keep_alive_seconds is not None:
                while not (await asyncio.wait((parked,), timeout=self._keep_alive_seconds))[0]:
                    await keep_alive(turn)
            return await parked
        finally:
            del self._parked[ticket.id]

    def _send_away(self, tickets: list[Ticket], error: type[Exception]) -> None:
        for ticket in tickets:
            parked = self._parked.get(ticket.id)
            if parked is not None and not parked.done():
                parked.set_exception(error())

    async def _ring(self) -> None:
        while True:
            await asyncio.sleep(self._alarm_seconds)
            await self.expire()
