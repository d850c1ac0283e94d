"""What becomes of requests while no engine can be reached, on a loop whose time leaps."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from driftsched.core.errors import EngineError
from driftsched.core.model import Request
from driftsched.core.protocols import Chunk, Saturation
from driftsched.engines.breaker import MAX_CONSECUTIVE
from driftsched.engines.health import MAX_PAUSE_SECONDS, HealthChecks
from driftsched.engines.pool import EnginePool
from driftsched.engines.retries import RetryBudget
from support.prompts import request_of
from support.virtual import VirtualLoop

HOLD = 30.0
ANSWER_SECONDS = 2.0


def leaping(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in virtual time."""

    def run() -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


class Server:
    """Answers in `ANSWER_SECONDS` while it is there."""

    def __init__(self, name: str = "gpu", *, is_there: bool = True) -> None:
        self.name = name
        self.is_there = is_there
        self.fault: EngineError | None = None
        self.dies_of_it = False
        self.asked: list[str] = []
        self.checked_at: list[float] = []

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self._refuse_if_away()
        self.asked.append(request.id)
        if self.fault is not None:
            self.is_there = not self.dies_of_it
            raise self.fault
        await asyncio.sleep(ANSWER_SECONDS)
        yield Chunk(b"answer")

    async def check(self) -> None:
        self.checked_at.append(now())
        self._refuse_if_away()

    async def saturation(self) -> Saturation:
        return Saturation(0.0, self.is_there)

    async def close(self) -> None: ...

    def _refuse_if_away(self) -> None:
        if not self.is_there:
            raise EngineError(503, "engine_unreachable", "no route")


class Yard:
    """A pool of servers that are checked every two seconds, and what its slots were."""

    def __init__(
        self, *servers: Server, hold: float = HOLD, is_checked: bool = True, budget: RetryBudget | None = None
    ) -> None:
        names = [server.name for server in servers]
        self.pool = EnginePool(
            [(server, 4) for server in servers],
            checked=names if is_checked else (),
            away_seconds=hold,
            budget=budget,
            clock=now,
            seed=1,
        )
        self.num_returns = 0
        self.slots: list[int] = []
        self.pool.on_slots(lambda: self.slots.append(self.pool.slots))
        self.pool.on_return(self._count)
        self._checks = HealthChecks(self.pool)
        for name in names if is_checked else ():
            self._checks.watch(name, 2.0)

    def _count(self) -> None:
        self.num_returns += 1

    async def ask(self, id: str = "r", **fields: Any) -> float:
        """When the answer was there. Raises `EngineError`."""
        async with aclosing(self.pool.generate(replace(request_of(), id=id, **fields))) as chunks:
            assert [b"answer"] == [chunk.data async for chunk in chunks]
        return now()

    async def close(self) -> None:
        await self._checks.close()
        await self.pool.close()


async def refused_at(asking: Coroutine[Any, Any, float]) -> float:
    """When a request was told that no engine can be reached."""
    with pytest.raises(EngineError) as caught:
        await asking
    assert (503, "engine_unreachable") == (caught.value.status, caught.value.kind)
    return now()


@leaping
async def test_a_request_waits_for_an_engine_that_comes_back_and_is_answered() -> None:
    server = Server(is_there=False)
    yard = Yard(server)
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(20.0)
    assert (False, 20.0) == (asking.done(), yard.pool.away_seconds)
    server.is_there = True
    assert 20.0 <= await asking <= 20.0 + 1.1 + ANSWER_SECONDS
    assert (0.0, 1) == (yard.pool.away_seconds, yard.num_returns)
    await yard.close()


@leaping
async def test_nothing_is_dispatched_meanwhile_and_all_slots_are_there_afterwards() -> None:
    server = Server(is_there=False)
    yard = Yard(server)
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(5.0)
    assert {0} == set(yard.slots)
    server.is_there = True
    await asking
    assert 4 == yard.slots[-1] == yard.pool.slots
    await yard.close()


