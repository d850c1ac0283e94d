"""Trees trained on recorded requests: what the figures of a request tell about its length, beyond its model.

What is learnt is the logarithm of length / running median of the model, both as they were known when the request
came; so the level of a model, which moves, stays out of the file, and the gateway learns it anew.

Only this module wants LightGBM, and only when something is trained.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from driftsched.core.errors import ConfigError
from driftsched.core.model import Request
from driftsched.estimators import text
from driftsched.estimators.pretrained import MAX_NODES, Scorer, Tree
from driftsched.evaluation import scores
from driftsched.evaluation.rows import Row
from driftsched.evaluation.scores import Said
from driftsched.evaluation.stream import Column, Timeline

MEDIAN_WINDOW = 500
"""Answers of a model that its running median is taken over."""
FEW_ANSWERS = 10
"""A median of fewer says too little to measure lengths by."""
MIN_EXAMPLES = 200
CHOOSING_SHARE = 0.2
"""Of the examples before the holdout, the last so many choose how many trees there are."""
PATIENCE = 30
"""Trees in a row that may bring nothing before no more are grown."""

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How trees are grown."""

    max_trees: int = 200
    """>= 1."""
    leaves: int = 15
    """Of each tree, at most; 2 to 255."""
    seed: int = 1

    def __post_init__(self) -> None:
        if not (self.max_trees >= 1 and 2 <= self.leaves <= 255 and 0 <= self.seed < 1 << 31):
            raise ConfigError("train: --trees from 1, --leaves from 2 to 255, --seed from 0 on")
        if self.max_trees * (2 * self.leaves - 1) > MAX_NODES:
            raise ConfigError(f"--trees {self.max_trees}: with {self.leaves} leaves each too many to be scored")


@dataclass(frozen=True, slots=True)
class Examples:
    """Requests whose whole length and whose model's median are known, in order of arrival."""

    figures: Figures
    """Shape (examples, `NUM_DENSE`)."""
    lengths: Column
    """Tokens, at least 1."""
    medians: Column
    """Running median of the model when the request came, tokens."""
    num_cut: int = 0
    """Rows left out because their answer was cut short."""
    num_early: int = 0
    """Rows left out because too few answers of their model were known."""

    @property
    def targets(self) -> Column:
        return np.log(self.lengths / self.medians)

    def part(self, first: int, end: int) -> "Examples":
        where = slice(first, end)
        return Examples(self.figures[where], self.lengths[where], self.medians[where])

    def __len__(self) -> int:
        return len(self.lengths)


class _Median:
    """Of the last `MEDIAN_WINDOW` lengths."""

    def __init__(self) -> None:
        self._ordered: list[int] = []
        self._recent: deque[int] = deque()

    def observe(self, length: int) -> None:
        self._recent.append(length)
        insort(self._ordered, length)
        if len(self._recent) > MEDIAN_WINDOW:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]

    @property
    def value(self) -> float | None:
        """None before `FEW_ANSWERS`."""
        return median(self._ordered) if len(self._ordered) >= FEW_ANSWERS else None


def examples_of(rows: Sequence[Row], requests: Sequence[Request], times: Timeline) -> Examples:
    """What a gateway would have known of each request when it came, and how long its answer was.

    Answers that were cut short teach nothing here: that they are longer than they are is no length.
    """
    medians: dict[str, _Median] = {}
    previous: dict[str, int] = {}  # by session
    figures, lengths, levels = [], [], []
    num_cut = num_early = 0
    for number, (row, request) in enumerate(zip(rows, requests, strict=True)):
        for done in times.due[number]:
            if rows[done].finished:
                length = max(rows[done].completion_tokens, 1)
                medians.setdefault(rows[done].model, _Median()).observe(length)
                previous[rows[done].traits.session] = length
        level = medians[row.model].value if row.model in medians else None
        if not row.finished:
            num_cut += 1
        elif level is None:
            num_early += 1
        else:
            session = row.traits.session
            figures.append(text.read(request, previous.get(session, 0) if session else 0).dense)
            lengths.append(max(row.completion_tokens, 1))
            levels.append(level)
    return Examples(
        np.array(figures).reshape(-1, text.NUM_DENSE), _column(lengths), _column(levels), num_cut, num_early
    )


