"""The engine model on the wall clock: answers like an OpenAI-compatible server, at the pace of a chosen GPU.

It is the simulator's own model, stepped in real time, and generates placeholder words; the timing is the content. A
gateway can so be tried, tested and shown end to end without a GPU.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Any, Literal, NamedTuple

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Request, Usage
from driftsched.core.protocols import Chunk, Clock, Saturation
from driftsched.engines.lengths import LengthLaw
from driftsched.engines.model import BatchModel, Step
from driftsched.engines.payload import Payload

MAX_BURST_SECONDS = 0.01
"""Wall time for which an engine that is late steps its model before it lets other tasks run."""

_BYTES_PER_TOKEN = 4
_TEMPLATE_TOKENS = 8
_WORDS = ("the", "queue", "moves", "on", "and", "short", "answers", "leave", "while", "long", "ones", "go", "on")


class SimulatedDiscovery(NamedTuple):
    """What the engine tells about itself."""

    models: tuple[str, ...]
    slots: int
    """Requests it serves at the same time."""
    kind: str = "simulated"


class SimulatedEngine:
    """A `BatchModel` that runs in real time and streams what it generates.

    Iterations follow an absolute schedule: an engine that woke up late catches up, so that its throughput is the
    model's. Tokens that became due meanwhile leave in one chunk, one server-sent event each. While it has nothing
    to do it does nothing: no timer runs.

    How long an answer is depends on the category that `classify` gives the text of its last user message, and on
    the time since the engine's first request, which is the clock of the drifts (in model seconds: see `speed`). The
    draw is keyed by the SHA-256 of the whole prompt and the call's `seed` field, so the same call gets the same
    length whenever it is served. `max_tokens`, `max_completion_tokens` and `ignore_eos` are honoured; without a
    limit an answer may fill the model's context memory. A prompt has a token for every 4 bytes, and 8 for its
    template.
    """

    def __init__(
        self,
        model: BatchModel,
        lengths: LengthLaw,
        classify: Callable[[str], str],
        *,
        name: str = "simulated",
        model_name: str = "simulated",
        speed: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        """`speed` is model seconds per wall second, > 0. `clock` tells wall seconds; None: the monotonic clock.

        The engine owns `model` from here on; it must not have been used. Raises `ValueError` if `speed` is not
        positive.
        """
        if not 0 < speed < inf:
            raise ValueError(f"speed must be positive and finite, not {speed}")
        self.name = name
        self.model_name = model_name
        self.model = model
        self._lengths = lengths
        self._classify = classify
        self._speed = speed
        self._clock: Clock = clock or _MonotonicClock()
        self._origin = self._clock.now()  # wall instant at which the model's time was 0
        self._held_at: float | None = None  # model time at which it was stopped
        self._first_request_at: float | None = None
        self._rested_at = self._origin  # wall instant at which other tasks could last run
        self._ids = count(1)
        self._streams: dict[str, _Stream] = {}
        self._flowing: dict[str, _Stream] = {}  # those whose first token is there
        self._wake = asyncio.Event()
        self._stepping: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer as server-sent events, also for a call that did not ask for a stream.

        Content, the event with the finish reason, a usage chunk in any case, `[DONE]`. Raises `EngineError` (400)
        before the first chunk for a call that makes no sense, and 503 when the engine is closed meanwhile.
        """
        call = read_call(request.payload, self.model.kv_tokens)
        stream = self._submit(call)
        events = _Events(call.chat, stream.id, self.model_name)
        sent = 0
        try:
            while sent < stream.completion_tokens:
                generated = await stream.more_than(sent)
                data = events.content(sent, generated)
                sent = generated
                if sent < stream.completion_tokens:
                    yield Chunk(data, sent)
                else:
                    data += events.finish(stream.finish_reason)
                    yield Chunk(data, sent, finish_reason=stream.finish_reason)
            usage = Usage(call.prompt_tokens, sent)
            yield Chunk(events.usage(usage), sent, usage, usage_only=True)
            yield Chunk(b"data: [DONE]\n\n", sent)
        finally:
            self._withdraw(stream)

    async def saturation(self) -> Saturation:
        """The fuller of seats, those who wait for one included, and context memory."""
        model = self.model
        seats = (model.num_running + model.num_waiting) / model.max_num_seqs
        return Saturation(min(1.0, max(seats, model.kv_used / model.kv_tokens)))

    async def discover(self) -> SimulatedDiscovery:
        """Its one model, and its seats."""
        return SimulatedDiscovery((self.model_name,), self.model.max_num_seqs)

    async def close(self) -> None:
        """Stop stepping. Answers under way break off with `EngineError` (503)."""
        if self._stepping:
            self._stepping.cancel()
            await asyncio.gather(self._stepping, return_exceptions=True)
            self._stepping = None
        for stream in self._streams.values():
            stream.break_off()

    def hold(self) -> None:
        """Stop the model's time. What arrives now waits, and all of it arrives at one instant; an iteration under
        way still delivers its tokens.
        """
        if self._held_at is None:
            self._held_at = self._now()

    def resume(self) -> None:
        """Let the model's time go on from where it was held."""
        if self._held_at is not None:
            self._origin = self._clock.now() - self._held_at / self._speed
            self._held_at = None
            self._wake.set()

    def _now(self) -> float:
        """The model time that it should be."""
        return self._held_at if self._held_at is not None else (self._clock.now() - self._origin) * self._speed

    def _submit(self, call: "Call") -> "_Stream":
        now = self._now()
        if self._first_request_at is None:
            self._first_request_at = now
        completion_tokens, finish_reason = self._lengths.draw(
            self._classify(call.text),
            now - self._first_request_at,
            call.max_tokens,
            ignore_eos=call.ignore_eos,
            key=call.key,
        )
        stream = _Stream(f"{self.name}-{next(self._ids)}", completion_tokens, finish_reason)
        self.model.add(stream.id, call.prompt_tokens, completion_tokens, now)
        self._streams[stream.id] = stream
        self._wake.set()
        if self._stepping is None:
            self._stepping = asyncio.get_running_loop().create_task(self._step_forever())
        return stream

    def _withdraw(self, stream: "_Stream") -> None:
        """Free whatever the answer still holds; nothing, if it is complete."""
        self.model.cancel(stream.id)
        self._streams.pop(stream.id, None)
        self._flowing.pop(stream.id, None)

    async def _step_forever(self) -> None:
        while True:
            step = await self._next_step()
            await self._sleep_until(step.ended_at)
            self._deliver(step)

    async def _next_step(self) -> Step:
        """Wait for an iteration to begin, and compute it."""
        while True:
            self._wake.clear()
            begins_at = inf if self._held_at is not None else self.model.next_step_at
            delay = (begins_at - self._now()) / self._speed
            if delay <= 0 and (step := self.model.advance(max_steps=1)):
                return step
            with suppress(TimeoutError):
                async with asyncio.timeout(None if delay == inf else delay):
                    await self._wake.wait()
            self._rested_at = self._clock.now()

    async def _sleep_until(self, model_time: float) -> None:
        delay = (model_time - self._now()) / self._speed
        if delay <= 0 and self._clock.now() - self._rested_at < MAX_BURST_SECONDS:
            return
        await asyncio.sleep(max(0.0, delay))
        self._rested_at = self._clock.now()

    def _deliver(self, step: Step) -> None:
        """Show every stream the tokens it has at the end of `step`. One that was withdrawn meanwhile is gone."""
        for job_id in step.first_tokens:
            if job_id in self._streams:
                self._flowing[job_id] = self._streams[job_id]
        for job_id in step.finished:
            stream = self._flowing.pop(job_id, None)
            if stream:
                stream.show(stream.completion_tokens)
        for job_id, stream in self._flowing.items():
            stream.show(self.model.generated(job_id))


