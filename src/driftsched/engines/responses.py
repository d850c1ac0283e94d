"""OpenAI's Responses API on the engine side: its documents, its events, and an engine's own stream of them read.

Only what needs no memory of earlier calls. Source: openai-openapi `f85dbe2`, `ResponseStreamEvent`.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Usage
from driftsched.core.protocols import Chunk
from driftsched.engines.failures import streamed_refusal
from driftsched.engines.sse import EVENT_END, MAX_EVENT_BYTES, begins_document, event_data
from driftsched.engines.wire import usage_of

_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {},
    "safety_identifier": None,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""Fields of a call that its response repeats, and what they are if the call leaves them out."""


def fields_to_echo(body: bytes) -> dict[str, Any]:
    """What a call says that its response may repeat; nothing if that cannot be read."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def response_document(
    fields: Mapping[str, Any], response_id: str, created_at: int, status: str, **more: Any
) -> dict[str, Any]:
    """A response to the call of these `fields`; `more` is what there is to say beyond that it exists."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": fields.get("model", ""),
        "output": [],
        "previous_response_id": None,
        "store": False,
        "usage": None,
        **{name: fields[name] if fields.get(name) is not None else usual for name, usual in _ECHOED.items()},
        **more,
    }


def response_event(kind: str, number: int, /, **fields: Any) -> bytes:
    """One event of a stream; `number` is its place in it, from 0."""
    data = msgspec.json.encode({"type": kind, "sequence_number": number, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def events_of(response: dict[str, Any]) -> bytes:
    """A whole response as events that lead to it: for a client that streams, of an engine that cannot."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
    ]
    for index, item in enumerate(response.get("output") or ()):
        steps.append(("response.output_item.added", {"output_index": index, "item": item}))
        steps.append(("response.output_item.done", {"output_index": index, "item": item}))
    steps.append((f"response.{response.get('status') or 'completed'}", {"response": response}))
    return b"".join(response_event(kind, number, **fields) for number, (kind, fields) in enumerate(steps))


class _Account(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str = ""


class _Response(msgspec.Struct, gc=False):
    """The fields that anybody here reads of a response; decoding skips all others."""

    object: Any = None
    status: str | None = None
    error: Any = None
    incomplete_details: _Incomplete | None = None
    output: list[_Item] | None = None
    usage: _Account | None = None

    def stated_usage(self) -> Usage | None:
        """None unless the engine states how many tokens it generated."""
        return None if self.usage is None else usage_of(self.usage.input_tokens, self.usage.output_tokens)

    def finish_reason(self) -> str:
        """How it ended, in the words of chat completions."""
        if self.status == "incomplete":
            reason = self.incomplete_details.reason if self.incomplete_details else None
            return "content_filter" if reason == "content_filter" else "length"
        called = self.output and self.output[-1].type == "function_call"
        return "tool_calls" if called else "stop"


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    delta: Any = None
    error: Any = None
    response: msgspec.Raw = msgspec.Raw()

    @property
    def ends_response(self) -> bool:
        return self.type in ("response.completed", "response.incomplete", "response.failed")


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_NOTHING = _Event()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ResponsesScanner:
    """Reads the events of a response as `EventScanner` reads those of a chat completion, and is used alike.

    Every delta of text, reasoning, refusal or arguments counts as one completion token until the engine states its
    usage.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        """`max_tokens`: the client's limit. Not every engine says `incomplete` of an answer that was cut there."""
        self._max_tokens = max_tokens
        self.failure: EngineError | None = None
        self.done = False
        """The engine has sent the event that ends the response."""
        self._tail = b""
        self._completion_tokens = 0

    @property
    def complete(self) -> bool:
        return self.done

    def feed(self, block: bytes) -> list[Chunk]:
        """The events that `block` completes, as one chunk, or two around the end of the response."""
        if self.failure is not None:
            return []
        data = self._tail + block
        sent = end = 0
        chunks: list[Chunk] = []
        while (match := EVENT_END.search(data, end)) is not None:
            event = self._read(data[end : match.end()])
            if event is None:
                break
            end = match.end()
            if event.ends_response:
                chunks += self._last(event, data[sent:end])
                sent = end
        if sent < end:
            chunks.append(Chunk(data[sent:end], self._completion_tokens))
        self._keep(data[end:])
        return chunks

    def finish(self) -> list[Chunk]:
        """What is left when the engine closes the stream. Sets `failure` unless the response has ended."""
        tail, self._tail = self._tail, b""
        event = self._read(tail) if tail and self.failure is None else None
        chunks = self._last(event, tail + b"\n\n") if event is not None and event.ends_response else []
        if self.failure is not None and self.failure.kind == "garbage" and not chunks:
            self.failure = None  # an event cut in the middle: the answer is judged by what came before
        if self.failure is None and not self.done:
            self.failure = EngineError(502, "broken_stream", "the engine stopped before its answer was complete")
        return chunks

    def document(self, document: bytes) -> Chunk:
        """A response that came whole. Raises `EngineError` if it is an error document or no response at all."""
        try:
            response = _decode_response(document)
        except _UNREADABLE as error:
            raise EngineError(502, "garbage", f"the engine's answer is not a response: {error}") from error
        if response.error or response.status == "failed":
            raise streamed_refusal(document)
        if response.output is None:
            raise EngineError(502, "garbage", "the engine's answer is not a response: it has no output")
        usage = response.stated_usage()
        reason = self._finish_reason(response, usage)
        return Chunk(document, usage.completion_tokens if usage else 0, usage, False, reason)

    def _read(self, text: bytes) -> _Event | None:
        """The event in `text`, counted; None, and `failure` set, if it reports an error or makes no sense."""
        if begins_document(text):
            self.failure = EngineError(502, "garbage", "the engine streamed a document among its events")
            return None
        data = event_data(text)
        if not data or data == b"[DONE]":
            return _NOTHING
        try:
            event = _decode_event(data)
        except (msgspec.ValidationError, RecursionError):
            return _NOTHING  # of a shape unknown to us: relayed, and nothing read from it
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.failure = EngineError(502, "garbage", "the engine streamed an event that is not JSON")
            return None
        if event.type in ("error", "response.failed") or event.error:
            failed = event.type == "response.failed"
            self.failure = streamed_refusal(bytes(event.response) if failed else data)
            return None
        if event.delta and isinstance(event.type, str) and event.type.endswith(".delta"):
            self._completion_tokens += 1
        return event

    def _last(self, event: _Event, data: bytes) -> list[Chunk]:
        """The chunk that ends with the event that ends the response."""
        self.done = True
        try:
            response = _decode_response(event.response or b"{}")
        except _UNREADABLE:
            response = _Response()
        usage = response.stated_usage()
        if usage is not None:
            self._completion_tokens = usage.completion_tokens
        return [Chunk(data, self._completion_tokens, usage, False, self._finish_reason(response, usage))]

    def _finish_reason(self, response: _Response, usage: Usage | None) -> str:
        produced = usage.completion_tokens if usage else self._completion_tokens
        cut = self._max_tokens is not None and produced >= self._max_tokens
        return "length" if cut else response.finish_reason()

    def _keep(self, tail: bytes) -> None:
        if self.failure is None and len(tail) > MAX_EVENT_BYTES:
            self.failure = EngineError(
                502, "garbage", f"the engine streamed an event of more than {MAX_EVENT_BYTES} bytes"
            )
        self._tail = tail if self.failure is None else b""
