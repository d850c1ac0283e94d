"""What clients use of the API beyond plain text: by the official client, and by another, written independently."""

import json
import string
from typing import Any

import aiohttp
import pytest
from huggingface_hub import AsyncInferenceClient
from hypothesis import given
from hypothesis import strategies as st
from openai import APIError
from pydantic import BaseModel

from driftsched.engines.payload import Payload
from driftsched.engines.wire import upstream_body
from driftsched.gateway.wire import CHAT, COMPLETIONS, RESPONSES, decode_body, read_call
from support.faulty_upstream import DONE, content_event, finish_event, stream, usage_event
from support.servers import Connect, House, chat, gateway_before, live_gateway, simulated


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "simulated"}
    return b"data: " + json.dumps({**head, "choices": choices, **fields}).encode() + b"\n\n"


def choice(index: int = 0, reason: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def tool(index: int, arguments: str, name: str = "", call_id: str = "") -> dict[str, Any]:
    """A piece of a call of a tool: its head if it has a name, else what its arguments go on with."""
    head = {"id": call_id, "type": "function"} if name else {}
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return choice(tool_calls=[{"index": index, **head, "function": function}])


TOOL_CALLS = (
    event(choice(role="assistant", content=None)),
    event(tool(0, "", "f", "a")),
    event(tool(0, '{"x"')),
    event(tool(0, ":1}")),
    event(tool(1, "{}", "g", "b")),
    event(choice(reason="tool_calls")),
    usage_event(9, 4),
    DONE,
)
CALLED = [("a", "f", '{"x":1}'), ("b", "g", "{}")]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def called(message: Any) -> list[tuple[str, str, str]]:
    return [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls]


async def test_calls_of_tools_come_whole(connect: Connect) -> None:
    async with gateway_before(stream(TOOL_CALLS)) as (upstream, house):
        answer = await connect(house).chat.completions.create(**chat(tools=[FUNCTION], parallel_tool_calls=True))
        sent = json.loads(upstream.requests[0].body)
    assert CALLED == called(answer.choices[0].message)
    assert ("tool_calls", None) == (answer.choices[0].finish_reason, answer.choices[0].message.content)
    assert ([FUNCTION], True) == (sent["tools"], sent["parallel_tool_calls"])


async def test_calls_of_tools_come_as_a_stream(connect: Connect) -> None:
    async with (
        gateway_before(stream(TOOL_CALLS)) as (_, house),
        connect(house).chat.completions.stream(**chat()) as events,
    ):
        final = await events.get_final_completion()
    assert CALLED == called(final.choices[0].message)


@pytest.mark.parametrize("streams", [False, True])
async def test_images_reach_the_engine_as_they_are(connect: Connect, streams: bool) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBO" * 5000, "detail": "low"}},
    ]
    async with gateway_before() as (upstream, house):
        answer: Any = await connect(house).chat.completions.create(**chat(parts, stream=streams))
        if streams:
            assert [chunk async for chunk in answer]
        sent = json.loads(upstream.requests[0].body)
    assert parts == sent["messages"][0]["content"]


def logprob(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}


WITH_LOGPROBS = (
    event(choice(role="assistant", content="A", logprobs={"content": [logprob("A")]})),
    event(choice(content="B", logprobs={"content": [logprob("B")]})),
    event(choice(reason="stop")),
    usage_event(3, 2),
    DONE,
)


async def test_log_probabilities_come_whole_and_as_a_stream(connect: Connect) -> None:
    async with gateway_before(stream(WITH_LOGPROBS)) as (_, house):
        call = chat(logprobs=True, top_logprobs=0)
        whole = await connect(house).chat.completions.create(**call)
        pieces = [p async for p in await connect(house).chat.completions.create(**call, stream=True)]
    assert whole.choices[0].logprobs is not None
    assert ["A", "B"] == [entry.token for entry in whole.choices[0].logprobs.content or ()]
    streamed = [p.choices[0].logprobs.content[0].token for p in pieces if p.choices and p.choices[0].logprobs]
    assert ["A", "B"] == streamed


async def test_several_answers_to_one_call_are_kept_apart(connect: Connect) -> None:
    events = [event(choice(i % 3, content=f"{i} ")) for i in range(30)]
    ends = [event(choice(i, reason="stop")) for i in range(3)]
    async with gateway_before(stream([*events, *ends, usage_event(3, 30), DONE])) as (_, house):
        whole = await connect(house).chat.completions.create(**chat(n=3))
        pieces = [p async for p in await connect(house).chat.completions.create(**chat(n=3, stream=True))]
    expected = ["".join(f"{i} " for i in range(k, 30, 3)) for k in range(3)]
    texts = ["", "", ""]
    for piece in pieces:
        for part in piece.choices:
            texts[part.index] += part.delta.content or ""
    assert expected == [part.message.content for part in whole.choices]
    assert expected == texts
    assert 30 == (whole.usage and whole.usage.completion_tokens)


async def test_a_very_long_stream_loses_nothing(connect: Connect) -> None:
    words = [f"word{i} \u20ac\n" for i in range(5000)]
    body = b"".join(map(content_event, words)) + finish_event() + usage_event(3, 5000) + DONE
    cut = [body[start : start + 1000] for start in range(0, len(body), 1000)]  # in the middle of events and letters
    async with gateway_before(stream(cut)) as (_, house):
        pieces = [p async for p in await connect(house).chat.completions.create(**chat(stream=True))]
        whole = await connect(house).chat.completions.create(**chat())
    assert words == [p.choices[0].delta.content for p in pieces if p.choices and p.choices[0].delta.content]
    assert "".join(words) == whole.choices[0].message.content


