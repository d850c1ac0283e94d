"""One pool of engines, wired together: who generates, how much each is given, and whether they are well."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence

from driftsched.config import EngineSettings, RetrySettings, read_engine
from driftsched.core.errors import ConfigError, EngineError
from driftsched.core.limit import MAX_LIMIT, AdaptiveLimit
from driftsched.core.protocols import Engine
from driftsched.engines.balance import Affinity
from driftsched.engines.control import DispatchControl, Member
from driftsched.engines.health import HealthChecks
from driftsched.engines.openai import OpenAIEngine
from driftsched.engines.pool import EnginePool
from driftsched.engines.retries import RetryBudget
from driftsched.gateway.catalogue import DEFAULT_SLOTS, Catalogue
from driftsched.gateway.errors import HttpError
from driftsched.gateway.roster import Row
from driftsched.queues.memory import MemoryQueue

_logger = logging.getLogger(__name__)


class Fleet:
    """The engines of one pool, and the queue whose slots are theirs.

    Start it inside a running loop, once whoever dispatches is known; and close it.
    """

    def __init__(
        self,
        engines: Sequence[EngineSettings],
        *,
        affinity: Affinity = "none",
        retries: RetrySettings | None = None,
        away_seconds: float = 0.0,
    ) -> None:
        """`away_seconds`: how long requests wait while no engine can be reached.

        Raises `ConfigError` if an engine cannot be made, or two have one name.
        """
        retries = retries or RetrySettings()
        members = [_member(settings) for settings in engines]
        self._settings = {member.engine.name: settings for member, settings in zip(members, engines, strict=True)}
        self.pool = EnginePool(
            [(member.engine, member.limit) for member in members],
            checked=[name for name, settings in self._settings.items() if settings.check_seconds is not None],
            affinity=affinity,
            budget=RetryBudget(retries.share, retries.burst),
            away_seconds=away_seconds,
        )
        self.queue = MemoryQueue(self.pool.slots)
        self.control = DispatchControl(
            members, self.pool, on_limit=self._use_limit, waits=lambda: self.queue.num_waiting > 0
        )
        self.catalogue = Catalogue(
            [member.engine for member in members], on_slots=self.control.told, away_seconds=away_seconds
        )
        self._checks = HealthChecks(self.pool)
        self._slots_changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._dispatch: Callable[[], Awaitable[None]] | None = None
        self.pool.on_slots(self._slots_changed.set)

    async def start(self, dispatch: Callable[[], Awaitable[None]]) -> None:
        """Ask the engines what they serve, and look after them from here on. Raises `ConfigError` if they differ.

        `dispatch` gives every free slot to whoever is next.
        """
        self._dispatch = dispatch
        self._following = asyncio.get_running_loop().create_task(self._follow_slots())
        await self.catalogue.start()
        self.control.start()
        for name, settings in self._settings.items():
            self._check(name, settings)

    def rows(self) -> list[Row]:
        """The engines as operators see them."""
        return [self._row(state.name) for state in self.control.states()]

    async def add(self, document: bytes) -> Row:
        """One more engine, once it has answered. Raises `HttpError` 400, 409, 502, 503 or 504."""
        try:
            settings = self._readable(document)
            member = _member(settings)
        except ConfigError as error:
            raise HttpError(400, str(error), code="invalid_engine") from None
        engine = member.engine
        try:
            found = await self.catalogue.join(engine)
        except (ConfigError, EngineError) as error:
            await engine.close()
            status, code = (409, "engine_differs") if isinstance(error, ConfigError) else (error.status, error.kind)
            raise HttpError(status, str(error), code=code) from None
        self._settings[engine.name] = settings
        self.pool.add(engine, member.limit, is_checked=settings.check_seconds is not None)
        self.control.add(member)
        if found.slots is not None:
            await self.control.told(engine.name, found.slots)
        self._check(engine.name, settings)
        _logger.info("engine %s (%s) was added", engine.name, found.kind)
        return self._row(engine.name)

    def drain(self, name: str) -> Row:
        """Give it nothing more. Raises `HttpError` 404."""
        self._find(name)
        self.pool.drain(name)
        _logger.info("engine %s drains", name)
        return self._row(name)

    async def remove(self, name: str) -> Row:
        """Take out an engine that has drained. Raises `HttpError` 404, or 409 while it is needed."""
        engine = self._find(name)
        try:
            self.pool.remove(name)
        except ValueError:
            raise HttpError(409, self._why_needed(name), code="engine_in_use") from None
        del self._settings[name]
        self.catalogue.forget(name)
        await self.control.forget(name)  # at once, before anybody asks it about an engine that the pool has not
        await self._checks.forget(name)
        await engine.close()
        _logger.info("engine %s was taken out", name)
        return {"name": name, "removed": True}

    def _readable(self, document: bytes) -> EngineSettings:
        """Settings of an engine that an operator sends. Raises `ConfigError`.

        Whoever has an admin key may let the gateway talk to any server, but not send it what stands in the
        environment: only keys that the configuration sends to an engine.
        """
        settings = read_engine(document)
        known = {each.api_key_env for each in self._settings.values()}
        if settings.api_key_env is not None and settings.api_key_env not in known:
            raise ConfigError("api_key_env: only one that an engine of this pool has already")
        if settings.priority is True and not self.pool.prioritises:
            raise ConfigError("priority: no engine of this pool had it when the gateway started")
        return settings

    def _find(self, name: str) -> Engine:
        for engine in self.pool.engines:
            if engine.name == name:
                return engine
        raise HttpError(404, f"There is no engine {name!r} here.", code="unknown_engine")

    def _row(self, name: str) -> Row:
        state = next(state for state in self.control.states() if state.name == name)
        return {
            "name": name,
            "url": self._settings[name].url,
            "draining": self.pool.is_draining(name),
            "circuit": state.standing.circuit if state.standing else None,
            "limit": state.limit,
            "inflight": state.inflight,
        }

    def _why_needed(self, name: str) -> str:
        if not self.pool.is_draining(name):
            return f"{name} serves: let it drain first."
        num_inflight = self.pool.inflight_of(name)
        if num_inflight > 0:
            return f"{name} still answers {num_inflight} requests."
        return f"{name} is the last engine of its pool."

    def _check(self, name: str, settings: EngineSettings) -> None:
        if settings.check_seconds is not None:
            self._checks.watch(name, settings.check_seconds)

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._checks.close()
        await self.control.close()
        await self.catalogue.close()
        await self.pool.close()

    async def _use_limit(self, engine: str, limit: int) -> None:
        self.pool.set_slots(engine, limit)
        await self._use_slots()

    async def _use_slots(self) -> None:
        await self.queue.resize(self.pool.slots)
        if self._dispatch is not None:
            await self._dispatch()

    async def _follow_slots(self) -> None:
        while True:
            await self._slots_changed.wait()
            self._slots_changed.clear()
            try:
                await self._use_slots()
            except Exception:  # one change that fails must not end all later ones
                _logger.exception("the number of slots could not be changed")


def _member(settings: EngineSettings) -> Member[OpenAIEngine]:
    """The engine with the limit it starts with, and what may become of it."""
    start = settings.max_inflight or DEFAULT_SLOTS
    adaptive = None
    if settings.adapts:
        adaptive = AdaptiveLimit(start, floor=settings.min_inflight, ceiling=settings.max_inflight or MAX_LIMIT)
    return Member(_http_engine(settings), start, adaptive, settings.scrape_seconds)


def _http_engine(settings: EngineSettings) -> OpenAIEngine:
    api_key = None
    if settings.api_key_env is not None:
        api_key = os.environ.get(settings.api_key_env)
        if not api_key:
            raise ConfigError(f"engines: the environment variable {settings.api_key_env} is not set")
    return OpenAIEngine(
        settings.url,
        name=settings.name,
        kind=settings.kind,
        api_key=api_key,
        priority=settings.priority,
        drop_fields=settings.drop_fields,
        rename_fields=settings.rename_fields,
        stream_whole_answers=settings.stream_whole_answers,
        max_inflight=settings.max_inflight,
        connect_timeout_seconds=settings.timeouts.connect_seconds,
        first_byte_timeout_seconds=settings.timeouts.first_token_seconds,
        idle_timeout_seconds=settings.timeouts.between_tokens_seconds,
        total_timeout_seconds=settings.timeouts.total_seconds,
    )
