"""What the answers to one kind of request have in common: a mean and a median, each forgetting, each shrunk.

Lengths enter as logarithms. A node that has seen little says nearly what its parent says.
"""

from array import array


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
        """The mean, with the parent's value counted as `strength` observations."""
        return (self.total + strength * parent) / (self.weight + strength)

    def observe(self, length: float, max_weight: float) -> None:
        """Take one observation in, and let the older ones weigh at most `max_weight` together with it."""
        if self.weight > max_weight - 1:
            self.keep(max_weight - 1)
        self.total += length
        self.weight += 1

    def keep(self, weight: float) -> None:
        """Let what was seen so far weigh at most `weight`, > 0: the faster it follows what comes."""
        if self.weight > weight:
            self.total *= weight / self.weight
            self.weight = weight


WINDOW = 48


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
