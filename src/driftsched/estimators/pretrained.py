"""Trees that score a request by its figures, trained beforehand, read from a file of numbers.

The file is one JSON object:

    {"format": "driftsched scorer", "version": 1, "figures": [...], "base": 0.0,
     "trees": [{"feature": [...], "threshold": [...], "left": [...], "right": [...], "value": [...]}, ...]}

`figures` are the names of what was trained on, `driftsched.estimators.text.FIGURES`. A tree's five lists have an
entry for each of its nodes, the root first, every node before its children. A node with `feature` -1 is a leaf and
worth its `value`; any other leads to `left` if the figure with that number is at most `threshold`, else to `right`.
The score is `base` and the values of the leaves that are reached, added up.

Nothing in the file is executed, and nothing is used before all of it was checked.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from driftsched.core.errors import ConfigError
from driftsched.estimators.text import FIGURES

Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

FORMAT: Final = "driftsched scorer"
VERSION: Final = 1
MAX_FILE_BYTES: Final = 8 << 20
MAX_NODES: Final = 100_000
"""Of all trees together; scoring takes about 5 ns for each."""
MAX_DEPTH: Final = 64
MAX_VALUE: Final = 100.0
"""Of the base and of each leaf, either side of 0: a score is the logarithm of a ratio of lengths."""

_LEAF: Final = -1
_LISTS: Final = ("feature", "threshold", "left", "right", "value")


class Tree(NamedTuple):
    """One tree, a value for each node in each list; see the module for what they mean."""

    feature: Sequence[int]
    threshold: Sequence[float]
    left: Sequence[int]
    right: Sequence[int]
    value: Sequence[float]


class Scorer:
    """A sum of trees, evaluated for one request at a time."""

    def __init__(self, base: float, trees: Sequence[Tree]) -> None:
        """Raises `ValueError`, naming the tree, if one is no tree over `FIGURES` or a number is out of range."""
        if not abs(base) <= MAX_VALUE:
            raise ValueError(f"base: must be within {MAX_VALUE:g} of 0, not {base:g}")
        if not trees or sum(len(tree.feature) for tree in trees) > MAX_NODES:
            raise ValueError(f"trees: must be one or more, of {MAX_NODES} nodes together at most")
        self.num_trees = len(trees)
        self._base = base
        self._depth = max(_checked_depth(number, tree) for number, tree in enumerate(trees))
        self._lay_out(trees)

    def score(self, figures: Vector) -> float:
        """Logarithm of the expected length, relative to the median of its model. `figures`: `Reading.dense`."""
        is_left = figures[self._feature] <= self._threshold
        step = self._stay.copy()
        step[: len(is_left)] = np.where(is_left, self._left, self._right)
        places = self._roots
        for _ in range(self._depth):
            places = step[places]
        return self._base + float(self._value[places].sum())

    def _lay_out(self, trees: Sequence[Tree]) -> None:
        """All nodes in one row, branches before leaves, so that one step down is one look-up for all trees.

        A leaf leads to itself: who has arrived waits for the others.
        """
        starts = np.cumsum([0, *(len(tree.feature) for tree in trees)])
        feature = np.concatenate([tree.feature for tree in trees]).astype(np.intp)
        branches = np.flatnonzero(feature != _LEAF)
        place = np.empty(len(feature), np.intp)
        place[np.concatenate((branches, np.flatnonzero(feature == _LEAF)))] = np.arange(len(feature))
        left = np.concatenate([start + np.array(tree.left) for start, tree in zip(starts, trees, strict=False)])
        right = np.concatenate([start + np.array(tree.right) for start, tree in zip(starts, trees, strict=False)])
        self._feature: Places = feature[branches]
        self._threshold: Vector = np.concatenate([tree.threshold for tree in trees])[branches]
        self._left: Places = place[left[branches]]
        self._right: Places = place[right[branches]]
        self._stay: Places = np.arange(len(feature))
        self._roots: Places = place[starts[:-1]]
        self._value: Vector = np.zeros(len(feature))
        self._value[place] = np.concatenate([tree.value for tree in trees])


def _checked_depth(number: int, tree: Tree) -> int:
    """Steps from the root to the deepest leaf. Raises `ValueError` unless every node hangs from exactly one."""
    count = len(tree.feature)
    if not count or any(len(values) != count for values in tree):
        raise ValueError(f"trees[{number}]: the lists {', '.join(_LISTS)} must be of one length, at least 1")
    depths = [-1] * count
    depths[0] = 0
    for node, (feature, threshold, left, right, value) in enumerate(zip(*tree, strict=True)):
        where = f"trees[{number}], node {node}"
        if depths[node] < 0:
            raise ValueError(f"{where}: no node before it leads here")
        if not (isfinite(threshold) and abs(value) <= MAX_VALUE):
            raise ValueError(f"{where}: threshold must be finite, value within {MAX_VALUE:g} of 0")
        if feature == _LEAF:
            continue
        if not 0 <= feature < len(FIGURES):
            raise ValueError(f"{where}: feature must be 0 to {len(FIGURES) - 1}, or {_LEAF} for a leaf")
        for child in (left, right):
            if not node < child < count or depths[child] >= 0:
                raise ValueError(f"{where}: must lead to two nodes after it that no other leads to")
            depths[child] = depths[node] + 1
    if max(depths) > MAX_DEPTH:
        raise ValueError(f"trees[{number}]: more than {MAX_DEPTH} steps deep")
    return max(depths)


def load(path: str | Path) -> Scorer:
    """The scorer of a file. Raises `ConfigError`, naming the file, if it cannot be read or is anything else."""
    try:
        with Path(path).open("rb") as file:
            return parse(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise ConfigError(f"pretrained: {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"pretrained: {path}: {error}. Make it with `driftsched train`") from None


def parse(data: bytes) -> Scorer:
    """The scorer in the text of a file. Raises `ValueError` that says what is wrong with it."""
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES >> 20} MiB")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("no scorer")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise ValueError(f"a scorer of version {document.get('version')!r}, and only {VERSION} is known here")
    if document.get("figures") != list(FIGURES):
        raise ValueError("trained on other figures than this version of driftsched reads from a request")
    trees = document.get("trees")
    if not isinstance(trees, list) or not all(isinstance(tree, dict) for tree in trees):
        raise ValueError("trees: must be a list of objects")
    base = _numbers("base", [document.get("base")])[0]
    return Scorer(base, [_tree(f"trees[{number}]", tree) for number, tree in enumerate(trees)])


def dump(base: float, trees: Sequence[Tree]) -> bytes:
    """The text of a file for `parse`. Raises `ValueError` for what that would refuse."""
    Scorer(base, trees)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "figures": FIGURES,
        "base": base,
        "trees": [{name: list(values) for name, values in tree._asdict().items()} for tree in trees],
    }
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _tree(where: str, tree: Mapping[str, Any]) -> Tree:
    feature, left, right = (_whole(f"{where}.{name}", tree.get(name)) for name in ("feature", "left", "right"))
    threshold, value = (_numbers(f"{where}.{name}", tree.get(name)) for name in ("threshold", "value"))
    return Tree(feature, threshold, left, right, value)


def _whole(where: str, values: object) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int and abs(value) <= MAX_NODES for value in values):
        raise ValueError(f"{where}: must be a list of whole numbers")
    return values


def _numbers(where: str, values: object) -> list[float]:
    """Finite floats; JSON writes some of them without a point."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{where}: must hold numbers only")
    try:
        return [float(value) for value in values]
    except OverflowError:
        raise ValueError(f"{where}: must hold numbers only") from None
