"""The Responses API as the official client sees it, in front of engines that have it and of engines that do not."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
from openai import APIError, BadRequestError, NotFoundError
from openai.types.responses import Response

from driftsched.config import LimitSettings, Settings
from driftsched.core.events import Failed, Finished
from driftsched.engines.mock import MockServer
from support.faulty_upstream import (
    DONE,
    Behaviour,
    FaultyUpstream,
    answer,
    content_event,
    finish_event,
    hang_before_headers,
    hang_mid_stream,
    status,
    stepwise,
    stream,
    usage_event,
)
from support.servers import (
    Connect,
    House,
    chat,
    gateway_before,
    http_engine,
    live_gateway,
    serving,
    simulated,
    unasked,
    until,
)

PATH = "/v1/responses"
NO_SUCH_PATH = status(404, b'{"detail":"Not Found"}')


def event(kind: str, number: int, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **fields})}\n\n".encode()


def response(state: str, *texts: str, **fields: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
    usage = {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": len(texts),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7 + len(texts),
    }
    return {
        "id": "resp_engine",
        "object": "response",
        "created_at": 1,
        "status": state,
        "model": "simulated",
        "output": [message] if texts else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage if texts else None,
        **fields,
    }


def delta(text: str, number: int) -> bytes:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return event("response.output_text.delta", number, delta=text, logprobs=[], **place)


NATIVE_RESPONSE = response("completed", "Hello", " world")
NATIVE = (
    event("response.created", 0, response=response("in_progress")),
    event("response.in_progress", 1, response=response("in_progress")),
    delta("Hello", 2),
    delta(" world", 3),
    event("response.completed", 4, response=NATIVE_RESPONSE),
)
"""A whole streamed response: two tokens, and usage 7 + 2."""


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "simulated", "input": "What is a queue?", **fields}


def live(*behaviours: Behaviour, **routes: Behaviour) -> FaultyUpstream:
    return FaultyUpstream(routes={PATH: behaviours[0]} if behaviours else {PATH: NO_SUCH_PATH, **routes})


async def read(stream: Any) -> list[Any]:
    return [event async for event in stream]


def numbers(events: Sequence[Any]) -> list[int]:
    return [event.sequence_number for event in events]


async def test_an_engines_own_response_is_relayed_as_it_comes(connect: Connect) -> None:
    async with gateway_before(stream(NATIVE)) as (upstream, house):
        events = await read(await connect(house).responses.create(**asked(stream=True)))
        (finished,) = house.of(Finished)
        (seen,) = upstream.requests
    assert [0, 1, 2, 3, 4] == numbers(events)
    assert "response.completed" == events[-1].type
    assert "Hello world" == events[-1].response.output_text
    assert (7, 2, "stop") == (
        finished.usage.prompt_tokens,
        finished.usage.completion_tokens,
        finished.finish_reason,
    )
    assert PATH == seen.path


async def test_a_response_is_put_together_for_a_client_that_does_not_stream(connect: Connect) -> None:
    async with gateway_before(stream(NATIVE)) as (upstream, house):
        whole = await connect(house).responses.create(**asked())
        sent = json.loads(upstream.requests[0].body)
    assert "Hello world" == whole.output_text
    assert whole.usage is not None
    assert (7, 2, 9) == (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens)
    assert {**asked(), "stream": True, "store": False} == sent


@pytest.mark.parametrize("streams", [False, True])
async def test_an_engine_that_does_not_stream_responses_serves_both_kinds_of_clients(
    connect: Connect, streams: bool
) -> None:
    document = json.dumps(response("completed", "Hello")).encode()
    async with gateway_before(answer(document)) as (_upstream, house):
        result: Any = await connect(house).responses.create(**asked(stream=streams))
        whole = (await read(result))[-1].response if streams else result
        (finished,) = house.of(Finished)
    assert "Hello" == whole.output_text
    assert 1 == finished.usage.completion_tokens


@pytest.fixture
async def house(http: aiohttp.ClientSession) -> AsyncIterator[House]:
    """In front of an engine that knows chat completions only."""
    async with serving(MockServer(simulated())) as url:
        async with http.post(f"{url}/v1/chat/completions", json=chat()) as response:  # the engine's task begins
            await response.read()
        async with live_gateway(http_engine(url)) as house:
            yield house


async def test_an_engine_without_the_api_is_asked_for_a_chat_completion(house: House, connect: Connect) -> None:
    client = connect(house)
    whole = await client.responses.create(**asked(max_output_tokens=5))
    events = await read(await client.responses.create(**asked(max_output_tokens=5, stream=True)))
    first, second = house.of(Finished)
    assert 5 == len(whole.output_text.split()) == first.usage.completion_tokens == second.usage.completion_tokens
    assert ("incomplete", "max_output_tokens") == (
        whole.status,
        whole.incomplete_details and whole.incomplete_details.reason,
    )
    assert whole.usage is not None
    assert 5 == whole.usage.output_tokens
    assert ["incomplete"] == [item.status for item in whole.output if item.type == "message"]
    assert whole.output_text == events[-1].response.output_text
    assert whole.output_text == "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert list(range(len(events))) == numbers(events)
    assert [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ] == list(dict.fromkeys(event.type for event in events))


async def test_an_engine_is_asked_once_whether_it_has_the_api(connect: Connect) -> None:
    async with gateway_before(routes={PATH: NO_SUCH_PATH}) as (upstream, house):
        for _ in range(3):
            await connect(house).responses.create(**asked())
        paths = [seen.path for seen in upstream.requests]
    assert [PATH, *["/v1/chat/completions"] * 3] == paths


async def test_llama_server_is_asked_for_a_chat_completion_since_its_own_events_are_poor(connect: Connect) -> None:
    async with FaultyUpstream() as upstream:
        async with live_gateway(http_engine(upstream.url, kind="llama.cpp"), catalogue=unasked()) as house:
            whole = await connect(house).responses.create(**asked())
        assert ["/v1/chat/completions"] == [seen.path for seen in upstream.requests]
    assert "Hello world" == whole.output_text


@pytest.mark.parametrize(("limit", "reason"), [(2, "length"), (3, "stop"), (None, "stop")])
@pytest.mark.parametrize("behaviour", [stream(NATIVE), answer(json.dumps(NATIVE_RESPONSE).encode())])
async def test_an_answer_that_was_cut_teaches_no_length_although_the_engine_calls_it_complete(
    connect: Connect, behaviour: Behaviour, limit: int | None, reason: str
) -> None:
    async with gateway_before(behaviour) as (_, house):
        await connect(house).responses.create(**asked(max_output_tokens=limit))
        (finished,) = house.of(Finished)
    assert reason == finished.finish_reason


async def test_an_engine_that_was_away_is_asked_again_whether_it_has_the_api(connect: Connect) -> None:
    async with gateway_before(routes={PATH: NO_SUCH_PATH}) as (upstream, house):
        await connect(house).responses.create(**asked())
        port = int(upstream.url.rsplit(":", 1)[1])
        await upstream.__aexit__(None, None, None)
        with pytest.raises(APIError):
            await connect(house).responses.create(**asked())
        async with FaultyUpstream(stream(NATIVE), port=port) as updated:
            await until(lambda: house.idle)
            whole = await connect(house).responses.create(**asked())
        assert [PATH] == [seen.path for seen in updated.requests]
    assert "Hello world" == whole.output_text


async def test_a_number_that_cannot_be_translated_is_refused(connect: Connect, http: aiohttp.ClientSession) -> None:
    async with gateway_before(routes={PATH: NO_SUCH_PATH}) as (_, house):
        body = b'{"model":"simulated","input":"x","seed":1e400}'
        async with http.post(house.url + PATH, data=body) as response:
            assert 400 == response.status


async def test_a_model_that_the_engine_does_not_have_says_nothing_about_the_api(connect: Connect) -> None:
    missing = status(404, b'{"error":{"message":"no such model","type":"NotFoundError","param":null,"code":404}}')
    async with gateway_before(missing) as (upstream, house):
        for _ in range(2):
            with pytest.raises(NotFoundError) as caught:
                await connect(house).responses.create(**asked())
        paths = [seen.path for seen in upstream.requests]
    assert "no such model" in caught.value.message
    assert [PATH, "/v1/chat/completions"] * 2 == paths


async def test_a_conversation_with_tools_is_translated_there_and_back(connect: Connect) -> None:
    chunks = (
        content_event("Let me see."),
        chat_event(tool_calls=[{"index": 0, "id": "call_a", "type": "function", "function": {"name": "f"}}]),
        chat_event(tool_calls=[{"index": 0, "function": {"arguments": '{"x":'}}]),
        chat_event(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        chat_event(tool_calls=[{"index": 1, "id": "call_b", "function": {"name": "g", "arguments": "{}"}}]),
        finish_event("tool_calls"),
        usage_event(9, 6),
        DONE,
    )
    call = asked(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "No jokes."},
            {"role": "user", "content": [{"type": "input_text", "text": "Look"}, IMAGE]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "42"},
        ],
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "s", "schema": {}}, "verbosity": "low"},
        reasoning={"effort": "low"},
        extra_body={"top_k": 5},
    )
    async with gateway_before(stream(chunks), routes={PATH: NO_SUCH_PATH}) as (upstream, house):
        whole = await connect(house).responses.create(**call)
        events = await read(await connect(house).responses.create(**call, stream=True))
        sent = json.loads(upstream.requests[-1].body)
    assert {
        "model": "simulated",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "No jokes."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": "Hm.",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
        "verbosity": "low",
        "reasoning_effort": "low",
        "top_k": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    } == sent
    for result in (whole, events[-1].response):
        message, *calls = result.output
        assert "Let me see." == message.content[0].text
        assert [("call_a", "f", '{"x":1}'), ("call_b", "g", "{}")] == [
            (c.call_id, c.name, c.arguments) for c in calls
        ]
        assert (9, 6, "completed") == (result.usage.input_tokens, result.usage.output_tokens, result.status)
    arguments = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert ['{"x":', "1}", "{}"] == arguments
    assert list(range(len(events))) == numbers(events)


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}


def chat_event(**delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


async def test_thoughts_come_as_an_item_of_their_own(connect: Connect) -> None:
    chunks = (chat_event(reasoning_content="Hm"), content_event("Yes"), finish_event(), usage_event(3, 2), DONE)
    async with gateway_before(stream(chunks), routes={PATH: NO_SUCH_PATH}) as (_upstream, house):
        whole: Any = await connect(house).responses.create(**asked())
    thought, message = whole.output
    assert ("reasoning", "Hm") == (thought.type, thought.content[0].text)
    assert "Yes" == message.content[0].text


async def test_the_official_helper_follows_a_translated_stream(house: House, connect: Connect) -> None:
    async with connect(house).responses.stream(**asked()) as events:
        text = "".join([event.delta async for event in events if event.type == "response.output_text.delta"])
        final = await events.get_final_response()
    assert text
    assert text == final.output_text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
    ],
)
async def test_what_would_need_a_memory_is_refused(connect: Connect, fields: dict[str, Any], param: str) -> None:
    async with live_gateway(simulated()) as house:
        with pytest.raises(BadRequestError) as caught:
            await connect(house).responses.create(**asked(**fields))
        assert [] == house.events
    assert param == caught.value.param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0].type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"text": "plain"}, "text"),
    ],
)
async def test_what_a_chat_completion_cannot_do_is_refused_by_name(
    connect: Connect, fields: dict[str, Any], param: str
) -> None:
    async with gateway_before(routes={PATH: NO_SUCH_PATH}) as (_upstream, house):
        with pytest.raises(BadRequestError) as caught:
            await connect(house).responses.create(**asked(**fields))
    assert param == caught.value.param


WAITING = Settings(limits=LimitSettings(keep_alive_seconds=0.01))


async def test_who_waits_is_told_in_an_event_and_the_engines_events_go_on_from_there(connect: Connect) -> None:
    routes = {PATH: stepwise(NATIVE)}
    async with gateway_before(routes=routes, slots=1, settings=WAITING) as (upstream, house):
        upstream.proceed()
        ahead = await connect(house).responses.create(**asked(stream=True))
        behind = await connect(house).responses.create(**asked(stream=True))
        for _ in range(2 * (len(NATIVE) + 1) - 1):
            upstream.proceed()
        await read(ahead)
        events = await read(behind)
    assert [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.completed",
    ] == [event.type for event in events]
    assert list(range(6)) == numbers(events)
    assert "queued" == events[1].response.status
    Response.model_validate(events[1].response.model_dump(), strict=True)
    ids = {event.response.id for event in events if hasattr(event, "response")}
    assert 1 == len(ids)
    assert "resp_engine" not in ids


async def test_an_engine_that_breaks_off_makes_the_official_client_raise(connect: Connect) -> None:
    async with gateway_before(stream(NATIVE[:3])) as (_upstream, house):
        events = await connect(house).responses.create(**asked(stream=True))
        assert [0, 1, 2] == [(await anext(events)).sequence_number for _ in range(3)]
        with pytest.raises(APIError) as caught:
            await anext(events)
        (failed,) = house.of(Failed)
    assert 1 == failed.usage.completion_tokens  # what came is paid for
    assert "broken_stream" == caught.value.code


@pytest.mark.parametrize(
    "failure",
    [
        event("response.failed", 2, response=response("failed", error={"code": "server_error", "message": "Oops"})),
        event("error", 2, code="server_error", message="Oops", param=None),
        b'data: {"error":{"message":"Oops","type":"server_error","code":"server_error"}}\n\n',
    ],
)
async def test_a_failure_that_the_engine_tells_in_its_stream_reaches_the_client(
    connect: Connect, http: aiohttp.ClientSession, failure: bytes
) -> None:
    async with gateway_before(stream([*NATIVE[:2], failure])) as (_upstream, house):
        with pytest.raises(APIError) as caught:
            await connect(house).responses.create(**asked())
        async with http.post(house.url + PATH, json=asked(stream=True)) as answer:
            *_, last = (await answer.text()).strip().split("\n\n")
    assert "Oops" in caught.value.message
    name, data = last.split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert ("event: error", "error", 2) == (name, told["type"], told["sequence_number"])
    assert ("Oops", "Oops") == (told["message"], told["error"]["message"])


@pytest.mark.parametrize("behaviour", [hang_before_headers(), hang_mid_stream(NATIVE[:3])])
async def test_a_client_that_leaves_gives_its_slot_back(connect: Connect, behaviour: Behaviour) -> None:
    async with gateway_before(behaviour) as (upstream, house):
        async with aiohttp.ClientSession() as session:
            with pytest.raises(TimeoutError):
                await session.post(house.url + PATH, json=asked(), timeout=aiohttp.ClientTimeout(total=0.2))
        await until(lambda: house.idle)
        await upstream.requests[0].client_gone.wait()
