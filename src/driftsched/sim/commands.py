"""`driftsched trace gen|export|info`: what each command does, as text for the caller to print."""

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

import msgspec

from driftsched.core.model import Tier
from driftsched.sim import shaping
from driftsched.sim.readers import read_trace
from driftsched.sim.trace import Row, info
from driftsched.sim.workloads import generate, make_scenario
from driftsched.sim.writers import write_trace

_MOST_TENANTS = 8
"""Shown one by one."""


def trace_gen(
    workload: str,
    target: Path,
    *,
    options: Mapping[str, object] | None = None,
    seed: int = 1,
    capacity: float | None = None,
    format: str = "jsonl",
) -> str:
    """Write the trace of a workload; see `make_scenario` and `generate`. Raises `ConfigError`."""
    rows = generate(make_scenario(workload, options or {}), seed, capacity=capacity)
    return _written(rows, target, format)


def trace_export(
    source: Path,
    target: Path,
    *,
    source_format: str | None = None,
    format: str = "jsonl",
    sort: bool = False,
    skip_empty: bool | None = None,
    start: float = 0.0,
    end: float = inf,
    max_requests: int | None = None,
    rate: float | None = None,
    tenants: int | None = None,
    tiers: Mapping[Tier, float] | None = None,
    seed: int = 1,
) -> str:
    """Write a trace in another format, or reshaped: first cut, then rescaled, then given tenants and tiers.

    Raises `ConfigError`.
    """
    rows = read_trace(source, format=source_format, sort=sort, skip_empty=skip_empty)
    if start or end < inf or max_requests is not None:
        rows = shaping.cut(rows, start=start, end=end, max_requests=max_requests)
    if rate is not None:
        rows = shaping.rescale(rows, rate)
    if tenants is not None or tiers is not None:
        rows = shaping.assign(rows, tenants=tenants, tiers=tiers, seed=seed)
    return _written(rows, target, format)


def trace_info(
    path: Path,
    *,
    format: str | None = None,
    sort: bool = False,
    skip_empty: bool | None = None,
    as_json: bool = False,
) -> str:
    """What a trace is like, as a table of at most 80 columns or as JSON. Raises `ConfigError`."""
    facts = info(read_trace(path, format=format, sort=sort, skip_empty=skip_empty))
    if as_json:
        return msgspec.json.format(msgspec.json.encode(facts), indent=2).decode()
    lines = [
        ("requests", f"{facts['requests']:,}"),
        ("duration", f"{facts['duration_seconds']:,.1f} s"),
        ("rate", "all at once" if facts["rate"] is None else f"{facts['rate']:.4g} requests/s"),
        ("burstiness", "-" if facts["gap_cv"] is None else f"{facts['gap_cv']:.3g} (cv of gaps; Poisson has 1)"),
        ("prompt tokens", _lengths(facts["prompt_tokens"])),
        ("completion tokens", _lengths(facts["completion_tokens"])),
        ("cut off by max_tokens", f"{facts['truncated']:,}"),
        *((part, _counts(facts[part])) for part in ("tenants", "tiers", "categories", "phases")),
        ("hash", facts["hash"][:16]),
    ]
    return "\n".join(f"{name:<22}{text}" for name, text in lines)


def _written(rows: Sequence[Row], target: Path, format: str) -> str:
    write_trace(rows, target, format)
    return f"wrote {len(rows):,} requests over {rows[-1].at:,.1f} s to {target}"


def _lengths(facts: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:,.0f}" for name, value in facts.items())


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_MOST_TENANTS]]
    if len(counts) > _MOST_TENANTS:
        shown.append(f"and {len(counts) - _MOST_TENANTS} more")
    lines = [""]
    for number, text in enumerate(shown):
        piece = text + ("," if number < len(shown) - 1 else "")
        if len(lines[-1]) + len(piece) + 1 > 57:
            lines.append("")
        lines[-1] += f" {piece}" if lines[-1] else piece
    return ("\n" + " " * 22).join(lines)
