"""A heap that forgets lazily, so that removing from its middle costs what a push costs."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

E = TypeVar("E", bound=tuple[Any, ...])

SWEEP_LENGTH = 8
"""Entries looked at for each death while a sweep lasts; at 2 the dead would outrun the sweep."""


class LazyHeap(Generic[E]):
    """Smallest entry first. The owner decides what is alive; the dead are dropped when they surface or are swept.

    The dead never outnumber the living for long: once they do, a sweep moves the living to a new heap, a few at
    each death, so that no call has to look at all entries. Every operation is O(log n) amortised, and the entries
    held stay below three times the living, plus a constant.
    """

    __slots__ = ("_entries", "_is_live", "_unswept")

    def __init__(self, is_live: Callable[[E], bool]) -> None:
        """`is_live` is true of at most one entry for each living thing, and never again of one that died."""
        self._entries: list[E] = []
        self._unswept: list[E] = []  # a heap too: what a sweep under way has not reached
        self._is_live = is_live

    def __len__(self) -> int:
        """Entries held, dead ones included."""
        return len(self._entries) + len(self._unswept)

    def push(self, entry: E) -> None:
        heappush(self._entries, entry)

    def first(self) -> E | None:
        """The smallest living entry, left in place; None if there is none."""
        first = self._first_of(self._entries)
        if not self._unswept:
            return first
        unswept = self._first_of(self._unswept)
        return unswept if first is None or (unswept is not None and unswept < first) else first

    def sweep(self, num_live: int) -> None:
        """Go on dropping the dead if they outnumber the `num_live` living. Call after every death."""
        if not self._unswept:
            if len(self._entries) <= 2 * num_live + 16:
                return
            self._unswept, self._entries = self._entries, self._unswept
        for _ in range(min(SWEEP_LENGTH, len(self._unswept))):
            entry = self._unswept.pop()  # the last leaf: what is left is still a heap
            if self._is_live(entry):
                heappush(self._entries, entry)

    def _first_of(self, entries: list[E]) -> E | None:
        while entries:
            if self._is_live(entries[0]):
                return entries[0]
            heappop(entries)
        return None
