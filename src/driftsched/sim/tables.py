"""The results of an experiment as tables for a terminal, at most 80 columns wide."""

from collections.abc import Iterable, Iterator, Sequence

from driftsched.sim.statistics import Interval
from driftsched.sim.summary import Arm, Document, Verdict, arm_of, labels, summarize

WIDTH = 80
_LABEL_WIDTH = 20
_COLUMN_WIDTH = 15
_HEADLINE = (
    ("E2E P50", "e2e_seconds.p50"),
    ("E2E P95", "e2e_seconds.p95"),
    ("E2E P99", "e2e_seconds.p99"),
    ("queue mean", "queue_seconds.mean"),
)
_TIERS = tuple((tier, f"by_tier.{tier}.e2e_seconds.p95") for tier in ("premium", "standard", "batch"))
_PREDICTION = (
    ("MAE, tokens", "prediction.mae_tokens"),
    ("bias, tokens", "prediction.bias"),
    ("Kendall tau", "prediction.kendall_tau"),
)
_SYSTEM = (
    ("makespan, s", "makespan_seconds"),
    ("slots in use", "slot_utilisation"),
    ("gap, tokens", "service_gap_tokens"),
    ("light P99, s", "light_tenant_p99_seconds"),
)
_CHANGED = "after"
"""The phase that begins when a workload changes."""
_AFTER = tuple(
    (f"E2E {name}", f"by_phase.{_CHANGED}.e2e_seconds.{figure}")
    for name, figure in (("mean", "mean"), ("P50", "p50"), ("P95", "p95"), ("P99", "p99"))
)
MIN_SEEDS = 5
_SMALL_CHANGE = 0.005
"""Up to here a change is told with a decimal, and its interval is left to summary.json."""
_DOUBLE = 1.0
"""From here on a change is told as a factor: percent no longer say anything."""
_LARGE_CHANGE = 10.0
"""And from here on without its interval, which no longer fits."""
_SATURATION = {
    "OVERLOADED": "times measure how long the run was, not how it serves.",
    "BACKLOGGED": "a backlog built up, and was worked off.",
}


def render(document: Document) -> str:
    """The tables and remarks a terminal shows, at most 80 columns wide."""
    lines = []
    for (mode, variant), arms in document.scenes.items():
        lines += ["", f"{variant}, {mode} batching: mean over {_seeds(document, arms)} ± 95 % interval"[:WIDTH]]
        lines += ["", *_values_table("seconds", arms, _HEADLINE, document)]
        if any(document.row(arm, metric) for arm in arms for _, metric in _TIERS):
            lines += ["", *_values_table("E2E P95 by tier, s", arms, _TIERS, document)]
        changes = _changes_table(arms, document)
        lines += ["", *changes] if changes else []
        if any(document.row(arm, metric) for arm in arms for _, metric in _AFTER):
            lines += ["", *_values_table(f"s, phase {_CHANGED}", arms, _AFTER, document)]
            lines += _within_policies(arms, document)
        lines += ["", *_values_table("prediction", arms, _PREDICTION, document)]
        lines += ["", *_values_table("system", arms, _SYSTEM, document)]
    return "\n".join([*lines, "", *_wrapped(remarks(document))]).strip() + "\n"


def remarks(document: Document) -> list[str]:
    """What a reader must know before believing the tables, a sentence each."""
    names = labels(document.arms)
    runs_of = {arm: [run for run in document.runs if arm_of(run) == arm] for arm in document.arms}
    said = []
    for verdict, meaning in _SATURATION.items():
        hit = {arm: sum(run.saturation == verdict for run in runs) for arm, runs in runs_of.items()}
        told = [f"{names[arm]} {count} of {len(runs_of[arm])}" for arm, count in hit.items() if count]
        if hit and sum(hit.values()) == len(document.runs):
            said.append(f"{verdict}: all {len(document.runs)} runs: {meaning}")
        elif told:
            said.append(f"{verdict}: {', '.join(told)}: {meaning}")
    for arm, runs in runs_of.items():
        lost = {name: sum(run.outcomes[name] for run in runs) for name in ("rejected", "evicted", "failed")}
        told = [f"{count} {name}" for name, count in lost.items() if count]
        if told:
            said.append(f"{names[arm]}: {', '.join(told)}: times are those of finished requests only.")
        unfinished = sum(run.outcomes["unfinished"] for run in runs)
        if unfinished:
            said.append(f"{names[arm]}: {unfinished} requests never ended: these runs were cut off.")
    if any(run.e2e_seconds.p99 is None for run in document.runs):
        said.append("A dash: too few requests to carry that percentile (P99 needs 200, P95 40, P50 4).")
    if len({run.seed for run in document.runs}) < MIN_SEEDS:
        said.append(f"Fewer than {MIN_SEEDS} seeds: intervals are wide or missing; 10 is the default.")
    if not document.complete:
        said.append("Interrupted: only the runs that were done are shown.")
    return said


