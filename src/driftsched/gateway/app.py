"""The HTTP face: a raw ASGI application, because nothing may stand between a stream and its client."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from itertools import count
from math import inf, nan
from secrets import token_hex
from typing import Protocol

import msgspec

from driftsched.core.admission import Bounds
from driftsched.core.errors import EngineError, RejectedError
from driftsched.core.events import PolicyChanged
from driftsched.core.model import Request, Tenant, Tier
from driftsched.core.protocols import Clock, Engine, Policy
from driftsched.core.quotas import Quotas
from driftsched.core.scheduler import Scheduler
from driftsched.core.tracing import Span
from driftsched.engines.payload import Payload
from driftsched.gateway.admin import ADMIN, Admin
from driftsched.gateway.answer import (
    METRICS_CONTENT_TYPE,
    Answer,
    HeaderList,
    Headers,
    Message,
    Receive,
    Send,
    model_list,
    respond,
)
from driftsched.gateway.bodies import whole_body
from driftsched.gateway.dispatcher import Dispatcher, Turn
from driftsched.gateway.errors import (
    ClientLeftError,
    ClientStalledError,
    ExpiredError,
    HttpError,
    ShedError,
    from_engine,
    from_expiry,
    from_rejection,
    from_shed,
    internal,
    model_not_found,
    stopping,
)
from driftsched.gateway.holding import Holding
from driftsched.gateway.openapi import OPENAPI
from driftsched.gateway.passed import PassedAnswer, PassedBody, passed_call
from driftsched.gateway.ratelimits import rate_limits
from driftsched.gateway.reading import Reading, read
from driftsched.gateway.responses import ResponsesAnswer
from driftsched.gateway.tenants import OBJECTIVE_HEADERS, TENANT_HEADERS, effective_tier
from driftsched.gateway.whereabouts import Whereabouts
from driftsched.gateway.wire import CHAT, COMPLETIONS, RESPONSES, Call, read_call

_logger = logging.getLogger(__name__)

MAX_REQUEST_ID_BYTES = 128
QUEUE = "/v1/queue/"

_TRACEPARENT = b"traceparent"
_FORWARDED = (_TRACEPARENT, b"tracestate")  # what of a client's headers an engine gets to see
_SAID_ONCE = (b"authorization", b"host", *TENANT_HEADERS, *OBJECTIVE_HEADERS)
_SESSION = b"x-session-id"
_MAX_QUEUE_SECONDS = b"x-driftsched-max-queue-seconds"
_SLO_SECONDS = b"x-driftsched-slo-seconds"
_CLOSE = (("connection", "close"),)  # the rest of the body is not worth reading


class TenantResolver(Protocol):
    """Who is calling."""

    def check(self, headers: Headers) -> None:
        """Raises `HttpError` 401 for a caller that will not be served, whatever its body says."""
        ...

    def resolve(self, headers: Headers, user: str | None) -> Tenant:
        """The tenant. Raises `HttpError` 401."""
        ...

    def asked_tier(self, headers: Headers) -> Tier | None:
        """The tier asked for in headers that count. Raises `HttpError` 401."""
        ...


class Readiness(Protocol):
    """Whether the engines behind can serve, and which models."""

    @property
    def models(self) -> tuple[str, ...] | None:
        """Models served; None while no engine has told yet."""
        ...

    async def ready(self) -> bool: ...


class Gateway:
    """One OpenAI-compatible server in front of one pool of engines."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        engine: Engine,
        catalogue: Readiness,
        tenants: TenantResolver,
        clock: Clock,
        policy_name: str,
        metrics: Callable[[], bytes],
        max_body_bytes: int = 8 << 20,
        max_queue_seconds: float = 600.0,
        max_stall_seconds: float = 60.0,
        keep_alive_seconds: float | None = None,
        admin: Admin | None = None,
        private_metrics: bool = False,
        quotas: Quotas | None = None,
        holding: Holding | None = None,
        trace: Callable[[str], Span] | None = None,
        passthrough: Sequence[str] = (),
        openapi: bytes = b"{}",
    ) -> None:
        """`max_queue_seconds`: a request that waited so long is evicted. `max_stall_seconds`: how long a client may
        take to send its body, or to accept a piece of its answer. `keep_alive_seconds`: between two comments in a
        stream that waits; None: none. `metrics`: Prometheus text. `admin`: what operators may see; None: nothing.
        `private_metrics`: only they may read the metrics.
        `quotas`: those of the scheduler. `holding`: where requests of tenants with `max_inflight` are held; None:
        no such quota counts.
        `trace`: the span of a request, by the caller's `traceparent`, which may be anything; None: it is passed on
        as it is.
        `passthrough`: paths whose calls are scheduled and otherwise left alone. `openapi`: says all this.
        """
        self.dispatcher = Dispatcher(scheduler, engine, clock, keep_alive_seconds=keep_alive_seconds)
        self._scheduler = scheduler
        self._catalogue = catalogue
        self._tenants = tenants
        self._clock = clock
        self._quotas = quotas or Quotas()
        self._holding = holding
        self._whereabouts = Whereabouts(scheduler, clock, holding)
        self._admin = admin
        self._private_metrics = private_metrics
        self._openapi = openapi
        self._trace = trace
        self._policy_name = policy_name.encode()
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._max_queue_seconds = max_queue_seconds
        self._max_stall_seconds = max_stall_seconds
        self._find: Callable[[Headers, Reading], tuple[Gateway, Reading]] | None = None
        self._id_prefix = token_hex(6)
        self._ids = count(1)
        self._routes: dict[str, dict[str, Callable[[Headers, Receive, Send], Awaitable[None]]]] = {
            **{path: {"POST": partial(self._generate, path)} for path in (*passthrough, *_GENERATING)},
            "/v1/models": {"GET": self._list_models},
            "/health": {"GET": self._alive},
            "/healthz": {"GET": self._alive},
            "/readyz": {"GET": self._ready},
            "/metrics": {"GET": self._export_metrics},
            OPENAPI: {"GET": self._describe},
        }

    def use(
        self,
        tenants: TenantResolver,
        bounds: Bounds,
        *,
        admin_keys_sha256: Sequence[str],
        max_body_bytes: int,
        max_queue_seconds: float,
        max_stall_seconds: float,
    ) -> None:
        """Serve under these terms from the next request on; what was admitted goes on as it was."""
        self._tenants = tenants
        self._scheduler.use_bounds(bounds)
        if self._holding is not None:
            self._holding.max_held = bounds.max_waiting_per_tenant
            self._holding.max_held_bytes = bounds.max_waiting_bytes
        if self._admin is not None:
            self._admin.use_keys(admin_keys_sha256)
        self._max_body_bytes = max_body_bytes
        self._max_queue_seconds = max_queue_seconds
        self._max_stall_seconds = max_stall_seconds

    async def adopt(self, policy: Policy, change: PolicyChanged) -> None:
        """Serve under another policy from here on."""
        self._policy_name = change.after.encode()
        await self.dispatcher.adopt(policy, change)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            raise RuntimeError(f"no {scope['type']} here")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.dispatcher.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.dispatcher.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        headers: Headers = dict(scope["headers"])
        try:
            if len(headers) < len(scope["headers"]):
                _refuse_repeated(scope["headers"])
            handler = self._route(scope["path"], scope["method"])
            await handler(headers, receive, send)
        except HttpError as error:
            await self._refuse(error, headers, send)
        except ClientLeftError:
            return  # nobody is there to be told
        except Exception:  # what a generation may meet is handled where it runs: here no response has begun
            _logger.exception("%s %r failed", scope["method"], scope["path"])  # a path may hold line breaks
            await self._refuse(internal(), headers, send)

    async def _refuse(self, error: HttpError, headers: Headers, send: Send) -> None:
        request_id = _request_id(headers, self._next_id()).decode()
        await respond(send, error.status, error.body, (*error.headers, ("x-request-id", request_id)))

    def _route(self, path: str, method: str) -> Callable[[Headers, Receive, Send], Awaitable[None]]:
        methods = self._routes.get(path)
        if path.startswith(QUEUE):
            methods = {"GET": lambda h, r, s: self._locate(path.removeprefix(QUEUE), h, r, s)}
        if self._admin is not None and path.startswith(ADMIN):
            methods = self._admin.methods(path, self._whereabouts)
        if methods is None:
            raise HttpError(404, f"There is no {path} here.", code="unknown_url")
        if method == "HEAD" and "GET" in methods:
            method = "GET"  # the HTTP server leaves the body out
        if method not in methods:
            allow = ", ".join(methods)
            raise HttpError(
                405, f"{path} takes {allow}, not {method}.", code="method_not_allowed", headers=(("allow", allow),)
            )
        return methods[method]

    async def _generate(self, endpoint: str, headers: Headers, receive: Receive, send: Send) -> None:
        """One generation, from its body to its last byte. The client may leave at any point of it."""
        self._tenants.check(headers)  # before a byte of the body is read
        reading = read(endpoint, await self._read_body(headers, receive), headers)
        if self._find is None:
            await self._answer(reading, headers, receive, send)
        else:
            gateway, reading = self._find(headers, reading)
            await gateway._answer(reading, headers, receive, send)

    async def _answer(self, reading: Reading, headers: Headers, receive: Receive, send: Send) -> None:
        endpoint = reading.endpoint
        if len(reading.body) > self._max_body_bytes:  # it was read by a gateway that takes more
            raise self._too_large()
        call, request = self._understand(reading, headers)
        public_id = request.public_id.encode()
        answer = _GENERATING.get(endpoint, PassedAnswer)(
            send,
            call,
            public_id,
            self._policy_name,
            max_stall_seconds=self._max_stall_seconds,
            rate_limits=rate_limits(self._quotas, request.tenant, self._clock),
        )
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - an ASGI server runs every request in a task

        def leave(_: object) -> None:
            task.cancel()

        watch = asyncio.get_running_loop().create_task(_until_gone(receive))
        watch.add_done_callback(leave)
        try:
            with self._whereabouts.following(request, public_id):
                await self._serve(request, answer, client_left=watch.done)
        except asyncio.CancelledError:
            if not watch.done():
                await answer.fail(stopping(self._scheduler.retry_after_seconds))
                raise
            task.uncancel()  # the client left: its account was settled on the way here, and nobody is to be told
        finally:
            watch.remove_done_callback(leave)
            watch.cancel()

    async def _serve(self, request: Request, answer: Answer, client_left: Callable[[], bool]) -> None:
        """Wait in line, relay the engine's answer, and say so when there is none."""
        try:
            if request.tenant.quota is None or self._holding is None:
                turn = await self._relay(request, answer, client_left)
            else:
                async with self._holding.place(request, answer.keep_alive_held) as placed:
                    if placed is not request:
                        answer.held(placed.arrived_at - request.arrived_at)
                    turn = await self._relay(placed, answer, client_left)
            await answer.end(turn)  # after the turn, so that a slow reader of a whole document holds no slot
        except RejectedError as error:
            await answer.fail(from_rejection(error))
        except ExpiredError:
            waited = self._clock.now() - request.arrived_at
            await answer.fail(from_expiry(waited, self._scheduler.retry_after_seconds))
        except ShedError:
            waited = self._clock.now() - request.arrived_at
            await answer.fail(from_shed(waited, self._scheduler.retry_after_seconds))
        except EngineError as error:
            await answer.fail(from_engine(error, self._scheduler.retry_after_seconds))
        except ClientStalledError:
            _logger.warning("request %s: its client stopped reading, and is sent away", request.id)
        except Exception:
            _logger.exception("request %s failed", request.id)
            await answer.fail(internal())

    async def _relay(self, request: Request, answer: Answer, client_left: Callable[[], bool]) -> Turn:
        """The turn of the request, when it is over."""
        async with (
            self.dispatcher.turn(request, client_left, answer.keep_alive) as turn,
            aclosing(turn.answer()) as chunks,
        ):
            async for chunk in chunks:
                await answer.relay(chunk, turn)
            answer.complete()
        return turn

    def _understand(self, reading: Reading, headers: Headers) -> tuple[Call, Request]:
        """What the client wants, and what of it the scheduler needs to know. Raises `HttpError` 400, 401 or 404."""
        fields = reading.fields
        tenant = self._tenants.resolve(headers, fields.user)
        if isinstance(fields, PassedBody):
            call = passed_call(fields, len(reading.body), reading.content_type)
        else:
            session = headers.get(_SESSION, b"").decode("latin-1")
            call = read_call(fields, tenant=tenant.id, session=session)
        served, models = self._catalogue.models, self._models_of(tenant)
        if tenant.models is not None and (clear := reading.model(served or ())) != call.model:
            call = replace(call, model=clear)
        elif not call.model and served:
            call = replace(call, model=served[0])  # the engine's own choice, where it needs no name
        if models is not None and call.model not in models:
            raise model_not_found(call.model, models)
        return call, self._request(reading, call, tenant, headers)

    def divert(self, find: Callable[[Headers, Reading], tuple["Gateway", Reading]]) -> None:
        """Let `find` say which gateway answers a call, and what is then asked of it. It may raise `HttpError`."""
        self._find = find

    def tenant_of(self, headers: Headers, user: str | None = None) -> Tenant:
        """Who is calling. Raises `HttpError` 401."""
        return self._tenants.resolve(headers, user)

    def _models_of(self, tenant: Tenant) -> Sequence[str] | None:
        """The models that the tenant may use; None while all may be, and no engine has told which there are."""
        served = self._catalogue.models
        if tenant.models is None:
            return served
        return sorted(tenant.models if served is None else tenant.models.intersection(served))

    def _request(self, reading: Reading, call: Call, tenant: Tenant, headers: Headers) -> Request:
        now = self._clock.now()
        request_id = self._next_id()
        span = self._trace(headers.get(_TRACEPARENT, b"").decode("latin-1")) if self._trace else None
        return Request(
            id=request_id,
            tenant=tenant,
            tier=effective_tier(tenant, call.asked_tier, self._tenants.asked_tier(headers)),
            model=call.model,
            arrived_at=now,
            prompt=call.prompt,
            prompt_bytes=call.prompt_bytes,
            max_tokens=call.max_tokens,
            traits=call.traits,
            expires_at=now + min(self._max_queue_seconds, _seconds_said(headers, _MAX_QUEUE_SECONDS) or inf),
            target_seconds=_seconds_said(headers, _SLO_SECONDS),
            payload=Payload(
                reading.endpoint,
                reading.body,
                call.stream,
                call.wants_usage,
                (*_forwarded(headers, span), ("x-request-id", request_id)),
                passed=reading.is_passed,
                content_type=reading.content_type,
            ),
            payload_bytes=len(reading.body),
            public_id=_request_id(headers, request_id).decode(),
            span=span,
        )

    def _next_id(self) -> str:
        return f"{self._id_prefix}-{next(self._ids)}"

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises `HttpError` 408, 413 or 415, and `ClientLeftError`."""
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise HttpError(415, "Send the body uncompressed.", code="unsupported_content_encoding")
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._max_stall_seconds):
                return await whole_body(receive, self._max_body_bytes, self._too_large)
        except TimeoutError:
            raise HttpError(408, "The body took too long to arrive.", code="body_timeout", headers=_CLOSE) from None

    def _too_large(self) -> HttpError:
        return HttpError(
            413,
            f"The body is larger than the {self._max_body_bytes} bytes that this server accepts.",
            code="body_too_large",
            headers=_CLOSE,
        )

    async def _list_models(self, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        models = self._models_of(self._tenants.resolve(headers, None)) or ()
        await respond(send, 200, model_list(models))

    async def _locate(self, public_id: str, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Raises `HttpError` 404 for whatever is not the caller's own, so that nobody learns what others ask."""
        tenant = self._tenants.resolve(headers, None)
        found = self._whereabouts.find(tenant, public_id.encode("utf-8", "surrogatepass"))
        if found is None:
            raise HttpError(404, "You have no request of this id here.", code="unknown_request")
        await respond(send, 200, msgspec.json.encode({"object": "queue.request", "id": public_id, **found}))

    async def _alive(self, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await respond(send, 200, b'{"status":"ok"}')

    async def _ready(self, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        if await self._catalogue.ready():
            await respond(send, 200, b'{"status":"ready"}')
        else:
            await respond(send, 503, b'{"status":"no engine can be reached"}')

    async def _describe(self, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await respond(send, 200, self._openapi)

    async def _export_metrics(self, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        if self._private_metrics and self._admin is not None:
            self._admin.check(headers)
        await respond(send, 200, self._metrics(), content_type=METRICS_CONTENT_TYPE)


def _refuse_repeated(lines: HeaderList) -> None:
    """Raises `HttpError` 400 if it is said twice who calls: whoever looked before us may have taken the other."""
    for name in _SAID_ONCE:
        if sum(key == name for key, _ in lines) > 1:
            raise HttpError(400, f"The header {name.decode()} is there twice.", code="repeated_header")


_GENERATING: dict[str, type[Answer]] = {CHAT: Answer, COMPLETIONS: Answer, RESPONSES: ResponsesAnswer}
"""Where answers are generated, and the form they take."""


def _request_id(headers: Headers, otherwise: str) -> bytes:
    """The client's own id for its request if it is fit to be sent back, else ours."""
    theirs = headers.get(b"x-request-id", b"")
    fit = 0 < len(theirs) <= MAX_REQUEST_ID_BYTES and theirs.isascii() and theirs.decode().isprintable()
    return theirs if fit else otherwise.encode()


def _forwarded(headers: Headers, span: Span | None) -> list[tuple[str, str]]:
    """What an engine is told of the trace: the caller's own words, or that we stand between it and the caller."""
    passed = [(name.decode(), headers[name].decode("latin-1")) for name in _FORWARDED if name in headers]
    if span is None:
        return passed
    state = [(name, said) for name, said in passed if name != "traceparent" and span.parent_id]
    return [("traceparent", span.traceparent), *state]


def _seconds_said(headers: Headers, header: bytes) -> float | None:
    """What the client says in a header; None if it does not, or if it says `inf`. Raises `HttpError` 400."""
    if header not in headers:
        return None
    said = headers[header].decode("latin-1")
    try:
        seconds = float(said)
    except ValueError:
        seconds = nan
    if not seconds > 0:
        name = header.decode()
        raise HttpError(
            400, f"{name}: not a number of seconds above 0: {said!r}.", param=name, code="invalid_value"
        )
    return seconds if seconds < inf else None


async def _until_gone(receive: Receive) -> None:
    """Returns when the client has left; bytes of a pipelined request in between are nobody's business here."""
    while (await receive())["type"] != "http.disconnect":
        pass
