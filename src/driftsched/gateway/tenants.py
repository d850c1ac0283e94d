"""Who is calling: from the API key, or, on an open loopback server, from what the caller says."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest

from driftsched.core.model import Tenant, Tier
from driftsched.gateway.errors import HttpError

TENANT_HEADER = b"x-llm-d-inference-fairness-id"
ANONYMOUS = "anonymous"
MAX_NAME_CHARS = 256


class KeyedTenants:
    """Each call must carry the API key of a configured tenant. Only SHA-256 digests of keys are held."""

    def __init__(self, digests: Sequence[tuple[str, Tenant]]) -> None:
        """`digests`: (SHA-256 of the key in hex, tenant) pairs."""
        self._digests = [(bytes.fromhex(digest), tenant) for digest, tenant in digests]

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises `HttpError` 401 for a caller that will not be served, whatever its body says."""
        self.resolve(headers, None)

    def resolve(self, headers: Mapping[bytes, bytes], user: str | None) -> Tenant:  # noqa: ARG002
        """The tenant whose key the call carries. Raises `HttpError` 401."""
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key:
            raise HttpError(
                401,
                "No API key: send the header `Authorization: Bearer <key>`.",
                type="authentication_error",
                code="missing_api_key",
            )
        digest = sha256(key.strip()).digest()
        found = None
        for known, tenant in self._digests:  # all of them, each in constant time: timing tells nothing
            if compare_digest(known, digest):
                found = tenant
        if found is None:
            raise HttpError(
                401, "The API key is not known here.", type="authentication_error", code="invalid_api_key"
            )
        return found


class OpenTenants:
    """Callers are trusted to say who they are; for loopback, where whoever can connect owns the machine anyway."""

    def __init__(self, known: Sequence[Tenant] = ()) -> None:
        self._known = {tenant.id: tenant for tenant in known}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Nobody is turned away."""

    def resolve(self, headers: Mapping[bytes, bytes], user: str | None) -> Tenant:
        """The tenant named by the fairness header, else by `user`, else `anonymous`; tier standard if not known."""
        name = headers.get(TENANT_HEADER, b"").decode("latin-1") or user or ANONYMOUS
        return self._known.get(name) or Tenant(name[:MAX_NAME_CHARS])


def effective_tier(tenant: Tenant, asked: Tier | None) -> Tier:
    """What was asked for, but never better than what the tenant has."""
    return tenant.tier if asked is None else max(asked, tenant.tier)
