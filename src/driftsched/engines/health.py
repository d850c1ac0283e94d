"""Asks every engine now and then whether it is well, off the way of requests."""

import asyncio
import logging
from typing import Protocol

_logger = logging.getLogger(__name__)

MIN_PAUSE_SECONDS = 0.01
"""Between two checks of one engine, whatever its breaker says."""
MAX_PAUSE_SECONDS = 2.0
"""Between two looks whether an engine has gone away, which requests find out too, however seldom it is checked."""


class Ward(Protocol):
    """What holds the engines, and draws the conclusions."""

    async def check(self, name: str) -> None: ...
    def due_in(self, name: str) -> float | None:
        """Seconds until an engine that is away is to be asked again; None if it is not away."""
        ...


class HealthChecks:
    """One task an engine. An engine that is away is asked when its breaker lets one try, others at fixed times."""

    def __init__(self, ward: Ward) -> None:
        self._ward = ward
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, name: str, seconds: float) -> None:
        """Begin to ask the engine called `name`, every `seconds` (> 0). Call inside a running loop."""
        self._tasks[name] = asyncio.get_running_loop().create_task(self._watch(name, seconds))

    async def forget(self, name: str) -> None:
        """Ask it no more."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        for name in list(self._tasks):
            await self.forget(name)

    async def _watch(self, name: str, seconds: float) -> None:
        left = seconds
        while True:
            due_in = self._ward.due_in(name)
            if due_in is None and left > MAX_PAUSE_SECONDS:
                await asyncio.sleep(MAX_PAUSE_SECONDS)
                left -= MAX_PAUSE_SECONDS
                continue
            await asyncio.sleep(left if due_in is None else max(MIN_PAUSE_SECONDS, due_in))
            left = seconds
            try:
                await self._ward.check(name)
            except Exception:  # one check that fails must not end all later ones
                _logger.exception("engine %s could not be checked", name)
