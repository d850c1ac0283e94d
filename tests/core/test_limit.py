from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.limit import AdaptiveLimit, Look, Promptness, Vitals
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import get_hardware

BATCH = 32


def busy(limit: AdaptiveLimit, **vitals: float) -> Look:
    """All of the limit is used, and more wants to come."""
    return Look(limit.limit, wanted=True, vitals=Vitals(**{"waiting": 0, **vitals}))  # type: ignore[arg-type]


class Backlogged:
    """An engine under a backlog without end: whatever the limit lets in is there at once."""

    def __init__(self, *, kv_tokens: int | None = None, completion_tokens: int = 300, batch: int = BATCH) -> None:
        self.model = BatchModel(get_hardware("a100-llama3-8b"), max_num_seqs=batch, kv_tokens=kv_tokens)
        self._completion_tokens = completion_tokens
        self._ids = count()
        self._added_at: dict[str, float] = {}
        self.promptness = Promptness()
        self.inflight = 0
        self.served = 0

    def run(self, until: float, limit: int) -> None:
        """Serve up to an instant, never giving the engine more than `limit`."""
        self._fill(limit)
        while step := self.model.advance(until):
            for name in step.first_tokens:
                self.promptness.observe(50, step.ended_at - self._added_at.pop(name))
            self.inflight -= len(step.finished)
            self.served += len(step.finished)
            self._fill(limit)

    def vitals(self) -> Vitals:
        model = self.model
        kv_usage = model.kv_used / model.kv_tokens
        return Vitals(model.num_running, model.num_waiting, kv_usage, model.num_preemptions)

    def _fill(self, limit: int) -> None:
        while self.inflight < limit:
            number = next(self._ids)
            # lengths scatter, so that requests do not end in step
            tokens = self._completion_tokens // 2 + number * 7919 % self._completion_tokens
            self.model.add(str(number), 50, tokens, self.model.time)
            self._added_at[str(number)] = self.model.time
            self.inflight += 1


def limits_over_time(engine: Backlogged, limit: AdaptiveLimit, *, seconds: int, scraped: bool = True) -> list[int]:
    """The limit after each second's look."""
    limits = []
    for second in range(1, seconds + 1):
        engine.run(float(second), limit.limit)
        limit.observe(Look(engine.inflight, wanted=True, vitals=engine.vitals() if scraped else None))
        limits.append(limit.limit)
    return limits


@pytest.mark.parametrize("start", [1, 8, 28, 32, 33, 64, 128, 512])
def test_it_comes_to_the_batch_from_wherever_it_starts_and_stays_there(start: int) -> None:
    limits = limits_over_time(Backlogged(), AdaptiveLimit(start), seconds=400)

    assert all(BATCH <= limit <= 1.2 * BATCH for limit in limits[120:])


def test_from_far_above_it_comes_down_by_halves() -> None:
    limits = limits_over_time(Backlogged(), AdaptiveLimit(128), seconds=60)

    assert [128, 128, 64] == limits[:3]
    assert BATCH <= limits[-1] <= 36


def test_where_memory_is_what_is_short_it_stays_below_the_batch() -> None:
    """About 30 requests fit; more are put off, and computed twice."""
    free, tight = Backlogged(kv_tokens=7_000), Backlogged(kv_tokens=7_000)
    fixed, adaptive = AdaptiveLimit(64, floor=64), AdaptiveLimit(64)
    limits_over_time(free, fixed, seconds=300)
    limits = limits_over_time(tight, adaptive, seconds=300)

    assert all(26 <= limit <= 32 for limit in limits[60:])
    assert tight.model.num_preemptions < free.model.num_preemptions / 5
    assert tight.served > 0.94 * free.served


@given(start=st.integers(1, 300), slots=st.none() | st.integers(1, 64))
def test_without_a_word_from_the_engine_it_stays(start: int, slots: int | None) -> None:
    limit = AdaptiveLimit(start)
    if slots is not None:
        limit.told(slots)
    before = limit.limit
    for _ in range(50):
        limit.observe(Look(inflight=limit.limit, wanted=True, vitals=None))

    assert before == limit.limit


