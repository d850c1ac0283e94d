"""A small real HTTP server that misbehaves to order.

    async with FaultyUpstream(status(503, b"full"), stream(EVENTS)) as upstream:
        ...  # the first request to `upstream.url` gets 503, all later ones the stream
        assert 2 == len(upstream.requests)

A behaviour is a coroutine function of an `Exchange`; the ones below cover the faults that engines are known for.
Nothing in here waits for a time: a hanging behaviour ends when the client goes away or the server is closed.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec


def content_event(text: str) -> bytes:
    """One event of a chat completion that adds `text`."""
    return _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def finish_event(reason: str = "stop") -> bytes:
    """The event that ends the only choice."""
    return _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


def usage_event(prompt_tokens: int, completion_tokens: int) -> bytes:
    """The event that carries the account of the whole answer."""
    total = prompt_tokens + completion_tokens
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
    return _event({"choices": [], "usage": usage})


def _event(fields: dict[str, Any]) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "test"}
    return b"data: " + msgspec.json.encode(head | fields) + b"\n\n"


DONE = b"data: [DONE]\n\n"
EVENTS = (content_event("Hello"), content_event(" world"), finish_event(), usage_event(7, 2), DONE)
"""A whole streamed answer: two tokens, and usage 7 + 2."""
DOCUMENT = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
)
"""A whole answer in one piece: usage 7 + 2, cut at its limit."""


@dataclass
class Seen:
    """A request as it arrived, and what became of its client."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    connection: int
    """0 for the first connection the server accepted, 1 for the next."""
    first_on_connection: bool
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client closes the connection before the answer is complete."""


@dataclass
class Exchange:
    """What a behaviour works with: the request and the way back to the client."""

    request: Seen
    writer: asyncio.StreamWriter
    proceed: asyncio.Queue[None]
    """One piece for every `FaultyUpstream.proceed()`."""
    keep_alive: bool = True
    """Read the next request from the same connection when the behaviour is over."""

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await self.send(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        """A piece of a body with chunked transfer encoding; empty for the end of it."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close the connection with a TCP reset."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()
        self.keep_alive = False


Behaviour = Callable[[Exchange], Awaitable[None]]

_STREAM_HEAD = {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}


def stream(events: Sequence[bytes] = EVENTS, *, close: bool = False, end_body: bool = True) -> Behaviour:
    """All of `events`, each its own write. `close`: then close the connection, although it was not announced."""

    async def behave(exchange: Exchange) -> None:
        await exchange.head(200, _STREAM_HEAD)
        for event in events:
            await exchange.chunk(event)
        if end_body:
            await exchange.chunk(b"")
        exchange.keep_alive = not close
        if not close and not end_body:
            await exchange.request.client_gone.wait()

    return behave


def stepwise(events: Sequence[bytes] = EVENTS) -> Behaviour:
    """A slow stream: the head at once, one event for every `FaultyUpstream.proceed()`, and one for the end."""

    async def behave(exchange: Exchange) -> None:
        await exchange.head(200, _STREAM_HEAD)
        for piece in (*events, b""):
            await exchange.proceed.get()
            await exchange.chunk(piece)

    return behave


def answer(
    body: bytes = DOCUMENT,
    *,
    status: int = 200,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
    close: bool = False,
) -> Behaviour:
    """A body in one piece. `close`: then close the connection, although it was not announced."""

    async def behave(exchange: Exchange) -> None:
        length = {"Content-Type": content_type, "Content-Length": str(len(body))}
        await exchange.head(status, length | dict(headers or {}))
        await exchange.send(body)
        exchange.keep_alive = not close

    return behave


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """An error answer; `retry_after="3"` becomes the header `retry-after: 3`."""
    return answer(body, status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})


def html() -> Behaviour:
    """A web page with status 200: some other server, or a login page before the engine."""
    return answer(b"<!doctype html><title>Welcome</title>", content_type="text/html")


