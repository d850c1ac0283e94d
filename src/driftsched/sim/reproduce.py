"""The published figures beside ours, and what each change to the experiment does."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain, groupby
from math import ceil
from pathlib import Path
from textwrap import wrap
from typing import Any

import msgspec

from driftsched.core.errors import ConfigError
from driftsched.engines.presets import get_hardware
from driftsched.sim.conditions import coefficients
from driftsched.sim.experiment import ORACLE
from driftsched.sim.measures import Run
from driftsched.sim.published import BATCH_SECONDS, ERROR_CUTS, HEADLINES, TIMES, Figure, label_of
from driftsched.sim.statistics import Interval, paired_difference, t_interval
from driftsched.sim.summary import Document, document, to_csv, to_json
from driftsched.sim.tables import WIDTH
from driftsched.sim.trace import trace_hash
from driftsched.sim.trials import (
    CONSTANTS,
    HARDWARE,
    LOADS,
    RHOS,
    SLOTS,
    VARIANTS,
    PaperParts,
    Result,
    Trial,
    Variant,
    run_trial,
    trace_of,
)

SCHEMA = 1
"""Of reproduction.json: raised when a name or a meaning changes, not when something is added."""

Values = Mapping[int, float]
"""One figure, by seed."""

Progress = Callable[[int, int], None]
"""Told how many runs are done, and how many there are."""


class Beside(msgspec.Struct, frozen=True):
    """A published figure and ours."""

    table: str
    policy: str
    metric: str
    unit: str
    """`s` or `%`."""
    published: float
    ours: Interval
    """Over seeds."""

    @property
    def ratio(self) -> float:
        """Ours divided by theirs."""
        return self.ours.mean / self.published


class Change(msgspec.Struct, frozen=True):
    """One figure of one policy in two variants."""

    variant: str
    against: str
    """The variant before the change."""
    policy: str
    estimator: str
    metric: str
    before: Interval
    after: Interval
    change: Interval
    """Relative, paired by seed: 0.1 is 10 % more."""


class LoadPoint(msgspec.Struct, frozen=True):
    """What ordering by size does to FIFO at one utilisation of an open loop."""

    rho: float
    estimator: str
    metric: str
    fifo: Interval
    sjf: Interval
    change: Interval
    """Relative, paired by seed."""


class BatchSeconds(msgspec.Struct, frozen=True):
    """How long a full micro-batch takes, over all policies but SJF."""

    published_p50: float
    p50: float
    published_p99: float
    p99: float


class Reproduction(msgspec.Struct, frozen=True):
    """Everything that `driftsched reproduce` finds out."""

    summary: Document
    """Every run."""
    published: list[Beside]
    batch_seconds: BatchSeconds
    changes: list[Change]
    loads: list[LoadPoint]


class Results:
    """The runs of all trials."""

    def __init__(self, results: Mapping[Trial, Result]) -> None:
        self._results = dict(results)
        self.seeds = sorted({trial.seed for trial in results})

    @property
    def runs(self) -> list[Run]:
        return [result.run for result in self._results.values()]

    def values(self, variant: str, policy: str, metric: str) -> Values:
        """The figure at a path such as `by_tier.premium.e2e_seconds.mean`, of every seed that has it."""
        return {
            trial.seed: value
            for trial, result in self._results.items()
            if (trial.variant.name, trial.policy) == (variant, policy)
            and (value := _lookup(result.run, metric)) is not None
        }

    def batch_seconds(self) -> list[float]:
        """Of the full micro-batches that the paper's figure is about, in ascending order."""
        return sorted(
            chain.from_iterable(
                result.batch_seconds
                for trial, result in self._results.items()
                if trial.variant.name == "paper" and trial.policy != "sjf"
            )
        )