def change_text(change: Interval | None, verdict: Verdict | None) -> str:
    """`-48% -52..-44`, `x2.3 2.1..2.5`, `-2% n.s.` when it may as well be nothing, `same`; else a dash."""
    if change is None or verdict is None:
        return "-"
    if change.mean == 0 and change.half_width in (None, 0):
        return "same"
    if change.mean >= _LARGE_CHANGE:
        return f"x{1 + change.mean:.0f}"
    if change.n == 1:
        return f"{_percent(change.mean)}% (n=1)"
    if verdict == "n.s." or change.low is None or change.high is None:
        return f"{_percent(change.mean)}% n.s."
    if abs(change.mean) < _SMALL_CHANGE:
        return f"{100 * change.mean:+.1f}%"
    if change.mean >= _DOUBLE:
        return f"x{1 + change.mean:.1f} {1 + change.low:.1f}..{1 + change.high:.1f}"
    return f"{_percent(change.mean)}% {_percent(change.low)}..{_percent(change.high)}"


def _percent(share: float) -> str:
    return f"{round(100 * share):+d}"


def value_text(interval: Interval | None) -> str:
    """`4.66 ± 0.47`, with as many digits as three significant ones of the mean need; a dash if there is none."""
    if interval is None:
        return "-"
    scale, unit = (1e3, "k") if abs(interval.mean) >= 1e4 else (1.0, "")
    size = abs(interval.mean) / scale
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    mean = f"{interval.mean / scale:.{digits}f}{unit}"
    return mean if interval.half_width is None else f"{mean} ± {interval.half_width / scale:.{digits}f}{unit}"


def _values_table(
    title: str, arms: Sequence[Arm], columns: Sequence[tuple[str, str]], document: Document
) -> Iterator[str]:
    yield _line(title, [name for name, _ in columns])
    names = labels(arms)
    for arm in arms:
        rows = [document.row(arm, metric) for _, metric in columns]
        yield _line(names[arm], [value_text(row.interval if row else None) for row in rows])


def _changes_table(arms: Sequence[Arm], document: Document) -> list[str]:
    """Nothing if there is only a baseline."""
    names = labels(arms)
    lines = []
    baselines: set[str] = set()
    for arm in arms:
        rows = [document.row(arm, metric) for _, metric in _HEADLINE]
        against = {row.baseline for row in rows if row and row.baseline}
        if against:
            baselines |= against
            lines.append(_line(names[arm], [change_text(row.change, row.verdict) if row else "-" for row in rows]))
    if not lines:
        return []
    return [_line(f"against {', '.join(sorted(baselines))}", [name for name, _ in _HEADLINE]), *lines]


def _within_policies(arms: Sequence[Arm], document: Document) -> Iterator[str]:
    """How the estimators of each policy differ from the first of them once the workload has changed."""
    names = labels(arms)
    lines = []
    for policy in dict.fromkeys(arm.policy for arm in arms):
        own = [arm for arm in arms if arm.policy == policy]
        rows = {
            (row.arm, row.metric): row for row in summarize([run for run in document.runs if arm_of(run) in own])
        }
        for arm in own[1:]:
            compared = [rows.get((arm, metric)) for _, metric in _AFTER]
            lines.append(
                _line(names[arm], [change_text(row.change, row.verdict) if row else "-" for row in compared])
            )
    if lines:
        yield from ("", _line("against the first", [name for name, _ in _AFTER]), *lines)


def _line(label: str, cells: Sequence[str]) -> str:
    short = label if len(label) <= _LABEL_WIDTH else label[: _LABEL_WIDTH - 1] + "…"
    return (short.ljust(_LABEL_WIDTH) + "".join(cell.rjust(_COLUMN_WIDTH) for cell in cells)).rstrip()


def _seeds(document: Document, arms: Sequence[Arm]) -> str:
    count = len({run.seed for run in document.runs if arm_of(run) in arms})
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _wrapped(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        line = "!"
        for word in sentence.split():
            if len(line) + 1 + len(word) > WIDTH:
                yield line
                line = " "
            line += " " + word
        yield line
