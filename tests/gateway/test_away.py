"""An engine that is stopped and started again behind a gateway that serves: real sockets, the same port."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from driftsched.config import EngineSettings, LimitSettings, PartSettings, Settings
from driftsched.core.events import Admitted, Event, Failed, Finished, Rejected
from driftsched.engines.mock import MockServer
from driftsched.gateway.app import Gateway
from driftsched.pooling import Fleet
from driftsched.serving import build_gateway
from support.servers import chat, serving, simulated, until

CHAT = "/v1/chat/completions"
NUM_REQUESTS = 12


class Engine:
    """The mock server, which remembers what it was asked, on a port that it keeps over its restarts."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = MockServer(simulated(slots=1, speed=2000.0))

        async def remembering(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            async def read() -> MutableMapping[str, Any]:
                message: MutableMapping[str, Any] = await receive()
                if message["type"] == "http.request" and scope["path"] == CHAT:
                    self.asked.append(msgspec.json.decode(message["body"])["messages"][0]["content"])
                return message

            await app(scope, read, send)

        async with serving(remembering, port=self.port) as url:
            self.port = urlsplit(url).port or 0
            yield


@dataclass
class House:
    """A gateway as `driftsched serve` has it, in front of one engine with one slot."""

    url: str
    http: aiohttp.ClientSession
    gateway: Gateway
    fleet: Fleet
    events: list[Event] = field(default_factory=list)

    def num(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    async def ask(self, text: str = "Why?", headers: dict[str, str] | None = None, **fields: Any) -> "Told":
        body = chat(text, max_tokens=5, **fields)
        async with self.http.post(self.url + CHAT, json=body, headers=headers or {}) as response:
            names = {name.lower() for name in response.headers}
            return Told(response.status, names, await response.read())

    async def ask_in_turn(self, num_requests: int = NUM_REQUESTS, **fields: Any) -> "list[asyncio.Task[Told]]":
        """Requests of which each is admitted before the next one comes."""
        asking = []
        for number in range(num_requests):
            num_admitted = self.num(Admitted)
            asking.append(asyncio.create_task(self.ask(f"Question {number}?", **fields)))
            await until(lambda: self.num(Admitted) > num_admitted)  # noqa: B023 - awaited before it changes
        return asking

    async def metric(self, name: str) -> float:
        async with self.http.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])


@dataclass
class Told:
    status: int
    headers: set[str]
    body: bytes

    @property
    def error(self) -> Any:
        return msgspec.json.decode(self.body.replace(b": waiting\n\n", b"").removeprefix(b"data: "))["error"]


@asynccontextmanager
async def gateway_of(http: aiohttp.ClientSession, engine_url: str, **limits: Any) -> AsyncIterator[House]:
    settings = Settings(
        engines=[EngineSettings(engine_url, max_inflight=1, check_seconds=0.1, scrape_seconds=None)],
        policy=PartSettings("fifo"),
        estimator=PartSettings("static"),
        limits=LimitSettings(**limits),
    )
    fleet = Fleet(settings.engines, away_seconds=settings.limits.engines_away_seconds)
    events: list[Event] = []
    gateway = build_gateway(
        settings,
        engine=fleet.pool,
        queue=fleet.queue,
        catalogue=fleet.catalogue,
        control=fleet.control,
        listeners=[events.append],
    )
    try:
        async with serving(gateway) as url:
            await fleet.start(gateway.dispatcher.dispatch)
            yield House(url, http, gateway, fleet, events)
            await until(lambda: fleet.queue.num_inflight == 0)
            assert (0, 0) == (fleet.queue.num_waiting, fleet.queue.num_inflight)
    finally:
        await fleet.close()


AWAY = "driftsched_engines_away_seconds"


async def stopped() -> Engine:
    """An engine that was there, and is gone."""
    engine = Engine()
    async with engine.running():
        return engine


