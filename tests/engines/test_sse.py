"""The scanner of streamed answers: nothing lost, nothing altered, everything counted."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.errors import EngineError
from driftsched.core.model import Usage
from driftsched.core.protocols import Chunk
from driftsched.engines import sse
from driftsched.engines.sse import BYTE_ORDER_MARK, EventScanner
from support.faulty_upstream import DONE, EVENTS, content_event, finish_event, usage_event


def scan(*blocks: bytes) -> tuple[list[Chunk], EngineError | None]:
    """The chunks of a stream that came in these blocks, and what went wrong at its end."""
    scanner = EventScanner()
    chunks = [chunk for block in blocks for chunk in scanner.feed(block)]
    chunks += scanner.finish()
    return chunks, scanner.failure


def joined(chunks: list[Chunk]) -> bytes:
    return b"".join(chunk.data for chunk in chunks)


def failure_of(*blocks: bytes) -> EngineError:
    failure = scan(*blocks)[1]
    assert failure is not None
    return failure


def event(**fields: object) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def delta(index: int = 0, finish_reason: str | None = None, **fields: object) -> bytes:
    return event(choices=[{"index": index, "delta": fields, "finish_reason": finish_reason}])


def tokens_of(*events: bytes) -> int:
    chunks, _ = scan(b"".join(events))
    return chunks[-1].completion_tokens


def test_a_run_of_ordinary_events_is_one_chunk() -> None:
    block = b"".join(content_event(f" {i}") for i in range(32))
    assert [Chunk(block, completion_tokens=32)] == EventScanner().feed(block)


def test_the_usage_event_is_a_chunk_of_its_own() -> None:
    chunks, failure = scan(b"".join(EVENTS))
    assert failure is None
    assert [
        Chunk(b"".join(EVENTS[:3]), completion_tokens=2, finish_reason="stop"),
        Chunk(usage_event(7, 2), completion_tokens=2, usage=Usage(7, 2), usage_only=True),
        Chunk(DONE, completion_tokens=2),
    ] == chunks


def test_an_event_waits_until_it_is_whole() -> None:
    scanner = EventScanner()
    whole = content_event("Hello")
    assert scanner.feed(whole[:40]) == []
    assert scanner.feed(whole[40:-1]) == []
    assert [Chunk(whole, completion_tokens=1)] == scanner.feed(whole[-1:])


def test_the_engines_own_count_replaces_the_counted_tokens() -> None:
    chunks, _ = scan(content_event("several tokens at once") + usage_event(3, 5) + DONE)
    assert [chunk.completion_tokens for chunk in chunks] == [1, 5, 5]


def test_usage_on_the_finish_event_is_read_and_not_hidden() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    last = event(choices=[{"index": 0, "text": "", "finish_reason": "length"}], usage=usage)
    chunks, failure = scan(event(choices=[{"index": 0, "text": "a", "finish_reason": None}]) + last + DONE)
    assert failure is None
    assert [(Usage(3, 4), False, "length")] == [(c.usage, c.usage_only, c.finish_reason) for c in chunks]


def test_continuous_usage_is_reported_with_every_block() -> None:
    scanner = EventScanner()
    seen = []
    for produced in (0, 3, 6):  # three tokens an event, as with speculative decoding
        choices = [{"index": 0, "delta": {"content": "abc" if produced else ""}, "finish_reason": None}]
        usage = {"prompt_tokens": 9, "completion_tokens": produced, "total_tokens": 9 + produced}
        seen += scanner.feed(event(choices=choices, usage=usage))
    assert [Usage(9, 0), Usage(9, 3), Usage(9, 6)] == [chunk.usage for chunk in seen]
    assert [chunk.completion_tokens for chunk in seen] == [0, 3, 6]
    assert not any(chunk.usage_only for chunk in seen)


def test_continuous_usage_of_one_choice_never_lowers_the_count_of_all() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    events = [
        event(choices=[{"index": i, "delta": {"content": "a"}, "finish_reason": None}], usage=usage)
        for i in range(3)
    ]
    assert tokens_of(*events) == 3


@pytest.mark.parametrize(
    "usage",
    [
        b"null",
        b"{}",
        b'{"completion_tokens":null}',
        b'{"prompt_tokens":4,"completion_tokens":null}',
        b'{"prompt_tokens":4,"completion_tokens":-1}',
        b'{"prompt_tokens":4,"completion_tokens":1%b}' % (b"0" * 400),
    ],
)
def test_usage_without_a_count_is_no_usage(usage: bytes) -> None:
    block = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":%b}\n\n' % usage
    assert [Chunk(block, completion_tokens=1)] == EventScanner().feed(block)


def test_a_prompt_of_less_than_nothing_is_nothing() -> None:
    (chunk,) = EventScanner().feed(usage_event(-7, 2))
    assert Usage(0, 2) == chunk.usage


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "a"},
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"refusal": "no"},
        {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        {"content": "", "function_call": {"arguments": "{"}},
        {"content": [{"type": "text", "text": "a"}]},
    ],
)
def test_every_kind_of_content_is_a_token(fields: dict[str, object]) -> None:
    assert tokens_of(delta(0, None, **fields)) == 1


@pytest.mark.parametrize("fields", [{"role": "assistant", "content": ""}, {"content": None, "tool_calls": []}, {}])
def test_an_event_without_content_is_no_token(fields: dict[str, object]) -> None:
    assert tokens_of(delta(0, None, **fields)) == 0


def test_text_that_looks_like_the_protocol_is_only_text() -> None:
    texts = ["[DONE]", '"usage":{', 'data: {"error":1}\n\n', '"finish_reason":"stop"', "usage", "error"]
    block = b"".join(content_event(text) for text in texts)
    scanner = EventScanner()
    assert [Chunk(block, completion_tokens=len(texts))] == scanner.feed(block)
    assert not scanner.complete


@pytest.mark.parametrize("form", ["compact", "spaced", "no space after data", "crlf", "named", "two data lines"])
def test_every_way_to_write_an_event_is_read(form: str) -> None:
    text = content_event("a") + finish_event("tool_calls") + usage_event(1, 1) + DONE
    if form == "spaced":
        text = text.replace(b'":', b'": ').replace(b",", b", ")
    if form == "no space after data":
        text = text.replace(b"data: ", b"data:")
    if form == "crlf":
        text = text.replace(b"\n", b"\r\n")
    if form == "named":
        text = text.replace(b"data:", b"id: 1\nevent: message\ndata:")
    if form == "two data lines":
        text = text.replace(b',"choices"', b',\ndata: "choices"')
    chunks, failure = scan(text)
    assert failure is None
    assert text == joined(chunks)
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["tool_calls"]
    assert [(Usage(1, 1), True)] == [(c.usage, c.usage_only) for c in chunks if c.usage]
    assert chunks[0].completion_tokens == 1


def test_a_byte_order_mark_hides_nothing() -> None:
    text = BYTE_ORDER_MARK + content_event("a") + finish_event()
    chunks, failure = scan(text)
    assert (text, 1, None) == (joined(chunks), chunks[-1].completion_tokens, failure)


def test_comments_pass_through_and_count_for_nothing() -> None:
    text = b": ping\n\n" + content_event("a") + b":\n\ndata:\n\n\n\n" + finish_event() + DONE
    chunks, failure = scan(text)
    assert failure is None
    assert [Chunk(text, completion_tokens=1, finish_reason="stop")] == chunks


@pytest.mark.parametrize(
    ("document", "status", "kind", "error"),
    [
        (  # vLLM
            {"error": {"message": "bad", "type": "BadRequestError", "param": None, "code": 400}},
            400,
            "engine_rejected",
            {"message": "bad", "type": "BadRequestError", "param": None, "code": "400"},
        ),
        (  # SGLang
            {"object": "error", "message": "oom", "type": "InternalServerError", "param": None, "code": 500},
            502,
            "engine_error",
            {"message": "oom", "type": "InternalServerError", "param": None, "code": "500"},
        ),
        (  # Ollama
            {"error": "model runner stopped"},
            502,
            "engine_error",
            {"message": "model runner stopped", "type": "engine_error", "param": None, "code": None},
        ),
        (  # OpenAI: the code is a word
            {"error": {"message": "slow down", "type": "server_error", "param": "n", "code": "overloaded"}},
            502,
            "engine_error",
            {"message": "slow down", "type": "server_error", "param": "n", "code": "overloaded"},
        ),
    ],
)
def test_an_error_event_ends_the_stream_after_what_came_before(
    document: dict[str, object], status: int, kind: str, error: dict[str, object]
) -> None:
    scanner = EventScanner()
    good = content_event("a")
    chunks = scanner.feed(good + b"event: error\n" + event(**document) + content_event("never sent"))
    assert [Chunk(good, completion_tokens=1)] == chunks
    failure = scanner.failure
    assert failure is not None
    assert (status, kind) == (failure.status, failure.kind)
    assert failure.body is not None
    assert {"error": error} == msgspec.json.decode(failure.body)
    assert (scanner.feed(DONE), scanner.finish()) == ([], [])


def test_an_event_that_is_not_json_is_garbage() -> None:
    assert (failure_of(b"data: <html>\n\n").status, failure_of(b"data: {]\n\n").kind) == (502, "garbage")


@pytest.mark.parametrize("document", [b'{"choices":[]}\n\n', b'\n {"a":1}\n\n', b"[1]\n\n"])
def test_a_document_among_events_is_garbage(document: bytes) -> None:
    chunks, failure = scan(EVENTS[0], document + EVENTS[1])
    assert (EVENTS[0], "garbage") == (joined(chunks), failure and failure.kind)


@pytest.mark.parametrize("text", [b'"\\x"', b'"\\u12g4"', b'"\xff"', b'"\x01"', b'"a" "b"', b'"a'])
def test_an_event_that_differs_from_the_one_before_in_a_broken_text_is_garbage(text: bytes) -> None:
    broken = content_event("TEXT").replace(b'"TEXT"', text)
    chunks, failure = scan(content_event("a") + content_event("b") + broken + DONE)
    assert failure is not None
    assert ("garbage", 2) == (failure.kind, chunks[-1].completion_tokens)


@given(st.lists(st.text(max_size=8), max_size=12))
def test_events_that_differ_in_their_texts_count_a_token_for_each_that_is_not_empty(texts: list[str]) -> None:
    assert len([text for text in texts if text]) == tokens_of(*map(content_event, texts), DONE)


def test_long_runs_of_events_and_what_stands_between_them_are_counted() -> None:
    run = [content_event(f" {number}") for number in range(200)]
    assert 450 == tokens_of(*run, b": ping\n\n", *run, finish_event(), *run[:50], DONE)


def test_events_whose_ends_differ_by_turns_are_counted() -> None:
    events = [delta(content="a")[:-3] + b',"obfuscation":"%d"}\n\n' % (number % 3) for number in range(20)]
    assert 20 == tokens_of(*events, DONE)


def test_an_event_of_a_foreign_shape_is_relayed_unread() -> None:
    text = event(choices="none", progress=1) + event(delta=[1]) + b"data: 5\n\n" + finish_event() + DONE
    chunks, failure = scan(text)
    assert (text, None) == (joined(chunks), failure)


def test_an_event_without_end_is_not_held_for_ever() -> None:
    scanner = EventScanner()
    block = b"x" * (1 << 20)
    for _ in range(sse.MAX_EVENT_BYTES >> 20):
        assert scanner.feed(block) == []
    assert scanner.failure is None
    scanner.feed(b"x")
    assert scanner.failure is not None
    assert scanner.failure.kind == "garbage"


@pytest.mark.parametrize("text", [b"", b": ping\n\n", content_event("a"), content_event("a")[:30]])
def test_a_stream_that_ends_early_is_broken(text: bytes) -> None:
    failure = failure_of(text)
    assert (failure.status, failure.kind) == (502, "broken_stream")


def test_an_event_that_broke_off_is_not_delivered() -> None:
    whole = content_event("a")
    chunks, failure = scan(whole + content_event("b")[:-20])
    assert whole == joined(chunks)
    assert failure is not None
    assert failure.kind == "broken_stream"


def test_a_stream_may_end_after_the_finish_reason() -> None:
    assert (scan(finish_event())[1], scan(finish_event())[0][-1].finish_reason) == (None, "stop")


def test_a_stream_may_break_off_inside_an_event_after_the_finish_reason() -> None:
    chunks, failure = scan(finish_event() + usage_event(1, 1)[:20])
    assert (finish_event(), None) == (joined(chunks), failure)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_the_last_event_may_lack_its_empty_line_and_gets_it(end: bytes) -> None:
    text = content_event("a") + finish_event() + b"data: [DONE]" + end
    chunks, failure = scan(text)
    assert None is failure
    assert text + (b"\n" if end.endswith(b"\n") else b"\n\n") == joined(chunks)


def test_what_follows_an_answer_that_stops_early_is_an_event_of_its_own() -> None:
    whole = content_event("a")
    assert [whole, whole] == [joined(scan(whole[:-2])[0]), joined(scan(whole[:-1])[0])]


@pytest.mark.parametrize("start", [b"d", b"data", b": pi", b"event: x\n"])
def test_the_beginning_of_an_event_without_data_is_not_delivered(start: bytes) -> None:
    assert content_event("a") == joined(scan(content_event("a") + start)[0])


def test_a_usage_event_may_be_the_one_that_lacks_its_empty_line() -> None:
    chunks, _ = scan(finish_event() + usage_event(3, 1)[:-2])
    assert [None, Usage(3, 1)] == [chunk.usage for chunk in chunks]
    assert [chunk.usage_only for chunk in chunks] == [False, True]


def test_an_event_after_the_finish_reason_does_not_reopen_the_choice() -> None:
    assert scan(finish_event() + delta())[1] is None


def test_every_choice_must_have_finished() -> None:
    two = delta(content="a", index=0) + delta(content="b", index=1)
    first = two + delta(0, "stop")
    assert failure_of(first).kind == "broken_stream"
    assert scan(first + delta(1, "length"))[1] is None
    assert tokens_of(first) == 2


def test_usage_events_of_several_choices_add_up() -> None:
    """llama-server sends one for each choice, each with the whole prompt."""
    one = delta(0, content="a") + delta(0, "stop") + usage_event(9, 5)
    other = delta(1, content="b") + delta(1, "length") + usage_event(9, 6)
    chunks, _ = scan(delta(0) + delta(1) + one + other + DONE)
    assert [Usage(9, 5), Usage(9, 11)] == [chunk.usage for chunk in chunks if chunk.usage_only]
    assert chunks[-1].completion_tokens == 11


def test_a_repeated_usage_event_of_one_choice_counts_once() -> None:
    chunks, _ = scan(content_event("a") + usage_event(9, 1) + content_event("b") + usage_event(9, 2) + DONE)
    assert [Usage(9, 1), Usage(9, 2)] == [chunk.usage for chunk in chunks if chunk.usage_only]


EVENT_TEXTS = st.one_of(
    st.text(max_size=8).map(content_event),
    st.sampled_from(
        [
            b": ping\n\n",
            b"\n",
            finish_event("length"),
            finish_event().replace(b'":', b'": '),
            usage_event(11, 13),
            content_event("[DONE]").replace(b"\n", b"\r\n"),
            b"event: x\r\ndata:{}\r\n\r\n",
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"content":"'}}]),
            event(choices=[{"index": 1, "text": "b", "finish_reason": None}], usage={"completion_tokens": 3}),
            event(error={"message": "no", "code": 400}),
            b"data: {\n\n",
            DONE,
        ]
    ),
)


@given(st.lists(EVENT_TEXTS, max_size=12), st.booleans(), st.data())
def test_the_partition_into_blocks_changes_nothing(events: list[bytes], cut: bool, data: st.DataObject) -> None:
    text = b"".join(events)
    if cut:
        text = text[: data.draw(st.integers(0, len(text)))]
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    blocks = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    whole, whole_failure = scan(text)
    parts, parts_failure = scan(*blocks)
    bytewise, bytewise_failure = scan(*(text[i : i + 1] for i in range(len(text))))
    assert account(whole, whole_failure) == account(parts, parts_failure) == account(bytewise, bytewise_failure)
    if whole_failure is None:
        assert (text + b"\n\n").startswith(joined(whole))


def account(chunks: list[Chunk], failure: EngineError | None) -> tuple[object, ...]:
    """All that must not depend on where the network cuts."""
    return (
        joined(chunks),
        [chunk.data for chunk in chunks if chunk.usage_only],
        chunks[-1].completion_tokens if chunks else 0,
        [chunk.usage for chunk in chunks if chunk.usage][-1:],
        [chunk.finish_reason for chunk in chunks if chunk.finish_reason][-1:],
        (failure.kind, failure.status, failure.body) if failure else None,
    )