@dataclass(frozen=True, slots=True)
class Call:
    """What the engine reads of a client's call."""

    chat: bool
    """A chat completion; else a text completion."""
    text: str
    """The last user message, or the prompt."""
    prompt_tokens: int
    max_tokens: int
    """The client's limit, or what fits beside the prompt if that is less."""
    ignore_eos: bool
    key: str
    """The same for two calls with the same prompt and `seed`."""


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class _Fields(msgspec.Struct):
    messages: list[_Message] | None = None
    prompt: str | list[Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    seed: int | None = None


_decode_fields = msgspec.json.Decoder(_Fields).decode


def read_call(payload: object, context_tokens: int) -> Call:
    """Read a `Payload` for an engine that holds `context_tokens`. Raises `EngineError` (400) naming the field."""
    if not isinstance(payload, Payload):
        raise TypeError(f"a simulated engine serves requests with a Payload, not {type(payload).__name__}")
    try:
        fields = _decode_fields(payload.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(f"The body is not a valid call: {error}") from error
    if fields.n not in (None, 1):
        raise _refused("This engine gives one answer to a call: leave out n.", "n")
    chat = payload.endpoint == "/v1/chat/completions"
    texts, last, prompt_tokens = _chat_prompt(fields.messages) if chat else _text_prompt(fields.prompt)
    room = context_tokens - prompt_tokens
    if room < 1:
        raise _refused(
            f"The prompt has {prompt_tokens} tokens, but the context has room for {context_tokens}: shorten it.",
            "messages" if chat else "prompt",
        )
    return Call(
        chat=chat,
        text=last,
        prompt_tokens=prompt_tokens,
        max_tokens=min(_limit(fields, room), room),
        ignore_eos=bool(fields.ignore_eos),
        key=hashlib.sha256("\0".join([*texts, str(fields.seed)]).encode("utf-8", "surrogatepass")).hexdigest(),
    )


def answer_text(start: int, end: int) -> str:
    """The tokens from `start` to `end` of any answer: words, each with the space before it."""
    text = "".join(f" {_WORDS[index % len(_WORDS)]}" for index in range(start, end))
    return text if start else text[1:]


def error_document(message: str, param: str | None = None, code: str | None = None) -> bytes:
    """A refusal in OpenAI's form."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def _limit(fields: _Fields, default: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        limit: int | None = getattr(fields, name)
        if limit is not None:
            if limit < 1:
                raise _refused(f"{name} must be at least 1, not {limit}.", name)
            return limit
    return default


def _chat_prompt(messages: list[_Message] | None) -> tuple[list[str], str, int]:
    """All texts, the last user's, and the tokens of all."""
    if not messages:
        raise _refused("messages must be a list with at least one message.", "messages")
    texts = [message.text for message in messages]
    last = next((m.text for m in reversed(messages) if m.role == "user"), texts[-1])
    return texts, last, _count_tokens(texts)


def _text_prompt(prompt: str | list[Any] | None) -> tuple[list[str], str, int]:
    """The same for a text completion, whose prompt may be a list of one text, or of token numbers."""
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return [str(prompt)], "", len(prompt)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _refused("prompt must be a text, a list of one text or a list of token numbers.", "prompt")
    return [prompt], prompt, _count_tokens([prompt])


def _count_tokens(texts: list[str]) -> int:
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return num_bytes // _BYTES_PER_TOKEN + _TEMPLATE_TOKENS


def _refused(message: str, param: str | None = None) -> EngineError:
    return EngineError(400, "engine_rejected", message, body=error_document(message, param))


class _Stream:
    """One answer on its way from the stepping task to the client's."""

    __slots__ = ("_broken", "_changed", "_generated", "completion_tokens", "finish_reason", "id")

    def __init__(self, stream_id: str, completion_tokens: int, finish_reason: str) -> None:
        self.id = stream_id
        self.completion_tokens = completion_tokens
        self.finish_reason = finish_reason
        self._generated = 0
        self._broken = False
        self._changed = asyncio.Event()

    async def more_than(self, sent: int) -> int:
        """Wait until more than `sent` tokens are there; how many there are."""
        while self._generated <= sent:
            if self._broken:
                raise EngineError(503, "engine_closed", "the engine was closed before the answer was complete")
            self._changed.clear()
            await self._changed.wait()
        return self._generated

    def show(self, generated: int) -> None:
        self._generated = generated
        self._changed.set()

    def break_off(self) -> None:
        self._broken = True
        self._changed.set()


class _Events:
    """The server-sent events of one answer, in OpenAI's form."""

    def __init__(self, chat: bool, stream_id: str, model_name: str) -> None:
        kind: Literal["chatcmpl", "cmpl"] = "chatcmpl" if chat else "cmpl"
        self._head = {
            "id": f"{kind}-{stream_id}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }
        self._chat = chat
        self._before, self._after = self._choice("\0", None).split(b"\\u0000")

    def content(self, start: int, end: int) -> bytes:
        """The tokens from `start` to `end`, an event each; the first tells who speaks."""
        events = [self._choice("", None, role="assistant")] if self._chat and start == 0 else []
        for index in range(start, end):
            events += (self._before, answer_text(index, index + 1).encode(), self._after)
        return b"".join(events)

    def finish(self, reason: str) -> bytes:
        return self._choice("", reason)

    def usage(self, usage: Usage) -> bytes:
        tokens = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }
        return _event({**self._head, "choices": [], "usage": tokens})

    def _choice(self, text: str, finish_reason: str | None, role: str | None = None) -> bytes:
        said: dict[str, object] = {"text": text}
        if self._chat:
            said = {"delta": {"role": role, "content": text} if role else {"content": text} if text else {}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return _event({**self._head, "choices": [choice]})


def _event(fields: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


class _MonotonicClock:
    def now(self) -> float:
        return time.monotonic()
