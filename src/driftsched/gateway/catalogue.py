"""What the engines behind the gateway serve: asked at the start, and again until all of them have told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Protocol

from driftsched.core.errors import ConfigError, EngineError

_logger = logging.getLogger(__name__)

DEFAULT_SLOTS = 32
"""Requests in flight per engine where neither the operator nor the engine says how many fill its batch."""
READY_SECONDS = 1.0
"""How long an answer to a readiness probe is good for: probes may be many, engines are asked once."""


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
    ) -> None:
        """`on_slots(engine name, slots)` is told how many requests an engine serves at once, when it said so."""
        self._engines = {engine.name: engine for engine in engines}
        self._told: dict[str, Discovery] = {}
        self._on_slots = on_slots
        self._retry_seconds = retry_seconds
        self._ready_until = 0.0
        self._retrying: asyncio.Task[None] | None = None

    @property
    def models(self) -> tuple[str, ...] | None:
        """Models that every engine serves; None while no engine has told."""
        return next(iter(self._told.values())).models if self._told else None

    async def start(self) -> None:
        """Ask all engines; keep asking those that cannot be reached. Raises `ConfigError` if they differ."""
        await self._ask_silent()
        if len(self._told) < len(self._engines):
            self._retrying = asyncio.get_running_loop().create_task(self._retry())

    async def close(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)

    async def ready(self) -> bool:
        """Does any engine answer? Asked at most once in `READY_SECONDS`."""
        if monotonic() < self._ready_until:
            return True
        answers = await asyncio.gather(*(self._ask(engine) for engine in self._engines.values()))
        if any(answers):
            self._ready_until = monotonic() + READY_SECONDS
        return any(answers)

    async def _ask_silent(self) -> None:
        silent = [engine for name, engine in self._engines.items() if name not in self._told]
        await asyncio.gather(*(self._ask(engine) for engine in silent))

    async def _ask(self, engine: Discoverable) -> bool:
        try:
            found = await engine.discover()
        except EngineError as error:
            _logger.warning("engine %s: %s", engine.name, error)
            return False
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
                    "Engines of one gateway are replicas: run one gateway for each set of models."
                )

    async def _retry(self) -> None:
        while len(self._told) < len(self._engines):
            await asyncio.sleep(self._retry_seconds)
            try:
                await self._ask_silent()
            except ConfigError as error:  # too late to refuse to start: the engine stays out of the catalogue
                _logger.error("%s", error)  # noqa: TRY400 - the message says it all
