"""What the answers to one kind of request have in common: a mean and a median, each forgetting, each shrunk.

Lengths enter as logarithms. A node that has seen little says nearly what its parent says. `pack` gives a node as
plain numbers, `unpack` fills a fresh one from them, and `absorb` adds what another replica's node has seen.
"""

from array import array
from collections.abc import Iterator
from math import isfinite
from typing import Final

MAX_MAGNITUDE: Final = 1e6
"""No logarithm, deviation, count or loss that a node holds for long is larger; what claims to be is made up."""


class Numbers:
    """Plain numbers, read one after the other. Raises `ValueError` when they run out or one is no sane number."""

    def __init__(self, values: object) -> None:
        if not isinstance(values, list):
            raise ValueError("a node must be a list of numbers")  # noqa: TRY004 - the state is wrong, not a program
        self._values: Iterator[object] = iter(values)

    def take(self, low: float = -MAX_MAGNITUDE, high: float = MAX_MAGNITUDE) -> float:
        value = next(self._values, None)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise ValueError(f"a node must hold finite numbers, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"a node must hold numbers between {low:g} and {high:g} here, not {value:g}")
        return float(value)

    def take_all(self, low: float = -MAX_MAGNITUDE, high: float = MAX_MAGNITUDE, *, num: int) -> list[float]:
        return [self.take(low, high) for _ in range(num)]

    def end(self) -> None:
        if next(self._values, None) is not None:
            raise ValueError("a node holds more numbers than it should")


class Level:
    """A mean that forgets, drawn towards its parent while little is known.

        value = (sum of observations + strength x parent) / (weight of observations + strength)

    `weight` counts observations and stops growing at a limit; from there on each new one replaces its share of the
    old. That is exponential forgetting whose step is 1 / n at first.
    """

    __slots__ = ("total", "weight")

    def __init__(self) -> None:
        self.total = 0.0
        self.weight = 0.0

    def value(self, parent: float, strength: float) -> float:
        """The mean, with the parent's value counted as `strength` observations, > 0."""
        return (self.total + strength * parent) / (self.weight + strength)

    def observe(self, length: float, max_weight: float) -> None:
        """Take one observation in, and let the older ones weigh at most `max_weight` together with it."""
        self.keep(max_weight - 1)
        self.total += length
        self.weight += 1

    def keep(self, weight: float) -> None:
        """Let what was observed so far weigh at most `weight`: the faster it follows what comes."""
        if self.weight > weight:
            self.total *= weight / self.weight
            self.weight = weight

    def move(self, by: float) -> None:
        """Let all that was observed have been longer by this much."""
        self.total += by * self.weight

    def pack(self) -> list[float]:
        return [self.total, self.weight]

    def unpack(self, numbers: Numbers) -> None:
        self.total, self.weight = numbers.take(), numbers.take(0.0)

    def absorb(self, other: "Level") -> None:
        """Observations add up; the next one observed brings the weight back to its limit."""
        self.total += other.total
        self.weight += other.weight


WINDOW: Final = 48


class Window:
    """The median of the last `WINDOW` observations: follows a step within half a window, whatever the outliers."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = array("f")

    def median(self, parent: float) -> float:
        """The median, with the parent's value counted as one observation."""
        ordered = sorted((parent, *self.values))
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

    def observe(self, length: float) -> None:
        if len(self.values) >= WINDOW:
            del self.values[0]
        self.values.append(length)

    def keep(self, num: int) -> None:
        """Forget all but the last `num`."""
        del self.values[:-num]

    def pack(self) -> list[float]:
        return [len(self.values), *self.values]

    def unpack(self, numbers: Numbers) -> None:
        self.values = array("f", numbers.take_all(num=int(numbers.take(0, WINDOW))))

    def absorb(self, other: "Window") -> None:
        """The last of both, taken in turns, so that neither's past outweighs the other's present."""
        mine, theirs = list(self.values), list(other.values)
        half = WINDOW // 2
        share = min(len(theirs), max(half, WINDOW - len(mine)))
        kept = [*mine[-(WINDOW - share) :], *theirs[-share:]] if share else mine
        self.values = array("f", kept)
