"""Category lengths corrected by what each model really does."""

from collections import deque
from collections.abc import Callable
from random import Random
from statistics import fmean

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Request, Tier, Usage
from driftsched.core.protocols import Estimator
from driftsched.estimators import create_estimator
from driftsched.estimators.calibrated import MAX_KEYS, Calibrated
from driftsched.estimators.categories import BASE_TOKENS, CATEGORIES
from driftsched.estimators.ema import Ema
from driftsched.estimators.static import Static
from support.prompts import request_of

Lengths = Callable[[Random, float], float]


def answer(estimator: Estimator, request: Request, true_length: float) -> None:
    """Learn an answer of `true_length` tokens, cut at the request's limit if it has one."""
    limit = request.max_tokens or 10**6
    length = max(1, round(true_length))
    estimator.learn(request, Usage(request.prompt_tokens, min(length, limit)), finished=length < limit)


def mean_absolute_error(
    estimator: Estimator, true_length: Lengths, *, capped: bool = False, seed: int = 1
) -> float:
    """Over 2,000 requests of all tiers and the paper's calibration mix, each learnt 32 requests later."""
    rng = Random(seed)
    flying: deque[tuple[Request, float]] = deque()
    errors = []
    for _ in range(2000):
        category = rng.choices(CATEGORIES, weights=(40, 25, 25, 10))[0]
        request = request_of(
            category,
            tier=rng.choice(list(Tier)),
            prompt_tokens=rng.randint(15, 30),
            max_tokens=BASE_TOKENS[category] if capped else None,
        )
        length = max(1.0, round(true_length(rng, BASE_TOKENS[category])))
        served = min(length, request.max_tokens or length)
        errors.append(abs(estimator.predict(request).completion_tokens - served))
        flying.append((request, length))
        if len(flying) > 32:
            answer(estimator, *flying.popleft())
    return fmean(errors)


def paper(rng: Random, base: float) -> float:
    return base * rng.gauss(0.81, 0.081)


def test_on_the_papers_lengths_it_cuts_the_error_by_more_than_three_fifths() -> None:
    static, calibrated = mean_absolute_error(Static(), paper), mean_absolute_error(Calibrated(), paper)
    assert calibrated <= 0.4 * static


def test_on_the_papers_lengths_it_beats_the_reference() -> None:
    ema, calibrated = mean_absolute_error(Ema(), paper), mean_absolute_error(Calibrated(), paper)
    assert calibrated <= 0.65 * ema


def test_answers_that_mostly_hit_their_limit_do_not_make_it_worse_than_no_feedback() -> None:
    def mostly_longer(rng: Random, base: float) -> float:
        return base * (2 if rng.random() < 0.9 else rng.uniform(0.2, 1))

    static = mean_absolute_error(Static(), mostly_longer, capped=True)
    assert mean_absolute_error(Calibrated(), mostly_longer, capped=True) <= 1.1 * static


