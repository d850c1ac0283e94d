import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.errors import EngineError
from driftsched.engines.sse import begins_document
from driftsched.gateway.assembly import MAX_UNREAD_BYTES, Assembler, as_stream

HEAD = {"id": "c-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
DONE = b"data: [DONE]\n\n"


def event(fields: dict[str, Any], head: dict[str, Any] = HEAD) -> bytes:
    return b"data: " + msgspec.json.encode({**head, **fields}) + b"\n\n"


def delta(said: dict[str, Any], index: int = 0, finish_reason: str | None = None, **fields: Any) -> bytes:
    return event({"choices": [{"index": index, "delta": said, "finish_reason": finish_reason, **fields}]})


def text_piece(text: str, finish_reason: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, **fields}
    return event({"choices": [choice]}, {**HEAD, "object": "text_completion"})


def assembled(*blocks: bytes) -> dict[str, Any]:
    assembler = Assembler()
    for block in blocks:
        assembler.feed(block)
    document: dict[str, Any] = msgspec.json.decode(assembler.document())
    return document


def message_of(*blocks: bytes) -> dict[str, Any]:
    message: dict[str, Any] = assembled(*blocks)["choices"][0]["message"]
    return message


def test_a_chat_stream_becomes_the_document_of_a_chat_completion() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    document = assembled(
        delta({"role": "assistant", "content": ""}),
        delta({"content": "Hello"}),
        delta({"content": " world"}),
        delta({}, finish_reason="stop"),
        event({"choices": [], "usage": usage}),
        DONE,
    )
    expected = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello world"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
    }
    assert expected == document


def test_a_text_stream_becomes_the_document_of_a_completion() -> None:
    document = assembled(text_piece("Once"), text_piece(" upon"), text_piece("", "length"))
    assert "text_completion" == document["object"]
    assert {"index": 0, "text": "Once upon", "logprobs": None, "finish_reason": "length"} == document["choices"][0]


texts = st.lists(st.text(max_size=12), max_size=12)


def test_a_long_answer_is_read_as_it_comes_and_nothing_of_it_is_lost() -> None:
    texts = [f"{number} " for number in range(2_000)]
    pieces = [delta({"content": text}) for text in texts]
    assert sum(map(len, pieces)) > 3 * MAX_UNREAD_BYTES
    assert "".join(texts) == message_of(*pieces, DONE)["content"]


@given(pieces=texts, spaces=st.booleans(), roles=st.booleans(), blocks=st.lists(st.integers(1, 5), max_size=12))
def test_whatever_pieces_a_text_is_split_into_it_is_put_together_again(
    pieces: list[str], spaces: bool, roles: bool, blocks: list[int]
) -> None:
    role = {"role": "assistant"} if roles else {}
    events = [delta({"role": "assistant", "content": ""})]
    events += [delta({**role, "content": piece}) for piece in pieces]
    events += [delta({}, finish_reason="stop"), DONE]
    if spaces:  # as servers write that use Python's json module
        events = [b"data: " + json.dumps(json.loads(e[6:])).encode() + b"\n\n" for e in events[:-1]] + [DONE]
    joined = []
    while events:
        size = blocks.pop() if blocks else 1
        joined.append(b"".join(events[:size]))
        del events[:size]
    message = message_of(*joined)
    assert {"role": "assistant", "content": "".join(pieces)} == message


@given(texts=st.lists(st.tuples(st.integers(0, 2), st.text(max_size=8)), max_size=30))
def test_several_choices_are_kept_apart_however_they_are_mixed(texts: list[tuple[int, str]]) -> None:
    events = [delta({"role": "assistant", "content": ""}, index) for index in (2, 0, 1)]
    events += [delta({"content": text}, index) for index, text in texts]
    choices = assembled(*events)["choices"]
    assert [0, 1, 2] == [choice["index"] for choice in choices]
    for choice in choices:
        expected = "".join(text for index, text in texts if index == choice["index"])
        assert expected == choice["message"]["content"]


@given(
    words=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=10),
    kinds=st.lists(st.sampled_from(["content", "reasoning_content"]), min_size=10, max_size=10),
)
def test_reasoning_and_content_are_two_texts(words: list[str], kinds: list[str]) -> None:
    said = list(zip(kinds, words, strict=False))
    message = message_of(delta({"role": "assistant"}), *(delta({kind: word}) for kind, word in said))
    assert "".join(word for kind, word in said if kind == "content") == (message["content"] or "")
    assert "".join(word for kind, word in said if kind != "content") == message.get("reasoning_content", "")


