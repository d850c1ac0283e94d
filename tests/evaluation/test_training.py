"""What is learnt from recorded requests, and the trees that come of it."""

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from math import log
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from driftsched.cli import app
from driftsched.core.errors import ConfigError
from driftsched.core.model import Traits
from driftsched.estimators.categories import KeywordClassifier
from driftsched.estimators.describe import PromptDescriber
from driftsched.estimators.pretrained import Scorer, Tree, load
from driftsched.estimators.text import FIGURES, NUM_DENSE
from driftsched.estimators.tokens import WhitespaceCounter
from driftsched.evaluation.rows import Row
from driftsched.evaluation.stream import Pace, describe, timeline
from driftsched.evaluation.training import (
    FEW_ANSWERS,
    MEDIAN_WINDOW,
    MIN_EXAMPLES,
    Examples,
    Settings,
    examples_of,
    train,
    trees_of,
)
from driftsched.training import run_train, text

needs_lightgbm = pytest.mark.skipif(
    find_spec("lightgbm") is None and not os.environ.get("CI"),
    reason="needs `pip install 'driftsched[pretrained]'`",
)

LIST, QUESTION = "List the lighthouses of the north.", "Where is it?"
HOUR = 3600.0


def spaced(rows: Sequence[Row]) -> list[Row]:
    """Rows that come an hour apart, each after the one before has ended."""
    return [Row(**{**fields(row), "arrived_at": HOUR * number}) for number, row in enumerate(rows)]


