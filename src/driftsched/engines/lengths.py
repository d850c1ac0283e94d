"""How long the answers of a simulated engine are, and how that changes with time.

The natural length of an answer, the one at which a model would stop by itself, is lognormal within a category: it
is positive and skewed to the right, as lengths of real answers are. A drift multiplies the lengths of all that
arrives after it.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, inf, isfinite, log, log1p, sqrt

from driftsched.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Drift:
    """From `at_seconds` on, answers are `factor` times as long; only those of `category`, unless it is None."""

    at_seconds: float
    factor: float
    category: str | None = None


@dataclass(frozen=True, slots=True)
class LengthProfile:
    """Natural lengths by category, in tokens."""

    means: Mapping[str, float]
    cv: float
    """Standard deviation divided by mean, of every category, >= 0."""
    note: str


LENGTH_PROFILES: dict[str, LengthProfile] = {
    "paper": LengthProfile(
        means={"short_qa": 0.81 * 64, "summary": 0.81 * 256, "technical": 0.81 * 384, "report": 0.81 * 512},
        cv=0.1,
        note="The DriftSched paper's measured ratio of 0.81 to each category's limit; the spread is assumed.",
    ),
    "chat": LengthProfile(
        means={"short_qa": 200, "summary": 140, "technical": 430, "report": 900},
        cv=0.6,
        note="Order of magnitude of a small chat model asked for answers, summaries, explanations and reports.",
    ),
    "demo": LengthProfile(
        means={"short_qa": 64, "summary": 256, "technical": 384, "report": 512},
        cv=0.25,
        note="Each category's limit in the DriftSched paper as its mean; invented, to show feedback at work.",
    ),
}
"""Named sets of means and spread."""


class LengthLaw:
    """Draws the length of each answer.

    Draws come from one seeded stream, in the order in which they are asked for. A draw with a `key` depends on
    nothing but seed, key, category and time, so that two policies that serve the same requests in different order
    see the same lengths.
    """

    def __init__(self, means: Mapping[str, float], cv: float, seed: int = 0, drifts: Iterable[Drift] = ()) -> None:
        """`means` > 0 in tokens, by category; `cv` >= 0. Raises `ValueError` naming what is out of range."""
        for category, mean in means.items():
            if not 0 < mean < inf:
                raise ValueError(f"the mean length of {category!r} must be positive and finite, not {mean}")
        if not 0 <= cv < inf:
            raise ValueError(f"cv must be at least 0 and finite, not {cv}")
        self._means = dict(means)
        self._drifts = tuple(drifts)
        for drift in self._drifts:
            if not 0 < drift.factor < inf:
                raise ValueError(f"the factor of a drift must be positive and finite, not {drift.factor}")
            if drift.category is not None:
                self._mean(drift.category)
        self._sigma = sqrt(log1p(cv * cv))
        self._seed = seed
        self._random = random.Random(seed)

    def draw(
        self,
        category: str,
        at: float,
        max_tokens: int | None = None,
        *,
        ignore_eos: bool = False,
        key: str | None = None,
    ) -> tuple[int, str]:
        """Completion tokens, >= 1, and finish reason of a request that arrives at `at` seconds of the drift clock.

        An answer that would be longer than `max_tokens` (>= 1; None: no limit) is cut off there with the reason
        `length`, any other ends with `stop`. With `ignore_eos` it has exactly `max_tokens`. Raises `ValueError` for
        a category without a mean, and for `ignore_eos` without a limit.
        """
        mean = self._mean(category) * self.drift_factor(category, at)
        stream = self._random if key is None else random.Random(f"{self._seed}:{key}")
        natural = max(1, round(exp(log(mean) + self._sigma * (stream.gauss() - self._sigma / 2))))
        if ignore_eos:
            if max_tokens is None:
                raise ValueError("ignore_eos needs max_tokens: nothing else would end the answer")
            return max_tokens, "length"
        if max_tokens is not None and natural > max_tokens:
            return max_tokens, "length"
        return natural, "stop"

    def drift_factor(self, category: str, at: float) -> float:
        """What the drifts in force at `at` multiply the lengths of a category by, taken together."""
        factor = 1.0
        for drift in self._drifts:
            if drift.at_seconds <= at and drift.category in (None, category):
                factor *= drift.factor
        return factor

    def _mean(self, category: str) -> float:
        try:
            return self._means[category]
        except KeyError:
            raise ValueError(
                f"no mean length for category {category!r}: there are {', '.join(self._means)}"
            ) from None


def get_length_profile(name: str) -> LengthProfile:
    """The profile called `name`. Raises `ConfigError` listing the names if there is none."""
    try:
        return LENGTH_PROFILES[name]
    except KeyError:
        raise ConfigError(f"unknown length profile {name!r}: use one of {', '.join(LENGTH_PROFILES)}") from None


def parse_drift(text: str) -> Drift:
    """The drift written as `at=30s,factor=1.6` or `at=2m,factor=0.5,category=summary`.

    `at` is in seconds, or has the unit `ms`, `s`, `m` or `h`; `factor` is positive. Raises `ConfigError` naming the
    key that is unknown, missing, repeated or wrong.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in ("at", "factor", "category"):
            raise ConfigError(f"drift {text!r}: unknown key {key!r}: use at=..., factor=... and maybe category=...")
        if key in fields:
            raise ConfigError(f"drift {text!r}: {key} is given twice: write one drift for each change")
        if not value:
            raise ConfigError(f"drift {text!r}: {key} has no value: write {key}=...")
        fields[key] = value
    for key in ("at", "factor"):
        if key not in fields:
            raise ConfigError(f"drift {text!r}: {key} is missing: write for example at=30s,factor=1.6")
    return Drift(_parse_at(text, fields["at"]), _parse_factor(text, fields["factor"]), fields.get("category"))


def _parse_at(text: str, value: str) -> float:
    number, unit = value, 1.0
    for suffix, seconds in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if value.endswith(suffix):
            number, unit = value.removesuffix(suffix), seconds
            break
    at = _parse_number(number)
    if at is None or at < 0:
        raise ConfigError(f"drift {text!r}: at must be a time like 30s, 500ms, 2m or 1h, not {value!r}")
    return at * unit


def _parse_factor(text: str, value: str) -> float:
    factor = _parse_number(value)
    if factor is None or factor <= 0:
        raise ConfigError(f"drift {text!r}: factor must be a number above 0, not {value!r}")
    return factor


def _parse_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None