def run_all(
    seeds: Sequence[int],
    processes: int,
    parts: PaperParts,
    *,
    variants: Iterable[Variant] = (*VARIANTS, *LOADS),
    progress: Progress | None = None,
) -> Results:
    """Every policy of every variant on every seed.

    The results do not depend on `processes`. Raises `ConfigError` for no seeds, a seed given twice, or fewer than
    one process.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds: give at least one, and none twice")
    if processes < 1:
        raise ConfigError(f"processes: must be at least 1, not {processes}")
    one_seed = [(variant, policy) for variant in variants for policy in variant.policies]
    trials = [Trial(variant, policy, seed) for seed in seeds for variant, policy in one_seed]
    with _mapping(processes, chunk=len(one_seed)) as mapped:  # a chunk makes a seed's trace once
        results: dict[Trial, Result] = {}
        for trial, result in zip(trials, mapped(partial(run_trial, parts=parts), trials), strict=True):
            results[trial] = result
            if progress is not None:
                progress(len(results), len(trials))
    return Results(results)


@contextmanager
def _mapping(processes: int, chunk: int) -> Iterator[Callable[..., Iterable[Result]]]:
    """`map`, by so many processes."""
    if processes == 1:
        yield map
    else:
        with ProcessPoolExecutor(processes) as pool:
            yield partial(pool.map, chunksize=chunk)


def reproduce(
    seeds: Sequence[int], processes: int, parts: PaperParts, *, progress: Progress | None = None
) -> Reproduction:
    """The whole reproduction. The same seeds give the same figures. Raises as `run_all`."""
    results = run_all(seeds, processes, parts, progress=progress)
    scenario = {
        "workload": "paper",
        "hardware": HARDWARE,
        "coefficients": coefficients(get_hardware(HARDWARE)),
        "slots": SLOTS,
        "seeds": list(seeds),
        "constants": [asdict(constant) for constant in CONSTANTS],
    }
    return Reproduction(
        summary=document(
            results.runs,
            scenario=scenario,
            trace_hash=trace_hash(chain.from_iterable(map(trace_of, seeds))),
            baseline="fifo",
        ),
        published=beside_published(results),
        batch_seconds=beside_batch_seconds(results),
        changes=changes(results),
        loads=loads(results),
    )


def write_reproduction(out: Path, reproduction: Reproduction) -> None:
    """summary.json, summary.csv, reproduction.json and reproduction.txt in `out`, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_bytes(to_json(reproduction.summary))
    (out / "summary.csv").write_text(to_csv(reproduction.summary.runs), encoding="utf-8", newline="")
    comparison = {name: getattr(reproduction, name) for name in ("published", "batch_seconds", "changes", "loads")}
    encoded = msgspec.json.encode({"schema": SCHEMA, **comparison})
    (out / "reproduction.json").write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    (out / "reproduction.txt").write_text(text(reproduction), encoding="utf-8", newline="")


def beside_times(results: Results) -> list[Beside]:
    """Tables III to VI: needs the variant `paper` only."""
    return [_beside(figure, results.values("paper", figure.policy, figure.metric)) for figure in TIMES]


def beside_published(results: Results) -> list[Beside]:
    """Every published figure with ours."""
    return [
        *beside_times(results),
        *(_beside(figure, _error_cuts(results, figure)) for figure in ERROR_CUTS),
        *(_beside(figure, _changes_against_fifo(results, figure)) for figure in HEADLINES),
    ]


def num_within(rows: Iterable[Beside], share: float) -> int:
    """How many of the times in tables III to VI are within `share` of the published ones: 0.1 is 10 %."""
    return sum(row.unit == "s" and abs(row.ratio - 1) <= share for row in rows)


def beside_batch_seconds(results: Results) -> BatchSeconds:
    """Needs the variant `paper` only."""
    seconds = results.batch_seconds()
    published_p50, published_p99 = BATCH_SECONDS
    return BatchSeconds(
        published_p50=published_p50,
        p50=seconds[ceil(0.50 * len(seconds)) - 1],
        published_p99=published_p99,
        p99=seconds[ceil(0.99 * len(seconds)) - 1],
    )


def changes(results: Results) -> list[Change]:
    """What each variant does to its figures, against the variant that differs from it in one thing."""
    return [
        Change(
            variant.name,
            variant.against,
            policy,
            variant.estimator,
            metric,
            *_change(results.values(variant.against, policy, metric), results.values(variant.name, policy, metric)),
        )
        for variant in VARIANTS
        if variant.against
        for policy in variant.policies
        for metric in variant.metrics
    ]


def loads(results: Results) -> list[LoadPoint]:
    """At each utilisation, SJF by predicted and by true length."""
    return [
        LoadPoint(
            rho,
            estimator,
            metric,
            *_change(
                results.values(f"load-{rho:.2f}", "fifo", metric),
                results.values(f"load-{rho:.2f}{suffix}", "sjf", metric),
            ),
        )
        for rho in RHOS
        for metric in ("e2e_seconds.p50", "e2e_seconds.p99")
        for estimator, suffix in (("ema", ""), (ORACLE, f"-{ORACLE}"))
    ]


def text(reproduction: Reproduction) -> str:
    """For a terminal of 80 columns."""
    lines = [
        *_published_lines(reproduction),
        *_change_lines(reproduction.changes),
        *_load_lines(reproduction.loads),
        *_method_lines(reproduction.summary.scenario),
    ]
    return "\n".join(lines) + "\n"


def _lookup(run: Run, metric: str) -> float | None:
    """The figure at a path; None if the run has none there."""
    found: Any = run
    for key in metric.split("."):
        found = found.get(key) if isinstance(found, Mapping) else getattr(found, key, None)
    return None if found is None else float(found)


def _beside(figure: Figure, ours: Values) -> Beside:
    return Beside(
        figure.table, figure.policy, figure.metric, figure.unit, figure.value, t_interval(list(ours.values()))
    )