def test_text_that_looks_like_a_chunk_is_text() -> None:
    pieces = ['"content":"x"', '{"choices":[', "data: [DONE]", "\\", '"', "\n\n", ',"usage":null']
    events = [delta({"role": "assistant", "content": ""}), *(delta({"content": piece}) for piece in pieces)]
    assert "".join(pieces) == message_of(*events)["content"]


def test_what_differs_between_chunks_is_not_lost_to_the_ordinary_chunk() -> None:
    document = assembled(
        delta({"content": "a"}),
        delta({"content": "b"}),
        event({"choices": [{"index": 0, "delta": {"content": "c"}, "finish_reason": None}], "timings": {"n": 3}}),
        delta({"content": "d"}, finish_reason="length"),
    )
    assert "abcd" == document["choices"][0]["message"]["content"]
    assert "length" == document["choices"][0]["finish_reason"]
    assert {"n": 3} == document["timings"]


def test_tool_calls_are_put_together_by_their_index() -> None:
    def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
        name = first.pop("name", None)
        function = {"arguments": arguments, **({"name": name} if name else {})}
        return {"tool_calls": [{"index": index, **first, "function": function}]}

    message = message_of(
        delta({"role": "assistant", "content": None}),
        delta(call(0, "", id="call_a", type="function", name="weather")),
        delta(call(0, '{"city":')),
        delta(call(1, "", id="call_b", type="function", name="time")),
        delta(call(1, "{}")),
        delta(call(0, '"Oslo"}')),
        delta({}, finish_reason="tool_calls"),
    )
    expected = [
        {"id": "call_a", "type": "function", "function": {"arguments": '{"city":"Oslo"}', "name": "weather"}},
        {"id": "call_b", "type": "function", "function": {"arguments": "{}", "name": "time"}},
    ]
    assert expected == message["tool_calls"]
    assert None is message["content"]


def test_a_tool_call_that_repeats_its_id_and_name_is_still_one_call() -> None:
    piece = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": "1"}}
    message = message_of(*(delta({"tool_calls": [piece]}) for _ in range(3)))
    assert [{"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "111"}}] == message[
        "tool_calls"
    ]


def test_log_probabilities_of_a_chat_are_appended() -> None:
    def probability(token: str) -> dict[str, Any]:
        return {"token": token, "logprob": -0.1, "bytes": [1], "top_logprobs": []}

    document = assembled(
        delta({"content": "a"}, logprobs={"content": [probability("a")]}),
        delta({"content": "bc"}, logprobs={"content": [probability("b"), probability("c")]}),
        delta({}, finish_reason="stop", logprobs=None),
    )
    assert {"content": [probability(t) for t in "abc"]} == document["choices"][0]["logprobs"]


def test_equal_log_probabilities_of_two_pieces_count_twice() -> None:
    piece = delta({"content": "ha"}, logprobs={"content": [{"token": "ha", "logprob": -0.1}]})
    choice = assembled(piece, piece, piece)["choices"][0]
    assert ("hahaha", 3) == (choice["message"]["content"], len(choice["logprobs"]["content"]))


def test_log_probabilities_of_a_completion_are_appended() -> None:
    def probabilities(token: str, at: int) -> dict[str, Any]:
        return {"tokens": [token], "token_logprobs": [-0.5], "top_logprobs": [{token: -0.5}], "text_offset": [at]}

    document = assembled(
        text_piece("a", logprobs=probabilities("a", 0)), text_piece("b", "stop", logprobs=probabilities("b", 1))
    )
    expected = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}],
        "text_offset": [0, 1],
    }
    assert expected == document["choices"][0]["logprobs"]


