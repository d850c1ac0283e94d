"""What every registered estimator must do, whoever wrote it."""

import tracemalloc
from math import isfinite
from typing import Any

import pytest

from driftsched.core.model import Estimate, Tier, Usage
from driftsched.core.protocols import Estimator
from driftsched.estimators import DEFAULT_ESTIMATOR, ESTIMATORS, create_estimator
from driftsched.estimators.adaptive import Adaptive
from driftsched.estimators.categories import CATEGORIES
from support.prompts import request_of

ABSURD: list[Any] = [0, 1, 10**9, 10**400, -1, -(10**9), float("nan"), float("inf")]


MOST_BYTES: dict[type, int] = {Adaptive: 2100 * (NUM_NAMES := 5000)}
"""Of so many models and tenants, where it is more than a megabyte."""


@pytest.fixture(params=ESTIMATORS.names())
def estimator(request: pytest.FixtureRequest) -> Estimator:
    return create_estimator(request.param)


def is_sane(estimate: Estimate) -> bool:
    figures = (estimate.completion_tokens, estimate.q50, estimate.q80, estimate.q90)
    return all(isfinite(figure) and figure >= 0 for figure in figures) and (
        estimate.q50 <= estimate.q80 <= estimate.q90
    )


def test_the_default_is_registered() -> None:
    assert DEFAULT_ESTIMATOR in ESTIMATORS.names()


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_it_says_in_a_line_what_it_does(name: str) -> None:
    assert ESTIMATORS.describe(name).endswith(".")


def test_predicting_changes_nothing(estimator: Estimator) -> None:
    estimator.learn(request_of("report"), Usage(10, 300), finished=True)
    first = estimator.predict(request_of("report"))
    for category in (*CATEGORIES, "unheard of"):
        estimator.predict(request_of(category, model="another"))
    assert first == estimator.predict(request_of("report"))


@pytest.mark.parametrize("category", [*CATEGORIES, "", "unheard of"])
@pytest.mark.parametrize("max_tokens", [None, 1, 512, 10**9])
def test_a_first_prediction_is_sane(estimator: Estimator, category: str, max_tokens: int | None) -> None:
    for tier in Tier:
        for prompt_tokens in (0, 10**6):
            request = request_of(category, tier=tier, prompt_tokens=prompt_tokens, max_tokens=max_tokens)
            assert is_sane(estimator.predict(request))


def test_the_bias_starts_at_one(estimator: Estimator) -> None:
    assert {1.0} == {estimator.bias(request_of(category)) for category in (*CATEGORIES, "unheard of")}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("tokens", ABSURD, ids=lambda tokens: f"{tokens:.0e}" if abs(tokens) < 1e99 else "huge")
def test_no_usage_makes_a_prediction_insane(estimator: Estimator, tokens: Any, finished: bool) -> None:
    request = request_of("report", prompt_tokens=20)
    for _ in range(2000):
        estimator.learn(request, Usage(tokens, tokens), finished=finished)
        assert is_sane(estimator.predict(request))
    assert isfinite(estimator.bias(request))


def test_one_absurd_length_does_not_undo_what_was_learnt(estimator: Estimator) -> None:
    request = request_of("report")
    for _ in range(100):
        estimator.learn(request, Usage(10, 400), finished=True)
    before = estimator.predict(request).completion_tokens
    estimator.learn(request, Usage(10, 10**9), finished=True)
    estimator.learn(request, Usage(10, 0), finished=True)
    assert pytest.approx(before, rel=0.4) == estimator.predict(request).completion_tokens


def test_any_number_of_names_fits_in_bounded_memory(estimator: Estimator) -> None:
    tracemalloc.start()
    try:
        for i in range(NUM_NAMES):
            request = request_of("report", model=f"model-{i}", tenant=f"tenant-{i}")
            estimator.learn(request, Usage(10, 400), finished=True)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < MOST_BYTES.get(type(estimator), 1_000_000)
