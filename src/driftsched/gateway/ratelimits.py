"""What is left of a tenant's quotas, as OpenAI tells it: headers with numbers, and times such as `6m0s`."""

from collections.abc import Callable
from math import ceil

from driftsched.core.model import Tenant
from driftsched.core.protocols import Clock
from driftsched.core.quotas import Quotas

RateLimits = Callable[[], list[tuple[bytes, bytes]]]
"""The headers as they are when asked."""


def untold() -> list[tuple[bytes, bytes]]:
    """Of a tenant without quotas there is nothing to tell."""
    return []


def rate_limits(quotas: Quotas, tenant: Tenant, clock: Clock) -> RateLimits:
    """What tells the headers for a tenant."""
    quota = tenant.quota
    if quota is None:
        return untold

    def told() -> list[tuple[bytes, bytes]]:
        lines = []
        for standing in quotas.standing(quota, clock.now()):
            kind = standing.kind.encode()
            lines += [
                (b"x-ratelimit-limit-" + kind, b"%d" % standing.limit),
                (b"x-ratelimit-remaining-" + kind, b"%d" % standing.remaining),
                (b"x-ratelimit-reset-" + kind, duration(standing.reset_seconds).encode()),
            ]
        return lines

    return told


def duration(seconds: float) -> str:
    """A time >= 0, rounded up to milliseconds, as Go writes it and OpenAI's headers do: `20ms`, `1.5s`, `6m0s`."""
    total = ceil(seconds * 1000 - 1e-6)
    if 0 < total < 1000:
        return f"{total}ms"
    minutes, milliseconds = divmod(total, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, rest = divmod(milliseconds, 1000)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    return f"{f'{hours}h' * (hours > 0)}{f'{minutes}m' * (hours + minutes > 0)}{whole}{fraction}s"
