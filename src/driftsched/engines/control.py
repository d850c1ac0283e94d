"""Looks at every engine once a second, off the way of requests, and moves its limit by what it says."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from driftsched.core.errors import EngineError
from driftsched.core.limit import AdaptiveLimit, EngineState, Look, Promptness, Reason, Vitals

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
    def time_first_tokens(self, name: str, listener: Callable[[int, float], None]) -> None: ...


@dataclass(slots=True)
class Patient:
    """An engine that is looked after."""

    engine: Observable
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
        patients: Iterable[Patient],
        pool: Pool,
        *,
        on_limit: Callable[[str, int], Awaitable[None]],
        waits: Callable[[], bool],
    ) -> None:
        """`on_limit(engine, limit)` is told of every change; `waits` says whether anything is to be dispatched."""
        self._patients = {patient.engine.name: patient for patient in patients}
        self._pool = pool
        self._on_limit = on_limit
        self._waits = waits
        self._tasks: list[asyncio.Task[None]] = []
        for patient in self._patients.values():
            if patient.adaptive is not None:
                patient.promptness = Promptness()
                pool.time_first_tokens(patient.engine.name, patient.promptness.observe)

    def states(self) -> list[EngineState]:
        """Every engine as it was last seen."""
        return [
            EngineState(
                name,
                patient.limit,
                self._pool.inflight_of(name),
                patient.vitals,
                patient.failed_scrapes,
                dict(patient.changes),
            )
            for name, patient in self._patients.items()
        ]

    async def told(self, name: str, slots: int) -> None:
        """The engine called `name` said how many requests it serves at once: never more, where it may adapt."""
        patient = self._patients[name]
        if patient.adaptive is None:
            return
        patient.promptness = None  # it says what it can do: nothing need be concluded from how it does it
        patient.adaptive.told(slots)
        await self._apply(patient)

    def start(self) -> None:
        """Begin to look. Call inside a running loop, once."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._watch(patient, patient.scrape_seconds))
            for patient in self._patients.values()
            if patient.scrape_seconds is not None
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def look(self, name: str) -> bool:
        """Ask the engine called `name` how it fares, and move its limit. False if it says nothing of itself."""
        patient = self._patients[name]
        says_nothing = False
        try:
            patient.vitals = await patient.engine.vitals()
            says_nothing = patient.vitals is None
        except EngineError as error:
            if patient.vitals is not None:
                _logger.warning("engine %s: %s; its limit stays at %d", name, error, patient.limit)
            patient.vitals = None
            patient.failed_scrapes += 1
        if patient.adaptive is not None:
            await self._judge(patient, patient.adaptive)
        return not says_nothing

    async def _judge(self, patient: Patient, adaptive: AdaptiveLimit) -> None:
        look = Look(
            inflight=self._pool.inflight_of(patient.engine.name),
            wanted=self._waits(),
            vitals=patient.vitals,
            slowness=patient.promptness.slowness() if patient.promptness else None,
        )
        reason = adaptive.observe(look)
        if reason is None:
            return
        patient.changes[reason] += 1
        before = patient.limit
        await self._apply(patient)
        level = logging.DEBUG if patient.limit > before else logging.INFO  # it rises by one, often
        name = patient.engine.name
        _logger.log(level, "engine %s: limit %d, was %d (%s): %s", name, patient.limit, before, reason, look)

    async def _apply(self, patient: Patient) -> None:
        assert patient.adaptive is not None  # noqa: S101 - asked only of those that adapt
        if patient.limit != patient.adaptive.limit:
            patient.limit = patient.adaptive.limit
            await self._on_limit(patient.engine.name, patient.limit)

    async def _watch(self, patient: Patient, scrape_seconds: float) -> None:
        silent_looks = 0  # left until one that says nothing is asked again
        while True:
            await asyncio.sleep(scrape_seconds)
            try:
                if silent_looks > 0:
                    silent_looks -= 1
                    if patient.adaptive is not None:
                        await self._judge(patient, patient.adaptive)
                elif not await self.look(patient.engine.name):
                    silent_looks = int(SILENT_SECONDS / scrape_seconds)
            except Exception:  # one bad look must not end all later ones
                _logger.exception("engine %s could not be looked at", patient.engine.name)
