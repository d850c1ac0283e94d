"""The access log: one line for each request that ended.

The event loop only notes the figures; a thread makes the lines of them and writes. A log that nobody reads, or a
disk that does not answer, holds up that thread and not the serving.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Event as Signal
from threading import Thread

from driftsched.core.events import Event, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Request, Tier, Usage
from driftsched.telemetry.lines import NO_FIELDS, Fields, Line

NAME = "driftsched.access"
MAX_QUEUED = 10_000
"""Ends that wait to be written, about 10 MB; of what comes beyond, the newest are dropped."""
WRITE_SECONDS = 0.2
CLOSE_SECONDS = 2.0
"""How long closing waits for a reader that does not read."""
MAX_NAME_CHARS = 256
MAX_PROMPT_CHARS = 200

_TIERS = [tier.label for tier in Tier]


class _End(Fields, gc=False):
    """The figures of one request; not the request, whose body may be large."""

    request_id: str
    own_id: str
    tenant: str
    tier: str
    model: str
    outcome: str
    reason: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    category: str | None = None
    predicted_tokens: float | None = None
    queue_seconds: float | None = None
    ttft_seconds: float | None = None
    trace_id: str | None = None
    prompt: str | None = None


class AccessLog:
    """A listener. `start` it before, `close` it in the end."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        line: Line,
        *,
        prompts: bool = False,
        wall_clock: Callable[[], float] = time.time,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        """`write`: may block, and may raise `OSError`. `prompts`: the head of each prompt goes into its line.

        `wall_clock`: seconds since 1970 UTC.
        """
        self.dropped = 0
        self._write = write
        self._line = line
        self._prompts = prompts
        self._wall_clock = wall_clock
        self._max_queued = max_queued
        self._ends: deque[tuple[float, _End]] = deque()
        self._told_dropped = 0
        self._by_type: dict[type[Event], Callable[..., None]] = {
            Finished: self._on_finished,
            Rejected: self._on_rejected,
            Evicted: self._on_evicted,
            Failed: self._on_failed,
        }
        self._closing = Signal()
        self._thread = Thread(target=self._run, name="access-log", daemon=True)

    def __call__(self, event: Event) -> None:
        note = self._by_type.get(type(event))
        if note is not None:
            note(event)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what is left, if that can be done in `CLOSE_SECONDS`."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    def flush(self) -> None:
        """Write what has ended so far. Raises `OSError`."""
        lines = []
        while self._ends:
            at, end = self._ends.popleft()
            lines.append(self._line(at, "info", NAME, "request", end))
        if self.dropped > self._told_dropped:
            lost, self._told_dropped = self.dropped - self._told_dropped, self.dropped
            lines.append(
                self._line(self._wall_clock(), "warning", NAME, f"{lost} lines lost: nobody read", NO_FIELDS)
            )
        if lines:
            self._write("".join(lines).encode())

    def _run(self) -> None:
        while not self._closing.wait(WRITE_SECONDS):
            self._try_to_flush()
        self._try_to_flush()

    def _try_to_flush(self) -> None:
        with suppress(OSError):  # there is nowhere left to say that the log cannot be written
            self.flush()

    def _on_finished(self, event: Finished) -> None:
        self._note(event, "finished", event.finish_reason, event.first_token_at)

    def _on_evicted(self, event: Evicted) -> None:
        self._note(event, "evicted", event.reason)

    def _on_failed(self, event: Failed) -> None:
        self._note(event, "failed", event.error)

    def _on_rejected(self, event: Rejected) -> None:
        self._end(event.request, event.at, "rejected", event.reason, Usage())

    def _note(
        self,
        event: Finished | Evicted | Failed,
        outcome: str,
        reason: str,
        first_token_at: float | None = None,
    ) -> None:
        request = event.ticket.request
        self._end(
            request,
            event.at,
            outcome,
            reason,
            event.usage,
            round(event.ticket.estimate.completion_tokens, 1),
            _since(request, event.dispatched_at),
            _since(request, first_token_at),
        )

    def _end(
        self,
        request: Request,
        at: float,
        outcome: str,
        reason: str,
        usage: Usage,
        predicted_tokens: float | None = None,
        queue_seconds: float | None = None,
        ttft_seconds: float | None = None,
    ) -> None:
        if len(self._ends) >= self._max_queued:
            self.dropped += 1
            return
        end = _End(
            request.public_id or request.id,
            request.id,
            request.tenant.id[:MAX_NAME_CHARS],
            _TIERS[request.tier],
            request.model[:MAX_NAME_CHARS],
            outcome,
            reason,
            round(at - request.arrived_at, 4),
            usage.prompt_tokens,
            usage.completion_tokens,
            request.category or None,
            predicted_tokens,
            queue_seconds,
            ttft_seconds,
            request.span.trace_id if request.span else None,
            request.prompt[:MAX_PROMPT_CHARS] if self._prompts else None,
        )
        self._ends.append((self._wall_clock(), end))


def _since(request: Request, at: float | None) -> float | None:
    return None if at is None else round(at - request.arrived_at, 4)
