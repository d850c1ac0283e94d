"""What clients of the Responses API see: events that are numbered, and one that says that the call waits."""

import time
from itertools import pairwise
from typing import Any

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Tier
from driftsched.core.protocols import Chunk
from driftsched.engines.payload import Payload
from driftsched.engines.responses import events_of, fields_to_echo, response_document, response_event
from driftsched.engines.sse import EVENT_END, begins_document, event_data
from driftsched.gateway.answer import Answer
from driftsched.gateway.dispatcher import Turn
from driftsched.gateway.errors import HttpError


class ResponsesAnswer(Answer):
    """The response to one call, as events or whole.

    The engine's events are relayed as they are, unless the gateway has sent some of its own while the call waited:
    then the engine's are numbered after those, and speak of the response that those have named.
    """

    _response_id: str | None = None
    """Of the response that was announced while it waited."""
    _number = 0
    """Of the next event, if the gateway has sent any."""
    _last = b""
    """What was relayed last."""

    def _sign_of_life(self, turn: Turn) -> bytes:
        if self._response_id is not None:
            return super()._sign_of_life(turn)
        request = turn.ticket.request
        self._response_id = f"resp_{request.id.replace('-', '')}"
        fields = fields_to_echo(request.payload.body) if isinstance(request.payload, Payload) else {}
        queued = response_document(fields, self._response_id, int(time.time()), "queued")
        self._number = 2
        return response_event("response.created", 0, response=queued) + response_event(
            "response.queued", 1, response=queued
        )

    def _shape(self, chunk: Chunk) -> bytes:
        data = events_of(msgspec.json.decode(chunk.data)) if begins_document(chunk.data) else chunk.data
        if self._response_id is not None:
            data = self._renumbered(data)
        self._last = data or self._last
        return data

    def _with_tier(self, data: bytes, tier: Tier) -> bytes:  # noqa: ARG002
        """The headers say it: of events, several hold the whole response."""
        return data

    def _gather(self, chunk: Chunk) -> None:
        if begins_document(chunk.data):
            self._document = chunk.data
        elif chunk.finish_reason is not None:  # the last event holds the whole response
            for text in _events(chunk.data):
                response = _decoded(text).get("response")
                self._document = msgspec.json.encode(response) if response else self._document

    def _whole(self) -> bytes:
        raise EngineError(502, "broken_stream", "the engine ended its response without saying what it is")

    def _error_event(self, error: HttpError) -> bytes:
        """In the form of the API's own event, and in the one that makes its clients raise."""
        detail = msgspec.json.decode(error.body)["error"]
        flat = {name: detail[name] for name in ("code", "message", "param")}
        return response_event("error", self._next_number(), **flat, error=detail)

    def _next_number(self) -> int:
        said = [_decoded(text).get("sequence_number") for text in _events(self._last)]
        return max([self._number, *(number + 1 for number in said if isinstance(number, int))])

    def _renumbered(self, data: bytes) -> bytes:
        """The engine's events as what comes after ours. The response was created already."""
        events = []
        for text in _events(data):
            event = _decoded(text)
            if event.get("type") == "response.created":
                continue
            if "type" not in event:  # a comment, or the [DONE] of an engine that says one
                events.append(text)
                continue
            if isinstance(event.get("response"), dict):
                event["response"]["id"] = self._response_id
            event.pop("sequence_number", None)
            events.append(response_event(event.pop("type"), self._number, **event))
            self._number += 1
        return b"".join(events)


def _events(data: bytes) -> list[bytes]:
    """Whole events, each with the empty line that ends it."""
    ends = [0, *(match.end() for match in EVENT_END.finditer(data))]
    return [data[start:end] for start, end in pairwise(ends)]


def _decoded(text: bytes) -> dict[str, Any]:
    """The JSON object of an event; empty if it holds none."""
    try:
        event = msgspec.json.decode(event_data(text))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}
