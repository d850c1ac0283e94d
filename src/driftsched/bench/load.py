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
    max_tokens: int | None
    """None: as long as the model likes."""
    seed: int


@dataclass(slots=True)
class Hit:
    """What became of a shot. Instants are seconds after the start of the run; None if it did not come to that."""

    shot: Shot
    sent_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    """The end of the answer, or of the attempt."""
    status: int | None = None
    error: str | None = None
    queue_seconds: float | None = None
    """As the gateway states it; None from a server that is not one."""
    predicted_tokens: int | None = None
    policy: str | None = None
    """As the gateway states it."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """As the server counts them; None if it does not say."""
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
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first one."""
        tokens = self.completion_tokens or 0
        if not self.ok or tokens < 2 or self.first_token_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.first_token_at) / (tokens - 1)

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
    api_key: str | None = None,
    stream: bool = True,
    ignore_eos: bool = False,
    temperature: float | None = None,
    timeout_seconds: float = 600.0,
    on_change: Callable[[Progress], None] = lambda _: None,
) -> list[Hit]:
    """Send every shot at its instant to the OpenAI server at `url`, wait for all answers, and report in that order.

    `shots` must be sorted by instant. `ignore_eos` asks for answers of exactly `max_tokens`, which vLLM, SGLang and
    llama-server grant; `temperature` is the server's own unless given. Without `stream` there is no time of the
    first token. Failures are reported, never raised; `on_change` is called at the start and whenever a request was
    sent or answered, so whoever cancels this has the hits so far.
    """
    progress = Progress(len(shots), hits=[Hit(shot) for shot in shots])
    on_change(progress)
    call = _Call(completions_url(url), model, stream, ignore_eos, temperature)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        headers=bearer(api_key),
    ) as session:
        start = monotonic()
        async with asyncio.TaskGroup() as group:
            for hit in progress.hits:
                await _wait_until(start + hit.shot.at)
                group.create_task(_send(session, hit, call, start, progress, on_change))
    return progress.hits


async def _wait_until(instant: float) -> None:
    """At least one turn of the loop, and never too early, though a loop may round its timers to milliseconds."""
    await asyncio.sleep(instant - monotonic())
    while (seconds := instant - monotonic()) > 0:  # noqa: ASYNC110 - it waits for the clock
        await asyncio.sleep(seconds)


def root_url(url: str) -> str:
    """The root of a server, given with or without `/v1`."""
    return url.rstrip("/").removesuffix("/v1")


def completions_url(url: str) -> str:
    """Where the server at `url` takes chats."""
    return f"{root_url(url)}/v1/chat/completions"


def bearer(api_key: str | None) -> dict[str, str]:
    """The header that carries a key; nothing without one."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


@dataclass(frozen=True, slots=True)
class _Call:
    """What all requests of a run have in common."""

    url: str
    model: str
    stream: bool
    ignore_eos: bool
    temperature: float | None


async def _send(
    session: aiohttp.ClientSession,
    hit: Hit,
    call: _Call,
    start: float,
    progress: Progress,
    on_change: Callable[[Progress], None],
) -> None:
    hit.sent_at = monotonic() - start
    progress.sent += 1
    on_change(progress)
    try:
        async with session.post(call.url, json=_body(hit.shot, call)) as response:
            hit.status = response.status
            _read_headers(hit, response.headers)
            if response.status != 200:
                hit.error = f"http_{response.status}"
            elif call.stream:
                await _read_stream(hit, response.content, start)
            else:
                _read_whole(hit, await response.read())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.DecodeError) as error:
        hit.error = type(error).__name__
    hit.finished_at = monotonic() - start
    if hit.error is not None:
        progress.errors += 1
    progress.done += 1
    on_change(progress)


def _body(shot: Shot, call: _Call) -> dict[str, object]:
    body: dict[str, object] = {
        "model": call.model,
        "messages": shot.messages,
        "user": shot.tenant,
        "seed": shot.seed,
        "stream": call.stream,
    }
    if shot.max_tokens is not None:
        body["max_tokens"] = shot.max_tokens
    if call.stream:
        body["stream_options"] = {"include_usage": True}
    if call.ignore_eos:
        body["ignore_eos"] = True
    if call.temperature is not None:
        body["temperature"] = call.temperature
    return body


def _read_headers(hit: Hit, headers: Mapping[str, str]) -> None:
    hit.policy = headers.get("x-driftsched-policy")
    if "x-driftsched-queue-seconds" in headers:
        hit.queue_seconds = float(headers["x-driftsched-queue-seconds"])
        hit.predicted_tokens = int(headers["x-driftsched-predicted-tokens"])


class _Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """Two names under which servers send what a model thinks before it answers: tokens, too."""

    @property
    def has_text(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning)


class _Choice(msgspec.Struct):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


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
            _read_usage(hit, event.usage)
        for choice in event.choices:
            hit.finish_reason = choice.finish_reason or hit.finish_reason
            if choice.delta.has_text and hit.first_token_at is None:
                hit.first_token_at = monotonic() - start
    if hit.finish_reason is None and hit.error is None:
        hit.error = "broken_stream"


def _read_whole(hit: Hit, body: bytes) -> None:
    answer = _decode_event(body)
    if answer.usage is not None:
        _read_usage(hit, answer.usage)
    for choice in answer.choices:
        hit.finish_reason = choice.finish_reason
    if hit.finish_reason is None:
        hit.error = "broken_answer"


def _read_usage(hit: Hit, usage: _Usage) -> None:
    hit.prompt_tokens = usage.prompt_tokens
    hit.completion_tokens = usage.completion_tokens
