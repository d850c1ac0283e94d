"""The composition of an evaluation: estimators by name, the gateway's describer, and the data."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Request
from driftsched.core.protocols import Estimator
from driftsched.estimators import (
    DEFAULT_CLASSIFIER,
    DEFAULT_COUNTER,
    ESTIMATORS,
    create_classifier,
    create_counter,
    create_estimator,
)
from driftsched.estimators.describe import PromptDescriber
from driftsched.evaluation.document import FROZEN, Document, judged, said_of, text
from driftsched.evaluation.drift import Drift, inject, recovery
from driftsched.evaluation.page import render, require_matplotlib
from driftsched.evaluation.references import CategoryMean, Median
from driftsched.evaluation.rows import Row, read_rows
from driftsched.evaluation.stream import Outcome, Pace, Timeline, describe, run, timeline
from driftsched.sim.oracle import Oracle

ORACLE = "oracle"
REFERENCES: dict[str, Callable[[], Estimator]] = {"median": Median, "category_mean": CategoryMean}
DEFAULT_ESTIMATORS = ("static", "ema", "calibrated", "category_mean", "median", "adaptive", ORACLE)


def names() -> list[str]:
    """What can be evaluated: every estimator, and what they are compared with."""
    return sorted({*ESTIMATORS.names(), *REFERENCES, ORACLE})


def make(spec: str, rows: Sequence[Row]) -> Estimator:
    """The estimator of `name` or `name:option=value,...`. Raises `ConfigError`."""
    name, _, options = spec.partition(":")
    if name in REFERENCES and not options:
        return REFERENCES[name]()
    if name == ORACLE and not options:
        return Oracle({str(number): row.completion_tokens for number, row in enumerate(rows)})
    if name not in ESTIMATORS.names():
        if name in names():
            raise ConfigError(f"--estimator {spec}: {name} has no options")
        raise ConfigError(f"--estimator: unknown {name!r}: use one of {', '.join(names())}")
    return create_estimator(name, **_options(spec, options))


def _options(spec: str, options: str) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for part in filter(None, options.split(",")):
        name, equals, value = part.partition("=")
        if not equals or name in parsed:
            raise ConfigError(f"--estimator {spec}: write name:option=value,option=value, each option once")
        try:
            parsed[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            parsed[name] = value
    return parsed


def default_estimators() -> list[str]:
    """Those of `DEFAULT_ESTIMATORS` that there are."""
    known = names()
    return [name for name in DEFAULT_ESTIMATORS if name in known]


@dataclass(frozen=True, slots=True)
class Stage:
    """What every estimator is shown: the rows, when each comes and ends, what a gateway would have seen of it."""

    rows: Sequence[Row]
    times: Timeline
    requests: Sequence[Request]

    @property
    def categories(self) -> list[str]:
        return [request.category for request in self.requests]


def prepare(
    rows: Sequence[Row], pace: Pace, classifier: str = DEFAULT_CLASSIFIER
) -> tuple[Timeline, list[Request]]:
    """When rows come and end, and the requests that a gateway would have seen. Raises `ConfigError`."""
    times = timeline(rows, pace)
    describer = PromptDescriber(create_classifier(classifier), create_counter(DEFAULT_COUNTER))
    return times, describe(rows, times, describer)


@dataclass(frozen=True, slots=True)
class Arm:
    """An estimator as it takes part."""

    spec: str
    learn_first: int | None
    """It learns so many rows and no more; None: all."""

    @property
    def name(self) -> str:
        return self.spec if self.learn_first is None else self.spec + FROZEN

    def play(self, stage: Stage) -> Outcome:
        """What it says, a fresh one, of the rows. Raises `ConfigError` naming it."""
        estimator = make(self.spec, stage.rows)
        try:
            return run(estimator, stage.rows, stage.requests, stage.times, learn_first=self.learn_first)
        except ConfigError as error:
            raise ConfigError(f"estimator {self.spec!r}: {error}") from None


def evaluate(
    rows: Sequence[Row],
    estimators: Sequence[str] | None = None,
    *,
    warmup: int = 0,
    pace: Pace | None = None,
    classifier: str = DEFAULT_CLASSIFIER,
    drifts: Sequence[Drift] = (),
    ablation: bool = False,
    data: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Document:
    """The scores of each estimator, by name or `name:option=value`, on the rows after the first `warmup`.

    With `drifts` lengths change on the way. With `ablation` also of each as `NAME (frozen)`, which learns nothing
    after the warm-up. `progress` is told whom the run is at. Raises `ConfigError` for unknown names, options and
    settings.
    """
    pace = pace or Pace()
    if not 0 <= warmup < len(rows):
        raise ConfigError(f"--warmup {warmup}: leaves none of the {len(rows)} rows to score")
    arms = _arms(estimators or default_estimators(), warmup if ablation else None)
    for arm in arms:
        make(arm.spec, rows)  # before any work: a wrong name is the commonest mistake
    stage = Stage(rows, *prepare(rows, pace, classifier))
    calm, stage = stage, _drifting(stage, drifts, pace) if drifts else stage
    results = {}
    for arm in arms:
        progress(arm.name)
        outcome = arm.play(stage)
        found = results[arm.name] = judged(outcome, stage.rows, stage.categories, warmup)
        if drifts:
            twin = said_of(arm.play(calm), calm.rows)
            said = said_of(outcome, stage.rows)
            found["drift"] = [recovery(drift, said, twin, stage.rows, stage.times, warmup) for drift in drifts]
    return {
        "estimators": results,
        "rows": len(rows) - warmup,
        "warmup": warmup,
        "data": data,
        "classifier": classifier,
        "drifts": [drift.label for drift in drifts],
        "pace": asdict(pace),
        "inflight_mean": _inflight_mean(stage, pace),
        "cut_rows": sum(not row.known for row in stage.rows[warmup:]),
    }


def _arms(specs: Sequence[str], frozen_after: int | None) -> list[Arm]:
    if len(set(specs)) < len(specs):
        raise ConfigError("--estimator: one is given twice")
    arms = []
    for spec in specs:
        arms.append(Arm(spec, None))
        if frozen_after is not None and spec != ORACLE:
            arms.append(Arm(spec, frozen_after))
    return arms


def _drifting(stage: Stage, drifts: Sequence[Drift], pace: Pace) -> Stage:
    """The same requests with other answers; their categories are those without the drift."""
    rows = [replace(row, category=kind) for row, kind in zip(stage.rows, stage.categories, strict=True)]
    rows = inject(rows, drifts)
    times = timeline(rows, pace)
    requests = [
        dataclasses.replace(request, arrived_at=at)
        for request, at in zip(stage.requests, times.arrived_at, strict=True)
    ]
    return Stage(rows, times, requests)


def _inflight_mean(stage: Stage, pace: Pace) -> float:
    """Requests being served, on average from the first arrival to the end of the last answer."""
    service = [pace.service_seconds(row) for row in stage.rows]
    return sum(service) / max(at + seconds for at, seconds in zip(stage.times.arrived_at, service, strict=True))


def run_evaluate(
    path: Path,
    estimators: Sequence[str] | None = None,
    *,
    warmup: int = 0,
    pace: Pace | None = None,
    classifier: str = DEFAULT_CLASSIFIER,
    drifts: Sequence[Drift] = (),
    ablation: bool = False,
    json: Path | None = None,
    html: Path | None = None,
    quiet: bool = False,
) -> None:
    """Evaluate a file, print the tables, write the files. Raises `ConfigError`."""
    for option, target in (("--json", json), ("--html", html)):
        if target is not None and not target.parent.is_dir():
            raise ConfigError(f"{option} {target}: there is no directory {target.parent}")  # before any work

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if html is not None:
        require_matplotlib()
    document = evaluate(
        read_rows(path, tell),
        estimators,
        warmup=warmup,
        pace=pace,
        classifier=classifier,
        drifts=drifts,
        ablation=ablation,
        data=path.name,
        progress=(lambda _: None) if quiet else tell,
    )
    sys.stdout.write(text(document))
    if json is not None:
        _write(json, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    if html is not None:
        _write(html, render(document).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
