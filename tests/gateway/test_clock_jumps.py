"""Clocks that jump: a machine that was suspended, a wall clock that was set. Accounts are straight afterwards."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random

import pytest

from driftsched.core.events import Event, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Request, Tenant, Tier
from driftsched.core.protocols import Chunk, Saturation
from driftsched.core.scheduler import Scheduler
from driftsched.estimators import create_counter, create_estimator
from driftsched.estimators.categories import KeywordClassifier
from driftsched.estimators.describe import PromptDescriber
from driftsched.gateway.dispatcher import Dispatcher
from driftsched.gateway.errors import ExpiredError
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.telemetry.journal import Journal, read_journal
from support.faulty_upstream import finish_event
from support.servers import until

HOUR = 3600.0


class Clock:
    """Goes only when it is moved."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at


class Engine:
    """Answers when it is let."""

    name = "held"

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        await self.free.wait()
        yield Chunk(finish_event(), 3, finish_reason="stop")

    async def saturation(self) -> Saturation:
        return Saturation(0.0)

    async def close(self) -> None: ...


class Desk:
    """A dispatcher with one slot, whose clock is the test's."""

    def __init__(self, policy: str, journal: Journal | None = None) -> None:
        self.clock = Clock()
        self.engine = Engine()
        self.events: list[Event] = []
        self.queue = MemoryQueue(1)
        scheduler = Scheduler(
            policy=create_policy(policy),
            estimator=create_estimator("calibrated"),
            describer=PromptDescriber(KeywordClassifier(), create_counter("bytes")),
            queue=self.queue,
            listeners=[self.events.append, *([journal] if journal else [])],
        )
        self.dispatcher = Dispatcher(scheduler, self.engine, self.clock)

    def ask(self, name: str) -> "asyncio.Task[str]":
        return asyncio.create_task(self._ask(name))

    async def _ask(self, name: str) -> str:
        now = self.clock.now()
        request = Request(name, Tenant("t"), Tier.STANDARD, "m", arrived_at=now, prompt="x", expires_at=now + 600)
        try:
            async with self.dispatcher.turn(request, client_left=lambda: True) as turn:
                async for _ in turn.answer():
                    pass
        except ExpiredError:
            return "expired"
        return "served"

    def ends(self) -> Counter[type[Event]]:
        return Counter(type(e) for e in self.events if isinstance(e, Finished | Evicted | Failed | Rejected))


@pytest.mark.parametrize("policy", ["fair", "slack", "edf", "fifo"])
async def test_after_a_leap_who_waited_too_long_is_told_and_who_is_served_is_served(policy: str) -> None:
    desk = Desk(policy)
    served = desk.ask("first")
    waiting = [desk.ask(f"waiting {n}") for n in range(5)]
    await until(lambda: desk.queue.num_waiting == 5)
    desk.clock.at += HOUR
    late = desk.ask("after the leap")
    await until(lambda: desk.queue.num_waiting == 6)
    await desk.dispatcher.expire()
    desk.engine.free.set()
    assert ["expired"] * 5 == await asyncio.gather(*waiting)
    assert ["served", "served"] == list(await asyncio.gather(served, late))
    assert {Finished: 2, Evicted: 5} == desk.ends()
    assert (0, 0) == (desk.queue.num_waiting, desk.queue.num_inflight)


async def test_after_a_leap_the_next_are_served_as_ever() -> None:
    desk = Desk("fair")
    desk.engine.free.set()
    for leap in (0.0, HOUR, 0.0, 1000 * HOUR, 1e-9):
        desk.clock.at += leap
        assert ["served"] * 4 == await asyncio.gather(*(desk.ask(f"{leap} {n}") for n in range(4)))
    assert {Finished: 20} == desk.ends()


async def test_the_journal_has_true_durations_whatever_the_wall_clock_does(tmp_path: Path) -> None:
    rng = Random(1)
    path = tmp_path / "journal.sqlite"
    journal = Journal(
        path, policy="fair", estimator="static", max_days=1e9, wall_clock=lambda: rng.uniform(0, 2_000_000_000)
    )
    desk = Desk("fair", journal)
    desk.engine.free.set()
    for _ in range(20):
        call = desk.ask(f"n{rng.random()}")
        desk.clock.at += 1
        assert "served" == await call
    journal.close()
    rows = read_journal(path, since=-1e12)
    assert (20, 0) == (len(rows), journal.dropped)
    assert all(0 <= row.ended_seconds <= 1 for row in rows)
