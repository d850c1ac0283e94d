"""Log lines written by a thread: who logs never waits for who reads the log."""

import logging
from collections import deque
from collections.abc import Callable
from threading import Event as Signal
from threading import Thread

MAX_QUEUED = 10_000
"""Lines that wait to be written; of what comes beyond, the newest are dropped, and counted in the log."""
CLOSE_SECONDS = 2.0
"""How long closing waits for a reader that does not read."""


class BackgroundHandler(logging.Handler):
    """A pipe that nobody empties, or a disk that does not answer, holds up its thread and not the serving."""

    def __init__(self, write: Callable[[bytes], None], *, max_queued: int = MAX_QUEUED) -> None:
        """`write`: may block, and may raise `OSError`."""
        super().__init__()
        self.dropped = 0
        self._write = write
        self._max_queued = max_queued
        self._queue: deque[str] = deque()
        self._told_dropped = 0
        self._woken = Signal()
        self._closing = False
        self._thread = Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._queue) >= self._max_queued:
            self.dropped += 1
            return
        try:
            self._queue.append(self.format(record))
        except Exception:
            self.handleError(record)
        self._woken.set()

    def close(self) -> None:
        """Write what is left, if that can be done in `CLOSE_SECONDS`."""
        self._closing = True
        self._woken.set()
        self._thread.join(CLOSE_SECONDS)
        super().close()

    def _run(self) -> None:
        while not self._closing:
            self._woken.wait()
            self._woken.clear()
            try:
                self._write_all()
            except OSError:  # nobody is left to be told
                self._queue.clear()

    def _write_all(self) -> None:
        while self._queue:
            lines = [self._queue.popleft() for _ in range(len(self._queue))]
            if self.dropped > self._told_dropped:
                lost, self._told_dropped = self.dropped - self._told_dropped, self.dropped
                told = logging.LogRecord(__name__, logging.WARNING, __file__, 0, "%d lines dropped", (lost,), None)
                lines.append(self.format(told))
            self._write(("\n".join(lines) + "\n").encode(errors="backslashreplace"))
