"""How the messages of a call are read: one rule for live requests and for recorded ones."""

from collections.abc import Sequence
from typing import Protocol

PROMPT_HEAD_CHARS = 4096
"""How much of the text that tells the kind of request is kept for classification."""


class Part(Protocol):
    """One part of a message's content; images and other media have no text."""

    @property
    def text(self) -> str | None: ...


class Message(Protocol):
    """A message as in the OpenAI API."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str | Sequence[Part] | None: ...


def texts_of(message: Message) -> list[str]:
    """The texts of its content."""
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content or () if part.text]


def head_and_size(messages: Sequence[Message]) -> tuple[str, int]:
    """Head of the last user message (of the last message if no user speaks), and the UTF-8 length of all text.

    `messages` must hold at least one.
    """
    last = next((message for message in reversed(messages) if message.role == "user"), messages[-1])
    size = sum(utf8_length(text) for message in messages for text in texts_of(message))
    return " ".join(texts_of(last))[:PROMPT_HEAD_CHARS], size


def utf8_length(text: str) -> int:
    """Bytes of `text` in UTF-8, lone surrogates included."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
