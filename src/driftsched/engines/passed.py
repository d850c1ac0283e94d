"""Answers that are passed through, as embeddings and scores are: only the tokens of the prompt are counted."""

from typing import Any

import msgspec

from driftsched.core.errors import EngineError
from driftsched.core.protocols import Chunk
from driftsched.engines.wire import usage_of

_STREAM = "text/event-stream; charset=utf-8"
_CENSORED = "length"  # teaches nobody anything: what is passed says nothing of the lengths of answers


class _Account(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Document(msgspec.Struct, gc=False):
    usage: _Account | None = None


_decode = msgspec.json.Decoder(_Document).decode


class PassedScanner:
    """Relays an answer as it comes. Used as `EventScanner` is."""

    failure: EngineError | None = None
    done = False
    complete = False

    def feed(self, block: bytes) -> list[Chunk]:
        return [Chunk(block, media_type=_STREAM)]

    def finish(self) -> list[Chunk]:
        return [Chunk(b"", finish_reason=_CENSORED, media_type=_STREAM)]

    def document(self, document: bytes) -> Chunk:
        """The whole answer, whatever it is, with the engine's own account where it has one."""
        try:
            account: Any = _decode(document).usage
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            account = None
        tokens = (account.prompt_tokens or account.total_tokens) if account else None
        usage = usage_of(tokens, 0)
        return Chunk(document, usage=usage if usage and usage.prompt_tokens else None, finish_reason=_CENSORED)
