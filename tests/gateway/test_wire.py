import json

import msgspec
import pytest

from driftsched.core.messages import PROMPT_HEAD_CHARS
from driftsched.core.model import Tier
from driftsched.core.traits import read_traits
from driftsched.gateway.errors import HttpError
from driftsched.gateway.wire import (
    CHAT,
    COMPLETIONS,
    MAX_PEEKED_BYTES,
    MAX_TOKENS,
    Call,
    decode_body,
    read_call,
)

HELLO = {"role": "user", "content": "hello"}


def parse_call(endpoint: str, body: bytes) -> Call:
    return read_call(decode_body(endpoint, body))


def chat_call(*messages: object, **fields: object) -> Call:
    return parse_call(CHAT, msgspec.json.encode({"model": "m", "messages": messages or [HELLO], **fields}))


def completion_call(prompt: object, **fields: object) -> Call:
    return parse_call(COMPLETIONS, msgspec.json.encode({"model": "m", "prompt": prompt, **fields}))


def refusal_of(endpoint: str, body: bytes) -> dict[str, str | None]:
    with pytest.raises(HttpError) as caught:
        parse_call(endpoint, body)
    assert 400 == caught.value.status
    error: dict[str, str | None] = msgspec.json.decode(caught.value.body)["error"]
    assert {"message", "type", "param", "code"} == error.keys()
    assert "invalid_request_error" == error["type"]
    return error


def test_the_smallest_chat_call_is_understood() -> None:
    expected = Call(
        model="m",
        stream=False,
        wants_usage=False,
        prompt="hello",
        prompt_bytes=5,
        max_tokens=None,
        asked_tier=None,
        says_tier=False,
        traits=read_traits([("user", "hello")]),
    )
    assert expected == chat_call()


def test_the_last_user_message_tells_the_kind_and_all_text_counts_for_the_length() -> None:
    call = chat_call(
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "summarize"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    )
    assert "summarize" == call.prompt
    assert len("be brief" + "first" + "answer" + "summarize" + "42") == call.prompt_bytes


def test_the_last_message_tells_the_kind_when_no_user_speaks() -> None:
    assert "be brief" == chat_call({"role": "system", "content": "be brief"}).prompt


def test_parts_of_a_content_are_read_as_their_texts_and_images_have_none() -> None:
    call = chat_call(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "this"},
            ],
        }
    )
    assert ("what is this", 11) == (call.prompt, call.prompt_bytes)


@pytest.mark.parametrize("content", [None, []])
def test_a_message_without_content_has_no_text(content: object) -> None:
    call = chat_call({"role": "user", "content": content})
    assert ("", 0) == (call.prompt, call.prompt_bytes)


@pytest.mark.parametrize(
    ("prompt", "text", "num_bytes"),
    [
        ("once", "once", 4),
        (["once", "upon"], "once upon", 8),
        ([1, 2, 3], "", 12),
        ([[1, 2], [3]], "", 12),
    ],
)
def test_every_form_of_a_prompt_is_understood(prompt: object, text: str, num_bytes: int) -> None:
    call = completion_call(prompt)
    assert (text, num_bytes) == (call.prompt, call.prompt_bytes)


def test_only_the_head_of_a_long_prompt_is_kept_but_all_of_it_is_measured() -> None:
    for call in (completion_call("x" * 100_000), chat_call({"role": "user", "content": "x" * 100_000})):
        assert (PROMPT_HEAD_CHARS, 100_000) == (len(call.prompt), call.prompt_bytes)


def test_prompts_are_measured_in_bytes_of_utf8() -> None:
    assert len("größe 漢字".encode()) == completion_call("größe 漢字").prompt_bytes


def test_max_completion_tokens_wins_over_the_older_max_tokens() -> None:
    assert 7 == chat_call(max_tokens=100, max_completion_tokens=7).max_tokens
    assert 100 == chat_call(max_tokens=100).max_tokens
    assert 100 == completion_call("x", max_tokens=100).max_tokens


@pytest.mark.parametrize("limit", [0, -1, None])
def test_a_limit_that_is_none_is_left_to_the_engine(limit: int | None) -> None:
    assert None is chat_call(max_tokens=limit).max_tokens


def test_null_counts_as_left_out() -> None:
    nulls = ("stream", "stream_options", "max_tokens", "user", "service_tier", "logprobs")
    assert chat_call() == chat_call(**dict.fromkeys(nulls), max_completion_tokens=None)
    assert completion_call("x") == completion_call("x", **dict.fromkeys(nulls))


