"""Traces made from traces: who asked, how fast, how much of it."""

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import inf
from random import Random

from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.trace import Row, on_grid


def zipf_shares(num_tenants: int, exponent: float = 1.0) -> dict[str, float]:
    """Shares, summing to 1, of `tenant-0`, `tenant-1`, ...: number k has one proportional to (k + 1) ** -exponent.

    With `exponent` 0 all are equal; production traces lie around 1. Raises `ConfigError` for what is out of range.
    """
    if num_tenants < 1:
        raise ConfigError(f"tenants: must be at least 1, not {num_tenants}")
    if not 0 <= exponent < inf:
        raise ConfigError(f"exponent: must be a number of 0 or more, not {exponent}")
    weights = [(number + 1) ** -exponent for number in range(num_tenants)]
    total = sum(weights)
    return {f"tenant-{number}": weight / total for number, weight in enumerate(weights)}


def spread_tiers(tenants: Sequence[str], tiers: Mapping[Tier, float]) -> dict[str, Tier]:
    """A tier for each tenant, in proportion to `tiers` among any number of the first of them, as far as can be.

    Nothing is drawn: each tenant is given the tier that is furthest behind its share, the better one on a tie.
    Raises `ConfigError` if no share is positive or one is negative.
    """
    check_weights("tiers", {tier.label: share for tier, share in tiers.items()})
    total = sum(tiers.values())
    given = dict.fromkeys(sorted(tiers), 0)
    chosen: dict[str, Tier] = {}
    for number, tenant in enumerate(tenants, start=1):
        tier = max(given, key=lambda tier: tiers[tier] / total * number - given[tier])
        given[tier] += 1
        chosen[tenant] = tier
    return chosen


def assign(
    rows: Sequence[Row],
    *,
    tenants: int | None = None,
    exponent: float = 1.0,
    tiers: Mapping[Tier, float] | None = None,
    seed: int = 0,
) -> list[Row]:
    """The rows with tenants and tiers, for a trace that came without.

    With `tenants`, each row's tenant is drawn independently by `zipf_shares`; without, the rows keep theirs. With
    `tiers`, the tenants are given tiers by `spread_tiers`, largest share first (or in order of appearance where
    they were kept); without, the rows keep theirs. Arrivals and lengths stay as they are.
    """
    names = [row.tenant for row in rows]
    if tenants is not None:
        shares = zipf_shares(tenants, exponent)
        names = Random(f"{seed}:assign:tenants").choices(list(shares), list(shares.values()), k=len(rows))
    if tiers is None:
        return [replace(row, tenant=name) for row, name in zip(rows, names, strict=True)]
    order = list(zipf_shares(tenants, exponent)) if tenants is not None else list(dict.fromkeys(names))
    by_tenant = spread_tiers(order, tiers)
    return [replace(row, tenant=name, tier=by_tenant[name]) for row, name in zip(rows, names, strict=True)]


def rescale(rows: Sequence[Row], rate: float) -> list[Row]:
    """The rows with time stretched or squeezed so that they arrive at `rate` a second on average.

    For an offered load rho on a pool that can serve `capacity` requests of this kind a second, `rate` is
    rho * capacity. The pattern of arrivals keeps its shape. Raises `ConfigError` if `rate` is not positive or all
    rows arrive at once.
    """
    if not 0 < rate < inf:
        raise ConfigError(f"rate: must be a positive number of requests a second, not {rate}")
    duration = rows[-1].at - rows[0].at if rows else 0.0
    if duration <= 0:
        raise ConfigError("rate: the trace has no duration to rescale: all its requests arrive at once")
    factor = (len(rows) - 1) / duration / rate
    return [replace(row, at=on_grid(row.at * factor)) for row in rows]


def repeat(rows: Sequence[Row], times: int) -> list[Row]:
    """The rows `times` times over, one mean gap between the last of one round and the first of the next."""
    if times < 1:
        raise ConfigError(f"repeat: must be at least 1, not {times}")
    if len(rows) < 2:
        raise ConfigError("repeat: the trace needs two rows or more: one alone has no gap to the next")
    duration = rows[-1].at - rows[0].at
    period = duration + duration / (len(rows) - 1)
    return [replace(row, at=on_grid(row.at + number * period)) for number in range(times) for row in rows]


def cut(rows: Sequence[Row], *, start: float = 0.0, end: float = inf, max_requests: int | None = None) -> list[Row]:
    """The rows that arrive in [`start`, `end`), at most `max_requests` of them, with time counted from `start`.

    Raises `ConfigError` if none is left.
    """
    kept = [row for row in rows if start <= row.at < end][:max_requests]
    if not kept:
        raise ConfigError(f"cut: no request arrives from {start} s to {end} s")
    return [replace(row, at=on_grid(row.at - start)) for row in kept]


def check_weights(where: str, weights: Mapping[str, float]) -> None:
    """Raises `ConfigError` unless `weights` are numbers of 0 or more, and one at least is above."""
    for name, weight in weights.items():
        if not 0 <= weight < inf:
            raise ConfigError(f"{where}.{name}: must be a number of 0 or more, not {weight}")
    if not any(weights.values()):
        raise ConfigError(f"{where}: give at least one weight above 0")


class Chooser:
    """Picks a name by weight from a number in [0, 1)."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._names = [name for name, weight in weights.items() if weight > 0]
        self._bounds = list(accumulate(weights[name] for name in self._names))

    def choose(self, uniform: float) -> str:
        """The name at `uniform`: each has a stretch as long as its share of the weights, in the order given."""
        return self._names[min(bisect(self._bounds, uniform * self._bounds[-1]), len(self._names) - 1)]
