from random import Random

import pytest

from driftsched.bench.comparison import Comparison, compare


def times(seed: int, blocks: int = 8, factor: float = 1.0) -> dict[int, list[float]]:
    """Sixty times a block, of a machine that is slow in some blocks and fast in others."""
    found = {}
    for block in range(blocks):
        random = Random(f"{seed}:{block}")
        slowness = 1 + block % 3
        found[block] = [factor * slowness * random.expovariate(1.0) for _ in range(60)]
    return found


def by_figure(comparisons: list[Comparison]) -> dict[str, Comparison]:
    return {comparison.figure: comparison for comparison in comparisons}


def test_a_setup_twice_as_slow_is_found_twice_as_slow_whatever_the_machine_did() -> None:
    found = by_figure(compare("e2e_seconds", "slow", times(1, factor=2.0), "fast", times(1)))
    assert ["mean", "p50", "p95", "p99"] == [figure.removeprefix("e2e_seconds.") for figure in found]
    assert all(each.change == pytest.approx(1.0) for each in found.values())
    assert all((each.low, each.high) == pytest.approx((1.0, 1.0)) for each in found.values())


def test_two_setups_that_do_not_differ_are_not_told_apart() -> None:
    for each in compare("e2e_seconds", "one", times(1), "other", times(2)):
        assert each.low < 0 < each.high
        assert each.low <= each.change <= each.high


def test_values_are_those_of_all_blocks_together_by_nearest_rank() -> None:
    found = by_figure(compare("x", "a", {1: [1.0, 2.0], 2: [3.0, 4.0]}, "b", {1: [2.0, 2.0], 2: [2.0, 2.0]}))
    assert (2.5, 2.0, 4.0) == (found["x.mean"].value, found["x.p50"].value, found["x.p99"].value)
    assert 0.25 == found["x.mean"].change


def test_beside_it_stands_the_mean_difference_of_a_block() -> None:
    found = by_figure(compare("x", "a", {1: [3.0] * 4, 2: [20.0] * 4}, "b", {1: [2.0] * 4, 2: [18.0] * 4}))
    interval = found["x.mean"].by_block
    assert interval is not None
    assert pytest.approx(0.15) == interval.mean
    assert 2 == interval.n
    assert found["x.p99"].by_block is None


def test_blocks_that_err_by_turns_do_not_make_a_difference() -> None:
    up_and_down = {seed: [4.0 if seed % 2 else 1.0] for seed in range(8)}
    down_and_up = {seed: [1.0 if seed % 2 else 4.0] for seed in range(8)}
    (mean, *_) = compare("x", "a", up_and_down, "b", down_and_up)
    assert mean.by_block is not None
    assert 0 == mean.change == mean.by_block.mean


def test_only_blocks_that_both_have_are_compared() -> None:
    (mean, *_) = compare("x", "a", {1: [1.0], 2: [50.0], 3: []}, "b", {1: [2.0], 3: [1.0]})
    assert -0.5 == mean.change
    assert [] == compare("x", "a", {1: [1.0]}, "b", {2: [1.0]})


def test_the_same_values_give_the_same_intervals() -> None:
    assert compare("x", "a", times(1), "b", times(2)) == compare("x", "a", times(1), "b", times(2))