@leaping
async def test_those_that_wait_are_sent_in_the_order_in_which_they_came() -> None:
    server = Server(is_there=False)
    yard = Yard(server)
    names = [f"r{number}" for number in range(8)]
    asking = [asyncio.create_task(yard.ask(name)) for name in names]
    await asyncio.sleep(5.0)
    server.is_there = True
    await asyncio.gather(*asking)
    assert names == server.asked
    await yard.close()


@leaping
async def test_when_the_time_is_over_all_are_refused_and_so_are_those_that_come_later() -> None:
    server = Server(is_there=False)
    yard = Yard(server)
    assert {HOLD} == set(await asyncio.gather(*(refused_at(yard.ask()) for _ in range(6))))
    assert (4, 4) == (yard.slots[-1], yard.pool.slots)
    await asyncio.sleep(50.0)
    assert HOLD + 50.0 == await refused_at(yard.ask())
    server.is_there = True
    await asyncio.sleep(15.0)
    assert (95.0 + ANSWER_SECONDS, 0) == (await yard.ask(), yard.num_returns)
    await yard.close()


@leaping
async def test_a_second_outage_has_the_whole_time_again() -> None:
    server = Server(is_there=False)
    yard = Yard(server)
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(25.0)
    server.is_there = True
    gone_at = await asking
    server.is_there = False
    assert gone_at + HOLD == await refused_at(yard.ask())
    await yard.close()


@leaping
async def test_without_such_a_time_a_request_is_refused_at_once() -> None:
    yard = Yard(Server(is_there=False), hold=0.0)
    assert 0.0 == await refused_at(yard.ask())
    assert 4 == yard.pool.slots
    await yard.close()


@leaping
async def test_a_request_waits_no_longer_than_it_may() -> None:
    yard = Yard(Server(is_there=False))
    patient = asyncio.create_task(refused_at(yard.ask()))
    assert 5.0 == await refused_at(yard.ask(expires_at=5.0))
    assert HOLD == await patient
    await yard.close()


@leaping
async def test_an_engine_that_comes_and_goes_keeps_a_request_no_longer_than_one_that_stays_away() -> None:
    server = Server()
    server.fault = EngineError(503, "engine_unreachable", "gone again")
    yard = Yard(server)
    assert HOLD <= await refused_at(yard.ask()) <= HOLD + 1.0
    assert yard.num_returns > 10
    await yard.close()


@leaping
async def test_what_an_engine_broke_off_as_it_died_is_sent_once_more_when_it_is_back() -> None:
    server = Server()
    server.fault, server.dies_of_it = EngineError(502, "broken_stream", "closed"), True
    yard = Yard(server, budget=RetryBudget(share=0.0, burst=1.0))
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(10.0)
    server.is_there, server.fault = True, None
    assert await asking < 15.0
    assert ["r", "r"] == server.asked
    await yard.close()


@leaping
async def test_what_broke_the_engine_twice_is_not_sent_a_third_time() -> None:
    server = Server()
    server.fault = EngineError(502, "broken_stream", "closed")
    yard = Yard(server)
    with pytest.raises(EngineError, match="closed"):
        await yard.ask()
    assert ["r", "r"] == server.asked
    await yard.close()


@leaping
async def test_an_engine_that_is_back_and_full_says_so() -> None:
    server = Server(is_there=False)
    yard = Yard(server)
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(5.0)
    server.is_there, server.fault = True, EngineError(503, "engine_busy", "full")
    with pytest.raises(EngineError, match="full"):
        await asking
    await yard.close()


@leaping
async def test_engines_that_answer_and_fail_are_not_waited_for() -> None:
    away, ill = Server("away", is_there=False), Server("ill")
    ill.fault = EngineError(502, "engine_error", "out of memory")
    yard = Yard(away, ill)
    for _ in range(MAX_CONSECUTIVE + 1):
        with pytest.raises(EngineError, match="out of memory"):
            await yard.ask()
    assert (0.0, 8) == (yard.pool.away_seconds, yard.pool.slots)
    await yard.close()