def test_the_last_stated_usage_counts_and_is_not_added_up() -> None:
    def usage(tokens: int) -> dict[str, Any]:
        return {"completion_tokens": tokens, "completion_tokens_details": {"reasoning_tokens": tokens}}

    document = assembled(
        event({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": usage(1)}),
        event({"choices": [{"index": 0, "delta": {"content": "b"}}], "usage": usage(2)}),
        event({"choices": [], "usage": usage(2)}),
    )
    assert usage(2) == document["usage"]


def test_usage_of_several_choices_that_is_stated_for_each_is_added_up() -> None:
    """As llama-server does, each with the whole prompt."""
    document = assembled(
        event({"choices": [{"index": 0, "delta": {"content": "a"}}]}),
        event({"choices": [{"index": 1, "delta": {"content": "b"}}]}),
        event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}}),
        event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}}),
    )
    assert {"prompt_tokens": 9, "completion_tokens": 11, "total_tokens": 20} == document["usage"]


def test_a_byte_order_mark_hides_no_text() -> None:
    document = assembled(b"\xef\xbb\xbf" + event({"choices": [{"index": 0, "delta": {"content": "a"}}]}))
    assert "a" == document["choices"][0]["message"]["content"]


def test_fields_nobody_knows_are_kept() -> None:
    document = assembled(
        event(
            {"choices": [{"index": 0, "delta": {"content": "a", "odd": "x"}, "stop_reason": None}], "made_by": "e"}
        ),
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 7}], "list": [1]}),
    )
    choice = document["choices"][0]
    assert ("x", 7) == (choice["message"]["odd"], choice["stop_reason"])
    assert ("e", [1]) == (document["made_by"], document["list"])


@pytest.mark.parametrize(
    "noise", [b": ping\n\n", b"event: ping\ndata: {}\n\n", b"data: 5\n\n", b"data: []\n\n", b"\n"]
)
def test_what_is_no_part_of_an_answer_is_passed_over(noise: bytes) -> None:
    assert {"role": "assistant", "content": "a"} == message_of(noise, delta({"content": "a"}), noise)


@pytest.mark.parametrize(
    "shape",
    [
        b"data: {\n\n",
        b'data: {"choices":[5]}\n\n',
        b'data: {"choices":[{"delta":5}]}\n\n',
        b'data: {"choices":[{"delta":{"content":5}}]}\n\n' * 2,
        b'data: {"choices":[{"delta":{"tool_calls":{}}}]}\n\ndata: {"choices":[{"delta":{"tool_calls":[1]}}]}\n\n',
        b"data: " + b'{"choices":[' * 5000 + b"\n\n",
    ],
)
def test_an_event_of_a_shape_that_makes_no_sense_is_the_engines_failure(shape: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        assembled(shape)
    assert (502, "garbage") == (caught.value.status, caught.value.kind)


def test_a_stream_that_says_nothing_is_no_answer() -> None:
    with pytest.raises(EngineError) as caught:
        assembled(DONE)
    assert (502, "broken_stream") == (caught.value.status, caught.value.kind)


DOCUMENT = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 5,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello",
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


def test_a_document_turned_into_a_stream_and_back_is_the_same_document() -> None:
    stream = as_stream(msgspec.json.encode(DOCUMENT), wants_usage=True)
    assert DOCUMENT == assembled(stream)
    assert stream.endswith(DONE)


def test_a_document_turned_into_a_stream_shows_usage_only_to_who_asked() -> None:
    assert b'"usage"' not in as_stream(msgspec.json.encode(DOCUMENT), wants_usage=False)


@pytest.mark.parametrize("document", [b"{", b'{"choices":[1]}', b'{"choices":5}', b"[1]"])
def test_what_is_no_answer_cannot_be_turned_into_a_stream(document: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        as_stream(document, wants_usage=True)
    assert (502, "garbage") == (caught.value.status, caught.value.kind)


def test_a_text_document_turned_into_a_stream_and_back_is_the_same_document() -> None:
    choice = {"index": 0, "text": "Once", "logprobs": None, "finish_reason": "length"}
    document = {"id": "c", "object": "text_completion", "choices": [choice], "usage": {"completion_tokens": 1}}
    assert document == assembled(as_stream(msgspec.json.encode(document), wants_usage=True))


def test_documents_and_streams_are_told_apart() -> None:
    assert begins_document(b'{"choices":[]}')
    assert begins_document(b'\n {"choices":[]}')
    assert not begins_document(b'data: {"choices":[]}\n\n')
    assert not begins_document(b": ping\n\n")
    assert not begins_document(b"event: x\ndata: {}\n\n")
