"""Calls that are passed through: scheduled as all others, and otherwise left alone.

Read of them is who asks, of which model, and how much; nothing is changed.
"""

import re
from typing import Final

import msgspec

from driftsched.core.model import NO_TRAITS
from driftsched.core.protocols import Chunk
from driftsched.gateway.answer import Answer, Headers
from driftsched.gateway.dispatcher import Turn
from driftsched.gateway.errors import HttpError
from driftsched.gateway.wire import Call, asked_tier

JSON: Final = "application/json"

OTHER_BYTES_PER_TOKEN = 256
"""Of a body that is not JSON: about what a token of sound or of a picture takes in the usual codings."""
_BYTES_PER_TOKEN = 4

MAX_PARTS = 100
"""Of a form."""
MAX_PART_HEAD_BYTES = 1024
"""What stands before the content of a part; of a part with more, the name is not read."""

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_MODEL_PART = re.compile(
    rb'^content-disposition:[^\n]*[; \t]name=(?:"model"|model[ \t]*(?:;|$))', re.IGNORECASE | re.MULTILINE
)


class _PassedBody(msgspec.Struct):
    model: str | None = None
    user: str | None = None
    service_tier: str | None = None


_decode = msgspec.json.Decoder(_PassedBody).decode


def read_passed(body: bytes, content_type: str) -> tuple[Call, str | None]:
    """The call, its model empty if it names none, and its `user`. Raises `HttpError` 400.

    Nothing is generated: it counts the tokens of its prompt, taken from the length of the body.
    """
    if content_type.partition(";")[0].strip().lower() != JSON:
        return _call(
            model_of_form(body, content_type), len(body) * _BYTES_PER_TOKEN // OTHER_BYTES_PER_TOKEN, None
        ), None
    try:
        fields = _decode(body)
    except msgspec.ValidationError as error:
        raise HttpError(400, f"The body: {error}.", code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    return _call(fields.model or "", len(body), fields.service_tier), fields.user


class PassedAnswer(Answer):
    """The engine's answer as it came: whole, or as a stream if it is one of events."""

    async def relay(self, chunk: Chunk, turn: Turn) -> None:
        if chunk.media_type.startswith("text/event-stream"):
            await self._stream(chunk.data, turn)
        else:
            self._document = chunk.data
            self._media_type = chunk.media_type.encode("latin-1", "replace")

    def complete(self) -> None:
        """Whatever came is the answer."""


def _call(model: str, prompt_bytes: int, service_tier: str | None) -> Call:
    return Call(
        model=model,
        stream=False,
        wants_usage=False,
        prompt="",
        prompt_bytes=prompt_bytes,
        max_tokens=1,  # the least that there is: no estimator then predicts an answer
        asked_tier=asked_tier(service_tier),
        says_tier=False,  # nothing of the answer is changed
        traits=NO_TRAITS,
    )


def is_form(headers: Headers) -> bool:
    return headers.get(b"content-type", b"")[:19].lower() == b"multipart/form-data"


def model_of_form(body: bytes, content_type: str) -> str:
    """The field `model` of a form; empty if there is none.

    Raises `HttpError` 400 if it is there twice, or if there are more than `MAX_PARTS`. Time is linear in the body,
    whatever it holds: a search over all of it for a part's name is not.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        return ""
    boundary = (found[1] or found[2]).encode("latin-1", "replace")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, MAX_PARTS + 1)
    if len(parts) > MAX_PARTS:
        raise HttpError(400, f"The form has more than {MAX_PARTS} parts.", code="invalid_value")
    named = [part for part in map(_content_of_model, parts) if part is not None]
    if len(named) > 1:
        raise HttpError(400, "The form names a model more than once.", param="model", code="invalid_value")
    return named[0].decode("utf-8", "replace") if named else ""


def _content_of_model(part: bytes) -> bytes | None:
    """What a part says if it is the field `model`."""
    end = part.find(b"\r\n\r\n", 0, MAX_PART_HEAD_BYTES)
    if end < 0 or not _MODEL_PART.search(part[:end].replace(b"\r\n", b"\n")):
        return None
    return part[end + 4 :]
