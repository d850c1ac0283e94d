"""State by key, bounded."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """State for the keys written last; the key that was not written for longest makes room for a new one.

    Keys may hold names that clients chose, so there may be any number of them.
    """

    def __init__(self, fresh: Callable[[], V], max_keys: int) -> None:
        """`fresh` makes the state of a new key."""
        self._fresh = fresh
        self._max_keys = max_keys
        self._states: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def read(self, key: K) -> V | None:
        """The state of `key`, if it is held; changes nothing, not even the order of eviction."""
        return self._states.get(key)

    def write(self, key: K) -> V:
        """The state of `key`, to be changed by the caller; a fresh one if none is held."""
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self._fresh()
            if len(self._states) > self._max_keys:
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(key)
        return state

    def pop(self, key: K) -> V | None:
        """Forget `key`; the state that was held of it, if any."""
        return self._states.pop(key, None)

    def items(self) -> Iterator[tuple[K, V]]:
        """Every key with its state, the one written last at the end."""
        return iter(self._states.items())

    def replace(self, states: Iterable[tuple[K, V]]) -> None:
        """Hold these instead, the one written last at the end."""
        self._states = OrderedDict(states)
        while len(self._states) > self._max_keys:
            self._states.popitem(last=False)

    def add_oldest(self, key: K, state: V) -> None:
        """Hold a new key as if it had been written before all others; where there is no room, leave it out."""
        if len(self._states) < self._max_keys:
            self._states[key] = state
            self._states.move_to_end(key, last=False)