@leaping
async def test_one_that_failed_and_then_went_away_is_waited_for() -> None:
    server = Server()
    server.fault = EngineError(502, "engine_error", "out of memory")
    yard = Yard(server, is_checked=False)
    for _ in range(MAX_CONSECUTIVE):
        with pytest.raises(EngineError):
            await yard.ask()
    server.is_there, server.fault = False, None
    await asyncio.sleep(10.0)
    asking = asyncio.create_task(yard.ask())  # the trial
    await asyncio.sleep(0.5)
    assert (1, 1) == (yard.slots[-1], yard.pool.slots)
    server.is_there = True
    await asking
    assert 4 == yard.slots[-1]
    await yard.close()


@leaping
async def test_an_engine_that_nobody_checks_is_tried_by_a_request_that_waits() -> None:
    server = Server(is_there=False)
    yard = Yard(server, is_checked=False)
    asking = [asyncio.create_task(yard.ask()) for _ in range(3)]
    await asyncio.sleep(5.0)
    assert 1 == yard.pool.slots  # were those that wait to leave, another would find out
    server.is_there = True
    assert max(await asyncio.gather(*asking)) < 15.0
    assert [] == server.checked_at
    await yard.close()


@leaping
async def test_an_engine_that_is_added_serves_those_that_wait() -> None:
    yard = Yard(Server(is_there=False))
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(5.0)
    yard.pool.add(Server("other"), 2)
    assert 5.0 + ANSWER_SECONDS == await asking
    assert 2 == yard.pool.slots
    await yard.close()


@leaping
async def test_a_well_engine_that_drains_does_not_count() -> None:
    yard = Yard(Server("away", is_there=False), Server("leaving"))
    await asyncio.sleep(5.0)
    assert (0.0, 4) == (yard.pool.away_seconds, yard.pool.slots)
    yard.pool.drain("leaving")
    asking = asyncio.create_task(refused_at(yard.ask()))
    assert (5.0 + HOLD, 0) == (await asking, min(yard.slots))
    await yard.close()


@leaping
async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    yard = Yard(Server(is_there=False))
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(5.0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert 0 == yard.pool.inflight_of("gpu")
    await yard.close()


@leaping
async def test_a_pool_that_is_closed_lets_nobody_wait() -> None:
    yard = Yard(Server(is_there=False))
    asking = asyncio.create_task(refused_at(yard.ask()))
    await asyncio.sleep(5.0)
    await yard.close()
    assert 5.0 == await asking


@leaping
async def test_an_engine_is_checked_every_second_while_requests_wait_for_it_and_seldom_afterwards() -> None:
    server = Server(is_there=False)
    yard = Yard(server)
    await refused_at(yard.ask())
    num_while_held = len(server.checked_at)
    await asyncio.sleep(HOLD)
    assert num_while_held >= HOLD - 2
    assert len(server.checked_at) - num_while_held <= HOLD / 7
    await yard.close()


@leaping
async def test_an_engine_that_is_seldom_checked_is_asked_soon_after_it_went_away() -> None:
    server = Server()
    yard = Yard(server, is_checked=False)
    yard.pool._member("gpu").breaker.is_checked = True
    checks = HealthChecks(yard.pool)
    checks.watch("gpu", 600.0)
    await asyncio.sleep(100.0)
    server.is_there = False
    asking = asyncio.create_task(yard.ask())
    await asyncio.sleep(1.0)
    server.is_there = True
    assert await asking <= 100.0 + MAX_PAUSE_SECONDS + 1.0 + ANSWER_SECONDS
    assert 1 == len(server.checked_at)
    await checks.close()
    await yard.close()
