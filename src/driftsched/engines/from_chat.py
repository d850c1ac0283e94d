"""The answer to a chat completion as a response: for clients of the Responses API and engines without it."""

import time
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Usage
from driftsched.core.protocols import Chunk
from driftsched.engines.responses import response_document, response_event
from driftsched.engines.sse import EventScanner, event_data

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Account(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Account | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


class ChatTranslator:
    """Reads a chat completion, streamed or whole, and gives it as a response: events, or a document.

    Used as `EventScanner` is, on whose accounts it relies. Of several choices there is the first one only: the
    Responses API has no others.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """`fields`: the call, as its client sent it."""
        self._scanner = EventScanner()
        self._fields = fields
        self._id = f"resp_{token_hex(16)}"
        self._created_at = int(time.time())
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._open: _Item | None = None  # the thought or message that is being said
        self._calls: dict[int, _Item] = {}  # all open until the end: nothing says that one is complete
        self._finish_reason: str | None = None
        self._account: _Account | None = None
        self._usage: Usage | None = None

    @property
    def failure(self) -> EngineError | None:
        return self._scanner.failure

    @property
    def done(self) -> bool:
        return self._scanner.done

    @property
    def complete(self) -> bool:
        return self._scanner.complete

    def feed(self, block: bytes) -> list[Chunk]:
        return [self._translated(chunk) for chunk in self._scanner.feed(block)]

    def finish(self) -> list[Chunk]:
        """What is left, and the events that end the response unless the answer broke off."""
        chunks = [self._translated(chunk) for chunk in self._scanner.finish()]
        if self.failure is None:
            ending = self._close_all()
            status, response = self._ended()
            ending += self._event(f"response.{status}", response=response)
            chunks.append(Chunk(ending, self._scanner.completion_tokens, self._usage, False, self._finish_reason))
        return chunks

    def document(self, document: bytes) -> Chunk:
        """A chat completion that came whole, as a whole response. Raises `EngineError` if it is none."""
        chunk = self._scanner.document(document)
        event = _decoded(document)
        for choice in (event.choices or ())[:1]:
            self._add(choice.message or _Delta())
        self._account, self._finish_reason = event.usage, chunk.finish_reason
        self._close_all()
        _, response = self._ended()
        return chunk._replace(data=msgspec.json.encode(response))

    def _translated(self, chunk: Chunk) -> Chunk:
        data = b"" if self._number else self._begin()
        for line in chunk.data.splitlines():
            payload = event_data(line)
            if payload and payload != b"[DONE]":
                data += self._said(_decoded(payload))
            elif line.startswith(b":"):
                data += line + b"\n\n"
        self._finish_reason = chunk.finish_reason or self._finish_reason
        self._usage = chunk.usage or self._usage
        return Chunk(data, chunk.completion_tokens, chunk.usage, False, chunk.finish_reason)

    def _begin(self) -> bytes:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _said(self, event: _Event) -> bytes:
        self._account = event.usage or self._account
        return b"".join([self._add(choice.delta) for choice in (event.choices or ())[:1] if choice.delta])

    def _add(self, delta: _Delta) -> bytes:
        data = b""
        for kind, text in (
            ("reasoning", delta.reasoning_content or delta.reasoning),
            ("message", delta.content),
            ("refusal", delta.refusal),
        ):
            if text:
                if self._open is None or self._open.kind != kind:
                    data += self._close() + self._start(kind)
                data += self._grow(self._open, text)
        for call in delta.tool_calls or ():
            data += self._add_call(call)
        return data

    def _add_call(self, call: _ToolCall) -> bytes:
        data = b""
        function = call.function or _Function()
        item = self._calls.get(call.index)
        if item is None:
            data = self._close()
            item = self._calls[call.index] = self._new(
                "function_call",
                {
                    "type": "function_call",
                    "id": f"fc_{token_hex(12)}",
                    "call_id": call.id or f"call_{token_hex(12)}",
                    "name": function.name or "",
                    "arguments": "",
                    "status": "in_progress",
                },
            )
            data += self._event("response.output_item.added", output_index=item.index, item=item.document)
        return data + self._grow(item, function.arguments or "")

    def _start(self, kind: str) -> bytes:
        """A new item of this kind, open from here on."""
        if kind == "reasoning":
            document = {"type": "reasoning", "id": f"rs_{token_hex(12)}", "summary": [], "content": []}
        else:
            document = {"type": "message", "id": f"msg_{token_hex(12)}", "role": "assistant", "content": []}
        item = self._open = self._new(kind, {**document, "status": "in_progress"})
        added = self._event("response.output_item.added", output_index=item.index, item=item.document)
        return added + self._event("response.content_part.added", **item.place, content_index=0, part=item.part())

    def _new(self, kind: str, document: dict[str, Any]) -> "_Item":
        self._items.append(document)
        return _Item(kind, len(self._items) - 1, document)

    def _grow(self, item: "_Item | None", text: str) -> bytes:
        if item is None or not text:
            return b""
        item.pieces.append(text)
        return self._event(f"response.{_DELTAS[item.kind]}.delta", **item.place, delta=text, **item.extras)

    def _close(self) -> bytes:
        """End the thought or message that is open."""
        item, self._open = self._open, None
        if item is None:
            return b""
        part = item.part()
        item.document["content"] = [part]
        said = self._event(
            f"response.{_DELTAS[item.kind]}.done", **item.place, **item.extras, **{item.text_name: item.text}
        )
        said += self._event("response.content_part.done", **item.place, content_index=0, part=part)
        return said + self._end(item)

    def _close_all(self) -> bytes:
        """End all that is open."""
        data = self._close()
        for item in self._calls.values():
            item.document["arguments"] = item.text
            data += self._event("response.function_call_arguments.done", **item.place, arguments=item.text)
            data += self._end(item)
        self._calls = {}
        return data

    def _end(self, item: "_Item") -> bytes:
        item.document["status"] = "incomplete" if self._finish_reason in _INCOMPLETE else "completed"
        return self._event("response.output_item.done", output_index=item.index, item=item.document)

    def _ended(self) -> tuple[str, dict[str, Any]]:
        """What has become of the response, and the response itself. All items must be closed."""
        reason = _INCOMPLETE.get(self._finish_reason or "")
        status = "incomplete" if reason else "completed"
        details = {"reason": reason} if reason else None
        return status, self._response(status, output=self._items, usage=self._stated(), incomplete_details=details)

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        return response_document(self._fields, self._id, self._created_at, status, **more)

    def _stated(self) -> dict[str, Any] | None:
        account = self._account
        if account is None:
            return None
        prompt, completion = account.prompt_tokens or 0, account.completion_tokens or 0
        inputs, outputs = account.prompt_tokens_details, account.completion_tokens_details
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": (inputs.cached_tokens if inputs else None) or 0,
                "cache_write_tokens": 0,
            },
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": (outputs.reasoning_tokens if outputs else None) or 0},
            "total_tokens": prompt + completion,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return response_event(kind, self._number - 1, **fields)


_DELTAS = {
    "message": "output_text",
    "refusal": "refusal",
    "reasoning": "reasoning_text",
    "function_call": "function_call_arguments",
}


class _Item:
    """One item of the output while it grows."""

    def __init__(self, kind: str, index: int, document: dict[str, Any]) -> None:
        self.kind = kind
        self.index = index
        self.document = document
        self.pieces: list[str] = []
        self.place = {"item_id": document["id"], "output_index": index}
        self.extras: dict[str, Any] = {} if kind == "function_call" else {"content_index": 0}
        if kind == "message":
            self.extras["logprobs"] = []
        self.text_name = "refusal" if kind == "refusal" else "text"

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def part(self) -> dict[str, Any]:
        if self.kind == "message":
            return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}
        return {"type": _DELTAS[self.kind], self.text_name: self.text}


def _decoded(data: bytes) -> _Event:
    try:
        return _decode_event(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Event()  # its own scanner has read it, and found nothing amiss: nothing to say
