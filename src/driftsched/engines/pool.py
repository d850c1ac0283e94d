"""Several replicas of one model server, used as one engine."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic

from driftsched.core.errors import EngineError
from driftsched.core.model import Request
from driftsched.core.protocols import Chunk, Engine, Prioritising, Saturation

FirstTokenListener = Callable[[int, float], None]
"""Told the prompt tokens of a request and the seconds from its dispatch to its first token."""

PASSED_OVER = frozenset({"engine_unreachable", "engine_busy"})
"""Kinds of failure after which another replica is asked."""


@dataclass(slots=True)
class _Member:
    engine: Engine
    slots: int
    num_inflight: int = 0
    on_first_token: FirstTokenListener | None = None


class EnginePool:
    """Sends each request to the healthy replica with the most room.

    A replica that cannot be reached, or says that it is busy, is passed over for another one: it has done nothing
    for the request. Any other failure is the request's own.
    """

    name = "pool"

    def __init__(self, engines: Sequence[tuple[Engine, int]]) -> None:
        """`engines`: each with the number of requests it may serve at once, > 0. At least one."""
        if not engines:
            raise ValueError("a pool needs at least one engine")
        self._members = [_Member(engine, slots) for engine, slots in engines]

    @property
    def slots(self) -> int:
        """Requests the pool may serve at once."""
        return sum(member.slots for member in self._members)

    @property
    def prioritises(self) -> bool:
        """One of the replicas passes on how urgent a request is."""
        return any(isinstance(m.engine, Prioritising) and m.engine.prioritises for m in self._members)

    @property
    def engines(self) -> list[Engine]:
        return [member.engine for member in self._members]

    def set_slots(self, name: str, slots: int) -> None:
        """The engine called `name` turned out to serve `slots` requests at once."""
        for member in self._members:
            if member.engine.name == name:
                member.slots = slots

    def inflight_of(self, name: str) -> int:
        """Requests that the engine called `name` is answering for the pool."""
        return sum(member.num_inflight for member in self._members if member.engine.name == name)

    def time_first_tokens(self, name: str, listener: FirstTokenListener) -> None:
        """Tell `listener` of every first token of the engine called `name`."""
        for member in self._members:
            if member.engine.name == name:
                member.on_first_token = listener

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer of one replica. Raises the `EngineError` of the last one tried."""
        candidates = await self._by_preference()
        for member in candidates:
            is_answering = False
            member.num_inflight += 1
            listener, asked_at = member.on_first_token, monotonic()
            try:
                async with aclosing(member.engine.generate(request)) as chunks:
                    async for chunk in chunks:
                        is_answering = True
                        if listener is not None and chunk.completion_tokens:
                            listener(request.prompt_tokens, monotonic() - asked_at)
                            listener = None
                        yield chunk
            except EngineError as error:
                if is_answering or error.kind not in PASSED_OVER or member is candidates[-1]:
                    raise
            else:
                return
            finally:
                member.num_inflight -= 1

    async def saturation(self) -> Saturation:
        """Full when every replica is; healthy while one is."""
        states = [await member.engine.saturation() for member in self._members]
        return Saturation(min(state.fraction for state in states), any(state.healthy for state in states))

    async def close(self) -> None:
        for member in self._members:
            await member.engine.close()

    async def _by_preference(self) -> list[_Member]:
        if len(self._members) == 1:
            return self._members
        unhealthy = {id(m): not (await m.engine.saturation()).healthy for m in self._members}
        return sorted(self._members, key=lambda m: (unhealthy[id(m)], m.num_inflight / m.slots))
