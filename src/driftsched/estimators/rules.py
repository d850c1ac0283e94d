"""What kind of request a prompt is, by rules that know when they do not know.

A prompt is read like a letter with instructions: how it opens, what kind of text it wants made, what length it asks
for, which words of a trade it uses, whether it shows code. Each of these gives points to a category. The material
to work on, after the first line or colon, counts for half. Too few points, or a tie, and there is no verdict.
"""

from collections.abc import Collection, Mapping, Sequence

from driftsched.estimators.bayes import WordModel
from driftsched.estimators.categories import OTHER
from driftsched.estimators.lexicon import (
    ANYWHERE,
    CODE,
    CODE_POINTS,
    COMPOSING,
    EXPLAINED,
    FILLERS,
    GENRES,
    LONG_TOKENS,
    MEASURES,
    MODALS,
    NOT_AFTER,
    NOT_BEFORE,
    NUMBERS,
    OPENINGS,
    PHRASES,
    SHORT_TOKENS,
    TOKENS_A_UNIT,
    YES_NO,
    YOU,
    Points,
)

MAX_CHARS = 2048
"""How much of a prompt is looked at for code."""
HEAD_BYTES = 240
TAIL_BYTES = 96
"""How much is read word by word: what is wanted stands at the beginning or at the end."""

THRESHOLD = 2.0
"""Points without which there is no verdict."""
LEAD = 1.0
"""Points by which the best must lead."""
MATERIAL_WEIGHT = 0.5
MARGIN = 6.0
"""Logarithm of the odds at which a prompt without a verdict is reassigned: 400 to 1; the model is overconfident."""

READ_ALL = 1_000
"""Prompts of which every one is learnt from."""
READ_EVERY = 8
"""Of those after them, one in so many is: words change slowly, and reading a prompt again costs time."""

SHORT, SUMMARY, TECHNICAL, REPORT = "short_qa", "summary", "technical", "report"
ALL_CATEGORIES = (SHORT, SUMMARY, TECHNICAL, REPORT, OTHER)


class Rules:
    """Classify by rules that abstain when they are not sure, and by the words of prompts they were sure of.

    A prompt without a verdict is `other`, unless its words speak for one category: a small model learns from the
    prompts on which the rules did have a verdict. Why: a category stands for something only if its members were not
    put there for want of anything better. Trade-off: knows words of four languages; what is written in others is
    `other` until the model has seen enough of it.
    """

    def __init__(self, reassign: bool = True) -> None:
        """`reassign`: false leaves every prompt without a verdict `other`."""
        self._reassign = reassign
        self._model = WordModel(ALL_CATEGORIES, MARGIN)
        self._num_served = 0

    def classify(self, prompt: str) -> str:
        letter = Letter(prompt)
        verdict = judge(letter)
        if verdict is None and self._reassign:
            verdict = self._model.guess(letter.wanted)
        return verdict or OTHER

    def learn(self, prompt: str) -> None:
        """Remembers the words of a prompt on which the rules have a verdict, and forgets all others at once."""
        self._num_served += 1
        if not self._reassign or (self._num_served > READ_ALL and self._num_served % READ_EVERY):
            return
        letter = Letter(prompt)
        verdict = judge(letter)
        if verdict is not None:
            self._model.learn(verdict, letter.wanted)

    def snapshot(self) -> dict[str, object]:
        return self._model.snapshot()

    def restore(self, state: Mapping[str, object]) -> None:
        self._model.restore(state)

    def merge(self, state: Mapping[str, object]) -> None:
        """Adds up the words both have seen."""
        self._model.merge(state)


class Letter:
    """A prompt taken apart. Words are UTF-8 in lower case."""

    __slots__ = ("material", "shown", "text", "wanted")

    def __init__(self, prompt: str) -> None:
        self.text = prompt[:MAX_CHARS].lower().encode("utf-8", "replace")
        """Its head."""
        shown = self.text.strip()
        if len(shown) > HEAD_BYTES + TAIL_BYTES:
            shown = shown[:HEAD_BYTES] + b"\n" + shown[-TAIL_BYTES:]
        self.shown = shown
        """What is read word by word."""
        cut = _end_of_instructions(shown)
        self.wanted = words_of(shown[:cut])
        """The instructions."""
        self.material = words_of(shown[cut:]) if cut < len(shown) else []
        """What they are to be applied to, or more of them."""


