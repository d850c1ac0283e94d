"""The small model of which words go with which category."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from driftsched.estimators.bayes import MAX_COUNT, MIN_PROMPTS, TABLE_SIZE, WordModel, places_of

RED, BLUE = [b"rose", b"fire", b"blood"], [b"sky", b"sea", b"ink"]


def model(prompts_each: int = MIN_PROMPTS) -> WordModel:
    made = WordModel(("red", "blue"), margin=2.0)
    for _ in range(prompts_each):
        made.learn("red", RED)
        made.learn("blue", BLUE)
    return made


def test_words_are_guessed_by_what_they_went_with() -> None:
    assert ("red", "blue") == (model().guess(RED), model().guess(BLUE))


@pytest.mark.parametrize("words", [[], [b"unheard"], [b"rose", b"sky"]])
def test_words_that_do_not_stand_out_are_not_guessed(words: list[bytes]) -> None:
    assert None is model().guess(words)


def test_a_category_seldom_seen_is_not_guessed_and_one_alone_is_no_choice() -> None:
    made = model(MIN_PROMPTS - 1)
    assert None is made.guess(RED)
    made.learn("red", RED)
    assert None is made.guess(RED)


def test_a_word_says_less_of_a_category_that_has_seen_more_of_others() -> None:
    made = WordModel(("red", "blue"), margin=0.1)
    for number in range(MIN_PROMPTS):
        made.learn("red", [b"rose", *(b"%d-%d" % (number, word) for word in range(15))])
        made.learn("blue", [b"rose"])
    assert "blue" == made.guess([b"rose"])


def test_places_are_the_same_on_every_machine() -> None:
    assert [1233, 49] == list(places_of([b"rose", b"sky", b"rose"]))


def test_memory_is_bounded_and_what_is_old_fades() -> None:
    made = model()
    for number in range(3000):
        made.learn("red", [b"%d-%d" % (number, word) for word in range(16)])
    counts: Any = made.snapshot()["counts"]
    assert sum(counts["red"]) <= MAX_COUNT
    assert {TABLE_SIZE} == set(map(len, counts.values()))
    assert None is made.guess([b"rose"])


def test_a_snapshot_shares_nothing_that_still_changes() -> None:
    made = model()
    state = made.snapshot()
    before = json.dumps(state)
    made.learn("red", BLUE)
    assert before == json.dumps(state)
    assert before != json.dumps(made.snapshot())


def test_merging_is_learning_both_and_an_empty_state_changes_nothing() -> None:
    mine, theirs = model(3), model(4)
    theirs.learn("red", BLUE)
    both = model(7)
    both.learn("red", BLUE)
    mine.merge(theirs.snapshot())
    mine.merge(model(0).snapshot())
    assert both.snapshot() == mine.snapshot()


def test_merging_over_and_over_stays_bounded() -> None:
    made = model()
    for _ in range(40):
        made.merge(made.snapshot())
    counts: Any = made.snapshot()["counts"]
    assert all(sum(table) <= MAX_COUNT for table in counts.values())
    made.restore(made.snapshot())
    assert "red" == made.guess(RED)


def changed(**fields: object) -> Callable[[], dict[str, object]]:
    return lambda: {**model().snapshot(), **fields}


@pytest.mark.parametrize(
    "bad",
    [
        dict,
        changed(version=2),
        changed(version=True),
        changed(prompts=None),
        changed(counts=[]),
        changed(prompts={"red": 1, "green": 1}),
        changed(prompts={"red": -1, "blue": 1}),
        changed(prompts={"red": 1.5, "blue": 1}),
        changed(counts={"red": [0] * TABLE_SIZE, "blue": [0] * (TABLE_SIZE - 1)}),
        changed(counts={"red": [0] * TABLE_SIZE, "blue": [float("nan")] * TABLE_SIZE}),
        changed(counts={"red": [0] * TABLE_SIZE, "blue": [MAX_COUNT + 1] * TABLE_SIZE}),
        changed(counts={"red": [0] * TABLE_SIZE, "blue": "0" * TABLE_SIZE}),
    ],
)
def test_a_state_that_makes_no_sense_is_refused_and_changes_nothing(bad: Callable[[], dict[str, object]]) -> None:
    made = model()
    before = made.snapshot()
    with pytest.raises(ValueError, match=r"version|prompts|counts"):
        made.restore(bad())
    with pytest.raises(ValueError, match=r"version|prompts|counts"):
        made.merge(bad())
    assert before == made.snapshot()
