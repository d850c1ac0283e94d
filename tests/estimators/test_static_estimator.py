"""Category limits, no feedback."""

import pytest

from driftsched.core.model import Estimate, Usage
from driftsched.estimators.static import Static
from support.prompts import request_of


@pytest.mark.parametrize(
    ("category", "max_tokens", "length"),
    [
        ("short_qa", None, 64),
        ("report", None, 512),
        ("report", 512, 512),
        ("report", 100, 100),
        ("report", 4096, 512),
    ],
)
def test_it_expects_the_base_length_within_the_clients_limit(
    category: str, max_tokens: int | None, length: float
) -> None:
    estimate = Static().predict(request_of(category, prompt_tokens=300, max_tokens=max_tokens))
    assert Estimate(length, length, length, length) == estimate


def test_it_never_learns() -> None:
    estimator, request = Static(), request_of("report")
    estimator.learn(request, Usage(10, 100), finished=True)
    assert Estimate(512, 512, 512, 512) == estimator.predict(request)
