"""W3C Trace Context, as far as a scheduler carries it: which trace a request belongs to."""

import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


@dataclass(frozen=True, slots=True)
class Span:
    """What is done for one request, in the trace of whoever asked."""

    trace_id: str
    """32 lower-case hex digits, not all 0."""
    span_id: str
    """16 lower-case hex digits, not all 0."""
    parent_id: str
    """That of the caller's span; empty if the trace begins here."""
    sampled: bool
    """It is recorded: by the caller's word if there is a caller."""

    @property
    def traceparent(self) -> str:
        """The header by which whoever is called next belongs to it."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"


def parse_traceparent(header: str) -> Span | None:
    """The caller's span; None if the header is not a valid one, which begins a trace anew.

    Source: W3C Trace Context, level 1, sections 3.2 and 4.3; later versions are read as far as this one goes.
    """
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Span(trace_id, span_id, "", bool(int(flags, 16) & _SAMPLED))
