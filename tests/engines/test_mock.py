import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from driftsched.engines.lengths import LengthLaw
from driftsched.engines.mock import MockServer
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import get_hardware
from driftsched.engines.simulated import SimulatedEngine, answer_text

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Exchange:
    """One HTTP exchange with an ASGI application, as its server would drive it."""

    def __init__(self, app: MockServer, method: str, path: str, *body: bytes, complete: bool = True) -> None:
        self.status = 0
        self.content_type = ""
        self.body = b""
        self.first_body = asyncio.Event()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, part in enumerate(body or (b"",)):
            more = index < len(body) - 1 or not complete
            self._incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})
        scope = {"type": "http", "method": method, "path": path}
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    def disconnect(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def done(self) -> "Exchange":
        await self.task
        return self

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            assert self.status == 0
            self.status = message["status"]
            self.content_type = dict(message["headers"])[b"content-type"].decode()
        else:
            assert self.status != 0
            self.body += message["body"]
            self.first_body.set()


def make_engine(category: str = "any") -> SimulatedEngine:
    return SimulatedEngine(
        BatchModel(get_hardware("l4-qwen1.5-1.8b"), max_num_seqs=4),
        LengthLaw({"any": 5}, cv=0),
        lambda text: category,
        model_name="tiny",
        speed=20_000.0,
    )


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[MockServer, SimulatedEngine]]:
    engine = make_engine()
    try:
        async with asyncio.timeout(30):
            yield MockServer(engine), engine
    finally:
        await engine.close()