def test_metrics_that_come_only_now_and_then_are_no_queue_that_stands() -> None:
    limit = AdaptiveLimit(64)
    for second in range(60):
        crowded = Vitals(running=32, waiting=32)
        limit.observe(Look(64, wanted=True, vitals=crowded if second % 3 else None))

    assert 64 == limit.limit


_looks = st.builds(
    Look,
    inflight=st.integers(0, 2000),
    wanted=st.booleans(),
    vitals=st.none()
    | st.builds(
        Vitals,
        running=st.none() | st.integers(0, 2000),
        waiting=st.none() | st.integers(0, 2000),
        kv_usage=st.none() | st.floats(0, 1),
        preemptions=st.none() | st.floats(0, 1e9),
    ),
    slowness=st.none() | st.floats(0, inf),
)


@given(st.integers(1, 100), st.integers(0, 100), st.integers(1, 400), st.lists(_looks, max_size=80))
def test_whatever_is_seen_it_stays_between_floor_and_ceiling_and_falls_by_half_at_most(
    floor: int, room: int, start: int, looks: list[Look]
) -> None:
    limit = AdaptiveLimit(start, floor=floor, ceiling=floor + room)
    for look in looks:
        before = limit.limit
        reason = limit.observe(look)
        assert floor <= limit.limit <= floor + room
        assert before // 2 <= limit.limit <= before + max(1, before // 8)
        assert (reason is None) == (limit.limit == before)


def test_it_rises_only_while_it_is_what_binds() -> None:
    unused, unwanted, used = AdaptiveLimit(8), AdaptiveLimit(8), AdaptiveLimit(8)
    for _ in range(10):
        unused.observe(Look(7, wanted=True, vitals=Vitals(running=7, waiting=0)))
        unwanted.observe(Look(8, wanted=False, vitals=Vitals(running=8, waiting=0)))
        used.observe(busy(used))

    assert (8, 8) == (unused.limit, unwanted.limit)
    assert used.limit > 8


def test_once_it_was_seen_full_it_rises_by_one() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(3):
        limit.observe(busy(limit))
    assert 72 == limit.limit
    limit.observe(busy(limit, waiting=1))
    for _ in range(3):
        limit.observe(busy(limit))

    assert 73 == limit.limit


def test_after_a_fall_it_waits_before_it_rises() -> None:
    limit = AdaptiveLimit(48)
    for _ in range(3):
        limit.observe(Look(48, wanted=True, vitals=Vitals(running=32, waiting=16)))
    assert 32 == limit.limit
    limits = []
    for _ in range(31):
        limit.observe(busy(limit))
        limits.append(limit.limit)

    assert [32] * 29 + [33, 34] == limits


def test_what_was_dispatched_under_a_higher_limit_is_given_time_to_end() -> None:
    limit = AdaptiveLimit(128)
    for _ in range(20):
        limit.observe(Look(128, wanted=True, vitals=Vitals(running=64, waiting=64)))

    assert 64 == limit.limit


def test_only_its_own_share_of_the_engines_queue_counts() -> None:
    """Another client has 30 of the 50 requests there."""
    limit = AdaptiveLimit(20)
    for _ in range(3):
        limit.observe(Look(20, wanted=True, vitals=Vitals(running=40, waiting=10)))

    assert 16 == limit.limit


def test_a_counter_that_starts_anew_is_no_preemption() -> None:
    limit = AdaptiveLimit(32)
    for preemptions in (500, 0, 0):
        assert limit.observe(busy(limit, kv_usage=0.99, preemptions=preemptions)) is None


def test_a_preemption_with_memory_to_spare_is_not_for_want_of_it() -> None:
    limit = AdaptiveLimit(32)
    limit.observe(busy(limit, kv_usage=0.5, preemptions=0))
    assert limit.observe(busy(limit, kv_usage=0.5, preemptions=7)) is None
    assert limit.observe(busy(limit, kv_usage=0.99, preemptions=9)) is None  # a few do not count
    assert "memory_full" == limit.observe(busy(limit, kv_usage=0.99, preemptions=12))
    assert 30 == limit.limit


