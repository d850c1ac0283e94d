"""What the gateway reads of a client's call: the routing fields, and no more.

The body itself travels on as raw bytes, so unknown fields reach the engine as they came.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from driftsched.core.messages import PROMPT_HEAD_CHARS, head_and_size, texts_of, utf8_length
from driftsched.core.model import Tier, Traits
from driftsched.core.traits import read_traits, relevant
from driftsched.gateway.errors import HttpError

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"

MAX_PEEKED_BYTES = 1 << 18
"""A field that only hints at the answer's length is looked into up to this size."""

MAX_TOKENS = 1 << 31
"""No answer is longer: a limit above it means none, and nobody has to reckon with numbers of any size."""

_T = TypeVar("_T")
_O = TypeVar("_O")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Part(msgspec.Struct):
    """One part of a message's content; images and other media have no text."""

    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


_ABSENT: Final = msgspec.Raw()


class _Body(msgspec.Struct):
    """The fields of both endpoints that decide where a request goes and what it may cost.

    Fields left raw only hint at the answer's length: whatever they hold, it is for the engine to judge.
    """

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | float | None = None
    user: str | None = None
    service_tier: str | None = None
    prompt_cache_key: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT
    n: msgspec.Raw = _ABSENT
    stop: msgspec.Raw = _ABSENT
    response_format: msgspec.Raw = _ABSENT
    # What vLLM, SGLang and llama.cpp call guided decoding
    structured_outputs: msgspec.Raw = _ABSENT
    guided_json: msgspec.Raw = _ABSENT
    guided_regex: msgspec.Raw = _ABSENT
    guided_choice: msgspec.Raw = _ABSENT
    guided_grammar: msgspec.Raw = _ABSENT
    json_schema: msgspec.Raw = _ABSENT
    regex: msgspec.Raw = _ABSENT
    ebnf: msgspec.Raw = _ABSENT
    grammar: msgspec.Raw = _ABSENT


