"""Tracked quantiles of residuals, lower bounds, and promises that are kept."""

from random import Random

import numpy as np
import pytest

from driftsched.estimators.nodes import Numbers
from driftsched.estimators.quantiles import LEVELS, MAX_OFFSET, NUM_LEVELS, Conformal, Profile


def taught(seed: int, num: int, *, cut_at: float = 99.0) -> Profile:
    """Exponential residuals, of which those above `cut_at` are only known to be longer."""
    rng, profile = Random(seed), Profile()
    for _ in range(num):
        residual = rng.expovariate(1)
        profile.learn(min(residual, cut_at), finished=residual <= cut_at)
    return profile


def test_before_anything_is_learnt_residuals_are_symmetric() -> None:
    assert pytest.approx((-Profile().ordered[::-1]).tolist()) == Profile().ordered.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_trackers_rest_where_their_share_of_residuals_is_smaller(seed: int) -> None:
    true = -np.log(1 - LEVELS[:16])
    assert pytest.approx(true.tolist(), abs=0.35) == taught(seed, 4000).ordered[:16].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_below_a_limit_are_not_pulled_down_to_it_by_what_is_cut(seed: int) -> None:
    assert pytest.approx(-np.log(0.5), abs=0.25) == taught(seed, 4000, cut_at=1.0).ordered[9:11].mean()
    assert taught(seed, 4000, cut_at=1.0).ordered[-1] > 1.3


def test_a_bound_below_everything_moves_nothing() -> None:
    profile = taught(1, 500)
    before = profile.ordered.copy()
    for _ in range(100):
        profile.learn(-50.0, finished=False)
    assert pytest.approx(before.tolist()) == profile.ordered.tolist()


def test_the_quantiles_shown_ascend() -> None:
    profile, rng = Profile(), Random(1)
    for _ in range(300):
        profile.learn(rng.gauss(0, 1), finished=True)
        assert (np.diff(profile.ordered) >= 0).all()


def test_the_share_below_counts_trackers() -> None:
    assert [0, 0.5, 1] == [Profile().share_below(residual) for residual in (-99, 0, 99)]


def test_a_bound_stands_for_the_median_of_what_lies_beyond() -> None:
    ordered = Profile().ordered
    assert pytest.approx(0.0) == Profile().expected_beyond(-99)
    assert pytest.approx((ordered[14] + ordered[15]) / 2) == Profile().expected_beyond(0)
    assert 99 == Profile().expected_beyond(99)


def test_pooled_trackers_are_weighed_by_what_each_has_learnt() -> None:
    mine, theirs = taught(1, 10), taught(2, 30)
    expected = (10 * mine.values + 30 * theirs.values) / 40
    mine.absorb(theirs)
    assert pytest.approx(expected.tolist()) == mine.values.tolist()
    assert 40 == mine.num_learnt


def test_a_profile_comes_back_as_it_was_packed() -> None:
    profile, copy = taught(1, 20), Profile()
    copy.unpack(Numbers(profile.pack()))
    assert profile.pack() == copy.pack()
    assert profile.ordered.tolist() == copy.ordered.tolist()
    assert NUM_LEVELS + 1 == len(copy.pack())


@pytest.mark.parametrize("bound", [0.3, 3.0])
def test_a_promise_is_kept_however_wrong_it_was(bound: float) -> None:
    """`bound` is what is promised for q80 and q90 of exponential residuals; right would be 1.6 and 2.3."""
    conformal, rng, within = Conformal(0.05), Random(1), []
    for _ in range(4000):
        residual = rng.expovariate(1)
        promised = [bound + offset for offset in conformal.offsets]
        within.append([residual <= promise for promise in promised])
        conformal.learn([float(residual > promise) for promise in promised])
    assert pytest.approx([0.8, 0.9], abs=0.02) == np.mean(within[1000:], axis=0).tolist()


def test_offsets_stay_bounded() -> None:
    conformal = Conformal(0.5)
    for _ in range(100):
        conformal.learn([1.0, 1.0])
    assert [MAX_OFFSET] * 2 == conformal.offsets
    for _ in range(1000):
        conformal.learn([0.0, 0.0])
    assert [-MAX_OFFSET] * 2 == conformal.offsets


def test_an_answer_that_is_as_likely_longer_as_promised_moves_no_offset() -> None:
    conformal = Conformal(0.5)
    conformal.learn([0.2, 0.1])
    assert pytest.approx([0, 0]) == conformal.offsets


def test_offsets_are_pooled_by_share_and_come_back_as_packed() -> None:
    mine, theirs = Conformal(0.5), Conformal(0.5)
    theirs.unpack(Numbers([1.0, 2.0]))
    mine.absorb(theirs, 0.25)
    assert [0.25, 0.5] == mine.pack()
    with pytest.raises(ValueError, match="between"):
        mine.unpack(Numbers([1.0, MAX_OFFSET + 1]))
