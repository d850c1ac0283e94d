"""What a prompt and the form of its call tell about the length of the answer, as numbers.

Two readings of one request. `dense`: about fifty figures with a meaning, most of them 0 or 1 or a logarithm.
`words`: places in a hashed table, one for each word and each pair of neighbouring words, for what no list of
ours foresees. Only the first `MAX_CHARS` of the prompt are read, so the cost is bounded whatever a client
sends.
"""

from collections.abc import Sequence
from math import log, log1p
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from driftsched.core.model import Request
from driftsched.estimators.categories import CATEGORIES

MAX_CHARS = 2048
MAX_WORDS = 80
HEAD_WORDS = 5
TABLE_BITS = 15
"""Words and pairs share a table of 2^15 places."""

Dense = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

_LETTERS: Final = bytes(
    ord(chr(byte).lower()) if byte < 128 and (chr(byte).isalnum() or byte == 95) else byte if byte > 127 else 32
    for byte in range(256)
)
"""Translates letters to lower case and whatever separates words to blanks; UTF-8 beyond ASCII stays as it is."""
_PAIR = np.uint32(0x9E3779B1)
_SHIFT = np.uint32(32 - TABLE_BITS)

_NUMBERS = {
    word: number
    for number, words in {
        1: (b"one", b"single", b"a", b"an"),
        2: (b"two", b"couple"),
        3: (b"three", b"few"),
        4: (b"four",),
        5: (b"five", b"several"),
        6: (b"six",),
        7: (b"seven",),
        8: (b"eight",),
        9: (b"nine",),
        10: (b"ten",),
        12: (b"twelve",),
        15: (b"fifteen",),
        20: (b"twenty",),
        50: (b"fifty",),
        100: (b"hundred",),
    }.items()
    for word in words
}

_TOKENS_A_UNIT = {
    b"word": 1.4, b"words": 1.4, b"character": 0.3, b"characters": 0.3, b"token": 1, b"tokens": 1,
    b"sentence": 25, b"sentences": 25, b"line": 14, b"lines": 14, b"paragraph": 110, b"paragraphs": 110,
    b"page": 600, b"pages": 600, b"stanza": 40, b"stanzas": 40, b"verse": 40, b"verses": 40, b"slides": 80,
    b"bullet": 25, b"bullets": 25, b"points": 30, b"items": 15, b"steps": 40, b"examples": 45, b"ideas": 40,
    b"tips": 40, b"ways": 40, b"reasons": 45, b"questions": 25, b"facts": 35, b"names": 8, b"titles": 12,
    b"options": 30, b"suggestions": 40, b"recipes": 250, b"benefits": 35, b"exercises": 40, b"chapters": 300,
}  # fmt: skip
"""What one of them is worth, in tokens: as people write, roughly; the model learns the factor."""

_GROUPS: Sequence[frozenset[bytes]] = [
    frozenset(group.encode().split())
    for group in (
        "write compose draft essay story poem song lyrics article blog letter email script novel speech",
        "story poem song lyrics haiku limerick joke riddle",
        "code function program python java javascript sql html css c class algorithm implement api regex bash",
        "explain describe discuss elaborate analyze analyse evaluate",
        "summarize summarise summary tldr shorten condense abstract",
        "translate translation translated spanish french german chinese english japanese",
        "classify extract identify label sentiment category entity tag rate choose select true false yes no",
        "what who whom whose when where which",
        "how why",
        "rewrite rephrase edit correct improve paraphrase fix proofread convert transform",
        "give suggest recommend brainstorm ideas propose generate create",
        "calculate solve compute many much equation sum total percent average probability prove",
        "compare contrast difference differences versus vs pros cons advantages disadvantages",
        "list enumerate bullet items outline table",
        "brief briefly short concise concisely succinct quick simply only just terse",
        "detailed detail details comprehensive thorough thoroughly depth long extensive complete full",
        "step steps guide tutorial plan itinerary recipe instructions schedule",
        "please can could would",
        "i my me we our you your",
        "act role pretend imagine assume persona",
        "json xml yaml csv markdown latex format schema",
    )
]
_GROUPED = frozenset().union(*_GROUPS)

FIGURES: tuple[str, ...] = (
    "one", "prompt tokens", "prompt tokens above 20", "prompt tokens above 150", "prompt tokens above 1100",
    "prompt tokens above 8100", "max_tokens given", "max_tokens", "choices", "stops", "structured", "tools", "turn",
    "previous answer known", "previous answer", "system bytes", "prompt chars", "bytes beyond chars",
    "question marks", "ends with a question mark", "lines", "code", "braces and semicolons", "quotation marks",
    "commas", "length asked for", "asked length",
    *(f"words {b' '.join(sorted(group)).decode()}" for group in _GROUPS),
    *(f"category {category}" for category in CATEGORIES),
    "starts like a question",
)  # fmt: skip
"""What each place of `Reading.dense` holds. Change a name when its figure changes: what was trained on the old one
must not be used with the new one."""

