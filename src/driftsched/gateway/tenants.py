"""Who is calling: from the API key, or, on an open loopback server, from what the caller says."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from driftsched.core.model import Tenant, Tier
from driftsched.gateway.errors import HttpError

TENANT_HEADER = b"x-llm-d-inference-fairness-id"
TENANT_HEADERS = (TENANT_HEADER, b"x-gateway-inference-fairness-id", b"x-smg-tenant-id")
"""Who a caller speaks for, as llm-d, its forerunner and SMG call it; the first that is there counts."""
OBJECTIVE_HEADERS = (b"x-llm-d-inference-objective", b"x-gateway-inference-objective", b"x-smg-priority")
"""The tier that it asks for, likewise."""
ANONYMOUS = "anonymous"
MAX_NAME_CHARS = 256
MAX_SPOKEN_FOR = 10_000
"""Names made up by trusted callers that are remembered; those not heard of for longest are forgotten."""

_OBJECTIVES: dict[bytes, Tier] = {
    **{tier.label.encode(): tier for tier in Tier},
    b"system": Tier.PREMIUM,
    b"interactive": Tier.PREMIUM,
    b"bulk": Tier.BATCH,
}
"""Any other word, `default` too, asks for the tenant's own tier."""


class KeyedTenants:
    """Each call must carry the API key of a configured tenant. Only SHA-256 digests of keys are held."""

    def __init__(
        self,
        digests: Sequence[tuple[str, Tenant]],
        *,
        trusted: Collection[str] = (),
        known: Sequence[Tenant] = (),
    ) -> None:
        """`digests`: (SHA-256 of the key in hex, tenant) pairs. `trusted`: digests of keys whose callers may say by
        headers for whom they speak: for one of the `known`, or for a tenant of their own that nobody configured.
        """
        self._tenants = {bytes.fromhex(digest): tenant for digest, tenant in digests}
        self._trusted = {bytes.fromhex(digest) for digest in trusted}
        self._known = {tenant.id: tenant for tenant in known}
        self._spoken_for: dict[tuple[str, str], Tenant] = {}  # the one heard of last at the end

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises `HttpError` 401 for a caller that will not be served, whatever its body says."""
        self._digest(headers)

    def resolve(self, headers: Mapping[bytes, bytes], user: str | None) -> Tenant:  # noqa: ARG002
        """The tenant whose key the call carries, or that it speaks for. Raises `HttpError` 401."""
        digest = self._digest(headers)
        tenant = self._tenants[digest]
        name = _named(headers) if digest in self._trusted else ""
        return self._other(tenant, name) if name else tenant

    def asked_tier(self, headers: Mapping[bytes, bytes]) -> Tier | None:
        """The tier that a trusted caller asks for in its headers. Raises `HttpError` 401."""
        return _objective(headers) if self._trusted and self._digest(headers) in self._trusted else None

    def _digest(self, headers: Mapping[bytes, bytes]) -> bytes:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise HttpError(
                401,
                "No API key: send the header `Authorization: Bearer <key>`.",
                type="authentication_error",
                code="missing_api_key",
            )
        digest = sha256(key.strip()).digest()
        if digest not in self._tenants:  # how long that takes tells something of the digest at most, not of a key
            raise HttpError(
                401, "The API key is not known here.", type="authentication_error", code="invalid_api_key"
            )
        return digest

    def _other(self, speaker: Tenant, name: str) -> Tenant:
        """The known tenant of this name, else one like the speaker, which shares the speaker's quotas."""
        known = self._known.get(name)
        if known is not None:
            return known
        made = self._spoken_for.pop((speaker.id, name), None) or replace(speaker, id=f"{speaker.id}/{name}")
        self._spoken_for[speaker.id, name] = made
        if len(self._spoken_for) > MAX_SPOKEN_FOR:
            del self._spoken_for[next(iter(self._spoken_for))]
        return made


class OpenTenants:
    """Callers are trusted to say who they are; for loopback, where whoever can connect owns the machine anyway."""

    def __init__(self, known: Sequence[Tenant] = ()) -> None:
        self._known = {tenant.id: tenant for tenant in known}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Nobody is turned away."""

    def resolve(self, headers: Mapping[bytes, bytes], user: str | None) -> Tenant:
        """The tenant named by a header, else by `user`, else `anonymous`; tier standard if not known."""
        name = _named(headers) or (user or ANONYMOUS)[:MAX_NAME_CHARS]
        return self._known.get(name) or Tenant(name)

    def asked_tier(self, headers: Mapping[bytes, bytes]) -> Tier | None:
        """The tier that the headers ask for."""
        return _objective(headers)


def effective_tier(tenant: Tenant, *asked: Tier | None) -> Tier:
    """The lowest that was asked for, but never better than what the tenant has."""
    return max((tier for tier in asked if tier is not None and tier > tenant.tier), default=tenant.tier)


def _named(headers: Mapping[bytes, bytes]) -> str:
    """Who the caller says that it speaks for; empty if it does not."""
    said = next((headers[name] for name in TENANT_HEADERS if headers.get(name)), b"")
    return said.decode("latin-1")[:MAX_NAME_CHARS]


def _objective(headers: Mapping[bytes, bytes]) -> Tier | None:
    said = next((headers[name] for name in OBJECTIVE_HEADERS if name in headers), b"")
    return _OBJECTIVES.get(said.strip().lower())
