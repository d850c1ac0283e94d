"""Classification by rules that may abstain."""

import json
from collections import Counter

import pytest

from driftsched.bench import prompts as bench_prompts
from driftsched.estimators.bayes import MIN_PROMPTS
from driftsched.estimators.categories import CATEGORIES, OTHER, KeywordClassifier
from driftsched.estimators.rules import MAX_CHARS, READ_ALL, READ_EVERY, Letter, Rules, judge
from driftsched.sim import prompts as sim_prompts
from support.labelled import labelled_prompts

HELD_OUT = labelled_prompts()[1::2]
WORKLOADS = {
    "sim": (sim_prompts.WORDINGS, sim_prompts.TOPICS),
    "bench": (bench_prompts.TEMPLATES, bench_prompts.TOPICS),
}


FRESH = Rules()  # to classify changes nothing: a test below


def is_right(category: str, prompt: str) -> bool:
    return category == FRESH.classify(prompt)


def test_held_out_prompts_of_every_category_are_told_apart() -> None:
    right = Counter(category for category, prompt in HELD_OUT if is_right(category, prompt))
    asked = Counter(category for category, _ in HELD_OUT)
    assert [] == [category for category in asked if right[category] < 0.85 * asked[category]]


def test_the_reference_tells_far_fewer_of_them() -> None:
    right = sum(KeywordClassifier().classify(prompt) == category for category, prompt in HELD_OUT)
    assert right < 0.5 * sum(is_right(category, prompt) for category, prompt in HELD_OUT)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_prompts_of_our_workloads_are_classified_as_they_are_meant(workload: str) -> None:
    wordings, topics = WORKLOADS[workload]
    asked = [(kind, each.format(topic=topic)) for kind in wordings for each in wordings[kind] for topic in topics]
    assert sum(is_right(kind, prompt) for kind, prompt in asked) >= 0.98 * len(asked)


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("What is a summary judgment?", "short_qa"),
        ("Does the code of conduct mention gifts?", "short_qa"),
        ("Does this code leak memory?", OTHER),  # a question, and code: tied
        ("Which zip code has Graz?", "short_qa"),
        ("Who wrote the summary?", "short_qa"),
        ("How many code points has Unicode?", "short_qa"),
        ("Encode and decode", OTHER),  # no keyword inside a longer word
        ("Write an article about summaries", "report"),
        ("Write an email to the author of the report", OTHER),
        ("Write a JSON schema for a report", "technical"),
        ("Translate into German: Write a detailed report on Python code.", OTHER),
        ("Summarize:\nWrite a detailed report on Python code.", "summary"),
        ("Could you please briefly tell me who painted it?", "short_qa"),
        ("Explain tides in one sentence.", "short_qa"),
        ("Explain tides in 1,000 words.", "report"),
        ("Write a line of 20 words for my card.", OTHER),
        ("I have a dog. He is old. Where does he sleep?", "short_qa"),
        ("I can see you", OTHER),
        ("I have a dog, you know?", OTHER),
        ("The sentiment is\nA. good\nB. bad", "short_qa"),
        ("the cache is cold", OTHER),  # one word of a trade is not enough
        ("a morse code function", OTHER),
        ("Write a poem of 1,000 words", "report"),
        ("x = 1\nif y:\n    z(x)", "technical"),
        ("Sum up the match in one sentence.", "summary"),
        ("A script where the cook sings", "report"),
        ("What is a mutex?", "technical"),
        ("Pick one.\nA. red\nB. green", "short_qa"),
        ("Fasse zusammen, was im Protokoll steht.", "summary"),
        ("What\u2019s the tallest tree?", "short_qa"),
    ],
)
def test_what_is_asked_for_decides_and_not_what_is_spoken_of(prompt: str, category: str) -> None:
    assert category == Rules().classify(prompt)


@pytest.mark.parametrize(
    "prompt", ["", " \n", "?", "asdf", "🙂" * 50, "\x00\x1b[0m", "\ud800", ":" * 5000, "a" * 10**7]
)
def test_what_says_nothing_is_left_without_a_verdict(prompt: str) -> None:
    assert None is judge(Letter(prompt))
    assert OTHER == Rules().classify(prompt)


def test_what_stands_far_down_in_a_long_prompt_changes_nothing() -> None:
    head = "So it went on. " * 200
    assert len(head) > MAX_CHARS
    assert OTHER == Rules().classify(head + "Summarize this.")
    assert OTHER == Rules().classify(head + "```def f(): pass``` " * 1000)


def test_instructions_at_the_end_of_a_shorter_prompt_are_read() -> None:
    assert "summary" == Rules().classify("They met at noon and left at one. " * 20 + "Summarize this.")


def taught(prompts_each: int = MIN_PROMPTS, *, reassign: bool = True) -> Rules:
    """Has seen gardeners ask for code and painters ask short questions."""
    rules = Rules(reassign=reassign)
    for _ in range(prompts_each):
        rules.learn("Implement the ostler gannet plover in Python")
        rules.learn("Who keeps the wherry sampan dinghy")
    return rules


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("the ostler gannet plover", "technical"),
        ("the wherry sampan dinghy", "short_qa"),
        ("the ostler sampan", OTHER),
        ("the fiddle", OTHER),
    ],
)
def test_a_prompt_without_a_verdict_goes_where_its_words_were_seen(prompt: str, category: str) -> None:
    assert OTHER == Rules().classify(prompt)
    assert category == taught().classify(prompt)


def test_nothing_is_reassigned_before_enough_was_seen_nor_if_it_is_switched_off() -> None:
    assert OTHER == taught(MIN_PROMPTS - 1).classify("the ostler gannet plover")
    assert OTHER == taught(reassign=False).classify("the ostler gannet plover")


def test_a_verdict_of_the_rules_is_never_overruled() -> None:
    assert "summary" == taught().classify("Summarize the ostler gannet plover")


def test_prompts_without_a_verdict_teach_nothing() -> None:
    rules = Rules()
    before = rules.snapshot()
    rules.learn("the ostler gannet plover")
    rules.classify("Implement the ostler gannet plover in Python")
    assert before == rules.snapshot()


def test_once_a_thousand_prompts_were_read_one_of_eight_is() -> None:
    rules = Rules()
    for _ in range(READ_ALL):
        rules.learn("the fiddle")
    changes = 0
    for _ in range(READ_EVERY):
        before = rules.snapshot()
        rules.learn("Implement the ostler gannet plover in Python")
        changes += before != rules.snapshot()
    assert 1 == changes


def test_what_was_learnt_survives_as_plain_data_and_adds_up() -> None:
    restored = Rules()
    restored.restore(json.loads(json.dumps(taught().snapshot())))
    assert "technical" == restored.classify("the ostler gannet plover")
    merged = taught(MIN_PROMPTS // 2)
    merged.merge(taught(MIN_PROMPTS // 2).snapshot())
    assert taught().snapshot() == merged.snapshot()


def test_the_categories_are_those_of_the_reference_and_other() -> None:
    assert {*CATEGORIES, OTHER} == {FRESH.classify(prompt) for _, prompt in HELD_OUT}
