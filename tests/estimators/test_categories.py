"""Kinds of request."""

import pytest

from driftsched.estimators.categories import (
    BASE_TOKENS,
    CATEGORIES,
    OTHER,
    KeywordClassifier,
    base_tokens,
    input_factor,
)


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("", "short_qa"),
        ("What is the capital of France?", "short_qa"),
        ("Summarize this page.", "summary"),
        ("a summary of summaries", "summary"),
        ("Write a DETAILED and comprehensive text.", "report"),
        ("Explain the architecture.", "technical"),
        ("decoded encoder", "technical"),  # keywords count inside longer words
        ("a report about the code", "report"),
        ("a report about the code architecture", "technical"),
        ("a summary report of technical work", "summary"),
        ("reported, and a summary", "summary"),
    ],
)
def test_the_most_frequent_keywords_decide_and_ties_go_in_order(prompt: str, category: str) -> None:
    assert category == KeywordClassifier().classify(prompt)


def test_the_classifier_knows_no_other_categories() -> None:
    assert CATEGORIES == tuple(BASE_TOKENS)
    assert BASE_TOKENS == {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}


def test_the_base_length_of_none_of_them_lies_between_theirs() -> None:
    assert OTHER not in CATEGORIES
    assert min(BASE_TOKENS.values()) < base_tokens(OTHER) < max(BASE_TOKENS.values())


def test_an_unknown_category_counts_as_a_short_question() -> None:
    assert base_tokens("short_qa") == base_tokens("unheard of")


@pytest.mark.parametrize(("prompt_tokens", "factor"), [(0, 1.0), (21, 1.021), (500, 1.5), (100_000, 1.5)])
def test_longer_prompts_are_given_longer_answers_up_to_a_limit(prompt_tokens: int, factor: float) -> None:
    assert factor == input_factor(prompt_tokens)
