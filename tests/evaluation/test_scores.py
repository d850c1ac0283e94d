"""Scores, against slow and obvious versions of themselves."""

from itertools import combinations
from math import log, sqrt

import numpy as np
import pytest

from driftsched.evaluation import scores
from driftsched.evaluation.scores import Said


def said(actual: list[float], predicted: list[float]) -> Said:
    columns = {name: np.array(predicted, dtype=float) for name in scores.LEVELS}
    return Said(np.array(actual, dtype=float), np.array(predicted, dtype=float), columns)


def drawn(seed: int, rows: int, values: int) -> Said:
    dice = np.random.default_rng(seed)
    actual, predicted = dice.integers(1, values + 1, size=(2, rows))
    return said(actual.tolist(), predicted.tolist())


def slow_tau(given: Said) -> float:
    sign = [
        (np.sign(given.actual[i] - given.actual[j]), np.sign(given.predicted[i] - given.predicted[j]))
        for i, j in combinations(range(len(given.actual)), 2)
    ]
    surplus = sum(a * p for a, p in sign)
    return float(surplus / sqrt(sum(a != 0 for a, _ in sign) * sum(p != 0 for _, p in sign)))


def slow_pairs(given: Said) -> float:
    right: list[float] = []
    for i, j in combinations(range(len(given.actual)), 2):
        short, long = sorted((i, j), key=lambda row: given.actual[row])
        if given.actual[long] >= 2 * given.actual[short]:
            right.append((1 + float(np.sign(given.predicted[long] - given.predicted[short]))) / 2)
    return sum(right) / len(right)


@pytest.mark.parametrize(("rows", "values"), [(2, 9), (7, 3), (60, 4), (150, 1000)])
@pytest.mark.parametrize("seed", range(4))
def test_tau_and_pair_accuracy_are_those_of_all_pairs_with_ties(seed: int, rows: int, values: int) -> None:
    given = drawn(seed, rows, values)
    if len(set(given.actual)) > 1 and len(set(given.predicted)) > 1:
        assert pytest.approx(slow_tau(given)) == scores.kendall_tau(given)
    if max(given.actual) >= 2 * min(given.actual):
        assert pytest.approx(slow_pairs(given)) == scores.pair_accuracy_2x(given)


def test_without_pairs_to_order_there_is_no_score_of_order() -> None:
    assert scores.kendall_tau(said([1, 2, 3], [5, 5, 5])) is None
    assert scores.kendall_tau(said([4, 4], [5, 6])) is None
    assert scores.pair_accuracy_2x(said([10, 12, 19], [1, 2, 3])) is None


def test_of_many_rows_the_pair_accuracy_is_that_of_a_sample() -> None:
    dice = np.random.default_rng(1)
    actual = np.exp(dice.normal(5, 1, size=scores.EXACT_PAIRS_ROWS + 1))
    predicted = actual * np.exp(dice.normal(0, 1, size=len(actual)))
    given = said(actual.tolist(), predicted.tolist())
    part = given.of(np.arange(len(actual)) < scores.EXACT_PAIRS_ROWS)
    assert pytest.approx(scores.pair_accuracy_2x(part), abs=3e-3) == scores.pair_accuracy_2x(given)
    assert scores.pair_accuracy_2x(given) == scores.pair_accuracy_2x(given)


def test_errors_are_in_tokens_and_in_logarithms_with_lengths_of_at_least_one() -> None:
    given = said([0, 10, 100], [1, 20, 50])
    assert pytest.approx((1 + 10 + 50) / 3) == scores.mae(given)
    assert pytest.approx(sqrt((1 + 100 + 2500) / 3)) == scores.rmse(given)
    assert pytest.approx(2 * log(2) / 3) == scores.log_mae(given)
    assert pytest.approx(0) == scores.bias(given)


def test_pinball_loss_weighs_what_a_quantile_falls_short_by_its_level() -> None:
    assert pytest.approx({"q50": 5, "q80": 8, "q90": 9}) == scores.pinball(said([20], [10]))
    assert pytest.approx({"q50": 5, "q80": 2, "q90": 1}) == scores.pinball(said([10], [20]))


def test_coverage_counts_answers_no_longer_than_the_quantile_and_its_range_is_over_windows() -> None:
    given = said([10, 11, 9, 10, 50, 50], [10] * 6)
    assert 0.5 == scores.coverage(given)["q80"]
    assert {"min": 1 / 3, "max": 2 / 3} == scores.coverage_range(given, window=3)["q80"]
    assert {"min": 0.5, "max": 0.5} == scores.coverage_range(given, window=1000)["q80"]


def test_blocks_hold_every_row_once_in_order() -> None:
    given = drawn(1, 103, 50)
    made = scores.blocks(given)
    assert (20, 103) == (len(made), sum(block["rows"] for block in made))
    assert pytest.approx(scores.mae(given)) == sum(block["rows"] * block["mae"] for block in made) / 103
    assert 3 == len(scores.blocks(drawn(1, 3, 50)))


def test_reliability_parts_are_by_prediction_and_never_split_equal_ones() -> None:
    given = said([9, 1, 3, 2, 30, 40], [7, 5, 5, 5, 70, 70])
    parts = scores.reliability(given)
    assert [(3, 5.0, 2.0), (1, 7.0, 9.0), (2, 70.0, 35.0)] == [
        (part["rows"], part["predicted"], part["actual"]) for part in parts
    ]
    even = scores.reliability(drawn(3, 1000, 100_000))
    assert [100] * 10 == [part["rows"] for part in even]
    assert [part["predicted"] for part in even] == sorted(part["predicted"] for part in even)


def test_groups_are_the_largest_ones_each_with_its_own_error() -> None:
    given = said([10, 20, 30, 40], [11, 20, 33, 41])
    found = scores.by_group(given, ["a", "b", "a", "c"], most=2)
    assert {"a": (2, 2.0), "b": (1, 0.0)} == {name: (part["rows"], part["mae"]) for name, part in found.items()}
