"""What estimators are compared with besides one another: the plainest statistics of the lengths seen so far.

They remember every length, so they are yardsticks and no candidates. Until a model has answered they know the base
length of the category, as `static` does, and they take an answer that was cut short for a whole one.
"""

from bisect import insort
from collections.abc import Sequence
from math import inf

from driftsched.core.model import Estimate, Request, Usage
from driftsched.estimators.categories import base_tokens


class _Seen:
    """The lengths seen under one key, in order of size."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.total = 0

    def add(self, length: int) -> None:
        insort(self.lengths, length)
        self.total += length

    @property
    def mean(self) -> float:
        return self.total / len(self.lengths)


class _Running:
    """A statistic of the lengths per key."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], _Seen] = {}

    def keys(self, request: Request) -> Sequence[tuple[str, ...]]:
        """Where to look, the best first; everything is learnt under all of them."""
        raise NotImplementedError

    def point(self, seen: _Seen) -> float:
        raise NotImplementedError

    def predict(self, request: Request) -> Estimate:
        limit = inf if request.max_tokens is None else request.max_tokens
        seen = next((self._seen[key] for key in self.keys(request) if key in self._seen), None)
        if seen is None:
            length = min(float(base_tokens(request.category)), limit)
            return Estimate(length, q50=length, q80=length, q90=length)
        q50, q80, q90 = (min(quantile(seen.lengths, level), limit) for level in (0.5, 0.8, 0.9))
        return Estimate(min(self.point(seen), limit), q50=q50, q80=q80, q90=q90)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:  # noqa: ARG002
        return self.predict(request)

    def learn(
        self,
        request: Request,
        usage: Usage,
        *,
        finished: bool,  # noqa: ARG002
        estimate: Estimate | None = None,  # noqa: ARG002
    ) -> None:
        for key in self.keys(request):
            self._seen.setdefault(key, _Seen()).add(usage.completion_tokens)

    def bias(self, request: Request) -> float:  # noqa: ARG002
        return 1.0


class Median(_Running):
    """The median of all lengths of the model so far."""

    def keys(self, request: Request) -> Sequence[tuple[str, ...]]:
        return ((request.model,),)

    def point(self, seen: _Seen) -> float:
        return quantile(seen.lengths, 0.5)


class CategoryMean(_Running):
    """The mean of all lengths of the model in the category so far; before there is one, of the model."""

    def keys(self, request: Request) -> Sequence[tuple[str, ...]]:
        return ((request.model, request.category), (request.model,))

    def point(self, seen: _Seen) -> float:
        return seen.mean


def quantile(ordered: Sequence[float], level: float) -> float:
    """Of values in ascending order, at least one, between two of them in proportion (Hyndman and Fan's type 7)."""
    place = level * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