def _column(values: Sequence[float]) -> Column:
    return np.array(values, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Trained:
    """A scorer's trees, and what others of their kind did on the examples that were held out."""

    trees: Sequence[Tree]
    num_examples: int
    num_held_out: int
    median: Mapping[str, Any]
    """Scores of the running median of the model on the examples held out."""
    scored: Mapping[str, Any]
    """Scores of the median times what the trees say, trained without the examples held out."""

    @property
    def helps(self) -> bool:
        """The error in tokens of what was held out is smaller than the median's."""
        return bool(self.scored["mae"] < self.median["mae"])


def train(examples: Examples, holdout: float, settings: Settings) -> Trained:
    """Grow trees, judge them on the last share `holdout` of the examples, and grow as many on all of them.

    How many is chosen on the last fifth of the other examples. 0 < `holdout` <= 0.5. Raises `ConfigError` for too
    few examples, or if LightGBM is missing.
    """
    if not 0 < holdout <= 0.5:
        raise ConfigError(f"--holdout {holdout}: must be above 0 and at most 0.5")
    if len(examples) < MIN_EXAMPLES:
        raise ConfigError(
            f"train: {len(examples)} rows can be learnt from, and {MIN_EXAMPLES} are needed; left out: "
            f"{examples.num_cut} cut short, {examples.num_early} that came before {FEW_ANSWERS} answers of their "
            "model were known"
        )
    num_judging = max(1, round(len(examples) * holdout))
    first_held_out = len(examples) - num_judging
    first_choosing = round(first_held_out * (1 - CHOOSING_SHARE))
    choosing = examples.part(first_choosing, first_held_out)
    num_trees = len(_grow(examples.part(0, first_choosing), settings, settings.max_trees, choosing))
    judged = Scorer(0.0, _grow(examples.part(0, first_held_out), settings, num_trees))
    held_out = examples.part(first_held_out, len(examples))
    ratios = np.exp([judged.score(figures) for figures in held_out.figures])
    return Trained(
        _grow(examples, settings, num_trees),
        len(examples),
        num_judging,
        _judged(held_out, held_out.medians),
        _judged(held_out, held_out.medians * ratios),
    )


def _judged(examples: Examples, predicted: Column) -> dict[str, object]:
    return scores.errors(Said(examples.lengths, predicted, dict.fromkeys(scores.LEVELS, predicted)))


def _grow(examples: Examples, settings: Settings, num_trees: int, choosing: Examples | None = None) -> list[Tree]:
    """`num_trees` trees, or as many of them as are best for the examples `choosing`."""
    try:
        import lightgbm  # an extra: whoever trains nothing need not have it
    except ImportError as error:
        raise ConfigError("train needs: pip install 'driftsched[pretrained]'") from error
    data = lightgbm.Dataset(examples.figures, examples.targets)
    valid_sets: list[Any] | None = None
    callbacks: list[Any] | None = None
    if choosing is not None:
        valid_sets = [lightgbm.Dataset(choosing.figures, choosing.targets, reference=data)]
        callbacks = [lightgbm.early_stopping(PATIENCE, verbose=False)]
    booster = lightgbm.train(
        {
            "objective": "regression_l1",  # the median: what a point prediction is here
            "learning_rate": 0.05,
            "num_leaves": settings.leaves,
            "max_depth": min(settings.leaves - 1, 12),
            "min_data_in_leaf": 20,
            "feature_fraction": 0.7,
            "use_missing": False,
            "seed": settings.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,  # sums in another order are other sums
            "verbose": -1,
        },
        data,
        num_trees,
        valid_sets=valid_sets,
        callbacks=callbacks,
    )
    return trees_of(booster.dump_model())


def trees_of(dump: Mapping[str, Any]) -> list[Tree]:
    """The trees of a model as LightGBM dumps it. Raises `ValueError` for what `Scorer` cannot evaluate."""
    return [_tree(tree["tree_structure"]) for tree in dump["tree_info"]]


def _tree(root: Mapping[str, Any]) -> Tree:
    """Breadth first, so that every node comes before its children."""
    rows: list[tuple[int, float, int, int, float]] = []
    waiting = deque([root])
    while waiting:
        node = waiting.popleft()
        if "leaf_value" in node:
            rows.append((-1, 0.0, 0, 0, node["leaf_value"]))
        elif node["decision_type"] == "<=" and node["missing_type"] == "None":
            child = len(rows) + len(waiting) + 1  # where its left child will be
            rows.append((node["split_feature"], node["threshold"], child, child + 1, 0.0))
            waiting += (node["left_child"], node["right_child"])
        else:
            raise ValueError(f"a split by {node['decision_type']!r}, missing values as {node['missing_type']}")
    return Tree(*zip(*rows, strict=True))
