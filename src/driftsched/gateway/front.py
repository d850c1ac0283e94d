"""One face of several gateways, each with its own queue and engines: a call goes to the one that serves its model.

Whoever waits for one pool is in nobody's way at another: they share a process, and nothing else.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from driftsched.gateway.admin import ADMIN, STATE
from driftsched.gateway.answer import Headers, Message, Receive, Send, model_list, respond
from driftsched.gateway.app import QUEUE, Gateway, Readiness
from driftsched.gateway.errors import ClientLeftError, HttpError, internal, model_not_found
from driftsched.gateway.passed import is_form, model_of_form
from driftsched.gateway.roster import ENGINES

_logger = logging.getLogger(__name__)


class _Addressed(msgspec.Struct):
    model: str


class _Listing(msgspec.Struct):
    data: list[dict[str, object]]


_decode_address = msgspec.json.Decoder(_Addressed).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_listing = msgspec.json.Decoder(_Listing).decode


@dataclass(frozen=True, slots=True)
class Pool:
    """A gateway, and which models are asked of it."""

    name: str
    gateway: Gateway
    catalogue: Readiness
    models: Sequence[str] = ()
    """Those that the operator says it serves; none: those that its engines say."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names that clients may use besides, and the model that each stands for."""

    def served(self) -> Sequence[str]:
        """Models, as engines know them."""
        return self.models or self.catalogue.models or ()


