"""Any bytes from clients and any bytes from engines: never a hang, never a failure that is not in OpenAI's form."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftsched.config import LimitSettings, Settings
from driftsched.gateway.edge import EdgeLimits
from support.faulty_upstream import DOCUMENT, DONE, EVENTS, Behaviour, Exchange, FaultyUpstream
from support.raw import asked, connected_to, head_of, parsed
from support.servers import House, chat, http_engine, live_gateway, simulated, unasked

BODY = json.dumps(chat()).encode()
STREAMED = json.dumps(chat(stream=True)).encode()
CHUNKED = head_of(b"", "Transfer-Encoding: chunked", length="") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
REQUESTS = [
    head_of(BODY) + BODY,
    head_of(STREAMED) + STREAMED,
    CHUNKED,
    head_of(b"", method="GET", path="/v1/models"),
]
HASTY = Settings(limits=LimitSettings(max_stall_seconds=0.1))
HANG_SECONDS = 5.0

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Bench:
    """A gateway in a loop that runs while an example does."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.behaviour: Behaviour = idle
        self.house: House

    async def open_before_engine(self) -> None:
        async def behave(exchange: Exchange) -> None:
            await self.behaviour(exchange)

        upstream = await self.stack.enter_async_context(FaultyUpstream(behave))
        engine = http_engine(upstream.url, first_byte_timeout_seconds=0.2, idle_timeout_seconds=0.2)
        self.house = await self.stack.enter_async_context(live_gateway(engine, catalogue=unasked()))

    async def open(self) -> None:
        edge = EdgeLimits(max_stall_seconds=0.1)
        gateway = live_gateway(simulated(), settings=HASTY, edge=edge)
        self.house = await self.stack.enter_async_context(gateway)

    def close(self) -> None:
        self.runner.run(self.stack.aclose())  # with the audit of `live_gateway`
        self.runner.close()


async def idle(exchange: Exchange) -> None: ...


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


# Clients

positions = st.floats(0, 1)
pieces = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\r\n\r\n", b"0\r\n\r\n", b"\xff", b'{"a":', b"["]),
    st.sampled_from([b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"]),
    st.sampled_from([b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n"]),
)
edits = st.lists(
    st.tuples(st.sampled_from(["insert", "delete", "replace", "repeat"]), positions, pieces), max_size=6
)


def edited(request: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for how, position, piece in changes:
        at = round(position * len(request))
        behind = at + (len(piece) if how in ("delete", "replace", "repeat") else 0)
        between = request[at:behind] * 2 if how == "repeat" else b"" if how == "delete" else piece
        request = request[:at] + between + request[behind:]
    return request


async def first_reply(house: House, data: bytes, splits: list[float]) -> bytes:
    """What came until a reply was whole or the connection closed. Raises `TimeoutError` for a hang."""
    reader, writer = await connected_to(house.url)
    reply = b""
    try:
        async with asyncio.timeout(HANG_SECONDS):
            cuts = sorted({0, len(data), *(round(split * len(data)) for split in splits)})
            for start, end in pairwise(cuts):
                writer.write(data[start:end])
                await asyncio.sleep(0)
            while not is_whole(reply) and (block := await reader.read(1 << 16)):
                reply += block
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return reply.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")


def is_whole(data: bytes) -> bool:
    data = data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    _, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    length = parsed(data).headers.get("content-length")
    return body.endswith(b"0\r\n\r\n") if length is None else len(body) >= int(length)


def check_reply(data: bytes) -> None:
    if data:
        assert data.startswith(b"HTTP/1.1 ")
        reply = parsed(data)
        assert 500 != reply.status
        if reply.status >= 400:
            assert reply.error["message"]


def test_whatever_a_client_sends_it_is_answered_or_closed(bench: Bench) -> None:
    bench.runner.run(bench.open())

    @MANY
    @given(st.sampled_from(REQUESTS), edits, st.lists(positions, max_size=4))
    def attempt(request: bytes, changes: list[tuple[str, float, bytes]], splits: list[float]) -> None:
        check_reply(bench.runner.run(first_reply(bench.house, edited(request, changes), splits)))

    attempt()
    assert 200 == bench.runner.run(asked(bench.house.url, REQUESTS[0])).status


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "user"]
FIELDS += ["service_tier", "prompt_cache_key", "metadata", "n", "stop", "tools", "response_format"]
FIELDS += ["grammar", "priority", "logprobs", "best_of", "echo", "prompt"]


def test_whatever_json_a_body_holds_there_is_an_answer_or_an_error_that_is_not_ours(bench: Bench) -> None:
    bench.runner.run(bench.open())

    @MANY
    @given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))
    def attempt(fields: dict[str, object]) -> None:
        body = json.dumps(chat() | fields).encode("utf-8", "surrogatepass")
        reply = bench.runner.run(asked(bench.house.url, head_of(body) + body))
        assert reply.status in (200, 400, 404, 429)
        if reply.status != 200:
            assert reply.error["message"]

    attempt()


# Engines

fragments = st.one_of(
    st.sampled_from([*EVENTS, DONE, DOCUMENT, b"\n", b"\r\n", b"\n\n", b"data:", b": ping\n\n", b"event: x\n"]),
    st.sampled_from(
        [b'data: {"choices":[{}]}\n\n', b'data: {"choices":null}\n\n', b"data: [1]\n\n", b"data: {}\n\n"]
    ),
    st.sampled_from([b'data: {"choices":[{"delta":{"tool_calls":5}}]}\n\n', b'data: {"usage":{"a":1}}\n\n']),
    st.binary(max_size=30),
)


def sending(data: bytes, splits: list[float], content_type: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": content_type, "Transfer-Encoding": "chunked"})
        cuts = sorted({0, len(data), *(round(split * len(data)) for split in splits)})
        for start, end in pairwise(cuts):
            await exchange.chunk(data[start:end])
            await asyncio.sleep(0)
        await exchange.chunk(b"")

    return behave


def check_relayed(data: bytes, streams: bool) -> None:
    reply = parsed(data)
    assert reply.status in (200, 400, 404, 429, 502, 503, 504), reply
    if reply.status != 200:
        assert reply.error["message"]
    elif not streams:
        assert "choices" in json.loads(reply.body)
    else:
        assert data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("streams", [True, False])
def test_whatever_an_engine_streams_there_is_an_answer_or_an_error(bench: Bench, streams: bool) -> None:
    bench.runner.run(bench.open_before_engine())
    request = REQUESTS[1] if streams else REQUESTS[0]

    @MANY
    @given(
        st.lists(fragments, max_size=6),
        st.lists(positions, max_size=4),
        st.sampled_from(["text/event-stream", "application/json"]),
    )
    def attempt(parts: list[bytes], splits: list[float], content_type: str) -> None:
        bench.behaviour = sending(b"".join(parts), splits, content_type)
        check_relayed(bench.runner.run(first_reply(bench.house, request, [])), streams)

    attempt()


ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS)
    + b"0\r\n\r\n"
)


def test_whatever_an_engine_says_instead_of_http_there_is_an_answer_or_an_error(bench: Bench) -> None:
    bench.runner.run(bench.open_before_engine())

    @MANY
    @given(edits, st.booleans())
    def attempt(changes: list[tuple[str, float, bytes]], streams: bool) -> None:
        async def behave(exchange: Exchange) -> None:
            await exchange.send(edited(ANSWER, changes))
            exchange.keep_alive = False

        bench.behaviour = behave
        check_relayed(bench.runner.run(first_reply(bench.house, REQUESTS[1 if streams else 0], [])), streams)

    attempt()
