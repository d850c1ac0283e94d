"""Engines that fail: each failure is told in OpenAI's form, and every account is straight afterwards."""

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from openai import APIError, InternalServerError, RateLimitError

from driftsched.core.errors import EngineError
from driftsched.core.events import Dispatched, Failed, Finished
from driftsched.core.model import Usage
from driftsched.engines.health import HealthChecks
from driftsched.engines.pool import EnginePool
from driftsched.policies import create_policy
from support.faulty_upstream import (
    EVENTS,
    Behaviour,
    FaultyUpstream,
    content_event,
    die_before_headers,
    die_mid_stream,
    garbage,
    half_close,
    hang_before_headers,
    hang_mid_stream,
    html,
    status,
    stream,
    usage_event,
)
from support.servers import Connect, chat, http_engine, live_gateway, unasked, until

CHAT = "/v1/chat/completions"
BAD_REQUEST = msgspec.json.encode(
    {"error": {"message": "too long", "type": "invalid_request_error", "param": "max_tokens", "code": 400}}
)
BUSY = b'{"error":{"message":"full","type":"rate_limit","param":null,"code":null}}'

# behaviour, status for the client, kind of failure
BEFORE_THE_ANSWER: list[tuple[Behaviour, int, str]] = [
    (die_before_headers(), 502, "broken_stream"),
    (die_before_headers(after=b"HTTP/1.1 200 OK\r\nContent-"), 502, "broken_stream"),
    (status(400, BAD_REQUEST), 400, "engine_rejected"),
    (status(404, b"no such page"), 404, "engine_rejected"),
    (status(401, b"{}"), 502, "engine_auth"),
    (status(429, BUSY, retry_after="7"), 429, "engine_busy"),
    (status(503, BUSY), 503, "engine_busy"),
    (status(500, b"oops"), 502, "engine_error"),
    (status(302, b"", location="http://127.0.0.1:1/"), 502, "garbage"),
    (garbage(), 502, "garbage"),
    (html(), 502, "garbage"),
    (hang_before_headers(), 504, "engine_timeout"),
    (stream([b"data: {\n\n"]), 502, "garbage"),
    (stream([b'data: {"error":{"message":"out of memory","code":500}}\n\n']), 502, "engine_error"),
    (stream([]), 502, "broken_stream"),
]
AFTER_THE_FIRST_TOKEN: list[tuple[Behaviour, int, str]] = [
    (die_mid_stream(), 502, "broken_stream"),
    (half_close(), 502, "broken_stream"),
    (hang_mid_stream(), 504, "engine_timeout"),
    (stream(EVENTS[:1]), 502, "broken_stream"),
    (stream([*EVENTS[:1], b"data: {\n\n"]), 502, "garbage"),
    (stream([*EVENTS[:1], b'data: {"error":{"message":"out of memory"}}\n\n']), 502, "engine_error"),
]


async def outcome(
    http: aiohttp.ClientSession, behaviour: Behaviour, **fields: object
) -> tuple[int, dict[str, str], bytes, Failed]:
    """Status, headers and body for the client, and the event, when the engine behaves so."""
    async with FaultyUpstream(behaviour) as upstream:
        engine = http_engine(upstream.url, first_byte_timeout_seconds=0.2, idle_timeout_seconds=0.2)
        async with live_gateway(engine, catalogue=unasked()) as house:
            async with http.post(house.url + CHAT, json=chat(**fields)) as response:
                body = await response.read()
            await house.settled()
            (failed,) = house.of(Failed)
    return response.status, {k.lower(): v for k, v in response.headers.items()}, body, failed


def error_in(document: bytes) -> dict[str, Any]:
    error: dict[str, Any] = msgspec.json.decode(document)["error"]
    assert {"message", "type", "param", "code"} == error.keys()
    assert error["message"]
    assert error["type"]
    return error


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("behaviour", "code", "kind"), BEFORE_THE_ANSWER)
async def test_a_failure_before_the_answer_is_a_status(
    http: aiohttp.ClientSession, behaviour: Behaviour, code: int, kind: str, streams: bool
) -> None:
    seen, headers, body, failed = await outcome(http, behaviour, stream=streams)
    assert (code, kind) == (seen, failed.error)
    assert "application/json" == headers["content-type"]
    assert failed.ticket.id == headers["x-request-id"]
    error_in(body)
    assert 0 == failed.usage.completion_tokens


@pytest.mark.parametrize(("behaviour", "code", "kind"), AFTER_THE_FIRST_TOKEN)
async def test_a_failure_in_the_middle_is_a_status_for_who_waits_for_the_whole(
    http: aiohttp.ClientSession, behaviour: Behaviour, code: int, kind: str
) -> None:
    seen, _, body, failed = await outcome(http, behaviour)
    assert (code, kind) == (seen, failed.error)
    error_in(body)
    assert 1 == failed.usage.completion_tokens


