"""Refusals of each kind of server, as they go over the wire, and what a client of the gateway sees of them.

The documents have the form that the servers' sources give them (vLLM 0.33, SGLang 0.5.23, llama-server and Ollama
of autumn 2026, and older ones where that is said); the words are ours where they do not matter.
"""

import msgspec
import pytest

from driftsched.engines.failures import refusal, streamed_refusal
from driftsched.engines.sse import EventScanner
from support.faulty_upstream import DONE, content_event

REFUSALS = [
    pytest.param(
        400,
        b'{"error":{"message":"n must be 1","type":"BadRequestError","param":"n","code":400}}',
        (400, "engine_rejected", ("n must be 1", "BadRequestError", "n", "400")),
        id="vllm",
    ),
    pytest.param(
        400,
        b'{"object":"error","message":"no such field","type":"BadRequestError","param":null,"code":400}',
        (400, "engine_rejected", ("no such field", "BadRequestError", None, "400")),
        id="vllm of 2024, sglang",
    ),
    pytest.param(
        503,
        b'{"error":{"message":"too many queued","type":"ServiceUnavailableError","param":null,"code":503}}',
        (503, "engine_busy", ("too many queued", "ServiceUnavailableError", None, "503")),
        id="vllm, full",
    ),
    pytest.param(
        503,
        b'{"object":"error","message":"The request queue is full.","type":"abort","param":null,"code":503}',
        (503, "engine_busy", ("The request queue is full.", "abort", None, "503")),
        id="sglang, full",
    ),
    pytest.param(
        422,
        b'{"detail":[{"loc":["body","messages"],"msg":"Field required"}]}',
        (
            422,
            "engine_rejected",
            ('[{"loc":["body","messages"],"msg":"Field required"}]', "engine_error", None, None),
        ),
        id="fastapi",
    ),
    pytest.param(
        400,
        b'{"error":{"code":400,"message":"\\"prompt\\" is required","type":"invalid_request_error"}}',
        (400, "engine_rejected", ('"prompt" is required', "invalid_request_error", None, "400")),
        id="llama-server",
    ),
    pytest.param(
        503,
        b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
        (503, "engine_unreachable", ("Loading model", "unavailable_error", None, "503")),
        id="llama-server, loading",
    ),
    pytest.param(
        501,
        b'{"error":{"code":501,"message":"start it with --embeddings","type":"not_supported_error"}}',
        (501, "engine_rejected", ("start it with --embeddings", "not_supported_error", None, "501")),
        id="llama-server, not supported",
    ),
    pytest.param(
        500,
        b'{"error":{"code":500,"message":"out of memory","type":"server_error"}}',
        (502, "engine_error", ("out of memory", "server_error", None, "500")),
        id="llama-server, broken",
    ),
    pytest.param(
        404,
        b'{"error":{"message":"model \'x\' not found","type":"not_found_error","param":null,"code":null}}',
        (404, "engine_rejected", ("model 'x' not found", "not_found_error", None, None)),
        id="ollama",
    ),
    pytest.param(
        503,
        b'{"error":"server busy, please try again.  maximum pending requests exceeded"}',
        (
            503,
            "engine_busy",
            ("server busy, please try again.  maximum pending requests exceeded", "engine_error", None, None),
        ),
        id="ollama, full, in its own form",
    ),
]


@pytest.mark.parametrize(("status", "document", "expected"), REFUSALS)
def test_a_refusal_of_every_kind_has_one_form(
    status: int, document: bytes, expected: tuple[int, str, tuple[str | None, ...]]
) -> None:
    error = refusal(status, document)
    assert error.body is not None
    told = msgspec.json.decode(error.body)
    fields = dict(zip(("message", "type", "param", "code"), expected[2], strict=True))
    assert (*expected[:2], {"error": fields}) == (error.status, error.kind, told)


TOO_LONG = [
    b'{"error":{"message":"This model\'s maximum context length is 8192 tokens. However, you requested 9000",'
    b'"type":"BadRequestError","param":null,"code":400}}',
    b'{"object":"error","message":"The decoder prompt (length 9) is longer than the maximum model length of 8.",'
    b'"type":"BadRequestError","param":null,"code":400}',
    b'{"object":"error","message":"The input (9 tokens) is longer than the model\'s context length (8 tokens).",'
    b'"type":"BadRequestError","param":null,"code":400}',
    b'{"error":{"code":400,"message":"request (9 tokens) does not fit","type":"exceed_context_size_error",'
    b'"n_prompt_tokens":9,"n_ctx":8}}',
    b'{"error":{"code":400,"message":"the request exceeds the available context size. try increasing it",'
    b'"type":"invalid_request_error"}}',
]


@pytest.mark.parametrize("document", TOO_LONG)
def test_a_prompt_that_is_too_long_has_openais_code_whoever_says_so(document: bytes) -> None:
    error = refusal(400, document)
    assert error.body is not None
    assert (400, "engine_rejected") == (error.status, error.kind)
    assert "context_length_exceeded" == msgspec.json.decode(error.body)["error"]["code"]


def test_the_code_is_not_given_to_an_engine_that_broke() -> None:
    error = refusal(500, TOO_LONG[0])
    assert error.body is not None
    assert "400" == msgspec.json.decode(error.body)["error"]["code"]


def test_an_engine_that_is_full_in_the_middle_of_a_stream_is_told_by_its_code() -> None:
    document = b'{"error":{"object":"error","message":"full","type":"abort","param":null,"code":503}}'
    error = streamed_refusal(document)
    assert (503, "engine_busy") == (error.status, error.kind)


ERROR_FIELD = (
    b'error: {"code":400,"message":"exceeds the available context size","type":"invalid_request_error"}\n\n'
)


def test_the_error_field_of_an_older_llama_server_is_a_failure_and_no_comment() -> None:
    scanner = EventScanner()
    chunks = scanner.feed(content_event("a") + ERROR_FIELD + DONE)
    assert [content_event("a")] == [chunk.data for chunk in chunks]
    failure = scanner.failure
    assert failure is not None
    assert (400, "engine_rejected") == (failure.status, failure.kind)
    assert failure.body is not None
    assert "context_length_exceeded" == msgspec.json.decode(failure.body)["error"]["code"]


def test_an_error_field_that_makes_no_sense_is_a_failure_too() -> None:
    scanner = EventScanner()
    scanner.feed(b"error: out of order\n\n")
    assert scanner.failure is not None
    assert (502, "engine_error") == (scanner.failure.status, scanner.failure.kind)
