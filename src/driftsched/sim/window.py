"""The requests answered last, with the time that each policy took for them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from driftsched.core.evidence import PolicyTimes, Times
from driftsched.core.model import Tier

WINDOW_SECONDS = 600.0
"""Older requests are forgotten,"""
MIN_ROWS = 300
"""but so many are always kept,"""
MAX_ROWS = 4000
"""and of more than these every second, then every fourth and so on, so that a window costs the same to look at."""
TELLING_ROWS = 100
"""A window of fewer says nothing."""


class Row(NamedTuple):
    """One request under every policy."""

    arrived_at: float
    tier: Tier
    measured: float
    """End-to-end seconds, as really served."""
    simulated: tuple[float, ...]
    """The same by policy."""


class Window:
    """Rows in the order in which they became complete."""

    def __init__(self) -> None:
        self.rows: deque[Row] = deque()
        self._every = 1  # one in so many rows is kept
        self._num_seen = 0
        self._num_new = 0

    @property
    def telling(self) -> bool:
        """Rows are enough, and a quarter of them new since `told`."""
        return len(self.rows) >= TELLING_ROWS and 4 * self._num_new >= len(self.rows)

    def told(self) -> None:
        self._num_new = 0

    def add(self, row: Row) -> None:
        self._num_seen += 1
        if self._num_seen % self._every:
            return
        self.rows.append(row)
        self._num_new += 1
        while len(self.rows) > MIN_ROWS and self.rows[0].arrived_at < row.arrived_at - WINDOW_SECONDS:
            self.rows.popleft()
        if len(self.rows) > MAX_ROWS:
            self.rows = deque(list(self.rows)[::2])
            self._every *= 2
            self._num_new //= 2
        elif len(self.rows) < MAX_ROWS // 4:
            self._every = max(1, self._every // 2)


def times_of(policy: str, rows: Sequence[Row], seconds: Callable[[Row], float]) -> Iterator[PolicyTimes | None]:
    """The times of one policy, worked out in small steps: None until they are there."""
    by_tier = {}
    for tier in Tier:
        values = [seconds(row) for row in rows if row.tier is tier]
        if values:
            by_tier[tier] = Times.of(values)
        yield None
    yield PolicyTimes(policy, Times.of(map(seconds, rows)), by_tier)
