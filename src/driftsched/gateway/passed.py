"""Calls that are passed through: scheduled as all others, and otherwise left alone.

Read of them is who asks, of which model, and how much; nothing is changed but the model, where it is an alias.
"""

from typing import Final

import msgspec

from driftsched.core.model import NO_TRAITS
from driftsched.core.protocols import Chunk
from driftsched.gateway.answer import Answer
from driftsched.gateway.dispatcher import Turn
from driftsched.gateway.errors import HttpError
from driftsched.gateway.wire import Call, asked_tier

JSON: Final = "application/json"

OTHER_BYTES_PER_TOKEN = 256
"""Of a body that is not JSON: about what a token of sound or of a picture takes in the usual codings."""
_BYTES_PER_TOKEN = 4


class PassedBody(msgspec.Struct):
    """What is read of a call that is passed through."""

    model: str | None = None
    user: str | None = None
    service_tier: str | None = None


_decode = msgspec.json.Decoder(PassedBody).decode


def decode_passed(body: bytes) -> PassedBody:
    """Decode a JSON body. Raises `HttpError` 400."""
    try:
        return _decode(body)
    except msgspec.ValidationError as error:
        raise HttpError(400, f"The body: {error}.", code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None


def is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == JSON


def passed_call(fields: PassedBody, num_bytes: int, content_type: str) -> Call:
    """Understand a call whose body has so many bytes. Raises `HttpError` 400 for a tier that there is not.

    Nothing is generated: it counts the tokens of its prompt, taken from the length of the body.
    """
    return Call(
        model=fields.model or "",
        stream=False,
        wants_usage=False,
        prompt="",
        prompt_bytes=num_bytes if is_json(content_type) else num_bytes * _BYTES_PER_TOKEN // OTHER_BYTES_PER_TOKEN,
        max_tokens=1,  # the least that there is: no estimator then predicts an answer
        asked_tier=asked_tier(fields.service_tier),
        says_tier=False,  # nothing of the answer is changed
        traits=NO_TRAITS,
    )


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

    def _error_event(self, error: HttpError) -> bytes:
        return b"\n\n" + super()._error_event(error)  # what was relayed may have ended anywhere