def words_of(text: bytes) -> list[bytes]:
    """Its words; anything else in ASCII than letters, digits, `'`, `+` and `#` is a space."""
    if not text.isascii():
        for mark in _MARKS:
            text = text.replace(mark, b" ")
        text = text.replace(_APOSTROPHE, b"'")
    return text.translate(_SPACES).split()


_SPACES = bytes(code if code > 127 or chr(code).isalnum() or chr(code) in "'+#" else 32 for code in range(256))
_MARKS = [mark.encode() for mark in "¿¡«»„“”…"]
_APOSTROPHE = "\u2019".encode()


def _end_of_instructions(shown: bytes) -> int:
    line = shown.find(b"\n")
    colon = shown.find(b": ", 0, line) if line > 0 else shown.find(b": ")
    end = colon if colon > 0 else line
    return end if end > 0 else len(shown)


def judge(letter: Letter) -> str | None:
    """The category that the rules are sure of; None if the evidence is weak or tied."""
    scores = dict.fromkeys(ALL_CATEGORIES, 0.0)
    telling = _TELLING.intersection(letter.wanted)
    _add_words(scores, letter.wanted, telling, 1.0)
    if letter.material:
        _add_words(scores, letter.material, _TELLING.intersection(letter.material), MATERIAL_WEIGHT)
    if _shows_code(letter.text):
        scores[TECHNICAL] += CODE_POINTS
    _add_opening(scores, letter)
    _add_genre(scores, letter.wanted, telling)
    _add_length(scores, letter.wanted, telling)
    if b"\nb." in letter.shown or b"b) " in letter.shown:
        scores[SHORT] += 1.5  # one of several answers is to be chosen
    return _leader(scores)


def _leader(scores: Mapping[str, float]) -> str | None:
    """The category with most points, if they are enough and no other comes near."""
    leader, best, second = None, 0.0, 0.0
    for category, points in scores.items():
        if points > best:
            leader, best, second = category, points, best
        elif points > second:
            second = points
    return leader if best >= THRESHOLD and best - second >= LEAD else None


_PHRASES: dict[bytes, list[tuple[list[bytes], Points]]] = {}
"""First word -> the words that must follow, and what the phrase says."""
for _phrase, _points in PHRASES.items():
    _first, *_rest = _phrase.split()
    _PHRASES.setdefault(_first, []).append((_rest, _points))
_GENRE_ENDS = frozenset((b"about", b"for", b"that", b"which", b"to"))
"""What follows them is what the text is about."""
_AMBIGUOUS = frozenset({*NOT_AFTER, *NOT_BEFORE})
_CODE = tuple(CODE.items())
_UNITS = frozenset(TOKENS_A_UNIT)
_TELLING = frozenset({*ANYWHERE, *_PHRASES, *COMPOSING, *_UNITS})


def _add_words(scores: dict[str, float], words: Sequence[bytes], telling: Collection[bytes], weight: float) -> None:
    """What each telling word says, counted once, and each phrase."""
    for word in telling:
        if word in ANYWHERE and not (word in _AMBIGUOUS and _has_other_sense(word, words)):
            category, points = ANYWHERE[word]
            scores[category] += weight * points
        if word in _PHRASES:
            at = words.index(word) + 1
            for rest, (category, points) in _PHRASES[word]:
                if rest == words[at : at + len(rest)]:
                    scores[category] += weight * points


def _has_other_sense(word: bytes, words: Sequence[bytes]) -> bool:
    """Dress code, summary judgment."""
    at = words.index(word)
    before = words[at - 1] if at > 0 else b""
    after = words[at + 1] if at + 1 < len(words) else b""
    return before in NOT_AFTER.get(word, ()) or after in NOT_BEFORE.get(word, ())


