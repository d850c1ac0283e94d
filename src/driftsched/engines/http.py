"""A lean HTTP/1.1 client for one server: connections are kept, nothing is decoded, redirected or remembered.

    client = HttpClient("http://127.0.0.1:8000", connect_seconds=5.0)
    response = await client.request("POST", "/v1/completions", b"{}")
    try:
        while block := await response.read():
            ...
    finally:
        response.close()

It does what the gateway asks of an engine and no more, because on the way of a request a general client costs more
than all the rest (docs/dependencies.md). No timeouts but that of connecting: who waits knows for how long.
"""

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

from driftsched.engines.http_answer import Answer, AnswerParser, HttpError

KEEPALIVE_SECONDS = 4.0  # llama-server and uvicorn (vLLM, SGLang) close a connection after 5 s of silence: be first
STALE_SECONDS = 1.0  # a connection that was closed already says so within the time of a round trip
READ_BUFFER_BYTES = 256 * 1024  # of an answer nobody reads; beyond it the server has to wait
_ONE_WRITE_BYTES = 64 * 1024  # a larger body is not copied behind the head

Headers = Sequence[tuple[str, str]]

_REQUEST_LINE = re.compile(r"(?!HEAD |CONNECT )[A-Z]+ /[!-~]* HTTP/1\.1")
_HEADER_LINE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*")
# What says where a request ends or how long its connection lasts is said by the client alone.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect"})


class ConnectError(HttpError):
    """No connection: no such name, refused, not in time, or not to be trusted."""


class HttpClient:
    """The connections to the server at `root`, `http://host:port` or `https://host:port`, perhaps with a path.

    `connect_seconds` (> 0) is for resolving the name, connecting and the TLS handshake; the addresses of a name are
    tried one after the other. A connection that was idle for `keepalive_seconds` is closed; one that breaks within
    `stale_seconds` of a request counts as closed before it. `headers` go with every request; Host, Content-Length
    and the like are the client's own. `tls` replaces the default context. There is no
    limit on connections. Raises `ValueError` if `root` or `headers` cannot be sent.
    """

    def __init__(
        self,
        root: str,
        *,
        connect_seconds: float,
        keepalive_seconds: float = KEEPALIVE_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        headers: Headers = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(root)
        self._host = (parts.hostname or "").encode("idna").decode()
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._fixed = f"Host: {_authority(self._host, parts.port)}\r\n".encode() + _header_lines(headers)
        _request_line("GET", f"{self._prefix}/")  # so that a path that cannot be sent is refused now
        self._connect_seconds = connect_seconds
        self._keepalive_seconds = keepalive_seconds
        self._stale_seconds = stale_seconds
        self._connections: set[_Connection] = set()
        self._idle: deque[_Connection] = deque()  # longest idle first; some of them the server has closed
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: Headers = ()
    ) -> "HttpResponse":
        """The answer to a request (any method but HEAD and CONNECT), as soon as its head is complete.

        A kept connection may be closed by the server just as the request goes out; if nothing of an answer came,
        the request is sent once more on a fresh one. One that breaks later has died of something, perhaps of the
        request. Raises `ConnectError`, `NotHttpError` or `HttpError`, and
        `ValueError` for a method, path or header that would not arrive as what it is.
        """
        head = _request_line(method, self._prefix + path) + self._fixed
        if headers:
            head += _header_lines(headers)
        head += b"\r\n" if body is None else b"Content-Length: %d\r\n\r\n" % len(body)
        kept = self._kept_connection()
        if kept is not None:
            now = asyncio.get_running_loop().time
            asked_at = now()
            answer = kept.ask(head, body)
            try:
                return await _opened(kept, answer)
            except HttpError:
                if answer.begun or now() - asked_at > self._stale_seconds:
                    raise
        fresh = await self._connect()
        return await _opened(fresh, fresh.ask(head, body))

    async def close(self) -> None:
        """Close all connections; answers still under way break off, and no request is sent any more."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # the loop closes the sockets

    def _kept_connection(self) -> "_Connection | None":
        """The one used last: so the others grow old and are closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> "_Connection":
        if self._closed:
            raise ConnectError("the client is closed")
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise ConnectError(f"not connected within {self._connect_seconds:g} s") from error
        except OSError as error:
            raise ConnectError(str(error)) from error
        if self._closed:
            connection.abort()
            raise ConnectError("the client is closed")
        return connection

    # What connections tell.

    def _opened(self, connection: "_Connection") -> None:
        self._connections.add(connection)

    def _lost(self, connection: "_Connection") -> None:
        self._connections.discard(connection)

    def _fell_idle(self, connection: "_Connection") -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._keepalive_seconds, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        idle, oldest = self._idle, loop.time() - self._keepalive_seconds
        while idle and (idle[0].idle_since <= oldest or not idle[0].is_open):
            idle.popleft().close()
        self._sweeper = loop.call_at(idle[0].idle_since + self._keepalive_seconds, self._sweep) if idle else None


