"""The HTTP engine against a real server that misbehaves to order."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest

from driftsched.core.errors import ConfigError, EngineError
from driftsched.core.model import Request, Tenant, Tier, Usage
from driftsched.core.protocols import Chunk, Engine
from driftsched.engines.kinds import Discovery
from driftsched.engines.openai import OpenAIEngine
from driftsched.engines.payload import Payload
from driftsched.engines.wire import upstream_body
from support.faulty_upstream import (
    DOCUMENT,
    DONE,
    EVENTS,
    Behaviour,
    Exchange,
    FaultyUpstream,
    answer,
    content_event,
    die_before_headers,
    die_mid_stream,
    finish_event,
    garbage,
    half_close,
    hang_before_headers,
    hang_mid_stream,
    html,
    status,
    stepwise,
    stream,
)


def request(body: bytes = b"{}", *, streams: bool = True, headers: tuple[tuple[str, str], ...] = ()) -> Request:
    payload = Payload("/v1/chat/completions", body, stream=streams, wants_usage=False, headers=headers)
    return Request("r1", Tenant("acme"), Tier.STANDARD, "test", arrived_at=0.0, payload=payload)


@asynccontextmanager
async def serving(*script: Behaviour, **options: Any) -> AsyncIterator[tuple[OpenAIEngine, FaultyUpstream]]:
    """An engine in front of an upstream with this script."""
    async with FaultyUpstream(*script) as upstream:
        engine = OpenAIEngine(upstream.url, **options)
        try:
            yield engine, upstream
        finally:
            await engine.close()


async def collect(engine: Engine, asked: Request | None = None) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(asked or request())]


async def failure(engine: Engine, upstream: FaultyUpstream | None = None) -> tuple[list[Chunk], EngineError]:
    """The chunks of an answer that fails, and how it fails; `upstream` proceeds after each chunk."""
    chunks = []
    try:
        async for chunk in engine.generate(request()):
            chunks.append(chunk)
            if upstream is not None:
                upstream.proceed()
    except EngineError as error:
        return chunks, error
    pytest.fail("the answer did not fail")


def joined(chunks: list[Chunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compressed(code: int) -> Behaviour:
    """An answer in a coding that was not asked for."""

    async def behave(exchange: Exchange) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        await exchange.head(code, headers | {"Content-Length": str(len(DOCUMENT))})
        await exchange.send(DOCUMENT)

    return behave


async def test_a_streamed_answer_arrives_byte_for_byte() -> None:
    async with serving(stream()) as (engine, _):
        chunks = await collect(engine)
    assert b"".join(EVENTS) == joined(chunks)
    assert [Usage(7, 2)] == [chunk.usage for chunk in chunks if chunk.usage_only]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]


async def test_every_event_is_relayed_as_soon_as_it_comes() -> None:
    async with serving(stepwise()) as (engine, upstream), aclosing(engine.generate(request())) as chunks:
        for event in EVENTS:
            upstream.proceed()
            assert event == (await anext(chunks)).data


async def test_connections_are_kept_and_used_again() -> None:
    async with serving(stream()) as (engine, upstream):
        for _ in range(3):
            await collect(engine)
    assert upstream.num_connections == 1


async def test_a_connection_whose_body_ends_a_little_after_done_is_used_again() -> None:
    async with serving(stepwise()) as (engine, upstream):
        for _ in range(2):
            chunks = engine.generate(request())
            for _ in EVENTS:
                upstream.proceed()
                await anext(chunks)
            upstream.proceed()
            assert await anext(chunks, None) is None
    assert upstream.num_connections == 1


async def test_a_json_answer_is_one_chunk_with_its_usage() -> None:
    async with serving(answer()) as (engine, _):
        chunks = await collect(engine)
    assert [Chunk(DOCUMENT, completion_tokens=2, usage=Usage(7, 2), finish_reason="length")] == chunks


async def test_the_body_goes_up_with_stream_and_usage_asked_for_and_all_else_verbatim() -> None:
    body = b'{"model":"m","service_tier":"flex", "x_new": {"a": [1.50,  "\\u00e9"]},"stream":false}'
    async with serving(stream()) as (engine, upstream):
        await collect(engine, request(body, streams=False))
    expected = (
        b'{"model":"m","x_new":{"a": [1.50,  "\\u00e9"]},"stream":true,"stream_options":{"include_usage":true}}'
    )
    assert expected == upstream.requests[0].body


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (b"null", b'{"include_usage":true}'),
        (b'{"include_usage":false}', b'{"include_usage":true}'),
        (b'{"continuous_usage_stats":true}', b'{"continuous_usage_stats":true,"include_usage":true}'),
        (b'"nonsense"', b'"nonsense"'),
    ],
)
def test_the_clients_stream_options_are_kept(options: bytes, sent: bytes) -> None:
    payload = Payload("/v1/completions", b'{"stream_options":%b}' % options, stream=True, wants_usage=False)
    assert b'{"stream_options":%b,"stream":true}' % sent == upstream_body(payload)


UNSTREAMABLE = [b'"best_of":2', b'"use_beam_search":true', b'"prompt_logprobs":0', b'"echo":true']


@pytest.mark.parametrize("field", UNSTREAMABLE)
def test_what_engines_cannot_stream_is_not_streamed(field: bytes) -> None:
    body = b'{%b,"stream":false,"stream_options":{}}' % field
    assert b"{%b}" % field == upstream_body(Payload("/v1/completions", body, stream=False, wants_usage=False))


async def test_an_engine_that_shall_not_stream_whole_answers_streams_to_clients_that_stream_alone() -> None:
    body = b'{"stream_options":{"include_usage":true}}'
    script = (answer(), stream())
    async with serving(*script, stream_whole_answers=False) as (engine, upstream):
        whole = await collect(engine, request(body, streams=False))
        await collect(engine, request(body))
    assert [b"{}", b'{"stream_options":{"include_usage":true},"stream":true}'] == [
        r.body for r in upstream.requests
    ]
    assert [DOCUMENT] == [chunk.data for chunk in whole]


@pytest.mark.parametrize("field", UNSTREAMABLE)
def test_a_client_that_asks_for_a_stream_gets_the_engines_word_on_it(field: bytes) -> None:
    sent = upstream_body(Payload("/v1/completions", b"{%b}" % field, stream=True, wants_usage=False))
    assert b'"stream":true' in sent


@pytest.mark.parametrize(
    "field", [b'"best_of":1', b'"use_beam_search":false', b'"prompt_logprobs":null', b'"echo":null']
)
def test_fields_at_their_defaults_do_not_prevent_a_stream(field: bytes) -> None:
    sent = upstream_body(Payload("/v1/completions", b"{%b}" % field, stream=False, wants_usage=False))
    assert b'"stream":true' in sent


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(EngineError, match="not a JSON object") as caught:
        upstream_body(Payload("/v1/completions", body, stream=True, wants_usage=False))
    assert caught.value.status == 400


async def test_a_large_body_arrives_whole() -> None:
    body = b'{"prompt":"%b"}' % (b"x" * 3_000_000)
    async with serving(stream()) as (engine, upstream):
        await collect(engine, request(body))
    assert msgspec.json.decode(body)["prompt"] == msgspec.json.decode(upstream.requests[0].body)["prompt"]


async def test_headers_are_passed_but_no_credentials_and_nothing_that_outlives_the_client() -> None:
    headers = (
        ("traceparent", "00-1-2-01"),
        ("X-Conversation-Id", "c1"),
        ("Authorization", "Bearer client"),
        ("Cookie", "a=b"),
        ("X-Api-Key", "client"),
        ("Accept-Encoding", "gzip"),
        ("Content-Length", "99999"),
    )
    async with serving(stream(), api_key="gateway") as (engine, upstream):
        await collect(engine, request(headers=headers))
    sent = upstream.requests[0].headers
    assert sent["traceparent"] == "00-1-2-01"
    assert sent["authorization"] == "Bearer gateway"
    assert sent["content-type"] == "application/json"
    assert sent["accept-encoding"] == "identity"
    assert not {"x-conversation-id", "cookie", "x-api-key"} & sent.keys()


async def test_without_a_key_no_authorization_is_sent() -> None:
    async with serving(stream()) as (engine, upstream):
        await collect(engine, request(headers=(("authorization", "Bearer client"),)))
    assert "authorization" not in upstream.requests[0].headers


async def test_a_connection_closed_while_idle_is_retried_on_a_fresh_one() -> None:
    async with FaultyUpstream(stream(), closes_idle_connections=True) as upstream:
        engine = OpenAIEngine(upstream.url)
        answers = [joined(await collect(engine)) for _ in range(2)]
        await engine.close()
    assert [b"".join(EVENTS)] * 2 == answers
    assert [seen.connection for seen in upstream.requests] == [0, 0, 1]
    assert upstream.requests[1].body == upstream.requests[2].body


async def test_the_retry_does_not_meet_another_connection_closed_while_idle() -> None:
    async with FaultyUpstream(stepwise(), closes_idle_connections=True) as upstream:
        engine = OpenAIEngine(upstream.url)
        readers = [asyncio.create_task(collect(engine)) for _ in range(2)]
        await upstream.wait_for_requests(2)
        for _ in range(3 * (len(EVENTS) + 1)):
            upstream.proceed()
        await asyncio.gather(*readers)
        last = await collect(engine)
        await engine.close()
    assert b"".join(EVENTS) == joined(last)
    assert upstream.num_connections == 3


async def test_a_connection_the_engine_has_closed_after_an_answer_is_replaced() -> None:
    async with serving(stream(close=True)) as (engine, _):
        answers = [joined(await collect(engine)) for _ in range(2)]
    assert [b"".join(EVENTS)] * 2 == answers


async def test_a_fresh_connection_that_dies_is_not_retried() -> None:
    async with serving(die_before_headers()) as (engine, upstream):
        _, error = await failure(engine)
    assert (error.status, error.kind) == (502, "broken_stream")
    assert len(upstream.requests) == 1


async def test_a_reused_connection_is_retried_only_once() -> None:
    async with serving(stream(), die_before_headers()) as (engine, upstream):
        await collect(engine)
        _, error = await failure(engine)
    assert error.kind == "broken_stream"
    assert len(upstream.requests) == 3


async def test_an_answer_that_has_begun_is_not_retried() -> None:
    async with serving(stream(), die_mid_stream()) as (engine, upstream):
        await collect(engine)
        chunks, error = await failure(engine)
    assert (EVENTS[0], "broken_stream") == (joined(chunks), error.kind)
    assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (garbage(), "garbage"),
        (html(), "garbage"),
        (compressed(200), "garbage"),
        (answer(b"{", content_type="application/json"), "garbage"),
        (answer(b'{"status":"ok"}'), "garbage"),
        (answer(b"[]"), "garbage"),
        (stream([b"data: <html>\n\n"]), "garbage"),
        (die_before_headers(after=b"HTTP/1.1 200 OK\r\nConte"), "broken_stream"),
        (stream([]), "broken_stream"),
        (stream(EVENTS[:2]), "broken_stream"),
        (answer(b"", content_type="text/event-stream"), "broken_stream"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_bad_gateway(behaviour: Behaviour, kind: str) -> None:
    async with serving(behaviour) as (engine, _):
        _, error = await failure(engine)
    assert (502, kind, None) == (error.status, error.kind, error.body)


@pytest.mark.parametrize("behaviour", [die_mid_stream(), half_close()])
async def test_a_stream_that_breaks_off_is_broken(behaviour: Behaviour) -> None:
    async with serving(behaviour) as (engine, _):
        chunks, error = await failure(engine)
    assert (EVENTS[0], 502, "broken_stream") == (joined(chunks), error.status, error.kind)


async def test_a_reset_in_the_middle_of_a_stream_is_broken() -> None:
    async with serving(die_mid_stream(reset=True)) as (engine, upstream):
        chunks, error = await failure(engine, upstream)
    assert (EVENTS[0], 502, "broken_stream") == (joined(chunks), error.status, error.kind)


async def test_a_stream_without_done_is_complete_after_its_finish_reason() -> None:
    async with serving(stream(EVENTS[:4])) as (engine, _):
        assert b"".join(EVENTS[:4]) == joined(await collect(engine))


async def test_an_engine_that_breaks_off_after_its_finish_reason_has_answered() -> None:
    async with serving(die_mid_stream(EVENTS[:3], reset=True)) as (engine, upstream):
        chunks = []
        async for chunk in engine.generate(request()):
            chunks.append(chunk)
            upstream.proceed()
    assert b"".join(EVENTS[:3]) == joined(chunks)


async def test_an_engine_that_never_ends_the_body_has_answered_with_done() -> None:
    async with serving(stream(end_body=False)) as (engine, upstream):
        assert b"".join(EVENTS) == joined(await collect(engine))
        await upstream.requests[0].client_gone.wait()


async def test_a_refusal_that_cannot_be_read_is_told_by_its_status() -> None:
    async with serving(compressed(429)) as (engine, _):
        _, error = await failure(engine)
    assert (429, "engine_busy", None) == (error.status, error.kind, error.body)


async def test_an_error_event_is_raised_after_the_chunks_before_it() -> None:
    error_event = b'data: {"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}\n\n'
    async with serving(stream([content_event("a"), error_event, DONE])) as (engine, _):
        chunks, error = await failure(engine)
    assert (content_event("a"), 400, "engine_rejected") == (joined(chunks), error.status, error.kind)


async def test_an_error_document_with_status_200_is_an_error() -> None:
    async with serving(answer(b'{"error":{"message":"no","code":422}}')) as (engine, _):
        _, error = await failure(engine)
    assert (error.status, error.kind) == (422, "engine_rejected")


OPENAI_ERROR = b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}'


@pytest.mark.parametrize(
    ("code", "status_for_client", "kind", "body", "retry_after"),
    [
        (400, 400, "engine_rejected", OPENAI_ERROR, None),
        (404, 404, "engine_rejected", OPENAI_ERROR, None),
        (413, 413, "engine_rejected", OPENAI_ERROR, None),
        (422, 422, "engine_rejected", OPENAI_ERROR, None),
        (429, 429, "engine_busy", OPENAI_ERROR, "7"),
        (503, 503, "engine_busy", OPENAI_ERROR, "7"),
        (500, 502, "engine_error", OPENAI_ERROR, None),
        (502, 502, "engine_error", OPENAI_ERROR, None),
        (504, 504, "engine_timeout", OPENAI_ERROR, None),
        (401, 502, "engine_auth", None, None),
        (403, 502, "engine_auth", None, None),
        (204, 502, "garbage", None, None),
        (301, 502, "garbage", None, None),
    ],
)
async def test_a_refusal_has_one_status_and_kind(
    code: int, status_for_client: int, kind: str, body: bytes | None, retry_after: str | None
) -> None:
    async with serving(status(code, b"" if code == 204 else OPENAI_ERROR, retry_after="7")) as (engine, _):
        _, error = await failure(engine)
    assert (status_for_client, kind) == (error.status, error.kind)
    assert (body, retry_after) == (error.body, error.retry_after)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b'{"object":"error","message":"m","type":"t","param":null,"code":400}', ("m", "t", None, "400")),
        (b'{"error":{"code":400,"message":"m","type":"exceed","n_ctx":9}}', ("m", "exceed", None, "400")),
        (b'{"error":"m"}', ("m", "engine_error", None, None)),
        (b'{"error":"m","error_type":"validation"}', ("m", "validation", None, None)),
        (b'{"detail":"m"}', ("m", "engine_error", None, None)),
        (b'{"detail":[{"loc":["body"]}]}', ('[{"loc":["body"]}]', "engine_error", None, None)),
        (b"<html>Bad request</html>", None),
        (b'{"error":{}}', None),
        (b'{"error":7}', None),
        (b"[1]", None),
        (b"", None),
        (b'{"error":"' + b"x" * 100_000 + b'"}', None),
    ],
)
async def test_every_engines_error_document_becomes_the_openai_one(
    document: bytes, expected: tuple[str | None, ...] | None
) -> None:
    async with serving(status(400, document)) as (engine, _):
        _, error = await failure(engine)
    assert error.status == 400
    if expected is None:
        assert error.body is None
    else:
        assert error.body is not None
        fields = dict(zip(("message", "type", "param", "code"), expected, strict=True))
        assert {"error": fields} == msgspec.json.decode(error.body)


async def test_a_refused_connection_is_unreachable_and_unhealthy_until_a_success() -> None:
    port = free_port()
    engine = OpenAIEngine(f"http://127.0.0.1:{port}")
    _, error = await failure(engine)
    assert (error.status, error.kind) == (503, "engine_unreachable")
    assert not (await engine.saturation()).healthy
    async with FaultyUpstream(stream(), port=port):
        await collect(engine)
        assert (await engine.saturation()).healthy
        await engine.close()


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    engine = OpenAIEngine("http://engine.invalid:8000")
    _, error = await failure(engine)
    await engine.close()
    assert (error.status, error.kind) == (503, "engine_unreachable")


async def test_a_connection_that_cannot_be_made_in_time_is_unreachable() -> None:
    with socket.socket() as full:  # nobody accepts, and the queue of connections is filled
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            engine = OpenAIEngine(f"http://127.0.0.1:{port}", connect_timeout_seconds=0.05)
            _, error = await failure(engine)
            await engine.close()
    assert (error.status, error.kind) == (503, "engine_unreachable")


async def test_a_refusal_is_not_ill_health() -> None:
    async with serving(status(503, OPENAI_ERROR)) as (engine, _):
        await failure(engine)
        assert (await engine.saturation()).healthy


@pytest.mark.parametrize("behaviour", [hang_before_headers(), hang_mid_stream([])])
async def test_an_engine_that_sends_nothing_in_time_is_left(behaviour: Behaviour) -> None:
    async with serving(behaviour, first_byte_timeout_seconds=0.05) as (engine, upstream):
        _, error = await failure(engine)
        assert (error.status, error.kind) == (504, "engine_timeout")
        await upstream.requests[0].client_gone.wait()


async def test_an_engine_that_falls_silent_is_left() -> None:
    async with serving(hang_mid_stream(), idle_timeout_seconds=0.05) as (engine, upstream):
        chunks, error = await failure(engine)
        assert (EVENTS[0], 504, "engine_timeout") == (joined(chunks), error.status, error.kind)
        await upstream.requests[0].client_gone.wait()


async def test_a_slow_client_is_not_taken_for_a_silent_engine() -> None:
    loop = asyncio.get_running_loop()
    async with (
        serving(stepwise(), idle_timeout_seconds=0.05) as (engine, upstream),
        aclosing(engine.generate(request())) as chunks,
    ):
        received = []
        for _ in range(2):
            upstream.proceed()
            received.append(await anext(chunks))
        client_is_back = asyncio.Event()
        loop.call_later(0.15, client_is_back.set)
        await client_is_back.wait()
        for _ in EVENTS:
            upstream.proceed()
        received += [chunk async for chunk in chunks]
    assert b"".join(EVENTS) == joined(received)


async def test_closing_the_answer_closes_the_connection() -> None:
    async with serving(hang_mid_stream()) as (engine, upstream):
        answer_in_part = engine.generate(request())
        await anext(answer_in_part)
        await answer_in_part.aclose()
        await upstream.requests[0].client_gone.wait()
        assert (await engine.saturation()).fraction == 0.0


@pytest.mark.parametrize("behaviour", [hang_before_headers, hang_mid_stream])
async def test_cancelling_the_reader_closes_the_connection(behaviour: Callable[[], Behaviour]) -> None:
    async with serving(behaviour(), max_inflight=1) as (engine, upstream):
        reader = asyncio.create_task(collect(engine))
        await upstream.wait_for_requests(1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await upstream.requests[0].client_gone.wait()
        assert (await engine.saturation()).fraction == 0.0


async def test_saturation_counts_what_is_in_flight() -> None:
    async with serving(hang_mid_stream(), max_inflight=2) as (engine, upstream):
        readers = []
        fractions = []
        for num_requests in (1, 2, 3):
            readers.append(asyncio.create_task(collect(engine)))
            await upstream.wait_for_requests(num_requests)
            fractions.append((await engine.saturation()).fraction)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        fractions.append((await engine.saturation()).fraction)
    assert fractions == [0.5, 1.0, 1.0, 0.0]


async def test_many_streams_run_beside_each_other() -> None:
    async with serving(stepwise()) as (engine, upstream):
        readers = [asyncio.create_task(collect(engine)) for _ in range(120)]
        await upstream.wait_for_requests(len(readers))
        for _ in range(len(readers) * (len(EVENTS) + 1)):
            upstream.proceed()
        answers = await asyncio.gather(*readers)
    assert {b"".join(EVENTS)} == {joined(chunks) for chunks in answers}


MODELS = b'{"object":"list","data":[{"id":"m1","object":"model","owned_by":"%b"},{"id":"m2"}]}'


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ({"/v1/models": MODELS % b"llamacpp", "/props": b'{"total_slots":4}'}, (4, "llama.cpp")),
        ({"/v1/models": MODELS % b"vllm", "/version": b'{"version":"0.33.0"}'}, (None, "vllm")),
        ({"/v1/models": MODELS % b"x", "/version": b'{"version":"0.33.0"}'}, (None, "vllm")),
        ({"/v1/models": MODELS % b"sglang", "/server_info": b'{"max_running_requests":48}'}, (48, "sglang")),
        ({"/v1/models": MODELS % b"sglang", "/server_info": b'{"max_running_requests":null}'}, (None, "sglang")),
        (
            {
                "/v1/models": MODELS % b"sglang",
                "/server_info": b'{"max_running_requests":null,"internal_states":['
                b'{"effective_max_running_requests_per_dp":128},{"effective_max_running_requests_per_dp":128}]}',
            },
            (256, "sglang"),
        ),
        (
            {
                "/v1/models": MODELS % b"vllm",
                "/server_info": b'{"vllm_config":{"scheduler_config":{"max_num_seqs":96}}}',
            },
            (96, "vllm"),
        ),
        ({"/v1/models": MODELS % b"vllm", "/server_info": b'{"vllm_config":"a text"}'}, (None, "vllm")),
        ({"/v1/models": MODELS % b"library", "/api/version": b'{"version":"0.9.0"}'}, (None, "ollama")),
        ({"/v1/models": MODELS % b"x"}, (None, "generic")),
        ({"/v1/models": MODELS % b"x", "/props": b'{"total_slots":true}', "/version": b"[]"}, (None, "generic")),
    ],
)
async def test_an_engine_is_recognised_by_what_it_tells(
    routes: dict[str, bytes], expected: tuple[int | None, Any]
) -> None:
    routed = {path: answer(body) for path, body in routes.items()}
    async with FaultyUpstream(status(404, b"{}"), routes=routed) as upstream:
        engine = OpenAIEngine(upstream.url)
        found = await engine.discover()
        await engine.close()
    assert Discovery(("m1", "m2"), *expected) == found


async def test_what_the_operator_says_it_is_counts_and_only_what_such_a_server_would_say() -> None:
    routed = {"/v1/models": answer(MODELS % b"x"), "/props": answer(b'{"total_slots":4}')}
    async with FaultyUpstream(status(404, b"{}"), routes=routed) as upstream:
        engine = OpenAIEngine(upstream.url, kind="vllm")
        found = await engine.discover()
        await engine.close()
    assert Discovery(("m1", "m2"), None, "vllm") == found


async def test_a_server_that_answers_every_question_with_the_same_document_is_generic() -> None:
    async with serving(answer(MODELS % b"x")) as (engine, _):
        assert Discovery(("m1", "m2"), None, "generic") == await engine.discover()


@pytest.mark.parametrize(
    ("behaviour", "status_for_caller", "kind"),
    [
        (html(), 502, "garbage"),
        (answer(b'{"data":{}}'), 502, "garbage"),
        (status(401), 502, "engine_auth"),
        (status(404), 404, "engine_rejected"),
        (die_before_headers(), 503, "engine_unreachable"),
    ],
)
async def test_an_engine_without_a_list_of_models_is_refused(
    behaviour: Behaviour, status_for_caller: int, kind: str
) -> None:
    async with serving(behaviour) as (engine, _):
        with pytest.raises(EngineError) as caught:
            await engine.discover()
    assert (status_for_caller, kind) == (caught.value.status, caught.value.kind)


@pytest.mark.parametrize(
    "url", ["http://h:80", "http://h:80/", "http://h:80/v1", "http://h:80/v1/", "http://h:80//"]
)
def test_the_url_may_end_with_v1_or_a_slash(url: str) -> None:
    assert OpenAIEngine(url).name == "h:80"
    assert OpenAIEngine(url).url == "http://h:80"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:80",
        "localhost",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://h:x",
        "http://u:p@h",
        "http://h/?a=1",
        "http://h/#x",
        "http://h/a b",
        "http://a..b",
    ],
)
def test_a_bad_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        OpenAIEngine(url)


def test_a_password_in_a_url_is_not_repeated_in_the_error() -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIEngine("http://user:hunter2@h")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_inflight": 0},
        {"connect_timeout_seconds": 0},
        {"first_byte_timeout_seconds": -1},
        {"idle_timeout_seconds": float("nan")},
        {"api_key": "key\n"},
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        OpenAIEngine("http://h", **options)


async def test_another_payload_is_refused() -> None:
    engine = OpenAIEngine("http://h")
    with pytest.raises(TypeError, match="Payload"):
        await collect(engine, Request("r1", Tenant("acme"), Tier.STANDARD, "test", arrived_at=0.0))


async def test_the_finish_reason_of_the_stream_is_reported() -> None:
    async with serving(stream([content_event("a"), finish_event("length"), DONE])) as (engine, _):
        assert [c.finish_reason for c in await collect(engine) if c.finish_reason] == ["length"]
