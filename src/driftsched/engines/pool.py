"""Several replicas of one model server, used as one engine."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from math import ceil, inf, isfinite
from random import Random
from time import monotonic
from typing import Any, Protocol, runtime_checkable

from driftsched.core.errors import EngineError
from driftsched.core.limit import Standing
from driftsched.core.model import Request
from driftsched.core.protocols import Chunk, Engine, Prioritising, Saturation
from driftsched.engines.away import Away
from driftsched.engines.balance import Affinity, Job, Work, affinity_key, least_work, preferred
from driftsched.engines.breaker import Breaker
from driftsched.engines.payload import Payload
from driftsched.engines.retries import MAX_ATTEMPTS, RetryBudget, may_go_elsewhere
from driftsched.engines.sse import begins_document

_logger = logging.getLogger(__name__)

FirstTokenListener = Callable[[int, float], None]
"""Told the prompt tokens of a request and the seconds from its dispatch to its first token."""

HOLD_CHECK_SECONDS = 1.0
"""Between two checks of an engine that requests wait for."""

_ILL = frozenset(
    {"engine_unreachable", "engine_timeout", "broken_stream", "garbage", "engine_error", "engine_auth"}
)
"""Kinds of failure that speak against the engine; any other answer, a refusal included, shows that it is well."""


@runtime_checkable
class Checkable(Protocol):
    """An engine that can be asked whether it is well."""

    async def check(self) -> None:
        """Raises `EngineError` if it cannot be reached, or says that it cannot serve."""
        ...


@dataclass(slots=True, eq=False)
class _Member:
    engine: Engine
    slots: int
    breaker: Breaker
    work: Work = field(default_factory=Work)
    is_draining: bool = False
    num_retries: int = 0
    num_unretried: int = 0
    on_first_token: FirstTokenListener | None = None
    waiting: dict[asyncio.Task[Any], bool] = field(default_factory=dict)
    """Those whose answer has not begun, if the engine is checked, and whether they were called off.

    A cancellation of our own, because `asyncio.timeout` takes four microseconds.
    """

    def call_off(self) -> None:
        """Nothing more will come: whoever waits for the beginning of an answer goes elsewhere."""
        for task, is_called_off in self.waiting.items():
            if not is_called_off:
                self.waiting[task] = True
                task.cancel()

    @property
    def name(self) -> str:
        return self.engine.name


@dataclass(slots=True)
class _Sent:
    """A request at an engine."""

    job: Job
    prompt_tokens: int
    at: float
    on_first_token: FirstTokenListener | None

    def saw(self, chunk: Chunk) -> None:
        if chunk.completion_tokens:
            self.job.progress(chunk.completion_tokens)
            if self.on_first_token is not None and not begins_document(chunk.data):  # a document has none
                self.on_first_token(self.prompt_tokens, monotonic() - self.at)
                self.on_first_token = None


class EnginePool:
    """Sends each request to the well replica with the least work, and elsewhere if that could not begin to answer.

    docs/pools.md says when a replica is left alone, which failures are tried again, and what becomes of requests
    while no replica can be reached.
    """

    name = "pool"

    def __init__(
        self,
        engines: Sequence[tuple[Engine, int]],
        *,
        checked: Iterable[str] = (),
        affinity: Affinity = "none",
        budget: RetryBudget | None = None,
        away_seconds: float = 0.0,
        clock: Callable[[], float] = monotonic,
        seed: int | None = None,
    ) -> None:
        """`engines`: each with the number of requests it may serve at once, > 0. At least one.

        `checked`: names of those that somebody asks from time to time whether they are well (see `check`).
        `away_seconds`, >= 0: how long requests wait while none can be reached; 0: they are refused at once.
        `clock`: seconds that never run backwards; `seed`: of the jitter in how long a replica is left alone.
        """
        if not engines:
            raise ValueError("a pool needs at least one engine")
        self._random = Random(seed)
        self._clock = clock
        asked = frozenset(checked)
        self._members = [
            _Member(engine, slots, Breaker(self._random.random, is_checked=engine.name in asked))
            for engine, slots in engines
        ]
        self._open = self._members
        self._affinity: Affinity = affinity
        self._budget = budget or RetryBudget()
        self._expected: Callable[[str], float] | None = None
        self._on_slots: Callable[[], None] | None = None
        self._on_return: Callable[[], None] | None = None
        self._away = Away(away_seconds, self._tell_slots, self._clock)

    @property
    def slots(self) -> int:
        """Requests the pool may serve at once: those of the replicas that are well; if none is, of all.

        What drains does not count. While requests wait for one to come back: one for each that only a request can
        find to be back.
        """
        members = [member for member in self._members if not member.is_draining]
        if self._away.holds:
            return sum(not member.breaker.is_checked for member in members)
        well = sum(member.slots for member in members if member.breaker.is_closed)
        return well or sum(member.slots for member in members)

    @property
    def away_seconds(self) -> float:
        """For which no replica could be reached; 0 while one can."""
        return self._away.seconds

    @property
    def prioritises(self) -> bool:
        """One of the replicas passes on how urgent a request is."""
        return any(isinstance(m.engine, Prioritising) and m.engine.prioritises for m in self._members)

    @property
    def engines(self) -> list[Engine]:
        return [member.engine for member in self._members]

    def add(self, engine: Engine, slots: int, *, is_checked: bool = False) -> None:
        """One more replica, of a name that no other has."""
        self._members.append(_Member(engine, slots, Breaker(self._random.random, is_checked=is_checked)))
        self._regroup()

    def drain(self, name: str) -> None:
        """Give the engine called `name` nothing more; what it is answering goes on."""
        self._member(name).is_draining = True
        self._regroup()

    def remove(self, name: str) -> None:
        """Forget the engine called `name`, which has drained, and is not the last."""
        member = self._member(name)
        if not member.is_draining or member.work.num_inflight or len(self._members) == 1:
            raise ValueError(f"engine {name} is needed")
        self._members.remove(member)
        self._regroup()

    def is_draining(self, name: str) -> bool:
        return self._member(name).is_draining

    def set_slots(self, name: str, slots: int) -> None:
        """The engine called `name` turned out to serve `slots` requests at once."""
        self._member(name).slots = slots

    def on_slots(self, listener: Callable[[], None]) -> None:
        """Tell `listener` whenever `slots` changes otherwise: a replica fell ill, is well again, comes or goes."""
        self._on_slots = listener

    def on_return(self, listener: Callable[[], None]) -> None:
        """Tell `listener` when a replica is back that requests waited for, before `slots` changes."""
        self._on_return = listener

    def expect(self, expected_tokens: Callable[[str], float]) -> None:
        """Ask `expected_tokens` for the completion tokens predicted for a request, by its id, >= 0."""
        self._expected = expected_tokens

    def inflight_of(self, name: str) -> int:
        """Requests that the engine called `name` is answering for the pool."""
        return self._member(name).work.num_inflight

    def standing_of(self, name: str) -> Standing:
        member = self._member(name)
        return Standing(
            outstanding_tokens=member.work.tokens,
            circuit=member.breaker.state(self._clock()),
            num_opened=member.breaker.num_opened,
            num_retries=member.num_retries,
            num_unretried=member.num_unretried,
        )

    def time_first_tokens(self, name: str, listener: FirstTokenListener) -> None:
        """Tell `listener` of every first token of the engine called `name`."""
        self._member(name).on_first_token = listener

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer of one replica. Raises the `EngineError` of the last one tried.

        One that breaks off is begun anew elsewhere if its client is to get it as a whole (`Chunk.begins_anew`).
        """
        self._budget.deposit()
        tried: list[_Member] = []
        num_broken = 0
        has_begun = False
        waits_until: float | None = None
        while True:
            try:
                member = self._choose(request, tried)
            except EngineError:  # none can be reached
                if waits_until is None:
                    waits_until = self._waits_until(request)
                if not self._away.holds or self._clock() >= waits_until:
                    raise
                await self._away.wait(self._next_look(waits_until))
                continue
            tried.append(member)
            expected = self._expected(request.id) if self._expected else 1.0
            sent = _Sent(member.work.begin(expected), request.prompt_tokens, monotonic(), member.on_first_token)
            epoch = member.breaker.begin(self._clock())
            try:
                async with aclosing(member.engine.generate(request)) as chunks:
                    first = await _first_chunk(member, chunks)
                    if first is None:
                        return
                    self._judge(member, epoch, None)
                    sent.saw(first)
                    first, has_begun = first._replace(begins_anew=True) if has_begun else first, True
                    yield first
                    async for chunk in chunks:
                        sent.saw(chunk)
                        yield chunk
                    return
            except EngineError as error:
                self._judge(member, epoch, error)
                num_broken += error.kind == "broken_stream"
                is_passed_on = has_begun and not _is_gathered(request)
                if is_passed_on or not may_go_elsewhere(error, num_broken):
                    raise
                if not self._others_left(tried):
                    if not self._may_come_back(error):
                        raise
                    tried.clear()
                if not self._away.holds and not self._budget.withdraw():
                    member.num_unretried += 1
                    raise
                member.num_retries += 1
            finally:
                sent.job.end()
                member.breaker.abandoned(epoch)

    async def check(self, name: str) -> None:
        """Ask the engine called `name` whether it is well, if it can be asked, and draw the conclusion.

        Whether it can be reached is all that is found out: one that answers such questions, but fails at requests,
        is left to the requests to judge.
        """
        member = self._member(name)
        breaker = member.breaker
        is_ill = not breaker.is_closed and not breaker.is_away
        if is_ill or not isinstance(member.engine, Checkable):
            return
        epoch = breaker.begin(self._clock(), early=self._away.holds)
        try:
            await member.engine.check()
        except EngineError as error:
            self._judge(member, epoch, error, is_check=True)
        else:
            if breaker.is_away:
                self._judge(member, epoch, None)
        finally:
            breaker.abandoned(epoch)
        if breaker.is_lost:
            member.call_off()

    def due_in(self, name: str) -> float | None:
        """Seconds until an engine that cannot be reached is to be asked again; None if it can be reached.

        No more than a second while requests wait for one to come back.
        """
        due_at = self._member(name).breaker.due_at()
        if due_at is None:
            return None
        return min(max(0.0, due_at - self._clock()), HOLD_CHECK_SECONDS if self._away.holds else inf)

    async def saturation(self) -> Saturation:
        """Full when every replica is; healthy while one is."""
        states = [await member.engine.saturation() for member in self._members]
        return Saturation(min(state.fraction for state in states), any(state.healthy for state in states))

    async def close(self) -> None:
        self._away.end()
        for member in self._members:
            await member.engine.close()

    def _choose(self, request: Request, tried: Sequence[_Member]) -> _Member:
        """Of those not yet tried: the well, else those that said that they are full, else those that are ill.

        Raises `EngineError` if none of them can be reached.
        """
        now = self._clock()
        left = [member for member in self._open if member not in tried] if tried else self._open
        if len(left) == 1 and left[0].breaker.allows(now):
            return left[0]
        well = [member for member in left if member.breaker.allows(now)]
        fit = (
            [member for member in well if not member.breaker.is_busy(now)]
            or well
            or [member for member in left if not member.breaker.is_away]
        )
        if not fit:
            raise self._unreachable(now)
        key = affinity_key(self._affinity, request)
        return preferred(fit, key) if key else least_work(fit)

    def _others_left(self, tried: Sequence[_Member]) -> bool:
        """Whether the request may be sent to one more engine, and there is one that is well."""
        now = self._clock()
        return len(tried) < MAX_ATTEMPTS and any(m.breaker.allows(now) for m in self._open if m not in tried)

    def _judge(self, member: _Member, epoch: int, error: EngineError | None, *, is_check: bool = False) -> None:
        """Conclude from what became of something that `member` was sent; None: it answered."""
        breaker = member.breaker
        if error is None and breaker.is_closed:  # nearly always
            breaker.succeeded(epoch)
            return
        now = self._clock()
        num_before, was_closed = breaker.num_opened, breaker.is_closed
        if error is not None and error.kind in _ILL:
            breaker.failed(epoch, now, unreachable=error.kind == "engine_unreachable", is_check=is_check)
        elif error is not None and error.kind == "engine_busy":
            breaker.busy(epoch, now, _seconds(error.retry_after))
        else:
            breaker.succeeded(epoch)
        changed = breaker.is_closed != was_closed
        if breaker.num_opened > num_before:
            _logger.warning("engine %s is left alone for a while: %s", member.name, error)
        elif changed:
            _logger.info("engine %s is well again", member.name)
        self._look_round()
        if changed:
            self._tell_slots()

    def _may_come_back(self, error: EngineError) -> bool:
        """Whether it is worth asking the same replicas once more, though none is left to be tried now."""
        return self._away.holds or (error.kind == "broken_stream" and self._away.may_hold)

    def _waits_until(self, request: Request) -> float:
        """The instant up to which a request that finds no replica waits for one, at most once in its life."""
        return min(request.expires_at, self._clock() + self._away.max_seconds)

    def _next_look(self, until: float) -> float:
        """Seconds until then, or until a request may try a replica that nobody checks."""
        unchecked = (member.breaker.due_at() for member in self._open if not member.breaker.is_checked)
        return min(until, *(due_at for due_at in unchecked if due_at is not None), inf) - self._clock()

    def _look_round(self) -> None:
        """Is there a replica that can be reached?"""
        none_there = all(member.breaker.is_away for member in self._open)
        if self._away.see(none_there=none_there) and self._on_return is not None:
            self._on_return()

    def _tell_slots(self) -> None:
        if self._on_slots is not None:
            self._on_slots()

    def _unreachable(self, now: float) -> EngineError:
        due = [due_at for m in self._members if (due_at := m.breaker.due_at()) is not None]
        seconds = ceil(max(1.0, min(due, default=now) - now))
        return EngineError(503, "engine_unreachable", "no engine can be reached", retry_after=str(seconds))

    def _regroup(self) -> None:
        """Who may be given requests: if all drain, still all, for what was dispatched just before."""
        self._open = [member for member in self._members if not member.is_draining] or self._members
        self._look_round()
        self._tell_slots()

    def _member(self, name: str) -> _Member:
        for member in self._members:
            if member.name == name:
                return member
        raise KeyError(name)


async def _first_chunk(member: _Member, chunks: AsyncGenerator[Chunk, None]) -> Chunk | None:
    """The beginning of an answer; None if there is none.

    Raises `EngineError`, also if the engine is lost meanwhile.
    """
    if not member.breaker.is_checked:
        return await anext(chunks, None)
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - somebody reads the answer
    num_cancelled = task.cancelling()
    member.waiting[task] = False
    try:
        return await anext(chunks, None)
    except asyncio.CancelledError:
        if member.waiting[task] and task.uncancel() <= num_cancelled:
            raise EngineError(503, "engine_unreachable", f"the engine {member.name} went away") from None
        raise
    finally:
        del member.waiting[task]


def _is_gathered(request: Request) -> bool:
    """Its client gets nothing of the answer before all of it has come."""
    payload = request.payload
    return isinstance(payload, Payload) and not (payload.stream or payload.passed)


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After says; None if it says nothing, or a date."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if isfinite(seconds) else None
