import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from driftsched.core.errors import ConfigError, EngineError
from driftsched.gateway.catalogue import Catalogue
from support.servers import until


@dataclass(frozen=True)
class Told:
    models: tuple[str, ...]
    slots: int | None = None
    kind: str = "generic"


class Engine:
    """Tells what it is set to tell; None is no answer."""

    def __init__(self, name: str, told: Told | None) -> None:
        self.name = name
        self.told = told
        self.num_asked = 0

    async def discover(self) -> Told:
        self.num_asked += 1
        await asyncio.sleep(0)
        if self.told is None:
            raise EngineError(503, "engine_unreachable", "nobody there")
        return self.told


class Hanging(Engine):
    """Takes the question and never answers."""

    async def discover(self) -> Told:
        await asyncio.Event().wait()
        raise AssertionError


class Slots:
    """Remembers what it was told of slots."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    async def __call__(self, engine: str, slots: int) -> None:
        self.told.append((engine, slots))


@asynccontextmanager
async def catalogue_of(
    *engines: Engine, slots: Slots | None = None, ready_seconds: float = 0.0
) -> AsyncIterator[Catalogue]:
    catalogue = Catalogue(engines, on_slots=slots or Slots(), retry_seconds=0.0, ready_seconds=ready_seconds)
    try:
        yield catalogue
    finally:
        await catalogue.close()


async def test_models_and_slots_are_what_the_engines_tell() -> None:
    slots = Slots()
    engines = [Engine("a", Told(("m", "n"), 8)), Engine("b", Told(("m", "n"), None))]
    async with catalogue_of(*engines, slots=slots) as catalogue:
        await catalogue.start()
        assert ("m", "n") == catalogue.models
        assert [("a", 8)] == slots.told


async def test_nothing_is_known_before_an_engine_has_told() -> None:
    async with catalogue_of(Engine("a", None)) as catalogue:
        await catalogue.start()
        assert None is catalogue.models


async def test_an_engine_that_comes_late_is_heard_and_not_asked_again() -> None:
    early, late = Engine("early", Told(("m",), 4)), Engine("late", None)
    slots = Slots()
    async with catalogue_of(early, late, slots=slots) as catalogue:
        await catalogue.start()
        late.told = Told(("m",), 16)
        await until(lambda: ("late", 16) in slots.told)
        num_asked = (early.num_asked, late.num_asked)
        for _ in range(20):
            await asyncio.sleep(0)
        assert num_asked == (early.num_asked, late.num_asked)
        assert 1 == early.num_asked


async def test_engines_with_different_models_are_refused_at_the_start() -> None:
    async with catalogue_of(Engine("a", Told(("m",))), Engine("b", Told(("n",)))) as catalogue:
        with pytest.raises(ConfigError, match=r"a serves m, but b serves n.*replicas"):
            await catalogue.start()


async def test_an_engine_that_differs_and_comes_late_is_logged_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    late = Engine("late", None)
    async with catalogue_of(Engine("a", Told(("m",))), late) as catalogue:
        await catalogue.start()
        late.told = Told(("n",))
        await until(lambda: any(record.levelno == logging.ERROR for record in caplog.records))
        assert ("m",) == catalogue.models
        assert await catalogue.ready()
    assert "late serves n" in caplog.text


async def test_one_engine_that_answers_is_enough_to_be_ready() -> None:
    away = Engine("away", None)
    there = Engine("there", Told(("m",)))
    async with catalogue_of(away, there) as catalogue:
        assert await catalogue.ready()
        there.told = None
        assert not await catalogue.ready()
        away.told = Told(("m",))
        assert await catalogue.ready()


async def test_who_probes_does_not_wait_for_an_engine_that_hangs() -> None:
    async with catalogue_of(Hanging("hangs", None), Engine("there", Told(("m",)))) as catalogue:
        assert [True, True] == [await catalogue.ready(), await catalogue.ready()]


async def test_engines_that_went_away_are_waited_for_and_those_never_seen_are_not() -> None:
    now = [0.0]
    engine = Engine("a", None)
    catalogue = Catalogue([engine], on_slots=Slots(), ready_seconds=1.0, away_seconds=30.0, clock=lambda: now[0])

    async def ready_at(instant: float) -> bool:
        now[0] = instant
        return await catalogue.ready()

    assert not await ready_at(0.0)
    engine.told = Told(("m",))
    assert await ready_at(10.0)
    engine.told = None
    assert [True, True, False, False] == [await ready_at(seconds) for seconds in (1000.0, 1029.0, 1031.0, 2000.0)]
    engine.told = Told(("m",))
    assert await ready_at(2010.0)
    engine.told = None
    assert await ready_at(2020.0)


@pytest.mark.parametrize("told", [None, Told(("m",))])
async def test_many_probes_ask_an_engine_once(told: Told | None) -> None:
    engine = Engine("a", told)
    async with catalogue_of(engine, ready_seconds=60.0) as catalogue:
        answers = await asyncio.gather(*(catalogue.ready() for _ in range(50)))
    assert ([told is not None] * 50, 1) == (answers, engine.num_asked)


async def test_two_engines_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="same name"):
        Catalogue([Engine("a", None), Engine("a", None)], on_slots=Slots())


async def test_an_engine_that_joins_must_answer_have_a_name_of_its_own_and_serve_what_the_others_do() -> None:
    async with catalogue_of(Engine("a", Told(("m",)))) as catalogue:
        await catalogue.start()
        assert Told(("m",), 4) == await catalogue.join(Engine("b", Told(("m",), 4)))
        for engine, refusal in (
            (Engine("b", Told(("m",))), ConfigError),
            (Engine("c", Told(("n",))), ConfigError),
            (Engine("d", None), EngineError),
        ):
            with pytest.raises(refusal):
                await catalogue.join(engine)


async def test_what_an_engine_told_is_forgotten_with_it() -> None:
    silent = Engine("b", None)
    async with catalogue_of(Engine("a", Told(("m",))), silent) as catalogue:
        await catalogue.start()
        catalogue.forget("a")
        assert catalogue.models is None
        silent.told = Told(("n",))
        await until(lambda: catalogue.models == ("n",))
