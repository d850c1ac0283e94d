"""Streams of the Responses API, an engine's own and translated ones: the same whatever blocks they come in."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.errors import EngineError
from driftsched.core.model import Usage
from driftsched.core.protocols import Chunk
from driftsched.engines.from_chat import ChatTranslator
from driftsched.engines.responses import ResponsesScanner, response_event
from driftsched.engines.sse import EVENT_END, event_data
from support.faulty_upstream import DONE, content_event, finish_event, usage_event

WORDS = ("Hello", " w\u00f6rld", "\n")
ENDED = {"status": "completed", "output": [], "usage": {"input_tokens": 7, "output_tokens": 5}}
NATIVE = b": ping\n\n" + b"".join(
    [
        *(response_event("response.output_text.delta", n, delta=word) for n, word in enumerate(WORDS)),
        response_event("response.completed", 3, response=ENDED),
        DONE,
    ]
)
CHAT = b"".join([*map(content_event, WORDS), finish_event(), usage_event(7, 5), DONE])

cuts_of_native = st.lists(st.integers(0, len(NATIVE)), max_size=8).map(sorted)
cuts_of_chat = st.lists(st.integers(0, len(CHAT)), max_size=8).map(sorted)


def read(scanner: ResponsesScanner | ChatTranslator, data: bytes, cuts: Sequence[int]) -> list[Chunk]:
    edges = [0, *cuts, len(data)]
    chunks = [c for start, end in itertools.pairwise(edges) if start < end for c in scanner.feed(data[start:end])]
    return [*chunks, *scanner.finish()]


def told(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    data = b"".join(chunk.data for chunk in chunks)
    ends = [0, *(match.end() for match in EVENT_END.finditer(data))]
    return [json.loads(event_data(data[a:b])) for a, b in itertools.pairwise(ends)]


@given(cuts_of_native)
def test_an_engines_own_events_are_relayed_byte_for_byte_and_counted_alike(cuts: list[int]) -> None:
    scanner = ResponsesScanner()
    chunks = read(scanner, NATIVE, cuts)
    assert NATIVE == b"".join(chunk.data for chunk in chunks)
    assert [Usage(7, 5)] == [chunk.usage for chunk in chunks if chunk.usage]
    assert ["stop"] == [chunk.finish_reason for chunk in chunks if chunk.finish_reason]
    assert (5, None, True) == (chunks[-1].completion_tokens, scanner.failure, scanner.done)


@given(cuts_of_chat)
def test_a_translated_stream_says_the_same_whatever_blocks_it_came_in(cuts: list[int]) -> None:
    translator = ChatTranslator({"model": "m"})
    chunks = read(translator, CHAT, cuts)
    events = told(chunks)
    assert list(range(len(events))) == [event["sequence_number"] for event in events]
    assert WORDS == tuple(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert "response.completed" == events[-1]["type"]
    assert "".join(WORDS) == events[-1]["response"]["output"][0]["content"][0]["text"]
    assert 5 == chunks[-1].completion_tokens


@given(st.integers(0, NATIVE.index(b"event: response.completed") - 1))
def test_a_stream_that_ends_too_soon_is_broken(end: int) -> None:
    scanner = ResponsesScanner()
    read(scanner, NATIVE[:end], [])
    assert scanner.failure is not None
    assert "broken_stream" == scanner.failure.kind


@pytest.mark.parametrize("document", [b'{"error":{"message":"no"}}\n\n', b"\n [1]\n\n"])
def test_a_document_among_events_is_garbage(document: bytes) -> None:
    scanner = ResponsesScanner()
    begun = response_event("response.created", 0, response={})
    chunks = scanner.feed(begun + document)
    assert ([begun], "garbage") == ([chunk.data for chunk in chunks], scanner.failure and scanner.failure.kind)


@given(st.binary(max_size=60), st.sampled_from([b"data: ", b"", b"event: x\ndata: "]))
def test_whatever_an_engine_sends_is_relayed_or_its_failure(noise: bytes, before: bytes) -> None:
    scanner = ResponsesScanner()
    chunks = scanner.feed(before + noise + b"\n\n")
    chunks += scanner.finish()
    assert scanner.failure is not None
    assert scanner.failure.kind in ("garbage", "broken_stream", "engine_error", "engine_busy", "engine_rejected")
    assert (before + noise + b"\n\n").startswith(b"".join(chunk.data for chunk in chunks))


@pytest.mark.parametrize("document", [b"", b"<html>", b"[]", b"{}", b'{"error":{"message":"no"}}'])
def test_a_document_that_is_no_response_is_the_engines_failure(document: bytes) -> None:
    with pytest.raises(EngineError):
        ResponsesScanner().document(document)
