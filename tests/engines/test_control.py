import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.limit import AdaptiveLimit, Standing, Vitals
from driftsched.core.model import Request, Tenant, Tier
from driftsched.core.protocols import EngineKind
from driftsched.engines.control import DispatchControl, Member
from driftsched.engines.mock import MockServer
from driftsched.engines.openai import OpenAIEngine
from driftsched.engines.payload import Payload
from driftsched.engines.pool import EnginePool
from support.faulty_upstream import Behaviour, FaultyUpstream, answer, hang_before_headers, html, status
from support.servers import http_engine, serving, simulated, until


@dataclass
class Ward:
    """A pool of one engine, and what watches over it."""

    engine: OpenAIEngine
    pool: EnginePool
    control: DispatchControl
    limits: list[int] = field(default_factory=list)

    async def looks(self, number: int) -> list[int]:
        """The limit after each look."""
        limits = []
        for _ in range(number):
            await self.control.look(self.engine.name)
            limits.append(self.control.states()[0].limit)
        return limits


@asynccontextmanager
async def ward(
    url: str, limit: int, *, kind: EngineKind | None = "vllm", adapts: bool = True
) -> AsyncIterator[Ward]:
    engine = http_engine(url, kind=kind)
    pool = EnginePool([(engine, limit)])

    async def use(name: str, changed: int) -> None:
        pool.set_slots(name, changed)

    member = Member(engine, limit, AdaptiveLimit(limit) if adapts else None)
    control = DispatchControl([member], pool, on_limit=use, waits=lambda: True)
    try:
        yield Ward(engine, pool, control)
    finally:
        await control.close()
        await pool.close()


def endless(number: int) -> Request:
    """A request whose answer goes on for as long as a test."""
    fields = {"model": "simulated", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50_000}
    body = msgspec.json.encode({**fields, "ignore_eos": True, "stream": True})
    payload = Payload("/v1/chat/completions", body, stream=True, wants_usage=False)
    return Request(str(number), Tenant("t"), Tier.STANDARD, "simulated", 0.0, prompt_tokens=9, payload=payload)