class HttpResponse:
    """An answer whose head has come. Until its body has ended it owns the connection: close it in any case."""

    __slots__ = ("_answer", "_connection", "headers", "status")

    def __init__(self, answer: Answer, connection: "_Connection") -> None:
        self._answer = answer
        self._connection = connection  # another's as soon as the answer has ended
        self.status = answer.status
        """101, or 200 to 999."""
        self.headers = answer.headers
        """By name in lower case."""

    @property
    def ended(self) -> bool:
        """The whole body has come, though perhaps not all of it was read."""
        return self._answer.ended

    async def read(self) -> bytes:
        """All of the body that has come and was not read, or the next that does; empty at the end.

        One reader at a time. Raises `HttpError` if the body breaks off, after all that came before.
        """
        answer = self._answer
        while not answer.pieces:
            if answer.ended:
                return b""
            await self._connection.more(answer)
        block = answer.take()
        self._connection.resume_reading(answer)
        return block

    def close(self) -> None:
        """Close the connection at once, unless the body has ended. A waiting `read` raises `HttpError`."""
        self._connection.leave(self._answer)


class _Connection(asyncio.Protocol):
    """One connection. It belongs to one answer at a time, or is idle."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._parser = AnswerParser()
        self._answer: Answer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_paused = False
        self.is_open = False
        self.idle_since = 0.0

    def ask(self, head: bytes, body: bytes | None) -> Answer:
        """Send a request; `more` waits for the answer."""
        answer = self._answer = self._parser.begin()
        if body is None or len(body) <= _ONE_WRITE_BYTES:
            self._transport.write(head + body if body else head)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return answer

    async def more(self, answer: Answer) -> None:
        """Return when something has come. Raises `HttpError` if nothing ever will."""
        if answer.failure is not None:
            raise answer.failure
        # Left where it is when it is done: whoever is asked next may have put its own there already.
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        await waiter

    def resume_reading(self, answer: Answer) -> None:
        """There is room again, if the answer is still under way."""
        if self._is_paused and self._answer is answer:
            self._is_paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Say goodbye: for a connection that is idle."""
        self.is_open = False
        self._transport.close()

    def leave(self, answer: Answer) -> None:
        """Stop the server at once, unless the answer has ended and the connection is another's."""
        if self._answer is answer:
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self.is_open = False
        self._break_off(HttpError("closed by the client"))
        self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.is_open = True
        self._client._opened(self)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.failure is not None:  # nobody asked, or nobody listens any more
            self.abort()
            return
        try:
            self._parser.feed(data)
        except HttpError as error:
            self._break_off(error)
            self.abort()
            return
        if answer.ended:
            self._let_go(answer)
        elif answer.num_bytes > READ_BUFFER_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.is_open = False
        self._parser.finish()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._break_off(HttpError(str(error) if error else "the server closed the connection"))
        self._client._lost(self)

    def _let_go(self, answer: Answer) -> None:
        """The answer has ended: on to the next, unless the server wants none or has not yet taken the request."""
        self.resume_reading(answer)
        self._answer = None
        if self._parser.reusable and self.is_open and not self._transport.get_write_buffer_size():
            self._client._fell_idle(self)
        else:
            self.abort()

    def _break_off(self, failure: HttpError) -> None:
        answer = self._answer
        if answer is not None and not answer.ended and answer.failure is None:
            answer.failure = failure
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _opened(connection: _Connection, answer: Answer) -> HttpResponse:
    """The answer, once its head is complete."""
    try:
        while not answer.status:
            await connection.more(answer)
    except BaseException:
        connection.leave(answer)
        raise
    return HttpResponse(answer, connection)


@lru_cache(maxsize=64)
def _request_line(method: str, target: str) -> bytes:
    line = f"{method} {target} HTTP/1.1"
    if not _REQUEST_LINE.fullmatch(line):
        raise ValueError(f"{line!r} is no line of a request")
    return f"{line}\r\n".encode()


def _header_lines(headers: Headers) -> bytes:
    lines = []
    for name, value in headers:
        line = f"{name}: {value}"
        if not _HEADER_LINE.fullmatch(line):
            raise ValueError("a header holds a line break or another character that no header can carry")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"the header {name} is the client's own")
        lines.append(f"{line}\r\n")
    return "".join(lines).encode("latin-1")


def _authority(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"
