"""Engines that come and go while the gateway serves: nobody who asks notices."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest

from driftsched.config import AdminSettings, EngineSettings, PartSettings, Settings
from driftsched.core.events import Event, Failed, Finished
from driftsched.gateway.app import Gateway
from driftsched.keys import hash_key
from driftsched.pooling import Fleet
from driftsched.serving import build_gateway
from support.faulty_upstream import EVENTS, Behaviour, FaultyUpstream, answer, status, stepwise, stream
from support.servers import chat, serving, until

CHAT = "/v1/chat/completions"
KEY = {"authorization": "Bearer operators-only"}
MODELS = answer(msgspec.json.encode({"data": [{"id": "simulated"}]}))


def upstream_of(*script: Behaviour, models: Behaviour = MODELS) -> FaultyUpstream:
    """An engine that says which models it serves, and nothing else of itself."""
    silent = dict.fromkeys(
        ("/health", "/metrics", "/props", "/version", "/server_info", "/api/version"), status(404)
    )
    return FaultyUpstream(*script, routes={**silent, "/v1/models": models})


@dataclass
class Yard:
    """A gateway whose engines may come and go."""

    url: str
    http: aiohttp.ClientSession
    fleet: Fleet
    gateway: Gateway
    events: list[Event] = field(default_factory=list)

    async def post(self, **fields: Any) -> int:
        async with self.http.post(self.url + CHAT, json=chat(**fields)) as response:
            await response.read()
            return response.status

    async def operate(
        self, method: str, path: str = "", headers: dict[str, str] | None = None, **fields: Any
    ) -> Any:
        """Status and document."""
        url = f"{self.url}/admin/engines{path}"
        async with self.http.request(method, url, json=fields or None, headers=headers or KEY) as response:
            return response.status, await response.json()


@asynccontextmanager
async def yard(http: aiohttp.ClientSession, engines: Sequence[EngineSettings]) -> AsyncIterator[Yard]:
    fleet = Fleet(engines)
    events: list[Event] = []
    gateway = build_gateway(
        Settings(
            policy=PartSettings("fifo"),
            estimator=PartSettings("static"),
            admin=AdminSettings([hash_key("operators-only")]),
        ),
        engine=fleet.pool,
        queue=fleet.queue,
        catalogue=fleet.catalogue,
        control=fleet.control,
        roster=fleet,
        listeners=[events.append],
    )
    try:
        async with serving(gateway) as url:
            await fleet.start(gateway.dispatcher.dispatch)
            yield Yard(url, http, fleet, gateway, events)
    finally:
        await fleet.close()


def settings_of(upstream: FaultyUpstream, name: str, **options: Any) -> EngineSettings:
    return EngineSettings(upstream.url, name=name, **{"max_inflight": 4, **options})


def calls_of(upstream: FaultyUpstream) -> int:
    return sum(seen.path == CHAT for seen in upstream.requests)


async def test_an_engine_that_is_added_serves(http: aiohttp.ClientSession) -> None:
    async with (
        upstream_of(stream()) as old,
        upstream_of(stream()) as new,
        yard(http, [settings_of(old, "old")]) as there,
    ):
        seen, row = await there.operate("POST", url=new.url, name="new", max_inflight=16)
        assert (201, "new", 16, False) == (seen, row["name"], row["limit"], row["draining"])
        assert 20 == there.fleet.pool.slots
        await until(lambda: there.fleet.queue.max_inflight == 20)
        await asyncio.gather(*(there.post() for _ in range(20)))
        assert calls_of(new) > calls_of(old) > 0
        _, listing = await there.operate("GET")
        assert ["old", "new"] == [each["name"] for each in listing["data"]]


async def test_an_engine_that_drains_ends_what_it_has_and_gets_nothing_more(http: aiohttp.ClientSession) -> None:
    async with (
        upstream_of(stepwise(EVENTS)) as old,
        upstream_of(stream()) as new,
        yard(http, [settings_of(old, "old")]) as there,
    ):
        under_way = asyncio.create_task(there.post(stream=True))
        await until(lambda: calls_of(old) == 1)
        await there.operate("POST", url=new.url, name="new", max_inflight=4)
        seen, row = await there.operate("POST", "/old/drain")
        assert (200, True, 1) == (seen, row["draining"], row["inflight"])
        assert {200} == {await there.post() for _ in range(5)}
        assert (1, 5) == (calls_of(old), calls_of(new))
        seen, refused = await there.operate("DELETE", "/old")
        assert (409, "engine_in_use") == (seen, refused["error"]["code"])
        for _ in range(len(EVENTS) + 1):
            old.proceed()
        async with asyncio.timeout(10):
            assert 200 == await under_way
        await until(lambda: there.fleet.pool.inflight_of("old") == 0)
        assert (200, {"name": "old", "removed": True}) == await there.operate("DELETE", "/old")
        _, listing = await there.operate("GET")
        assert ["new"] == [each["name"] for each in listing["data"]]
        assert 200 == await there.post()


async def test_an_engine_is_in_no_list_from_the_moment_it_is_taken_out(http: aiohttp.ClientSession) -> None:
    async with (
        upstream_of() as old,
        upstream_of() as new,
        yard(http, [settings_of(old, "old"), settings_of(new, "new")]) as there,
    ):
        there.fleet.drain("old")
        leaving = asyncio.create_task(there.fleet.remove("old"))
        await asyncio.sleep(0)  # it waits for those that looked after the engine
        assert (False, ["new"]) == (leaving.done(), [row["name"] for row in there.fleet.rows()])
        await leaving


async def test_engines_come_and_go_under_load_and_no_request_fails(http: aiohttp.ClientSession) -> None:
    async with (
        upstream_of(stream()) as first,
        upstream_of(stream()) as second,
        upstream_of(stream()) as third,
        yard(http, [settings_of(first, "gpu-0")]) as there,
    ):
        statuses: list[int] = []
        over = asyncio.Event()

        async def ask_on() -> None:
            while not over.is_set():
                statuses.append(await there.post(stream=True))

        clients = [asyncio.create_task(ask_on()) for _ in range(16)]
        for number in range(1, 9):
            upstream = (first, second, third)[number % 3]
            seen, _ = await there.operate("POST", url=upstream.url, name=f"gpu-{number}", max_inflight=4)
            assert 201 == seen
            leaving = f"gpu-{number - 1}"
            await there.operate("POST", f"/{leaving}/drain")
            await until(lambda name=leaving: there.fleet.pool.inflight_of(name) == 0)  # type: ignore[misc]
            assert 200 == (await there.operate("DELETE", f"/{leaving}"))[0]
            served = len(statuses)
            await until(lambda least=served + 20: len(statuses) >= least)  # type: ignore[misc]
        over.set()
        await asyncio.gather(*clients)
        assert {200} == set(statuses)
        finished = [event for event in there.events if isinstance(event, Finished)]
        assert (len(statuses), 0) == (len(finished), sum(isinstance(event, Failed) for event in there.events))
        assert ["gpu-8"] == [engine.name for engine in there.fleet.pool.engines]


async def test_while_all_engines_drain_requests_wait_for_the_next_one(http: aiohttp.ClientSession) -> None:
    async with (
        upstream_of(stream()) as old,
        upstream_of(stream()) as new,
        yard(http, [settings_of(old, "old")]) as there,
    ):
        await there.operate("POST", "/old/drain")
        await until(lambda: there.fleet.queue.max_inflight == 0)
        waiting = asyncio.create_task(there.post())
        await until(lambda: there.fleet.queue.num_waiting == 1)
        seen, refused = await there.operate("DELETE", "/old")
        assert (409, True) == (seen, "last engine" in refused["error"]["message"])
        await there.operate("POST", url=new.url, name="new")
        assert 200 == await waiting
        assert (0, 1) == (calls_of(old), calls_of(new))


@pytest.mark.parametrize(
    ("fields", "expected", "code"),
    [
        ({"url": "file:///etc/passwd"}, 400, "invalid_engine"),
        ({"url": "gopher://127.0.0.1"}, 400, "invalid_engine"),
        ({"url": "http://user:secret@127.0.0.1"}, 400, "invalid_engine"),
        ({"url": "{new}", "name": "a\nb"}, 400, "invalid_engine"),
        ({"url": "{new}", "max_inflight": 0}, 400, "invalid_engine"),
        ({"url": "{new}", "unknown": 1}, 400, "invalid_engine"),
        ({"url": "{new}", "api_key_env": "HOME"}, 400, "invalid_engine"),
        ({"url": "{new}", "priority": True}, 400, "invalid_engine"),
        ({"url": "{new}", "name": "old"}, 409, "engine_differs"),
        ({"url": "{other}"}, 409, "engine_differs"),
        ({"url": "http://127.0.0.1:1"}, 503, "engine_unreachable"),
        ({"name": "new"}, 400, "invalid_engine"),
    ],
)
async def test_an_engine_that_makes_no_sense_is_not_added(
    http: aiohttp.ClientSession, fields: dict[str, Any], expected: int, code: str
) -> None:
    other_models = answer(msgspec.json.encode({"data": [{"id": "another"}]}))
    async with (
        upstream_of(stream()) as old,
        upstream_of(stream()) as new,
        upstream_of(stream(), models=other_models) as other,
        yard(http, [settings_of(old, "old")]) as there,
    ):
        urls = {"{new}": new.url, "{other}": other.url}
        url = fields.get("url", "")
        seen, document = await there.operate("POST", **{**fields, "url": urls.get(url, url) or None})
        assert (expected, code) == (seen, document["error"]["code"])
        assert ["old"] == [engine.name for engine in there.fleet.pool.engines]
        assert 200 == await there.post()


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("POST", ""), ("POST", "/old/drain"), ("DELETE", "/old")]
)
async def test_only_operators_may(http: aiohttp.ClientSession, method: str, path: str) -> None:
    async with upstream_of(stream()) as old, yard(http, [settings_of(old, "old")]) as there:
        for headers in ({"x-nothing": "1"}, {"authorization": "Bearer wrong"}):
            seen, _ = await there.operate(method, path, headers=headers)
            assert 401 == seen
        assert 4 == there.fleet.pool.slots


@pytest.mark.parametrize(("method", "path"), [("POST", "/none/drain"), ("DELETE", "/none"), ("DELETE", "/")])
async def test_an_engine_that_is_not_there_is_not_found(
    http: aiohttp.ClientSession, method: str, path: str
) -> None:
    async with upstream_of(stream()) as old, yard(http, [settings_of(old, "old")]) as there:
        seen, document = await there.operate(method, path)
        assert (404, "unknown_engine") == (seen, document["error"]["code"])


async def test_an_engine_that_serves_is_not_taken_out(http: aiohttp.ClientSession) -> None:
    async with upstream_of(stream()) as old, yard(http, [settings_of(old, "old")]) as there:
        seen, document = await there.operate("DELETE", "/old")
        assert (409, True) == (seen, "drain first" in document["error"]["message"])


async def test_an_engine_is_told_of_calls_as_its_settings_say(http: aiohttp.ClientSession) -> None:
    async with upstream_of(answer()) as engine:
        settings = EngineSettings(
            engine.url, drop_fields=["seed"], rename_fields={"top_p": "nucleus"}, stream_whole_answers=False
        )
        async with yard(http, [settings]) as here:
            assert 200 == await here.post(seed=1, top_p=0.5)
        (sent,) = [msgspec.json.decode(seen.body) for seen in engine.requests if seen.body]
    assert (0.5, set()) == (sent["nucleus"], sent.keys() & {"seed", "top_p", "stream"})
