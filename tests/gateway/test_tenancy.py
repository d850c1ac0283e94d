"""What a tenant may use, and what it is told of how it was served."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec
import pytest
from openai import NotFoundError

from driftsched.config import Settings, TenantSettings, hash_key
from driftsched.core.events import Admitted
from driftsched.core.model import Tier
from driftsched.gateway.assembly import with_service_tier
from support.faulty_upstream import EVENTS, stepwise
from support.servers import Connect, House, chat, gateway_before, live_gateway, simulated

CHAT = "/v1/chat/completions"
SETTINGS = Settings(
    tenants=[
        TenantSettings("ann", tier="premium", keys_sha256=[hash_key("sk-test")]),
        TenantSettings("bob", tier="batch", models=["simulated", "other"], keys_sha256=[hash_key("bob-key")]),
        TenantSettings("cyd", models=["other"], keys_sha256=[hash_key("cyd-key")]),
        TenantSettings("gate", trusted_keys_sha256=[hash_key("gate-key")]),
    ]
)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with live_gateway(simulated(), settings=SETTINGS) as house:
        yield house


async def ask(
    http: aiohttp.ClientSession, house: House, key: str, headers: dict[str, str] | None = None, **fields: Any
) -> tuple[int, Mapping[str, str], bytes]:
    headers = {"authorization": f"Bearer {key}", **(headers or {})}
    async with http.post(house.url + CHAT, json=chat(**fields), headers=headers) as response:
        return response.status, response.headers, await response.read()


async def test_a_model_that_a_tenant_may_not_use_is_not_there_for_it(
    house: House, http: aiohttp.ClientSession
) -> None:
    status, _, body = await ask(http, house, "cyd-key")
    error = msgspec.json.decode(body)["error"]
    assert (404, "model", "model_not_found", False) == (
        status,
        error["param"],
        error["code"],
        "use one of simulated" in error["message"],
    )
    assert [200, 200] == [(await ask(http, house, key))[0] for key in ("sk-test", "bob-key")]


@pytest.mark.parametrize(
    ("key", "models"), [("sk-test", ["simulated"]), ("bob-key", ["simulated"]), ("cyd-key", [])]
)
async def test_a_tenant_sees_the_models_that_are_served_and_that_it_may_use(
    house: House, http: aiohttp.ClientSession, key: str, models: list[str]
) -> None:
    async with http.get(f"{house.url}/v1/models", headers={"authorization": f"Bearer {key}"}) as response:
        assert models == [model["id"] for model in (await response.json())["data"]]


async def test_the_official_client_is_told_as_by_openai(house: House, connect: Connect) -> None:
    with pytest.raises(NotFoundError) as caught:
        await connect(house).with_options(api_key="cyd-key").chat.completions.create(**chat())
    assert "model_not_found" == caught.value.code


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("key", "asked", "used"),
    [
        ("sk-test", "auto", "priority"),
        ("sk-test", "flex", "flex"),
        ("bob-key", "priority", "flex"),
        ("gate-key", "fast", "default"),
    ],
)
async def test_the_official_client_sees_the_tier_that_was_really_used(
    house: House, connect: Connect, key: str, asked: str, used: str, stream: bool
) -> None:
    client = connect(house).with_options(api_key=key)
    answer: Any = await client.chat.completions.create(**chat(service_tier=asked, stream=stream))
    if stream:
        told = [chunk.service_tier async for chunk in answer]
        assert [used] == [tier for tier in told if tier is not None]
    else:
        assert used == answer.service_tier


async def test_the_tier_waits_for_the_first_event_that_has_a_place_for_it(http: aiohttp.ClientSession) -> None:
    async with gateway_before(stepwise([b": starting\n\n", *EVENTS])) as (upstream, house):
        upstream.proceed()
        async with http.post(house.url + CHAT, json=chat(service_tier="flex", stream=True)) as response:
            assert b": starting\n\n" == await response.content.readexactly(len(b": starting\n\n"))
            for _ in (*EVENTS, "the end"):
                upstream.proceed()
            body = await response.read()
    assert [True, False, False] == [b'"service_tier":"flex"' in event for event in body.split(b"\n\n")[:3]]


@pytest.mark.parametrize("stream", [False, True])
async def test_who_did_not_ask_gets_the_engines_answer_as_it_is(
    house: House, http: aiohttp.ClientSession, stream: bool
) -> None:
    _, headers, body = await ask(http, house, "bob-key", stream=stream)
    assert ("batch", False) == (headers["x-driftsched-tier"], b"service_tier" in body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b": waiting\n\n",
        b"data: [DONE]\n\n",
        b"data: {broken\n\n",
        b"data: [1]\n\n",
        b'data: {"error": {"message": "no"}}\n\n',
        b'data: {"id": 1}',
        b"{broken",
        b'{"error": {}}',
    ],
)
def test_what_is_no_part_of_an_answer_says_no_tier(data: bytes) -> None:
    assert data == with_service_tier(data, Tier.BATCH)


def test_the_first_event_says_the_tier_and_the_others_stay() -> None:
    data = b'event: x\ndata: {"id":1,"service_tier":null}\n\ndata: {"id":2}\n\n'
    said = b'event: x\ndata: {"id":1,"service_tier":"flex"}\n\ndata: {"id":2}\n\n'
    assert said == with_service_tier(data, Tier.BATCH)


async def test_a_trusted_key_says_for_whom_it_calls_and_how_urgent_that_is(
    house: House, http: aiohttp.ClientSession
) -> None:
    said = {"x-gateway-inference-fairness-id": "dan", "x-smg-priority": "bulk"}
    await ask(http, house, "gate-key", said)
    await ask(http, house, "gate-key", {"x-llm-d-inference-fairness-id": "ann"})
    await ask(http, house, "bob-key", {"x-llm-d-inference-fairness-id": "ann"})
    requests = [event.ticket.request for event in house.of(Admitted)]
    assert [("gate/dan", Tier.BATCH), ("ann", Tier.PREMIUM), ("bob", Tier.BATCH)] == [
        (request.tenant.id, request.tier) for request in requests
    ]
