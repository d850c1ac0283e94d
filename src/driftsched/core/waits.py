"""How long requests will wait, told from how long those like them waited.

What waits in front of a request, and the request itself, take a time to drain at the measured rate. How long it
waits is that times a factor, and the factor is the policy's doing: who is short, or alone of its tenant, or of a
better tier, is served before others that came earlier, and whoever comes later may be served before it. So there is
no formula for any policy: the factors of the last requests of a kind are remembered, and their quantiles are the
forecast. For one that has waited already, only those count by which it would wait longer.

Lines grow and shrink in waves, so that the past of a kind promises more than it can keep. The ends are therefore
moved apart, a step whenever a wait falls outside what was promised at admission, and together, a ninth of it, when
it falls inside: in the long run eight of ten are inside, whatever the waves. Source: adaptive conformal inference,
Gibbs and Candes, arXiv 2106.00170.
"""

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass
from math import exp, inf, log

from driftsched.core.model import Load, Ticket, Tier

LOW, HIGH = 0.1, 0.9
"""Of ten requests, one waits less than the low end of its forecast, and one longer than the high end."""
MEMORY = 200
"""Waits remembered of a kind: the ends of the interval are the twentieth from either end."""
MIN_WAITS = 20
"""Of fewer waits no such ends can be told."""
STEP = 0.1
"""What one broken promise adds to the logarithm of how far an end is moved, times `HIGH`."""
MAX_MOVE = log(10)
"""Further out an end tells nothing."""
PROBE = 20
"""One in so many requests whose deadline is out of reach is let in."""
SHORT, MEDIUM = 1 / 8, 1 / 3
"""Lengths that are worlds apart, as shares of a long one: see `Load.long_tokens`."""

_Kind = tuple[bool, Tier, int, bool]
"""(somebody waited, tier, how long its answer will be, others of its tenant waited)"""


@dataclass(frozen=True, slots=True)
class Eta:
    """When a request will be dispatched: seconds from now, 0 <= low <= seconds <= high."""

    seconds: float
    """As likely too early as too late."""
    low: float
    high: float
    """The ends between which eight of ten fall."""


