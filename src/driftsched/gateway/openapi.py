"""The API of the gateway as an OpenAPI document, made from the same structs that calls are read into.

What an engine understands besides is not listed: it passes through.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect

from driftsched.gateway.wire import (
    ASKED_TIERS,
    CHAT,
    COMPLETIONS,
    RESPONSES,
    ChatBody,
    CompletionBody,
    ResponsesBody,
)

OPENAPI: Final = "/openapi.json"

_JSON = "application/json"
_EVENTS = "text/event-stream"
_TEXT = "text/plain"

_REFUSALS = {
    "400": "The call makes no sense; `param` names what is wrong with it.",
    "401": "There is no key, or it is not known.",
    "404": "The model is not served.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "There is no room for it, or it waited for too long.",
    "4XX": "The engine refused the request.",
    "500": "A fault of the gateway.",
    "502": "The engine failed.",
    "503": "No engine can be reached, they are busy, or the gateway stops.",
    "504": "The engine was silent for too long.",
}
_ANSWERS = {
    CHAT: ("A chat completion.", "chat.completion", "choices"),
    COMPLETIONS: ("A text completion.", "text_completion", "choices"),
    RESPONSES: ("A response; nothing of it is kept.", "response", "output"),
}


def openapi_document(version: str, passthrough: Sequence[str] = ()) -> dict[str, Any]:
    """The document for a gateway of this version that passes these paths through."""
    schemas: dict[str, Any] = {"Error": _ERROR, "Models": _MODELS, "QueuePlace": _QUEUE_PLACE}
    bodies = {CHAT: ChatBody, COMPLETIONS: CompletionBody, RESPONSES: ResponsesBody}
    calls = {path: _call(path, _schema(inspect.type_info(body), schemas)) for path, body in bodies.items()}
    schemas["ChatBody"]["properties"]["messages"]["minItems"] = 1
    schemas["ResponsesBody"]["properties"]["input"]["anyOf"][1]["minItems"] = 1
    schemas["ResponsesBody"]["properties"] |= _WITHOUT_MEMORY
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "driftsched",
            "version": version,
            "description": "OpenAI's API in front of a few engines, and what the queue in between tells.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"key": []}],
        "paths": {**calls, **{path: _passed() for path in passthrough}, **_told()},
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _call(path: str, body: dict[str, Any]) -> dict[str, Any]:
    summary, kind, holds = _ANSWERS[path]
    whole = {
        "type": "object",
        "properties": {"object": {"const": kind}, holds: {"type": "array"}},
        "required": ["object", holds],
    }
    answer = {
        "description": "The answer; as events if `stream` is true.",
        "content": {_JSON: {"schema": whole}, _EVENTS: {"schema": _EVENT}},
    }
    return {
        "post": {
            "summary": summary,
            "parameters": _HEADERS,
            "requestBody": {"required": True, "content": {_JSON: {"schema": body}}},
            "responses": {"200": answer, **_refusals()},
        }
    }


def _passed() -> dict[str, Any]:
    fields = {
        "model": _or_null({"type": "string"}),
        "user": _or_null({"type": "string"}),
        "service_tier": _tier(),
    }
    return {
        "post": {
            "summary": "Passed through to the engine, and back, in its turn.",
            "parameters": _HEADERS,
            "requestBody": {
                "required": True,
                "content": {_JSON: {"schema": {"type": "object", "properties": fields}}},
            },
            "responses": {"200": {"description": "What the engine says.", "content": {"*/*": {}}}, **_refusals()},
        }
    }


def _told() -> dict[str, Any]:
    """What is asked for with GET."""
    operators: dict[str, Any] = {"security": [{"key": []}]}
    request_id = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "description": "The client's own `x-request-id`, or the gateway's.",
    }
    return {
        "/v1/models": _get("The models that are served.", {"$ref": "#/components/schemas/Models"}, "401"),
        "/v1/queue/{id}": {
            "parameters": [request_id],
            **_get(
                "Where a request of the caller's is.", {"$ref": "#/components/schemas/QueuePlace"}, "401", "404"
            ),
        },
        "/health": _get("The process answers.", _STATUS),
        "/healthz": _get("The process answers.", _STATUS),
        "/readyz": _get("An engine answers.", _STATUS, unready=True),
        "/metrics": {
            "get": {
                "summary": "Metrics in Prometheus' text format.",
                "responses": {
                    "200": {"description": "The metrics.", "content": {_TEXT: {"schema": {"type": "string"}}}},
                    "401": _refusal("Only operators may see them."),
                },
            }
        },
        OPENAPI: _get("This document.", {"type": "object"}),
        "/admin/state": _get("What runs, who waits, how the engines are.", {"type": "object"}, "401", **operators),
        "/admin/requests/{id}": {
            "parameters": [request_id],
            **_get("Why a request was served when it was.", {"type": "object"}, "401", "404", **operators),
        },
        **_roster(operators),
    }


def _roster(operators: dict[str, Any]) -> dict[str, Any]:
    """Engines that come and go."""
    listed = {"type": "object", "properties": {"data": {"type": "array", "items": {"type": "object"}}}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}

    def change(summary: str, status: str, *refusals: str) -> dict[str, Any]:
        answer = {"description": summary, "content": {_JSON: {"schema": {"type": "object"}}}}
        refused = {refusal: _refusal(_ROSTER_REFUSALS[refusal]) for refusal in refusals}
        return {"summary": summary, "responses": {status: answer, **refused}, **operators}

    added = {
        "requestBody": {"required": True, "content": {_JSON: {"schema": {"type": "object", "required": ["url"]}}}},
        **change("An engine is added.", "201", "400", "401", "404", "408", "409", "413", "502", "503", "504"),
    }
    return {
        "/admin/engines": {**_get("The engines.", listed, "401", "404", **operators), "post": added},
        "/admin/engines/{name}/drain": {
            "parameters": [name],
            "post": change("The engine is given nothing more.", "200", "401", "404"),
        },
        "/admin/engines/{name}": {
            "parameters": [name],
            "delete": change("The engine is taken out.", "200", "401", "404", "409"),
        },
    }


_ROSTER_REFUSALS = {
    **_REFUSALS,
    "404": "There is no engine of this name, or engines do not come and go here.",
    "409": "The name is taken, the engine serves other models, or it still has requests.",
}


def _get(
    summary: str, schema: dict[str, Any], *refusals: str, unready: bool = False, **more: Any
) -> dict[str, Any]:
    responses = {"200": {"description": summary, "content": {_JSON: {"schema": schema}}}}
    if unready:
        responses["503"] = {"description": "None does.", "content": {_JSON: {"schema": schema}}}
    responses |= {status: _refusal(_GET_REFUSALS[status]) for status in refusals}
    return {"get": {"summary": summary, "responses": responses, **more}}


_GET_REFUSALS = {"401": _REFUSALS["401"], "404": "There is none of this id."}


def _refusals() -> dict[str, Any]:
    return {status: _refusal(why) for status, why in _REFUSALS.items()}


def _refusal(why: str) -> dict[str, Any]:
    return {"description": why, "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}


def _schema(kind: inspect.Type, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of what msgspec reads as `kind`; structs are added to `schemas`."""
    if isinstance(kind, inspect.StructType):
        name = kind.cls.__name__.lstrip("_")
        if name not in schemas:
            properties = {field.encode_name: _schema(field.type, schemas) for field in kind.fields}
            if "service_tier" in properties:
                properties["service_tier"] = _tier()
            required = [field.encode_name for field in kind.fields if field.required]
            schemas[name] = {"type": "object", "properties": properties, "required": required}
        return {"$ref": f"#/components/schemas/{name}"}
    if isinstance(kind, inspect.UnionType):
        return {"anyOf": [_schema(one, schemas) for one in kind.types]}
    if isinstance(kind, inspect.ListType):
        return {"type": "array", "items": _schema(kind.item_type, schemas)}
    return dict(_SIMPLE.get(type(kind), {}))


