"""Any OpenAI-compatible server over HTTP: vLLM, SGLang, llama-server, Ollama and the like."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from driftsched.core.errors import ConfigError, EngineError
from driftsched.core.limit import Vitals
from driftsched.core.model import Request
from driftsched.core.protocols import Chunk, EngineKind, Saturation
from driftsched.engines.dialects import dialect_of
from driftsched.engines.failures import refusal
from driftsched.engines.from_chat import ChatTranslator
from driftsched.engines.http import ConnectError, HttpClient, HttpResponse
from driftsched.engines.http_answer import HttpError, NotHttpError
from driftsched.engines.kinds import Discovery, engine_priority, recognise
from driftsched.engines.passed import PassedScanner
from driftsched.engines.payload import Payload
from driftsched.engines.responses import ResponsesScanner, fields_to_echo
from driftsched.engines.sse import EventScanner
from driftsched.engines.to_chat import chat_body
from driftsched.engines.vitals import MAX_METRICS_BYTES, read_metrics, read_slots
from driftsched.engines.wire import CHAT, RESPONSES, upstream_body

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Largest answer accepted in one piece."""
MAX_ERROR_BYTES = 64 * 1024
"""Largest error document read; of a longer one only the status counts."""

UNHEALTHY_SECONDS = 1.0
END_OF_BODY_SECONDS = 0.5  # how long an engine that has said [DONE] may take to end the body
PROBE_SECONDS = 3.0
_NO_SUCH_PATH = (404, 405)
# llama-server, as of November 2026: its events have no numbers and indices, so that the official client's helper
# breaks, and `completed` is what it calls an answer that was cut at its limit.
_POOR_RESPONSES = ("llama.cpp",)

Scanner = EventScanner | ResponsesScanner | ChatTranslator | PassedScanner
"""Reads one answer, and keeps its accounts."""

# Not for the engine: the client's credentials, what belongs to one connection, and X-Conversation-Id, which makes
# llama-server go on generating after the connection is closed.
_STRIPPED_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-conversation-id"}
    | {"host", "content-type", "content-length", "content-encoding", "accept-encoding", "connection", "keep-alive"}
    | {"te", "trailer", "transfer-encoding", "upgrade", "expect"}
)

_FIXED_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # what is read is relayed as it is
    "User-Agent": "driftsched",
}


