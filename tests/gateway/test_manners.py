"""Overload with manners: what a client is told that cannot be served now, or must wait."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI, RateLimitError

from driftsched.config import LimitSettings, Settings
from driftsched.core.events import Admitted, Rejected
from support.faulty_upstream import FaultyUpstream, status
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
