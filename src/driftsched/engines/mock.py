"""A stand-in for a model server: one simulated engine behind OpenAI's HTTP API, as a plain ASGI application.

Serve it with any ASGI server. It knows the routes and metrics a gateway or a load generator asks a vLLM server for:
`/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health` and `/metrics`; and, as llama-server does, it
tells at `/props` how many requests it serves at once.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from itertools import count
from typing import Any

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Request, Tenant, Tier, Usage
from driftsched.core.protocols import Chunk
from driftsched.engines.payload import Payload
from driftsched.engines.simulated import SimulatedEngine, answer_text, error_document

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OBJECTS = {"/v1/chat/completions": "chat.completion", "/v1/completions": "text_completion"}
_TENANT = Tenant("mock")
_JSON = b"application/json"


class MockServer:
    """The ASGI application. A client that disconnects cancels its answer, streamed or not.

    The response begins with the first token, so time to headers is time to first token. Drifts of the engine's
    length law count from the first completion asked for, not from the start of the server. Closes the engine when
    the ASGI server shuts down.
    """

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._created = int(time.time())
        self._ids = count(1)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope["method"], scope["path"], receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._engine.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, method: str, path: str, receive: Receive, send: Send) -> None:
        documents = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/props": self._props,
            "/v1/models": self._models,
        }
        allowed = ("POST",) if path in _OBJECTS else ("GET", "HEAD") if path in documents else ()
        if not allowed:
            await _send_error(send, 404, f"There is no {path} here.")
        elif method not in allowed:
            await _send_error(send, 405, f"Use {' or '.join(allowed)} for {path}, not {method}.")
        elif path in _OBJECTS:
            await self._complete(path, receive, send)
        else:
            content_type, body = documents[path]()
            await _send_document(send, 200, body if method == "GET" else b"", content_type)

    def _health(self) -> tuple[bytes, bytes]:
        return b"text/plain", b""

    def _props(self) -> tuple[bytes, bytes]:
        return _JSON, msgspec.json.encode({"total_slots": self._engine.model.max_num_seqs})

    def _models(self) -> tuple[bytes, bytes]:
        model = {
            "id": self._engine.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "driftsched",
        }
        return _JSON, msgspec.json.encode({"object": "list", "data": [model]})

    def _metrics(self) -> tuple[bytes, bytes]:
        model = self._engine.model
        gauges = {
            "vllm:num_requests_running": model.num_running,
            "vllm:num_requests_waiting": model.num_waiting,
            "vllm:kv_cache_usage_perc": model.kv_used / model.kv_tokens,
        }
        name = self._engine.model_name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        lines = [
            f'# TYPE {gauge} gauge\n{gauge}{{model_name="{name}"}} {value}\n' for gauge, value in gauges.items()
        ]
        preempted = "vllm:num_preemptions"
        lines.append(
            f'# TYPE {preempted} counter\n{preempted}_total{{model_name="{name}"}} {model.num_preemptions}\n'
        )
        return b"text/plain; version=0.0.4; charset=utf-8", "".join(lines).encode()

    async def _complete(self, path: str, receive: Receive, send: Send) -> None:
        """Answer the call, unless the client leaves first."""
        body = await _read_body(receive)
        if body is None:
            return
        answering = asyncio.ensure_future(self._serve(path, body, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            answering.cancel()  # does nothing to one that is done
            leaving.cancel()
            await asyncio.wait((answering, leaving))
        if not answering.cancelled():
            answering.result()

    async def _serve(self, path: str, body: bytes, send: Send) -> None:
        try:
            call = self._read(path, body)
            request = Request(
                id=str(next(self._ids)),
                tenant=_TENANT,
                tier=Tier.STANDARD,
                model=self._engine.model_name,
                arrived_at=0.0,
                payload=call,
            )
            async with aclosing(self._engine.generate(request)) as chunks:
                if call.stream:
                    await _send_stream(send, chunks, wants_usage=call.wants_usage)
                else:
                    await _send_document(send, 200, await self._assemble(path, request.id, chunks))
        except EngineError as error:
            await _send_error(send, error.status, str(error), document=error.body)

    def _read(self, path: str, body: bytes) -> Payload:
        """The call as an engine takes it. Raises `EngineError`: 400 if it is malformed, 404 for another model."""
        try:
            head = _decode_head(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(400, "engine_rejected", f"The body is not a valid call: {error}") from error
        if head.model != self._engine.model_name:
            message = f"The model {head.model!r} does not exist here: use {self._engine.model_name!r}."
            raise EngineError(
                404, "engine_rejected", message, body=error_document(message, "model", "model_not_found")
            )
        wants_usage = head.stream_options is not None and head.stream_options.include_usage is True
        return Payload(path, body, stream=head.stream is True, wants_usage=wants_usage)

    async def _assemble(self, path: str, request_id: str, chunks: AsyncGenerator[Chunk, None]) -> bytes:
        """The whole answer as one document."""
        usage, finish_reason = Usage(), None
        async for chunk in chunks:
            usage = chunk.usage or usage
            finish_reason = chunk.finish_reason or finish_reason
        text = answer_text(0, usage.completion_tokens)
        chat = path == "/v1/chat/completions"
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return msgspec.json.encode(
            {
                "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
                "object": _OBJECTS[path],
                "created": int(time.time()),
                "model": self._engine.model_name,
                "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}],
                "usage": {
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "total_tokens": usage.total_tokens,
                },
            }
        )


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Head(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


async def _read_body(receive: Receive) -> bytes | None:
    """The request body; None if the client left before all of it came."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_stream(send: Send, chunks: AsyncGenerator[Chunk, None], *, wants_usage: bool) -> None:
    """Raises `EngineError` only while the response has not begun; later it is told in an event, as vLLM does."""
    started = False
    try:
        async for chunk in chunks:
            if not started:
                await _send_head(send, 200, b"text/event-stream; charset=utf-8")
                started = True
            if wants_usage or not chunk.usage_only:
                await send({"type": "http.response.body", "body": chunk.data, "more_body": True})
    except EngineError as error:
        if not started:
            raise
        event = b"data: " + (error.body or error_document(str(error))) + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _send_error(send: Send, status: int, message: str, *, document: bytes | None = None) -> None:
    await _send_document(send, status, document or error_document(message))


async def _send_document(send: Send, status: int, body: bytes, content_type: bytes = _JSON) -> None:
    await _send_head(send, status, content_type)
    await send({"type": "http.response.body", "body": body})


async def _send_head(send: Send, status: int, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
