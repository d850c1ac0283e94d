"""The priority that reaches an engine: read from the bytes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import aiohttp
import msgspec
import pytest

from driftsched.config import LimitSettings, MaxWaitSettings, PartSettings, Settings, TenantSettings
from driftsched.core.events import Admitted
from driftsched.core.protocols import EngineKind
from driftsched.engines.kinds import engine_priority
from driftsched.engines.pool import EnginePool
from support.faulty_upstream import FaultyUpstream, stream
from support.servers import House, chat, http_engine, live_gateway, unasked, until

TIERS = ("premium", "standard", "batch")
"""Each with a tenant of that name."""
Setting = bool | Literal["client"]


@asynccontextmanager
async def gateway(
    kind: EngineKind | None, priority: Setting, *, policy: str = "fair", max_wait_seconds: float = 600.0
) -> AsyncIterator[tuple[House, FaultyUpstream]]:
    waits = MaxWaitSettings(max_wait_seconds, max_wait_seconds, max_wait_seconds)
    settings = Settings(
        policy=PartSettings(policy),
        estimator=PartSettings("static"),
        tenants=[TenantSettings(tier, tier=tier) for tier in TIERS],
        limits=LimitSettings(max_wait_seconds=waits),
    )
    async with FaultyUpstream(stream()) as upstream:
        pool = EnginePool([(http_engine(upstream.url, kind=kind, priority=priority), 1)])
        async with live_gateway(pool, slots=1, settings=settings, catalogue=unasked()) as house:
            yield house, upstream


async def ask(house: House, **fields: Any) -> None:
    body = chat(**{"user": "standard", **fields})
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{house.url}/v1/chat/completions", json=body) as response,
    ):
        await response.read()
        assert 200 == response.status


def sent(upstream: FaultyUpstream) -> list[int | None]:
    """The priority of each request that arrived; None if it had none."""
    return [msgspec.json.decode(request.body).get("priority") for request in upstream.requests]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("vllm", [-16, 0, 16]),
        ("sglang", [16, 0, -16]),
        ("llama.cpp", [None] * 3),
        ("ollama", [None] * 3),
        ("generic", [None] * 3),
        (None, [None] * 3),
    ],
)
async def test_a_tier_is_told_in_the_engines_own_polarity_or_not_at_all(
    kind: EngineKind | None, expected: list[int | None]
) -> None:
    async with gateway(kind, True) as (house, upstream):
        for tier in TIERS:
            await ask(house, user=tier)
        assert expected == sent(upstream)


async def test_a_band_of_the_policy_counts_for_more_than_a_tier() -> None:
    async with gateway("vllm", True, policy="priority") as (house, upstream):
        for tier in TIERS:
            await ask(house, user=tier)
        assert [-16, 64, 144] == sent(upstream)


async def test_whoever_has_waited_its_maximum_is_most_urgent() -> None:
    async with gateway("vllm", True, max_wait_seconds=1e-9) as (house, upstream):
        await ask(house, user="batch")
        assert [-32] == sent(upstream)


@pytest.mark.parametrize(("priority", "expected"), [(False, None), (True, 0), ("client", 7)])
async def test_a_clients_own_priority_goes_no_further_unless_that_is_wanted(
    priority: Setting, expected: int | None
) -> None:
    async with gateway("vllm", priority) as (house, upstream):
        await ask(house, priority=7)
        assert [expected] == sent(upstream)


async def test_nothing_else_of_the_body_changes() -> None:
    bodies = []
    for priority in (False, True):
        async with gateway("vllm", priority) as (house, upstream):
            await ask(house, metadata={"a": [1, None]}, seed=3)
            bodies.append(msgspec.json.decode(upstream.requests[0].body))
    plain, prioritised = bodies

    assert {**plain, "priority": 0} == prioritised


async def test_requests_are_sent_in_the_order_of_the_policy_whatever_their_priority() -> None:
    """One slot: what waits meanwhile is ordered by the gateway, and the engine holds one at a time."""
    async with gateway("vllm", True, policy="fifo") as (house, upstream):
        asked = []
        for number, tier in enumerate(reversed(TIERS), 1):
            asked.append(asyncio.create_task(ask(house, user=tier)))
            await until(partial(_admitted, house, number))
        await asyncio.gather(*asked)
        assert [16, 0, -16] == sent(upstream)


def _admitted(house: House, number: int) -> bool:
    return len(house.of(Admitted)) == number


@pytest.mark.parametrize("urgency", [-32, 0, 208])
def test_the_two_polarities_are_each_others_opposite(urgency: int) -> None:
    assert (urgency, -urgency) == (engine_priority("vllm", urgency), engine_priority("sglang", urgency))