def call(**fields: Any) -> bytes:
    return msgspec.json.encode(
        {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", **fields}
    )


def streamed(exchange: Exchange) -> list[Any]:
    lines = exchange.body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [msgspec.json.decode(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_a_chat_call_is_answered_with_one_document() -> None:
    async with serving() as (app, _):
        answered = await Exchange(app, "POST", CHAT, call()).done()

    document = answered.json
    assert (200, "application/json") == (answered.status, answered.content_type)
    assert ("chat.completion", "tiny") == (document["object"], document["model"])
    assert {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13} == document["usage"]
    message = {"role": "assistant", "content": answer_text(0, 5)}
    assert [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}] == document["choices"]


async def test_a_text_call_is_answered_with_one_document() -> None:
    async with serving() as (app, _):
        document = (await Exchange(app, "POST", TEXT, call(max_tokens=2)).done()).json

    assert "text_completion" == document["object"]
    choice = {"index": 0, "text": answer_text(0, 2), "logprobs": None, "finish_reason": "length"}
    assert [choice] == document["choices"]


async def test_a_body_may_come_in_parts() -> None:
    whole = call()
    async with serving() as (app, _):
        answered = await Exchange(app, "POST", CHAT, whole[:10], whole[10:]).done()

    assert 200 == answered.status


async def test_a_streamed_call_gets_usage_only_if_it_asked() -> None:
    async with serving() as (app, _):
        plain = await Exchange(app, "POST", CHAT, call(stream=True)).done()
        options = {"include_usage": True}
        accounted = await Exchange(app, "POST", CHAT, call(stream=True, stream_options=options)).done()

    assert (200, "text/event-stream; charset=utf-8") == (plain.status, plain.content_type)
    assert "stop" == streamed(plain)[-1]["choices"][0]["finish_reason"]
    assert [] == [event for event in streamed(plain) if "usage" in event]
    assert 5 == streamed(accounted)[-1]["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{", 400, None, None),
        (b"{}", 400, None, None),
        (call(model=7), 400, None, None),
        (call(max_tokens=0), 400, "max_tokens", None),
        (call(stream=True, messages=[]), 400, "messages", None),
        (call(model="gpt"), 404, "model", "model_not_found"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused_in_openais_form(
    body: bytes, status: int, param: str | None, code: str | None
) -> None:
    async with serving() as (app, _):
        refused = await Exchange(app, "POST", CHAT, body).done()

    error = refused.json["error"]
    assert (status, "application/json") == (refused.status, refused.content_type)
    assert ("invalid_request_error", param, code) == (error["type"], error["param"], error["code"])
    assert error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/embeddings", 404), ("GET", CHAT, 405), ("POST", "/metrics", 405)]
)
async def test_an_unknown_route_or_method_is_refused(method: str, path: str, status: int) -> None:
    async with serving() as (app, _):
        refused = await Exchange(app, method, path).done()

    assert status == refused.status
    assert path in refused.json["error"]["message"]


async def test_a_client_that_leaves_a_stream_frees_its_seat() -> None:
    async with serving() as (app, engine):
        exchange = Exchange(app, "POST", CHAT, call(stream=True, max_tokens=80_000, ignore_eos=True))
        await exchange.first_body.wait()
        assert 1 == engine.model.num_running
        exchange.disconnect()
        await exchange.done()

        assert (0, 0) == (engine.model.num_running, engine.model.kv_used)


async def test_a_client_that_leaves_before_its_document_is_ready_frees_its_seat() -> None:
    async with serving() as (app, engine):
        engine.hold()
        exchange = Exchange(app, "POST", CHAT, call())
        exchange.disconnect()
        await exchange.done()

        assert (0, 0, b"") == (exchange.status, engine.model.num_waiting, exchange.body)


async def test_a_client_that_leaves_before_its_body_is_complete_gets_nothing() -> None:
    async with serving() as (app, _):
        exchange = Exchange(app, "POST", CHAT, call()[:10], complete=False)
        exchange.disconnect()
        await exchange.done()

    assert 0 == exchange.status


async def test_cancelling_the_server_task_cancels_the_answer() -> None:
    async with serving() as (app, engine):
        exchange = Exchange(app, "POST", CHAT, call(stream=True, max_tokens=80_000, ignore_eos=True))
        await exchange.first_body.wait()
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task

        assert 0 == engine.model.num_running


async def test_an_answer_that_breaks_off_says_so_in_the_stream() -> None:
    async with serving() as (app, engine):
        exchange = Exchange(app, "POST", CHAT, call(stream=True, max_tokens=80_000, ignore_eos=True))
        await exchange.first_body.wait()
        await engine.close()
        await exchange.done()

    *_, last, rest = exchange.body.split(b"\n\n")
    assert b"" == rest
    assert "closed" in msgspec.json.decode(last.removeprefix(b"data: "))["error"]["message"]


async def test_metrics_count_the_models_seats_and_memory() -> None:
    async with serving() as (app, _):
        idle = await Exchange(app, "GET", "/metrics").done()
        exchange = Exchange(app, "POST", CHAT, call(stream=True, max_tokens=80_000, ignore_eos=True))
        await exchange.first_body.wait()
        busy = await Exchange(app, "GET", "/metrics").done()
        exchange.disconnect()
        await exchange.done()

    assert b'vllm:num_requests_running{model_name="tiny"} 0\n' in idle.body
    assert b'vllm:num_requests_waiting{model_name="tiny"} 0\n' in idle.body
    assert b'vllm:kv_cache_usage_perc{model_name="tiny"} 0.0\n' in idle.body
    assert b'vllm:num_preemptions_total{model_name="tiny"} 0\n' in idle.body
    assert b'vllm:num_requests_running{model_name="tiny"} 1\n' in busy.body
    assert b'vllm:kv_cache_usage_perc{model_name="tiny"} 0.0\n' not in busy.body


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/health", "/props"])
async def test_a_head_request_gets_the_head_alone(path: str) -> None:
    async with serving() as (app, _):
        head = await Exchange(app, "HEAD", path).done()
        full = await Exchange(app, "GET", path).done()

    assert (200, b"") == (head.status, head.body)
    assert head.content_type == full.content_type


async def test_its_model_is_listed() -> None:
    async with serving() as (app, _):
        listing = (await Exchange(app, "GET", "/v1/models").done()).json

    assert ("list", ["tiny"]) == (listing["object"], [model["id"] for model in listing["data"]])


async def test_it_tells_how_many_requests_it_serves_at_once() -> None:
    engine = make_engine()
    async with serving() as (app, _):
        props = (await Exchange(app, "GET", "/props").done()).json

    assert {"total_slots": engine.model.max_num_seqs} == props


async def test_it_is_healthy() -> None:
    async with serving() as (app, _):
        assert 200 == (await Exchange(app, "GET", "/health").done()).status


async def test_shutting_down_closes_the_engine() -> None:
    sent: list[str] = []
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async with serving() as (app, _):
        exchange = Exchange(app, "POST", CHAT, call(stream=True, max_tokens=80_000, ignore_eos=True))
        await exchange.first_body.wait()
        incoming.put_nowait({"type": "lifespan.startup"})
        incoming.put_nowait({"type": "lifespan.shutdown"})
        await app({"type": "lifespan"}, incoming.get, send)
        await exchange.done()

    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == sent
    assert b"closed" in exchange.body


async def test_a_fault_of_the_set_up_reaches_the_asgi_server() -> None:
    exchange = Exchange(MockServer(make_engine(category="unheard of")), "POST", CHAT, call())

    with pytest.raises(ValueError, match="no mean length for category 'unheard of'"):
        await exchange.done()