class ChatBody(_Body, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | float | None = None
    tools: msgspec.Raw = _ABSENT


class CompletionBody(_Body, kw_only=True):
    prompt: str | list[str | int | list[int]]


class _Item(msgspec.Struct):
    """One item of the input of a response: a message, or what came of a tool."""

    role: str = ""
    content: str | list[_Part] | None = None
    arguments: str | None = None
    output: msgspec.Raw = _ABSENT


class ResponsesBody(_Body, kw_only=True):
    input: str | list[_Item]
    instructions: str | None = None
    max_output_tokens: int | float | None = None
    tools: msgspec.Raw = _ABSENT
    text: msgspec.Raw = _ABSENT
    background: bool | None = None
    previous_response_id: msgspec.Raw = _ABSENT
    conversation: msgspec.Raw = _ABSENT


class _Format(msgspec.Struct):
    type: str = "text"


class _Text(msgspec.Struct):
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    session_id: str = ""


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
    asked_tier: Tier | None
    """What `service_tier` asks for; None means the tenant's own."""
    says_tier: bool
    """The client set `service_tier`, and wants to know what came of it."""
    traits: Traits


ASKED_TIERS: dict[str, Tier | None] = {
    "auto": None,
    "default": None,
    "scale": None,
    "flex": Tier.BATCH,
    "priority": Tier.PREMIUM,
    "fast": Tier.PREMIUM,
    "ultrafast": Tier.PREMIUM,
}

_decode_chat = msgspec.json.Decoder(ChatBody).decode
_decode_completion = msgspec.json.Decoder(CompletionBody).decode
_decode_responses = msgspec.json.Decoder(ResponsesBody).decode
_decode_count = msgspec.json.Decoder(int).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_format = msgspec.json.Decoder(_Format).decode
_decode_shape = msgspec.json.Decoder(_Text).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode


Body = ChatBody | CompletionBody | ResponsesBody


def decode_body(endpoint: str, body: bytes) -> Body:
    """Decode a call of one of the three endpoints. Raises `HttpError` 400 naming the field that is wrong."""
    try:
        if endpoint == CHAT:
            return _decode_chat(body)
        return _decode_completion(body) if endpoint == COMPLETIONS else _decode_responses(body)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except RecursionError:
        raise HttpError(400, "The body is nested too deeply.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None


def read_call(body: Body, *, tenant: str = "", session: str = "") -> Call:
    """Understand a call of the tenant with this id. `session` is what its headers call the conversation.

    Raises `HttpError` 400 naming the field that is wrong.
    """
    if isinstance(body, ChatBody):
        prompt, prompt_bytes = _chat_text(body.messages)
        max_tokens = body.max_completion_tokens or body.max_tokens
        said = [(message.role, _whole_text(message)) for message in relevant(body.messages)]
        tools = [bytes(tool) for tool in _peek(_decode_list, body.tools, ())]
    elif isinstance(body, ResponsesBody):
        _refuse_memory(body)
        prompt, prompt_bytes, said = _input_text(body)
        max_tokens = body.max_output_tokens
        tools = [bytes(tool) for tool in _peek(_decode_list, body.tools, ())]
    else:
        prompt, prompt_bytes = _prompt_text(body.prompt)
        max_tokens = body.max_tokens
        said = [("user", prompt)]
        tools = []
    return Call(
        model=body.model,
        stream=bool(body.stream),
        wants_usage=bool(body.stream_options and body.stream_options.include_usage),
        prompt=prompt,
        prompt_bytes=prompt_bytes,
        max_tokens=_limit(max_tokens),
        asked_tier=asked_tier(body.service_tier),
        says_tier=body.service_tier is not None,
        traits=read_traits(
            said,
            tenant=tenant,
            session=session or _session(body),
            tools=tools,
            choices=max(1, _peek(_decode_count, body.n, 1)),
            structured=_is_structured(body),
            stops=_says_something(body.stop),
        ),
    )


def _limit(max_tokens: float | None) -> int | None:
    """The limit that a client set; engines differ on 0, -1 and fractions of tokens: theirs to judge."""
    return int(min(max_tokens, MAX_TOKENS)) if max_tokens and max_tokens >= 1 else None


def _session(body: _Body) -> str:
    """What the body calls the conversation; empty if it does not."""
    metadata = _peek(_decode_metadata, body.metadata, None)
    return (metadata.session_id if metadata else "") or _peek(_decode_text, body.prompt_cache_key, "")


def _is_structured(body: _Body) -> bool:
    """Whether the answer must follow a schema or a grammar, JSON's or another."""
    if isinstance(body, ResponsesBody):
        text = _peek(_decode_shape, body.text, None)
        format = text.format if text else None
    else:
        format = _peek(_decode_format, body.response_format, None)
    if format and format.type != "text":
        return True
    guides = (
        body.structured_outputs,
        body.guided_json,
        body.guided_regex,
        body.guided_choice,
        body.guided_grammar,
        body.json_schema,
        body.regex,
        body.ebnf,
        body.grammar,
    )
    return any(map(_says_something, guides))


def _says_something(field: msgspec.Raw) -> bool:
    """Whether a field is there, and neither null nor empty."""
    return bool(field) and (len(field) > len("null") or bytes(field) not in (b"null", b"[]", b"{}", b'""'))


def _peek(decode: Callable[[msgspec.Raw], _T], field: msgspec.Raw, otherwise: _O) -> _T | _O:
    """What a field holds; `otherwise` if it is not there, too long to be worth the time, or of a wrong type."""
    if not 0 < len(field) <= MAX_PEEKED_BYTES:
        return otherwise
    try:
        return decode(field)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return otherwise


def asked_tier(service_tier: str | None) -> Tier | None:
    if service_tier is None:
        return None
    try:
        return ASKED_TIERS[service_tier]
    except KeyError:
        raise HttpError(
            400,
            f"service_tier {service_tier!r} is unknown: use one of {', '.join(ASKED_TIERS)}.",
            param="service_tier",
            code="invalid_value",
        ) from None


def _chat_text(messages: list[_Message]) -> tuple[str, int]:
    if not messages:
        raise HttpError(400, "messages must hold at least one message.", param="messages", code="invalid_value")
    return head_and_size(messages)


def _refuse_memory(body: ResponsesBody) -> None:
    """Raises `HttpError` 400 for a call that builds on an earlier one, or is to be kept: none is."""
    for param, is_asked in (
        ("previous_response_id", bytes(body.previous_response_id) not in (b"", b"null")),
        ("conversation", bytes(body.conversation) not in (b"", b"null")),
        ("background", body.background),
    ):
        if is_asked:
            raise HttpError(
                400,
                f"{param}: no response is kept here. Send the whole conversation as input, and wait for it.",
                param=param,
                code="unsupported_value",
            )


def _input_text(body: ResponsesBody) -> tuple[str, int, list[tuple[str, str]]]:
    """Head of the prompt, its length, and who said what."""
    instructions = body.instructions or ""
    opening = [("system", instructions)] if instructions else []
    if isinstance(body.input, str):
        size = utf8_length(instructions) + utf8_length(body.input)
        return body.input[:PROMPT_HEAD_CHARS], size, [*opening, ("user", body.input)]
    if not body.input:
        raise HttpError(400, "input must hold at least one item.", param="input", code="invalid_value")
    prompt, size = head_and_size(body.input)
    size += utf8_length(instructions)
    size += sum(len(item.output) + utf8_length(item.arguments or "") for item in body.input)
    return prompt, size, [*opening, *((item.role, _whole_text(item)) for item in relevant(body.input))]


def _whole_text(message: _Message | _Item) -> str:
    return message.content if isinstance(message.content, str) else " ".join(texts_of(message))


def _prompt_text(prompt: str | list[str | int | list[int]]) -> tuple[str, int]:
    """Head of the prompt and its length; a prompt of token ids has no text, and four bytes a token."""
    if isinstance(prompt, str):
        return prompt[:PROMPT_HEAD_CHARS], utf8_length(prompt)
    texts = [item for item in prompt if isinstance(item, str)]
    num_ids = sum(len(item) if isinstance(item, list) else 1 for item in prompt if not isinstance(item, str))
    return " ".join(texts)[:PROMPT_HEAD_CHARS], sum(map(utf8_length, texts)) + 4 * num_ids


def _wrong_field(message: str) -> HttpError:
    """msgspec says `Expected int, got str - at $.max_tokens`: name the field as OpenAI does."""
    problem, _, path = message.partition(" - at `$")
    param = path.rstrip("`").lstrip(".") or None
    if param is None and problem.startswith("Object missing required field"):
        param = problem.split("`")[1]
    return HttpError(400, f"{param or 'The body'}: {problem}.", param=param, code="invalid_value")
