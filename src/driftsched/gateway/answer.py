"""What the client gets to see: status, headers that tell the story, and the engine's bytes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

import msgspec

from driftsched.core.model import Tier
from driftsched.core.protocols import Chunk
from driftsched.core.waits import Eta
from driftsched.engines.sse import begins_document
from driftsched.gateway.assembly import Assembler, as_stream, with_service_tier
from driftsched.gateway.dispatcher import Turn
from driftsched.gateway.errors import ClientStalledError, HttpError
from driftsched.gateway.ratelimits import RateLimits, untold
from driftsched.gateway.wire import Call

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]
HeaderList = list[tuple[bytes, bytes]]

METRICS_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_JSON = b"application/json"
_SIGN_OF_LIFE = b": waiting\n\n"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def respond(
    send: Send,
    status: int,
    body: bytes,
    headers: tuple[tuple[str, str], ...] = (),
    *,
    content_type: bytes = _JSON,
) -> None:
    """A whole response at once."""
    lines = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
    await _send_whole(send, status, body, [(b"content-type", content_type), *lines])


def model_list(names: Iterable[str]) -> bytes:
    """What `/v1/models` answers."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "driftsched"} for name in names]
    return msgspec.json.encode({"object": "list", "data": data})


class Answer:
    """The response to one generation, in the form its client asked for."""

    def __init__(
        self,
        send: Send,
        call: Call,
        request_id: bytes,
        policy_name: bytes,
        *,
        max_stall_seconds: float,
        rate_limits: RateLimits = untold,
    ) -> None:
        """`max_stall_seconds`: how long the client may take to accept the next piece of a stream, > 0.

        `rate_limits` are told in the headers, as they stand when those are sent.
        """
        self._send = send
        self._max_stall_seconds = max_stall_seconds
        self._call = call
        self._story: HeaderList = [(b"x-request-id", request_id), (b"x-driftsched-policy", policy_name)]
        self._rate_limits = rate_limits
        self._tier_told = not call.says_tier  # who did not ask is told in the headers only
        self._started = False
        self._assembler = Assembler()
        self._document: bytes | None = None
        self._media_type = _JSON

    def held(self, seconds: float) -> None:
        """The request was held for so long before it came into line."""
        self._story.append((b"x-driftsched-held-seconds", b"%.6f" % seconds))

    async def keep_alive_held(self) -> None:
        """The same as `keep_alive`, of a request that is held before the line: nothing is known of its turn."""
        if self._call.stream:
            await self._stream(_SIGN_OF_LIFE, None)

    async def keep_alive(self, turn: Turn) -> None:
        """Tell a client that streams that its request still waits: a comment, which readers of events pass over.

        From the first one on the status is sent, and whatever goes wrong is an event. Raises `ClientStalledError`.
        """
        if self._call.stream:
            await self._stream(self._sign_of_life(turn), turn)

    async def relay(self, chunk: Chunk, turn: Turn) -> None:
        """Pass a piece on: at once to a client that streams, else towards the whole document.

        Raises `EngineError` for a piece that makes no sense, and `ClientStalledError`.
        """
        if self._call.stream:
            data = self._shape(chunk)
            if data and not self._tier_told:
                said = self._with_tier(data, turn.ticket.request.tier)
                data, self._tier_told = said, said is not data  # a comment has no place for it
            await self._stream(data, turn)
        else:
            if chunk.begins_anew:
                self._assembler, self._document = Assembler(), None
            self._gather(chunk)

    def complete(self) -> None:
        """The engine has said everything. Raises `EngineError` if that is no answer."""
        if not self._call.stream and self._document is None:
            self._document = self._whole()

    async def end(self, turn: Turn) -> None:
        """Send what is left of a complete answer. Raises `ClientStalledError`."""
        if self._call.stream or self._started:
            await self._stream(b"", turn)
            await self._send_in_time(b"", more_body=False)
        else:
            body = self._document or b""
            media_type = (b"content-type", self._media_type)
            if not self._tier_told:
                body = with_service_tier(body, turn.ticket.request.tier)
            actual = (b"x-driftsched-actual-tokens", b"%d" % turn.usage.completion_tokens)
            await _send_whole(self._send, 200, body, [media_type, *self._headers(turn), actual])

    async def fail(self, error: HttpError) -> None:
        """There is no answer, or no more of it."""
        if self._started:
            with suppress(ClientStalledError):  # who reads nothing cannot be told
                await self._send_in_time(self._error_event(error), more_body=False)
        else:
            lines = [(name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers]
            reason = (b"x-driftsched-reason", (error.code or "").encode())
            await _send_whole(
                self._send,
                error.status,
                error.body,
                [(b"content-type", _JSON), *self._story, reason, *self._rate_limits(), *lines],
            )

    # What differs from one endpoint to the other.

    def _sign_of_life(self, turn: Turn) -> bytes:  # noqa: ARG002
        return _SIGN_OF_LIFE

    def _gather(self, chunk: Chunk) -> None:
        """Add a piece to the whole document. Raises `EngineError`."""
        if begins_document(chunk.data):
            self._document = chunk.data
        else:
            self._assembler.feed(chunk.data)

    def _whole(self) -> bytes:
        """The document that was gathered. Raises `EngineError` if there is none."""
        return self._assembler.document()

    def _error_event(self, error: HttpError) -> bytes:
        """What tells a client that streams that there is no more."""
        return b"data: " + error.body + b"\n\n"

    async def _stream(self, data: bytes, turn: Turn | None) -> None:
        if not self._started:
            self._started = True
            told = [*self._story, *self._rate_limits()] if turn is None else self._headers(turn)
            headers = [*_STREAM_HEADERS, *told]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if data:
            await self._send_in_time(data, more_body=True)

    async def _send_in_time(self, data: bytes, *, more_body: bool) -> None:
        """Raises `ClientStalledError`: who reads nothing may keep neither a slot nor a task."""
        try:
            async with asyncio.timeout(self._max_stall_seconds):
                await self._send({"type": "http.response.body", "body": data, "more_body": more_body})
        except TimeoutError:
            raise ClientStalledError from None

    def _shape(self, chunk: Chunk) -> bytes:
        """The chunk as the client would have got it from the engine, had it asked the engine itself."""
        if begins_document(chunk.data):
            return as_stream(chunk.data, wants_usage=self._call.wants_usage)
        if self._call.wants_usage:
            return chunk.data
        if chunk.usage_only:
            return b""
        return _without_null_usage(chunk.data)

    def _with_tier(self, data: bytes, tier: Tier) -> bytes:
        """The first piece of a stream, with the tier that was used; `data` itself if there is no place for it."""
        return with_service_tier(data, tier)

    def _headers(self, turn: Turn) -> HeaderList:
        ticket, waited = turn.ticket, turn.queue_seconds
        return [
            *self._story,
            (b"x-driftsched-tier", ticket.request.tier.label.encode()),
            (b"x-driftsched-position", b"%d" % turn.position),
            *_eta_headers(turn.eta),
            *([] if waited is None else [(b"x-driftsched-queue-seconds", b"%.6f" % waited)]),
            (b"x-driftsched-predicted-tokens", b"%d" % round(ticket.estimate.completion_tokens)),
            *self._rate_limits(),
        ]


def _eta_headers(eta: Eta | None) -> HeaderList:
    if eta is None:
        return []
    return [
        (b"x-driftsched-eta-seconds", b"%.3f" % eta.seconds),
        (b"x-driftsched-eta-low-seconds", b"%.3f" % eta.low),
        (b"x-driftsched-eta-high-seconds", b"%.3f" % eta.high),
    ]


def _without_null_usage(data: bytes) -> bytes:
    """Take out the `"usage": null` that OpenAI puts into every chunk once usage was asked for.

    A quote inside a JSON string is always preceded by a backslash, so this cannot match inside a text.
    """
    if b'"usage"' not in data:
        return data
    return data.replace(b',"usage":null', b"").replace(b', "usage": null', b"")


async def _send_whole(send: Send, status: int, body: bytes, headers: HeaderList) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
