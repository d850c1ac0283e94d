"""The figures of the DriftSched paper (arXiv:2606.02982, version 1): tables III to VII, as data.

Tables III to VI are averages of three runs with feedback; table VII is by how much feedback made the error of the
predictions smaller. Seconds, except table VII and the headlines: percent.
"""

from dataclasses import dataclass
from typing import Literal

POLICIES = ("fifo", "priority", "weighted", "sjf", "aging")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the paper."""

    table: str
    """Roman numeral; `III/IV` where it stands in the tables of pooled latency, `text` outside of any table."""
    policy: str
    metric: str
    """Path of the same quantity in an element of `runs`, such as `by_tier.premium.e2e_seconds.mean`."""
    value: float
    unit: Literal["s", "%"]


def label_of(metric: str) -> str:
    """A metric's path in a few words; of seconds, the mean unless it says otherwise."""
    if metric in _LABELS:
        return _LABELS[metric]
    words = [word.removesuffix("_seconds") for word in metric.split(".")]
    return " ".join(word for word in words if word not in ("by_tier", "by_class", "mean"))


_POOLED = ("queue_seconds.mean", "e2e_seconds.p50", "e2e_seconds.p95", "e2e_seconds.p99")
_BY_TIER = tuple(
    f"by_tier.{tier}.{measure}.mean"
    for tier in ("premium", "standard", "batch")
    for measure in ("e2e_seconds", "queue_seconds")
)
_BY_CLASS = tuple(f"by_class.{name}.queue_seconds.mean" for name in ("short", "medium", "long"))
_ERROR_CUTS = ("mae_cut_percent", "rmse_cut_percent")

_LABELS = {
    "mae_cut_percent": "MAE cut",
    "rmse_cut_percent": "RMSE cut",
    "prediction.mae_tokens": "MAE, as counted",
    "makespan_seconds": "makespan",
}

_SECONDS = {
    "fifo": (
        (238.8, 184.7, 592.957, 630.205),
        (248.23, 238.04, 249.25, 238.93, 252.97, 242.77),
        (166.89, 258.21, 258.04),
    ),
    "priority": (
        (239.2, 197.8, 599.760, 633.684),
        (77.32, 67.18, 252.80, 242.63, 426.72, 416.57),
        (168.64, 276.74, 81.20),
    ),
    "weighted": (
        (241.0, 192.8, 595.601, 631.305),
        (158.45, 148.25, 255.02, 244.82, 333.05, 322.90),
        (168.05, 265.49, 164.95),
    ),
    "sjf": (
        (149.5, 106.9, 491.480, 526.363),
        (226.60, 218.10, 157.52, 149.38, 94.91, 87.07),
        (2.87, 163.18, 396.59),
    ),
    "aging": (
        (245.0, 196.3, 611.968, 644.645),
        (76.39, 66.26, 256.07, 245.99, 433.00, 422.87),
        (168.65, 282.63, 83.83),
    ),
}

_CUTS = {
    "fifo": (39.51, 41.40),
    "priority": (39.62, 41.36),
    "weighted": (38.33, 41.10),
    "sjf": (36.82, 37.18),
    "aging": (39.74, 41.40),
}

TIMES = tuple(
    Figure(table, policy, metric, value, "s")
    for policy in POLICIES
    for table, metrics, values in zip(
        ("III/IV", "V", "VI"), (_POOLED, _BY_TIER, _BY_CLASS), _SECONDS[policy], strict=True
    )
    for metric, value in zip(metrics, values, strict=True)
)
"""Tables III to VI: 13 figures of each policy."""

ERROR_CUTS = tuple(
    Figure("VII", policy, metric, value, "%")
    for policy in POLICIES
    for metric, value in zip(_ERROR_CUTS, _CUTS[policy], strict=True)
)
"""Table VII: how much smaller the error of the predictions is with feedback than without."""

HEADLINES = (
    Figure("text", "sjf", "e2e_seconds.p50", -42.1, "%"),
    Figure("text", "sjf", "e2e_seconds.p99", -16.5, "%"),
)
"""SJF against FIFO, as changes."""

BATCH_SECONDS = (10.5, 11.3)
"""Median and 99th percentile of the time that a micro-batch takes, all policies but SJF; from the text."""

BIAS_RANGE = (0.79, 0.84)
"""Where the running ratio of every category settles, under every policy; from the text."""