def test_with_memory_nearly_full_it_does_not_rise() -> None:
    limit = AdaptiveLimit(8)
    for _ in range(20):
        limit.observe(busy(limit, kv_usage=0.96))

    assert 8 == limit.limit


def test_what_the_engine_says_it_serves_is_where_it_starts_and_its_most() -> None:
    limit = AdaptiveLimit(32)
    limit.told(48)
    for _ in range(20):
        limit.observe(busy(limit))

    assert 48 == limit.limit


def test_an_operators_bounds_are_kept_whatever_the_engine_says() -> None:
    low, high = AdaptiveLimit(16, floor=8, ceiling=16), AdaptiveLimit(16, floor=8)
    low.told(64)
    high.told(4)

    assert (16, 8) == (low.limit, high.limit)


def test_late_first_tokens_lower_it_only_where_the_engine_says_nothing_of_its_queue() -> None:
    silent, telling = AdaptiveLimit(32), AdaptiveLimit(32, ceiling=32)
    assert "slow_first_tokens" == silent.observe(Look(32, wanted=True, slowness=8.0))
    telling.observe(Look(32, wanted=True, vitals=Vitals(waiting=0), slowness=8.0))

    assert (29, 32) == (silent.limit, telling.limit)


@pytest.mark.parametrize("batch", [4, 8, 32])
def test_of_a_silent_engine_first_tokens_tell_how_large_its_batch_is(batch: int) -> None:
    """A quiet minute tells what is usual; then more comes than it can serve, and ten minutes later:"""
    engine, limit = Backlogged(batch=batch), AdaptiveLimit(32)
    for second in range(1, 660):
        engine.run(float(second), limit.limit if second >= 60 else 2)
        limit.observe(Look(engine.inflight, wanted=second >= 60, slowness=engine.promptness.slowness()))

    assert batch <= limit.limit <= batch + 1


def test_late_first_tokens_of_what_is_there_too_many_are_no_news() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(5):
        limit.observe(Look(64, wanted=True, slowness=100.0))

    assert 58 == limit.limit


def test_on_late_first_tokens_alone_it_never_collapses() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(200):
        limit.observe(Look(limit.limit, wanted=True, slowness=100.0))

    assert 8 == limit.limit


def test_prompt_first_tokens_bring_it_back_to_its_start_and_no_further() -> None:
    limit = AdaptiveLimit(10)
    limit.observe(Look(10, wanted=True, slowness=20.0))
    assert 9 == limit.limit
    for _ in range(100):
        limit.observe(Look(limit.limit, wanted=True, slowness=1.0))

    assert 10 == limit.limit


@pytest.mark.parametrize(("floor", "ceiling"), [(0, 5), (6, 5)])
def test_bounds_that_make_no_sense_are_refused(floor: int, ceiling: int) -> None:
    with pytest.raises(ValueError, match="floor"):
        AdaptiveLimit(5, floor=floor, ceiling=ceiling)


def test_promptness_is_measured_against_prompts_of_the_same_length() -> None:
    promptness = Promptness()
    for _ in range(50):
        promptness.observe(20, 0.05)
        promptness.observe(3000, 1.0)
    promptness.slowness()
    for _ in range(8):
        promptness.observe(3000, 1.0)
    assert pytest.approx(1.0) == promptness.slowness()
    for _ in range(8):
        promptness.observe(20, 0.5)
    slowness = promptness.slowness()

    assert slowness is not None
    assert 9.0 < slowness <= 10.0


def test_a_few_first_tokens_say_nothing() -> None:
    promptness = Promptness()
    for _ in range(7):
        promptness.observe(20, 0.05)

    assert promptness.slowness() is None


def test_an_hour_of_crowding_is_soon_forgotten_as_the_usual() -> None:
    promptness = Promptness()
    for _ in range(2000):
        promptness.observe(20, 5.0)
    for _ in range(30):
        promptness.observe(20, 0.05)
    promptness.slowness()
    for _ in range(8):
        promptness.observe(20, 1.0)
    slowness = promptness.slowness()

    assert slowness is not None
    assert slowness > 15
