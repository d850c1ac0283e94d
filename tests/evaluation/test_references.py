"""The yardsticks: what they say, and of whom."""

from statistics import fmean, median

import pytest

from driftsched.core.model import Estimate, Request, Tenant, Tier, Usage
from driftsched.evaluation.references import CategoryMean, Median, quantile


def request(model: str = "m", category: str = "report", max_tokens: int | None = None) -> Request:
    return Request("r", Tenant("t"), Tier.STANDARD, model, 0.0, category=category, max_tokens=max_tokens)


LENGTHS = [40, 10, 900, 20, 70]


def test_the_median_is_of_all_answers_of_the_model_so_far() -> None:
    estimator = Median()
    for count, length in enumerate(LENGTHS, start=1):
        estimator.learn(request(category=str(count)), Usage(0, length), finished=True)
        estimator.learn(request(model="other"), Usage(0, 1), finished=True)
        assert median(LENGTHS[:count]) == estimator.predict(request()).completion_tokens


def test_the_category_mean_is_of_model_and_category_and_else_of_the_model() -> None:
    estimator = CategoryMean()
    for length in LENGTHS:
        estimator.learn(request(), Usage(0, length), finished=True)
    estimator.learn(request(category="summary"), Usage(0, 3), finished=True)
    assert fmean(LENGTHS) == estimator.predict(request()).completion_tokens
    assert fmean([*LENGTHS, 3]) == estimator.predict(request(category="technical")).completion_tokens


@pytest.mark.parametrize("estimator", [Median(), CategoryMean()])
def test_a_reference_that_knows_nothing_says_the_base_length_within_the_limit(
    estimator: Median | CategoryMean,
) -> None:
    assert Estimate(512, 512, 512, 512) == estimator.predict(request())
    assert Estimate(9, 9, 9, 9) == estimator.predict(request(max_tokens=9))


def test_no_figure_exceeds_the_limit() -> None:
    estimator = Median()
    for length in LENGTHS:
        estimator.learn(request(), Usage(0, length), finished=True)
    assert Estimate(40, 40, 100, 100) == estimator.predict(request(max_tokens=100))


def test_a_quantile_lies_between_the_values_it_falls_between() -> None:
    assert [10, 15, 20, 28, 30] == [quantile([10, 20, 30], level) for level in (0.0, 0.25, 0.5, 0.9, 1.0)]
    assert 7 == quantile([7], 0.9)
