"""The prequential run: every request is predicted when it comes and learnt when it would have finished."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
import numpy.typing as npt

from driftsched.core.errors import ConfigError
from driftsched.core.model import Estimate, Request, Usage
from driftsched.core.protocols import Describer, Estimator
from driftsched.evaluation.rows import Row

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an answer takes, and how many are being served at once where the data has no times."""

    first_token_seconds: float = 0.2
    """Time to first token, > 0."""
    seconds_per_token: float = 0.03
    """>= 0."""
    inflight: float = 32.0
    """Requests being served on average, > 0; read only where rows have no `arrived_at`."""

    def __post_init__(self) -> None:
        if not (self.first_token_seconds > 0 and self.seconds_per_token >= 0 and self.inflight > 0):
            raise ConfigError("pace: the first token must take some time, a token none or more, inflight be > 0")

    def service_seconds(self, row: Row) -> float:
        return self.first_token_seconds + row.completion_tokens * self.seconds_per_token


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each request comes, and which have finished by then."""

    arrived_at: Sequence[float]
    due: Sequence[Sequence[int]]
    """By row: the rows that finish after the row before came, and not after this one; in order of finishing. One
    entry more than rows, for what finishes after the last came."""


def timeline(rows: Sequence[Row], pace: Pace) -> Timeline:
    """Rows without `arrived_at` come evenly, such that `pace.inflight` are being served on average."""
    service = np.array([pace.service_seconds(row) for row in rows])
    gap = service.mean() / pace.inflight
    arrived = np.array([i * gap if row.arrived_at is None else row.arrived_at for i, row in enumerate(rows)])
    arrived -= arrived[0]  # estimators see a clock that began with the data, whatever the file's began with
    order = np.argsort(arrived + service, kind="stable")
    # the first request that comes no earlier than the answer of another has finished; never that other itself
    slots = np.maximum(np.searchsorted(arrived, (arrived + service)[order], side="left"), order + 1)
    due: list[list[int]] = [[] for _ in range(len(rows) + 1)]
    for index, slot in zip(order.tolist(), slots.tolist(), strict=True):
        due[slot].append(index)
    return Timeline(arrived.tolist(), due)


def describe(rows: Sequence[Row], times: Timeline, describer: Describer) -> list[Request]:
    """The requests as a scheduler sees them: category and prompt length found as the gateway finds them."""
    requests: list[Request] = []
    for number, row in enumerate(rows):
        for done in times.due[number]:
            describer.learn(requests[done], Usage(rows[done].prompt_tokens, rows[done].completion_tokens))
        requests.append(describer.describe(row.request(number, times.arrived_at[number])))
    return requests


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an estimator said of every row, in order of arrival, and what saying it cost."""

    predicted: Column
    """Point predictions, tokens."""
    q50: Column
    q80: Column
    q90: Column
    predict_ns: Column
    """Time of each call, nanoseconds."""
    learn_ns: Column


def run(
    estimator: Estimator,
    rows: Sequence[Row],
    requests: Sequence[Request],
    times: Timeline,
    *,
    learn_first: int | None = None,
) -> Outcome:
    """Predict every request and learn each that has finished by then; all that finish are learnt, as in service.

    With `learn_first` only so many rows, the first, are ever learnt: feedback is frozen after them. Raises
    `ConfigError` if the estimator predicts what is no length.
    """
    said: list[Estimate] = []
    predict_ns, learn_ns = array("q"), array("q")
    usages = [
        Usage(request.prompt_tokens, row.completion_tokens) for request, row in zip(requests, rows, strict=True)
    ]
    finished = [row.finished for row in rows]
    last = len(rows) if learn_first is None else learn_first
    for number in range(len(rows) + 1):
        for done in times.due[number]:
            if done >= last or not (finished[done] or usages[done].completion_tokens):
                continue  # a lower bound of nothing teaches nothing, says the scheduler
            start = perf_counter_ns()
            estimator.learn(requests[done], usages[done], finished=finished[done], estimate=said[done])
            learn_ns.append(perf_counter_ns() - start)
        if number < len(rows):
            start = perf_counter_ns()
            estimate = estimator.predict(requests[number])
            predict_ns.append(perf_counter_ns() - start)
            said.append(estimate)
    return _outcome(said, predict_ns, learn_ns)


def _outcome(said: Sequence[Estimate], predict_ns: "array[int]", learn_ns: "array[int]") -> Outcome:
    columns = np.array(list(_figures(said)), dtype=np.float64).reshape(-1, 4)
    if len(wrong := np.nonzero(~(np.isfinite(columns) & (columns >= 0)).all(axis=1))[0]):
        raise ConfigError(f"row {wrong[0] + 1}: predicted {said[wrong[0]]}, which is no length")
    q50, q80, q90 = (columns[:, place] for place in (1, 2, 3))
    return Outcome(
        columns[:, 0], q50, q80, q90, np.array(predict_ns, dtype=np.float64), np.array(learn_ns, dtype=np.float64)
    )


def _figures(said: Sequence[Estimate]) -> Iterator[tuple[float, float, float, float]]:
    for estimate in said:
        yield estimate.completion_tokens, estimate.q50, estimate.q80, estimate.q90
