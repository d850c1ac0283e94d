"""What the form of a call tells: which program sent it, and which conversation it belongs to.

Pure, and the same in every process and on every run. Bounded as well: of very many messages the first and the last
are looked at, and of a long text its beginning and its end.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

from driftsched.core.model import Traits

MAX_OPENING = 64
MAX_RECENT = 256
"""So many first and so many last messages are looked at; a conversation with more has no more turns."""

HEAD_WORDS = 4
"""First words of the prompt that are part of its template: a verb and its object.

Fewer words say less of the program; more of them hold data, and recur less often.
"""

MAX_HEAD_CHARS = 160
MAX_SYSTEM_CHARS = 512
MAX_TOOLS = 64
MAX_TOOL_CHARS = 256
MAX_EXACT_CHARS = 1024
MAX_MEASURED_CHARS = 1 << 16

_FEW_WORDS = 3
_SYSTEM = frozenset(("system", "developer"))

_Item = TypeVar("_Item")


def read_traits(
    messages: Sequence[tuple[str, str]],
    *,
    tenant: str = "",
    session: str = "",
    tools: Sequence[str | bytes] = (),
    choices: int = 1,
    structured: bool = False,
    stops: bool = False,
) -> Traits:
    """The traits of a call. `messages` are pairs of role and text; a bare prompt is one message of the `user`.

    `session` is the client's own name for the conversation, empty if it gave none; `tools` are the tools offered,
    each as JSON; `choices`, `structured` and `stops` are passed on. Raises nothing, whatever the texts hold.

    `template`: programs send one text with changing data in it, mostly at its end, as in "Summarise this ticket:
    ...". So the digest covers the system prompt, the tools, and the first words of the last user message, few
    enough to recur; they end before data begins: at a colon that ends a word, or at the end of a line of at least
    three words. Case, punctuation, quoted strings, names of days and months, and words with a digit, `@`, slash or
    backslash in them (numbers, times, UUIDs, addresses) are left out. Empty if nothing is left.

    `session`: the client's name for it, else the system prompt as above and the first user message word for word.
    These are the same in every turn of a conversation, its first included, unless the client cuts it short; two
    conversations that begin alike are one. Either way it is the `tenant`'s own: nobody enters somebody else's.
    Empty if there is neither a name nor a user message.

    `turn` counts the assistant's messages. The lengths are UTF-8 bytes, of a text beyond 65,536 characters
    estimated from that many.
    """
    opening, first, last, previous, turn = _parts(relevant(messages))
    system = _system_words(" ".join([text[:MAX_SYSTEM_CHARS] for text in opening])) if opening else b""
    head = _head(last)
    offered = [_encoded(tool[:MAX_TOOL_CHARS]) for tool in tools[:MAX_TOOLS]]
    named = (b"named", *_exact(session)) if session else ()
    opened = (b"opened", system, *_exact(first)) if first else ()
    return Traits(
        template=_digest(system, head, *offered) if system or head or offered else "",
        session=_digest(_encoded(tenant), *(named or opened)) if named or opened else "",
        turn=turn,
        previous_bytes=_length(previous),
        system_bytes=sum(map(_length, opening)),
        choices=choices,
        tools=len(tools),
        structured=structured,
        stops=stops,
    )


def relevant(messages: Sequence[_Item]) -> Sequence[_Item]:
    """The messages that are looked at: all, or of very many the first and the last."""
    if len(messages) <= MAX_OPENING + MAX_RECENT:
        return messages
    return [*messages[:MAX_OPENING], *messages[-MAX_RECENT:]]


def _parts(messages: Iterable[tuple[str, str]]) -> tuple[list[str], str, str, str, int]:
    """System prompts before the first user message, first and last user message, last answer, number of answers.

    Where no user speaks the last message stands for the last user message.
    """
    opening: list[str] = []
    first = last = previous = text = ""
    asked = False
    turn = 0
    for role, text in messages:
        if role == "user":
            if not asked:
                asked, first = True, text
            last = text
        elif role == "assistant":
            turn += 1
            previous = text
        elif role in _SYSTEM and not asked:
            opening.append(text)
    return opening, first, last if asked else text, previous, turn


def _head(prompt: str) -> bytes:
    """The first words of a prompt, up to where its data begins."""
    start = prompt[:MAX_HEAD_CHARS].replace("\r", " ").replace("\uff1a", ": ")  # the colon of East Asia
    if '"' in start or "\u201c" in start or "\u00ab" in start:
        start = _QUOTED.sub(" ", start)
    words: list[bytes] = []
    for line in start.replace(": ", ":\n").split("\n"):
        words += _words(line)
        if len(words) >= _FEW_WORDS or (words and line.endswith(":")):
            break
    return b" ".join(words[:HEAD_WORDS])


_QUOTED = re.compile('["\u201c\u00ab][^"\u201d\u00bb]*["\u201d\u00bb]?')


def _system_words(text: str) -> bytes:
    return _cached_words(text[:MAX_SYSTEM_CHARS])


@lru_cache(maxsize=1024)  # most calls have one of a few system prompts, and it is the longest text to be split
def _cached_words(text: str) -> bytes:
    return b" ".join(_words(text))


def _words(text: str) -> list[bytes]:
    """The words that a program would send again: lower case, none with a digit or an address in it.

    Bytes that are not ASCII are folded into letters, and every character of Chinese, Japanese or Korean is a word:
    these words are for digests, and nobody reads them.
    """
    words = list(filter(bytes.isalpha, _encoded(text).translate(_FOLDED, _DELETED).split()))
    return words if _CALENDAR.isdisjoint(words) else [word for word in words if word not in _CALENDAR]


_DELETED = b".,;:-_'`*?!=&%#+~"
_KEPT = frozenset(b"0123456789@/\\")


def _folded(byte: int) -> int:
    """What a byte of a text becomes: a lower-case letter, a sign that disqualifies its word, or a space."""
    if byte in _KEPT:
        return byte
    if byte >= 0x80:
        starts_word = 0xE2 <= byte <= 0xED  # the first byte of general punctuation, and of what East Asia writes
        return ord(" ") if starts_word else ord("a") + byte % 26
    return ord(chr(byte).lower()) if chr(byte).isalpha() else ord(" ")


_FOLDED = bytes(map(_folded, range(256)))

_CALENDAR = frozenset(
    b"""monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun am pm utc gmt
    january february march april may june july august september october november december
    jan feb mar apr jun jul aug sep sept oct nov dec""".split()
)


def _exact(text: str) -> tuple[bytes, ...]:
    """A text for a digest, word for word; of a long one its two ends and its length."""
    if len(text) <= MAX_EXACT_CHARS:
        return (_encoded(text),)
    half = MAX_EXACT_CHARS // 2
    return _encoded(text[:half]), _encoded(text[-half:]), b"%d" % len(text)


def _encoded(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _digest(*parts: bytes) -> str:
    """16 hexadecimal digits, the same in every process."""
    return blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def _length(text: str) -> int:
    """UTF-8 bytes of a text; of a very long one estimated from its beginning."""
    if text.isascii():
        return len(text)
    if len(text) <= MAX_MEASURED_CHARS:
        return len(_encoded(text))
    return len(_encoded(text[:MAX_MEASURED_CHARS])) * len(text) // MAX_MEASURED_CHARS
