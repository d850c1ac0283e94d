from random import Random

import pytest

from driftsched.core.usual import MAX_DRAIN_SECONDS, MEMORY, Usual


def test_nothing_is_usual_before_the_first_admission() -> None:
    assert (0.0, 0.0, 0.0) == (Usual().middle_tokens, Usual().long_tokens, Usual().drain_seconds)


def test_half_of_the_lengths_stay_below_the_middle_and_nine_of_ten_below_a_long_one() -> None:
    usual, random = Usual(), Random(1)
    shorter = below = 0
    for number in range(4000):
        length = random.lognormvariate(5, 1)
        shorter += number >= 2000 and length <= usual.middle_tokens
        below += number >= 2000 and length <= usual.long_tokens
        usual.observe(length, None)
    assert pytest.approx(0.5, abs=0.02) == shorter / 2000
    assert pytest.approx(0.9, abs=0.02) == below / 2000


def test_where_all_lengths_are_alike_the_middle_stays_by_them() -> None:
    usual = Usual()
    for number in range(1000):
        usual.observe(100.0, None)
        assert number < 100 or pytest.approx(100.0, rel=0.02) == usual.middle_tokens


def test_a_long_length_follows_when_all_answers_become_four_times_as_long() -> None:
    usual, random = Usual(), Random(2)
    for factor in (1.0, 4.0):
        for _ in range(1000):
            usual.observe(factor * random.lognormvariate(5, 1), None)
        assert pytest.approx(factor * 535, rel=0.35) == usual.long_tokens  # e^(5 + 1.28)


def test_the_usual_drain_time_is_the_mean_of_those_that_could_be_told() -> None:
    usual = Usual()
    for drain_seconds in (10.0, None, 20.0, 0.0):
        usual.observe(100.0, drain_seconds)
    assert pytest.approx(10.0) == usual.drain_seconds


def test_the_usual_drain_time_follows_within_a_few_thousand_admissions() -> None:
    usual = Usual()
    for drain_seconds in (2.0, 30.0):
        for _ in range(5 * MEMORY):
            usual.observe(100.0, drain_seconds)
    assert pytest.approx(30.0, rel=0.01) == usual.drain_seconds


def test_an_engine_that_stands_still_is_not_taken_for_an_endless_backlog() -> None:
    usual = Usual()
    usual.observe(100.0, float("inf"))
    assert MAX_DRAIN_SECONDS == usual.drain_seconds
