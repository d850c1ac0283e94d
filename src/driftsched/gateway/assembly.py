"""Between the two forms of an answer: a stream of chunks, and one document.

The gateway always asks engines to stream, whatever the client asked for: it sees the tokens as they come, and some
engines notice that a client left only while they stream to it.
"""

from typing import Any

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Tier
from driftsched.engines.sse import BYTE_ORDER_MARK, Alike, begins_document

_decode = msgspec.json.decode
_encode = msgspec.json.encode

_REPLACED = frozenset({"id", "index", "name", "object", "role", "type", "model", "finish_reason", "stop_reason"})
"""Strings that a later chunk states anew; every other string in a delta continues the one before."""
MAX_UNREAD_BYTES = 1 << 16
"""Of an answer, kept as it came: what is read at once costs less than what is read piece by piece."""

# What comes of reading a value as what it should be: an engine need not stream the shape that it should stream.
_MISSHAPEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, TypeError)


class Assembler:
    """Puts the chunks of a stream together into the document that a call without `stream` is answered with.

    Nearly all events of a stream differ in nothing but a piece of text, and are not read as JSON (`Alike`).
    """

    def __init__(self) -> None:
        self._unread = bytearray()
        self._alike = Alike()
        self._plain_texts: list[str] = []  # where the text of those belongs
        self._document: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._account: dict[str, Any] | None = None  # of the events that carry usage and no choice
        self._texts: dict[int, list[str]] = {}  # the content, the part that grows long, in pieces

    def feed(self, data: bytes) -> None:
        """Whole server-sent events, each with its data on one line. Raises `EngineError` (502)."""
        self._unread += data
        if len(self._unread) > MAX_UNREAD_BYTES:
            self._read_on()

    def document(self) -> bytes:
        """The whole answer as JSON. Raises `EngineError` (502) if there is none."""
        self._read_on()
        if not self._choices:
            raise EngineError(502, "broken_stream", "the engine ended its answer without saying anything")
        try:
            return _encode(
                {
                    **self._document,
                    "object": self._document.get("object", "").removesuffix(".chunk"),
                    "choices": [self._choice(index) for index in sorted(self._choices)],
                    "usage": self._document.get("usage"),
                }
            )
        except _MISSHAPEN as error:
            raise _garbage() from error

    def _read_on(self) -> None:
        data, self._unread = bytes(self._unread), bytearray()
        end = 0
        while end < len(data):
            texts, end = self._alike.take(data, end)
            self._plain_texts += texts
            start, end = end, (data.find(b"\n", end) + 1) or len(data)
            line = data[start:end].removeprefix(BYTE_ORDER_MARK)
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if payload != b"[DONE]":
                    self._read(line, payload)

    def _read(self, line: bytes, payload: bytes) -> None:
        try:
            chunk = _decode(payload)
            if isinstance(chunk, dict) and isinstance(chunk.get("choices"), list):  # else no part of an answer
                self._add(line, chunk)
        except _MISSHAPEN as error:
            raise _garbage() from error

    def _add(self, line: bytes, chunk: dict[str, Any]) -> None:
        choices = chunk.pop("choices")
        if not choices and isinstance(chunk.get("usage"), dict):
            chunk["usage"] = self._account = self._added(chunk["usage"])
        if len(choices) == 1 and (choices[0].get("delta") or {}).keys() == {"content"}:
            self._remember(line, choices[0].get("index", 0))
        for choice in choices:
            self._add_choice(choice)
        _merge(self._document, chunk, replace_strings=True)

    def _added(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The account after another: llama-server sends one for every choice, all others one in all."""
        before = self._account
        if before is None or len(self._choices) < 2:
            return usage
        completion_tokens = before.get("completion_tokens", 0) + usage.get("completion_tokens", 0)
        total_tokens = usage.get("prompt_tokens", 0) + completion_tokens
        return {**usage, "completion_tokens": completion_tokens, "total_tokens": total_tokens}

    def _remember(self, line: bytes, index: int) -> None:
        if line.count(b"[") == 1:  # lists are added up: the one of choices is the only one here
            self._alike.remember(line + b"\n")
            self._plain_texts = self._texts.setdefault(index, [])

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.pop("index", 0)
        so_far = self._choices.setdefault(index, {})
        delta = choice.pop("delta", None)
        if delta is not None:
            self._append_text(index, delta.pop("content", None))
            _merge(so_far.setdefault("message", {}), delta)
        else:
            self._append_text(index, choice.pop("text", None))
        _merge(so_far, choice)

    def _append_text(self, index: int, text: str | None) -> None:
        if text is not None:
            self._texts.setdefault(index, []).append(text)

    def _choice(self, index: int) -> dict[str, Any]:
        choice = dict(self._choices[index])
        text = "".join(self._texts[index]) if index in self._texts else None
        message = choice.pop("message", None)
        logprobs, finish_reason = choice.pop("logprobs", None), choice.pop("finish_reason", None)
        said = {"text": text or ""} if message is None else {"message": _message(message, text)}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason, **choice}


def _garbage() -> EngineError:
    return EngineError(502, "garbage", "the engine streamed an event of an unknown shape")


SERVICE_TIERS = {Tier.PREMIUM: "priority", Tier.STANDARD: "default", Tier.BATCH: "flex"}
"""The tier that was used, in OpenAI's words."""


def with_service_tier(data: bytes, tier: Tier) -> bytes:
    """A document, or the first event of a stream's piece, that says at which tier it was served.

    Anything else is left as it is: to judge what an engine sent is not for here.
    """
    start, end = 0, len(data)
    if not begins_document(data):
        start = data.find(b"data:") + 5
        end = data.find(b"\n", start)
    try:
        fields = _decode(data[start:end])
    except _MISSHAPEN:
        return data
    if not isinstance(fields, dict) or "error" in fields:
        return data
    said = _encode({**fields, "service_tier": SERVICE_TIERS[tier]})
    return said if start == 0 else data[:start] + b" " + said + data[end:]


def as_stream(document: bytes, *, wants_usage: bool) -> bytes:
    """A whole answer as a stream of one chunk, for a client that asked to stream of an engine that cannot.

    Raises `EngineError` (502) for what is no answer after all.
    """
    try:
        return _streamed(_decode(document), wants_usage)
    except _MISSHAPEN as error:
        raise _garbage() from error


def _streamed(fields: dict[str, Any], wants_usage: bool) -> bytes:
    usage = fields.pop("usage", None)
    if fields.get("object") == "chat.completion":
        fields["object"] = "chat.completion.chunk"
    for choice in fields.get("choices", ()):
        if "message" in choice:
            choice["delta"] = choice.pop("message")
            for position, call in enumerate(choice["delta"].get("tool_calls") or ()):
                call.setdefault("index", position)
    events = [fields]
    if wants_usage:
        events.append({**fields, "choices": [], "usage": usage})
    return b"".join(b"data: " + _encode(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _message(message: dict[str, Any], text: str | None) -> dict[str, Any]:
    """The message of a chat answer: tool calls lose the index that only a stream needs."""
    calls = message.get("tool_calls")
    if calls:
        message = {**message, "tool_calls": [{k: v for k, v in call.items() if k != "index"} for call in calls]}
    return {
        "role": message.get("role") or "assistant",
        "content": text,
        **{k: v for k, v in message.items() if k != "role"},
    }


def _merge(into: dict[str, Any], delta: dict[str, Any], *, replace_strings: bool = False) -> None:
    """Add what `delta` says to `into`, as the increments of a stream are meant."""
    for key, value in delta.items():
        known = into.get(key)
        if value is None:
            into.setdefault(key, None)
        elif known is None:
            into[key] = value
        elif isinstance(value, str):
            into[key] = value if replace_strings or key in _REPLACED else known + value
        elif isinstance(value, dict):
            _merge(known, value, replace_strings=replace_strings)
        elif isinstance(value, list):
            _merge_lists(known, value)
        else:
            into[key] = value


def _merge_lists(into: list[Any], delta: list[Any]) -> None:
    """Items with an index continue the item of that index; others follow."""
    for item in delta:
        index = item.get("index") if isinstance(item, dict) else None
        same = next((known for known in into if isinstance(known, dict) and known.get("index") == index), None)
        if index is None or same is None:
            into.append(item)
        else:
            _merge(same, item)
