"""Drift put into recorded requests, and how long an estimator takes to follow it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.evaluation.rows import MAX_TOKENS, Row
from driftsched.evaluation.scores import Said
from driftsched.evaluation.stream import Timeline

WINDOW = 30
"""Predictions whose mean error is compared with the old one."""
TOLERANCE = 0.1
"""An error is back when it exceeds the old one by no more than this share."""
REFERENCE_ROWS = 300
"""The old error is that of so many predictions before the drift."""
SETTLED = 60
"""The new error is that of predictions made once so many changed answers had finished."""
MAX_FACTOR = 1000.0


@dataclass(frozen=True, slots=True)
class Drift:
    """From a point of the stream on, answers are longer or shorter."""

    at: float
    """Share of the rows that come before it, 0 < at < 1."""
    factor: float
    """What lengths are multiplied by, > 0."""
    category: str | None = None
    """Only these are changed; None: all."""
    model: str | None = None

    @property
    def label(self) -> str:
        """As it was asked for."""
        of = f":{self.category}" if self.category is not None else ""
        of += f":model={self.model}" if self.model is not None else ""
        return f"{self.at:g}:{self.factor:g}{of}"

    def start(self, num_rows: int) -> int:
        """Index of the first row that may be changed."""
        return round(self.at * num_rows)

    def affected(self, rows: Sequence[Row]) -> npt.NDArray[np.bool_]:
        """Which rows are of the kind that drifts, those before it included."""
        return np.array([self.category in (None, row.category) and self.model in (None, row.model) for row in rows])


def parse_drift(text: str) -> Drift:
    """`AT:FACTOR`, `AT:FACTOR:CATEGORY` or `AT:FACTOR:model=NAME`. Raises `ConfigError`."""
    at, _, rest = text.partition(":")
    factor, _, of = rest.partition(":")
    try:
        drift = Drift(float(at), float(factor))
    except ValueError:
        raise ConfigError(f"--drift {text}: write AT:FACTOR, AT:FACTOR:CATEGORY or AT:FACTOR:model=NAME") from None
    if not 0 < drift.at < 1:
        raise ConfigError(f"--drift {text}: AT is the share of rows before it: more than 0, less than 1")
    if not (isfinite(drift.factor) and 0 < drift.factor <= MAX_FACTOR):
        raise ConfigError(f"--drift {text}: FACTOR must be more than 0 and at most {MAX_FACTOR:g}")
    model = of.removeprefix("model=") if of.startswith("model=") else None
    return Drift(drift.at, drift.factor, category=(of or None) if model is None else None, model=model)


def inject(rows: Sequence[Row], drifts: Sequence[Drift]) -> list[Row]:
    """Rows that know their category, with changed lengths; `max_tokens` still cuts.

    Raises `ConfigError` if there are no rows that would drift.
    """
    made = list(rows)
    for drift in drifts:
        affected = drift.affected(rows)
        start = drift.start(len(rows))
        if not affected[start:].any():
            raise ConfigError(f"--drift {drift.label}: there are no such rows from there on")
        for number in (np.nonzero(affected[start:])[0] + start).tolist():
            made[number] = _longer(made[number], drift.factor)
    return made


def _longer(row: Row, factor: float) -> Row:
    limit = max(row.max_tokens or MAX_TOKENS, row.completion_tokens)  # engines have been seen to exceed it
    length = min(round(row.completion_tokens * factor), limit)
    return replace(row, completion_tokens=max(length, min(row.completion_tokens, 1)))


def recovery(
    drift: Drift, said: Said, calm: Said, rows: Sequence[Row], times: Timeline, warmup: int
) -> dict[str, float | int | str | None]:
    """How the error of the affected rows, the mean absolute logarithm of predicted / actual, followed a drift.

    `before`: of the last `REFERENCE_ROWS` predictions before it, those of the warm-up left out. `first`: of the
    first `WINDOW` after it. `after`: of those made once `SETTLED` changed answers had finished, at most
    `REFERENCE_ROWS`; `without`: of the very same requests in `calm`, had there been no drift. `recovered_after`: so
    many changed answers had finished when the first `WINDOW` predictions in a row began whose mean error was within
    `TOLERANCE` of `before`. None where there are not enough rows, or where it never came back.
    """
    known = np.array([row.known for row in rows])
    places = np.nonzero(drift.affected(rows) & known)[0]
    start = drift.start(len(rows))
    old, changed = places[(places >= warmup) & (places < start)], places[places >= start]
    errors = np.abs(said.log_ratio)
    finished = _finished_before(changed, times)
    settled = changed[finished >= SETTLED][:REFERENCE_ROWS]
    before = _mean(errors[old[-REFERENCE_ROWS:]])
    return {
        "drift": drift.label,
        "before": before,
        "first": _mean(errors[changed[:WINDOW]]),
        "after": _mean(errors[settled]),
        "without": _mean(np.abs(calm.log_ratio)[settled]),
        "recovered_after": None if before is None else _recovered(errors[changed], finished, before),
    }


def _mean(errors: npt.NDArray[np.float64]) -> float | None:
    """None for less than a window."""
    return float(errors.mean()) if len(errors) >= WINDOW else None


def _recovered(errors: npt.NDArray[np.float64], finished: npt.NDArray[np.intp], before: float) -> int | None:
    if len(errors) < WINDOW:
        return None
    sums = np.concatenate(([0.0], np.cumsum(errors)))
    low = np.nonzero(sums[WINDOW:] - sums[:-WINDOW] <= WINDOW * (1 + TOLERANCE) * before)[0]
    return int(finished[low[0]]) if len(low) else None


def _finished_before(changed: npt.NDArray[np.intp], times: Timeline) -> npt.NDArray[np.intp]:
    """For each of the changed rows, how many of them had finished when it came."""
    members = set(changed.tolist())
    counts = np.cumsum([sum(done in members for done in due) for due in times.due])
    return counts[changed].astype(np.intp)
