"""Who takes the most, of any number of names, in bounded memory."""

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class HeavyHitters(Generic[K]):
    """Sums by key of which the small ones are forgotten: those of Misra and Gries, with deletions in batches.

    What it says of a key is never too much, and too little by at most total / (size + 1). It holds at most
    2 x `size` keys; an addition is O(1) amortised, but for the sorting of a batch.
    Source: Misra and Gries, "Finding repeated elements" (1982); the batches are those of Anderson et al., "A
    high-performance algorithm for identifying frequent items in data streams" (IMC 2017).
    """

    def __init__(self, size: int) -> None:
        """`size` >= 1."""
        self.size = size
        self._sums: dict[K, float] = {}

    def add(self, key: K, amount: float) -> float:
        """A lower bound of its sum. `amount` >= 0."""
        total = self._sums[key] = self._sums.get(key, 0.0) + amount
        if len(self._sums) > 2 * self.size:
            self._forget_the_small()
            total = self[key]
        return total

    def decay(self, factor: float) -> None:
        """Let the past count for less: all sums times `factor`, in (0, 1]."""
        self._sums = {key: total * factor for key, total in self._sums.items()}

    def __getitem__(self, key: K) -> float:
        """A lower bound of its sum; 0 if it is not among the large ones."""
        return self._sums.get(key, 0.0)

    def __len__(self) -> int:
        return len(self._sums)

    def __iter__(self) -> Iterator[K]:
        return iter(self._sums)

    def _forget_the_small(self) -> None:
        cut = sorted(self._sums.values(), reverse=True)[self.size]
        self._sums = {key: total - cut for key, total in self._sums.items() if total > cut}