async def test_nobody_is_lost_and_the_order_is_kept_when_an_engine_is_started_anew(
    http: aiohttp.ClientSession,
) -> None:
    engine = await stopped()
    async with gateway_of(http, engine.url) as house, asyncio.timeout(30):
        asking = await house.ask_in_turn()
        assert house.fleet.queue.num_waiting >= NUM_REQUESTS - 1
        assert await house.metric(AWAY) > 0
        async with engine.running():
            assert [200] * NUM_REQUESTS == [told.status for told in await asyncio.gather(*asking)]
            assert 0 == await house.metric(AWAY)
    assert [f"Question {number}?" for number in range(NUM_REQUESTS)] == engine.asked
    assert (NUM_REQUESTS, 0) == (house.num(Finished), house.num(Failed))


async def test_nobody_is_lost_when_an_engine_is_stopped_under_load(http: aiohttp.ClientSession) -> None:
    engine = await stopped()
    async with gateway_of(http, engine.url) as house, asyncio.timeout(30):
        asking: list[asyncio.Task[Told]] = []
        for num_outages in range(1, 3):
            async with engine.running():
                asking += await house.ask_in_turn()
                await until(lambda: house.num(Finished) > num_outages * NUM_REQUESTS // 2)  # noqa: B023 - as above
        async with engine.running():
            assert {200} == {told.status for told in await asyncio.gather(*asking)}
    assert (len(asking), 0) == (house.num(Finished), house.num(Failed))


async def test_when_the_time_is_over_everybody_is_told_to_come_back_later(http: aiohttp.ClientSession) -> None:
    engine = await stopped()
    async with gateway_of(http, engine.url, engines_away_seconds=0.5) as house, asyncio.timeout(30):
        answers = await asyncio.gather(*await house.ask_in_turn())
        answers += [await house.ask() for _ in range(3)]
        for told in answers:
            assert (503, "engine_unreachable", True) == (
                told.status,
                told.error["code"],
                "retry-after" in told.headers,
            )
            assert {"message", "type", "param", "code"} == set(told.error)
        assert len(answers) == house.num(Failed)
        async with engine.running():
            await until(lambda: house.fleet.pool.away_seconds == 0)
            assert 200 == (await house.ask()).status


async def test_without_such_a_time_a_request_is_refused_at_once(http: aiohttp.ClientSession) -> None:
    engine = await stopped()
    async with gateway_of(http, engine.url, engines_away_seconds=0) as house, asyncio.timeout(30):
        told = await house.ask()
    assert (503, "engine_unreachable") == (told.status, told.error["code"])


async def test_bounds_of_the_queue_and_what_a_client_will_wait_hold_meanwhile(http: aiohttp.ClientSession) -> None:
    engine = await stopped()
    async with gateway_of(http, engine.url, max_waiting=2, shed=False) as house, asyncio.timeout(30):
        asking = await house.ask_in_turn(2)
        told = await house.ask(headers={"x-driftsched-max-queue-seconds": "0.2"})
        assert (429, "queue_timeout") == (told.status, told.error["code"])
        asking += await house.ask_in_turn(1)
        told = await house.ask()
        assert (429, "queue_full", 1) == (told.status, told.error["code"], house.num(Rejected))
        async with engine.running():
            assert [200] * 3 == [told.status for told in await asyncio.gather(*asking)]


async def test_streams_that_wait_get_signs_of_life_and_their_failure_as_an_event(
    http: aiohttp.ClientSession,
) -> None:
    engine = await stopped()
    async with gateway_of(http, engine.url, keep_alive_seconds=0.05, engines_away_seconds=0.5) as house:
        async with asyncio.timeout(30):
            first, second = await asyncio.gather(*await house.ask_in_turn(2, stream=True))
    assert (503, 200) == (first.status, second.status)  # the first had its slot already
    assert second.body.startswith(b": waiting\n\n: waiting\n\n")
    assert "engine_unreachable" == second.error["code"]
