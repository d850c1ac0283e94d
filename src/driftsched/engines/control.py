"""Looks at every engine once a second, off the way of requests, and moves its limit by what it says."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from driftsched.core.errors import EngineError
from driftsched.core.limit import AdaptiveLimit, EngineState, Look, Promptness, Reason, Standing, Vitals

_logger = logging.getLogger(__name__)

SILENT_SECONDS = 30.0
"""Until an engine that says nothing of itself is asked again."""


class Observable(Protocol):
    """An engine that can be asked how it fares."""

    @property
    def name(self) -> str: ...

    async def vitals(self) -> Vitals | None:
        """None if it says nothing. Raises `EngineError` if it could not be asked."""
        ...


class Pool(Protocol):
    """What gives requests to the engines."""

    def inflight_of(self, name: str) -> int: ...
    def standing_of(self, name: str) -> Standing: ...
    def time_first_tokens(self, name: str, listener: Callable[[int, float], None]) -> None: ...


E_co = TypeVar("E_co", bound=Observable, covariant=True)


@dataclass(slots=True)
class Member(Generic[E_co]):
    """An engine that is looked after."""

    engine: E_co
    limit: int
    adaptive: AdaptiveLimit | None = None
    """None: the limit is the operator's."""
    scrape_seconds: float | None = 1.0
    """Between two looks, > 0; None: it is not looked at."""
    vitals: Vitals | None = None
    failed_scrapes: int = 0
    changes: Counter[Reason] = field(default_factory=Counter)
    promptness: Promptness | None = None
    """Kept only while nothing else tells whether the engine has a queue."""


class DispatchControl:
    """Keeps each engine about as full as its batch.

    An engine that cannot be asked, or answers with something else, is not thought to be busy: its limit stays.
    """

    def __init__(
        self,
        members: Iterable[Member[Observable]],
        pool: Pool,
        *,
        on_limit: Callable[[str, int], Awaitable[None]],
        waits: Callable[[], bool],
    ) -> None:
        """`on_limit(engine, limit)` is told of every change; `waits` says whether anything is to be dispatched."""
        self._members: dict[str, Member[Observable]] = {}
        self._pool = pool
        self._on_limit = on_limit
        self._waits = waits
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for member in members:
            self._take(member)

    def states(self) -> list[EngineState]:
        """Every engine as it was last seen."""
        return [
            EngineState(
                name,
                member.limit,
                self._pool.inflight_of(name),
                member.vitals,
                member.failed_scrapes,
                dict(member.changes),
                self._pool.standing_of(name),
            )
            for name, member in self._members.items()
        ]

    async def told(self, name: str, slots: int) -> None:
        """The engine called `name` said how many requests it serves at once: never more, where it may adapt."""
        member = self._members[name]
        if member.adaptive is None:
            return
        member.promptness = None  # it says what it can do: nothing need be concluded from how it does it
        member.adaptive.told(slots)
        await self._apply(member)

    def start(self) -> None:
        """Begin to look. Call inside a running loop, once."""
        for member in self._members.values():
            self._begin(member)

    def add(self, member: Member[Observable]) -> None:
        """Look after one more engine, which the pool has, from now on."""
        self._take(member)
        self._begin(member)

    async def forget(self, name: str) -> None:
        """Look no more after the engine called `name`."""
        del self._members[name]
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _take(self, member: Member[Observable]) -> None:
        name = member.engine.name
        self._members[name] = member
        if member.adaptive is not None:
            member.promptness = Promptness()
            self._pool.time_first_tokens(name, member.promptness.observe)

    def _begin(self, member: Member[Observable]) -> None:
        if member.scrape_seconds is not None:
            watch = self._watch(member, member.scrape_seconds)
            self._tasks[member.engine.name] = asyncio.get_running_loop().create_task(watch)

    async def look(self, name: str) -> bool:
        """Ask the engine called `name` how it fares, and move its limit. False if it says nothing of itself."""
        member = self._members[name]
        says_nothing = False
        try:
            member.vitals = await member.engine.vitals()
            says_nothing = member.vitals is None
        except EngineError as error:
            if member.vitals is not None:
                _logger.warning("engine %s: %s; its limit stays at %d", name, error, member.limit)
            member.vitals = None
            member.failed_scrapes += 1
        if member.adaptive is not None:
            await self._judge(member, member.adaptive)
        return not says_nothing

    async def _judge(self, member: Member[Observable], adaptive: AdaptiveLimit) -> None:
        look = Look(
            inflight=self._pool.inflight_of(member.engine.name),
            wanted=self._waits(),
            vitals=member.vitals,
            slowness=member.promptness.slowness() if member.promptness else None,
        )
        reason = adaptive.observe(look)
        if reason is None:
            return
        member.changes[reason] += 1
        before = member.limit
        await self._apply(member)
        level = logging.DEBUG if member.limit > before else logging.INFO  # it rises by one, often
        name = member.engine.name
        _logger.log(level, "engine %s: limit %d, was %d (%s): %s", name, member.limit, before, reason, look)

    async def _apply(self, member: Member[Observable]) -> None:
        assert member.adaptive is not None  # noqa: S101 - asked only of those that adapt
        if member.limit != member.adaptive.limit:
            member.limit = member.adaptive.limit
            await self._on_limit(member.engine.name, member.limit)

    async def _watch(self, member: Member[Observable], scrape_seconds: float) -> None:
        silent_looks = 0  # left until one that says nothing is asked again
        while True:
            await asyncio.sleep(scrape_seconds)
            try:
                if silent_looks > 0:
                    silent_looks -= 1
                    if member.adaptive is not None:
                        await self._judge(member, member.adaptive)
                elif not await self.look(member.engine.name):
                    silent_looks = int(SILENT_SECONDS / scrape_seconds)
            except Exception:  # one bad look must not end all later ones
                _logger.exception("engine %s could not be looked at", member.engine.name)
