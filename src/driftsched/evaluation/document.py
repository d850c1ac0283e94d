"""The results of an evaluation: as plain data for JSON, and as a table to read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from driftsched.evaluation import scores
from driftsched.evaluation.rows import Row
from driftsched.evaluation.scores import Said
from driftsched.evaluation.stream import Column, Outcome

Document = dict[str, Any]

FROZEN = " (frozen)"
"""After the name of an estimator that learnt nothing after the warm-up."""


def judged(outcome: Outcome, rows: Sequence[Row], categories: Sequence[str], warmup: int) -> Document:
    """All scores of one estimator over the rows after the first `warmup`."""
    said = said_of(outcome, rows, warmup)
    known = np.array([row.known for row in rows[warmup:]])
    return {
        **scores.errors(said),
        "coverage_range": scores.coverage_range(said),
        "predict_us": _median_us(outcome.predict_ns[warmup:]),
        "learn_us": _median_us(outcome.learn_ns),
        "known": None
        if known.all() or not known.any()
        else {"rows": int(known.sum()), **scores.errors(said.of(known))},
        "cut": _cut(said.of(~known)),
        "by_category": scores.by_group(said, categories[warmup:]),
        "by_model": scores.by_group(said, [row.model for row in rows[warmup:]]),
        "over_time": scores.blocks(said),
        "reliability": scores.reliability(said),
    }


def said_of(outcome: Outcome, rows: Sequence[Row], warmup: int = 0) -> Said:
    """What was predicted of the rows after the first `warmup`, beside what they used."""
    return Said(
        np.array([row.completion_tokens for row in rows[warmup:]], dtype=np.float64),
        outcome.predicted[warmup:],
        {name: getattr(outcome, name)[warmup:] for name in scores.LEVELS},
    )


def _cut(said: Said) -> Document | None:
    """Of answers whose length is only bounded from below: how often, and by how much, less was predicted."""
    if not len(said.actual):
        return None
    short = np.maximum(0.0, said.actual - said.predicted)
    return {
        "rows": len(said.actual),
        "below": float((short > 0).mean()),
        "mean_shortfall": float(short.mean()),
    }


def _median_us(times: Column) -> float | None:
    return round(float(np.median(times)) / 1000, 3) if len(times) else None


_COLUMNS: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("MAE", lambda scores: f"{scores['mae']:.1f}"),
    ("RMSE", lambda scores: f"{scores['rmse']:.1f}"),
    ("log MAE", lambda scores: f"{scores['log_mae']:.3f}"),
    ("bias", lambda scores: f"{scores['bias']:+.3f}"),
    ("tau", lambda scores: _share(scores["kendall_tau"])),
    ("pairs 2x", lambda scores: _share(scores["pair_accuracy_2x"])),
    ("pinball q90", lambda scores: f"{scores['pinball']['q90']:.1f}"),
    ("q50", lambda scores: f"{scores['coverage']['q50']:.1%}"),
    ("q80 (lowest..highest)", lambda scores: _covered(scores, "q80")),
    ("q90 (lowest..highest)", lambda scores: _covered(scores, "q90")),
    ("predict us", lambda scores: _micro(scores["predict_us"])),
    ("learn us", lambda scores: _micro(scores["learn_us"])),
)


def text(document: Document) -> str:
    """The table, the errors by category and model, and the recovery from injected drifts."""
    estimators: Mapping[str, Mapping[str, Any]] = document["estimators"]
    head = ["estimator", *(title for title, _ in _COLUMNS)]
    body = [[name, *(cell(found) for _, cell in _COLUMNS)] for name, found in estimators.items()]
    parts = [_heading(document), table([head, *body])]
    for kind in ("category", "model"):
        parts += _groups(kind, estimators)
    parts.append(_bias_over_time(estimators))
    return "\n".join([*parts, *_recoveries(estimators)])


def _heading(document: Document) -> str:
    cut = document["cut_rows"]
    return (
        f"{document['data']}: {document['rows']} rows scored after a warm-up of {document['warmup']}, "
        f"{document['inflight_mean']:.1f} being served on average"
        + (f", {cut} cut short" if cut else "")
        + ".\nErrors in tokens; q50, q80, q90: share of answers no longer than predicted, and its range over any "
        f"{scores.WINDOW} consecutive rows.\n"
    )


def _groups(kind: str, estimators: Mapping[str, Mapping[str, Any]], most: int = 12) -> list[str]:
    """MAE by category or model, the largest groups; nothing if there is only one."""
    groups = next(iter(estimators.values()))[f"by_{kind}"]
    if len(groups) < 2:
        return []
    names = sorted(groups, key=lambda name: -groups[name]["rows"])[:most]
    head = [f"MAE by {kind}", "rows", *estimators]
    body = [
        [name or "(none)", str(groups[name]["rows"])]
        + [f"{found[f'by_{kind}'][name]['mae']:.1f}" for found in estimators.values()]
        for name in names
    ]
    return [table([head, *body])]


def _bias_over_time(estimators: Mapping[str, Mapping[str, Any]], every: int = 4) -> str:
    """Mean log of predicted / length, in fifths of the stream."""
    body = []
    for name, found in estimators.items():
        blocks = found["over_time"]
        fifths = [blocks[start : start + every] for start in range(0, len(blocks), every)]
        body.append([name, *(f"{_weighted(blocks, 'bias'):+.3f}" for blocks in fifths)])
    head = ["bias over time", *(f"{number + 1}/{len(body[0]) - 1}" for number in range(len(body[0]) - 1))]
    return table([head, *body])


def _weighted(blocks: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(block["rows"] * block[key] for block in blocks) / sum(block["rows"] for block in blocks))


def _recoveries(estimators: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How each estimator followed each drift."""
    head = ["estimator", "error before", "first 30", "after 60 finished", "without drift", "back after"]
    parts = []
    for number, first in enumerate(next(iter(estimators.values())).get("drift", ())):
        found = {name: scored["drift"][number] for name, scored in estimators.items()}
        body = [
            [
                name,
                *(_share(one[key]) for key in ("before", "first", "after", "without")),
                _count(one["recovered_after"]),
            ]
            for name, one in found.items()
        ]
        parts.append(f"Drift {first['drift']}; log MAE of what drifted.\n{table([head, *body])}")
    return parts


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value} finished"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns under their heads: the first to the left, figures to the right."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    made = (
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    )
    return "\n".join(map(str.rstrip, made)) + "\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _micro(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _covered(found: Mapping[str, Any], name: str) -> str:
    seen = found["coverage_range"][name]
    return f"{found['coverage'][name]:.1%} ({100 * seen['min']:.0f}..{100 * seen['max']:.0f})"
