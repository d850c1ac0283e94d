"""How much a tenant may ask for in a minute: requests, and tokens, reserved as predicted and settled as used.

Each account is a bucket that leaks. What is asked for goes in, and runs out at `limit` per 60 seconds; nothing may
be added beyond the limit. So of what is used, as much as was reserved or less, no stretch of `t` seconds sees more
than `limit * (1 + t / 60)`, counted when it was admitted. An answer that becomes longer than predicted goes on, and
its excess is added at its end: the bucket may then hold more than the limit, and nobody is admitted until it does
not.

A reservation runs out with the rest, first come, first out. If less was used, only what still stands of it is taken
back: what has run out made room for others that were admitted since, and giving it twice would break the bound.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from driftsched.core.events import Event, Evicted, Failed, Finished
from driftsched.core.model import Quota, Request, Ticket, Usage

SECONDS = 60.0
"""Quotas are per minute."""
SLACK = 1e-9
"""Of the limit: sums of floats may miss a bound that they meet."""

Kind = Literal["requests", "tokens"]


class Refusal(NamedTuple):
    """Why a request may not be admitted now."""

    kind: Kind
    limit: int
    retry_after_seconds: float | None
    """When there will be room for it; None if never."""

    @property
    def reason(self) -> str:
        """As in `events.Rejected.reason`."""
        return f"{self.kind}_quota"

    @property
    def message(self) -> str:
        reached = f"Rate limit reached: {self.limit} {self.kind} per minute."
        if self.retry_after_seconds is None:
            return f"{reached} The request alone is beyond it."
        return f"{reached} Try again in {self.retry_after_seconds:.3f} seconds."


class Standing(NamedTuple):
    """What is left of a quota."""

    kind: Kind
    limit: int
    remaining: int
    """What could be asked for now, >= 0."""
    reset_seconds: float
    """Until nothing of it is taken, if nothing more is asked for."""


class Bucket:
    """What was asked for of late and has not run out yet. The limit, > 0, may be another each time."""

    __slots__ = ("_at", "_gone", "_level")

    def __init__(self) -> None:
        self._level = 0.0
        self._gone = 0.0  # all that ever ran out or was taken back
        self._at = 0.0

    def level(self, limit: float, now: float) -> float:
        """What is in it now. A clock that went back counts as one that stood still."""
        ran_out = min(self._level, max(0.0, now - self._at) * limit / SECONDS)
        self._at = max(self._at, now)
        self._level -= ran_out
        self._gone += ran_out
        return self._level

    def wait_for(self, amount: float, limit: float, now: float) -> float:
        """Seconds until `amount`, at most `limit`, would fit; 0 if it does."""
        excess = self.level(limit, now) + amount - limit
        return excess * SECONDS / limit if excess > SLACK * limit else 0.0

    def add(self, amount: float, limit: float, now: float) -> float:
        """Put `amount` in, whether it fits or not. Returns its mark, to be shown when some of it is taken back."""
        self._level = self.level(limit, now) + amount
        return self._gone + self._level

    def take_back(self, amount: float, mark: float, limit: float, now: float) -> None:
        """Take out of what was added with this mark, from its end, as much of `amount` as has not run out."""
        level = self.level(limit, now)
        still_stands = mark - self._gone  # or less, if some of what was added before it was taken back
        taken = max(0.0, min(amount, still_stands, level))
        self._level -= taken
        self._gone += taken


@dataclass(slots=True)
class _Reservation:
    """What a request that is alive has put into the buckets of its account."""

    quota: Quota
    tokens: float
    tokens_mark: float
    request_mark: float


@dataclass(slots=True)
class _Account:
    requests: Bucket
    tokens: Bucket


class Quotas:
    """The accounts of all tenants that have a quota. As a listener it hears of what was really used."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}  # as many as operators configured
        self._reservations: dict[str, _Reservation] = {}  # of requests alive, by ticket id

    def check(self, request: Request, now: float) -> Refusal | None:
        """Why the request cannot be admitted, whatever is predicted for it. Changes nothing: no work is wasted."""
        return self._refusal(request, 1.0, now)

    def reserve(self, ticket: Ticket, now: float) -> Refusal | None:
        """Take what the ticket is expected to use; None if it could be taken, else nothing was."""
        request = ticket.request
        quota = request.tenant.quota
        if quota is None:
            return None
        tokens = request.prompt_tokens + ticket.estimate.expected_tokens
        if quota.tokens_per_minute is not None and request.prompt_tokens <= quota.tokens_per_minute:
            tokens = min(tokens, quota.tokens_per_minute)  # a long answer is no reason to refuse for ever
        refusal = self._refusal(request, tokens, now)
        if refusal is None:
            self._take(ticket.id, quota, tokens, now)
        return refusal

    def hear(self, event: Event) -> None:
        """Settle on what was used. A request that never had its turn is not counted, unless its client left."""
        if not self._reservations:
            return
        if isinstance(event, Finished | Failed):
            self._settle(event.ticket.id, event.usage, event.at)
        elif isinstance(event, Evicted):
            served = event.dispatched_at is not None or event.reason == "cancelled"
            self._settle(event.ticket.id, event.usage, event.at, counts=served)

    def forget(self, ticket_id: str, now: float) -> None:
        """The ticket never came to wait: nothing was asked for."""
        self._settle(ticket_id, Usage(), now, counts=False)

    def standing(self, quota: Quota, now: float) -> list[Standing]:
        """What is left of each quota that there is."""
        account = self._account(quota)
        limited: list[tuple[Kind, int | None, Bucket]] = [
            ("requests", quota.requests_per_minute, account.requests),
            ("tokens", quota.tokens_per_minute, account.tokens),
        ]
        return [_standing(kind, limit, bucket, now) for kind, limit, bucket in limited if limit is not None]

    def _refusal(self, request: Request, tokens: float, now: float) -> Refusal | None:
        quota = request.tenant.quota
        if quota is None:
            return None
        account = self._account(quota)
        return _refused("requests", quota.requests_per_minute, account.requests, 1.0, now) or _refused(
            "tokens", quota.tokens_per_minute, account.tokens, tokens, now
        )

    def _take(self, ticket_id: str, quota: Quota, tokens: float, now: float) -> None:
        account = self._account(quota)
        limits = quota.requests_per_minute, quota.tokens_per_minute
        self._reservations[ticket_id] = _Reservation(
            quota,
            tokens,
            request_mark=account.requests.add(1.0, limits[0], now) if limits[0] else 0.0,
            tokens_mark=account.tokens.add(tokens, limits[1], now) if limits[1] else 0.0,
        )

    def _settle(self, ticket_id: str, usage: Usage, now: float, *, counts: bool = True) -> None:
        taken = self._reservations.pop(ticket_id, None)
        if taken is None:
            return
        account, quota = self._account(taken.quota), taken.quota
        if quota.tokens_per_minute:
            excess = usage.total_tokens - taken.tokens
            if excess > 0:
                account.tokens.add(excess, quota.tokens_per_minute, now)
            else:
                account.tokens.take_back(-excess, taken.tokens_mark, quota.tokens_per_minute, now)
        if quota.requests_per_minute and not counts:
            account.requests.take_back(1.0, taken.request_mark, quota.requests_per_minute, now)

    def _account(self, quota: Quota) -> _Account:
        account = self._accounts.get(quota.account)
        if account is None:
            account = self._accounts[quota.account] = _Account(Bucket(), Bucket())
        return account


def _refused(kind: Kind, limit: int | None, bucket: Bucket, amount: float, now: float) -> Refusal | None:
    if limit is None:
        return None
    if amount > limit:
        return Refusal(kind, limit, None)
    wait = bucket.wait_for(amount, limit, now)
    return Refusal(kind, limit, wait) if wait > 0 else None


def _standing(kind: Kind, limit: int, bucket: Bucket, now: float) -> Standing:
    level = bucket.level(limit, now)
    remaining = min(max(0, int(limit - level + SLACK * limit)), limit)
    return Standing(kind, limit, remaining, level * SECONDS / limit)
