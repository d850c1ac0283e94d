"""What the gateway hands an engine beside the facts the scheduler reads."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Payload:
    """One client call as it came in: carried by `Request.payload`, read by engines."""

    endpoint: str
    """Path below the server's root."""
    body: bytes
    """What the client sent, unchanged: a JSON object, unless it is passed."""
    stream: bool
    """The client asked for server-sent events."""
    wants_usage: bool
    """The client asked for the usage chunk of a stream (`stream_options.include_usage`)."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers to send upstream, already filtered: tracing, never credentials of the gateway."""
    passed: bool = False
    """Nothing is generated, and nobody here reads it: body and answer go through as they are."""
    content_type: str = "application/json"
    """Of the body."""
