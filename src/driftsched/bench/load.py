"""Open-loop load: every request is sent at the instant fixed before the run, however slow the answers are.

Times are measured from the intended instant, so that a client that falls behind cannot hide the waiting it causes.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

import aiohttp
import msgspec


@dataclass(frozen=True, slots=True)
class Shot:
    """One request of a workload."""

    at: float
    """Intended instant, seconds after the start of the run."""
    tenant: str
    tier: str
    kind: str
    """Kind of request, for reporting; it is not sent."""
    messages: tuple[Mapping[str, str], ...]
    max_tokens: int
    seed: int


@dataclass(slots=True)
class Hit:
    """What became of a shot. Instants are seconds after the start of the run; None if it did not come to that."""

    shot: Shot
    sent_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    status: int | None = None
    error: str | None = None
    queue_seconds: float | None = None
    """As the gateway states it; None from a server that is not one."""
    predicted_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None

    @property
    def ok(self) -> bool:
        """Answered in full."""
        return self.finished_at is not None and self.error is None

    @property
    def e2e_seconds(self) -> float | None:
        return self.finished_at - self.shot.at if self.finished_at is not None and self.error is None else None

    @property
    def ttft_seconds(self) -> float | None:
        return self.first_token_at - self.shot.at if self.first_token_at is not None else None

    @property
    def send_lag_seconds(self) -> float | None:
        """How late the client itself was."""
        return self.sent_at - self.shot.at if self.sent_at is not None else None


@dataclass(slots=True)
class Progress:
    """How far a run is. Owned by `fire`, read by whoever shows it."""

    total: int
    sent: int = 0
    done: int = 0
    errors: int = 0
    hits: list[Hit] = field(default_factory=list)


async def fire(
    url: str,
    shots: Sequence[Shot],
    *,
    model: str,
    timeout_seconds: float = 600.0,
    on_change: Callable[[Progress], None] = lambda _: None,
) -> list[Hit]:
    """Send every shot at its instant to the OpenAI server at `url`, wait for all answers, and report in that order.

    `shots` must be sorted by instant. Failures are reported, never raised; `on_change` is called whenever a request
    was sent or answered.
    """
    progress = Progress(len(shots), hits=[Hit(shot) for shot in shots])
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        start = monotonic()
        async with asyncio.TaskGroup() as group:
            for hit in progress.hits:
                await asyncio.sleep(max(0.0, start + hit.shot.at - monotonic()))
                group.create_task(_send(session, hit, model, start, progress, on_change))
    return progress.hits


async def _send(
    session: aiohttp.ClientSession,
    hit: Hit,
    model: str,
    start: float,
    progress: Progress,
    on_change: Callable[[Progress], None],
) -> None:
    hit.sent_at = monotonic() - start
    progress.sent += 1
    on_change(progress)
    try:
        async with session.post("/v1/chat/completions", json=_body(hit.shot, model)) as response:
            hit.status = response.status
            _read_headers(hit, response.headers)
            if response.status == 200:
                await _read_stream(hit, response.content, start)
            else:
                hit.error = f"http_{response.status}"
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        hit.error = type(error).__name__
    if hit.error is None:
        hit.finished_at = monotonic() - start
    else:
        progress.errors += 1
    progress.done += 1
    on_change(progress)


def _body(shot: Shot, model: str) -> dict[str, object]:
    return {
        "model": model,
        "messages": shot.messages,
        "max_tokens": shot.max_tokens,
        "user": shot.tenant,
        "seed": shot.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _read_headers(hit: Hit, headers: Mapping[str, str]) -> None:
    if "x-driftsched-queue-seconds" in headers:
        hit.queue_seconds = float(headers["x-driftsched-queue-seconds"])
        hit.predicted_tokens = int(headers["x-driftsched-predicted-tokens"])


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


async def _read_stream(hit: Hit, content: aiohttp.StreamReader, start: float) -> None:
    """Read to the end; content between the first token and the finish is of no interest and is not decoded."""
    async for line in content:
        is_plain = hit.first_token_at is not None and b'"finish_reason":null' in line
        if is_plain or not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
            continue
        event = _decode_event(line[5:])
        if event.error is not None:
            hit.error = "stream_error"
        if event.usage is not None:
            hit.completion_tokens = event.usage.completion_tokens
        for choice in event.choices:
            hit.finish_reason = choice.finish_reason or hit.finish_reason
            if choice.delta.content and hit.first_token_at is None:
                hit.first_token_at = monotonic() - start
    if hit.finish_reason is None and hit.error is None:
        hit.error = "broken_stream"
