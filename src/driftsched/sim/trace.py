"""A trace: requests with their true lengths, in order of arrival. All that a simulation needs to know about demand.

Instants are seconds from the start of the trace, on a grid of microseconds: they then survive every file format,
and two traces with the same hash are the same trace.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import pairwise
from math import ceil
from statistics import fmean, pstdev
from typing import Any

import msgspec
from msgspec.structs import replace

from driftsched.core.model import Tier


class Row(msgspec.Struct, frozen=True, gc=False):
    """One request, and the truth about its answer.

    A struct rather than a dataclass because there are millions: it is made in a tenth of the time, and the garbage
    collector need not look at it. `msgspec.structs.replace` makes a changed one.
    """

    at: float
    """Arrival, in seconds from the start of the trace, >= 0 and not before the row above; see `on_grid`."""
    prompt_tokens: int
    """>= 1."""
    completion_tokens: int
    """>= 1. An answer that has `max_tokens` of them was cut off there."""
    tenant: str = "default"
    tier: Tier = Tier.STANDARD
    category: str = "short_qa"
    model: str = "model"
    max_tokens: int | None = None
    """The client's own limit, >= `completion_tokens`."""
    session: str | None = None
    """Names the conversation that the request belongs to."""
    phase: str = "steady"
    """Part of the experiment; a label for the results."""
    prompt: str = ""
    """The text, where a workload has one; bounded and readable."""
    after_drain: bool = False
    """The client waits until all earlier requests have ended: the gap to the row above is counted from then."""

    @property
    def finish_reason(self) -> str:
        """`length` if the answer was cut off by `max_tokens`, else `stop`."""
        return "stop" if self.max_tokens is None or self.completion_tokens < self.max_tokens else "length"


def on_grid(seconds: float) -> float:
    """The nearest whole microsecond, as the nearest float to it."""
    return round(seconds, 6)


def trace_hash(rows: Iterable[Row]) -> str:
    """SHA-256, in hex, over every field of every row. Equal for equal traces, whatever file they came from."""
    digest = sha256()
    encode = msgspec.json.encode
    for row in rows:
        digest.update(
            encode(
                (
                    round(row.at * 1e6),
                    row.prompt_tokens,
                    row.completion_tokens,
                    row.tenant,
                    int(row.tier),
                    row.category,
                    row.model,
                    row.max_tokens,
                    row.session,
                    row.phase,
                    row.prompt,
                    row.after_drain,
                )
            )
        )
    return digest.hexdigest()


def segments(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, cut before every one that waits for the drain of all before it.

    In the first list `at` counts from the start of the trace; in each further one from the instant at which the
    requests of the list before have all ended. Each list can then be run as it is, shifted by that instant.
    """
    parts: list[list[Row]] = []
    base = 0.0
    for number, row in enumerate(rows):
        if number == 0 or row.after_drain:
            parts.append([])
            base = rows[number - 1].at if number else 0.0
        parts[-1].append(replace(row, at=on_grid(row.at - base)) if base else row)
    return parts


def info(rows: Sequence[Row]) -> dict[str, Any]:
    """What a trace is like: counts, rate, burstiness, lengths, tenants. Raises `ValueError` for an empty one.

    `rate` is arrivals a second between the first and the last; `gap_cv` the standard deviation of the gaps between
    arrivals divided by their mean: 1 for a Poisson process, more for bursts. Both are None if there is no gap.
    Percentiles are nearest-rank, of however few rows: a trace is all there is, not a sample of something.
    """
    if not rows:
        raise ValueError("a trace has at least one row")
    duration = rows[-1].at - rows[0].at
    gaps = [after.at - before.at for before, after in pairwise(rows)]
    tenants = Counter(row.tenant for row in rows)
    return {
        "requests": len(rows),
        "duration_seconds": on_grid(duration),
        "rate": len(gaps) / duration if duration > 0 else None,
        "gap_cv": pstdev(gaps) / fmean(gaps) if duration > 0 else None,
        "prompt_tokens": _lengths([row.prompt_tokens for row in rows]),
        "completion_tokens": _lengths([row.completion_tokens for row in rows]),
        "truncated": sum(row.finish_reason == "length" for row in rows),
        "tenants": dict(sorted(tenants.items(), key=lambda item: (-item[1], item[0]))),
        "tiers": {tier.label: count for tier, count in sorted(Counter(row.tier for row in rows).items())},
        "categories": dict(sorted(Counter(row.category for row in rows).items())),
        "phases": dict(Counter(row.phase for row in rows)),
        "hash": trace_hash(rows),
    }


def _lengths(values: list[int]) -> dict[str, float]:
    values.sort()
    ranks = {f"p{percent}": float(values[ceil(len(values) * percent / 100) - 1]) for percent in (50, 90, 99)}
    return {"mean": fmean(values), **ranks, "max": float(values[-1])}
