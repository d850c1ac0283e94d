from math import sqrt
from random import Random

import pytest

from driftsched.core.events import Dispatched, Finished
from driftsched.core.model import Estimate, Ticket, Usage
from driftsched.core.worth import MEMORY, MIN_ANSWERS, Worth, kendall_tau
from support.scheduling import request_at


def finished(predicted: float, tokens: int, reason: str = "stop") -> Finished:
    ticket = Ticket(request_at(), Estimate(predicted, 1, 1, 1), 0, 0, "all", 0.0, 0.0)
    return Finished(1.0, ticket, Usage(1, tokens), reason, 0.0, None, 0.0)


def told(*pairs: tuple[float, int], worth: Worth | None = None) -> Worth:
    worth = worth or Worth()
    for predicted, tokens in pairs:
        worth(finished(predicted, tokens))
    return worth


def good(number: int, seed: int = 1) -> list[tuple[float, int]]:
    random = Random(seed)
    lengths = [random.randint(1, 1000) for _ in range(number)]
    return [(length * random.uniform(0.5, 2), length) for length in lengths]


def noise(number: int, seed: int = 1) -> list[tuple[float, int]]:
    random = Random(seed)
    return [(random.random(), random.randint(1, 1000)) for _ in range(number)]


def by_pairs(pairs: list[tuple[float, int]]) -> float:
    """Kendall's tau-b as its definition has it."""
    compared = [(a[0] - b[0], a[1] - b[1]) for n, a in enumerate(pairs) for b in pairs[:n]]
    surplus = sum((x > 0) - (x < 0) if y > 0 else (x < 0) - (x > 0) for x, y in compared if y)
    differ = [sum(pair[place] != 0 for pair in compared) for place in (0, 1)]
    return float(surplus / sqrt(differ[0] * differ[1]))


@pytest.mark.parametrize("seed", range(8))
def test_tau_is_that_of_all_pairs_ties_included(seed: int) -> None:
    random = Random(seed)
    pairs = [(float(random.randint(0, 9)), random.randint(0, 9)) for _ in range(60)]
    assert pytest.approx(by_pairs(pairs)) == kendall_tau(told(*pairs)._answers)


def test_predictions_are_trusted_until_there_are_answers_enough() -> None:
    assert told(*noise(MIN_ANSWERS - 1)).judge()


def test_good_predictions_are_worth_something_and_noise_is_not() -> None:
    assert told(*good(MEMORY)).judge()
    assert [False] * 4 == [told(*noise(MEMORY, seed)).judge() for seed in (2, 3, 4, 6)]


def test_predictions_that_are_all_the_same_are_worth_nothing() -> None:
    worth = told(*((100.0, length) for _, length in good(MEMORY)))
    assert (False, 0.0) == (worth.judge(), worth.tau)


def test_weak_predictions_change_nothing_either_way() -> None:
    weak = [*good(150), *noise(MEMORY - 150, seed=3)]
    trusted, distrusted = told(*weak), told(*noise(MEMORY, seed=3))
    assert not distrusted.judge()
    told(*weak, worth=distrusted)
    assert [True, False] == [trusted.judge(), distrusted.judge()]
    assert 0.05 < trusted.tau < 0.10


def test_trust_returns_when_they_are_good_again() -> None:
    worth = told(*noise(MEMORY, seed=3))
    assert not worth.judge()
    assert told(*good(MEMORY), worth=worth).judge()


def test_answers_cut_off_and_other_events_teach_nothing() -> None:
    worth = told(*good(MEMORY))
    for predicted, tokens in noise(MEMORY):
        worth(finished(predicted, tokens, "length"))
        worth(Dispatched(1.0, finished(predicted, tokens).ticket, why="only_waiting"))
    assert worth.judge()
    assert worth.tau > 0.5