class _Reply(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Front:
    """An ASGI application. What is not a call for a model is asked of every pool, and put together."""

    def __init__(self, pools: Sequence[Pool], *, join_metrics: Callable[[Mapping[str, bytes]], bytes]) -> None:
        """At least one pool; the first one answers what concerns none in particular.

        `join_metrics`: the metrics of all, of those of each.
        """
        self._pools = {pool.name: pool for pool in pools}
        self._first = pools[0]
        self._join_metrics = join_metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        headers: Headers = dict(scope["headers"])
        try:
            await self._answer(scope, headers, receive, send)
        except HttpError as error:
            await respond(send, error.status, error.body, error.headers)
        except ClientLeftError:
            return  # nobody is there to be told
        except Exception:
            _logger.exception("%s %r failed", scope["method"], scope["path"])  # a path may hold line breaks
            await respond(send, internal().status, internal().body)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        for pool in self._pools.values():
            pool.gateway.dispatcher.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for pool in self._pools.values():
            await pool.gateway.dispatcher.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Message, headers: Headers, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if scope["method"] == "POST" and not path.startswith(ADMIN):
            await self._relay(scope, headers, receive, send)
        elif path == "/v1/models":
            await _pass_on(send, await self._models(scope))
        elif path == "/readyz":
            await _pass_on(send, await self._first_that(scope, lambda reply: reply.status == 200))
        elif path == "/metrics":
            await _pass_on(send, await self._metrics(scope))
        elif path == STATE:
            await _pass_on(send, await self._state(scope))
        elif path == ENGINES:
            await self._roster(scope, receive, send)
        elif path.startswith((QUEUE, ADMIN)):
            await _pass_on(send, await self._first_that(scope, lambda reply: reply.status != 404))
        else:
            await self._first.gateway(scope, receive, send)

    async def _relay(self, scope: Message, headers: Headers, receive: Receive, send: Send) -> None:
        """Let the pool that serves the model of a call answer it. Raises `HttpError` 404 or 503."""
        body = await self._first.gateway.body_of(headers, receive)
        pool, body = self._addressee(headers, body)
        await pool.gateway(_resized(scope, len(body)), _after(body, receive), send)

    def _addressee(self, headers: Headers, body: bytes) -> tuple[Pool, bytes]:
        """The pool, and the body as its engines understand it. Raises `HttpError` 400, 404 or 503."""
        if is_form(headers):
            content_type = headers[b"content-type"].decode("latin-1")
            return self._addressee_of_form(model_of_form(body, content_type)), body
        try:
            model = _decode_address(body).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._first, body  # which says what is wrong with it
        for pool in self._pools.values():
            if model in pool.aliases:
                return pool, _renamed(body, pool.aliases[model])
        for pool in self._pools.values():
            if model in pool.served():
                return pool, body
        raise self._not_served(model)

    def _addressee_of_form(self, model: str) -> Pool:
        """Forms go through untouched, so a name that stands for another would mean nothing to the engine."""
        if not model:
            return self._first
        for pool in self._pools.values():
            if model in pool.served():
                return pool
        raise self._not_served(model)

    def _not_served(self, model: str) -> HttpError:
        if any(not pool.models and pool.catalogue.models is None for pool in self._pools.values()):
            return HttpError(
                503,
                f"Who serves the model {model!r} is not known yet: not all engines have said what they serve.",
                type="server_error",
                code="engine_unreachable",
                headers=(("retry-after", "2"),),
            )
        names = [name for pool in self._pools.values() for name in (*pool.served(), *pool.aliases)]
        return model_not_found(model, names)

    async def _models(self, scope: Message) -> _Reply:
        reply = await _ask(self._first.gateway, scope)
        if reply.status != 200:
            return reply
        headers, gateway = dict(scope["headers"]), self._first.gateway
        meant: dict[str, str] = {}  # the model, by each name that there is for it
        for pool in self._pools.values():
            meant |= {name: name for name in pool.served()} | dict(pool.aliases)
        names = [name for name, model in meant.items() if gateway.allows(headers, model)]
        return reply._replace(body=model_list(names))

    async def _metrics(self, scope: Message) -> _Reply:
        return await self._joined(
            scope, lambda replies: self._join_metrics({name: reply.body for name, reply in replies.items()})
        )

    async def _state(self, scope: Message) -> _Reply:
        def join(replies: Mapping[str, _Reply]) -> bytes:
            pools = {name: msgspec.Raw(reply.body) for name, reply in replies.items()}
            return msgspec.json.encode({"object": "admin.state", "pools": pools})

        return await self._joined(scope, join)

    async def _joined(self, scope: Message, join: Callable[[Mapping[str, _Reply]], bytes]) -> _Reply:
        """What all pools say, put together; or the first refusal among it."""
        replies = await self._all(scope)
        refused = next((reply for reply in replies.values() if reply.status != 200), None)
        return refused or replies[self._first.name]._replace(body=join(replies))

    async def _roster(self, scope: Message, receive: Receive, send: Send) -> None:
        """Engines of all pools, or the addition of one to the pool that the query names. Raises `HttpError` 404."""
        listing = {**scope, "method": "GET"}
        first = await _ask(self._first.gateway, listing)
        if first.status != 200:
            await _pass_on(send, first)
        elif scope["method"] == "POST":
            name = parse_qs(scope["query_string"].decode("latin-1")).get("pool", [self._first.name])[0]
            if name not in self._pools:
                names = ", ".join(self._pools)
                raise HttpError(404, f"There is no pool {name!r}: use one of {names}.", param="pool")
            await self._pools[name].gateway(scope, receive, send)
        else:
            rows = [
                {"pool": name, **row}
                for name, reply in (await self._all(listing)).items()
                for row in _decode_listing(reply.body).data
            ]
            await _pass_on(send, first._replace(body=msgspec.json.encode({"object": "list", "data": rows})))

    async def _all(self, scope: Message) -> dict[str, _Reply]:
        return {name: await _ask(pool.gateway, scope) for name, pool in self._pools.items()}

    async def _first_that(self, scope: Message, suits: Callable[[_Reply], bool]) -> _Reply:
        """The first reply that suits; if none does, that of the first pool."""
        kept: _Reply | None = None
        for pool in self._pools.values():
            reply = await _ask(pool.gateway, scope)
            if suits(reply):
                return reply
            kept = kept or reply
        assert kept is not None  # noqa: S101 - there is at least one pool
        return kept


async def _ask(gateway: Gateway, scope: Message) -> _Reply:
    """What a gateway answers, held back."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def never() -> Message:
        await asyncio.Event().wait()
        return {}

    await gateway(scope, _after(b"", never), send)
    return _Reply(sent[0]["status"], sent[0]["headers"], b"".join(message["body"] for message in sent[1:]))


async def _pass_on(send: Send, reply: _Reply) -> None:
    length = (b"content-length", b"%d" % len(reply.body))
    headers = [*(line for line in reply.headers if line[0] != b"content-length"), length]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})


def _after(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then goes on where that ended."""
    pending = True

    async def replay() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _resized(scope: Message, length: int) -> Message:
    headers = [line for line in scope["headers"] if line[0] != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", b"%d" % length)]}


def _renamed(body: bytes, model: str) -> bytes:
    """The body with another model in it, all else verbatim."""
    fields = _decode_fields(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
