"""Server-sent events as engines stream them: cut into chunks, counted, and relayed without touching a byte."""

import re

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.model import Usage
from driftsched.core.protocols import Chunk
from driftsched.engines.failures import streamed_refusal
from driftsched.engines.wire import Answer, decode_answer, document_chunk

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event larger than this is not held in memory: the stream fails."""

RUN_BYTES = 16 * 1024
"""Of events that are alike, looked at together: however they alternate with others, the time stays linear."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""A stream may begin with one: the specification says so, and .NET writes it unless told otherwise."""

# An event ends with an empty line; the "\r" of a "\r\n" before it belongs to the line it closes. Lone "\r" line
# ends, which the specification allows too, are sent by no engine and are not recognised.
EVENT_END = re.compile(rb"\n\r?\n")

_DONE = Answer()
_OPAQUE = Answer()  # a comment, or an event of a shape unknown to us: relayed, and nothing read from it
_FIELD_OF_ERROR = b"error:"  # instead of `data:`: llama-server until September 2025 (ggml-org/llama.cpp#16109)
_FAILED = Answer(error=True)

_find_contents = re.compile(
    rb'("(?:content|text|reasoning_content|reasoning)": ?)("(?:[^"\\]++|\\.)*+")',
).findall
_decode_texts = msgspec.json.Decoder(list[str]).decode