class Person(BaseModel):
    name: str


async def test_an_answer_in_a_given_shape_is_parsed(connect: Connect) -> None:
    events = (content_event('{"name":'), content_event('"Ada"}'), finish_event(), usage_event(3, 2), DONE)
    async with gateway_before(stream(events)) as (upstream, house):
        answer = await connect(house).chat.completions.parse(**chat(), response_format=Person)
        sent = json.loads(upstream.requests[0].body)
    assert Person(name="Ada") == answer.choices[0].message.parsed
    assert "json_schema" == sent["response_format"]["type"]


async def test_an_error_in_a_stream_is_raised_with_its_body(connect: Connect) -> None:
    error = {"message": "CUDA out of memory", "type": "server_error", "param": None, "code": 500}
    failing = (content_event("Hello"), b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    async with gateway_before(stream(failing)) as (_, house):
        pieces = await connect(house).chat.completions.create(**chat(stream=True))
        assert "Hello" == (await anext(pieces)).choices[0].delta.content
        with pytest.raises(APIError) as caught:
            await anext(pieces)
    assert {
        "message": "CUDA out of memory",
        "type": "server_error",
        "param": None,
        "code": "500",
    } == caught.value.body


async def test_signs_of_life_of_the_engine_reach_the_client(connect: Connect, http: aiohttp.ClientSession) -> None:
    events = (b": ping\n\n", content_event("Hello"), b": ping\n\n", finish_event(), usage_event(3, 1), DONE)
    async with gateway_before(stream(events)) as (_, house):
        pieces = [p async for p in await connect(house).chat.completions.create(**chat(stream=True))]
        async with http.post(house.url + CHAT, json=chat(stream=True)) as response:
            raw = await response.read()
        whole = await connect(house).chat.completions.create(**chat())
    assert 2 == raw.count(b": ping\n\n")
    assert ["Hello", None] == [p.choices[0].delta.content for p in pieces]
    assert "Hello" == whole.choices[0].message.content


# Another client, with a transport and a reader of events of its own.


async def test_another_client_gets_whole_answers_and_streams() -> None:
    async with live_gateway(simulated()) as house, other_client(house) as client:
        whole = await client.chat_completion([{"role": "user", "content": "Hi"}], model="simulated", max_tokens=5)
        stream = await client.chat_completion(
            [{"role": "user", "content": "Hi"}], model="simulated", max_tokens=5, stream=True
        )
        pieces = [piece async for piece in stream]
    text = "".join(part.delta.content or "" for piece in pieces for part in piece.choices)
    assert ("length", 5) == (whole.choices[0].finish_reason, len((whole.choices[0].message.content or "").split()))
    assert text == whole.choices[0].message.content
    assert "length" == pieces[-1].choices[0].finish_reason


async def test_another_client_gets_usage_tools_and_errors() -> None:
    async with gateway_before(stream(TOOL_CALLS)) as (_, house), other_client(house) as client:
        whole = await client.chat_completion([{"role": "user", "content": "Hi"}], model="m", tools=[FUNCTION])
        stream_of_it = await client.chat_completion(
            [{"role": "user", "content": "Hi"}], model="m", stream=True, stream_options={"include_usage": True}
        )
        pieces = [piece async for piece in stream_of_it]
    assert CALLED == called(whole.choices[0].message)
    assert pieces[-1].usage is not None
    assert (9, 4) == (pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens)


def other_client(house: House) -> AsyncInferenceClient:
    return AsyncInferenceClient(base_url=f"{house.url}/v1", api_key="sk-test", timeout=20)


# Fields that the gateway does not know.

_NAMES = st.text(string.ascii_letters + "_-.0123456789 é", min_size=1)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)
_MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    COMPLETIONS: {"model": "m", "prompt": "x"},
    RESPONSES: {"model": "m", "input": "x"},
}
_OWN = {"stream", "stream_options", "service_tier", "priority", "store"}
_TYPED = {"max_tokens", "max_completion_tokens", "max_output_tokens", "user", "background", "instructions"}
_TYPED |= {"previous_response_id", "conversation"}


@given(st.sampled_from(sorted(_MINIMAL)), st.dictionaries(_NAMES, _VALUES, max_size=6))
def test_fields_that_the_gateway_does_not_know_reach_the_engine_unchanged(
    endpoint: str, fields: dict[str, Any]
) -> None:
    call = {**{k: v for k, v in fields.items() if k not in _OWN | _TYPED}, **_MINIMAL[endpoint]}
    body = json.dumps(call).encode()
    read_call(decode_body(endpoint, body))
    sent = json.loads(upstream_body(Payload(endpoint, body, stream=True, wants_usage=False)))
    assert call == {name: value for name, value in sent.items() if name not in _OWN}


async def test_unknown_fields_arrive_over_the_wire(http: aiohttp.ClientSession) -> None:
    odd = {"top_k": 5, "vendor": {"deep": [1, None, {"x": 1e-7}]}, "é": "\u20ac", "huge": 10**30, "empty": {}}
    async with gateway_before() as (upstream, house):
        async with http.post(house.url + CHAT, json=chat(**odd)) as response:
            await response.read()
        sent = json.loads(upstream.requests[0].body)
    assert odd == {name: sent[name] for name in odd}
