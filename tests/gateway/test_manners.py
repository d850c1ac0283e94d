"""Overload with manners: what a client is told that cannot be served now, or must wait."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI, RateLimitError

from driftsched.config import LimitSettings, MaxWaitSettings, Settings, TenantSettings, hash_key
from driftsched.core.events import Admitted, Dispatched, Evicted, Finished, Rejected
from driftsched.core.model import Request, Tenant, Tier
from driftsched.engines.simulated import SimulatedEngine
from driftsched.gateway.dispatcher import MonotonicClock
from driftsched.gateway.whereabouts import MAX_DONE, Whereabouts
from support.faulty_upstream import EVENTS, FaultyUpstream, status, stepwise
from support.scheduling import scheduler_of
from support.servers import House, chat, http_engine, live_gateway, simulated, unasked, until

CHAT = "/v1/chat/completions"


class Patient(AsyncOpenAI):
    """The official client, all its decisions its own; instead of sleeping it notes for how long it would have."""

    def __init__(self, house: House, max_retries: int) -> None:
        super().__init__(base_url=f"{house.url}/v1", api_key="sk-test", max_retries=max_retries, timeout=20)
        self.sleeps: list[float] = []
        self.before_retry: Callable[[], Awaitable[None]] | None = None

    async def _sleep_for_retry(self, *, retries_taken: int, max_retries: int, options: Any, response: Any) -> None:
        self.sleeps.append(
            self._calculate_retry_timeout(max_retries - retries_taken, options, response and response.headers)
        )
        if self.before_retry:
            await self.before_retry()


@asynccontextmanager
async def full_house(**limits: Any) -> AsyncIterator[tuple[House, Callable[[], Awaitable[None]]]]:
    """A gateway whose one slot is taken and in which one request waits; and what lets both be served."""
    engine = simulated(slots=1)
    engine.hold()
    settings = Settings(limits=LimitSettings(**limits))
    async with live_gateway(engine, slots=1, settings=settings) as house, aiohttp.ClientSession(house.url) as http:
        calls = [asyncio.create_task(status_of(http)) for _ in range(2)]
        await until(lambda: len(house.of(Admitted)) == 2)

        async def served() -> None:
            engine.resume()
            assert [200, 200] == await asyncio.gather(*calls)

        yield house, served
        await served()


async def status_of(http: aiohttp.ClientSession, **fields: Any) -> int:
    async with http.post(CHAT, json=chat(**fields)) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize("max_retries", [0, 2, 5])
async def test_the_official_client_waits_as_told_and_asks_no_more_often_than_it_may(max_retries: int) -> None:
    async with full_house(max_waiting=1) as (house, _), Patient(house, max_retries) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(**chat())
        rejected = house.of(Rejected)
    assert max_retries + 1 == len(rejected)
    assert [round(event.retry_after_seconds, 3) for event in rejected[:-1]] == client.sleeps
    assert all(1 <= seconds <= 120 for seconds in client.sleeps)
    assert "queue_full" == caught.value.code == caught.value.response.headers["x-driftsched-reason"]


async def test_a_rejected_official_client_is_served_when_it_comes_back_as_told() -> None:
    async with full_house(max_waiting=1) as (house, served), Patient(house, 2) as client:
        client.before_retry = served
        answer = await client.chat.completions.create(**chat())
        assert answer.choices[0].message.content
        assert 1 == len(house.of(Rejected))


async def test_the_official_client_does_not_retry_what_there_will_never_be_room_for() -> None:
    settings = Settings(limits=LimitSettings(max_waiting_bytes=10))
    async with live_gateway(simulated(), settings=settings) as house, Patient(house, 2) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(**chat())
        assert [None] == [event.retry_after_seconds for event in house.of(Rejected)]
    headers = caught.value.response.headers
    assert ("false", "queue_bytes_full") == (headers["x-should-retry"], headers["x-driftsched-reason"])
    assert not {"retry-after", "retry-after-ms"} & set(headers)
    assert "Do not retry." in caught.value.message


@pytest.mark.parametrize("code", [429, 503])
async def test_a_busy_engine_that_does_not_say_when_to_come_back_is_spoken_for(
    http: aiohttp.ClientSession, code: int
) -> None:
    async with (
        FaultyUpstream(status(code)) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
        http.post(house.url + CHAT, json=chat()) as response,
    ):
        headers = response.headers
        assert (code, "engine_busy") == (response.status, headers["x-driftsched-reason"])
        assert ("1", "1000") == (headers["retry-after"], headers["retry-after-ms"])


async def test_an_engine_that_broke_says_nothing_of_coming_back(http: aiohttp.ClientSession) -> None:
    async with (
        FaultyUpstream(status(500)) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
        http.post(house.url + CHAT, json=chat()) as response,
    ):
        assert "engine_error" == response.headers["x-driftsched-reason"]
        assert "retry-after" not in response.headers


async def test_a_line_of_too_many_tokens_takes_nobody_else_in() -> None:
    async with (
        full_house(max_waiting_tokens=1) as (house, _),
        aiohttp.ClientSession(house.url) as http,
        http.post(CHAT, json=chat()) as response,
    ):
        assert (429, "queue_tokens_full") == (response.status, response.headers["x-driftsched-reason"])


async def test_a_tenant_with_too_many_tokens_waiting_keeps_nobody_else_out() -> None:
    async with (
        full_house(max_waiting_tokens_per_tenant=1) as (house, served),
        aiohttp.ClientSession(house.url) as http,
    ):
        async with http.post(CHAT, json=chat()) as response:
            assert (429, "tenant_tokens_full") == (response.status, response.headers["x-driftsched-reason"])
        other = asyncio.create_task(status_of(http, user="other"))
        await until(lambda: len(house.of(Admitted)) == 3)
        await served()
        assert 200 == await other


TIERS = [TenantSettings("gold", tier="premium"), TenantSettings("bulk", tier="batch")]


async def test_whoever_gives_its_place_to_another_is_told_when_to_come_back(engine: SimulatedEngine) -> None:
    engine.hold()
    settings = Settings(tenants=TIERS, limits=LimitSettings(max_waiting=1))
    async with live_gateway(engine, slots=1, settings=settings) as house, aiohttp.ClientSession(house.url) as http:
        first = asyncio.create_task(status_of(http))
        await until(lambda: house.of(Dispatched))
        bulk = asyncio.create_task(http.post(CHAT, json=chat(user="bulk")))
        await until(lambda: len(house.of(Admitted)) == 2)
        gold = asyncio.create_task(status_of(http, user="gold"))
        async with await bulk as response:
            error = (await response.json())["error"]
        headers = response.headers
        assert (429, "shed", "rate_limit_error") == (response.status, error["code"], error["type"])
        assert ("shed", "1", "1000") == (
            headers["x-driftsched-reason"],
            headers["retry-after"],
            headers["retry-after-ms"],
        )
        assert ["shed"] == [event.reason for event in house.of(Evicted)]
        engine.resume()
        assert (200, 200) == (await first, await gold)
        await house.settled()


async def test_unless_asked_for_nobody_gives_its_place_to_another(engine: SimulatedEngine) -> None:
    engine.hold()
    settings = Settings(tenants=TIERS, limits=LimitSettings(max_waiting=1, shed=False))
    async with live_gateway(engine, slots=1, settings=settings) as house, aiohttp.ClientSession(house.url) as http:
        first = asyncio.create_task(status_of(http))
        await until(lambda: house.of(Dispatched))
        bulk = asyncio.create_task(status_of(http, user="bulk"))
        await until(lambda: len(house.of(Admitted)) == 2)
        assert 429 == await status_of(http, user="gold")
        engine.resume()
        assert (200, 200) == (await first, await bulk)


async def test_a_client_is_not_kept_waiting_for_longer_than_it_said(http: aiohttp.ClientSession) -> None:
    async with full_house() as (house, _):
        hasty = {"x-driftsched-max-queue-seconds": "0.05"}
        async with http.post(house.url + CHAT, json=chat(), headers=hasty) as response:
            assert (429, "queue_timeout") == (response.status, response.headers["x-driftsched-reason"])


@pytest.mark.parametrize("header", ["x-driftsched-max-queue-seconds", "x-driftsched-slo-seconds"])
@pytest.mark.parametrize("said", ["soon", "0", "-1", "nan", ""])
async def test_a_number_of_seconds_that_makes_no_sense_is_refused(
    http: aiohttp.ClientSession, header: str, said: str
) -> None:
    headers = {header: said}
    async with (
        live_gateway(simulated()) as house,
        http.post(house.url + CHAT, json=chat(), headers=headers) as response,
    ):
        error = (await response.json())["error"]
    assert (400, "invalid_value", header) == (response.status, error["code"], error["param"])


@pytest.mark.parametrize(("said", "target"), [("2.5", 2.5), ("inf", None), (None, None)])
async def test_the_target_that_a_client_names_reaches_the_policy(
    http: aiohttp.ClientSession, said: str | None, target: float | None
) -> None:
    headers = {"x-driftsched-slo-seconds": said} if said else {}
    async with (
        live_gateway(simulated()) as house,
        http.post(house.url + CHAT, json=chat(), headers=headers) as response,
    ):
        assert 200 == response.status
        assert [target] == [event.ticket.request.target_seconds for event in house.of(Admitted)]


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_maximum_wait_that_cannot_be_kept_is_not_promised(wanted: bool) -> None:
    engine = simulated(slots=1)
    waits = MaxWaitSettings(premium=0.001, standard=0.001, batch=0.001)
    settings = Settings(limits=LimitSettings(reject_unattainable=wanted, max_wait_seconds=waits))
    async with live_gateway(engine, slots=1, settings=settings) as house, aiohttp.ClientSession(house.url) as line:
        first = [asyncio.create_task(status_of(line)) for _ in range(10)]
        assert [200] * 10 == await asyncio.gather(*first)  # how fast the engine is when somebody waits
        engine.hold()
        calls = [asyncio.create_task(status_of(line)) for _ in range(10)]
        await until(lambda: len(house.of(Admitted, Rejected)) == 20)
        engine.resume()
        statuses = await asyncio.gather(*calls)
        assert ({200, 429} if wanted else {200}) == set(statuses)
        assert ({"max_wait_unattainable"} if wanted else set()) == {event.reason for event in house.of(Rejected)}
        await house.settled()


@pytest.mark.parametrize(("wanted", "reason"), [(True, "deadline_unattainable"), (False, "queue_timeout")])
async def test_a_request_that_cannot_be_served_in_time_is_refused_at_once_if_wanted(
    http: aiohttp.ClientSession, wanted: bool, reason: str
) -> None:
    engine = simulated(slots=1)
    settings = Settings(limits=LimitSettings(reject_unattainable=wanted))
    async with live_gateway(engine, slots=1, settings=settings) as house, aiohttp.ClientSession(house.url) as line:
        assert 200 == await status_of(line)  # how fast the engine is
        assert [200] * 40 == await asyncio.gather(*(status_of(line) for _ in range(40)))  # how long waits are
        engine.hold()
        calls = [asyncio.create_task(status_of(line)) for _ in range(20)]
        await until(lambda: len(house.of(Admitted)) == 61)
        hasty = {"x-driftsched-max-queue-seconds": "0.0001"}
        async with http.post(house.url + CHAT, json=chat(), headers=hasty) as response:
            await response.read()
        engine.resume()
        assert [200] * 20 == await asyncio.gather(*calls)
    headers = response.headers
    assert (429, reason, "1") == (response.status, headers["x-driftsched-reason"], headers["retry-after"])


# Where a request is


@pytest.fixture
async def engine() -> SimulatedEngine:
    return simulated(slots=1)


@pytest.fixture
async def keyed(engine: SimulatedEngine) -> AsyncIterator[House]:
    """One slot, and two tenants with keys."""
    tenants = [TenantSettings(name, keys_sha256=[hash_key(f"sk-{name}")]) for name in ("ann", "bob")]
    async with live_gateway(engine, slots=1, settings=Settings(tenants=tenants)) as house:
        yield house


def by(tenant: str, request_id: str = "") -> dict[str, str]:
    return {"authorization": f"Bearer sk-{tenant}", **({"x-request-id": request_id} if request_id else {})}


async def found(http: aiohttp.ClientSession, house: House, request_id: str, tenant: str = "ann") -> dict[str, Any]:
    async with http.get(f"{house.url}/v1/queue/{request_id}", headers=by(tenant)) as response:
        document: dict[str, Any] = await response.json()
        return {"http": response.status, **document}


async def test_a_client_can_ask_where_its_request_is(
    keyed: House, engine: SimulatedEngine, http: aiohttp.ClientSession
) -> None:
    async def call(request_id: str) -> int:
        async with http.post(keyed.url + CHAT, json=chat(), headers=by("ann", request_id)) as response:
            await response.read()
            return response.status

    assert 200 == await call("warm")
    engine.hold()
    calls = []
    for number, request_id in enumerate(("first", "second", "a/third 3"), start=2):
        calls.append(asyncio.create_task(call(request_id)))
        await until(lambda number=number: len(keyed.of(Admitted)) == number)  # type: ignore[misc]
    first, second, third = [await found(http, keyed, name) for name in ("first", "second", "a/third 3")]
    assert {"http": 200, "object": "queue.request", "id": "first", "status": "running"} == first
    assert ("waiting", 1) == (second["status"], second["position"])
    assert ("waiting", 2, "a/third 3") == (third["status"], third["position"], third["id"])
    for waiting in (second, third):
        assert 0 <= waiting["eta_low_seconds"] <= waiting["eta_seconds"] <= waiting["eta_high_seconds"]
        assert waiting["waited_seconds"] >= 0
    engine.resume()
    assert [200] * 3 == await asyncio.gather(*calls)
    assert "done" == (await found(http, keyed, "second"))["status"]


async def test_nobody_learns_of_the_requests_of_another_tenant(keyed: House, http: aiohttp.ClientSession) -> None:
    async with http.post(keyed.url + CHAT, json=chat(), headers=by("ann", "mine")) as response:
        await response.read()
    assert (200, 404) == tuple([(await found(http, keyed, "mine", who))["http"] for who in ("ann", "bob")])
    unknown = await found(http, keyed, "never-was", "ann")
    assert (404, "unknown_request") == (unknown["http"], unknown["error"]["code"])
    async with http.get(f"{keyed.url}/v1/queue/mine") as response:
        assert 401 == response.status


async def test_a_request_without_a_name_of_its_own_is_found_by_the_one_it_was_given(
    keyed: House, http: aiohttp.ClientSession
) -> None:
    async with http.post(keyed.url + CHAT, json=chat(), headers=by("ann")) as response:
        await response.read()
    assert "done" == (await found(http, keyed, response.headers["x-request-id"]))["status"]


async def test_the_forecast_of_its_arrival_is_in_the_headers_of_its_answer(http: aiohttp.ClientSession) -> None:
    names = [f"x-driftsched-eta-{end}seconds" for end in ("low-", "", "high-")]
    async with live_gateway(simulated()) as house:
        async with http.post(house.url + CHAT, json=chat()) as first:
            await first.read()
        async with http.post(house.url + CHAT, json=chat()) as second:
            await second.read()
    assert not set(names) & set(first.headers)  # nothing is known yet of how fast the engine is
    low, middle, high = (float(second.headers[name]) for name in names)
    assert 0 <= low <= middle <= high


def request_of(name: str) -> Request:
    return Request(id=name, tenant=Tenant("t"), tier=Tier.STANDARD, model="m", arrived_at=0.0)


def test_of_requests_with_one_name_the_later_is_told_of_as_long_as_it_lives() -> None:
    places = Whereabouts(scheduler_of(), MonotonicClock())
    with ExitStack() as later:
        with places.following(request_of("a"), b"name"):
            later.enter_context(places.following(request_of("b"), b"name"))
        assert {"status": "running"} == places.find(Tenant("t"), b"name")
    assert {"status": "done"} == places.find(Tenant("t"), b"name")


def test_the_requests_that_ended_first_are_forgotten_first() -> None:
    places = Whereabouts(scheduler_of(), MonotonicClock())
    for n in (*range(MAX_DONE), 0, MAX_DONE):  # one of them twice
        with places.following(request_of(str(n)), b"%d" % n):
            pass
    assert [{"status": "done"}, None] == [places.find(Tenant("t"), name) for name in (b"0", b"1")]
    assert ({}, MAX_DONE) == (places._alive, len(places._done))


# Signs of life

ALIVE = Settings(limits=LimitSettings(keep_alive_seconds=0.001))
COMMENT = b": waiting\n\n"


@asynccontextmanager
async def waiting_stream(http: aiohttp.ClientSession, engine: Any, settings: Settings) -> AsyncIterator[Any]:
    """The house, and the answer to a stream that waits behind another request, after its first sign of life."""
    async with live_gateway(engine, slots=1, settings=settings, catalogue=unasked()) as house:
        first = asyncio.create_task(status_of_url(http, house.url + CHAT))
        await until(lambda: house.of(Dispatched))
        async with http.post(house.url + CHAT, json=chat(stream=True)) as response:
            assert COMMENT == await response.content.readexactly(len(COMMENT))
            yield house, response
        assert 200 == await first


async def status_of_url(http: aiohttp.ClientSession, url: str, **fields: Any) -> int:
    async with http.post(url, json=chat(**fields)) as response:
        await response.read()
        return response.status


def without_comments(body: bytes) -> bytes:
    return body.replace(COMMENT, b"")


async def test_a_stream_that_waits_shows_that_it_lives_and_is_answered_in_full(
    http: aiohttp.ClientSession, engine: SimulatedEngine
) -> None:
    engine.hold()
    async with waiting_stream(http, engine, ALIVE) as (house, response):
        assert [] == house.of(Finished)
        headers = response.headers
        assert (200, "text/event-stream; charset=utf-8") == (response.status, headers["content-type"])
        assert ("1", "standard") == (headers["x-driftsched-position"], headers["x-driftsched-tier"])
        assert "x-driftsched-queue-seconds" not in headers
        assert COMMENT == await response.content.readexactly(len(COMMENT))
        engine.resume()
        body = without_comments(await response.read())
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_the_official_client_passes_over_signs_of_life(engine: SimulatedEngine) -> None:
    engine.hold()
    async with live_gateway(engine, slots=1, settings=ALIVE) as house, Patient(house, 0) as client:
        first = asyncio.create_task(client.chat.completions.create(**chat()))
        await until(lambda: house.of(Dispatched))
        stream = await client.chat.completions.create(**chat(stream=True))  # its headers are there: it lives
        assert 1 == len(house.of(Dispatched))
        engine.resume()
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(texts)
        await first


async def test_whoever_waited_too_long_after_a_sign_of_life_is_told_in_the_stream(
    http: aiohttp.ClientSession, engine: SimulatedEngine
) -> None:
    engine.hold()
    settings = Settings(limits=LimitSettings(keep_alive_seconds=0.001, max_queue_seconds=0.05))
    async with waiting_stream(http, engine, settings) as (_, response):
        body = without_comments(await response.read())
        engine.resume()
    assert body.startswith(b'data: {"error":{"message":')
    assert b'"code":"queue_timeout"' in body
    assert body.endswith(b"}}\n\n")
    assert b"[DONE]" not in body


async def test_whoever_gives_its_place_to_another_after_a_sign_of_life_is_told_in_the_stream(
    http: aiohttp.ClientSession, engine: SimulatedEngine
) -> None:
    engine.hold()
    limits = LimitSettings(keep_alive_seconds=0.001, max_waiting=1)
    settings = Settings(tenants=TIERS, limits=limits)
    async with waiting_stream(http, engine, settings) as (house, response):
        gold = asyncio.create_task(status_of_url(http, house.url + CHAT, user="gold"))
        body = without_comments(await response.read())
        engine.resume()
        assert 200 == await gold
    assert body.startswith(b'data: {"error":{"message":')
    assert b'"code":"shed"' in body
    assert b"[DONE]" not in body


async def test_what_the_engine_refuses_after_a_sign_of_life_is_told_in_the_stream(
    http: aiohttp.ClientSession,
) -> None:
    spread = b'{"error": {\n"message": "too long",\n "type": "x", "param": null, "code": 400}}'
    async with (
        FaultyUpstream(stepwise(EVENTS), status(400, spread)) as upstream,
        waiting_stream(http, http_engine(upstream.url), ALIVE) as (_, response),
    ):
        for _ in range(len(EVENTS) + 1):
            upstream.proceed()
        body = without_comments(await response.read())
    (line,) = body.removesuffix(b"\n\n").split(b"\n")
    assert "too long" == json.loads(line.removeprefix(b"data: "))["error"]["message"]


async def test_whoever_leaves_after_a_sign_of_life_leaves_the_queue(
    http: aiohttp.ClientSession, engine: SimulatedEngine
) -> None:
    engine.hold()
    async with waiting_stream(http, engine, ALIVE) as (house, response):
        response.close()
        await until(lambda: house.of(Evicted))
        assert ["cancelled"] == [event.reason for event in house.of(Evicted)]
        engine.resume()


async def test_an_answer_that_is_not_streamed_gets_no_sign_of_life(engine: SimulatedEngine) -> None:
    engine.hold()
    settings = Settings(limits=LimitSettings(keep_alive_seconds=0.001, max_queue_seconds=0.05))
    async with live_gateway(engine, slots=1, settings=settings) as house, aiohttp.ClientSession(house.url) as http:
        first = asyncio.create_task(status_of(http))
        await until(lambda: house.of(Dispatched))
        assert 429 == await status_of(http)
        engine.resume()
        assert 200 == await first


async def test_unless_asked_for_nothing_is_sent_to_a_stream_that_waits(engine: SimulatedEngine) -> None:
    engine.hold()
    settings = Settings(limits=LimitSettings(max_queue_seconds=0.05))
    async with live_gateway(engine, slots=1, settings=settings) as house, aiohttp.ClientSession(house.url) as http:
        first = asyncio.create_task(status_of(http))
        await until(lambda: house.of(Dispatched))
        assert 429 == await status_of(http, stream=True)
        engine.resume()
        assert 200 == await first