NUM_DENSE = len(FIGURES)


class Reading(NamedTuple):
    """A request as numbers."""

    dense: Dense
    """Shape (`NUM_DENSE`,); the first is 1."""
    words: Places
    """Places in a table of 2^`TABLE_BITS`, at most 2 x `MAX_WORDS`, each of them once or more."""
    prompt: int
    """Checksum of what was read of the prompt: equal prompts recur; 0 for no prompt."""
    head: int
    """Checksum of the first `HEAD_WORDS` words: what the prompts of one program may share; 0 for no prompt."""


def read(request: Request, previous_tokens: float = 0.0) -> Reading:
    """Read `request`, already described. `previous_tokens`: length of the session's last answer, 0 if unknown."""
    text = request.prompt[:MAX_CHARS]
    raw = text.encode("utf-8", "replace")
    found = raw.translate(_LETTERS).split(None, MAX_WORDS)[:MAX_WORDS]
    present = set(found)
    traits, tokens = request.traits, log1p(max(0, request.prompt_tokens))
    limit = request.max_tokens
    chars = len(text)
    previous = previous_tokens or traits.previous_bytes / 4
    asked = asked_tokens(found, present)
    dense = [
        1.0,
        tokens - 4.0,
        max(0.0, tokens - 3.0),
        max(0.0, tokens - 5.0),
        max(0.0, tokens - 7.0),
        max(0.0, tokens - 9.0),
        0.0 if limit is None else 1.0,
        0.0 if limit is None else log(min(max(limit, 1), 100_000)) - 6.0,
        log(min(max(traits.choices, 1), 128)),
        float(traits.stops),
        float(traits.structured),
        float(traits.tools > 0),
        log1p(min(traits.turn, 100)),
        1.0 if previous > 0 else 0.0,
        log(min(max(previous, 1.0), 1e6)) - 5.0 if previous > 0 else 0.0,
        log1p(min(traits.system_bytes, 1 << 20)) / 4,
        log1p(chars) - 5.0 if chars else 0.0,
        (len(raw) - chars) / (chars + 1),
        float(min(raw.count(b"?"), 3)),
        1.0 if text[-2:].rstrip().endswith("?") else 0.0,
        log1p(raw.count(b"\n")),
        1.0 if b"```" in raw or b"    " in raw else 0.0,
        float(min(raw.count(b"{") + raw.count(b";"), 4)),
        float(min(raw.count(b'"'), 4)),
        log1p(raw.count(b",")),
        0.0 if asked == 0 else 1.0,
        0.0 if asked == 0 else log(asked) - 4.5,
    ]
    telling = present & _GROUPED
    dense += [0.0 if telling.isdisjoint(group) else 1.0 for group in _GROUPS]
    dense += [1.0 if request.category == category else 0.0 for category in CATEGORIES]
    dense.append(1.0 if found and found[0] in _STARTS else 0.0)
    head = crc32(b" ".join(found[:HEAD_WORDS]))
    return Reading(np.array(dense), _places(found), crc32(raw), head)


_STARTS = frozenset(b"what who when where which is are do does did can how why".split())


def asked_tokens(words: Sequence[bytes], present: set[bytes] | None = None) -> float:
    """Tokens that the prompt asks for in so many words (`500 words`, `one sentence`, `list 20`); 0 if it does not.

    The largest of them where there are several; at most 20,000.
    """
    asked = 0.0
    for unit in _UNITS.intersection(words if present is None else present):
        at = words.index(unit)
        for before in words[max(0, at - 2) : at]:
            asked = max(asked, _number(before) * _TOKENS_A_UNIT[unit])
    if not asked and words:
        for at in (i for i, word in enumerate(words[:12]) if word in _LISTING):
            for after in words[at + 1 : at + 3]:
                asked = max(asked, _number(after) * 20 if after.isdigit() else 0.0)
    return min(asked, 20_000.0)


_UNITS = frozenset(_TOKENS_A_UNIT)
_LISTING = frozenset((b"list", b"top", b"give", b"name", b"suggest", b"generate", b"provide"))


def _number(word: bytes) -> float:
    if word.isdigit():
        return float(int(word)) if len(word) < 6 else 0.0
    return float(_NUMBERS.get(word, 0))


def _places(found: Sequence[bytes]) -> Places:
    hashes = np.fromiter(map(crc32, found), np.uint32, len(found))
    pairs = hashes[:-1] * _PAIR + hashes[1:]
    return (np.concatenate((hashes, pairs)) >> _SHIFT).astype(np.intp)
