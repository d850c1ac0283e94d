"""How far predictions are off, how well they order, how honest their quantiles are. docs/evaluate.md defines each.

Where logarithms are taken, lengths and predictions below one token count as one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from driftsched.evaluation.stream import Column

EXACT_PAIRS_ROWS = 3000
"""Up to here every pair is looked at."""
SAMPLED_PAIRS = 1_000_000
PAIR_SEED = 1
WINDOW = 1000
"""Consecutive rows whose coverage is looked at."""
BLOCKS = 20
PARTS = 10
LEVELS = {"q50": 0.5, "q80": 0.8, "q90": 0.9}

Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Said:
    """What was predicted of some rows, and what became of them; equally long columns, in order of arrival."""

    actual: Column
    predicted: Column
    quantiles: Mapping[str, Column]
    """By the names of `LEVELS`."""

    def of(self, rows: npt.NDArray[np.bool_]) -> "Said":
        """Only the rows that are marked."""
        quantiles = {name: column[rows] for name, column in self.quantiles.items()}
        return Said(self.actual[rows], self.predicted[rows], quantiles)

    @property
    def log_ratio(self) -> Column:
        """Logarithm of predicted / actual."""
        return np.log(np.maximum(self.predicted, 1.0)) - np.log(np.maximum(self.actual, 1.0))


def mae(said: Said) -> float:
    """Mean absolute error, tokens."""
    return float(np.abs(said.predicted - said.actual).mean())


def rmse(said: Said) -> float:
    """Root of the mean squared error, tokens."""
    return sqrt(float(np.square(said.predicted - said.actual).mean()))


def log_mae(said: Said) -> float:
    """Mean absolute logarithm of predicted / actual."""
    return float(np.abs(said.log_ratio).mean())


def bias(said: Said) -> float:
    """Mean logarithm of predicted / actual: above 0 predictions are too long."""
    return float(said.log_ratio.mean())


def pinball(said: Said) -> dict[str, float]:
    """Mean pinball loss of each quantile, tokens (Koenker and Bassett, 1978)."""
    return {name: _pinball(said.actual - said.quantiles[name], level) for name, level in LEVELS.items()}


def _pinball(short: Column, level: float) -> float:
    return float(np.maximum(level * short, (level - 1) * short).mean())


def coverage(said: Said) -> dict[str, float]:
    """Share of the answers that are no longer than each quantile."""
    return {name: float((said.actual <= said.quantiles[name]).mean()) for name in LEVELS}


def coverage_range(said: Said, window: int = WINDOW) -> dict[str, dict[str, float]]:
    """Lowest and highest coverage over any `window` consecutive rows; over all of them if there are fewer."""
    return {name: _range(said.actual <= said.quantiles[name], window) for name in LEVELS}


def _range(covered: npt.NDArray[np.bool_], window: int) -> dict[str, float]:
    width = min(window, len(covered))
    sums = np.concatenate(([0], np.cumsum(covered)))
    shares = (sums[width:] - sums[:-width]) / width
    return {"min": float(shares.min()), "max": float(shares.max())}


def kendall_tau(said: Said) -> float | None:
    """Kendall's tau-b of predictions and lengths, -1 .. 1; None if one of them is constant.

    O(n log n): of the pairs in the order of the predictions the discordant ones are inversions (Knight, 1966).
    """
    x = np.unique(said.predicted, return_inverse=True)[1]
    y = np.unique(said.actual, return_inverse=True)[1]
    order = np.lexsort((y, x))
    pairs = len(x) * (len(x) - 1) // 2
    tied_x, tied_y, tied_both = _tied(x), _tied(y), _tied(x * (int(y.max()) + 1) + y)
    if tied_x == pairs or tied_y == pairs:
        return None
    surplus = pairs - tied_x - tied_y + tied_both - 2 * _inversions(y[order])
    return surplus / sqrt((pairs - tied_x) * (pairs - tied_y))


def _tied(values: Places) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(ranks: Places) -> int:
    """Pairs of which the larger rank comes first.

    Two ranks differ first in some bit; so for every bit, among ranks that agree in all higher bits, the ones that
    come before a zero are counted, while a stable sort brings together what agrees in one bit more.
    """
    total = 0
    for bit in reversed(range(int(ranks.max()).bit_length())):
        high = ranks >> (bit + 1)
        ones = (ranks >> bit) & 1
        before = np.concatenate(([0], np.cumsum(ones)[:-1]))
        in_group = before - before[np.searchsorted(high, high)]
        total += int(in_group[ones == 0].sum())
        ranks = ranks[np.argsort(ranks >> bit, kind="stable")]
    return total


def pair_accuracy_2x(said: Said) -> float | None:
    """Share of the pairs whose lengths differ at least twofold that predictions put in order, a tie counting half.

    Of more than `EXACT_PAIRS_ROWS` rows a fixed sample of `SAMPLED_PAIRS` pairs is looked at. None without pairs.
    """
    number = len(said.actual)
    actual = np.maximum(said.actual, 1.0)
    if number > EXACT_PAIRS_ROWS:
        dice = np.random.default_rng(PAIR_SEED)
        left, right = dice.integers(number, size=(2, SAMPLED_PAIRS))
        right_pairs, pairs = _ordered_pairs(
            actual[left], actual[right], said.predicted[left], said.predicted[right]
        )
    else:
        counts = [
            _ordered_pairs(actual[i], actual[i + 1 :], said.predicted[i], said.predicted[i + 1 :])
            for i in range(number - 1)
        ]
        right_pairs, pairs = sum(right for right, _ in counts), sum(count for _, count in counts)
    return right_pairs / pairs if pairs else None


def _ordered_pairs(
    left: Column | float, right: Column, left_said: Column | float, right_said: Column
) -> tuple[float, int]:
    """Pairs in order, ties counting half, and all pairs, of those that differ at least twofold."""
    longer, shorter = left >= 2 * right, right >= 2 * left
    apart = longer | shorter
    difference = np.sign(left_said - right_said)
    agreeing = np.where(longer, difference, -difference)[apart]
    return float(((agreeing + 1) / 2).sum()), int(apart.sum())


def blocks(said: Said, count: int = BLOCKS) -> list[dict[str, Any]]:
    """Error over time: the rows in `count` stretches of equal length."""
    edges = np.linspace(0, len(said.actual), min(count, len(said.actual)) + 1).astype(int)
    rows = np.arange(len(said.actual))
    parts = [said.of((rows >= low) & (rows < high)) for low, high in pairwise(edges)]
    return [_summary(part) for part in parts]


def reliability(said: Said, count: int = PARTS) -> list[dict[str, Any]]:
    """The rows in `count` parts by their predictions, the shortest first; equal predictions are in one part."""
    edges = np.quantile(said.predicted, np.linspace(0, 1, count + 1)[1:-1])
    places = np.searchsorted(edges, said.predicted, side="left")
    parts = [said.of(places == place) for place in np.unique(places)]
    return [
        {"predicted": float(part.predicted.mean()), "actual": float(part.actual.mean()), **_summary(part)}
        for part in parts
    ]


def _summary(said: Said) -> dict[str, Any]:
    return {
        "rows": len(said.actual),
        "mae": mae(said),
        "log_mae": log_mae(said),
        "bias": bias(said),
        "coverage": coverage(said),
    }


def by_group(said: Said, names: Sequence[str], most: int = 50) -> dict[str, dict[str, Any]]:
    """Error of the rows of each name; of the `most` names with the most rows."""
    labels, places, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
    chosen = sorted(np.argsort(-counts, kind="stable")[:most])
    parts = {str(labels[place]): said.of(places == place) for place in chosen}
    return {name: {**_summary(part), "kendall_tau": kendall_tau(part)} for name, part in parts.items()}


def errors(said: Said) -> dict[str, Any]:
    """All scores that need nothing but the predictions and the lengths; at least one row."""
    return {
        "mae": mae(said),
        "rmse": rmse(said),
        "log_mae": log_mae(said),
        "bias": bias(said),
        "kendall_tau": kendall_tau(said),
        "pair_accuracy_2x": pair_accuracy_2x(said),
        "pinball": pinball(said),
        "coverage": coverage(said),
    }
