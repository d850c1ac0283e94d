"""What a prompt tells about its request."""

from driftsched.core.model import Usage
from driftsched.core.protocols import Describer
from driftsched.estimators import create_counter
from driftsched.estimators.categories import KeywordClassifier
from driftsched.estimators.describe import PromptDescriber
from support.prompts import request_of


def describer(counter: str = "whitespace") -> Describer:
    return PromptDescriber(KeywordClassifier(), create_counter(counter))


class Attentive:
    """A classifier that remembers what it was taught."""

    def __init__(self) -> None:
        self.taught: list[str] = []

    def classify(self, prompt: str) -> str:
        return "summary"

    def learn(self, prompt: str) -> None:
        self.taught.append(prompt)


def test_category_and_prompt_tokens_are_filled_in() -> None:
    described = describer().describe(request_of("", prompt="Write a detailed report."))
    assert ("report", 4) == (described.category, described.prompt_tokens)


def test_nothing_else_changes() -> None:
    request = request_of("", prompt="Write a detailed report.", max_tokens=7)
    expected = request_of("report", prompt="Write a detailed report.", max_tokens=7, prompt_tokens=4)
    assert expected == describer().describe(request)


def test_what_a_trace_brings_is_kept() -> None:
    described = describer().describe(request_of("technical", prompt="Write a detailed report.", prompt_tokens=99))
    assert ("technical", 99) == (described.category, described.prompt_tokens)


def test_what_a_trace_leaves_out_is_filled_in() -> None:
    without_tokens = describer().describe(request_of("technical", prompt="one two"))
    without_category = describer().describe(request_of("", prompt="one two", prompt_tokens=99))
    assert ("technical", 2) == (without_tokens.category, without_tokens.prompt_tokens)
    assert ("short_qa", 99) == (without_category.category, without_category.prompt_tokens)


def test_the_engines_count_reaches_the_counter() -> None:
    by_bytes = describer("bytes")
    for _ in range(100):
        by_bytes.learn(request_of(prompt_bytes=1000), Usage(500, 10))
    assert by_bytes.describe(request_of(prompt_bytes=1000)).prompt_tokens in range(495, 506)


def test_a_classifier_is_taught_what_was_served() -> None:
    classifier = Attentive()
    attentive = PromptDescriber(classifier, create_counter("bytes"))
    described = attentive.describe(request_of("", prompt="one two"))
    assert ("summary", []) == (described.category, classifier.taught)
    attentive.learn(described, Usage(2, 10))
    assert ["one two"] == classifier.taught
