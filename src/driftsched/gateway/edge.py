"""Connections of clients: uvicorn's protocol, with bounds on what a connection may take before a request is whole.

uvicorn reads heads of any length for any time, answers what is no HTTP with plain text, and tells only the newest
of several pipelined requests that their client has left. Here heads are bounded in bytes and seconds, connections
in number, and refusals have OpenAI's form. On the way of a request that costs a few comparisons and no timer.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from driftsched.gateway.errors import error_document

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and headers; also of what may stand between two pieces of a chunked body."""
MAX_PIPELINED = 16
"""Requests sent ahead of the answer to the one before; a read can bring thousands, and each takes memory."""

_VERSIONS = ("1.1", "1.0")
_REFUSAL_LINES = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What connections may take."""

    max_connections: int = 16_384
    """Open at once; one more is told 503 and closed."""
    max_stall_seconds: float = 60.0
    """For a head to arrive, and for a client to take some of an answer that has ended or was given up."""


def edge_protocol(limits: EdgeLimits) -> Any:
    """What uvicorn takes as `http`: it makes one protocol for each connection."""
    return partial(EdgeProtocol, limits)


class EdgeProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, limits: EdgeLimits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._head_complete = False
        self._num_barren = 0  # bytes since the last that completed a head or belonged to a body
        self._running: RequestResponseCycle | None = None
        self._due = inf  # while nothing is being answered: when the connection is closed
        self._num_unsent = 0  # of an answer that has ended, at the last look
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, "There are too many connections. Retry later.", code="too_many_connections")
            return
        self._due = self.loop.time() + self._limits.max_stall_seconds
        self._watch = self.loop.call_later(self._limits.max_stall_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:  # uvicorn tells the newest only
            running.disconnected = True
            running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._num_barren += len(data)
        super().data_received(data)
        if self._num_barren > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"The head of a request may have {MAX_HEAD_BYTES} bytes.", code="head_too_large")

    # What httptools calls. An exception ends `feed_data` and is answered with 400.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_complete = False
        self._due = self.loop.time() + self._limits.max_stall_seconds

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        if self.parser.get_http_version() not in _VERSIONS:
            raise ValueError("neither HTTP/1.0 nor HTTP/1.1")
        super().on_headers_complete()
        self.headers = []  # for trailers: they may not pass for headers, which somebody before us has looked at
        self._head_complete = True
        self._num_barren = 0

    def on_body(self, body: bytes) -> None:
        self._num_barren = 0
        super().on_body(body)

    # What uvicorn calls.

    def on_response_complete(self) -> None:
        if self._head_complete:  # else the next one is under way, and has its time already
            self._due = self.loop.time() + self.timeout_keep_alive  # what is left of a body cannot prolong it
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg, code="invalid_http")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Callable[..., Any]) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = partial(_without_chunks, app, cycle)
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that is offered and not taken up is no event: the request is answered as any other."""

    def _refuse(self, status: int, message: str, *, code: str) -> None:
        """Close, and say why, unless that would stand in the middle of an answer."""
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            kind = "server_error" if status >= 500 else "invalid_request_error"
            body = error_document(message, kind, code=code)
            self.transport.write(STATUS_LINE[status] + _REFUSAL_LINES % len(body) + body)
            self.transport.close()
        else:
            self.transport.abort()

    def _look(self) -> None:
        """Close what has been idle for too long, break off what will never be taken, and look again later."""
        stall = self._limits.max_stall_seconds
        wait = stall
        if self._running is None or self._running.response_complete or self.transport.is_closing():
            num_unsent = self.transport.get_write_buffer_size()
            if num_unsent and num_unsent == self._num_unsent:
                self.transport.abort()
                return
            self._num_unsent = num_unsent
            remaining = self._due - self.loop.time()
            if remaining <= 0 and not num_unsent:
                self.transport.close()
            wait = min(stall, remaining) if remaining > 0 and not num_unsent else stall
        self._watch = self.loop.call_later(wait, self._look)


async def _without_chunks(
    app: Callable[..., Any], cycle: RequestResponseCycle, scope: Any, receive: Any, _: object
) -> None:
    """HTTP/1.0 knows no chunks, but uvicorn sends them: an answer without a length ends with its connection."""
    has_length = True

    async def send(message: Any) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
        if not has_length:  # uvicorn is told one that every piece keeps to, and the last one fulfils
            cycle.chunked_encoding = False
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            cycle.expected_content_length = len(message.get("body", b"")) + (not is_last)
        await cycle.send(message)

    await app(scope, receive, send)
