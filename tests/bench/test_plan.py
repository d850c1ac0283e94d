from collections import Counter
from random import Random

import pytest

from driftsched.bench.plan import (
    WARMUP,
    Block,
    Setup,
    interleaved,
    padded_prompt,
    parse_setup,
    shots_of,
    with_warmup,
)
from driftsched.bench.prompts import TEMPLATES
from driftsched.core.model import Tier
from driftsched.estimators.categories import KeywordClassifier
from driftsched.sim.trace import Row

SETUPS = (Setup("fifo"), Setup("sjf", "ema"), Setup("sjf", "adaptive"))


def test_every_setup_is_driven_once_for_each_seed_before_the_next_seed_begins() -> None:
    blocks = interleaved(SETUPS, [1, 2, 3, 4], order_seed=1)
    assert [seed for seed in (1, 2, 3, 4) for _ in SETUPS] == [block.seed for block in blocks]
    assert {Block(setup, seed) for setup in SETUPS for seed in (1, 2, 3, 4)} == set(blocks)


def test_no_setup_always_comes_first_and_the_order_is_reproducible() -> None:
    blocks = interleaved(SETUPS, list(range(60)), order_seed=1)
    firsts = Counter(block.setup for block in blocks[:: len(SETUPS)])
    assert set(SETUPS) == set(firsts)
    assert all(10 <= count <= 30 for count in firsts.values())
    assert blocks == interleaved(SETUPS, list(range(60)), order_seed=1)
    assert blocks != interleaved(SETUPS, list(range(60)), order_seed=2)


@pytest.mark.parametrize("category", TEMPLATES)
@pytest.mark.parametrize("tokens", [40, 300, 2000])
def test_a_prompt_is_as_long_as_wanted_and_still_shows_its_category(category: str, tokens: int) -> None:
    prompt = padded_prompt(category, tokens, Random(7))
    assert tokens == pytest.approx(1.3 * len(prompt.split()), abs=1.3)
    assert category == KeywordClassifier().classify(prompt)


def test_a_question_is_never_cut_short_and_an_unknown_category_is_a_short_one() -> None:
    prompt = padded_prompt("poetry", 1, Random(7))
    assert prompt[-1] in "?."
    assert KeywordClassifier().classify(prompt) == "short_qa"


def test_no_two_prompts_begin_alike_for_long() -> None:
    shots = shots_of([Row(float(n), 400, 10) for n in range(30)], seed=1)
    beginnings = {" ".join(shot.messages[0]["content"].split()[:40]) for shot in shots}
    assert 30 == len(beginnings)


def test_a_shot_says_what_its_row_says() -> None:
    row = Row(1.5, 20, 7, tenant="acme", tier=Tier.BATCH, category="report", max_tokens=99, prompt="Why?")
    shot = shots_of([row], seed=1)[0]
    assert (1.5, "acme", "batch", "report", 99) == (shot.at, shot.tenant, shot.tier, shot.kind, shot.max_tokens)
    assert ({"role": "user", "content": "Why?"},) == shot.messages


def test_limits_are_the_rows_own_unless_lengths_are_imposed_or_the_user_asks_for_less() -> None:
    rows = [Row(0.0, 20, 7, max_tokens=99), Row(1.0, 20, 500)]
    assert [99, None] == [shot.max_tokens for shot in shots_of(rows, 1)]
    assert [7, 500] == [shot.max_tokens for shot in shots_of(rows, 1, impose_lengths=True)]
    assert [50, 50] == [shot.max_tokens for shot in shots_of(rows, 1, max_tokens=50)]
    assert [7, 50] == [shot.max_tokens for shot in shots_of(rows, 1, impose_lengths=True, max_tokens=50)]


def test_the_first_requests_are_labelled_as_warm_up_and_not_otherwise_changed() -> None:
    rows = [Row(float(n), 20, 7, phase="stress") for n in range(4)]
    labelled = with_warmup(rows, 2)
    assert [WARMUP, WARMUP, "stress", "stress"] == [row.phase for row in labelled]
    assert [0.0, 1.0, 2.0, 3.0] == [row.at for row in labelled]


def test_a_policy_may_bring_its_own_estimator() -> None:
    assert Setup("sjf", "ema") == parse_setup(" sjf+ema ", "adaptive")
    assert Setup("sjf", "adaptive") == parse_setup("sjf", "adaptive")
