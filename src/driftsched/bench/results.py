"""The results of live blocks beyond those of simulated runs: a table for the terminal, and files."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from driftsched.bench.live import MAX_LAG_SECONDS, MAX_LAG_SHARE, BlockResult, LiveFigures, request_extras
from driftsched.sim.recording import Recording
from driftsched.sim.statistics import t_interval, wilson_interval
from driftsched.sim.summary import Arm, Document, arm_of, labels, request_lines, write_results
from driftsched.sim.tables import value_text


def live_text(made: Document, figures: Sequence[LiveFigures]) -> str:
    """The table that only a live run has, and what a reader must know, at most 80 columns wide."""
    lines = ["", _cells("live", ("TTFT P50, s", "TPOT P50, ms", "answers/s", "in SLO"))]
    names = labels(made.arms)
    for arm in made.arms:
        of_arm = (arm.policy, arm.estimator, arm.variant)
        mine = [figure for figure in figures if (figure.policy, figure.estimator, figure.variant) == of_arm]
        tpot = [1e3 * figure.tpot_seconds.p50 for figure in mine if figure.tpot_seconds.p50 is not None]
        rates = [figure.answered_rate for figure in mine if figure.answered_rate is not None]
        ttft = made.row(arm, "ttft_seconds.p50")
        cells = (
            value_text(ttft.interval if ttft else None),
            value_text(t_interval(tpot) if tpot else None),
            value_text(t_interval(rates) if rates else None),
            _attained(made, arm),
        )
        lines.append(_cells(names[arm], cells))
    return "\n".join([*lines, "", *_remarks(figures)]) + "\n"


def _attained(made: Document, arm: Arm) -> str:
    """Of the requests of all blocks together: `97% 95..98`; a dash without an objective."""
    slos = [run.slo for run in made.runs if arm_of(run) == arm and run.slo is not None]
    requests = sum(slo.requests for slo in slos)
    if not requests:
        return "-"
    attained = sum(slo.attained for slo in slos)
    low, high = wilson_interval(attained, requests)
    return f"{100 * attained / requests:.0f}% {100 * low:.0f}..{100 * high:.0f}"


def _remarks(figures: Sequence[LiveFigures]) -> Iterator[str]:
    sent, answered = sum(f.sent for f in figures), sum(f.answered for f in figures)
    failed, warmup = sum(f.failed for f in figures), sum(f.warmup_requests for f in figures)
    unfinished = sent - answered - failed
    yield (
        f"sent {sent} = answered {answered} + failed {failed}"
        + (f" + {unfinished} cut off" if unfinished else "")
        + (f"; and {warmup} of warm-up" if warmup else "")
    )
    asked = [f.requested_rate for f in figures if f.requested_rate is not None]
    given = [f.sent_rate for f in figures if f.sent_rate is not None]
    if asked and given:
        yield (
            f"rate: {t_interval(asked).mean:.3g}/s asked for, {t_interval(given).mean:.3g}/s sent; "
            f"largest send lag {1e3 * max(f.send_lag_seconds.max or 0.0 for f in figures):.1f} ms"
        )
    errors = sum((Counter(figure.errors) for figure in figures), Counter[str]())
    if errors:
        yield "! errors: " + ", ".join(f"{name} {count}" for name, count in sorted(errors.items()))
    late = [f for f in figures if f.client_late]
    if late:
        bound = f"{1e3 * MAX_LAG_SECONDS:g} ms or {100 * MAX_LAG_SHARE:g} % of the median latency"
        yield f"! {len(late)} of {len(figures)} blocks: the client was late, send lag P99 above"
        yield f"  {bound}: use a faster client or a lower rate."
    silent = sum(f.without_usage for f in figures)
    if silent:
        yield f"! {silent} answers came without token counts: TPOT and prediction leave them out."
    gpus = [f.gpu for f in figures if f.gpu]
    if gpus:
        used = [gpu["gpu_utilisation_percent"] for gpu in gpus if "gpu_utilisation_percent" in gpu]
        watts = [gpu["gpu_power_watts"] for gpu in gpus if "gpu_power_watts" in gpu]
        told = [f"{t_interval(used).mean:.0f} % in use"] if used else []
        told += [f"{t_interval(watts).mean:.0f} W"] if watts else []
        yield f"GPU, mean: {', '.join(told)}"


def _cells(label: str, cells: Sequence[str]) -> str:
    return (label.ljust(20) + "".join(cell.rjust(15) for cell in cells)).rstrip()


def write_live(
    out: Path,
    made: Document,
    figures: Sequence[LiveFigures],
    results: Sequence[BlockResult],
    recordings: Sequence[Recording],
) -> None:
    """The files of `simulate`, more columns in requests.jsonl; blocks.csv, and gpu.csv if a GPU was watched."""
    write_results(out, made, ())
    with (out / "requests.jsonl").open("wb") as file:
        for result, recording in zip(results, recordings, strict=True):
            for line, extras in zip(request_lines(recording), request_extras(result.sent), strict=True):
                file.write(msgspec.json.encode(msgspec.json.decode(line) | extras) + b"\n")
    (out / "blocks.csv").write_text(blocks_csv(figures), encoding="utf-8", newline="")
    facts = [
        {"position": figure.position, **asdict(sample)}
        for figure, result in zip(figures, results, strict=True)
        for sample in result.gpu
    ]
    if facts:
        (out / "gpu.csv").write_text(_csv(facts), encoding="utf-8", newline="")


def blocks_csv(figures: Sequence[LiveFigures]) -> str:
    """One line per block; the columns of GPUs are there if one was watched."""
    return _csv([_flat(msgspec.to_builtins(figure)) for figure in figures])


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if name == "errors":
            flat[name] = " ".join(f"{error}={count}" for error, count in value.items())
        elif isinstance(value, dict):
            prefix = "" if name == "gpu" else f"{name}."
            flat |= {f"{prefix}{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
