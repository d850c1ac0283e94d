"""A cumulative sum that tells a shift, and by how much."""

from random import Random

import pytest

from driftsched.estimators.drift import MAX_STEP, Cusum


def normal(rng: Random) -> float:
    """A residual in mean absolute deviations."""
    return rng.gauss(0, 1.2533)


def alarms_of(cusum: Cusum, residuals: list[float]) -> list[tuple[int, float]]:
    """Where it alarmed, and by how much it says that residuals shifted."""
    told = [cusum.observe(residual) for residual in residuals]
    return [(place, shift) for place, shift in enumerate(told) if shift]


@pytest.mark.parametrize("shift", [1.5, -1.5, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_shift_is_told_soon_with_its_size_and_sign(seed: int, shift: float) -> None:
    rng = Random(seed)
    (place, told), *_ = alarms_of(Cusum(), [shift + normal(rng) for _ in range(60)])
    assert place < 40
    assert pytest.approx(shift, rel=0.6) == told


def test_steady_residuals_raise_less_than_an_alarm_in_a_thousand() -> None:
    rng = Random(1)
    assert len(alarms_of(Cusum(), [normal(rng) for _ in range(20_000)])) < 20


def test_no_single_residual_raises_it() -> None:
    assert [] == alarms_of(Cusum(), [1e9, 0.0, 0.0, -1e9])
    assert MAX_STEP < Cusum().threshold


def test_after_an_alarm_it_starts_afresh() -> None:
    cusum = Cusum(slack=0.5, threshold=4.0)
    assert [(2, 2.0), (5, 2.0)] == alarms_of(cusum, [2.0] * 6)


def test_a_side_forgets_when_residuals_turn() -> None:
    cusum = Cusum()
    alarms_of(cusum, [2.0, 2.0, -3.0, -3.0])
    assert (0, 0) == (cusum.ups.total, cusum.ups.num)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_one_source_alone_raises_nothing_even_after_others(first: int) -> None:
    cusum = Cusum()
    told = [cusum.observe(2.0, source, is_alone=False) for source in [9, 8][:first] + [7] * 500]
    assert {0.0} == set(told)


def test_several_sources_raise_it_together() -> None:
    cusum = Cusum()
    told = [cusum.observe(2.0, number % 3, is_alone=False) for number in range(12)]
    assert 2.0 in told


def test_one_source_raises_it_where_it_is_all_there_is() -> None:
    cusum = Cusum()
    assert 2.0 in [cusum.observe(2.0, 7, is_alone=True) for _ in range(12)]


def test_what_is_held_against_a_source_stays_bounded() -> None:
    cusum = Cusum()
    for _ in range(1000):
        cusum.observe(3.0, 7, is_alone=False)
    assert 2 * cusum.threshold == cusum.ups.total