@pytest.mark.parametrize("factor", [1.6, 0.625, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_shift_of_all_lengths_is_followed_within_sixty_answers(factor: float, seed: int) -> None:
    rng, estimator, request = Random(seed), Calibrated(), request_of("report")
    for _ in range(300):
        answer(estimator, request, 400 * rng.gauss(1, 0.1))
    for _ in range(60):
        answer(estimator, request, factor * 400 * rng.gauss(1, 0.1))
    assert pytest.approx(factor * 400, rel=0.1) == estimator.predict(request).completion_tokens


def test_lengths_that_never_varied_are_left_as_soon_as_they_change() -> None:
    estimator, request = Calibrated(), request_of("report")
    for _ in range(2000):
        answer(estimator, request, 400)
    for _ in range(60):
        answer(estimator, request, 640)
    assert pytest.approx(640, rel=0.1) == estimator.predict(request).completion_tokens


def test_one_outlier_hardly_moves_a_prediction() -> None:
    rng, estimator, request = Random(5), Calibrated(), request_of("report")
    for _ in range(300):
        answer(estimator, request, 400 * rng.gauss(1, 0.1))
    before = estimator.predict(request)
    estimator.learn(request, Usage(0, 900_000), finished=True)
    after = estimator.predict(request)
    assert pytest.approx([before.q50, before.q80, before.q90], rel=0.03) == [after.q50, after.q80, after.q90]


def test_the_quantiles_stay_in_order_while_they_move() -> None:
    for seed in range(40):
        rng, estimator, request = Random(seed), Calibrated(alpha=0.5), request_of("report")
        for _ in range(500):
            answer(estimator, request, 500 * rng.choice([1, 2]) * rng.uniform(0.9, 1.1))
            estimate = estimator.predict(request)
            assert estimate.q50 <= estimate.q80 <= estimate.q90


def test_the_first_answers_count_most() -> None:
    estimator, request = Calibrated(), request_of("report")
    for _ in range(15):
        answer(estimator, request, 250)
    assert pytest.approx(250, rel=0.1) == estimator.predict(request).completion_tokens


def test_the_point_is_the_median_not_the_mean_of_skewed_lengths() -> None:
    rng, estimator, request = Random(3), Calibrated(), request_of("report")
    points = []
    for i in range(4000):
        answer(estimator, request, rng.lognormvariate(6, 0.8))  # median 403, mean 556
        if i >= 500:
            points.append(estimator.predict(request).completion_tokens)
    assert pytest.approx(403, rel=0.05) == fmean(points)


def test_the_quantiles_cover_their_share_of_the_answers() -> None:
    rng, estimator, request = Random(4), Calibrated(), request_of("summary")
    covered = [0, 0, 0]
    for _ in range(4000):
        length = rng.lognormvariate(5, 0.6)
        estimate = estimator.predict(request)
        for i, quantile in enumerate((estimate.q50, estimate.q80, estimate.q90)):
            covered[i] += length <= quantile
        answer(estimator, request, length)
    assert pytest.approx([0.5, 0.8, 0.9], abs=0.02) == [count / 4000 for count in covered]


def test_the_prompt_factor_is_part_of_what_is_corrected() -> None:
    estimator, request = Calibrated(), request_of("summary", prompt_tokens=500)
    for _ in range(200):
        answer(estimator, request, 384)  # 256 * 1.5: just what an uncorrected prediction says
    assert pytest.approx(1.0, rel=0.01) == estimator.bias(request)


@pytest.mark.parametrize("true_length", [300, 512])
def test_a_lower_bound_never_lowers_a_prediction(true_length: int) -> None:
    estimator, request = Calibrated(), request_of("report")
    for _ in range(50):
        answer(estimator, request, true_length)
    before = estimator.predict(request)
    for tokens in range(0, 1024, 16):
        estimator.learn(request, Usage(0, tokens), finished=False)
        after = estimator.predict(request)
        assert (before.q50, before.q80, before.q90) <= (after.q50, after.q80, after.q90)
        assert before.q80 <= after.q80
        assert before.q90 <= after.q90
        before = after


def test_a_lower_bound_beyond_the_prediction_raises_it() -> None:
    estimator, request = Calibrated(), request_of("report")
    estimator.learn(request, Usage(0, 600), finished=False)
    assert estimator.predict(request).q50 > 512


def test_a_lower_bound_below_the_prediction_is_no_news() -> None:
    estimator, request = Calibrated(), request_of("report")
    untaught = Calibrated()
    for _ in range(50):
        estimator.learn(request, Usage(0, 500), finished=False)
    assert untaught.predict(request) == estimator.predict(request)
    answer(estimator, request, 300)
    answer(untaught, request, 300)
    assert untaught.predict(request) == estimator.predict(request)  # nor does it slow down what comes after


def test_the_tier_is_no_part_of_the_prediction() -> None:
    estimates = {Calibrated().predict(request_of("report", tier=tier)) for tier in Tier}
    assert len(estimates) == 1


def test_no_figure_exceeds_the_clients_limit() -> None:
    estimate = Calibrated().predict(request_of("report", max_tokens=100))
    assert {100} == {estimate.completion_tokens, estimate.q50, estimate.q80, estimate.q90}


def test_models_and_categories_learn_apart() -> None:
    estimator = Calibrated()
    for _ in range(50):
        answer(estimator, request_of("report", model="a"), 1000)
    assert estimator.bias(request_of("report", model="a")) > 1.8
    assert estimator.bias(request_of("report", model="b")) == 1.0
    assert estimator.bias(request_of("summary", model="a")) == 1.0


def test_of_too_many_models_the_one_not_heard_of_for_longest_is_forgotten() -> None:
    estimator = Calibrated()
    answer(estimator, request_of("report", model="old"), 1000)
    answer(estimator, request_of("report", model="busy"), 1000)
    for i in range(MAX_KEYS - 1):
        answer(estimator, request_of("report", model=f"model-{i}"), 1000)
        answer(estimator, request_of("report", model="busy"), 1000)
    assert estimator.bias(request_of("report", model="old")) == 1.0
    assert estimator.bias(request_of("report", model="busy")) > 1.0


@pytest.mark.parametrize("alpha", [0, -0.1, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="estimator 'calibrated' cannot be made: alpha must be > 0 and <= 1"):
        create_estimator("calibrated", alpha=alpha)