class Alike:
    """Knows the events of a stream that differ from a remembered one in nothing but a piece of text.

    Inside a JSON string a quote has a backslash before it and a line never ends: so neither what stands before the
    text nor what stands behind it can be part of it.
    """

    def __init__(self) -> None:
        self._before = b"\n"  # no event starts with it
        self._behind = b""
        self._between = b"\n"

    def remember(self, event: bytes) -> None:
        """An event on one line that adds a text to an answer; forgotten for the next one."""
        found = _find_contents(event)
        if len(found) != 1 or not event.startswith(b"data:") or event.find(b"\n") != len(event) - 2:
            return
        key, text = found[0]
        start = event.index(key + text) + len(key)
        self._before, self._behind = event[:start], event[start + len(text) :]
        self._between = self._behind + self._before

    def take(self, data: bytes, start: int) -> tuple[list[str], int]:
        """The texts of the run of such events that begins at `start`, and where it ends; nothing if none does.

        A run that is longer than `RUN_BYTES` ends there.
        """
        before, behind = self._before, self._behind
        if not data.startswith(before, start):
            return [], start
        first = start + len(before)
        window = data[first : first + RUN_BYTES]
        *written, last = window.split(self._between)  # what is in between holds a line's end, as no text does
        end = first + len(window) - len(last) - len(before)
        text_end = last.find(b"\n") + 2 - len(behind)
        if text_end > 0 and last.startswith(behind, text_end):
            written.append(last[:text_end])
            end += len(before) + text_end + len(behind)
        try:
            texts = _decode_texts(b"[" + b",".join(written) + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return [], start
        return (texts, end) if len(texts) == len(written) else ([], start)


class EventScanner:
    """Cuts the bytes of one answer into chunks of whole events, and keeps its accounts.

    All chunks joined give the bytes fed (but see `finish`), whatever the blocks they came in: a run of events is
    one chunk, but an event which carries usage and nothing else is a chunk of its own (`Chunk.usage_only`). Every
    choice that adds text, reasoning or a piece of a tool call counts as one completion token until the engine
    states its usage.

    What goes wrong is kept in `failure` rather than raised, because the chunks before it are still good: deliver
    what `feed` or `finish` returned, then raise `failure` if it is set. Nothing is read after it.
    """

    def __init__(self) -> None:
        self.failure: EngineError | None = None
        self.done = False
        """The engine has said `[DONE]`."""
        self._tail = b""
        self._completion_tokens = 0
        self._usage: Usage | None = None  # of the events not yet in a chunk; so is the finish reason
        self._finish_reason: str | None = None
        self._account_so_far: Usage | None = None  # the sum of the events that carry usage and nothing else
        self._finished: dict[int, bool] = {}  # by index of the choice
        self._alike = Alike()

    @property
    def completion_tokens(self) -> int:
        """Counted so far, or stated by the engine."""
        return self._completion_tokens

    @property
    def complete(self) -> bool:
        """The engine has said all it has to say, whether or not it has closed the stream."""
        return self.done or (bool(self._finished) and all(self._finished.values()))

    def feed(self, block: bytes) -> list[Chunk]:
        """The chunks that `block` completes: none, one, or a few around a usage event."""
        if self.failure is not None:
            return []
        data = self._tail + block if self._tail else block
        searched = max(0, len(self._tail) - 2)  # an event end may have begun in the last two bytes
        chunks: list[Chunk] = []
        sent = end = 0
        while True:
            texts, end = self._alike.take(data, end)
            self._completion_tokens += sum(map(bool, texts))
            match = EVENT_END.search(data, max(searched, end)) if end < len(data) else None
            if match is None:
                break
            start, end = end, match.end()
            event = self._read(data[start:end])
            if event is None:
                end = start
                break
            alone = event.is_usage_only()
            if alone and sent < start:
                chunks.append(self._chunk(data[sent:start]))
                sent = start
            self._account(event)
            if alone:
                chunks.append(self._chunk(data[start:end], usage_only=True))
                sent = end
            elif _is_plain(event):
                self._alike.remember(data[start:end])
        if sent < end:
            chunks.append(self._chunk(data[sent:end]))
        self._keep(data[end:])
        return chunks

    def finish(self) -> list[Chunk]:
        """What is left when the engine closes the stream: a last event that lacks only its empty line, and gets it.

        Without it an error event behind it would become part of it, and clients drop what no empty line ends. Sets
        `failure` (502, `broken_stream`) unless the engine said `[DONE]` or every choice has its finish reason.
        """
        if self.failure is not None:
            return []
        tail, self._tail = self._tail, b""
        chunks: list[Chunk] = []
        event = self._read(tail)
        if event is not None:
            self._account(event)
            ended = tail + (b"\n" if tail.endswith(b"\n") else b"\n\n")
            chunks = [self._chunk(ended, usage_only=event.is_usage_only())] if event_data(tail) else []
        elif self.failure is not None and self.failure.kind == "garbage":
            self.failure = None  # an event cut in the middle: the answer is judged by what came before
        if self.failure is None and not self.complete:
            self.failure = EngineError(502, "broken_stream", "the engine stopped before its answer was complete")
        return chunks

    def document(self, document: bytes) -> Chunk:
        """The answer of an engine that did not stream. Raises `EngineError` if it is none."""
        return document_chunk(document)

    def _read(self, text: bytes) -> Answer | None:
        """The event in `text`; None, and `failure` set, if it reports an error or makes no sense."""
        event = _parse(text)
        if event is None:
            self.failure = EngineError(502, "garbage", "the engine streamed an event that is not JSON")
        elif event.is_error():
            document = text.removeprefix(_FIELD_OF_ERROR) if event is _FAILED else event_data(text)
            self.failure = streamed_refusal(document)
            return None
        return event

    def _account(self, event: Answer) -> None:
        if event is _DONE:
            self.done = True
        for choice in event.choices or ():
            if choice.has_content():
                self._completion_tokens += 1
            if choice.finish_reason is None:
                self._finished.setdefault(choice.index, False)
            else:
                self._finish_reason = choice.finish_reason
                self._finished[choice.index] = True
        usage = event.stated_usage()
        if usage is None:
            return
        if event.choices:  # perhaps the account of one choice out of several
            self._completion_tokens = max(self._completion_tokens, usage.completion_tokens)
        else:
            usage = self._account_so_far = self._added(usage)
            self._completion_tokens = usage.completion_tokens
        self._usage = usage

    def _added(self, usage: Usage) -> Usage:
        """The account after another usage event: llama-server sends one for every choice, all others one in all."""
        before = self._account_so_far
        if before is None or len(self._finished) < 2:
            return usage
        return Usage(usage.prompt_tokens, before.completion_tokens + usage.completion_tokens)

    def _chunk(self, data: bytes, *, usage_only: bool = False) -> Chunk:
        chunk = Chunk(data, self._completion_tokens, self._usage, usage_only, self._finish_reason)
        self._usage = self._finish_reason = None
        return chunk

    def _keep(self, tail: bytes) -> None:
        if self.failure is None and len(tail) > MAX_EVENT_BYTES:
            self.failure = EngineError(
                502, "garbage", f"the engine streamed an event of more than {MAX_EVENT_BYTES} bytes"
            )
        self._tail = tail if self.failure is None else b""


def _parse(text: bytes) -> Answer | None:
    """The event in `text`: `_OPAQUE` if it says nothing to us, None if its data is neither JSON nor `[DONE]`."""
    if text.startswith(b"data:"):  # the ordinary event is one line of JSON, and JSON does not mind the line end
        try:
            return decode_answer(text[5:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    if begins_document(text):
        return None
    if text.startswith(_FIELD_OF_ERROR):
        return _FAILED
    data = event_data(text)
    if not data:
        return _OPAQUE
    if data == b"[DONE]":
        return _DONE
    try:
        return decode_answer(data)
    except (msgspec.ValidationError, RecursionError):
        return _OPAQUE
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _is_plain(event: Answer) -> bool:
    """It adds content to one choice, and says nothing else."""
    choices = event.choices
    return (
        event.usage is None
        and choices is not None
        and len(choices) == 1
        and choices[0].finish_reason is None
        and choices[0].has_content()
    )


def begins_document(text: bytes) -> bool:
    """True for a JSON document, which is a whole answer or none, False for server-sent events."""
    return text[:16].lstrip()[:1] in (b"{", b"[")


def event_data(text: bytes) -> bytes:
    """The data lines of an event, joined as the specification of server-sent events says."""
    lines = text.removeprefix(BYTE_ORDER_MARK).splitlines()
    return b"\n".join(line[5:] for line in lines if line.startswith(b"data:")).strip()
