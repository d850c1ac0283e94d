"""`/admin/engines`: operators add engines to a running gateway, let them drain, and take them out."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from driftsched.gateway.answer import Headers, Receive, Send, respond
from driftsched.gateway.bodies import whole_body
from driftsched.gateway.errors import HttpError

ENGINES = "/admin/engines"
_DRAIN = "/drain"

MAX_BYTES = 64 * 1024
BODY_SECONDS = 10.0

Handler = Callable[[Headers, Receive, Send], Awaitable[None]]
Row = dict[str, object]


class Roster(Protocol):
    """The engines of a pool. Whatever cannot be done is an `HttpError` that says why."""

    def rows(self) -> list[Row]: ...

    async def add(self, document: bytes) -> Row:
        """`document`: the settings of an engine, as JSON."""
        ...

    def drain(self, name: str) -> Row:
        """Give it nothing more; what it has it finishes."""
        ...

    async def remove(self, name: str) -> Row:
        """Take out an engine that has drained."""
        ...


class RosterDesk:
    """Answers what operators ask of the engines."""

    def __init__(self, roster: Roster, check: Callable[[Headers], None]) -> None:
        """`check` raises `HttpError` 401 for whoever is no operator."""
        self._roster = roster
        self._check = check

    def methods(self, path: str) -> dict[str, Handler] | None:
        """Handlers of a path, by method; None if it is none of `ENGINES`."""
        if path == ENGINES:
            return {"GET": self._list, "POST": self._add}
        name = path.removeprefix(f"{ENGINES}/")
        if name == path:
            return None
        if name.endswith(_DRAIN):
            return {"POST": lambda h, _, send: self._drain(name.removesuffix(_DRAIN), h, send)}
        return {"DELETE": lambda h, _, send: self._remove(name, h, send)}

    async def _list(self, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        self._check(headers)
        await _tell(send, 200, {"object": "list", "data": self._roster.rows()})

    async def _add(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._check(headers)
        await _tell(send, 201, await self._roster.add(await _small_body(receive)))

    async def _drain(self, name: str, headers: Headers, send: Send) -> None:
        self._check(headers)
        await _tell(send, 200, self._roster.drain(name))

    async def _remove(self, name: str, headers: Headers, send: Send) -> None:
        self._check(headers)
        await _tell(send, 200, await self._roster.remove(name))


async def _tell(send: Send, status: int, document: Row) -> None:
    await respond(send, status, msgspec.json.encode(document))


async def _small_body(receive: Receive) -> bytes:
    """Raises `HttpError` 408 or 413, and `ClientLeftError`."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await whole_body(receive, MAX_BYTES, _too_large)
    except TimeoutError:
        raise HttpError(408, "The body took too long to arrive.", code="body_timeout") from None


def _too_large() -> HttpError:
    return HttpError(413, f"An engine takes no more than {MAX_BYTES} bytes.", code="body_too_large")
