"""The body of a call, as a whole."""

from collections.abc import Callable

from driftsched.gateway.answer import Receive
from driftsched.gateway.errors import ClientLeftError, HttpError


async def whole_body(receive: Receive, max_bytes: int, too_large: Callable[[], HttpError]) -> bytes:
    """Raises `too_large()` beyond `max_bytes`, and `ClientLeftError`. The caller bounds how long it may take."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise too_large()
        more = message.get("more_body", False)
    return bytes(body)
