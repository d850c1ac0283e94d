"""How a call is put to each kind of server, as it goes over the wire."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from driftsched.core.model import Request, Tenant, Tier
from driftsched.core.protocols import EngineKind
from driftsched.engines.dialects import dialect_of
from driftsched.engines.openai import OpenAIEngine
from driftsched.engines.payload import Payload
from driftsched.engines.wire import upstream_body
from support.faulty_upstream import FaultyUpstream, answer, stream

KINDS: list[EngineKind | None] = ["vllm", "sglang", "llama.cpp", "ollama", "generic", None]
CHAT = "/v1/chat/completions"

# What no engine needs to be told, and none refuses: it goes through as it came, to every kind.
STANDARD = {
    "model": "m",
    "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "max_tokens": 7,
    "n": 2,
    "temperature": 0.5,
    "store": True,
    "metadata": {"job": "7"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "reasoning_effort": "low",
    "parallel_tool_calls": False,
    "user": "u",
    "x_unknown": None,
}


def sent(
    kind: EngineKind | None,
    call: dict[str, Any],
    endpoint: str = CHAT,
    *,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the engine of this kind gets for a call, the gateway's own wishes for the stream left out."""
    dialect = dialect_of(kind, drop, rename)
    payload = Payload(endpoint, msgspec.json.encode(call), stream=False, wants_usage=False)
    fields: dict[str, Any] = msgspec.json.decode(upstream_body(payload, dialect=dialect))
    return {name: value for name, value in fields.items() if name not in ("stream", "stream_options")}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_does_not_refuse_reaches_it_as_it_came(kind: EngineKind | None) -> None:
    assert sent(kind, STANDARD) == STANDARD


@pytest.mark.parametrize("kind", ["ollama", "llama.cpp"])
@pytest.mark.parametrize("also", [{}, {"max_tokens": 900}, {"max_tokens": None}])
def test_the_newer_limit_goes_by_its_older_name_where_only_that_is_known(
    kind: EngineKind, also: dict[str, Any]
) -> None:
    assert sent(kind, {"model": "m", "max_completion_tokens": 5, **also}) == {"model": "m", "max_tokens": 5}


@pytest.mark.parametrize("kind", ["ollama", "llama.cpp"])
def test_a_newer_limit_of_null_leaves_the_older_one_alone(kind: EngineKind) -> None:
    assert sent(kind, {"max_completion_tokens": None, "max_tokens": 9}) == {"max_tokens": 9}


@pytest.mark.parametrize("kind", ["vllm", "sglang", "generic", None])
def test_the_newer_limit_stays_where_it_is_known_or_nobody_knows(kind: EngineKind | None) -> None:
    assert sent(kind, {"max_completion_tokens": 5}) == {"max_completion_tokens": 5}


def test_sglang_gets_no_nulls_where_it_wants_numbers() -> None:
    nulls = dict.fromkeys(["n", "frequency_penalty", "presence_penalty", "logprobs", "parallel_tool_calls"])
    assert sent("sglang", {**nulls, "temperature": 0, "stop": None}) == {"temperature": 0, "stop": None}
    assert nulls == sent("vllm", nulls)


@pytest.mark.parametrize(("best_of", "suffix"), [(None, None), (1, "")])
def test_llama_cpp_is_not_told_of_fields_that_ask_for_nothing(best_of: object, suffix: object) -> None:
    call = {"prompt": "p", "best_of": best_of, "suffix": suffix}
    assert sent("llama.cpp", call, "/v1/completions") == {"prompt": "p"}


def test_what_changes_the_answer_is_the_engines_to_refuse() -> None:
    call = {"prompt": "p", "best_of": 2, "suffix": "end", "n": 3}
    assert call == sent("llama.cpp", call, "/v1/completions")


@pytest.mark.parametrize(
    ("kind", "call", "streams"),
    [
        ("llama.cpp", {"tools": [{}], "logprobs": True}, False),
        ("llama.cpp", {"tools": [{}], "logprobs": False}, True),
        ("llama.cpp", {"logprobs": True}, True),
        ("vllm", {"tools": [{}], "logprobs": True}, True),
    ],
)
def test_llama_cpp_is_not_made_to_stream_log_probabilities_beside_tools(
    kind: EngineKind, call: dict[str, Any], streams: bool
) -> None:
    payload = Payload(CHAT, msgspec.json.encode(call), stream=False, wants_usage=False)
    fields = msgspec.json.decode(upstream_body(payload, dialect=dialect_of(kind)))
    assert streams == ("stream" in fields)


def test_an_operator_drops_and_renames_fields_besides() -> None:
    call = {"metadata": {}, "store": True, "max_completion_tokens": 5, "top_k": 3}
    drop, rename = ["metadata", "store"], {"top_k": "k"}
    assert sent("generic", call, drop=drop, rename=rename) == {"max_completion_tokens": 5, "k": 3}
    assert sent("ollama", call, drop=drop, rename=rename) == {"max_tokens": 5, "k": 3}


def test_a_field_that_an_operator_renames_to_itself_stays_as_it_is() -> None:
    stays = {"max_completion_tokens": "max_completion_tokens"}
    assert sent("ollama", {"max_completion_tokens": 5}, rename=stays) == {"max_completion_tokens": 5}
    assert dialect_of("ollama", rename_fields=stays) is None


def test_an_operator_may_drop_what_the_gateway_asks_for_itself() -> None:
    payload = Payload(CHAT, b"{}", stream=True, wants_usage=True)
    assert upstream_body(payload, dialect=dialect_of(None, ["stream_options"])) == b'{"stream":true}'


@pytest.mark.parametrize("kind", ["vllm", "generic", None])
def test_there_is_nothing_to_do_for_an_engine_that_knows_everything(kind: EngineKind | None) -> None:
    assert dialect_of(kind) is None


async def test_a_kind_that_was_found_out_is_spoken_to_as_such() -> None:
    call = Payload(CHAT, b'{"max_completion_tokens":5}', stream=True, wants_usage=False)
    asked = Request("r1", Tenant("acme"), Tier.STANDARD, "test", arrived_at=0.0, payload=call)
    listing = answer(b'{"data":[{"id":"m","owned_by":"llamacpp"}]}')
    async with FaultyUpstream(stream(), routes={"/v1/models": listing}) as upstream:
        engine = OpenAIEngine(upstream.url, drop_fields=["stream_options"])
        await engine.discover()
        async for _ in engine.generate(asked):
            pass
        await engine.close()
    assert b'{"stream":true,"max_tokens":5}' == upstream.requests[-1].body


async def test_a_response_that_is_put_as_a_chat_is_translated_once_more() -> None:
    body = b'{"model":"m","input":"hi","max_output_tokens":5,"metadata":{},"verbosity":"low"}'
    call = Payload("/v1/responses", body, stream=True, wants_usage=False)
    asked = Request("r1", Tenant("acme"), Tier.STANDARD, "test", arrived_at=0.0, payload=call)
    async with FaultyUpstream(stream()) as upstream:
        engine = OpenAIEngine(upstream.url, kind="llama.cpp", rename_fields={"max_tokens": "n_predict"})
        async for _ in engine.generate(asked):
            pass
        await engine.close()
    fields = msgspec.json.decode(upstream.requests[-1].body)
    assert (5, "low") == (fields["n_predict"], fields["verbosity"])