def _error_cuts(results: Results, figure: Figure) -> Values:
    """By how many percent feedback makes an error smaller."""
    metric = "prediction." + figure.metric.replace("_cut_percent", "_tokens")
    without = results.values("no-feedback", figure.policy, metric)
    learnt = results.values("paper", figure.policy, metric)
    return {seed: 100 * (1 - learnt[seed] / without[seed]) for seed in results.seeds}


def _changes_against_fifo(results: Results, figure: Figure) -> Values:
    """In percent."""
    values = results.values("paper", figure.policy, figure.metric)
    fifo = results.values("paper", "fifo", figure.metric)
    return {seed: 100 * (values[seed] / fifo[seed] - 1) for seed in results.seeds}


def _change(before: Values, after: Values) -> tuple[Interval, Interval, Interval]:
    """Before, after, and the relative change."""
    difference = paired_difference(after, before)
    if difference is None or difference.relative is None:
        raise ValueError("a change needs runs on the same seeds, and a figure that is not 0 before it")
    return t_interval(list(before.values())), t_interval(list(after.values())), difference.relative


def _published_lines(reproduction: Reproduction) -> Iterator[str]:
    yield "Published figures, and ours: mean over seeds [95 % interval], ours / published"
    yield ""
    yield f"{'table':<7}{'policy':<10}{'figure':<21}{'paper':>9}{'ours':>9}  {'interval':<17}{'ratio':>5}"
    rows = reproduction.published
    for row in rows:
        label = label_of(row.metric) + (" against fifo" if row.table == "text" else "")
        yield (
            f"{row.table:<7}{row.policy:<10}{label:<21}{row.published:>7.1f} {row.unit}{row.ours.mean:>7.1f} "
            f"{row.unit}  {_bounds(row.ours):<17}{row.ratio:>5.2f}"
        )
    batch = reproduction.batch_seconds
    for label, published, ours in (
        ("full batch p50", batch.published_p50, batch.p50),
        ("full batch p99", batch.published_p99, batch.p99),
    ):
        ratio = ours / published
        yield f"{'text':<7}{'not sjf':<10}{label:<21}{published:>7.1f} s{ours:>7.1f} s{ratio:>24.2f}"
    yield ""
    yield (
        f"Of the {len(TIMES)} times in tables III to VI, {num_within(rows, 0.1)} are within 10 %, "
        f"{num_within(rows, 0.2)} within 20 %."
    )


def _change_lines(rows: Sequence[Change]) -> Iterator[str]:
    questions = {variant.name: variant.question for variant in VARIANTS}
    for (variant, against), group in groupby(rows, lambda row: (row.variant, row.against)):
        yield ""
        yield from wrap(f"{variant} against {against}: {questions[variant]}", WIDTH)
        yield f"{'policy':<10}{'figure':<21}{'before':>10}{'after':>10}   change, 95 % interval"
        for row in group:
            label = label_of(row.metric) + (", s" if "seconds" in row.metric else "")
            means = f"{row.before.mean:>10.1f}{row.after.mean:>10.1f}"
            yield f"{row.policy:<10}{label:<21}{means} {_percent(row.change)}"


def _load_lines(rows: Sequence[LoadPoint]) -> Iterator[str]:
    yield ""
    yield "Open loop (Poisson), continuous batching: what ordering by size does to FIFO"
    yield f"{'rho':<6}{'figure':<9}{'fifo':>8}   {'sjf, ema':<26}sjf, {ORACLE}"
    for (rho, metric), group in groupby(rows, lambda row: (row.rho, row.metric)):
        predicted, true = group
        yield (
            f"{rho:<6.2f}{label_of(metric):<9}{predicted.fifo.mean:>6.1f} s   "
            f"{_percent(predicted.change):<26}{_percent(true.change)}"
        )


def _method_lines(scenario: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    seeds = ", ".join(map(str, scenario["seeds"]))
    yield from wrap(f"Engine: {scenario['hardware']}, {scenario['slots']} sequences. Seeds: {seeds}.", WIDTH)
    yield "Constants that the paper does not print:"
    for constant in scenario["constants"]:
        figures = constant["calibrated_on"]
        origin = f"calibrated on {figures}" if figures else "not calibrated"
        told = f"  {constant['name']} = {constant['value']:g} {constant['unit']}: {constant['source']}; {origin}."
        yield from wrap(told, WIDTH, subsequent_indent="    ")


def _bounds(interval: Interval) -> str:
    return "" if interval.low is None else f"[{interval.low:.1f}, {interval.high:.1f}]"


def _percent(change: Interval) -> str:
    mean = f"{100 * change.mean:>+7.1f} % "
    if change.low is None or change.high is None:
        return mean.rstrip()
    return mean + ("n.s." if change.spans_zero else f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]")