@asynccontextmanager
async def answering(pool: EnginePool, num_requests: int) -> AsyncIterator[None]:
    async def read(number: int) -> None:
        async for _ in pool.generate(endless(number)):
            pass

    tasks = [asyncio.create_task(read(number)) for number in range(num_requests)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_queue_that_stands_in_the_engine_lowers_the_limit_to_what_its_batch_holds() -> None:
    simulated_engine = simulated(slots=4, speed=10.0)
    async with (
        serving(MockServer(simulated_engine)) as url,
        ward(url, 12) as house,
        answering(house.pool, 12),
    ):
        model = simulated_engine.model
        await until(lambda: (model.num_running, model.num_waiting) == (4, 8))
        limits = await house.looks(4)
        state = house.control.states()[0]
        slots = house.pool.slots

    assert [12, 12, 6, 6] == limits
    assert 6 == slots
    assert state.vitals is not None
    assert (4, 8) == (state.vitals.running, state.vitals.waiting)
    assert (12, {"engine_queue": 1}) == (state.inflight, state.changes)


async def test_room_in_the_engine_raises_the_limit_while_it_binds() -> None:
    simulated_engine = simulated(slots=16, speed=10.0)
    async with (
        serving(MockServer(simulated_engine)) as url,
        ward(url, 8) as house,
        answering(house.pool, 8),
    ):
        await until(lambda: simulated_engine.model.num_running == 8)
        limits = await house.looks(4)

    assert [8, 8, 9, 9] == limits  # once it is higher than what is in flight, it binds no more


async def test_a_limit_that_the_operator_fixed_stays_and_the_engine_is_watched_all_the_same() -> None:
    simulated_engine = simulated(slots=4, speed=10.0)
    async with (
        serving(MockServer(simulated_engine)) as url,
        ward(url, 12, adapts=False) as house,
        answering(house.pool, 12),
    ):
        await until(lambda: simulated_engine.model.num_waiting == 8)
        limits = await house.looks(4)
        await house.control.told(house.engine.name, 4)
        state = house.control.states()[0]

    assert [12] * 4 == limits
    assert 12 == state.limit
    assert state.vitals is not None
    assert 8 == state.vitals.waiting


async def test_what_the_engine_tells_of_its_slots_is_its_limit() -> None:
    async with FaultyUpstream(status(404, b"")) as upstream, ward(upstream.url, 32) as house:
        await house.control.told(house.engine.name, 4)

        assert (4, 4) == (house.pool.slots, house.control.states()[0].limit)


async def looked_at(behaviour: Behaviour, kind: EngineKind | None = "vllm") -> tuple[list[int], int, Vitals | None]:
    """Limits, failed scrapes and vitals of five looks at an engine that could be overloaded."""
    async with FaultyUpstream(behaviour) as upstream, ward(upstream.url, 12, kind=kind) as house:
        limits = await house.looks(5)
        state = house.control.states()[0]
        return limits, state.failed_scrapes, state.vitals


async def test_metrics_that_are_not_there_or_are_garbage_change_nothing() -> None:
    for behaviour in (status(404, b""), status(501, b"{}"), html(), answer(b"\x00\xff"), answer(b"")):
        assert ([12] * 5, 0, None) == await looked_at(behaviour)


async def test_an_engine_that_cannot_be_asked_keeps_its_limit_and_the_failures_are_counted() -> None:
    async with FaultyUpstream(hang_before_headers()) as upstream:
        url = upstream.url
    async with ward(url, 12) as house:  # nobody listens there any more
        limits = await house.looks(3)
        state = house.control.states()[0]

    assert ([12] * 3, 3) == (limits, state.failed_scrapes)


async def test_a_page_without_end_is_not_read_to_its_end() -> None:
    page = b"vllm:num_requests_waiting 99\n" + b"x" * (4 * 1024 * 1024)
    limits, failed, vitals = await looked_at(answer(page))

    assert ([12] * 5, 5, None) == (limits, failed, vitals)


async def test_llama_server_without_metrics_is_asked_for_its_slots() -> None:
    slots = answer(b'[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]')
    async with (
        FaultyUpstream(status(501, b"{}"), routes={"/slots": slots}) as upstream,
        ward(upstream.url, 2, kind="llama.cpp") as house,
    ):
        await house.looks(1)
        state = house.control.states()[0]

    assert Vitals(running=1) == state.vitals


async def test_ollama_has_nothing_to_be_asked_for() -> None:
    async with FaultyUpstream(status(404, b"")) as upstream, ward(upstream.url, 2, kind="ollama") as house:
        assert not await house.control.look(house.engine.name)
        assert [] == upstream.requests


class Scripted:
    """An engine that answers each look with the next of a list, and raises what is an error."""

    name = "scripted"

    def __init__(self, answers: Sequence[Vitals | Exception | None]) -> None:
        self._answers = list(answers)
        self.asked = asyncio.Event()

    async def vitals(self) -> Vitals | None:
        if not self._answers:
            self.asked.set()
            return None
        found = self._answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


class Full:
    """A pool all of whose slots are used."""

    def inflight_of(self, name: str) -> int:
        return 64

    def standing_of(self, name: str) -> Standing:
        return Standing(0.0, "closed", 0, 0, 0)

    def time_first_tokens(self, name: str, listener: object) -> None:
        pass


async def test_it_goes_on_looking_after_looks_that_failed() -> None:
    crowded = Vitals(running=32, waiting=32)
    engine = Scripted([EngineError(503, "engine_unreachable", "gone"), RuntimeError("a fault"), *[crowded] * 3])
    limits: list[int] = []

    async def use(name: str, limit: int) -> None:
        limits.append(limit)

    member = Member(engine, 64, AdaptiveLimit(64), scrape_seconds=0.001)
    control = DispatchControl([member], Full(), on_limit=use, waits=lambda: True)
    control.start()
    async with asyncio.timeout(10):
        await engine.asked.wait()
    await control.close()

    assert [32] == limits
    assert 1 == control.states()[0].failed_scrapes


async def test_an_answer_in_one_document_has_no_first_token() -> None:
    heard: list[int] = []
    async with FaultyUpstream(answer()) as upstream:
        engine = OpenAIEngine(upstream.url, stream_whole_answers=False)
        pool = EnginePool([(engine, 4)])
        pool.time_first_tokens(engine.name, lambda tokens, seconds: heard.append(tokens))
        payload = Payload("/v1/chat/completions", b"{}", stream=False, wants_usage=False)
        request = Request("r1", Tenant("acme"), Tier.STANDARD, "test", arrived_at=0.0, payload=payload)
        assert [2] == [chunk.completion_tokens async for chunk in pool.generate(request)]
        await pool.close()
    assert [] == heard


async def test_first_tokens_are_timed_by_the_engine_that_sends_them() -> None:
    heard: list[tuple[int, float]] = []
    simulated_engine = simulated(slots=4)
    pool = EnginePool([(simulated_engine, 4)])
    pool.time_first_tokens(simulated_engine.name, lambda tokens, seconds: heard.append((tokens, seconds)))
    async for chunk in pool.generate(endless(1)):
        if chunk.completion_tokens > 3:
            break
    await pool.close()

    assert [9] == [tokens for tokens, _ in heard]
    assert all(seconds > 0 for _, seconds in heard)
