"""What an estimator is told, and when."""

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Estimate, Request, Usage
from driftsched.estimators.categories import KeywordClassifier
from driftsched.estimators.describe import PromptDescriber
from driftsched.estimators.tokens import BytesCounter
from driftsched.evaluation.rows import Row
from driftsched.evaluation.stream import Pace, describe, run, timeline

PACE = Pace(first_token_seconds=1, seconds_per_token=0.1, inflight=2)


class Diary:
    """An estimator that writes down what happens to it."""

    def __init__(self, length: float = 10.0) -> None:
        self.length = length
        self.entries: list[str] = []
        self.learnt: list[tuple[Usage, bool, float]] = []

    def predict(self, request: Request) -> Estimate:
        self.entries.append(f"predict {request.id}")
        said = self.length + int(request.id)
        return Estimate(said, said, said, said)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        raise AssertionError("nothing is revised")

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        assert estimate is not None
        self.entries.append(f"learn {request.id}")
        self.learnt.append((usage, finished, estimate.completion_tokens))

    def bias(self, request: Request) -> float:
        return 1.0


def play(rows: list[Row], diary: Diary, *, learn_first: int | None = None, pace: Pace = PACE) -> list[str]:
    times = timeline(rows, pace)
    requests = [
        row.request(number, at) for number, (row, at) in enumerate(zip(rows, times.arrived_at, strict=True))
    ]
    run(diary, rows, requests, times, learn_first=learn_first)
    return diary.entries


def test_an_answer_is_learnt_when_it_would_have_finished_and_not_before() -> None:
    rows = [Row(40, arrived_at=0.0), Row(10, arrived_at=1.0), Row(10, arrived_at=3.0), Row(0, arrived_at=5.0)]
    assert [
        "predict 0", "predict 1", "learn 1", "predict 2", "learn 0", "learn 2", "predict 3",
    ] == play(rows, Diary())[:7]  # fmt: skip


def test_requests_that_come_together_know_nothing_of_one_another() -> None:
    entries = play([Row(5, arrived_at=7.0) for _ in range(3)], Diary())
    assert ["predict 0", "predict 1", "predict 2", "learn 0", "learn 1", "learn 2"] == entries


def test_the_clock_begins_with_the_first_request() -> None:
    assert [0.0, 1.5] == list(
        timeline([Row(5, arrived_at=1.75e9), Row(5, arrived_at=1.75e9 + 1.5)], PACE).arrived_at
    )


def test_prompt_lengths_that_are_missing_are_estimated_from_those_that_finished() -> None:
    rows = [
        Row(5, prompt="word", prompt_bytes=600, prompt_tokens=100 if number < 50 else 0) for number in range(60)
    ]
    described = describe(rows, timeline(rows, PACE), PromptDescriber(KeywordClassifier(), BytesCounter()))
    assert 100 == described[0].prompt_tokens
    assert pytest.approx(100, rel=0.1) == described[59].prompt_tokens  # at 4 bytes a token it would be 150


def test_without_times_rows_come_so_that_the_number_being_served_is_as_asked() -> None:
    rows = [Row(30 + 10 * (number % 3)) for number in range(90)]
    arrived = timeline(rows, PACE).arrived_at
    served = [
        sum(at <= now < at + PACE.service_seconds(row) for at, row in zip(arrived, rows, strict=True))
        for now in arrived
    ]
    assert pytest.approx(2, abs=0.6) == sum(served[10:]) / len(served[10:])


def test_an_estimator_hears_what_was_used_whether_it_was_cut_short_and_what_it_said_itself() -> None:
    rows = [
        Row(5, prompt_tokens=3),
        Row(6, finish_reason="length"),
        Row(7, max_tokens=7),
        Row(8, finish_reason="cancelled"),
    ]
    diary = Diary()
    play(rows, diary)
    assert [
        (Usage(3, 5), True, 10.0), (Usage(0, 6), False, 11.0), (Usage(0, 7), False, 12.0),
        (Usage(0, 8), False, 13.0),
    ] == diary.learnt  # fmt: skip


def test_a_request_that_was_cut_before_its_first_token_teaches_nothing() -> None:
    assert ["predict 0"] == play([Row(0, finish_reason="cancelled")], Diary())
    assert ["predict 0", "learn 0"] == play([Row(0)], Diary())


def test_frozen_feedback_learns_the_first_rows_only() -> None:
    entries = play([Row(5) for _ in range(9)], Diary(), learn_first=2)
    assert ["learn 0", "learn 1"] == [entry for entry in entries if entry.startswith("learn")]


@pytest.mark.parametrize("length", [float("nan"), float("inf"), -5.0])
def test_a_prediction_that_is_no_length_stops_the_run(length: float) -> None:
    with pytest.raises(ConfigError, match="row 1: predicted"):
        play([Row(5)], Diary(length))