def test_fields_that_are_none_of_the_gateways_business_are_not_looked_at() -> None:
    foreign = {"ignore_eos": True, "logprobs": None, "repetition_penalty": 1.1, "x_foo": {"deep": [1, {}]}}
    assert chat_call() == chat_call(**foreign)


def test_streaming_and_usage_are_two_wishes() -> None:
    call = chat_call(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert (True, True) == (call.stream, call.wants_usage)
    call = chat_call(stream=True, stream_options={})
    assert (True, False) == (call.stream, call.wants_usage)


@pytest.mark.parametrize(
    ("service_tier", "asked"),
    [
        ("auto", None),
        ("default", None),
        ("scale", None),
        ("flex", Tier.BATCH),
        ("priority", Tier.PREMIUM),
        ("fast", Tier.PREMIUM),
        ("ultrafast", Tier.PREMIUM),
    ],
)
def test_service_tiers_map_to_tiers(service_tier: str, asked: Tier | None) -> None:
    assert asked == chat_call(service_tier=service_tier).asked_tier


def test_an_unknown_service_tier_is_refused_with_the_known_ones() -> None:
    body = msgspec.json.encode({"model": "m", "messages": [HELLO], "service_tier": "gold"})
    error = refusal_of(CHAT, body)
    assert ("service_tier", "invalid_value") == (error["param"], error["code"])
    assert "'gold'" in str(error["message"])
    assert "flex" in str(error["message"])


def test_the_last_of_two_equal_keys_counts_as_it_does_for_the_engine() -> None:
    assert "b" == parse_call(COMPLETIONS, b'{"model":"a","prompt":"x","model":"b"}').model


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [HELLO]}, "model"),
        ({"model": 3, "messages": [HELLO]}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": {}}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ["hello"]}, "messages[0]"),
        ({"model": "m", "messages": [HELLO, {"content": "x"}]}, "messages[1]"),
        ({"model": "m", "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"model": "m", "messages": [{"role": "user", "content": [{"text": 5}]}]}, "messages[0].content[0].text"),
        ({"model": "m", "messages": [HELLO], "stream": "yes"}, "stream"),
        ({"model": "m", "messages": [HELLO], "max_tokens": "5"}, "max_tokens"),
        ({"model": "m", "messages": [HELLO], "max_completion_tokens": []}, "max_completion_tokens"),
        ({"model": "m", "messages": [HELLO], "user": 5}, "user"),
        (
            {"model": "m", "messages": [HELLO], "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
    ],
)
def test_a_field_of_the_wrong_type_is_named(fields: dict[str, object], param: str) -> None:
    error = refusal_of(CHAT, msgspec.json.encode(fields))
    assert param == error["param"]
    assert str(error["message"]).startswith(param)


@pytest.mark.parametrize("prompt", [None, 5, {}, [None], [1.5], [["a"]]])
def test_a_prompt_of_no_known_form_is_refused(prompt: object) -> None:
    error = refusal_of(COMPLETIONS, msgspec.json.encode({"model": "m", "prompt": prompt}))
    assert str(error["param"]).startswith("prompt")


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model":"m",}',
        b'{"model":"m","messages":[{"role":"user"}],"prompt":"x"} {}',
        b'{"model":"m","x":NaN}',
        b"\xff\xfe",
        b'{"model":"\xff"}',
        b'{"model":"\\ud800"}',
        b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_body_that_is_not_json_is_refused(endpoint: str, body: bytes) -> None:
    error = refusal_of(endpoint, body)
    assert (None, "invalid_json") == (error["param"], error["code"])


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"5"])
def test_a_body_that_is_not_an_object_is_refused(body: bytes) -> None:
    assert "object" in str(refusal_of(CHAT, body)["message"])


def test_half_a_surrogate_pair_in_a_text_is_refused() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\ud800 x"}]}'
    assert "invalid_json" == refusal_of(CHAT, body)["code"]


def test_a_whole_surrogate_pair_is_one_character() -> None:
    body = b'{"model":"m","prompt":"\\ud83d\\ude00"}'
    assert ("\N{GRINNING FACE}", 4) == (
        parse_call(COMPLETIONS, body).prompt,
        parse_call(COMPLETIONS, body).prompt_bytes,
    )


def test_the_caller_is_told_from_the_field_user() -> None:
    assert "ann" == decode_body(CHAT, msgspec.json.encode({"model": "m", "messages": [HELLO], "user": "ann"})).user


def test_the_traits_of_a_chat_are_read_from_all_its_messages() -> None:
    traits = chat_call(
        {"role": "system", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
        HELLO,
        {"role": "assistant", "content": "hi, what is it?"},
        {"role": "user", "content": "count the words"},
        tools=[{"type": "function", "function": {"name": "count"}}],
        n=2,
        stop=["."],
        response_format={"type": "json_object"},
    ).traits
    expected = read_traits(
        [("system", "be brief"), ("user", "hello"), ("assistant", "hi, what is it?"), ("user", "count the words")],
        tools=['{"type":"function","function":{"name":"count"}}'],
        choices=2,
        stops=True,
        structured=True,
    )
    assert expected == traits


def test_the_traits_of_a_completion_are_those_of_its_prompt() -> None:
    assert read_traits([("user", "tell me")], choices=3) == completion_call("tell me", n=3).traits
    assert "" == completion_call([1, 2, 3]).traits.template


def session_of(*, header: str = "", tenant: str = "", **fields: object) -> str:
    body = msgspec.json.encode({"model": "m", "messages": [HELLO], **fields})
    return read_call(decode_body(CHAT, body), tenant=tenant, session=header).traits.session


def test_a_session_is_named_by_a_header_by_the_metadata_or_by_the_cache_key_in_this_order() -> None:
    expected = read_traits([("user", "hello")], session="a").session
    assert expected == session_of(metadata={"session_id": "a"})
    assert expected == session_of(prompt_cache_key="a")
    assert expected == session_of(metadata={"session_id": "a", "x": 1}, prompt_cache_key="b")
    assert expected == session_of(header="a", metadata={"session_id": "c"})


def test_a_session_is_the_tenants_own() -> None:
    assert session_of(tenant="ann", prompt_cache_key="1") != session_of(tenant="bob", prompt_cache_key="1")


@pytest.mark.parametrize(
    "field",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"guided_json": {"type": "object"}},
        {"guided_regex": "a|b"},
        {"guided_choice": ["a", "b"]},
        {"guided_grammar": "root ::= x"},
        {"json_schema": {"type": "object"}},
        {"regex": "a|b"},
        {"ebnf": "root ::= x"},
        {"grammar": "root ::= x"},
    ],
)
def test_an_answer_bound_to_a_form_is_structured(field: dict[str, object]) -> None:
    assert chat_call(**field).traits.structured


