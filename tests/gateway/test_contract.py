"""The gateway as its clients see it: the official SDK, and the headers and documents of the contract."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError

from driftsched.config import Settings, TenantSettings, hash_key
from driftsched.core.events import Finished
from support.servers import Connect, House, chat, live_gateway, simulated


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with live_gateway(simulated()) as house:
        yield house


async def test_a_chat_completion_comes_as_one_document(house: House, connect: Connect) -> None:
    answer = await connect(house).chat.completions.create(**chat())
    (finished,) = house.of(Finished)
    assert "chat.completion" == answer.object
    assert "assistant" == answer.choices[0].message.role
    assert "stop" == answer.choices[0].finish_reason
    assert answer.usage is not None
    assert finished.usage.completion_tokens == answer.usage.completion_tokens
    assert finished.usage.completion_tokens == len((answer.choices[0].message.content or "").split())


async def test_a_chat_completion_comes_as_a_stream(house: House, connect: Connect) -> None:
    stream = await connect(house).chat.completions.create(**chat(stream=True))
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    (finished,) = house.of(Finished)
    assert "assistant" == chunks[0].choices[0].delta.role
    assert "stop" == chunks[-1].choices[0].finish_reason
    assert finished.usage.completion_tokens == len(text.split())
    assert [None] * len(chunks) == [chunk.usage for chunk in chunks]


async def test_who_asks_for_usage_gets_it_in_the_last_chunk(house: House, connect: Connect) -> None:
    call = chat(stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in await connect(house).chat.completions.create(**call)]
    (finished,) = house.of(Finished)
    assert [] == chunks[-1].choices
    assert chunks[-1].usage is not None
    assert finished.usage.completion_tokens == chunks[-1].usage.completion_tokens


async def test_a_text_completion_comes_as_one_document(house: House, connect: Connect) -> None:
    answer = await connect(house).completions.create(model="simulated", prompt="Once upon a time", max_tokens=5)
    assert ("text_completion", "length") == (answer.object, answer.choices[0].finish_reason)
    assert 5 == len(answer.choices[0].text.split())
    assert answer.usage is not None
    assert 5 == answer.usage.completion_tokens


async def test_a_text_completion_comes_as_a_stream(house: House, connect: Connect) -> None:
    stream = await connect(house).completions.create(model="simulated", prompt="Once", max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert 5 == len("".join(chunk.choices[0].text for chunk in chunks).split())
    assert "length" == chunks[-1].choices[0].finish_reason


@pytest.mark.parametrize(
    "fields",
    [
        {"max_completion_tokens": 5, "ignore_eos": True, "user": "u", "stream_options": None},
        {"max_tokens": 5, "repetition_penalty": 1.0, "logprobs": None, "ignore_eos": True},
        {"max_completion_tokens": 5, "metadata": {"a": "b"}, "priority": 3, "ignore_eos": True},
    ],
)
async def test_what_load_generators_send_is_served(
    house: House, http: aiohttp.ClientSession, fields: dict[str, Any]
) -> None:
    content = [{"type": "text", "text": "What is a queue?"}]
    async with http.post(f"{house.url}/v1/chat/completions", json=chat(content, **fields)) as response:
        document = await response.json()
    assert (200, 5) == (response.status, document["usage"]["completion_tokens"])


async def test_the_models_of_the_engine_are_listed(house: House, connect: Connect) -> None:
    assert ["simulated"] == [model.id async for model in connect(house).models.list()]


async def test_a_model_that_is_not_served_is_not_found(house: House, connect: Connect) -> None:
    with pytest.raises(NotFoundError) as caught:
        await connect(house).chat.completions.create(**{**chat(), "model": "gpt-9"})
    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)
    assert "simulated" in caught.value.message
    assert [] == house.events


async def test_an_unknown_service_tier_is_refused(house: House, connect: Connect) -> None:
    with pytest.raises(BadRequestError) as caught:
        await connect(house).chat.completions.create(**chat(service_tier="gold"))
    assert "service_tier" == caught.value.param


@pytest.mark.parametrize("stream", [False, True])
async def test_the_headers_tell_what_happened_to_the_request(
    house: House, http: aiohttp.ClientSession, stream: bool
) -> None:
    async with http.post(f"{house.url}/v1/chat/completions", json=chat(stream=stream)) as response:
        await response.read()
    (finished,) = house.of(Finished)
    headers = response.headers
    assert "fair" == headers["x-driftsched-policy"]
    assert "standard" == headers["x-driftsched-tier"]
    assert "1" == headers["x-driftsched-position"]
    assert str(round(finished.ticket.estimate.completion_tokens)) == headers["x-driftsched-predicted-tokens"]
    queue_seconds = finished.dispatched_at - finished.ticket.request.arrived_at
    assert f"{queue_seconds:.6f}" == headers["x-driftsched-queue-seconds"]
    actual = None if stream else str(finished.usage.completion_tokens)  # a stream's headers leave before its end
    assert actual == headers.get("x-driftsched-actual-tokens")
    assert ("text/event-stream; charset=utf-8" if stream else "application/json") == headers["content-type"]


@pytest.mark.parametrize("theirs", ["a", "req-1 of 2", "x" * 128])
async def test_a_clients_own_request_id_comes_back(house: House, http: aiohttp.ClientSession, theirs: str) -> None:
    headers = {"x-request-id": theirs}
    async with http.post(f"{house.url}/v1/chat/completions", json=chat(), headers=headers) as response:
        await response.read()
    assert theirs == response.headers["x-request-id"]


@pytest.mark.parametrize("theirs", [None, "", "x" * 129, "größe", "tab\tseparated"])
async def test_a_request_id_that_is_missing_or_unfit_is_replaced(
    house: House, http: aiohttp.ClientSession, theirs: str | None
) -> None:
    headers = {} if theirs is None else {"x-request-id": theirs}
    async with http.post(f"{house.url}/v1/chat/completions", json=chat(), headers=headers) as response:
        await response.read()
    (finished,) = house.of(Finished)
    assert finished.ticket.id == response.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{12}-\d+", finished.ticket.id)


async def test_with_keys_a_call_is_served_at_no_better_than_its_tenants_tier(connect: Connect) -> None:
    settings = Settings(
        tenants=[
            TenantSettings("cheap", tier="batch", keys_sha256=[hash_key("sk-test")]),
            TenantSettings("dear", tier="premium", keys_sha256=[hash_key("sk-dear")]),
        ]
    )
    async with live_gateway(simulated(), settings=settings) as house:
        client = connect(house)
        cheap = await client.chat.completions.with_raw_response.create(**chat(service_tier="priority", user="dear"))
        client.api_key = "sk-dear"
        dear = await client.chat.completions.with_raw_response.create(**chat(service_tier="flex"))
        dearer = await client.chat.completions.with_raw_response.create(**chat())
        client.api_key = "sk-unknown"
        with pytest.raises(AuthenticationError) as caught:
            await client.chat.completions.create(**chat())
        with pytest.raises(AuthenticationError):
            await client.models.list()
        tenants = [finished.ticket.request.tenant.id for finished in house.of(Finished)]
    tiers = [answer.headers["x-driftsched-tier"] for answer in (cheap, dear, dearer)]
    assert (["batch", "batch", "premium"], ["cheap", "dear", "dear"]) == (tiers, tenants)
    assert "invalid_api_key" == caught.value.code


ROOT = Path(__file__).parents[2]


def test_every_error_code_is_documented() -> None:
    document = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| [0-9, ]+ \| `(\w+)` \|", document, re.MULTILINE)
    package = ROOT / "src" / "driftsched"
    sources = [*package.glob("gateway/*.py"), *package.glob("engines/*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    meanings = (package / "engines" / "failures.py").read_text(encoding="utf-8").split("def _meaning")[1]
    raised = set(re.findall(r'code="(\w+)"', text))
    raised |= set(re.findall(r'EngineError\(\s*\d+,\s*"(\w+)"', text))
    raised |= set(re.findall(r'"(engine_\w+|garbage)"', meanings))
    scheduler = (package / "core" / "scheduler.py").read_text(encoding="utf-8")
    raised |= set(re.findall(r'^    "(\w+)": "', scheduler.split("_REJECTIONS = {")[1], re.MULTILINE))
    assert sorted(raised) == sorted(set(documented))


def test_every_response_header_is_documented() -> None:
    document = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    source = (ROOT / "src" / "driftsched" / "gateway" / "answer.py").read_text(encoding="utf-8")
    sent = set(re.findall(r'b"(x-driftsched-[a-z-]+|x-request-id)"', source))
    assert sent == set(re.findall(r"^\| `(x-[a-z-]+)` \|", document, re.MULTILINE))


async def test_every_refusal_before_admission_carries_a_request_id(house: House) -> None:
    async with aiohttp.ClientSession(house.url) as http:
        async with http.post("/v1/chat/completions", data=b"{", headers={"x-request-id": "mine"}) as response:
            assert (400, "mine") == (response.status, response.headers["x-request-id"])
        async with http.get("/nowhere") as response:
            assert 404 == response.status
            assert response.headers["x-request-id"]


async def test_a_caller_without_a_key_is_refused_before_its_body_is_read() -> None:
    settings = Settings(tenants=[TenantSettings("a", keys_sha256=[hash_key("sk-a")])])
    async with (
        live_gateway(simulated(), settings=settings) as house,
        aiohttp.ClientSession(house.url) as http,
        http.post("/v1/chat/completions", data=b"no JSON at all") as response,
    ):
        assert 401 == response.status