class OpenAIEngine:
    """A model server reached over HTTP.

    `url` is `http://host:port`, with or without `/v1`. `kind` is which server it is; None: to be found out by
    `discover`. `api_key` is the gateway's own key for the engine.
    `priority`: tell the engine how urgent a request is, if it is of a kind that understands; "client": pass on what
    the client says of it. `drop_fields` are left out of every call, and `rename_fields` (what the client says, and
    what the engine gets) put otherwise, besides what is known of its kind (see `dialects`).
    `stream_whole_answers`: ask it to stream also what a client wants whole.
    `max_inflight` (>= 1) is what `saturation` measures against; None means that the engine never counts as full.
    Seconds are > 0: `connect_timeout_seconds` to resolve and connect, `first_byte_timeout_seconds` from the call to
    the first byte of the answer (the engine's own queue and the prompt included), `idle_timeout_seconds` between
    two reads after that, `total_timeout_seconds` from the call to the end of the answer, whoever is slow; None: for
    as long as it takes. Raises `ConfigError` if an argument is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        kind: EngineKind | None = None,
        api_key: str | None = None,
        priority: bool | Literal["client"] = False,
        drop_fields: Sequence[str] = (),
        rename_fields: Mapping[str, str] | None = None,
        stream_whole_answers: bool = True,
        max_inflight: int | None = None,
        connect_timeout_seconds: float = 5.0,
        first_byte_timeout_seconds: float = 600.0,
        idle_timeout_seconds: float = 120.0,
        total_timeout_seconds: float | None = None,
    ) -> None:
        self._root = _server_root(url)
        self._name = name or urlsplit(self._root).netloc
        self._kind = kind
        self._priority = priority
        self._drop_fields, self._rename_fields = tuple(drop_fields), dict(rename_fields or {})
        self._dialect = dialect_of(kind, self._drop_fields, self._rename_fields)
        self._streams_whole = stream_whole_answers
        self._max_inflight = None if max_inflight is None else _positive("max_inflight", max_inflight)
        self._connect_seconds = _positive("connect_timeout_seconds", connect_timeout_seconds)
        self._first_byte_seconds = _positive("first_byte_timeout_seconds", first_byte_timeout_seconds)
        self._idle_seconds = _positive("idle_timeout_seconds", idle_timeout_seconds)
        self._total_seconds = (
            inf if total_timeout_seconds is None else _positive("total_timeout_seconds", total_timeout_seconds)
        )
        headers = dict(_FIXED_HEADERS)
        if api_key is not None:
            if not api_key.isprintable() or not api_key.isascii() or " " in api_key:
                raise ConfigError(
                    "api_key holds a space, a line break or another character that no header can carry"
                )
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            self._client = HttpClient(
                self._root, connect_seconds=self._connect_seconds, headers=tuple(headers.items())
            )
        except ValueError as error:
            raise ConfigError(f"url {url!r}: {error}") from error
        self._inflight = 0
        self._unreachable_at: float | None = None
        self._lacks_responses = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def url(self) -> str:
        """Where the server is, without `/v1`."""
        return self._root

    @property
    def prioritises(self) -> bool:
        """Whether it is to be told how urgent a request is."""
        return self._priority is True

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """The answer to `request.payload` (a `Payload`), piece by piece.

        Server-sent events whether or not the client asked for a stream, or one JSON document if what it asked for
        cannot be streamed (see `upstream_body`) or the engine does not stream. Closing the iterator closes the
        connection, which stops the engine. Raises `EngineError` as tabled in docs/engines-http.md.
        """
        payload = request.payload
        if not isinstance(payload, Payload):
            raise TypeError("request.payload must be a driftsched.engines.payload.Payload")
        self._inflight += 1
        try:
            answer, block, scanner = await self._ask(payload, request)
            try:
                if not answer.is_event_stream:
                    document = scanner.document(await answer.rest(block, MAX_DOCUMENT_BYTES))
                    yield document._replace(media_type=answer.media_type) if payload.passed else document
                    return
                while block:
                    for chunk in scanner.feed(block):
                        yield chunk
                    block = await _next_block(answer, scanner)
                for chunk in scanner.finish():
                    yield chunk
                if scanner.failure is not None:
                    raise scanner.failure
            finally:
                answer.close()
        finally:
            self._inflight -= 1

    async def saturation(self) -> Saturation:
        """Requests in flight against `max_inflight`; unhealthy for a second after it could not be reached."""
        fraction = min(1.0, self._inflight / self._max_inflight) if self._max_inflight else 0.0
        since = self._unreachable_at
        healthy = since is None or asyncio.get_running_loop().time() - since >= UNHEALTHY_SECONDS
        return Saturation(fraction, healthy)

    async def discover(self) -> Discovery:
        """Ask the engine for its models, its slots and what it is.

        Only `/v1/models` must answer: raises `EngineError` if it does not, or with something else than a list of
        models. The other questions are put to every server; an answer without the expected field counts as none.
        """
        listing, props, version, server_info, ollama = await asyncio.gather(
            self._models(),
            self._probe("/props"),
            self._probe("/version"),
            self._probe("/server_info?config_format=json"),  # vLLM in development mode; SGLang ignores the query
            self._probe("/api/version"),
        )
        found = recognise(
            listing, props=props, version=version, server_info=server_info, ollama=ollama, kind=self._kind
        )
        self._kind = found.kind
        self._dialect = dialect_of(found.kind, self._drop_fields, self._rename_fields)
        return found

    async def vitals(self) -> Vitals | None:
        """What the engine says of its batch, its queue and its memory; None if it says nothing.

        Raises `EngineError` if it could not be asked.
        """
        if self._kind == "ollama":  # it has nothing of the kind
            return None
        try:
            status, page = await self._get("/metrics", MAX_METRICS_BYTES)
            vitals = read_metrics(page) if status == 200 else None
            if vitals is None and self._kind == "llama.cpp":
                status, document = await self._get("/slots", MAX_METRICS_BYTES)
                vitals = read_slots(_decoded(document)) if status == 200 else None
        except OSError as error:
            why = str(error) or "no answer in time"
            raise EngineError(503, "engine_unreachable", f"cannot ask {self._root}/metrics: {why}") from error
        return vitals

    async def check(self) -> None:
        """Ask it whether it is well. Raises `EngineError` if it cannot be reached, or says that it cannot serve.

        Whatever it says below 500 will do: not every server has a `/health`, but one that answers is there.
        """
        try:
            status, _ = await self._get("/health", MAX_ERROR_BYTES)
        except TimeoutError as error:
            waited = f"{PROBE_SECONDS:g} s"
            raise EngineError(504, "engine_timeout", f"{self._name}/health did not answer in {waited}") from error
        except OSError as error:
            raise self._unanswered(error) from error
        if status >= 500:
            raise EngineError(503, "engine_unreachable", f"{self._name}/health answers {status}")

    async def close(self) -> None:
        """Close all connections; answers still under way break off."""
        await self._client.close()

    async def _ask(self, payload: Payload, request: Request) -> "tuple[_Answer, bytes, Scanner]":
        """The opened answer, its first block, and what reads it."""
        if payload.passed:
            return *await self._send(payload, payload.body), PassedScanner()
        priority = engine_priority(self._kind, request.urgency) if self.prioritises else None
        keeps = self._priority == "client"
        body = upstream_body(
            payload, priority, keeps_priority=keeps, dialect=self._dialect, streams_whole=self._streams_whole
        )
        if payload.endpoint != RESPONSES:
            return *await self._send(payload, body), EventScanner()
        if self._kind not in _POOR_RESPONSES and not self._lacks_responses:
            try:
                return *await self._send(payload, body), ResponsesScanner(request.max_tokens)
            except EngineError as error:
                if error.kind != "engine_rejected" or error.status not in _NO_SUCH_PATH:
                    raise
        plain = upstream_body(payload, priority, keeps_priority=keeps)
        call = replace(payload, endpoint=CHAT, body=chat_body(plain), stream=True)
        translator = ChatTranslator(fields_to_echo(payload.body))
        body = upstream_body(call, priority, keeps_priority=True, dialect=self._dialect)
        answered = await self._send(call, body)
        self._lacks_responses = True  # now it is certain: a model that is not there is refused at both paths
        return *answered, translator

    async def _send(self, payload: Payload, body: bytes) -> "tuple[_Answer, bytes]":
        """The opened answer, whose status is 200, and its first block."""
        passed = [(name, value) for name, value in payload.headers if name.lower() not in _STRIPPED_HEADERS]
        asked_at = asyncio.get_running_loop().time()
        ends_at = asked_at + self._total_seconds
        passed.append(("Content-Type", payload.content_type))
        try:
            async with asyncio.timeout_at(min(asked_at + self._first_byte_seconds, ends_at)):
                response = await self._client.request("POST", payload.endpoint, body, passed)
                self._unreachable_at = None
                answer = _Answer(response, self._idle_seconds, ends_at)
                try:
                    return answer, await answer.first_block()
                except BaseException:
                    answer.close()
                    raise
        except OSError as error:
            raise self._unanswered(error) from error

    def _unanswered(self, error: OSError) -> EngineError:
        """What it means that no answer began."""
        if isinstance(error, ConnectError):
            self._unreachable_at = asyncio.get_running_loop().time()
            self._lacks_responses = False  # another server may come back in its place
            return EngineError(503, "engine_unreachable", f"cannot connect to the engine {self._name}: {error}")
        if isinstance(error, NotHttpError):
            return EngineError(502, "garbage", f"the engine {self._name} does not speak HTTP: {error}")
        if isinstance(error, HttpError):
            return EngineError(502, "broken_stream", f"the engine {self._name} broke off: {error}")
        waited = f"{min(self._first_byte_seconds, self._total_seconds):g} s"
        return EngineError(504, "engine_timeout", f"the engine {self._name} sent nothing in {waited}")

    async def _models(self) -> list[dict[str, Any]]:
        try:
            status, document = await self._get("/v1/models")
        except OSError as error:
            raise EngineError(
                503, "engine_unreachable", f"cannot ask {self._root}/v1/models: {str(error) or 'no answer in time'}"
            ) from error
        if status != 200:
            raise refusal(status, document)
        listing = _object(document).get("data")
        if not isinstance(listing, list):
            raise EngineError(502, "garbage", f"{self._root}/v1/models does not answer with a list of models")
        return [entry for entry in listing if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def _probe(self, path: str) -> dict[str, Any]:
        try:
            status, document = await self._get(path)
        except (OSError, EngineError):
            return {}
        return _object(document) if status == 200 else {}

    async def _get(self, path: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> tuple[int, bytes]:
        async with asyncio.timeout(PROBE_SECONDS):
            response = await self._client.request("GET", path)
            answer = _Answer(response, PROBE_SECONDS)
            try:
                return response.status, await answer.rest(b"", max_bytes)
            finally:
                answer.close()


class _Answer:
    """An open HTTP answer. It owns the connection until the body has ended or `close` is called.

    One timer per answer watches for silence, and for the instant `ends_at` of the loop's clock at which it must be
    over: a timeout around every read costs more than reading a chunk.
    """

    def __init__(self, response: HttpResponse, idle_seconds: float, ends_at: float = inf) -> None:
        self._response = response
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._waiting_since = inf  # while nobody reads, the silence is not the engine's
        self._ends_at = ends_at
        self._given_up: str | None = None  # why
        self._watch = self._loop.call_at(min(self._loop.time() + idle_seconds, ends_at), self._look)

    @property
    def is_event_stream(self) -> bool:
        return self.media_type.lower().startswith("text/event-stream")

    @property
    def media_type(self) -> str:
        return self._response.headers.get("content-type", "")

    async def first_block(self) -> bytes:
        """As `read`, for as long as the caller is willing to wait. Raises the refusal if the status is not 200."""
        is_plain = self._response.headers.get("content-encoding", "identity").lower() == "identity"
        if self._response.status == 200:
            if not is_plain:
                raise EngineError(502, "garbage", "the engine compresses its answer, which was not asked for")
            return await self._response.read()
        try:
            document = await self.rest(b"", MAX_ERROR_BYTES) if is_plain else b""
        except EngineError:  # too long, or it broke off: the status says enough
            document = b""
        raise refusal(self._response.status, document, retry_after=self._response.headers.get("retry-after"))

    async def read(self) -> bytes:
        """All that has arrived, or the next that does; empty at the end."""
        self._waiting_since = self._loop.time()
        try:
            return await self._response.read()
        except OSError as error:
            if self._given_up is not None:
                raise EngineError(504, "engine_timeout", self._given_up) from error
            raise EngineError(502, "broken_stream", f"the connection to the engine broke off: {error}") from error
        finally:
            self._waiting_since = inf

    async def rest(self, block: bytes, max_bytes: int) -> bytes:
        """The whole body, of which `block` was read before."""
        blocks = [block]
        size = len(block)
        while block := await self.read():
            blocks.append(block)
            size += len(block)
            if size > max_bytes:
                raise EngineError(502, "garbage", f"the engine's answer is larger than {max_bytes} bytes")
        return b"".join(blocks)

    async def end(self) -> None:
        """Wait a moment for the end of the body, so that the connection can serve the next request."""
        if not self._response.ended:
            with suppress(OSError):
                async with asyncio.timeout(END_OF_BODY_SECONDS):
                    await self._response.read()

    def close(self) -> None:
        """Close the connection at once, unless the body has ended and it is back in the pool."""
        self._watch.cancel()
        self._response.close()

    def _look(self) -> None:
        now = self._loop.time()
        silence = max(0.0, now - self._waiting_since)
        if now >= self._ends_at:
            self._given_up = "the engine took longer for its answer than it may"
        elif silence >= self._idle_seconds:
            self._given_up = f"the engine fell silent for {self._idle_seconds:g} s"
        if self._given_up is None:
            self._watch = self._loop.call_at(min(now + self._idle_seconds - silence, self._ends_at), self._look)
        else:
            self._response.close()


async def _next_block(answer: _Answer, scanner: Scanner) -> bytes:
    """The next block of a stream; empty when the engine has nothing more to say. Raises what the scanner found."""
    if scanner.failure is not None:
        raise scanner.failure
    if scanner.done:
        await answer.end()
        return b""
    try:
        return await answer.read()
    except EngineError:
        if scanner.complete:  # only the [DONE] or the end of the body is missing
            return b""
        raise


def _server_root(url: str) -> str:
    """`url` without `/v1` and trailing slashes. Raises `ConfigError` naming what is wrong with it."""
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port != 0
    except ValueError:
        port_is_valid = False
    if not port_is_valid:
        raise ConfigError(f"url {url!r}: the host or port is not valid, write http://host:port")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url {url!r}: write http://host:port or https://host:port")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("url: leave out the user and password, and give the engine's key as api_key")
    if parts.query or parts.fragment:
        raise ConfigError(f"url {url!r}: leave out everything from the '?' or '#' on")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1').rstrip('/')}"


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ConfigError(f"{name} is {value}: it must be greater than 0")
    return value


def _object(document: bytes) -> dict[str, Any]:
    """The JSON object in `document`, empty if it is something else."""
    fields = _decoded(document)
    return fields if isinstance(fields, dict) else {}


def _decoded(document: bytes) -> Any:
    """What the JSON in `document` says; None if it is none."""
    try:
        return msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
