"""Clients that vanish, at each stage of a request's way. Every test ends with the audit of `live_gateway`."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from driftsched.config import LimitSettings, Settings
from driftsched.core.events import Admitted, Dispatched, Event, Evicted, Failed, Finished, FirstToken
from driftsched.core.model import Request, Tenant, Tier
from driftsched.core.protocols import Chunk, Saturation
from driftsched.core.scheduler import Scheduler
from driftsched.estimators import create_counter, create_estimator
from driftsched.estimators.categories import KeywordClassifier
from driftsched.estimators.describe import PromptDescriber
from driftsched.gateway.dispatcher import Dispatcher, MonotonicClock
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from support.faulty_upstream import (
    DOCUMENT,
    DONE,
    EVENTS,
    Behaviour,
    FaultyUpstream,
    answer,
    content_event,
    die_mid_stream,
    finish_event,
    hang_before_headers,
    hang_mid_stream,
    stream,
)
from support.servers import House, chat, gateway_before, http_engine, live_gateway, simulated, unasked, until

CHAT = "/v1/chat/completions"


class Client:
    """A connection that can be closed at any moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connected_to(cls, house: House, *, read_bytes: int = 1 << 16) -> "Client":
        host, port = house.url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port), limit=read_bytes))

    @classmethod
    async def calling(cls, house: House, *, read_bytes: int = 1 << 16, **fields: object) -> "Client":
        client = await cls.connected_to(house, read_bytes=read_bytes)
        body = json.dumps(chat(**fields)).encode()
        client.send_head(len(body))
        client.writer.write(body)
        return client

    def send_head(self, length: int) -> None:
        self.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())

    def leave(self) -> None:
        self.writer.transport.abort()


async def status_of(http: aiohttp.ClientSession, house: House, **fields: object) -> int:
    async with http.post(house.url + CHAT, json=chat(**fields)) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize("sent", [b"", b'{"model":', json.dumps(chat()).encode()])
async def test_a_client_that_leaves_while_it_sends_its_body_is_never_admitted(
    http: aiohttp.ClientSession, sent: bytes
) -> None:
    async with live_gateway(simulated(), slots=1) as house:
        client = await Client.connected_to(house)
        client.send_head(len(sent) + 1)  # even of a body that looks whole, a byte is missing
        client.writer.write(sent)
        await client.writer.drain()
        client.leave()
        assert 200 == await status_of(http, house)
        assert 1 == len(house.of(Admitted))


async def test_a_client_that_leaves_while_it_waits_leaves_the_queue(http: aiohttp.ClientSession) -> None:
    engine = simulated(slots=1)
    engine.hold()
    async with live_gateway(engine, slots=1) as house:
        served = asyncio.create_task(status_of(http, house))
        await until(lambda: house.of(Dispatched))
        client = await Client.calling(house)
        await until(lambda: house.queue.num_waiting == 1)
        client.leave()
        await until(lambda: house.queue.num_waiting == 0)
        (evicted,) = house.of(Evicted)
        assert ("cancelled", None, 0.0) == (evicted.reason, evicted.dispatched_at, evicted.charge)
        engine.resume()
        assert 200 == await served
        assert 1 == len(house.of(Dispatched))


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_leaves_during_the_prefill_stops_the_engine(
    http: aiohttp.ClientSession, streams: bool
) -> None:
    async with (
        FaultyUpstream(hang_before_headers(), stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked(), slots=1) as house,
    ):
        client = await Client.calling(house, stream=streams)
        await upstream.wait_for_requests(1)
        client.leave()
        await upstream.requests[0].client_gone.wait()
        assert 200 == await status_of(http, house)
        (evicted,) = house.of(Evicted)
        assert ("cancelled", 0) == (evicted.reason, evicted.usage.completion_tokens)
        assert evicted.dispatched_at is not None


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_leaves_in_the_middle_stops_the_engine_and_pays_what_it_used(
    http: aiohttp.ClientSession, streams: bool
) -> None:
    events = [content_event("a"), content_event("b")]
    async with (
        FaultyUpstream(hang_mid_stream(events), stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked(), slots=1) as house,
    ):
        client = await Client.calling(house, stream=streams)
        await until(lambda: house.of(FirstToken))
        if streams:
            await client.reader.readuntil(events[1])
        client.leave()
        await upstream.requests[0].client_gone.wait()
        assert 200 == await status_of(http, house)
        (evicted,) = house.of(Evicted)
        assert "cancelled" == evicted.reason
        assert evicted.usage.completion_tokens in ((2,) if streams else (1, 2))
        assert evicted.charge > 0


