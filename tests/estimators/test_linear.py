"""Ridge regression and hashed words, learnt one answer at a time."""

from random import Random

import numpy as np
import numpy.typing as npt
import pytest

from driftsched.estimators.linear import Ridge, Words

Vector = npt.NDArray[np.float64]


def examples(seed: int, num: int) -> tuple[Vector, Vector]:
    rng = np.random.default_rng(seed)
    figures = rng.normal(size=(num, 3))
    return figures, figures @ np.array([1.0, -2.0, 0.5]) + rng.normal(scale=0.3, size=num)


def taught(figures: Vector, lengths: Vector) -> Ridge:
    ridge = Ridge(np.array([0.5, 0.0, 0.0]), penalty=4.0)
    for row, length in zip(figures, lengths, strict=True):
        ridge.learn(row, float(length) - ridge.predict(row))
    return ridge


def test_it_starts_from_the_weights_it_is_given() -> None:
    assert 1.0 == Ridge(np.array([0.5, 0.0]), penalty=1.0).predict(np.array([2.0, 7.0]))


def test_one_by_one_it_arrives_at_the_closed_solution() -> None:
    figures, lengths = examples(1, 50)
    start = np.array([0.5, 0.0, 0.0])
    closed = np.linalg.solve(figures.T @ figures + 4 * np.eye(3), figures.T @ lengths + 4 * start)
    assert pytest.approx(closed.tolist()) == taught(figures, lengths).weights.tolist()


def test_figures_that_are_seldom_set_do_not_wind_it_up() -> None:
    ridge = Ridge(np.zeros(2), penalty=10.0)
    for _ in range(20_000):
        ridge.learn(np.array([1.0, 0.0]), 0.1)
    assert pytest.approx(0.1) == ridge.covariance[1, 1]
    assert np.isfinite(ridge.weights).all()


def test_two_replicas_pooled_know_what_one_would() -> None:
    figures, lengths = examples(2, 60)
    mine, theirs = taught(figures[:20], lengths[:20]), taught(figures[20:], lengths[20:])
    mine.absorb(theirs)
    whole = taught(figures, lengths)
    assert pytest.approx(whole.weights.tolist()) == mine.weights.tolist()
    assert pytest.approx(whole.covariance.ravel().tolist(), abs=1e-9) == mine.covariance.ravel().tolist()


def test_a_regression_comes_back_as_it_was_packed() -> None:
    ridge, copy = taught(*examples(3, 9)), Ridge(np.zeros(3), penalty=1.0)
    copy.unpack(ridge.pack())
    assert ridge.pack() == copy.pack()


@pytest.mark.parametrize(
    "covariance", [-np.eye(3), np.eye(3) * np.nan, np.triu(np.ones((3, 3))), np.eye(2)], ids=range(4)
)
def test_what_is_no_covariance_is_refused_and_changes_nothing(covariance: Vector) -> None:
    ridge = taught(*examples(3, 9))
    before = ridge.pack()
    with pytest.raises(ValueError, match=r"covariance|array"):
        ridge.unpack([np.zeros(3).tobytes(), covariance.tobytes()])
    assert before == ridge.pack()


def test_words_that_mean_something_are_found() -> None:
    words, rng = Words(64, step=0.3), Random(1)
    for _ in range(500):
        places = np.array([1, 2 + rng.randrange(30)]) if rng.random() < 0.5 else np.array([40, 50])
        words.learn(places, (1.0 if 1 in places else -1.0) - words.predict(places))
    assert words.predict(np.array([1, 63])) > 0.4 > -0.4 > words.predict(np.array([40, 63]))


def test_no_words_predict_and_learn_nothing() -> None:
    words = Words(8, step=0.3)
    words.learn(np.array([], np.intp), 1.0)
    assert 0 == words.predict(np.array([], np.intp))
    assert not words.weights.any()


def test_a_word_seen_often_takes_smaller_steps_than_a_rare_one() -> None:
    words, often, rare = Words(8, step=0.3), np.array([0]), np.array([1])
    for error in [1.0, -1.0] * 50:
        words.learn(often, error)
    before = words.predict(often)
    words.learn(often, 1.0)
    words.learn(rare, 1.0)
    assert words.predict(often) - before < words.predict(rare) / 5


def test_pooled_words_are_weighed_by_evidence() -> None:
    mine, theirs, place = Words(4, step=0.3), Words(4, step=0.3), np.array([2])
    for _ in range(90):
        mine.learn(place, 0.5)
    theirs.learn(place, -1.0)
    before = mine.predict(place)
    mine.absorb(theirs)
    assert 0.9 * before < mine.predict(place) < before
    assert 90 * 0.25 + 1 + 1 == mine.squares[2]


def test_words_come_back_as_they_were_packed_and_nothing_else_is_taken() -> None:
    words, copy = Words(4, step=0.3), Words(4, step=0.3)
    words.learn(np.array([1, 3]), 1.0)
    copy.unpack(words.pack())
    assert words.pack() == copy.pack()
    for wrong in ([], [b"", b""], [bytes(16), bytes(16)], None):
        with pytest.raises(ValueError, match=r"array|squares"):
            copy.unpack(wrong)
    assert words.pack() == copy.pack()
