"""Calls that are passed through: scheduled and charged as all others, and otherwise left alone."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from openai import NotFoundError

from driftsched.config import Settings, TenantSettings, hash_key
from driftsched.core.errors import ConfigError
from driftsched.core.events import Failed, Finished, Recalibrated
from driftsched.core.model import Usage
from driftsched.policies import create_policy
from support.faulty_upstream import FaultyUpstream, Seen, answer, die_mid_stream, status, stream
from support.servers import Connect, House, chat, gateway_before, http_engine, live_gateway

VECTORS = json.dumps(
    {
        "object": "list",
        "model": "simulated",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    },
    indent=1,
).encode()
MODELS = answer(b'{"data":[{"id":"simulated"},{"id":"other"}]}')
PATH = "/v1/embeddings"


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    routes = {PATH: answer(VECTORS), "/v1/models": MODELS, "/tokenize": answer(b'{"tokens":[1]}')}
    async with FaultyUpstream(routes=routes) as upstream:
        yield upstream


@pytest.fixture
async def house(upstream: FaultyUpstream) -> AsyncIterator[House]:
    async with live_gateway(http_engine(upstream.url)) as house:
        yield house


def passed(upstream: FaultyUpstream) -> list[Seen]:
    """What reached the engine, its introduction left out."""
    return [seen for seen in upstream.requests if seen.method == "POST"]


async def test_the_official_client_gets_embeddings(house: House, connect: Connect) -> None:
    vectors = await connect(house).embeddings.create(model="simulated", input="A queue", encoding_format="float")
    (finished,) = house.of(Finished)
    assert [0.5, -0.25] == vectors.data[0].embedding
    assert (5, 0) == (finished.usage.prompt_tokens, finished.usage.completion_tokens)


async def test_body_and_answer_are_not_touched(
    upstream: FaultyUpstream, house: House, http: aiohttp.ClientSession
) -> None:
    body = b'{ "model":"simulated", "service_tier":"flex","priority": 7,\n "input": "\\u0041" , "stream":false}'
    headers = {"content-type": "application/json; charset=utf-8"}
    async with http.post(house.url + PATH, data=body, headers=headers) as response:
        document = await response.read()
    (seen,) = passed(upstream)
    assert (body, VECTORS) == (seen.body, document)
    assert "application/json; charset=utf-8" == seen.headers["content-type"]
    assert ("batch", "fair") == (response.headers["x-driftsched-tier"], response.headers["x-driftsched-policy"])


async def test_a_call_holds_a_slot_and_is_charged_its_prompt(house: House, http: aiohttp.ClientSession) -> None:
    async with http.post(house.url + PATH, json={"model": "simulated", "input": "word " * 100}) as response:
        await response.read()
    (finished,) = house.of(Finished)
    assert 0 < finished.ticket.charge
    assert create_policy("fair").charge(finished.ticket.request, Usage(5, 0)) == finished.charge
    assert finished.ticket.estimate.completion_tokens <= 1


async def test_nothing_is_learnt_from_it(house: House, http: aiohttp.ClientSession) -> None:
    for _ in range(20):
        async with http.post(
            house.url + PATH, json={"model": "simulated", "input": "What is a queue?"}
        ) as response:
            await response.read()
    assert [] == house.of(Recalibrated)


async def test_a_form_goes_through_as_it_came(http: aiohttp.ClientSession) -> None:
    path = "/v1/audio/transcriptions"
    routes = {path: answer(b"A queue.", content_type="text/plain; charset=utf-8"), "/v1/models": MODELS}
    async with gateway_before(routes=routes, settings=Settings(passthrough=(path,))) as (upstream, house):
        form = aiohttp.FormData({"model": "other"})
        form.add_field("file", b"\x00\xff" * 4096, filename="a.wav", content_type="audio/wav")
        async with http.post(house.url + path, data=form) as response:
            text = await response.text()
        (finished,) = house.of(Finished)
    (seen,) = passed(upstream)
    assert ("A queue.", "text/plain; charset=utf-8") == (text, response.headers["content-type"])
    assert seen.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b"\x00\xff" * 4096 in seen.body
    assert "other" == finished.ticket.request.model
    assert 32 <= finished.ticket.request.prompt_tokens <= 34


async def test_a_form_that_names_two_models_is_refused(http: aiohttp.ClientSession) -> None:
    settings = Settings(passthrough=("/v1/audio/transcriptions",))
    async with gateway_before(settings=settings) as (upstream, house):
        form = aiohttp.FormData([("model", "other"), ("model", "simulated")])
        form.add_field("file", b"", filename="a.wav")
        async with http.post(f"{house.url}/v1/audio/transcriptions", data=form) as response:
            assert 400 == response.status
        assert [] == upstream.requests


async def test_a_stream_of_events_is_relayed_as_it_comes(http: aiohttp.ClientSession) -> None:
    events = (b"event: a\ndata: 1\n\n", b": ping\n\n", b"data: 2\n\n")
    async with (
        gateway_before(stream(events)) as (_, house),
        http.post(house.url + PATH, json={"model": "x", "input": ""}) as response,
    ):
        assert b"".join(events) == await response.read()
        assert "text/event-stream; charset=utf-8" == response.headers["content-type"]


async def test_the_error_in_a_stream_that_breaks_off_is_an_event_of_its_own(http: aiohttp.ClientSession) -> None:
    async with (
        gateway_before(die_mid_stream([b"data: 1\n\ndata: cu"])) as (_, house),
        http.post(house.url + PATH, json={"model": "x", "input": ""}) as response,
    ):
        *_, last, rest = (await response.read()).split(b"\n\n")
    assert (b"", "broken_stream") == (rest, json.loads(last.removeprefix(b"data: "))["error"]["code"])


async def test_a_model_that_is_not_served_is_not_found(house: House, connect: Connect) -> None:
    with pytest.raises(NotFoundError):
        await connect(house).embeddings.create(model="gpt-9", input="A queue")
    assert [] == house.events


async def test_a_call_that_names_no_model_is_one_of_the_first(
    upstream: FaultyUpstream, house: House, http: aiohttp.ClientSession
) -> None:
    async with http.post(f"{house.url}/tokenize", json={"content": "A queue"}) as response:
        assert {"tokens": [1]} == await response.json()
    (finished,) = house.of(Finished)
    assert "simulated" == finished.ticket.request.model
    assert {"content": "A queue"} == json.loads(passed(upstream)[0].body)


async def test_a_tenant_names_no_model_of_others_by_naming_none(
    upstream: FaultyUpstream, http: aiohttp.ClientSession
) -> None:
    settings = Settings(tenants=[TenantSettings("a", keys_sha256=[hash_key("sk-a")], models=["other"])])
    headers = {"authorization": "Bearer sk-a"}
    async with live_gateway(http_engine(upstream.url), settings=settings) as house:
        async with http.post(house.url + PATH, json={"input": ""}, headers=headers) as response:
            assert 400 == response.status
        async with http.post(house.url + PATH, json={"model": "other", "input": ""}, headers=headers) as response:
            assert 200 == response.status
    assert 1 == len(passed(upstream))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":5}', b'{"model":"simulated","service_tier":"gold"}'])
async def test_a_body_that_cannot_be_scheduled_is_refused(
    house: House, http: aiohttp.ClientSession, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    async with http.post(house.url + PATH, data=body, headers=headers) as response:
        assert 400 == response.status
        assert {"message", "type", "param", "code"} == (await response.json())["error"].keys()
    assert [] == house.events


async def test_it_needs_a_key_where_keys_are_needed(upstream: FaultyUpstream, connect: Connect) -> None:
    settings = Settings(tenants=[TenantSettings("a", keys_sha256=[hash_key("sk-test")])])
    async with live_gateway(http_engine(upstream.url), settings=settings) as house:
        client = connect(house)
        await client.embeddings.create(model="simulated", input="A queue")
        (finished,) = house.of(Finished)
        async with aiohttp.ClientSession() as http, http.post(house.url + PATH, json={}) as response:
            assert 401 == response.status
    assert "a" == finished.ticket.request.tenant.id
    assert "authorization" not in passed(upstream)[0].headers


@pytest.mark.parametrize(("code", "seen"), [(404, 404), (500, 502), (503, 503)])
async def test_a_refusal_of_the_engine_reaches_the_client(
    http: aiohttp.ClientSession, code: int, seen: int
) -> None:
    refusal = status(code, b'{"error":{"message":"no","type":"t","code":null}}')
    async with gateway_before(refusal) as (_upstream, house):
        async with http.post(house.url + PATH, json={"model": "x", "input": ""}) as response:
            document = await response.json()
        assert 1 == len(house.of(Failed))
    assert (seen, "no") == (response.status, document["error"]["message"])


async def test_only_listed_paths_go_through(upstream: FaultyUpstream, http: aiohttp.ClientSession) -> None:
    async with (
        live_gateway(http_engine(upstream.url), settings=Settings(passthrough=())) as house,
        http.post(house.url + PATH, json=chat()) as response,
    ):
        assert 404 == response.status
    assert [] == passed(upstream)


@pytest.mark.parametrize("path", ["", "v1/embeddings", "/", "/v1/../admin", "/v1/x?y", "/v1/ x", "http://a/b"])
def test_a_setting_that_is_no_path_is_refused(path: str) -> None:
    settings: Any = Settings(passthrough=(path,), engines=[])
    with pytest.raises(ConfigError, match=r"passthrough\[0\]|engines"):
        settings.check()