async def test_a_client_that_leaves_frees_its_place_in_a_simulated_batch() -> None:
    engine = simulated(slots=1, speed=1.0)
    async with live_gateway(engine, slots=1) as house:
        client = await Client.calling(house, stream=True, max_tokens=100_000, ignore_eos=True)
        await client.reader.readuntil(b"content")
        assert 1 == engine.model.num_running
        client.leave()
        await until(lambda: engine.model.num_running == 0)
        await until(lambda: house.idle)
        assert 1 == len(house.of(Evicted))


async def test_a_client_that_leaves_with_its_last_byte_was_served() -> None:
    async with live_gateway(simulated()) as house:
        client = await Client.calling(house, stream=True)
        await client.reader.readuntil(DONE)
        client.leave()
        await until(lambda: house.idle)
        assert (1, 0) == (len(house.of(Finished)), len(house.of(Evicted)))


LONG_EVENTS = [*[content_event("x" * 100_000)] * 300, *EVENTS[2:]]  # more than the buffers on the way hold
SHORT_STALLS = Settings(limits=LimitSettings(max_stall_seconds=0.2))


async def test_a_client_that_reads_nothing_is_sent_away(http: aiohttp.ClientSession) -> None:
    async with (
        FaultyUpstream(stream(LONG_EVENTS), stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked(), slots=1, settings=SHORT_STALLS) as house,
    ):
        client = await Client.calling(house, read_bytes=1, stream=True)
        await upstream.wait_for_requests(1)
        await upstream.requests[0].client_gone.wait()
        assert 200 == await status_of(http, house)
        (evicted,) = house.of(Evicted)
        client.leave()
    assert "cancelled" == evicted.reason
    assert 0 < evicted.usage.completion_tokens < 300


LARGE = "x" * 12_000_000


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (answer(DOCUMENT.replace(b"Hello", LARGE.encode()), close=True), Finished),
        (die_mid_stream([content_event(LARGE)]), Failed),
    ],
    ids=["at the end", "at a failure"],
)
async def test_nothing_waits_for_a_client_that_does_not_take_the_last_of_its_answer(
    behaviour: Behaviour, outcome: type[Event]
) -> None:
    async with gateway_before(behaviour, slots=1, settings=SHORT_STALLS) as (_, house):
        tasks_before = asyncio.all_tasks()
        client = await Client.calling(house, read_bytes=1, stream=True)
        await until(lambda: house.of(outcome))
        await until(lambda: asyncio.all_tasks() <= tasks_before)
        client.leave()


async def test_a_client_slower_than_its_engine_gets_everything() -> None:
    async with (
        FaultyUpstream(stream(LONG_EVENTS)) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked(), slots=1) as house,
    ):
        client = await Client.calling(house, stream=True)
        num_bytes = 0
        while block := await client.reader.read(1 << 16):
            num_bytes += len(block)
            if block.endswith(b"0\r\n\r\n"):
                break
        client.leave()
        (finished,) = house.of(Finished)
    assert num_bytes > 300 * 100_000
    assert "stop" == finished.finish_reason


