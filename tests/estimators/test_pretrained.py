"""The scorer that was trained beforehand: what its file may hold, what it says, what the estimator makes of it."""

import json
import subprocess
import sys
from math import inf, log, nan
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.model import Usage
from driftsched.estimators import create_estimator
from driftsched.estimators.adaptive import Adaptive
from driftsched.estimators.pretrained import MAX_DEPTH, MAX_FILE_BYTES, MAX_NODES, Scorer, Tree, dump, load, parse
from driftsched.estimators.text import FIGURES, NUM_DENSE, read
from support.prompts import request_of

LISTING = next(place for place, name in enumerate(FIGURES) if "enumerate" in name)
"""Figure of prompts that ask for a list."""

STUMP = Tree([LISTING, -1, -1], [0.5, 0, 0], [1, 0, 0], [2, 0, 0], [0, -0.25, 0.5])
LEAF = Tree([-1], [0], [0], [0], [0.125])


def figures_of(**values: float) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Figures that are 0 but for those given by place, as in `f3=1.5`."""
    figures = np.zeros(NUM_DENSE)
    for name, value in values.items():
        figures[int(name[1:])] = value
    return figures


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(dump(0.0, [STUMP, LEAF])), **changes}


def tree(**changes: Any) -> dict[str, Any]:
    """A document whose only tree is `STUMP` with other lists."""
    return document(trees=[{**{name: list(values) for name, values in STUMP._asdict().items()}, **changes}])


def random_tree(dice: Random, num_branches: int) -> Tree:
    """Leaves become branches at random, their children placed last."""
    feature, threshold, left, right, value = [-1], [0.0], [0], [0], [dice.gauss(0, 1)]
    for _ in range(num_branches):
        node = dice.choice([place for place, of in enumerate(feature) if of < 0])
        feature[node], threshold[node] = dice.randrange(NUM_DENSE), dice.gauss(0, 1)
        left[node], right[node] = len(feature), len(feature) + 1
        for values, new in ((feature, -1), (threshold, 0.0), (left, 0), (right, 0)):
            values += [new, new]
        value += [dice.gauss(0, 1), dice.gauss(0, 1)]
    return Tree(feature, threshold, left, right, value)


def walk(tree: Tree, figures: Any, node: int = 0) -> float:
    """What a tree says, by the definition."""
    if tree.feature[node] < 0:
        return tree.value[node]
    is_left = figures[tree.feature[node]] <= tree.threshold[node]
    return walk(tree, figures, tree.left[node] if is_left else tree.right[node])


# The score


def test_a_branch_leads_left_up_to_its_threshold_and_right_beyond() -> None:
    scorer = Scorer(0.0, [STUMP])
    assert [-0.25, -0.25, 0.5] == [scorer.score(figures_of(**{f"f{LISTING}": x})) for x in (0.0, 0.5, 0.500001)]


def test_the_score_is_the_base_and_what_each_tree_says() -> None:
    assert -1.0 - 0.25 + 0.125 == Scorer(-1.0, [LEAF, STUMP]).score(figures_of())


def test_trees_of_all_shapes_are_walked_as_defined() -> None:
    dice = Random(1)
    trees = [random_tree(dice, dice.randrange(30)) for _ in range(40)]
    scorer = parse(dump(0.5, trees))
    for _ in range(200):
        figures = np.array([dice.gauss(0, 1) for _ in range(NUM_DENSE)])
        assert pytest.approx(0.5 + sum(walk(tree, figures) for tree in trees), abs=1e-9) == scorer.score(figures)


# The file


def test_a_scorer_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "scorer.json"
    path.write_bytes(dump(0.25, [STUMP, LEAF]))
    scorer = load(path)
    assert (2, 0.25 - 0.25 + 0.125) == (scorer.num_trees, scorer.score(figures_of()))


def test_whole_numbers_may_stand_where_fractions_do() -> None:
    assert 3.0 == parse(json.dumps(tree(value=[0, 1, 2]) | {"base": 1}).encode()).score(figures_of()) + 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([], "no scorer"),
        ({}, "no scorer"),
        (document(format="tree"), "no scorer"),
        (document(version=2), "version 2"),
        (document(version=True), "version True"),
        (document(version=None), "version None"),
        (document(figures=list(FIGURES)[1:]), "other figures"),
        (document(figures=[*FIGURES[1:], FIGURES[0]]), "other figures"),
        (document(base=None), "base"),
        (document(base=nan), "base"),
        (document(base=-inf), "base"),
        (document(base=101), "base"),
        (document(base=10**400), "base"),
        (document(base=True), "base"),
        (document(trees=[]), "trees"),
        (document(trees={}), "trees"),
        (document(trees=[[]]), "trees"),
        (document(trees=[{}]), "trees[0].feature"),
        (tree(feature=[]), "one length"),
        (tree(value=[0.0, 0.0]), "one length"),
        (tree(feature=[0, "a", -1]), "trees[0].feature"),
        (tree(feature=[0.0, -1, -1]), "trees[0].feature"),
        (tree(feature=[True, -1, -1]), "trees[0].feature"),
        (tree(feature=[NUM_DENSE, -1, -1]), "node 0: feature"),
        (tree(feature=[-2, -1, -1]), "node 0: feature"),
        (tree(feature=[-1, -1, -1]), "node 1: no node before it"),
        (tree(threshold=[nan, 0, 0]), "node 0: threshold"),
        (tree(threshold=[inf, 0, 0]), "node 0: threshold"),
        (tree(threshold=["0.5", 0, 0]), "trees[0].threshold"),
        (tree(value=[0, nan, 0]), "node 1: threshold"),
        (tree(value=[0, 0, 1e9]), "node 2: threshold"),
        (tree(value=[0, None, 0]), "trees[0].value"),
        (tree(left=[0, 0, 0]), "node 0: must lead"),
        (tree(left=[-2, 0, 0]), "node 0: must lead"),
        (tree(left=[2, 0, 0]), "node 0: must lead"),
        (tree(right=[3, 0, 0]), "node 0: must lead"),
        (tree(right=[10**30, 0, 0]), "trees[0].right"),
        (tree(feature=[0, 0, -1], left=[1, 1, 0], right=[2, 2, 0]), "node 1: must lead"),
    ],
)
def test_what_is_no_scorer_is_refused_with_the_name_of_the_file(tmp_path: Path, wrong: Any, said: str) -> None:
    path = tmp_path / "scorer.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"pretrained: {path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"[" * 100_000, b"{", b"\xff\xfe", b"tree\nversion=v4\n"])
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "scorer.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"scorer\.json: not JSON"):
        load(path)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"pretrained: nowhere/scorer\.json: No such file"):
        load("nowhere/scorer.json")


def test_sizes_are_bounded() -> None:
    deep = MAX_DEPTH + 1
    chain = Tree(
        [0, -1] * deep + [-1],
        [0.0] * (2 * deep + 1),
        [1 + node for node in range(2 * deep)] + [0],
        [2 + node for node in range(2 * deep)] + [0],
        [0.0] * (2 * deep + 1),
    )
    with pytest.raises(ValueError, match="steps deep"):
        Scorer(0.0, [chain])
    with pytest.raises(ValueError, match="nodes together"):
        Scorer(0.0, [LEAF] * (MAX_NODES + 1))
    with pytest.raises(ValueError, match="MiB"):
        parse(b" " * (MAX_FILE_BYTES + 1))


def test_nothing_that_could_not_be_read_is_written() -> None:
    with pytest.raises(ValueError, match="threshold must be finite"):
        dump(0.0, [STUMP._replace(value=[0, nan, 0])])


def test_to_read_a_scorer_takes_no_library_that_trains_one(tmp_path: Path) -> None:
    path = tmp_path / "scorer.json"
    path.write_bytes(dump(0.0, [STUMP]))
    code = (
        "import sys; from driftsched.estimators import create_estimator\n"
        f"create_estimator('adaptive', pretrained={str(path)!r})\n"
        "print(*sorted({'lightgbm', 'sklearn'} & set(sys.modules)), 'end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "end" == done.stdout.strip()


def test_every_figure_has_a_name_of_its_own() -> None:
    assert NUM_DENSE == len(FIGURES) == len(set(FIGURES)) == len(read(request_of()).dense)


# The estimator


@pytest.fixture
def scorer_file(tmp_path: Path) -> str:
    """Answers to prompts that ask for a list are three times as long as others."""
    path = tmp_path / "scorer.json"
    half = log(3) / 2
    path.write_bytes(dump(0.0, [STUMP._replace(value=[0, -half, half])]))
    return str(path)


LIST = request_of(prompt="List some lighthouses of the north.")
OTHER = request_of(prompt="Where is it?")


def test_a_scorer_is_believed_a_little_before_anything_is_learnt(scorer_file: str) -> None:
    without, with_it = Adaptive(), Adaptive(pretrained=scorer_file)
    assert with_it.predict(LIST).q50 > 1.1 * without.predict(LIST).q50
    assert with_it.predict(OTHER).q50 < without.predict(OTHER).q50 / 1.1


def test_a_scorer_that_is_wrong_is_found_out(scorer_file: str) -> None:
    estimator = Adaptive(pretrained=scorer_file)
    for _ in range(150):
        estimator.learn(LIST, Usage(10, 100), finished=True)
        estimator.learn(OTHER, Usage(10, 100), finished=True)
    predicted = [estimator.predict(request).completion_tokens for request in (LIST, OTHER)]
    assert [pytest.approx(100, rel=0.05)] * 2 == predicted


def test_what_was_learnt_with_a_scorer_is_known_without_it_and_the_other_way_round(scorer_file: str) -> None:
    for before, after in (
        (Adaptive(), Adaptive(pretrained=scorer_file)),
        (Adaptive(pretrained=scorer_file), Adaptive()),
    ):
        for _ in range(50):
            before.learn(LIST, Usage(10, 300), finished=True)
            before.learn(OTHER, Usage(10, 100), finished=True)
        after.restore(before.snapshot())
        predicted = [after.predict(request).completion_tokens for request in (LIST, OTHER)]
        assert [pytest.approx(300, rel=0.2), pytest.approx(100, rel=0.2)] == predicted


def test_a_scorer_that_cannot_be_read_stops_the_start() -> None:
    with pytest.raises(ConfigError, match=r"pretrained: nowhere\.json: No such file"):
        create_estimator("adaptive", pretrained="nowhere.json")
