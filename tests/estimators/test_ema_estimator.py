"""The reference's estimator, against numbers computed by hand from its published formulas."""

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Estimate, Tier, Usage
from driftsched.estimators import create_estimator
from driftsched.estimators.ema import Ema
from support.prompts import request_of


@pytest.mark.parametrize(
    ("category", "tier", "prompt_tokens", "length"),
    [
        ("report", Tier.PREMIUM, 21, 627),  # 512 * 1.2 * 1.021 = 627.30
        ("report", Tier.STANDARD, 21, 522),  # 512 * 1.021 = 522.75
        ("report", Tier.BATCH, 21, 418),  # 512 * 0.8 * 1.021 = 418.20
        ("technical", Tier.STANDARD, 500, 576),  # 384 * 1.5
        ("summary", Tier.BATCH, 9000, 307),  # 256 * 0.8 * 1.5 = 307.2
        ("short_qa", Tier.PREMIUM, 0, 76),  # 64 * 1.2 = 76.8
        ("unheard of", Tier.STANDARD, 0, 64),
    ],
)
def test_a_first_prediction_is_base_times_tier_times_prompt_factor(
    category: str, tier: Tier, prompt_tokens: int, length: float
) -> None:
    request = request_of(category, tier=tier, prompt_tokens=prompt_tokens, max_tokens=512)
    assert Estimate(length, length, length, length) == Ema().predict(request)


def test_the_bias_is_a_running_mean_of_actual_over_base() -> None:
    estimator, request = Ema(), request_of("report", tier=Tier.PREMIUM, prompt_tokens=21)
    estimator.learn(request, Usage(21, 256), finished=True)  # 0.9 * 1 + 0.1 * 0.5
    assert pytest.approx(0.95, abs=1e-12) == estimator.bias(request)
    estimator.learn(request, Usage(21, 384), finished=True)  # 0.9 * 0.95 + 0.1 * 0.75
    assert pytest.approx(0.93, abs=1e-12) == estimator.bias(request)
    assert estimator.predict(request).completion_tokens == 583  # 512 * 0.93 * 1.2 * 1.021 = 583.39


@pytest.mark.parametrize(("tokens", "bias"), [(0, 0.925), (16, 0.925), (17, 0.9265625), (192, 1.2), (9999, 1.2)])
def test_a_measured_ratio_is_clamped_between_a_quarter_and_three(tokens: int, bias: float) -> None:
    estimator, request = Ema(), request_of("short_qa")
    estimator.learn(request, Usage(0, tokens), finished=True)
    assert pytest.approx(bias, abs=1e-12) == estimator.bias(request)


def test_categories_learn_apart_and_models_together() -> None:
    estimator = Ema()
    estimator.learn(request_of("report", model="a"), Usage(0, 256), finished=True)
    assert pytest.approx(0.95) == estimator.bias(request_of("report", model="b"))
    assert estimator.bias(request_of("summary", model="a")) == 1.0


def test_an_answer_cut_short_is_learnt_as_if_it_were_whole() -> None:
    estimator, request = Ema(), request_of("report")
    estimator.learn(request, Usage(0, 256), finished=False)
    assert pytest.approx(0.95) == estimator.bias(request)


def test_its_fixed_point_is_off_by_the_tier_margin() -> None:
    estimator, request = Ema(), request_of("report", tier=Tier.PREMIUM)
    for _ in range(200):
        estimator.learn(request, Usage(0, 400), finished=True)
    assert estimator.predict(request).completion_tokens == 480  # 1.2 * 400, though every answer had 400


def test_without_feedback_the_bias_stays_one() -> None:
    estimator, request = Ema(feedback=False), request_of("report")
    estimator.learn(request, Usage(0, 100), finished=True)
    assert estimator.bias(request) == 1.0
    assert estimator.predict(request).completion_tokens == 512


@pytest.mark.parametrize("alpha", [0, -0.1, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="estimator 'ema' cannot be made: alpha must be > 0 and <= 1"):
        create_estimator("ema", alpha=alpha)
