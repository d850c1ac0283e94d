"""Quotas over HTTP: what a tenant is told, what it is refused, and who passes whom."""

import asyncio
from dataclasses import replace
from random import Random
from typing import Any

import aiohttp
import pytest
from openai import RateLimitError

from driftsched.config import LimitSettings, QuotaSettings, Settings, TenantSettings, hash_key
from driftsched.core.errors import RejectedError
from driftsched.core.events import Admitted, Dispatched, Finished, Rejected
from driftsched.core.model import Quota, Request, Tenant
from driftsched.core.scheduler import Scheduler
from driftsched.gateway.dispatcher import MonotonicClock
from driftsched.gateway.errors import ClientStalledError
from driftsched.gateway.holding import Holding
from driftsched.gateway.ratelimits import duration
from support.scheduling import request_at, scheduler_of
from support.servers import Connect, House, chat, live_gateway, simulated, until

CHAT = "/v1/chat/completions"
KINDS = ("limit", "remaining", "reset")


def settings(quota: QuotaSettings, **limits: float) -> Settings:
    return Settings(
        tenants=[
            TenantSettings("ann", quota=quota, keys_sha256=[hash_key("sk-test")]),
            TenantSettings("bob", keys_sha256=[hash_key("bob-key")]),
        ],
        limits=LimitSettings(**limits),  # type: ignore[arg-type]
    )


async def ask(
    http: aiohttp.ClientSession, house: House, key: str = "sk-test", request_id: str = "r", **fields: object
) -> tuple[int, str | None]:
    """Status and code of the error."""
    headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
    async with http.post(house.url + CHAT, json=chat(**fields), headers=headers) as response:
        body = await response.read()
        code = (await response.json())["error"]["code"] if response.status >= 400 else None
        assert body
        return response.status, code


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0, "0s"),
        (0.0001, "1ms"),
        (0.02, "20ms"),
        (0.9995, "1s"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (8.64, "8.64s"),
        (60.0, "1m0s"),
        (360.0, "6m0s"),
        (3723.004, "1h2m3.004s"),
        (7200.0, "2h0m0s"),
    ],
)
def test_a_time_is_written_as_in_openais_headers(seconds: float, written: str) -> None:
    assert written == duration(seconds)


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_tells_what_is_left(connect: Connect, stream: bool) -> None:
    quota = QuotaSettings(requests_per_minute=60, tokens_per_minute=5_000)
    async with live_gateway(simulated(), settings=settings(quota)) as house:
        create = connect(house).chat.completions.with_raw_response.create
        answer = await create(
            model="simulated", messages=[{"role": "user", "content": "What is a queue?"}], stream=stream
        )
        said = answer.headers
        limit, remaining, reset = (said[f"x-ratelimit-{kind}-requests"] for kind in KINDS)
        assert ("60", "59", "s") == (limit, remaining, reset[-1])
        assert "5000" == said["x-ratelimit-limit-tokens"]
        assert 0 <= int(said["x-ratelimit-remaining-tokens"]) < 5_000
        assert said["x-ratelimit-reset-tokens"].endswith("s")
        async for _ in answer.http_response.aiter_bytes():
            pass


async def test_a_tenant_without_quotas_is_told_nothing(house_of_all: House, http: aiohttp.ClientSession) -> None:
    headers = {"authorization": "Bearer bob-key"}
    async with http.post(house_of_all.url + CHAT, json=chat(), headers=headers) as response:
        assert (200, []) == (response.status, [name for name in response.headers if "ratelimit" in name.lower()])


@pytest.fixture
async def house_of_all():  # type: ignore[no-untyped-def]
    async with live_gateway(simulated(), settings=settings(QuotaSettings(requests_per_minute=1))) as house:
        yield house


