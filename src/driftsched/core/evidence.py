"""What policies would have given on the same requests: the shadow gathers it, and whoever listens judges."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from driftsched.core.model import Tier


@dataclass(frozen=True, slots=True)
class Times:
    """End-to-end seconds, arrival to last token, of some requests; all 0 of none."""

    requests: int
    mean: float
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Times":
        """Percentiles are nearest-rank, so that of fewer than a hundred requests P99 is the maximum."""
        ordered = sorted(seconds)
        if not ordered:
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        p50, p99 = (ordered[ceil(share * len(ordered)) - 1] for share in (0.50, 0.99))
        return cls(len(ordered), fmean(ordered), p50, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class PolicyTimes:
    """How one policy served the requests of a window."""

    policy: str
    """With its options, as `core.specs` writes them."""
    times: Times
    by_tier: Mapping[Tier, Times]
    """Of the tiers that had requests."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One window of requests, under every policy.

    Compare `live` with `shadows`: both are simulated on one engine model, so that its error cancels out. All hold
    the very same requests, those that were answered in full.
    """

    started_at: float
    """Arrival of the first of the requests, on the gateway's clock."""
    ended_at: float
    """Arrival of the last."""
    live: PolicyTimes
    """The policy that serves, simulated."""
    shadows: tuple[PolicyTimes, ...]
    """The others, simulated; in the order of the configuration."""
    measured: PolicyTimes
    """What the policy that serves really gave. Its ratio to `live` says how far the model can be trusted."""

    def of(self, policy: str) -> PolicyTimes | None:
        """A simulated policy by its text, the live one included; None if it was not simulated."""
        return next((one for one in (self.live, *self.shadows) if one.policy == policy), None)


EvidenceListener = Callable[[Evidence], None]
"""Told of a window each time a quarter of its requests are new, so that consecutive ones overlap.

Called in a thread of the shadow's own: what is to change anything elsewhere must be handed on.
"""