_SIMPLE: dict[type, dict[str, Any]] = {
    inspect.StrType: {"type": "string"},
    inspect.IntType: {"type": "integer"},
    inspect.FloatType: {"type": "number"},
    inspect.BoolType: {"type": "boolean"},
    inspect.NoneType: {"type": "null"},
}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _tier() -> dict[str, Any]:
    return _or_null({"type": "string", "enum": list(ASKED_TIERS)})


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema}


_SECONDS = {"type": "number", "exclusiveMinimum": 0}
_HEADERS = [
    _header("x-request-id", "The client's own id; a longer one than 128 is replaced.", {"type": "string"}),
    _header("x-session-id", "What the conversation is called.", {"type": "string"}),
    _header("x-driftsched-max-queue-seconds", "Longest time in the queue.", _SECONDS),
    _header("x-driftsched-slo-seconds", "Time by which the answer is hoped for.", _SECONDS),
]
_WITHOUT_MEMORY = {
    "background": {"enum": [False, None]},
    "conversation": {"type": "null"},
    "previous_response_id": {"type": "null"},
}
_EVENT = {
    "description": "One event of the stream.",
    "type": "object",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
    "required": ["data"],
}
_STATUS = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _or_null({"type": "string"}),
                "code": _or_null({"type": "string"}),
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_MODELS = {
    "type": "object",
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "object": {"const": "model"},
                    "created": {"type": "integer"},
                    "owned_by": {"type": "string"},
                },
                "required": ["id", "object", "created", "owned_by"],
            },
        },
    },
    "required": ["object", "data"],
}
_QUEUE_PLACE = {
    "type": "object",
    "properties": {
        "object": {"const": "queue.request"},
        "id": {"type": "string"},
        "status": {"enum": ["held", "waiting", "running", "done"]},
        "position": {"type": "integer", "minimum": 1},
        "waited_seconds": {"type": "number", "minimum": 0},
        "eta_seconds": _or_null({"type": "number"}),
        "eta_low_seconds": _or_null({"type": "number"}),
        "eta_high_seconds": _or_null({"type": "number"}),
    },
    "required": ["object", "id", "status"],
}


def encoded(document: dict[str, Any]) -> bytes:
    """The document as it stands in the repository."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
