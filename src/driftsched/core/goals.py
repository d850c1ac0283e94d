"""What an operator wants of the order of service, in one line: `p50 while p99 <= 1.2 x fifo`.

    goal    figure, or: figure while bound and bound ...
    figure  p50, p99, mean or max; of one tier: p99 of premium
    bound   figure <= NUMBER x POLICY, or: figure <= NUMBER s

All figures are end-to-end seconds; the first one is to be as low as possible.
"""

import re
from dataclasses import dataclass
from math import inf

from driftsched.core.errors import ConfigError
from driftsched.core.evidence import Evidence, PolicyTimes
from driftsched.core.model import Tier
from driftsched.core.specs import parse_spec, spec_text

_FIGURE = r"(p50|p99|mean|max)(?: of (\w+))?"
_BOUND = re.compile(rf"{_FIGURE} <= (\S+) (?:x (\S+)|s)")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a window."""

    name: str
    """`p50`, `p99`, `mean` or `max`."""
    tier: Tier | None = None
    """None: over all tiers."""

    def __str__(self) -> str:
        return self.name if self.tier is None else f"{self.name} of {self.tier.label}"

    def of(self, found: PolicyTimes) -> float | None:
        """Seconds; None if the window has no requests of the tier."""
        times = found.times if self.tier is None else found.by_tier.get(self.tier)
        if times is None or times.requests == 0:
            return None
        seconds: float = getattr(times, self.name)
        return seconds


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure is to be at most so many seconds, or so many times what another policy would give."""

    figure: Figure
    most: float
    policy: str | None = None
    """As `core.specs` writes it; None: `most` is in seconds."""

    def __str__(self) -> str:
        return f"{self.figure} <= {self.most:g} " + (f"x {self.policy}" if self.policy else "s")

    def share(self, found: PolicyTimes, evidence: Evidence) -> float | None:
        """What the figure comes to, as a share of what it may be: above 1 it is too large. None: not to be told.

        Seconds are those measured: simulated ones are multiplied by what was measured over what was simulated of
        the policy that serves.
        """
        value = self.figure.of(found)
        told, real = self.figure.of(evidence.live), self.figure.of(evidence.measured)
        if self.policy is None:
            return value * real / told / self.most if value is not None and told and real else None
        other = evidence.of(self.policy)
        baseline = self.figure.of(other) if other else None
        return value / (self.most * baseline) if value is not None and baseline else None


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be low, and what must hold."""

    figure: Figure
    bounds: tuple[Bound, ...] = ()

    def __str__(self) -> str:
        return str(self.figure) + (f" while {' and '.join(map(str, self.bounds))}" if self.bounds else "")

    @property
    def policies(self) -> tuple[str, ...]:
        """Those that bounds compare with."""
        return tuple(dict.fromkeys(bound.policy for bound in self.bounds if bound.policy))

    def share(self, found: PolicyTimes, evidence: Evidence) -> float | None:
        """The largest share of its bounds that a policy takes up, 0 without bounds; None if one cannot be told."""
        largest = 0.0
        for bound in self.bounds:
            share = bound.share(found, evidence)
            if share is None:
                return None
            largest = max(largest, share)
        return largest


def parse_goal(text: str) -> Goal:
    """The goal that `text` states. Raises `ConfigError` saying which part of it is not of the form."""
    wanted, while_, rest = " ".join(text.split()).partition(" while ")
    found = re.fullmatch(_FIGURE, wanted)
    if not found:
        raise ConfigError(f"{wanted!r}: write p50, p99, mean or max, and perhaps of TIER")
    bounds = tuple(_bound(part) for part in rest.split(" and ")) if while_ else ()
    return Goal(_figure(found), bounds)


def _bound(text: str) -> Bound:
    found = _BOUND.fullmatch(text)
    most = _number(found[3]) if found else None
    if not found or most is None:
        raise ConfigError(f"{text!r}: write FIGURE <= NUMBER x POLICY, or FIGURE <= NUMBER s, the number above 0")
    return Bound(_figure(found), most, spec_text(*parse_spec(found[4])) if found[4] else None)


def _figure(found: re.Match[str]) -> Figure:
    try:
        return Figure(found[1], Tier.parse(found[2]) if found[2] else None)
    except ValueError as error:
        raise ConfigError(f"{found[0]!r}: {error}") from None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < inf else None
