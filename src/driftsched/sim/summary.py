"""The results of an experiment as documents: summary.json, tidy CSV, and one line per request.

The same runs always give the same bytes: nothing here reads a clock, and the environment holds only what stays the
same between two runs on one machine.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from driftsched.core.errors import ConfigError
from driftsched.sim.conditions import capture_environment, source_commit
from driftsched.sim.measures import Run
from driftsched.sim.recording import Recording
from driftsched.sim.statistics import Interval, paired_difference, t_interval

SCHEMA = 1
"""Of summary.json: raised when a name or a meaning changes, not when something is added."""

Verdict = Literal["lower", "higher", "n.s."]


class Arm(NamedTuple):
    """What is held fixed while the seed changes."""

    policy: str
    estimator: str
    engine_mode: str
    variant: str


class SummaryRow(msgspec.Struct, frozen=True):
    """One figure of one arm, over its seeds. See docs/results.md."""

    policy: str
    estimator: str
    engine_mode: str
    variant: str
    metric: str
    """Path of the figure in a run, joined by dots: `e2e_seconds.p95`, `by_tier.premium.queue_seconds.mean`."""
    mean: float
    low: float | None
    high: float | None
    n: int
    baseline: str | None = None
    """Policy of the arm compared with; None for the baseline itself and for an arm that has none."""
    baseline_estimator: str | None = None
    difference: Interval | None = None
    """Paired by seed, in the unit of the figure."""
    change: Interval | None = None
    """The same relative to the baseline: 0.1 is 10 % more."""
    verdict: Verdict | None = None

    @property
    def arm(self) -> Arm:
        return Arm(self.policy, self.estimator, self.engine_mode, self.variant)

    @property
    def interval(self) -> Interval:
        return Interval(self.mean, self.low, self.high, self.n)


class Document(msgspec.Struct, frozen=True):
    """summary.json."""

    schema: int
    scenario: dict[str, Any]
    commit: str
    trace_hash: str
    runs: list[Run]
    summary: list[SummaryRow]
    environment: dict[str, Any] = {}
    complete: bool = True
    """False if the experiment was interrupted: these are the runs that were done."""

    def row(self, arm: Arm, metric: str) -> SummaryRow | None:
        """One figure; None if it could not be given for every seed."""
        return next((row for row in self.summary if row.metric == metric and row.arm == arm), None)

    @property
    def arms(self) -> list[Arm]:
        """In the order in which they were run."""
        return list(dict.fromkeys(arm_of(run) for run in self.runs))

    @property
    def scenes(self) -> dict[tuple[str, str], list[Arm]]:
        """The arms that may be compared with each other, by engine mode and variant."""
        scenes: dict[tuple[str, str], list[Arm]] = {}
        for arm in self.arms:
            scenes.setdefault((arm.engine_mode, arm.variant), []).append(arm)
        return scenes


def document(
    runs: Sequence[Run],
    *,
    scenario: Mapping[str, Any],
    trace_hash: str,
    baseline: str | None = None,
    commit: str | None = None,
    environment: Mapping[str, Any] | None = None,
    complete: bool = True,
) -> Document:
    """Everything about an experiment. `baseline` is a policy: see `baseline_of`.

    `commit` and `environment` are found out unless given. Raises `ValueError` if an arm has two runs of one seed.
    """
    return Document(
        schema=SCHEMA,
        scenario=dict(scenario),
        commit=source_commit() if commit is None else commit,
        trace_hash=trace_hash,
        runs=list(runs),
        summary=summarize(runs, baseline),
        environment=dict(capture_environment() if environment is None else environment),
        complete=complete,
    )


def summarize(runs: Sequence[Run], baseline: str | None = None) -> list[SummaryRow]:
    """Every figure that could be given for every seed, by arm: its interval, and its difference to the baseline."""
    by_arm: dict[Arm, dict[int, dict[str, float]]] = {}
    for run in runs:
        seeds = by_arm.setdefault(arm_of(run), {})
        if run.seed in seeds:
            raise ValueError(f"two runs of {arm_of(run)} have the seed {run.seed}")
        seeds[run.seed] = {".".join(path): value for path, value in figures(run) if value is not None}
    rows = []
    for arm, seeds in by_arm.items():
        other = baseline_of(arm, list(by_arm), baseline)
        for metric in next(iter(seeds.values())):
            values = _column(seeds, metric)
            if len(values) == len(seeds):
                rows.append(_row(arm, metric, values, other, _column(by_arm[other], metric) if other else {}))
    return rows


def baseline_of(arm: Arm, arms: Sequence[Arm], policy: str | None = None) -> Arm | None:
    """What `arm` is compared with; None if it is the baseline itself or nothing is comparable.

    Of the arms of the same variant and engine mode, one of the baseline `policy` (the first arm's, if not given):
    the one with the same estimator if there is one, and for arms of that policy itself the first one, so that
    estimators are compared with each other.
    """
    alike = [a for a in arms if (a.engine_mode, a.variant) == (arm.engine_mode, arm.variant)]
    name = alike[0].policy if policy is None else policy
    candidates = [a for a in alike if a.policy == name]
    if arm.policy != name:
        candidates.sort(key=lambda a: a.estimator != arm.estimator)
    return next((a for a in candidates[:1] if a != arm), None)


def _column(seeds: Mapping[int, Mapping[str, float]], metric: str) -> dict[int, float]:
    return {seed: values[metric] for seed, values in seeds.items() if metric in values}


def _row(
    arm: Arm, metric: str, values: Mapping[int, float], other: Arm | None, baseline: Mapping[int, float]
) -> SummaryRow:
    interval = t_interval([values[seed] for seed in sorted(values)])
    row = SummaryRow(*arm, metric, interval.mean, interval.low, interval.high, interval.n)
    difference = paired_difference(values, baseline)
    if other is None or difference is None:
        return row
    verdict: Verdict = "n.s."
    if difference.significant:
        verdict = "lower" if difference.absolute.mean < 0 else "higher"
    return msgspec.structs.replace(
        row,
        baseline=other.policy,
        baseline_estimator=other.estimator,
        difference=difference.absolute,
        change=difference.relative,
        verdict=verdict,
    )


def arm_of(run: Run | Recording) -> Arm:
    """The arm that a run belongs to."""
    return Arm(run.policy, run.estimator, run.engine_mode, run.variant)


def labels(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Short names that tell the arms apart: the policy, and of the rest what is not the same for all."""
    differing = [field for field in range(1, 4) if len({arm[field] for arm in arms}) > 1]
    return {arm: " ".join([arm.policy, *(arm[field] for field in differing)]) for arm in arms}


def figures(run: Run) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """Every number of a run with its path, in the order of the document; None where it could not be given."""
    facts = msgspec.to_builtins(run)
    for name in ("policy", "estimator", "engine_mode", "variant", "seed"):
        del facts[name]
    return _leaves(facts, ())


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float | None]]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, (*path, name))
    elif node is None or isinstance(node, int | float):
        yield path, node


