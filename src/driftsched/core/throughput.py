"""How fast the pool works, measured from what it finished."""

from math import exp

MAX_TOKENS = 10_000_000
"""More than any one answer has: engines state their own counts, and a count beyond this is an error."""


class Throughput:
    """Completion tokens per second of busy time, the past forgotten exponentially.

    Idle time is left out: an idle pool is not a slow one, and the rate is wanted for the time it takes to drain a
    backlog, when the pool is busy by definition.
    """

    def __init__(self, memory_seconds: float = 60.0) -> None:
        """`memory_seconds`: time constant of forgetting, > 0, in busy seconds."""
        self._memory_seconds = memory_seconds
        self._tokens = 0.0
        self._seconds = 0.0
        self._seen_at: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """0 until something finished."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def observe(self, now: float, *, busy: bool, tokens: int = 0) -> None:
        """`tokens` finished at `now`; the pool was `busy`, or not, since the last call.

        A count that no answer can have, below 0 or above `MAX_TOKENS`, is left out.
        """
        if busy and self._seen_at is not None:
            elapsed = max(0.0, now - self._seen_at)
            kept = exp(-elapsed / self._memory_seconds)
            self._tokens *= kept
            self._seconds = self._seconds * kept + self._memory_seconds * (1 - kept)
        self._seen_at = now
        if 0 < tokens <= MAX_TOKENS:
            self._tokens += tokens
