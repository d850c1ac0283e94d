from math import sqrt
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.sim.statistics import (
    Interval,
    kendall_tau,
    paired_difference,
    saturation,
    student_t_quantile,
    t_interval,
    unaccounted,
    wilson_interval,
)
from support.recordings import Served, queue_run, recording_of

# Published table of the 97.5 % and 99.5 % quantiles of Student's t.
T_TABLE = [
    (1, 12.706, 63.657),
    (2, 4.303, 9.925),
    (3, 3.182, 5.841),
    (4, 2.776, 4.604),
    (5, 2.571, 4.032),
    (9, 2.262, 3.250),
    (10, 2.228, 3.169),
    (19, 2.093, 2.861),
    (29, 2.045, 2.756),
    (60, 2.000, 2.660),
    (120, 1.980, 2.617),
]


@pytest.mark.parametrize(("degrees", "q975", "q995"), T_TABLE)
def test_quantiles_are_those_of_the_published_table(degrees: int, q975: float, q995: float) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(q975, abs=5.1e-4)
    assert student_t_quantile(0.995, degrees) == pytest.approx(q995, abs=5.1e-4)
    assert student_t_quantile(0.025, degrees) == -student_t_quantile(0.975, degrees)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 5), (1.0, 5), (1.2, 5), (0.9, 0)])
def test_a_quantile_that_does_not_exist_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match=r"probability must|degrees of freedom must"):
        student_t_quantile(probability, degrees)


def test_an_interval_is_the_mean_and_what_the_spread_allows() -> None:
    interval = t_interval([1.0, 2.0, 3.0, 4.0])
    assert 2.5 == interval.mean
    assert 4 == interval.n
    assert interval.half_width == pytest.approx(3.182446 * sqrt(5 / 3) / 2, rel=1e-6)
    assert interval.low == pytest.approx(2.5 - 2.054260, abs=1e-5)


def test_one_run_has_a_mean_and_no_interval() -> None:
    assert Interval(3.0, None, None, 1) == t_interval([3.0])
    assert t_interval([3.0]).spans_zero
    with pytest.raises(ValueError, match="at least one value"):
        t_interval([])


def test_intervals_hold_the_truth_as_often_as_they_promise() -> None:
    draw = Random(11)
    for num_seeds in (3, 10):
        held = 0
        for _ in range(2000):
            interval = t_interval([draw.gauss(7.0, 2.0) for _ in range(num_seeds)])
            assert interval.low is not None
            assert interval.high is not None
            held += interval.low <= 7.0 <= interval.high
        assert held / 2000 == pytest.approx(0.95, abs=0.015)


def test_differences_are_taken_seed_by_seed() -> None:
    baseline = {1: 10.0, 2: 20.0, 3: 40.0, 9: 1.0}
    values = {3: 36.0, 1: 9.0, 2: 18.0, 4: 77.0}
    difference = paired_difference(values, baseline)
    assert difference is not None
    assert fmean([-1, -2, -4]) == difference.absolute.mean
    assert difference.relative is not None
    assert difference.relative.mean == pytest.approx(-0.1)
    assert difference.relative.half_width == pytest.approx(0, abs=1e-9)
    assert not difference.significant


def test_a_difference_is_significant_once_its_interval_leaves_zero() -> None:
    baseline = {1: 10.0, 2: 20.0, 3: 30.0}
    steady = paired_difference({seed: value + 5 for seed, value in baseline.items()}, baseline)
    mixed = paired_difference({1: 15.0, 2: 15.0, 3: 35.0}, baseline)
    assert steady is not None
    assert mixed is not None
    assert steady.significant
    assert not mixed.significant


def test_runs_without_a_seed_in_common_are_not_compared() -> None:
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_nothing_is_relative_to_zero() -> None:
    difference = paired_difference({1: 1.0, 2: 2.0}, {1: 0.0, 2: 1.0})
    assert difference is not None
    assert difference.relative is None


def test_wilson_intervals_are_those_published() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: score method without continuity correction
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5.1e-5)
    assert (0.0, 1.0) == wilson_interval(0, 0)


def tau_by_pairs(pairs: list[tuple[int, int]]) -> float | None:
    """The definition, pair by pair."""
    surplus = x_untied = y_untied = 0
    for i, (x1, y1) in enumerate(pairs):
        for x2, y2 in pairs[:i]:
            surplus += ((x1 > x2) - (x1 < x2)) * ((y1 > y2) - (y1 < y2))
            x_untied += x1 != x2
            y_untied += y1 != y2
    return surplus / sqrt(x_untied * y_untied) if x_untied and y_untied else None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=40))
def test_kendalls_tau_is_what_its_definition_says(pairs: list[tuple[int, int]]) -> None:
    tau = kendall_tau([x for x, _ in pairs], [y for _, y in pairs])
    expected = tau_by_pairs(pairs)
    assert tau is None if expected is None else tau == pytest.approx(expected)


def test_kendalls_tau_knows_order_reversed_order_and_no_order() -> None:
    column = [float(number) for number in range(50)]
    assert 1.0 == kendall_tau(column, column)
    assert -1.0 == kendall_tau(column, column[::-1])
    assert kendall_tau(column, [1.0] * 50) is None
    assert kendall_tau([], []) is None


@pytest.mark.parametrize(("rate", "verdict"), [(2.0, "STABLE"), (60.0, "OVERLOADED")])
def test_the_verdict_follows_the_load(rate: float, verdict: str) -> None:
    assert verdict == saturation(queue_run(rate=rate, requests=1000))


def test_a_burst_that_is_worked_off_is_a_backlog() -> None:
    burst = [Served(0.0, number * 0.1, number * 0.1 + 0.1) for number in range(100)]
    calm = [Served(100.0 + number, 100.0 + number, 100.1 + number) for number in range(400)]
    assert "BACKLOGGED" == saturation(recording_of([*burst, *calm], max_queue_depth=100))
    assert "STABLE" == saturation(recording_of(calm, max_queue_depth=1))


def test_whoever_waits_when_arrivals_end_counts_even_if_it_was_evicted() -> None:
    gone = [Served(float(number), finished_at=1000.0, outcome="evicted") for number in range(20)]
    assert "OVERLOADED" == saturation(recording_of(gone, max_queue_depth=20))
    assert "STABLE" == saturation(recording_of([]))


def test_every_request_must_leave_exactly_once() -> None:
    done, lost = Served(0.0, 0.0, 1.0), Served(0.0, 0.0, outcome="unfinished")
    assert unaccounted(recording_of([done, done]), submitted=2) is None
    assert "3 requests were submitted, but 2 recorded" == unaccounted(recording_of([done, done]), submitted=3)
    assert "1 of 2 requests were neither answered nor refused" == unaccounted(recording_of([done, lost]))