@pytest.mark.parametrize("empty", [None, [], {}, ""])
def test_what_is_empty_asks_for_nothing(empty: object) -> None:
    fields = ("tools", "n", "stop", "response_format", "guided_json", "structured_outputs", "metadata")
    plain = chat_call().traits
    assert plain == chat_call(**dict.fromkeys(fields, empty), prompt_cache_key=empty).traits
    assert plain == chat_call(response_format={"type": "text"}).traits


@pytest.mark.parametrize(
    "odd", [5, -1, True, "x", [1, "y"], {"type": 5, "session_id": 7}, 1e300, 10**400, "x" * 99]
)
@pytest.mark.parametrize("field", ["tools", "n", "response_format", "metadata", "prompt_cache_key", "stop"])
def test_a_hint_of_an_unknown_form_is_left_for_the_engine_to_judge(field: str, odd: object) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"%b":%b}' % (field.encode(), as_json(odd))
    assert 1 <= parse_call(CHAT, body).traits.choices


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_hints_of_absurd_size_are_not_looked_into() -> None:
    assert 0 == chat_call(tools=[1] * MAX_PEEKED_BYTES).traits.tools
    assert 3 == chat_call(tools=[1] * 3).traits.tools


@pytest.mark.parametrize(
    ("said", "limit"), [("256.0", 256), ("1.5", 1), ("0.5", None), ("0", None), ("-1", None), ("null", None)]
)
def test_a_limit_need_not_be_written_as_a_whole_number(said: str, limit: int | None) -> None:
    body = b'{"model":"m","prompt":"x","max_tokens":%b}' % said.encode()
    assert limit == read_call(decode_body(COMPLETIONS, body)).max_tokens


def test_no_limit_is_beyond_what_can_be_reckoned_with() -> None:
    body = b'{"model":"m","prompt":"x","max_tokens":1%b}' % (b"0" * 400)
    assert MAX_TOKENS == read_call(decode_body(COMPLETIONS, body)).max_tokens