async def test_the_official_client_raises_what_it_raises_for_openai(house_of_all: House, connect: Connect) -> None:
    create = connect(house_of_all).chat.completions.create
    await create(model="simulated", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(RateLimitError) as caught:
        await create(model="simulated", messages=[{"role": "user", "content": "Hi"}])
    said = caught.value.response.headers
    assert ("rate_limit_exceeded", "requests") == (caught.value.code, caught.value.type)
    assert ("1", "0") == (said["x-ratelimit-limit-requests"], said["x-ratelimit-remaining-requests"])
    assert 59 <= int(said["retry-after"]) <= 60
    assert 58_000 < int(said["retry-after-ms"]) <= 60_000
    assert "rate_limit_exceeded" == said["x-driftsched-reason"]
    (rejected,) = house_of_all.of(Rejected)
    assert "requests_quota" == rejected.reason


async def test_a_quota_used_up_is_nobody_elses(house_of_all: House, http: aiohttp.ClientSession) -> None:
    assert (200, None) == await ask(http, house_of_all)
    assert (429, "rate_limit_exceeded") == await ask(http, house_of_all)
    assert [(200, None)] * 3 == [await ask(http, house_of_all, "bob-key") for _ in range(3)]


async def test_tokens_are_settled_on_what_was_used(http: aiohttp.ClientSession) -> None:
    async with live_gateway(simulated(), settings=settings(QuotaSettings(tokens_per_minute=600))) as house:
        await ask(http, house)
        (finished,) = house.of(Finished)
        (standing,) = house.gateway._quotas.standing(Quota("ann", tokens_per_minute=600), finished.at)
    ran_out = 10 * (finished.at - finished.ticket.request.arrived_at)
    used = finished.usage.total_tokens
    assert 600 - used <= standing.remaining <= 600 - used + ran_out


async def test_who_is_at_its_limit_is_held_and_the_others_pass(http: aiohttp.ClientSession) -> None:
    engine = simulated(4)
    async with live_gateway(engine, slots=4, settings=settings(QuotaSettings(max_inflight=2))) as house:
        await ask(http, house)
        engine.hold()
        calls = []
        for number in range(5):
            calls.append(asyncio.create_task(ask(http, house, request_id=f"ann-{number}")))
            await until(lambda number=number: len(house.gateway._whereabouts._alive) == number + 1)  # type: ignore[misc]
        calls += [asyncio.create_task(ask(http, house, "bob-key", f"bob-{number}")) for number in range(2)]
        await until(lambda: 2 == sum(e.ticket.request.tenant.id == "bob" for e in house.of(Dispatched)))
        assert (4, 0) == (house.queue.num_inflight, house.queue.num_waiting)
        headers = {"authorization": "Bearer sk-test"}
        async with http.get(f"{house.url}/v1/queue/ann-4", headers=headers) as response:
            told = await response.json()
        assert ("held", True) == (told["status"], told["waited_seconds"] >= 0)
        async with http.get(f"{house.url}/metrics") as response:
            assert "\ndriftsched_held_requests 3.0\n" in await response.text()
        engine.resume()
        assert [(200, None)] * 7 == await asyncio.gather(*calls)
        assert house.gateway._holding is not None
        assert ({}, 0) == (house.gateway._holding._accounts, house.gateway._holding.num_held)


async def test_who_was_held_is_told_for_how_long_and_its_wait_in_line_begins_then(
    http: aiohttp.ClientSession,
) -> None:
    engine = simulated(4)
    async with live_gateway(engine, settings=settings(QuotaSettings(max_inflight=1))) as house:
        engine.hold()
        first = asyncio.create_task(ask(http, house))
        await until(lambda: house.of(Dispatched))
        headers = {"authorization": "Bearer sk-test"}
        second = asyncio.create_task(http.post(house.url + CHAT, json=chat(), headers=headers))
        await until(lambda: house.gateway._holding is not None and house.gateway._holding.num_held == 1)
        engine.resume()
        await first
        async with await second as response:
            await response.read()
        held, queued = (float(response.headers[f"x-driftsched-{kind}-seconds"]) for kind in ("held", "queue"))
        earlier, later = house.of(Finished)
    assert held > 0
    assert later.ticket.request.arrived_at >= earlier.at
    assert queued < 5.0


async def test_a_client_that_leaves_while_it_is_held_leaves_nothing_behind(http: aiohttp.ClientSession) -> None:
    engine = simulated(4)
    async with live_gateway(engine, settings=settings(QuotaSettings(max_inflight=1))) as house:
        holding = house.gateway._holding
        assert holding is not None
        engine.hold()
        first = asyncio.create_task(ask(http, house))
        await until(lambda: house.of(Dispatched))
        second = asyncio.create_task(ask(http, house))
        await until(lambda: holding.num_held == 1)
        second.cancel()
        await until(lambda: holding.num_held == 0)
        engine.resume()
        assert (200, None) == await first
        assert (200, None) == await ask(http, house)
    assert 2 == len(house.of(Admitted))


async def test_who_is_held_for_too_long_or_comes_when_too_many_are_is_sent_away(
    http: aiohttp.ClientSession,
) -> None:
    engine = simulated(4)
    quota = QuotaSettings(max_inflight=1, max_waiting=1)
    async with live_gateway(engine, settings=settings(quota, max_queue_seconds=0.3)) as house:
        engine.hold()
        first = asyncio.create_task(ask(http, house))
        await until(lambda: house.of(Dispatched))
        second = asyncio.create_task(ask(http, house))
        await until(lambda: house.gateway._holding is not None and house.gateway._holding.num_held == 1)
        assert (429, "tenant_queue_full") == await ask(http, house)
        assert (429, "tenant_inflight_full") == await second
        engine.resume()
        assert (200, None) == await first
    assert ["tenant_queue_full", "tenant_inflight_full"] == [event.reason for event in house.of(Rejected)]


@pytest.mark.parametrize("expires", [False, True])
async def test_a_stream_that_is_held_gets_signs_of_life(http: aiohttp.ClientSession, expires: bool) -> None:
    engine = simulated(4)
    limits = {"keep_alive_seconds": 0.001, "max_queue_seconds": 0.3 if expires else 60.0}
    async with live_gateway(engine, settings=settings(QuotaSettings(max_inflight=1), **limits)) as house:
        engine.hold()
        first = asyncio.create_task(ask(http, house))
        await until(lambda: house.of(Dispatched))
        headers = {"authorization": "Bearer sk-test"}
        async with http.post(house.url + CHAT, json=chat(stream=True), headers=headers) as response:
            assert b": waiting\n" == await response.content.readline()
            if not expires:
                engine.resume()
            text = await response.text()
        engine.resume()
        assert (200, None) == await first
    assert (200, "tenant_inflight_full" in text, "[DONE]" in text) == (response.status, expires, not expires)
    assert "x-driftsched-tier" not in response.headers


async def test_a_client_that_does_not_read_while_it_is_held_loses_its_place() -> None:
    holding = holding_of(scheduler_of(), keep_alive_seconds=0.001)
    of_one = Tenant("ann", quota=Quota("ann", max_inflight=1))

    async def stalled() -> None:
        raise ClientStalledError

    async with holding.place(replace(request_at(0.0, "a"), tenant=of_one)):
        with pytest.raises(ClientStalledError):
            async with holding.place(replace(request_at(0.0, "b"), tenant=of_one), stalled):
                raise AssertionError("it has a place")
        assert 0 == holding.num_held
    assert {} == holding._accounts


async def test_who_is_held_when_the_gateway_stops_is_told_so(http: aiohttp.ClientSession) -> None:
    engine = simulated(4)
    async with live_gateway(engine, settings=settings(QuotaSettings(max_inflight=1))) as house:
        engine.hold()
        first = asyncio.create_task(ask(http, house))
        await until(lambda: house.of(Dispatched))
        second = asyncio.create_task(ask(http, house))
        await until(lambda: house.gateway._holding is not None and house.gateway._holding.num_held == 1)
        await house.gateway.dispatcher.close()
        engine.resume()
        assert (200, None) == await first
        assert (503, "shutting_down") == await second


CAPPED = Tenant("ann", quota=Quota("ann", max_inflight=2))


def holding_of(scheduler: Scheduler, **options: Any) -> Holding:
    return Holding(scheduler, MonotonicClock(), **{"max_held": 100, "max_held_bytes": 1000, **options})


@pytest.mark.parametrize("seed", range(5))
async def test_never_more_than_the_limit_have_a_place_and_those_held_longest_come_first(seed: int) -> None:
    holding, rng = holding_of(scheduler_of()), Random(seed)
    inside: list[str] = []
    order: list[str] = []
    leave: dict[str, asyncio.Event] = {}

    async def take(request: Request) -> None:
        async with holding.place(request):
            inside.append(request.id)
            order.append(request.id)
            try:
                await leave[request.id].wait()
            finally:
                inside.remove(request.id)

    tasks: dict[str, asyncio.Task[None]] = {}
    for number in range(120):
        name = f"{number:03d}"
        leave[name] = asyncio.Event()
        tasks[name] = asyncio.create_task(take(replace(request_at(0.0, name, payload_bytes=1), tenant=CAPPED)))
        for other in rng.sample(sorted(tasks), min(len(tasks), rng.randrange(3))):
            if rng.random() < 0.5:
                tasks[other].cancel()
            else:
                leave[other].set()
        await asyncio.sleep(0)
        assert len(inside) <= 2
    for event in leave.values():
        event.set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert sorted(order) == order
    assert ({}, set(), 0) == (holding._accounts, holding._ids, holding._bytes)


async def test_a_limit_that_was_raised_lets_in_those_held_before_the_one_that_brings_it() -> None:
    holding, order = holding_of(scheduler_of()), []
    done = asyncio.Event()

    async def take(name: str, max_inflight: int) -> None:
        tenant = Tenant("ann", quota=Quota("ann", max_inflight=max_inflight))
        async with holding.place(replace(request_at(0.0, name), tenant=tenant)):
            order.append(name)
            await done.wait()

    tasks = [asyncio.create_task(take(name, 1)) for name in "abc"]
    await until(lambda: holding.num_held == 2)
    tasks.append(asyncio.create_task(take("d", 3)))
    await until(lambda: len(order) == 3)
    assert (["a", "b", "c"], True) == (order, holding.holds("d"))
    done.set()
    await asyncio.gather(*tasks)
    assert ["a", "b", "c", "d"] == order


async def test_the_bodies_of_what_is_held_are_bounded() -> None:
    holding = holding_of(scheduler_of(), max_held_bytes=10)
    of_one = Tenant("ann", quota=Quota("ann", max_inflight=1))
    async with holding.place(replace(request_at(0.0, "a"), tenant=of_one)):
        with pytest.raises(RejectedError) as caught:
            async with holding.place(replace(request_at(0.0, "b", payload_bytes=11), tenant=of_one)):
                raise AssertionError("it has a place")
    assert "queue_bytes_full" == caught.value.reason
