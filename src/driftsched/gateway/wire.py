"""What the gateway reads of a client's call: the routing fields, and no more.

The body itself travels on as raw bytes, so unknown fields reach the engine as they came.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from driftsched.core.model import Tier
from driftsched.gateway.errors import HttpError

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"

PROMPT_HEAD_CHARS = 4096
"""How much of the text that tells the kind of request is kept for classification."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Part(msgspec.Struct):
    """One part of a message's content; images and other media have no text."""

    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _Body(msgspec.Struct):
    """The fields of both endpoints that decide where a request goes and what it may cost."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    user: str | None = None
    service_tier: str | None = None


class _ChatBody(_Body, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None


class _CompletionBody(_Body, kw_only=True):
    prompt: str | list[str | int | list[int]]


@dataclass(frozen=True, slots=True)
class Call:
    """A client's call, understood."""

    model: str
    stream: bool
    wants_usage: bool
    prompt: str
    """Head of the last user message, or of the prompt."""
    prompt_bytes: int
    """UTF-8 length of all the text."""
    max_tokens: int | None
    user: str | None
    asked_tier: Tier | None
    """What `service_tier` asks for; None means the tenant's own."""


_ASKED_TIERS: dict[str, Tier | None] = {
    "auto": None,
    "default": None,
    "scale": None,
    "flex": Tier.BATCH,
    "priority": Tier.PREMIUM,
    "fast": Tier.PREMIUM,
    "ultrafast": Tier.PREMIUM,
}

_decode_chat = msgspec.json.Decoder(_ChatBody).decode
_decode_completion = msgspec.json.Decoder(_CompletionBody).decode


def parse_call(endpoint: str, body: bytes) -> Call:
    """Read a call of one of the two endpoints. Raises `HttpError` 400 naming the field that is wrong."""
    fields: Any
    try:
        if endpoint == CHAT:
            fields = _decode_chat(body)
            prompt, prompt_bytes = _chat_text(fields.messages)
            max_tokens = fields.max_completion_tokens or fields.max_tokens
        else:
            fields = _decode_completion(body)
            prompt, prompt_bytes = _prompt_text(fields.prompt)
            max_tokens = fields.max_tokens
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except RecursionError:
        raise HttpError(400, "The body is nested too deeply.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    return Call(
        model=fields.model,
        stream=bool(fields.stream),
        wants_usage=bool(fields.stream_options and fields.stream_options.include_usage),
        prompt=prompt,
        prompt_bytes=prompt_bytes,
        max_tokens=max_tokens
        if max_tokens and max_tokens > 0
        else None,  # engines differ on 0 and -1: theirs to judge
        user=fields.user,
        asked_tier=_asked_tier(fields.service_tier),
    )


def _asked_tier(service_tier: str | None) -> Tier | None:
    if service_tier is None:
        return None
    try:
        return _ASKED_TIERS[service_tier]
    except KeyError:
        raise HttpError(
            400,
            f"service_tier {service_tier!r} is unknown: use one of {', '.join(_ASKED_TIERS)}.",
            param="service_tier",
            code="invalid_value",
        ) from None


def _chat_text(messages: list[_Message]) -> tuple[str, int]:
    """Head of the last user message (of the last message if no user speaks), and the length of all text."""
    if not messages:
        raise HttpError(400, "messages must hold at least one message.", param="messages", code="invalid_value")
    last = next((m for m in reversed(messages) if m.role == "user"), messages[-1])
    size = sum(_utf8_length(text) for message in messages for text in _texts(message))
    return " ".join(_texts(last))[:PROMPT_HEAD_CHARS], size


def _texts(message: _Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content or () if part.text]


def _prompt_text(prompt: str | list[str | int | list[int]]) -> tuple[str, int]:
    """Head of the prompt and its length; a prompt of token ids has no text, and four bytes a token."""
    if isinstance(prompt, str):
        return prompt[:PROMPT_HEAD_CHARS], _utf8_length(prompt)
    texts = [item for item in prompt if isinstance(item, str)]
    num_ids = sum(len(item) if isinstance(item, list) else 1 for item in prompt if not isinstance(item, str))
    return " ".join(texts)[:PROMPT_HEAD_CHARS], sum(map(_utf8_length, texts)) + 4 * num_ids


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _wrong_field(message: str) -> HttpError:
    """msgspec says `Expected int, got str - at $.max_tokens`: name the field as OpenAI does."""
    problem, _, path = message.partition(" - at `$")
    param = path.rstrip("`").lstrip(".") or None
    if param is None and problem.startswith("Object missing required field"):
        param = problem.split("`")[1]
    return HttpError(400, f"{param or 'The body'}: {problem}.", param=param, code="invalid_value")
