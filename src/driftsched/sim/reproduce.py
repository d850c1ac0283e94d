"""The published figures beside ours, and what each change to the experiment does."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain, groupby
from math import ceil
from textwrap import wrap
from typing import Any

from driftsched.core.errors import ConfigError
from driftsched.sim.published import BATCH_SECONDS, ERROR_CUTS, HEADLINES, TIMES, Figure, label_of
from driftsched.sim.statistics import Interval, paired_difference, t_interval
from driftsched.sim.trace import trace_hash
from driftsched.sim.trials import (
    CONSTANTS,
    HARDWARE,
    LOADS,
    RHOS,
    SLOTS,
    VARIANTS,
    Parts,
    Result,
    Trial,
    Variant,
    run_trial,
    trace_of,
)

SCHEMA = 1
WIDTH = 80

Values = Mapping[int, float]
"""One figure, by seed."""

Progress = Callable[[int, int], None]
"""Told how many runs are done, and how many there are."""


class Results:
    """The runs of all trials."""

    def __init__(self, results: Mapping[Trial, Result]) -> None:
        self._results = dict(results)
        self.seeds = sorted({trial.seed for trial in results})

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Each as an element of `runs`."""
        return [result.run for result in self._results.values()]

    def values(self, variant: str, policy: str, metric: str) -> Values:
        """The figure at the path `metric`, of every seed that has it."""
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
    parts: Parts,
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
    seeds: Sequence[int],
    processes: int,
    parts: Parts,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The whole reproduction as a document: see docs/reproduction.md. Raises as `run_all`."""
    results = run_all(seeds, processes, parts, progress=progress)
    return {
        "schema": SCHEMA,
        "scenario": {
            "workload": "paper",
            "hardware": HARDWARE,
            "slots": SLOTS,
            "seeds": list(seeds),
            "constants": [asdict(constant) for constant in CONSTANTS],
        },
        "trace_hash": trace_hash(chain.from_iterable(map(trace_of, seeds))),
        "published": beside_published(results),
        "batch_seconds": beside_batch_seconds(results),
        "changes": changes(results),
        "loads": loads(results),
        "runs": results.runs,
    }


def beside_published(results: Results) -> list[dict[str, Any]]:
    """Each published figure with ours: mean and 95 % interval over seeds, and ours divided by theirs."""
    rows = [
        _beside(figure, t_interval(list(results.values("paper", figure.policy, figure.metric).values())))
        for figure in TIMES
    ]
    rows += [_beside(figure, _error_cut(results, figure)) for figure in ERROR_CUTS]
    rows += [_beside(figure, _against_fifo(results, figure)) for figure in HEADLINES]
    return rows


def num_within(rows: Iterable[Mapping[str, Any]], share: float) -> int:
    """How many of the times in tables III to VI are within `share` of the published ones: 0.1 is 10 %."""
    return sum(row["unit"] == "s" and abs(row["ratio"] - 1) <= share for row in rows)


def beside_batch_seconds(results: Results) -> dict[str, float]:
    """Median and 99th percentile of the time a full micro-batch takes, over all policies but SJF; seconds."""
    seconds = results.batch_seconds()
    published_p50, published_p99 = BATCH_SECONDS
    return {
        "published_p50": published_p50,
        "p50": seconds[ceil(0.50 * len(seconds)) - 1],
        "published_p99": published_p99,
        "p99": seconds[ceil(0.99 * len(seconds)) - 1],
    }


def changes(results: Results) -> list[dict[str, Any]]:
    """What each variant does to its figures, against the variant that differs from it in one thing."""
    return [
        {
            "variant": variant.name,
            "question": variant.question,
            "against": variant.against,
            "policy": policy,
            "metric": metric,
            **_change(
                results.values(variant.name, policy, metric), results.values(variant.against, policy, metric)
            ),
        }
        for variant in VARIANTS
        if variant.against
        for policy in variant.policies
        for metric in variant.metrics
    ]


def loads(results: Results) -> list[dict[str, Any]]:
    """What ordering by size does at each utilisation of an open loop, against FIFO."""
    return [
        {
            "rho": rho,
            "policy": "sjf",
            "estimator": estimator,
            "metric": metric,
            **_change(
                results.values(f"load-{rho:.2f}{suffix}", "sjf", metric),
                results.values(f"load-{rho:.2f}", "fifo", metric),
            ),
        }
        for rho in RHOS
        for estimator, suffix in (("ema", ""), ("oracle", "-oracle"))
        for metric in ("e2e_seconds.p50", "e2e_seconds.p99")
    ]


def text(document: Mapping[str, Any]) -> str:
    """The document for a terminal of 80 columns."""
    return "\n".join(
        [
            *_published_lines(document),
            *_change_lines(document["changes"]),
            *_load_lines(document["loads"]),
            *_method_lines(document["scenario"]),
            "",
        ]
    )


def _lookup(run: Mapping[str, Any], metric: str) -> float | None:
    """The figure at a path such as `by_tier.premium.e2e_seconds.mean`; None if the run has none there."""
    found: Any = run
    for key in metric.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def _beside(figure: Figure, ours: Interval) -> dict[str, Any]:
    return {
        **asdict(figure),
        "ours": ours.mean,
        "low": ours.low,
        "high": ours.high,
        "ratio": ours.mean / figure.value,
    }


def _error_cut(results: Results, figure: Figure) -> Interval:
    """By how many percent feedback makes an error smaller."""
    metric = "prediction." + figure.metric.replace("_cut_percent", "_tokens")
    without = results.values("no-feedback", figure.policy, metric)
    learnt = results.values("paper", figure.policy, metric)
    return t_interval([100 * (1 - learnt[seed] / without[seed]) for seed in results.seeds])


def _against_fifo(results: Results, figure: Figure) -> Interval:
    """Change against FIFO, percent."""
    values = results.values("paper", figure.policy, figure.metric)
    fifo = results.values("paper", "fifo", figure.metric)
    return t_interval([100 * (values[seed] / fifo[seed] - 1) for seed in results.seeds])


def _change(values: Values, base: Values) -> dict[str, Any]:
    """Means over seeds; the relative change in percent, paired by seed; significant if its interval excludes 0."""
    difference = paired_difference(values, base)
    if difference is None or difference.relative is None:
        raise ValueError("a change needs runs on the same seeds, and a base that is not 0")
    relative = difference.relative
    return {
        "base": t_interval(list(base.values())).mean,
        "value": t_interval(list(values.values())).mean,
        "change_percent": 100 * relative.mean,
        "low_percent": None if relative.low is None else 100 * relative.low,
        "high_percent": None if relative.high is None else 100 * relative.high,
        "significant": not relative.spans_zero,
    }


def _published_lines(document: Mapping[str, Any]) -> list[str]:
    rows = document["published"]
    times = [row for row in rows if row["unit"] == "s"]
    batch = document["batch_seconds"]
    lines = ["Published figures, and ours: mean over seeds [95 % interval], ours / published", ""]
    lines.append(f"{'table':<7}{'policy':<10}{'figure':<21}{'paper':>9}{'ours':>9}  {'interval':<17}{'ratio':>5}")
    for row in rows:
        label = label_of(row["metric"]) + (" against fifo" if row["table"] == "text" else "")
        lines.append(
            f"{row['table']:<7}{row['policy']:<10}{label:<21}{row['value']:>7.1f} {row['unit']}{row['ours']:>7.1f} "
            f"{row['unit']}  {_interval(row['low'], row['high']):<17}{row['ratio']:>5.2f}"
        )
    lines.append(
        f"{'text':<7}{'not sjf':<10}{'full batch p50':<21}{batch['published_p50']:>7.1f} s{batch['p50']:>7.1f} s"
        f"{'':<19}{batch['p50'] / batch['published_p50']:>5.2f}"
    )
    lines.append(
        f"{'text':<7}{'not sjf':<10}{'full batch p99':<21}{batch['published_p99']:>7.1f} s{batch['p99']:>7.1f} s"
        f"{'':<19}{batch['p99'] / batch['published_p99']:>5.2f}"
    )
    lines += [
        "",
        f"Of the {len(times)} times in tables III to VI, {num_within(rows, 0.1)} are within 10 % of the published, "
        f"{num_within(rows, 0.2)} within 20 %.",
    ]
    return lines


def _change_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for (variant, question, against), group in groupby(
        rows, lambda row: (row["variant"], row["question"], row["against"])
    ):
        lines += ["", *wrap(f"{variant} against {against}: {question}", WIDTH)]
        lines.append(f"{'policy':<10}{'figure':<21}{'before':>10}{'after':>10}   change, 95 % interval")
        for row in group:
            label = label_of(row["metric"]) + (", s" if "seconds" in row["metric"] else "")
            lines.append(f"{row['policy']:<10}{label:<21}{row['base']:>10.1f}{row['value']:>10.1f} {_percent(row)}")
    return lines


def _load_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "Open loop (Poisson), continuous batching: what ordering by size does to FIFO",
        f"{'rho':<6}{'figure':<9}{'fifo':>8}   {'sjf, ema':<26}sjf, oracle",
    ]
    for (rho, metric), group in groupby(
        sorted(rows, key=lambda row: (row["rho"], row["metric"])), lambda row: (row["rho"], row["metric"])
    ):
        ema, oracle = sorted(group, key=lambda row: str(row["estimator"]))
        lines.append(
            f"{rho:<6.2f}{label_of(metric):<9}{ema['base']:>6.1f} s   {_percent(ema):<26}{_percent(oracle)}"
        )
    return lines


def _method_lines(scenario: Mapping[str, Any]) -> list[str]:
    seeds = scenario["seeds"]
    lines = [
        "",
        f"Engine: {scenario['hardware']}, {scenario['slots']} sequences. Seeds: {', '.join(map(str, seeds))}.",
    ]
    lines.append("Constants that the paper does not print:")
    for constant in scenario["constants"]:
        origin = f"{constant['source']}; " + (
            f"calibrated on {constant['calibrated_on']}" if constant["calibrated_on"] else "not calibrated"
        )
        lines += wrap(
            f"  {constant['name']} = {constant['value']:g} {constant['unit']}: {origin}.",
            WIDTH,
            subsequent_indent="    ",
        )
    return lines


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"


def _percent(row: Mapping[str, Any]) -> str:
    interval = _interval(row["low_percent"], row["high_percent"])
    return f"{row['change_percent']:>+7.1f} % {interval if row['significant'] or not interval else 'n.s.'}"