def _shows_code(text: bytes) -> bool:
    for sign, pieces in _CODE:
        if sign in text:
            for piece in pieces:
                if piece in text:
                    return True
    return False


def _add_opening(scores: dict[str, float], letter: Letter) -> None:
    """What the first word that is no filler says, or else that of the last sentence."""
    category, points = _opening(letter.wanted or letter.material, asks=b"?" in letter.text)
    if not points and COMPOSING.isdisjoint(letter.wanted[:4]):
        category, points = _opening(words_of(_last_sentence(letter.shown)), asks=letter.shown.endswith(b"?"))
    if category == SHORT:
        scores[SUMMARY] *= 0.4  # who wrote the summary: it is only spoken of
        if points <= THRESHOLD <= scores[TECHNICAL]:
            return  # what does this code do: no short answer
    scores[category] += points


def _opening(words: Sequence[bytes], asks: bool) -> Points:
    at = _first_telling(words)
    if at is None:
        return OTHER, 0.0
    first = words[at]
    if first in (b"how", b"what", b"wie", b"was") and at + 1 < len(words) and words[at + 1] in MEASURES:
        return SHORT, 2.5
    if first in (b"what", b"what's", b"whats"):
        return (OTHER, 1.0) if EXPLAINED.intersection(words[at + 1 : at + 7]) else (SHORT, 2.0)
    if first in YES_NO:
        return SHORT, 2.0 if asks else 0.0
    return OPENINGS.get(first, (OTHER, 0.0))


def _first_telling(words: Sequence[bytes]) -> int | None:
    """Place of the first word that is no filler; None if that is the verb of a statement (`I have`), or far off."""
    for at, word in enumerate(words[:8]):
        if word in YES_NO and at and words[at - 1] in YOU:
            return None
        polite = word in MODALS and at + 1 < len(words) and words[at + 1] in YOU
        if word not in FILLERS and not polite:
            return at
    return None


def _last_sentence(shown: bytes) -> bytes:
    """Of a question, which may come after a condition, its last part."""
    marks = (b". ", b"\n", b"! ", b"? ", b": ", b", ") if shown.endswith(b"?") else (b". ", b"\n", b"! ", b"? ")
    return shown[max(shown.rfind(mark, 0, -1) for mark in marks) + 1 :]


def _add_genre(scores: dict[str, float], words: Sequence[bytes], telling: Collection[bytes]) -> None:
    """What kind of text is to be made, if one is."""
    verbs = COMPOSING.intersection(telling)
    named = words[:1] in ([b"a"], [b"an"])  # `A script where ...`
    for at in sorted(map(words.index, verbs)) if verbs else (0,) * named:
        for noun in words[at + 1 : at + 14]:
            if noun in _GENRE_ENDS:
                break
            if noun in GENRES:
                category, points = GENRES[noun]
                scores[category] += points
                return


def _add_length(scores: dict[str, float], words: Sequence[bytes], telling: Collection[bytes]) -> None:
    """What length is asked for, if one is."""
    units = _UNITS.intersection(telling)
    tokens = max(_asked_tokens(words, unit) for unit in units) if units else 0.0
    if tokens >= LONG_TOKENS:
        scores[REPORT] += 3.0
        scores[OTHER] = 0.0  # a poem of a thousand words is a long text
    elif 0 < tokens <= SHORT_TOKENS and scores[SUMMARY] < THRESHOLD:
        scores[SHORT if COMPOSING.isdisjoint(words[:4]) else OTHER] += 2.5


def _asked_tokens(words: Sequence[bytes], unit: bytes) -> float:
    """What `500 words` or `one sentence` come to, in tokens; 0 if no number stands before the unit."""
    at = words.index(unit)
    before = words[max(0, at - 2) : at]
    number = max(map(_number, before), default=0.0)
    if before[1:] == [b"000"]:  # 1,000 words
        number *= 1000
    return number * TOKENS_A_UNIT[unit]


def _number(word: bytes) -> float:
    if word.isdigit():
        return float(word) if len(word) < 6 else 0.0
    return NUMBERS.get(word, 0.0)
