"""JSON to and from an OpenAI-compatible engine: the few fields that matter, all others untouched."""

from typing import Any, Final

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Usage
from driftsched.core.protocols import Chunk
from driftsched.core.throughput import MAX_TOKENS
from driftsched.engines.dialects import PLAIN, Dialect
from driftsched.engines.failures import streamed_refusal
from driftsched.engines.payload import Payload

CHAT: Final = "/v1/chat/completions"
RESPONSES: Final = "/v1/responses"

_TRUE = msgspec.Raw(b"true")
_FALSE = msgspec.Raw(b"false")
_USAGE_WANTED = msgspec.Raw(b'{"include_usage":true}')


def upstream_body(
    payload: Payload,
    priority: int | None = None,
    *,
    keeps_priority: bool = False,
    dialect: Dialect | None = None,
    streams_whole: bool = True,
) -> bytes:
    """The client's JSON object as the engine gets it: asked to stream and to account, all else verbatim.

    `priority` is put in, in the engine's own polarity; None: none is. A client's own goes no further, unless
    `keeps_priority`: whoever may write it would choose its place in the engine. `dialect`: what else is put
    differently to this engine; None: nothing.

    `streams_whole`: stream also what the client wants whole, except where engines refuse or lose something when
    they stream: `best_of` above 1, beam search, prompt log-probabilities, the echo of a text completion.
    `service_tier` is left out: it is the gateway's business, and older engines refuse it. Raises `EngineError`
    (400) if the body is not a JSON object.

    Engines store no response, whatever the client asked for: nobody could ask for it here.
    """
    fields = object_fields(payload.body)
    fields.pop("service_tier", None)
    if not keeps_priority:
        fields.pop("priority", None)
    if priority is not None:
        fields["priority"] = msgspec.Raw(b"%d" % priority)
    if payload.endpoint == RESPONSES:
        fields["store"] = _FALSE
        fields["stream"] = _TRUE
    elif payload.stream or (streams_whole and _can_stream(fields, dialect or PLAIN)):
        fields["stream"] = _TRUE
        fields["stream_options"] = _with_usage(fields.get("stream_options"))
    else:
        fields.pop("stream", None)
        fields.pop("stream_options", None)
    if dialect is not None:
        dialect.translate(fields)
    return msgspec.json.encode(fields)


def object_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object, undecoded. Raises `EngineError` (400) if it is none."""
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(400, "engine_rejected", f"the request body is not a JSON object: {error}") from error


_UNSTREAMABLE = ("best_of", "use_beam_search", "prompt_logprobs", "echo")


def _can_stream(fields: dict[str, msgspec.Raw], dialect: Dialect) -> bool:
    best_of, beam_search, prompt_logprobs, echo = (
        msgspec.json.decode(fields[name]) if name in fields else None for name in _UNSTREAMABLE
    )
    several = isinstance(best_of, int) and best_of > 1
    if not dialect.streams_logprobs_of_tools and "tools" in fields and fields.get("logprobs") == _TRUE:
        return False
    return not (several or beam_search is True or prompt_logprobs is not None or echo is True)


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    """The client's stream options with usage asked for; options that are no object are the engine's to refuse."""
    if options is None:
        return _USAGE_WANTED
    try:
        fields = msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None)
    except msgspec.ValidationError:
        return options
    return msgspec.Raw(msgspec.json.encode({**(fields or {}), "include_usage": True}))


class Delta(msgspec.Struct, gc=False):
    """What one event adds to a choice of a chat completion."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None

    def has_content(self) -> bool:
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.function_call
            or self.refusal
        )


class Choice(msgspec.Struct, gc=False):
    """One of the answers to a request, or what an event adds to it."""

    index: int = 0
    delta: Delta | None = None
    text: Any = None
    finish_reason: str | None = None

    def has_content(self) -> bool:
        return bool(self.text) or (self.delta is not None and self.delta.has_content())


class Account(msgspec.Struct, gc=False):
    """The engine's own token counts, where it states them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Answer(msgspec.Struct, gc=False):
    """The fields that anybody here reads of a JSON answer or of a streamed event; decoding skips all others."""

    choices: list[Choice] | None = None
    usage: Account | None = None
    error: Any = None
    object: Any = None

    def is_error(self) -> bool:
        return bool(self.error) or self.object == "error"

    def is_usage_only(self) -> bool:
        return self.usage is not None and self.choices == []

    def stated_usage(self) -> Usage | None:
        """None unless the engine states how many tokens it generated."""
        return None if self.usage is None else usage_of(self.usage.prompt_tokens, self.usage.completion_tokens)


def usage_of(prompt_tokens: int | None, completion_tokens: int | None) -> Usage | None:
    """What an engine states; None unless it says how many tokens it generated. No count is one that cannot be."""
    if completion_tokens is None or not 0 <= completion_tokens <= MAX_TOKENS:
        return None
    return Usage(prompt_tokens if prompt_tokens and 0 < prompt_tokens <= MAX_TOKENS else 0, completion_tokens)


decode_answer = msgspec.json.Decoder(Answer).decode


def document_chunk(document: bytes) -> Chunk:
    """A whole JSON answer as one chunk. Raises `EngineError` if it is an error document or no completion at all."""
    try:
        answer = decode_answer(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(502, "garbage", f"the engine's answer is not a completion: {error}") from error
    if answer.is_error():
        raise streamed_refusal(document)
    if answer.choices is None:
        raise EngineError(502, "garbage", "the engine's answer is not a completion: it has no choices")
    usage = answer.stated_usage()
    reasons = [choice.finish_reason for choice in answer.choices if choice.finish_reason is not None]
    return Chunk(
        document,
        completion_tokens=usage.completion_tokens if usage else 0,
        usage=usage,
        finish_reason=reasons[-1] if reasons else None,
    )
