"""Two online linear models: a ridge regression on few figures, and hashed words with a step of their own each."""

from math import sqrt

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]


class Ridge:
    """Recursive least squares: minimises the squared error plus `penalty` x |weights - start|^2.

    Nothing is forgotten: forgetting winds the covariance of figures that are rarely set up without bound. What
    changes with time is left to whoever corrects the sum.

    Source: Haykin, "Adaptive Filter Theory", the RLS algorithm.
    """

    def __init__(self, start: Vector, penalty: float) -> None:
        """`start`: shape (n,), the weights before anything is learnt. `penalty` > 0."""
        self._start = start
        self._penalty = penalty
        self.weights = start.copy()
        self.covariance: Vector = np.eye(len(start)) / penalty

    def predict(self, figures: Vector) -> float:
        return float(figures @ self.weights)

    def learn(self, figures: Vector, error: float) -> None:
        """Correct the weights for an `error` (true - predicted) at `figures`, shape (n,). Clip it before."""
        towards = self.covariance @ figures
        gain = towards / (1.0 + float(figures @ towards))
        self.weights += gain * error
        self.covariance -= gain[:, None] * towards

    def pack(self) -> list[bytes]:
        return [self.weights.tobytes(), self.covariance.tobytes()]

    def unpack(self, packed: object) -> None:
        """Raises `ValueError`, and changes nothing, for anything that no regression of this size can be."""
        weights, covariance = _arrays(packed, np.float64, len(self.weights), len(self.weights) ** 2)
        square: Vector = covariance.astype(np.float64).reshape(self.covariance.shape)
        if not np.allclose(square, square.T, atol=1e-6) or np.linalg.eigvalsh(square)[0] < -1e-6:
            raise ValueError("a covariance must be symmetric and not negative")
        self.weights = weights.astype(np.float64)
        self.covariance = square

    def absorb(self, other: "Ridge") -> None:
        """As if all had been learnt here: evidence, the inverse of covariance, adds up; the prior counts once."""
        mine, theirs = _inverse(self.covariance), _inverse(other.covariance)
        prior = self._penalty * np.eye(len(self._start))
        self.covariance = _inverse(mine + theirs - prior)
        self.weights = self.covariance @ (mine @ self.weights + theirs @ other.weights - prior @ self._start)


def _inverse(matrix: Vector) -> Vector:
    inverse = np.linalg.pinv(matrix).astype(np.float64)
    return (inverse + inverse.T) / 2


class Words:
    """A weight for each place of a hashed table of words, learnt by AdaGrad.

    A word seen often takes small steps, a rare one large steps. The sum over a prompt's words is divided by the
    root of their number, so that long prompts are not predicted more wildly than short ones.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 2011.
    """

    def __init__(self, num_places: int, step: float) -> None:
        self.weights: Weights = np.zeros(num_places, np.float32)
        self.squares: Weights = np.ones(num_places, np.float32)  # sum of squared gradients, and 1
        self._step = step

    def predict(self, places: Places) -> float:
        """0 for no words."""
        return float(self.weights[places].sum()) / sqrt(len(places)) if len(places) else 0.0

    def learn(self, places: Places, error: float) -> None:
        """Correct for an `error` (true - predicted). Clip it before."""
        if not len(places):
            return
        gradient = error / sqrt(len(places))
        squares = self.squares[places] + gradient * gradient
        self.squares[places] = squares
        self.weights[places] += self._step * gradient / np.sqrt(squares)

    def pack(self) -> list[bytes]:
        return [self.weights.tobytes(), self.squares.tobytes()]

    def unpack(self, packed: object) -> None:
        """Raises `ValueError`, and changes nothing, for anything that no table of this size can be."""
        weights, squares = _arrays(packed, np.float32, len(self.weights), len(self.weights))
        if squares.min() < 1:
            raise ValueError("sums of squares must be at least 1")
        self.weights, self.squares = weights.astype(np.float32), squares.astype(np.float32)

    def absorb(self, other: "Words") -> None:
        """Weights are averaged by the evidence behind them, and evidence adds up."""
        mine, theirs = self.squares - 1, other.squares - 1
        both = mine + theirs
        mean = (self.weights * mine + other.weights * theirs) / np.maximum(both, 1e-12)
        self.weights = np.where(both > 0, mean, 0).astype(np.float32)
        self.squares = both + 1


MAX_WEIGHT = 1e6


def _arrays(packed: object, dtype: type[np.floating], *sizes: int) -> list[npt.NDArray[np.floating]]:
    if not isinstance(packed, list) or len(packed) != len(sizes):
        raise ValueError(f"{len(sizes)} arrays are needed")
    arrays: list[npt.NDArray[np.floating]] = []
    for data, size in zip(packed, sizes, strict=True):
        if not isinstance(data, bytes) or len(data) != size * np.dtype(dtype).itemsize:
            raise ValueError(f"an array of {size} numbers is needed")
        values: npt.NDArray[np.floating] = np.frombuffer(data, dtype).copy()
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > MAX_WEIGHT:
            raise ValueError("arrays must hold finite numbers of sane size")
        arrays.append(values)
    return arrays
