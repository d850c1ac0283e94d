"""Drift: what it changes, and when an estimator has followed it."""

import numpy as np
import pytest

from driftsched.core.errors import ConfigError
from driftsched.evaluation.drift import Drift, inject, parse_drift, recovery
from driftsched.evaluation.rows import Row
from driftsched.evaluation.scores import Said
from driftsched.evaluation.stream import Pace, timeline

AT_ONCE = Pace(first_token_seconds=0.5, seconds_per_token=0.0)
ROWS = [
    Row(100, arrived_at=float(number), model="ab"[number % 2], category="summary" if number % 4 < 2 else "report")
    for number in range(400)
]
"""One a second, each answered before the next comes."""


def followed(drift: Drift, predicted: list[float], rows: list[Row], warmup: int = 0) -> dict[str, object]:
    actual = np.array([row.completion_tokens for row in rows], dtype=float)
    said = Said(actual, np.array(predicted), {})
    return dict(recovery(drift, said, said, rows, timeline(rows, AT_ONCE), warmup))


@pytest.mark.parametrize(
    ("text", "drift"),
    [
        ("0.5:1.6", Drift(0.5, 1.6)),
        ("0.25:2:summary", Drift(0.25, 2.0, category="summary")),
        ("0.5:0.5:model=org/a:b", Drift(0.5, 0.5, model="org/a:b")),
    ],
)
def test_a_drift_is_written_as_share_factor_and_kind(text: str, drift: Drift) -> None:
    assert drift == parse_drift(text)
    assert drift == parse_drift(drift.label)


@pytest.mark.parametrize(
    "text", ["", "0.5", "0.5:x", "0:2", "1:2", "nan:2", "0.5:0", "0.5:-1", "0.5:inf", "0.5:nan"]
)
def test_what_is_no_drift_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--drift"):
        parse_drift(text)


def test_only_the_rows_of_its_kind_after_its_start_change() -> None:
    for drift, kind in (
        (Drift(0.25, 1.6, category="summary"), [row.category == "summary" for row in ROWS]),
        (Drift(0.25, 1.6, model="a"), [row.model == "a" for row in ROWS]),
        (Drift(0.25, 1.6), [True] * 400),
    ):
        lengths = [row.completion_tokens for row in inject(ROWS, [drift])]
        assert [160 if member and number >= 100 else 100 for number, member in enumerate(kind)] == lengths


def test_a_changed_length_stays_within_its_limit_and_does_not_vanish() -> None:
    rows = [Row(100), Row(100, max_tokens=120), Row(1), Row(0), Row(100, max_tokens=1)]
    longer = inject(rows, [Drift(0.01, 1.5)])
    assert [150, 120, 2, 0, 100] == [row.completion_tokens for row in longer]
    assert not longer[1].finished
    assert [1, 1, 1, 0, 1] == [row.completion_tokens for row in inject(rows, [Drift(0.01, 0.001)])]


def test_a_drift_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such rows"):
        inject(ROWS, [Drift(0.5, 2.0, category="poem")])


def test_an_error_is_back_with_the_first_thirty_predictions_that_are_as_good_as_before() -> None:
    drift = Drift(0.5, 2.0)
    rows = inject(ROWS, [drift])
    predicted = [110.0] * 245 + [220.0] * 155  # an error of ln 1.1 but for the 45 rows after the drift
    found = followed(drift, predicted, rows)
    assert (pytest.approx(np.log(1.1)), pytest.approx(np.log(1.1))) == (found["before"], found["after"])
    assert pytest.approx(np.log(200 / 110)) == found["first"]
    assert 45 == found["recovered_after"]


def test_only_answers_of_its_kind_count_for_recovery() -> None:
    drift = Drift(0.5, 2.0, model="a")
    rows = inject(ROWS, [drift])
    predicted = [(110.0 if number < 290 else 220.0) if row.model == "a" else 1.0 for number, row in enumerate(rows)]
    found = followed(drift, predicted, rows)
    assert pytest.approx(np.log(1.1)) == found["before"]
    assert 45 == found["recovered_after"]


def test_answers_that_are_still_under_way_have_not_finished() -> None:
    drift = Drift(0.5, 2.0)
    rows = inject(ROWS, [drift])
    said = Said(
        np.array([row.completion_tokens for row in rows], dtype=float), np.array([110.0] * 245 + [220.0] * 155), {}
    )
    late = timeline(rows, Pace(first_token_seconds=10.5, seconds_per_token=0.0))
    assert 35 == recovery(drift, said, said, rows, late, 0)["recovered_after"]


def test_an_error_that_stays_has_not_recovered_and_too_few_rows_tell_nothing() -> None:
    drift = Drift(0.5, 2.0)
    rows = inject(ROWS, [drift])
    assert followed(drift, [110.0] * 400, rows)["recovered_after"] is None
    found = followed(drift, [110.0] * 400, rows, warmup=180)
    assert (None, None) == (found["before"], found["recovered_after"])


def test_the_old_error_is_that_of_the_latest_predictions_whose_length_is_known() -> None:
    rows = [
        Row(100, arrived_at=float(number), finish_reason="length" if number % 2 else "") for number in range(900)
    ]
    drift = Drift(0.9, 2.0)
    said = Said(np.full(900, 100.0), np.array([1.0] * 200 + [110.0] * 700), {})
    said.predicted[1::2] = 1.0
    found = recovery(drift, said, said, rows, timeline(rows, AT_ONCE), 0)
    assert pytest.approx(np.log(1.1)) == found["before"]
    assert pytest.approx(np.log(1.1)) == found["first"]


def test_a_long_past_does_not_count() -> None:
    rows = [Row(100, arrived_at=float(number)) for number in range(1000)]
    said = Said(np.full(1000, 100.0), np.array([1.0] * 200 + [110.0] * 800), {})
    found = recovery(Drift(0.5, 2.0), said, said, rows, timeline(rows, AT_ONCE), 0)
    assert pytest.approx(np.log(1.1)) == found["before"]


def test_the_same_requests_without_a_drift_are_what_the_new_error_is_held_against() -> None:
    drift = Drift(0.5, 2.0)
    rows = inject(ROWS, [drift])
    said = Said(np.array([float(row.completion_tokens) for row in rows]), np.full(400, 220.0), {})
    calm = Said(np.full(400, 100.0), np.array([1.0] * 260 + [130.0] * 140), {})
    found = recovery(drift, said, calm, rows, timeline(rows, AT_ONCE), 0)
    assert pytest.approx(np.log(1.1)) == found["after"]
    assert pytest.approx(np.log(1.3)) == found["without"]