def to_json(document: Document) -> bytes:
    """summary.json, indented, with a final newline."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def load_document(path: Path) -> Document:
    """Read summary.json, or the one in a results directory. Raises `ConfigError` naming file and field."""
    file = path / "summary.json" if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}: give a results directory or its summary.json") from None
    try:
        head = msgspec.json.decode(content, type=_Head)
        if head.schema != SCHEMA:
            raise ConfigError(f"{file}: has schema {head.schema}, this version reads schema {SCHEMA}")
        return msgspec.json.decode(content, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a summary written by driftsched: {error}") from None


class _Head(msgspec.Struct):
    schema: int


CSV_COLUMNS = (
    "policy",
    "estimator",
    "engine_mode",
    "variant",
    "seed",
    "group",
    "member",
    "measure",
    "stat",
    "value",
)


def to_csv(runs: Iterable[Run]) -> str:
    """One line per figure and run: tidy, as data frames like it. A figure that could not be given is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        for path, value in figures(run):
            group, member = ("all", "")
            if path[0].startswith("by_"):
                group, member, path = path[0].removeprefix("by_"), path[1], path[2:]
            stat = path[1] if len(path) > 1 else "value"
            writer.writerow((*arm_of(run), run.seed, group, member, path[0], stat, "" if value is None else value))
    return text.getvalue()


def request_lines(recording: Recording) -> Iterator[bytes]:
    """requests.jsonl: one JSON object and newline per request, in order of arrival."""
    facts = {**arm_of(recording)._asdict(), "seed": recording.seed}
    encoder = msgspec.json.Encoder()
    columns = zip(*(getattr(recording, name) for name in _REQUEST_COLUMNS), strict=True)
    for number, values in enumerate(columns):
        line = {**facts, "request": number, **dict(zip(_REQUEST_COLUMNS, values, strict=True))}
        yield encoder.encode(line) + b"\n"


_REQUEST_COLUMNS = (
    "arrived_at",
    "dispatched_at",
    "first_token_at",
    "finished_at",
    "tenant",
    "tier",
    "category",
    "runtime_class",
    "phase",
    "prompt_tokens",
    "completion_tokens",
    "predicted_tokens",
    "outcome",
    "finish_reason",
    "charge",
)


def write_results(out: Path, document: Document, recordings: Iterable[Recording]) -> None:
    """summary.json, summary.csv and requests.jsonl in the directory `out`, which is made if it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_bytes(to_json(document))
    (out / "summary.csv").write_text(to_csv(document.runs), encoding="utf-8", newline="")
    with (out / "requests.jsonl").open("wb") as file:
        for recording in recordings:
            file.writelines(request_lines(recording))