@pytest.mark.parametrize(("behaviour", "code", "kind"), AFTER_THE_FIRST_TOKEN)
async def test_a_failure_in_the_middle_is_an_event_for_who_reads_the_stream(
    http: aiohttp.ClientSession, behaviour: Behaviour, code: int, kind: str
) -> None:
    seen, _, body, failed = await outcome(http, behaviour, stream=True)
    assert (200, kind) == (seen, failed.error)
    assert body.startswith(EVENTS[0])
    last = body.removeprefix(EVENTS[0])
    assert last.startswith(b"data: ")
    assert last.endswith(b"\n\n")
    error_in(last.removeprefix(b"data: "))
    assert b"[DONE]" not in body
    assert 1 == failed.usage.completion_tokens


async def test_an_engines_own_explanation_reaches_the_client(http: aiohttp.ClientSession) -> None:
    _, _, body, _ = await outcome(http, status(400, BAD_REQUEST))
    error = error_in(body)
    assert ("too long", "max_tokens", "400") == (error["message"], error["param"], error["code"])


async def test_an_engines_own_retry_after_reaches_the_client(http: aiohttp.ClientSession) -> None:
    _, headers, _, _ = await outcome(http, status(429, BUSY, retry_after="7"))
    assert "7" == headers["retry-after"]


async def test_an_engine_that_cannot_be_reached_is_a_503(http: aiohttp.ClientSession) -> None:
    async with (
        live_gateway(http_engine(unused_url()), catalogue=unasked()) as house,
        http.post(house.url + CHAT, json=chat()) as response,
    ):
        error = error_in(await response.read())
        (failed,) = house.of(Failed)
    assert (503, "engine_unreachable", "engine_unreachable") == (response.status, error["code"], failed.error)


