from math import exp

import pytest

from driftsched.core.throughput import Throughput


def test_nothing_is_known_until_something_finished() -> None:
    throughput = Throughput()
    throughput.observe(0.0, busy=False)
    throughput.observe(5.0, busy=True)
    assert 0.0 == throughput.tokens_per_second


def test_a_steady_pool_is_measured_exactly() -> None:
    throughput = Throughput(memory_seconds=60)
    for second in range(2000):
        throughput.observe(float(second), busy=True, tokens=50)
    # 50 tokens at the end of each second, seen right after a second's end: 50 / (60 (1 - e^(-1/60)))
    assert pytest.approx(50 / (60 * (1 - exp(-1 / 60)))) == throughput.tokens_per_second
    assert pytest.approx(50, rel=0.01) == throughput.tokens_per_second


def test_idle_time_does_not_slow_the_pool_down() -> None:
    throughput = Throughput()
    for second in range(100):
        throughput.observe(float(second), busy=True, tokens=50)
    before = throughput.tokens_per_second
    throughput.observe(10_000.0, busy=False)
    assert before == throughput.tokens_per_second


def test_the_past_is_forgotten_within_a_few_time_constants() -> None:
    throughput = Throughput(memory_seconds=10)
    for second in range(100):
        throughput.observe(float(second), busy=True, tokens=1000)
    for second in range(100, 150):
        throughput.observe(float(second), busy=True, tokens=10)
    assert pytest.approx(10, rel=0.8) == throughput.tokens_per_second


def test_answers_that_end_at_one_instant_all_count() -> None:
    throughput = Throughput()
    throughput.observe(0.0, busy=False)
    for _ in range(4):
        throughput.observe(1.0, busy=True, tokens=25)
    assert pytest.approx(100, rel=0.01) == throughput.tokens_per_second


@pytest.mark.parametrize("tokens", [-1, -(10**9), 10**9, 10**400])
def test_a_count_that_no_answer_can_have_is_left_out(tokens: int) -> None:
    throughput = Throughput()
    throughput.observe(0.0, busy=False)
    throughput.observe(10.0, busy=True, tokens=100)
    before = throughput.tokens_per_second
    throughput.observe(10.0, busy=True, tokens=tokens)
    assert before == throughput.tokens_per_second


def test_an_instant_before_the_last_counts_as_the_last() -> None:
    ahead, level = Throughput(), Throughput()
    for throughput in (ahead, level):
        throughput.observe(0.0, busy=False)
        throughput.observe(10.0, busy=True, tokens=100)
    ahead.observe(4.0, busy=True, tokens=50)
    level.observe(10.0, busy=True, tokens=50)
    assert level.tokens_per_second == ahead.tokens_per_second


def test_a_clock_that_stands_still_is_no_division_by_zero() -> None:
    throughput = Throughput()
    throughput.observe(1.0, busy=False)
    throughput.observe(1.0, busy=True, tokens=10)
    assert 0.0 == throughput.tokens_per_second
