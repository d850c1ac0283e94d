"""What a client gets of the engine's stream, byte for byte."""

from collections.abc import Sequence

import aiohttp
import pytest

from driftsched.core.events import Dispatched, Finished, FirstToken
from support.faulty_upstream import (
    DOCUMENT,
    DONE,
    EVENTS,
    Behaviour,
    FaultyUpstream,
    answer,
    content_event,
    finish_event,
    stepwise,
    stream,
    usage_event,
)
from support.servers import chat, http_engine, live_gateway, unasked, until

USAGE_NULL = tuple(event.replace(b"}\n\n", b',"usage":null}\n\n') for event in EVENTS[:3])


async def relayed(http: aiohttp.ClientSession, behaviour: Behaviour, **fields: object) -> bytes:
    """The body that a client gets when the engine behaves so."""
    async with (
        FaultyUpstream(behaviour) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
        http.post(f"{house.url}/v1/chat/completions", json=chat(**fields)) as response,
    ):
        assert 200 == response.status
        return await response.read()


ASKED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "events",
    [
        EVENTS,
        (*USAGE_NULL, *EVENTS[3:]),
        (b": ping\n\n", *EVENTS[:1], b": ping\n\n", *EVENTS[1:]),
        (b"event: x\r\nid: 1\r\n" + content_event("a").replace(b"\n\n", b"\r\n\r\n"), *EVENTS[2:]),
        (content_event("漢字 \N{GRINNING FACE}"), *EVENTS[2:]),
    ],
)
async def test_a_stream_with_usage_asked_for_is_relayed_unchanged(
    http: aiohttp.ClientSession, events: Sequence[bytes]
) -> None:
    assert b"".join(events) == await relayed(http, stream(events), **ASKED)


async def test_a_stream_without_usage_asked_for_lacks_nothing_but_the_usage(http: aiohttp.ClientSession) -> None:
    expected = b"".join((*EVENTS[:3], DONE))
    assert expected == await relayed(http, stream(EVENTS), stream=True)


@pytest.mark.parametrize("null", [b',"usage":null', b', "usage": null'])
async def test_the_null_usage_of_every_chunk_is_taken_out(http: aiohttp.ClientSession, null: bytes) -> None:
    events = [event.replace(b"}\n\n", null + b"}\n\n") for event in EVENTS[:3]]
    assert b"".join((*EVENTS[:3], DONE)) == await relayed(http, stream([*events, *EVENTS[3:]]), stream=True)


async def test_a_text_about_null_usage_is_left_alone(http: aiohttp.ClientSession) -> None:
    events = (content_event(',"usage":null'), content_event(', "usage": null'), finish_event(), DONE)
    assert b"".join(events) == await relayed(http, stream(events), stream=True)


async def test_an_engine_that_does_not_stream_is_made_to_look_as_if(http: aiohttp.ClientSession) -> None:
    body = await relayed(http, answer(DOCUMENT), **ASKED)
    assert body.startswith(b"data: {")
    assert b'"delta":{"role":"assistant","content":"Hello"}' in body
    assert b'"total_tokens":9' in body
    assert body.endswith(DONE)


async def test_a_document_of_the_engine_is_passed_on_unchanged(http: aiohttp.ClientSession) -> None:
    assert DOCUMENT == await relayed(http, answer(DOCUMENT))


async def test_each_piece_is_relayed_as_it_comes(http: aiohttp.ClientSession) -> None:
    async with (
        FaultyUpstream(stepwise(EVENTS)) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        call = http.post(f"{house.url}/v1/chat/completions", json=chat(**ASKED))
        upstream.proceed()
        async with call as response:
            for number, event in enumerate(EVENTS, start=1):
                assert event == await response.content.readexactly(len(event))
                assert number == 1 or house.of(FirstToken)
                upstream.proceed()
            assert b"" == await response.read()


async def test_a_request_is_finished_at_its_last_chunk_with_the_engines_own_usage(
    http: aiohttp.ClientSession,
) -> None:
    events = (content_event("one chunk, several tokens"), finish_event("length"), usage_event(70, 20), DONE)
    async with (
        FaultyUpstream(stepwise(events)) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        upstream.proceed()
        async with http.post(f"{house.url}/v1/chat/completions", json=chat(stream=True)) as response:
            await until(lambda: house.of(FirstToken))
            assert (1, 0) == (len(house.of(Dispatched)), len(house.of(Finished)))
            for _ in events:  # the others, and the end
                upstream.proceed()
            await response.read()
        (finished,) = house.of(Finished)
    assert (70, 20, "length") == (
        finished.usage.prompt_tokens,
        finished.usage.completion_tokens,
        finished.finish_reason,
    )


async def test_the_engine_is_always_asked_to_stream_and_to_account(http: aiohttp.ClientSession) -> None:
    async with (
        FaultyUpstream() as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"odd":{"a":[1.50]},"service_tier":"flex"}'
        async with http.post(f"{house.url}/v1/chat/completions", data=body) as response:
            await response.read()
        sent = upstream.requests[0].body
    assert b'"stream":true' in sent
    assert b'"include_usage":true' in sent
    assert b'"odd":{"a":[1.50]}' in sent
    assert b"service_tier" not in sent
    assert 200 == response.status


async def test_what_is_the_gateways_own_is_not_sent_to_the_engine(http: aiohttp.ClientSession) -> None:
    headers = {
        "authorization": "Bearer sk-secret",
        "cookie": "session=1",
        "x-conversation-id": "c-1",
        "x-request-id": "theirs",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-other": "1",
    }
    async with (
        FaultyUpstream() as upstream,
        live_gateway(http_engine(upstream.url, api_key="sk-engine"), catalogue=unasked()) as house,
        http.post(f"{house.url}/v1/chat/completions", json=chat(), headers=headers) as response,
    ):
        await response.read()
        seen = upstream.requests[0].headers
        (finished,) = house.of(Finished)
    assert "Bearer sk-engine" == seen["authorization"]
    assert headers["traceparent"] == seen["traceparent"]
    assert finished.ticket.id == seen["x-request-id"]
    assert not {"cookie", "x-conversation-id", "x-other"} & seen.keys()
