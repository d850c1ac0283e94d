"""When an engine is left alone: a circuit breaker. Pure: it is told the time, and what became of each attempt.

Three states, as M. Nygard describes them (Release It!, 2007): closed, and all may pass; open, and nobody may; and
half-open, when one request may find out whether the engine is well again.
"""

from collections import deque
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]

MAX_CONSECUTIVE = 5
"""So many failures in a row open it."""
WINDOW = 20
MAX_FAILURES = 10
"""So do so many among the last `WINDOW` outcomes: an engine that fails every other request never fails in a row."""
LOST_AFTER = 3
"""Failed trials in a row after which what an engine that is away was given counts as lost."""
OPEN_SECONDS = 1.0
MAX_OPEN_SECONDS = 10.0
"""It stays open for the first, then twice as long each time in a row, up to the second."""
JITTER = 0.2
"""Share of that time by which it varies, so that many gateways do not return to an engine at one instant."""
BUSY_SECONDS = 1.0
MAX_BUSY_SECONDS = 60.0
"""How long an engine that is full is spared: by default, and at most, whatever it asks for."""


class Breaker:
    """One engine's health, from what became of the requests it was given.

    An engine that cannot be reached opens it at once: whoever is sent there waits for nothing. With `is_checked`
    somebody asks from time to time whether the engine is well. Then no request is risked to find out whether one
    that was away has come back; without, one request is, as after failures of any other kind. Being full is no
    illness: `busy` changes no state.

    `random` gives numbers in 0 <= x < 1. Instants are seconds on any one clock.
    """

    def __init__(self, random: Callable[[], float], *, is_checked: bool = False) -> None:
        self._random = random
        self.is_checked = is_checked
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)  # True: failed
        self._num_consecutive = 0
        self._num_opened_in_row = 0
        self._open_until: float | None = None  # None: closed
        self._on_trial = False
        self._busy_until = 0.0
        self._epoch = 0
        self.is_away = False
        """It is open because nobody could connect, or because checks failed."""
        self.num_opened = 0
        """Times it opened since the start, failed trials not counted."""

    @property
    def is_closed(self) -> bool:
        return self._open_until is None

    @property
    def is_lost(self) -> bool:
        """It has been away for so long that nothing more will come of it."""
        return self.is_away and self._num_opened_in_row > LOST_AFTER

    def state(self, now: float) -> State:
        if self._open_until is None:
            return "closed"
        return "half_open" if self._on_trial or now >= self._open_until else "open"

    def is_busy(self, now: float) -> bool:
        """It said that it is full, and is spared if others have room."""
        return now < self._busy_until

    def allows(self, now: float) -> bool:
        """Whether a request may be sent."""
        if self._open_until is None:
            return True
        if self.is_away and self.is_checked:
            return False
        return now >= self._open_until and not self._on_trial

    def due_at(self) -> float | None:
        """When an engine that is away is to be asked again; None if it is not away."""
        return self._open_until if self.is_away else None

    def begin(self, now: float, *, early: bool = False) -> int:
        """Something is sent, allowed or not. To be handed back with what becomes of it.

        `early`: it is a trial although the time for one has not come; if it fails, nothing has changed.
        """
        if self._open_until is not None and (early or now >= self._open_until):
            self._on_trial = True
        return self._epoch

    def succeeded(self, epoch: int) -> None:
        """The engine began to answer. Of what was begun before the last change of state, nothing counts."""
        if epoch != self._epoch:
            return
        if self._open_until is not None:
            if not self._on_trial:
                return
            self._close()
        self._num_consecutive = 0
        self._outcomes.append(False)

    def failed(self, epoch: int, now: float, *, unreachable: bool = False, is_check: bool = False) -> None:
        """It could not be reached, broke, or fell silent; `is_check`: when it was asked whether it is well."""
        if epoch != self._epoch:
            return
        is_away = unreachable or is_check
        if self._open_until is not None:
            if self._on_trial and now >= self._open_until:
                self._open(now, is_away)
            self._on_trial = False
            return
        self._outcomes.append(True)
        self._num_consecutive += 1
        too_many = self._num_consecutive >= MAX_CONSECUTIVE or sum(self._outcomes) >= MAX_FAILURES
        if unreachable or too_many:
            self.num_opened += 1
            self._open(now, is_away)

    def busy(self, epoch: int, now: float, seconds: float | None) -> None:
        """The engine is full; `seconds`: when it wants to be asked again. It is well: it answered."""
        wait = BUSY_SECONDS if seconds is None else min(max(seconds, 0.0), MAX_BUSY_SECONDS)
        self._busy_until = max(self._busy_until, now + wait)
        self.succeeded(epoch)

    def abandoned(self, epoch: int) -> None:
        """Nobody waits for the outcome any more: it says nothing of the engine."""
        if epoch == self._epoch:
            self._on_trial = False

    def _open(self, now: float, is_away: bool) -> None:
        seconds = min(OPEN_SECONDS * 2.0**self._num_opened_in_row, MAX_OPEN_SECONDS)
        self._num_opened_in_row = min(self._num_opened_in_row + 1, 16)  # a power of two that no float overflows
        self._open_until = now + seconds * (1.0 + JITTER * (2.0 * self._random() - 1.0))
        self.is_away = is_away
        self._change()

    def _close(self) -> None:
        self._open_until = None
        self._num_opened_in_row = 0
        self.is_away = False
        self._outcomes.clear()
        self._change()

    def _change(self) -> None:
        self._on_trial = False
        self._num_consecutive = 0
        self._epoch += 1