async def test_the_official_client_raises_for_a_stream_that_breaks(connect: Connect) -> None:
    async with (
        FaultyUpstream(die_mid_stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        answer = await connect(house).chat.completions.create(**chat(stream=True))
        assert "Hello" == (await anext(answer)).choices[0].delta.content
        with pytest.raises(APIError) as caught:
            await anext(answer)
    assert caught.value.message


async def test_the_official_client_raises_what_the_status_means(connect: Connect) -> None:
    async with (
        FaultyUpstream(status(429, BUSY, retry_after="7"), status(503, BUSY)) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        with pytest.raises(RateLimitError):
            await connect(house).chat.completions.create(**chat())
        with pytest.raises(InternalServerError):
            await connect(house).chat.completions.create(**chat())


async def test_a_failed_request_frees_its_slot_for_the_next(http: aiohttp.ClientSession) -> None:
    async with (
        FaultyUpstream(die_mid_stream(), status(500), garbage(), stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked(), slots=1) as house,
    ):

        async def status_of_call() -> int:
            async with http.post(house.url + CHAT, json=chat()) as response:
                await response.read()
                return response.status

        statuses = await asyncio.gather(*(status_of_call() for _ in range(6)))
    assert [200, 200, 200, 502, 502, 502] == sorted(statuses)


async def test_a_kept_connection_that_the_engine_closed_is_replaced_unseen(http: aiohttp.ClientSession) -> None:
    async with (
        FaultyUpstream(stream(), closes_idle_connections=True) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        for _ in range(3):
            async with http.post(house.url + CHAT, json=chat()) as response:
                assert 200 == response.status
                await response.read()
        assert 3 == len(house.of(Finished))


async def test_a_replica_that_cannot_be_reached_is_passed_over(http: aiohttp.ClientSession) -> None:
    async with FaultyUpstream() as upstream:
        pool = EnginePool([(http_engine(unused_url(), name="away"), 4), (http_engine(upstream.url), 4)])
        async with (
            live_gateway(pool, catalogue=unasked()) as house,
            http.post(house.url + CHAT, json=chat()) as response,
        ):
            assert (200, 1) == (response.status, len(upstream.requests))
            assert b"Hello world" in await response.read()


async def test_a_replica_that_is_full_is_passed_over(http: aiohttp.ClientSession) -> None:
    async with FaultyUpstream(status(503, BUSY)) as full, FaultyUpstream() as free:
        pool = EnginePool([(http_engine(full.url), 4), (http_engine(free.url), 4)])
        async with (
            live_gateway(pool, catalogue=unasked()) as house,
            http.post(house.url + CHAT, json=chat()) as response,
        ):
            assert (200, 1, 1) == (response.status, len(full.requests), len(free.requests))


async def test_a_replica_that_breaks_off_before_its_first_byte_is_passed_over(http: aiohttp.ClientSession) -> None:
    async with FaultyUpstream(die_before_headers()) as dying, FaultyUpstream() as well:
        pool = EnginePool([(http_engine(dying.url), 4), (http_engine(well.url), 4)])
        async with (
            live_gateway(pool, catalogue=unasked()) as house,
            http.post(house.url + CHAT, json=chat(stream=True)) as response,
        ):
            assert (200, True) == (response.status, (await response.read()).startswith(EVENTS[0]))
            assert (1, 1) == (len(dying.requests), len(well.requests))
            await house.settled()
            assert 1 == len(house.of(Finished))


async def test_a_whole_answer_that_breaks_off_comes_from_another_replica_and_is_paid_for_once(
    http: aiohttp.ClientSession,
) -> None:
    lost = die_mid_stream([*[content_event("lost")] * 200, usage_event(7, 200)])
    async with FaultyUpstream(lost) as dying, FaultyUpstream() as well:
        pool = EnginePool([(http_engine(dying.url), 4), (http_engine(well.url), 4)])
        async with live_gateway(pool, catalogue=unasked()) as house:
            async with http.post(house.url + CHAT, json=chat()) as response:
                document = json.loads(await response.read())
            assert (200, "2") == (response.status, response.headers["x-driftsched-actual-tokens"])
            await house.settled()
            (finished,) = house.of(Finished)
    assert "Hello world" == document["choices"][0]["message"]["content"]
    assert (1, 1) == (len(dying.requests), len(well.requests))
    assert Usage(7, 2) == finished.usage
    assert create_policy("fair").charge(finished.ticket.request, Usage(7, 2)) == finished.charge


@pytest.mark.parametrize("behaviour", [die_mid_stream(), hang_mid_stream(), half_close()])
async def test_a_stream_that_has_begun_is_never_tried_again(
    http: aiohttp.ClientSession, behaviour: Behaviour
) -> None:
    async with FaultyUpstream(behaviour) as dying, FaultyUpstream() as well:
        pool = EnginePool([(http_engine(dying.url, idle_timeout_seconds=0.1), 4), (http_engine(well.url), 4)])
        async with (
            live_gateway(pool, catalogue=unasked()) as house,
            http.post(house.url + CHAT, json=chat(stream=True)) as response,
        ):
            assert EVENTS[0] in await response.read()
            assert (1, 0) == (len(dying.requests), len(well.requests))


async def test_an_answer_that_takes_too_long_in_all_ends_with_an_error_in_its_stream(
    http: aiohttp.ClientSession,
) -> None:
    async with FaultyUpstream(hang_mid_stream()) as upstream:
        engine = http_engine(upstream.url, total_timeout_seconds=0.2)
        async with (
            live_gateway(engine, catalogue=unasked()) as house,
            http.post(house.url + CHAT, json=chat(stream=True)) as response,
        ):
            body = await response.read()
            error = error_in(body.removeprefix(EVENTS[0]).removeprefix(b"data: "))
            assert (200, "engine_timeout") == (response.status, error["code"])
            assert "took longer" in error["message"]


async def test_an_engine_that_comes_back_is_found_by_checks(http: aiohttp.ClientSession) -> None:
    url = unused_url()
    pool = EnginePool([(http_engine(url, name="gpu"), 4)], checked=["gpu"])
    checks = HealthChecks(pool)
    async with live_gateway(pool, catalogue=unasked()) as house:
        for _ in range(3):
            async with http.post(house.url + CHAT, json=chat()) as response:
                assert (503, True) == (response.status, "retry-after" in response.headers)
        checks.watch("gpu", 1.0)
        async with FaultyUpstream(stream(), routes={"/health": status(404)}, port=urlsplit(url).port or 0) as back:
            await until(lambda: pool.standing_of("gpu").circuit == "closed")
            async with http.post(house.url + CHAT, json=chat()) as response:
                assert 200 == response.status
            assert [CHAT] == [seen.path for seen in back.requests if seen.path != "/health"]
        await checks.close()


@pytest.mark.parametrize("behaviour", [status(503), die_before_headers()])
async def test_an_engine_that_is_not_well_says_so_when_it_is_asked(behaviour: Behaviour) -> None:
    async with FaultyUpstream(stream(), routes={"/health": behaviour}) as upstream:
        engine = http_engine(upstream.url)
        with pytest.raises(EngineError):
            await engine.check()
        await engine.close()


async def test_what_was_generated_before_a_failure_is_charged(http: aiohttp.ClientSession) -> None:
    events = [content_event("a"), content_event("b"), content_event("c")]
    _, _, _, failed = await outcome(http, die_mid_stream(events), stream=True)
    assert 3 == failed.usage.completion_tokens
    assert failed.charge > 0


async def test_a_silent_engine_holds_its_slot_no_longer_than_it_may(http: aiohttp.ClientSession) -> None:
    async with FaultyUpstream(hang_before_headers(), stream()) as upstream:
        engine = http_engine(upstream.url, first_byte_timeout_seconds=0.1)
        async with live_gateway(engine, catalogue=unasked(), slots=1) as house:
            first = asyncio.create_task(http.post(house.url + CHAT, json=chat()).__aenter__())
            await until(lambda: len(house.of(Dispatched)) == 1)
            async with http.post(house.url + CHAT, json=chat()) as response:
                assert 200 == response.status
            assert 504 == (await first).status
            assert upstream.requests[0].client_gone.is_set()


def unused_url() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"
