"""Which words go with which kind of request, learnt as requests come: naive Bayes over hashed words."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import log
from zlib import crc32

from driftsched.estimators.state import check_version

TABLE_BITS = 11
TABLE_SIZE = 1 << TABLE_BITS
"""Places that all words share. A collision costs a little sharpness and no memory."""
MAX_WORDS = 16
"""Words of a prompt that are looked at, the first ones."""
MIN_PROMPTS = 20
"""Prompts a category must have taught before it is guessed."""
MAX_COUNT = 1 << 14
"""Words a category remembers; beyond, all its counts are halved, so that what is old fades."""
STATE_VERSION = 1

_SHIFT = 32 - TABLE_BITS


class WordModel:
    """Guesses one of a few categories from a prompt's words, if one stands out.

    The multinomial model with one added to each count, equal priors, and each word counted once. Words are kept as
    counts in a table of 2^`TABLE_BITS` places, so no text can be read back, and memory is bounded: some 0.4 MB for
    five categories.

    Source: McCallum and Nigam, A Comparison of Event Models for Naive Bayes Text Classification, 1998.
    """

    def __init__(self, categories: Sequence[str], margin: float) -> None:
        """`margin`: logarithm of the odds by which the best guess must beat the second, > 0."""
        self._margin = margin
        self._prompts = dict.fromkeys(categories, 0)
        self._counts = {category: [0] * TABLE_SIZE for category in categories}
        self._prepare()

    def learn(self, category: str, words: Sequence[bytes]) -> None:
        """A prompt with these words is of `category`."""
        counts, logs = self._counts[category], self._logs[category]
        places = places_of(words)
        self._prompts[category] += 1
        self._totals[category] += len(places)
        for place in places:
            counts[place] += 1
            logs[place] = log(counts[place] + 1)
        if self._totals[category] > MAX_COUNT:
            self._fade(category)

    def guess(self, words: Sequence[bytes]) -> str | None:
        """The category these words speak for; None if none stands out, or too little is known. Pure."""
        known = [category for category, prompts in self._prompts.items() if prompts >= MIN_PROMPTS]
        places = places_of(words)
        if len(known) < 2 or not places:
            return None
        scores = {
            category: sum(map(self._logs[category].__getitem__, places))
            - len(places) * log(self._totals[category] + TABLE_SIZE)
            for category in known
        }
        second, best = sorted(scores.values())[-2:]
        if best - second < self._margin:
            return None
        return max(scores, key=lambda category: scores[category])

    def snapshot(self) -> dict[str, object]:
        return {
            "version": STATE_VERSION,
            "prompts": dict(self._prompts),
            "counts": {category: list(counts) for category, counts in self._counts.items()},
        }

    def restore(self, state: Mapping[str, object]) -> None:
        self._prompts, self._counts = self._checked(state)
        self._prepare()

    def merge(self, state: Mapping[str, object]) -> None:
        """Counts are added; a category that then remembers too much fades as it does when it learns."""
        prompts, counts = self._checked(state)
        for category, others in counts.items():
            self._prompts[category] = min(self._prompts[category] + prompts[category], MAX_COUNT)
            self._counts[category] = list(map(int.__add__, self._counts[category], others))
        self._prepare()

    def _prepare(self) -> None:
        """What is worked out from the counts, so that a guess need not."""
        self._totals: dict[str, int] = {}
        self._logs: dict[str, list[float]] = {}
        for category in self._counts:
            self._fade(category)

    def _fade(self, category: str) -> None:
        counts = self._counts[category]
        while sum(counts) > MAX_COUNT:
            counts[:] = [count // 2 for count in counts]
        self._prompts[category] = min(self._prompts[category], MAX_COUNT)
        self._totals[category] = sum(counts)
        self._logs[category] = [log(count + 1) for count in counts]

    def _checked(self, state: Mapping[str, object]) -> tuple[dict[str, int], dict[str, list[int]]]:
        """Raises `ValueError` for a state of another version, of other categories, or malformed."""
        check_version(state, STATE_VERSION)
        prompts, counts = state.get("prompts"), state.get("counts")
        if not isinstance(prompts, dict) or not isinstance(counts, dict) or not prompts.keys() == counts.keys():
            raise ValueError("prompts and counts: must both be given, for the same categories")
        if self._counts.keys() != counts.keys() or not _are_counts(prompts.values()):
            raise ValueError(f"prompts: must be whole numbers for {', '.join(self._counts)}")
        for category, table in counts.items():
            if not isinstance(table, list) or len(table) != TABLE_SIZE or not _are_counts(table):
                raise ValueError(f"counts.{category}: must be {TABLE_SIZE} whole numbers of at most {MAX_COUNT}")
        order = list(self._counts)  # the order decides nothing but what a snapshot looks like
        return {name: prompts[name] for name in order}, {name: list(counts[name]) for name in order}


def places_of(words: Sequence[bytes]) -> Collection[int]:
    """Where the first `MAX_WORDS` words have their counts; each place once, and the same on every machine."""
    return dict.fromkeys([crc32(word) >> _SHIFT for word in words[:MAX_WORDS]])


def _are_counts(values: Iterable[object]) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_COUNT for value in values)
