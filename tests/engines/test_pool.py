import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from driftsched.core.errors import EngineError
from driftsched.core.model import Traits
from driftsched.core.protocols import Chunk, Saturation
from driftsched.engines.breaker import JITTER, LOST_AFTER, MAX_CONSECUTIVE, OPEN_SECONDS
from driftsched.engines.payload import Payload
from driftsched.engines.pool import EnginePool
from driftsched.engines.retries import RetryBudget
from support.prompts import request_of
from support.servers import until


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


class CheckedReplica(Replica):
    """Says whether it is there."""

    is_there = False
    num_checks = 0

    async def check(self) -> None:
        self.num_checks += 1
        if not self.is_there:
            raise unreachable()


class Silent(CheckedReplica):
    """Begins its answers when it may."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.may_begin = asyncio.Event()

    async def generate(self, request: object) -> AsyncGenerator[Chunk, None]:
        self.num_open += 1
        try:
            await self.may_begin.wait()
            yield Chunk(b"begun")
        finally:
            self.num_open -= 1


def pool_of(*replicas: Replica, slots: int = 2) -> EnginePool:
    return EnginePool([(replica, slots) for replica in replicas])


def payload_of(*, stream: bool = False, passed: bool = False) -> Payload:
    return Payload("/v1/chat/completions", b"{}", stream, wants_usage=False, passed=passed)


async def answer_of(pool: EnginePool, payload: Payload | None = None) -> list[str]:
    async with aclosing(pool.generate(replace(request_of(), payload=payload))) as chunks:
        return [chunk.data.decode() async for chunk in chunks]


def broken() -> EngineError:
    return EngineError(502, "broken_stream", "it broke off")


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


async def test_a_replica_that_cannot_be_reached_is_left_alone_until_one_request_may_find_out() -> None:
    now = [0.0]
    away, there = Replica("away", error=unreachable()), Replica("there", "a")
    pool = EnginePool([(away, 2), (there, 2)], clock=lambda: now[0], seed=1)
    assert [["a"]] * 5 == [await answer_of(pool) for _ in range(5)]
    assert (1, 5) == (away.num_calls, there.num_calls)
    now[0] += OPEN_SECONDS * (1 + JITTER)
    for _ in range(5):
        await answer_of(pool)
    assert (2, 10) == (away.num_calls, there.num_calls)


async def test_slots_of_a_replica_that_is_left_alone_do_not_count() -> None:
    changes: list[int] = []
    away, there = Replica("away", error=unreachable()), Replica("there", "a")
    pool = pool_of(away, there)
    pool.on_slots(lambda: changes.append(pool.slots))
    await answer_of(pool)
    assert ([2], 2) == (changes, pool.slots)


async def test_a_full_replica_is_spared_and_stays_well() -> None:
    now = [0.0]
    full = Replica("full", error=EngineError(503, "engine_busy", "full", retry_after="7"))
    free = Replica("free", "a")
    pool = EnginePool([(full, 2), (free, 2)], clock=lambda: now[0])
    for now[0] in (0.0, 3.0, 6.9, 7.0):
        await answer_of(pool)
    assert (2, "closed") == (full.num_calls, pool.standing_of("full").circuit)


async def test_an_ill_replica_is_better_than_none_and_one_that_is_away_is_not() -> None:
    ill = Replica("ill", error=EngineError(500, "engine_error", "no"))
    pool = pool_of(ill)
    kinds = []
    for _ in range(MAX_CONSECUTIVE + 2):
        with pytest.raises(EngineError) as caught:
            await answer_of(pool)
        kinds.append(caught.value.kind)
    assert ({"engine_error"}, MAX_CONSECUTIVE + 2) == (set(kinds), ill.num_calls)
    away = Replica("away", error=unreachable())
    pool = EnginePool([(away, 2)], clock=lambda: 0.0, seed=1)
    for _ in range(3):
        with pytest.raises(EngineError) as caught:
            await answer_of(pool)
    assert (1, "engine_unreachable", "1") == (away.num_calls, caught.value.kind, caught.value.retry_after)


async def test_retries_end_with_their_budget() -> None:
    busy = [Replica(name, error=EngineError(503, "engine_busy", "full")) for name in ("a", "b")]
    pool = EnginePool([(replica, 64) for replica in busy], budget=RetryBudget(share=0.2, burst=3.0))
    for _ in range(20):
        with pytest.raises(EngineError):
            await answer_of(pool)
    standings = [pool.standing_of(name) for name in ("a", "b")]
    assert 20 + 3 + 4 - 1 <= busy[0].num_calls + busy[1].num_calls <= 20 + 3 + 4
    assert 20 == sum(standing.num_retries + standing.num_unretried for standing in standings)


async def test_a_request_is_sent_to_three_engines_and_no_more() -> None:
    replicas = [Replica(name, error=unreachable()) for name in "abcde"]
    with pytest.raises(EngineError):
        await answer_of(pool_of(*replicas))
    assert 3 == sum(replica.num_calls for replica in replicas)


async def test_a_request_that_breaks_two_engines_is_not_sent_to_a_third() -> None:
    replicas = [Replica(name, error=EngineError(502, "broken_stream", "gone")) for name in "abc"]
    with pytest.raises(EngineError):
        await answer_of(pool_of(*replicas))
    assert 2 == sum(replica.num_calls for replica in replicas)


async def test_the_replica_with_the_least_predicted_work_is_given_the_next() -> None:
    lengths = {"long": 1000.0, "short": 10.0}
    left, right = Replica("left", "x", "x"), Replica("right", "x", "x")
    pool = pool_of(left, right, slots=8)
    pool.expect(lengths.__getitem__)
    opened = []
    for name in ("long", "short", "short", "short"):
        opened.append(pool.generate(replace(request_of(), id=name)))
        await anext(opened[-1])
    assert (1, 3) == (left.num_open, right.num_open)
    assert (1000.0, 30.0) == tuple(pool.standing_of(name).outstanding_tokens for name in ("left", "right"))
    for answer in opened:
        await answer.aclose()
    assert 0.0 == pool.standing_of("left").outstanding_tokens


async def test_the_turns_of_a_conversation_meet_at_one_replica() -> None:
    replicas = [Replica(name, "x") for name in "abc"]
    pool = EnginePool([(replica, 8) for replica in replicas], affinity="session")
    for _ in range(6):
        async with aclosing(pool.generate(replace(request_of(), traits=Traits(session="s")))) as chunks:
            [_ async for _ in chunks]
    assert [0, 0, 6] == sorted(replica.num_calls for replica in replicas)


async def test_a_check_finds_that_a_replica_is_back_and_no_request_is_risked_for_it() -> None:
    now = [0.0]
    away, there = CheckedReplica("away", error=unreachable()), Replica("there", "a")
    pool = EnginePool([(away, 2), (there, 2)], checked=["away"], clock=lambda: now[0], seed=1)
    for _ in range(3):
        await answer_of(pool)
        now[0] += 100.0
    await pool.check("away")
    assert ("open", 1, 1) == (pool.standing_of("away").circuit, away.num_calls, away.num_checks)
    away.is_there = True
    now[0] += 100.0
    await pool.check("away")
    assert ("closed", 1, 4) == (pool.standing_of("away").circuit, away.num_calls, pool.slots)


async def test_what_waits_at_an_engine_that_is_lost_goes_elsewhere_and_what_has_begun_goes_on() -> None:
    now = [0.0]
    lost, there = Silent("lost"), Replica("there", "a")
    pool = EnginePool([(lost, 8)], checked=["lost"], clock=lambda: now[0], seed=1)
    begun = pool.generate(request_of())
    lost.may_begin.set()
    assert b"begun" == (await anext(begun)).data
    lost.may_begin.clear()
    waiting = asyncio.create_task(answer_of(pool))
    await until(lambda: lost.num_open == 2)
    pool.add(there, 2)
    for _ in range(1 + LOST_AFTER):
        for _ in range(20):  # turns of the loop, in which it would come to its end
            await asyncio.sleep(0)
        assert not waiting.done()
        await pool.check("lost")
        now[0] += 100.0
    assert ["a"] == await waiting
    assert (1, 1) == (lost.num_open, pool.standing_of("lost").num_retries)
    await begun.aclose()


async def test_a_client_that_leaves_as_its_engine_is_lost_has_left() -> None:
    now = [0.0]
    lost = Silent("lost")
    pool = EnginePool([(lost, 8)], checked=["lost"], clock=lambda: now[0], seed=1)
    waiting = asyncio.create_task(answer_of(pool))
    await until(lambda: lost.num_open == 1)
    pool.add(Replica("there", "a"), 2)
    for _ in range(1 + LOST_AFTER):
        await pool.check("lost")
        now[0] += 100.0
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert 0 == pool.standing_of("lost").num_retries


async def test_a_trial_that_its_client_leaves_makes_room_for_another() -> None:
    now = [0.0]
    replica = Silent("only")
    pool = EnginePool([(replica, 8), (Replica("there", "a"), 8)], clock=lambda: now[0], seed=1)
    breaker = pool._member("only").breaker
    breaker.failed(breaker.begin(0.0), 0.0, unreachable=True)
    now[0] += 100.0
    trial = asyncio.create_task(answer_of(pool))
    await until(lambda: replica.num_open == 1)
    assert not breaker.allows(now[0])
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    assert breaker.allows(now[0])


async def test_checks_find_that_an_idle_replica_went_away() -> None:
    away = CheckedReplica("away", "a")
    pool = EnginePool([(away, 2), (Replica("there", "b"), 2)], checked=["away"])
    away.is_there = False
    await pool.check("away")
    assert [["b"]] * 3 == [await answer_of(pool) for _ in range(3)]
    assert 0 == away.num_calls


async def test_the_last_replicas_failure_is_told_when_none_can_be_reached() -> None:
    replicas = [Replica(name, error=unreachable()) for name in ("a", "b", "c")]
    with pytest.raises(EngineError) as caught:
        await answer_of(pool_of(*replicas))
    assert "engine_unreachable" == caught.value.kind
    assert [1, 1, 1] == [replica.num_calls for replica in replicas]


@pytest.mark.parametrize("kind", ["engine_rejected", "engine_error", "engine_timeout", "garbage"])
async def test_a_failure_of_the_request_itself_is_not_repeated_elsewhere(kind: str) -> None:
    first, second = Replica("first", error=EngineError(500, kind, "no")), Replica("second", "a")
    with pytest.raises(EngineError) as caught:
        await answer_of(pool_of(first, second))
    assert (kind, 0) == (caught.value.kind, second.num_calls)


@pytest.mark.parametrize("payload", [None, payload_of(stream=True), payload_of(passed=True)])
async def test_an_answer_that_is_passed_on_as_it_comes_is_never_begun_again(payload: Payload | None) -> None:
    first, second = Replica("first", "a", error=unreachable()), Replica("second", "a", "b")
    with pytest.raises(EngineError):
        await answer_of(pool_of(first, second), payload)
    assert 0 == second.num_calls


async def test_an_answer_that_is_gathered_is_begun_anew_and_says_so() -> None:
    pool = pool_of(Replica("first", "a", "b", error=broken()), Replica("second", "c", "d"))
    async with aclosing(pool.generate(replace(request_of(), payload=payload_of()))) as chunks:
        told = [(chunk.data, chunk.begins_anew) async for chunk in chunks]
    assert [(b"a", False), (b"b", False), (b"c", True), (b"d", False)] == told


async def test_an_answer_that_two_engines_break_off_is_not_begun_a_third_time() -> None:
    *breaking, third = (Replica(name, "a", error=broken()) for name in ("first", "second", "third"))
    with pytest.raises(EngineError):
        await answer_of(pool_of(*breaking, third), payload_of())
    assert [1, 1, 0] == [each.num_calls for each in (*breaking, third)]


async def test_beginning_anew_is_paid_for_like_any_retry() -> None:
    first, second = Replica("first", "a", error=broken()), Replica("second", "a")
    pool = EnginePool([(first, 2), (second, 2)], budget=RetryBudget(share=0.0, burst=0.0))
    with pytest.raises(EngineError):
        await answer_of(pool, payload_of())
    assert (0, 1) == (second.num_calls, pool.standing_of("first").num_unretried)


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
