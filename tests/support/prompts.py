"""Requests to be predicted and counted."""

from driftsched.core.model import Request, Tenant, Tier


def request_of(
    category: str = "summary",
    *,
    model: str = "m",
    tenant: str = "t",
    tier: Tier = Tier.STANDARD,
    prompt: str = "",
    prompt_bytes: int | None = None,
    prompt_tokens: int = 0,
    max_tokens: int | None = None,
) -> Request:
    """A request as it is after admission, with an empty prompt unless one is given."""
    return Request(
        "r",
        Tenant(tenant, tier),
        tier,
        model,
        arrived_at=0.0,
        prompt=prompt,
        prompt_bytes=len(prompt.encode()) if prompt_bytes is None else prompt_bytes,
        prompt_tokens=prompt_tokens,
        category=category,
        max_tokens=max_tokens,
    )
