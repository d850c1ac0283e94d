from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from driftsched.core.errors import EngineError
from driftsched.core.protocols import Chunk, Saturation
from driftsched.engines.pool import EnginePool
from support.prompts import request_of


class Replica:
    """Gives its chunks, then fails if it has an error to raise."""

    def __init__(
        self,
        name: str,
        *chunks: str,
        error: EngineError | None = None,
        healthy: bool = True,
        fraction: float = 0.0,
    ) -> None:
        self.name = name
        self.healthy = healthy
        self.fraction = fraction
        self.num_calls = 0
        self.num_open = 0
        self.is_closed = False
        self._chunks = [Chunk(text.encode()) for text in chunks]
        self._error = error

    async def generate(self, request: object) -> AsyncGenerator[Chunk, None]:
        self.num_calls += 1
        self.num_open += 1
        try:
            for chunk in self._chunks:
                yield chunk
            if self._error:
                raise self._error
        finally:
            self.num_open -= 1

    async def saturation(self) -> Saturation:
        return Saturation(self.fraction, self.healthy)

    async def close(self) -> None:
        self.is_closed = True


def pool_of(*replicas: Replica, slots: int = 2) -> EnginePool:
    return EnginePool([(replica, slots) for replica in replicas])


async def answer_of(pool: EnginePool) -> list[str]:
    async with aclosing(pool.generate(request_of())) as chunks:
        return [chunk.data.decode() async for chunk in chunks]


def unreachable() -> EngineError:
    return EngineError(503, "engine_unreachable", "no route")


async def test_requests_go_to_the_replica_with_the_most_room() -> None:
    small, large = Replica("small", "x", "x"), Replica("large", "x", "x")
    pool = EnginePool([(small, 1), (large, 3)])
    open_answers = []
    for _ in range(4):
        answer = pool.generate(request_of())
        await anext(answer)
        open_answers.append(answer)
    assert (1, 3) == (small.num_open, large.num_open)
    for answer in open_answers:
        await answer.aclose()
    assert (0, 0) == (small.num_open, large.num_open)


@pytest.mark.parametrize("error", [unreachable(), EngineError(503, "engine_busy", "full")])
async def test_a_replica_that_did_nothing_is_passed_over(error: EngineError) -> None:
    away, there = Replica("away", error=error), Replica("there", "a", "b")
    assert ["a", "b"] == await answer_of(pool_of(away, there))
    assert (1, 1) == (away.num_calls, there.num_calls)


async def test_a_replica_known_to_be_unwell_is_tried_last() -> None:
    away, there = Replica("away", error=unreachable(), healthy=False), Replica("there", "a")
    assert ["a"] == await answer_of(pool_of(away, there))
    assert (0, 1) == (away.num_calls, there.num_calls)


async def test_the_last_replicas_failure_is_told_when_none_can_be_reached() -> None:
    replicas = [Replica(name, error=unreachable()) for name in ("a", "b", "c")]
    with pytest.raises(EngineError) as caught:
        await answer_of(pool_of(*replicas))
    assert "engine_unreachable" == caught.value.kind
    assert [1, 1, 1] == [replica.num_calls for replica in replicas]


@pytest.mark.parametrize("kind", ["engine_rejected", "engine_error", "engine_timeout", "broken_stream"])
async def test_a_failure_of_the_request_itself_is_not_repeated_elsewhere(kind: str) -> None:
    first, second = Replica("first", error=EngineError(500, kind, "no")), Replica("second", "a")
    with pytest.raises(EngineError) as caught:
        await answer_of(pool_of(first, second))
    assert (kind, 0) == (caught.value.kind, second.num_calls)


async def test_an_answer_that_has_begun_is_never_begun_again() -> None:
    first, second = Replica("first", "a", error=unreachable()), Replica("second", "a", "b")
    with pytest.raises(EngineError):
        await answer_of(pool_of(first, second))
    assert 0 == second.num_calls


async def test_a_failed_or_abandoned_answer_takes_up_no_room() -> None:
    failing, spare = Replica("failing", "a", error=EngineError(502, "broken_stream", "no")), Replica("spare", "a")
    pool = pool_of(failing, spare, slots=1)
    with pytest.raises(EngineError):
        await answer_of(pool)
    abandoned = pool.generate(request_of())
    await anext(abandoned)
    await abandoned.aclose()
    with pytest.raises(EngineError):
        await answer_of(pool)
    assert (3, 0) == (failing.num_calls, spare.num_calls)  # had one kept its place, the spare would have more room


async def test_a_pool_is_as_full_as_its_emptiest_replica_and_as_well_as_its_healthiest() -> None:
    pool = pool_of(Replica("a", fraction=1.0, healthy=False), Replica("b", fraction=0.25))
    assert Saturation(0.25, healthy=True) == await pool.saturation()
    pool = pool_of(Replica("a", healthy=False), Replica("b", healthy=False))
    assert not (await pool.saturation()).healthy


def test_slots_add_up_and_can_be_learnt_later() -> None:
    pool = pool_of(Replica("a"), Replica("b"), slots=32)
    pool.set_slots("b", 8)
    assert 40 == pool.slots


async def test_closing_a_pool_closes_every_replica() -> None:
    replicas = [Replica("a"), Replica("b")]
    await pool_of(*replicas).close()
    assert [True, True] == [replica.is_closed for replica in replicas]


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one engine"):
        EnginePool([])
