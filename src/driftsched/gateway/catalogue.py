"""What the engines behind the gateway serve: asked at the start, and again until all of them have told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from time import monotonic
from typing import Any, Protocol

from driftsched.core.errors import ConfigError, EngineError

_logger = logging.getLogger(__name__)

DEFAULT_SLOTS = 32
"""Requests in flight per engine where neither the operator nor the engine says how many fill its batch."""


class Discovery(Protocol):
    """What an engine told about itself."""

    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def slots(self) -> int | None: ...
    @property
    def kind(self) -> str: ...


class Discoverable(Protocol):
    """An engine that can be asked."""

    @property
    def name(self) -> str: ...
    async def discover(self) -> Discovery: ...


class Catalogue:
    """The models and slots of replicas that all serve the same models."""

    def __init__(
        self,
        engines: Sequence[Discoverable],
        *,
        on_slots: Callable[[str, int], Awaitable[None]],
        retry_seconds: float = 2.0,
        ready_seconds: float = 1.0,
        away_seconds: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`on_slots(engine name, slots)` is told how many requests an engine serves at once, when it said so.

        `ready_seconds`: how long an answer to a readiness probe is good for. `away_seconds`: how long requests wait
        for engines that went away, so that there is no need to send them elsewhere. `clock`: seconds that never run
        backwards. Raises `ConfigError` if two engines have the same name.
        """
        self._engines = {engine.name: engine for engine in engines}
        if len(self._engines) < len(engines):
            raise ConfigError("engines: two have the same name or address: give each a name of its own")
        self._told: dict[str, Discovery] = {}
        self._on_slots = on_slots
        self._retry_seconds = retry_seconds
        self._ready_seconds = ready_seconds
        self._away_seconds = away_seconds
        self._clock = clock
        self._ready = False
        self._silent_since: float | None = None
        self._ask_again_at = -inf
        self._probing = asyncio.Lock()
        self._asking: set[asyncio.Task[bool]] = set()
        self._retrying: asyncio.Task[None] | None = None

    @property
    def models(self) -> tuple[str, ...] | None:
        """Models that every engine serves; None while no engine has told."""
        return next(iter(self._told.values())).models if self._told else None

    async def start(self) -> None:
        """Ask all engines; keep asking those that cannot be reached. Raises `ConfigError` if they differ."""
        await asyncio.gather(*map(self._ask, self._engines.values()))
        if self._silent():
            self._retrying = asyncio.get_running_loop().create_task(self._retry())

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._asking]
        if self._retrying is not None:
            tasks.append(self._retrying)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def join(self, engine: Discoverable) -> Discovery:
        """One more engine, and what it told.

        Raises `EngineError` if it does not answer, and `ConfigError` if there is one of its name already, or if it
        serves other models than the others.
        """
        found = await engine.discover()
        if engine.name in self._engines:
            raise ConfigError(f"engines: there is a {engine.name} already")
        self._check_same_models(engine.name, found.models)
        self._engines[engine.name] = engine
        self._told[engine.name] = found
        return found

    def forget(self, name: str) -> None:
        """The engine called `name` is gone."""
        self._engines.pop(name, None)
        self._told.pop(name, None)

    async def ready(self) -> bool:
        """Does any engine answer, or did one until less than `away_seconds` ago?

        However many probes come, engines are asked at most once in `ready_seconds`.
        """
        async with self._probing:
            if self._clock() >= self._ask_again_at:
                answers = await self._any_answers()
                self._ready = answers or self._may_come_back()
                if answers:
                    self._silent_since = None
                self._ask_again_at = self._clock() + self._ready_seconds
            return self._ready

    async def _any_answers(self) -> bool:
        """As soon as one does: whoever probes does not wait for another that hangs. Those still asked go on."""
        loop = asyncio.get_running_loop()
        asked = [loop.create_task(self._answers(engine)) for engine in self._engines.values()]
        for task in asked:
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        for answer in asyncio.as_completed(asked):
            if await answer:
                return True
        return False

    def _may_come_back(self) -> bool:
        """Whether engines that do not answer did so lately: requests wait for them."""
        now = self._clock()
        if self._silent_since is None:
            self._silent_since = now if self._told else -inf  # those that have never answered are not waited for
        return now - self._silent_since < self._away_seconds

    async def _answers(self, engine: Discoverable) -> bool:
        """As `_ask`, once it is too late to refuse to start: an engine that differs counts as silent."""
        try:
            return await self._ask(engine)
        except ConfigError as error:
            _logger.error("%s", error)  # noqa: TRY400 - the message says it all
            return False

    async def _ask(self, engine: Discoverable) -> bool:
        """Whether it answers. Raises `ConfigError` if it serves other models than the others."""
        try:
            found = await engine.discover()
        except EngineError as error:
            _logger.warning("engine %s: %s", engine.name, error)
            return False
        if engine.name not in self._engines:
            return False  # it was taken out meanwhile
        self._check_same_models(engine.name, found.models)
        if engine.name not in self._told:
            _logger.info("engine %s (%s) serves %s", engine.name, found.kind, ", ".join(found.models))
            if found.slots is not None:
                await self._on_slots(engine.name, found.slots)
        self._told[engine.name] = found
        return True

    def _check_same_models(self, name: str, models: tuple[str, ...]) -> None:
        for other, found in self._told.items():
            if other != name and set(found.models) != set(models):
                raise ConfigError(
                    f"engines: {other} serves {', '.join(found.models)}, but {name} serves {', '.join(models)}. "
                    "Engines side by side are replicas: give each set of models a pool of its own."
                )

    async def _retry(self) -> None:
        while self._silent():
            await asyncio.sleep(self._retry_seconds)
            await asyncio.gather(*map(self._answers, self._silent()))

    def _silent(self) -> list[Discoverable]:
        return [engine for name, engine in self._engines.items() if name not in self._told]
