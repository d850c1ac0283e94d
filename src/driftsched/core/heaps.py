"""A heap that forgets lazily, so that removing from its middle costs what a push costs."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

E = TypeVar("E", bound=tuple[Any, ...])


class LazyHeap(Generic[E]):
    """Smallest entry first. The owner decides what is alive; the dead are dropped when they surface.

    The dead never outnumber the living for long: `trim` rebuilds the heap once they do. A rebuild of n entries
    follows at least n / 2 removals, so every operation stays O(log n) amortised.
    """

    __slots__ = ("_entries", "_is_live")

    def __init__(self, is_live: Callable[[E], bool]) -> None:
        self._entries: list[E] = []
        self._is_live = is_live

    def __len__(self) -> int:
        """Entries held, dead ones included."""
        return len(self._entries)

    def push(self, entry: E) -> None:
        heappush(self._entries, entry)

    def first(self) -> E | None:
        """The smallest living entry, left in place; None if there is none."""
        entries, is_live = self._entries, self._is_live
        while entries:
            if is_live(entries[0]):
                return entries[0]
            heappop(entries)
        return None

    def trim(self, num_live: int) -> None:
        """Drop the dead, and doubles of the living, if they outnumber the `num_live` living. Call after a death."""
        if len(self._entries) > 2 * num_live + 16:
            self._entries = list({entry for entry in self._entries if self._is_live(entry)})
            heapify(self._entries)