def garbage() -> Behaviour:
    """Bytes that are not HTTP."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        exchange.keep_alive = False

    return behave


def die_before_headers(*, after: bytes = b"") -> Behaviour:
    """Close the connection without an answer, or `after` the first bytes of one."""

    async def behave(exchange: Exchange) -> None:
        if after:
            await exchange.send(after)
        exchange.keep_alive = False

    return behave


def die_mid_stream(events: Sequence[bytes] = EVENTS[:1], *, reset: bool = False) -> Behaviour:
    """Send the head and `events`, then close the connection; with `reset` only once `proceed()` is called.

    A reset throws away what the client has not read yet, so let it read first.
    """

    async def behave(exchange: Exchange) -> None:
        await exchange.head(200, _STREAM_HEAD)
        for event in events:
            await exchange.chunk(event)
        exchange.keep_alive = False
        if reset:
            await exchange.proceed.get()
            exchange.reset()

    return behave


def half_close(events: Sequence[bytes] = EVENTS[:1]) -> Behaviour:
    """Send the head and `events`, then end the sending side only and hold the connection."""

    async def behave(exchange: Exchange) -> None:
        await exchange.head(200, _STREAM_HEAD)
        for event in events:
            await exchange.chunk(event)
        exchange.writer.write_eof()
        await exchange.request.client_gone.wait()

    return behave


def hang_before_headers() -> Behaviour:
    """Accept the request and never answer."""

    async def behave(exchange: Exchange) -> None:
        await exchange.request.client_gone.wait()

    return behave


def hang_mid_stream(events: Sequence[bytes] = EVENTS[:1]) -> Behaviour:
    """Send the head and `events`, then nothing more."""
    return stream(events, end_body=False)


class FaultyUpstream:
    """The server: an async context manager on `port` of the loopback interface, by default a free one.

    The behaviours are used one per request in the order given, the last one for all that follow. `routes` has its
    own behaviour for a path, used whenever that path is asked for. With `closes_idle_connections` a connection is
    good for one request: the next one on it is read, and the connection closed without an answer. That is what a
    client sees that sends just when the server's keep-alive time runs out.
    """

    def __init__(
        self,
        *script: Behaviour,
        routes: Mapping[str, Behaviour] | None = None,
        closes_idle_connections: bool = False,
        port: int = 0,
    ) -> None:
        self.requests: list[Seen] = []
        """Every request read, those left without an answer included."""
        self.num_connections = 0
        self._script = list(script) or [stream()]
        self._routes = dict(routes or {})
        self._closes_idle_connections = closes_idle_connections
        self._port = port
        self._proceed: asyncio.Queue[None] = asyncio.Queue()
        self._arrived = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def proceed(self) -> None:
        """Let a behaviour that waits for it take its next step."""
        self._proceed.put_nowait(None)

    async def wait_for_requests(self, num_requests: int) -> None:
        """Return once at least `num_requests` have arrived."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= num_requests)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        connection = self.num_connections
        self.num_connections += 1
        try:
            first = True
            while (seen := await _read_request(reader, connection, first)) is not None:
                first = False
                if not await self._exchange(seen, reader, writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the server is being closed
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with self._arrived:
            self.requests.append(seen)
            self._arrived.notify_all()
        if self._closes_idle_connections and not seen.first_on_connection:
            return False
        exchange = Exchange(seen, writer, self._proceed)
        leaving = asyncio.ensure_future(_watch_client(reader, seen))
        try:
            await self._behaviour(seen.path.partition("?")[0])(exchange)
        except ConnectionError:
            seen.client_gone.set()
            raise
        finally:
            leaving.cancel()
            await asyncio.wait([leaving])
        return exchange.keep_alive and not seen.client_gone.is_set()

    def _behaviour(self, path: str) -> Behaviour:
        if path in self._routes:
            return self._routes[path]
        return self._script.pop(0) if len(self._script) > 1 else self._script[0]


async def _read_request(reader: asyncio.StreamReader, connection: int, first: bool) -> Seen | None:
    """The next request of a connection; None when the client has closed it."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError:
        return None
    return Seen(method, path, headers, body, connection, first)


async def _watch_client(reader: asyncio.StreamReader, seen: Seen) -> None:
    """Notice that the client closes the connection while it is being answered; it has nothing to send meanwhile."""
    try:
        data = await reader.read(1)
    except ConnectionError:
        data = b""
    if not data:
        seen.client_gone.set()
