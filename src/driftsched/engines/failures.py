"""What an engine's refusal means: one status, one kind and one error document, whoever wrote the server.

vLLM nests its error and numbers the code, SGLang sends it flat, llama-server adds fields, Ollama sends a bare
string, FastAPI calls it `detail`. Clients of the gateway see the OpenAI form only, and one code where they look for
one: a prompt that is too long.
"""

from typing import Any

import msgspec

from driftsched.core.errors import EngineError


def refusal(status: int, document: bytes, *, retry_after: str | None = None) -> EngineError:
    """The error for an HTTP answer of `status` (anything but 200) whose body is `document`.

    `retry_after` is kept only where it says when a busy engine wants to be asked again (429, 503).
    """
    detail = _detail(document)
    status_for_client, kind = _meaning(status)
    if detail and detail["type"] == _LOADING and kind == "engine_busy":
        kind = "engine_unreachable"  # it has just been started, and answers nobody yet
    if detail and kind == "engine_rejected" and _is_too_long(detail):
        detail["code"] = "context_length_exceeded"
    if kind == "engine_auth":
        return EngineError(
            status_for_client, kind, f"the engine answered {status}: check the api_key configured for it"
        )
    if kind == "garbage":
        return EngineError(
            status_for_client, kind, f"the engine answered {status}: check the url configured for it"
        )
    return EngineError(
        status_for_client,
        kind,
        f"the engine answered {status}: {detail['message']}" if detail else f"the engine answered {status}",
        body=msgspec.json.encode({"error": detail}) if detail else None,
        retry_after=retry_after if kind == "engine_busy" else None,
    )


def streamed_refusal(document: bytes) -> EngineError:
    """The error for an error document inside a 200 answer: its own numeric code counts as the status, else 500."""
    detail = _detail(document)
    code = detail["code"] if detail else None
    status = int(code) if code is not None and code.isdecimal() and 400 <= int(code) <= 599 else 500
    return refusal(status, document)


def _meaning(status: int) -> tuple[int, str]:
    """Status for the client and kind of failure, by the engine's own status."""
    if status in (401, 403, 407):  # our key for the engine is wrong, not the client's key for us
        return 502, "engine_auth"
    if status in (429, 503):
        return status, "engine_busy"
    if status == 504:
        return 504, "engine_timeout"
    if 400 <= status <= 499 or status == 501:  # not implemented: the call is at fault, not the engine
        return status, "engine_rejected"
    return 502, "engine_error" if status >= 500 else "garbage"


def _detail(document: bytes) -> dict[str, str | None] | None:
    """Message, type, param and code of an error document in any of the known forms; None if it has no message."""
    try:
        fields = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    error = fields.get("error") or fields
    if isinstance(error, str):
        error = {"message": error, "type": fields.get("error_type")}
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else None
    if not message:
        return None
    return {
        "message": _text(message),
        "type": _text(error.get("type")) or "engine_error",
        "param": _text(error.get("param")),
        "code": _text(error.get("code")),
    }


_LOADING = "unavailable_error"
"""What llama-server calls every error while it loads its model."""
_TOO_LONG = ("maximum context length", "model's context length", "maximum model length", "context size")
"""How servers say that prompt and answer do not fit: vLLM and OpenAI; SGLang; vLLM; llama-server."""


def _is_too_long(detail: dict[str, str | None]) -> bool:
    message = detail["message"] or ""
    return detail["type"] == "exceed_context_size_error" or any(words in message for words in _TOO_LONG)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
