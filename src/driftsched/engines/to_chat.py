"""A call of the Responses API as one of chat completions, for an engine that knows only those.

What has no counterpart there is refused by name: an answer that leaves out what was asked for helps nobody. Fields
that the Responses API does not know reach the engine as they are.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from driftsched.core.errors import EngineError

_DROPPED = frozenset(
    {"background", "conversation", "include", "instructions", "max_tool_calls", "metadata", "previous_response_id"}
    | {"prompt_cache_retention", "service_tier", "store", "stream", "stream_options", "truncation"}
)
"""Fields that mean something to the Responses API only, or that the gateway has dealt with."""


def chat_body(body: bytes) -> bytes:
    """The body of the chat completion, not yet asked to stream. Raises `EngineError` (400) naming the field."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused("The body", f"cannot be put to this engine: {error}") from error
    call = {name: value for name, value in fields.items() if name not in _DROPPED}
    call["messages"] = _messages(fields.get("instructions"), call.pop("input", None))
    for name, rename in _RENAMED.items():
        if call.get(name) is not None:
            rename(call, call.pop(name))
        else:
            call.pop(name, None)
    return msgspec.json.encode(call)


def _limit(call: dict[str, Any], limit: Any) -> None:
    call["max_tokens"] = limit  # all engines know this name


def _tools(call: dict[str, Any], tools: Any) -> None:
    if tools:
        call["tools"] = [_tool(number, tool) for number, tool in enumerate(_list("tools", tools))]


def _tool(number: int, tool: Any) -> dict[str, Any]:
    where = f"tools[{number}]"
    kind = _object(where, tool).get("type")
    if kind != "function":
        raise _unknown(f"{where}.type", kind, "only functions can be offered")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(call: dict[str, Any], choice: Any) -> None:
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise _unknown("tool_choice.type", choice.get("type"), "only a function can be chosen")
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    call["tool_choice"] = choice


def _text(call: dict[str, Any], text: Any) -> None:
    text = _object("text", text)
    if text.get("verbosity") is not None:
        call["verbosity"] = text["verbosity"]
    shape = _object("text.format", text.get("format") or {})
    if shape.get("type", "text") == "json_schema":
        schema = {name: value for name, value in shape.items() if name != "type"}
        call["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif shape.get("type", "text") != "text":
        call["response_format"] = shape


def _reasoning(call: dict[str, Any], reasoning: Any) -> None:
    effort = _object("reasoning", reasoning).get("effort")
    if effort is not None:
        call["reasoning_effort"] = effort


def _prompt(_call: dict[str, Any], _prompt: Any) -> None:
    raise _refused("prompt", "templates of prompts are not kept here: send the text as input")


def _log_probabilities(_call: dict[str, Any], _number: Any) -> None:
    raise _refused("top_logprobs", "this engine's log-probabilities cannot be told in a response")


_RENAMED: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "max_output_tokens": _limit,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "text": _text,
    "reasoning": _reasoning,
    "prompt": _prompt,
    "top_logprobs": _log_probabilities,
}


def _messages(instructions: Any, given: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for number, item in enumerate(_list("input", given)):
        where = f"input[{number}]"
        item = _object(where, item)
        kind = item.get("type") or "message"
        if kind == "message":
            messages.append(_message(where, item))
        elif kind == "function_call":
            _assistant(messages).setdefault("tool_calls", []).append(_function_call(item))
        elif kind == "function_call_output":
            output = _content(f"{where}.output", item.get("output"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind != "reasoning":  # a model is not shown its earlier thoughts: templates of chats leave them out
            raise _unknown(f"{where}.type", kind, "use messages, function calls and their outputs")
    return messages


def _message(where: str, item: dict[str, Any]) -> dict[str, Any]:
    role = item.get("role")
    content = _content(f"{where}.content", item.get("content"))
    return {"role": "system" if role == "developer" else role, "content": content}  # few templates know developers


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that function calls belong to: the assistant's last, if nobody has spoken since."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _function_call(item: dict[str, Any]) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _content(where: str, content: Any) -> Any:
    """A text, or its parts; a list of nothing but text becomes one text, which every template understands."""
    if content is None or isinstance(content, str):
        return content
    parts = [_part(f"{where}[{number}]", part) for number, part in enumerate(_list(where, content))]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return "".join(texts) if len(texts) == len(parts) and all(isinstance(t, str) for t in texts) else parts


def _part(where: str, part: Any) -> dict[str, Any]:
    part = _object(where, part)
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text", "")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal", "")}
    if kind == "input_image":
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part.get("image_url"), **detail}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    if kind == "input_file":
        return {"type": "file", "file": {name: value for name, value in part.items() if name != "type"}}
    raise _unknown(f"{where}.type", kind, "use text, images, audio or files")


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refused(where, "must be an object")
    return value


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _refused(where, "must be a list")
    return value


def _unknown(where: str, kind: Any, remedy: str) -> EngineError:
    return _refused(where, f"{kind!r} cannot be put to this engine: {remedy}")


def _refused(where: str, problem: str) -> EngineError:
    message = f"{where}: {problem}."
    error = {"message": message, "type": "invalid_request_error", "param": where, "code": "unsupported_value"}
    return EngineError(400, "engine_rejected", message, body=msgspec.json.encode({"error": error}))
