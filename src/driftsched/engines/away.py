"""While no engine can be reached: a restart takes seconds, so for a while requests keep their place and wait."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

_logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""Between two looks whether an engine may be tried, of a request that waits for it, at least."""


class Away:
    """Since when no engine can be reached, and whether requests still wait for one to come back."""

    def __init__(self, max_seconds: float, on_change: Callable[[], None], clock: Callable[[], float]) -> None:
        """`max_seconds`, >= 0: how long they wait; 0: not at all. `on_change` is told whenever `holds` changes.

        `clock`: seconds that never run backwards.
        """
        self.max_seconds = max_seconds
        self._on_change = on_change
        self._clock = clock
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    @property
    def holds(self) -> bool:
        """Requests keep their place, and nothing is sent."""
        return self._timer is not None

    @property
    def may_hold(self) -> bool:
        """They would, if no engine could be reached."""
        return self.holds or (self.max_seconds > 0 and self._since is None)

    @property
    def seconds(self) -> float:
        """For which no engine could be reached; 0 while one can."""
        return 0.0 if self._since is None else self._clock() - self._since

    def see(self, *, none_there: bool) -> bool:
        """What is the case now; to be called whenever it may have changed, on the event loop.

        Whether an engine has just come back that requests waited for.
        """
        if none_there == (self._since is not None):
            return False
        if none_there:
            self._begin()
            return False
        was_held = self.holds
        _logger.warning("an engine can be reached again, after %.1f s", self.seconds)
        self._since = None
        self.end()
        return was_held

    async def wait(self, seconds: float) -> None:
        """Returns when an engine is back, when requests no longer wait for one, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(LOOK_SECONDS, seconds)):
                await self._changed.wait()

    def end(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._changed.set()
            self._on_change()

    def _begin(self) -> None:
        self._since = self._clock()
        if self.max_seconds == 0:
            _logger.warning("no engine can be reached: requests are refused")
            return
        _logger.warning("no engine can be reached: requests wait for up to %g s", self.max_seconds)
        self._changed = asyncio.Event()
        self._timer = asyncio.get_running_loop().call_later(self.max_seconds, self._over)
        self._on_change()

    def _over(self) -> None:
        _logger.warning("no engine came back in %g s: requests are refused until one does", self.max_seconds)
        self.end()
