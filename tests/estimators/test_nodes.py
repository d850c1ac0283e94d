"""Forgetting means and medians, shrunk to what is above them."""

from math import inf, nan
from typing import Any

import pytest

from driftsched.estimators.nodes import MAX_MAGNITUDE, WINDOW, Level, Numbers, Window


def level_of(*lengths: float, max_weight: float = 100) -> Level:
    level = Level()
    for length in lengths:
        level.observe(length, max_weight)
    return level


def window_of(*lengths: float) -> Window:
    window = Window()
    for length in lengths:
        window.observe(length)
    return window


def test_a_level_that_knows_nothing_says_what_its_parent_says() -> None:
    assert 3.5 == Level().value(3.5, 6)


def test_the_parent_counts_as_many_observations_as_its_strength() -> None:
    assert (1 + 2 + 2 * 9) / 4 == level_of(1, 2).value(9, 2)


def test_beyond_its_limit_a_level_forgets_by_equal_shares() -> None:
    level = level_of(*[0.0] * 50, max_weight=10)
    for _ in range(3):
        level.observe(1, 10)
    assert 10 == level.weight
    assert pytest.approx(1 - 0.9**3) == level.value(0, 1e-9)


def test_a_level_that_keeps_less_says_the_same_and_follows_faster() -> None:
    level = level_of(2, 4)
    level.keep(1)
    assert (1, 3) == (level.weight, level.total)
    level.keep(5)
    assert 1 == level.weight


def test_a_moved_level_has_seen_all_lengths_moved() -> None:
    level = level_of(2, 4)
    level.move(0.5)
    assert level_of(2.5, 4.5).pack() == level.pack()


def test_the_median_counts_the_parent_as_one() -> None:
    assert [7, 4.5, 2, 2.5] == [
        window.median(7) for window in (Window(), window_of(2), window_of(1, 2), window_of(1, 2, 3))
    ]


def test_a_window_forgets_what_is_older_than_its_size() -> None:
    assert 5 == window_of(*[100] * 200, *[5] * WINDOW).median(100)


def test_a_median_follows_a_step_within_half_a_window_and_ignores_outliers() -> None:
    assert 5 == window_of(*[1] * WINDOW, *[5] * (WINDOW // 2 + 1)).median(1)
    assert 1 == window_of(*[1] * WINDOW, *[1e5] * (WINDOW // 2 - 1)).median(1)


def test_a_window_keeps_the_last() -> None:
    window = window_of(1, 2, 3)
    window.keep(2)
    assert [2, 2, 3] == window.pack()


def test_what_two_levels_saw_adds_up() -> None:
    mine = level_of(1, 2)
    mine.absorb(level_of(6))
    assert level_of(1, 2, 6).pack() == mine.pack()


def test_of_two_full_windows_half_of_each_is_kept_and_it_is_the_last() -> None:
    mine = window_of(*[0] * 10, *[1] * WINDOW)
    mine.absorb(window_of(*[0] * 10, *[2] * WINDOW))
    assert [1] * (WINDOW // 2) + [2] * (WINDOW // 2) == list(mine.values)


def test_a_small_window_and_a_full_one_fill_one_window() -> None:
    mine, theirs = window_of(1, 1), window_of(*[2] * WINDOW)
    mine.absorb(theirs)
    theirs.absorb(window_of(1, 1))
    assert [(2, WINDOW - 2)] * 2 == [(w.values.count(1), w.values.count(2)) for w in (mine, theirs)]


def test_absorbing_an_empty_window_changes_nothing() -> None:
    mine = window_of(1, 2)
    mine.absorb(Window())
    assert [1, 2] == list(mine.values)


def test_nodes_come_back_as_they_were_packed() -> None:
    numbers = Numbers([*level_of(1, 2).pack(), *window_of(3, 4).pack()])
    level, window = Level(), Window()
    level.unpack(numbers)
    window.unpack(numbers)
    numbers.end()
    assert ([3, 2], [2, 3, 4]) == (level.pack(), window.pack())


@pytest.mark.parametrize(
    "packed", ["12", None, [1], [nan, 1], [inf, 1], [1, -1], [True, 1], [MAX_MAGNITUDE * 2, 1], ["1", 1]], ids=str
)
def test_what_is_no_level_is_refused(packed: Any) -> None:
    with pytest.raises(ValueError, match="node"):
        Level().unpack(Numbers(packed))


def test_a_window_that_claims_to_be_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match=f"between 0 and {WINDOW}"):
        Window().unpack(Numbers([WINDOW + 1, *[1] * (WINDOW + 1)]))


def test_numbers_left_over_are_refused() -> None:
    with pytest.raises(ValueError, match="more numbers"):
        Numbers([1]).end()
