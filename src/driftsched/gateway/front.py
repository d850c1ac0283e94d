"""One face of several gateways, each with its own queue and engines: a call goes to the one that serves its model.

Whoever waits for one pool is in nobody's way at another: they share a process, and nothing else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs

import msgspec

from driftsched.core.model import Tenant
from driftsched.gateway.admin import ADMIN, STATE
from driftsched.gateway.answer import Headers, Message, Receive, Send, model_list, respond
from driftsched.gateway.app import QUEUE, Gateway, Readiness
from driftsched.gateway.errors import ClientLeftError, HttpError, internal, model_not_found
from driftsched.gateway.reading import Reading
from driftsched.gateway.roster import ENGINES

_logger = logging.getLogger(__name__)


class _Listing(msgspec.Struct):
    data: list[dict[str, object]]


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
        self._first.gateway.divert(self._addressee)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        try:
            await self._answer(scope, receive, send)
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

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if scope["method"] == "POST" and not path.startswith(ADMIN):
            await self._first.gateway(scope, receive, send)  # which asks for the addressee of a call
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

    def _addressee(self, headers: Headers, reading: Reading) -> tuple[Gateway, Reading]:
        """The gateway of the pool that serves the model of a call, and the call as its engines understand it.

        Raises `HttpError` 400, 401, 404 or 503. Nobody is told of a model that it may not use, nor what an alias
        of one stands for.
        """
        tenant = self._first.gateway.tenant_of(headers, reading.fields.user)
        named = reading.model([model for pool in self._pools.values() for model in pool.served()])
        pool = self._pool_of(named)
        model = pool.aliases.get(named, named) if pool is not None else named
        if pool is None or not tenant.may_use(model):
            raise self._not_served(named, tenant)
        return pool.gateway, reading if model == named else reading.under(model)

    def _pool_of(self, name: str) -> Pool | None:
        """By an alias, else by a model that it serves."""
        pools = self._pools.values()
        return next((pool for pool in pools if name in pool.aliases), None) or next(
            (pool for pool in pools if name in pool.served()), None
        )

    def _not_served(self, name: str, tenant: Tenant) -> HttpError:
        silent = any(not pool.models and pool.catalogue.models is None for pool in self._pools.values())
        if silent and tenant.may_use(name):
            return HttpError(
                503,
                f"Who serves the model {name!r} is not known yet: not all engines have said what they serve.",
                type="server_error",
                code="engine_unreachable",
                headers=(("retry-after", "2"),),
            )
        return model_not_found(name, self._names_for(tenant))

    def _names_for(self, tenant: Tenant) -> list[str]:
        """Models and aliases that it may use."""
        meant: dict[str, str] = {}  # the model, by each name that there is for it
        for pool in self._pools.values():
            meant |= {name: name for name in pool.served()} | dict(pool.aliases)
        return [name for name, model in meant.items() if tenant.may_use(model)]

    async def _models(self, scope: Message) -> _Reply:
        reply = await _ask(self._first.gateway, scope)
        if reply.status != 200:
            return reply
        tenant = self._first.gateway.tenant_of(dict(scope["headers"]))
        return reply._replace(body=model_list(self._names_for(tenant)))

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
        elif scope["method"] not in ("GET", "HEAD"):
            await self._first.gateway(scope, receive, send)  # which says what there is instead
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

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    await gateway(scope, receive, send)
    return _Reply(sent[0]["status"], sent[0]["headers"], b"".join(message["body"] for message in sent[1:]))


async def _pass_on(send: Send, reply: _Reply) -> None:
    length = (b"content-length", b"%d" % len(reply.body))
    headers = [*(line for line in reply.headers if line[0] != b"content-length"), length]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})
