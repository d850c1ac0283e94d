"""What only operators may see, behind keys of its own. Without an admin key there are no such paths."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from driftsched.core.model import Tenant
from driftsched.gateway.answer import Headers, Receive, Send, respond
from driftsched.gateway.errors import HttpError
from driftsched.gateway.roster import Roster, RosterDesk
from driftsched.gateway.tenants import KeyedTenants
from driftsched.gateway.whereabouts import Whereabouts

ADMIN = "/admin/"
STATE = "/admin/state"
_REQUESTS = "/admin/requests/"

Handler = Callable[[Headers, Receive, Send], Awaitable[None]]


class Admin:
    """Answers `GET /admin/state` and `GET /admin/requests/{id}`, and what `RosterDesk` does."""

    def __init__(
        self,
        keys_sha256: Sequence[str],
        *,
        state: Callable[[], Awaitable[dict[str, object]]],
        decision: Callable[[str], dict[str, object] | None],
        roster: Roster | None = None,
    ) -> None:
        """`keys_sha256`: SHA-256 of each admin key, in hex; at least one.

        `decision`: the record of a request by the gateway's own id, None if there is none. `roster`: engines that
        may come and go; None: they stay as they are.
        """
        self.use_keys(keys_sha256)
        self._state = state
        self._decision = decision
        self._desk = RosterDesk(roster, self.check) if roster is not None else None

    def check(self, headers: Headers) -> None:
        """Raises `HttpError` 401 for whoever is no operator."""
        self._keys.check(headers)

    def use_keys(self, keys_sha256: Sequence[str]) -> None:
        """Let these be the keys of operators from here on, in hex; if none, nobody is let in."""
        operator = Tenant("admin")  # keys of operators are told from others as those of tenants are
        self._keys = KeyedTenants([(digest, operator) for digest in keys_sha256])

    def methods(self, path: str, whereabouts: Whereabouts) -> dict[str, Handler] | None:
        """Handlers of a path below `ADMIN`, by method; None if there is no such path."""
        if path == STATE:
            return {"GET": self._tell_state}
        if path.startswith(_REQUESTS):
            asked = path.removeprefix(_REQUESTS)
            return {"GET": lambda headers, _, send: self._explain(asked, whereabouts, headers, send)}
        return self._desk.methods(path) if self._desk is not None else None

    async def _tell_state(self, headers: Headers, receive: Receive, send: Send) -> None:  # noqa: ARG002
        self.check(headers)
        await respond(send, 200, msgspec.json.encode(await self._state()))

    async def _explain(self, asked: str, whereabouts: Whereabouts, headers: Headers, send: Send) -> None:
        """By the gateway's own id, else by the client's: of several, the latest that is alive, else that ended."""
        self.check(headers)
        found = self._decision(asked)
        if found is None:
            own_id = whereabouts.own_id(asked.encode("utf-8", "surrogatepass"))
            found = self._decision(own_id) if own_id else None
        if found is None:
            raise HttpError(404, "No request of this id is remembered here.", code="unknown_request")
        await respond(send, 200, msgspec.json.encode({**found, "asked": asked}))