async def test_whoever_leaves_of_many_the_others_are_served(http: aiohttp.ClientSession) -> None:
    engine = simulated(slots=2)
    engine.hold()
    async with live_gateway(engine, slots=2) as house:
        staying = [asyncio.create_task(status_of(http, house, stream=n % 2 == 0)) for n in range(10)]
        leaving = [await Client.calling(house, stream=n % 2 == 0) for n in range(10)]
        await until(lambda: len(house.of(Admitted)) == 20)
        for client in leaving[::2]:
            client.leave()
        await until(lambda: len(house.of(Evicted)) == 5)
        engine.resume()
        for client in leaving[1::2]:
            client.leave()
        assert [200] * 10 == await asyncio.gather(*staying)
        await until(lambda: house.idle)
        assert 20 == len(house.of(Finished, Evicted))
        assert (0, 0) == (engine.model.num_running, engine.model.num_waiting)


class InstantEngine:
    """Answers at once, and counts the answers it was asked for."""

    name = "instant"

    def __init__(self) -> None:
        self.num_calls = 0

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.num_calls += 1
        yield Chunk(finish_event(), 1, finish_reason="stop")

    async def saturation(self) -> Saturation:
        return Saturation(0.0)

    async def close(self) -> None: ...


class Desk:
    """A dispatcher with one slot, without HTTP around it: here a test can cancel between two steps."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.queue = MemoryQueue(1)
        self.engine = InstantEngine()
        scheduler = Scheduler(
            policy=create_policy("fifo"),
            estimator=create_estimator("static"),
            describer=PromptDescriber(KeywordClassifier(), create_counter("bytes")),
            queue=self.queue,
            listeners=[self.events.append],
        )
        self.dispatcher = Dispatcher(scheduler, self.engine, MonotonicClock())
        self.num_served = 0

    def turn(self, name: str) -> "asyncio.Task[None]":
        return asyncio.create_task(self._serve(name))

    @asynccontextmanager
    async def occupied(self) -> AsyncGenerator[None, None]:
        async with self.dispatcher.turn(request_called("first"), client_left=lambda: True):
            yield

    async def _serve(self, name: str) -> None:
        async with self.dispatcher.turn(request_called(name), client_left=lambda: True) as turn:
            async for _ in turn.answer():
                pass
        self.num_served += 1


def request_called(name: str) -> Request:
    return Request(name, Tenant("t"), Tier.STANDARD, "m", arrived_at=0.0)


async def test_a_client_that_leaves_between_its_call_and_its_turn_frees_the_slot() -> None:
    desk = Desk()
    async with desk.occupied():
        unlucky, next_one = desk.turn("unlucky"), desk.turn("next")
        await until(lambda: desk.queue.num_waiting == 2)
    assert "unlucky" == last_of(desk, Dispatched).ticket.id  # it was called, and has not run since
    unlucky.cancel()
    await asyncio.gather(unlucky, next_one, return_exceptions=True)
    assert unlucky.cancelled()
    assert (1, 1) == (desk.num_served, desk.engine.num_calls)
    assert (0, 0) == (desk.queue.num_waiting, desk.queue.num_inflight)
    assert ["unlucky"] == [e.ticket.id for e in desk.events if isinstance(e, Evicted)]


async def test_a_client_that_leaves_just_before_its_call_does_not_keep_the_slot() -> None:
    desk = Desk()
    async with desk.occupied():
        unlucky, next_one = desk.turn("unlucky"), desk.turn("next")
        await until(lambda: desk.queue.num_waiting == 2)
        unlucky.cancel()  # it will know when it runs again: after the call
    assert "next" == last_of(desk, Dispatched).ticket.id
    await asyncio.gather(unlucky, next_one, return_exceptions=True)
    assert (1, 1) == (desk.num_served, desk.engine.num_calls)
    assert ["unlucky"] == [e.ticket.id for e in desk.events if isinstance(e, Evicted)]
    assert (0, 0) == (desk.queue.num_waiting, desk.queue.num_inflight)


def last_of(desk: Desk, kind: type[Dispatched]) -> Dispatched:
    return [event for event in desk.events if isinstance(event, kind)][-1]