class Waits:
    """The requests that wait, in order of arrival, and how those before them fared."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}  # in order of admission
        self._by_kind: dict[tuple[object, ...], _Factors] = {}  # and by the beginnings of kinds; a few dozen
        self._num_too_long = 0
        self._low_move = self._high_move = 0.0  # logarithms of how far the ends are moved apart

    def forecast(self, ticket: Ticket, load: Load, num_of_tenant: int) -> Eta | None:
        """When `ticket` would be served were it admitted under `load`, with so many of its tenant waiting.

        None while nothing is known of the engine's rate.
        """
        waiting = self._found(ticket, load, num_of_tenant)
        return self._remaining(waiting, 0.0) if waiting.drain_seconds > 0 else None

    def too_long(self, ticket: Ticket, load: Load, num_of_tenant: int, left: float) -> float:
        """By how many seconds even the low end of its forecast is longer than the `left` ones; 0 to let it wait.

        Who finds nobody waiting may wait, and so may one in `PROBE` of those that should not: what is never
        admitted teaches nothing, and a forecast that has become wrong would stand for ever.
        """
        if left == inf or load.num_waiting == 0:
            return 0.0
        eta = self.forecast(ticket, load, num_of_tenant)
        if eta is None or eta.low <= left:
            return 0.0
        self._num_too_long += 1
        return 0.0 if self._num_too_long % PROBE == 0 else eta.low - left

    def enter(self, ticket: Ticket, load: Load, num_of_tenant: int) -> Eta | None:
        """The ticket starts to wait; `load` and `num_of_tenant` are without it. Returns its `forecast`."""
        waiting = self._waiting[ticket.id] = self._found(ticket, load, num_of_tenant)
        drain = waiting.drain_seconds
        if drain == 0:
            return None
        low, middle, high = waiting.told or _untold(0.0)
        return Eta(middle * drain, low * drain, high * drain)

    def observe(self, ticket_id: str, now: float) -> None:
        """The ticket waited until `now`, when it was dispatched or expired."""
        waiting = self._waiting.get(ticket_id)
        if waiting is None or waiting.drain_seconds == 0:
            return
        factor = max(0.0, now - waiting.arrived_at) / waiting.drain_seconds
        for kind in _precise_first(waiting.kind):
            self._by_kind.setdefault(kind, _Factors()).add(factor)
        if waiting.told is not None:
            low, _, high = waiting.told
            self._low_move = _moved(self._low_move, broken=factor < low)
            self._high_move = _moved(self._high_move, broken=factor > high)

    def leave(self, ticket_id: str) -> None:
        """The ticket waits no longer."""
        self._waiting.pop(ticket_id, None)

    def position_of(self, ticket_id: str) -> int | None:
        """1 for the one that has waited longest; None if it does not wait. O(n), and n is bounded: a query."""
        if ticket_id not in self._waiting:
            return None
        return next(place for place, waiting_id in enumerate(self._waiting, start=1) if waiting_id == ticket_id)

    def eta_of(self, ticket_id: str, now: float) -> Eta | None:
        """When a waiting ticket will be dispatched; None if it does not wait, or no rate was known when it came."""
        waiting = self._waiting.get(ticket_id)
        if waiting is None or waiting.drain_seconds == 0:
            return None
        return self._remaining(waiting, max(0.0, now - waiting.arrived_at))

    def _remaining(self, waiting: "_Waiting", waited: float) -> Eta:
        passed = waited / waiting.drain_seconds
        told = self._told(waiting.kind, passed) if passed else waiting.told
        low, middle, high = told or _untold(passed)
        return Eta(*(max(0.0, factor * waiting.drain_seconds - waited) for factor in (middle, low, high)))

    def _told(self, kind: _Kind, passed: float) -> tuple[float, float, float] | None:
        """Low end, middle and high end of the factor, as the most precise kind that can tell them has them."""
        for part in _precise_first(kind):
            factors = self._by_kind.get(part)
            ends = factors.beyond(passed) if factors else None
            if ends is not None:
                low, middle, high = ends
                return low * exp(-self._low_move), middle, high * exp(self._high_move)
        return None

    def _found(self, ticket: Ticket, load: Load, num_of_tenant: int) -> "_Waiting":
        tokens = load.waiting_tokens + max(1.0, ticket.estimate.expected_tokens)
        length = ticket.estimate.completion_tokens
        size = sum(length > share * load.long_tokens for share in (SHORT, MEDIUM))
        kind = (load.num_waiting > 0, ticket.request.tier, size, num_of_tenant > 0)
        return _Waiting(
            kind=kind,
            arrived_at=ticket.request.arrived_at,
            drain_seconds=tokens / load.tokens_per_second if load.tokens_per_second > 0 else 0.0,
            told=self._told(kind, 0.0),
        )


@dataclass(slots=True)
class _Waiting:
    """A waiting ticket, and what it found."""

    kind: _Kind
    arrived_at: float
    drain_seconds: float
    """Time to drain what waited, and itself, at the rate measured then; 0 if that was not known."""
    told: tuple[float, float, float] | None
    """Low end, middle and high end of the factor that it was forecast; None if none could be."""


class _Factors:
    """The last `MEMORY` factors, by age and by size."""

    __slots__ = ("_by_age", "_by_size")

    def __init__(self) -> None:
        self._by_age: deque[float] = deque()
        self._by_size: list[float] = []

    def add(self, factor: float) -> None:
        if len(self._by_age) == MEMORY:
            oldest = self._by_age.popleft()
            del self._by_size[bisect_right(self._by_size, oldest) - 1]
        self._by_age.append(factor)
        insort(self._by_size, factor)

    def beyond(self, passed: float) -> tuple[float, float, float] | None:
        """Low end, middle and high end of the factors above `passed`, >= 0; None if they are too few to tell."""
        start = bisect_right(self._by_size, passed) if passed > 0 else 0
        number = len(self._by_size) - start
        if number < MIN_WAITS:
            return None
        low, middle, high = (self._by_size[start + int(share * number)] for share in (LOW, 0.5, HIGH))
        return low, middle, high


def _precise_first(kind: _Kind) -> tuple[tuple[object, ...], ...]:
    """The kind, and what it is part of, where more waits are known of: of its tier, and of all."""
    return kind, kind[:2], kind[:1]


def _moved(move: float, *, broken: bool) -> float:
    return min(max(0.0, move + STEP * (broken - LOW)), MAX_MOVE)


def _untold(passed: float) -> tuple[float, float, float]:
    """Too few waited longer: the line in front takes its time, and what has lasted goes on for a quarter of that.

    The quarter is that of `Estimate.remaining_tokens`: lengths have heavy tails, and so have waits.
    """
    expected = max(1.0, 1.25 * passed)
    return passed, expected, 2 * expected
