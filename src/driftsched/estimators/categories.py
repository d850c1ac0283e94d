"""Kinds of request: their names, the lengths expected of them, and how a prompt shows its kind."""

from collections.abc import Mapping

BASE_TOKENS: Mapping[str, int] = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
"""Completion tokens expected of each category before anything is learnt (T_base of the reference)."""

CATEGORIES = tuple(BASE_TOKENS)
"""Those of the reference."""

OTHER = "other"
"""None of them, or not to be told."""
OTHER_TOKENS = 256
"""Near the geometric mean of the others' base lengths (238): wrong by the same factor whichever of them it was."""

_UNMARKED = "short_qa"

_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "summary": ("summarize", "summary"),
    "report": ("detailed", "report", "comprehensive"),
    "technical": ("architecture", "code", "technical"),
}
"""In the order in which a tie is decided."""


def base_tokens(category: str) -> int:
    """Completion tokens expected of `category`; an unknown one counts as `short_qa`."""
    if category == OTHER:
        return OTHER_TOKENS
    return BASE_TOKENS.get(category, BASE_TOKENS[_UNMARKED])


def input_factor(prompt_tokens: int) -> float:
    """Longer prompts are given longer answers: 1 for an empty prompt .. 1.5 from 500 tokens on (F_input)."""
    return min(1.5, 1.0 + prompt_tokens / 1000)


class KeywordClassifier:
    """Classify a prompt by the words it contains.

    Each category scores the occurrences of its keywords, as substrings and whatever their case; the highest score
    wins, ties go to summary, report, technical in that order, and a prompt without any keyword is `short_qa`.

    Source: the classifier of the reference system (DriftSched, arXiv 2606.02982).
    """

    def classify(self, prompt: str) -> str:
        """One of `CATEGORIES`."""
        text = prompt.lower()
        scores = {category: sum(map(text.count, keywords)) for category, keywords in _KEYWORDS.items()}
        best = max(scores, key=lambda category: scores[category])
        return best if scores[best] else _UNMARKED

    def learn(self, prompt: str) -> None:
        """Learns nothing."""