def fields(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def examples(rows: Sequence[Row]) -> Examples:
    times = timeline(rows, Pace())
    return examples_of(
        rows, describe(rows, times, PromptDescriber(KeywordClassifier(), WhitespaceCounter())), times
    )


def figure(found: Examples, name: str) -> list[float]:
    return [float(value) for value in found.figures[:, FIGURES.index(name)]]


def lists_and_questions(count: int, ratio: float = 4.0) -> list[Row]:
    """Answers to lists are `ratio` times as long as those to questions, and both scatter."""
    dice = Random(1)
    return [
        Row(round(100 * dice.lognormvariate(0, 0.2) * (ratio if prompt == LIST else 1)), prompt=prompt)
        for prompt in dice.choices((LIST, QUESTION), k=count)
    ]


# What is learnt from


def test_a_length_is_measured_by_the_median_of_what_its_model_answered_before() -> None:
    lengths = [10 * number for number in range(1, FEW_ANSWERS + 1)]
    found = examples(spaced([*map(Row, lengths), Row(500), Row(1000)]))
    assert ([500.0, 1000.0], [55.0, 60.0]) == (found.lengths.tolist(), found.medians.tolist())
    assert pytest.approx([log(500 / 55), log(1000 / 60)]) == found.targets.tolist()


def test_an_answer_is_not_known_before_it_would_have_ended() -> None:
    rows = [Row(100, arrived_at=0.001 * number) for number in range(50)]
    assert (0, 50) == (len(examples(rows)), examples(rows).num_early)


def test_each_model_has_a_median_of_its_own() -> None:
    known = [Row(10 if number % 2 else 1000, model="ab"[number % 2]) for number in range(2 * FEW_ANSWERS)]
    found = examples(spaced([*known, Row(1, model="a"), Row(1, model="b"), Row(1, model="c")]))
    assert ([1000.0, 10.0], 2 * FEW_ANSWERS + 1) == (found.medians.tolist(), found.num_early)


def test_the_median_forgets_what_is_long_past() -> None:
    rows = [Row(1000)] * MEDIAN_WINDOW + [Row(10)] * (MEDIAN_WINDOW // 2 + 1) + [Row(7)]
    assert 10.0 == examples(spaced(rows)).medians[-1]


def test_answers_that_were_cut_short_are_left_out() -> None:
    cut = [Row(9, finish_reason="length"), Row(9, finish_reason="cancelled"), Row(9, max_tokens=9)]
    found = examples(spaced([Row(50)] * FEW_ANSWERS + cut + [Row(60)]))
    assert ([60.0], [50.0], 3) == (found.lengths.tolist(), found.medians.tolist(), found.num_cut)


def test_an_empty_answer_counts_as_one_token() -> None:
    found = examples(spaced([Row(0)] * FEW_ANSWERS + [Row(0)]))
    assert [0.0] == found.targets.tolist()


def test_figures_know_the_last_answer_of_the_session_as_a_gateway_would() -> None:
    mine, other = Traits(session="mine", turn=1), Traits(session="other", turn=1)
    known = [Row(50)] * FEW_ANSWERS
    found = examples(spaced([*known, Row(200, traits=mine), Row(9, traits=mine), Row(9, traits=other), Row(9)]))
    assert [0.0, 1.0, 0.0, 0.0] == figure(found, "previous answer known")
    assert pytest.approx(log(200) - 5) == figure(found, "previous answer")[1]


# The trees


def leaf(value: float) -> dict[str, Any]:
    return {"leaf_index": 0, "leaf_value": value}


def split(left: Any, right: Any, **changes: Any) -> dict[str, Any]:
    node = {"split_feature": 1, "threshold": 0.5, "decision_type": "<=", "missing_type": "None"}
    return {**node, "left_child": left, "right_child": right, **changes}


def test_nodes_are_laid_out_so_that_each_comes_before_its_children() -> None:
    root = split(leaf(1), split(leaf(2), leaf(3), split_feature=2, threshold=1.5))
    assert [Tree((1, -1, 2, -1, -1), (0.5, 0, 1.5, 0, 0), (1, 0, 3, 0, 0), (2, 0, 4, 0, 0), (0, 1, 0, 2, 3))] == (
        trees_of({"tree_info": [{"tree_structure": root}]})
    )


@pytest.mark.parametrize("change", [{"decision_type": "=="}, {"missing_type": "NaN"}])
def test_splits_of_a_kind_that_cannot_be_evaluated_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a split by"):
        trees_of({"tree_info": [{"tree_structure": split(leaf(1), leaf(2), **change)}]})


@needs_lightgbm
def test_a_scorer_says_to_the_ninth_digit_what_the_library_says() -> None:
    import lightgbm

    dice = np.random.default_rng(1)
    figures = np.round(dice.normal(size=(2000, NUM_DENSE)), 1)
    lengths = figures[:, 1] * figures[:, 2] + (figures[:, 3] > 0) + dice.normal(size=2000)
    options = {
        "objective": "regression_l1",
        "num_leaves": 31,
        "use_missing": False,
        "num_threads": 1,
        "verbose": -1,
    }
    booster = lightgbm.train(options, lightgbm.Dataset(figures, lengths), 50)
    scorer = Scorer(0.0, trees_of(booster.dump_model()))
    asked = np.round(dice.normal(size=(500, NUM_DENSE)), 1)
    assert pytest.approx(np.asarray(booster.predict(asked)), abs=1e-9) == [scorer.score(row) for row in asked]


@needs_lightgbm
def test_trees_find_which_prompts_are_answered_at_length() -> None:
    found = train(examples(lists_and_questions(600)), 0.2, Settings())
    assert found.helps
    assert found.scored["mae"] < 0.3 * found.median["mae"]
    assert found.num_held_out == round(0.2 * found.num_examples)
    scorer = Scorer(0.0, found.trees)
    rows = examples(lists_and_questions(600)).figures[:50]
    listing = next(place for place, name in enumerate(FIGURES) if "enumerate" in name)
    scores = [{scorer.score(row) for row in rows if row[listing] == asked} for asked in (0.0, 1.0)]
    assert pytest.approx(log(4), abs=0.3) == min(scores[1]) - max(scores[0])


@needs_lightgbm
def test_where_there_is_nothing_to_be_found_that_is_said() -> None:
    found = train(examples(lists_and_questions(600, ratio=1.0)), 0.2, Settings())
    assert found.scored["mae"] > 0.9 * found.median["mae"]
    assert "No better than the median" in text(replace(found, scored=found.median))
    assert "No better" not in text(replace(found, scored={**found.median, "mae": found.median["mae"] / 2}))


@needs_lightgbm
def test_the_same_requests_make_the_same_trees() -> None:
    found = examples(lists_and_questions(400))
    assert train(found, 0.2, Settings(max_trees=20)).trees == train(found, 0.2, Settings(max_trees=20)).trees


def with_last(found: Examples, count: int, length: float) -> Examples:
    """The same, except that the last `count` answers have that length."""
    is_last = np.arange(len(found)) >= len(found) - count
    return replace(found, lengths=np.where(is_last, length, found.lengths))


@needs_lightgbm
def test_trees_are_judged_on_answers_that_they_have_not_seen() -> None:
    found = examples(lists_and_questions(500))
    num_held_out = round(0.2 * len(found))
    short, long = (train(with_last(found, num_held_out, length), 0.2, Settings()) for length in (1, 1000))
    assert pytest.approx(log(1000)) == short.scored["bias"] - long.scored["bias"]


@needs_lightgbm
def test_the_trees_that_are_kept_have_seen_them_as_well() -> None:
    found = examples(lists_and_questions(500))
    short, long = (train(with_last(found, 50, length), 0.2, Settings()) for length in (1, 1000))
    assert len(short.trees) == len(long.trees)
    assert short.trees != long.trees


@needs_lightgbm
def test_no_more_trees_are_grown_than_bring_something() -> None:
    dice = np.random.default_rng(1)
    noise = Examples(dice.normal(size=(500, NUM_DENSE)), dice.lognormal(5, 1, 500), np.full(500, 150.0))
    assert len(train(noise, 0.2, Settings()).trees) < 50


@needs_lightgbm
def test_limits_on_trees_and_leaves_are_kept() -> None:
    found = train(examples(lists_and_questions(400)), 0.2, Settings(max_trees=3, leaves=2))
    assert len(found.trees) <= 3
    assert all(len(tree.feature) <= 3 for tree in found.trees)


def test_too_few_requests_are_refused_and_counted() -> None:
    rows = spaced([*[Row(50)] * (FEW_ANSWERS + 5), Row(9, finish_reason="length")])
    with pytest.raises(
        ConfigError, match=f"5 rows .* {MIN_EXAMPLES} are needed; left out: 1 cut short, 10 that came"
    ):
        train(examples(rows), 0.2, Settings())


@pytest.mark.parametrize("holdout", [0.0, -0.1, 0.51, float("nan")])
def test_a_holdout_that_is_no_share_is_refused(holdout: float) -> None:
    with pytest.raises(ConfigError, match="--holdout"):
        train(examples(spaced([Row(1)])), holdout, Settings())


@pytest.mark.parametrize(
    "wrong", [{"max_trees": 0}, {"leaves": 1}, {"leaves": 256}, {"seed": -1}, {"seed": 1 << 31}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="--trees from 1"):
        Settings(**wrong)


def test_more_trees_than_can_be_scored_are_refused() -> None:
    with pytest.raises(ConfigError, match="--trees 10000"):
        Settings(max_trees=10_000)


# The command


@needs_lightgbm
def test_a_file_of_requests_becomes_a_file_that_can_be_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "requests.jsonl.gz", tmp_path / "scorer.json"
    lines = (
        json.dumps({"model": "m", "prompt": row.prompt, "completion_tokens": row.completion_tokens})
        for row in lists_and_questions(400)
    )
    data.write_bytes(gzip.compress("\n".join(lines).encode()))
    run_train(data, out, settings=Settings(max_trees=5))
    said = capsys.readouterr().out
    assert said.startswith("requests.jsonl.gz: 400 rows, left out 0 cut short, ")
    assert f"{out}: {load(out).num_trees} trees" in said


@needs_lightgbm
def test_the_command_takes_its_options(tmp_path: Path) -> None:
    data, out = tmp_path / "requests.csv", tmp_path / "scorer.json"
    data.write_text("completion_tokens,prompt_tokens\n" + "50,20\n100,40\n" * 200)
    options = ["--holdout", "0.5", "--trees", "7", "--leaves", "2", "--seed", "3"]
    done = CliRunner().invoke(app, ["train", str(data), "-o", str(out), *options])
    assert 0 == done.exit_code
    assert "Trained without the last 180 of 359:" in done.stdout
    assert 7 == load(out).num_trees


def test_categories_come_from_the_classifier_that_is_named(tmp_path: Path) -> None:
    data = tmp_path / "requests.csv"
    data.write_text("completion_tokens\n50\n")
    with pytest.raises(ConfigError, match="unknown classifier 'horoscope'"):
        run_train(data, tmp_path / "scorer.json", classifier="horoscope")


@needs_lightgbm
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    data = tmp_path / "requests.csv"
    data.write_text("completion_tokens\n" + "50\n60\n" * 200)
    with pytest.raises(ConfigError, match=r"--out .*nowhere"):
        run_train(data, tmp_path / "nowhere" / "scorer.json")


@pytest.mark.skipif(find_spec("lightgbm") is not None, reason="LightGBM is installed here")
def test_without_the_library_the_extra_is_named() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'driftsched\[pretrained\]'"):
        train(examples(lists_and_questions(400)), 0.2, Settings())
